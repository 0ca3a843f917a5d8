# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands on the state as a whole: export and import of human-readable JSON."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from fleet_core.errors import InvalidInput, NotFound
from fleet_node import agent_state, state_file

from . import daemon
from .arguments import TIMEOUT
from .commands import Noun
from .session import Session, with_session

app = Noun(no_args_is_help=True, help="Export and import the whole state as JSON.")


@app.command()
@with_session
def export(
    session: Session,
    file: Annotated[str, typer.Argument(metavar="[FILE]", help="Written with mode 0600; - or nothing: stdout.")] = "-",
    check_means: Annotated[
        str,
        typer.Option("--check-means", metavar="free|in_use", help="What exit code 0 of the written checks shall say."),
    ] = "free",
    gcluster: Annotated[
        bool, typer.Option("--gcluster", help="Write only the agents, as gcluster's state.json has them.")
    ] = False,
) -> None:
    """Write types, templates, processes, claims and agents as JSON.

    It holds the secrets of declarations.
    """
    data = state_file.export_state(session.store, check_means)
    if gcluster:
        data = agent_state.to_gcluster(data["fleet"]["agents"])
    if file == "-":
        sys.stdout.write(state_file.render(data))
        return
    state_file.write_file(file, data)
    if session.as_json:
        session.out.data({"path": file, "processes": len(data.get("instances", ()))})
    else:
        session.out.line(f"Wrote {file}")


@app.command("import")
@with_session
def import_file(
    session: Session,
    file: Annotated[
        str, typer.Argument(metavar="[FILE]", help="By default where the process manager vp keeps its state.")
    ] = "",
    check_means: Annotated[
        list[str] | None,
        typer.Option("--check-means", metavar="TYPE=free|in_use", help="What exit code 0 of a type's check says."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would change.")] = False,
) -> None:
    """Take over what an export holds: all of it, or nothing.

    Processes of the file that run are adopted. What is here already stays. The state.json of gcluster is read as well:
    its agents come without the prompts of their methods, which are in their .p files.
    """
    data = _data(file or _usual_file(), dry_run)
    means = dict(_meaning(text) for text in check_means or [])
    if dry_run:
        plan = state_file.plan_import(session.store, data, means)
    else:
        with _paused(session):
            plan = state_file.import_state(session.store, data, means)
    if session.as_json:
        change = plan.change.to_dict()
        session.out.data({"change": change, "adopted": list(plan.adopted), "stopped": list(plan.stopped)})
        return
    for action in plan.change.actions:
        session.out.line(f"would {action}" if dry_run else action)
    if not plan.change.changed:
        session.out.line("Nothing to import: it is all here already.")
    for name in plan.adopted:
        session.out.line(f"{name} runs and {'would be' if dry_run else 'is'} adopted")
    for name in plan.stopped:
        session.out.line(f"{name} does not run any more; start it with `fleet start {name}`")


def _data(file: str, dry_run: bool) -> dict[str, Any]:
    try:
        return state_file.read_file(file)
    except InvalidInput as error:
        kept = None if dry_run else agent_state.keep_corrupt(file)
        if kept is None:
            raise
        raise InvalidInput(f"{error}; it is kept as {kept}") from None


def _usual_file() -> str:
    places = state_file.usual_files(Path.home())
    for place in places:
        if place.exists():
            return str(place)
    raise NotFound(f"state file: none given, and none found as {' or '.join(str(place) for place in places)}")


def _meaning(text: str) -> tuple[str, str]:
    name, equals, means = text.partition("=")
    if not equals or not name or means not in ("free", "in_use"):
        raise InvalidInput(f'--check-means: expected TYPE=free or TYPE=in_use, found "{text}"')
    return name, means


@contextmanager
def _paused(session: Session) -> Iterator[None]:
    """Stop a running fleetd, which holds the state in memory, and start it again afterwards. Processes go on."""
    client = session.running_client()
    if client is None:
        yield
        return
    status = client.call("daemon.status")
    client.close()
    daemon.stop(session.folder, False, TIMEOUT)
    try:
        yield
    finally:
        daemon.relaunch(session.folder, status)
