# SPDX-License-Identifier: GPL-3.0-or-later
"""From what processes print to their logs, with no line lost or doubled, whenever fleetd is killed.

A process writes to two append-only files of the spool folder, ID.out and ID.err. Each log line says how far both were
read when it was written: the log itself records what is done, and a line and its position are written in one step.
What is read is given back to the file system by punching holes; a file is never truncated, for a writer may hold it.
So the files of a process, and positions in them, grow until it is removed, but take only the disk of what is unread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

if TYPE_CHECKING:
    from fleet_core.errors import Unavailable
    from fleet_core.processes import LogPolicy
else:
    try:
        from ..fleet_core.errors import Unavailable
        from ..fleet_core.processes import LogPolicy
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import Unavailable
        from fleet_core.processes import LogPolicy

from . import logs
from .watch import MODIFY, AnyWatcher, Clockwork, watcher

LINE = 64 * 1024  # bytes; a longer line is cut in parts
CHUNK = 4 * LINE  # bytes of one file read in one go
HOLE = 64 * 1024  # bytes; holes are punched in steps of this
PAUSE = 0.02  # seconds between two looks at the spool while something is written
IDLE = 1.0  # seconds after which a line without an end is written as it is
RETRY = 1.0  # seconds between attempts to write a log that could not be written
SHARE = 0.05  # seconds of work before fleetd gets to do something else
_NOTES = 100  # notes kept in memory for a log that cannot be written
_SUFFIXES = (".out", ".err")
_STREAMS = (logs.STDOUT, logs.STDERR)


class _Stream:
    """What is known of one process: where its log is, and how far its two files are read and given back."""

    __slots__ = ("at", "given", "inodes", "log", "name", "notes", "pid", "policy")

    def __init__(self, name: str, log: str, policy: LogPolicy) -> None:
        self.name = name
        self.log = log
        self.policy = policy
        self.pid = 0
        self.at = [0, 0]
        self.given = [0, 0]
        self.inodes = [0, 0]
        self.notes: list[tuple[str, str, int, str]] = []


class Spool:
    """The spool folder of one fleetd. Not thread-safe: it lives in the event loop.

    report: told, once a trouble, that a log cannot be written, and that it can again. printed: told which process has
    printed something, as often as it is pumped.
    """

    def __init__(
        self,
        folder: logs.AnyPath,
        report: Callable[[str], None] = lambda text: None,
        printed: Callable[[str], None] = lambda ident: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folder = os.fspath(folder)
        self._report = report
        self._printed = printed
        self._clock = clock
        self._streams: dict[str, _Stream] = {}
        self._dirty: dict[str, None] = {}
        self._partial: dict[str, tuple[float, tuple[int, int]]] = {}
        self._stuck: dict[str, float] = {}
        self._loop: Any = None
        self._watcher: AnyWatcher | None = None
        self._timer: Any = None
        self._rest: Any = None
        self._listening = False
        os.makedirs(self._folder, 0o700, exist_ok=True)

    def files(self, ident: str) -> tuple[str, str]:
        """Return where a process must append what it prints: standard output and standard error."""
        base = os.path.join(self._folder, quote(ident, safe=""))
        return base + _SUFFIXES[0], base + _SUFFIXES[1]

    # Which processes there are

    def add(self, ident: str, name: str, log: logs.AnyPath, policy: LogPolicy | None = None, pid: int = 0) -> None:
        """Take care of a process, from where an earlier fleetd stopped reading. Again: change its log or policy."""
        path, policy = os.fspath(log), policy or LogPolicy()
        stream = self._streams.get(ident)
        if stream is not None:
            stream.name, stream.log, stream.policy, stream.pid = name, path, policy, pid or stream.pid
            return
        stream = self._streams[ident] = _Stream(name, path, policy)
        stream.pid = pid
        logs.repair(path)
        sizes = [_size(file) for file in self.files(ident)]
        if any(sizes):
            self._find_place(ident, stream, sizes)
            self._mark([ident])

    def _find_place(self, ident: str, stream: _Stream, sizes: list[int]) -> None:
        try:
            place = logs.last_position(stream.log)
        except Unavailable:
            place = None
        for which, file in enumerate(self.files(ident)):
            if not sizes[which]:
                continue
            stream.inodes[which] = os.stat(file).st_ino
            if place is not None and place[which] > sizes[which]:
                continue
            # What was given back is in the log, or was until somebody removed the log.
            stream.at[which] = _first_data(file, place[which] if place is not None else 0)

    def remove(self, ident: str) -> None:
        """Forget a process that has ended and remove its spool files. Its log stays."""
        stream = self._streams.get(ident)
        if stream is None:
            return
        self.drain(ident)
        for file in self.files(ident):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(file)
        stream.at = [0, 0]
        if os.path.exists(stream.log):
            # A later process of this name starts new spool files: the log must not point into the old ones.
            self.note(ident, 0, "removed")
        del self._streams[ident]
        self._dirty.pop(ident, None)
        self._partial.pop(ident, None)
        self._stuck.pop(ident, None)

    def prune(self) -> list[str]:
        """Remove the spool files of processes that were never added and return their ids."""
        gone = set()
        for name in os.listdir(self._folder):
            ident = unquote(name[:-4])
            if name.endswith(_SUFFIXES) and ident not in self._streams:
                os.unlink(os.path.join(self._folder, name))
                gone.add(ident)
        return sorted(gone)

    # Writing

    def note(self, ident: str, pid: int, message: str, level: str = logs.LIFECYCLE) -> None:
        """Write a line of fleetd's own about a process. pid: from now on the process that prints, unless 0."""
        stream = self._streams.get(ident)
        if stream is None:
            return
        stream.pid = pid or stream.pid
        stream.notes.append((logs.stamp(self._clock()), level, pid, message))
        del stream.notes[:-_NOTES]
        if ident not in self._stuck:
            self._write_notes(ident, stream)

    def _write_notes(self, ident: str, stream: _Stream) -> bool:
        lines = [
            logs.encode(logs.frame(when, level, stream.name, pid), message, *stream.at)
            for when, level, pid, message in stream.notes
        ]
        done, error = logs.append(stream.log, stream.policy, lines)
        del stream.notes[:done]
        self._written(ident, stream, error)
        return error is None

    def drain(self, ident: str) -> bool:
        """Bring all that a process has printed into its log, a last line without an end included.

        Returns False when the log cannot be written now: the lines wait in the spool, and pump tries again.
        """
        stream = self._streams.get(ident)
        if stream is None:
            return True
        while self._pump(ident, stream, flush=True):
            pass
        if ident in self._stuck:
            return False
        for which, file in enumerate(self.files(ident)):
            if stream.at[which] > stream.given[which]:
                _punch(file, stream.given[which], stream.at[which])
                stream.given[which] = stream.at[which] // HOLE * HOLE
        return True

    def pump(self, idents: Iterable[str] | None = None) -> float | None:
        """Bring new lines into the logs. idents: whose files have changed; None: only what is left from before.

        Works for about SHARE seconds. Returns the seconds after which it must be called again: 0 when there is more to
        read, None when nothing is left to do until a file changes.
        """
        if idents is not None:
            self._mark(idents)
        now = time.monotonic()
        self._dirty.update((ident, None) for ident, (due, _ends) in self._partial.items() if due <= now)
        self._dirty.update((ident, None) for ident, due in self._stuck.items() if due <= now)
        end = now + SHARE
        while self._dirty and time.monotonic() < end:
            ident = next(iter(self._dirty))
            del self._dirty[ident]
            if self._stuck.get(ident, 0) > now:
                continue
            if self._pump(ident, self._streams[ident], flush=ident in self._partial and self._partial[ident][0] <= now):
                self._dirty[ident] = None  # behind all others
        if self._dirty:
            return 0.0
        due = [*(due for due, _ends in self._partial.values()), *self._stuck.values()]
        return max(0.001, min(due) - time.monotonic()) if due else None

    def _mark(self, idents: Iterable[str]) -> None:
        for ident in idents:
            if ident in self._streams:
                self._dirty[ident] = None

    def _pump(self, ident: str, stream: _Stream, flush: bool) -> bool:
        """Bring at most a chunk of each file of one process into its log. Returns whether there is more to read."""
        before = self._partial.pop(ident, None)
        if stream.notes and not self._write_notes(ident, stream):
            return False
        lines: list[bytes] = []
        places: list[tuple[int, int]] = []
        more = False
        unfinished = [0, 0]
        when = ""
        at = list(stream.at)
        for which, file in enumerate(self.files(ident)):
            data, full = self._read(file, stream, at, which, lines, places)
            if not data:
                continue
            when = when or logs.stamp(self._clock())
            parts = logs.frame(when, _STREAMS[which], stream.name, stream.pid)
            end = at[which] + len(data)
            position = at[which]
            for text, length in _split(data, flush and not full):
                position += length
                at[which] = position
                lines.append(logs.encode(parts, text, at[0], at[1]))
                places.append((at[0], at[1]))
            more = more or full
            if position < end and not full:
                unfinished[which] = end
        if lines:
            done, error = logs.append(stream.log, stream.policy, lines)
            if done:
                stream.at[:] = places[done - 1]
            self._written(ident, stream, error)
            self._printed(ident)
            if error is not None:
                return False
            self._give_back(ident, stream)
        elif ident in self._stuck:  # nothing is left to write: the process has emptied its files
            self._written(ident, stream, None)
        if any(unfinished):
            ends = (unfinished[0], unfinished[1])
            self._partial[ident] = before if before and before[1] == ends else (time.monotonic() + IDLE, ends)
        return more

    def _read(
        self, file: str, stream: _Stream, at: list[int], which: int, lines: list[bytes], places: list[tuple[int, int]]
    ) -> tuple[bytes, bool]:
        """Return the next bytes of a spool file, and whether more follow."""
        try:
            found = os.stat(file, follow_symlinks=False)
        except OSError:
            at[which] = stream.at[which] = stream.given[which] = stream.inodes[which] = 0
            return b"", False
        if found.st_ino != stream.inodes[which]:
            if stream.inodes[which]:  # replaced: a new file is read from its start
                at[which] = stream.at[which] = stream.given[which] = 0
            stream.inodes[which] = found.st_ino
        if found.st_size < at[which]:  # emptied by the process itself, as `command > /dev/stdout` does
            at[which] = stream.at[which] = stream.given[which] = 0
        if found.st_size == at[which] or not stat.S_ISREG(found.st_mode):
            return b"", False
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            # More than the log would keep anyway is not worth the disk that it fills while it waits.
            limit = max(stream.policy.max_size * (stream.policy.keep + 1), 16 * CHUNK)
            if found.st_size - at[which] > limit:
                skipped = found.st_size - limit // 4 - at[which]
                at[which] += skipped
                text = f"{skipped} bytes left out: printed faster than the log can take them"
                head = logs.frame(logs.stamp(self._clock()), logs.ERROR, stream.name, stream.pid)
                lines.append(logs.encode(head, text, at[0], at[1]))
                places.append((at[0], at[1]))
            data = os.pread(descriptor, CHUNK, at[which])
        finally:
            os.close(descriptor)
        return data, len(data) == CHUNK

    def _give_back(self, ident: str, stream: _Stream) -> None:
        for which in (0, 1):
            end = stream.at[which] // HOLE * HOLE
            if end > stream.given[which]:
                _punch(self.files(ident)[which], stream.given[which], end)
                stream.given[which] = end

    def _written(self, ident: str, stream: _Stream, error: OSError | None) -> None:
        if error is None:
            if self._stuck.pop(ident, None) is not None and not self._stuck:
                self._report(f"log {stream.log}: can be written again")
            return
        if not self._stuck:
            self._report(f"log {stream.log}: {error.strerror}; what processes print waits in {self._folder}")
        self._stuck[ident] = time.monotonic() + RETRY
        self._wake(RETRY)

    @property
    def trouble(self) -> int:
        """The number of processes whose log cannot be written now."""
        return len(self._stuck)

    # In the event loop

    def attach(self, loop: Any) -> None:
        """Pump from now on whenever something is printed. loop: a running asyncio loop."""
        self._loop = loop
        self._watcher = watcher()
        try:
            self._watcher.add(self._folder, MODIFY)
        except OSError:  # fs.inotify.max_user_watches is used up
            self._watcher.close()
            self._watcher = Clockwork()
        self._dirty.update(dict.fromkeys(self._streams))
        self._round()

    def _listen(self) -> None:
        if self._loop is None or self._watcher is None:
            return
        descriptor = self._watcher.fileno()
        if descriptor < 0:
            self._mark(self._streams)
            self._round()
        elif not self._listening:
            self._listening = True
            self._loop.add_reader(descriptor, self._readable)

    def _readable(self) -> None:
        if self._watcher is None:
            return
        self._round()

    def _round(self) -> None:
        if self._loop is None or self._watcher is None:
            return
        begun = time.monotonic()
        self._deafen()  # for a while: many small writes make one round
        names = self._watcher.read() if self._watcher.fileno() >= 0 else set()
        if names is None:
            self._mark(self._streams)
        elif names:
            self._mark(unquote(name[:-4]) for name in names)
        after = self.pump()
        rest = max(PAUSE, time.monotonic() - begun)
        if after == 0.0:
            self._wake(rest)
            return
        if isinstance(self._watcher, Clockwork):
            rest = self._watcher.pause
        self._rest = self._loop.call_later(rest, self._listen)
        if after is not None:
            self._wake(max(after, rest))

    def _deafen(self) -> None:
        if self._listening and self._watcher is not None:
            self._loop.remove_reader(self._watcher.fileno())
            self._listening = False
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None

    def _wake(self, seconds: float) -> None:
        """Have a round after so long, or sooner when one is due."""
        if self._loop is None:
            return
        when = self._loop.time() + seconds
        if self._timer is not None and self._loop.time() < self._timer.when() <= when and not self._timer.cancelled():
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(when, self._round)

    def close(self) -> None:
        """Bring what is there into the logs and stop listening. Processes write on; the next fleetd reads on."""
        self._deafen()
        self._dirty.update(dict.fromkeys(self._streams))
        end = time.monotonic() + 2.0
        while self.pump() == 0.0 and time.monotonic() < end:
            pass
        if self._timer is not None:
            self._timer.cancel()
        if self._watcher is not None:
            self._watcher.close()
            self._watcher = None
        self._loop = None


