# SPDX-License-Identifier: GPL-3.0-or-later
"""Tools that change which processes a project declares, in its .runcept.toml."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from fleet_core.environments import FILE_NAME
from fleet_core.errors import FleetError, InvalidInput, NotFound

from . import errors, project_editing, shapes
from .environments import progress
from .project_editing import Edit
from .tools import ADDS, ENDS, RUNS, Ctx, Environment, Timeout, Toolbox, host

toolbox = Toolbox()

NewName = Annotated[str, Field(description="Name of a process, as the project file has it.")]
Command = Annotated[
    str | None,
    Field(
        description="Command line. %tcpport in it is a port that is claimed for the process; ${NAME} is a variable, %%"
        " is a percent sign. Not run by a shell: use /bin/sh -c '...' for pipes."
    ),
]
WorkingDir = Annotated[str | None, Field(description="Folder that it runs in, relative to the project's folder.")]
Env = Annotated[dict[str, str] | None, Field(description="Environment variables; others that it has stay.")]
AutoRestart = Annotated[bool | None, Field(description="Start it again when it fails.")]
HealthUrl = Annotated[
    str | None, Field(description="What tells that it is up: http://..., tcp://HOST:PORT or cmd://COMMAND.")
]
HealthInterval = Annotated[str | int | None, Field(description="Time between two checks: 10s, or seconds.")]
DependsOn = Annotated[list[str] | None, Field(description="Processes that must be up before it is started.")]
Fields = Annotated[
    dict[str, Any] | None,
    Field(description="Further fields as the project file takes them: resources, template, readiness, limits, logs..."),
]
Apply = Annotated[bool, Field(description="Bring the environment in line at once if it is active.")]


class Declared(TypedDict, total=False):
    """The file that was changed, and what came of it in an active environment."""

    path: str
    process: str
    changed: bool
    applied: bool
    actions: list[str]
    status: shapes.Process


def _given(
    command: str | None,
    working_dir: str | None,
    env: dict[str, str] | None,
    auto_restart: bool | None,
    health_check_url: str | None,
    health_check_interval: str | int | None,
    depends_on: list[str] | None,
    fields: dict[str, Any] | None,
) -> dict[str, Any]:
    named = {
        "command": command,
        "working_dir": working_dir,
        "auto_restart": auto_restart,
        "health_check_url": health_check_url,
        "health_check_interval": health_check_interval,
        "depends_on": depends_on,
        **(fields or {}),
        "env_vars": env,
    }
    return {key: value for key, value in named.items() if value is not None}


async def _edit(
    ctx: Ctx, environment: str | None, name: str, change: Edit, apply: bool, timeout: float, gone: bool = False
) -> Declared:
    known, file = await host(ctx).environment(ctx, environment)

    def write() -> tuple[Path, bool, bool]:
        with host(ctx).store() as store:
            record = store.environments().get(known, {}) if known else {}
            path = file or (Path(record["path"]) if record else None)
            if path is None:
                raise NotFound(f"no {FILE_NAME} in the server's folder or above it; give the environment")
            return path, project_editing.edit(path, change, store.templates()), bool(record.get("active"))

    path, changed, active = await host(ctx).thread(write)
    found: Declared = {"path": str(path), "process": name, "changed": changed, "applied": False, "actions": []}
    if not (apply and active):
        return found
    try:
        answer = await host(ctx).watch(
            ctx,
            progress(known),
            "environments.apply",
            items=[{"path": str(path), "state": "active"}],
            timeout=timeout,
        )
    except FleetError as error:
        raise errors.WithDetails(error, {**found, "note": "the file was changed"}) from error
    found["applied"] = True
    found["actions"] = list(answer["change"]["actions"])
    if not gone:
        views = {view["name"]: view for view in answer["environments"][0]["processes"]}
        if name in views:
            found["status"] = shapes.brief(views[name])
    return found


@toolbox.tool("Declare a process", ADDS)
async def add_process(
    ctx: Ctx,
    name: NewName,
    command: Command = None,
    working_dir: WorkingDir = None,
    env: Env = None,
    auto_restart: AutoRestart = None,
    health_check_url: HealthUrl = None,
    health_check_interval: HealthInterval = None,
    depends_on: DependsOn = None,
    fields: Fields = None,
    environment: Environment = None,
    apply: Apply = True,
    timeout: Timeout = 120,
) -> Declared:
    """Add a process to a project's .runcept.toml. The file is checked before it is written and keeps its comments. In
    an active environment the process is started."""
    given = _given(command, working_dir, env, auto_restart, health_check_url, health_check_interval, depends_on, fields)
    return await _edit(ctx, environment, name, lambda project: project.add(name, given), apply, timeout)


@toolbox.tool("Remove a process from a project", ENDS)
async def remove_process(
    ctx: Ctx, name: NewName, environment: Environment = None, apply: Apply = True, timeout: Timeout = 120
) -> Declared:
    """Take a process out of a project's .runcept.toml. In an active environment it is stopped and forgotten. Refused
    while another process depends on it."""
    return await _edit(ctx, environment, name, lambda project: project.remove(name), apply, timeout, gone=True)


@toolbox.tool("Change how a process is declared", RUNS)
async def update_process(
    ctx: Ctx,
    name: NewName,
    command: Command = None,
    working_dir: WorkingDir = None,
    env: Env = None,
    auto_restart: AutoRestart = None,
    health_check_url: HealthUrl = None,
    health_check_interval: HealthInterval = None,
    depends_on: DependsOn = None,
    fields: Fields = None,
    unset: Annotated[
        list[str] | None, Field(description="Fields to take out, such as health_check_url or env_vars.MODE.")
    ] = None,
    environment: Environment = None,
    apply: Apply = True,
    timeout: Timeout = 120,
) -> Declared:
    """Change fields of a process in a project's .runcept.toml; what is not named stays, comments too. In an active
    environment a process whose declaration changed is restarted."""
    given = _given(command, working_dir, env, auto_restart, health_check_url, health_check_interval, depends_on, fields)
    if not given and not unset:
        raise InvalidInput("update_process: expected a field to change, found none")

    def change(project: project_editing.ProjectFile) -> None:
        project.unset(name, unset or [])
        project.set(name, given)

    return await _edit(ctx, environment, name, change, apply, timeout)
