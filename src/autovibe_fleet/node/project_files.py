# SPDX-License-Identifier: GPL-3.0-or-later
"""Project files on disk: found upwards, read as TOML, checked; and the user's global settings."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fleet_core.environments import FILE_NAME, Environment, environment
from fleet_core.errors import Conflict, FleetError, InvalidInput, NotFound, Unavailable
from fleet_core.settings import Settings, settings
from fleet_core.templates import Template

# The standard library has it from 3.11 on; tomli is the same parser.
_toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")

_PLACE = re.compile(r" ?\(at (?:line (\d+), column \d+|end of document)\)$")
# What an error of fleet_core.environments begins with: the table that it is about.
_TABLES = (
    re.compile(r"\[(project|environment)\]"),
    re.compile(r"\[processes\.([^\]]+)\]"),
    re.compile(r'\[\[process\]\] "([^"]+)"'),
    re.compile(r'process "[^"/]+/([^"]+)"'),
    re.compile(r"(environment) \"[^\"]+\":"),
)
# The key in it, the most telling place first.
_KEYS = tuple(
    re.compile(pattern)
    for pattern in (r'unknown key "([^"]+)"', r'"([a-z_]+)" needs', r': ([a-z_]+)(?::| ")', r'expected "?([a-z_]+)"?')
)
_HEADER = re.compile(r"\s*\[\[?\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?")
_ENTRY = re.compile(r"\s*[\"']?([^\s\"'=.]+)[\"']?\s*[=.]\s*(.*)")


def find(path: str | os.PathLike[str]) -> Path:
    """Return the project file of a folder, searched upwards to the root, or the given file itself; symlinks resolved.

    A project has one file, of one name: its folder stands for it. Raises NotFound, InvalidInput for a file of another
    name, and Unavailable for a folder that may not be entered.
    """
    start = Path(os.path.realpath(os.path.expanduser(os.fspath(path))))
    try:
        if start.is_file():
            if start.name != FILE_NAME:
                raise InvalidInput(f"project {start}: expected a folder or a file called {FILE_NAME}")
            return start
        if not start.exists():
            raise NotFound(f"project {start}: no such file or folder")
        for folder in (start, *start.parents):
            if (folder / FILE_NAME).is_file():
                if folder != start:
                    _refuse_strangers(folder / FILE_NAME, start)
                return folder / FILE_NAME
    except OSError as error:
        raise Unavailable(f"project {start}: {error.strerror}") from error
    raise NotFound(f"no {FILE_NAME} in {start} or above it")


def _refuse_strangers(file: Path, start: Path) -> None:
    """Raise Conflict for a file that somebody else left above a folder, say in /tmp, for others to run."""
    owner = file.stat().st_uid
    if owner not in (0, os.geteuid(), start.stat().st_uid):
        raise Conflict(f"project {start}: {file} above it belongs to user {owner}; name that file if you trust it")


def load(
    path: str | os.PathLike[str],
    templates: Mapping[str, Template] | None = None,
    defaults: Settings | None = None,
) -> Environment:
    """Return the environment of a file, whatever its name, or of the project file found upwards from a folder.

    templates: those that its processes may name. defaults: the global settings, by default load_settings().
    An error names the file and, where it can be told, the line.
    """
    given = Path(os.path.realpath(os.path.expanduser(os.fspath(path))))
    file = given if given.is_file() else find(path)
    text = _text(file)
    data = parsed(file, text)
    try:
        return environment(data, str(file.parent), load_settings() if defaults is None else defaults, templates)
    except FleetError as error:
        line = _line_of(text, str(error))
        raise type(error)(f"{file}{f':{line}' if line else ''}: {error}") from None


def settings_file(environ: Mapping[str, str] | None = None) -> Path | None:
    """Return the user's global file, ${XDG_CONFIG_HOME:-~/.config}/autovibe/config.toml or ~/.runcept/config.toml."""
    environ = os.environ if environ is None else environ
    home = environ.get("HOME") or os.path.expanduser("~")
    own = Path(environ.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")) / "autovibe" / "config.toml"
    for file in (own, Path(home) / ".runcept" / "config.toml"):
        if os.path.isfile(file):
            return file
    return None


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Return the user's global settings; the defaults where there is no file."""
    file = settings_file(environ)
    if file is None:
        return Settings()
    return settings(parsed(file, _text(file)), str(file))


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{file}: expected UTF-8 text, found byte {error.object[error.start]:#04x}") from None
    except OSError as error:
        raise Unavailable(f"{file}: cannot be read: {error.strerror}") from error


def parsed(file: Path, text: str) -> dict[str, Any]:
    """Return what the text of a TOML file holds. Raises InvalidInput with the file and the line."""
    try:
        data: dict[str, Any] = _toml.loads(text)
    except _toml.TOMLDecodeError as error:
        message = str(error)
        place = _PLACE.search(message)
        line = (place.group(1) or str(max(1, len(text.splitlines())))) if place else ""
        message = message[: place.start()] if place else message
        raise InvalidInput(f"{file}{f':{line}' if line else ''}: {message[:1].lower()}{message[1:]}") from None
    except RecursionError:
        raise InvalidInput(f"{file}: tables or lists nest too deep") from None
    return data


def _line_of(text: str, message: str) -> int:
    """Return the line that an error is about, 0 if it cannot be told: its key, or the first line of its table."""
    subject = next((found[1] for pattern in _TABLES if (found := pattern.match(message))), "")
    lines = _outline(text).get(subject, [])
    for key in (found for pattern in _KEYS for found in pattern.findall(message)):
        for number, word in lines:
            if word == key:
                return number
    return lines[0][0] if lines else 0


def _outline(text: str) -> dict[str, list[tuple[int, str]]]:
    """Return (line, key) pairs by table: project, environment, or the name of a process, with the tables below it."""
    tables: dict[str, list[tuple[int, str]]] = {"": []}
    current = tables[""]
    unnamed = False
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.fullmatch(line):
            path = [part.strip().strip("\"'") for part in header[1].split(".")]
            unnamed = path[0] == "process" and len(path) == 1
            if unnamed:
                current = []
            elif path[0] == "processes" and len(path) > 1:
                current = tables.setdefault(path[1], [])
            elif path[0] != "process":
                current = tables.setdefault(path[0], [])
            current.append((number, path[-1]))
        elif entry := _ENTRY.match(line):
            current.append((number, entry[1]))
            if unnamed and entry[1] == "name":
                tables[entry[2].strip("\"' ")] = current
    return tables
