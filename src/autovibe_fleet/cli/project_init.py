# SPDX-License-Identifier: GPL-3.0-or-later
"""Writing the first project file: a sample, one process of a template, or what a Procfile or a compose file says."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fleet_core.compose_files import compose_file
from fleet_core.environments import FILE_NAME
from fleet_core.errors import Conflict, FleetError, InvalidInput, NotFound
from fleet_core.names import nearest
from fleet_core.procfiles import Imported, literal, procfile
from fleet_core.toml_writer import to_toml
from fleet_node import paths

from ..node import project_files

if TYPE_CHECKING:
    from .session import Session

_COMPOSE = ("compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml")
_HEAD = (
    "What this project runs. `fleet activate` starts it, `fleet status` shows it.",
    "${tcpport} is a free port that the process claims; a health check decides when it is up.",
)


def write(session: Session, folder: Path, source: str, template: str, force: bool) -> tuple[Path, tuple[str, ...]]:
    """Write the project file of a folder and return its path and what a reader should know.

    Raises Conflict when there is one already, and InvalidInput for a source that cannot be taken over.
    """
    folder = Path(os.path.abspath(folder.expanduser()))
    if not folder.is_dir():
        raise NotFound(f"project {folder}: no such folder")
    if source and template:
        raise InvalidInput("init: expected --from or --template, found both")
    file = folder / FILE_NAME
    if file.exists() and not force:
        raise Conflict(f"{file}: exists already; --force replaces it")
    name = _free_name(session, folder, file)
    if source:
        imported = _imported(Path(source), name)
    elif template:
        imported = _templated(session, template, name)
    else:
        imported = _sample(folder, name)
    _put(session, file, to_toml(imported.document, _HEAD))
    return file, imported.notes


def _free_name(session: Session, folder: Path, file: Path) -> str:
    """Return the folder's name as an environment's, with a number when another project of this host has it."""
    base = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.name).strip("._-")[:50] or "project"
    known = session.store.environments() if paths.database(session.folder).exists() else {}
    taken = {name for name, data in known.items() if data["path"] != os.path.realpath(file)}
    name, number = base, 2
    while name in taken:
        name, number = f"{base}-{number}", number + 1
    return name


def _imported(source: Path, name: str) -> Imported:
    try:
        text = source.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFound(f"{source}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{source}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if source.suffix.lower() not in (".yml", ".yaml"):
        env_files = (".env",) if (source.parent / ".env").exists() else ()
        return procfile(text, name, env_files)
    import yaml

    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidInput(f"{source}: {' '.join(str(error).split())}") from None
    return compose_file(data, name)


def _templated(session: Session, template: str, name: str) -> Imported:
    found = session.store.template(template)
    if found is None:
        raise NotFound(f'template "{template}": not defined{nearest(template, session.store.templates())}')
    missing = [key for key, value in (found.fields.get("vars") or {}).items() if value is None]
    process: dict[str, Any] = {"template": template}
    if missing:
        process["vars"] = dict.fromkeys(missing, "")
    notes = (f"{template}: give values to {', '.join(missing)}",) if missing else ()
    return Imported({"environment": {"name": name}, "processes": {template: process}}, notes)


def _sample(folder: Path, name: str) -> Imported:
    others = [other for other in ("Procfile", *_COMPOSE) if (folder / other).exists()]
    notes = tuple(
        f"{other} is there; `fleet init --force --from {other}` takes its processes over" for other in others[:1]
    )
    process = _node_script(folder) or {
        "command": "python3 -m http.server --bind 127.0.0.1 ${tcpport}",
        "resources": ["tcpport"],
        "health_check_url": "http://127.0.0.1:${tcpport}/",
    }
    return Imported({"environment": {"name": name}, "processes": {"web": process}}, notes)


def _node_script(folder: Path) -> dict[str, Any] | None:
    """Return a process for the first of package.json's usual scripts, if there is one."""
    try:
        data = json.loads((folder / "package.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    scripts = data.get("scripts") if isinstance(data, Mapping) else None
    for script in ("dev", "start"):
        if isinstance(scripts, Mapping) and script in scripts:
            command = literal(f"npm run {script}")
            return {"command": command, "resources": ["tcpport"], "env_vars": {"PORT": "${tcpport}"}}
    return None


def _put(session: Session, file: Path, text: str) -> None:
    """Replace the project file, once it is known that it can be read back."""
    beside = file.with_name(f"{file.name}.new")
    try:
        beside.write_text(text, encoding="utf-8")
        templates = session.store.templates() if paths.database(session.folder).exists() else {}
        project_files.load(beside, templates)
        os.replace(beside, file)
    except FleetError as error:
        raise type(error)(error.message.replace(f"{beside}", f"{file} as it would be")) from None
    except OSError as error:
        raise InvalidInput(f"{file}: cannot be written: {error.strerror}") from None
    finally:
        beside.unlink(missing_ok=True)
