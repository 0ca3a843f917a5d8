# SPDX-License-Identifier: GPL-3.0-or-later
"""What keeps a loop of prompts in bounds: limits, backoff, the circuit breaker, completion, and the lists of a map."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from .agent_settings import Backoff, CircuitBreaker, RunLimits

_FENCE = re.compile(r"```[A-Za-z]*\n(.*)\n```", re.DOTALL)


@dataclass(frozen=True)
class Totals:
    """What a run has used. iterations: begun, failed and interrupted ones too. cost: USD. seconds: without pauses."""

    iterations: int = 0
    failed: int = 0
    interrupted: int = 0
    cost: float = 0.0
    tokens: int = 0
    seconds: float = 0.0

    def plus(self, **more: float) -> Totals:
        """Return totals with the given amounts added."""
        return replace(self, **{name: getattr(self, name) + amount for name, amount in more.items()})

    def to_dict(self) -> dict[str, Any]:
        return {part.name: getattr(self, part.name) for part in fields(self)}


def totals_from_dict(data: Mapping[str, Any]) -> Totals:
    """Return the totals that to_dict wrote; what is missing counts as nothing."""
    return Totals(**{part.name: data[part.name] for part in fields(Totals) if part.name in data})


def limit_reached(limits: RunLimits, totals: Totals) -> str:
    """Return a sentence about the limit that forbids one more iteration, or nothing."""
    if limits.iterations and totals.iterations >= limits.iterations:
        return f"limit of iterations reached: {totals.iterations} of {limits.iterations}"
    return budget_reached(limits, totals)


def budget_reached(limits: RunLimits, totals: Totals) -> str:
    """Return a sentence about the limit that ends even an iteration that runs (duration, cost, tokens), or nothing."""
    if limits.duration and totals.seconds >= limits.duration:
        return f"limit of duration reached: {totals.seconds:.0f} s of {limits.duration:g} s"
    if limits.cost and totals.cost >= limits.cost:
        return f"limit of cost reached: {totals.cost:.4g} of {limits.cost:g} USD"
    if limits.tokens and totals.tokens >= limits.tokens:
        return f"limit of tokens reached: {totals.tokens} of {limits.tokens}"
    return ""


def seconds_left(limits: RunLimits, totals: Totals) -> float | None:
    """Return seconds until the limit of duration, not below 0; None without one."""
    return max(0.0, limits.duration - totals.seconds) if limits.duration else None


def cost_left(limits: RunLimits, totals: Totals) -> float:
    """Return USD until the limit of cost; 0 without one."""
    return max(0.0, limits.cost - totals.cost) if limits.cost else 0.0


def backoff_delay(backoff: Backoff, failures: int, chance: float) -> float:
    """Return seconds to wait after so many failures in a row (from 1): twice as long each time, up to max_delay.

    chance: a number from 0 to 1; it decides over the part of the delay that jitter leaves open.
    """
    whole = min(backoff.max_delay, backoff.delay * 2.0 ** min(max(failures, 1) - 1, 40))
    return whole * (1 - backoff.jitter) + whole * backoff.jitter * chance


def opens(breaker: CircuitBreaker, failures: int) -> bool:
    """Tell whether so many failures in a row open the breaker. One more after it has opened opens it again."""
    return bool(breaker.failures) and failures >= breaker.failures


def says(phrase: str, result: str) -> bool:
    """Tell whether the agent's word that it is done stands in a result. Without a phrase, its word is not asked."""
    return phrase in result


def list_items(text: str) -> tuple[str, ...]:
    """Return the items of a result: of a JSON array (a code fence around it is passed over), else its non-empty lines.

    Items that are no strings are given as JSON.
    """
    body = text.strip()
    fenced = _FENCE.fullmatch(body)
    body = fenced.group(1).strip() if fenced else body
    if body.startswith("["):
        with contextlib.suppress(ValueError, RecursionError):
            found = json.loads(body)
            if isinstance(found, list):
                return tuple(item if isinstance(item, str) else json.dumps(item, ensure_ascii=False) for item in found)
    return tuple(line.strip() for line in body.splitlines() if line.strip())
