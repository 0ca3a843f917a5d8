# SPDX-License-Identifier: GPL-3.0-or-later
"""Small changes to a JSON text, such that everything that they do not concern stays as it is, byte by byte.

Comments and trailing commas are read, as editors and assistants allow them in their settings. The caller checks what
came out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fleet_core.errors import InvalidInput

_SPACE = re.compile(r"(?:\s+|//[^\n]*|/\*.*?\*/)*", re.DOTALL)
_COMMENT_LINE = re.compile(r"[ \t]*(?://[^\n]*|/\*[^\n]*?\*/[ \t]*)?(?=\r?\n|$)")
_SCALAR = json.JSONDecoder()
_DEEPEST = 100


@dataclass
class Node:
    """A value and where it stands: text[start:end]. members: of an object, in order. comma: where its last one is."""

    value: Any
    start: int
    end: int
    members: dict[str, Node] = field(default_factory=dict)
    starts: dict[str, int] = field(default_factory=dict)  # where the keys stand
    comma: int = -1  # position of a trailing comma


class JsonText:
    """A JSON text that is being changed; an empty text is an empty object. Raises InvalidInput for what is no JSON."""

    def __init__(self, text: str) -> None:
        self.text = text if text.strip("\ufeff \t\r\n") else "{}\n"
        self.newline = "\r\n" if "\r\n" in text else "\n"
        found = re.search(r"\n([ \t]+)[\"}]", self.text)
        self.indent = found[1] if found else "  "

    def root(self) -> Node:
        """Return what the text holds now."""
        try:
            at = self._space(1 if self.text.startswith("\ufeff") else 0)
            node = self._node(at, 0)
            if self._space(node.end) != len(self.text):
                raise ValueError("more than one value")
        except (ValueError, IndexError, RecursionError) as error:
            raise InvalidInput(f"JSON: {str(error)[:1].lower()}{str(error)[1:]}") from None
        if not isinstance(node.value, dict):
            raise InvalidInput("JSON: expected an object")
        return node

    def get(self, path: Sequence[str]) -> Any:
        """Return the value at a path of keys, or None."""
        node: Node | None = self.root()
        for key in path:
            node = node.members.get(key) if node is not None else None
        return None if node is None else node.value

    def set(self, path: Sequence[str], value: Any) -> None:
        """Give a path a value; objects on the way are made. Raises InvalidInput where something else is in the way."""
        node = self.root()
        for depth, key in enumerate(path):
            if not isinstance(node.value, dict):
                raise InvalidInput(f"JSON: {'.'.join(path[:depth])}: expected an object")
            if key not in node.members:
                inner: Any = value
                for outer in reversed(path[depth + 1 :]):
                    inner = {outer: inner}
                self._insert(node, key, inner, depth)
                return
            node = node.members[key]
        self.text = self.text[: node.start] + self._dumped(value, len(path)) + self.text[node.end :]

    def remove(self, path: Sequence[str]) -> None:
        """Take out a member that is there, with its line."""
        owner = self.root()
        for key in path[:-1]:
            owner = owner.members[key]
        names = list(owner.members)
        at = names.index(path[-1])
        node = owner.members[path[-1]]
        start, end = owner.starts[path[-1]], node.end
        comma = self._space(end)
        if self.text[comma] == ",":
            end = comma + 1
            if at + 1 < len(names):
                end = self._line_end(end)
        elif at > 0:
            # The last one: the comma before it goes too, and what stands between stays.
            before = self.text.rindex(",", owner.members[names[at - 1]].end, start)
            self.text = self.text[:before] + self.text[before + 1 :]
            start, end = start - 1, end - 1
        line = len(self.text[:start].rstrip(" \t"))
        if line > 0 and self.text[line - 1] == "\n":
            start = line - (2 if self.text[:line].endswith("\r\n") else 1)
        self.text = self.text[:start] + self.text[end:]

    def _insert(self, owner: Node, key: str, value: Any, depth: int) -> None:
        inside = self.text[owner.start : owner.end]
        member = f"{json.dumps(key, ensure_ascii=False)}: {self._dumped(value, depth + 1)}"
        lead = self.newline + self.indent * (depth + 1)
        if not owner.members:
            tail = self.newline + self.indent * depth
            kept = self.text[owner.start + 1 : owner.end - 1].rstrip()
            middle = kept + lead + member + tail
            self.text = self.text[: owner.start + 1] + middle + self.text[owner.end - 1 :]
            return
        last = list(owner.members.values())[-1]
        at = last.end
        if owner.comma < 0:
            self.text = self.text[:at] + "," + self.text[at:]
            at += 1
        else:
            at = owner.comma + 1
        if "\n" in inside:
            at = self._line_end(at)
        else:
            lead = " "
            member = f"{json.dumps(key, ensure_ascii=False)}: {json.dumps(value, ensure_ascii=False)}"
        comma = "," if owner.comma >= 0 else ""
        self.text = self.text[:at] + lead + member + comma + self.text[at:]

    def _line_end(self, at: int) -> int:
        """Return the end of the line if nothing but a comment follows on it, else the position itself."""
        found = _COMMENT_LINE.match(self.text, at)
        return found.end() if found else at

    def _dumped(self, value: Any, depth: int) -> str:
        lines = json.dumps(value, indent=self.indent, ensure_ascii=False).split("\n")
        return (self.newline + self.indent * depth).join(lines)

    # Reading

    def _space(self, at: int) -> int:
        found = _SPACE.match(self.text, at)
        return found.end() if found else at

    def _node(self, at: int, depth: int) -> Node:
        if depth > _DEEPEST:
            raise ValueError("nests too deep")
        if at >= len(self.text):
            raise ValueError("ends too early")
        if self.text[at] == "{":
            return self._object(at, depth)
        if self.text[at] == "[":
            return self._array(at, depth)
        value, end = _SCALAR.raw_decode(self.text, at)
        return Node(value, at, end)

    def _object(self, start: int, depth: int) -> Node:
        found = Node({}, start, start)
        at = self._space(start + 1)
        while self.text[at] != "}":
            if self.text[at] != '"':
                raise ValueError(f"expected a key in quotes, found {self.text[at : at + 10]!r}")
            key, end = _SCALAR.raw_decode(self.text, at)
            colon = self._space(end)
            if self.text[colon] != ":":
                raise ValueError(f'expected ":" after "{key}"')
            if key in found.members:
                raise ValueError(f'"{key}" stands twice')
            node = self._node(self._space(colon + 1), depth + 1)
            found.members[key], found.starts[key], found.value[key] = node, at, node.value
            at, found.comma = self._next(node.end, "}")
        found.end = at + 1
        return found

    def _array(self, start: int, depth: int) -> Node:
        found = Node([], start, start)
        at = self._space(start + 1)
        while self.text[at] != "]":
            node = self._node(at, depth + 1)
            found.value.append(node.value)
            at, _comma = self._next(node.end, "]")
        found.end = at + 1
        return found

    def _next(self, at: int, closing: str) -> tuple[int, int]:
        """Return where the next member or the closing bracket is, and where a comma before the bracket is, or -1."""
        at = self._space(at)
        if self.text[at] == closing:
            return at, -1
        if self.text[at] != ",":
            raise ValueError(f'expected "," or "{closing}", found {self.text[at : at + 10]!r}')
        following = self._space(at + 1)
        return following, at if self.text[following] == closing else -1
