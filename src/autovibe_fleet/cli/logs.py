# SPDX-License-Identifier: GPL-3.0-or-later
"""fleet logs: what a process printed, and what happened to it."""

from __future__ import annotations

from typing import Annotated

import typer

from . import completion
from .session import Session


def logs(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", autocompletion=completion.processes)],
) -> None:
    """Show what a process printed, and what happened to it."""
    raise NotImplementedError
