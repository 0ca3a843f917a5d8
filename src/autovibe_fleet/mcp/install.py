# SPDX-License-Identifier: GPL-3.0-or-later
"""Telling clients about the server: one entry in their settings files, and nothing else in them changed."""

from __future__ import annotations

import copy
import os
import shutil
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleet_core.errors import Conflict, FleetError, InvalidInput

from .clients import Client, Entry, Program
from .files import Content, changing
from .json_editing import JsonText
from .toml_editing import Section, TomlText, header

CREATED, UPDATED, UNCHANGED, REMOVED = "created", "updated", "unchanged", "removed"


@dataclass(frozen=True)
class Outcome:
    """What became of one client's settings. action: created, updated, unchanged or removed. backup: of the old file."""

    client: str
    file: str
    action: str
    backup: str = ""

    def to_dict(self) -> dict[str, str]:
        """Return plain data."""
        found = {"client": self.client, "file": self.file, "action": self.action}
        return {**found, "backup": self.backup} if self.backup else found


def program(state_dir: str, shared: bool) -> Program:
    """Return how the server is started. state_dir: if it is not the default. shared: by others than this user."""
    beside = Path(sys.executable).with_name("fleet")
    command = str(beside) if os.access(beside, os.X_OK) else shutil.which("fleet") or "fleet"
    if shared and shutil.which("fleet"):
        command = "fleet"
    return Program(command, ("mcp",), {"FLEET_STATE_DIR": state_dir} if state_dir else {})


def install(
    client: Client, file: Path, name: str, how: Program, dry_run: bool = False, shared: bool = False
) -> Outcome:
    """Enter the server into a client's settings file, or bring its entry in line; further keys of the entry stay.

    shared: a new file may be read by others.

    Raises Conflict when the name belongs to another server, InvalidInput when the file cannot be read.
    """
    return _change(client, file, name, client.shape(how), dry_run, 0o644 if shared else 0o600)


def uninstall(client: Client, file: Path, name: str, dry_run: bool = False) -> Outcome:
    """Take the server out of a client's settings file. Raises Conflict when the name belongs to another one."""
    if not file.exists():
        return Outcome(client.name, str(file), UNCHANGED)
    return _change(client, file, name, None, dry_run)


def _change(client: Client, file: Path, name: str, entry: Entry | None, dry_run: bool, mode: int = 0o600) -> Outcome:
    if dry_run and not file.exists():
        return Outcome(client.name, str(file), CREATED if entry is not None else UNCHANGED)
    with changing(file, make=entry is not None and not dry_run) as content:
        old = content.text or ""
        try:
            edited = _Toml(old) if file.suffix == ".toml" else _Json(old)
            present = edited.get((*client.key, name))
            _refuse_others(client, present, name)
            if entry is None:
                if present is None:
                    return Outcome(client.name, str(file), UNCHANGED)
                edited.remove((*client.key, name))
            else:
                edited.set((*client.key, name), _merged(client, present, entry))
            new = edited.checked()
        except FleetError as error:
            raise type(error)(f"{content.path}: {error}") from None
        if new == old:
            return Outcome(client.name, str(file), UNCHANGED)
        action = REMOVED if entry is None else CREATED if present is None else UPDATED
        backup = "" if dry_run else _write(content, new, mode)
    return Outcome(client.name, str(file), action, backup)


def _write(content: Content, text: str, mode: int) -> str:
    """Write a settings file, after a copy of what it was; return where the copy is."""
    backup = content.path.with_name(f"{content.path.name}.fleet.bak")
    if content.text is not None:  # beside it and then renamed: a link of that name may lead anywhere
        Content(backup, None).write(content.text, stat.S_IMODE(content.path.stat().st_mode))
    content.write(text, mode)
    return str(backup) if content.text is not None else ""


