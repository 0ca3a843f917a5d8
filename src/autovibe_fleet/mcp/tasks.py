# SPDX-License-Identifier: GPL-3.0-or-later
"""Tools on task lists: commands and prompts with needs, limits and expectations, run in a folder of this host."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from fleet_core.errors import InvalidInput, NotFound, Unavailable
from fleet_core.task_lists import TaskList, task_list
from fleet_node import task_runs

from . import shapes
from .tools import READS, RUNS, Ctx, Toolbox, host

toolbox = Toolbox()

_OUTPUT = 4000  # characters of a task's output in the answer; the whole is in its files

Tasks = Annotated[
    dict[str, Any] | None,
    Field(description='A task list: {"version": 1, "tasks": [{"name", "run" | "prompt", "needs": [], ...}]}.'),
]
File = Annotated[str | None, Field(description="Instead: a file on this host, JSON or YAML.")]
Workdir = Annotated[str | None, Field(description="Folder to run it in, instead of the list's own.")]
Resume = Annotated[bool, Field(description="Go on with the newest run of this list in this folder, from what failed.")]


class Planned(TypedDict, total=False):
    """What would run, in the list's order. satisfied: left out, for what they create is there."""

    folder: str
    tasks: list[str]
    run: list[str]
    satisfied: list[str]
    resumes: str


class Ran(TypedDict, total=False):
    """A run of a task list. state: succeeded, failed, stopped... tasks: the result of each, with the end of its output;
    the whole is in the files that it names."""

    __pydantic_config__ = shapes.OPEN  # type: ignore[misc]

    id: Any
    name: str
    state: str
    reason: str
    tasks: list[dict[str, Any]]


def _request(tasks: dict[str, Any] | None, file: str | None, workdir: str | None, resume: bool) -> task_runs.Request:
    if (tasks is None) == (file is None):
        raise InvalidInput("task list: expected tasks or file, one of them")
    found = task_list(tasks) if tasks is not None else _read(Path(str(file)).expanduser())
    return task_runs.Request(found, workdir=workdir or "", resume=resume, source=file or "")


def _read(path: Path) -> TaskList:
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except FileNotFoundError:
        raise NotFound(f"task list {path}: no such file") from None
    except OSError as error:
        raise Unavailable(f"task list {path}: {error.strerror or error}") from None
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise InvalidInput(f"task list {path}: {' '.join(str(error).split())}") from None
    return task_list(data, path.stem)


@toolbox.tool("Plan a task list", READS)
async def plan_task_list(
    ctx: Ctx, tasks: Tasks = None, file: File = None, workdir: Workdir = None, resume: Resume = False
) -> Planned:
    """Check a task list and say what would run, without running anything."""

    def look() -> Planned:
        request = _request(tasks, file, workdir, resume)
        plan = task_runs.plan(request, host(ctx).folder)
        found: Planned = {
            "folder": request.folder,
            "tasks": [item.name for item in request.tasks.tasks],
            "run": list(plan.pending),
            "satisfied": list(plan.satisfied),
        }
        if plan.before is not None:
            found["resumes"] = str(plan.before.id)
        return found

    return await host(ctx).thread(look)


@toolbox.tool("Run a task list", RUNS)
async def run_task_list(
    ctx: Ctx, tasks: Tasks = None, file: File = None, workdir: Workdir = None, resume: Resume = False
) -> Ran:
    """Run a task list in a folder of this host and wait for its end, with progress meanwhile. Independent tasks run at
    the same time; what depends on a failed task is left out. Cancelling the call stops what runs. A task that fails is
    part of the answer, not an error."""
    request = _request(tasks, file, workdir, resume)
    stop = asyncio.Event()
    events: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue()
    running = asyncio.create_task(task_runs.run(request, host(ctx).folder, events.put_nowait, stop))
    reporting = asyncio.create_task(_report(ctx, events))
    try:
        view = await asyncio.shield(running)
    finally:
        reporting.cancel()
        if not running.done():
            stop.set()
            running.add_done_callback(_retrieved)
    return {**shapes.lean(view), "tasks": [_task(item) for item in view["tasks"]]}


def _retrieved(task: asyncio.Task[Any]) -> None:
    with contextlib.suppress(asyncio.CancelledError, Exception):
        task.result()


async def _report(ctx: Ctx, events: asyncio.Queue[Mapping[str, Any]]) -> None:
    count = 0
    while True:
        event = await events.get()
        text = _said(event)
        if text:
            count += 1
            await ctx.report_progress(count, None, text)


def _said(event: Mapping[str, Any]) -> str:
    """Return an event of a run in words, or nothing for what is not worth them."""
    if event.get("event") == "output":
        return f"{event.get('task')}: {event.get('text')}"
    if event.get("event") == "task":
        reason = event.get("reason")
        return f"{event.get('task')} is {event.get('state')}" + (f": {reason}" if reason else "")
    return ""


def _task(result: Mapping[str, Any]) -> Any:
    found = shapes.lean(result)
    for key in ("stdout", "stderr"):
        if len(str(found.get(key, ""))) > _OUTPUT:
            found[key] = "..." + str(found[key])[-_OUTPUT:]
    return found
