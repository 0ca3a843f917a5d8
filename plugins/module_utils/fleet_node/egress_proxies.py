# SPDX-License-Identifier: GPL-3.0-or-later
"""The explicit proxy of a fence on this host: its files, its process, and what it needs before it can start.

It runs as a user that cannot enter the state folder, and has a folder of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import os
import pkgutil
import pwd
import secrets
import shutil
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fleet_core import egress_decisions, egress_mitmproxy, egress_squid
    from fleet_core.errors import StateDamaged, Unavailable
    from fleet_core.fences import Fence

    from . import egress_addon  # noqa: F401 - for Ansible, which sends along what is imported anywhere
else:
    try:
        from ..fleet_core import egress_decisions, egress_mitmproxy, egress_squid
        from ..fleet_core.errors import StateDamaged, Unavailable
        from ..fleet_core.fences import Fence
    except ImportError:  # installed as a top-level package
        from fleet_core import egress_decisions, egress_mitmproxy, egress_squid
        from fleet_core.errors import StateDamaged, Unavailable
        from fleet_core.fences import Fence

from . import egress_commands, egress_services
from .egress_services import Item, Services
from .egress_store import EgressStore, Record

SQUID, MITMPROXY, MITMDUMP = "squid", "mitmproxy", "mitmdump"
SQUID_FILE, POLICY_FILE, OPTIONS_FILE = "squid.conf", "mitmproxy.json", "mitmproxy-options.json"
FILES = (SQUID_FILE, POLICY_FILE, OPTIONS_FILE)
FOLDERS = "/var/lib"
USER = "proxy"
LOG = "proxy.log"
_CERTIFICATE = "proxy.pem"
SQUID_LOG, _READY = "squid.log", b"Accepting "
_LONGEST_LOG = 64 * 1024 * 1024
_RELOADED = 5.0  # seconds within which squid reads its configuration again
_TRUSTED = "/etc/ssl/certs/ca-certificates.crt"
# What the folder of mitmproxy holds: name there -> name in a generation.
_PUBLISHED = {"mitmproxy.json": POLICY_FILE, "config.yaml": OPTIONS_FILE}


@dataclass(frozen=True)
class ProxyWanted:
    """files: of a generation, by name. items: the process, if there is to be one."""

    files: Mapping[str, str] = field(default_factory=dict)
    items: tuple[Item, ...] = ()


def folder_of(store: EgressStore) -> Path:
    """Return the folder of the proxy: its log, proxy.log, and mitmproxy's certificate authority are there."""
    digest = hashlib.sha256(os.fsencode(store.state_dir)).hexdigest()[:8]
    return Path(FOLDERS) / f"fleet-proxy-{digest}"


def wanted(store: EgressStore, fence: Fence, exact: bool = True) -> ProxyWanted:
    """Return what the proxy of a fence needs. exact: False where nothing is to be applied, and tools may be missing."""
    if fence.proxy.kind and exact:
        _user(USER)
    if fence.proxy.kind == SQUID:
        return _squid(store, fence, exact)
    return _mitmproxy(store, fence, exact) if fence.proxy.kind == MITMPROXY else ProxyWanted()


def _squid(store: EgressStore, fence: Fence, exact: bool) -> ProxyWanted:
    build = egress_squid.Build((5, 7), True)
    program = SQUID
    try:
        build = egress_squid.build(egress_commands.run([SQUID, "-v"]))
        program = egress_commands.find(SQUID)
    except Unavailable:
        if exact:
            raise
    certificate = str(store.folder / _CERTIFICATE) if build.looks_at_tls else ""
    text = egress_squid.configuration(fence, str(folder_of(store)), egress_squid.Settings(USER, certificate))
    argv = [program, "--foreground", "-N", "-f", str(store.applied / SQUID_FILE)]
    # Without its text: squid reads another configuration on SIGHUP, and its connections go on.
    item = egress_services.item(egress_services.PROXY, "proxy of the network policy", argv)
    return ProxyWanted({SQUID_FILE: text}, (item,))


