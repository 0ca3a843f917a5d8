# SPDX-License-Identifier: GPL-3.0-or-later
"""fleet schema: the JSON Schemas of what people write, for editors and checkers."""

from __future__ import annotations

import json
from importlib import resources
from typing import Annotated, Any

import typer

from fleet_core.errors import NotFound
from fleet_core.names import nearest

from .session import Session

SCHEMAS = {"agent": "agent.json", "task-list": "task_list.json", "egress": "egress.json"}


def _complete(incomplete: str) -> list[str]:
    return [name for name in SCHEMAS if name.startswith(incomplete)]


def load(name: str) -> dict[str, Any]:
    """Return a schema. Raises NotFound."""
    if name not in SCHEMAS:
        raise NotFound(f'schema "{name}": expected {" or ".join(SCHEMAS)}{nearest(name, SCHEMAS)}')
    text = resources.files("autovibe_fleet").joinpath("schemas").joinpath(SCHEMAS[name]).read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def schema(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="agent|task-list|egress", autocompletion=_complete)],
) -> None:
    """Print the JSON Schema of agents, tasks or policies.

    Editors check and complete a YAML file that begins with: # yaml-language-server: $schema=PATH
    """
    session.out.data(load(name))
