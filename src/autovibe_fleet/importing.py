# SPDX-License-Identifier: GPL-3.0-or-later
"""Project files made from a Procfile or a compose file."""

from __future__ import annotations

import re
from pathlib import Path

from fleet_core.compose_files import compose_file
from fleet_core.environments import environment
from fleet_core.errors import InvalidInput, NotFound, Unavailable
from fleet_core.procfiles import Imported, procfile
from fleet_core.toml_writer import to_toml


def read(path: str | Path) -> Imported:
    """Return the project file that a Procfile (Procfile, Procfile.dev, x.procfile) or a compose file (*.yaml) makes.

    The result is checked: it reads back as an environment. Raises FleetError that names the file.
    """
    path = Path(path).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFound(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise InvalidInput(f"{path}: expected UTF-8 text") from None
    except OSError as error:
        raise Unavailable(f"{path}: cannot be read: {error.strerror}") from error
    folder = path.resolve().parent
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.name).strip("-._")[:63] or "project"
    try:
        if path.suffix in (".yaml", ".yml", ".json"):
            found = compose_file(_yaml(text), name)
        elif path.name.split(".")[0].lower() == "procfile" or path.suffix == ".procfile":
            found = procfile(text, name, (".env",) if (folder / ".env").is_file() else ())
        else:
            raise InvalidInput("expected a Procfile or a compose file (.yaml)")
        environment(found.document, str(folder))
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error}") from None
    return found


def text_of(found: Imported, source: str = "") -> str:
    """Return the text of the project file, its notes as comments at the head."""
    head = [f"Made from {source}." if source else "", *(f"Note: {note}." for note in found.notes)]
    return to_toml(found.document, [line for line in head if line])


def _yaml(text: str) -> object:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}: " if mark is not None else ""
        raise InvalidInput(f"{place}not YAML: {getattr(error, 'problem', None) or error}") from None
    except (RecursionError, ValueError) as error:
        raise InvalidInput(f"not YAML: {error}") from None
