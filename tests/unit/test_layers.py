# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may import what, for all that import-linter cannot see: plugins/ is no package, and allow lists are no contract.

The table is in docs/architecture.md; `lint-imports` checks the rest of it.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PLUGINS = REPOSITORY / "plugins"
MODULE_UTILS = PLUGINS / "module_utils"
COLLECTION = "ansible_collections.autovibe.fleet.plugins"
FLEET = ("fleet_core", "fleet_node", "fleet_machines")

# Pure: they compute, they touch nothing.
CORE_MAY_IMPORT = {
    "__future__", "abc", "base64", "bisect", "collections", "contextlib", "copy", "dataclasses", "datetime", "decimal",
    "difflib", "enum", "fnmatch", "fractions", "functools", "graphlib", "hashlib", "heapq", "ipaddress", "itertools",
    "json", "keyword", "math", "operator", "posixpath", "re", "shlex", "string", "textwrap", "types", "typing", "zlib",
    "unicodedata", "urllib.parse",
}  # fmt: skip


@dataclass(frozen=True)
class Import:
    """One imported name: ``from .a import b`` is ``.a`` and ``b``; ``import a.b`` is ``a.b`` and nothing."""

    file: Path
    line: int
    level: int
    module: str
    names: tuple[str, ...]
    type_checking: bool

    def __str__(self) -> str:
        return f"{self.file.relative_to(REPOSITORY)}:{self.line}: imports {'.' * self.level}{self.module}"


def is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def imports_of(file: Path) -> Iterator[Import]:
    def walk(node: ast.AST, type_checking: bool) -> Iterator[Import]:
        if isinstance(node, ast.If) and is_type_checking(node.test):
            for child in node.body:
                yield from walk(child, True)
            for child in node.orelse:
                yield from walk(child, type_checking)
            return
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(file, node.lineno, 0, alias.name, (), type_checking)
        elif isinstance(node, ast.ImportFrom):
            names = tuple(alias.name for alias in node.names)
            yield Import(file, node.lineno, node.level, node.module or "", names, type_checking)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, type_checking)

    yield from walk(ast.parse(file.read_text(encoding="utf-8"), filename=str(file)), False)


def files(*folders: Path) -> list[Path]:
    return sorted(file for folder in folders for file in folder.rglob("*.py"))


def is_standard(module: str) -> bool:
    return module.partition(".")[0] in sys.stdlib_module_names


def is_fallback(found: Import) -> bool:
    """``except ImportError: from fleet_core import errors``, for a package that the wheel installed."""
    tree = ast.parse(found.file.read_text(encoding="utf-8"))
    return any(
        isinstance(handler, ast.ExceptHandler)
        and isinstance(handler.type, ast.Name)
        and handler.type.id == "ImportError"
        and any(getattr(child, "lineno", None) == found.line for child in handler.body)
        for handler in ast.walk(tree)
    )


def outer_module(found: Import) -> str:
    """The dotted name of an import, relative ones resolved from plugins/ on."""
    if found.level == 0:
        return found.module
    parts = found.file.relative_to(PLUGINS).parent.parts
    base = parts[: len(parts) - (found.level - 1)]
    return ".".join((COLLECTION, *base, *filter(None, [found.module])))


@pytest.mark.parametrize("file", files(MODULE_UTILS / "fleet_core"), ids=lambda file: file.name)
def test_fleet_core_imports_only_pure_standard_modules_and_itself(file: Path) -> None:
    wrong = [
        str(found)
        for found in imports_of(file)
        if found.level == 0
        and found.module not in CORE_MAY_IMPORT
        and found.module.partition(".")[0] not in CORE_MAY_IMPORT
    ]
    assert wrong == []


