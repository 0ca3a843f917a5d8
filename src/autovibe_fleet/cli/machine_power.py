# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands that start, stop, restart and delete machines, many at once."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Annotated

import typer

from fleet_core.errors import InvalidInput, from_code
from fleet_core.machine_plans import Plan, plan_all
from fleet_core.machines import Machine, MachineSpec, machine_specs
from fleet_core.quantities import parse_duration
from fleet_machines import batches
from fleet_machines.batches import BatchFailed, Outcome
from fleet_machines.checkpoints import Keeper
from fleet_machines.known_hosts import Keys
from fleet_machines.provider import Provider

from . import machine_lists, machine_providers
from .machine_lists import Names
from .machine_providers import Choice, ProviderName, Settings
from .session import Session, with_session

Parallel = Annotated[int, typer.Option("--parallel", "-j", metavar="N", min=1, help="How many at the same time.")]
Timeout = Annotated[str, typer.Option("--timeout", metavar="TIME", help="How long all of them may take.")]
Force = Annotated[bool, typer.Option("--force", help="Power them off instead of shutting them down.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@machine_lists.app.command()
@with_session
def start(
    session: Session,
    names: Names,
    parallel: Parallel = 4,
    timeout: Timeout = "15m",
    provider: ProviderName = "",
    settings: Settings = None,
) -> None:
    """Start machines and wait until they can be used."""
    bring(session, names, "started", Choice.of(provider, settings), parallel, timeout)


@machine_lists.app.command()
@with_session
def stop(
    session: Session,
    names: Names,
    force: Force = False,
    parallel: Parallel = 4,
    timeout: Timeout = "15m",
    provider: ProviderName = "",
    settings: Settings = None,
) -> None:
    """Shut machines down."""
    bring(session, names, "stopped", Choice.of(provider, settings), parallel, timeout, force)


@machine_lists.app.command()
@with_session
def restart(
    session: Session,
    names: Names,
    force: Force = False,
    parallel: Parallel = 4,
    timeout: Timeout = "15m",
    provider: ProviderName = "",
    settings: Settings = None,
) -> None:
    """Shut machines down and start them again; start those that are stopped."""
    bring(session, names, "restarted", Choice.of(provider, settings), parallel, timeout, force)


@machine_lists.app.command()
@with_session
def delete(
    session: Session,
    names: Names,
    yes: Yes = False,
    parallel: Parallel = 4,
    timeout: Timeout = "15m",
    provider: ProviderName = "",
    settings: Settings = None,
) -> None:
    """Delete machines with their disks and checkpoints, for good."""
    confirm(f"Delete {', '.join(names)} with all that is on their disks?", "delete: it is for good", yes)
    bring(session, names, "absent", Choice.of(provider, settings), parallel, timeout)


def confirm(question: str, why: str, yes: bool) -> None:
    """Ask before something that cannot be undone. Raises InvalidInput when nobody can answer."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise InvalidInput(f"{why}; confirm with --yes")
    typer.confirm(question, abort=True, err=True)


def bring(
    session: Session,
    names: Sequence[str],
    target: str,
    choice: Choice,
    parallel: int,
    timeout: str,
    force: bool = False,
) -> None:
    """Bring machines to a state, one of machine_plans.TARGETS. If one is refused, nothing is done for any of them."""
    seconds = parse_duration("--timeout", timeout)
    found = machine_providers.locate(session, choice, names)
    work = [(provider, _plans(provider, some, target)) for provider, some in found]
    outcomes: list[Outcome] = []
    for provider, plans in work:
        outcomes += batches.run(
            plans,
            provider,
            timeout=seconds,
            parallel=min(parallel, batches.MOST_AT_ONCE),
            force=force,
            report=lambda event: session.out.note(str(event)),
        )
    if target == "absent":
        _forget(session, work, outcomes)
    now = {} if target == "absent" else _now(work)
    if session.as_json:
        told = {"outcomes": [outcome.to_dict() for outcome in outcomes]}
        session.out.data({**told, "machines": [machine.to_dict() for machine in now.values()]})
    else:
        for outcome in outcomes:
            if outcome.ok:
                session.out.line(sentence(outcome, target, now.get(outcome.name)))
    try:
        batches.check(outcomes)
    except BatchFailed as error:
        raise from_code(error.code, error.message) from None


def _plans(provider: Provider, found: Iterable[Machine], target: str) -> tuple[Plan, ...]:
    there = {machine.name: machine for machine in found}
    specs: tuple[MachineSpec, ...] = machine_specs(({"name": name} for name in there), provider.name)
    return plan_all(specs, there, target, provider.capabilities)


def _forget(session: Session, work: Iterable[tuple[Provider, Sequence[Plan]]], outcomes: Iterable[Outcome]) -> None:
    """Keep nothing of machines that are gone: neither notes of their checkpoints nor their host keys."""
    gone = {outcome.name for outcome in outcomes if outcome.ok}
    for provider, plans in work:
        Keeper(provider, str(session.folder)).forget([plan.name for plan in plans if plan.name in gone])
    keys = Keys(session.folder)
    if gone & set(keys.known()):
        keys.update({}, gone)


def _now(work: Iterable[tuple[Provider, Sequence[Plan]]]) -> dict[str, Machine]:
    found: dict[str, Machine] = {}
    for provider, plans in work:
        found.update(provider.describe([plan.name for plan in plans]))
    return found


def sentence(outcome: Outcome, target: str, machine: Machine | None) -> str:
    """Say what became of a machine and where it can be reached."""
    if target == "absent":
        return f"Deleted {outcome.name}"
    state = machine.state if machine else "gone"
    if not outcome.done:
        return f"{outcome.name} is {state} already"
    if target == "stopped":
        return f"Stopped {outcome.name}"
    where = machine_lists.address(machine) if machine else ""
    verb = "Started" if target == "started" or len(outcome.done) < 2 else "Restarted"
    return f"{verb} {outcome.name}" + (f" ({where})" if where else "")
