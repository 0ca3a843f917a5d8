# SPDX-License-Identifier: GPL-3.0-or-later
"""Messages as lines."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from autovibe_fleet.tui.blocks import Block, block
from autovibe_fleet.tui.figures import count, money, seconds_of, short, spread, state_mark

TYPES = (
    "prompt",
    "text",
    "thinking",
    "tool_use",
    "tool_result",
    "user",
    "error",
    "end",
    "session",
    "usage",
    "new kind",
)


def message(kind: str, content: str = "", **detail: Any) -> dict[str, Any]:
    return {"id": 1, "time": 0.0, "type": kind, "content": content, "detail": detail}


def lines(found: Block) -> list[str]:
    return ["".join(text for text, _kind in line).rstrip() for line in found.lines]


@pytest.mark.parametrize(
    ("row", "unfolded", "shown"),
    [
        (message("text", "Hello,\nyou."), True, ["Hello,", "you."]),
        (message("tool_use", name="Bash", input={"command": "ls -la\npwd"}), False, ["▸ Bash  ls -la"]),
        (
            message("tool_use", name="Edit", input={"file_path": "a.py", "new": "x\ny"}),
            True,
            ["▾ Edit", "    file_path: a.py", "    new:", "    x", "    y"],
        ),
        (message("tool_use", "free text", name="Any"), False, ["▸ Any  free text"]),
        (message("tool_use", name="Call", input={"depth": 3}), False, ['▸ Call  {"depth": 3}']),
        (message("tool_result", "one\ntwo\n"), False, ["▸ result  2 lines, 8B  one"]),
        (message("tool_result", "one\ntwo\n"), True, ["▾ result  2 lines, 8B", "    one", "    two"]),
        (message("tool_result", ""), False, ["▸ result  nothing"]),
        (message("tool_result", "no such file", is_error=True), False, ["▸ error  1 line  no such file"]),
        (message("thinking", "Hm.\nSo."), False, ["▸ thinking  Hm."]),
        (message("user", "Use pytest"), True, ["steered  anna@laptop · delivered", "Use pytest"]),
        (message("prompt", "Build it"), True, ["prompt", "Build it"]),
        (message("error", "exit code 1"), True, ["✗ exit code 1"]),
        (message("end", ok=True), True, ["✓ finished"]),
        (message("end", ok=False, reason="max_turns"), True, ["✗ ended: max_turns"]),
        (message("session", session="5f", model="m"), True, ["session 5f · model m"]),
        (
            message("usage", input_tokens=1200, output_tokens=7, cost=0.0123),
            True,
            ["tokens: 1.2k in · 7 out · $0.012"],
        ),
        (message("new", "of tomorrow"), True, ["new: of tomorrow"]),
    ],
)
def test_messages_are_laid_out_by_their_type(row: dict[str, Any], unfolded: bool, shown: list[str]) -> None:
    assert lines(block(row, 50, unfolded, sender="anna@laptop · delivered")) == shown


def test_the_time_stands_at_the_right_where_there_is_room() -> None:
    row = {**message("text", "Hello"), "time": 1.0}
    wide = lines(block(row, 60, True))[0]
    assert wide.startswith("Hello ")
    assert len(wide) == 60
    assert lines(block(row, 50, True)) == ["Hello"]


def test_tool_uses_stand_close_together_and_texts_apart() -> None:
    assert lines(block(message("tool_result", "x"), 50, False, after="tool_use"))[0] != ""
    assert lines(block(message("text", "x"), 50, True, after="tool_use"))[0] == ""


plain = st.none() | st.booleans() | st.integers() | st.text(max_size=30)
values = st.recursive(plain, lambda inner: st.lists(inner, max_size=3))
details = st.dictionaries(st.sampled_from(["name", "input", "ok", "reason", "session", "is_error", "cost"]), values)


@given(st.sampled_from(TYPES), st.text(max_size=200), details, st.integers(1, 90), st.booleans())
def test_any_message_at_all_fits_its_width(kind: str, content: str, detail: Any, width: int, unfolded: bool) -> None:
    found = block({**message(kind, content), "detail": detail, "time": 1.0}, width, unfolded)
    for line in found.lines:
        text = "".join(piece for piece, _kind in line)
        assert cell_len(text) <= max(width, 8), json.dumps(text)
        assert "\x1b" not in text
        assert "\n" not in text


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (None, "0"), (999, "999"), (1234, "1.2k"), (99_960, "100k"), (4_500_000, "4.5M")]
)
def test_counts_for_people(number: float | None, text: str) -> None:
    assert count(number) == text


@pytest.mark.parametrize(
    ("cost", "text"), [(None, "$0.00"), (0.0123, "$0.012"), (0.0012, "$0.0012"), (0.286, "$0.286"), (12.345, "$12.35")]
)
def test_money_for_people(cost: float | None, text: str) -> None:
    assert money(cost) == text


def test_durations_run_on_until_something_ends() -> None:
    assert seconds_of({"started": 100.0}, now=103.5) == 3.5
    assert seconds_of({"started": 100.0, "finished": 101.0}, now=200.0) == 1.0
    assert seconds_of({"started": 100.0, "finished": 200.0, "duration": 7.0}, now=300.0) == 7.0
    assert seconds_of({}, now=1.0) is None
    assert (short(3.51), short(62.0), short(None)) == ("3.5s", "1m02s", "-")
    assert spread({"mean": 1500, "deviation": 20}, count) == "1.5k ± 20"
    assert state_mark("a state of tomorrow") == ("·", "dim")
