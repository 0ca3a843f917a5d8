# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands on processes that are there: stop, restart, delete, ps, inspect, discover, run-action, kill-all."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from fleet_core.errors import InvalidInput, NotFound, ProcessFailed, TimedOut

from . import agent_names, agent_runs, completion, progress, projects
from .arguments import Names, Timeout, Wait, seconds
from .output import Column, colored, described, duration, size
from .session import Session

# Ends about which the log of the process says more.
_PRINTED = re.compile(r"exit code|killed by|not ready|in time|unhealthy")


def stop(
    session: Session,
    names: Annotated[list[str], typer.Argument(metavar="NAME...", autocompletion=completion.processes_or_agents)],
    timeout: Timeout = "",
) -> None:
    """Stop processes and give back what they claim; stop agents.

    The whole process group ends: with the stop signal, and with SIGKILL after the stop timeout. A name that no process
    has is that of an agent; agents/NAME is always one.
    """
    agents, names = agent_names.split(session, names)
    stopped = agent_runs.stop(session, agents, timeout) if agents else []
    if names:
        try:
            ids = projects.process_ids(session, names)
            apply_change(session, "processes.stop", {"ids": ids}, True, timeout, {"agents": stopped} if agents else {})
        except NotFound as error:
            hint = agent_names.hint(session, names[0]) if len(names) == 1 and "did you mean" not in str(error) else ""
            raise NotFound(f"{error}{hint}") from None
    elif session.as_json:
        session.out.data({"agents": stopped})


def restart(session: Session, names: Names, wait: Wait = True, timeout: Timeout = "") -> None:
    """Restart processes; they keep their resources."""
    apply_change(session, "processes.restart", {"ids": projects.process_ids(session, names)}, wait, timeout)


def delete(session: Session, names: Names, timeout: Timeout = "") -> None:
    """Stop processes and forget them; their logs stay."""
    apply_change(session, "processes.delete", {"ids": projects.process_ids(session, names)}, True, timeout)


def apply_change(
    session: Session,
    method: str,
    params: dict[str, Any],
    wait: bool,
    timeout: str,
    beside: Mapping[str, Any] | None = None,
) -> None:
    """Call a method that changes processes, show its progress, and say what happened to each.

    beside: what --json writes in addition.
    """
    ids = params.get("ids") or [item["id"] for item in params["items"]]
    try:
        with progress.shown(session, ids=set(ids)):
            answer = session.call(method, **params, wait=wait, timeout=seconds(timeout))
    except KeyboardInterrupt:
        session.out.note("\nfleetd goes on with it; `fleet ps` shows how far it is.")
        raise
    except (ProcessFailed, TimedOut) as error:
        if len(ids) == 1 and _PRINTED.search(error.message):
            raise type(error)(f"{error.message}; see `fleet logs {ids[0]}`") from error
        raise
    if session.as_json:
        session.out.data({**answer, **(beside or {})})
        return
    now = {process["id"]: process for process in answer["processes"]}
    for ident in ids:
        session.out.line(sentence(ident, answer["change"]["actions"], now.get(ident)))


def sentence(ident: str, actions: Sequence[str], process: Mapping[str, Any] | None) -> str:
    """Say what happened to one process and where it can be reached now."""
    verbs = {action.partition(" process ")[0] for action in actions if action.endswith(f" process {ident}")}
    if process is None:
        return f"Deleted {ident}" if "remove" in verbs else f"{ident} was not declared"
    status = process["status"]
    if "stop" in verbs:
        return f"Stopped {ident}"
    if "restart" in verbs:
        text = f"Restarted {ident}"
    elif "start" in verbs:
        text = f"Started {ident}"
    elif process.get("completed"):
        return f"{ident} has run to its end already"
    else:
        return f"{ident} is {status} already" + (f" (pid {process['pid']})" if process["pid"] else "")
    if process.get("completed"):
        return f"{text}; it ran to its end"
    if status != "running":
        return f"{text}; it is {status}" + (f", waiting for {process['waiting_for']}" if process["waiting_for"] else "")
    details = [f"pid {process['pid']}", *(f"{name}={value}" for name, value in process["resources"].items())]
    where = [url for url in process["urls"] if not url.startswith("tcp://")]
    return f"{text} ({', '.join(details)})" + "".join(f"  {url}" for url in where)


def ps(
    session: Session,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", autocompletion=completion.processes, help="Only these.")
    ] = None,
    running: Annotated[bool, typer.Option("--running", "-r", help="Leave out what does not run.")] = False,
) -> None:
    """List the processes of this host.

    With -e, those of one environment. When fleetd does not run, as it recorded them last.
    """
    client = session.running_client()
    ids = projects.process_ids(session, names) if names else None
    environment = projects.chosen(session)[0] or None if session.environment else None
    if client is not None:
        params = {"ids": ids, "environment": environment}
        processes = client.call("processes.list", **{key: value for key, value in params.items() if value is not None})
        processes = processes["processes"]
    else:
        from . import recorded

        processes = recorded.processes(session, ids, environment)
        if processes:
            session.out.note("fleetd is not running; this is what it recorded last.")
    if running:
        processes = [process for process in processes if process["status"] not in ("stopped", "error")]
    if session.as_json:
        session.out.data({"processes": processes})
        return
    show(session, processes)


