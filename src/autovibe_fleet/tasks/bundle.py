# SPDX-License-Identifier: GPL-3.0-or-later
"""The program for other machines: one zip with the part of fleet_core and fleet_node that runs task lists.

The same sources give the same bytes, so its hash says whether a machine has it already.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import fleet_core
import fleet_node

_ENTRY = "fleet_node.task_host"
_MAIN = f"""import sys
if sys.version_info < (3, 9):
    sys.exit("Python 3.9 or newer is needed, found " + sys.version.split()[0])
from {_ENTRY} import main
sys.exit(main(sys.argv[1:]))
"""
_ROOTS = {module.__name__: Path(module.__path__[0]) for module in (fleet_core, fleet_node)}


@functools.cache
def build() -> bytes:
    """Return the zip."""
    names = sorted(_needed(_ENTRY))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, "__main__.py", _MAIN.encode())
        for name in names:
            path, inside = _file(name)
            _add(archive, inside, path.read_bytes())
    return out.getvalue()


@functools.cache
def name() -> str:
    """Return its file name, which changes with its content."""
    return f"tasks-{hashlib.sha256(build()).hexdigest()[:24]}.pyz"


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    entry.external_attr = 0o644 << 16
    entry.create_system = 3
    archive.writestr(entry, data)


def _file(module: str) -> tuple[Path, str]:
    """Return the source of a module and its name in the zip."""
    root, *rest = module.split(".")
    base = _ROOTS[root].joinpath(*rest)
    parts = [root, *rest]
    if base.is_dir():
        return base / "__init__.py", "/".join([*parts, "__init__.py"])
    return base.with_suffix(".py"), "/".join(parts) + ".py"


def _exists(module: str) -> bool:
    return module.partition(".")[0] in _ROOTS and _file(module)[0].exists()


def _needed(entry: str) -> set[str]:
    """Return the modules of ours that a module needs, itself and the packages around them included."""
    found: set[str] = set()
    waiting = [entry]
    while waiting:
        module = waiting.pop()
        if module in found:
            continue
        found.add(module)
        if "." in module:
            waiting.append(module.rpartition(".")[0])
        waiting.extend(name for name in _imports(module) if _exists(name))
    return found


def _imports(module: str) -> Iterator[str]:
    path, inside = _file(module)
    package = module if inside.endswith("__init__.py") else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                outer = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*outer, base]) if base else ".".join(outer)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
