# SPDX-License-Identifier: GPL-3.0-or-later
"""Facts about the processes of this host: from /proc on Linux, from ps and lsof elsewhere.

Functions that look at many processes make one pass over the process table, whatever the number asked for.
See proc(5) for the fields.
"""

from __future__ import annotations

import os
import pwd
import re
import shlex
import subprocess
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from fleet_core.errors import NotFound, Unavailable
else:
    try:
        from ..fleet_core.errors import NotFound, Unavailable
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import NotFound, Unavailable

LAUNCH = "FLEET_LAUNCH"  # the variable that marks everything of one launch
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
# A listening socket of /proc/net/tcp: local address:PORT, remote port 0, state 0A, ..., uid, timeout, inode.
_LISTEN = re.compile(rb"^ *\d+: [0-9A-F]+:([0-9A-F]{4}) [0-9A-F]+:0000 0A \S+ \S+ \S+ +\d+ +\d+ (\d+)", re.MULTILINE)


class Row(NamedTuple):
    """One line of the process table. memory: bytes in RAM. cpu: seconds used. start: in the unit of start_ticks."""

    pid: int
    ppid: int
    group: int
    state: str
    start: int
    cpu: float
    memory: int

    @property
    def zombie(self) -> bool:
        return self.state in "ZX"


class Table(Protocol):
    """Where facts come from. An unknown or vanished pid gives None or nothing, never an error."""

    def pids(self) -> list[int]: ...

    def row(self, pid: int) -> Row | None: ...

    def rows(self, pids: Iterable[int] | None = None) -> list[Row]:
        """Return the rows of the given pids, or of all."""

    def started(self, rows: Iterable[Row]) -> list[float]:
        """Return when each process began, in seconds since the epoch."""

    def environments(self) -> Iterable[tuple[int, bytes]]:
        """Return the environment of each process that this user may see, as NUL-separated NAME=value."""

    def argv(self, pid: int) -> list[str]: ...

    def cwd(self, pid: int) -> str: ...

    def uid(self, pid: int) -> int | None: ...

    def sockets(self) -> dict[int, list[str]]:
        """Return the listening TCP ports, each with the names of its sockets."""

    def holders(self, sockets: set[str], pids: Iterable[int] | None = None) -> dict[str, list[int]]:
        """Return which processes hold each socket."""


