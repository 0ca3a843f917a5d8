# SPDX-License-Identifier: GPL-3.0-or-later
"""What a request means for the agents of this host: resolved and compared first, applied second."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fleet_core.agents import AgentDefinition, agent_definition
from fleet_core.changes import Change
from fleet_core.errors import InvalidInput
from fleet_core.names import check_name
from fleet_node.agents import unknown

STATES = ("present", "running", "stopped", "absent")

Resolved = Sequence[tuple[str, "AgentDefinition | None"]]


@dataclass(frozen=True)
class Known:
    """An agent as it is. alive: its process runs or is about to. done: it ran to its end and nobody asked again."""

    definition: AgentDefinition
    desired: str = "stopped"
    alive: bool = False
    done: bool = False
    scheduled: bool = False

    @property
    def shown(self) -> dict[str, Any]:
        """What a person compares."""
        return {**self.definition.to_dict(), "state": self.state}

    @property
    def state(self) -> str:
        if self.alive and self.desired == "paused":
            return "paused"
        return "running" if self.desired != "stopped" and (self.alive or self.done) else "stopped"


@dataclass(frozen=True)
class Plan:
    """The change, and what becomes of the agents: write their definitions, start, stop or remove them."""

    change: Change
    created: tuple[str, ...] = ()
    updated: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    start: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()

    @property
    def summary(self) -> dict[str, list[str]]:
        """Return the names by what became of their definitions."""
        return {key: list(getattr(self, key)) for key in ("created", "updated", "unchanged", "removed")}


def resolve(items: Iterable[Mapping[str, Any]], state: str, known: Iterable[str]) -> list[tuple[str, Any]]:
    """Return (name, definition) for each item, None where only the name is given.

    items: plain definitions, or {name} alone for an agent that exists. Raises InvalidInput or NotFound for the first
    bad one, so that nothing is done for the others either.
    """
    if state not in STATES:
        raise InvalidInput(f'state: expected {", ".join(STATES)}, found "{state}"')
    names = set(known)
    found: dict[str, AgentDefinition | None] = {}
    for item in items:
        name = check_name("agent", item.get("name"))
        if name in found:
            raise InvalidInput(f'agent "{name}": stands twice in one request')
        given = {key for key, value in item.items() if value is not None and key != "name"}
        if state == "absent" or not given:
            if name not in names and state != "absent":
                raise unknown(name, names)
            found[name] = None
        else:
            found[name] = agent_definition(item)
    return list(found.items())


def edited(definition: AgentDefinition, method: str, body: str) -> AgentDefinition:
    """Return a definition in which a method has another body. Raises NotFound or InvalidInput."""
    definition.method(method)
    methods = {
        item.name: {"parameters": list(item.parameters), "body": body if item.name == method else item.body}
        for item in definition.methods
    }
    return agent_definition({**definition.to_dict(), "methods": methods})


def plan(resolved: Resolved, state: str, known: Mapping[str, Known]) -> Plan:
    """Return what a request changes. known: those of its agents that exist."""
    before: dict[str, Any] = {}
    after: dict[str, Any] = {}
    actions: list[str] = []
    sorted_names: dict[str, list[str]] = {key: [] for key in ("created", "updated", "unchanged", "removed")}
    start, stop = [], []
    for name, definition in resolved:
        was = known.get(name)
        if state == "absent":
            if was is not None:
                sorted_names["removed"].append(name)
                before[name] = was.shown
                actions += [f"stop agent {name}"] * was.alive + [f"remove agent {name}"]
            continue
        wanted = definition or (was.definition if was is not None else None)
        if wanted is None:
            continue
        changed = was is not None and was.definition.id != wanted.id
        kind = "created" if was is None else "updated" if changed else "unchanged"
        sorted_names[kind].append(name)
        steps = [f"{kind[:-1]} agent {name}"] if kind != "unchanged" else []
        will = was.state if was is not None else "stopped"
        if state == "running":
            will = "running"
            if was is None or was.state != "running" or (changed and was.done and not was.alive):
                resumes = was is not None and was.state == "paused"
                steps.append(f"{'resume' if resumes else 'start'} agent {name}")
                start.append(name)
        elif state == "stopped":
            will = "stopped"
            if was is not None and (was.alive or was.desired != "stopped" or was.scheduled):
                steps.append(f"stop agent {name}")
                stop.append(name)
        if steps:
            actions += steps
            if was is not None:
                before[name] = was.shown
            after[name] = {**wanted.to_dict(), "state": will}
    return Plan(
        Change(before, after, tuple(actions)),
        **{key: tuple(names) for key, names in sorted_names.items()},
        start=tuple(start),
        stop=tuple(stop),
    )
