# SPDX-License-Identifier: GPL-3.0-or-later
"""Files of `NAME=value` lines, read strictly: what a shell would read otherwise is an error with its line."""

from __future__ import annotations

import re

from .errors import InvalidInput

_NAME = re.compile(r"(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_]*)=")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\", "$": "$", "`": "`"}
_BARE = re.compile(r"[^\s'\"`$\\;&|<>()#]*")


def parse_dotenv(text: str, where: str = ".env") -> dict[str, str]:
    """Return the variables of a text. Empty lines and lines that begin with `#` do not count.

    A value is bare (no blanks, quotes, `$` or other characters of a shell), in single quotes (as it stands), or in
    double quotes (`\\n`, `\\t`, `\\r`, `\\"`, `\\\\`, `\\$` are understood; a `$` without backslash is an error, for
    nothing is replaced). Behind a value only blanks and ` # a comment` may follow. Values end on their line.
    Raises InvalidInput that names the line.
    """
    found: dict[str, str] = {}
    lines: dict[str, int] = {}
    for number, raw in enumerate(text[1:].split("\n") if text.startswith("\ufeff") else text.split("\n"), 1):
        here = f"{where} line {number}"
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        if any(not (char.isprintable() or char == "\t") for char in line):
            raise InvalidInput(f"{here}: expected printable text, found a control character")
        start = _NAME.match(line)
        if start is None:
            raise InvalidInput(f"{here}: expected NAME=value, found {_shown(line)}")
        name = start.group(1)
        if name in lines:
            raise InvalidInput(f"{here}: {name} is set again; line {lines[name]} has set it")
        value, rest = _value(f"{here}: {name}", line[start.end() :])
        if rest.strip() and not re.match(r"[ \t]+#", rest):
            raise InvalidInput(f"{here}: {name}: expected the end of the line after the value, found {_shown(rest)}")
        found[name], lines[name] = value, number
    return found


def _value(where: str, text: str) -> tuple[str, str]:
    """Return the value that a text begins with, and the rest of the text."""
    if text[:1] == "'":
        end = text.find("'", 1)
        if end < 0:
            raise InvalidInput(f"{where}: the single quote is not closed on its line")
        return text[1:end], text[end + 1 :]
    if text[:1] == '"':
        return _quoted(where, text)
    bare = _BARE.match(text)
    end = bare.end() if bare else 0
    if end < len(text) and text[end] not in " \t":
        raise InvalidInput(f"{where}: the value has {_shown(text[end])} in it: expected quotes around it")
    rest = text[end:].strip()
    if rest and not rest.startswith("#"):
        raise InvalidInput(f"{where}: the value has blanks in it: expected quotes around it")
    return text[:end], text[end:]


def _quoted(where: str, text: str) -> tuple[str, str]:
    value: list[str] = []
    position = 1
    while position < len(text):
        char = text[position]
        if char == '"':
            return "".join(value), text[position + 1 :]
        if char in "$`":
            raise InvalidInput(f"{where}: {char} in double quotes: nothing is replaced here, write \\{char}")
        if char == "\\":
            position += 1
            following = text[position : position + 1]
            if following not in _ESCAPES or not following:
                raise InvalidInput(f"{where}: unknown escape \\{following}: expected one of n, t, r, $, `, quote, \\")
            char = _ESCAPES[following]
        value.append(char)
        position += 1
    raise InvalidInput(f"{where}: the double quote is not closed on its line")


def _shown(text: str) -> str:
    """Return the beginning of a text, without what may be a secret behind its equals sign."""
    head, sign, _rest = text.partition("=")
    head = head if len(head) <= 30 else head[:27] + "..."
    return repr(head + ("=..." if sign else ""))