def _refuse_others(client: Client, present: Any, name: str) -> None:
    """Raise Conflict for an entry that does not start `fleet mcp`."""
    if present is None:
        return
    command = present.get("command") if isinstance(present, dict) else None
    words = command if isinstance(command, list) else [command, *(present.get("args") or ())] if command else []
    if len(words) < 2 or Path(str(words[0])).name != "fleet" or "mcp" not in words[1:]:
        raise Conflict(f'{".".join(client.key)}: "{name}" is another server; give ours a name of its own by --name')


def _merged(client: Client, present: Any, entry: Entry) -> Entry:
    old = dict(present or {})
    env = {**(old.get(client.env_key) or {}), **entry.get(client.env_key, {})}
    found = {**old, **entry}
    # Whoever switched it off, or gave it a limit, meant it.
    found.update({key: old[key] for key in ("enabled", "tools", "tool_timeout_sec") if key in old})
    return {**found, client.env_key: env} if env else found


class _Json:
    """A JSON file: its text, and what it must hold in the end."""

    def __init__(self, text: str) -> None:
        self._text = JsonText(text)
        self._wanted = copy.deepcopy(self._text.root().value)

    def get(self, path: Sequence[str]) -> Any:
        return self._text.get(path)

    def set(self, path: Sequence[str], value: Entry) -> None:
        if self.get(path) == value:
            return
        _descend(self._wanted, path[:-1])[path[-1]] = value
        self._text.set(path, value)

    def remove(self, path: Sequence[str]) -> None:
        del _descend(self._wanted, path[:-1])[path[-1]]
        self._text.remove(path)

    def checked(self) -> str:
        if self._text.root().value != self._wanted:
            raise InvalidInput("cannot be changed safely; add the server by hand")
        return self._text.text


class _Toml:
    """A TOML file: its text, and what it must hold in the end."""

    def __init__(self, text: str) -> None:
        self._text = TomlText(text)
        self._wanted = copy.deepcopy(self._text.data())

    def get(self, path: Sequence[str]) -> Any:
        found: Any = self._text.data()
        for key in path:
            found = found.get(key) if isinstance(found, dict) else None
        return found

    def set(self, path: Sequence[str], value: Entry) -> None:
        present = self.get(path)
        if present == value:
            return
        _descend(self._wanted, path[:-1])[path[-1]] = value
        own = self._own(path)
        if present is None:
            self._text.append(header(tuple(path)), {k: v for k, v in value.items() if not isinstance(v, dict)})
            for key, inner in value.items():
                if isinstance(inner, dict):
                    self._text.append(header((*path, key)), inner)
            return
        for key, item in value.items():
            if present.get(key) == item or not own:
                continue
            inner = next((section for section in self._sections(path) if section.path == (*path, key)), None)
            if inner is None:
                self._text.set(self._own(path)[0], (key,), item)
                continue
            for word, text in item.items():
                inner = next(section for section in self._sections(path) if section.path == (*path, key))
                self._text.set(inner, (word,), text)

    def remove(self, path: Sequence[str]) -> None:
        del _descend(self._wanted, path[:-1])[path[-1]]
        self._text.remove(self._sections(path))

    def _sections(self, path: Sequence[str]) -> list[Section]:
        return [section for section in self._text.sections() if section.path[: len(path)] == tuple(path)]

    def _own(self, path: Sequence[str]) -> list[Section]:
        return [section for section in self._sections(path) if section.path == tuple(path)]

    def checked(self) -> str:
        found, wanted = (
            {key: value for key, value in data.items() if value != {}} for data in (self._text.data(), self._wanted)
        )
        if found != wanted:
            raise InvalidInput("cannot be changed safely; add the server by hand")
        return str(self._text)


def _descend(data: dict[str, Any], path: Sequence[str]) -> dict[str, Any]:
    for key in path:
        data = data.setdefault(key, {})
        if not isinstance(data, dict):
            raise InvalidInput(f"{key}: expected a table of servers")
    return data
