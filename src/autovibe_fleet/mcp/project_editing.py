# SPDX-License-Identifier: GPL-3.0-or-later
"""Changing the processes that a project file declares: comments and layout stay, and nothing wrong is ever written."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from fleet_core.environments import environment
from fleet_core.errors import Conflict, FleetError, InvalidInput, NotFound
from fleet_core.names import nearest
from fleet_core.templates import Template

from ..node import project_files
from .files import changing
from .toml_editing import Section, TomlText, header

Edit = Callable[["ProjectFile"], None]

# What a field is called in the planned dialect, [[process]].
_PLANNED = {"health_check_url": "health_check", "env_vars": "env"}


class ProjectFile:
    """A project file in either dialect: its text, and beside it what it must hold in the end."""

    def __init__(self, text: str) -> None:
        self.text = TomlText(text)
        self.wanted = copy.deepcopy(self.text.data())
        self.planned = "process" in self.wanted or ("project" in self.wanted and "processes" not in self.wanted)

    def names(self) -> list[str]:
        """Return the names of the processes."""
        return [str(table.get("name", key)) for key, table in self._tables()]

    def _tables(self) -> list[tuple[Any, dict[str, Any]]]:
        if self.planned:
            return list(enumerate(self.wanted.get("process", [])))
        return list(self.wanted.get("processes", {}).items())

    def add(self, name: str, fields: Mapping[str, Any]) -> None:
        """Declare a process behind the others. Raises Conflict when there is one of that name."""
        if name in self.names():
            raise Conflict(f'process "{name}": declared already; update_process changes it')
        given = {self._key(key): value for key, value in fields.items()}
        if self.planned:
            self.wanted.setdefault("process", []).append({"name": name, **given})
            self.text.append("[[process]]", {"name": name, **given}, self._behind())
            return
        self.wanted.setdefault("processes", {})[name] = dict(given)
        variables = given.pop("env_vars", None)
        self.text.append(header(("processes", name)), given, self._behind())
        if variables:
            self.text.append(header(("processes", name, "env_vars")), variables, self._behind())

    def _behind(self) -> int:
        top = "process" if self.planned else "processes"
        return max((section.end for section in self.text.sections() if section.path[0] == top), default=-1)

    def set(self, name: str, fields: Mapping[str, Any]) -> None:
        """Set fields of a process; variables of env_vars are set one by one, and the others stay."""
        for key, value in fields.items():
            table, field = self._table(name), self._key(key)
            if field in table and table[field] == value and type(table[field]) is type(value):
                continue
            if key != "env_vars":
                table[field] = value
                self.text.set(self._sections(name)[0], (field,), value)
                continue
            variables = table.setdefault(field, {})
            for variable, text in value.items():
                if variables.get(variable) == text:
                    continue
                variables[variable] = text
                self._set_variable(name, field, variable, text)

    def _set_variable(self, name: str, field: str, variable: str, text: str) -> None:
        own, *below = self._sections(name)
        for section in below:
            if section.path[-1] == field:
                self.text.set(section, (variable,), text)
                return
        dotted = any(self.text.entries[at].path[:1] == (field,) for at in range(own.start + 1, own.end))
        if dotted and self.text.find(own, (field,)) < 0:
            self.text.set(own, (field, variable), text)
        else:
            self.text.set(own, (field,), self._table(name)[field])

    def unset(self, name: str, fields: Iterable[str]) -> None:
        """Take fields out of a process: depends_on, or env_vars.MODE. Raises NotFound for one that is not there."""
        for path in fields:
            key, _dot, variable = path.partition(".")
            field = self._key(key)
            table = self._table(name)
            owner = table.get(field, {}) if variable else table
            word = variable or field
            if not isinstance(owner, dict) or word not in owner:
                raise NotFound(f'process "{name}": it gives no field "{path}"{nearest(path, table)}')
            del owner[word]
            own, *below = self._sections(name)
            inner = [section for section in below if section.path[-1] == field]
            if variable and inner:
                self.text.unset(inner[0], (variable,))
            elif variable and self.text.find(own, (field,)) >= 0:
                self.text.set(own, (field,), owner)
            elif variable and self.text.find(own, (field, variable)) >= 0:
                self.text.unset(own, (field, variable))
            elif inner:
                self.text.remove(inner)
            elif self.text.find(own, (field,)) >= 0:
                self.text.unset(own, (field,))

    def remove(self, name: str) -> None:
        """Take the declaration of a process out. Raises NotFound."""
        sections = self._sections(name)
        key = self._place(name)
        del self.wanted["process" if self.planned else "processes"][key]
        self.text.remove(sections)

    def _place(self, name: str) -> Any:
        """Return the key of a process in its dialect's table, or its number. Raises NotFound."""
        names = self.names()
        if name not in names:
            raise NotFound(f'process "{name}": not declared in the project file{nearest(name, names)}')
        return self._tables()[names.index(name)][0]

    def _table(self, name: str) -> dict[str, Any]:
        place = self._place(name)
        found: dict[str, Any] = self.wanted["process" if self.planned else "processes"][place]
        return found

    def _sections(self, name: str) -> list[Section]:
        """Return the sections of a process, its own first. Raises InvalidInput when it has none of its own."""
        place = self._place(name)
        if self.planned:
            count, found = -1, []
            for section in self.text.sections():
                count += section.path == ("process",)
                if count == place and section.path[0] == "process":
                    found.append(section)
        else:
            path = ("processes", place)
            found = sorted(
                (section for section in self.text.sections() if section.path[:2] == path), key=lambda item: item.path
            )
            if found and found[0].path != path:
                found = []
        if not found:
            raise InvalidInput(
                f'process "{name}": it has no header [processes.{name}] of its own; edit the file by hand'
            )
        return found

    def _key(self, key: str) -> str:
        return _PLANNED.get(key, key) if self.planned else key

    def check(self) -> None:
        """Raise InvalidInput unless the text holds what it should, and nothing else has changed."""
        found, wanted = (
            {key: value for key, value in data.items() if value or key not in ("process", "processes")}
            for data in (self.text.data(), self.wanted)
        )
        if found != wanted:
            raise InvalidInput("it is written in a way that cannot be changed safely; edit the file by hand")


def edit(file: Path, change: Edit, templates: Mapping[str, Template]) -> bool:
    """Change a project file in place, all or nothing; tell whether anything changed.

    Raises InvalidInput, naming the file, when it would not be a sound project file afterwards, and Unavailable when it
    cannot be written.
    """
    with changing(file) as content:
        text = content.text or ""
        project_files.parsed(content.path, text)  # its errors name the line
        try:
            project = ProjectFile(text)
            change(project)
            project.check()
            data = project.text.data()
            environment(data, str(content.path.parent), project_files.load_settings(), templates)
        except FleetError as error:
            raise type(error)(f"{content.path}: not changed: {error}") from None
        except ValueError as error:  # what was put together is no TOML
            raise InvalidInput(f"{content.path}: not changed: {error}") from None
        new = str(project.text)
        if new == text:
            return False
        content.write(new)
    return True
