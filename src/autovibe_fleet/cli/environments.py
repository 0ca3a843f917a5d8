# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands on environments: init, activate, deactivate, status, list."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fleet_core.environments import FILE_NAME
from fleet_core.errors import NotFound, ProcessFailed, TimedOut

from . import completion, progress, projects
from .arguments import Timeout, seconds
from .output import Column, duration, size
from .session import Session

Where = Annotated[
    str,
    typer.Argument(
        metavar="[PATH]",
        autocompletion=completion.environments,
        help="Project folder, project file or name; by default the current folder's project.",
    ),
]


def init(
    session: Session,
    path: Annotated[str, typer.Argument(metavar="[FOLDER]", help="Project folder.")] = ".",
    source: Annotated[
        str, typer.Option("--from", metavar="FILE", help="Take the processes from a Procfile or a compose file.")
    ] = "",
    template: Annotated[
        str,
        typer.Option(
            "--template",
            metavar="NAME",
            help="Begin with a process of this template.",
            autocompletion=completion.templates,
        ),
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="Replace the project file that is there.")] = False,
) -> None:
    """Write a project file, .runcept.toml, to start from."""
    from . import project_init

    written, notes = project_init.write(session, Path(path), source, template, force)
    if session.as_json:
        session.out.data({"path": str(written), "notes": notes})
        return
    session.out.line(f"Wrote {written}")
    for note in notes:
        session.out.note(f"note: {note}")
    session.out.line("Next: `fleet activate` starts what it declares.")


def activate(
    session: Session,
    path: Where = "",
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until every process is up.")] = True,
    timeout: Timeout = "",
) -> None:
    """Start a project's processes, in order, and wait for them."""
    session.environment = path or session.environment
    name, file = projects.chosen(session)
    if file is None and not name:
        raise NotFound(f"no {FILE_NAME} in {os.getcwd()} or above it; `fleet init` writes one")
    item = {"path": str(file)} if file is not None else {"name": name}
    try:
        with progress.shown(session, environment=name or _name_in(session, file)):
            answer = session.call(
                "environments.apply", items=[{**item, "state": "active"}], wait=wait, timeout=seconds(timeout)
            )
    except KeyboardInterrupt:
        session.out.note("\nfleetd goes on with it; `fleet status` shows how far it is, `fleet deactivate` stops it.")
        raise
    except (ProcessFailed, TimedOut):
        if not session.as_json and (name := name or _name_in(session, file)):
            _show_failed(session, name)
        raise
    (environment,) = answer["environments"]
    if session.as_json:
        session.out.data({"change": answer["change"], "environment": environment})
        return
    changed = bool(answer["change"]["actions"])
    session.out.line(f"Environment {environment['name']} is active" + ("" if changed else ", as it was"))
    _show_processes(session, environment["processes"])


def _name_in(session: Session, file: Path | None) -> str:
    """Return the name that a project file gives its environment; an error in it is left for fleetd to tell."""
    from fleet_core.errors import FleetError

    from ..node import project_files

    try:
        return project_files.load(file, session.store.templates()).name if file is not None else ""
    except FleetError:
        return ""


def _show_failed(session: Session, name: str) -> None:
    try:
        environment = session.call("environments.status", name=name)["environment"]
    except NotFound:
        return
    _show_processes(session, environment["processes"])


def deactivate(session: Session, path: Where = "", timeout: Timeout = "") -> None:
    """Stop all the processes of an environment."""
    session.environment = path or session.environment
    item = _known(session)
    with progress.shown(session, environment=item.get("name", "")):
        answer = session.call("environments.apply", items=[{**item, "state": "inactive"}], timeout=seconds(timeout))
    (environment,) = answer["environments"]
    if session.as_json:
        session.out.data({"change": answer["change"], "environment": environment})
        return
    changed = bool(answer["change"]["actions"])
    session.out.line(f"Environment {environment['name']} is inactive" + ("" if changed else ", as it was"))


