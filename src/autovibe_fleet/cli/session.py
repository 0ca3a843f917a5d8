# SPDX-License-Identifier: GPL-3.0-or-later
"""What every command gets: the options that all commands share, the output, and ways to the store and to fleetd."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fleet_core.errors import Unavailable
from fleet_node import paths

from . import completion
from .output import Output

if TYPE_CHECKING:
    from fleet_node.agents import AgentStore
    from fleet_node.client import Client
    from fleet_node.store import Store

_PANEL = "Common options"
AsJson = Annotated[
    bool, typer.Option("--json", help="Print the result, or the error, as JSON.", rich_help_panel=_PANEL)
]
StateDir = Annotated[
    str,
    typer.Option(
        "--state-dir", metavar="DIR", help="State folder, instead of $FLEET_STATE_DIR.", rich_help_panel=_PANEL
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show where an error comes from.", rich_help_panel=_PANEL)]
Environment = Annotated[
    str,
    typer.Option(
        "--environment",
        "-e",
        metavar="PATH",
        help="Project folder, project file or name of an environment, instead of the current folder's.",
        autocompletion=completion.environments,
        rich_help_panel=_PANEL,
    ),
]
SHARED: dict[str, tuple[Any, Any]] = {
    "as_json": (AsJson, False),
    "state_dir": (StateDir, ""),
    "debug": (Debug, False),
    "environment": (Environment, ""),
}


@dataclass
class Session:
    """One run of the command. environment: what -e says; an empty string means the current folder."""

    as_json: bool = False
    state_dir: str = ""
    debug: bool = False
    environment: str = ""
    out: Output = field(default_factory=Output)

    @property
    def folder(self) -> Path:
        """The state folder. Raises Unavailable for another user's, which may not be entered."""
        folder = paths.state_dir(self.state_dir)
        try:
            os.stat(paths.database(folder))
        except PermissionError:
            raise Unavailable(f"state folder {folder}: belongs to another user: Permission denied") from None
        except OSError:
            pass  # not there yet, or told better when it is opened
        return folder

    @functools.cached_property
    def store(self) -> Store:
        """The state database of this host; it needs no fleetd."""
        from fleet_node.store import Store

        return Store(self.folder)

    @functools.cached_property
    def agents(self) -> AgentStore:
        """The agents database of this host; it needs no fleetd."""
        from fleet_node.agents import AgentStore

        return AgentStore(self.folder)

    @property
    def has_agents(self) -> bool:
        """Whether an agent was ever declared here."""
        return (self.folder / paths.AGENTS_DATABASE).exists()

    @functools.cached_property
    def client(self) -> Client:
        """A connection to fleetd, which is started when it does not run. Raises Unavailable."""
        client = self.running_client()
        if client is not None:
            return client
        if os.environ.get("FLEET_NO_AUTOSTART", "0") not in ("", "0"):
            raise Unavailable("fleetd is not running and FLEET_NO_AUTOSTART is set; start it with `fleet daemon start`")
        from . import daemon

        started = daemon.launch(self.folder)
        self.out.note(f"Started fleetd in the background ({started}).")
        return self.connect()

    def running_client(self) -> Client | None:
        """Return a connection to fleetd if it runs."""
        client = self.connect()
        return client if client.answers() else None

    def connect(self) -> Client:
        """Return a client; whether fleetd answers shows with its first call."""
        from fleet_node.client import Client

        return Client(self.folder)

    def call(self, method: str, /, **params: Any) -> Any:
        """Call fleetd; parameters that are None are left out."""
        return self.client.call(method, **{key: value for key, value in params.items() if value is not None})


# The session of this run, for the edge that turns errors into sentences.
current = Session()


def with_session(
    function: Callable[..., None], names: Sequence[str] = ("as_json", "state_dir", "debug")
) -> Callable[..., None]:
    """Return a Typer command that takes shared options in place of the function's first parameter, a Session."""
    own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
    parameters = [part.replace(kind=inspect.Parameter.KEYWORD_ONLY) for part in own]
    for name, (annotation, default) in ((name, SHARED[name]) for name in names):
        parameters.append(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        )

    @functools.wraps(function)
    def run(**given: Any) -> None:
        adopt({name: given.pop(name) for name in names})
        function(current, **given)

    del run.__wrapped__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {part.name: part.annotation for part in parameters}
    return run


def adopt(options: dict[str, Any]) -> None:
    """Take the shared options that were given; what was given before the command's name stays otherwise."""
    for name, value in options.items():
        if value:
            setattr(current, name, value)
    current.out.as_json = current.as_json
