# SPDX-License-Identifier: GPL-3.0-or-later
"""The file denials.jsonl: one refusal a line, rotated by size; written by the watch, read by everybody else."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Callable

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
    file = _open(str(path))
    if file is not None:
        file.seek(0, os.SEEK_END)
    rest = b""
    try:
        while not stop():
            with contextlib.suppress(OSError):
                eye.add(str(path))
            # Looked for before it is read to its end: what comes after it is in there then.
            later = _later(path, file)
            data = b"" if file is None else file.read()
            *lines, rest = (rest + data).split(b"\n")
            yield from filter(None, map(_record, lines))
            if later is not None:
                if file is not None:
                    file.close()
                file, rest = later, b""
            elif not data:
                eye.wait(0.5)
    finally:
        eye.close()
        if file is not None:
            file.close()


def _later(path: Path, file: BinaryIO | None) -> BinaryIO | None:
    """Return the file that was begun after this one, open, or None when this one is the newest."""
    own = os.fstat(file.fileno()).st_ino if file is not None else None
    newer: BinaryIO | None = None
    for number in range(POLICY.keep + 1):
        found = _open(f"{path}.{number}" if number else str(path))
        if found is None:
            continue
        if os.fstat(found.fileno()).st_ino == own:
            found.close()
            return newer
        if newer is not None:
            newer.close()
        newer = found
    return newer


def _open(name: str) -> BinaryIO | None:
    try:
        return open(name, "rb")
    except FileNotFoundError:
        return None
    except PermissionError:
        raise Unavailable(f"{name}: only root can read it; run as root") from None


def _text(name: str) -> bytes:
    try:
        with open(name, "rb") as file:
            return file.read()
    except PermissionError:
        raise Unavailable(f"{name}: only root can read it; run as root") from None


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
