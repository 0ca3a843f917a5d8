# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs of task lists that go on by themselves: started detached, followed from any process, cancelled, fetched."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, NoReturn

if TYPE_CHECKING:
    from fleet_core.errors import FleetError, TimedOut, Unavailable, from_code
    from fleet_core.names import as_text_map
    from fleet_core.runners import runner
    from fleet_core.task_lists import task_list
else:
    try:
        from ..fleet_core.errors import FleetError, TimedOut, Unavailable, from_code
        from ..fleet_core.names import as_text_map
        from ..fleet_core.runners import runner
        from ..fleet_core.task_lists import task_list
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import FleetError, TimedOut, Unavailable, from_code
        from fleet_core.names import as_text_map
        from fleet_core.runners import runner
        from fleet_core.task_lists import task_list

from . import artifacts, procfs, task_runs, task_state
from .task_runs import OnEvent, Request
from .task_state import TaskRun

_POLL = 0.1
_ENDING = 30.0  # seconds that a runner gets to end what it runs


class Started(NamedTuple):
    """A run that works by itself. position: where its events begin."""

    run: TaskRun
    position: int


def request_from(data: Mapping[str, Any]) -> Request:
    """Return the request that plain data holds: list, workdir, environ, resume, source, partial."""
    return Request(
        tasks=task_list(data.get("list")),
        workdir=str(data.get("workdir") or ""),
        environ=as_text_map("environ", data.get("environ")),
        resume=bool(data.get("resume")),
        source=str(data.get("source") or ""),
        partial=bool(data.get("partial")),
    )


def run_here(request: Request, state_dir: Path, on_event: OnEvent) -> dict[str, Any]:
    """Run a list in this process and return its view; SIGINT and SIGTERM end it cleanly."""

    async def main() -> dict[str, Any]:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN or number != signal.SIGHUP:
                loop.add_signal_handler(number, stop.set)
        return await task_runs.run(request, state_dir, on_event, stop)

    return asyncio.run(main())


def start(request: Request, state_dir: Path) -> Started:
    """Run a list in a process of its own, which survives this one. Raises what task_runs.run raises."""
    task_runs.plan(request, state_dir)
    before = task_state.latest(state_dir, request.tasks.name, request.folder) if request.resume else None
    position = before.events_size() if before is not None else 0
    for item in request.tasks.tasks:
        if item.prompt:
            runner(item.runner)  # loads its code now: the archive that holds it may be gone later
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(ours)
            os.setsid()
            if os.fork() == 0:
                _detached(request, state_dir, theirs)
        finally:
            os._exit(0)
    os.close(theirs)
    os.waitpid(child, 0)
    with os.fdopen(ours, "rb") as pipe:
        answer = json.loads(pipe.read() or b"{}")
    if "error" in answer:
        raise from_code(answer["code"], answer["error"])
    if "run" not in answer:
        raise Unavailable("task list: its runner ended before it began")
    return Started(task_state.find(state_dir, answer["run"]), position)


def _detached(request: Request, state_dir: Path, pipe: int) -> NoReturn:
    """Run the list as a process without a terminal; tell the number of the run, or the error, once."""
    told = False

    def tell(answer: Mapping[str, Any]) -> None:
        nonlocal told
        if not told:
            told = True
            os.write(pipe, json.dumps(answer).encode())
            os.close(pipe)

    try:
        null = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        os.closerange(3, pipe)
        os.closerange(pipe + 1, 65536)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGCHLD):
            signal.signal(number, signal.SIG_IGN if number == signal.SIGPIPE else signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        run_here(request, state_dir, lambda event: tell({"run": event["run"]}))
    except FleetError as error:
        tell({"error": error.message, "code": error.code})
    except BaseException as error:
        tell({"error": f"task list: unexpected {type(error).__name__}: {error}", "code": "error"})
    os._exit(0)


def poll(run: TaskRun, position: int, wait: float = 0.0) -> tuple[list[dict[str, Any]], bool]:
    """Return the events behind a position, each with its own, and whether there will be no more.

    wait: how many seconds to wait for the first of them.
    """
    deadline = time.monotonic() + wait
    while True:
        alive = run.alive()
        events = run.events(position)
        if events or not alive or time.monotonic() >= deadline:
            return events, not alive and not events
        time.sleep(_POLL)


def follow(run: TaskRun, position: int = 0) -> Iterator[dict[str, Any]]:
    """Give the events of a run as they come, until it is over."""
    over = False
    while not over:
        events, over = poll(run, position, 1.0)
        for event in events:
            position = event["position"]
            yield event


def cancel(run: TaskRun) -> bool:
    """End a run with all its tasks and return whether it was running. Raises TimedOut when that cannot be done."""
    header = run.header()
    was_alive = run.alive()
    if was_alive:
        with contextlib.suppress(ProcessLookupError):
            os.kill(header["pid"], signal.SIGTERM)
        deadline = time.monotonic() + _ENDING
        while run.alive() and time.monotonic() < deadline:
            time.sleep(_POLL)
        if run.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(header["pid"], signal.SIGKILL)
    run.end_left()
    if procfs.alive(header["pid"], header["pid_started"]) and run.alive():
        raise TimedOut(f"task run {run.id}: its runner (pid {header['pid']}) did not end within {_ENDING:g} s")
    return was_alive


def artifact_names(run: TaskRun, view: Mapping[str, Any] | None = None) -> list[str]:
    """Return the files that the tasks of a run have left, relative to its workdir."""
    shown = run.view(False) if view is None else view
    return sorted({name for result in shown["tasks"] for name in result["artifacts"]})


def archive(run: TaskRun, target: IO[bytes]) -> int:
    """Write the artifacts of a run to a tar and return how many there were."""
    return artifacts.pack(run.header()["workdir"], artifact_names(run), target)
