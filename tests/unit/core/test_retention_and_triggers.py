# SPDX-License-Identifier: GPL-3.0-or-later
"""When checkpoints are made, and how long they are kept."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_core.checkpoints import Checkpoint
from fleet_core.errors import InvalidInput
from fleet_core.moments import iso, moment
from fleet_core.retention import DAY, Policy, Retention, retention_from, surplus
from fleet_core.triggers import Triggers, Usage, due, triggers_from, usage_from

NOW = datetime(2026, 6, 15, 12, tzinfo=timezone.utc)


def at(days: float) -> str:
    """The moment so many days ago."""
    return (NOW - timedelta(days=days)).isoformat()


def one(days: float, kind: str = "automatic", name: str = "", parent: str = "") -> Checkpoint:
    return Checkpoint(name or f"c{days:g}".replace(".", "-"), "dev-1", created=at(days), kind=kind, parent=parent)


def names(items: Any) -> set[str]:
    return {item.name for item in items}


# -- moments ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-01T00:00:10Z", 10),
        ("1970-01-01T00:00:10.500Z", 10.5),
        ("1970-01-01 00:00:10.123456789", 10.123456),
        ("1970-01-01T02:00+02:00", 0),
        ("1969-12-31T19:00:00-0500", 0),
        ("1970-01-01T01:00:00+01", 0),
        ("", None),
        ("yesterday", None),
        ("1970-13-01T00:00:00Z", None),
        ("0001-01-01T00:00:00+23:00", None),
        ("\u0661970-01-01T00:00:00Z", None),
    ],
)
def test_moments_of_any_provider_are_read(text: str, seconds: float | None) -> None:
    found = moment(text)
    assert (None if found is None else found.timestamp()) == seconds


@given(st.integers(0, 4_000_000_000))
def test_a_moment_is_read_as_it_was_written(seconds: int) -> None:
    found = moment(iso(seconds))
    assert found is not None
    assert found.timestamp() == seconds


# -- triggers ---------------------------------------------------------------------------------------------------------

QUIET = Triggers(every=0, api_calls=0, budget_step=0, risky=False)
DUE: list[tuple[Triggers, dict[str, Any], str]] = [
    (Triggers(), {}, ""),
    (Triggers(), {"last": ""}, "there is none yet"),
    (Triggers(), {"last": "soon"}, "it is not known when the last one was made"),
    (Triggers(), {"last": at(5 / 1440)}, "5m after the last one"),
    (Triggers(), {"last": at(4.9 / 1440)}, ""),
    (Triggers(), {"usage_now": Usage(4)}, ""),
    (Triggers(), {"usage_now": Usage(5)}, "5 API calls after the last one"),
    (Triggers(), {"usage_then": Usage(7), "usage_now": Usage(11)}, ""),
    (Triggers(), {"usage_then": Usage(90), "usage_now": Usage(6)}, "6 API calls after the last one"),
    (Triggers(), {"usage_then": Usage(0, 0.19), "usage_now": Usage(0, 0.2)}, "20 % of the budget is used"),
    (Triggers(), {"usage_then": Usage(0, 0.2), "usage_now": Usage(0, 0.2999)}, ""),
    (Triggers(), {"usage_then": Usage(0, 0.2), "usage_now": Usage(0, 0.3)}, "30 % of the budget is used"),
    (Triggers(), {"usage_then": Usage(0, 0.9), "usage_now": Usage(0, 0.15)}, "15 % of the budget is used"),
    (Triggers(), {"risky": True}, "before a risky step"),
    (QUIET, {"risky": True, "last": at(9), "usage_now": Usage(99, 9.0)}, ""),
    (QUIET, {"last": ""}, ""),
]


@pytest.mark.parametrize(("triggers", "values", "reason"), DUE)
def test_a_checkpoint_is_due(triggers: Triggers, values: dict[str, Any], reason: str) -> None:
    assert due(triggers, **{"last": at(0), "now": at(0), **values}) == reason


@given(st.lists(st.integers(0, 20), max_size=60))
def test_each_tenth_of_a_budget_makes_one_checkpoint(steps: list[int]) -> None:
    used, saved, made = 0, 0, 0
    for step in steps:
        used += step
        if due(Triggers(every=0), at(0), at(0), Usage(0, saved / 1000), Usage(0, used / 1000)):
            saved, made = used, made + 1
    assert made == len({total // 100 for total in _totals(steps)} - {0})


def _totals(steps: list[int]) -> list[int]:
    return [sum(steps[: number + 1]) for number in range(len(steps))]


def test_triggers_and_usage_are_read() -> None:
    assert triggers_from("triggers", None) == Triggers()
    assert triggers_from(
        "triggers", {"every": "1h", "api_calls": "9", "budget_step": "0.25", "risky": "no"}
    ) == Triggers(3600, 9, 0.25, False)
    assert usage_from("usage", {"api_calls": 3, "budget_used": 1.5}) == Usage(3, 1.5)


@pytest.mark.parametrize(
    ("read", "data", "message"),
    [
        (triggers_from, {"evry": 1}, 'triggers: unknown key "evry", did you mean "every"'),
        (triggers_from, {"every": "soon"}, "triggers.every: expected a duration"),
        (triggers_from, {"budget_step": 2}, "triggers.budget_step: expected a part such as 0.1, from 0 to 1"),
        (triggers_from, {"budget_step": 1e-9}, "expected a part"),
        (usage_from, {"budget_used": "much"}, "triggers.budget_used: expected a part"),
        (usage_from, {"budget_used": float("nan")}, "expected a part"),
        (usage_from, {"api_calls": -1}, "expected a number from 0"),
    ],
)
def test_wrong_triggers_are_one_sentence(read: Any, data: Any, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read("triggers", data)
    assert message in caught.value.message


# -- retention --------------------------------------------------------------------------------------------------------


def test_all_are_kept_for_a_week_then_one_a_day_then_one_a_week() -> None:
    items = [one(hours / 24) for hours in range(0, 24 * 220, 6)]
    gone = names(surplus(items, at(0)))
    kept = [item for item in items if item.name not in gone]
    ages = [(NOW - moment(item.created)).total_seconds() / DAY for item in kept]  # type: ignore[operator]
    assert sum(age <= 7 for age in ages) == 29
    assert sum(7 < age <= 30 for age in ages) in (23, 24)
    assert sum(30 < age <= 183 for age in ages) in (22, 23)
    assert max(ages) <= 183


def test_the_hub_keeps_its_daily_ones_for_a_year() -> None:
    items = [one(days, "hub_daily") for days in range(400)]
    gone = names(surplus(items, at(0)))
    ages = [(NOW - moment(item.created)).days for item in items if item.name not in gone]  # type: ignore[operator]
    assert ages[:31] == list(range(31))
    assert len(ages[31:]) in (48, 49)
    assert max(ages) <= 365


def test_what_must_stay_stays_however_old() -> None:
    items = [
        one(900, "genesis"),
        one(800, "final"),
        one(700, "manual"),
        one(600, name="current"),
        one(500, name="pinned"),
        one(400, name="goes"),
        replace(one(300, name="undated"), created=""),
        one(290, name="newest"),
    ]
    assert names(surplus(items, at(0), current="current", pinned={"pinned"})) == {"goes"}
    by_hand = Retention(kinds=("automatic", "manual"))
    assert names(surplus(items, at(0), by_hand, current="current", pinned={"pinned"})) == {"goes", "c700"}


def test_a_parent_stays_where_the_provider_needs_it() -> None:
    items = [
        one(400, name="a"),
        one(390, name="b", parent="a"),
        one(380, name="side", parent="a"),
        one(1, name="c", parent="b"),
    ]
    assert names(surplus(items, at(0))) == {"a", "b", "side"}
    assert names(surplus(items, at(0), chained=True)) == {"side"}
    circle = [replace(one(400, name="a"), parent="b"), replace(one(399, name="b"), parent="a"), one(0, parent="a")]
    assert surplus(circle, at(0), chained=True) == ()


AGES = st.lists(st.floats(0, 400, allow_nan=False), max_size=60)


@given(AGES, st.sampled_from(["automatic", "hub_daily"]))
def test_pruning_twice_is_pruning_once_and_no_stretch_is_left_empty(ages: list[float], kind: str) -> None:
    items = [replace(one(age, kind), name=f"n{number}") for number, age in enumerate(ages)]
    gone = names(surplus(items, at(0)))
    kept = [item for item in items if item.name not in gone]
    assert surplus(kept, at(0)) == ()
    policy = Retention().hub if kind == "hub_daily" else Retention().machine
    for item in items:
        when = moment(item.created)
        assert when is not None
        if (NOW - when).total_seconds() <= policy.weekly:
            near = [moment(other.created) for other in kept]
            assert any(other is not None and other.isocalendar()[:2] == when.isocalendar()[:2] for other in near)


@given(st.lists(st.integers(0, 24 * 300), max_size=80, unique=True))
def test_pruning_every_day_leaves_one_of_each_week(hours: list[int]) -> None:
    """However often it runs, what is left covers as much as if it had run once, at the end."""
    made = [replace(one(hour / 24), name=f"n{hour}") for hour in hours]
    there: list[Checkpoint] = []
    for day in range(300, -1, -1):
        there = [
            *there,
            *(item for item in made if day <= (NOW - moment(item.created)).total_seconds() / DAY < day + 1),  # type: ignore[operator]
        ]
        there = [item for item in there if item.name not in names(surplus(there, at(day)))]
    weeks = {moment(item.created).isocalendar()[:2] for item in there}  # type: ignore[union-attr]
    for item in made:
        when = moment(item.created)
        assert when is not None
        if (NOW - when).total_seconds() <= 176 * DAY:
            assert when.isocalendar()[:2] in weeks


def test_a_retention_is_read() -> None:
    assert retention_from("retention", None) == Retention()
    found = retention_from("retention", {"machine": {"all": "1d", "weekly": 0}, "kinds": ["manual"]})
    assert found == Retention(Policy(DAY, 30 * DAY, 0), Retention().hub, ("manual",))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"kinds": ["genesis"]}, "retention.kinds: expected some of automatic, manual, hub_daily"),
        ({"machine": {"all": "long"}}, "retention.machine.all: expected a duration"),
        ({"machines": {}}, 'did you mean "machine"'),
        ({"hub": 5}, "retention.hub: expected a mapping"),
    ],
)
def test_a_wrong_retention_is_one_sentence(data: Any, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        retention_from("retention", data)
    assert message in caught.value.message
