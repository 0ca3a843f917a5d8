# SPDX-License-Identifier: GPL-3.0-or-later
"""What subscribers hear of agents: what run processes report, what is asked of agents, and how their state changes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fleet_core.errors import FleetError, InvalidInput
from fleet_core.names import describe
from fleet_node.agents import AgentStore

from .agent_views import ProcessFacts, state_of
from .records import Records

KINDS = ("run", "iteration", "message", "injection")  # that a run process may report


class AgentEvents:
    """Tells events, and remembers of each agent the state that it told last."""

    def __init__(self, store: AgentStore, process_facts: Callable[[str], ProcessFacts], records: Records) -> None:
        self._store = store
        self._process_facts = process_facts
        self._records = records
        self._told: dict[str, str] = {}
        self._waiting: set[str] = set()
        self._task: asyncio.Task[None] | None = None
        self._removals = 0

    async def load(self) -> None:
        """Take the states of now as told."""
        self._told = {name: state for name, (state, _revision) in (await self.states()).items()}
        self._records.on_event.append(self._heard)

    async def close(self) -> None:
        """Tell nothing more."""
        with contextlib.suppress(ValueError):
            self._records.on_event.remove(self._heard)
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    # Telling

    def publish(self, kind: str, row: Mapping[str, Any]) -> None:
        """Tell every subscriber of a row."""
        self._records.tell({**row, "time": row.get("time") or time.time(), "kind": kind})

    def control(self, name: str, what: str, **facts: Any) -> None:
        """Tell the run process of an agent that something was asked: injection, desired, interrupt or revision."""
        self.publish("control", {"agent": name, "what": what, **facts})

    def report(self, agent: str, events: Any) -> None:
        """Tell what a run process reports, as it is. Raises InvalidInput, telling none, if one is no event."""
        if not isinstance(events, list):
            raise InvalidInput(f"events: expected a list, found {describe(events)}")
        for event in events:
            if not isinstance(event, Mapping) or event.get("kind") not in KINDS:
                raise InvalidInput(f"events: expected objects of a kind {', '.join(KINDS)}, found {describe(event)}")
        for event in events:
            self._records.tell({"time": time.time(), **event, "agent": agent})
        if any(event["kind"] == "run" for event in events):
            self.look([agent])

    def removed(self, names: Iterable[str]) -> None:
        """Tell that agents are no more."""
        self._removals += 1
        for name in names:
            self._waiting.discard(name)
            previous = self._told.pop(name, "stopped")
            self.publish("agent", {"agent": name, "state": "absent", "previous": previous, "revision": 0})

    # States

    def look(self, names: Iterable[str]) -> None:
        """Work out the state of agents soon, and tell those that have changed."""
        self._waiting.update(names)
        if self._waiting and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._look())

    async def counts(self) -> dict[str, int]:
        """Return how many agents are in which state."""
        return dict(Counter(state for state, _revision in (await self.states()).values()))

    def _heard(self, event: Mapping[str, Any]) -> None:
        environment, _slash, name = str(event.get("id") or "").partition("/")
        if event["kind"] == "process" and environment == "agents" and name:
            self.look([name])

    async def _look(self) -> None:
        while self._waiting:
            names, self._waiting = sorted(self._waiting), set()
            removals = self._removals
            try:
                states = await self.states(names)
            except FleetError:  # the next change, or the next request, says what is wrong with the database
                return
            if removals != self._removals:  # one of them may be gone by now
                self._waiting.update(names)
                continue
            for name, (state, revision) in states.items():
                previous = self._told.get(name, "")
                if state != previous:
                    self._told[name] = state
                    self.publish("agent", {"agent": name, "state": state, "previous": previous, "revision": revision})

    async def states(self, names: Iterable[str] | None = None) -> dict[str, tuple[str, int]]:
        """Return state and revision of agents, all or those of the names that exist."""
        wanted = None if names is None else list(names)

        def read() -> tuple[dict[str, Any], dict[str, Any]]:
            return self._store.agents(wanted), self._store.last_runs(wanted)

        rows, runs = await asyncio.to_thread(read)
        return {
            name: (state_of(self._process_facts(name), runs.get(name)), row["revision"]) for name, row in rows.items()
        }
