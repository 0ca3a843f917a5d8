# SPDX-License-Identifier: GPL-3.0-or-later
"""How processes move through the table of fleet_core.lifecycle: events in, actions out."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from fleet_core import lifecycle as life
from fleet_core.errors import FleetError, ProcessFailed
from fleet_core.processes import ProcessSpec, hide, launch, secrets_of
from fleet_core.restarts import delay_before, wants_restart, within_burst
from fleet_node.store import Store
from fleet_node.supervisor import Job, Observation, Supervisor

from .health import HealthChecks
from .managed import Managed, ended_text
from .output import Output
from .records import Records

SETTLE = 0.2  # seconds that a process without any check must live before its start counts as done
STEADY = 10.0  # seconds of life after which a crash begins a new row of restarts
TURN = 20  # processes launched before fleetd gets to do something else
CRASHES = 3  # crashes in a row after which a waiting caller is told


class Transitions:
    """Every process of this host, and what happens to it between two requests."""

    def __init__(self, store: Store, supervisor: Supervisor, output: Output) -> None:
        self.store = store
        self.supervisor = supervisor
        self.output = output
        self.processes: dict[str, Managed] = {}
        self.projects: dict[str, str] = {}
        self.health = HealthChecks(self._checked)
        self.records = Records(store, self.processes, output.complain)
        self._pending: set[str] = set()
        self._advancing = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closing = False

    # After a restart of fleetd

    def _recover(self, m: Managed, seen: Observation) -> None:
        """Bring one process from its recorded state to the one that is true now."""
        state = m.status.state
        self._prepare(m)
        if seen.phase == "alive":
            m.status = m.status.evolve(pid=seen.pid, pid_start=seen.pid_start)
            m.launched = time.monotonic()
            self.records.mark(m.id)
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
            if m.status.desired == "stopped" and m.status.state in life.WANTED:
                self._event(m, life.STOP, error="")  # an earlier fleetd was killed while it stopped several
        elif state == life.STOPPING:
            self.supervisor.forget([m.id])
            self._event(m, life.GONE, pid=0, ended=time.time())
        elif state == life.BACKOFF and self.supervisor.restarts and seen.phase == "ended":
            self._seen(m, seen)
        elif state == life.BACKOFF:
            if seen.phase != "waiting":
                m.relaunch = self.supervisor.restarts
                self._do_schedule_restart(m)
        elif state == life.STARTING and not m.status.pid:
            self._pending.add(m.id)
        elif seen.phase == "waiting":
            self._event(m, life.EXITED_RETRY, pid=0)
        else:
            self._seen(m, seen)

    # Launching

    def _absolute(self, spec: ProcessSpec, path: str) -> str:
        return os.path.normpath(os.path.join(self._base(spec), os.path.expanduser(path)))

    def _base(self, spec: ProcessSpec) -> str:
        return self.projects.get(spec.environment) or os.path.expanduser("~")

    def _prepare(self, m: Managed) -> None:
        """Work out what would be executed; an error is left for the launch to report."""
        with contextlib.suppress(FleetError):
            self._render(m)

    def known_to(self, m: Managed) -> tuple[dict[str, str], dict[str, str]]:
        """Return what a process may refer to beside its own variables: values of its neighbours, and of this host."""
        others = {}
        if m.spec.environment:
            for other in self.processes.values():
                if other.spec.environment == m.spec.environment and other.status.state in life.WANTED:
                    for name, value in other.status.resources.items():
                        others[f"{other.spec.name}.{name}"] = value
        extra = {"project_dir": self._base(m.spec), "python": sys.executable, "state_dir": str(self.store.folder)}
        return others, extra

    def _render(self, m: Managed) -> Job:
        others, extra = self.known_to(m)
        m.launch = launch(m.spec, m.status.claimed, others, extra)
        m.secrets = secrets_of(m.spec, m.status.claimed, others, extra)
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
            waiting = self.processes.get(ident)
            if waiting is None or waiting.status.state != life.STARTING:
                self._pending.discard(ident)
                continue
            m = waiting
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
            self._task(self._launch_by_turns(batch))

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
                done = (
                    state in (life.RUNNING, life.UNHEALTHY)
                    or (state == life.STARTING and status.pid > 0)
                    or other.completed
                )
            else:
                done = state == life.RUNNING or other.completed
            if done:
                continue
            if state == life.ERROR or (state == life.STOPPED and not other.completed):
                why = status.error or f"it is {state}"
                return "", f'process "{m.id}": waited for "{needed.process}" to be {needed.condition}: {why}'
            return f'"{needed.process}" to be {needed.condition}', ""
        return "", ""

    async def _launch_by_turns(self, batch: Sequence[Managed]) -> None:
        """Launch a few at a time, so that others are answered in between; a supervisor in a thread gets all at once."""
        size = len(batch) if self.supervisor.blocking else TURN
        for begin in range(0, len(batch), size):
            await self._launch(batch[begin : begin + size])
            await asyncio.sleep(0)

    async def _launch(self, batch: Sequence[Managed]) -> None:
        jobs = []
        for m in batch:
            if m.status.state == life.STOPPING:  # while it waited for its turn
                m.spawning = False
                self._event(m, life.GONE, ended=time.time())
                continue
            try:
                jobs.append(self._render(m))
                self.output.add(m.spec, self.projects.get(m.spec.environment, ""))
            except FleetError as error:
                m.spawning = False
                self._event(m, life.LAUNCH_FAILED, error=str(error), ended=time.time())
        outcomes: dict[str, Any] = {}
        try:
            outcomes = await self._call(self.supervisor.start, jobs) if jobs else {}
        except FleetError as error:
            outcomes = {job.id: error for job in jobs}
        except Exception as error:  # a process without an outcome could never be stopped
            self.output.complain(f"launching failed: {type(error).__name__}: {error}", error)
        now, moment = time.time(), time.monotonic()
        for job in jobs:
            m = self.processes[job.id]
            m.spawning = False
            outcome = outcomes.get(job.id) or ProcessFailed(
                f'process "{job.id}": the {self.supervisor.name} supervisor did not answer'
            )
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
            self.records.mark(m.id)
            self.output.note(m.id, outcome.pid, "started")
            if m.status.state == life.STOPPING:
                self._do_terminate(m)
            else:
                self._watch_start(m)
        self._advance_soon()

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
            m.late = hide(f"not ready within {m.spec.start_timeout:g} s: {message}", m.secrets)
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
        if changes.get("error"):
            changes["error"] = hide(changes["error"], m.secrets)
        m.status = m.status.evolve(state=state, **changes)
        m.waiting = "" if state != life.STARTING else m.waiting
        for action in actions:
            getattr(self, f"_do_{action}")(m)
        self.records.mark(m.id)
        self.records.publish("process", m.id, state, previous, m.status.error)
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
            self.output.note(
                m.id, m.status.pid, f"did not end within {m.spec.stop_timeout:g} s, killed", level="Lifecycle"
            )
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
        self.records.release(m.id)

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

    def _exited(self, m: Managed, code: int | None, more: str = "") -> None:
        """Decide what follows from the end of a process. more: what the supervisor says of it."""
        self.health.forget(m.id)
        if m.ready_task is not None:
            m.ready_task.cancel()
            m.ready_task = None
        if m.kill_timer is not None:
            m.kill_timer.cancel()
            m.kill_timer = None
        self.output.drain(m.id)
        self.output.note(m.id, m.status.pid, ended_text(code))
        changes: dict[str, Any] = {"pid": 0, "pid_start": 0, "ended": time.time(), "exit_code": code, "healthy": None}
        policy = m.spec.restart
        last = self.output.last_line(m.id, m.status.pid)
        why = f'process "{m.id}": {m.late or ended_text(code)}' + (f": {last}" if last and code != 0 else "")
        why += f"; {more}" if more else ""
        if m.status.state == life.STOPPING:
            self._event(m, life.GONE, **changes)
            return
        if m.give_up or m.status.desired == "stopped":
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
        started = [self.processes[i] for i in ids if i in self.processes and i not in self._pending]
        # What is seen of one that is yet to be launched is how its launch before that ended.
        launched = [m for m in started if not m.spawning and (m.status.pid or m.status.state != life.STARTING)]
        known = {m.id: m.status for m in launched}
        if not known:
            return
        observed = await self._call(self.supervisor.observe, known)
        for ident, seen in observed.items():
            m = self.processes.get(ident)
            if m is not None and not m.spawning and m.status.launch == known[ident].launch:
                self._seen(m, seen)

    def _seen(self, m: Managed, seen: Observation) -> None:
        state = m.status.state
        if seen.phase == "absent" and self.supervisor.restarts and state != life.STOPPING:
            m.relaunch = True  # the host was booted: the supervisor cannot restart what it does not know
        if seen.phase in ("ended", "absent"):
            if state in life.ALIVE and (m.status.pid or state == life.STOPPING or self.supervisor.restarts):
                self._exited(m, seen.exit_code, seen.error)
            elif state == life.BACKOFF and self.supervisor.restarts and m.restart_timer is None:
                self._event(m, life.RETRY)
                self._pending.discard(m.id)
                self._exited(m, seen.exit_code, seen.error)
        elif seen.phase == "waiting":
            if state in (life.STARTING, life.RUNNING, life.UNHEALTHY):
                self._supervisor_restarts(m, seen)
        elif seen.phase == "alive" and self.supervisor.restarts:
            if state in (life.STARTING, life.RUNNING, life.UNHEALTHY) and m.status.pid and seen.pid != m.status.pid:
                self._supervisor_restarts(m, seen)
                state = m.status.state
            if state == life.BACKOFF and m.restart_timer is None:
                self._event(
                    m, life.RETRY, pid=seen.pid, pid_start=seen.pid_start, restarts=seen.restarts, started=time.time()
                )
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
        self.output.note(m.id, m.status.pid, ended_text(code))
        why = f'process "{m.id}": {ended_text(code)}'
        self._event(
            m,
            life.EXITED_RETRY,
            pid=0,
            pid_start=0,
            exit_code=code,
            restarts=seen.restarts,
            error=why,
            ended=time.time(),
        )

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
                self.records.mark(ident)
        elif m.status.state == life.RUNNING:
            text = hide(f"unhealthy: {message}", m.secrets)
            self.output.note(ident, m.status.pid, text, level="Error")
            if m.launch.health.action == "restart" and m.spec.restart.policy != "never":
                m.relaunch = True
                m.late = text
                self._event(m, life.UNHEALTHY_RESTART, healthy=False, error=f'process "{ident}": {text}')
            else:
                self._event(m, life.UNHEALTHY_NOW, healthy=False, error=f'process "{ident}": {text}')

    # Work in the background

    def _task(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)
        return task

    def _task_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            error = task.exception()
            self.output.complain(f"{type(error).__name__}: {error}", error)

    async def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        if self.supervisor.blocking:
            return await asyncio.to_thread(function, *arguments)
        return function(*arguments)


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None
