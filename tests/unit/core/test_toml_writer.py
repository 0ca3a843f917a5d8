# SPDX-License-Identifier: GPL-3.0-or-later
"""Plain data written as TOML."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_core.errors import InvalidInput
from fleet_core.toml_writer import to_toml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
VALUES = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
DOCUMENTS = st.dictionaries(
    TEXT | st.sampled_from(["environment", "processes", "vars", "env_vars"]), VALUES, max_size=5
)


@given(DOCUMENTS)
def test_what_is_written_reads_back(data: dict[str, Any]) -> None:
    assert tomllib.loads(to_toml(data)) == data


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({}, "\n"),
        ({"a": 1, "b": None}, "a = 1\n"),
        ({"environment": {"name": "x", "env_vars": {"A": "1"}}},
         '[environment]\nname = "x"\n\n[environment.env_vars]\nA = "1"\n'),
        ({"processes": {"a": {"command": "c", "limits": {"cpu": 5}}}},
         '[processes.a]\ncommand = "c"\nlimits = { cpu = 5 }\n'),
        ({"processes": {"a.b": {"command": 'say "hi"\t\\\x07'}}},
         '[processes."a.b"]\ncommand = "say \\"hi\\"\\t\\\\\\u0007"\n'),
        ({"x": [], "y": {}, "z": [{}]}, "x = []\ny = {}\nz = [{}]\n"),
    ],
)  # fmt: skip
def test_layout(data: dict[str, Any], text: str) -> None:
    assert to_toml(data) == text


@pytest.mark.parametrize("data", [{"a": object()}, {"a": "\ud800"}, {1: "a"}, {"a": [None]}, {"a": b"x"}])
def test_what_toml_cannot_hold_is_an_error(data: Any) -> None:
    with pytest.raises(InvalidInput, match="TOML"):
        to_toml(data)
