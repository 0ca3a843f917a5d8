# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs of which fleetd writes something itself: their beginning, and the end of those whose process is gone."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable
from typing import Any

from fleet_core.errors import Conflict
from fleet_node import procfs
from fleet_node.agents import AgentStore

TOKEN = "FLEET_ITERATION"  # the variable that all processes of an iteration carry


def begin_runs(store: AgentStore, agents: Iterable[str]) -> list[dict[str, Any]]:
    """Begin a run of each agent that has none to go on with, and return the new ones.

    A run process begins none itself: one that is started again because nobody saw how it ended has nothing to do.
    """
    with store.transaction():
        return [
            store.run(store.begin_run(name, store.agent(name)["revision"]))
            for name in agents
            if store.unfinished_run(name) is None
        ]


def begun_runs(store: AgentStore) -> list[str]:
    """Return the agents that are to run and have a run to go on with."""
    return [
        name
        for name, row in store.agents().items()
        if row["desired"] == "running" and store.unfinished_run(name) is not None
    ]


def reopen(store: AgentStore, agents: Iterable[str]) -> None:
    """Make the last runs of agents go on, all or none. Raises Conflict where there is none, or it was completed."""
    with store.transaction():
        for agent in agents:
            runs = store.runs(agent, 1)
            if not runs:
                raise Conflict(f'agent "{agent}": has no run to go on with')
            if runs[0]["state"] == "completed":
                raise Conflict(f'agent "{agent}": its last run, {runs[0]["id"]}, was completed; start it again instead')
            if runs[0]["finished"] is not None:
                store.update_run(runs[0]["id"], state="running", reason="")


def abandon(store: AgentStore, agent: str, reason: str) -> None:
    """End the unfinished run of an agent as stopped, and whatever of its last iteration still runs.

    For an agent whose run process does not run.
    """
    run = store.unfinished_run(agent)
    if run is None:
        return
    running = [row for row in store.iterations(agent, run=run["id"], limit=1000) if row["state"] == "running"]
    for row in running:
        for pid in procfs.find_by_environment(TOKEN, row["token"]) if row["token"] else ():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
    with store.transaction():
        for row in running:
            store.end_iteration(row["id"], "interrupted", reason=reason)
        store.update_run(run["id"], state="stopped", reason=reason)
