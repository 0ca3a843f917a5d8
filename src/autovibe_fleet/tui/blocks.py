# SPDX-License-Identifier: GPL-3.0-or-later
"""A message of an iteration as lines of styled pieces, for a width."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .figures import clock, count, money, size
from .text import clean, fit, one_line, wrap

Piece = tuple[str, str]  # text, kind of style
Row = Mapping[str, Any]

FOLDED = ("tool_use", "tool_result", "thinking")
_TIME = 10  # columns of the time at the right
_NARROW = 56  # below this many columns there is no time
# What a tool call is about, by the usual names of its arguments.
_ABOUT = ("command", "cmd", "file_path", "path", "notebook_path", "pattern", "query", "url", "description", "prompt")


@dataclass(frozen=True)
class Block:
    """The lines of one message. edge: the kind of style of the bar at their left, "" for none."""

    lines: tuple[tuple[Piece, ...], ...]
    edge: str = ""
    foldable: bool = False


def block(row: Row, width: int, unfolded: bool, after: str = "", sender: str = "") -> Block:
    """Return a message as a block. after: the type of the message before it. sender: who wrote an injected message."""
    kind = str(row.get("type") or "")
    room = max(width - (_TIME if width >= _NARROW else 0), 8)
    moment = clock(row.get("time")) if width >= _NARROW else ""
    lines, edge = _RENDERED.get(kind, _plain)(row, room, unfolded, sender)
    shown = [tuple(line) for line in lines]
    if shown:
        shown[0] = _clipped(shown[0], room)
    if moment and shown:
        used = sum(_cells(text) for text, _kind in shown[0])
        shown[0] = (*shown[0], (" " * max(width - used - len(moment), 1), ""), (moment, "time"))
    if after and not (kind in _TIGHT and after in _TIGHT):
        shown.insert(0, ())
    return Block(tuple(shown), edge, kind in FOLDED)


def _clipped(line: tuple[Piece, ...], width: int) -> tuple[Piece, ...]:
    """Cut what a heading holds that is longer than anybody expected."""
    found = []
    for text, kind in line:
        text = fit(text, width)
        width -= _cells(text)
        found.append((text, kind))
    return tuple(found)


def _cells(text: str) -> int:
    from rich.cells import cell_len

    return len(text) if text.isascii() else cell_len(text)


Rendered = tuple[Iterator[list[Piece]], str]


def _body(text: str, width: int, kind: str, indent: str = "") -> Iterator[list[Piece]]:
    for line in wrap(clean(text).strip("\n"), width - len(indent)):
        yield [(indent + line, kind)]


def _text(row: Row, width: int, unfolded: bool, sender: str) -> Rendered:
    return _body(row.get("content") or "", width, "text"), ""


def _prompt(row: Row, width: int, unfolded: bool, sender: str) -> Rendered:
    return _headed("prompt", "", row, width, "prompt"), "prompt"


def _user(row: Row, width: int, unfolded: bool, sender: str) -> Rendered:
    return _headed("steered", sender, row, width, "user"), "user"


def _headed(title: str, more: str, row: Row, width: int, kind: str) -> Iterator[list[Piece]]:
    yield [(title, f"{kind}-title"), (f"  {one_line(more, 60)}" if more else "", "dim")]
    yield from _body(row.get("content") or "", width, "text")


def _thinking(row: Row, width: int, unfolded: bool, sender: str) -> Rendered:
    text = str(row.get("content") or "")

    def lines() -> Iterator[list[Piece]]:
        if unfolded:
            yield [("▾ ", "dim"), ("thinking", "thinking")]
            yield from _body(text, width, "thinking", "  ")
        else:
            yield [("▸ ", "dim"), ("thinking  ", "thinking"), (fit(one_line(text), width - 12), "dim")]

    return lines(), ""


def _tool_use(row: Row, width: int, unfolded: bool, sender: str) -> Rendered:
    detail = row.get("detail") or {}
    name = one_line(detail.get("name") or "tool", 40) or "tool"
    given = detail.get("input")

    def lines() -> Iterator[list[Piece]]:
        about = fit(_about(given, row), width - len(name) - 4)
        if not unfolded:
            yield [("▸ ", "tool"), (name, "tool-name"), (f"  {about}", "text")]
            return
        yield [("▾ ", "tool"), (name, "tool-name")]
        yield from _body(_arguments(given) or str(row.get("content") or ""), width, "text", "    ")

    return lines(), ""


def _about(given: Any, row: Row) -> str:
    if isinstance(given, Mapping):
        for key in _ABOUT:
            if isinstance(given.get(key), str) and given[key].strip():
                return one_line(given[key])
        return one_line(json.dumps(given, ensure_ascii=False, default=str)) if given else ""
    return one_line(given if isinstance(given, str) and given else row.get("content") or "")


def _arguments(given: Any) -> str:
    if not isinstance(given, Mapping):
        return str(given or "")
    parts = []
    for key, value in given.items():
        text = value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False, default=str)
        parts.append(f"{key}:\n{text}" if "\n" in text else f"{key}: {text}")
    return "\n".join(parts)


def _tool_result(row: Row, width: int, unfolded: bool, sender: str) -> Rendered:
    text = str(row.get("content") or "")
    bad = bool((row.get("detail") or {}).get("is_error"))
    kind = "bad" if bad else "dim"

    def lines() -> Iterator[list[Piece]]:
        number = text.count("\n", 0, len(text.rstrip("\n"))) + 1 if text.strip() else 0
        facts = f"{number} line{'' if number == 1 else 's'}" if number else "nothing"
        if number > 1:
            facts = f"{facts}, {size(len(text.encode(errors='replace')))}"
        word = "error" if bad else "result"
        if not unfolded:
            head = f"  {word}  {facts}"
            about = fit(one_line(text), width - len(head) - 4) if text.strip() else ""
            yield [("▸ ", kind), (head[2:], kind), (f"  {about}", "faint")]
            return
        yield [("▾ ", kind), (f"{word}  {facts}", kind)]
        yield from _body(text, width, "output", "    ")

    return lines(), ""


def _error(row: Row, width: int, unfolded: bool, sender: str) -> Rendered:
    return _body(f"✗ {row.get('content') or 'error'}", width, "bad"), "bad"


def _end(row: Row, width: int, unfolded: bool, sender: str) -> Rendered:
    detail = row.get("detail") or {}
    good = detail.get("ok", not detail.get("reason"))
    words = "✓ finished" if good else f"✗ ended: {one_line(detail.get('reason') or 'failed', 80)}"
    text = str(row.get("content") or "")

    def lines() -> Iterator[list[Piece]]:
        yield [(words, "good" if good else "bad")]
        if text and not good:
            yield from _body(text, width, "bad")

    return lines(), ""


def _session(row: Row, width: int, unfolded: bool, sender: str) -> Rendered:
    detail = row.get("detail") or {}
    facts = [f"{key} {one_line(detail[key], 60)}" for key in ("session", "model") if detail.get(key)]
    return iter([[(fit(" · ".join(["session began" if not facts else "", *facts]).strip(" ·"), width), "faint")]]), ""


def _usage(row: Row, width: int, unfolded: bool, sender: str) -> Rendered:
    detail = row.get("detail") or {}
    names = {
        "input_tokens": "in",
        "output_tokens": "out",
        "cache_read_tokens": "from cache",
        "cache_write_tokens": "to cache",
    }
    facts = [f"{count(detail[key])} {name}" for key, name in names.items() if detail.get(key)]
    if detail.get("cost"):
        facts.append(money(detail["cost"]))
    return iter([[(fit(f"tokens: {' · '.join(facts) or 'none'}", width), "faint")]]), ""


def _plain(row: Row, width: int, unfolded: bool, sender: str) -> Rendered:
    text = str(row.get("content") or "") or json.dumps(row.get("detail") or {}, ensure_ascii=False, default=str)
    return _body(f"{one_line(row.get('type') or 'message', 40)}: {text}", width, "dim"), ""


_RENDERED = {
    "text": _text,
    "prompt": _prompt,
    "user": _user,
    "thinking": _thinking,
    "tool_use": _tool_use,
    "tool_result": _tool_result,
    "error": _error,
    "end": _end,
    "session": _session,
    "usage": _usage,
}
_TIGHT = ("tool_use", "tool_result", "thinking", "usage", "session")
