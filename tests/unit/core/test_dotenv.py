# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_core.dotenv import parse_dotenv
from fleet_core.errors import InvalidInput

GOOD = {
    "": {},
    "# only a comment\n\n": {},
    "A=1\nB=two": {"A": "1", "B": "two"},
    "export A=1\r\nB=\r\n": {"A": "1", "B": ""},
    "A=\"a b\" # why\nB='$x'": {"A": "a b", "B": "$x"},
    'A="say \\"hi\\"\\n\\$1"': {"A": 'say "hi"\n$1'},
    "\ufeffA=b\n": {"A": "b"},
    "KEY=ssh-ed25519/AA+B==": {"KEY": "ssh-ed25519/AA+B=="},
}
BAD = {
    "A": ".env line 1: expected NAME=value, found 'A'",
    "\nA = 1": ".env line 2: expected NAME=value, found 'A =...'",
    "1A=1": "line 1: expected NAME=value",
    "A=a b": "line 1: A: the value has blanks in it: expected quotes around it",
    "A=$HOME": "line 1: A: the value has '$' in it: expected quotes around it",
    'A="$HOME"': "line 1: A: $ in double quotes: nothing is replaced here, write \\$",
    'A="b': "line 1: A: the double quote is not closed on its line",
    "A='b\n'": "line 1: A: the single quote is not closed on its line",
    'A="b"c': "line 1: A: expected the end of the line after the value, found 'c'",
    'A="\\x"': "line 1: A: unknown escape \\x",
    "A=1\n\nA=2": "line 3: A is set again; line 1 has set it",
    "A=a#b": "line 1: A: the value has '#' in it",
    "A='\x00'": "line 1: expected printable text, found a control character",
    "TOKEN hush=secret": "line 1: expected NAME=value, found 'TOKEN hush=...'",
}


@pytest.mark.parametrize("text", GOOD)
def test_good_text_gives_its_variables(text: str) -> None:
    assert parse_dotenv(text) == GOOD[text]


@pytest.mark.parametrize("text", BAD)
def test_bad_text_is_refused_with_its_line(text: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        parse_dotenv(text)
    assert BAD[text] in str(raised.value)
    assert "\n" not in str(raised.value)


@given(st.text(alphabet=st.sampled_from("AB_1=\"'\\$# \n\tx;`é")))
def test_any_text_is_read_or_refused_with_a_line(text: str) -> None:
    try:
        wrong, found = "", parse_dotenv(text, "x")
    except InvalidInput as error:
        wrong, found = str(error), {}
    assert not wrong or wrong.startswith("x line ")
    assert all(name.isidentifier() for name in found)


@given(
    st.dictionaries(
        st.from_regex(r"[A-Z_][A-Z0-9_]{0,8}", fullmatch=True),
        st.text(alphabet=st.characters(exclude_categories=["C", "Z"], include_characters=" \n\t")),
        max_size=4,
    )
)
def test_quoted_values_come_back(values: dict[str, str]) -> None:
    escaped = {"\\": "\\\\", '"': '\\"', "$": "\\$", "`": "\\`", "\n": "\\n", "\t": "\\t"}
    lines = [f'{name}="{"".join(escaped.get(char, char) for char in value)}"' for name, value in values.items()]
    assert parse_dotenv("\n".join(lines)) == values


@given(st.text(alphabet=st.sampled_from("abc=\"'\\$# \t:/+-.,@%~*"), max_size=12))
def test_a_shell_reads_a_value_alike(text: str) -> None:
    """Whatever is accepted, without escapes of its own, is what sh makes of the same line."""
    line = f"V={text}"
    try:
        value = parse_dotenv(line)["V"]
    except InvalidInput:
        return
    if "\\" in text or "~" in text or not text.isascii():
        return
    done = subprocess.run(["sh", "-c", f'{line}\nprintf %s "$V"'], capture_output=True, text=True, check=True)
    assert done.stdout == value
