# SPDX-License-Identifier: GPL-3.0-or-later
"""The pure parts between a module's options and the core."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError

from ansible_collections.autovibe.fleet.plugins.filter import interpolate, parse_duration, variables_in
from ansible_collections.autovibe.fleet.plugins.module_utils._arguments import PROCESSES, TEMPLATES, given
from ansible_collections.autovibe.fleet.plugins.module_utils._secrets import take_secrets
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.processes import FIELDS
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.templates import KEYS

MASK = "********"


def test_a_process_takes_every_field_of_the_core() -> None:
    assert set(PROCESSES["processes"]["options"]) == set(FIELDS)


def test_a_template_takes_every_field_of_the_core() -> None:
    assert set(TEMPLATES["templates"]["options"]) == set(KEYS)


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
