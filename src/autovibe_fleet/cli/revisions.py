# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands on the revisions of agents: revisions, diff, rollback, edit."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from fleet_core.agents import AgentDefinition, agent_definition, compare
from fleet_core.errors import Conflict, FleetError, InvalidInput, NotFound, Unavailable

from . import agent_names, completion
from .agent_files import show_diff
from .agent_names import Agent, when
from .output import Column
from .session import Session

Revision = Annotated[str, typer.Argument(metavar="REVISION", autocompletion=completion.agent_revisions)]


def revisions(session: Session, name: Agent) -> None:
    """List the revisions of an agent, newest first."""
    name = agent_names.stored(session, name)
    rows = session.agents.revisions(name)
    current = session.agents.agent(name)["revision"]
    if session.as_json:
        session.out.data({"revisions": rows, "current": current})
        return
    columns = (
        Column("REVISION", right=True),
        Column("BY"),
        Column("TIME"),
        Column("ID"),
        Column("LINES", right=True),
        Column(""),
    )
    table = []
    before: AgentDefinition | None = None
    for row in rows:
        definition = agent_definition(row["definition"])
        lines = [] if before is None else compare(before, definition)
        added, removed = (sum(line[:1] == sign for line in lines) for sign in "+-")
        changed = f"+{added} -{removed}" if before else None
        mark = "current" if row["number"] == current else ""
        table.append((row["number"], row["origin"], when(row["time"]), row["id"][:12], changed, mark))
        before = definition
    session.out.table(columns, [(*row[:-1], row[-1] or " ") for row in reversed(table)])


def diff(
    session: Session,
    name: Agent,
    old: Annotated[str, typer.Argument(metavar="[FROM]", autocompletion=completion.agent_revisions)] = "",
    new: Annotated[str, typer.Argument(metavar="[TO]", autocompletion=completion.agent_revisions)] = "",
) -> None:
    """Compare two revisions of an agent.

    The last two, or FROM and the current one, or FROM and TO. A revision is a number or the beginning of an id.
    """
    name = agent_names.stored(session, name)
    current = session.agents.agent(name)["revision"]
    first = _number(session, name, old) if old else max(current - 1, 1)
    second = _number(session, name, new) if new else current
    before, after = session.agents.definition(name, first), session.agents.definition(name, second)
    if session.as_json:
        session.out.data({"agent": name, "from": first, "to": second, "lines": compare(before, after)})
        return
    if before == after:
        session.out.line(f"Revisions {first} and {second} of {name} are equal." if first != second else _single(name))
        return
    session.out.line(f"--- {name} revision {first}", style="bold")
    session.out.line(f"+++ {name} revision {second}", style="bold")
    show_diff(session, before, after)


def _single(name: str) -> str:
    return f"{name} has one revision."


def _number(session: Session, name: str, text: str) -> int:
    """Return the number of a revision from its number, or from the beginning of its id."""
    rows = session.agents.revisions(name)
    if text.isdecimal() and any(row["number"] == int(text) for row in rows):
        return int(text)
    found = [row["number"] for row in rows if len(text) >= 6 and row["id"].startswith(text.lower())]
    if found:
        return int(found[-1])
    last = rows[-1]["number"]
    known = f"1 to {last}" if last > 1 else "1"
    raise NotFound(f'agent "{name}": revision "{text}": expected {known}, or the beginning of an id')


def rollback(session: Session, name: Agent, revision: Revision) -> None:
    """Make an earlier revision of an agent the current one.

    It becomes a new revision; none is lost.
    """
    name = agent_names.stored(session, name)
    number = _number(session, name, revision)
    answer = session.call("agents.rollback", name=name, revision=number)
    _say(session, answer, name, f"equal to revision {number}")


def edit(
    session: Session,
    name: Agent,
    method: Annotated[
        str, typer.Argument(metavar="[METHOD]", autocompletion=completion.agent_methods, help="Which prompt.")
    ] = "",
    file: Annotated[
        str, typer.Option("--body-file", metavar="FILE", help="Take the text from there; - reads standard input.")
    ] = "",
) -> None:
    """Change a prompt of an agent in $EDITOR.

    A running agent uses it from its next iteration on. The method may be left out for an agent that has only one.
    """
    name = agent_names.stored(session, name)
    revision = session.agents.agent(name)["revision"]
    definition = session.agents.definition(name)
    names = [item.name for item in definition.methods]
    if not method and len(names) > 1:
        raise InvalidInput(f'agent "{name}": expected the method to edit, one of {", ".join(names)}')
    found = definition.method(method or names[0])
    if file:
        answer: dict[str, Any] | None = _edited(session, name, found.name, _read(file), revision)
    else:
        answer = _in_editor(session, name, found.name, found.body, revision)
    if answer is None:
        session.out.line(f"{name} is unchanged")
    else:
        _say(session, answer, name, f"with a new {found.name}")


def _edited(session: Session, name: str, method: str, body: str, revision: int) -> dict[str, Any]:
    found: dict[str, Any] = session.call("agents.edit", name=name, method=method, body=body, base_revision=revision)
    return found


def _read(file: str) -> str:
    try:
        return sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except OSError as error:
        kind = NotFound if isinstance(error, FileNotFoundError) else InvalidInput
        raise kind(f"{file}: {error.strerror}") from None
    except ValueError:
        raise InvalidInput(f"{file}: expected UTF-8 text") from None


def _in_editor(session: Session, name: str, method: str, body: str, revision: int) -> dict[str, Any] | None:
    """Let the user change a body. A text that is refused is kept in a file that the error names."""
    if not sys.stdin.isatty() and not (os.environ.get("VISUAL") or os.environ.get("EDITOR")):
        raise InvalidInput("edit: expected a terminal, $EDITOR or --body-file")
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    descriptor, path = tempfile.mkstemp(prefix=f"{name}-{method}-", suffix=".md")
    with open(descriptor, "w", encoding="utf-8") as out:
        out.write(f"{body}\n")
    try:
        done = subprocess.run([*shlex.split(editor), path], check=False)
    except (OSError, ValueError) as error:
        os.unlink(path)
        raise Unavailable(f"editor {editor}: cannot be started: {error}") from None
    if done.returncode != 0:
        os.unlink(path)
        raise Conflict(f"editor {editor}: ended with exit code {done.returncode}; nothing was changed")
    changed = _read(path)
    if changed.rstrip() == body.rstrip():
        os.unlink(path)
        return None
    try:
        answer = _edited(session, name, method, changed, revision)
    except FleetError as error:
        raise type(error)(f"{error}; your text is in {path}") from None
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    return answer


def _say(session: Session, answer: dict[str, Any], name: str, how: str) -> None:
    if session.as_json:
        session.out.data(answer)
        return
    (view,) = answer["agents"]
    if not answer["change"]["actions"]:
        session.out.line(f"{name} is unchanged: revision {view['revision']} is {how} already")
        return
    session.out.line(f"{name} is at revision {view['revision']} now, {how}")
    if view["state"] in ("running", "waiting"):
        session.out.note("It runs; its next iteration takes the new revision.")
