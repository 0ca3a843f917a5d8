# SPDX-License-Identifier: GPL-3.0-or-later
"""Agents in the state as human-readable JSON: export and import of their definitions, with all revisions.

Runs, messages and steering messages are not part of it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fleet_core import gcluster_state
    from fleet_core.agent_forms import legacy_id
    from fleet_core.agents import AgentDefinition, agent_definition
    from fleet_core.errors import Conflict, InvalidInput
    from fleet_core.names import describe
else:
    try:
        from ..fleet_core import gcluster_state
        from ..fleet_core.agent_forms import legacy_id
        from ..fleet_core.agents import AgentDefinition, agent_definition
        from ..fleet_core.errors import Conflict, InvalidInput
        from ..fleet_core.names import describe
    except ImportError:  # installed as a top-level package
        from fleet_core import gcluster_state
        from fleet_core.agent_forms import legacy_id
        from fleet_core.agents import AgentDefinition, agent_definition
        from fleet_core.errors import Conflict, InvalidInput
        from fleet_core.names import describe

from . import paths
from .agents import ORIGINS, AgentStore


@dataclass(frozen=True)
class AgentHistory:
    """An agent as an import writes it: stopped, with its revisions (definition, time, origin), oldest first."""

    name: str
    revisions: tuple[tuple[AgentDefinition, float, str], ...]
    current: int
    next_run: float | None = None

    @property
    def shown(self) -> dict[str, Any]:
        """What a person compares."""
        return {**self.revisions[self.current - 1][0].to_dict(), "revisions": len(self.revisions)}


def export(folder: Path) -> dict[str, Any]:
    """Return the agents of a state folder by name, with all revisions. A folder without any gives an empty mapping."""
    if not (folder / paths.AGENTS_DATABASE).exists():
        return {}
    store = AgentStore(folder)
    try:
        return {
            name: {"revision": row["revision"], "next_run": row["next_run"], "revisions": store.revisions(name)}
            for name, row in store.agents().items()
        }
    finally:
        store.close()


def to_gcluster(agents: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what export gave as a state file of gcluster. Every agent is stopped in it."""
    read = [_entry(name, item) for name, item in agents.items()]
    return gcluster_state.write(
        (
            item.name,
            [gcluster_state.Revision(made, at) for made, at, _origin in item.revisions],
            item.current,
            "stopped",
        )
        for item in read
    )


def from_gcluster(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the agents of a state file of gcluster as export gives them."""
    return {
        agent.name: {
            "revision": agent.current,
            "next_run": None,
            "revisions": [
                {"time": revision.time or time.time(), "origin": "import", "definition": revision.definition.to_dict()}
                for revision in agent.revisions
            ],
        }
        for agent in gcluster_state.read(data)
    }


def plan(folder: Path, data: Mapping[str, Any]) -> tuple[AgentHistory, ...]:
    """Return the agents of an export that are not here yet.

    Raises InvalidInput, and Conflict for an agent that is here with another definition. One that came from gcluster
    is here already if gcluster could not tell the two apart.
    """
    wanted = [_entry(name, item) for name, item in data.items()]
    if not wanted:
        return ()
    store = AgentStore(folder)
    try:
        known = store.agents()
    finally:
        store.close()
    found = []
    for item in wanted:
        row = known.get(item.name)
        if row is None:
            found.append(item)
            continue
        definition, _time, origin = item.revisions[item.current - 1]
        same = definition.id == row["id"] or (origin == "import" and legacy_id(definition) == row["legacy_id"])
        if not same:
            raise Conflict(f'agent "{item.name}": exists already with another definition; remove it first')
    return tuple(found)


def write(folder: Path, agents: Iterable[AgentHistory]) -> None:
    """Write agents that are not here yet, all or none."""
    agents = list(agents)
    if not agents:
        return
    store = AgentStore(folder)
    try:
        with store.transaction():
            for item in agents:
                store.import_agent(item.name, item.revisions, item.current)
                if item.next_run is not None:
                    store.set_next_run(item.name, item.next_run)
    finally:
        store.close()


def keep_corrupt(path: str | os.PathLike[str]) -> Path | None:
    """Rename a state file of gcluster that is no JSON to NAME.corrupt, as gcluster does, and return that name.

    Any other file stays as it is, and None is returned.
    """
    found = Path(path)
    if found.parent.name != ".gcluster" or found.name != "state.json":
        return None
    try:
        json.loads(found.read_text(encoding="utf-8"))
    except ValueError:
        kept = found.with_name(f"{found.name}.corrupt")
        os.replace(found, kept)
        return kept
    except OSError:
        return None
    return None


def _entry(name: str, item: object) -> AgentHistory:
    where = f'agent "{name}"'
    if not isinstance(item, Mapping) or not isinstance(item.get("revisions"), list) or not item["revisions"]:
        raise InvalidInput(f"{where}: expected revisions, found {describe(item)}")
    revisions = []
    for number, entry in enumerate(item["revisions"], 1):
        here = f"{where}: revision {number}"
        if not isinstance(entry, Mapping):
            raise InvalidInput(f"{here}: expected an object, found {describe(entry)}")
        definition = agent_definition(entry.get("definition"))
        moment, origin = entry.get("time"), entry.get("origin") or "import"
        if definition.name != name:
            raise InvalidInput(f'{here}: expected a definition of it, found one of "{definition.name}"')
        if isinstance(moment, bool) or not isinstance(moment, (int, float)) or origin not in ORIGINS:
            raise InvalidInput(
                f"{here}: expected a time and an origin of {', '.join(ORIGINS)}, found {describe(entry)}"
            )
        revisions.append((definition, float(moment), str(origin)))
    current, due = item.get("revision", len(revisions)), item.get("next_run")
    if isinstance(current, bool) or not isinstance(current, int) or not 1 <= current <= len(revisions):
        raise InvalidInput(f"{where}: revision: expected 1 to {len(revisions)}, found {describe(current)}")
    if due is not None and (isinstance(due, bool) or not isinstance(due, (int, float))):
        raise InvalidInput(f"{where}: next_run: expected seconds since 1970, found {describe(due)}")
    return AgentHistory(name, tuple(revisions), current, None if due is None else float(due))
