# SPDX-License-Identifier: GPL-3.0-or-later
"""Nothing that an agent writes reaches the terminal as anything but text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.segment import Segment
from textual.color import Color

from autovibe_fleet.tui.gate import Gate
from autovibe_fleet.tui.text import clean, fit, one_line, same_length, wrap

HOSTILE = [
    ("\x1b[31mred\x1b[0m", "red"),
    ("\x1b]0;a new title\x07text", "text"),
    ("\x1b]52;c;c2VjcmV0\x1b\\text", "text"),  # writes the clipboard
    ("\x1bP+q544e\x1b\\text", "text"),  # asks the terminal, which answers as if it were typed
    ("\x1b[6n\x1b[c\x1b[>0q", ""),
    ("\x1b[2J\x1b[H\x1b[?1049l", ""),
    ("\x1b(0lqk\x1b(B", "lqk"),
    ("\x1bc", ""),  # resets the terminal
    ("\x9b31mred", "red"),
    ("half\x1b", "half␛"),
    ("half\x1b[", "half␛["),
    ("open \x1b]0;never ends", "open ␛]0;never ends"),
    ("\x1b\x1b[31m", "␛"),
    ("first\r\nsecond", "first\nsecond"),
    ("50 %\r100 %", "50 %␍100 %"),
    ("back\x08\x08\x08", "back␈␈␈"),
    ("nul\x00bell\x07", "nul␀bell␇"),
    ("del\x7f", "del␡"),
    ("\u202egnp.exe\u202c", "�gnp.exe�"),
    ("\u2066x\u2069", "�x�"),
    ("a\u2028b\u0085c", "a�b�c"),
    ("half a pair \ud83d", "half a pair �"),
    ("\U000e0041\U000e007f", "��"),
    ("a\tb", "a   b"),
    ("日本語 é 👩‍👩‍👧", "日本語 é 👩‍👩‍👧"),
    ("[bold]markup[/bold] [link=x]", "[bold]markup[/bold] [link=x]"),
]


@pytest.mark.parametrize(("text", "shown"), HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_is_shown_and_not_obeyed(text: str, shown: str) -> None:
    assert clean(text) == shown
    assert clean(clean(text)) == shown


def dangerous(text: str) -> list[str]:
    """The characters of a text that a terminal acts on, or that cannot be written at all."""
    return [
        character
        for character in text
        if ord(character) < 0x20
        or 0x7F <= ord(character) < 0xA0
        or 0xD800 <= ord(character) < 0xE000
        or character in "\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    ]


anything = st.text(st.characters() | st.sampled_from("\x1b[]0;m\x07\x9b\x9c\r\n\t\x00\u202e\ud800"))


@given(anything)
def test_no_text_at_all_comes_through_with_a_control_character(text: str) -> None:
    cleaned = clean(text)
    assert dangerous(cleaned.replace("\n", "")) == []
    cleaned.encode()
    assert dangerous(same_length(text).replace("\n", "").replace("\t", "")) == []
    assert len(same_length(text)) == len(text)
    assert dangerous(one_line(text)) == []


@given(st.lists(anything, max_size=5))
def test_the_last_gate_lets_no_control_character_pass(texts: list[str]) -> None:
    drawn = Gate().apply([Segment(text) for text in texts], Color(0, 0, 0))
    assert dangerous("".join(segment.text for segment in drawn)) == []


@given(anything, st.integers(2, 40))
def test_wrapped_lines_fit_and_lose_nothing_but_spaces(text: str, width: int) -> None:
    text = clean(text)
    lines = list(wrap(text, width))
    assert all(cell_len(line) <= width for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace("\n", "").replace(" ", "")


@given(st.text(st.characters(min_codepoint=32, max_codepoint=0x3100)), st.integers(0, 30))
def test_a_line_that_is_cut_fits_and_says_so(text: str, width: int) -> None:
    text = clean(text).replace("\n", " ")
    cut = fit(text, width)
    assert cell_len(cut) <= width
    assert cut == text or width == 0 or cut.endswith("…")


def test_a_long_text_breaks_at_spaces_where_it_can() -> None:
    assert list(wrap("one two three", 7)) == ["one two", "three"]
    assert list(wrap("abcdefghij klm", 6)) == ["abcdef", "ghij", "klm"]
    assert list(wrap("日本語の文 と文", 6)) == ["日本語", "の文", "と文"]
    assert list(wrap("", 10)) == [""]


def test_the_first_line_that_says_something_stands_for_the_whole() -> None:
    assert one_line("\n\n  hello  \nworld") == "hello"
    assert one_line("x" * 500, 10) == "x" * 9 + "…"
    assert one_line("\x1b[1m\x1b[0m") == ""
