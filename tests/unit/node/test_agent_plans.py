# SPDX-License-Identifier: GPL-3.0-or-later
"""What a request on agents would change, before anything is done."""

from __future__ import annotations

from typing import Any

import pytest

from autovibe_fleet.node.agent_plans import Known, plan, resolve
from fleet_core.agents import AgentDefinition, agent_definition
from fleet_core.errors import InvalidInput, NotFound


def item(name: str = "a", body: str = "Build it.") -> dict[str, Any]:
    return {"name": name, "runner": "command", "command": "cat", "methods": {"build": body}}


def definition(body: str = "Build it.") -> AgentDefinition:
    return agent_definition(item(body=body))


OLD, NEW = definition("old"), definition("new")
RUNNING = Known(OLD, "running", alive=True)
PAUSED = Known(OLD, "paused", alive=True)
DONE = Known(OLD, "running", done=True)
FAILED = Known(OLD, "running")
STOPPED = Known(OLD)
ARMED = Known(OLD, scheduled=True)


@pytest.mark.parametrize(
    ("known", "given", "state", "actions"),
    [
        (None, NEW, "present", ["create agent a"]),
        (None, NEW, "running", ["create agent a", "start agent a"]),
        (None, NEW, "stopped", ["create agent a"]),
        (None, None, "absent", []),
        (STOPPED, OLD, "present", []),
        (STOPPED, NEW, "present", ["update agent a"]),
        (STOPPED, OLD, "running", ["start agent a"]),
        (STOPPED, None, "running", ["start agent a"]),
        (STOPPED, OLD, "stopped", []),
        (STOPPED, None, "absent", ["remove agent a"]),
        (RUNNING, OLD, "running", []),
        (RUNNING, NEW, "running", ["update agent a"]),
        (RUNNING, NEW, "present", ["update agent a"]),
        (RUNNING, None, "stopped", ["stop agent a"]),
        (RUNNING, None, "absent", ["stop agent a", "remove agent a"]),
        (PAUSED, OLD, "running", ["resume agent a"]),
        (PAUSED, OLD, "present", []),
        (DONE, OLD, "running", []),
        (DONE, NEW, "running", ["update agent a", "start agent a"]),
        (DONE, NEW, "present", ["update agent a"]),
        (DONE, None, "stopped", ["stop agent a"]),
        (FAILED, OLD, "running", ["start agent a"]),
        (ARMED, None, "stopped", ["stop agent a"]),
    ],
)
def test_what_a_request_does(
    known: Known | None, given: AgentDefinition | None, state: str, actions: list[str]
) -> None:
    found = plan([("a", given)], state, {"a": known} if known else {})
    assert list(found.change.actions) == actions
    assert found.change.changed == bool(actions)
    assert bool(found.start) == any(action.startswith(("start", "resume")) for action in actions)


def test_before_and_after_are_the_definitions_with_their_state() -> None:
    change = plan([("a", NEW)], "running", {"a": STOPPED}).change
    assert change.before == {"a": {**OLD.to_dict(), "state": "stopped"}}
    assert change.after == {"a": {**NEW.to_dict(), "state": "running"}}
    assert plan([("a", None)], "absent", {"a": RUNNING}).change.after == {}


def test_the_summary_tells_what_became_of_definitions() -> None:
    known = {"b": Known(definition("x")), "c": STOPPED}
    found = plan([("a", NEW), ("b", NEW), ("c", None)], "present", known)
    assert found.summary == {"created": ["a"], "updated": ["b"], "unchanged": ["c"], "removed": []}


@pytest.mark.parametrize(
    ("items", "state", "error", "message"),
    [
        ([item()], "asleep", InvalidInput, "expected present, running, stopped, absent"),
        ([item(), item()], "present", InvalidInput, "stands twice"),
        ([{"name": "bilder"}], "running", NotFound, "builder"),
        ([{"runner": "claude"}], "present", InvalidInput, "name"),
        ([item(), {**item("b"), "colour": "red"}], "present", InvalidInput, "colour"),
    ],
)
def test_a_bad_item_stops_the_whole_request(items: Any, state: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        resolve(items, state, ["builder"])
