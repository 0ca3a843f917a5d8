# SPDX-License-Identifier: GPL-3.0-or-later
"""Durations and sizes as people write them."""

from __future__ import annotations

import re

from .errors import InvalidInput
from .names import describe

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")
_LARGEST = 2**63 - 1
_LONGEST = 1000 * 365 * 86400.0
_SIZES = {"": 1, "b": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([bkmgt]?)(?:i?b)?", re.IGNORECASE)


def parse_duration(where: str, value: object) -> float:
    """Return seconds from a number of seconds or from text such as "30s", "2h30m", "500ms".

    Raises InvalidInput for anything else and for negative values. "0" means zero.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if not 0 <= value <= _LONGEST:
            raise InvalidInput(f"{where}: expected a duration from 0 to 1000 years, found {describe(value)}")
        return float(value)
    text = value.strip().lower() if isinstance(value, str) else ""
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return parse_duration(where, float(text))
    seconds, position = 0.0, 0
    while position < len(text):
        part = _PART.match(text, position)
        if part is None:
            break
        seconds += float(part.group(1)) * _UNITS[part.group(2)]
        position = part.end()
        while position < len(text) and text[position] == " ":
            position += 1
    if not text or position < len(text):
        raise InvalidInput(f'{where}: expected a duration such as "30s", "5m" or "2h30m", found {describe(value)}')
    return parse_duration(where, seconds)


def format_duration(seconds: float) -> str:
    """Return a duration in at most two units: 45s, 2m5s, 3h10m, 2d4h."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms" if seconds else "0s"
    whole = int(seconds)
    for size, unit, below, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            rest = whole % size // below
            return f"{whole // size}{unit}" + (f"{rest}{small}" if rest else "")
    return f"{whole}s"


def parse_size(where: str, value: object) -> int:
    """Return bytes from a number of bytes or from text such as "512M" or "2GiB" (powers of 1024)."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST:
        return value
    found = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None:
        raise InvalidInput(f'{where}: expected a size such as "512M" or "2G", found {describe(value)}')
    number, unit = found.group(1), _SIZES[found.group(2).lower()]
    size = float(number) * unit if "." in number or len(number) > 20 else int(number) * unit
    if size > _LARGEST:
        raise InvalidInput(f"{where}: expected a size below 2^63 bytes, found {describe(value)}")
    return int(size)


def format_size(size: int) -> str:
    """Return bytes as people write them, in the largest unit that needs no more than one decimal: 512M, 1.5G, 20G.

    A size that no unit fits is given in bytes, so that parse_size returns the very number.
    """
    for unit, factor in (("T", 1024**4), ("G", 1024**3), ("M", 1024**2), ("K", 1024)):
        if size >= factor and size * 10 % factor == 0:
            tenths = size * 10 // factor
            return f"{tenths // 10}{unit}" if tenths % 10 == 0 else f"{tenths // 10}.{tenths % 10}{unit}"
    return str(size)
