# SPDX-License-Identifier: GPL-3.0-or-later
"""Tools on processes: start, stop, look, and read what they print."""

from __future__ import annotations

from typing import Annotated, Any

from mcp_types import CallToolResult, TextContent
from pydantic import Field
from typing_extensions import TypedDict

from fleet_core.errors import FleetError, ProcessFailed, TimedOut

from . import errors, shapes
from .environments import progress
from .tools import ENDS, READS, RUNS, SETS, Ctx, Environment, Name, Timeout, Toolbox, Wait, host

toolbox = Toolbox()
_TAIL = 20  # lines of its log that go with the error of a process
_MOST = 5000  # lines of a log in one answer


class ProcessChanged(shapes.Changed):
    """A process after an operation, and what the operation changed."""

    process: shapes.Process


class ProcessShown(TypedDict):
    """All about one process, and how it is declared. Values of secrets are hidden."""

    process: shapes.Process
    declaration: dict[str, Any]


class Processes(TypedDict):
    """Some processes."""

    processes: list[shapes.Process]


class Line(TypedDict, total=False):
    """One line. level: Stdout or Stderr for what the process printed, else what happened to it."""

    timestamp: str
    level: str
    message: str


class Logs(TypedDict):
    """The last lines of a process's log, oldest first."""

    process: str
    lines: list[Line]


class Stopped(TypedDict):
    """The ids of the processes that were stopped."""

    stopped: list[str]


class Daemon(TypedDict, total=False):
    """fleetd. processes: how many are in each state."""

    __pydantic_config__ = shapes.OPEN  # type: ignore[misc]

    version: str
    pid: int
    started: str
    driver: str
    state_dir: str
    processes: dict[str, int]
    environments: int
    memory: int


async def _change(
    ctx: Ctx, method: str, name: str, environment: str | None, wait: bool, timeout: float
) -> ProcessChanged:
    ident = await host(ctx).process_id(ctx, name, environment)
    try:
        answer = await host(ctx).watch(ctx, progress(ids=(ident,)), method, ids=[ident], wait=wait, timeout=timeout)
    except (ProcessFailed, TimedOut) as error:
        raise await _with_log(ctx, error, ident) from error
    (process,) = answer["processes"]
    return {**shapes.changed(answer["change"]), "process": shapes.full(process)}


async def _with_log(ctx: Ctx, error: FleetError, ident: str) -> FleetError:
    """Return an error that also tells what the process printed last."""
    try:
        lines = await host(ctx).log(ident, _TAIL)
    except FleetError:
        return error
    return errors.WithDetails(error, {"process": ident, "log": [str(line["message"]) for line in lines]})


@toolbox.tool("Start a process", SETS)
async def start_process(
    ctx: Ctx, name: Name, environment: Environment = None, wait: Wait = True, timeout: Timeout = 120
) -> ProcessChanged:
    """Start a process and what it depends on. It claims the ports and files that it needs; the answer has its URLs. A
    process that runs already is left alone. When it does not come up, the error has the last lines of its log."""
    return await _change(ctx, "processes.start", name, environment, wait, timeout)


@toolbox.tool("Stop a process", ENDS)
async def stop_process(ctx: Ctx, name: Name, environment: Environment = None, timeout: Timeout = 120) -> ProcessChanged:
    """Stop a process with its whole process group and give back what it claimed. Its log stays."""
    return await _change(ctx, "processes.stop", name, environment, True, timeout)


@toolbox.tool("Restart a process", RUNS)
async def restart_process(
    ctx: Ctx, name: Name, environment: Environment = None, wait: Wait = True, timeout: Timeout = 120
) -> ProcessChanged:
    """Stop a process and start it again; it keeps its ports."""
    return await _change(ctx, "processes.restart", name, environment, wait, timeout)


@toolbox.tool("List an environment's processes", READS)
async def list_processes(ctx: Ctx, environment: Environment = None) -> Processes:
    """List the processes of one environment."""
    item = await host(ctx).known(ctx, environment)
    found = (await host(ctx).call("environments.status", **item))["environment"]
    return {"processes": [shapes.brief(process) for process in found["processes"]]}


@toolbox.tool("List all processes", READS)
async def list_all_processes(
    ctx: Ctx,
    running: Annotated[bool, Field(description="Leave out what does not run.")] = False,
) -> Processes:
    """List the processes of this host, of all environments and of none."""
    found = (await host(ctx).call("processes.list"))["processes"]
    chosen = [view for view in found if not running or view["status"] not in ("stopped", "error")]
    return {"processes": [shapes.brief(process) for process in chosen]}


@toolbox.tool("Show a process", READS)
async def get_process_status(ctx: Ctx, name: Name, environment: Environment = None) -> ProcessShown:
    """Show all about a process: state, exit code, health, memory, ports, URLs, log file, and how it is declared."""
    ident = await host(ctx).process_id(ctx, name, environment)
    answer = await host(ctx).call("processes.inspect", id=ident)
    return {"process": shapes.full(answer["process"]), "declaration": shapes.lean(answer["declaration"])}


@toolbox.tool("Read a process's log", READS)
async def get_process_logs(
    ctx: Ctx,
    name: Name,
    lines: Annotated[int, Field(ge=1, le=_MOST, description="How many lines from the end.")] = 100,
    since: Annotated[
        str, Field(description="Only lines since then: 10m (ago), or a time such as 2026-01-31T08:00:00Z.")
    ] = "",
    environment: Environment = None,
) -> Annotated[CallToolResult, Logs]:
    """Read what a process printed, newest last, and what happened to it (lines that begin with [fleet]). The logs of
    stopped and deleted processes can be read too."""
    ident = await host(ctx).process_id(ctx, name, environment)
    records = await host(ctx).log(ident, lines, since)
    found: list[dict[str, Any]] = [
        {key: record[key] for key in ("timestamp", "level", "message") if record.get(key) is not None}
        for record in records
    ]
    return CallToolResult(
        content=[TextContent(type="text", text=as_text(found) or f"{ident} has printed nothing")],
        structured_content={"process": ident, "lines": found},
    )


def as_text(lines: list[dict[str, Any]]) -> str:
    """Return log records as lines of text."""
    return "\n".join(
        str(line.get("message", ""))
        if line.get("level") in ("Stdout", "Stderr")
        else f"[fleet] {line.get('message', '')}"
        for line in lines
    )


@toolbox.tool("Stop every process on this host", ENDS)
async def kill_all_processes(ctx: Ctx, timeout: Timeout = 60) -> Stopped:
    """Stop every process of this host, in every environment and in none, other people's included. For emergencies;
    deactivate_environment stops one project."""
    answer = await host(ctx).watch(ctx, progress(), "processes.kill_all", timeout=timeout)
    return {"stopped": list(answer["stopped"])}


@toolbox.tool("Show the daemon", READS)
async def get_daemon_status(ctx: Ctx) -> Daemon:
    """Show fleetd, the daemon that runs the processes: its version, state folder and how many processes it has."""
    found: Daemon = shapes.lean(await host(ctx).call("daemon.status"))
    return found
