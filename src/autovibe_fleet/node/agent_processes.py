# SPDX-License-Identifier: GPL-3.0-or-later
"""The processes that carry the runs of agents, as fleetd declares them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from fleet_core.agents import AgentDefinition
from fleet_core.errors import FleetError, InvalidInput
from fleet_core.processes import ProcessSpec, process_spec

from .engine import Engine
from .environments import RESERVED

STOP_TIMEOUT = 30.0  # seconds that a run process has to end its runner and write what became of it


def process_id(name: str) -> str:
    """Return the id of the process that carries the runs of an agent."""
    return f"{RESERVED}/{name}"


def process_of(definition: AgentDefinition) -> ProcessSpec:
    """Return the process that carries the runs of an agent."""
    return process_spec(
        {
            "id": process_id(definition.name),
            "command": f"${{python}} -m autovibe_fleet.agents.run {definition.name}",
            "label": definition.description.partition("\n")[0],
            "working_dir": "${state_dir}",
            "env": {
                **{name: value.replace("%", "%%").replace("${", "$${") for name, value in definition.env.items()},
                "FLEET_STATE_DIR": "${state_dir}",
            },
            "env_files": [path.replace("%", "%%").replace("${", "$${") for path in definition.env_files],
            "restart": {"policy": "on-failure", "delay": 1, "max_delay": 60, "jitter": 0.2},
            "stop_timeout": STOP_TIMEOUT,
        }
    )


def agents_of(items: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the agents whose processes are among the items of a request on processes."""
    ids = [item.get("id") for item in items]
    return [ident[len(RESERVED) + 1 :] for ident in ids if isinstance(ident, str) and ident.startswith(f"{RESERVED}/")]


async def end_strays(engine: Engine, known: Collection[str], complain: Callable[..., None]) -> None:
    """End run processes without an agent: its database was lost, so nobody could see or steer what they do."""
    names = [name for name in agents_of({"id": ident} for ident in engine.processes) if name not in known]
    if not names or RESERVED in engine.projects:
        return
    complain(f"agents {', '.join(names)}: are not known any more; the processes of their runs are ended")
    try:
        await engine.apply([{"id": process_id(name)} for name in names], "absent")
    except FleetError as error:
        complain(f"agents: {error}")


def refuse_reserved(items: Iterable[Mapping[str, Any]], state: str) -> None:
    """Raise InvalidInput for a request to declare or start a process that belongs to an agent."""
    names = agents_of(items) if state not in ("stopped", "absent") else []
    if names:
        raise InvalidInput(
            f'process "{process_id(names[0])}": the environment "{RESERVED}" is kept for agents; '
            f"use `fleet run {names[0]}`"
        )
