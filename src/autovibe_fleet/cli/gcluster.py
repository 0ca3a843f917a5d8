# SPDX-License-Identifier: GPL-3.0-or-later
"""fleet gcluster: serve gcluster's own clients."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Annotated, Any

import typer

from fleet_core.agents import RUNNERS
from fleet_core.errors import InvalidInput, NotFound
from fleet_core.names import nearest

from .session import Session


def gcluster(
    session: Session,
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")
    ] = 43252,
    runner: Annotated[str, typer.Option("--runner", metavar="NAME", help="Runner of new agents.")] = "claude",
    model: Annotated[str, typer.Option("--model", metavar="NAME", help="Model of new agents.")] = "",
    command: Annotated[
        str, typer.Option("--command", metavar="LINE", help="Shell command of new agents, with --runner command.")
    ] = "",
    folder: Annotated[
        str, typer.Option("--folder", metavar="DIR", help="Folder that new agents work in (default: this one).")
    ] = "",
    start: Annotated[
        bool, typer.Option("--start/--no-start", help="Run agents that are new or changed, as gcluster does.")
    ] = True,
) -> None:
    """Serve the clients of gcluster until a signal ends it.

    They apply .p files and steer as they always did; fleetd keeps and runs the agents. An agent that exists keeps its
    runner, limits and workspace when it is applied again.
    """
    from ..gcluster.server import ADDRESS, Bridge

    if runner not in RUNNERS:
        raise InvalidInput(f'--runner: expected {", ".join(RUNNERS)}, found "{runner}"{nearest(runner, RUNNERS)}')
    if (runner == "command") != bool(command):
        raise InvalidInput("--command: goes with --runner command, and that with it")
    place = Path(os.path.abspath(os.path.expanduser(folder or ".")))
    if not place.is_dir():
        raise NotFound(f"--folder {place}: no such folder")
    base: dict[str, Any] = {"runner": runner, "workspace": {"path": str(place)}}
    base.update({key: value for key, value in (("model", model), ("command", command)) if value})

    def launch() -> None:
        session.__dict__.pop("client", None)
        session.client.close()

    def ready(number: int) -> None:
        session.out.note(f"Serving gcluster on {ADDRESS}:{number}")

    async def serve() -> None:
        stop = asyncio.Event()
        for name in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(name, stop.set)
        bridge = Bridge(session.folder, base, start, launch, lambda text: session.out.note(f"fleet gcluster: {text}"))
        await bridge.serve(port, stop, ready)

    asyncio.run(serve())