def _split(data: bytes, flush: bool) -> list[tuple[str, int]]:
    """Return the lines of a chunk as (text, bytes that it takes in the file). flush: the last one needs no newline."""
    pieces = data.split(b"\n")
    last = pieces.pop()
    found: list[tuple[str, int]] = []
    for piece in pieces:
        if len(piece) > LINE:
            *parts, piece = _cut(piece)
            found.extend((part.decode("utf-8", "replace"), len(part)) for part in parts)
        length = len(piece) + 1
        if piece.endswith(b"\r"):
            piece = piece[:-1]
        found.append((piece.decode("utf-8", "replace"), length))
    *parts, last = _cut(last)
    found.extend((part.decode("utf-8", "replace"), len(part)) for part in parts)
    if flush and last:
        found.append((last.decode("utf-8", "replace"), len(last)))
    return found


def _cut(line: bytes) -> list[bytes]:
    """Cut a long line in parts, none of which ends inside a UTF-8 character."""
    parts = []
    start = 0
    while len(line) - start > LINE:
        end = start + LINE
        while end > start + LINE - 4 and line[end] & 0xC0 == 0x80:
            end -= 1
        parts.append(line[start:end])
        start = end
    parts.append(line[start:])
    return parts


def _size(file: str) -> int:
    try:
        return os.stat(file, follow_symlinks=False).st_size
    except OSError:
        return 0