@pytest.mark.parametrize("package", FLEET)
def test_fleet_packages_import_nothing_above_them_and_nothing_from_pypi(package: str) -> None:
    below = FLEET[: FLEET.index(package)]
    wrong = []
    for file in files(MODULE_UTILS / package):
        inside = file.relative_to(MODULE_UTILS / package).parts
        for found in imports_of(file):
            if found.level > len(inside):  # leaves the package: `from ..fleet_core import errors`
                target = found.module.partition(".")[0]
                if found.level > len(inside) + 1 or target not in below:
                    wrong.append(str(found))
            elif found.level == 0 and not is_standard(found.module):
                top = found.module.partition(".")[0]
                installed = top in below and (found.type_checking or is_fallback(found))
                optional = package == "fleet_machines" and top in ("proxmoxer", "requests")
                # A copy of it runs in mitmproxy; here it is read, not run.
                hosted = file.name == "egress_addon.py" and top in ("mitmproxy", "egress_decisions")
                if not (installed or optional or hosted):
                    wrong.append(str(found))
    assert wrong == []


@pytest.mark.parametrize("package", FLEET)
def test_imports_inside_a_fleet_package_are_relative(package: str) -> None:
    wrong = [
        str(found)
        for file in files(MODULE_UTILS / package)
        for found in imports_of(file)
        if found.level == 0 and found.module.partition(".")[0] == package
    ]
    assert wrong == []


@pytest.mark.parametrize("package", FLEET)
def test_fleet_packages_never_import_ansible(package: str) -> None:
    wrong = [
        str(found)
        for file in files(MODULE_UTILS / package)
        for found in imports_of(file)
        if found.module.partition(".")[0].startswith("ansible")
    ]
    assert wrong == []


def test_the_application_never_imports_ansible() -> None:
    wrong = [
        str(found)
        for file in files(REPOSITORY / "src")
        for found in imports_of(file)
        if found.level == 0 and found.module.partition(".")[0].startswith("ansible")
    ]
    assert wrong == []


def test_fleetd_imports_only_the_standard_library_and_the_fleet_packages() -> None:
    wrong = [
        str(found)
        for file in files(REPOSITORY / "src" / "autovibe_fleet" / "node")
        for found in imports_of(file)
        if found.level == 0
        and not found.type_checking
        and not is_standard(found.module)
        and found.module.partition(".")[0] not in FLEET
        and not (found.module + ".").startswith("autovibe_fleet.node.")
        and (found.module, found.names) != ("autovibe_fleet", ("__version__",))
    ]
    assert wrong == []


def test_the_runs_of_agents_import_only_the_standard_library_and_the_fleet_packages() -> None:
    wrong = [
        str(found)
        for file in files(REPOSITORY / "src" / "autovibe_fleet" / "agents")
        for found in imports_of(file)
        if found.level == 0
        and not is_standard(found.module)
        and found.module.partition(".")[0] not in FLEET
        and found.module != "autovibe_fleet.connection"
    ]
    assert wrong == []


@pytest.mark.parametrize("file", files(PLUGINS / "modules"), ids=lambda file: file.name)
def test_modules_import_only_module_utils(file: Path) -> None:
    """AnsiballZ carries module_utils and nothing else to the host."""
    wrong = [
        str(found)
        for found in imports_of(file)
        if not is_standard(module := outer_module(found))
        and not (module + ".").startswith(("ansible.module_utils.", f"{COLLECTION}.module_utils."))
    ]
    assert wrong == []


@pytest.mark.parametrize("file", sorted(MODULE_UTILS.glob("*.py")), ids=lambda file: file.name)
def test_module_utils_import_only_ansible_module_utils_and_the_fleet_packages(file: Path) -> None:
    wrong = [
        str(found)
        for found in imports_of(file)
        if not is_standard(module := outer_module(found))
        and not (module + ".").startswith(("ansible.module_utils.", f"{COLLECTION}.module_utils."))
    ]
    assert wrong == []


@pytest.mark.parametrize(
    "file",
    sorted(set(files(PLUGINS)) - set(files(MODULE_UTILS, PLUGINS / "modules"))),
    ids=lambda file: str(file.relative_to(PLUGINS)),
)
def test_other_plugins_import_only_ansible_and_this_collection(file: Path) -> None:
    """They run on the control side: Ansible is there, the application need not be."""
    wrong = [
        str(found)
        for found in imports_of(file)
        if not is_standard(module := outer_module(found))
        and not (module + ".").startswith(("ansible.", f"{COLLECTION}."))
    ]
    assert wrong == []
