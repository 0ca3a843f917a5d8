# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/agents.md: its examples are definitions, and it names every field, method of the library and message."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from autovibe_fleet.cli.schemas import load
from fleet_core import agents as core
from fleet_core import prompt_files, prompt_library
from fleet_core.agents import agent_definition, agent_definitions
from fleet_core.errors import NotFound

TEXT = (Path(__file__).parents[2] / "docs" / "agents.md").read_text(encoding="utf-8")
FENCED = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
BLOCKS = [block for language, block in FENCED if language == "yaml"]
BASE = {"name": "a", "runner": "claude", "methods": {"m": "x"}, "pipeline": [{"loop": "m"}]}


def lines_of(block: str) -> list[str]:
    """Return a block, or its lines if they are alternatives: the same key again and again."""
    keys = re.findall(r"^(\w+):", block, re.MULTILINE)
    return block.strip().split("\n") if len(keys) > 1 and len(set(keys)) == 1 else [block]


@pytest.mark.parametrize("block", [part for block in BLOCKS for part in lines_of(block)])
def test_the_examples_are_definitions(block: str) -> None:
    data: Any = yaml.safe_load(block)
    if "agents" not in data and "name" not in data:
        data = {**BASE, **data}
        if "methods" in yaml.safe_load(block):
            data["pipeline"] = [{"loop": "build"}]
    assert agent_definitions(data, folder="/srv")
    assert not list(jsonschema.Draft202012Validator(load("agent")).iter_errors(data))


def test_the_prompt_file_is_one() -> None:
    (text,) = (block for language, block in FENCED if not language)

    def read(path: str) -> str:
        if path == "shared/methods.p":
            return "review:\n\tx\n"
        raise NotFound(path)

    found = prompt_files.agents(prompt_files.parse(text, "agents.p", read))
    assert [item.name for item in found] == ["builder", "writer"]


def test_every_field_is_described() -> None:
    table = TEXT.partition("## Fields")[2].partition("### Methods")[0]
    described = set(re.findall(r"`(\w+)`", "\n".join(line.split("|")[1] for line in table.split("\n") if "|" in line)))
    assert set(core.KEYS) - described == {"legacy_form"}


@pytest.mark.parametrize("name", ["limits", "backoff", "circuit_breaker", "watchdog"])
def test_every_setting_is_shown(name: str) -> None:
    shown = {key for block in BLOCKS for key in _keys_below(block, name)}
    assert shown == set(load("agent")["$defs"][name]["properties"])


def _keys_below(block: str, name: str) -> set[str]:
    data = yaml.safe_load(lines_of(block)[0])
    return set(data[name]) if isinstance(data, dict) and isinstance(data.get(name), dict) else set()


def test_the_defaults_in_the_text_are_those_of_the_code() -> None:
    (block,) = (block for block in BLOCKS if "backoff:" in block)
    given = yaml.safe_load(block)
    found = agent_definition({**BASE, "backoff": given["backoff"], "circuit_breaker": given["circuit_breaker"]})
    assert found == agent_definition(BASE)


def test_every_method_of_the_library_is_named() -> None:
    for method in prompt_files.parse(prompt_library.TEXT).methods.values():
        shown = f"{method.name}({', '.join(method.parameters)})" if method.parameters else method.name
        assert f"`{shown}`" in TEXT
