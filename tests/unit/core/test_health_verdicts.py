# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest

from fleet_core.health import Health, HealthCheck, judge

CHECK = HealthCheck("tcp://127.0.0.1:1", interval=10, retries=3, start_period=30)
HEALTHY, UNKNOWN, UNHEALTHY = True, None, False


def verdict(answers: str, age: float, begin: bool | None = None) -> Health:
    """One answer every 10 seconds: + is good, - is bad."""
    health = Health(healthy=begin)
    for number, answer in enumerate(answers):
        health = judge(CHECK, health, answer == "+", age + number * CHECK.interval)
    return health


@pytest.mark.parametrize(
    ("answers", "age", "begin", "expected"),
    [
        ("", 100, None, Health(0, UNKNOWN)),
        ("+", 100, None, Health(0, HEALTHY)),
        ("--", 100, None, Health(2, UNKNOWN)),
        ("---", 100, None, Health(3, UNHEALTHY)),
        ("--", 100, True, Health(2, HEALTHY)),
        ("---", 100, True, Health(3, UNHEALTHY)),
        ("--+--", 100, True, Health(2, HEALTHY)),
        ("---+", 100, True, Health(0, HEALTHY)),
        ("----", 100, True, Health(4, UNHEALTHY)),
        # In the start period (30 s) three bad answers say nothing ...
        ("---", 0, None, Health(0, UNKNOWN)),
        ("------", 0, None, Health(3, UNHEALTHY)),
        # ... unless it was up already.
        ("+---", 0, None, Health(3, UNHEALTHY)),
    ],
)
def test_one_good_answer_heals_and_so_many_bad_ones_in_a_row_do_not(
    answers: str, age: float, begin: bool | None, expected: Health
) -> None:
    assert verdict(answers, age, begin) == expected
