# SPDX-License-Identifier: GPL-3.0-or-later
"""Agents on one host: their definitions, and the processes `agents/NAME` that carry their runs.

The truth is the agents database, which the run processes write as well. It is read and written in threads, so that
fleetd's loop stays free. Requests on one agent take turns; all of a request is checked before any of it is done.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from fleet_core import lifecycle as life
from fleet_core.agents import AgentDefinition
from fleet_core.changes import Change
from fleet_core.errors import Conflict, FleetError, InvalidInput
from fleet_node import paths
from fleet_node.agents import AgentStore, unknown

from . import agent_plans
from .agent_events import AgentEvents
from .agent_plans import Known, Plan
from .agent_processes import end_strays, process_id, process_of
from .agent_runs import abandon, begin_runs, begun_runs, reopen
from .agent_schedules import AgentSchedules
from .agent_views import AWAKE, ProcessFacts, state_of, view
from .engine import Engine
from .environments import RESERVED
from .turns import Turns

PATIENCE = 120.0  # seconds for a process to come up
_LINGER = 10.0  # seconds that a process may take to end once its run has

T = TypeVar("T")


class Agents:
    """Every agent of this host. Callers use it from inside the event loop only."""

    def __init__(self, engine: Engine, store: AgentStore, complain: Callable[..., None]) -> None:
        self.engine = engine
        self.store = store
        self._complain = complain
        self.history = AgentStore(store.folder)  # so that a long page of messages keeps no request waiting
        self.events = AgentEvents(self.history, self.process_facts, engine.records)
        self.schedules = AgentSchedules(store, self._scheduled, complain)
        self._turns = Turns()
        self._injecting: dict[str, asyncio.Lock] = {}
        self._definitions: dict[str, tuple[str, AgentDefinition]] = {}
        self._ending: asyncio.Task[None] | None = None

    async def load(self) -> None:
        """Take up what an earlier fleetd knew: states, the next runs of schedules, and what it was about to start."""
        await self.events.load()
        await self.schedules.load()
        begun = await self._read(begun_runs, self.store)
        lost = [name for name in begun if self.process_facts(name).state == life.STOPPED]
        try:
            await self._start(lost, time.monotonic() + PATIENCE)
        except FleetError as error:
            self._complain(f"agents: {error}")
        self._ending = asyncio.create_task(end_strays(self.engine, await self._read(self.store.agents), self._complain))

    async def close(self) -> None:
        """Stop watching; run processes go on."""
        if self._ending is not None:
            self._ending.cancel()
        await self.schedules.close()
        await self.events.close()
        self.history.close()
        self.store.close()

    # Plan and apply

    async def plan(self, items: Sequence[Mapping[str, Any]], state: str) -> Plan:
        """Return what apply would do, doing nothing. Raises InvalidInput or NotFound for a bad item."""
        known_names = await self._read(self.store.agents)
        resolved = agent_plans.resolve(items, state, known_names)
        return agent_plans.plan(resolved, state, await self._known([name for name, _definition in resolved]))

    async def apply(
        self, items: Sequence[Mapping[str, Any]], state: str, wait: bool = True, timeout: float = PATIENCE
    ) -> tuple[Plan, list[str]]:
        """Bring agents to a state: present (declared), running, stopped or absent; all of them, or none if one is bad.

        items: plain definitions, or {name} alone. A running agent goes on; its next iteration takes the new revision.
        Returns the plan that was carried out, and the names.
        """
        deadline = time.monotonic() + timeout
        resolved = agent_plans.resolve(items, state, await self._read(self.store.agents))
        names = [name for name, _definition in resolved]
        async with self._turns.take(lambda: names):
            resolved = agent_plans.resolve(items, state, await self._read(self.store.agents))
            known = await self._known(names)
            plan = agent_plans.plan(resolved, state, known)
            started: dict[str, str] = {}
            if state == "absent":
                await self._remove(plan.removed, deadline)
            else:
                written = {*plan.created, *plan.updated}
                definitions = [item for name, item in resolved if name in written and item is not None]
                await self._put(definitions, "apply")
                await self._stop(plan.stop, deadline)
                if state != "stopped":
                    awake = [name for name in plan.updated if state == "running" or known[name].desired != "stopped"]
                    await self.schedules.arm([*plan.start, *plan.created, *awake], plan.updated)
                started = await self._start(plan.start, deadline)
        if wait:
            await self._settled(started, deadline)
        return plan, [name for name in names if state != "absent"]

    async def _put(
        self, definitions: Sequence[AgentDefinition], origin: str, expected: Mapping[str, int] | None = None
    ) -> None:
        if not definitions:
            return
        rows = await self._read(lambda: self.store.put_agents([(item, origin) for item in definitions], expected))
        for name, row in rows.items():
            m = self.engine.processes.get(process_id(name))
            if m is not None:  # its environment variables are for the next time it is started
                spec = process_of(self._cached(row, {item.name: item for item in definitions}[name]))
                await self.engine.apply([{"id": spec.id, "declaration": spec}], "present")
            self.events.control(name, "revision", revision=row["revision"])
        self.events.look(rows)

    # Start and stop

    async def start(
        self,
        names: Sequence[str],
        again: bool = False,
        continue_run: bool = False,
        wait: bool = True,
        timeout: float = PATIENCE,
    ) -> None:
        """Start agents. One whose run process died goes on with that run; a paused one goes on as well.

        again: begin a new run, giving up one that is not finished. continue_run: take the last run up where it ended.
        """
        if again and continue_run:
            raise InvalidInput("start: expected a new run or the last one to go on, found both")
        deadline = time.monotonic() + timeout
        async with self._turns.take(lambda: names):
            await self._check(names)
            idle = await self._idle(names)
            if again:
                for name in idle:
                    await self._read(abandon, self.store, name, "given up for a new run")
            if continue_run:
                await self._read(reopen, self.store, idle)
            await self.schedules.arm(names, ())
            started = await self._start(names, deadline)
        if wait:
            await self._settled(started, deadline)

    async def _start(self, names: Sequence[str], deadline: float) -> dict[str, str]:
        """Start the processes of agents, or let those go on that are paused. Returns what Engine.begin tells."""
        if not names:
            return {}
        if RESERVED in self.engine.projects:
            path = self.engine.projects[RESERVED]
            raise Conflict(f'environment "{RESERVED}" in {path}: has the name that is kept for agents; rename it')
        definitions = await self._current(names)
        idle = await self._idle(names)
        await self._desire(names, "running")
        waiting = [name for name in names if self.process_facts(name).state == life.BACKOFF]
        for run in await self._read(begin_runs, self.store, [*idle, *waiting]):
            self.events.publish("run", run)
        items = [{"id": process_id(name), "declaration": process_of(definitions[name])} for name in idle]
        retried = [{"id": process_id(name)} for name in waiting]
        _change, _ids, started = await self.engine.begin([*items, *retried], "started", deadline, again=True)
        self.events.look(names)
        return started

    async def _settled(self, started: Mapping[str, str], deadline: float) -> None:
        """Wait until processes are up. Raises Conflict for an agent that somebody has stopped meanwhile."""
        try:
            await self.engine.settled(list(started), started, deadline)
        except FleetError:
            rows = await self._read(self.store.agents)
            for name in (ident.partition("/")[2] for ident in started):
                if name not in rows or rows[name]["desired"] == "stopped":
                    raise Conflict(f'agent "{name}": was stopped by another request while it came up') from None
            raise

    async def _idle(self, names: Iterable[str]) -> list[str]:
        """Return those of the agents that have nothing to do, once the processes of their last runs have ended."""
        idle = [name for name, (state, _revision) in (await self.events.states(names)).items() if state not in AWAKE]
        ending = [process_id(name) for name in idle if self.process_facts(name).wanted]

        def gone() -> bool:
            return all(self.engine.processes[ident].status.state not in life.WANTED for ident in ending)

        if ending and not await self.engine.records.until(gone, time.monotonic() + _LINGER):
            await self.engine.apply([{"id": ident} for ident in ending], "stopped")
        return idle

    async def stop(self, names: Sequence[str], timeout: float = PATIENCE) -> None:
        """Stop agents: their runs end as stopped, and their schedules begin none until they are started again."""
        async with self._turns.take(lambda: names):
            await self._check(names)
            await self._stop(names, time.monotonic() + timeout)

    async def stop_known(self, names: Sequence[str], timeout: float) -> None:
        """Stop those of the agents that exist."""
        await self.stop(list(await self._read(self.store.agents, names)), timeout)

    async def stop_all(self, timeout: float = PATIENCE) -> None:
        """Stop every agent that runs, or whose schedule would start it."""
        rows = await self._read(self.store.agents)
        awake = [name for name, row in rows.items() if self.process_facts(name).wanted or row["next_run"] is not None]
        await self.stop(awake, timeout)

    async def _stop(self, names: Sequence[str], deadline: float) -> None:
        if not names:
            return
        await self._desire(names, "stopped")
        await self.schedules.disarm(names)
        ids = [process_id(name) for name in names if process_id(name) in self.engine.processes]
        timeout = max(1.0, deadline - time.monotonic())
        await self.engine.apply([{"id": ident} for ident in ids], "stopped", timeout=timeout)
        for name in names:  # what a run process that was killed could not write itself
            await self._read(abandon, self.store, name, "stopped")
        self.events.look(names)

    async def _remove(self, names: Sequence[str], deadline: float) -> None:
        import shutil  # not before an agent is removed: fleetd stays small

        if not names:
            return
        await self._stop(names, deadline)
        ids = [process_id(name) for name in names]
        await self.engine.apply([{"id": ident} for ident in ids if ident in self.engine.processes], "absent")
        await self._read(self.store.remove_agents, names)
        for name in names:
            self._definitions.pop(name, None)
            self._injecting.pop(name, None)
            folder = paths.agents(self.store.folder) / name
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        self.events.removed(names)

    # While they run

    async def pause(self, names: Sequence[str]) -> None:
        """Let agents hold before their next iteration. Raises Conflict for one that does not run."""
        await self._steer(names, lambda: self._desire(names, "paused"))

    async def resume(self, names: Sequence[str], timeout: float = PATIENCE) -> None:
        """Let paused agents go on; one without a process is started."""
        deadline = time.monotonic() + timeout
        async with self._turns.take(lambda: names):
            await self._check(names)
            await self._start(names, deadline)

    async def interrupt(self, names: Sequence[str]) -> None:
        """End the iterations that run; the agents go on with the next ones. Raises Conflict for one that is idle."""

        async def ask() -> None:
            for name in names:
                count = await self._read(self.store.interrupt, name)
                self.events.control(name, "interrupt", interrupts=count)

        await self._steer(names, ask)

    async def _steer(self, names: Sequence[str], act: Callable[[], Any]) -> None:
        async with self._turns.take(lambda: names):
            await self._check(names)
            for name, (state, _revision) in (await self.events.states(names)).items():
                if state not in AWAKE:
                    raise Conflict(f'agent "{name}": does not run; it is {state}')
            await act()
            self.events.look(names)

    async def inject(
        self, name: str, text: str, step: str = "", iteration: int | None = None, sender: str = ""
    ) -> dict[str, Any]:
        """Record a steering message, tell the run process, and return its row: queued, or refused with the reason."""
        (definition,) = (await self._current([name])).values()
        if step:
            definition.step(step)
        async with self._injecting.setdefault(name, asyncio.Lock()):  # told in the order of the ids
            row = await self._read(self.store.inject, name, text, step, iteration, sender)
            self.events.publish("injection", row)
            if row["state"] == "queued":
                self.events.control(name, "injection", id=row["id"])
        return row

    # Revisions

    async def edit(self, name: str, method: str, body: str, base_revision: int | None = None) -> Change:
        """Give a method another body, as a new revision. Raises Conflict if base_revision is not the current one."""
        async with self._turns.take(lambda: (name,)):
            row = await self._read(self.store.agent, name)
            if base_revision is not None and base_revision != row["revision"]:
                raise Conflict(
                    f'agent "{name}": the edit was made on revision {base_revision}, but {row["revision"]} is current'
                )
            definition = await self._read(self.store.definition, name)
            return await self._revise(row, agent_plans.edited(definition, method, body), "edit")

    async def rollback(self, name: str, revision: int) -> Change:
        """Make an earlier definition the current one again, as a new revision."""
        async with self._turns.take(lambda: (name,)):
            row = await self._read(self.store.agent, name)
            definition = await self._read(self.store.definition, name, revision)
            return await self._revise(row, definition, "rollback")

    async def _revise(self, row: Mapping[str, Any], definition: AgentDefinition, origin: str) -> Change:
        name = definition.name
        plan = agent_plans.plan([(name, definition)], "present", await self._known([name]))
        if plan.updated:
            await self._put([definition], origin, {name: row["revision"]})
            await self.schedules.arm((), plan.updated)
        return plan.change

    # What is

    def process_facts(self, name: str) -> ProcessFacts:
        """Return what the engine knows of the process of an agent."""
        m = self.engine.processes.get(process_id(name))
        if m is None:
            return ProcessFacts()
        status = m.status
        pid = status.pid if status.state in life.ALIVE else 0
        return ProcessFacts(m.id, status.state, pid, status.started, status.error)

    async def views(self, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Return agents as clients see them, all or the named ones. Raises NotFound."""

        def read() -> list[tuple[dict[str, Any], AgentDefinition, Any, Any, int]]:
            rows = self.history.agents(names)
            for name in names or ():
                if name not in rows:
                    raise unknown(name, self.history.agents())
            runs, steps, queued = self.history.last_runs(names), self.history.steps(names), self.history.queued()
            return [
                (row, self._cached(row), runs.get(name), steps.get(name, {}), queued.get(name, 0))
                for name, row in rows.items()
            ]

        return [
            view(row, definition, self.process_facts(row["name"]), run, steps, queued)
            for row, definition, run, steps, queued in await self._read(read)
        ]

    async def _known(self, names: Sequence[str]) -> dict[str, Known]:
        def read() -> dict[str, tuple[Mapping[str, Any], AgentDefinition, Any]]:
            runs = self.store.last_runs(names)
            return {name: (row, self._cached(row), runs.get(name)) for name, row in self.store.agents(names).items()}

        found = {}
        for name, (row, definition, run) in (await self._read(read)).items():
            state = state_of(self.process_facts(name), run)
            done = state in ("completed", "limited")
            found[name] = Known(definition, row["desired"], state in AWAKE, done, row["next_run"] is not None)
        return found

    async def _current(self, names: Iterable[str]) -> dict[str, AgentDefinition]:
        return await self._read(lambda: {name: self._cached(self.store.agent(name)) for name in names})

    def _cached(self, row: Mapping[str, Any], definition: AgentDefinition | None = None) -> AgentDefinition:
        """Return the current definition of an agent; it is read from the database once for each id."""
        ident, known = self._definitions.get(row["name"], ("", None))
        if known is None or ident != row["id"]:
            known = definition or self.history.definition(row["name"], row["revision"])
            self._definitions[row["name"]] = (row["id"], known)
        return known

    async def _check(self, names: Sequence[str]) -> None:
        await self._read(lambda: [self.store.agent(name) for name in names])

    async def _desire(self, names: Sequence[str], desired: str) -> None:
        def write() -> list[str]:
            with self.store.transaction():
                changed = [name for name in names if self.store.agent(name)["desired"] != desired]
                for name in changed:
                    self.store.set_desired(name, desired)
                return changed

        for name in await self._read(write):
            self.events.control(name, "desired", desired=desired)

    async def _scheduled(self, name: str) -> bool:
        """Begin a run whose time has come, unless one runs or is paused. Returns whether it was begun."""
        async with self._turns.take(lambda: (name,)):
            row = (await self._read(self.store.agents, [name])).get(name)
            if row is None or row["desired"] == "paused":
                return False
            if (await self.events.states([name])).get(name, ("", 0))[0] in ("", *AWAKE, "stopping"):
                return False
            await self._start([name], time.monotonic() + PATIENCE)
            return True

    @staticmethod
    async def _read(function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.to_thread(function, *arguments)
