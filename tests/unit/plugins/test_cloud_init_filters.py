# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters of cloud-init, and the YAML that they read with its lines."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.autovibe.fleet.plugins.filter import cloud_config, cloud_init_mime, dotenv
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.errors import InvalidInput
from ansible_collections.autovibe.fleet.plugins.plugin_utils.cloud_init import plain, read_yaml, to_yaml

WRONG: list[tuple[Any, list[Any], str]] = [
    (cloud_config.render, [{"pakages": []}], 'user-data: unknown key "pakages", did you mean "packages"?'),
    (cloud_config.render, ["#cloud-config\nusers: [\n"], "user-data line 3: bad YAML: "),
    (cloud_config.render, ["#cloud-config\n"], "user-data: expected a mapping of cloud-init's keys, found nothing"),
    (cloud_config.render, [3], "user-data: expected text, a mapping or a list of mappings"),
    (
        cloud_config.render,
        [{}, "vendor-data"],
        'kind: expected user-data, meta-data, network-config, found "vendor-data"',
    ),
    (cloud_config.render, [{"version": 2, "nets": {}}, "network-config"], 'network-config: unknown key "nets"'),
    (
        cloud_config.render,
        [{"instance-id": "a"}, "meta-data"],
        "meta-data: local-hostname: expected text, found nothing",
    ),
    (cloud_init_mime.message, ["text"], "parts: expected a list"),
    (cloud_init_mime.message, [["echo"]], 'part "00-part": expected a first line such as #cloud-config'),
    (cloud_init_mime.message, [["#cloud-config\npakages: []\n"]], 'part "00-part" line 2: unknown key "pakages"'),
    (cloud_init_mime.message, [[{"nam": "a"}]], 'parts[0]: unknown key "nam", did you mean "name"?'),
    (dotenv.variables, ["A=1\nB", "my.env"], "my.env line 2: expected NAME=value, found 'B'"),
]


@pytest.mark.parametrize(("function", "arguments", "message"), WRONG)
def test_wrong_input_is_an_error_of_the_filter_in_a_sentence(function: Any, arguments: list[Any], message: str) -> None:
    with pytest.raises(AnsibleFilterError) as raised:
        function(*arguments)
    assert message in str(raised.value)


def test_no_more_than_five_problems_are_listed() -> None:
    with pytest.raises(AnsibleFilterError, match=r"; and 3 more$"):
        cloud_config.render({f"wrong{number}": 1 for number in range(7)})


def test_documents_of_a_text_are_merged() -> None:
    text = "#cloud-config\nssh_import_id: [gh:a]\npackages: [a]\n---\npackages: [b]\n"
    assert yaml.safe_load(cloud_config.render(text))["packages"] == ["a", "b"]


def test_lines_are_those_of_the_text() -> None:
    first, second = read_yaml("a: 1\nb:\n  - c: 2\n    d: 3\n---\ne: 4\n", "x")
    assert [first.line(path) for path in (("a",), ("b",), ("b", 0), ("b", 0, "d"), ("b", 0, "new"))] == [1, 2, 3, 4, 3]
    assert second.line(("e",)) == 6


@given(st.text(alphabet=st.sampled_from("ab: -[]{}\"'#\n&*!|>%@\t?,"), max_size=30))
def test_any_text_is_read_or_refused_in_a_sentence(text: str) -> None:
    try:
        message = ""
        read_yaml(text, "x")
    except InvalidInput as error:
        message = str(error)
    assert "\n" not in message
    assert not message or message.startswith("x")


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda part: st.lists(part, max_size=3) | st.dictionaries(texts, part, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(texts, values, max_size=3))
def test_what_is_written_comes_back(data: dict[str, Any]) -> None:
    assert yaml.safe_load(to_yaml(plain(data))) == data


@pytest.mark.parametrize("word", ["52:54:00:12:34:02", "0644", "yes", "1e3", "~", "2026-01-01", "0o17", "=", "<<"])
def test_words_that_yaml_takes_for_something_else_are_quoted(word: str) -> None:
    assert yaml.safe_load(to_yaml({"a": word})) == {"a": word}
