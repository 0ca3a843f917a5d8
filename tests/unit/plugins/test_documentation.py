# SPDX-License-Identifier: GPL-3.0-or-later
"""What modules document is what they accept, and what they return."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[3]
COLLECTION = "ansible_collections.autovibe.fleet.plugins"
MODULES = sorted(path.stem for path in (REPOSITORY / "plugins" / "modules").glob("*.py"))
FILTERS = sorted(path.stem for path in (REPOSITORY / "plugins" / "filter").glob("*.py"))
COMPARED = ("type", "elements", "required", "default", "choices", "aliases")
USUAL = {"type": "str", "required": False, "default": None, "choices": None, "aliases": None, "elements": None}


@cache
def all_documentation() -> dict[str, Any]:
    """Return what ansible-doc knows, fragments merged. A process of its own, for a loaded plugin loader stays."""
    names = [f"autovibe.fleet.{module}" for module in MODULES]
    command = [sys.executable, "-m", "ansible.cli.doc", "--type", "module", "--json", *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def documentation(module: str) -> dict[str, Any]:
    found: dict[str, Any] = all_documentation()[f"autovibe.fleet.{module}"]
    return found


def options_of(module: str) -> dict[str, Any]:
    loaded = importlib.import_module(f"{COLLECTION}.modules.{module}")
    arguments = importlib.import_module(f"{COLLECTION}.module_utils._arguments")
    return {**loaded.OPTIONS, **arguments.STATE_DIR}


def described(options: Mapping[str, Any], below: str) -> dict[str, Any]:
    """Return options as {path: what counts}; below: the key of the options inside an option."""
    found: dict[str, Any] = {}
    for name, option in options.items():
        found[name] = {**USUAL, **{key: option[key] for key in COMPARED if key in option}}
        for inner, rest in described(option.get(below) or {}, below).items():
            found[f"{name}.{inner}"] = rest
    return found


@pytest.mark.parametrize("module", MODULES)
def test_documentation_and_argument_spec_agree(module: str) -> None:
    documented = described(documentation(module)["doc"]["options"], "suboptions")
    accepted = described(options_of(module), "options")
    assert documented == accepted


@pytest.mark.parametrize("module", MODULES)
def test_state_comes_first(module: str) -> None:
    options = list(options_of(module))
    assert "state" not in options or options[0] == "state"


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_the_attributes_and_the_action_group(module: str) -> None:
    attributes = documentation(module)["doc"]["attributes"]
    assert attributes["check_mode"]["support"] == "full"
    assert attributes["diff_mode"]["support"] == ("N/A" if module.endswith("_info") else "full")
    groups = yaml.safe_load((REPOSITORY / "meta" / "runtime.yml").read_text())["action_groups"]
    assert module in groups["fleet"]
    assert attributes["action_group"]["membership"] == ["autovibe.fleet.fleet"]


@pytest.mark.parametrize("module", MODULES)
def test_every_returned_value_has_a_sample(module: str) -> None:
    def without_sample(values: Mapping[str, Any], path: str = "") -> list[str]:
        missing = []
        for name, value in values.items():
            if value.get("contains"):
                missing += without_sample(value["contains"], f"{path}{name}.")
            elif "sample" not in value:
                missing.append(f"{path}{name}")
        return missing

    assert without_sample(documentation(module)["return"]) == []


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_short_and_ends_in_main(module: str) -> None:
    """Documentation, imports, run, main; the logic is in module_utils."""
    tree = ast.parse((REPOSITORY / "plugins" / "modules" / f"{module}.py").read_text())
    code = [node for node in tree.body if not isinstance(node, (ast.Expr, ast.Assign))]
    lines = sum(node.end_lineno - node.lineno + 1 for node in code if node.end_lineno)
    assert lines <= 120
    assert ast.unparse(tree.body[-1]) == "if __name__ == '__main__':\n    main()"


def test_check_mode_is_looked_at_in_one_place() -> None:
    folders = [REPOSITORY / "plugins" / "modules", REPOSITORY / "plugins" / "module_utils"]
    found = [
        f"{path.name}:{number}"
        for folder in folders
        for path in sorted(folder.rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"\.check_mode\b", line)
    ]
    assert len(found) == 1
    assert found[0].startswith("_module.py:")


@pytest.mark.parametrize("name", FILTERS)
def test_every_filter_has_its_documentation_beside_it(name: str) -> None:
    data = yaml.safe_load((REPOSITORY / "plugins" / "filter" / f"{name}.yml").read_text())
    assert data["DOCUMENTATION"]["name"] == name
    loaded = importlib.import_module(f"{COLLECTION}.filter.{name}")
    assert list(loaded.FilterModule().filters()) == [name]
    assert yaml.safe_load(data["EXAMPLES"])
