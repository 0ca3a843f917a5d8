# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/project-files.md says what the code does."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from fleet_core.environments import _USED_PROCESS, environment
from fleet_core.settings import KEYS, settings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "project-files.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("text", EXAMPLES)
def test_every_example_is_valid(text: str) -> None:
    data = tomllib.loads(text)
    if {"environment", "project"} & data.keys():
        assert environment(data, "/srv/shop").processes
    else:
        assert settings(data)


def test_the_quickstarts_project_is_valid() -> None:
    text = (DOCS / "quickstart.md").read_text(encoding="utf-8")
    for example in re.findall(r"```toml\n(.*?)```", text, re.DOTALL):
        assert environment(tomllib.loads(example), "/srv/shop").processes


def test_every_key_is_in_the_table_and_the_examples_of_settings() -> None:
    table = re.findall(r"^\| (`.*?`) \|", PAGE.partition("## Variables")[0], re.MULTILINE)
    documented = {key for row in table for key in re.findall(r"`([a-z_]+)`", row)}
    assert documented == set(_USED_PROCESS)
    assert set(tomllib.loads(EXAMPLES[-1])) == set(KEYS)
