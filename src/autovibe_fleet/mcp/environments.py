# SPDX-License-Identifier: GPL-3.0-or-later
"""Tools on environments: a project's processes, brought up and put away together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from fleet_core.environments import FILE_NAME
from fleet_core.errors import FleetError, InvalidInput, NotFound

from . import errors, shapes
from .tools import ENDS, READS, SETS, Ctx, Environment, Timeout, Toolbox, Wait, host

toolbox = Toolbox()


class EnvironmentChanged(shapes.Changed):
    """An environment after an operation, and what the operation changed."""

    environment: shapes.Environment


class EnvironmentShown(TypedDict):
    """One environment."""

    environment: shapes.Environment


class Environments(TypedDict):
    """All environments that this host knows."""

    environments: list[shapes.Environment]


class Recorded(TypedDict):
    """The environment whose activity was recorded."""

    environment: str


def progress(environment: str = "", ids: tuple[str, ...] = ()) -> Callable[[dict[str, Any]], str]:
    """Return what tells an event of a process of an environment, or of the ids, in words."""

    def told(event: dict[str, Any]) -> str:
        ident = str(event.get("id", ""))
        if event.get("kind") != "process" or (ids and ident not in ids):
            return ""
        if environment and not ident.startswith(f"{environment}/"):
            return ""
        message = str(event.get("message") or "")
        return f"{ident} is {event.get('state')}" + (f": {message}" if message else "")

    return told


@toolbox.tool("Activate an environment", SETS)
async def activate_environment(
    ctx: Ctx,
    path: Annotated[
        str | None, Field(description=f"Project folder, or its {FILE_NAME}, or the name of a known environment.")
    ] = None,
    wait: Wait = True,
    timeout: Timeout = 120,
) -> EnvironmentChanged:
    """Start the processes that a project's .runcept.toml declares, in the order of their dependencies, and make it the
    environment that later calls mean. An active environment is brought in line with its file."""
    name, file = await host(ctx).environment(ctx, path)
    if not name and file is None:
        raise NotFound(f"no {FILE_NAME} in the server's folder or above it; give the path of a project")
    item = {"path": str(file)} if file is not None else {"name": name}
    try:
        answer = await host(ctx).watch(
            ctx,
            progress(name),
            "environments.apply",
            items=[{**item, "state": "active"}],
            wait=wait,
            timeout=timeout,
        )
    except FleetError as error:
        raise await _with_processes(ctx, error, item) from error
    (environment,) = answer["environments"]
    host(ctx).choose(ctx, environment["name"])
    return {**shapes.changed(answer["change"]), "environment": shapes.environment(environment)}


async def _with_processes(ctx: Ctx, error: FleetError, item: dict[str, str]) -> FleetError:
    """Return an error that also tells how far each process has come."""
    try:
        view = (await host(ctx).call("environments.status", **item))["environment"]
    except FleetError:
        return error
    host(ctx).choose(ctx, view["name"])
    return errors.WithDetails(error, {"environment": shapes.environment(view)})


@toolbox.tool("Deactivate an environment", ENDS)
async def deactivate_environment(
    ctx: Ctx, environment: Environment = None, timeout: Timeout = 120
) -> EnvironmentChanged:
    """Stop all the processes of an environment and give back what they claimed. Their logs stay."""
    item = await host(ctx).known(ctx, environment)
    answer = await host(ctx).watch(
        ctx,
        progress(item.get("name", "")),
        "environments.apply",
        items=[{**item, "state": "inactive"}],
        timeout=timeout,
    )
    (found,) = answer["environments"]
    return {**shapes.changed(answer["change"]), "environment": shapes.environment(found)}


@toolbox.tool("List environments", READS)
async def list_environments(ctx: Ctx) -> Environments:
    """List the environments that this host knows, with the state of their processes."""
    found = (await host(ctx).call("environments.list"))["environments"]
    return {"environments": [shapes.environment(item) for item in found]}


@toolbox.tool("Show an environment", READS)
async def get_environment_status(ctx: Ctx, environment: Environment = None) -> EnvironmentShown:
    """Show an environment and its processes: what runs, what failed and why, and where each can be reached."""
    item = await host(ctx).known(ctx, environment)
    if "path" in item:
        return {"environment": await _declared(ctx, item["path"])}
    found = (await host(ctx).call("environments.status", **item))["environment"]
    return {"environment": shapes.environment(found)}


async def _declared(ctx: Ctx, path: str) -> Any:
    """Return a project that was never activated, as its file declares it."""
    from ..node import project_files

    def load() -> Any:
        with host(ctx).store() as store:
            found = project_files.load(path, store.templates())
        processes = [{"id": spec.id, "name": spec.name, "status": "stopped"} for spec in found.processes]
        return {"name": found.name, "path": path, "status": "inactive", "processes": processes}

    return await host(ctx).thread(load)


@toolbox.tool("Record that an environment is used", SETS)
async def record_environment_activity(ctx: Ctx, environment: Environment = None) -> Recorded:
    """Say that an environment is in use, so that it is not stopped after its inactivity timeout. Other tools that name
    an environment do so by themselves."""
    item = await host(ctx).known(ctx, environment)
    if "name" not in item:
        raise InvalidInput(f"environment {item['path']}: not activated yet; call activate_environment")
    await host(ctx).call("environments.touch", **item)
    return {"environment": item["name"]}
