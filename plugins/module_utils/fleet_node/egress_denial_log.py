# SPDX-License-Identifier: GPL-3.0-or-later
"""The file denials.jsonl: one refusal a line, rotated by size; written by the watch, read by everybody else."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

if TYPE_CHECKING:
    from fleet_core.egress_denials import Denial
    from fleet_core.errors import Unavailable
    from fleet_core.processes import LogPolicy
else:
    try:
        from ..fleet_core.egress_denials import Denial
        from ..fleet_core.errors import Unavailable
        from ..fleet_core.processes import LogPolicy
    except ImportError:  # installed as a top-level package
        from fleet_core.egress_denials import Denial
        from fleet_core.errors import Unavailable
        from fleet_core.processes import LogPolicy

from . import logs
from .watch import watcher

POLICY = LogPolicy(max_size=5 * 1024 * 1024, keep=3)
_BLOCK = 1 << 16


def write(path: Path, denials: Iterable[Denial]) -> str:
    """Add denials. Returns why they could not be written, such as a full disk, or an empty text."""
    lines = [json.dumps(one.to_dict(), ensure_ascii=True).encode() + b"\n" for one in denials]
    if not lines:
        return ""
    _done, error = logs.append(path, POLICY, lines)
    return "" if error is None else str(error.strerror)


def last(path: Path, count: int) -> list[dict[str, Any]]:
    """Return the last denials, oldest first, across rotated files. Damaged lines are left out."""
    found: list[dict[str, Any]] = []
    for number in range(POLICY.keep + 1):
        if len(found) >= count:
            break
        name = f"{path}.{number}" if number else str(path)
        with contextlib.suppress(FileNotFoundError):
            records = [one for one in map(_record, _text(name).splitlines()) if one]
            found = records + found
    return found[-count:] if count else []


def follow(path: Path, stop: Callable[[], bool] = lambda: False) -> Iterator[dict[str, Any]]:
    """Yield the denials that are written from now on, through rotation, until stop() is true (asked twice a second)."""
    eye = watcher()
    place, inode = _size(path), _inode(path)
    rest = b""
    try:
        while not stop():
            found = _inode(path)
            if found is not None and found != inode:
                inode, place, rest = found, 0, b""
                with contextlib.suppress(OSError):
                    eye.add(str(path))
            elif found is not None:
                with contextlib.suppress(OSError):
                    eye.add(str(path))
            data = _from(path, place)
            place += len(data)
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                record = _record(line)
                if record:
                    yield record
            if not data:
                eye.wait(0.5)
    finally:
        eye.close()


def _text(name: str) -> bytes:
    try:
        with open(name, "rb") as file:
            return file.read()
    except PermissionError:
        raise Unavailable(f"{name}: only root can read it; run as root") from None


def _from(path: Path, place: int) -> bytes:
    try:
        with open(path, "rb") as file:
            file.seek(place)
            return file.read(_BLOCK)
    except FileNotFoundError:
        return b""


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return os.stat(path).st_size
    return 0


def _inode(path: Path) -> int | None:
    with contextlib.suppress(OSError):
        return os.stat(path).st_ino
    return None


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
