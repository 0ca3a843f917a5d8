# SPDX-License-Identifier: GPL-3.0-or-later
"""What is said of an agent: one state out of what the process does and what the run has recorded."""

from __future__ import annotations

from typing import Any

import pytest

from autovibe_fleet.node.agent_views import STATES, ProcessFacts, error_of, state_of, view
from fleet_core.agents import agent_definition

STARTED = 100.0


def run(state: str, finished: float | None = None, reason: str = "") -> dict[str, Any]:
    return {"id": 1, "state": state, "finished": finished, "reason": reason}


@pytest.mark.parametrize(
    ("process", "recorded", "expected"),
    [
        # Never started, or between two runs.
        ("stopped", None, "stopped"),
        ("stopped", run("completed", 90), "completed"),
        ("stopped", run("failed", 90), "failed"),
        ("stopped", run("limited", 90), "limited"),
        ("stopped", run("stopped", 90), "stopped"),
        # Its process is gone, whatever the run recorded last.
        ("stopped", run("running"), "stopped"),
        ("stopped", run("paused"), "stopped"),
        ("error", run("running"), "failed"),
        ("error", None, "failed"),
        # It comes up: the run is that of an earlier process, or none yet.
        ("starting", None, "starting"),
        ("starting", run("completed", 90), "starting"),
        ("running", None, "starting"),
        ("running", run("completed", 90), "starting"),
        ("running", run("failed", 99.9), "starting"),
        # It runs.
        ("running", run("running"), "running"),
        ("running", run("paused"), "paused"),
        ("running", run("waiting"), "waiting"),
        ("unhealthy", run("running"), "running"),
        # The run has ended; the process is about to.
        ("running", run("completed", 101), "completed"),
        ("running", run("limited", 101), "limited"),
        # It crashed and will be started again, or is being stopped.
        ("backoff", run("running"), "waiting"),
        ("backoff", None, "waiting"),
        ("stopping", run("running"), "stopping"),
        ("stopping", run("stopped", 101), "stopping"),
    ],
)
def test_one_state_out_of_process_and_run(process: str, recorded: dict[str, Any] | None, expected: str) -> None:
    found = state_of(ProcessFacts("agents/a", process, 7, STARTED), recorded)
    assert found == expected
    assert found in STATES


def test_an_error_is_that_of_the_process_or_of_the_run() -> None:
    crashed = ProcessFacts("agents/a", "backoff", 0, STARTED, 'process "agents/a": ended with exit code 1')
    assert error_of(crashed, run("running")) == 'process "agents/a": ended with exit code 1'
    assert error_of(ProcessFacts(), run("failed", 90, "3 failures in a row")) == "3 failures in a row"
    assert error_of(ProcessFacts(), run("completed", 90, "phrase seen")) == ""
    assert error_of(ProcessFacts("agents/a", "running", 7, STARTED), run("failed", 90, "of before")) == ""


def test_a_view_names_every_step_of_the_pipeline_in_its_order() -> None:
    definition = agent_definition(
        {
            "name": "a",
            "runner": "command",
            "command": "cat",
            "methods": {"plan": "p", "build": "b"},
            "pipeline": [{"call": "plan"}, {"loop": "build", "label": "work"}],
        }
    )
    row = dict.fromkeys(("id", "legacy_id", "revision", "desired", "next_run", "created", "updated"))
    last = {"number": 3}
    found = view({**row, "name": "a"}, definition, ProcessFacts(), None, {"work": {"iterations": 3, "last": last}}, 2)
    assert found["steps"] == [
        {"label": "plan", "kind": "call", "method": "plan", "iterations": 0, "last": None},
        {"label": "work", "kind": "loop", "method": "build", "iterations": 3, "last": last},
    ]
    assert (found["run"], found["queued"], found["process"], found["pid"]) == (None, 2, "", 0)
