# SPDX-License-Identifier: GPL-3.0-or-later
"""Changing a JSON text leaves everything else as it was."""

from __future__ import annotations

import contextlib
import json
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autovibe_fleet.mcp.json_editing import JsonText
from fleet_core.errors import InvalidInput

ENTRY = {"command": "fleet", "args": ["mcp"]}


def edited(text: str, path: tuple[str, ...] = ("servers", "fleet"), value: Any = None) -> str:
    document = JsonText(text)
    document.set(path, ENTRY if value is None else value)
    return document.text


@pytest.mark.parametrize("text", ["", "\n", "{}", "{ }\n", "{\n}\n"])
def test_an_empty_file_becomes_an_object(text: str) -> None:
    assert json.loads(edited(text)) == {"servers": {"fleet": ENTRY}}


def test_a_member_goes_behind_the_others_and_no_other_line_changes() -> None:
    before = '{\n    "a": 1,\n    "servers": {\n        "b": {"command": "x"}\n    }\n}\n'
    after = edited(before)
    assert json.loads(after) == {"a": 1, "servers": {"b": {"command": "x"}, "fleet": ENTRY}}
    assert after.startswith('{\n    "a": 1,\n    "servers": {\n        "b": {"command": "x"},\n        "fleet": {\n')


def test_comments_and_trailing_commas_stay() -> None:
    before = '// top\n{\n  "a": 1, // one\n  "servers": { /* in */\n    "b": {}, // last\n  },\n}\n'
    after = edited(before)
    for comment in ("// top", "// one", "/* in */", '"b": {}, // last'):
        assert comment in after
    assert JsonText(after).get(("servers", "fleet")) == ENTRY


def test_a_comment_stays_with_its_line() -> None:
    after = edited('{\n  "a": 1 // of a\n}\n')
    assert '"a": 1, // of a\n  "servers"' in after


def test_a_value_is_replaced_in_its_place() -> None:
    after = edited('{"servers": {"fleet": 1, "b": 2}}')
    assert list(json.loads(after)["servers"]) == ["fleet", "b"]


def test_windows_line_ends_stay() -> None:
    after = edited('{\r\n  "a": 1\r\n}\r\n')
    assert after.count("\n") == after.count("\r\n")


@pytest.mark.parametrize("members", [["fleet"], ["fleet", "b"], ["b", "fleet"], ["b", "fleet", "c"]])
def test_what_was_set_can_be_removed_again(members: list[str]) -> None:
    before = json.dumps({"servers": dict.fromkeys(members, 1)}, indent=2)
    document = JsonText(before)
    document.remove(("servers", "fleet"))
    assert json.loads(document.text) == {"servers": dict.fromkeys([name for name in members if name != "fleet"], 1)}


@pytest.mark.parametrize(
    "text",
    ["[]", "1", "{", '{"a"}', '{"a": }', '{"a": 1 "b": 2}', '{"a": 1, "a": 2}', "{'a': 1}", "{} {}", "[" * 200],
)
def test_what_is_no_json_object_is_an_error(text: str) -> None:
    with pytest.raises(InvalidInput, match="JSON: "):
        JsonText(text).root()


def test_something_else_in_the_way_is_an_error() -> None:
    with pytest.raises(InvalidInput, match="servers: expected an object"):
        edited('{"servers": 3}')


KEYS = st.text(string.ascii_letters + 'äß"\\/ ', max_size=5)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(KEYS, VALUES, max_size=4)


@given(OBJECTS, st.sampled_from([None, 1, 2, 4]), KEYS, VALUES)
def test_set_changes_that_and_nothing_else(data: dict[str, Any], indent: int | None, key: str, value: Any) -> None:
    after = edited(json.dumps(data, indent=indent), (key,), value if value is not None else 1)
    assert json.loads(after) == {**data, key: value if value is not None else 1}


@given(OBJECTS.filter(bool), st.sampled_from([None, 2]), st.data())
def test_remove_takes_out_that_and_nothing_else(data: dict[str, Any], indent: int | None, draw: st.DataObject) -> None:
    key = draw.draw(st.sampled_from(sorted(data)))
    document = JsonText(json.dumps(data, indent=indent))
    document.remove((key,))
    assert json.loads(document.text) == {name: value for name, value in data.items() if name != key}


@given(st.text('{}[]",:/*\\ \nab1', max_size=40))
def test_any_text_is_read_or_an_error(text: str) -> None:
    with contextlib.suppress(InvalidInput):
        JsonText(text).root()
