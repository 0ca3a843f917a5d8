# SPDX-License-Identifier: GPL-3.0-or-later
"""fleet mcp: serve assistants over the Model Context Protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from fleet_core.errors import Unavailable

from .commands import Noun
from .session import Session, with_session

if TYPE_CHECKING:
    from ..mcp.server import FleetServer

app = Noun()


@app.callback(invoke_without_command=True, help="Serve assistants over the Model Context Protocol.")
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
