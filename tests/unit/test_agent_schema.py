# SPDX-License-Identifier: GPL-3.0-or-later
"""The published schema of agents and the parser agree on what is good and what is bad."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from autovibe_fleet.cli.schemas import load
from fleet_core import agents as core
from fleet_core.agents import agent_definitions
from fleet_core.errors import FleetError

SCHEMA = load("agent")
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
TEMPLATES = Path(__file__).parents[2] / "templates" / "agents"
BASE: dict[str, Any] = {"name": "a", "runner": "claude", "methods": {"m": "Work."}}
TWO = {"m": "Work.", "n": {"parameters": ["x"], "body": "Use [x]."}}


def accepted_by_the_parser(data: Any) -> bool:
    try:
        agent_definitions(data, folder="/srv")
    except FleetError:
        return False
    return True


GOOD: list[Any] = [
    BASE,
    [BASE, {**BASE, "name": "b"}],
    [],
    {"agents": [{"name": "a", "runner": "codex", "pipeline": [{"loop": "m"}]}], "methods": {"m": "x"}},
    {**BASE, "runner": "command", "command": "true"},
    {**BASE, "description": None, "model": 4, "session": "resume", "options": None, "limits": None},
    {**BASE, "methods": TWO, "pipeline": [{"call": "m", "label": "first"}, {"map": "n", "over": "first"}]},
    {**BASE, "methods": TWO, "pipeline": [{"map": "n", "items": ["a", 1, True]}, {"loop": "m", "times": "3"}]},
    {**BASE, "methods": TWO, "pipeline": [{"call": "n", "arguments": "x"}]},
    {**BASE, "limits": {"iterations": "5", "duration": "2h 30m", "cost": "2.5", "turns": 3, "iteration_timeout": 0.5}},
    {**BASE, "backoff": {"delay": 1, "max_delay": "1m", "jitter": 1}, "circuit_breaker": {"failures": 0}},
    {**BASE, "completion": "DONE", "verification": "make test"},
    {**BASE, "completion": {"phrase": "DONE"}, "verification": {"command": "a\nb", "timeout": "1h"}},
    {**BASE, "watchdog": {"commits": 3, "repeats": 5, "silence": "10m", "action": "stop"}},
    {**BASE, "workspace": {"kind": "worktree", "repository": ".", "branch": "agent/x", "base": "main~2"}},
    {**BASE, "workspace": {"kind": "clone", "repository": "https://host/x.git", "path": "work"}},
    {**BASE, "env": {"A": 1, "B": True, "C": "x"}, "env_files": "keys.env", "schedule": {"cron": "@daily"}},
    {**BASE, "env_files": ["a", "b"], "schedule": {"every": "6h"}},
    {**BASE, "options": {"arguments": ["-v"], "config": {"a.b": 1}, "executable": "./x", "permission_mode": "bypass"}},
]

BAD: list[Any] = [
    None,
    "a",
    5,
    {},
    {"agents": BASE},
    {"agents": [BASE], "more": 1},
    [BASE, "b"],
    *({key: value for key, value in BASE.items() if key != left} for left in ("name", "runner", "methods")),
    *({**BASE, "name": name} for name in ("", "a b", "-a", "a" * 64, "a/b", 5, None)),
    *({**BASE, "runner": runner} for runner in ("", "Claude", "gpt", None, 5, "command")),
    {**BASE, "runner": "command", "command": " "},
    {**BASE, "command": "true"},
    {**BASE, "colour": "red"},
    *(
        {**BASE, "methods": methods}
        for methods in ({}, [], "x", TWO, {"m": ""}, {"m": " \n"}, {"m": None}, {"a b": "x"})
    ),
    *({**BASE, "methods": {"m": item}} for item in ({}, {"body": ""}, {"body": "x", "p": 1}, ["x"])),
    {**BASE, "methods": {"m": {"parameters": ["a", "a"], "body": "x"}}},
    {**BASE, "methods": {"m": {"parameters": ["a b"], "body": "x"}}},
    *({**BASE, "pipeline": steps} for steps in ([], {}, "m", ["m"], [{}], [{"label": "x"}], [{"run": "m"}])),
    {**BASE, "pipeline": [{"call": "m", "loop": "m"}]},
    {**BASE, "pipeline": [{"call": "m", "times": 3}]},
    {**BASE, "pipeline": [{"loop": "m", "over": "x"}]},
    {**BASE, "pipeline": [{"loop": "m", "times": -1}]},
    {**BASE, "pipeline": [{"loop": "m", "times": 1.5}]},
    {**BASE, "pipeline": [{"loop": "m", "times": "many"}]},
    {**BASE, "pipeline": [{"map": "m"}]},
    {**BASE, "pipeline": [{"map": "m", "items": []}]},
    {**BASE, "pipeline": [{"call": "m"}, {"map": "m", "label": "n", "over": "m", "items": ["x"]}]},
    {**BASE, "pipeline": [{"call": "m", "label": "a\nb"}]},
    {**BASE, "pipeline": [{"call": "m", "label": "x" * 201}]},
    {**BASE, "pipeline": [{"call": "m", "arguments": {"x": 1}}]},
    *({**BASE, "limits": {"duration": value}} for value in ("soon", -1, True, [], "5 years", "", "1e3")),
    *({**BASE, "limits": {"cost": value}} for value in ("much", -1, True, [], "-1")),
    *({**BASE, "limits": {"iterations": value}} for value in ("much", -1, True, 1.5, "1.5")),
    {**BASE, "limits": {"iteration": 3}},
    {**BASE, "limits": 5},
    {**BASE, "backoff": {"jitter": 1.5}},
    {**BASE, "backoff": {"wait": 1}},
    {**BASE, "circuit_breaker": {"trips": -1}},
    {**BASE, "completion": ["DONE"]},
    {**BASE, "completion": "a\nb"},
    {**BASE, "verification": {"cmd": "x"}},
    {**BASE, "watchdog": {"action": "kill"}},
    {**BASE, "session": "new"},
    {**BASE, "session": True},
    {**BASE, "workspace": "."},
    {**BASE, "workspace": {"kind": "worktree"}},
    {**BASE, "workspace": {"kind": "folder", "branch": "x"}},
    {**BASE, "workspace": {"repository": "."}},
    {**BASE, "workspace": {"kind": "clone", "repository": "--upload-pack=x"}},
    {**BASE, "workspace": {"kind": "clone", "repository": ".", "branch": "a b"}},
    {**BASE, "workspace": {"kind": "clone", "repository": ".", "base": "-x"}},
    {**BASE, "env": ["A=1"]},
    {**BASE, "env": {"A": None}},
    {**BASE, "env": {"A": ["x"]}},
    {**BASE, "env_files": {"a": 1}},
    {**BASE, "env_files": [None]},
    {**BASE, "schedule": "daily"},
    {**BASE, "schedule": {"cron": "* * * *"}},
    {**BASE, "schedule": {"cron": "* * * * *", "every": 5}},
    {**BASE, "options": {"args": []}},
    {**BASE, "options": {"config": {"a": None}}},
]


@pytest.mark.parametrize("data", GOOD)
def test_what_is_good_is_good_for_both(data: Any) -> None:
    assert accepted_by_the_parser(data)
    assert not list(VALIDATOR.iter_errors(data))


@pytest.mark.parametrize("data", BAD)
def test_what_is_bad_is_bad_for_both(data: Any) -> None:
    assert not accepted_by_the_parser(data)
    assert list(VALIDATOR.iter_errors(data))


VALUES = st.sampled_from(
    [None, True, 0, -1, 1, 1.5, "", " ", "x", "5", "10m", "a\nb", [], ["x"], ["x", "x"], {}, {"x": "y"}, {"x": None}]
)
KEYS = st.sampled_from([*core.KEYS, "x"])


@given(st.dictionaries(KEYS, VALUES, max_size=3))
def test_what_the_parser_takes_the_schema_takes(change: dict[str, Any]) -> None:
    data = {**BASE, **change}
    if accepted_by_the_parser(data):
        assert not list(VALIDATOR.iter_errors(data)), data


def test_the_schema_is_one_and_describes_every_field() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    described = SCHEMA["$defs"]["agent"]["properties"]
    assert set(described) == {part.name for part in fields(core.AgentDefinition)}
    assert all("description" in item for item in described.values())
    for name, kind in (
        ("options", core.RunnerOptions),
        ("limits", core.RunLimits),
        ("backoff", core.Backoff),
        ("circuit_breaker", core.CircuitBreaker),
        ("completion", core.Completion),
        ("verification", core.Verification),
        ("watchdog", core.Watchdog),
        ("workspace", core.Workspace),
        ("schedule", core.Schedule),
    ):
        assert set(SCHEMA["$defs"][name]["properties"]) == {part.name for part in fields(kind)}


def test_defaults_in_the_schema_are_those_of_the_parser() -> None:
    for name, kind in (("limits", core.RunLimits), ("backoff", core.Backoff), ("watchdog", core.Watchdog)):
        given = {key: item["default"] for key, item in SCHEMA["$defs"][name]["properties"].items()}
        assert getattr(core.agent_definition({**BASE, name: given}), name) == kind()


@pytest.mark.parametrize("path", sorted(TEMPLATES.glob("**/*.yml")), ids=lambda path: path.name)
def test_the_shipped_agents_fit_both(path: Path) -> None:
    for data in yaml.safe_load_all(path.read_text()):
        if isinstance(data, dict) and ({"runner"} <= set(data) or "agents" in data):
            assert accepted_by_the_parser(data)
            assert not list(VALIDATOR.iter_errors(data))
