# SPDX-License-Identifier: GPL-3.0-or-later
"""The Typer application: which command lies in which module, loaded when the command is asked for."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, MutableMapping
from importlib import import_module
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from .. import __version__
from . import session as sessions
from .commands import Command
from .session import Session, with_session

PANELS: dict[str, dict[str, str]] = {
    "Processes": {
        "start": "starting:start",
        "stop": "processes:stop",
        "restart": "processes:restart",
        "delete": "processes:delete",
        "ps": "processes:ps",
        "inspect": "processes:inspect",
        "logs": "logs:logs",
        "discover": "processes:discover",
        "run-action": "processes:run_action",
        "kill-all": "processes:kill_all",
    },
    "Environments": {
        "init": "environments:init",
        "activate": "environments:activate",
        "deactivate": "environments:deactivate",
        "status": "environments:status",
        "list": "environments:list_environments",
    },
    "Resources and templates": {
        "template": "templates:app",
        "resource-type": "resource_types:app",
        "resources": "resources:app",
    },
    "Agents": {
        "apply": "agent_files:apply",
        "agents": "agents:app",
        "run": "agent_runs:run",
        "pause": "agent_runs:pause",
        "resume": "agent_runs:resume",
        "interrupt": "agent_runs:interrupt",
        "message": "agent_runs:message",
        "edit": "revisions:edit",
        "revisions": "revisions:revisions",
        "diff": "revisions:diff",
        "rollback": "revisions:rollback",
        "steer": "steer:steer",
        "task": "tasks:app",
        "mcp": "mcp:app",
        "schema": "schemas:schema",
        "gcluster": "gcluster:gcluster",
    },
    "Machines": {
        "machines": "machines:app",
        "egress": "egress:app",
    },
    "This host": {
        "daemon": "daemon_commands:app",
        "state": "state:app",
        "version": "app:version",
        "help": "help:help_topic",
    },
}
# Commands for which it does not matter in which project they are given.
_NO_PROJECT = (
    *("discover", "kill-all", "init", "list", "version", "help", "schema"),
    *("apply", "run", "pause", "resume", "interrupt", "message", "edit", "revisions", "diff", "rollback"),
)
CONTEXT = {"help_option_names": ["-h", "--help"]}
# Boxes and colors in the help are for terminals.
_MARKUP: Literal["rich"] | None = "rich" if sys.stdout.isatty() and os.environ.get("TERM") != "dumb" else None


class LazyCommands(MutableMapping[str, Any]):
    """The commands by name; each is built when it is looked up."""

    def __init__(self) -> None:
        self._panels = {name: panel for panel, names in PANELS.items() for name in names}
        self._built: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._built:
            self._built[name] = _build(name, self._panels[name])
        return self._built[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._panels.setdefault(name, "")
        self._built[name] = command

    def __delitem__(self, name: str) -> None:
        del self._panels[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._panels)

    def __len__(self) -> int:
        return len(self._panels)


def _build(name: str, panel: str) -> Any:
    module, _colon, attribute = PANELS[panel][name].partition(":")
    found = getattr(import_module(f"autovibe_fleet.cli.{module}"), attribute)
    if isinstance(found, typer.Typer):
        group = found
        group.rich_markup_mode = _MARKUP
        group._add_completion = False
    else:
        group = typer.Typer(add_completion=False, rich_markup_mode=_MARKUP)
        settings = {"cls": Command, **getattr(found, "settings", {})}
        settings["context_settings"] = {**CONTEXT, **settings.get("context_settings", {})}
        everywhere = tuple(option for option in sessions.SHARED if option != "environment" or name not in _NO_PROJECT)
        shared = settings.pop("shared", everywhere)
        group.command(name, **settings)(with_session(found, shared))
    command: Any = typer.main.get_command(group)
    command.name = name
    command.rich_help_panel = panel
    return command


class Commands(TyperGroup):
    """The root: its commands are in PANELS."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = LazyCommands()

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names in the order of PANELS."""
        return list(self.commands)


app = typer.Typer(name="fleet", cls=Commands, no_args_is_help=True, context_settings=CONTEXT, rich_markup_mode=_MARKUP)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"fleet {__version__}")
        raise typer.Exit


@app.callback(
    epilog="Exit codes and other topics: `fleet help exit-codes`, `fleet help environment`, `fleet help names`."
)
def fleet(
    as_json: sessions.AsJson = False,
    state_dir: sessions.StateDir = "",
    environment: sessions.Environment = "",
    debug: sessions.Debug = False,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    """Run and watch processes and agents on this host, with the ports, files and devices that they need.

    Begin with `fleet init` and `fleet activate` in a project, with `fleet start NAME -- COMMAND`, or, for agents, with
    `fleet apply FILE` and `fleet run NAME`.
    """
    sessions.adopt({"as_json": as_json, "state_dir": state_dir, "environment": environment, "debug": debug})


def version(session: Session) -> None:
    """Print the version."""
    if session.as_json:
        session.out.data({"version": __version__})
    else:
        print(f"fleet {__version__}")
