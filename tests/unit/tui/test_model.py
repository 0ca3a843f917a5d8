# SPDX-License-Identifier: GPL-3.0-or-later
"""What is shown of agents, fed by fleetd's answers and events."""

from __future__ import annotations

from typing import Any

import pytest

from autovibe_fleet.tui.model import FIRST, PAGE, Key, Model

STEP = Key("step", "builder", "build")


def iteration(ident: int, state: str = "succeeded", step: str = "build", **facts: Any) -> dict[str, Any]:
    return {"id": ident, "number": ident, "agent": "builder", "step": step, "state": state, **facts}


def view(name: str = "builder", steps: tuple[str, ...] = ("build", "review"), **facts: Any) -> dict[str, Any]:
    told = [{"label": label, "kind": "loop", "method": label, "iterations": 0, "last": None} for label in steps]
    return {"name": name, "state": "stopped", "revision": 1, "run": None, "steps": told, "queued": 0, **facts}


def event(kind: str, row: dict[str, Any]) -> dict[str, Any]:
    return {"agent": "builder", **row, "kind": kind, "time": 1.0}


@pytest.fixture
def model() -> Model:
    found = Model()
    found.take_agents([view(), view("watcher", ("watch",))])
    return found


def shown(model: Model) -> list[str]:
    """The tree as short texts."""
    return [f"{'  ' * line.depth}{line.key.iteration or line.key.step or line.key.agent}" for line in model.lines()]


def test_agents_are_in_order_of_their_names_and_folded_at_first(model: Model) -> None:
    assert shown(model) == ["builder", "watcher"]
    model.fold(Key("agent", "builder"), True)
    assert shown(model) == ["builder", "  build", "  review", "watcher"]


def test_the_last_iterations_are_shown_newest_first_and_more_on_demand(model: Model) -> None:
    model.fold(Key("agent", "builder"), True)
    model.take_iterations("builder", "build", [iteration(ident) for ident in range(60, 10, -1)], asked=PAGE)
    model.agents["builder"].steps["build"].count = 60
    model.fold(STEP, True)
    assert shown(model)[1:8] == ["  build", "    60", "    59", "    58", "    57", "    build", "  review"]
    assert [line.first for line in model.lines()[2:4]] == [True, False]
    assert model.show_more(STEP) is None  # these are loaded
    assert len(model.lines()) == 4 + PAGE + 1
    step = model.show_more(STEP)
    assert step is not None
    model.take_iterations("builder", "build", [iteration(ident) for ident in range(10, 0, -1)], before=11)
    assert len(model.lines()) == 4 + 60
    assert step.complete
    model.fold(STEP, False)
    model.fold(STEP, True)
    assert len(model.lines()) == 4 + FIRST + 1  # short again


def test_a_new_iteration_comes_on_top_and_its_end_replaces_it(model: Model) -> None:
    model.open = {Key("agent", "builder"), STEP}
    model.take_iterations("builder", "build", [iteration(2), iteration(1)])
    assert ("ended", "builder") not in model.event(event("iteration", iteration(3, "running")))
    assert shown(model)[2:5] == ["    3", "    2", "    1"]
    assert ("ended", "builder") in model.event(event("iteration", iteration(3, "failed", reason="timeout")))
    step = model.agents["builder"].steps["build"]
    assert (step.count, step.rows[0]["reason"], len(step.rows)) == (3, "timeout", 3)
    model.event(event("iteration", iteration(3, "failed")))
    assert step.count == 3  # told twice, counted once


def test_an_earlier_iteration_that_changes_keeps_its_place(model: Model) -> None:
    model.take_iterations("builder", "build", [iteration(3, "running"), iteration(2, "running"), iteration(1)])
    model.event(event("iteration", iteration(2, "interrupted")))
    step = model.agents["builder"].steps["build"]
    assert [row["state"] for row in step.rows] == ["running", "interrupted", "succeeded"]
    assert step.newest == 3


def test_a_page_that_is_asked_for_again_brings_what_was_missed(model: Model) -> None:
    model.take_iterations("builder", "build", [iteration(ident) for ident in (3, 2, 1)])
    model.event(event("iteration", iteration(9, "running")))
    model.take_iterations("builder", "build", [iteration(ident) for ident in (8, 7, 6, 5, 4, 3, 2, 1)])
    assert [row["id"] for row in model.agents["builder"].steps["build"].rows] == [9, 8, 7, 6, 5, 4, 3, 2, 1]


def test_a_page_with_a_gap_to_what_is_known_replaces_it_up_to_the_gap(model: Model) -> None:
    model.take_iterations("builder", "build", [iteration(1)])
    model.take_iterations("builder", "build", [iteration(99), iteration(98)], asked=2)
    step = model.agents["builder"].steps["build"]
    assert ([row["id"] for row in step.rows], step.complete) == ([99, 98], False)
    model.take_iterations("builder", "build", [iteration(100), iteration(99)], asked=2)
    assert ([row["id"] for row in step.rows], step.complete) == ([100, 99, 98], False)


