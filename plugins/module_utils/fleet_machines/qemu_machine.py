# SPDX-License-Identifier: GPL-3.0-or-later
"""From a machine's record and its process to a Machine; pure but for asking QEMU which machine types it knows."""

from __future__ import annotations

import functools
import re
import subprocess
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .qemu_command import HOST, ISOLATED, USER
from .qemu_networks import interfaces
from .qemu_processes import plain, process_id, state_of

if TYPE_CHECKING:
    from fleet_core.errors import Unavailable
    from fleet_core.machines import Machine, Network
else:
    try:
        from ..fleet_core.errors import Unavailable
        from ..fleet_core.machines import Machine, Network
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import Unavailable
        from fleet_core.machines import Machine, Network

# Runs once in a copy of another machine, early: cloud-init makes new host keys by itself, but no machine-id.
FORK_VENDOR_DATA = """#cloud-boothook
#!/bin/sh
cloud-init-per instance fleet-machine-id sh -c '
rm -f /var/lib/dbus/machine-id /var/lib/systemd/random-seed
: >/etc/machine-id
systemd-machine-id-setup >/dev/null 2>&1
[ ! -d /var/lib/dbus ] || ln -sf /etc/machine-id /var/lib/dbus/machine-id
'
"""
_ALIAS = re.compile(r"^q35\s.*\(alias of ([\w.-]+)\)", re.MULTILINE)


def machine_of(name: str, record: Mapping[str, Any], view: Mapping[str, Any] | None, salt: str = "") -> Machine:
    """Return a machine. view: its process, or None when it has none. salt: of the names of its taps."""
    state = state_of(view)
    ports: Mapping[str, str] = (view or {}).get("resources") or {}
    up = state in ("running", "starting", "stopping")
    forwarded = any(one.get("name") in (USER, ISOLATED) for one in record.get("cards") or ())
    addresses: tuple[str, ...] = tuple(record.get("addresses") or ()) if up else ()
    port = 22
    if forwarded and up and ports.get("sshport"):
        addresses, port = (HOST, *addresses), int(ports["sshport"])
    error = plain(str((view or {}).get("error") or ""))
    detail: dict[str, Any] = {
        "process": process_id(name),
        "folder": record.get("folder") or "",
        "accel": record.get("accel") or "",
        "created": record.get("created") or "",
        "checkpoint": record.get("at") or "",
        "interfaces": interfaces(name, record, salt),
        **({"origin": record["origin"]} if record.get("origin") else {}),
        **({"vnc": f"{HOST}:{ports['vncport']}"} if up and ports.get("vncport") else {}),
        **({"pid": view.get("pid"), "restarts": view.get("restarts")} if up and view else {}),
        **({"error": error} if error else {}),
    }
    return Machine(
        name=name,
        provider="qemu",
        state=state,
        addresses=addresses,
        image=record.get("image") or "",
        cpu=record.get("cpu") or 0,
        memory=record.get("memory") or 0,
        disk=record.get("disk") or 0,
        networks=tuple(Network(**one) for one in record.get("networks") or ()),
        user_data=record.get("user_data") or "",
        tags=tuple(record.get("tags") or ()),
        project=record.get("project") or "",
        login=record.get("login") or "",
        port=port,
        checkpoints=sum(bool(one.get("made")) for one in (record.get("checkpoints") or {}).values()),
        incomplete=record.get("incomplete") or "",
        detail=detail,
    )


@functools.cache
def machine_type(program: str) -> str:
    """Return the versioned name of QEMU's machine type q35, which saved states are bound to."""
    try:
        done = subprocess.run(  # pylint: disable=ansible-bad-function # no module in fleet_machines
            (program, "-machine", "help"),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=30.0,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{program}: cannot be run: {error}") from error
    found = _ALIAS.search(done.stdout)
    return found.group(1) if found else "q35"
