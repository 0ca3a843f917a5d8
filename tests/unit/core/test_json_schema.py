# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_core.json_schema import KEYWORDS, name_of, problems

FOLDER = Path(__file__).parents[3] / "plugins/plugin_utils/cloud_init_schemas"
FILES = sorted(FOLDER.glob("*.json"))
SCHEMAS = {file.stem: json.loads(file.read_text()) for file in FILES}
ANNOTATIONS = {
    *("$schema", "$defs", "$id", "description", "label", "default", "format", "deprecated", "deprecated_version"),
    *("deprecated_description", "hidden", "changed", "changed_version", "changed_description"),
    "prefixItems",  # unknown to draft 4, and so to cloud-init
}

TABLE: list[tuple[dict[str, Any], Any, list[str]]] = [
    ({"type": "string"}, "a", []),
    ({"type": "string"}, 1, [": expected text, found int 1"]),
    ({"type": "integer"}, True, [": expected a whole number, found bool True"]),
    ({"type": ["string", "null"]}, [], [": expected text or nothing, found list []"]),
    ({"enum": ["red", False]}, "rad", [': expected "red", false, found str \'rad\', did you mean "red"?']),
    ({"properties": {"a": {"minimum": 3}}}, {"a": 1}, ["a: expected 3 or more, found 1"]),
    (
        {"properties": {"packages": {}}, "additionalProperties": False},
        {"pakages": 1},
        ['pakages: unknown key "pakages", did you mean "packages"?'],
    ),
    ({"additionalProperties": {"type": "string"}}, {"a": 1}, ["a: expected text, found int 1"]),
    ({"required": ["a"]}, {}, [': the key "a" is missing']),
    (
        {"items": {"type": "string"}, "maxItems": 1},
        ["a", 1],
        ["[1]: expected text, found int 1", ": expected 1 or fewer items, found 2"],
    ),
    ({"items": [{"type": "string"}], "additionalItems": False}, ["a", 1], ["[1]: expected nothing, found int 1"]),
    ({"uniqueItems": True}, [1, True, 1], ["[2]: int 1 is there twice"]),
    ({"pattern": "^a"}, "b", [": expected text that fits ^a, found str 'b'"]),
    ({"not": {"type": "string"}}, "b", [": not allowed here: str 'b'"]),
    ({"oneOf": [{"type": "string"}, {"type": "array"}]}, 1, [": expected text or a list, found int 1"]),
    ({"oneOf": [{"type": "string"}, {"minLength": 1}]}, "b", [": fits 2 forms of which it may have one: str 'b'"]),
    (
        {"anyOf": [{"type": "string"}, {"type": "object", "properties": {"n": {"type": "string"}}}]},
        {"n": 1},
        ["n: expected text, found int 1"],
    ),
    ({"$defs": {"x": {"type": "null"}}, "allOf": [{"$ref": "#/$defs/x"}]}, 1, [": expected nothing, found int 1"]),
]


@pytest.mark.parametrize(("schema", "value", "expected"), TABLE)
def test_problems_are_sentences(schema: dict[str, Any], value: Any, expected: list[str]) -> None:
    assert [f"{name_of(item.path)}: {item.text}" for item in problems(schema, value)] == expected
    assert bool(expected) != jsonschema.Draft4Validator(schema).is_valid(value)


def keywords(schema: Any) -> Iterator[str]:
    if isinstance(schema, list):
        for part in schema:
            yield from keywords(part)
    elif isinstance(schema, dict):
        for key, value in schema.items():
            yield key
            if key in ("properties", "patternProperties", "$defs"):
                yield from keywords(list(value.values()))
            elif key not in ("enum", "default"):
                yield from keywords(value)


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_keyword_of_the_shipped_schemas_is_understood(name: str) -> None:
    assert set(keywords(SCHEMAS[name])) - KEYWORDS - ANNOTATIONS == set()


words = st.sampled_from(["a", "b", "root", "0644", "yes", "default", "text", ""])
leaves = st.one_of(st.none(), st.booleans(), st.integers(-2, 3), words)
TOP = list(SCHEMAS["schema-cloud-config-v1"]["properties"])
INNER = ["name", "path", "content", "source", "sudo", "groups", "list", "users", "mode", "commands", "sources", "owner"]
inside = st.recursive(
    leaves,
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.sampled_from(INNER), part, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(TOP), inside, max_size=2))
def test_cloud_config_is_judged_as_jsonschema_judges_it(data: dict[str, Any]) -> None:
    schema = SCHEMAS["schema-cloud-config-v1"]
    assert (problems(schema, data) == []) == jsonschema.Draft4Validator(schema).is_valid(data)


@given(
    st.dictionaries(
        st.sampled_from(["version", "ethernets", "bonds", "renderer", "network", "vlans"]), inside, max_size=3
    )
)
def test_network_configurations_are_judged_as_jsonschema_judges_them(data: dict[str, Any]) -> None:
    for version in ("v1", "v2"):
        schema = SCHEMAS[f"schema-network-config-{version}"]
        assert (problems(schema, data) == []) == jsonschema.Draft7Validator(schema).is_valid(data)