def _first_data(file: str, place: int) -> int:
    """Return the place, or where the file begins to hold something if there is a hole at the place."""
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        size = os.fstat(descriptor).st_size
        try:
            start = os.lseek(descriptor, place, os.SEEK_DATA)
        except (OSError, AttributeError) as error:
            return size if getattr(error, "errno", 0) == errno.ENXIO else place
        if start == place:
            return place
        while start < size:  # the rest of a block of which a part was given back reads as zeros
            data = os.pread(descriptor, HOLE, start)
            if data.strip(b"\0"):
                return start + len(data) - len(data.lstrip(b"\0"))
            start += len(data)
        return size
    finally:
        os.close(descriptor)


_libc: Any = None


def _punch(file: str, start: int, end: int) -> None:
    """Give the blocks of a range back to the file system; the size stays. Does nothing where that is not possible."""
    global _libc
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        if sys.platform == "darwin":
            import fcntl
            import struct

            first, last = -(-start // 4096) * 4096, end // 4096 * 4096
            with contextlib.suppress(OSError):
                fcntl.fcntl(descriptor, 99, struct.pack("=IIqq", 0, 0, first, last - first))  # F_PUNCHHOLE
        elif sys.platform.startswith("linux"):
            import ctypes

            if _libc is None:
                _libc = ctypes.CDLL(None, use_errno=True)
            # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
            call = getattr(_libc, "fallocate64", _libc.fallocate)
            call(descriptor, 3, ctypes.c_int64(start), ctypes.c_int64(end - start))
    finally:
        os.close(descriptor)
