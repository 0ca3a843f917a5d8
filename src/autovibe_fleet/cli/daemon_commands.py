# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands on fleetd, the daemon that watches this host's processes."""

from __future__ import annotations

import os
import sys
import time
from datetime import datetime, timezone
from typing import Annotated, Any

import typer

from fleet_core.errors import NotFound, Unavailable
from fleet_node import paths

from . import daemon
from .arguments import Timeout, seconds
from .commands import Noun
from .output import duration, size
from .session import Session, with_session

app = Noun(no_args_is_help=True, help="fleetd, the daemon that watches the processes.")
Driver = Annotated[str, typer.Option("--driver", metavar="auto|native|systemd", help="Who starts the processes.")]
Scope = Annotated[str, typer.Option("--scope", metavar="auto|system|user", help="Scope of the systemd driver.")]


@app.command()
@with_session
def start(session: Session, driver: Driver = "", scope: Scope = "") -> None:
    """Start fleetd in the background; nothing happens when it runs already."""
    client = session.running_client()
    if client is None:
        how = daemon.launch(session.folder, _options(driver, scope))
        _report(session, "started", f"Started fleetd ({how})")
    else:
        pid = client.call("daemon.status")["pid"]
        _report(session, "running", f"fleetd is running already (pid {pid})")


def _options(driver: str, scope: str) -> list[str]:
    return [*(["--driver", driver] if driver else []), *(["--scope", scope] if scope else [])]


def _report(session: Session, result: str, text: str) -> None:
    if session.as_json:
        session.out.data({"result": result, **session.connect().call("daemon.status")})
    else:
        session.out.line(text)


@app.command()
@with_session
def stop(
    session: Session,
    processes: Annotated[bool, typer.Option("--processes", help="Stop every process first.")] = False,
    timeout: Timeout = "",
) -> None:
    """Stop fleetd. Processes go on, unwatched, and the next fleetd takes them over."""
    if session.running_client() is None:
        if session.as_json:
            session.out.data({"result": "absent", "stopped": []})
        else:
            session.out.line("fleetd is not running")
        return
    stopped = daemon.stop(session.folder, processes, seconds(timeout))
    if session.as_json:
        session.out.data({"result": "stopped", "stopped": stopped})
        return
    for ident in stopped:
        session.out.line(f"Stopped {ident}")
    session.out.line("Stopped fleetd" + ("" if processes else "; its processes go on"))


@app.command()
@with_session
def restart(session: Session, driver: Driver = "", scope: Scope = "", timeout: Timeout = "") -> None:
    """Restart fleetd. Processes are not touched."""
    client = session.running_client()
    options = _options(driver, scope)
    if client is None:
        how = daemon.launch(session.folder, options)
    else:
        before = client.call("daemon.status")
        client.close()
        daemon.stop(session.folder, False, seconds(timeout))
        how = daemon.launch(session.folder, options) if options else daemon.relaunch(session.folder, before)
    _report(session, "restarted", f"Restarted fleetd ({how})")


@app.command()
@with_session
def status(session: Session) -> None:
    """Show whether fleetd runs; exit code 7 when it does not."""
    show_status(session)


def show_status(session: Session) -> None:
    """Write what fleetd says of itself. Exits with 7 when it does not run."""
    client = session.running_client()
    if client is None:
        if session.as_json:
            session.out.data({"running": False, "state_dir": str(session.folder)})
        else:
            session.out.line(
                f"fleetd is not running (state folder {session.folder}); start it with `fleet daemon start`"
            )
        raise typer.Exit(Unavailable.exit_code)
    answer = client.call("daemon.status")
    if session.as_json:
        session.out.data({"running": True, **answer})
        return
    states = answer["processes"]
    session.out.pairs(
        {
            "fleetd": f"running as pid {answer['pid']}, version {answer['version']}",
            "Uptime": _since(answer["started"]),
            "Memory": size(answer["memory"]) if answer.get("memory") else None,
            "Supervisor": answer["driver"] + (f" ({answer['scope']})" if answer.get("scope") else ""),
            "State folder": answer["state_dir"],
            "Processes": ", ".join(f"{number} {state}" for state, number in sorted(states.items())) or "none",
            "Environments": str(answer["environments"]),
            "Agents": ", ".join(f"{number} {state}" for state, number in sorted(answer["agents"].items())) or "none",
        }
    )


def _since(moment: str) -> str:
    started = datetime.fromisoformat(moment.replace("Z", "+00:00"))
    return duration((datetime.now(timezone.utc) - started).total_seconds())


@app.command()
@with_session
def logs(
    session: Session,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as lines are written.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many lines from the end.")] = 50,
) -> None:
    """Show what fleetd says about itself."""
    scope = daemon.unit_scope(session.folder)
    if scope is not None and (daemon.unit_runs(scope) or not paths.daemon_log(session.folder).exists()):
        command = ["journalctl", *scope, "--unit", daemon.UNIT, "--lines", str(lines), "--no-pager"]
        sys.stdout.flush()
        os.execvp(command[0], [*command, "--follow"] if follow else command)
    try:
        file = open(paths.daemon_log(session.folder), encoding="utf-8", errors="replace")  # noqa: SIM115
    except FileNotFoundError:
        raise NotFound(
            f"{paths.daemon_log(session.folder)}: no log; fleetd has not run in the background here"
        ) from None
    with file:
        _print_lines(session, file.readlines()[-lines:] if lines else [])
        while follow:
            found = file.readlines()
            if found:
                _print_lines(session, found)
            else:
                time.sleep(0.2)


def _print_lines(session: Session, found: list[str]) -> None:
    import json

    for line in found:
        text: Any = line.rstrip("\n")
        print(json.dumps({"line": text}) if session.as_json else text)
    sys.stdout.flush()
