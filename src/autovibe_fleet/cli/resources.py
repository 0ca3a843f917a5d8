# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands on claimed resources."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import typer

from fleet_core.changes import Change
from fleet_core.errors import InvalidInput, NotFound
from fleet_core.resources import Claim
from fleet_node import declarations
from fleet_node import resources as claims

from . import completion
from .commands import Noun
from .output import Column
from .session import Session, with_session

app = Noun()
Asked = Annotated[
    list[str],
    typer.Argument(
        metavar="[NAME=]TYPE[:VALUE]...",
        help="tcpport takes the next free one, tcpport:8080 that one; admin=tcpport names it.",
        autocompletion=completion.resource_types,
    ),
]
Owner = Annotated[str, typer.Argument(metavar="OWNER", autocompletion=completion.owners)]


def list_claims(
    session: Session,
    owner: Annotated[
        str,
        typer.Option("--owner", metavar="OWNER", help="Only what this owner holds.", autocompletion=completion.owners),
    ] = "",
    kind: Annotated[
        str, typer.Option("--type", metavar="TYPE", help="Only this type.", autocompletion=completion.resource_types)
    ] = "",
    vanished: Annotated[
        bool, typer.Option("--vanished", help="Only claims whose owner is no declared process.")
    ] = False,
) -> None:
    """List claimed resources."""
    found = claims.vanished(session.store) if vanished else session.store.claims([owner] if owner else None)
    found = [claim for claim in found if owner in ("", claim.owner) and kind in ("", claim.type)]
    _show(session, found, empty="Nothing is claimed.")


app.command("list")(with_session(list_claims))


@app.callback(invoke_without_command=True, help="Claimed ports, files and devices.")
@with_session
def without_command(session: Session, context: typer.Context) -> None:
    """List them when no command is given."""
    if context.invoked_subcommand is None:
        list_claims(session)


def _show(session: Session, found: Iterable[Claim], empty: str) -> None:
    found = list(found)
    if session.as_json:
        session.out.data({"resources": [claim.to_dict() for claim in found]})
        return
    columns = (Column("TYPE"), Column("VALUE"), Column("OWNER"), Column("NAME"))
    session.out.table(columns, [(claim.type, claim.value, claim.owner, claim.name) for claim in found], empty=empty)


@app.command()
@with_session
def claim(session: Session, owner: Owner, resources: Asked) -> None:
    """Claim resources for an owner, all or none.

    What it holds already stays.
    """
    asked = [{"owner": owner, "resources": [_request(text) for text in resources]}]
    allocation = claims.claim(session.store, declarations.requests(asked))
    change = declarations.allocation_change(allocation)
    held = list(claims.granted(allocation)[owner].values())
    if session.as_json:
        session.out.data({"change": change.to_dict(), "resources": [item.to_dict() for item in held]})
        return
    for item in held:
        session.out.line(f"{item.name}={item.value}")


def _request(text: str) -> dict[str, str]:
    kind, colon, value = text.partition(":")
    name, equals, rest = kind.partition("=")
    if not text or (colon and not value) or (equals and not (name and rest)):
        raise InvalidInput(f'resource: expected TYPE, TYPE:VALUE or NAME=TYPE:VALUE, found "{text}"')
    return {"type": rest if equals else kind, "name": name if equals else kind, "value": value}


@app.command()
@with_session
def release(
    session: Session,
    owner: Owner,
    resources: Annotated[
        list[str] | None, typer.Argument(metavar="[TYPE[:VALUE]]...", autocompletion=completion.resource_types)
    ] = None,
) -> None:
    """Give back what an owner holds, or some of it."""
    asked = [{"owner": owner, "resources": [_request(text) for text in resources or []]}]
    found = declarations.to_release(session.store, asked)
    if not found:
        what = f"resource {', '.join(resources)}" if resources else "resources"
        raise NotFound(f'owner "{owner}": holds no {what}')
    session.store.release_claims(found)
    _released(session, found)


def _released(session: Session, found: list[Claim]) -> None:
    change: Change = declarations.claims_change(released=found)
    if session.as_json:
        session.out.data({"change": change.to_dict(), "resources": [item.to_dict() for item in found]})
        return
    for item in found:
        session.out.line(f"Released {item} of {item.owner}")


@app.command()
@with_session
def reap(
    session: Session,
    keep: Annotated[
        list[str] | None, typer.Option("--keep", metavar="OWNER", help="An owner outside the fleet that still lives.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list them.")] = False,
) -> None:
    """Release the claims of vanished owners.

    That is every owner that is no declared process, or not any more.
    """
    found = claims.vanished(session.store, keep or [])
    if dry_run:
        _show(session, found, empty="No claims of vanished owners.")
        return
    session.store.release_claims(found)
    if not found and not session.as_json:
        session.out.line("No claims of vanished owners.")
        return
    _released(session, found)
