# SPDX-License-Identifier: GPL-3.0-or-later
"""A Procfile as a project file: `name: command` lines, the form of https://devcenter.heroku.com/articles/procfile."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import InvalidInput
from .interpolation import split_command
from .names import check_name, describe

_LINE = re.compile(r"([A-Za-z0-9_.-]+)\s*:\s*(.*)")
_PORT = re.compile(r"\$(?:PORT(?![A-Za-z0-9_])|\{PORT(?::?-[^}]*)?\})")
_VARIABLE = re.compile(r"\$(?=[A-Za-z_0-9{(?$#@*!])")
_OPERATOR = re.compile(r"[|&;<>()`\n]")
_COUNTER = re.compile(r"%(?=%|tcpport|vncport|serialport|gpu)")


@dataclass(frozen=True)
class Imported:
    """A project file made from another format. document: plain data for toml_writer. notes: what was not taken over."""

    document: Mapping[str, Any]
    notes: tuple[str, ...] = field(default=())


def procfile(text: str, name: str, env_files: tuple[str, ...] = ()) -> Imported:
    """Return the environment NAME with the processes of a Procfile.

    $PORT, which a Procfile's runner sets, becomes a claimed port: for each process whose command has it, and for "web".
    "release" runs once, before all others, as the format says.
    env_files: such as ".env", which those runners read. Raises InvalidInput with the number of a line that is no entry.
    """
    check_name("environment", name)
    processes: dict[str, Any] = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line)
        if found is None or not found[2].strip():
            raise InvalidInput(f"Procfile, line {number}: expected NAME: COMMAND, found {describe(line)}")
        process, command = check_name("process", found[1]), found[2].strip()
        if process in processes:
            raise InvalidInput(f'Procfile, line {number}: process "{process}" stands twice')
        has_port = process == "web" or _PORT.search(command) is not None
        processes[process] = {
            **command_fields(command),
            "restart": "never" if process == "release" else "always",
            **({"resources": ["tcpport"], "env_vars": {"PORT": "${tcpport}"}} if has_port else {}),
            **({"env_files": list(env_files)} if env_files else {}),
        }
    if not processes:
        raise InvalidInput("Procfile: expected NAME: COMMAND lines, found none")
    notes = []
    if "release" in processes:
        for process in processes.keys() - {"release"}:
            processes[process]["depends_on"] = [{"process": "release", "condition": "completed"}]
    without = [process for process, fields in processes.items() if "resources" not in fields and process != "release"]
    if without:
        notes.append(
            f"{', '.join(without)}: no PORT is set, since the command does not name it; "
            'give resources = ["tcpport"] and env_vars.PORT = "${tcpport}" to a process that reads it'
        )
    return Imported({"environment": {"name": name}, "processes": processes}, tuple(notes))


def command_fields(command: str) -> dict[str, Any]:
    """Return command, and shell where it is needed, for a command line written for a shell.

    $PORT becomes the claimed port where no shell is needed; what looks like our own variables is made literal.
    """
    without_port = _PORT.sub("0", command)
    if needs_shell(without_port):
        return {"command": literal(command), "shell": True}
    parts = [literal(part) for part in _PORT.split(command)]
    return {"command": "${tcpport}".join(parts)}


def needs_shell(command: str) -> bool:
    """Tell whether a command line has operators, expansions, assignments or patterns that only a shell understands."""
    bare = re.sub(r"\\.|'[^']*'", "", command)
    unquoted = re.sub(r'"[^"]*"', "", bare)
    if _OPERATOR.search(unquoted) or "`" in bare or _VARIABLE.search(bare):
        return True
    first = unquoted.split()[0] if unquoted.split() else ""
    if "=" in first or first in ("cd", "exec", "source", ".", "export", "set", "ulimit", "umask", "if", "for", "while"):
        return True
    if re.search(r"(?:^|\s)~|[*?]|\[[^\]]*\]", unquoted):
        return True
    try:
        split_command(literal(command), {})
    except InvalidInput:
        return True
    return False


def literal(text: str) -> str:
    """Return text in our command language that reads back as the text itself."""
    return _COUNTER.sub("%%", text).replace("${", "$${")
