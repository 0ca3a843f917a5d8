# SPDX-License-Identifier: GPL-3.0-or-later
"""Project files on disk."""

from __future__ import annotations

import sys
from pathlib import Path

from fleet_core.environments import Environment, environment
from fleet_core.errors import InvalidInput, NotFound

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def find(path: str | Path) -> Path:
    """Return the project file at a path, or the nearest one above it."""
    start = Path(path).expanduser().resolve()
    if start.is_file():
        return start
    for folder in (start, *start.parents):
        if (folder / ".runcept.toml").is_file():
            return folder / ".runcept.toml"
    raise NotFound(f"{start}: expected a .runcept.toml there or in a folder above it, found none")


def load(path: str | Path) -> Environment:
    """Return the environment of the project at a path."""
    file = find(path)
    try:
        return environment(tomllib.loads(file.read_text()), str(file.parent))
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(f"{file}: {error}") from None
