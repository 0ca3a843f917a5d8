# SPDX-License-Identifier: GPL-3.0-or-later
"""What clients see of agents: what is wanted, what the process does and what the run has recorded, as one state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fleet_core import lifecycle as life
from fleet_core.agents import AgentDefinition
from fleet_node.agent_history import UNFINISHED

AWAKE = ("starting", "running", "paused", "waiting")
STATES = ("stopped", "starting", "running", "paused", "waiting", "completed", "failed", "limited", "stopping")


@dataclass(frozen=True)
class ProcessFacts:
    """What the engine knows of the process of an agent. started: seconds since the epoch. id: "" if there is none."""

    id: str = ""
    state: str = life.STOPPED
    pid: int = 0
    started: float = 0.0
    error: str = ""

    @property
    def wanted(self) -> bool:
        """It runs, or is about to."""
        return self.state in life.WANTED


def state_of(process: ProcessFacts, run: Mapping[str, Any] | None) -> str:
    """Return the state of an agent. run: its newest one, as the store has it; it may be of an earlier process."""
    if process.state == life.STOPPING:
        return "stopping"
    if process.state == life.STARTING:
        return "starting"
    if process.state == life.BACKOFF:
        return "waiting"
    if process.state == life.ERROR:
        return "failed"
    if run is None:
        return "starting" if process.wanted else "stopped"
    recorded = str(run["state"])
    if process.wanted:
        stale = recorded not in UNFINISHED and float(run["finished"] or 0.0) < process.started
        return "starting" if stale else recorded
    return "stopped" if recorded in UNFINISHED else recorded


def error_of(process: ProcessFacts, run: Mapping[str, Any] | None) -> str:
    """Return the sentence that says what is wrong, or an empty string."""
    if process.state in (life.ERROR, life.BACKOFF):
        return process.error
    if run is not None and state_of(process, run) == "failed":
        return str(run["reason"])
    return ""


def view(
    agent: Mapping[str, Any],
    definition: AgentDefinition,
    process: ProcessFacts,
    run: Mapping[str, Any] | None,
    steps: Mapping[str, Mapping[str, Any]],
    queued: int,
) -> dict[str, Any]:
    """Return one agent as plain data. agent, run: rows of the store. steps: what it counted for each step."""
    none: Mapping[str, Any] = {"iterations": 0, "last": None}
    return {
        "name": agent["name"],
        "state": state_of(process, run),
        "description": definition.description,
        "runner": definition.runner,
        "model": definition.model,
        "revision": agent["revision"],
        "id": agent["id"],
        "legacy_id": agent["legacy_id"],
        "desired": agent["desired"],
        "process": process.id,
        "pid": process.pid,
        "run": dict(run) if run is not None else None,
        "steps": [
            {"label": step.label, "kind": step.kind, "method": step.method, **(steps.get(step.label) or none)}
            for step in definition.pipeline
        ],
        "queued": queued,
        "next_run": agent["next_run"],
        "error": error_of(process, run),
        "created": agent["created"],
        "updated": agent["updated"],
    }
