# SPDX-License-Identifier: GPL-3.0-or-later
"""Log files: JSON lines, rotated by size, written by fleetd and read by everybody else straight from disk.

A line is {"timestamp", "level", "message", "process_name", "process_id"} and, for fleetd alone, "pos": how far the two
spool files of the process were read when it was written. NAME.log is the current file, NAME.log.1 the one before it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from json.encoder import encode_basestring
from typing import TYPE_CHECKING, Any, BinaryIO, Union, cast

if TYPE_CHECKING:
    from fleet_core.errors import InvalidInput, Unavailable
    from fleet_core.processes import LogPolicy
    from fleet_core.quantities import parse_duration
else:
    try:
        from ..fleet_core.errors import InvalidInput, Unavailable
        from ..fleet_core.processes import LogPolicy
        from ..fleet_core.quantities import parse_duration
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import InvalidInput, Unavailable
        from fleet_core.processes import LogPolicy
        from fleet_core.quantities import parse_duration

STDOUT, STDERR, INFO, ERROR, LIFECYCLE = LEVELS = ("Stdout", "Stderr", "Info", "Error", "Lifecycle")
AnyPath = Union[str, "os.PathLike[str]"]
Since = Union[str, float, None]
_BLOCK = 65536
_HEAD = b'{"timestamp": "'
_STAMP = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:?\d\d)?)?")


# Writing


def stamp(seconds: float) -> str:
    """Return RFC 3339 text in UTC with microseconds. Such texts sort by time."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def frame(when: str, level: str, name: str, pid: int) -> tuple[str, str]:
    """Return what stands before and after the message of records that share all the rest; encode completes a record."""
    return (
        f'{{"timestamp": "{when}", "level": "{level}", "message": ',
        f', "process_name": {json.dumps(name)}, "process_id": {pid or "null"}, "pos": [',
    )


def encode(parts: tuple[str, str], message: str, out: int, err: int) -> bytes:
    """Return one line of a log file. out, err: how far the spool files are read with it."""
    return f"{parts[0]}{encode_basestring(message)}{parts[1]}{out},{err}]}}\n".encode("utf-8", "replace")


def append(path: AnyPath, policy: LogPolicy, lines: Sequence[bytes]) -> tuple[int, OSError | None]:
    """Add lines to a log, rotating it where it would grow above max_size; create it and its folders when they are gone.

    Returns how many lines are safely in it, and the error when not all are (such as a full disk). Never half a line.
    """
    path = os.fspath(path)
    done, rotated = 0, False
    descriptor = -1
    try:
        descriptor = _open(path)
        size = os.fstat(descriptor).st_size
        while done < len(lines):
            end, total = done, size
            while end < len(lines) and (total + len(lines[end]) <= policy.max_size or total == 0):
                total += len(lines[end])
                end += 1
            if end == done:
                rotate(path, policy.keep)
                rotated = True
                os.close(descriptor)
                descriptor = -1
                descriptor = _open(path)
                size = os.fstat(descriptor).st_size
                continue
            written, error = _write(descriptor, b"".join(lines[done:end]))
            if error is not None:
                whole = 0
                while whole + len(lines[done]) <= written:
                    whole += len(lines[done])
                    done += 1
                os.ftruncate(descriptor, size + whole)
                return done, error
            done, size = end, total
        if rotated and policy.keep == 0:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{path}.1")
    except OSError as error:
        return done, error
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    return done, None


def _write(descriptor: int, data: bytes) -> tuple[int, OSError | None]:
    written = 0
    try:
        while written < len(data):
            written += os.write(descriptor, data[written:] if written else data)
    except OSError as error:
        return written, error
    return written, None