def _mitmproxy(store: EgressStore, fence: Fence, exact: bool) -> ProxyWanted:
    folder = str(folder_of(store))
    try:
        program = egress_commands.find(MITMDUMP)
    except Unavailable:
        if exact:
            raise
        program = MITMDUMP
    options = egress_mitmproxy.options(fence, folder, _TRUSTED if os.path.exists(_TRUSTED) else "")
    argv = egress_mitmproxy.command(program, folder, USER)
    # Its addon reads another policy by itself; other options, or another addon, need another process.
    text = options + _addon() + _source(egress_decisions)
    env = {"HOME": folder}
    item = egress_services.item(egress_services.PROXY, "proxy of the network policy", argv, text, env=env)
    return ProxyWanted({POLICY_FILE: egress_mitmproxy.policy(fence), OPTIONS_FILE: options}, (item,))


def _source(module: object) -> str:
    """Return the text of a module of ours, which may lie in the archive that Ansible has sent."""
    return inspect.getsource(module)  # type: ignore[arg-type]


def _addon() -> str:
    """Return the text of the addon, which can be imported in mitmproxy only."""
    return (pkgutil.get_data(__package__, "egress_addon.py") or b"").decode()


def _user(name: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        raise Unavailable(f'user "{name}": expected it on this host for the proxy, found none') from None


def make_ready(store: EgressStore, fence: Fence) -> None:
    """Make the folder and the certificate that the proxy needs, where they are missing."""
    if not fence.proxy.kind:
        return
    folder, user = folder_of(store), _user(USER)
    try:
        folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        os.chown(folder, user.pw_uid, user.pw_gid)
    except OSError as error:
        raise StateDamaged(f"{folder}: cannot be made: {error.strerror}") from error
    if fence.proxy.kind == SQUID and not (store.folder / _CERTIFICATE).exists():
        _make_certificate(store.folder / _CERTIFICATE)


def _make_certificate(path: Path) -> None:
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        egress_commands.run(egress_squid.certificate_command(str(new)))
        os.replace(new, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            new.unlink()


def publish(store: EgressStore, record: Record) -> None:
    """Put the files of a generation where mitmproxy reads them. It sees a new policy at once."""
    if POLICY_FILE not in record.files:
        return
    texts = {name: record.files[source] for name, source in _PUBLISHED.items()}
    texts.update({"egress_decisions.py": _source(egress_decisions), "addon.py": _addon()})
    folder, user = folder_of(store), _user(USER)
    for name, text in texts.items():
        # The folder is the proxy's: nothing that it may have put there is read or followed.
        path, new = folder / name, folder / f".{name}.{secrets.token_hex(8)}.new"
        if _content(path) == text.encode():
            continue  # mitmproxy loads an addon that is written again, and that one knows of no connections
        try:
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o640)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                os.fchown(file.fileno(), 0, user.pw_gid)
                file.write(text)
            os.replace(new, path)
        except OSError as error:
            raise StateDamaged(f"{path}: cannot be written: {error.strerror}") from error


def reload(store: EgressStore, services: Services) -> None:
    """Let squid read its configuration again, and wait until it has."""
    path = folder_of(store) / SQUID_LOG
    before = len(_content(path))
    if not services.hang_up([egress_services.PROXY]):
        return
    end = time.monotonic() + _RELOADED
    while time.monotonic() < end:
        if _READY in _content(path)[before:]:
            return
        time.sleep(0.02)


def _content(path: Path) -> bytes:
    """Return what a file of the proxy's folder holds, unless it is something else: the folder is not ours alone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    with os.fdopen(descriptor, "rb") as file:
        return file.read(_LONGEST_LOG) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""


def remove(store: EgressStore) -> None:
    """Remove the folder of the proxy."""
    shutil.rmtree(folder_of(store), ignore_errors=True)
