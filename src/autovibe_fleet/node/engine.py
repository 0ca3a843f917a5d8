# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine of one host: it carries processes through the table of fleet_core.lifecycle.

It lives in one thread, inside fleetd's event loop. What a request must be able to count on after a crash is in the store
before anything is launched or answered: claims, the launch token, the wanted state.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fleet_core import lifecycle as life
from fleet_core.changes import Change
from fleet_core.dependencies import start_order
from fleet_core.errors import Conflict, FleetError, InvalidInput, NotFound, ProcessFailed, StateDamaged, TimedOut
from fleet_core.names import check_process_id, nearest
from fleet_core.process_status import ProcessStatus
from fleet_core.processes import Launch, ProcessSpec, launch, needs_of, process_spec
from fleet_core.resources import Request
from fleet_core.restarts import delay_before, wants_restart, within_burst
from fleet_core.templates import instantiate
from fleet_node import resources
from fleet_node.store import Store
from fleet_node.supervisor import Job, Observation, Supervisor

from .monitoring import HealthChecks
from .output import Output

SETTLE = 0.2  # seconds that a process without any check must live before its start counts as done
STEADY = 10.0  # seconds of life after which a crash begins a new row of restarts
CRASHES = 3  # crashes in a row after which a waiting caller is told
_WANTED_STATES = ("started", "stopped", "restarted", "absent", "present")


class Managed:
    """One process in the engine's hands."""

    __slots__ = (
        "spec", "status", "launch", "folder", "restart_times", "attempt", "launched", "spawning", "relaunch",
        "restart_timer", "kill_timer", "ready_task", "waiting", "crashes", "was_ready", "late", "give_up",
    )  # fmt: skip

    def __init__(self, spec: ProcessSpec, status: ProcessStatus) -> None:
        self.spec = spec
        self.status = status
        self.launch: Launch | None = None
        self.folder = ""
        self.restart_times: list[float] = []
        self.attempt = 0
        self.launched = 0.0
        self.spawning = False
        self.relaunch = False
        self.restart_timer: asyncio.TimerHandle | None = None
        self.kill_timer: asyncio.TimerHandle | None = None
        self.ready_task: asyncio.Task[None] | None = None
        self.waiting = ""
        self.crashes = 0
        self.was_ready = False
        self.late = ""
        self.give_up = False

    @property
    def id(self) -> str:
        return self.spec.id

    @property
    def completed(self) -> bool:
        """It was wanted, ran to its end with exit code 0, and is not wanted back."""
        status = self.status
        return status.state == life.STOPPED and status.desired == "running" and status.exit_code == 0 and status.ended > 0


