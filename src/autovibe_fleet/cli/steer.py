# SPDX-License-Identifier: GPL-3.0-or-later
"""fleet steer: the terminal interface, loaded only when it is asked for."""

from __future__ import annotations

import importlib.util
import sys
from typing import Annotated

import typer

from fleet_core.errors import InvalidInput, Unavailable

from .session import Session


def steer(
    session: Session,
    agent: Annotated[str, typer.Argument(metavar="[AGENT]", help="The agent to begin with.")] = "",
) -> None:
    """Watch agents work and steer them, on the whole terminal.

    Needs Textual: pip install "autovibe-fleet[steer]". The key ? lists all keys, q quits.
    """
    if session.as_json:
        raise InvalidInput("steer: is for people and writes no JSON; see `fleet help json` for what does")
    if importlib.util.find_spec("textual") is None:
        raise Unavailable(
            'steer: needs Textual, which is not installed; `pip install "autovibe-fleet[steer]"` does that'
        )
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise InvalidInput("steer: expected a terminal, found a file or a pipe")
    folder = session.folder
    session.client.close()  # starts fleetd where it does not run
    from ..tui.app import run

    run(folder, agent)


steer.settings = {"shared": ("as_json", "state_dir", "debug")}  # type: ignore[attr-defined]
