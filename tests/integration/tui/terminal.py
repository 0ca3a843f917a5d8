# SPDX-License-Identifier: GPL-3.0-or-later
"""A real terminal with a program on it: a pty, keys as bytes, and an emulator that knows what stands on the screen."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyte

PROGRAM = str(Path(sys.executable).with_name("fleet"))
KEYS = {
    "up": b"\x1b[A", "down": b"\x1b[B", "right": b"\x1b[C", "left": b"\x1b[D", "pagedown": b"\x1b[6~",
    "pageup": b"\x1b[5~", "enter": b"\r", "tab": b"\t", "escape": b"\x1b", "newline": b"\n", "ctrl+s": b"\x13",
    "ctrl+r": b"\x12", "ctrl+end": b"\x1b[1;5F",
}  # fmt: skip
# What pyte does not know and would print: questions to the terminal and the keyboard protocol.
_UNKNOWN = re.compile(rb"\x1b\[[?>=<]?[0-9;]*\$p|\x1b\[[>=<][0-9;]*[a-zA-Z]|\x1bP[^\x1b]*\x1b\\|\x1b\]11;\?\x1b\\")


class Terminal:
    """One program on one terminal."""

    def __init__(self, environ: Mapping[str, str], *words: str, columns: int = 110, rows: int = 32) -> None:
        self.screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self.code: int | None = None
        self.pid, self._master = pty.fork()
        if self.pid == 0:
            os.execve(PROGRAM, [PROGRAM, *words], {**environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"})
        self.modes = termios.tcgetattr(self._master)
        self._set_size(columns, rows)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _set_size(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def resize(self, columns: int, rows: int) -> None:
        """Give the terminal another size; the kernel tells the program."""
        self.screen.resize(rows, columns)
        self._set_size(columns, rows)

    def read(self, seconds: float) -> None:
        """Take what the program writes for some time."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if not select.select([self._master], [], [], left)[0]:
                return
            try:
                data = os.read(self._master, 1 << 16)
            except OSError:  # the program has ended
                self._ended()
                return
            self.raw += data
            self._stream.feed(_UNKNOWN.sub(b"", data))

    def _ended(self) -> None:
        if self.code is None:
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    @property
    def lines(self) -> list[str]:
        """What stands on the screen."""
        return [line.rstrip() for line in self.screen.display]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def press(self, *keys: str) -> None:
        """Press keys, one after the other: names of KEYS, or single characters."""
        for key in keys:
            os.write(self._master, KEYS.get(key, key.encode()))
            self.read(0.3 if key == "escape" else 0.05)  # what follows Esc at once is read as Alt

    def type(self, text: str) -> None:
        """Type a text."""
        os.write(self._master, text.encode())

    def until(self, what: str | Callable[[], Any], seconds: float = 20.0) -> None:
        """Read until a text stands on the screen, or something holds."""
        holds = (lambda: what in self.text) if isinstance(what, str) else what
        end = time.monotonic() + seconds
        while not holds():
            assert self.code is None, f"it ended with {self.code}\n{self.text}"
            assert time.monotonic() < end, f"not within {seconds:g} s: {what}\n{self.text}"
            self.read(0.1)

    def gone(self, text: str, seconds: float = 20.0) -> None:
        """Read until a text stands no longer on the screen."""
        self.until(lambda: text not in self.text, seconds)

    def line(self, text: str) -> str:
        """The line of the screen that holds a text."""
        return next((line for line in self.lines if text in line), "")

    def wait(self, seconds: float = 20.0) -> int:
        """Wait until the program ends. Returns its exit code."""
        end = time.monotonic() + seconds
        while self.code is None:
            assert time.monotonic() < end, f"it goes on\n{self.text}"
            self.read(0.2)
        return self.code

    def close(self) -> None:
        """End the program, whatever it does."""
        if self.code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self._ended()
        with contextlib.suppress(OSError):
            os.close(self._master)


def environment(folder: Path, extra: Sequence[tuple[str, str]] = ()) -> dict[str, str]:
    """The environment of a program: a state folder, a home, nothing of the developer's."""
    kept = {key: os.environ[key] for key in ("PATH", "LANG", "COVERAGE_PROCESS_START") if key in os.environ}
    return {
        **kept, "LC_ALL": "C.UTF-8", "HOME": str(folder), "FLEET_STATE_DIR": str(folder), "TZ": "UTC", **dict(extra)
    }  # fmt: skip
