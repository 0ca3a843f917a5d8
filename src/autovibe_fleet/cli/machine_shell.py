# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands that do something inside a machine: over SSH, or through its provider, which needs no network."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from fleet_core.errors import Conflict, FleetError, InvalidInput, Unavailable
from fleet_core.known_hosts import best, ssh_options
from fleet_core.machines import Machine
from fleet_machines import access
from fleet_machines.known_hosts import Keys
from fleet_machines.provider import Provider

from . import machine_lists, machine_providers
from .commands import AfterDashes
from .machine_checkpoints import job
from .machine_power import Timeout
from .machine_providers import Choice, ProviderName, Settings
from .output import colored
from .session import Session, with_session

_PATIENCE = 60.0  # seconds for the guest agent


@machine_lists.app.command(cls=AfterDashes)
@with_session
def ssh(
    session: Session,
    context: typer.Context,
    name: Annotated[str, machine_lists.name_argument("NAME [-- COMMAND]")],
    user: Annotated[str, typer.Option("--user", "-l", metavar="USER", help="Instead of the machine's login.")] = "",
    grant: Annotated[
        bool, typer.Option("--grant", help="Let the fleet's key in and read the host keys, although that was done.")
    ] = False,
    provider: ProviderName = "",
    settings: Settings = None,
) -> None:
    """Log in with OpenSSH, or run a command there.

    The first time, the fleet's public key is let in and the machine's host keys are read, both through the provider,
    so that nothing is taken on trust. It becomes ssh, so its exit code is ssh's.
    """
    command = (context.obj or {}).get("command") or []
    where, machine = machine_providers.locate_one(session, Choice.of(provider, settings), name)
    program = shutil.which("ssh")
    if program is None:
        raise Unavailable("ssh: the program was not found on PATH; install OpenSSH's client")
    check_reachable(machine)
    keys = Keys(session.folder)
    if grant or name not in keys.known() or not keys.public_key():
        _let_in(session, where, machine, user, keys, grant)
    argv = ssh_argv(machine, keys, user, command)
    sys.stdout.flush()
    os.execv(program, argv)


def check_reachable(machine: Machine) -> None:
    """Raise Conflict for a machine that nobody can log in to."""
    if not machine.addresses:
        hint = f"; start it with `fleet machines start {machine.name}`" if machine.state != "running" else ""
        raise Conflict(f'machine "{machine.name}": it is {machine.state} and has no address{hint}')


def _let_in(session: Session, where: Provider, machine: Machine, user: str, keys: Keys, asked: bool) -> None:
    """Let the fleet's key in and learn the host keys. Where that cannot be done, ssh asks as it always does."""
    name = machine.name
    try:
        (granted,) = access.grant(where, {name: user}, [keys.make_key()], timeout=_PATIENCE)
        keys.update({name: best(f'machine "{name}"', granted.host_keys)})
    except FleetError as error:
        if asked:
            raise
        session.out.note(f"{error.message}; ssh goes on with your own keys")
        return
    for what in granted.done:
        session.out.note(f"{name}: {what}")


def ssh_argv(machine: Machine, keys: Keys, user: str = "", command: Sequence[str] = ()) -> list[str]:
    """Return the command line of ssh: for a machine whose host key is known, trusted by that one alone."""
    options: list[str] = []
    if machine.name in keys.known():
        options += ssh_options(machine.name, str(keys.known_hosts))
        options += ["-i", str(keys.private_key)] if keys.private_key.exists() else []
    if machine.port != 22:
        options += ["-p", str(machine.port)]
    login = user or machine.login
    options += ["-l", login] if login else []
    return ["ssh", *options, "--", machine.addresses[0], *command]


@machine_lists.app.command(cls=AfterDashes)
@with_session
def run(
    session: Session,
    context: typer.Context,
    name: Annotated[str, machine_lists.name_argument("NAME -- COMMAND")],
    file: Annotated[str, typer.Option("--file", "-f", metavar="FILE", help="Script; - reads standard input.")] = "",
    timeout: Timeout = "15m",
    provider: ProviderName = "",
    settings: Settings = None,
) -> None:
    """Run a shell script in a machine as root, through its provider.

    It needs neither the machine's network nor a login there. One quoted word after -- is read as a script. The exit
    code is that of the script.
    """
    script = _script((context.obj or {}).get("command"), file)
    where, _machine = machine_providers.locate_one(session, Choice.of(provider, settings), name)
    ran = where.run(name, script, job(session, name, timeout))
    if session.as_json:
        session.out.data({"exit_code": ran.code, "stdout": ran.stdout, "stderr": ran.stderr})
    else:
        for text, stream in ((ran.stdout, sys.stdout), (ran.stderr, sys.stderr)):
            stream.write(colored(text) if stream.isatty() else text)
            stream.flush()
    raise typer.Exit(ran.code)


def _script(command: list[str] | None, file: str) -> str:
    if bool(command) == bool(file):
        raise InvalidInput("run: expected a command after --, or --file FILE")
    if command:
        return command[0] if len(command) == 1 else shlex.join(command)
    if file == "-":
        return sys.stdin.read()
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"--file {file}: expected a readable text: {error}") from None
