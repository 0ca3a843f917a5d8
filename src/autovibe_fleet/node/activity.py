# SPDX-License-Identifier: GPL-3.0-or-later
"""What counts as use of an environment: a request, a line of output, an open connection to one of its ports.

Requests are noted where they arrive (CLI, MCP and API all speak to fleetd) and lines where they are read. Connections
are looked up here, in /proc/net/tcp and tcp6 (proc(5)). Connections between an environment's own processes, and
fleetd's health checks, are no use of it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_ESTABLISHED = "01"
_SOCKET = re.compile(r"socket:\[(\d+)\]")


@dataclass(frozen=True)
class Connection:
    """One end of an established TCP connection. inode: of its socket, 0 when no process holds it any more."""

    local_port: int
    remote_port: int
    inode: int


def connections(table: str) -> list[Connection]:
    """Return the established connections in the text of /proc/net/tcp or tcp6; lines of another form are skipped."""
    found = []
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 10 or fields[3] != _ESTABLISHED:
            continue
        try:
            local, remote = (int(address.rpartition(":")[2], 16) for address in fields[1:3])
            found.append(Connection(local, remote, int(fields[9])))
        except ValueError:
            continue
    return found


def ports_in_use(rows: Iterable[Connection], ports: Collection[int], own: Collection[int] = ()) -> set[int]:
    """Return the ports that somebody is connected to.

    own: socket inodes of the environment's own processes. A connection whose other end is one of them does not count.
    """
    rows = list(rows)
    inside = {(row.remote_port, row.local_port) for row in rows if row.inode in own and row.local_port not in ports}
    served = [row for row in rows if row.local_port in ports]
    return {row.local_port for row in served if (row.local_port, row.remote_port) not in inside}


def established_ports(ports: Iterable[int], own_pids: Iterable[int] = ()) -> set[int]:
    """Return those of the ports that have an established connection now, in this network namespace.

    own_pids: the environment's processes; connections that they and their children make to each other do not count,
    nor do those of the calling process. Where there is no /proc nothing is known, and the set is empty.
    """
    wanted = set(ports)
    rows = [row for name in ("tcp", "tcp6") for row in connections(_read(f"/proc/net/{name}"))]
    if not any(row.local_port in wanted for row in rows):
        return set()
    pids = set(own_pids)
    return ports_in_use(rows, wanted, socket_inodes({os.getpid(), *(family(pids, parents()) if pids else ())}))


def family(pids: Collection[int], parent_of: Mapping[int, int]) -> set[int]:
    """Return the pids and all that descend from them."""
    children: dict[int, list[int]] = {}
    for pid, parent in parent_of.items():
        children.setdefault(parent, []).append(pid)
    found: set[int] = set()
    waiting = list(pids)
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.add(pid)
            waiting.extend(children.get(pid, ()))
    return found


def parents() -> dict[int, int]:
    """Return the parent of every process of this host that can be seen."""
    found = {}
    for pid in _pids():
        # comm is in parentheses and may hold anything: proc_pid_stat(5).
        fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
        if len(fields) > 1:
            found[pid] = int(fields[1])
    return found


def socket_inodes(pids: Iterable[int]) -> set[int]:
    """Return the inodes of the sockets that processes hold; those of other users cannot be seen without root."""
    found = set()
    for pid in pids:
        try:
            names = os.listdir(f"/proc/{pid}/fd")
        except OSError:
            continue
        for name in names:
            try:
                target = os.readlink(f"/proc/{pid}/fd/{name}")
            except OSError:
                continue
            if match := _SOCKET.fullmatch(target):
                found.add(int(match[1]))
    return found


def idle(last_activity: float, now: float) -> float:
    """Return seconds since the last activity; 0 when the clock was set back in between."""
    return max(0.0, now - last_activity)


def _pids() -> Iterator[int]:
    try:
        names = os.listdir("/proc")
    except OSError:
        return
    yield from (int(name) for name in names if name.isdigit())


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
