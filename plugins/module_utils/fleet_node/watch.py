# SPDX-License-Identifier: GPL-3.0-or-later
"""Waiting for files to change without looking at them: inotify(7), and a stand-in that has to look."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import struct
import sys
import time
from typing import Union

MODIFY, MOVED_SELF, DELETED_SELF, OVERFLOW = 0x2, 0x800, 0x400, 0x4000
_HEADER = struct.Struct("iIII")


class Watcher:
    """One inotify instance. Raises OSError where there is none, or none is left (fs.inotify.max_user_instances)."""

    __slots__ = ("_add", "_descriptor")

    def __init__(self) -> None:
        if not sys.platform.startswith("linux"):
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        library = ctypes.CDLL(None, use_errno=True)
        self._descriptor: int = library.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self._descriptor < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        self._add = library.inotify_add_watch

    def add(self, path: str, mask: int = MODIFY) -> int:
        """Watch a file, or the files of a folder. Raises OSError when it does not exist."""
        watch = int(self._add(self._descriptor, os.fsencode(path), ctypes.c_uint32(mask)))
        if watch < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), path)
        return watch

    def fileno(self) -> int:
        return self._descriptor

    def read(self) -> set[str] | None:
        """Return the names of changed files (empty names for a watched file itself); None when some were lost.

        Never blocks.
        """
        names: set[str] = set()
        while True:
            try:
                data = os.read(self._descriptor, 65536)
            except BlockingIOError:
                return names
            position = 0
            while position < len(data):
                _watch, mask, _cookie, length = _HEADER.unpack_from(data, position)
                position += _HEADER.size
                if mask & OVERFLOW:
                    return None
                names.add(os.fsdecode(data[position : position + length].rstrip(b"\0")))
                position += length

    def wait(self, seconds: float) -> None:
        """Block until something changes, at most so long."""
        if select.select([self._descriptor], [], [], seconds)[0]:
            self.read()

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class Clockwork:
    """In place of a Watcher where there is no inotify: something may have changed, again and again."""

    __slots__ = ("pause",)

    def __init__(self, pause: float = 0.2) -> None:
        self.pause = pause

    def add(self, path: str, mask: int = MODIFY) -> int:
        return 0

    def fileno(self) -> int:
        """Return -1: there is nothing to wait for but time."""
        return -1

    def read(self) -> set[str] | None:
        return None

    def wait(self, seconds: float) -> None:
        time.sleep(min(self.pause, seconds))

    def close(self) -> None:
        pass


AnyWatcher = Union[Watcher, Clockwork]


def watcher() -> AnyWatcher:
    """Return the best watcher of this system."""
    try:
        return Watcher()
    except (OSError, AttributeError):
        return Clockwork()
