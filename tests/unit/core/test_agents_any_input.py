# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever is given, agents are read whole or refused with a FleetError."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fleet_core.agent_forms import form, legacy_id, read_form
from fleet_core.agents import KEYS, agent_definition, agent_definitions, compare, prompt, render
from fleet_core.errors import FleetError, InvalidInput
from fleet_core.prompt_files import agents, parse

WORDS = st.sampled_from(
    ["", "x", "build", "plan", "claude", "command", "loop", "fresh", "resume", "clone", "worktree", "/srv/x", "./x",
     "~", "10m", "0", "-1", "1e999", "9" * 400, "* * * * *", "0 0 31 2 *", "[x]", "a\nb", "\0", "\ud800", "API_KEY",
     "https://a:b@c/", "stop", "true", "-x", '(defagent "a"\n  "x")']
)  # fmt: skip
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([400, 5000]).map(lambda digits: 10**digits)
    | st.floats()
    | st.text(max_size=6)
    | st.binary(max_size=3)
    | st.dates()
    | WORDS
)
INNER = st.sampled_from(
    ["name", "call", "map", "loop", "label", "arguments", "over", "items", "times", "parameters", "body", "iterations",
     "duration", "cost", "delay", "max_delay", "jitter", "failures", "phrase", "command", "timeout", "commits",
     "action", "kind", "path", "repository", "base", "branch", "cron", "every", "executable", "config", "build", "x"]
)  # fmt: skip
KEY = INNER | SCALARS.filter(lambda key: not (isinstance(key, float) and math.isnan(key)))
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEY, inner, max_size=4), max_leaves=6
)
BASE: dict[str, Any] = {
    "name": "a",
    "runner": "claude",
    "methods": {"build": "x", "plan": {"parameters": ["x"], "body": "[x]"}},
    "pipeline": [{"call": "build"}],
}


def attempt(function: Callable[[], Any]) -> tuple[Any, str]:
    """Return what a function gives, or the message of the FleetError that it raises."""
    try:
        return function(), ""
    except FleetError as error:
        return None, str(error)


def check(data: Any) -> None:
    """Read a definition; what is read must be whole."""
    found, error = attempt(lambda: agent_definition(data, folder="/srv"))
    if found is None:
        assert "\n" not in error
        return
    assert agent_definition(found.to_dict()) == found
    assert agent_definition(json.loads(json.dumps(found.to_dict()))).id == found.id
    assert len(found.id) == len(legacy_id(found)) == 64
    read_form(form(found))
    assert render(found)
    assert compare(found, found) == []
    for step in found.pipeline:
        assert prompt(found.method(step.method), step.arguments, "x")


@settings(max_examples=300)
@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=5))
def test_fields(data: dict[str, Any]) -> None:
    check({**BASE, **data})


@given(
    st.lists(st.dictionaries(INNER, WORDS | st.integers(-1, 5) | st.lists(WORDS, max_size=3), max_size=4), max_size=4)
)
def test_pipelines(steps: list[Any]) -> None:
    check({**BASE, "pipeline": steps})


@given(VALUES)
@example({"agents": [BASE], "methods": {"x": "y"}})
def test_files(data: Any) -> None:
    for whole in (data, [data], {"agents": data}, {"agents": [BASE], "methods": data}, [BASE, data]):
        try:
            found = agent_definitions(whole)
        except FleetError:
            continue
        assert len({item.name for item in found}) == len(found)
    check(data)


LINES = st.sampled_from(
    ["build:", "plan(x):", "agent-a:", "agent-b(x):", "x(y", "x(y, y):", ":", "@", "@build", "@plan(1)", "@plan(x=1)",
     "@agent-b(1)", "@a.p", "@stdlib.p", "@loop(build)", "@map([a, b], plan)", "text @plan(1", "; note", "# note", "",
     " ", "\t", "\tloop(build)", "\tmap(x, plan)", "\tx -> build -> plan", "\tx -> y (map([a], plan)) -> loop(build)",
     "\tbuild -> plan", "\tloop(build", "\tDo [x].", "\t\tmore", "  spaces", "\t@build", "\t@plan(1) more", "\ufeff",
     "\tx -> ", "a -> b", "\x00", "\ud800", "Text:", "@listify(n=3)", "\r", "\tlabel (build) -> loop (x)"]
)  # fmt: skip


@settings(max_examples=500)
@given(st.lists(LINES | st.text(max_size=12), max_size=12), st.lists(LINES, max_size=6))
def test_prompt_files(lines: list[str], imported: list[str]) -> None:
    def load(path: str) -> str:
        if path == "a.p":
            return "\n".join(imported)
        raise InvalidInput(f"{path}: not there")

    found, error = attempt(lambda: agents(parse("\n".join(lines), "main.p", load), {"limits": {"iterations": 1}}))
    assert found is not None or error.startswith(("main.p:", "a.p:", "stdlib.p:"))
    for item in found or ():
        assert agent_definition(item.to_dict()) == item
        read_form(form(item))


LONG = [
    "a" + " " * 100_000 + "b:\n",
    "a(" + "b, " * 30_000 + "):\n\tx\n",
    "agent-a:\n\ta -> " + " " * 100_000 + "(b\n",
    "agent-a:\n\tloop(a" + "\n\t" * 50_000 + "x\n",
    "@a(" + '"' * 20_000 + "\n",
    "@" * 100_000,
    "agent-a:\n\t" + "a -> " * 20_000 + "a\n",
]


@pytest.mark.parametrize("text", LONG, ids=range(len(LONG)))
@pytest.mark.timeout(20)
def test_long_texts_take_no_longer_than_they_are_long(text: str) -> None:
    attempt(lambda: agents(parse(text)))


@pytest.mark.parametrize("depth", [10, 100_000])
def test_deep_structures(depth: int) -> None:
    text = "agent-a:\n\t" + "(" * depth + ")" * depth + "\n@loop(" + "(" * depth
    with pytest.raises(FleetError):
        agents(parse(text))
