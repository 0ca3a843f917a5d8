# SPDX-License-Identifier: GPL-3.0-or-later
"""The state that steering clients see, kept up to date with fleetd: only what an event names is asked for again."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from fleet_core.agents import AgentDefinition, agent_definition
from fleet_core.errors import NotFound

from ..connection import Connection
from . import messages

_ITERATIONS = 20  # of a run
_TALKED = 5  # iterations with their messages: a client shows four and the one that is running
_MESSAGES = 200  # of an iteration
_LONGEST = 4000  # characters of a message
_KEPT = 200  # finished iterations whose messages are remembered


class Snapshot:
    """All agents as the protocol shows them."""

    def __init__(self) -> None:
        self.definitions: dict[str, AgentDefinition] = {}
        self._objects: dict[str, dict[str, Any]] = {}
        self._steps: dict[str, str] = {}
        self._runs: dict[str, dict[str, Any]] = {}
        self._revisions: dict[str, tuple[int, list[dict[str, Any]]]] = {}
        self._talk: OrderedDict[int, list[dict[str, Any]]] = OrderedDict()

    async def refresh(self, connection: Connection, names: set[str] | None = None) -> None:
        """Ask fleetd for all agents, or for those of these names. Raises what fleetd answers."""
        if names is None:
            views = (await connection.call("agents.list"))["agents"]
            self._forget(set(self._objects) - {view["name"] for view in views})
        else:
            views = await self._views(connection, sorted(names))
        for view in views:
            await self._take(connection, view)

    async def _views(self, connection: Connection, names: list[str]) -> list[dict[str, Any]]:
        """Return the agents of these names that there are."""
        try:
            return list((await connection.call("agents.list", names=names))["agents"])
        except NotFound:
            if len(names) == 1:
                self._forget(set(names))
                return []
        return [view for name in names for view in await self._views(connection, [name])]

    def _forget(self, names: set[str]) -> None:
        for known in (self.definitions, self._objects, self._runs, self._revisions, self._steps):
            for name in names:
                known.pop(name, None)

    async def _take(self, connection: Connection, view: dict[str, Any]) -> None:
        name = view["name"]
        if self._revisions.get(name, (0, []))[0] != view["revision"]:
            rows = (await connection.call("agents.revisions", name=name))["revisions"]
            self._revisions[name] = (rows[-1]["number"], [messages.revision(row) for row in rows])
            self.definitions[name] = agent_definition(rows[-1]["definition"])
        revisions = self._revisions[name][1]
        self._objects[name] = messages.cluster_object(view, revisions)
        if view.get("run"):
            self._runs[name] = await self._run(connection, view["run"], revisions)
        else:
            self._runs.pop(name, None)

    async def _run(
        self, connection: Connection, run: dict[str, Any], revisions: list[dict[str, Any]]
    ) -> dict[str, Any]:
        name = run["agent"]
        rows = (await connection.call("agents.iterations", name=name, run=run["id"], limit=_ITERATIONS))["iterations"]
        self._steps[name] = rows[0]["step"] if rows else ""
        done, live = [], None
        for number, row in enumerate(rows):
            talk = await self._spoken(connection, row) if number < _TALKED else []
            if row["state"] == "running":
                live = live or messages.iteration(row, talk)
            else:
                done.append(messages.iteration(row, talk))
        at = min(int(run["revision"]), len(revisions)) - 1
        found = {
            "name": name,
            "revision_id": revisions[at]["id"],
            "started_at": messages.moment(run["started"]),
            "iterations": done[::-1],
        }
        return {**found, "live_iter": live} if live else found

    async def _spoken(self, connection: Connection, row: dict[str, Any]) -> list[dict[str, Any]]:
        if row["id"] in self._talk:
            return self._talk[row["id"]]
        rows = (
            await connection.call(
                "agents.messages", name=row["agent"], iteration=row["id"], before=2**62, limit=_MESSAGES
            )
        )["messages"]
        found = [item for item in (messages.spoken(entry, _LONGEST) for entry in rows) if item]
        if row["state"] != "running":
            self._talk[row["id"]] = found
            while len(self._talk) > _KEPT:
                self._talk.popitem(last=False)
        return found

    def coming_step(self, name: str, given: str) -> str:
        """Return the label of the step that a client means, by its label or its method, or an empty string.

        A step that the run has left counts for nothing: a message for it would wait for ever.
        """
        definition = self.definitions.get(name)
        steps = definition.pipeline if definition is not None else ()
        at = next((number for number, step in enumerate(steps) if given in (step.label, step.method)), -1)
        now = next((number for number, step in enumerate(steps) if step.label == self._steps.get(name)), 0)
        return steps[at].label if at >= now else ""

    def line(self) -> bytes:
        """Return the state as a message. What is too much for a client is left out of it, the oldest first."""
        runs = dict(self._runs)
        while True:
            objects = [self._objects[name] for name in sorted(self._objects)]
            made = messages.line(messages.STATE, messages.state(objects, runs, self.definitions))
            longest = max((len(run["iterations"]) for run in runs.values()), default=0)
            if len(made) <= messages.LONGEST_STATE or not _shorten(runs, longest):
                return made


def _shorten(runs: dict[str, dict[str, Any]], longest: int) -> bool:
    """Halve the iterations of the runs that have most, then the messages of what runs; tell whether any could be."""
    changed = False
    for name, run in runs.items():
        if longest and len(run["iterations"]) == longest:
            runs[name] = {**run, "iterations": run["iterations"][(longest + 1) // 2 :]}
            changed = True
        elif not longest and run.get("live_iter", {}).get("messages"):
            live = run["live_iter"]
            spoken = live["messages"]
            runs[name] = {**run, "live_iter": {**live, "messages": spoken[(len(spoken) + 1) // 2 :]}}
            changed = True
    return changed
