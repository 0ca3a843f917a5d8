# SPDX-License-Identifier: GPL-3.0-or-later
"""Small changes to a TOML text, such that every line that they do not concern stays as it is, comments included.

It knows tables that have a header of their own (https://toml.io/en/v1.0.0#table). The caller checks what came out.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fleet_core.errors import InvalidInput
from fleet_core.toml_writer import to_toml

# The standard library has it from 3.11 on; tomli is the same parser.
toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")

Path = tuple[str, ...]
_QUOTES = ('"""', "'''", '"', "'")
_KEY = re.compile(r"""\s*((?:"(?:[^"\\]|\\.)*"|'[^']*'|[A-Za-z0-9_-]+|\s*\.\s*)+?)\s*=""")


@dataclass
class Entry:
    """A statement of a text: a header, a key with its value, or a line between them; with all its lines."""

    kind: str  # header | key | comment | blank
    text: str
    path: Path = ()
    array: bool = False  # of a header: [[path]]
    comment: int = -1  # where in the text the comment at the end of the last line begins


@dataclass(frozen=True)
class Section:
    """A table with a header: entries[lead:end]; its header is entries[start]. lead: where the comments above begin."""

    path: Path
    lead: int
    start: int
    end: int
    array: bool = False


class TomlText:
    """A TOML text that is being changed. Raises InvalidInput for one that is no TOML."""

    def __init__(self, text: str) -> None:
        try:
            toml.loads(text)
        except (ValueError, RecursionError) as error:
            raise InvalidInput(f"TOML: {error}") from None
        self.newline = "\r\n" if "\r\n" in text else "\n"
        self.entries = list(_entries(text))

    def __str__(self) -> str:
        return "".join(entry.text for entry in self.entries)

    def data(self) -> dict[str, Any]:
        """Return what the text holds now."""
        found: dict[str, Any] = toml.loads(str(self))
        return found

    def sections(self) -> list[Section]:
        """Return the tables in the order of the text, arrays of tables included."""
        headers = [at for at, entry in enumerate(self.entries) if entry.kind == "header"]
        leads = [self._lead(at) for at in headers]
        ends = [*leads[1:], len(self.entries)][: len(headers)]
        return [
            Section(self.entries[at].path, lead, at, end, self.entries[at].array)
            for at, lead, end in zip(headers, leads, ends, strict=True)
        ]

    def _lead(self, at: int) -> int:
        while at > 0 and self.entries[at - 1].kind == "comment":
            at -= 1
        return at

    def find(self, section: Section, path: Path) -> int:
        """Return where a section gives a key, or -1."""
        for at in range(section.start + 1, section.end):
            if self.entries[at].kind == "key" and self.entries[at].path == path:
                return at
        return -1

    def set(self, section: Section, path: Path, value: Any) -> None:
        """Give a key of a section a value: in its place if it is there, else behind the other keys."""
        line = f"{'.'.join(_word(part) for part in path)} = {rendered(value)}"
        at = self.find(section, path)
        if at >= 0:
            old = self.entries[at]
            comment = old.text[old.comment :] if old.comment >= 0 else self.newline
            space = "  " if old.comment >= 0 else ""
            self.entries[at : at + 1] = _entries(self._lines(line)[: -len(self.newline)] + space + comment)
            return
        keys = [at for at in range(section.start, section.end) if self.entries[at].kind in ("key", "header")]
        self._insert(keys[-1] + 1, line)

    def unset(self, section: Section, path: Path) -> None:
        """Take a key out of a section that gives it."""
        del self.entries[self.find(section, path)]

    def append(self, header: str, fields: Mapping[str, Any], at: int = -1) -> None:
        """Put a table at an entry, by default at the end. header: such as [a.b]."""
        at = len(self.entries) if at < 0 else at
        while at > 0 and self.entries[at - 1].kind == "blank":
            at -= 1
        lines = [header, *(f"{_word(key)} = {rendered(value)}" for key, value in fields.items())]
        self._insert(at, *([""] if at > 0 else []), *lines)

    def remove(self, sections: Iterable[Section]) -> None:
        """Take tables out, with the comments above them and the blank lines behind them."""
        for section in sorted(sections, key=lambda item: item.start, reverse=True):
            del self.entries[section.lead : section.end]
        while self.entries and self.entries[-1].kind == "blank":
            self.entries.pop()

    def _insert(self, at: int, *lines: str) -> None:
        if at > 0 and not self.entries[at - 1].text.endswith("\n"):
            self.entries[at - 1].text += self.newline
        self.entries[at:at] = _entries(self._lines(*lines))

    def _lines(self, *lines: str) -> str:
        return "".join(line.replace("\n", self.newline) + self.newline for line in lines)


def rendered(value: Any) -> str:
    """Return a value as TOML, mappings as inline tables."""
    return to_toml({"value": value}).partition(" = ")[2].rstrip("\n")


def header(path: Path) -> str:
    """Return the header of a table."""
    return f"[{'.'.join(_word(part) for part in path)}]"


def _word(key: str) -> str:
    return to_toml({key: 0}).rstrip("\n").removesuffix(" = 0") if key else '""'


def _entries(text: str) -> Iterator[Entry]:
    held = ""
    quote, depth = "", 0
    for line in text.splitlines(keepends=True):
        held += line
        quote, depth, comment = _scanned(line, quote, depth)
        if quote or depth > 0:
            continue
        yield _entry(held, len(held) - len(line) + comment if comment >= 0 else -1)
        held = ""
    if held:
        yield _entry(held, -1)


def _entry(text: str, comment: int) -> Entry:
    stripped = text.strip()
    if not stripped:
        return Entry("blank", text)
    if stripped.startswith("#"):
        return Entry("comment", text)
    if stripped.startswith("["):
        return Entry("header", text, _keys(toml.loads(text)), stripped.startswith("[["), comment)
    found = _KEY.match(text)
    return Entry("key", text, _keys(toml.loads(f"{found[1]} = 0")) if found else (), comment=comment)


def _keys(data: Any) -> Path:
    """Return the chain of single keys in nested tables."""
    path = []
    while data and isinstance(data, (dict, list)):
        if isinstance(data, list):
            data = data[0]
            continue
        ((key, data),) = data.items()
        path.append(key)
    return tuple(path)


def _scanned(line: str, quote: str, depth: int) -> tuple[str, int, int]:
    """Go through a line; return the quote that is open behind it, the depth of brackets, and where a comment begins."""
    at = 0
    while at < len(line):
        if quote:
            if line.startswith(quote, at):
                # A quote may stand right before the closing three (TOML: up to two of them).
                while len(quote) == 3 and line[at + 3 : at + 4] == quote[0]:
                    at += 1
                at += len(quote)
                quote = ""
            else:
                at += 2 if quote[0] == '"' and line[at] == "\\" else 1
            continue
        if line[at] == "#":
            return "", depth, at
        opened = next((mark for mark in _QUOTES if line.startswith(mark, at)), "")
        if opened:
            quote = opened
            at += len(opened)
            continue
        depth += (line[at] in "[{") - (line[at] in "]}")
        at += 1
    return (quote if len(quote) == 3 else ""), depth, -1
