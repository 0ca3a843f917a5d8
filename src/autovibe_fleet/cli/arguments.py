# SPDX-License-Identifier: GPL-3.0-or-later
"""Arguments and options that several commands take, and how their text becomes values."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Annotated, Any

import typer

from fleet_core.errors import InvalidInput
from fleet_core.names import nearest
from fleet_core.processes import FIELDS
from fleet_core.quantities import parse_duration

from . import completion

TIMEOUT = 120.0  # seconds

Names = Annotated[list[str], typer.Argument(metavar="NAME...", autocompletion=completion.processes)]
Timeout = Annotated[
    str, typer.Option("--timeout", metavar="TIME", help="How long to wait, such as 90s or 5m (default: 2m).")
]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until the processes are up.")]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="A field of the process, such as restart=always, env.MODE=dev, limits.memory=512M or "
        "health=http://127.0.0.1:${tcpport}/. Lists with commas or as JSON.",
    ),
]
_MAPS = ("env", "vars", "limits", "logs", "restart", "readiness", "health")
_LISTS = ("resources", "env_files", "depends_on")


def seconds(text: str) -> float:
    """Return the seconds of --timeout."""
    return parse_duration("--timeout", text) if text else TIMEOUT


def declaration(assignments: Iterable[str]) -> dict[str, Any]:
    """Return process fields from FIELD=VALUE texts; FIELD.KEY=VALUE sets one key of a mapping."""
    known = [name for name in FIELDS if name not in ("id", "template", "command")]
    fields: dict[str, Any] = {}
    for text in assignments:
        path, equals, value = text.partition("=")
        name, dot, key = path.partition(".")
        if not equals:
            raise InvalidInput(f'--set: expected FIELD=VALUE, found "{text}"')
        if name not in known:
            hint = nearest(name, known) or f"; fields: {', '.join(known)}"
            raise InvalidInput(f'--set: unknown field "{name}"{hint}')
        if dot:
            if name not in _MAPS or not key:
                raise InvalidInput(f'--set: "{name}" has no keys, found "{path}"')
            inner = fields.setdefault(name, {})
            fields[name] = inner = (
                {"policy" if name == "restart" else "url": inner} if isinstance(inner, str) else inner
            )
            inner[key] = value
        else:
            fields[name] = _value(name, value)
    return fields


def _value(name: str, text: str) -> Any:
    if text[:1] in "[{" and text:
        try:
            return json.loads(text)
        except ValueError as error:
            raise InvalidInput(f"--set: {name}: expected JSON: {error}") from None
    if name in _LISTS:
        return [part.strip() for part in text.split(",") if part.strip()]
    return text
