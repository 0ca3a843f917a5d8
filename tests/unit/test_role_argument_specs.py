# SPDX-License-Identifier: GPL-3.0-or-later
"""Every role's defaults, argument specs, README and names agree."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROLES = sorted(path.parent.parent for path in Path(__file__).parents[2].glob("roles/*/tasks/main.yml"))
pytestmark = pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text()) if path.exists() else None


def options_of(role: Path) -> dict[str, dict[str, Any]]:
    return load(role / "meta/argument_specs.yml")["argument_specs"]["main"]["options"]


def tasks_of(role: Path) -> Iterator[dict[str, Any]]:
    def walk(tasks: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for task in tasks or []:
            yield task
            for part in ("block", "rescue", "always"):
                yield from walk(task.get(part, []))

    for file in sorted([*role.glob("tasks/*.yml"), *role.glob("handlers/*.yml")]):
        yield from walk(load(file))


def test_defaults_equal_the_argument_specs(role: Path) -> None:
    options = options_of(role)
    declared = {name: option["default"] for name, option in options.items() if "default" in option}
    assert (load(role / "defaults/main.yml") or {}) == declared
    assert all("default" in option or option.get("required") for option in options.values())


def test_every_option_has_a_type_and_a_description(role: Path) -> None:
    for name, option in options_of(role).items():
        assert option.get("type"), name
        assert option.get("description"), name
        assert option["type"] != "list" or option.get("elements"), name


def test_readme_names_every_option(role: Path) -> None:
    text = (role / "README.md").read_text()
    assert not [name for name in options_of(role) if f"`{name}`" not in text]


def test_variables_carry_the_name_of_the_role(role: Path) -> None:
    assert all(name.startswith(f"{role.name}_") for name in options_of(role))
    assert all(name.startswith(f"_{role.name}_") for name in load(role / "vars/main.yml") or {})
    registered = [task["register"] for task in tasks_of(role) if "register" in task]
    assert all(name.startswith(f"__{role.name}_") for name in registered)


def test_tags_are_role_and_phase(role: Path) -> None:
    for task in load(role / "tasks/main.yml"):
        assert task.get("tags"), task["name"]
        assert all(re.fullmatch(rf"{role.name}_[a-z]+", tag) for tag in task["tags"])


def test_modules_are_called_by_their_full_name(role: Path) -> None:
    keywords = {"name", "when", "vars", "tags", "loop", "block", "rescue", "always", "register", "notify", "listen"}
    for task in tasks_of(role):
        actions = [key for key in task if "." in key]
        assert len(actions) == 1 or keywords & {"block"} & set(task), task["name"]
        assert actions == [] or all(len(action.split(".")) == 3 for action in actions)
