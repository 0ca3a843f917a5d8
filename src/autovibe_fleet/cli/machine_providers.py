# SPDX-License-Identifier: GPL-3.0-or-later
"""Which providers a command on machines speaks to, with which settings, and which machines are there."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer

from fleet_core.errors import Conflict, FleetError, InvalidInput, NotFound, Unavailable
from fleet_core.machines import Machine, check_machine_name
from fleet_core.names import as_text, check_keys, describe, nearest
from fleet_machines import providers
from fleet_machines.provider import Provider

from . import completion
from .session import Session

FILE = "providers.yml"
# What nobody may write on a command line or into that file. A token's id is none.
_SECRET = re.compile(r"secret|passw|passphrase|private", re.IGNORECASE)

ProviderName = Annotated[
    str,
    typer.Option(
        "--provider",
        "-p",
        metavar="PROVIDER",
        help="Only this provider, instead of those in STATE_DIR/providers.yml, or else all that can be used here.",
        autocompletion=completion.providers,
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--setting", "-s", metavar="KEY=VALUE", help="How to reach the provider. Secrets: by environment."),
]
SettingsInput = Annotated[
    bool, typer.Option("--settings-input", help="Read settings from standard input, as a JSON object.")
]


@dataclass(frozen=True)
class Choice:
    """What the command line says about providers."""

    provider: str = ""
    settings: tuple[str, ...] = ()
    settings_input: bool = False

    @classmethod
    def of(cls, provider: str, settings: Sequence[str] | None, settings_input: bool = False) -> Choice:
        return cls(provider, tuple(settings or ()), settings_input)


@dataclass(frozen=True)
class Source:
    """One provider and its machines. wanted: whether somebody named it; error: why it cannot be used."""

    name: str
    wanted: bool
    provider: Provider | None = None
    machines: Mapping[str, Machine] = field(default_factory=dict)
    error: FleetError | None = None

    def to_dict(self) -> dict[str, Any]:
        error = self.error
        return {
            "name": self.name,
            "usable": error is None,
            "machines": len(self.machines),
            "error": error.message if error else "",
            "code": error.code if error else "",
        }


def sources(
    session: Session, choice: Choice, names: Sequence[str] | None = None, full: bool = False
) -> tuple[Source, ...]:
    """Ask the providers, all at the same time, one list call each.

    Raises the error of one that was chosen. The others' errors are in the result.
    """
    wanted = chosen(session, choice)
    named = wanted is not None
    asked = wanted if wanted is not None else {name: {} for name in providers.names()}
    with ThreadPoolExecutor(max_workers=len(asked) or 1) as pool:
        found = tuple(
            pool.map(lambda item: _ask(session, item[0], item[1], named, names, full), asked.items()),
        )
    if choice.provider and found[0].error is not None:
        raise found[0].error
    return found


def chosen(session: Session, choice: Choice) -> dict[str, dict[str, Any]] | None:
    """Return the settings of the providers that somebody named, by provider; None when nobody named any."""
    recorded = _recorded(session)
    given = dict(map(_assignment, choice.settings))
    if choice.settings_input:
        given = {**_read_input(), **given}
    if not choice.provider:
        if given:
            raise InvalidInput("--setting: it belongs to one provider, expected --provider beside it")
        return recorded
    return {choice.provider: {**(recorded or {}).get(choice.provider, {}), **given}}


def locate(
    session: Session, choice: Choice, names: Iterable[str], *, full: bool = False
) -> list[tuple[Provider, list[Machine]]]:
    """Return the machines of these names by their providers.

    Raises NotFound for one that is nowhere, and Conflict for one that several providers have.
    """
    names = list(dict.fromkeys(map(check_machine_name, names)))
    found = sources(session, choice, names, full)
    where: dict[str, Source] = {}
    missing: list[str] = []
    for name in names:
        having = [source for source in found if name in source.machines]
        if len(having) > 1:
            several = " and ".join(source.name for source in having)
            raise Conflict(f'machine "{name}": {several} have one of this name; say which with --provider')
        if having:
            where[name] = having[0]
        else:
            missing.append(name)
    if missing:
        raise _missing(missing, found)
    return [
        (source.provider, [source.machines[name] for name in names if where.get(name) is source])
        for source in found
        if source.provider is not None and source in where.values()
    ]


def locate_one(session: Session, choice: Choice, name: str, *, full: bool = False) -> tuple[Provider, Machine]:
    """Return the one machine of this name, and its provider."""
    ((provider, (machine,)),) = locate(session, choice, [name], full=full)
    return provider, machine


def failures(found: Iterable[Source]) -> list[Source]:
    """Return the providers that somebody named and that did not answer."""
    return [source for source in found if source.error is not None and source.wanted]


def note_failures(session: Session, found: Iterable[Source]) -> None:
    """Tell which providers that could be used did not answer."""
    for source in found:
        # One that is simply not installed here is no news.
        if source.error is not None and (source.wanted or not isinstance(source.error, (Unavailable, InvalidInput))):
            session.out.note(f"{source.name}: {source.error.message}")


def _ask(
    session: Session, name: str, settings: Mapping[str, Any], wanted: bool, names: Sequence[str] | None, full: bool
) -> Source:
    provider = None
    try:
        provider = providers.provider(name, str(session.folder), settings)
        found = provider.describe(names, full=full and names is not None)
        if full and names is None:
            # By name, for some providers do not go to each machine when all are asked for. Which of several is meant
            # by a name that they share, they cannot know.
            single = [machine.name for machine in found.values() if not machine.detail.get("same_name")]
            found = {**found, **provider.describe(single, full=True)}
        return Source(name, wanted, provider, found)
    except FleetError as error:
        return Source(name, wanted, provider, {}, error)
    except Exception as error:  # one provider's surprise must not hide the machines of the others
        return Source(name, wanted, provider, {}, FleetError(f"{name}: {type(error).__name__}: {error}"))


def _missing(missing: Sequence[str], found: Sequence[Source]) -> FleetError:
    asked = ", ".join(source.name for source in found if source.error is None) or "no provider that can be used here"
    failed = "".join(f"; {source.name} could not be asked: {source.error}" for source in failures(found))
    known = [name for source in found for name in source.machines]
    hint = nearest(missing[0], known) if len(missing) == 1 and not failed else ""
    noun = "machine" if len(missing) == 1 else "machines"
    shown = ", ".join(f'"{name}"' for name in missing)
    return NotFound(f"{noun} {shown}: not there with {asked}{failed}{hint}")


def _recorded(session: Session) -> dict[str, dict[str, Any]] | None:
    """Return what STATE_DIR/providers.yml says, or None when it is not there."""
    path = session.folder / FILE
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path}: expected a readable text: {error}") from error
    from . import yaml_files

    try:
        data = (yaml_files.documents(text) or [{}])[0]
        known = providers.names()
        found = {str(name): dict(_settings_of(name, value)) for name, value in check_keys("it", data, known).items()}
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error.message}") from None
    for name, settings in found.items():
        for key in settings:
            _no_secret(f"{path}: {name}", key, name)
    return found


def _settings_of(name: str, value: object) -> Mapping[str, Any]:
    """Return the settings of a provider in the file: a mapping, or nothing."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidInput(f"{name}: expected a mapping of settings, found {describe(value)}")
    return {as_text(f"{name}: setting", key): item for key, item in value.items()}


def _assignment(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InvalidInput(f'--setting: expected KEY=VALUE, found "{text}"')
    _no_secret("--setting", key)
    return key, value


def _no_secret(where: str, key: str, provider: str = "") -> None:
    if _SECRET.search(key):
        variable = f"{provider.upper() or 'PROXMOX'}_{key.upper()}"
        raise InvalidInput(f"{where}: {key} is a secret; expected it in the environment, such as {variable}")


def _read_input() -> dict[str, Any]:
    try:
        found = json.loads(sys.stdin.read() or "{}")
    except ValueError as error:
        raise InvalidInput(f"--settings-input: expected a JSON object: {error}") from None
    if not isinstance(found, dict):
        raise InvalidInput(f"--settings-input: expected a JSON object, found {describe(found)}")
    return found
