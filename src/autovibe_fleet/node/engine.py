# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine of one host: it carries processes through the table of fleet_core.lifecycle.

It lives in one thread, inside fleetd's event loop. What a request must be able to count on after a crash is in the
store before anything is launched or answered: claims, the launch token, the wanted state.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fleet_core import lifecycle as life
from fleet_core.changes import Change
from fleet_core.dependencies import start_order
from fleet_core.errors import Conflict, FleetError, NotFound, ProcessFailed, TimedOut
from fleet_core.process_status import ProcessStatus
from fleet_core.processes import ProcessSpec, needs_of
from fleet_core.resources import Request
from fleet_node import resources
from fleet_node.store import Store
from fleet_node.supervisor import Supervisor

from . import plans
from .adoption import adopted
from .managed import Managed, ended_text
from .output import Output
from .transitions import CRASHES, SETTLE, Transitions
from .turns import Turns


class Engine(Transitions):
    """Every process of this host. Callers use it from inside the event loop only."""

    def __init__(self, store: Store, supervisor: Supervisor, output: Output) -> None:
        super().__init__(store, supervisor, output)
        self._turns = Turns()

    # Start and end of fleetd

    async def load(self) -> None:
        """Take up what an earlier fleetd left: adopt what runs, decide on what has ended, start what is wanted."""
        self.projects = {name: data.get("project_dir", "") for name, data in self.store.environments().items()}
        for ident, (spec, status) in self.store.processes().items():
            self.processes[ident] = Managed(spec, status)
            self.output.add(spec, self.projects.get(spec.environment, ""), status.pid)
        loop = asyncio.get_running_loop()

        def look(ids: Sequence[str]) -> None:
            loop.call_soon_threadsafe(self._look_soon, list(ids))

        self.supervisor.listen(look)
        known = {m.id: m.status for m in self.processes.values() if m.status.state not in (life.STOPPED, life.ERROR)}
        observed = await self._call(self.supervisor.observe, known) if known else {}
        for ident, seen in observed.items():
            if self.processes[ident].status is known[ident]:  # else the supervisor has told of it by now
                try:
                    self._recover(self.processes[ident], seen)
                except FleetError as error:  # one that cannot be taken up must not keep fleetd from the others
                    self.output.complain(f'process "{ident}": {error}', error)
        stale = [claim for claim in self.store.claims() if claim.owner in self.processes]
        for claim in stale:
            if self.processes[claim.owner].status.state in (life.STOPPED, life.ERROR):
                self.records.release(claim.owner)
        self.records.flush()
        self._advance_soon()

    async def close(self) -> None:
        """Stop watching. Processes go on; the next fleetd adopts them."""
        self._closing = True
        self.health.close()
        for m in self.processes.values():
            self._cancel_timers(m)
        for task in list(self._tasks):
            task.cancel()
        self.records.close()
        self.supervisor.close()

    # Requests

    def plan(self, items: Sequence[Mapping[str, Any]], state: str, again: bool = False) -> Change:
        """Return what apply would change, changing nothing. Raises InvalidInput or NotFound for a bad item."""
        return plans.plan(self._resolve(items, state), state, self.processes, again)

    async def apply(
        self,
        items: Sequence[Mapping[str, Any]],
        state: str,
        wait: bool = True,
        timeout: float = 120.0,
        again: bool = False,
    ) -> tuple[Change, list[str]]:
        """Bring processes to a state: started, stopped, restarted, present (declared) or absent.

        items: plain process data, or {id} alone for a declared one. again: start what ran to its end once more.
        Returns the change and the ids. Raises ProcessFailed or TimedOut when a process that was waited for does not
        come up.
        """
        deadline = time.monotonic() + timeout
        change, ids, started = await self.begin(items, state, deadline, again)
        if wait and state in ("started", "restarted"):
            await self.settled(ids, started, deadline)
        return change, ids

    async def begin(
        self, items: Sequence[Mapping[str, Any]], state: str, deadline: float, again: bool = False
    ) -> tuple[Change, list[str], dict[str, str]]:
        """Do what apply does, but wait for no process to come up. deadline: on the monotonic clock.

        Returns the change, the ids, and the launch token of each process that was started for it.
        """
        specs = self._resolve(items, state)
        async with self._turns.take(lambda: self._reach(specs, state)) as waited:
            if waited:
                specs = self._resolve(items, state)
            change = plans.plan(specs, state, self.processes, again)
            ids = [ident for ident, _spec in specs]
            started: dict[str, str] = {}
            if state == "absent":
                await self._stop([ident for ident in ids if ident in self.processes], deadline)
                self._remove(ids)
            elif state == "stopped":
                await self._stop(ids, deadline)
            else:
                started = await self._bring_up(specs, state, deadline, again)
            self.records.flush()
            return change, ids, started

    def _reach(self, specs: plans.Resolved, state: str) -> set[str]:
        """Return what a request may change: its processes, and what they depend on if it starts them."""
        given = dict(specs)
        reached: set[str] = set()
        waiting = list(given)
        while waiting:
            ident = waiting.pop()
            if ident in reached:
                continue
            reached.add(ident)
            m = self.processes.get(ident)
            spec = given.get(ident) or (m.spec if m is not None else None)
            if spec is not None and state in ("started", "restarted"):
                waiting.extend(item.process for item in spec.depends_on)
        return reached

    async def _bring_up(self, specs: plans.Resolved, state: str, deadline: float, again: bool) -> dict[str, str]:
        """Declare processes and, unless they shall only be present, start them."""
        given = {ident: spec for ident, spec in specs if spec is not None}
        replaced = [
            ident
            for ident, spec in given.items()
            if ident in self.processes
            and self.processes[ident].status.state not in (life.STOPPED, life.ERROR)
            and (spec != self.processes[ident].spec or state == "restarted")
        ]
        plans.check_dependencies({**{m.id: m.spec for m in self.processes.values()}, **given}, list(given))
        if state == "present":
            self._declare(given.values())
            return {}
        await self._stop(replaced, deadline)
        self._declare(given.values())
        return await self._start([ident for ident, _spec in specs], again or state == "restarted")

    def _resolve(self, items: Sequence[Mapping[str, Any]], state: str) -> list[tuple[str, ProcessSpec | None]]:
        return plans.resolve(items, state, self.processes, self.store.templates)

    def _declare(self, specs: Iterable[ProcessSpec]) -> None:
        changed = []
        for spec in specs:
            m = self.processes.get(spec.id)
            if m is not None and m.spec == spec:
                continue
            changed.append((spec, m.status if m else ProcessStatus(driver=self.supervisor.name)))
        if not changed:
            return
        self.store.put_processes(changed)
        for spec, status in changed:
            m = self.processes.get(spec.id)
            if m is None:
                self.processes[spec.id] = Managed(spec, status)
            else:
                if m.status.exit_code == 0 and m.completed:
                    m.status = m.status.evolve(desired="stopped")
                m.spec = spec
            self.output.add(spec, self.projects.get(spec.environment, ""))

    def _remove(self, ids: Sequence[str]) -> None:
        known = [ident for ident in ids if ident in self.processes]
        self.records.flush()
        self.store.remove_processes(ids)
        self.supervisor.forget(known)
        for ident in known:
            m = self.processes.pop(ident)
            self._cancel_timers(m)
            self.output.remove(ident)
            self._pending.discard(ident)
            self.records.drop(ident)
            self.records.publish("process", ident, "absent", m.status.state, "removed")

    # Starting

    async def _start(self, ids: Sequence[str], again: bool) -> dict[str, str]:
        """Claim for, and begin to launch, the processes and all that they depend on.

        Returns the launch tokens of those started now.
        """
        todo = []
        started: dict[str, str] = {}
        for ident in self._with_dependencies(ids):
            m = self.processes[ident]
            if m.status.state == life.STOPPING:
                await self._ended(m, time.monotonic() + m.spec.stop_timeout + 10)
            if m.status.state == life.BACKOFF and again:
                m.restart_times, m.attempt, m.crashes = [], 0, 0
                self._cancel_timers(m)
                self._retry(m)
                started[m.id] = m.status.launch
            if m.status.state in life.WANTED or (m.completed and not (again and ident in ids)):
                continue
            todo.append(m)
        if not todo:
            return started
        self.records.flush()  # claims that are to be given back must not take the new ones along
        claimed = await self._claim(todo)
        before = [m.status for m in todo]
        for m in todo:
            self._cancel_timers(m)
            m.restart_times, m.attempt, m.crashes, m.relaunch, m.late, m.give_up = [], 0, 0, False, "", False
            m.status = ProcessStatus(
                state=life.step(m.status.state, life.START)[0],
                desired="running",
                driver=self.supervisor.name,
                launch=os.urandom(8).hex(),
                claimed=claimed[m.id],
            )
        try:
            self.store.put_processes([(m.spec, m.status) for m in todo])
        except FleetError:
            for m, status in zip(todo, before, strict=True):
                m.status = status
                self.records.release(m.id)
            raise
        for m, status in zip(todo, before, strict=True):
            self.records.publish("process", m.id, life.STARTING, status.state, "start requested")
            self._do_launch(m)
        return {**started, **{m.id: m.status.launch for m in todo}}

    def _with_dependencies(self, ids: Sequence[str]) -> list[str]:
        reached: dict[str, list[str]] = {}
        waiting = list(ids)
        while waiting:
            ident = waiting.pop()
            if ident in reached:
                continue
            if ident not in self.processes:
                raise plans.unknown(ident, self.processes)
            reached[ident] = [item.process for item in self.processes[ident].spec.depends_on]
            waiting.extend(reached[ident])
        first = {ident: reached[ident] for ident in ids}
        return start_order({**first, **reached})

    async def _claim(self, todo: Sequence[Managed]) -> dict[str, dict[str, tuple[str, str]]]:
        types = self.store.types()
        counters = {kind.name for kind in types.values() if kind.counter}
        requests, own = [], {}
        slow = False
        for m in todo:
            for need in needs_of(m.spec, counters):
                before = m.status.claimed.get(need.name, ("", ""))
                preferred = before[1] if before[0] == need.type else ""
                value = need.value
                if value and need.type in types and types[need.type].probe == "path":
                    value = self._absolute(m.spec, value)
                if value and value == preferred and types[need.type].probe == "path":
                    own[(need.type, value)] = True
                requests.append(Request(need.type, m.id, need.name, value, preferred))
                slow = slow or bool(need.type in types and types[need.type].check)
        if slow:
            allocation = await asyncio.to_thread(resources.claim, self.store, requests, known=own)
        else:
            allocation = resources.claim(self.store, requests, known=own)
        granted = resources.granted(allocation)
        return {m.id: {name: (claim.type, claim.value) for name, claim in granted.get(m.id, {}).items()} for m in todo}

    # Stopping

    async def _stop(self, ids: Sequence[str], deadline: float) -> None:
        """Stop processes, those first that others of the set depend on last, and wait until nothing of them runs."""
        graph = {i: [d.process for d in self.processes[i].spec.depends_on if d.process in ids] for i in ids}
        left = list(reversed(start_order(graph)))
        for ident in left:  # all of them at first: the next fleetd must know what a killed one was about to stop
            m = self.processes[ident]
            m.status = m.status.evolve(desired="stopped")
            self.records.mark(ident)
        while left:
            needed = {needs for ident in left for needs in graph[ident]}
            layer = [ident for ident in left if ident not in needed]
            left = [ident for ident in left if ident in needed]
            stopping = []
            for ident in layer:
                m = self.processes[ident]
                m.relaunch = False
                if m.status.state == life.STOPPED:
                    continue
                if m.status.state != life.STOPPING:
                    self._event(m, life.STOP, error="")
                stopping.append(m)
            self.records.try_flush()
            limit = max([deadline, *(time.monotonic() + m.spec.stop_timeout + 5 for m in stopping)])
            for m in stopping:
                await self._ended(m, limit)
            self.supervisor.forget(m.id for m in stopping if m.status.state == life.STOPPED)

    async def _ended(self, m: Managed, deadline: float) -> None:
        """Wait until a stopping process has ended. Raises TimedOut."""
        if not await self.records.until(lambda: m.status.state != life.STOPPING, deadline):
            raise TimedOut(f'process "{m.id}": still runs as pid {m.status.pid} after SIGKILL')

    def awake(self) -> list[str]:
        """Return the processes that run or are about to."""
        return [m.id for m in self.processes.values() if m.status.state not in (life.STOPPED, life.ERROR)]

    async def stop_all(self, timeout: float = 60.0) -> None:
        """Stop every process that runs or is wanted."""
        async with self._turns.take(lambda: list(self.processes)):
            await self._stop(self.awake(), time.monotonic() + timeout)
            self.records.flush()

    # Waiting

    async def settled(self, ids: Sequence[str], started: Mapping[str, str], deadline: float) -> None:
        """Wait until every process runs, or has run to a good end. started: as begin returns it.

        Raises ProcessFailed for the first that does not come up, TimedOut after the (monotonic) deadline.
        """
        while True:
            fresh = {i for i in started if i in self.processes and self.processes[i].status.launch == started[i]}
            verdicts = {
                ident: self._verdict(self.processes[ident], ident in fresh) for ident in ids if ident in self.processes
            }
            failed = {ident: text for ident, text in verdicts.items() if isinstance(text, str)}
            if failed:
                await self._give_up([self.processes[ident] for ident in failed if ident in fresh])
                more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
                raise ProcessFailed(next(iter(failed.values())) + more)
            open_ones = {ident: wait for ident, wait in verdicts.items() if wait}
            if not open_ones:
                return
            left = deadline - time.monotonic()
            if left <= 0:
                ident = next(iter(open_ones))
                m = self.processes[ident]
                why = f"waits for {m.waiting}" if m.waiting else m.status.error or f"is {m.status.state}"
                raise TimedOut(f'process "{ident}": not up in time: {why}')
            await self.records.changed(min(left, *(wait for wait in open_ones.values() if isinstance(wait, float))))

    async def _give_up(self, failed: Sequence[Managed]) -> None:
        """End the restarts of processes that never came up since they were asked for, so that their claims go back."""
        for m in failed:
            if m.was_ready and m.launch is not None and (m.launch.readiness or m.launch.health):
                continue
            m.give_up = True
            if m.status.state == life.BACKOFF:
                self._event(m, life.EXITED_FAILED)
        self.records.flush()
        still = [m for m in failed if m.give_up and m.status.state in life.ALIVE]
        limit = max([0.0, *(m.spec.stop_timeout + 5 for m in still)])
        await self.records.until(lambda: all(m.status.state not in life.ALIVE for m in still), time.monotonic() + limit)

    def _verdict(self, m: Managed, fresh: bool) -> float | str:
        """Return 0.0 for a process that is up, seconds to look again after, or the sentence that says how it failed."""
        status = m.status
        if m.completed:
            return 0.0
        if status.state == life.RUNNING:
            unchecked = m.launch is None or (m.launch.readiness is None and m.launch.health is None)
            age = time.monotonic() - m.launched
            return max(0.01, SETTLE - age) if fresh and unchecked and age < SETTLE else 0.0
        if status.state in (life.ERROR, life.STOPPED, life.STOPPING):
            return status.error or f'process "{m.id}": {status.state}; {ended_text(status.exit_code)}'
        if m.late or (m.crashes >= CRASHES and status.state == life.BACKOFF):
            return status.error
        return 5.0

    async def adopt(self, ident: str, facts: Mapping[str, Any]) -> None:
        """Take over a running process that the fleet did not start. facts: as procfs.describe gives them."""
        spec, status, claims = adopted(ident, facts)
        async with self._turns.take(lambda: (ident, f"pid {status.pid}")):
            for m in self.processes.values():
                if m.status.state in life.ALIVE and m.status.pid in (status.pid, facts.get("group") or status.pid):
                    raise Conflict(f'pid {status.pid}: belongs to process "{m.id}" already')
            if ident in self.processes:
                raise Conflict(f'process "{ident}": exists already')
            allocation = resources.claim(
                self.store, claims, known={(asked.type, asked.value): True for asked in claims}
            )
            granted = resources.granted(allocation).get(ident, {})
            claimed = {name: (claim.type, claim.value) for name, claim in granted.items()}
            status = status.evolve(claimed=claimed, driver=self.supervisor.name)
            try:
                self.store.put_processes([(spec, status)])
            except FleetError:
                self.store.release([ident])
                raise
            m = Managed(spec, status)
            self.processes[ident] = m
            self.output.add(spec, "")
            self._prepare(m)
            if (await self._call(self.supervisor.observe, {ident: status}))[ident].phase != "alive":
                self._remove([ident])
                raise NotFound(f"pid {status.pid}: has ended")
            self._event(m, life.ADOPT)
            self.records.flush()