def test_an_answer_that_is_older_than_an_event_does_not_undo_it(model: Model) -> None:
    agent = model.agents["builder"]
    running = iteration(1, "running", finished=None)
    model.take_iterations("builder", "build", [running])
    model.event(event("iteration", iteration(1, "failed", finished=9.0)))
    model.take_iterations("builder", "build", [running])
    model.event(event("iteration", running))
    assert agent.steps["build"].rows[0]["state"] == "failed"
    model.event(event("run", {"id": 1, "state": "completed", "updated": 2.0}))
    model.take_agents([view(run={"id": 1, "state": "running", "updated": 1.0})])
    assert agent.run["state"] == "completed"
    model.event(event("injection", injection(1, "delivered", moved=2.0)))
    model.take_injections("builder", [injection(1, "queued", moved=1.0)], live=True)
    assert agent.injections[1]["state"] == "delivered"
    assert agent.view["queued"] == 0


def test_the_search_shows_agents_and_steps_that_bear_the_text(model: Model) -> None:
    model.find("watch")
    assert shown(model) == ["watcher"]
    model.find("REV")
    assert shown(model) == ["builder", "  review"]
    model.find("nothing")
    assert shown(model) == []
    model.find("")
    assert len(shown(model)) == 2


def test_what_is_not_known_yet_is_asked_for(model: Model) -> None:
    assert model.event({**event("agent", {"state": "running"}), "agent": "new"}) == {("stale", "new")}
    assert ("stale", "builder") in model.event(event("agent", {"state": "running", "revision": 2}))
    assert ("stale", "builder") in model.event(event("iteration", iteration(1, step="added")))
    assert ("stale", "builder") in model.event(event("agent", {"state": "absent", "revision": 0}))
    assert model.event(event("control", {"what": "revision"})) == {("stale", "builder")}
    assert model.event(event("process", {"id": "agents/builder"})) == set()


def test_a_removed_agent_is_forgotten_and_others_stay(model: Model) -> None:
    model.forget("builder")
    assert shown(model) == ["watcher"]
    model.take_agents([view()])
    assert shown(model) == ["builder"]


def test_steps_that_a_new_revision_lacks_are_left_out_and_the_others_keep_their_iterations(model: Model) -> None:
    model.take_iterations("builder", "build", [iteration(1)])
    agent = model.agents["builder"]
    agent.revisions = [{"number": 1, "definition": {"methods": {"build": "Build."}}}]
    assert agent.method("build") == {"parameters": [], "body": "Build."}
    model.take_agents([view(steps=("build", "ship"), revision=2)], all_of_them=False)
    assert list(agent.steps) == ["build", "ship"]
    assert len(agent.steps["build"].rows) == 1
    assert agent.revisions == []  # of an earlier state: asked for again


def test_an_earlier_run_does_not_replace_the_newest(model: Model) -> None:
    model.event(event("run", {"id": 7, "state": "running"}))
    model.event(event("run", {"id": 6, "state": "completed"}))
    assert model.agents["builder"].run["id"] == 7


def injection(ident: int, state: str = "queued", **facts: Any) -> dict[str, Any]:
    return {"id": ident, "state": state, "text": "do", "step": "", "iteration": None, "delivered_in": None, **facts}


def test_messages_that_wait_are_counted_as_their_state_changes(model: Model) -> None:
    agent = model.agents["builder"]
    for state, waiting in [("queued", 1), ("queued", 1), ("sent", 1), ("delivered", 0), ("delivered", 0)]:
        model.event(event("injection", injection(5, state)))
        assert agent.view["queued"] == waiting, state
    model.event(event("injection", injection(6, "refused")))
    assert agent.view["queued"] == 0
    agent.view["queued"] = 2
    model.take_injections("builder", [injection(7), injection(8)])  # an answer: they are in the count already
    assert agent.view["queued"] == 2


def test_an_iteration_shows_the_messages_that_concern_it(model: Model) -> None:
    model.take_iterations("builder", "build", [iteration(2, "running"), iteration(1)])
    agent = model.agents["builder"]
    model.take_injections(
        "builder",
        [
            injection(1, "delivered", delivered_in=1),
            injection(2, "refused", iteration=1),
            injection(3, "sent", iteration=2),
            injection(4),
            injection(5, step="build"),
            injection(6, step="review"),
        ],
    )
    assert [row["id"] for row in agent.outbox(iteration(1))] == [1, 2]
    assert [row["id"] for row in agent.outbox(iteration(2))] == [3, 4, 5]


def test_an_event_does_not_cost_more_with_a_long_history(model: Model) -> None:
    """Counted, not timed: the rows that are looked at for the end of the newest iteration."""
    looked = []

    class Counted(dict[str, Any]):
        def __getitem__(self, key: str) -> Any:
            looked.append(key)
            return super().__getitem__(key)

    rows = [Counted(iteration(ident)) for ident in range(10_000, 0, -1)]
    model.take_iterations("builder", "build", rows)
    looked.clear()
    model.event(event("iteration", iteration(10_000, "failed")))
    model.event(event("iteration", iteration(10_001, "running")))
    assert len(looked) < 10
