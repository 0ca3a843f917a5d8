# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What agent_task does on the managed host, and what its action plugin says about the answer."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ._module import Result
from .fleet_core.changes import Change
from .fleet_core.errors import InvalidInput
from .fleet_core.processes import hide_secrets
from .fleet_core.task_progress import plan_text
from .fleet_node import paths, task_runs, task_service, task_state

_SHORTEST = 6
ARCHIVE = "artifacts.tar"
EXECUTED = ("succeeded", "failed", "interrupted")


def take_environment(module: AnsibleModule) -> dict[str, Any]:
    """Return the module's parameters; what it reports as its invocation has no secrets of env.

    In results only those values are hidden whose name looks like a secret's: a plain DEBUG=1 must not blank every "1".
    """
    params = dict(module.params)
    given = {str(name): str(value) for name, value in (params.get("env") or {}).items()}
    shown = hide_secrets(given)
    secrets = {value for name, value in given.items() if shown[name] != value and len(value) >= _SHORTEST}
    module.params["env"] = shown or params.get("env")
    module.no_log_values.intersection_update(secrets)
    params["env"] = given
    return params


def _request(params: Mapping[str, Any]) -> task_runs.Request:
    definition = params.get("definition")
    if definition is None:
        raise InvalidInput("agent_task: expected definition or run; src and tasks are read on the control node")
    env = params.get("env") or {}
    names = [*definition.get("pass_env", ()), *(name for name in env if name not in definition.get("pass_env", ()))]
    kind = {"resume": params["resume"], "partial": bool(params.get("only") or params.get("start_at"))}
    request = task_service.request_from(
        {"list": {**definition, **({"pass_env": names} if names else {})}, "environ": env, **kind}
    )
    earlier = task_state.latest(paths.state_dir(params["state_dir"]), request.tasks.name, request.folder)
    return request if earlier or request.partial else dataclasses.replace(request, resume=False)


def plan(params: Mapping[str, Any]) -> Result:
    """Return what apply would do."""
    state_dir = paths.state_dir(params["state_dir"])
    if params.get("run"):
        run = task_state.find(state_dir, str(params["run"]))
        cancels = params["state"] == "cancelled" and run.alive()
        return Result(Change(actions=(f"end task run {run.id}",) if cancels else ()), _values(run))
    request = _request(params)
    todo = task_runs.plan(request, state_dir)
    left = (*todo.resume.keep, *todo.satisfied)
    values = {
        "plan": plan_text(request.tasks, left).splitlines(),
        "notes": list(todo.resume.notes),
        "workdir": request.folder,
    }
    return Result(_change(todo.pending, dict.fromkeys(todo.pending, "pending")), values)


def apply(params: Mapping[str, Any]) -> Result:
    """Start a run, wait for one, or end one, as the parameters say."""
    state_dir = paths.state_dir(params["state_dir"])
    position = params.get("events_after") or 0
    if params.get("run"):
        run = task_state.find(state_dir, str(params["run"]))
        if params["state"] == "cancelled":
            ended = task_service.cancel(run)
            return Result(Change(actions=(f"end task run {run.id}",) if ended else ()), _values(run))
        executed: tuple[str, ...] = ()
    else:
        request = _request(params)
        todo = task_runs.plan(request, state_dir)
        executed = todo.pending
        if todo.before is not None and not todo.resume.run:  # all is done, and the same
            run, position = todo.before, todo.before.events_size()
        else:
            run, position = task_service.start(request, state_dir)
    events: list[dict[str, Any]] = []
    if params["state"] == "finished":
        events, position = _wait(run, position, params["wait"])
    values = {**_values(run), "events": events, "position": position}
    if params.get("artifacts") and values["finished"]:
        values["archive"] = _archive(run)
    return Result(_change(executed, {item["name"]: item["state"] for item in values["tasks"]}), values)


def _wait(run: task_state.TaskRun, position: int, seconds: float) -> tuple[list[dict[str, Any]], int]:
    """Return the events until the run is over, or until the time is over and a task has begun or ended."""
    deadline = time.monotonic() + seconds if seconds else None
    found: list[dict[str, Any]] = []
    over = False
    while not over:
        left = 1.0 if deadline is None else max(0.0, min(1.0, deadline - time.monotonic()))
        events, over = task_service.poll(run, position, left)
        for event in events:
            position = event["position"]
            found.append(event)
        news = any(event["event"] != "output" for event in events)
        if deadline is not None and (news or time.monotonic() >= deadline):
            break
    return found, position


def _values(run: task_state.TaskRun) -> dict[str, Any]:
    view = run.view()
    hidden = ("session_total",)
    return {
        "run": view["id"],
        "name": view["name"],
        "state": view["state"],
        "reason": view["reason"],
        "finished": view["state"] != "running",
        "workdir": view["workdir"],
        "duration": view["duration"],
        "notes": view["notes"],
        "artifacts": task_service.artifact_names(run, view),
        "tasks": [{key: value for key, value in item.items() if key not in hidden} for item in view["tasks"]],
    }


def _archive(run: task_state.TaskRun) -> str:
    """Write the artifacts of a run to a file that the action plugin fetches and removes, and return its path."""
    path = run.folder / ARCHIVE
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        task_service.archive(run, file)
    return str(path)


def _change(executed: tuple[str, ...], states: Mapping[str, str]) -> Change:
    after = {name: states[name] for name in executed if name in states}
    return Change({}, after, tuple(f"run task {name}" for name in executed))


def executed_tasks(view: Mapping[str, Any]) -> list[str]:
    """Return the tasks that a run has really executed, not those that were done before or are skipped."""
    return [item["name"] for item in view["tasks"] if item["state"] in EXECUTED and not item["kept"]]


def failure(view: Mapping[str, Any]) -> str:
    """Return the sentence that says what went wrong in a run; empty if nothing."""
    if view["state"] in ("succeeded", "running"):
        return ""
    failed = [item for item in view["tasks"] if item["state"] == "failed"]
    if failed:
        more = f" ({len(failed)} tasks failed)" if len(failed) > 1 else ""
        return (
            f'task "{failed[0]["name"]}": {failed[0]["reason"]}{more}; see {failed[0]["output_file"] or "its result"}'
        )
    return f"task run {view['run']}: {view['state']}: {view['reason'] or 'not all tasks were done'}"
