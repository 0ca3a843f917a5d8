# SPDX-License-Identifier: GPL-3.0-or-later
"""The state file of gcluster (~/.gcluster/state.json): agents as S-expressions, with their revisions.

It names the methods of an agent but holds none of their bodies. So an agent that is read from it cannot work before
its .p file is applied again; what its methods say until then is a note that tells so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from .agent_forms import form, legacy_id, read_form, stored_form
from .agents import AgentDefinition
from .errors import InvalidInput
from .names import describe
from .prompt_agents import agent_from_form

STATES = ("pending", "running", "stopped")
_MISSING = 'The prompt of "{}" is not in the state file of gcluster: apply the .p file of this agent again.'
_TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(?:([Zz])|([+-])(\d\d):(\d\d))"  # RFC 3339, 5.6
)


@dataclass(frozen=True)
class Revision:
    """One definition of an agent. time: seconds since 1970 UTC."""

    definition: AgentDefinition
    time: float


@dataclass(frozen=True)
class GclusterAgent:
    """An agent of the file. revisions: oldest first. current: number of the one in use, from 1. state: of STATES."""

    name: str
    revisions: tuple[Revision, ...]
    current: int
    state: str = "pending"


def is_state(data: object) -> bool:
    """Tell whether plain data has the shape of gcluster's state file."""
    return isinstance(data, Mapping) and isinstance(data.get("objects"), list)


def read(data: Mapping[str, Any], base: Mapping[str, Any] | None = None) -> tuple[GclusterAgent, ...]:
    """Return the agents of a state file. base: further fields of every agent, such as runner (by default claude).

    Raises InvalidInput that names the agent and what is wrong.
    """
    objects = data.get("objects")
    if not isinstance(objects, list):
        raise InvalidInput(f"gcluster state: expected a list of objects, found {describe(objects)}")
    found: dict[str, GclusterAgent] = {}
    for item in objects:
        if not isinstance(item, Mapping) or not isinstance(item.get("name"), str):
            raise InvalidInput(f"gcluster state: expected objects with a name, found {describe(item)}")
        agent = _agent(item, base or {})
        if agent.name in found:
            raise InvalidInput(f'gcluster state: agent "{agent.name}": stands twice')
        found[agent.name] = agent
    return tuple(found.values())


def _agent(item: Mapping[str, Any], base: Mapping[str, Any]) -> GclusterAgent:
    where = f'gcluster state: agent "{item["name"]}"'
    entries = item.get("revisions") or [{"definition": item.get("definition"), "id": item.get("id")}]
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise InvalidInput(f"{where}: expected a list of revisions, found {describe(entries)}")
    revisions = tuple(_revision(f"{where}: revision {number}", entry, base) for number, entry in enumerate(entries, 1))
    for revision in revisions:
        if revision.definition.name != item["name"]:
            raise InvalidInput(f'{where}: expected a definition of it, found one of "{revision.definition.name}"')
    wanted = item.get("current_revision") or item.get("id") or entries[-1].get("id")
    numbers = [number for number, entry in enumerate(entries, 1) if entry.get("id") == wanted]
    if not numbers:
        raise InvalidInput(f"{where}: current_revision: expected the id of a revision, found {describe(wanted)}")
    state = item.get("state") or "pending"
    if state not in STATES:
        raise InvalidInput(f"{where}: state: expected {', '.join(STATES)}, found {describe(state)}")
    return GclusterAgent(str(item["name"]), revisions, numbers[-1], str(state))


def _revision(where: str, entry: Mapping[str, Any], base: Mapping[str, Any]) -> Revision:
    text = entry.get("definition")
    if not isinstance(text, str):
        raise InvalidInput(f"{where}: expected a definition, found {describe(text)}")
    try:
        pipeline = read_form(text).pipeline
        methods = [step.method for step in pipeline.steps] if pipeline is not None else []
        bodies = {name: _MISSING.format(name) for name in methods}
        definition = agent_from_form(text, bodies, base, where)
    except InvalidInput as error:
        raise error if str(error).startswith(where) else InvalidInput(f"{where}: {error}") from None
    return Revision(definition, _seconds(f"{where}: timestamp", entry.get("timestamp")))


def write(agents: Iterable[tuple[str, Sequence[Revision], int, str]]) -> dict[str, Any]:
    """Return a state file of agents: name, revisions (oldest first), number of the current one, state of STATES.

    Revisions that differ in nothing that gcluster knows, such as method bodies, are one there.
    """
    objects = []
    for name, revisions, current, state in agents:
        entries: list[dict[str, str]] = []
        for revision in revisions:
            ident = legacy_id(revision.definition)
            if not entries or entries[-1]["id"] != ident:
                text = stored_form(form(revision.definition))
                entries.append({"id": ident, "timestamp": _timestamp(revision.time), "definition": text})
        used = revisions[current - 1].definition
        objects.append(
            {
                "id": legacy_id(used),
                "name": name,
                "definition": stored_form(form(used)),
                "revisions": entries,
                "state": state,
                "current_revision": legacy_id(used),
            }
        )
    return {"objects": objects}


def _seconds(where: str, text: object) -> float:
    if text in (None, ""):
        return 0.0
    found = _TIME.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise InvalidInput(f"{where}: expected a time such as 2026-01-31T12:00:00Z, found {describe(text)}")
    try:
        year, month, day, hour, minute, second = (int(part) for part in found.groups()[:6])
        moment = datetime(year, month, day, hour, minute, second, tzinfo=timezone.utc)
    except ValueError as error:
        raise InvalidInput(f"{where}: {error}, found {describe(text)}") from None
    if found.group(9):
        offset = timedelta(hours=int(found.group(10)), minutes=int(found.group(11)))
        moment = moment - offset if found.group(9) == "+" else moment + offset
    epoch = datetime(1970, 1, 1, tzinfo=timezone.utc)
    return max(0.0, (moment - epoch).total_seconds() + float(f"0.{found.group(7) or 0}"))


def _timestamp(seconds: float) -> str:
    moment = datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=seconds)
    return moment.isoformat().replace("+00:00", "Z")