def show(session: Session, processes: Sequence[Mapping[str, Any]], short_names: bool = False) -> None:
    """Write the table of processes."""
    columns = (
        Column("NAME"),
        Column("STATUS"),
        Column("PID", right=True),
        Column("UPTIME", right=True),
        Column("RESTARTS", right=True),
        Column("MEMORY", right=True),
        Column("RESOURCES"),
        Column("COMMAND", flexible=True),
    )
    rows = [
        (
            process["name"] if short_names else process["id"],
            "completed" if process.get("completed") else process["status"],
            process["pid"] or None,
            duration(process["uptime"]) if process["pid"] else None,
            process["restarts"],
            size(process["memory"]),
            process["resources"],
            command_line(process["command"]),
        )
        for process in processes
    ]
    session.out.table(columns, rows, empty="No processes. Start one with `fleet start NAME -- COMMAND`.")


def command_line(command: str) -> str:
    """Return a command for people: what a shell runs, without the shell and its quotes."""
    if not command.startswith("/bin/sh -c "):
        return command
    try:
        words = shlex.split(command)
    except ValueError:
        return command
    return " ".join(words[2].split()) if len(words) == 3 else command


def inspect(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", autocompletion=completion.processes)],
) -> None:
    """Show all about a process, and how it is declared.

    Values of secrets are hidden.
    """
    answer = session.call("processes.inspect", id=projects.process_ids(session, [name])[0])
    if session.as_json:
        session.out.data(answer)
        return
    process, declared = answer["process"], answer["declaration"]
    session.out.pairs(
        {
            "Name": process["id"],
            "Label": process["label"],
            "Status": process["status"],
            "Error": process["error"],
            "Waiting for": process["waiting_for"],
            "Healthy": process["healthy"],
            "PID": process["pid"] or None,
            "Started": process["started"],
            "Uptime": duration(process["uptime"]) if process["pid"] else None,
            "Restarts": process["restarts"],
            "Exit code": process["exit_code"],
            "Memory": size(process["memory"]) if process["memory"] else None,
            "CPU time": f"{process['cpu']:g} s" if process["cpu"] else None,
            "URLs": process["urls"],
            "Resources": [f"{name}={value}" for name, value in process["resources"].items()],
            "Command": command_line(process["command"]),
            "Folder": process["working_dir"],
            "User": process["user"],
            "Template": process["template"],
            "Depends on": [f"{item['process']} ({item['condition']})" for item in process["depends_on"]],
            "Supervisor": process["driver"] + (", adopted" if process["adopted"] else ""),
            "Log": process["log_file"],
        }
    )
    session.out.line("")
    session.out.line("Declared as:", style="bold")
    shown = ("id", "template", "label", "depends_on")
    session.out.pairs({f"  {key}": described(key, value) for key, value in declared.items() if key not in shown})


def discover(
    session: Session,
    pid: Annotated[int | None, typer.Option("--pid", help="A running process.")] = None,
    port: Annotated[int | None, typer.Option("--port", help="The process that listens on a TCP port.")] = None,
    adopt: Annotated[str, typer.Option("--adopt", metavar="NAME", help="Take it over under this name.")] = "",
) -> None:
    """Find a process outside the fleet; --adopt takes it over."""
    if (pid is None) == (port is None):
        raise InvalidInput("discover: expected --pid or --port")
    given = {"pid": pid, "port": port}
    if adopt:
        answer = session.call("processes.adopt", id=adopt, **given)
        process = answer["process"]
        if session.as_json:
            session.out.data(answer)
        else:
            session.out.line(f"Adopted pid {process['pid']} as {process['id']}: {process['command']}")
        return
    answer = session.call("processes.discover", **given)
    if session.as_json:
        session.out.data(answer)
        return
    if not answer["found"]:
        raise NotFound(f"port {port}: nothing that this user may see listens on it")
    columns = (
        Column("PID", right=True),
        Column("USER"),
        Column("MEMORY", right=True),
        Column("PORTS"),
        Column("FOLDER"),
        Column("COMMAND", flexible=True),
    )
    rows = [
        (item["pid"], item["user"], size(item["memory"]), item["ports"], item["cwd"], item["command"])
        for item in answer["found"]
    ]
    session.out.table(columns, rows)


def run_action(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", autocompletion=completion.processes)],
) -> None:
    """Run the action of a process's template.

    The exit code is that of the action.
    """
    answer = session.call("processes.run_action", id=projects.process_ids(session, [name])[0])
    if session.as_json:
        session.out.data(answer)
    else:
        text = str(answer.get("output", "")).rstrip("\n")
        if text:
            print(colored(text) if sys.stdout.isatty() else text)
    raise typer.Exit(answer["exit_code"] if 0 <= answer["exit_code"] <= 255 else 1)


def kill_all(
    session: Session,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    timeout: Timeout = "",
) -> None:
    """Stop every process on this host."""
    if not yes:
        import sys

        if not sys.stdin.isatty():
            raise InvalidInput("kill-all: stops every process on this host; confirm with --yes")
        typer.confirm("Stop every process on this host?", abort=True, err=True)
    answer = session.call("processes.kill_all", timeout=seconds(timeout))
    if session.as_json:
        session.out.data(answer)
    elif answer["stopped"]:
        for ident in answer["stopped"]:
            session.out.line(f"Stopped {ident}")
    else:
        session.out.line("Nothing was running.")
