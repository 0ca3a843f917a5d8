# SPDX-License-Identifier: GPL-3.0-or-later
"""The explicit proxy of a fence on this host: its files, its process, and what it needs before it can start."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pwd
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fleet_core import egress_squid
    from fleet_core.errors import FleetError, StateDamaged, Unavailable
    from fleet_core.fences import Fence
else:
    try:
        from ..fleet_core import egress_squid
        from ..fleet_core.errors import FleetError, StateDamaged, Unavailable
        from ..fleet_core.fences import Fence
    except ImportError:  # installed as a top-level package
        from fleet_core import egress_squid
        from fleet_core.errors import FleetError, StateDamaged, Unavailable
        from fleet_core.fences import Fence

from . import egress_commands, egress_services
from .egress_services import Item
from .egress_store import EgressStore

SQUID, MITMPROXY = "squid", "mitmproxy"
SQUID_FILE = "squid.conf"
LOGS = "/var/log"
_USER = "proxy"
_CERTIFICATE = "proxy.pem"


@dataclass(frozen=True)
class ProxyWanted:
    """files: by name. items: the process. folder: of the logs, which user must be able to write to."""

    files: Mapping[str, str] = field(default_factory=dict)
    items: tuple[Item, ...] = ()


def log_folder(store: EgressStore) -> Path:
    """Return the folder where the proxy writes. It runs as a user that cannot enter the state folder."""
    digest = hashlib.sha256(os.fsencode(store.state_dir)).hexdigest()[:8]
    return Path(LOGS) / f"fleet-proxy-{digest}"


def wanted(store: EgressStore, fence: Fence, exact: bool = True) -> ProxyWanted:
    """Return what the proxy of a fence needs. exact: False where nothing is to be applied, and tools may be missing."""
    if fence.proxy.kind == SQUID:
        return _squid(store, fence, exact)
    return ProxyWanted()


def _squid(store: EgressStore, fence: Fence, exact: bool) -> ProxyWanted:
    build = egress_squid.Build((5, 7), True)
    program = SQUID
    if exact:
        build = egress_squid.build(egress_commands.run([SQUID, "-v"]))
        program = egress_commands.find(SQUID)
        _user(_USER)
    certificate = str(store.folder / _CERTIFICATE) if build.looks_at_tls else ""
    folder = log_folder(store)
    text = egress_squid.configuration(fence, str(folder), egress_squid.Settings(_USER, certificate))
    argv = [program, "--foreground", "-N", "-f", str(store.applied / SQUID_FILE)]
    # Without its text: squid reads another configuration on SIGHUP, and its connections go on.
    item = egress_services.item(egress_services.PROXY, "proxy of the network policy", argv)
    return ProxyWanted({SQUID_FILE: text}, (item,))


def _user(name: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        raise Unavailable(f'user "{name}": expected it on this host for squid, found none') from None


def make_ready(store: EgressStore, fence: Fence) -> None:
    """Make the folder and the certificate that the proxy needs, where they are missing."""
    if fence.proxy.kind != SQUID:
        return
    folder, user = log_folder(store), _user(_USER)
    try:
        folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        os.chown(folder, user.pw_uid, user.pw_gid)
    except OSError as error:
        raise StateDamaged(f"{folder}: cannot be made: {error.strerror}") from error
    path = store.folder / _CERTIFICATE
    if path.exists():
        return
    new = store.folder / f".{_CERTIFICATE}.{os.getpid()}.new"
    os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        egress_commands.run(egress_squid.certificate_command(str(new)))
        os.replace(new, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            new.unlink()


def remove(store: EgressStore) -> None:
    """Remove the folder of the logs."""
    import shutil

    shutil.rmtree(log_folder(store), ignore_errors=True)


def ends_connections(fence: Fence) -> bool:
    """Tell whether connections through the proxy must be cut by us: squid keeps those that it has."""
    return fence.proxy.kind == SQUID


__all__ = ["FleetError", "ProxyWanted", "ends_connections", "log_folder", "make_ready", "remove", "wanted"]
