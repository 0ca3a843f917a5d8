# SPDX-License-Identifier: GPL-3.0-or-later
"""What a task prints: all of it in a private file, the end of it in memory, and whether what is expected was there."""

from __future__ import annotations

import os
import re
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Callable

if TYPE_CHECKING:
    from fleet_core.processes import hide
    from fleet_core.task_lists import Expectation
else:
    try:
        from ..fleet_core.processes import hide
        from ..fleet_core.task_lists import Expectation
    except ImportError:  # installed as a top-level package
        from fleet_core.processes import hide
        from fleet_core.task_lists import Expectation

TAIL = 16 * 1024  # characters of each stream that are kept for the result
MAX_FILE = 256 * 1024 * 1024  # bytes of one task's file
_LINE = 64 * 1024  # characters after which a line is cut in two

OnLine = Callable[[str, str], None]


class Seen:
    """Which of some texts and patterns a stream has shown so far."""

    def __init__(self, texts: tuple[str, ...], patterns: tuple[str, ...] = ()) -> None:
        self._texts = list(texts)
        self._patterns = [re.compile(pattern) for pattern in patterns]
        self._overlap = max((len(text) for text in texts), default=1) - 1
        self._before = ""

    def take(self, line: str, end: str = "\n") -> None:
        """Look at one line."""
        if self._texts:
            window = self._before + line + end
            self._texts = [text for text in self._texts if text not in window]
            self._before = window[-self._overlap :] if self._overlap else ""
        self._patterns = [pattern for pattern in self._patterns if not pattern.search(line)]

    @property
    def missing(self) -> list[str]:
        """What was not shown."""
        return [*self._texts, *(pattern.pattern for pattern in self._patterns)]


class Stream:
    """Cuts the bytes of one stream into lines."""

    def __init__(self, name: str, take: OnLine) -> None:
        self._name = name
        self._take = take
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Take what was read."""
        *lines, rest = (self._rest + data).split(b"\n") if b"\n" in data else [self._rest + data]
        for line in lines:
            self._give(line)
        while len(rest) > _LINE:
            self._give(rest[:_LINE])
            rest = rest[_LINE:]
        self._rest = rest

    def finish(self) -> None:
        """Give away what came without an end of line."""
        if self._rest:
            self._give(self._rest)
            self._rest = b""

    def _give(self, line: bytes) -> None:
        self._take(self._name, line.decode("utf-8", "replace").rstrip("\r"))


class Tail:
    """The last lines of a stream, at most TAIL characters."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque()
        self._size = 0
        self.truncated = False

    def take(self, line: str) -> None:
        """Add a line."""
        if len(line) >= TAIL:
            line, self.truncated = line[-TAIL + 1 :], True
        self._lines.append(line)
        self._size += len(line) + 1
        while self._size > TAIL:
            self._size -= len(self._lines.popleft()) + 1
            self.truncated = True

    @property
    def text(self) -> str:
        """What is kept, without a last end of line."""
        return "\n".join(self._lines)


class Capture:
    """The output of one attempt at a task.

    path: the file that everything is added to (0600). secrets: texts that are hidden before anything is kept.
    """

    def __init__(self, path: Path, expect: Expectation, secrets: tuple[str, ...], on_line: OnLine) -> None:
        self._file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")
        self._written = os.fstat(self._file.fileno()).st_size
        self._secrets = secrets
        self._on_line = on_line
        self.tails = {"stdout": Tail(), "stderr": Tail()}
        self._seen = {
            "stdout": Seen(expect.stdout_contains, expect.stdout_matches),
            "stderr": Seen(expect.stderr_contains),
        }
        self.streams = {name: Stream(name, self.line) for name in self.tails}

    def line(self, stream: str, text: str) -> None:
        """Take one line of output."""
        text = hide(text, self._secrets)
        self._seen[stream].take(text)
        self.tails[stream].take(text)
        self.write(text)
        self._on_line(stream, text)

    def note(self, text: str) -> None:
        """Take a line about what happens, which is no output of the task itself."""
        text = hide(text, self._secrets)
        self.write(text)
        self._on_line("note", text)

    def write(self, text: str) -> None:
        """Add a line to the file only."""
        data = text.encode("utf-8", "replace") + b"\n"
        if self._written > MAX_FILE:
            return
        if self._written + len(data) > MAX_FILE:
            data = b"[what follows is left out: the file is full]\n"
            self._written = MAX_FILE
        self._written += len(data)
        self._file.write(data)
        self._file.flush()

    def answer(self, text: str) -> None:
        """Take the answer of a prompt as its stdout; the file has it already."""
        for line in hide(text, self._secrets).splitlines():
            self._seen["stdout"].take(line)
            self.tails["stdout"].take(line)

    @property
    def complaint(self) -> str:
        """What was expected of the output and did not come, as a sentence; empty if nothing."""
        for stream, seen in self._seen.items():
            if seen.missing:
                return f'expected "{seen.missing[0]}" in {stream}'
        return ""

    def close(self) -> None:
        """Write the last lines and close the file."""
        for stream in self.streams.values():
            stream.finish()
        self._file.close()