class Engine:
    """Every process of this host. Callers use it from inside the event loop only."""

    def __init__(self, store: Store, supervisor: Supervisor, output: Output) -> None:
        self.store = store
        self.supervisor = supervisor
        self.output = output
        self.processes: dict[str, Managed] = {}
        self.projects: dict[str, str] = {}
        self.health = HealthChecks(self._checked)
        self.on_event: list[Callable[[dict[str, Any]], None]] = []
        self._dirty: set[str] = set()
        self._releases: set[str] = set()
        self._flush_handle: asyncio.Handle | None = None
        self._pending: set[str] = set()
        self._advancing = False
        self._waiters: list[asyncio.Future[None]] = []
        self._claiming = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closing = False

    # Start and end of fleetd

    async def load(self) -> None:
        """Take up what an earlier fleetd left: adopt what runs, decide on what has ended, start what is wanted."""
        self.projects = {name: data.get("project_dir", "") for name, data in self.store.environments().items()}
        for ident, (spec, status) in self.store.processes().items():
            self.processes[ident] = Managed(spec, status)
            self.output.add(spec, self.projects.get(spec.environment, ""))
        loop = asyncio.get_running_loop()
        self.supervisor.listen(lambda ids: loop.call_soon_threadsafe(self._look_soon, list(ids)))
        known = {m.id: m.status for m in self.processes.values() if m.status.state not in (life.STOPPED, life.ERROR)}
        observed = await self._call(self.supervisor.observe, known) if known else {}
        for ident, seen in observed.items():
            self._recover(self.processes[ident], seen)
        stale = [claim for claim in self.store.claims() if claim.owner in self.processes]
        for claim in stale:
            if self.processes[claim.owner].status.state in (life.STOPPED, life.ERROR):
                self._releases.add(claim.owner)
        self.flush()
        self._advance_soon()

    def _recover(self, m: Managed, seen: Observation) -> None:
        """Bring one process from its recorded state to the one that is true now."""
        state = m.status.state
        self._prepare(m)
        if seen.phase == "alive":
            m.status = m.status.evolve(pid=seen.pid, pid_start=seen.pid_start)
            m.launched = time.monotonic()
            self._dirty.add(m.id)
            if state == life.BACKOFF:
                m.status = m.status.evolve(state=life.STARTING)
                self._watch_start(m)
            elif state == life.STARTING:
                self._watch_start(m)
            elif state == life.STOPPING:
                self._do_terminate(m)
            else:
                self._do_watch(m)
            self.output.note(m.id, m.status.pid, "adopted by fleetd")
        elif state == life.STOPPING:
            self._event(m, life.GONE, pid=0, ended=time.time())
        elif state == life.BACKOFF:
            if seen.phase != "waiting":
                self._do_schedule_restart(m)
        elif state == life.STARTING and not m.status.pid:
            self._pending.add(m.id)
        elif seen.phase == "waiting":
            self._event(m, life.EXITED_RETRY, pid=0)
        else:
            self._exited(m, seen.exit_code)

    async def close(self) -> None:
        """Stop watching. Processes go on; the next fleetd adopts them."""
        self._closing = True
        self.health.close()
        for m in self.processes.values():
            self._cancel_timers(m)
        for task in list(self._tasks):
            task.cancel()
        self.flush()
        self.supervisor.close()

    # Requests

    def plan(self, items: Sequence[Mapping[str, Any]], state: str, again: bool = False) -> Change:
        """Return what apply would change, changing nothing. Raises InvalidInput or NotFound for a bad item."""
        return self._plan(self._resolve(items, state), state, again)

    async def apply(
        self,
        items: Sequence[Mapping[str, Any]],
        state: str,
        wait: bool = True,
        timeout: float = 120.0,
        again: bool = False,
    ) -> tuple[Change, list[str]]:
        """Bring processes to a state: started, stopped, restarted, present (declared) or absent.

        items: plain process data, or {id} alone for a declared one. again: start processes that ran to their end once more.
        Returns the change and the ids. Raises ProcessFailed or TimedOut when a process that was waited for does not come up.
        """
        specs = self._resolve(items, state)
        change = self._plan(specs, state, again)
        ids = [ident for ident, _spec in specs]
        deadline = time.monotonic() + timeout
        if state == "absent":
            await self._stop([ident for ident in ids if ident in self.processes], deadline)
            self._remove(ids)
        elif state == "stopped":
            await self._stop(ids, deadline)
        else:
            given = {ident: spec for ident, spec in specs if spec is not None}
            replaced = [
                ident
                for ident, spec in given.items()
                if ident in self.processes
                and self.processes[ident].status.state not in (life.STOPPED, life.ERROR)
                and (spec != self.processes[ident].spec or state == "restarted")
            ]
            graph_ok = {**{m.id: m.spec for m in self.processes.values()}, **given}
            _check_dependencies(graph_ok, list(given))
            if state != "present":
                await self._stop(replaced, deadline)
            self._declare(given.values())
            if state != "present":
                started = await self._start(ids, again or state == "restarted")
                if wait:
                    await self._settled(ids, started, deadline)
        self.flush()
        return change, ids

    def _resolve(self, items: Sequence[Mapping[str, Any]], state: str) -> list[tuple[str, ProcessSpec | None]]:
        if state not in _WANTED_STATES:
            raise InvalidInput(f'state: expected {", ".join(_WANTED_STATES)}, found "{state}"')
        found: dict[str, ProcessSpec | None] = {}
        for item in items:
            if not isinstance(item, Mapping):
                raise InvalidInput(f"process: expected a mapping with an id, found {item!r}")
            ident = check_process_id(item.get("id"))
            if ident in found:
                raise InvalidInput(f'process "{ident}": stands twice in one request')
            given = {key: value for key, value in item.items() if value is not None and key != "id"}
            known = self.processes.get(ident)
            if state in ("absent", "stopped"):
                if known is None and state == "stopped":
                    raise self._unknown(ident)
                found[ident] = known.spec if known else None
            elif not given:
                if known is None:
                    raise self._unknown(ident)
                found[ident] = known.spec
            else:
                found[ident] = self._spec(ident, given)
        return list(found.items())

    def _spec(self, ident: str, given: Mapping[str, Any]) -> ProcessSpec:
        name = given.get("template")
        if name and "command" not in given:
            source = self.store.template(str(name))
            if source is None:
                raise NotFound(f'template "{name}": not defined{nearest(str(name), self.store.templates())}')
            spec = instantiate(source, {"id": ident, **given})
        else:
            spec = process_spec({"id": ident, **given})
        return qualified(spec)

    def _unknown(self, ident: str) -> NotFound:
        return NotFound(f'process "{ident}": not declared{nearest(ident, self.processes)}')

    def _plan(self, specs: Sequence[tuple[str, ProcessSpec | None]], state: str, again: bool) -> Change:
        before: dict[str, Any] = {}
        after: dict[str, Any] = {}
        actions: list[str] = []
        for ident, spec in specs:
            m = self.processes.get(ident)
            runs = m is not None and m.status.state in life.WANTED
            if m is not None:
                before[ident] = {**m.spec.public(), "state": "started" if runs or m.completed else "stopped"}
            steps: list[str] = []
            if state == "absent":
                if m is not None:
                    steps = [f"stop process {ident}"] * (m.status.state not in (life.STOPPED,)) + [f"remove process {ident}"]
            elif state == "stopped":
                assert m is not None
                steps = [f"stop process {ident}"] if m.status.state != life.STOPPED or m.status.desired == "running" and not m.completed else []
                after[ident] = {**m.spec.public(), "state": "stopped"}
            else:
                assert spec is not None
                changed = m is not None and spec != m.spec
                if m is None:
                    steps.append(f"declare process {ident}")
                elif changed:
                    steps.append(f"update process {ident}")
                if state == "restarted" or (state == "started" and changed and runs):
                    steps.append(f"restart process {ident}" if runs else f"start process {ident}")
                elif state == "started" and not runs and (again or changed or m is None or not m.completed):
                    steps.append(f"start process {ident}")
                was = before.get(ident, {}).get("state", "stopped")
                after[ident] = {**spec.public(), "state": "started" if state != "present" else was}
            if steps:
                actions.extend(steps)
            else:
                before.pop(ident, None)
                after.pop(ident, None)
        return Change(before, after, tuple(actions))

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
        self.flush()
        self.store.remove_processes(ids)
        self.supervisor.forget(known)
        for ident in known:
            m = self.processes.pop(ident)
            self._cancel_timers(m)
            self.output.remove(ident)
            self._pending.discard(ident)
            self._dirty.discard(ident)
            self._releases.discard(ident)
            self._publish("process", ident, "absent", m.status.state, "removed")

    # Starting

    async def _start(self, ids: Sequence[str], again: bool) -> list[str]:
        """Claim for, and begin to launch, the processes and all that they depend on. Returns those that were started now."""
        async with self._claiming:
            wanted = self._with_dependencies(ids)
            todo = []
            for ident in wanted:
                m = self.processes[ident]
                if m.status.state == life.STOPPING:
                    await self._until(lambda m=m: m.status.state != life.STOPPING, time.monotonic() + m.spec.stop_timeout + 10)  # type: ignore[misc]
                if m.status.state in life.WANTED and not (again and m.status.state == life.BACKOFF):
                    continue
                if m.completed and not (again and ident in ids):
                    continue
                todo.append(m)
            if not todo:
                return []
            self.flush()
            claimed = await self._claim(todo)
            now = time.time()
            for m in todo:
                life.step(m.status.state, life.START)
                self._cancel_timers(m)
                m.restart_times, m.attempt, m.crashes, m.relaunch, m.late, m.give_up = [], 0, 0, False, "", False
                m.status = m.status.evolve(
                    state=life.STARTING, desired="running", driver=self.supervisor.name, pid=0, pid_start=0,
                    launch=secrets.token_hex(8), claimed=claimed[m.id], started=0.0, ended=0.0, restarts=0, exit_code=None,
                    error="", healthy=None, adopted=False,
                )  # fmt: skip
            try:
                self.store.put_processes([(m.spec, m.status) for m in todo])
            except FleetError:
                self.store.release([m.id for m in todo])
                for m in todo:
                    m.status = m.status.evolve(state=life.STOPPED, desired="stopped")
                raise
            for m in todo:
                self._publish("process", m.id, life.STARTING, life.STOPPED, f"start requested at {now:.0f}")
                self._do_launch(m)
        return [m.id for m in todo]

    def _with_dependencies(self, ids: Sequence[str]) -> list[str]:
        reached: dict[str, list[str]] = {}
        waiting = list(ids)
        while waiting:
            ident = waiting.pop()
            if ident in reached:
                continue
            if ident not in self.processes:
                raise self._unknown(ident)
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
        return {
            m.id: {name: (claim.type, claim.value) for name, claim in granted.get(m.id, {}).items()} for m in todo
        }

    def _absolute(self, spec: ProcessSpec, path: str) -> str:
        return os.path.normpath(os.path.join(self._base(spec), os.path.expanduser(path)))

    def _base(self, spec: ProcessSpec) -> str:
        return self.projects.get(spec.environment) or os.path.expanduser("~")

    def _prepare(self, m: Managed) -> None:
        """Work out what would be executed; an error is left for the launch to report."""
        with contextlib.suppress(FleetError):
            self._render(m)

    def _render(self, m: Managed) -> Job:
        others = {}
        if m.spec.environment:
            for other in self.processes.values():
                if other.spec.environment == m.spec.environment and other.status.state in life.WANTED:
                    for name, value in other.status.resources.items():
                        others[f"{other.spec.name}.{name}"] = value
        extra = {"project_dir": self._base(m.spec), "python": sys.executable, "state_dir": str(self.store.folder)}
        m.launch = launch(m.spec, m.status.claimed, others, extra)
        m.folder = self._absolute(m.spec, m.launch.working_dir or ".")
        after = tuple(item.process for item in m.spec.depends_on)
        return Job(m.spec, m.launch, m.status.launch, m.folder, after)

    def _advance_soon(self) -> None:
        if not self._advancing and not self._closing:
            self._advancing = True
            asyncio.get_running_loop().call_soon(self._advance)

    def _advance(self) -> None:
        """Launch every pending process whose dependencies are satisfied."""
        self._advancing = False
        batch = []
        for ident in list(self._pending):
            m = self.processes.get(ident)
            if m is None or m.status.state != life.STARTING:
                self._pending.discard(ident)
                continue
            waits, failed = self._gate(m)
            m.waiting = waits
            if failed:
                self._pending.discard(ident)
                self._event(m, life.LAUNCH_FAILED, error=failed, ended=time.time())
            elif not waits:
                self._pending.discard(ident)
                m.spawning = True
                batch.append(m)
        if batch:
            self._task(self._launch(batch))

    def _gate(self, m: Managed) -> tuple[str, str]:
        """Return what the process waits for and what has failed for good, each empty if nothing."""
        for needed in m.spec.depends_on:
            other = self.processes.get(needed.process)
            if other is None:
                return "", f'process "{m.id}": depends on "{needed.process}", which is not declared'
            state, status = other.status.state, other.status
            if needed.condition == "completed":
                done = other.completed
            elif needed.condition == "started":
                done = state in (life.RUNNING, life.UNHEALTHY) or (state == life.STARTING and status.pid > 0) or other.completed
            else:
                done = state == life.RUNNING or other.completed
            if done:
                continue
            if state == life.ERROR or (state == life.STOPPED and not other.completed):
                why = status.error or f"it is {state}"
                return "", f'process "{m.id}": waited for "{needed.process}" to be {needed.condition}: {why}'
            return f'"{needed.process}" to be {needed.condition}', ""
        return "", ""

    async def _launch(self, batch: Sequence[Managed]) -> None:
        jobs = []
        for m in batch:
            try:
                jobs.append(self._render(m))
                await self._ensure_output(m)
            except FleetError as error:
                m.spawning = False
                self._event(m, life.LAUNCH_FAILED, error=str(error), ended=time.time())
        try:
            outcomes = await self._call(self.supervisor.start, jobs) if jobs else {}
        except FleetError as error:
            outcomes = {job.id: error for job in jobs}
        now, moment = time.time(), time.monotonic()
        for job in jobs:
            m = self.processes.get(job.id)
            if m is None:
                continue
            m.spawning = False
            outcome = outcomes.get(job.id) or ProcessFailed(f'process "{job.id}": the {self.supervisor.name} supervisor did not answer')
            if isinstance(outcome, FleetError):
                if m.status.state == life.STARTING:
                    self._event(m, life.LAUNCH_FAILED, error=str(outcome), ended=now)
                elif m.status.state == life.STOPPING:
                    self._event(m, life.GONE, pid=0, ended=now)
                continue
            m.launched = moment
            m.was_ready = False
            m.status = m.status.evolve(
                pid=outcome.pid, pid_start=outcome.pid_start, started=now, ended=0.0, healthy=None, error=""
            )
            self._dirty.add(m.id)
            self.output.note(m.id, outcome.pid, "started", level="Lifecycle")
            if m.status.state == life.STOPPING:
                self._do_terminate(m)
            else:
                self._watch_start(m)
        self.flush_soon()
        self._advance_soon()

    async def _ensure_output(self, m: Managed) -> None:
        self.output.add(m.spec, self.projects.get(m.spec.environment, ""))

    def _watch_start(self, m: Managed) -> None:
        """Wait for readiness, or call the process running at once when nothing says how to ask."""
        check = m.launch and (m.launch.readiness or m.launch.health)
        if not check:
            self._ready(m)
            return
        m.ready_task = self._task(self._await_ready(m))

    async def _await_ready(self, m: Managed) -> None:
        assert m.launch is not None
        check = m.launch.readiness or m.launch.health
        assert check is not None
        deadline = m.launched + m.spec.start_timeout
        pause = 0.03
        message = "no check has answered"
        while m.status.state == life.STARTING:
            result = await self.health.ask(check, m.launch, m.folder, m.status)
            if m.status.state != life.STARTING:
                return
            if result.ok:
                self._ready(m, healthy=True)
                return
            message = result.message
            if time.monotonic() + pause > deadline:
                break
            await asyncio.sleep(pause)
            pause = min(pause * 1.6, max(check.interval, 0.03), 2.0)
        if m.status.state == life.STARTING and m.status.pid:
            m.late = f"not ready within {m.spec.start_timeout:g} s: {message}"
            m.relaunch = True
            self.output.note(m.id, m.status.pid, m.late, level="Error")
            self._event(m, life.LATE, error=f'process "{m.id}": {m.late}')

    def _ready(self, m: Managed, healthy: bool | None = None) -> None:
        m.was_ready = True
        m.late = ""
        self._event(m, life.READY, healthy=healthy, error="")

    # Events and actions

    def _event(self, m: Managed, event: str, **changes: Any) -> None:
        previous = m.status.state
        state, actions = life.step(previous, event)
        m.status = m.status.evolve(state=state, **changes)
        m.waiting = "" if state != life.STARTING else m.waiting
        for action in actions:
            getattr(self, f"_do_{action}")(m)
        self._dirty.add(m.id)
        self.flush_soon()
        self._publish("process", m.id, state, previous, m.status.error)
        self._advance_soon()

    def _do_launch(self, m: Managed) -> None:
        self._pending.add(m.id)
        self._advance_soon()

    def _do_watch(self, m: Managed) -> None:
        if m.launch is not None and m.launch.health is not None:
            self.health.watch(m.id, m.launch.health, m.launch, m.folder, m.status)

    def _do_terminate(self, m: Managed) -> None:
        self.health.forget(m.id)
        if m.ready_task is not None and m.ready_task is not asyncio.current_task():
            m.ready_task.cancel()
        if not m.status.pid:
            if not m.spawning and m.status.state == life.STOPPING:
                self._pending.discard(m.id)
                asyncio.get_running_loop().call_soon(self._gone_unlaunched, m)
            return
        self._task(self._call(self.supervisor.terminate, m.spec, m.status))
        if m.kill_timer is not None:
            m.kill_timer.cancel()
        m.kill_timer = asyncio.get_running_loop().call_later(m.spec.stop_timeout, self._too_late, m)

    def _gone_unlaunched(self, m: Managed) -> None:
        if m.status.state == life.STOPPING and not m.status.pid and not m.spawning:
            self._event(m, life.GONE, ended=time.time())

    def _too_late(self, m: Managed) -> None:
        if m.status.state == life.STOPPING:
            self.output.note(m.id, m.status.pid, f"did not end within {m.spec.stop_timeout:g} s, killed", level="Lifecycle")
            self._event(m, life.STOP_LATE)
        elif m.status.pid and m.relaunch:
            self._do_kill(m)

    def _do_kill(self, m: Managed) -> None:
        self._task(self._call(self.supervisor.kill, m.spec, m.status))
        m.kill_timer = asyncio.get_running_loop().call_later(2.0, self._too_late, m)

    def _do_schedule_restart(self, m: Managed) -> None:
        if self.supervisor.restarts and not m.relaunch:
            return
        now = time.monotonic()
        if m.was_ready and now - m.launched > STEADY:
            m.attempt = m.crashes = 0
        m.attempt += 1
        m.crashes += 1
        m.restart_times = [moment for moment in m.restart_times if now - moment < m.spec.restart.window] + [now]
        delay = delay_before(m.spec.restart, m.attempt, random.random())
        m.restart_timer = asyncio.get_running_loop().call_later(delay, self._retry, m)

    def _retry(self, m: Managed) -> None:
        m.restart_timer = None
        m.relaunch = False
        if m.status.state == life.BACKOFF:
            self._event(m, life.RETRY, pid=0, pid_start=0, restarts=m.status.restarts + 1)

    def _do_cancel_restart(self, m: Managed) -> None:
        self._cancel_timers(m)
        if self.supervisor.restarts:
            self._task(self._call(self.supervisor.terminate, m.spec, m.status))

    def _do_release(self, m: Managed) -> None:
        self._cancel_timers(m)
        self._releases.add(m.id)

    def _cancel_timers(self, m: Managed) -> None:
        self.health.forget(m.id)
        if m.restart_timer is not None:
            m.restart_timer.cancel()
            m.restart_timer = None
        if m.kill_timer is not None:
            m.kill_timer.cancel()
            m.kill_timer = None
        if m.ready_task is not None and m.ready_task is not _current_task():
            m.ready_task.cancel()
        m.ready_task = None

    def _exited(self, m: Managed, code: int | None) -> None:
        """Decide what follows from the end of a process."""
        self.health.forget(m.id)
        if m.ready_task is not None:
            m.ready_task.cancel()
            m.ready_task = None
        if m.kill_timer is not None:
            m.kill_timer.cancel()
            m.kill_timer = None
        self.output.drain(m.id)
        self.output.note(m.id, m.status.pid, ended_text(code), level="Lifecycle")
        changes: dict[str, Any] = {"pid": 0, "pid_start": 0, "ended": time.time(), "exit_code": code, "healthy": None}
        policy = m.spec.restart
        last = self.output.last_line(m.id)
        why = f'process "{m.id}": {m.late or ended_text(code)}' + (f": {last}" if last and code != 0 else "")
        if m.status.state == life.STOPPING:
            self._event(m, life.GONE, **changes)
            return
        if m.give_up:
            back = False
        elif m.relaunch and policy.policy != "never":
            back = True
        elif self.supervisor.restarts:
            back = False
        else:
            back = wants_restart(policy, code)
        if back and not within_burst(policy, m.restart_times, time.monotonic()):
            window = f"{policy.burst} restarts within {policy.window:g} s"
            self._event(m, life.EXITED_FAILED, error=f"{why}; given up after {window}", **changes)
        elif back:
            self._event(m, life.EXITED_RETRY, error=why, **changes)
        elif code == 0:
            self._event(m, life.EXITED_DONE, error="", **changes)
        else:
            self._event(m, life.EXITED_FAILED, error=why, **changes)

    def _look_soon(self, ids: Sequence[str]) -> None:
        if not self._closing:
            self._task(self._look(ids))

    async def _look(self, ids: Sequence[str]) -> None:
        """Compare processes with what the supervisor sees of them."""
        known = {i: self.processes[i].status for i in ids if i in self.processes and not self.processes[i].spawning}
        if not known:
            return
        observed = await self._call(self.supervisor.observe, known)
        for ident, seen in observed.items():
            m = self.processes.get(ident)
            if m is not None and not m.spawning and m.status.launch == known[ident].launch:
                self._seen(m, seen)

    def _seen(self, m: Managed, seen: Observation) -> None:
        state = m.status.state
        if seen.phase in ("ended", "absent"):
            if state in life.ALIVE and (m.status.pid or state == life.STOPPING or self.supervisor.restarts):
                self._exited(m, seen.exit_code)
            elif state == life.BACKOFF and self.supervisor.restarts and m.restart_timer is None:
                self._event(m, life.RETRY)
                self._pending.discard(m.id)
                self._exited(m, seen.exit_code)
        elif seen.phase == "waiting":
            if state in (life.STARTING, life.RUNNING, life.UNHEALTHY):
                self._supervisor_restarts(m, seen)
        elif seen.phase == "alive" and self.supervisor.restarts:
            if state in (life.STARTING, life.RUNNING, life.UNHEALTHY) and m.status.pid and seen.pid != m.status.pid:
                self._supervisor_restarts(m, seen)
                state = m.status.state
            if state == life.BACKOFF and m.restart_timer is None:
                self._event(m, life.RETRY, pid=seen.pid, pid_start=seen.pid_start, restarts=seen.restarts, started=time.time())
                self._pending.discard(m.id)
                m.launched = time.monotonic()
                self._watch_start(m)

    def _supervisor_restarts(self, m: Managed, seen: Observation) -> None:
        self.health.forget(m.id)
        if m.ready_task is not None:
            m.ready_task.cancel()
            m.ready_task = None
        m.crashes += 1
        code = seen.exit_code
        self.output.note(m.id, m.status.pid, ended_text(code), level="Lifecycle")
        why = f'process "{m.id}": {ended_text(code)}'
        self._event(m, life.EXITED_RETRY, pid=0, pid_start=0, exit_code=code, restarts=seen.restarts, error=why, ended=time.time())

    def _checked(self, ident: str, healthy: bool, message: str) -> None:
        """Take a verdict of the health checks: it became healthy, or it failed retries times in a row."""
        m = self.processes.get(ident)
        if m is None or m.launch is None or m.launch.health is None:
            return
        if healthy:
            if m.status.state == life.UNHEALTHY and not m.relaunch:
                self.output.note(ident, m.status.pid, "healthy again", level="Info")
                self._event(m, life.READY, healthy=True, error="")
            elif m.status.healthy is not True:
                m.status = m.status.evolve(healthy=True)
                self._dirty.add(ident)
                self.flush_soon()
        elif m.status.state == life.RUNNING:
            text = f"unhealthy: {message}"
            self.output.note(ident, m.status.pid, text, level="Error")
            if m.launch.health.action == "restart" and m.spec.restart.policy != "never":
                m.relaunch = True
                m.late = text
                self._event(m, life.UNHEALTHY_RESTART, healthy=False, error=f'process "{ident}": {text}')
            else:
                self._event(m, life.UNHEALTHY_NOW, healthy=False, error=f'process "{ident}": {text}')

    # Stopping

    async def _stop(self, ids: Sequence[str], deadline: float) -> None:
        """Stop processes, those first that others of the set depend on last, and wait until nothing of them runs."""
        graph = {i: [d.process for d in self.processes[i].spec.depends_on if d.process in ids] for i in ids}
        left = list(reversed(start_order(graph)))
        while left:
            needed = {needs for ident in left for needs in graph[ident]}
            layer = [ident for ident in left if ident not in needed]
            left = [ident for ident in left if ident in needed]
            stopping = []
            for ident in layer:
                m = self.processes[ident]
                m.status = m.status.evolve(desired="stopped")
                self._dirty.add(ident)
                m.relaunch = False
                if m.status.state == life.STOPPED:
                    continue
                if m.status.state != life.STOPPING:
                    self._event(m, life.STOP, error="")
                stopping.append(m)
            self.flush()
            limit = max([deadline, *(time.monotonic() + m.spec.stop_timeout + 5 for m in stopping)])
            for m in stopping:
                if not await self._until(lambda m=m: m.status.state not in (life.STOPPING,), limit):  # type: ignore[misc]
                    raise TimedOut(f'process "{m.id}": still runs as pid {m.status.pid} after SIGKILL')
            self.supervisor.forget(m.id for m in stopping if m.status.state == life.STOPPED)

    async def stop_all(self, timeout: float = 60.0) -> list[str]:
        """Stop every process that runs or is wanted and return their ids."""
        ids = [m.id for m in self.processes.values() if m.status.state not in (life.STOPPED, life.ERROR)]
        await self._stop(ids, time.monotonic() + timeout)
        return ids

    # Waiting

    async def _settled(self, ids: Sequence[str], started: Sequence[str], deadline: float) -> None:
        """Wait until every process runs, or has run to a good end. Raises for the first that does not come up."""
        fresh = set(started)
        while True:
            verdicts = {ident: self._verdict(self.processes[ident], ident in fresh) for ident in ids if ident in self.processes}
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
            await self._changed(min(left, *(wait for wait in open_ones.values() if isinstance(wait, float))))

    async def _give_up(self, failed: Sequence[Managed]) -> None:
        """End the restarts of processes that never came up since they were asked for, so that their claims go back."""
        for m in failed:
            if m.was_ready and m.launch is not None and (m.launch.readiness or m.launch.health):
                continue
            m.give_up = True
            if m.status.state == life.BACKOFF:
                self._event(m, life.EXITED_FAILED)
        self.flush()
        still = [m for m in failed if m.give_up and m.status.state in life.ALIVE]
        limit = max([0.0, *(m.spec.stop_timeout + 5 for m in still)])
        await self._until(lambda: all(m.status.state not in life.ALIVE for m in still), time.monotonic() + limit)

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

    async def _changed(self, seconds: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(future)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(future, max(0.001, seconds))

    async def _until(self, true: Callable[[], bool], deadline: float) -> bool:
        while not true():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            await self._changed(left)
        return True

    # Records

    def flush_soon(self) -> None:
        """Write what has changed once the events of this moment are through."""
        if self._flush_handle is None and not self._closing:
            self._flush_handle = asyncio.get_running_loop().call_soon(self._flush_quietly)

    def _flush_quietly(self) -> None:
        try:
            self.flush()
        except StateDamaged as error:
            self.output.daemon(str(error))
            asyncio.get_running_loop().call_later(1.0, self.flush_soon)

    def flush(self) -> None:
        """Write changed statuses and released claims in one transaction, then wake those who wait."""
        if self._flush_handle is not None:
            self._flush_handle.cancel()
            self._flush_handle = None
        dirty = {ident: self.processes[ident].status for ident in self._dirty if ident in self.processes}
        if dirty or self._releases:
            with self.store.transaction():
                self.store.put_statuses(dirty)
                self.store.release(self._releases)
            self._dirty.clear()
            self._releases.clear()
        waiters, self._waiters = self._waiters, []
        for future in waiters:
            if not future.done():
                future.set_result(None)

    def _publish(self, kind: str, ident: str, state: str, previous: str, message: str) -> None:
        event = {"time": time.time(), "kind": kind, "id": ident, "state": state, "previous": previous, "message": message}
        for listener in list(self.on_event):
            listener(event)

    def publish(self, kind: str, ident: str, state: str, previous: str, message: str = "") -> None:
        """Tell every subscriber of a change."""
        self._publish(kind, ident, state, previous, message)

    # Helpers of one line

    def _task(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)
        return task

    def _task_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            error = task.exception()
            self.output.daemon(f"{type(error).__name__}: {error}", error)

    async def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        if self.supervisor.blocking:
            return await asyncio.to_thread(function, *arguments)
        return function(*arguments)

    # Adoption

    async def adopt(self, ident: str, facts: Mapping[str, Any]) -> None:
        """Take over a running process that the fleet did not start. facts: as procfs.describe gives them."""
        check_process_id(ident)
        pid = int(facts["pid"])
        if pid in (1, os.getpid()):
            raise InvalidInput(f"pid {pid}: may not be adopted")
        for m in self.processes.values():
            if m.status.pid == pid and m.status.state in life.ALIVE:
                raise Conflict(f'pid {pid}: is process "{m.id}" already')
        if ident in self.processes:
            raise Conflict(f'process "{ident}": exists already')
        if self.supervisor.name != "native":
            raise InvalidInput("a running process can only be adopted by the native supervisor")
        argv = [str(word) for word in facts.get("argv") or []]
        if not argv:
            raise InvalidInput(f"pid {pid}: has no command line, a kernel thread cannot be adopted")
        import shlex

        needs = [{"type": "tcpport", "name": f"port{port}" if n else "tcpport", "value": str(port)} for n, port in enumerate(facts.get("ports") or [])]
        command = shlex.join(argv).replace("%", "%%").replace("${", "$${")
        spec = process_spec({"id": ident, "command": command, "working_dir": facts.get("cwd") or "/", "resources": needs, "restart": "never"})
        claims = [Request("tcpport", ident, need["name"], need["value"]) for need in needs]
        allocation = resources.claim(self.store, claims, known={("tcpport", need["value"]): True for need in needs})
        claimed = {c.name: (c.type, c.value) for c in allocation.claimed}
        status = ProcessStatus(
            state=life.STOPPED, desired="running", driver="native", pid=pid, pid_start=int(facts.get("pid_start") or 0),
            claimed=claimed, started=float(facts.get("started") or time.time()), adopted=True,
        )  # fmt: skip
        try:
            self.store.put_processes([(spec, status)])
        except FleetError:
            self.store.release([ident])
            raise
        m = Managed(spec, status)
        self.processes[ident] = m
        self.output.add(spec, "")
        self._prepare(m)
        seen = self.supervisor.observe({ident: status})[ident]
        if seen.phase != "alive":
            self._remove([ident])
            raise NotFound(f"pid {pid}: has ended")
        self._event(m, life.ADOPT)
        self.flush()


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def ended_text(code: int | None) -> str:
    """Say how a process ended."""
    if code is None:
        return "ended; its exit code is not known"
    if code < 0:
        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"killed by signal {-code}"
    return f"ended with exit code {code}"


def qualified(spec: ProcessSpec) -> ProcessSpec:
    """Return a process whose dependencies are full ids: a bare name means the same environment."""
    if not spec.environment:
        return spec
    needs = [
        {**item.to_dict(), "process": item.process if "/" in item.process else f"{spec.environment}/{item.process}"}
        for item in spec.depends_on
    ]
    return process_spec({**spec.to_dict(), "depends_on": needs})


def _check_dependencies(specs: Mapping[str, ProcessSpec], ids: Iterable[str]) -> None:
    """Raise InvalidInput for an unknown dependency of one of the ids, or for a cycle."""
    graph = {ident: [item.process for item in spec.depends_on] for ident, spec in specs.items()}
    reached: dict[str, list[str]] = {}
    waiting = list(ids)
    while waiting:
        ident = waiting.pop()
        if ident not in reached and ident in graph:
            reached[ident] = graph[ident]
            waiting.extend(graph[ident])
    start_order({**reached, **{name: [] for needs in reached.values() for name in needs if name in graph and name not in reached}})
