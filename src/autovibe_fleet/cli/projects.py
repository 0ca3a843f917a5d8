# SPDX-License-Identifier: GPL-3.0-or-later
"""From a name typed in some folder to the id of a process: which project, which environment."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fleet_core.environments import FILE_NAME
from fleet_core.errors import FleetError, NotFound
from fleet_core.names import nearest

if TYPE_CHECKING:
    from fleet_core.templates import Template
    from fleet_node.store import Store

    from .session import Session


def find(start: str | os.PathLike[str]) -> Path | None:
    """Return the project file of a folder, searched upwards, or the file itself."""
    path = Path(os.path.abspath(os.path.expanduser(os.fspath(start))))
    if path.is_file():
        return path
    for folder in (path, *path.parents):
        if (folder / FILE_NAME).is_file():
            return folder / FILE_NAME
    return None


def chosen(session: Session) -> tuple[str, Path | None]:
    """Return the (name, project file) that -e or the current folder choose; ("", None) where there is no project.

    The file is None for a known environment that was given by name.
    """
    given = session.environment
    if given and os.sep not in given and given not in (".", "..") and given in session.store.environments():
        return given, None
    path = find(given or os.getcwd())
    if path is None:
        if given:
            hint = nearest(given, session.store.environments())
            raise NotFound(
                f'environment "{given}": expected a known name, or a folder in a project with {FILE_NAME}{hint}'
            )
        return "", None
    return recorded_name(session.store, path), path


def recorded_name(store: Store, path: Path) -> str:
    """Return the name under which the host knows a project file, or an empty string."""
    real = os.path.realpath(path)
    for name, data in store.environments().items():
        if os.path.realpath(data["path"]) == real:
            return name
    return ""


def process_ids(session: Session, names: Iterable[str]) -> list[str]:
    """Return the id of each name. In a project, a bare name means its environment's process if there is one."""
    names = list(names)
    bare = [name for name in names if "/" not in name]
    environment, path = chosen(session) if bare else ("", None)
    if path is not None and not environment and session.environment:
        raise NotFound(f"environment of {path}: not activated yet; run `fleet activate`")
    candidates = [f"{environment}/{name}" for name in bare] if environment else []
    known = set(session.store.processes([*bare, *candidates]))
    found = []
    for name in names:
        if "/" in name:
            found.append(name)
        elif f"{environment}/{name}" in known or (environment and session.environment):
            found.append(f"{environment}/{name}")
        elif (
            name not in known
            and path is not None
            and not environment
            and name in declared(path, session.store.templates())
        ):
            raise NotFound(f'process "{name}": declared in {path}, which is not activated yet; run `fleet activate`')
        else:
            found.append(name)
    return found


def declared(path: Path, templates: Mapping[str, Template]) -> set[str]:
    """Return the names of the processes in a project file; nothing when it cannot be read."""
    from ..node import project_files

    try:
        return {spec.name for spec in project_files.load(path, templates).processes}
    except (FleetError, OSError):
        return set()
