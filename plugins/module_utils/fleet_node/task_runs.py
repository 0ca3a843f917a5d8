# SPDX-License-Identifier: GPL-3.0-or-later
"""Running a task list in a folder of this host. Every step is on disk before the next one."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

if TYPE_CHECKING:
    from fleet_core.errors import FleetError, InvalidInput, NotFound
    from fleet_core.processes import hide
    from fleet_core.task_lists import Task, TaskList
    from fleet_core.task_progress import Resume, move, next_ready, resume
else:
    try:
        from ..fleet_core.errors import FleetError, InvalidInput, NotFound
        from ..fleet_core.processes import hide
        from ..fleet_core.task_lists import Task, TaskList
        from ..fleet_core.task_progress import Resume, move, next_ready, resume
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import FleetError, InvalidInput, NotFound
        from fleet_core.processes import hide
        from fleet_core.task_lists import Task, TaskList
        from fleet_core.task_progress import Resume, move, next_ready, resume

from . import artifacts, procfs, task_state
from .native import read_env_file
from .task_attempts import Attempt, attempt_command, attempt_prompt, clean_text, secrets_of
from .task_output import Capture
from .task_state import TASK, TOKEN, TaskRun

OnEvent = Callable[[Mapping[str, Any]], None]
_OUTPUT_EVERY = 0.25  # seconds between two events with output of one task
_OUTPUT_LENGTH = 500  # characters


@dataclass(frozen=True)
class Request:
    """A list to be run. workdir: instead of the list's own. environ: values for its pass_env, never stored.

    resume: go on with the newest run of the list of this name in this folder. source: where the list comes from.
    partial: only some of its tasks were chosen, so it is nothing to be resumed later.
    """

    tasks: TaskList
    workdir: str = ""
    environ: Mapping[str, str] = field(default_factory=dict)
    resume: bool = False
    source: str = ""
    partial: bool = False

    @property
    def folder(self) -> str:
        """The absolute folder in which the list runs."""
        return os.path.abspath(os.path.expanduser(self.workdir or self.tasks.workdir or "."))


@dataclass(frozen=True)
class Plan:
    """What a request would do. before: the run that is resumed. satisfied: tasks left out because of `creates`."""

    before: TaskRun | None
    resume: Resume
    satisfied: tuple[str, ...]

    @property
    def pending(self) -> tuple[str, ...]:
        """The tasks that would be executed, as far as can be known before."""
        return tuple(name for name in self.resume.run if name not in self.satisfied)


def plan(request: Request, state_dir: Path) -> Plan:
    """Return what a request would do now. Raises InvalidInput for a folder or a variable that is not there."""
    found, folder = request.tasks, request.folder
    where = f'task list "{found.name}"' if found.name else "task list"
    if not os.path.isdir(folder):
        raise InvalidInput(f"{where}: workdir: expected a folder, found none at {folder}")
    if request.resume and request.partial:
        raise InvalidInput(f"{where}: expected resume or a choice of tasks, found both")
    missing = [name for name in found.passed if name not in request.environ and name not in os.environ]
    if missing:
        raise InvalidInput(f'{where}: pass_env: the variable "{missing[0]}" is not set')
    for item in found.tasks:
        _read_files(where, (*found.env_files, *item.env_files), folder)
    before = task_state.latest(state_dir, found.name, folder) if request.resume else None
    if request.resume and before is None:
        raise NotFound(f"{where}: no earlier run in {folder} to resume")
    todo = Resume((), found.names, ()) if before is None else resume(found, before.tasks(), before.states())
    satisfied = tuple(name for name in todo.run if _created(found.task(name), folder))
    return Plan(before, todo, satisfied)


def _created(item: Task, folder: str) -> bool:
    own = os.path.join(folder, item.workdir)
    return bool(item.creates) and all(artifacts.matches(own, pattern) for pattern in item.creates)


def _read_files(where: str, files: tuple[str, ...], folder: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in files:
        found.update(read_env_file(where, os.path.join(folder, os.path.expanduser(name))))
    return found


async def run(
    request: Request,
    state_dir: Path,
    on_event: OnEvent = lambda event: None,
    stop: asyncio.Event | None = None,
) -> dict[str, Any]:
    """Run a list and return its view (TaskRun.view). What a task does wrong is in there, never an exception.

    stop: set it to end what runs and to start nothing more. Raises InvalidInput and NotFound as plan does, and Conflict
    when the run to be resumed is still running.
    """
    todo = plan(request, state_dir)
    if todo.before is None:
        state = task_state.create(state_dir)
    else:
        state = todo.before
        state.lock()
    try:
        return await _Runner(request, todo, state, on_event, stop or asyncio.Event()).run()
    finally:
        state.unlock()
        task_state.prune(state_dir)


class _Runner:
    """One run, from its first task to its last."""

    def __init__(self, request: Request, todo: Plan, state: TaskRun, on_event: OnEvent, stop: asyncio.Event) -> None:
        self._request = request
        self._tasks = request.tasks
        self._folder = request.folder
        self._plan = todo
        self._state = state
        self._on_event = on_event
        self._stop = stop
        self._why = ""
        self._results: dict[str, dict[str, Any]] = {}
        self._shown: dict[str, float] = {}

    async def run(self) -> dict[str, Any]:
        begun = time.monotonic()
        states = self._begin()
        working: dict[asyncio.Future[None], str] = {}
        stopped: asyncio.Future[Any] = asyncio.ensure_future(self._stop.wait())
        timer = asyncio.ensure_future(self._limit())
        try:
            while True:
                step = next_ready(self._tasks, states, self._why)
                for name, reason in step.skip.items():
                    states = move(states, name, "skipped")
                    self._set(name, state="skipped", reason=reason)
                for name in step.start:
                    states = move(states, name, "running")
                    working[asyncio.ensure_future(self._one(self._tasks.task(name)))] = name
                if step.done:
                    break
                waiting = [*working, *(job for job in (stopped, timer) if not job.done())]
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if self._stop.is_set() and not self._why:
                    self._why = "the run was stopped"
                for job in [job for job in working if job.done()]:
                    job.result()
                    name = working.pop(job)
                    states = move(states, name, self._results[name]["state"])
        finally:
            for job in (stopped, timer, *working):
                job.cancel()
            await asyncio.gather(stopped, timer, *working, return_exceptions=True)
        return self._finish(begun)

    async def _limit(self) -> None:
        """End the run when the whole list has used up its time."""
        if not self._tasks.timeout:
            await asyncio.Event().wait()
        await asyncio.sleep(self._tasks.timeout)
        self._why = f"the list was not done within {self._tasks.timeout:g} s"
        self._stop.set()

    def _begin(self) -> dict[str, str]:
        before = self._plan.before
        notes = list(self._plan.resume.notes)
        if before is not None:
            killed = before.end_left()
            if killed:
                notes.append(f"ended {killed} process{'es' if killed > 1 else ''} that the earlier runner had left")
            earlier = before.header()
        self._header = {
            "id": self._state.id,
            "name": self._tasks.name,
            "hash": self._tasks.hash,
            "state": "running",
            "reason": "",
            "workdir": self._folder,
            "source": self._request.source,
            "partial": self._request.partial,
            "parallel": self._tasks.parallel,
            "started": earlier["started"] if before is not None else task_state.now(),
            "finished": None,
            "duration": None,
            "resumed": earlier["resumed"] + 1 if before is not None else 0,
            "notes": notes,
            "pid": os.getpid(),
            "pid_started": procfs.start_ticks(os.getpid()) or 0,
            "list": self._tasks.to_dict(),
        }
        states = {}
        for name in self._tasks.names:
            if before is not None and name in self._plan.resume.keep:
                self._results[name] = {**before.result(name), "kept": True}
                self._state.write_result(name, self._results[name])
                states[name] = self._results[name]["state"]
            else:
                self._state.forget(name)
                states[name] = "pending"
        self._state.write_header(self._header)
        self._tell("run", state="running", workdir=self._folder, tasks=list(self._tasks.names), notes=notes)
        for name in self._plan.resume.keep:
            self._tell("task", task=name, state=states[name], reason="done before", kept=True)
        return states

    def _finish(self, begun: float) -> dict[str, Any]:
        view = self._state.view(False)
        interrupted = self._stop.is_set() and not self._why.startswith("the list")
        self._header["state"] = "interrupted" if interrupted else task_state.summary(view)
        if self._header["state"] == "interrupted" and not interrupted:
            self._header["state"] = "failed"
        self._header["reason"] = self._why
        self._header["finished"] = task_state.now()
        self._header["duration"] = round(time.monotonic() - begun, 3)
        names = sorted({name for result in self._results.values() for name in result.get("artifacts", ())})
        self._header["artifacts"] = names
        self._state.write_header(self._header)
        self._tell("run", state=self._header["state"], reason=self._why, duration=self._header["duration"])
        return self._state.view()

    async def _one(self, item: Task) -> None:
        """Run one task to its end, retries and artifacts included. Whatever goes wrong is its result."""
        try:
            await self._attempts(item)
        except FleetError as error:
            self._set(item.name, state="failed", reason=error.message, finished=task_state.now())
        except OSError as error:
            self._set(item.name, state="failed", reason=f"unexpected: {error}", finished=task_state.now())

    async def _attempts(self, item: Task) -> None:
        name, folder = item.name, os.path.join(self._folder, item.workdir)
        wrong = _outside(folder, self._folder)
        if wrong:
            self._set(name, state="failed", reason=wrong)
            return
        if _created(item, folder=self._folder):
            self._set(name, state="unchanged", reason=f"{', '.join(item.creates)} exists")
            return
        env = self._env(item)
        secrets = secrets_of({**os.environ, **env})
        log = self._state.log(name)
        begun = time.monotonic()
        facts: dict[str, Any] = {"started": task_state.now(), "output_file": str(log), "attempts": 0}
        for number in range(1, item.retries + 2):
            facts["attempts"] = number
            self._set(name, state="running", **facts)
            attempt, shown = await self._attempt(item, folder, env, secrets, facts)
            facts.update(shown, rc=attempt.rc, reason=attempt.reason, **_added(facts, attempt))
            if attempt.ok or attempt.interrupted or number > item.retries:
                break
            self._tell("task", task=name, state="retrying", reason=attempt.reason, attempts=number)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stop.wait(), item.retry_delay)
            if self._stop.is_set():
                break
        state = "succeeded" if attempt.ok else "interrupted" if attempt.interrupted else "failed"
        facts.update(duration=round(time.monotonic() - begun, 3), finished=task_state.now())
        try:
            loop = asyncio.get_running_loop()  # others go on while a large tree is searched
            names, unmatched = await loop.run_in_executor(None, artifacts.find, self._folder, folder, item.artifacts)
            facts["artifacts"] = names
            facts["warnings"] = [f'artifacts: nothing matches "{pattern}"' for pattern in unmatched]
        except FleetError as error:
            if attempt.ok:
                state, facts["reason"] = "failed", error.message
        self._set(name, state=state, **facts)

    async def _attempt(
        self, item: Task, folder: str, env: Mapping[str, str], secrets: tuple[str, ...], facts: Mapping[str, Any]
    ) -> tuple[Attempt, dict[str, Any]]:
        number = facts["attempts"]

        def started(pid: int) -> None:
            self._write(item.name, {"state": "running", "pid": pid, **facts})

        def on_line(stream: str, text: str) -> None:
            self._output(item.name, text)

        capture = Capture(self._state.log(item.name), item.expect, secrets, on_line)
        try:
            if number > 1 or self._plan.before is not None:
                capture.write(f"--- attempt {number}" + (", resumed ---" if self._plan.before is not None else " ---"))
            if item.run:
                attempt = await attempt_command(item, folder, env, capture, self._stop, started)
            else:
                earlier = self._results.get(item.session) if item.session else None
                attempt = await attempt_prompt(item, folder, env, capture, self._stop, started, earlier)
            attempt = _without(attempt, secrets)
            complaint = capture.complaint or self._missing_file(item, folder)
            if attempt.ok and complaint:
                attempt = dataclasses.replace(attempt, ok=False, reason=complaint)
            if not attempt.ok:
                capture.write(f"--- {attempt.reason} ---")
        finally:
            capture.close()
        tails = capture.tails
        return attempt, {
            "stdout": tails["stdout"].text,
            "stderr": tails["stderr"].text,
            "truncated": any(tail.truncated for tail in tails.values()),
        }

    @staticmethod
    def _missing_file(item: Task, folder: str) -> str:
        for pattern in item.expect.files:
            if not artifacts.matches(folder, pattern):
                return f'expected the file "{pattern}"'
        return ""

    def _env(self, item: Task) -> dict[str, str]:
        """Return what a task gets on top of the environment of its runner."""
        where, passed = f'task "{item.name}"', self._request.environ
        found: dict[str, str] = {}
        for part in (self._tasks, item):
            found.update(_read_files(where, part.env_files, self._folder))
            found.update(part.env)
            found.update({name: passed[name] for name in part.pass_env if name in passed})
        return {**found, TASK: item.name, TOKEN: self._state.token}

    def _output(self, name: str, text: str) -> None:
        """Tell the last line of output, unless one was told just before."""
        now = time.monotonic()
        if now - self._shown.get(name, 0.0) >= _OUTPUT_EVERY:
            line = clean_text(text[-10 * _OUTPUT_LENGTH :]).strip().rpartition("\n")[2]
            if line:
                self._shown[name] = now
                self._tell("output", task=name, text=line[:_OUTPUT_LENGTH])

    def _set(self, name: str, **facts: Any) -> None:
        """Write the result of a task and tell of it."""
        self._write(name, facts)
        hidden = ("name", "stdout", "stderr", "session_total", "output_file")
        self._tell("task", task=name, **{key: value for key, value in facts.items() if key not in hidden})

    def _write(self, name: str, facts: Mapping[str, Any]) -> None:
        self._results[name] = {**task_state.BLANK, "name": name, **facts}
        self._state.write_result(name, self._results[name])

    def _tell(self, kind: str, **facts: Any) -> None:
        event = {"time": task_state.now(), "event": kind, "run": self._state.id, **facts}
        self._state.add_event(event)
        self._on_event(event)


def _without(attempt: Attempt, secrets: tuple[str, ...]) -> Attempt:
    """Return an attempt without secrets: tools like to repeat the key that was wrong."""
    facts = {key: hide(value, secrets) if isinstance(value, str) else value for key, value in attempt.facts.items()}
    return dataclasses.replace(attempt, reason=hide(attempt.reason, secrets), facts=facts)


def _outside(folder: str, root: str) -> str:
    """Return what is wrong with the folder of a task, or an empty string."""
    if not os.path.isdir(folder):
        return f"workdir: expected a folder, found none at {folder}"
    inside = os.path.realpath(root)
    if os.path.commonpath([os.path.realpath(folder), inside]) != inside:
        return f"workdir: {folder} leads out of {root}"
    return ""


def _added(facts: Mapping[str, Any], attempt: Attempt) -> dict[str, Any]:
    """Return the facts of an attempt; usage and cost are summed over all attempts."""
    found = dict(attempt.facts)
    if "usage" in found and facts.get("usage"):
        found["usage"] = {
            key: facts["usage"].get(key, 0) + found["usage"].get(key, 0) for key in {*facts["usage"], *found["usage"]}
        }
    if facts.get("cost") is not None:
        found["cost"] = facts["cost"] + (found.get("cost") or 0)
    return found