def _open(path: str) -> int:
    """Open a log to append. No link is followed, no FIFO waited for; a new file belongs to the owner of its folder."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags, 0o600)
    except FileNotFoundError:
        _make_folder(os.path.dirname(path))
        descriptor = os.open(path, flags, 0o600)
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", path)
    if found.st_size == 0 and found.st_uid == 0 and found.st_nlink == 1:
        _give(descriptor, os.path.dirname(path))
    return descriptor


def _make_folder(path: str) -> None:
    if not path or os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    _make_folder(parent)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _give(descriptor, parent)
    finally:
        os.close(descriptor)


def _give(descriptor: int, folder: str) -> None:
    """Let root's new file belong to the owner of the folder, who must be able to read and remove it."""
    if os.geteuid() == 0:
        owner = os.stat(folder or ".")
        if owner.st_uid != 0:
            os.fchown(descriptor, owner.st_uid, owner.st_gid)


def rotate(path: str, keep: int) -> None:
    """Move NAME.log to NAME.log.1, that to NAME.log.2 and so on; what is over keep is removed (the .1 always stays).

    A kill between two of the renames leaves a gap, never a lost or doubled file.
    """
    last = max(keep, 1)
    for number in range(last - 1, 0, -1):
        with contextlib.suppress(FileNotFoundError):
            os.rename(f"{path}.{number}", f"{path}.{number + 1}")
    os.rename(path, f"{path}.1")
    with contextlib.suppress(FileNotFoundError):
        while True:
            last += 1
            os.unlink(f"{path}.{last}")


# Finding the place again


def repair(path: AnyPath) -> None:
    """Cut off a half line that a killed fleetd has left at the end of a log."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return
    try:
        size = os.fstat(descriptor).st_size
        end = _last_newline(descriptor, size)
        if end < size:
            os.ftruncate(descriptor, end)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def _last_newline(descriptor: int, size: int) -> int:
    """Return the offset behind the last newline."""
    while size > 0:
        start = max(0, size - _BLOCK)
        found = os.pread(descriptor, size - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        size = start
    return 0


def last_position(path: AnyPath) -> tuple[int, int] | None:
    """Return how far the spool files were read when the last line was written; None when no log tells."""
    for part in _parts(os.fspath(path)):
        for line in _backward(part.descriptor, part.size):
            record = _decode(line)
            place = record.get("pos") if record else None
            if isinstance(place, list) and len(place) == 2 and all(isinstance(item, int) for item in place):
                return (place[0], place[1])
    return None


def last_output(path: AnyPath, pid: int) -> str:
    """Return the last line that is not blank of what a process has printed, or an empty text."""
    for seen, record in enumerate(_newest_first(os.fspath(path))):
        if record.get("process_id") != pid or seen > 50:
            break
        text = str(record["message"]).strip()
        if record.get("level") in (STDOUT, STDERR) and text:
            return text[:300]
    return ""


# Reading


class _Part:
    """One open file of a log, and how far it is read."""

    __slots__ = ("at", "descriptor", "inode", "modified", "size")

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        self.at = 0
        self.look()

    def look(self) -> None:
        found = os.fstat(self.descriptor)
        self.size = found.st_size
        self.inode = (found.st_dev, found.st_ino)
        self.modified = found.st_mtime_ns

    def lines(self) -> Iterator[bytes]:
        """Yield the complete lines that are not read yet."""
        rest: list[bytes] = []
        place = self.at
        while True:
            data = os.pread(self.descriptor, _BLOCK, place)
            if not data:
                return
            place += len(data)
            if b"\n" not in data:
                rest.append(data)
                continue
            found = b"".join([*rest, data]).split(b"\n")
            rest = [found.pop()]
            for line in found:
                self.at += len(line) + 1
                yield line

    def __del__(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            os.close(self.descriptor)


def _parts(path: str) -> Iterator[_Part]:
    """Yield the files of a log, newest first, even while it is being rotated."""
    seen = set()
    number, missing = 0, 0
    while missing < 2:  # a gap of one is a rotation under way
        try:
            part = _Part(f"{path}.{number}" if number else path)
        except FileNotFoundError:
            missing += 1
        except OSError as error:
            raise Unavailable(f"log {path}: {error.strerror}") from None
        else:
            missing = 0
            if part.inode not in seen:
                seen.add(part.inode)
                yield part
        number += 1


def _backward(descriptor: int, size: int) -> Iterator[bytes]:
    """Yield the lines of a file from its end to its start."""
    rest: list[bytes] = []
    while size > 0:
        start = max(0, size - _BLOCK)
        data = os.pread(descriptor, size - start, start)
        size = start
        if b"\n" not in data:
            rest.insert(0, data)
            continue
        lines = b"".join([data, *rest]).split(b"\n")
        rest = [lines[0]]
        for line in reversed(lines[1:]):
            if line:
                yield line
    if rest:
        yield b"".join(rest)


def _decode(line: bytes) -> dict[str, Any] | None:
    """Return a record, or None for a damaged line."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("message"), str) else None


