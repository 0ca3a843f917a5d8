# SPDX-License-Identifier: GPL-3.0-or-later
"""Moments as ISO 8601 texts, which providers write in different lengths and zones."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone

from .errors import InvalidInput

_MOMENT = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[T ](\d\d):(\d\d)(?::(\d\d)(?:[.,](\d{1,9}))?)?\s*(Z|[+-]\d\d(?::?\d\d)?)?", re.ASCII
)


def moment(text: str) -> datetime | None:
    """Return the moment, in UTC, or None for what is none. A text that names no zone is in UTC."""
    found = _MOMENT.fullmatch(text.strip())
    if found is None:
        return None
    zone = found[8] or "Z"
    shift = timedelta() if zone == "Z" else timedelta(hours=int(zone[1:3]), minutes=int(zone[3:].strip(":") or 0))
    micros = int((found[7] or "0")[:6].ljust(6, "0"))
    try:
        year, month, day, hour, minute, second = (int(part or 0) for part in found.groups()[:6])
        local = datetime(year, month, day, hour, minute, second, micros, timezone.utc)
        return local + shift if zone[0] == "-" else local - shift
    except (ValueError, OverflowError):
        return None


def iso(seconds: float) -> str:
    """Return seconds since 1970 as the text of a moment: 2026-01-31T08:00:00Z."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def precise(seconds: float) -> str:
    """Return the text of a moment with microseconds, so that of two one is the later: 2026-01-31T08:00:00.000000Z."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def needed(where: str, text: str) -> datetime:
    """Return the moment. Raises InvalidInput for what is none."""
    found = moment(text)
    if found is None:
        raise InvalidInput(f"{where}: expected a moment such as 2026-01-31T08:00:00Z, found {text!r}")
    return found
