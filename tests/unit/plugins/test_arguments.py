# SPDX-License-Identifier: GPL-3.0-or-later
"""The pure parts between a module's options and the core."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError

from ansible_collections.autovibe.fleet.plugins.filter import interpolate, parse_duration, variables_in
from ansible_collections.autovibe.fleet.plugins.module_utils._agents import definitions, readable
from ansible_collections.autovibe.fleet.plugins.module_utils._arguments import AGENTS, PROCESSES, TEMPLATES, given
from ansible_collections.autovibe.fleet.plugins.module_utils._secrets import take_secrets
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core import agents
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.processes import FIELDS
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.templates import KEYS

MASK = "********"
SMALLEST = {"name": "a", "runner": "claude", "methods": {"go": "Go on."}}


def test_a_process_takes_every_field_of_the_core() -> None:
    assert set(PROCESSES["processes"]["options"]) == set(FIELDS)


def test_a_template_takes_every_field_of_the_core() -> None:
    assert set(TEMPLATES["templates"]["options"]) == set(KEYS)


def test_an_agent_takes_every_field_of_the_core() -> None:
    taken = AGENTS["agents"]["options"]
    assert set(taken) == set(agents.KEYS)
    assert taken["runner"]["choices"] == list(agents.RUNNERS)
    assert taken["session"]["choices"] == list(agents.SESSIONS)
    kinds = {
        field.name: type(getattr(agents.agent_definition(SMALLEST), field.name))
        for field in fields(agents.AgentDefinition)
    }
    for name, option in taken.items():
        if is_dataclass(kinds[name]):
            assert set(option["options"]) == {field.name for field in fields(kinds[name])}, name


def test_agents_come_from_definitions_texts_and_names() -> None:
    text = "greet:\n\tSay hello.\nagent-greeter:\n\tgreet\n"
    params = {
        "agents": [{**SMALLEST, "model": None}],
        "content": text,
        "defaults": {"runner": "codex"},
        "names": ["a", "z"],
    }
    found = definitions(params)
    assert found[0] == SMALLEST
    assert (found[1]["name"], found[1]["runner"]) == ("greeter", "codex")
    assert found[2:] == [{"name": "z"}]


def test_the_diff_of_an_agent_is_text_that_people_read() -> None:
    after = {**SMALLEST, "methods": {"go": "Go on.\nThen stop."}, "pipeline": [{"call": "go"}], "state": "running"}
    (shown,) = readable({"before": {}, "after": {"a": after}})
    assert shown["before"] == ""
    assert "state: running\nname: a\n" in shown["after"]
    assert "go: |\n    Go on.\n    Then stop.\n" in shown["after"]


def test_given_leaves_out_what_argument_parsing_adds() -> None:
    parsed = {
        "id": "web",
        "name": "web",
        "command": None,
        "health": {"url": "tcp://h:1", "interval": None},
        "depends_on": [{"process": "db", "condition": None}],
    }
    assert given(parsed) == {"id": "web", "health": {"url": "tcp://h:1"}, "depends_on": [{"process": "db"}]}


def test_given_keeps_a_null_that_says_that_a_variable_must_be_given() -> None:
    assert given({"id": "t", "vars": {"root": None}}) == {"id": "t", "vars": {"root": None}}


def test_given_keeps_the_name_of_a_resource() -> None:
    item = {"id": "t", "resources": ["tcpport", {"type": "tcpport", "name": "admin"}]}
    assert given(item) == item


def module(items: list[dict[str, Any]]) -> Any:
    """What AnsibleModule holds after it has parsed no_log options: every value of them."""
    values = {str(value) for item in items for key in ("env", "vars") for value in (item.get(key) or {}).values()}
    return SimpleNamespace(params={"processes": items, "state": "started"}, no_log_values=values)


def test_secrets_are_hidden_everywhere_and_the_rest_nowhere() -> None:
    item = {"id": "a", "env": {"API_TOKEN": "hunter222", "DEBUG": "1"}, "vars": {"db_password": "correct horse"}}
    stub = module([item])
    params = take_secrets(stub, "processes")
    assert params["processes"] == [item]
    assert stub.params["processes"][0]["env"] == {"API_TOKEN": MASK, "DEBUG": "1"}
    assert stub.params["processes"][0]["vars"] == {"db_password": MASK}
    assert stub.no_log_values == {"hunter222", "correct horse"}


def test_a_short_secret_is_hidden_under_its_name_only() -> None:
    stub = module([{"id": "a", "env": {"TOKEN": "x"}, "vars": None}])
    take_secrets(stub, "processes")
    assert stub.params["processes"][0]["env"] == {"TOKEN": MASK}
    assert stub.no_log_values == set()


def test_no_items_stay_no_items() -> None:
    stub = module([])
    stub.params["processes"] = None
    assert take_secrets(stub, "processes")["processes"] is None
    assert stub.params["processes"] is None


@pytest.mark.parametrize(
    ("text", "values", "counters", "result"),
    [
        ("a ${b} %c %% %d $${e}", {"b": 1}, {"c": 2}, "a 1 2 % %d ${e}"),
        ("plain", None, None, "plain"),
        ("${on}", {"on": True}, {}, "true"),
    ],
)
def test_interpolate(text: str, values: Any, counters: Any, result: str) -> None:
    assert interpolate.fill(text, values, counters) == result


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: interpolate.fill("${rot}", {"root": "x"}), 'undefined variable "rot", did you mean "root"'),
        (lambda: interpolate.fill(5, {}), "expected text, found int"),
        (lambda: interpolate.fill("x", ["y"]), "values: expected a mapping"),
        (lambda: variables_in.names(["x"]), "expected text, found list"),
        (lambda: parse_duration.seconds("soon"), 'expected a duration such as "30s"'),
    ],
)
def test_a_wrong_input_of_a_filter_is_named(call: Any, message: str) -> None:
    with pytest.raises(AnsibleFilterError, match=message):
        call()


def test_variables_in_and_parse_duration() -> None:
    assert variables_in.names("${a} ${b} ${a}") == ["a", "b"]
    assert parse_duration.seconds("2h30m") == 9000.0
