# SPDX-License-Identifier: GPL-3.0-or-later
"""What people and programs read: tables, lists, JSON. Rich is loaded for terminals only."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

STYLES = {
    "running": "green",
    "active": "green",
    "starting": "yellow",
    "activating": "yellow",
    "stopping": "yellow",
    "deactivating": "yellow",
    "backoff": "yellow",
    "waiting": "yellow",
    "paused": "yellow",
    "limited": "yellow",
    "interrupted": "yellow",
    "completed": "green",
    "succeeded": "green",
    "failed": "red",
    "unhealthy": "red",
    "error": "red",
    "stopped": "dim",
    "inactive": "dim",
}
_NARROWEST = 12  # cells that a flexible column keeps on a narrow terminal
_GAP = 2
_SPACES = "\n\t\u00a0\u2007\u202f\u3000"  # what str.isprintable refuses, and a terminal only shows
_COLORS = re.compile(r"(\x1b\[[0-9;:]{0,100}m)")
# What a terminal may act on although JSON may hold it as it is, and halves of characters, which cannot be written.
_RISKY = re.compile(r"[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True)
class Column:
    """One column of a table. right: numbers. flexible: may be cut on a terminal, never in a pipe."""

    title: str
    right: bool = False
    flexible: bool = False


class Output:
    """Writes results to stdout and notes to stderr. as_json: results are JSON and there are no notes."""

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json

    @property
    def is_terminal(self) -> bool:
        """Whether a person looks at stdout."""
        return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"

    def data(self, value: Any) -> None:
        """Write a result as JSON."""
        print(json_text(value, indent=2))

    def line(self, text: str = "", style: str = "") -> None:
        """Write one line of a result. Whatever it holds, it cannot move the cursor."""
        text = printable(text)
        if style and self.is_terminal:
            self.console().print(text, style=style, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text)

    def note(self, text: str) -> None:
        """Tell on stderr what happens beside the result."""
        if not self.as_json:
            print(printable(text), file=sys.stderr)

    def console(self, width: int | None = None) -> Console:
        """Return a Rich console on stdout."""
        from rich.console import Console

        return Console(width=width, highlight=False, markup=False, emoji=False)

    def table(self, columns: Sequence[Column], rows: Iterable[Sequence[Any]], empty: str = "") -> None:
        """Write rows under a header, or the empty text. None is shown as "-"."""
        cells = [[_cell(value) for value in row] for row in rows]
        if not cells:
            if empty:
                self.line(empty)
            return
        if self.is_terminal:
            self._rich_table(columns, cells)
        else:
            for text in plain_table([column.title for column in columns], columns, cells):
                print(text)

    def pairs(self, items: Mapping[str, Any]) -> None:
        """Write names and values below each other; None and empty values are left out."""
        shown = {name: value for name, value in items.items() if value not in (None, "", [], {})}
        width = max((len(name) for name in shown), default=0)
        for name, value in shown.items():
            values = value if isinstance(value, list) else [value]
            for index, part in enumerate(values):
                label = f"{name}:" if index == 0 else ""
                text = _cell(part)
                if self.is_terminal:
                    from rich.text import Text

                    line = Text(f"{label:<{width + 1}}  ", style="dim")
                    line.append(text, style=STYLES.get(text, "default"))
                    self.console().print(line, soft_wrap=True)
                else:
                    print(f"{label:<{width + 1}}  {text}")

    def _rich_table(self, columns: Sequence[Column], cells: Sequence[Sequence[str]]) -> None:
        from rich.cells import cell_len
        from rich.table import Table
        from rich.text import Text

        widths = [
            max(cell_len(column.title), *(cell_len(row[index]) for row in cells))
            for index, column in enumerate(columns)
        ]
        room = shutil.get_terminal_size().columns
        for index, column in enumerate(columns):
            if column.flexible:
                over = sum(widths) + _GAP * (len(widths) - 1) - room
                widths[index] = max(min(widths[index], _NARROWEST), widths[index] - max(over, 0))
        table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold", collapse_padding=True)
        for column, width in zip(columns, widths, strict=True):
            table.add_column(column.title, justify="right" if column.right else "left", no_wrap=True, width=width)
        for row in cells:
            table.add_row(*(Text(cell, style=STYLES.get(cell, "")) for cell in row))
        # Wider than the terminal when names need it: the terminal wraps, nothing is lost.
        self.console(max(room, sum(widths) + _GAP * len(widths))).print(table, crop=False, soft_wrap=False)


def plain_table(titles: Sequence[str], columns: Sequence[Column], cells: Sequence[Sequence[str]]) -> list[str]:
    """Return a table as lines of aligned columns, two spaces between them."""
    lines = [list(titles), *(list(row) for row in cells)]
    widths = [max(len(row[index]) for row in lines) for index in range(len(columns))]
    result = []
    for row in lines:
        parts = [
            cell.rjust(width) if column.right else cell.ljust(width)
            for cell, width, column in zip(row, widths, columns, strict=True)
        ]
        result.append((" " * _GAP).join(parts).rstrip())
    return result


def printable(text: str) -> str:
    """Return text in which nothing moves a terminal's cursor but line ends and tabs."""
    if text.isprintable():
        return text
    return "".join(
        sign if sign.isprintable() or sign in "\n\t" or sign in _SPACES else repr(sign)[1:-1] for sign in text
    )


