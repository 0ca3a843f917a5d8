# SPDX-License-Identifier: GPL-3.0-or-later
"""Plain data as TOML 1.0 (https://toml.io/en/v1.0.0), laid out as people write project files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from .errors import InvalidInput
from .names import describe

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_SHORT = {"\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r", '"': '\\"', "\\": "\\\\"}
# Tables that get a header of their own; every other mapping stands in one line.
_TABLES = ("environment", "processes", "env_vars", "vars", "project")


def to_toml(data: Mapping[str, Any], comments: Iterable[str] = ()) -> str:
    """Return the text of a project file. comments: lines for its head. None values are left out.

    Raises InvalidInput for what TOML cannot hold.
    """
    lines = [f"# {line}".rstrip() for comment in comments for line in comment.splitlines()]
    if lines:
        lines.append("")
    lines.extend(_table((), data))
    return "\n".join(lines).strip("\n") + "\n"


def _table(path: tuple[str, ...], data: Mapping[str, Any]) -> Iterator[str]:
    plain = {key: value for key, value in data.items() if value is not None and not _is_table(path, key, value)}
    tables = {key: value for key, value in data.items() if _is_table(path, key, value)}
    if path and (plain or not tables):
        yield f"[{'.'.join(_key(part) for part in path)}]"
    for key, value in plain.items():
        yield f"{_key(key)} = {_value(key, value)}"
    if path and plain:
        yield ""
    for key, value in tables.items():
        yield from _table((*path, key), value)


def _is_table(path: tuple[str, ...], key: str, value: object) -> bool:
    return isinstance(value, Mapping) and (key in _TABLES if path != ("processes",) else True)


def _key(key: object) -> str:
    if not isinstance(key, str):
        raise InvalidInput(f"TOML: expected text as a key, found {describe(key)}")
    return key if _BARE.fullmatch(key) else _text(key)


def _value(where: str, value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, Mapping):
        inner = ", ".join(f"{_key(key)} = {_value(where, item)}" for key, item in value.items() if item is not None)
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, (list, tuple)):
        items = [_value(where, item) for item in value]
        line = f"[{', '.join(items)}]"
        return line if len(line) <= 100 else "[\n" + "".join(f"    {item},\n" for item in items) + "]"
    raise InvalidInput(f"TOML: {where}: expected text, a number, a boolean, a list or a table, found {describe(value)}")


def _text(text: str) -> str:
    if any(0xD800 <= ord(character) <= 0xDFFF for character in text):
        raise InvalidInput(f"TOML: expected Unicode text, found {describe(text)}")
    escaped = re.sub(r'[\x00-\x1f\x7f"\\]', lambda found: _SHORT.get(found[0], f"\\u{ord(found[0]):04x}"), text)
    return f'"{escaped}"'
