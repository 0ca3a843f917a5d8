# SPDX-License-Identifier: GPL-3.0-or-later
"""The help screen, the documentation and the program agree on the keys."""

from __future__ import annotations

from pathlib import Path

from autovibe_fleet.tui.app import SteerApp
from autovibe_fleet.tui.keys import KEYS
from autovibe_fleet.tui.widgets.lines import LineView

PAGE = Path(__file__).resolve().parents[3] / "docs" / "steering.md"
NAMES = {"slash": "/", "question_mark": "?", "tab": "Tab", "pagedown": "PgDn", "pageup": "PgUp", "enter": "Enter"}
ARROWS = {"up": "↑", "down": "↓", "left": "←", "right": "→"}


def test_the_page_lists_the_keys_of_the_help_screen() -> None:
    text = PAGE.read_text(encoding="utf-8")
    rows = [
        f"| {title if index == 0 else ''} | `{key}` | {meaning} |"
        for title, keys in KEYS
        for index, (key, meaning) in enumerate(keys)
    ]
    assert "\n".join(rows) in text


def test_every_key_that_does_something_is_in_the_help() -> None:
    listed = {key for _title, keys in KEYS for names, _meaning in keys for key in names.split()}
    bound = {
        key
        for binding in [*SteerApp.BINDINGS, *LineView.BINDINGS]
        for key in binding.key.split(",")  # type: ignore[union-attr]
    }
    expected = {NAMES.get(key) or ARROWS.get(key) or key for key in bound}
    assert expected - listed - {"shift+tab", "home", "end"} == set()


def test_the_keys_that_were_agreed_on_are_there() -> None:
    listed = {key for _title, keys in KEYS for names, _meaning in keys for key in names.split()}
    assert {"j", "k", "↑", "↓", "←", "→", "Enter", "/", "PgUp", "PgDn", "g", "G", "Tab", "q"} <= listed
