# SPDX-License-Identifier: GPL-3.0-or-later
"""fleet mcp: serve assistants over the Model Context Protocol."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fleet_core.errors import FleetError, NotFound, Unavailable

from .commands import Noun
from .session import Session, with_session

if TYPE_CHECKING:
    from ..mcp.clients import Client
    from ..mcp.install import Outcome
    from ..mcp.server import FleetServer

app = Noun()


def _clients(incomplete: str) -> list[str]:
    from ..mcp import clients

    return [name for name in clients.NAMES if name.startswith(incomplete)]


@app.callback(
    invoke_without_command=True,
    help="Serve assistants over the Model Context Protocol.\n\n"
    "An assistant starts it by itself, on stdin and stdout; `fleet mcp install` tells it how.",
)
@with_session
def serve(
    session: Session,
    context: typer.Context,
    http: Annotated[
        bool, typer.Option("--http", help="Serve streamable HTTP on 127.0.0.1, with a token, instead of stdio.")
    ] = False,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port for --http; 0 takes a free one.")] = 43253,
) -> None:
    """Serve on stdin and stdout when no command is given."""
    if context.invoked_subcommand is not None:
        return
    server = _server(session)
    if http:
        from ..mcp import http as over_http

        over_http.serve(server, session.folder, port, session.out.note)
    else:
        server.run("stdio")


def _server(session: Session) -> FleetServer:
    try:
        from ..mcp.server import FleetServer, debugging
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "autovibe_fleet":
            raise
        raise Unavailable(
            f"fleet mcp: needs the Python package {error.name}: pip install 'autovibe-fleet[mcp]'"
        ) from None

    def launch() -> None:
        session.__dict__.pop("client", None)
        session.client.close()

    return FleetServer(session.folder, launch, session.debug or debugging())


Clients = Annotated[
    list[str] | None,
    typer.Option(
        "--client",
        metavar="NAME",
        help="A client; can be given several times. By default all that are found here.",
        autocompletion=_clients,
    ),
]
InProject = Annotated[
    bool, typer.Option("--project/--user", help="In the current folder's project, or for all of this user's (default).")
]
Name = Annotated[str, typer.Option("--name", metavar="NAME", help="What the client calls the server.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would change.")]


@app.command()
@with_session
def install(
    session: Session, client: Clients = None, project: InProject = False, name: Name = "fleet", dry_run: DryRun = False
) -> None:
    """Enter the server into the settings of assistants and editors.

    Everything else in their files stays, comments too; the old file is kept beside the new one as FILE.fleet.bak.
    """
    from ..mcp import install as installing

    given = session.state_dir or ("" if project else os.environ.get("FLEET_STATE_DIR", ""))
    how = installing.program(os.path.abspath(given) if given else "", project)
    if project and not dry_run and os.path.isabs(how.command):
        session.out.note(
            f"note: fleet is not on PATH; the project's file names {how.command}, which others may not have"
        )
    _change_all(
        session,
        _chosen(client, project),
        lambda found: installing.install(
            found, found.file(_place(project), Path.home()), name, how, dry_run, shared=project
        ),
        dry_run,
        f'"{name}": {" ".join([how.command, *how.args])}',
    )


@app.command()
@with_session
def uninstall(
    session: Session, client: Clients = None, project: InProject = False, name: Name = "fleet", dry_run: DryRun = False
) -> None:
    """Take the server out of the settings of assistants and editors."""
    from ..mcp import install as installing

    _change_all(
        session,
        _chosen(client, project),
        lambda found: installing.uninstall(found, found.file(_place(project), Path.home()), name, dry_run),
        dry_run,
    )


def _place(project: bool) -> Path | None:
    return Path(os.getcwd()) if project else None


def _chosen(names: list[str] | None, project: bool) -> list[Client]:
    """Return the clients of --client, or those that are here. Raises NotFound when there is none."""
    from ..mcp import clients

    if names:
        return [clients.client(name) for name in dict.fromkeys(names)]
    found = [client for client in clients.CLIENTS if client.present(Path.home()) and (client.project or not project)]
    if not found:
        raise NotFound(f"no client was found here; name one by --client: {', '.join(clients.NAMES)}")
    return found


def _change_all(
    session: Session, clients: Sequence[Client], change: Callable[[Client], Outcome], dry_run: bool, entry: str = ""
) -> None:
    """Change the settings of each client and tell; one that cannot be changed keeps no other from it."""
    outcomes: list[Outcome] = []
    errors: list[FleetError] = []
    for client in clients:
        try:
            outcomes.append(change(client))
        except FleetError as error:
            errors.append(error)
    if session.as_json and not errors:
        session.out.data({"clients": [outcome.to_dict() for outcome in outcomes], "dry_run": dry_run})
    elif not session.as_json:
        for outcome in outcomes:
            session.out.line(f"{outcome.client}: {'would be ' if dry_run else ''}{outcome.action} in {outcome.file}")
        if entry and not dry_run and any(outcome.action != "unchanged" for outcome in outcomes):
            session.out.note(f"Entered {entry}; restart the client to use it.")
    for other in errors[1:]:
        session.out.note(f"fleet: {other}")
    if errors:
        raise errors[0]