def _newest_first(path: str) -> Iterator[dict[str, Any]]:
    for part in _parts(path):
        for line in _backward(part.descriptor, part.size):
            record = _decode(line)
            if record is not None:
                yield record


def _public(record: dict[str, Any]) -> dict[str, Any]:
    record.pop("pos", None)
    return record


def since_stamp(since: Since, now: float) -> str:
    """Return the timestamp that "10m" (ago), an RFC 3339 time or seconds since the epoch mean; "" for None.

    A time without a zone is local. Raises InvalidInput.
    """
    if since is None or since == "":
        return ""
    if isinstance(since, (int, float)):
        return stamp(float(since))
    if _STAMP.fullmatch(since.strip()):
        # In the form that Python 3.9 reads: microseconds of six digits, a zone with a colon.
        text = since.strip().replace("Z", "+00:00")
        text = re.sub(r"(\.\d{1,6})\d*", lambda found: found.group(1).ljust(7, "0"), text)
        text = re.sub(r"([+-]\d\d)(\d\d)$", r"\1:\2", text)
        try:
            return stamp(datetime.fromisoformat(text).timestamp())
        except (ValueError, OverflowError, OSError):
            raise InvalidInput(f'since: "{since}" is no time') from None
    try:
        return stamp(max(0.0, now - parse_duration("since", since)))
    except InvalidInput:
        expected = 'a duration such as "10m" or a time such as 2026-01-31T08:00:00Z'
        raise InvalidInput(f'since: expected {expected}, found "{since}"') from None


