# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands that tell which machines, images and providers there are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import typer

from fleet_core.errors import InvalidInput
from fleet_core.images import Image
from fleet_core.machines import STATES, Machine, shown
from fleet_core.names import nearest
from fleet_machines.checkpoints import Keeper

from . import completion, machine_providers
from .commands import Noun
from .machine_providers import Choice, ProviderName, Settings, SettingsInput, Source
from .output import Column, size
from .session import Session, with_session

app = Noun()


def name_argument(metavar: str) -> Any:
    """Return the argument that names machines."""
    return typer.Argument(metavar=metavar, autocompletion=completion.machines)


Name = Annotated[str, name_argument("NAME")]
Names = Annotated[list[str], name_argument("NAME...")]


def list_machines(
    session: Session,
    project: Annotated[
        str | None, typer.Option("--project", metavar="PROJECT", help="Only those of this project; '' for none.")
    ] = None,
    tag: Annotated[
        list[str] | None, typer.Option("--tag", metavar="TAG", help="Only those with this tag; all of several.")
    ] = None,
    state: Annotated[
        list[str] | None,
        typer.Option(
            "--state",
            metavar="STATE",
            help=f"Only those in this state, or in one of several: {', '.join(STATES)}.",
            autocompletion=completion.machine_states,
        ),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Ask what costs a call for each machine, too.")] = False,
    provider: ProviderName = "",
    settings: Settings = None,
    settings_input: SettingsInput = False,
) -> None:
    """List machines, with one call to each provider."""
    for word in state or ():
        if word not in STATES:
            raise InvalidInput(f'--state: expected one of {", ".join(STATES)}, found "{word}"{nearest(word, STATES)}')
    found = machine_providers.sources(session, Choice.of(provider, settings, settings_input), full=full)
    machines = [
        machine
        for source in found
        for machine in source.machines.values()
        if (project is None or machine.project == project)
        and set(tag or ()) <= set(machine.tags)
        and (not state or machine.state in state)
    ]
    machines.sort(key=lambda machine: (machine.name, machine.provider))
    if session.as_json:
        errors = [source.to_dict() for source in machine_providers.failures(found)]
        session.out.data({"machines": [machine.to_dict() for machine in machines], "errors": errors})
    else:
        session.out.table(_COLUMNS, map(_row, machines), empty=_nothing(found, bool(project or tag or state)))
        machine_providers.note_failures(session, found)
    for source in machine_providers.failures(found):
        if source.error is not None:
            raise source.error


app.command("list")(with_session(list_machines))


@app.callback(invoke_without_command=True, help="Virtual machines of all providers.")
@with_session
def without_command(session: Session, context: typer.Context) -> None:
    """List them when no command is given."""
    if context.invoked_subcommand is None:
        list_machines(session)


_COLUMNS = (
    Column("NAME"),
    Column("PROVIDER"),
    Column("STATE"),
    Column("IMAGE", flexible=True),
    Column("CPU", right=True),
    Column("MEMORY", right=True),
    Column("DISK", right=True),
    Column("ADDRESS"),
    Column("PROJECT"),
    Column("TAGS", flexible=True),
)


def _row(machine: Machine) -> tuple[Any, ...]:
    return (
        machine.name,
        machine.provider,
        f"{machine.state}, incomplete" if machine.incomplete else machine.state,
        machine.image,
        machine.cpu or None,
        size(machine.memory),
        size(machine.disk),
        address(machine),
        machine.project,
        machine.tags,
    )


def address(machine: Machine) -> str:
    """Return where SSH answers: the address, with the port when it is another than 22."""
    if not machine.addresses:
        return ""
    first = machine.addresses[0]
    if machine.port == 22:
        return first
    return f"[{first}]:{machine.port}" if ":" in first else f"{first}:{machine.port}"


def _nothing(found: Iterable[Source], filtered: bool) -> str:
    usable = [source.name for source in found if source.error is None]
    if not usable:
        return "No provider of machines can be used here; `fleet machines providers` says why."
    return "No machine is as asked for." if filtered else f"No machines. Asked: {', '.join(usable)}."


@app.command()
@with_session
def show(session: Session, name: Name, provider: ProviderName = "", settings: Settings = None) -> None:
    """Show one machine with all that is known of it."""
    where, machine = machine_providers.locate_one(session, Choice.of(provider, settings), name, full=True)
    saved = Keeper(where, str(session.folder)).tree([name]).get(name, ())
    if session.as_json:
        told = {**machine.to_dict(), "checkpoints": len(saved)}
        session.out.data({"machine": told, "checkpoints": [one.to_dict() for one in saved]})
        return
    session.out.pairs(
        {
            "Name": machine.name,
            "Provider": machine.provider,
            "State": machine.state,
            "Incomplete": machine.incomplete,
            "Image": machine.image,
            "Processors": machine.cpu or None,
            "Memory": shown("memory", machine.memory),
            "Disk": shown("disk", machine.disk),
            "SSH": address(machine),
            "Login": machine.login,
            "Addresses": list(machine.addresses),
            "Networks": [" ".join(network.to_dict().values()) for network in machine.networks],
            "Project": machine.project,
            "Tags": " ".join(machine.tags),
            "User data": machine.user_data,
            "Checkpoints": [one.name for one in saved],
            **{f"{key} ({machine.provider})": detail(value) for key, value in machine.detail.items()},
        }
    )


def detail(value: Any) -> Any:
    """Return what only one provider knows as text or a list of texts."""
    if isinstance(value, Mapping):
        return [f"{key}: {item}" for key, item in value.items()]
    return [str(item) for item in value] if isinstance(value, (list, tuple)) else value


@app.command()
@with_session
def images(session: Session, provider: ProviderName = "", settings: Settings = None) -> None:
    """List what machines can be made from."""
    found = machine_providers.sources(session, Choice.of(provider, settings), names=())
    known: list[Image] = []
    for source in found:
        if source.provider is not None and source.error is None:
            known += source.provider.images()
    if session.as_json:
        errors = [source.to_dict() for source in machine_providers.failures(found)]
        session.out.data({"images": [image.to_dict() for image in known], "errors": errors})
        return
    columns = (
        Column("NAME"),
        Column("PROVIDER"),
        Column("KIND"),
        Column("FAMILY"),
        Column("CREATED"),
        Column("SIZE", right=True),
        Column("RELEASE", flexible=True),
        Column("ALIASES", flexible=True),
    )
    rows = [
        (
            image.name,
            image.provider,
            f"{image.kind}, incomplete" if image.incomplete else image.kind,
            image.family if image.family != image.name else None,
            image.created,
            size(image.size),
            image.release or image.version,
            image.aliases,
        )
        for image in known
    ]
    session.out.table(columns, rows, empty=_nothing(found, False).replace("machines. A", "images. A"))
    machine_providers.note_failures(session, found)


@app.command("providers")
@with_session
def list_providers(session: Session, provider: ProviderName = "", settings: Settings = None) -> None:
    """List the providers and whether they can be used here."""
    found = machine_providers.sources(session, Choice.of(provider, settings))
    if session.as_json:
        session.out.data({"providers": [source.to_dict() for source in found]})
        return
    columns = (Column("PROVIDER"), Column("USABLE"), Column("MACHINES", right=True), Column("REASON", flexible=True))
    rows = [
        (source.name, source.error is None, len(source.machines), source.error.message if source.error else None)
        for source in found
    ]
    session.out.table(columns, rows)
