# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands on resource types."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from fleet_core.errors import InvalidInput, NotFound
from fleet_core.names import nearest
from fleet_core.resource_types import DEFAULTS, ResourceType
from fleet_node import declarations

from . import completion
from .commands import Noun
from .output import Column
from .session import Session, with_session

app = Noun()
_NOT = ("false", "no", "off", "0")


def list_types(session: Session) -> None:
    """List the resource types."""
    kinds = session.store.types()
    if session.as_json:
        session.out.data({"resource_types": [kind.to_dict() for kind in kinds.values()]})
        return
    columns = (
        Column("TYPE"),
        Column("RANGE"),
        Column("AVAILABLE WHEN", flexible=True),
        Column("DESCRIPTION", flexible=True),
    )
    rows = [(name, _range(kind), _condition(kind), kind.description) for name, kind in kinds.items()]
    session.out.table(columns, rows)


app.command("list")(with_session(list_types))


@app.callback(invoke_without_command=True, help="Resource types: what can be claimed, and how it is checked.")
@with_session
def without_command(session: Session, context: typer.Context) -> None:
    """List them when no command is given."""
    if context.invoked_subcommand is None:
        list_types(session)


def _range(kind: ResourceType) -> str:
    return f"{kind.start}-{kind.end}" if kind.counter else ""


def _condition(kind: ResourceType) -> str:
    if kind.probe == "tcp":
        return "nothing listens on it"
    if kind.probe == "path":
        return "nothing has this path"
    if kind.check:
        return f"{'succeeds' if kind.check_means == 'free' else 'fails'}: {kind.check}"
    return "not claimed"


@app.command()
@with_session
def show(
    session: Session, name: Annotated[str, typer.Argument(metavar="TYPE", autocompletion=completion.resource_types)]
) -> None:
    """Show one resource type and how many of its values are claimed."""
    kind = _one(session, name)
    claimed = sum(claim.type == name for claim in session.store.claims())
    if session.as_json:
        session.out.data({"resource_type": kind.to_dict(), "claimed": claimed})
        return
    session.out.pairs(
        {
            "Type": kind.name,
            "Description": kind.description,
            "Range": _range(kind),
            "Available when": _condition(kind),
            "Check timeout": f"{kind.timeout:g} s" if kind.check else None,
            "Claimed": claimed,
        }
    )


@app.command()
@with_session
def add(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="TYPE")],
    check: Annotated[
        str | None, typer.Option("--check", metavar="COMMAND", help="Shell command with ${value}.")
    ] = None,
    check_means: Annotated[
        str | None, typer.Option("--check-means", metavar="free|in_use", help="What exit code 0 of the check says.")
    ] = None,
    counter: Annotated[
        bool | None, typer.Option("--counter/--no-counter", help="Values are numbers, given out in turn.")
    ] = None,
    start: Annotated[int | None, typer.Option("--start", help="First number of a counter.")] = None,
    end: Annotated[int | None, typer.Option("--end", help="Last number of a counter.")] = None,
    probe: Annotated[
        str | None, typer.Option("--probe", metavar="tcp|path", help="A check without a command: a TCP port or a path.")
    ] = None,
    timeout: Annotated[
        str | None, typer.Option("--timeout", metavar="TIME", help="Limit of one check (default: 5s).")
    ] = None,
    description: Annotated[
        str | None, typer.Option("--description", metavar="TEXT", help="What it is, for people.")
    ] = None,
) -> None:
    """Add a resource type, or change the given parts of one that exists.

    \b
    fleet resource-type add gpu --check='nvidia-smi -L | grep -q "GPU ${value}"' --check-means=free --counter --end=3
    """
    given: dict[str, Any] = {
        "name": name,
        "check": check,
        "check_means": check_means,
        "counter": counter,
        "start": start,
        "end": end,
        "probe": probe,
        "timeout": timeout,
        "description": description,
    }
    if check and not check_means and name not in session.store.types():
        raise InvalidInput(
            f'resource type "{name}": give --check-means=free or =in_use beside --check: what exit code 0 of it says'
        )
    plan = declarations.plan_types(session.store, [given])
    plan.apply(session.store)
    _report(session, name, plan)


def _report(session: Session, name: str, plan: declarations.TypesPlan) -> None:
    if session.as_json:
        session.out.data({"change": plan.change.to_dict()})
        return
    verb = plan.change.actions[0].split()[0] if plan.change.actions else ""
    words = {"create": "Added", "update": "Changed", "remove": "Removed"}
    session.out.line(f"{words[verb]} resource type {name}" if verb else f"Resource type {name} is unchanged")


@app.command()
@with_session
def remove(
    session: Session, name: Annotated[str, typer.Argument(metavar="TYPE", autocompletion=completion.resource_types)]
) -> None:
    """Remove a resource type that nobody holds values of."""
    _one(session, name)
    plan = declarations.plan_types(session.store, [{"name": name}], present=False)
    plan.apply(session.store)
    _report(session, name, plan)
    if name in {kind.name for kind in DEFAULTS}:
        session.out.note(
            f"{name} is a default type; `fleet resource-type add {name} ...` brings one of this name back."
        )


def _one(session: Session, name: str) -> ResourceType:
    kinds = session.store.types()
    if name not in kinds:
        raise NotFound(f'resource type "{name}": not defined{nearest(name, kinds)}')
    return kinds[name]
