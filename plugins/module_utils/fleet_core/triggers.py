# SPDX-License-Identifier: GPL-3.0-or-later
"""When a checkpoint is due: after a time, a number of API calls, each step of a budget, and before what is risky."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from .errors import InvalidInput
from .moments import moment, needed
from .names import as_bool, as_int, check_keys, describe
from .quantities import format_duration, parse_duration


@dataclass(frozen=True)
class Triggers:
    """every: seconds. api_calls: how many of them. budget_step: a part of the budget, 0.1 for each tenth of it.

    0 and False turn one off. Manual checkpoints need no trigger.
    """

    every: float = 300.0
    api_calls: int = 5
    budget_step: float = 0.1
    risky: bool = True


@dataclass(frozen=True)
class Usage:
    """What a machine has used by then. budget_used: the part of its budget, 1.0 for all of it; more is overdrawn."""

    api_calls: int = 0
    budget_used: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return {"api_calls": self.api_calls, "budget_used": self.budget_used}


def due(
    triggers: Triggers,
    last: str,
    now: str,
    usage_then: Usage = Usage(),
    usage_now: Usage = Usage(),
    risky: bool = False,
) -> str:
    """Return why a checkpoint is due, or an empty text.

    last: when the last one was made, empty when there is none. usage_then: what had been used by then; where less is
    used now, counting has begun anew. risky: whether something risky comes next.
    """
    if risky and triggers.risky:
        return "before a risky step"
    then = moment(last) if last else None
    if last and then is None:
        return "it is not known when the last one was made"
    if then is None and triggers.every:
        return "there is none yet"
    since = (needed("now", now) - then).total_seconds() if then else 0.0
    if triggers.every and since >= triggers.every:
        return f"{format_duration(since)} after the last one"
    calls = _grown(usage_then.api_calls, usage_now.api_calls)
    if triggers.api_calls and calls >= triggers.api_calls:
        return f"{int(calls)} API calls after the last one"
    if triggers.budget_step:
        used = usage_now.budget_used
        before = usage_then.budget_used if usage_then.budget_used <= used else 0.0
        if _steps(used, triggers.budget_step) > _steps(before, triggers.budget_step):
            return f"{used * 100:.4g} % of the budget is used"
    return ""


def triggers_from(where: str, data: object) -> Triggers:
    """Return triggers from a mapping of their fields; what is not given is as usual. Raises InvalidInput."""
    known = check_keys(where, {} if data is None else data, [part.name for part in fields(Triggers)])
    usual = Triggers()
    given: Mapping[str, Any] = {key: value for key, value in known.items() if value is not None}
    return Triggers(
        parse_duration(f"{where}.every", given.get("every", usual.every)),
        as_int(f"{where}.api_calls", given.get("api_calls", usual.api_calls), 0, 10**9),
        _part(f"{where}.budget_step", given.get("budget_step", usual.budget_step), 1.0),
        as_bool(f"{where}.risky", given.get("risky", usual.risky)),
    )


def usage_from(where: str, data: object) -> Usage:
    """Return usage from a mapping of its fields. Raises InvalidInput."""
    known = check_keys(where, {} if data is None else data, [part.name for part in fields(Usage)])
    given = {key: value for key, value in known.items() if value is not None}
    return Usage(
        as_int(f"{where}.api_calls", given.get("api_calls", 0), 0, 10**18),
        _part(f"{where}.budget_used", given.get("budget_used", 0.0), 10**6),
    )


def _steps(used: float, step: float) -> int:
    return math.floor(round(used / step, 9))  # 0.3 is three tenths, though it is not to a computer


def _grown(then: float, now: float) -> float:
    return now - then if now >= then else now


def _part(where: str, value: object, most: float) -> float:
    try:
        number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not 0 <= number <= most or (number and number < 1e-6):
        raise InvalidInput(f"{where}: expected a part such as 0.1, from 0 to {most:g}, found {describe(value)}")
    return number
