# SPDX-License-Identifier: GPL-3.0-or-later
"""One attempt at one task: a shell command in a process group of its own, or a prompt given to a runner."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Callable

if TYPE_CHECKING:
    from fleet_core.errors import FleetError
    from fleet_core.processes import is_secret
    from fleet_core.quantities import format_duration
    from fleet_core.runner_events import Event, Invocation, Turn, Usage
    from fleet_core.runners import runner
    from fleet_core.task_lists import Task
else:
    try:
        from ..fleet_core.errors import FleetError
        from ..fleet_core.processes import is_secret
        from ..fleet_core.quantities import format_duration
        from ..fleet_core.runner_events import Event, Invocation, Turn, Usage
        from ..fleet_core.runners import runner
        from ..fleet_core.task_lists import Task
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import FleetError
        from fleet_core.processes import is_secret
        from fleet_core.quantities import format_duration
        from fleet_core.runner_events import Event, Invocation, Turn, Usage
        from fleet_core.runners import runner
        from fleet_core.task_lists import Task

from .runner_child import Child
from .runner_process import run_turn
from .task_output import Capture

Started = Callable[[int], None]
GRACE = 5.0  # seconds between SIGTERM and SIGKILL
DRAIN = 1.0  # seconds for the rest of the output, which something outside the group may hold open
_POLL = 0.05
_SHORTEST_SECRET = 6
_CONTROL = re.compile(
    r"\x1b(\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|[@-Z\\-_])|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)
_LONGEST_INPUT = 2000  # characters of a tool's input in the log


@dataclass(frozen=True)
class Attempt:
    """How it ended. ok: the command or the runner itself was right. interrupted: somebody stopped it."""

    ok: bool
    reason: str = ""
    rc: int | None = None
    interrupted: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)


def secrets_of(env: Mapping[str, str]) -> tuple[str, ...]:
    """Return the values of variables that look like secrets by their names, the longest first."""
    found = {value for name, value in env.items() if is_secret(name) and len(value) >= _SHORTEST_SECRET}
    found |= {line for value in found for line in value.splitlines() if len(line) >= _SHORTEST_SECRET}
    return tuple(sorted(found, key=len, reverse=True))


async def attempt_command(
    task: Task, folder: str, env: Mapping[str, str], capture: Capture, stop: asyncio.Event, started: Started
) -> Attempt:
    """Run a shell command. Nothing of its process group is left when this returns. started: is told the group."""
    invocation = Invocation(argv=("/bin/sh", "-e", "-c", task.run, task.name), stdin="")
    try:
        child = Child(task.name, invocation, folder, env)
    except FleetError as error:
        return Attempt(False, error.message)
    with child:
        started(child.pid)
        return await _follow(task, child, capture, stop)


async def _follow(task: Task, child: Child, capture: Capture, stop: asyncio.Event) -> Attempt:
    streams = capture.streams
    readers = [
        asyncio.ensure_future(child.read(streams["stdout"].feed)),
        asyncio.ensure_future(child.read(streams["stderr"].feed, stderr=True)),
    ]
    exited, stopped = asyncio.ensure_future(child.wait()), asyncio.ensure_future(stop.wait())
    try:
        limit = task.timeout or None
        done, _rest = await asyncio.wait([exited, stopped], timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        if exited not in done:
            await _end(child, exited)
        elif child.has_others():
            child.signal(signal.SIGTERM)
            await _until_alone(child)
        child.signal(signal.SIGKILL)  # of the group; its leader has ended
        await asyncio.wait(readers, timeout=DRAIN)
    finally:
        for job in (*readers, exited, stopped):
            job.cancel()
        await asyncio.gather(*readers, exited, stopped, return_exceptions=True)
    for stream in streams.values():
        stream.finish()
    if exited not in done:
        if stopped in done:
            return Attempt(False, "stopped", child.code, interrupted=True)
        return Attempt(False, f"not done within {format_duration(task.timeout)}", child.code)
    code = child.code if child.code is not None else -1
    if code in task.expect.rc:
        return Attempt(True, rc=code)
    if code < 0:
        return Attempt(False, f"killed by {_signal(-code)}", code)
    wanted = "" if task.expect.rc == (0,) else f", expected {' or '.join(map(str, task.expect.rc))}"
    return Attempt(False, f"exit code {code}{wanted}", code)


async def _end(child: Child, exited: asyncio.Future[None]) -> None:
    child.signal(signal.SIGTERM)
    await asyncio.wait([exited], timeout=GRACE)
    if exited.done():
        await _until_alone(child)
    child.signal(signal.SIGKILL)
    await exited


async def _until_alone(child: Child) -> None:
    """Give the rest of the group a moment to end."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + DRAIN
    while loop.time() < deadline:
        if not child.has_others():
            return
        await asyncio.sleep(_POLL)


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


async def attempt_prompt(
    task: Task,
    folder: str,
    env: Mapping[str, str],
    capture: Capture,
    stop: asyncio.Event,
    started: Started,
    before: Mapping[str, Any] | None = None,
) -> Attempt:
    """Give a prompt to its runner. before: the result of the task whose session goes on."""
    options, earlier = task.options, before or {}
    turn = Turn(
        prompt=task.prompt,
        session=str(earlier.get("session", "")),
        model=task.model,
        system_prompt=options.system_prompt,
        permission_mode=options.permission_mode,
        max_turns=options.max_turns,
        max_cost=options.max_cost,
        arguments=options.arguments,
        config=options.config,
        command=task.command,
        executable=options.executable,
        baseline=Usage.from_dict(earlier.get("session_total") or {}),
    )

    def told(event: Event) -> None:
        for line in _shown(event):
            capture.note(line)

    try:
        outcome = await run_turn(
            runner(task.runner),
            turn,
            folder=folder,
            env=env,
            on_event=told,
            timeout=task.timeout,
            stop=stop,
            started=lambda pid, ticks: started(pid),
        )
    except FleetError as error:
        return Attempt(False, error.message)
    capture.answer(outcome.result)
    usage = outcome.usage.to_dict()
    cost = usage.pop("cost", None)
    facts: dict[str, Any] = {"session": outcome.session, "usage": usage, "cost": cost, "turns": outcome.turns}
    facts["session_total"] = outcome.session_total.to_dict()
    if outcome.ok:
        return Attempt(True, facts=facts)
    reason = f"not done within {format_duration(task.timeout)}" if outcome.reason == "timeout" else outcome.error
    return Attempt(False, reason or outcome.reason, interrupted=outcome.reason == "interrupted", facts=facts)


def _shown(event: Event) -> list[str]:
    """Return an event of a runner as lines of the log."""
    if event.type in ("text", "error"):
        return event.text.splitlines()
    if event.type == "tool_use":
        given = json.dumps(event.detail.get("input"), ensure_ascii=False, default=str)
        return [f"[{event.detail.get('name') or event.text}] {given[:_LONGEST_INPUT]}"]
    return []


def clean_text(text: str) -> str:
    """Return text without the sequences that move a terminal's cursor or color it."""
    return re.sub(
        r"\x1b(\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|[@-Z\\-_])|[\x00-\x08\x0b-\x1f\x7f-\x9f]", "", text
    )
