# SPDX-License-Identifier: GPL-3.0-or-later
"""What counts as work that gets nowhere."""

from __future__ import annotations

import time
from typing import Any

import pytest

from autovibe_fleet.agents.watchdog import Watchdog
from fleet_core.agents import Watchdog as Rules
from fleet_core.runner_events import Event


def call(name: str = "read", **given: Any) -> Event:
    return Event("tool_use", name, {"id": str(time.monotonic_ns()), "name": name, "input": given})


def test_the_same_call_in_a_row_is_reported_each_time_it_is_too_often() -> None:
    dog, rules = Watchdog(), Rules(repeats=3)
    found = [dog.heard(rules, call(path="a")) for _number in range(7)]
    assert [report["count"] if report else 0 for report in found] == [0, 0, 3, 0, 0, 6, 0]
    assert found[2] == {"what": "repeats", "count": 3, "text": "the same call of read 3 times in a row"}


def test_another_call_or_other_input_begins_anew_and_results_between_do_not() -> None:
    dog, rules = Watchdog(), Rules(repeats=2)
    events = [call(path="a"), call(path="b"), Event("text", "hm"), call(path="a"), call("write", path="a")]
    assert [dog.heard(rules, event) for event in events] == [None] * 5
    assert dog.heard(rules, Event("tool_result", "x")) is None
    assert dog.heard(rules, call("write", path="a")) is not None


def test_nothing_is_reported_unless_it_is_asked_for() -> None:
    dog, rules = Watchdog(), Rules()
    assert [dog.heard(rules, call()) for _number in range(100)] == [None] * 100
    assert dog.committed(rules, "x") is None
    assert dog.due(rules) is None
    assert dog.silent(rules) is None


def test_silence_is_reported_once_until_something_is_heard() -> None:
    dog, rules = Watchdog(), Rules(silence=0.02)
    dog.begin()
    assert dog.silent(rules) is None
    time.sleep(0.03)
    assert dog.due(rules) == 0
    assert dog.silent(rules) == {"what": "silence", "count": 1, "text": "no output for 0.02 s"}
    assert dog.silent(rules) is None
    assert dog.due(rules) is None
    dog.heard(rules, Event("text", "hello"))
    assert (dog.due(rules) or 0) > 0


@pytest.mark.parametrize(
    ("commits", "counts"),
    [(["a", "a", "b", "b", "b"], [0, 2, 0, 0, 2]), (["", "", ""], [0, 2, 0]), (["b", "c", "d"], [0, 0, 0])],
)
def test_iterations_without_a_commit_are_counted(commits: list[str], counts: list[int]) -> None:
    dog, rules = Watchdog(), Rules(commits=2)
    dog.based("a")
    found = [dog.committed(rules, commit) for commit in commits]
    assert [report["count"] if report else 0 for report in found] == counts
