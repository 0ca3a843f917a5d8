# SPDX-License-Identifier: GPL-3.0-or-later
"""The proxy's log on this host: what was refused since the last look, and no more of it than fits a disk.

Its folder is the proxy's own: nothing that lies there is followed or trusted.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fleet_core.egress_denials import Denial, Roster, refused_by_proxy
    from fleet_core.egress_proxy_log import refusal
else:
    try:
        from ..fleet_core.egress_denials import Denial, Roster, refused_by_proxy
        from ..fleet_core.egress_proxy_log import refusal
    except ImportError:  # installed as a top-level package
        from fleet_core.egress_denials import Denial, Roster, refused_by_proxy
        from fleet_core.egress_proxy_log import refusal

LARGEST = 32 * 1024 * 1024  # bytes of the log
KEPT = 4  # older logs beside it, proxy.log.1 being the latest
_BLOCK = 1 << 20
_LONGEST_LINE = 1 << 16
_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class ProxyLog:
    """The log, and how far it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._place = -1
        self._rest = b""

    def refused(self, roster: Roster, now: float) -> Iterator[Denial]:
        """Yield what was refused since the last time; what was there before the first time is old news."""
        for line in self._lines():
            found = refusal(line.decode("utf-8", "replace"))
            if found:
                yield refused_by_proxy(found, roster, now)

    def _lines(self) -> list[bytes]:
        with contextlib.suppress(OSError):
            descriptor = os.open(self.path, os.O_RDONLY | _FLAGS)
            with os.fdopen(descriptor, "rb") as file:
                size = os.fstat(descriptor).st_size
                if self._place < 0:
                    self._place = size
                    return []
                self._place = 0 if self._place > size else self._place
                file.seek(self._place)
                data = file.read(_BLOCK)
                self._place += len(data)
                *lines, rest = (self._rest + data).split(b"\n")
                self._rest = rest[-_LONGEST_LINE:]
                return lines
        self._place, self._rest = max(self._place, 0), b""  # a log that comes later is news from its beginning
        return []

    def keep_small(self, largest: int = LARGEST, kept: int = KEPT) -> bool:
        """Move what is written to an older log once it is large. Return whether that was done.

        The proxy goes on writing to the same file, at its end, wherever that is: it need not be told.
        """
        with contextlib.suppress(OSError):
            descriptor = os.open(self.path, os.O_RDWR | _FLAGS)
            with os.fdopen(descriptor, "r+b") as file:
                found = os.fstat(descriptor)
                # A second name of a file that is somewhere else must not be emptied here.
                if found.st_size <= largest or not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
                    return False
                self._shift(kept)
                self._copy(file.fileno())
                os.ftruncate(descriptor, 0)
                self._place, self._rest = min(self._place, 0), b""
                return True
        return False

    def _shift(self, kept: int) -> None:
        for number in range(kept, 1, -1):
            with contextlib.suppress(FileNotFoundError):
                os.replace(self._older(number - 1), self._older(number))
        with contextlib.suppress(FileNotFoundError):
            self._older(1).unlink()

    def _copy(self, source: int) -> None:
        target = os.open(self._older(1), os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, 0o640)
        with os.fdopen(target, "wb") as written, open(source, "rb", closefd=False) as file:
            shutil.copyfileobj(file, written, _BLOCK)

    def _older(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")
