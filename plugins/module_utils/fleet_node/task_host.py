# SPDX-License-Identifier: GPL-3.0-or-later
"""The program that runs task lists on another machine: one request on standard input, JSON lines on standard output.

It travels as a zip of fleet_core and fleet_node, so the machine needs nothing but Python 3.9.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

if TYPE_CHECKING:
    from fleet_core.errors import FleetError, InvalidInput, NotFound
    from fleet_core.names import nearest
    from fleet_core.task_progress import plan as plan_of
    from fleet_core.task_progress import plan_text
else:
    try:
        from ..fleet_core.errors import FleetError, InvalidInput, NotFound
        from ..fleet_core.names import nearest
        from ..fleet_core.task_progress import plan as plan_of
        from ..fleet_core.task_progress import plan_text
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import FleetError, InvalidInput, NotFound
        from fleet_core.names import nearest
        from fleet_core.task_progress import plan as plan_of
        from fleet_core.task_progress import plan_text

from . import paths, task_runs, task_service, task_state


def _say(data: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(data) + "\n")
    sys.stdout.flush()


def _request() -> dict[str, Any]:
    """Return the request: the first line of standard input, which stays open as long as the caller listens."""
    line = sys.stdin.readline()
    try:
        data = json.loads(line)
    except ValueError:
        data = None
    if not isinstance(data, dict):
        raise InvalidInput("task list: expected a request as one line of JSON on standard input")
    return data


def _start(state_dir: Path, words: Sequence[str]) -> None:
    started = task_service.start(task_service.request_from(_request()), state_dir)
    _say({"run": started.run.id, "position": started.position})


def _plan(state_dir: Path, words: Sequence[str]) -> None:
    _say(describe_plan(task_service.request_from(_request()), state_dir))


def describe_plan(request: task_runs.Request, state_dir: Path) -> dict[str, Any]:
    """Return what a request would do on this host, and the same as text."""
    todo = task_runs.plan(request, state_dir)
    left = (*todo.resume.keep, *todo.satisfied)
    return {
        "plan": {**plan_of(request.tasks, left), "workdir": request.folder},
        "text": plan_text(request.tasks, left),
        "pending": list(todo.pending),
        "notes": list(todo.resume.notes),
        "run": todo.before.id if todo.before is not None else None,
    }


def _follow(state_dir: Path, words: Sequence[str]) -> None:
    run = task_state.find(state_dir, words[0])
    position = int(words[1]) if len(words) > 1 else 0
    over = False
    while not over:
        events, over = task_service.poll(run, position, 0.5)
        for event in events:
            position = event["position"]
            _say(event)
        if not over and select.select([sys.stdin], [], [], 0)[0] and not os.read(0, 1024):
            return  # the caller is gone
    _say({"event": "end", "view": run.view()})


def _view(state_dir: Path, words: Sequence[str]) -> None:
    _say({"view": task_state.find(state_dir, words[0]).view()})


def _list(state_dir: Path, words: Sequence[str]) -> None:
    _say({"runs": [run.view(False) for run in task_state.written(state_dir)]})


def _cancel(state_dir: Path, words: Sequence[str]) -> None:
    run = task_state.find(state_dir, words[0])
    _say({"cancelled": task_service.cancel(run), "view": run.view(False)})


def log_of(run: task_state.TaskRun, name: str) -> Path:
    """Return the file with the output of a task. Raises NotFound for a task that the run has not, or not begun."""
    names = run.tasks().names
    if name not in names:
        raise NotFound(f'task run {run.id}: has no task "{name}"{nearest(name, names)}')
    if not run.log(name).exists():
        raise NotFound(f'task run {run.id}: the task "{name}" was not executed')
    return run.log(name)


def _output(state_dir: Path, words: Sequence[str]) -> None:
    run = task_state.find(state_dir, words[0])
    with open(log_of(run, words[1]), "rb") as file:
        shutil.copyfileobj(file, sys.stdout.buffer)


def _artifacts(state_dir: Path, words: Sequence[str]) -> None:
    task_service.archive(task_state.find(state_dir, words[0]), sys.stdout.buffer)


_COMMANDS: dict[str, Callable[[Path, Sequence[str]], None]] = {
    "start": _start,
    "plan": _plan,
    "follow": _follow,
    "view": _view,
    "list": _list,
    "cancel": _cancel,
    "output": _output,
    "artifacts": _artifacts,
}


def main(arguments: Sequence[str]) -> int:
    """Run one command: COMMAND STATE_DIR [WORD]...; an empty STATE_DIR is this user's own. Return the exit code."""
    command, given, *words = arguments
    try:
        _COMMANDS[command](paths.state_dir(given), words)
        sys.stdout.flush()
    except FleetError as error:
        return _complain(error.code, error.message, error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except Exception as error:
        return _complain("error", f"unexpected {type(error).__name__}: {' '.join(str(error).split())}", 1)
    return 0


def _complain(code: str, message: str, exit_code: int) -> int:
    sys.stderr.write(json.dumps({"error": {"code": code, "message": message}}) + "\n")
    return exit_code
