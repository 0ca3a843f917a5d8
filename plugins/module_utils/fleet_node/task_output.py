# SPDX-License-Identifier: GPL-3.0-or-later
"""What a task prints: all of it in a private file, the end of it in memory, and whether what is expected was there."""

from __future__ import annotations

import os
import re
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
_LINE = 64 * 1024  # bytes after which a line that does not end is cut in two

OnLine = Callable[[str, str], None]


class Seen:
    """Which of some texts and patterns a stream has shown so far."""

    def __init__(self, texts: tuple[str, ...], patterns: tuple[str, ...] = ()) -> None:
        self._texts = list(texts)
        self._patterns = [re.compile(pattern) for pattern in patterns]
        self._overlap = max((len(text) for text in texts), default=1) - 1
        self._before = ""

    def take(self, text: str) -> None:
        """Look at whole lines."""
        if self._texts:
            window = f"{self._before}{text}\n"
            self._texts = [wanted for wanted in self._texts if wanted not in window]
            self._before = window[-self._overlap :] if self._overlap else ""
        if self._patterns:
            for line in text.split("\n"):
                self._patterns = [pattern for pattern in self._patterns if not pattern.search(line)]

    @property
    def missing(self) -> list[str]:
        """What was not shown."""
        return [*self._texts, *(pattern.pattern for pattern in self._patterns)]


class Stream:
    """Cuts the bytes of one stream at the ends of lines and gives away as many lines at once as there are."""

    def __init__(self, name: str, take: OnLine) -> None:
        self._name = name
        self._take = take
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Take what was read."""
        whole, end, rest = data.rpartition(b"\n")
        if end:
            self._give(self._rest + whole)
            self._rest = rest
        else:
            self._rest += rest
        while len(self._rest) > _LINE:
            self._give(self._rest[:_LINE])
            self._rest = self._rest[_LINE:]

    def finish(self) -> None:
        """Give away what came without an end of line."""
        if self._rest:
            self._give(self._rest)
            self._rest = b""

    def _give(self, lines: bytes) -> None:
        self._take(self._name, lines.replace(b"\r\n", b"\n").decode("utf-8", "replace").rstrip("\r"))


class Tail:
    """The last lines of a stream, at most TAIL characters."""

    def __init__(self) -> None:
        self._text = ""
        self._begun = False
        self.truncated = False

    def take(self, text: str) -> None:
        """Add whole lines."""
        self._text = f"{self._text}\n{text}" if self._begun else text
        self._begun = True
        if len(self._text) > TAIL:
            cut = self._text[-TAIL:]
            # From the beginning of a line on, unless there is but one.
            self._text = cut.partition("\n")[2] if "\n" in cut[:-1] else cut
            self.truncated = True

    @property
    def text(self) -> str:
        """What is kept, without a last end of line."""
        return self._text


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
        self.streams = {name: Stream(name, self.take) for name in self.tails}

    def take(self, stream: str, text: str) -> None:
        """Take whole lines of output."""
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
        """Add whole lines to the file only."""
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
        text = hide(text, self._secrets)
        self._seen["stdout"].take(text)
        self.tails["stdout"].take(text.rstrip("\n"))

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