class Proc:
    """The table of Linux. root: where proc is mounted."""

    def __init__(self, root: str = "/proc") -> None:
        self._root = root

    def _read(self, path: str) -> bytes:
        try:
            descriptor = os.open(f"{self._root}/{path}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return b""
        try:
            data = os.read(descriptor, 65536)
            if len(data) < 4096:
                return data
            parts = [data]
            while data:
                data = os.read(descriptor, 65536)
                parts.append(data)
            return b"".join(parts)
        except OSError:  # the process has ended meanwhile
            return b""
        finally:
            os.close(descriptor)

    def pids(self) -> list[int]:
        return [int(name) for name in os.listdir(self._root) if name.isdigit()]

    def row(self, pid: int) -> Row | None:
        data = self._read(f"{pid}/stat")
        end = data.rfind(b")")  # the name before it may hold anything
        if end < 0:
            return None
        part = data[end + 2 :].split(None, 22)
        if len(part) < 22:
            return None
        cpu = (int(part[11]) + int(part[12])) / _TICKS
        return Row(pid, int(part[1]), int(part[2]), part[0].decode(), int(part[19]), cpu, int(part[21]) * _PAGE)

    def rows(self, pids: Iterable[int] | None = None) -> list[Row]:
        found = (self.row(pid) for pid in (self.pids() if pids is None else pids))
        return [row for row in found if row is not None]

    def started(self, rows: Iterable[Row]) -> list[float]:
        # Asked for every time: the clock may have been set since.
        boot = time.time() - float((self._read("uptime").split() or [b"0"])[0])
        return [boot + row.start / _TICKS for row in rows]

    def environments(self) -> Iterable[tuple[int, bytes]]:
        for pid in self.pids():
            data = self._read(f"{pid}/environ")
            if data:
                yield pid, data

    def argv(self, pid: int) -> list[str]:
        data = self._read(f"{pid}/cmdline")
        return [os.fsdecode(word) for word in data.rstrip(b"\0").split(b"\0")] if data.strip(b"\0") else []

    def name(self, pid: int) -> str:
        """Return the name that ps shows, also for a kernel thread."""
        return os.fsdecode(self._read(f"{pid}/comm").strip())

    def cwd(self, pid: int) -> str:
        try:
            return os.readlink(f"{self._root}/{pid}/cwd")
        except OSError:
            return ""

    def uid(self, pid: int) -> int | None:
        try:
            return os.stat(f"{self._root}/{pid}").st_uid
        except OSError:
            return None

    def sockets(self) -> dict[int, list[str]]:
        found: dict[int, list[str]] = {}
        for name in ("net/tcp", "net/tcp6"):
            for port, inode in _LISTEN.findall(self._read(name)):
                found.setdefault(int(port, 16), []).append(inode.decode())
        return found

    def holders(self, sockets: set[str], pids: Iterable[int] | None = None) -> dict[str, list[int]]:
        wanted = {f"socket:[{inode}]": inode for inode in sockets}
        found: dict[str, list[int]] = {inode: [] for inode in sockets}
        for pid in self.pids() if pids is None else pids:
            folder = f"{self._root}/{pid}/fd"
            try:
                names = os.listdir(folder)
            except OSError:  # ended, or of another user
                continue
            for name in names:
                try:
                    inode = wanted.get(os.readlink(f"{folder}/{name}"))
                except OSError:
                    continue
                if inode is not None and pid not in found[inode]:
                    found[inode].append(pid)
        return found


class Ps:
    """The table of systems without /proc. Every call runs ps or lsof, so it is slow; start is in whole seconds."""

    _FORMAT = "pid=,ppid=,pgid=,stat=,rss=,time=,lstart="

    def _run(self, *argv: str) -> str:
        import shutil

        program = shutil.which(argv[0])
        if program is None:
            raise Unavailable(f"{argv[0]}: not found; it is needed to look at processes on this system")
        # fleetd asks too, where there is no AnsibleModule.
        done = subprocess.run(  # pylint: disable=ansible-bad-function
            [program, *argv[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C"},
            timeout=20,
            check=False,
        )
        return done.stdout.decode("utf-8", "replace")

    def pids(self) -> list[int]:
        return [row.pid for row in self.rows()]

    def row(self, pid: int) -> Row | None:
        return next(iter(self.rows([pid])), None)

    def rows(self, pids: Iterable[int] | None = None) -> list[Row]:
        which = ["-A"] if pids is None else ["-p", ",".join(map(str, pids))]
        if which[-1] == "":
            return []
        rows = []
        for line in self._run("ps", *which, "-o", self._FORMAT).splitlines():
            part = line.split(None, 6)
            if len(part) == 7:
                start = int(time.mktime(time.strptime(part[6].strip(), "%a %b %d %H:%M:%S %Y")))
                memory = int(part[4]) * 1024
                rows.append(Row(int(part[0]), int(part[1]), int(part[2]), part[3][0], start, _clock(part[5]), memory))
        return rows

    def started(self, rows: Iterable[Row]) -> list[float]:
        return [float(row.start) for row in rows]

    def environments(self) -> Iterable[tuple[int, bytes]]:
        for line in self._run("ps", "axeww", "-o", "pid=,command=").splitlines():
            number, _space, text = line.strip().partition(" ")
            if number.isdigit():
                yield int(number), text.replace(" ", "\0").encode()

    def argv(self, pid: int) -> list[str]:
        text = self._run("ps", "-ww", "-p", str(pid), "-o", "command=").strip()
        try:
            return shlex.split(text)
        except ValueError:
            return text.split()

    def cwd(self, pid: int) -> str:
        lines = self._run("lsof", "-a", "-p", str(pid), "-d", "cwd", "-Fn").splitlines()
        return next((line[1:] for line in lines if line.startswith("n")), "")

    def uid(self, pid: int) -> int | None:
        text = self._run("ps", "-p", str(pid), "-o", "uid=").strip()
        return int(text) if text.isdigit() else None

    def _listening(self) -> list[tuple[int, int]]:
        pairs, pid = [], 0
        for line in self._run("lsof", "-nP", "-iTCP", "-sTCP:LISTEN", "-Fpn").splitlines():
            port = line.rpartition(":")[2]
            if line.startswith("p"):
                pid = int(line[1:])
            elif line.startswith("n") and port.isdigit():
                pairs.append((int(port), pid))
        return pairs

    def sockets(self) -> dict[int, list[str]]:
        return {port: [str(port)] for port, _pid in self._listening()}

    def holders(self, sockets: set[str], pids: Iterable[int] | None = None) -> dict[str, list[int]]:
        only = None if pids is None else set(pids)
        found: dict[str, list[int]] = {name: [] for name in sockets}
        for port, pid in self._listening():
            holders = found.get(str(port))
            if holders is not None and pid not in holders and (only is None or pid in only):
                holders.append(pid)
        return found


def _clock(text: str) -> float:
    """Return seconds from the TIME of ps: [DD-][HH:]MM:SS[.hh]."""
    days, _dash, rest = text.rpartition("-")
    seconds = 0.0
    for part in rest.split(":"):
        seconds = seconds * 60 + float(part)
    return seconds + int(days or 0) * 86400


TABLE: Table = Proc() if os.path.exists("/proc/self/stat") else Ps()


def start_ticks(pid: int) -> int | None:
    """Return when a process began, in clock ticks since boot (elsewhere: seconds since the epoch), or None.

    With the pid it names a process for good: no later process has both.
    """
    row = TABLE.row(pid)
    return row.start if row is not None else None


def alive(pid: int, start: int = 0) -> bool:
    """Return whether the process runs. start: as start_ticks gave it, 0 for any. A zombie does not run."""
    row = TABLE.row(pid) if pid > 0 else None
    return row is not None and not row.zombie and start in (0, row.start)


def rss(pid: int) -> int:
    """Return the bytes that a process holds in RAM, 0 if there is none."""
    row = TABLE.row(pid)
    return row.memory if row is not None else 0


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has used, 0 if there is none."""
    row = TABLE.row(pid)
    return row.cpu if row is not None else 0.0


def groups(groups: Iterable[int]) -> dict[int, list[int]]:
    """Return the running pids of each process group, without zombies; a group that is gone is left out."""
    found: dict[int, list[int]] = {}
    wanted = set(groups)
    # A signal 0 costs a microsecond; the whole table, a few milliseconds.
    wanted = {group for group in wanted if group > 0 and _may_exist(group)}
    if wanted:
        for row in TABLE.rows():
            if row.group in wanted and not row.zombie:
                found.setdefault(row.group, []).append(row.pid)
    return found


def _may_exist(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def group_members(group: int) -> list[int]:
    """Return the running pids of one process group."""
    return groups([group]).get(group, [])


def usage(pids: Iterable[int]) -> dict[int, tuple[int, float]]:
    """Return (bytes in RAM, seconds of processor time) of each group leader with all that is in its group."""
    found = dict.fromkeys(pids, (0, 0.0))
    for row in TABLE.rows() if found else ():
        if row.group in found:
            memory, cpu = found[row.group]
            found[row.group] = (memory + row.memory, cpu + row.cpu)
    return found


def find_by_environment(name: str, value: str) -> list[int]:
    """Return the pids of the processes, seen by this user, that were executed with NAME=value."""
    return _find(name, [value])[value]


def find_launches(tokens: Iterable[str]) -> dict[str, list[int]]:
    """Return the running pids of each launch, by the token in their environment. One scan for all."""
    return _find(LAUNCH, tokens)


def _find(name: str, values: Iterable[str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {value: [] for value in values}
    prefix = f"{name}=".encode()
    wanted = {value.encode(): pids for value, pids in found.items()}
    if not found:
        return found
    for pid, data in TABLE.environments():
        start = 0 if data.startswith(prefix) else data.find(b"\0" + prefix) + 1
        if start == 0 and not data.startswith(prefix):
            continue
        pids = wanted.get(data[start + len(prefix) :].partition(b"\0")[0])
        if pids is not None and alive(pid):
            pids.append(pid)
    return found


def listening_ports() -> set[int]:
    """Return the TCP ports, of IPv4 and IPv6, that something in this network namespace listens on."""
    return set(TABLE.sockets())


def listeners(port: int) -> list[int]:
    """Return the pids that listen on a TCP port. A listener of another user is only seen by root."""
    sockets = set(TABLE.sockets().get(port, ()))
    if not sockets:
        return []
    return sorted({pid for pids in TABLE.holders(sockets).values() for pid in pids})


def ports_of(pids: Iterable[int]) -> dict[int, list[int]]:
    """Return the TCP ports that each process listens on itself."""
    pids = list(pids)
    found: dict[int, list[int]] = {pid: [] for pid in pids}
    sockets = {name: port for port, names in TABLE.sockets().items() for name in names}
    for name, holders in TABLE.holders(set(sockets), pids).items() if sockets else ():
        for pid in holders:
            if sockets[name] not in found[pid]:
                found[pid].append(sockets[name])
    return {pid: sorted(ports) for pid, ports in found.items()}


def facts(pids: Iterable[int]) -> dict[int, dict[str, Any]]:
    """Return {ppid, group, memory, cpu, started, pid_start, user} of each running pid; 0.05 ms a process.

    memory: bytes in RAM. cpu: seconds used. started: seconds since the epoch.
    """
    found: dict[int, dict[str, Any]] = {}
    rows = [row for row in TABLE.rows({pid for pid in pids if pid > 0}) if not row.zombie]
    for row, started in zip(rows, TABLE.started(rows)):
        found[row.pid] = {
            "ppid": row.ppid,
            "group": row.group,
            "memory": row.memory,
            "cpu": row.cpu,
            "started": started,
            "pid_start": row.start,
            "user": user_name(TABLE.uid(row.pid)),
        }
    return found


def describe(pid: int) -> dict[str, Any]:
    """Return all that is known of a running process: facts, and pid, argv, command, cwd, ports.

    cwd and ports are empty when the process belongs to another user. Raises NotFound when no such process runs.
    """
    found = facts([pid]).get(pid)
    if found is None:
        raise NotFound(f"pid {pid}: no such process")
    argv = TABLE.argv(pid)
    name = TABLE.name(pid) if not argv and isinstance(TABLE, Proc) else ""
    return {
        "pid": pid,
        "argv": argv,
        "command": shlex.join(argv) if argv else f"[{name}]",
        "cwd": TABLE.cwd(pid),
        "ports": ports_of([pid])[pid],
        **found,
    }


_names: dict[int, str] = {}


def user_name(uid: int | None) -> str:
    """Return the name of a user, or the number when it has none."""
    if uid is None:
        return ""
    if uid not in _names:
        try:
            _names[uid] = pwd.getpwuid(uid).pw_name
        except KeyError:
            _names[uid] = str(uid)
    return _names[uid]
