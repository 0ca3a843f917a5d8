# SPDX-License-Identifier: GPL-3.0-or-later
"""Numbers, times and states as people read them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ..cli.output import duration, size

__all__ = ["STATES", "clock", "count", "day", "duration", "money", "seconds_of", "size", "spread", "state_mark"]

SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
# Marks and kinds of colors by state; the spinner stands where something moves.
STATES: Mapping[str, tuple[str, str]] = {
    "running": ("", "good"),
    "starting": ("", "warn"),
    "stopping": ("", "dim"),
    "waiting": ("◔", "warn"),
    "paused": ("‖", "warn"),
    "completed": ("✓", "good"),
    "limited": ("■", "warn"),
    "failed": ("✗", "bad"),
    "stopped": ("○", "dim"),
    "succeeded": ("✓", "good"),
    "interrupted": ("⊘", "warn"),
    "queued": ("◔", "warn"),
    "sent": ("→", "info"),
    "delivered": ("✓", "good"),
    "refused": ("✗", "bad"),
}


def state_mark(state: str, frame: int = 0) -> tuple[str, str]:
    """Return the mark of a state and the kind of its color: good, warn, bad, info, dim. frame: of the spinner."""
    mark, kind = STATES.get(state, ("·", "dim"))
    return mark or SPINNER[frame % len(SPINNER)], kind


def moves(state: str) -> bool:
    """Whether a state is shown with a spinner."""
    return STATES.get(state, ("·", ""))[0] == ""


def number_of(value: Any) -> float:
    """Return a number; what is none, as a runner may have reported it, counts as nothing."""
    return float(value) if isinstance(value, (int, float)) and abs(value) < 1e15 else 0.0


def count(number: float | None) -> str:
    """Return a count with at most four characters or so: 950, 12.3k, 4.5M."""
    value = number_of(number)
    for unit in ("", "k", "M", "G"):
        if abs(value) < 999.5 or unit == "G":
            return f"{value:.0f}{unit}" if not unit or abs(value) >= 99.5 else f"{value:.1f}{unit}"
        value /= 1000
    return ""


def money(cost: float | None) -> str:
    """Return USD; sums below one with three digits or four."""
    value = number_of(cost)
    digits = 2 if value >= 1 or value == 0 else 3 if value >= 0.01 else 4
    return f"${value:.{digits}f}"


def seconds_of(row: Mapping[str, Any], now: float) -> float | None:
    """Return how long an iteration or a run took, or has been going on."""
    if row.get("duration") is not None:
        return float(row["duration"])
    started = row.get("started")
    if started is None:
        return None
    finished = row.get("finished")
    return max(0.0, float(finished if finished is not None else now) - float(started))


def short(seconds: float | None) -> str:
    """Return a duration; below ten seconds with a tenth."""
    if seconds is not None and 0 < seconds < 9.95:
        return f"{seconds:.1f}s"
    return duration(seconds)


def spread(values: Mapping[str, Any] | None, shown: Any) -> str:
    """Return mean ± deviation."""
    values = values or {}
    return f"{shown(values.get('mean') or 0)} ± {shown(values.get('deviation') or 0)}"


def clock(moment: float | None) -> str:
    """Return a time of day, local."""
    return time.strftime("%H:%M:%S", time.localtime(moment)) if moment else ""


def day(moment: float | None) -> str:
    """Return a date and a time of day, local."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment)) if moment else ""
