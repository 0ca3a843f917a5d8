# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands that save machines and put them back."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Annotated

import typer

from fleet_core.checkpoints import Checkpoint, check_checkpoint_name
from fleet_core.errors import NotFound
from fleet_core.names import nearest
from fleet_core.quantities import parse_duration
from fleet_machines.checkpoints import LATEST, Keeper, automatic_name
from fleet_machines.provider import Job, Provider

from . import machine_lists, machine_providers
from .machine_lists import Name
from .machine_power import Timeout, Yes, confirm
from .machine_providers import Choice, ProviderName, Settings
from .output import Column, size
from .session import Session, with_session

CheckpointName = Annotated[str, typer.Argument(metavar="CHECKPOINT", help=f"{LATEST} is the newest.")]


@machine_lists.app.command("checkpoints")
@with_session
def list_checkpoints(session: Session, name: Name, provider: ProviderName = "", settings: Settings = None) -> None:
    """Show the checkpoints of a machine as the tree that they form."""
    where, _machine = machine_providers.locate_one(session, Choice.of(provider, settings), name)
    found = keeper(session, where).tree([name]).get(name, ())
    if session.as_json:
        session.out.data({"checkpoints": [one.to_dict() for one in found]})
        return
    columns = (
        Column("CHECKPOINT"),
        Column("KIND"),
        Column("CREATED"),
        Column("LIVE"),
        Column("SIZE", right=True),
        Column("COMMENT", flexible=True),
    )
    rows = [(text, one.kind, one.created, one.live, size(one.size), one.comment) for text, one in tree(found)]
    session.out.table(columns, rows, empty=f"No checkpoints. Make one with `fleet machines checkpoint {name}`.")


@machine_lists.app.command()
@with_session
def checkpoint(
    session: Session,
    name: Name,
    checkpoint: Annotated[str, typer.Argument(metavar="[CHECKPOINT]", help="Its name; by default the time.")] = "",
    comment: Annotated[str, typer.Option("--comment", "-m", metavar="TEXT", help="What it is for.")] = "",
    folders: Annotated[
        list[str] | None,
        typer.Option("--folder", metavar="PATH", help="Keep a list of the files in this folder, with their hashes."),
    ] = None,
    stop: Annotated[
        bool, typer.Option("--stop", help="Stop it for that and start it again, where it cannot be saved live.")
    ] = False,
    timeout: Timeout = "15m",
    provider: ProviderName = "",
    settings: Settings = None,
) -> None:
    """Save the state of a machine."""
    where, _machine = machine_providers.locate_one(session, Choice.of(provider, settings), name)
    kept = keeper(session, where)
    taken = [one.name for one in kept.tree([name]).get(name, ())]
    chosen = check_checkpoint_name(checkpoint or automatic_name("manual", time.time(), taken))
    working = job(session, name, timeout)
    made = kept.take(name, chosen, working, comment=comment, folders=folders or (), stop=stop)
    if session.as_json:
        session.out.data({"checkpoint": made.to_dict()})
    else:
        session.out.line(f"Saved {name} as {made.name}")


@machine_lists.app.command()
@with_session
def restore(
    session: Session,
    name: Name,
    checkpoint: CheckpointName,
    yes: Yes = False,
    timeout: Timeout = "15m",
    provider: ProviderName = "",
    settings: Settings = None,
) -> None:
    """Put a machine back to a checkpoint. What it was since then is lost."""
    where, _machine = machine_providers.locate_one(session, Choice.of(provider, settings), name)
    kept = keeper(session, where)
    known = [one.name for one in kept.tree([name]).get(name, ())]
    if checkpoint not in known and not (checkpoint == LATEST and known):
        hint = nearest(checkpoint, known) or f"; known: {', '.join(known) or 'none'}"
        raise NotFound(f'checkpoint "{checkpoint}" of machine "{name}": not there{hint}')
    confirm(
        f"Put {name} back to {checkpoint}, and lose what it is now?",
        f"restore: what {name} is now would be lost",
        yes,
    )
    checkpoint = kept.restore(name, checkpoint, job(session, name, timeout))
    now = where.describe([name]).get(name)
    if session.as_json:
        session.out.data({"machine": now.to_dict() if now else None, "checkpoint": checkpoint})
    else:
        session.out.line(f"Put {name} back to {checkpoint}" + (f"; it is {now.state}" if now else ""))


def keeper(session: Session, where: Provider) -> Keeper:
    """Return the keeper of a provider's checkpoints, with the notes in this state folder."""
    return Keeper(where, str(session.folder))


def job(session: Session, name: str, timeout: str) -> Job:
    """Return a job that tells on stderr how far it is."""
    began = time.monotonic()
    return Job.lasting(
        parse_duration("--timeout", timeout),
        lambda text: session.out.note(f"{time.monotonic() - began:.1f}s {name}: {text}"),
    )


def tree(checkpoints: Iterable[Checkpoint]) -> Iterator[tuple[str, Checkpoint]]:
    """Give each checkpoint with its name drawn into a tree; one whose parent is gone is a root."""
    checkpoints = tuple(checkpoints)
    names = {one.name for one in checkpoints}
    seen: set[str] = set()

    def below(parent: str, margin: str) -> Iterator[tuple[str, Checkpoint]]:
        children = [one for one in checkpoints if (one.parent if one.parent in names else "") == parent]
        for number, one in enumerate(children):
            if one.name in seen:
                continue
            seen.add(one.name)
            last = number == len(children) - 1
            branch = "" if not parent else margin + ("└─ " if last else "├─ ")
            yield branch + one.name, one
            yield from below(one.name, "" if not parent else margin + ("   " if last else "│  "))

    yield from below("", "")
    for one in checkpoints:  # a damaged tree may have a circle
        if one.name not in seen:
            yield one.name, one
