# SPDX-License-Identifier: GPL-3.0-or-later
"""Restart policies: whether an ended process comes back, and after how long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .errors import InvalidInput
from .names import as_int, check_keys
from .quantities import parse_duration

POLICIES = ("never", "on-failure", "always")
_KEYS = ("policy", "delay", "max_delay", "jitter", "burst", "window")


@dataclass(frozen=True)
class RestartPolicy:
    """When and how soon an ended process is started again.

    policy: never, on-failure (exit code not 0, a signal, or an unknown end) or always.
    delay: seconds before the second restart of a row; each further one waits twice as long, up to max_delay.
    The first restart of a row is immediate. jitter: the part of a delay, 0 to 1, that is drawn by chance.
    burst restarts within window seconds are allowed; one more is given up as an error. burst 0: no limit.
    """

    policy: str = "on-failure"
    delay: float = 0.5
    max_delay: float = 60.0
    jitter: float = 0.2
    burst: int = 10
    window: float = 300.0

    def to_dict(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in _KEYS}


def restart_policy(where: str, data: object) -> RestartPolicy:
    """Return a policy from one of the words, from true/false (on-failure/never) or from a mapping."""
    if data is None:
        return RestartPolicy()
    if isinstance(data, bool):
        data = "on-failure" if data else "never"
    if isinstance(data, str):
        data = {"policy": data}
    given = check_keys(where, data, _KEYS)
    default = RestartPolicy()
    policy = given.get("policy") or default.policy
    if policy not in POLICIES:
        raise InvalidInput(f'{where}: expected {", ".join(POLICIES)}, found "{policy}"')
    seconds = {
        key: parse_duration(f"{where}: {key}", given[key] if given.get(key) is not None else getattr(default, key))
        for key in ("delay", "max_delay", "window")
    }
    try:
        jitter = float(given["jitter"] if given.get("jitter") is not None else default.jitter)
    except (TypeError, ValueError, OverflowError):
        jitter = -1.0
    if not 0 <= jitter <= 1:
        raise InvalidInput(f"{where}: expected a jitter from 0 to 1, found {given.get('jitter')!r}")
    burst = as_int(f"{where}: burst", given["burst"] if given.get("burst") is not None else default.burst, 0, 10**6)
    return RestartPolicy(
        str(policy), seconds["delay"], max(seconds["delay"], seconds["max_delay"]), jitter, burst, seconds["window"]
    )


def wants_restart(policy: RestartPolicy, exit_code: int | None) -> bool:
    """Tell whether the policy restarts a process with this exit code (negative: signal; None: unknown)."""
    return policy.policy == "always" or (policy.policy == "on-failure" and exit_code != 0)


def delay_before(policy: RestartPolicy, attempt: int, chance: float) -> float:
    """Return seconds to wait before restart number attempt (from 1) of a row. chance: a number from 0 to 1."""
    if attempt <= 1:
        return 0.0
    whole = min(policy.max_delay, policy.delay * 2.0 ** min(attempt - 2, 40))
    return whole * (1 - policy.jitter) + whole * policy.jitter * chance


def within_burst(policy: RestartPolicy, restarts: Sequence[float], now: float) -> bool:
    """Tell whether one more restart is allowed at now, given the (monotonic) times of earlier ones."""
    recent = [moment for moment in restarts if now - moment < policy.window]
    return policy.burst == 0 or len(recent) < policy.burst
