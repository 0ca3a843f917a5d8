# SPDX-License-Identifier: GPL-3.0-or-later
"""Changing a TOML text leaves every other line as it was."""

from __future__ import annotations

import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autovibe_fleet.mcp.toml_editing import TomlText, toml
from fleet_core.errors import InvalidInput
from fleet_core.toml_writer import to_toml

TEXT = '''\
# top
[a]
x = 1  # one
y = """
[no.header]
"""

# of b
[b]
list = [
    1, # in it
]

[[c]]
n = "1"

[c.d]
e = 'f#'
'''


def test_the_parts_of_a_text() -> None:
    found = TomlText(TEXT)
    assert str(found) == TEXT
    assert [section.path for section in found.sections()] == [("a",), ("b",), ("c",), ("c", "d")]


def test_a_value_is_replaced_and_its_comment_stays() -> None:
    found = TomlText(TEXT)
    found.set(found.sections()[0], ("x",), 2)
    assert str(found) == TEXT.replace("x = 1  # one", "x = 2  # one")


def test_a_value_of_many_lines_is_replaced_as_a_whole() -> None:
    found = TomlText(TEXT)
    found.set(found.sections()[1], ("list",), [2])
    assert found.data()["b"] == {"list": [2]}
    assert "in it" not in str(found)


def test_a_new_key_goes_behind_the_others_and_before_the_comment_of_the_next_table() -> None:
    found = TomlText(TEXT)
    found.set(found.sections()[0], ("z",), "new")
    assert '"""\nz = "new"\n\n# of b\n[b]' in str(found)


def test_a_table_goes_with_the_comment_above_it() -> None:
    found = TomlText(TEXT)
    found.remove([found.sections()[1]])
    assert "# of b" not in str(found)
    assert "# top" in str(found)


def test_a_table_is_appended_behind_a_blank_line() -> None:
    found = TomlText("[a]\nx = 1")
    found.append("[b]", {"y": 2})
    assert str(found) == "[a]\nx = 1\n\n[b]\ny = 2\n"


def test_windows_line_ends_stay() -> None:
    found = TomlText("[a]\r\nx = 1\r\n")
    found.set(found.sections()[0], ("y",), [1, 2])
    assert str(found) == "[a]\r\nx = 1\r\ny = [1, 2]\r\n"


def test_a_key_may_hold_what_stands_between_keys_and_values() -> None:
    found = TomlText("[a]\n")
    found.set(found.sections()[0], (" = ",), 1)
    found.set(found.sections()[0], (" = ",), 2)
    assert found.data() == {"a": {" = ": 2}}


@pytest.mark.parametrize("text", ["[a", "x = ", '"""', "a = [1", "=", "[" * 2000])
def test_what_is_no_toml_is_an_error(text: str) -> None:
    with pytest.raises(InvalidInput, match="TOML: "):
        TomlText(text)


KEYS = st.text(string.ascii_letters + "-_ .#\"'[]=\\", min_size=1, max_size=5)
SCALARS = st.booleans() | st.integers(-9, 9) | st.text(max_size=6).filter(lambda text: text.isprintable())
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(KEYS, SCALARS, max_size=2)
TABLES = st.dictionaries(KEYS, st.dictionaries(KEYS, VALUES, min_size=1, max_size=3), min_size=1, max_size=3)


@given(TABLES)
def test_a_text_is_the_sum_of_its_parts(tables: dict[str, Any]) -> None:
    text = to_toml({"processes": tables})
    assert str(TomlText(text)) == text


@given(TABLES, KEYS, VALUES, st.data())
def test_set_changes_that_and_nothing_else(tables: dict[str, Any], key: str, value: Any, draw: st.DataObject) -> None:
    name = draw.draw(st.sampled_from(sorted(tables)))
    found = TomlText(to_toml({"processes": tables}))
    section = next(section for section in found.sections() if section.path == ("processes", name))
    found.set(section, (key,), value)
    assert toml.loads(str(found)) == {"processes": {**tables, name: {**tables[name], key: value}}}


@given(TABLES, st.data())
def test_remove_takes_out_that_and_nothing_else(tables: dict[str, Any], draw: st.DataObject) -> None:
    name = draw.draw(st.sampled_from(sorted(tables)))
    found = TomlText(to_toml({"processes": tables}))
    found.remove([section for section in found.sections() if section.path == ("processes", name)])
    left = {key: value for key, value in tables.items() if key != name}
    assert toml.loads(str(found)) == ({"processes": left} if left else {})