def _known(session: Session) -> dict[str, str]:
    """Return the environment that is meant, as fleetd's methods take it."""
    name, file = projects.chosen(session)
    if name:
        return {"name": name}
    if file is None:
        raise NotFound(f"no {FILE_NAME} in {os.getcwd()} or above it, and no environment was named")
    raise NotFound(f"environment of {file}: not activated yet; run `fleet activate`")


def status(session: Session, path: Where = "") -> None:
    """Show an environment, or fleetd outside of a project."""
    session.environment = path or session.environment
    name, file = projects.chosen(session)
    if not name and file is None:
        from . import daemon_commands

        daemon_commands.show_status(session)
        return
    environment = _inactive(session, file) if not name and file is not None else _recorded(session, name)
    if session.as_json:
        session.out.data({"environment": environment})
        return
    session.out.pairs(
        {
            "Environment": environment["name"],
            "Status": environment["status"],
            "Project file": environment["path"],
            "Inactivity timeout": duration(environment["inactivity_timeout"])
            if environment["inactivity_timeout"]
            else None,
        }
    )
    session.out.line("")
    _show_processes(session, environment["processes"])


def _recorded(session: Session, name: str) -> dict[str, Any]:
    client = session.running_client()
    if client is not None:
        answer: dict[str, Any] = client.call("environments.status", name=name)["environment"]
        return answer
    from . import recorded

    session.out.note("fleetd is not running; this is what it recorded last.")
    data = session.store.environments()[name]
    return {
        "name": name,
        "path": data["path"],
        "project_dir": data.get("project_dir", ""),
        "status": "active" if data.get("active") else "inactive",
        "inactivity_timeout": data.get("inactivity_timeout", 0),
        "idle": 0,
        "last_activity": None,
        "error": "",
        "processes": recorded.processes(session, environment=name),
    }


def _inactive(session: Session, file: Path) -> dict[str, Any]:
    """Return a project that was never activated, as its file declares it."""
    from fleet_core.process_status import ProcessStatus

    from ..node import project_files
    from . import recorded

    found = project_files.load(file, session.store.templates())
    return {
        "name": found.name,
        "path": str(file),
        "project_dir": str(file.parent),
        "status": "inactive",
        "inactivity_timeout": found.idle_limit,
        "idle": 0,
        "last_activity": None,
        "error": "",
        "processes": [recorded.view(spec, ProcessStatus()) for spec in found.processes],
    }


def list_environments(session: Session) -> None:
    """List the environments that this host knows."""
    client = session.running_client()
    if client is not None:
        found = client.call("environments.list")["environments"]
    else:
        found = [_recorded(session, name) for name in session.store.environments()]
    if session.as_json:
        session.out.data({"environments": found})
        return
    columns = (
        Column("NAME"),
        Column("STATUS"),
        Column("UP", right=True),
        Column("IDLE", right=True),
        Column("PROJECT"),
    )
    rows = [
        (
            item["name"],
            item["status"],
            f"{sum(_is_up(process) for process in item['processes'])}/{len(item['processes'])}",
            duration(item["idle"]) if item["status"] == "active" else None,
            item["path"],
        )
        for item in found
    ]
    session.out.table(columns, rows, empty="No environments. Run `fleet activate` in a project.")


def _is_up(process: Mapping[str, Any]) -> bool:
    return bool(process["status"] == "running" or process.get("completed"))


def _show_processes(session: Session, processes: Sequence[Mapping[str, Any]]) -> None:
    columns = (
        Column("NAME"),
        Column("STATUS"),
        Column("PID", right=True),
        Column("UPTIME", right=True),
        Column("RESTARTS", right=True),
        Column("MEMORY", right=True),
        Column("URL"),
    )
    rows = [
        (
            process["name"],
            "completed" if process.get("completed") else process["status"],
            process["pid"] or None,
            duration(process["uptime"]) if process["pid"] else None,
            process["restarts"],
            size(process["memory"]),
            process["urls"],
        )
        for process in processes
    ]
    session.out.table(columns, rows, empty="It declares no processes.")
    for process in processes:
        if process["error"] and process["status"] != "running":
            session.out.line(f"{process['name']}: {process['error']}", style="red")
        elif process["waiting_for"]:
            session.out.line(f"{process['name']}: waits for {process['waiting_for']}")