def read(
    path: AnyPath,
    lines: int | None = None,
    since: Since = None,
    follow: bool = False,
    stop: Callable[[], bool] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield the records of a log, oldest first, across its rotated files. Damaged lines are left out.

    lines: only the last so many. since: only those after. follow: go on with what is written from now on, through
    rotation, removal and creation, until stop() is true (asked twice a second). A log that does not exist is empty.
    """
    path = os.fspath(path)
    oldest = since_stamp(since, time.time())
    parts = list(_parts(path))
    parts.reverse()
    if lines is not None:
        for part in parts:
            part.at = _last_newline(part.descriptor, part.size)
        yield from reversed(list(_tail(parts, lines, oldest)))
        parts = parts[-1:] if follow else []
    while parts:
        part = parts.pop(0)
        yield from _forward(part, oldest)
        if not parts and follow:
            yield from _follow(path, part, stop)
            return
    if follow:
        yield from _follow(path, None, stop)


def _tail(parts: Sequence[_Part], lines: int, oldest: str) -> Iterator[dict[str, Any]]:
    """Yield the last records, newest first."""
    for part in reversed(parts):
        for line in _backward(part.descriptor, part.at):
            if lines <= 0:
                return
            record = _decode(line)
            if record is not None:
                if oldest and str(record.get("timestamp")) < oldest:
                    return
                lines -= 1
                yield _public(record)


def _forward(part: _Part, oldest: str) -> Iterator[dict[str, Any]]:
    bound, head = oldest.encode(), len(_HEAD)
    for line in part.lines():
        if bound and line[head : head + len(bound)] < bound and line.startswith(_HEAD):
            continue
        record = _decode(line)
        if record is not None and (not oldest or str(record.get("timestamp")) >= oldest):
            yield _public(record)


def _follow(path: str, part: _Part | None, stop: Callable[[], bool] | None) -> Iterator[dict[str, Any]]:
    from .watch import DELETED_SELF, MODIFY, MOVED_SELF, watcher

    eye = watcher()
    try:
        watched = None
        while True:
            if watched is None or part is None or watched != part.inode:
                with contextlib.suppress(OSError):
                    eye.add(path, MODIFY | MOVED_SELF | DELETED_SELF)
                watched = part.inode if part is not None else None
            if part is not None:
                yield from _forward(part, "")
            newer = _newer(path, part)
            if newer:
                if part is not None:  # what was written to it before it was moved away
                    yield from _forward(part, "")
                for part in newer[:-1]:
                    yield from _forward(part, "")
                part = newer[-1]
                continue
            if stop is not None and stop():
                return
            if part is None:
                time.sleep(0.2)
            else:
                eye.wait(0.5)
    finally:
        eye.close()


def _newer(path: str, part: _Part | None) -> list[_Part]:
    """Return the files that have come after a part, oldest first."""
    if part is None:
        return list(_parts(path))[::-1]
    part.look()
    if part.size < part.at:  # somebody has emptied it
        part.at = 0
    try:
        found = os.stat(path)
    except OSError:
        return []
    if (found.st_dev, found.st_ino) == part.inode:
        return []
    newer: list[_Part] = []
    for other in _parts(path):
        if other.inode == part.inode:
            return newer[::-1]
        newer.append(other)
    return [other for other in newer[::-1] if other.modified > part.modified]


# journald


def read_journal(
    unit: str,
    scope: str = "system",
    lines: int | None = None,
    since: Since = None,
    follow: bool = False,
    stop: Callable[[], bool] | None = None,
    name: str = "",
) -> Iterator[dict[str, Any]]:
    """Yield what journald keeps of a unit as the same records. scope: "system" or "user".

    journald does not tell the two outputs apart: lines of priority err and above read Stderr, others Stdout, and what
    systemd itself says of the unit reads Lifecycle. Raises Unavailable when journalctl cannot be run.
    """
    import select
    import subprocess

    argv = ["journalctl", "--output=json", "--all", "--no-pager", "--quiet"]
    argv += ["--user", f"--user-unit={unit}"] if scope == "user" else [f"--unit={unit}"]
    argv.append(f"--lines={'all' if lines is None else max(0, lines)}")
    oldest = since_stamp(since, time.time())
    if oldest:
        seconds = datetime.strptime(oldest, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=timezone.utc).timestamp()
        argv.append(f"--since=@{seconds:.6f}")
    if follow:
        argv.append("--follow")
    try:
        # The command line reads too, where there is no AnsibleModule.
        child = subprocess.Popen(  # pylint: disable=ansible-bad-function
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    except OSError as error:
        raise Unavailable(f"journalctl: {error.strerror}") from None
    output, errors = cast(BinaryIO, child.stdout), cast(BinaryIO, child.stderr)
    try:
        rest = b""
        while True:
            if not select.select([output], [], [], 0.5)[0]:
                if stop is not None and stop():
                    return
                continue
            data = os.read(output.fileno(), _BLOCK)
            *found, rest = (rest + data).split(b"\n")
            for line in found:
                record = _from_journal(line, name or unit)
                if record is not None:
                    yield record
            if not data:
                break
            if stop is not None and stop():
                return
        if child.wait() != 0:
            said = errors.read().decode("utf-8", "replace").strip().rpartition("\n")[2]
            raise Unavailable(f"journalctl: exit code {child.returncode}: {said}")
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
        output.close()
        errors.close()


def _from_journal(line: bytes, name: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
        message = entry.get("MESSAGE")
        if isinstance(message, list):  # not UTF-8: given as numbers
            message = bytes(message).decode("utf-8", "replace")
        manager = entry.get("SYSLOG_IDENTIFIER") == "systemd" and ("UNIT" in entry or "USER_UNIT" in entry)
        level = LIFECYCLE if manager else STDERR if int(entry.get("PRIORITY", 6)) <= 3 else STDOUT
        pid = None if manager else int(entry.get("_PID", 0)) or None
        when = stamp(int(entry["__REALTIME_TIMESTAMP"]) / 1e6)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    if message is None:
        return None
    return {"timestamp": when, "level": level, "message": str(message), "process_name": name, "process_id": pid}
