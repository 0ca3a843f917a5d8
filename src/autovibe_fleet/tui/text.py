# SPDX-License-Identifier: GPL-3.0-or-later
"""Text from agents made safe to show, and folded into lines.

A model can write whatever it likes: escape sequences (ECMA-48), carriage returns, NULs, halves of surrogate pairs,
marks that turn the direction of a line (UAX #9). None of it may reach the terminal. Escape sequences are taken out, and
every other control character is shown as a picture of itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from rich.cells import cell_len

TAB = 4  # columns
REPLACED = "\ufffd"

# Escape sequences as ECMA-48 has them: CSI, then OSC, DCS, SOS, PM and APC with their terminator, then the short ones.
_SEQUENCE = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"
    r"|\x1b[\]PX^_][^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)"
    r"|\x9b[0-?]*[ -/]*[@-~]"
    r"|\x1b[ -/]+[0-~]"
    r"|\x1b[0-Z\\^-~]"
)
# C0 and C1 but newline; line and paragraph separators; marks of direction; halves of surrogate pairs; tags; soft
# hyphens, and what has no width and no glyph of its own.
_UNSAFE = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
_SAFE_ASCII = re.compile(r"[\n\x20-\x7e]*\Z")


def _picture(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    return REPLACED


def clean(text: object) -> str:
    """Return a text that only shows: no control character but newlines, nothing that a terminal would act on."""
    text = text if isinstance(text, str) else str(text)
    if _SAFE_ASCII.match(text):
        return text
    if "\r" in text:
        text = text.replace("\r\n", "\n")
    if "\x1b" in text or "\x9b" in text:
        text = _SEQUENCE.sub("", text)
    if "\t" in text:
        text = "\n".join(line.expandtabs(TAB) for line in text.split("\n"))
    return _UNSAFE.sub(_picture, text)


def same_length(text: str) -> str:
    """Return a text without control characters and with every character in its place, for what is being edited.

    Tabs stay: an editor lays them out itself.
    """
    return text if _SAFE_ASCII.match(text) else _UNSAFE.sub(lambda at: at[0] if at[0] == "\t" else _picture(at), text)


def one_line(text: object, limit: int = 200) -> str:
    """Return the first line that says something, cut to a number of characters."""
    text = text if isinstance(text, str) else str(text)
    head = clean(text[: limit * 20])
    line = next((part for part in map(str.strip, head.split("\n")) if part), "")
    return line if len(line) <= limit else line[: limit - 1] + "…"


def fit(text: str, width: int) -> str:
    """Return a line cut to a number of columns, with an ellipsis where something is left out."""
    if width <= 0:
        return ""
    if text.isascii():
        return text if len(text) <= width else text[: width - 1] + "…"
    if cell_len(text) <= width:
        return text
    room = width - 1
    for index, character in enumerate(text):
        room -= cell_len(character)
        if room < 0:
            return f"{text[:index]}…"
    return text


def wrap(text: str, width: int) -> Iterator[str]:
    """Yield the lines of a clean text, none wider than a number of columns. Breaks at spaces where there are some."""
    width = max(width, 2)
    for line in text.split("\n"):
        if line.isascii():
            if len(line) <= width:
                yield line
            else:
                yield from _ascii(line, width)
        elif cell_len(line) <= width:
            yield line
        else:
            yield from _pieces(line, width)


def _ascii(line: str, width: int) -> Iterator[str]:
    start, end = 0, len(line)
    while end - start > width:
        cut = line.rfind(" ", start + 1, start + width + 1)
        if cut <= start or not line[start:cut].strip():
            yield line[start : start + width]
            start += width
        else:
            yield line[start:cut]
            start = cut + 1
    yield line[start:]


def _pieces(line: str, width: int) -> Iterator[str]:
    """Split a line by the columns of its characters; what combines with a character stays with it."""
    start = columns = space = columns_at_space = 0
    for index, character in enumerate(line):
        size = 1 if " " <= character <= "~" else cell_len(character)
        if columns + size > width and index > start:
            if space > start:
                yield line[start:space]
                start = space + 1
                columns -= columns_at_space
            else:
                yield line[start:index]
                start, columns = index, 0
        columns += size
        if character == " " and index > start:
            space, columns_at_space = index, columns
    yield line[start:]
