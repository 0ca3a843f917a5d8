# SPDX-License-Identifier: GPL-3.0-or-later
"""fleet start, in its three shapes: a declared process, a template with a name, a command."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from fleet_core.errors import InvalidInput

from . import completion, projects
from .arguments import Assignments, Timeout, Wait, declaration
from .commands import AfterDashes
from .processes import apply_change
from .session import Session

_QUOTED = re.compile(r"\\.|'[^']*'|\"[^\"]*\"")
_OPERATOR = re.compile(r"[|&;<>]")


def start(
    session: Session,
    context: typer.Context,
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[TEMPLATE] NAME [--KEY=VALUE]... [-- COMMAND]", autocompletion=completion.templates_or_processes
        ),
    ],
    assignments: Assignments = None,
    wait: Wait = True,
    timeout: Timeout = "",
) -> None:
    """Start a process from a template or a command, or by name.

    \b
    fleet start NAME...                    declared ones; in a project also its environment's
    fleet start TEMPLATE NAME --KEY=VALUE  variables; a bare --KEY is true; the name of a
                                           resource, as in --tcpport=8080, asks for that value
    fleet start NAME -- COMMAND            in this folder; %tcpport claims a free port;
                                           one quoted word is read as a command line

    A variable with the name of an option below is given as --set vars.KEY=VALUE.
    """
    command = (context.obj or {}).get("command")
    names = [word for word in words if not word.startswith("-")]
    values = variables([word for word in words if word.startswith("-")])
    fields = declaration(assignments or [])
    if values:
        fields["vars"] = {**fields.get("vars", {}), **values}
    if command is not None:
        item = _from_command(session, names, command, fields)
    elif _is_template(session, names):
        item = {**fields, "id": names[1], "template": names[0]}
    else:
        ids = _declared(session, names, fields)
        apply_change(session, "processes.start", {"ids": ids}, wait, timeout)
        return
    apply_change(session, "processes.apply", {"items": [item], "state": "started"}, wait, timeout)


start.settings = {  # type: ignore[attr-defined]
    "cls": AfterDashes,
    "context_settings": {"ignore_unknown_options": True},
    "shared": ("as_json", "state_dir", "environment"),  # --debug is left to templates, as a variable
}


def variables(words: Sequence[str]) -> dict[str, str]:
    """Return the variables of --key=value words; a bare --key is true."""
    found: dict[str, str] = {}
    for word in words:
        key, equals, value = word[2:].partition("=")
        if not word.startswith("--") or not key:
            raise InvalidInput(f'start: expected --KEY=VALUE, found "{word}"')
        found[key] = value if equals else "true"
    return found


def _from_command(
    session: Session, names: Sequence[str], command: Sequence[str], fields: Mapping[str, Any]
) -> dict[str, Any]:
    if len(names) != 1:
        raise InvalidInput(f"start: expected one NAME before --, found {' '.join(names) or 'nothing'}")
    if not command:
        raise InvalidInput("start: expected a command after --, found nothing")
    text = command[0] if len(command) == 1 else shlex.join(command)
    if len(command) == 1 and "shell" not in fields and _OPERATOR.search(_QUOTED.sub("", text)):
        session.out.note("note: | & ; < > are plain text without a shell; --set shell=true runs the command by one")
    folder = os.getcwd().replace("%", "%%").replace("${", "$${")
    return {"working_dir": folder, **fields, "id": names[0], "command": text}


def _is_template(session: Session, names: Sequence[str]) -> bool:
    """Tell whether the words are TEMPLATE NAME. Raises InvalidInput for a template with other words after it."""
    known = bool(names) and session.store.template(names[0]) is not None
    if len(names) == 2:
        return known or not session.store.processes(projects.process_ids(session, names))
    if known and not session.store.processes(names[:1]):
        found = f"found {' '.join(names)}" if len(names) > 1 else "found no name"
        raise InvalidInput(f'start: template "{names[0]}": expected TEMPLATE NAME --KEY=VALUE, {found}')
    return False


def _declared(session: Session, names: Sequence[str], fields: Mapping[str, Any]) -> list[str]:
    if not names:
        raise InvalidInput("start: expected NAME, found only options")
    if fields:
        option = next(iter(fields.get("vars") or fields))
        raise InvalidInput(
            f'process "{names[0]}": "{option}" needs a template (`fleet start TEMPLATE {names[0]} ...`) '
            "or a command after --"
        )
    return projects.process_ids(session, names)