def colored(text: str) -> str:
    """Return output of a program for a terminal: its colors stay (ECMA-48, SGR), nothing else moves the cursor."""
    return "".join(part if number % 2 else printable(part) for number, part in enumerate(_COLORS.split(text)))


def json_text(value: Any, indent: int | None = None) -> str:
    """Return JSON that people can read, and in which no terminal finds anything to act on."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return text if text.isascii() and "\x7f" not in text else _RISKY.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _cell(value: Any) -> str:
    """Return a value on one line, with no character that moves a terminal's cursor."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        value = " ".join(f"{name}={item}" for name, item in value.items()) or "-"
    elif isinstance(value, (list, tuple)):
        value = " ".join(str(item) for item in value) or "-"
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in str(value))


def duration(seconds: float | None) -> str:
    """Return a time span for people: 45s, 3m12s, 2h05m, 4d03h."""
    if seconds is None:
        return "-"
    whole = max(int(seconds), 0)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"


def size(number: int | None) -> str:
    """Return bytes for people: 512B, 1.5K, 23M, 1.2G."""
    if not number:
        return "-"
    value, units = float(number), "BKMGT"
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.0f}{units[0]}" if units[0] == "B" or value >= 10 else f"{value:.1f}{units[0]}"


def described(key: str, value: Any) -> Any:
    """Return a declared field of a process as text, or as a list of lines."""
    if key in ("readiness", "health") and isinstance(value, Mapping):
        times = f"every {value['interval']:g} s, timeout {value['timeout']:g} s, {value['retries']} retries"
        return [str(value["url"]), times + (f", then {value['action']}" if key == "health" else "")]
    if key == "restart" and isinstance(value, Mapping):
        limit = f", at most {value['burst']} times in {value['window']:g} s" if value["burst"] else ""
        return f"{value['policy']}, after {value['delay']:g} s to {value['max_delay']:g} s{limit}"
    if isinstance(value, Mapping):
        return [f"{name}={item}" for name, item in value.items() if key != "limits" or item]
    if isinstance(value, list):
        return [_item(item) for item in value]
    return value


def _item(item: Any) -> str:
    """Return one item of a declared list: a resource as TYPE:VALUE as NAME, anything else as it is."""
    if not isinstance(item, Mapping):
        return str(item)
    if "type" in item:
        value = f":{item['value']}" if item.get("value") else ""
        return f"{item['type']}{value}" + (
            f" as {item['name']}" if item.get("name", item["type"]) != item["type"] else ""
        )
    return " ".join(f"{name}={part}" for name, part in item.items())
