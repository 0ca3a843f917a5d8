# SPDX-License-Identifier: GPL-3.0-or-later
"""How a task list moves on: what starts, what is skipped, how it ends, and what a resumed run does again."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_core.errors import ImpossibleEvent
from fleet_core.task_lists import TaskList, select, task_list
from fleet_core.task_progress import DONE, FAILED, STATES, Next, move, next_ready, outcome, plan, plan_text, resume

# a and b at once, then c, then d; e on its own, and nothing stops when it fails.
LIST = task_list(
    {
        "name": "shop",
        "parallel": 2,
        "tasks": [
            {"name": "a", "run": "true"},
            {"name": "b", "run": "true", "timeout": "20m"},
            {"name": "c", "run": "true", "needs": ["a", "b"]},
            {"name": "d", "run": "true", "needs": ["c"]},
            {"name": "e", "run": "true", "on_failure": "continue"},
        ],
    }
)
AFTER_A = {"c": 'it needs "a"', "d": 'it needs "c"'}
ALL = dict.fromkeys("abcde", "succeeded")


@pytest.mark.parametrize(
    ("states", "stopping", "expected"),
    [
        ({}, "", Next(("a", "b"))),
        ({"a": "running"}, "", Next(("b",))),
        ({"a": "running", "b": "running"}, "", Next()),
        ({"a": "succeeded"}, "", Next(("b", "e"))),
        ({"a": "succeeded", "b": "unchanged"}, "", Next(("c", "e"))),
        ({**ALL, "d": "pending"}, "", Next(("d",))),
        (ALL, "", Next(done=True)),
        ({**ALL, "e": "running"}, "", Next()),
        # on_failure: stop
        ({"a": "failed"}, "", Next((), {**AFTER_A, "b": '"a" failed', "e": '"a" failed'}, True)),
        ({"a": "failed", "b": "running"}, "", Next((), {**AFTER_A, "e": '"a" failed'}, False)),
        # on_failure: continue
        ({"e": "failed"}, "", Next(("a", "b"))),
        # stopped by somebody
        ({}, "a signal", Next((), {**AFTER_A, "a": "a signal", "b": "a signal", "e": "a signal"}, True)),
        ({"a": "interrupted"}, "", Next(("b", "e"), AFTER_A, False)),
        ({"a": "skipped", "b": "running"}, "", Next(("e",), AFTER_A, False)),
    ],
)
def test_next_ready(states: dict[str, str], stopping: str, expected: Next) -> None:
    assert next_ready(LIST, states, stopping) == expected


@pytest.mark.parametrize("before", STATES)
@pytest.mark.parametrize("after", STATES)
def test_only_the_moves_of_the_table_are_possible(before: str, after: str) -> None:
    possible = {
        ("pending", "running"), ("pending", "unchanged"), ("pending", "skipped"), ("running", "succeeded"),
        ("running", "unchanged"), ("running", "failed"), ("running", "interrupted"),
    }  # fmt: skip
    if (before, after) in possible:
        assert move({"a": before}, "a", after) == {"a": after}
    else:
        with pytest.raises(ImpossibleEvent, match=f'task "a": cannot go from "{before}" to "{after}"'):
            move({"a": before}, "a", after)


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (["succeeded", "unchanged"], "succeeded"),
        (["succeeded", "failed", "skipped"], "failed"),
        (["failed", "interrupted"], "interrupted"),
        (["succeeded", "running"], "running"),
        (["succeeded", "pending"], "running"),
        (["succeeded", "skipped"], "failed"),
    ],
)
def test_outcome(states: list[str], expected: str) -> None:
    assert outcome(dict(enumerate(states))) == expected  # type: ignore[arg-type]


def changed(**tasks: dict[str, Any]) -> TaskList:
    data = LIST.to_dict()
    data["tasks"] = [{**item, **tasks.get(item["name"], {})} for item in data["tasks"]]
    return task_list(data)


FAILED_AT_C = {"a": "succeeded", "b": "unchanged", "c": "failed", "d": "skipped", "e": "succeeded"}


@pytest.mark.parametrize(
    ("found", "states", "keep", "notes"),
    [
        (LIST, FAILED_AT_C, "abe", ()),
        (LIST, ALL, "abcde", ()),
        (LIST, {}, "", ()),
        (LIST, {**ALL, "a": "interrupted"}, "be", ()),  # c and d need a
        (changed(c={"run": "false"}), FAILED_AT_C, "abe", ('task "c" has changed',)),
        (changed(a={"run": "false"}), ALL, "be", ('task "a" has changed',)),
        (select(LIST, ["a", "e"]), ALL, "ae", ('task "b" is gone', 'task "c" is gone', 'task "d" is gone')),
    ],
)
def test_resume_keeps_what_is_done_and_the_same(
    found: TaskList, states: dict[str, str], keep: str, notes: tuple[str, ...]
) -> None:
    todo = resume(found, LIST, states)
    assert "".join(todo.keep) == keep
    assert set(todo.run) == set(found.names) - set(keep)
    assert todo.notes == notes


def test_resume_runs_new_tasks() -> None:
    todo = resume(LIST, select(LIST, ["a", "b"]), {"a": "succeeded", "b": "succeeded"})
    assert todo.keep == ("a", "b")
    assert todo.notes[:1] == ('task "c" is new',)


def test_the_plan_says_in_which_order() -> None:
    found = plan(LIST, ("a",))
    assert found["steps"] == [["a", "b", "e"], ["c"], ["d"]]
    assert [(item["name"], item["step"], item["action"]) for item in found["tasks"]] == [
        ("a", 1, "keep"), ("b", 1, "run"), ("c", 2, "run"), ("d", 3, "run"), ("e", 1, "run"),
    ]  # fmt: skip
    assert plan_text(LIST, ("a",)).splitlines() == [
        "shop: 5 tasks, at most 2 at once",
        "  1. a  true (done before)",
        "     b  true  [at most 20m]",
        "     e  true  [others go on if it fails]",
        "  2. c  true  [after a, b]",
        "  3. d  true  [after c]",
    ]


@st.composite
def lists(draw: st.DrawFn) -> TaskList:
    count = draw(st.integers(1, 9))
    items = []
    for number in range(count):
        needs = draw(st.lists(st.integers(0, number - 1), max_size=3)) if number else []
        items.append(
            {
                "name": f"t{number}",
                "run": "true",
                "needs": [f"t{needed}" for needed in needs],
                "on_failure": draw(st.sampled_from(["stop", "continue"])),
            }
        )
    return task_list({"parallel": draw(st.integers(1, 4)), "tasks": draw(st.permutations(items))})


@given(lists(), st.integers())
def test_every_list_comes_to_an_end_in_order_and_within_its_limits(found: TaskList, seed: int) -> None:
    chance = random.Random(seed)
    states = dict.fromkeys(found.names, "pending")
    for _round in range(100):
        step = next_ready(found, states)
        for name in step.skip:
            states = move(states, name, "skipped")
        for name in step.start:
            assert all(states[needed] in DONE for needed in found.task(name).needs)
            states = move(states, name, "running")
        running = [name for name, state in states.items() if state == "running"]
        assert len(running) <= found.parallel
        if step.done:
            break
        assert running  # or it would wait for ever
        name = chance.choice(running)
        states = move(states, name, chance.choice(["succeeded", "succeeded", "failed"]))
    assert not set(states.values()) & {"pending", "running"}
    ended = outcome(states)
    assert (ended == "succeeded") == all(state in DONE for state in states.values())
    # Whatever was skipped has a reason: something failed.
    assert "skipped" not in states.values() or "failed" in states.values()
    todo = resume(found, found, states)
    assert set(todo.run) == {name for name, state in states.items() if state in FAILED}


def test_a_thousand_tasks_are_decided_on_quickly() -> None:
    items = [
        {"name": f"t{number}", "run": "true", "needs": [f"t{number - 1}"] if number else []} for number in range(1000)
    ]
    found = task_list({"tasks": items})
    states = dict.fromkeys(found.names, "pending")
    begun = time.process_time()
    while not (step := next_ready(found, states)).done:
        for name in step.start:
            states = move(move(states, name, "running"), name, "succeeded")
    assert resume(found, found, states).run == ()
    assert time.process_time() - begun < 30  # one look at all pairs in every step would take minutes
