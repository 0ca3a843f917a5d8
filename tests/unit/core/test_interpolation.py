# SPDX-License-Identifier: GPL-3.0-or-later
"""The language of commands."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fleet_core.errors import InvalidInput
from fleet_core.interpolation import (
    counters_in,
    interpolate,
    interpolate_shell,
    resolve_variables,
    split_command,
    variables_in,
)

VALUES = {"port": "3000", "host": "a b", "web.tcpport": "3001", "name-2": "x", "empty": "", "many": "-a 'b c' -d"}
COUNTERS = {"tcpport": "8080"}


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("", ""),
        ("plain", "plain"),
        ("${port}", "3000"),
        ("x${port}y${port}", "x3000y3000"),
        ("${web.tcpport}/${name-2}", "3001/x"),
        ("%tcpport", "8080"),
        ("-p %tcpport,%tcpport", "-p 8080,8080"),
        ("date +%H:%M", "date +%H:%M"),
        ("%tcpports", "%tcpports"),
        ("100%", "100%"),
        ("100%%", "100%"),
        ("%%tcpport", "%tcpport"),
        ("%%%tcpport", "%8080"),
        ("$${port}", "${port}"),
        ("$$${port}", "$${port}"),
        ("$port $ {port}", "$port $ {port}"),
        ("${empty}", ""),
        ("{port}", "{port}"),
        ("${port", "${port"),
    ],
)
def test_variables_and_counters_are_replaced(text: str, result: str) -> None:
    assert interpolate(text, VALUES, COUNTERS) == result


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("${prot}", 'text: undefined variable "prot", did you mean "port"?'),
        ("${zzz}", 'text: undefined variable "zzz"'),
        ("${}", "text: ${} is not a variable: expected ${name} or ${process.name}"),
        ("${a b}", "text: ${a b} is not a variable"),
        ("${PORT:-80}", "text: ${PORT:-80} is not a variable"),
    ],
)
def test_an_unknown_variable_is_an_error_that_names_it(text: str, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        interpolate(text, VALUES, COUNTERS)
    assert str(caught.value).startswith(message)


def test_a_replaced_value_is_not_read_again() -> None:
    assert interpolate("${a}", {"a": "${b} %tcpport %%"}, COUNTERS) == "${b} %tcpport %%"


def test_what_a_text_uses() -> None:
    assert variables_in("${b} ${a} ${b} $${c} %%") == ("b", "a")
    assert counters_in("%tcpport %H %gpu %%tcpport %tcpport", {"tcpport", "gpu"}) == ("tcpport", "gpu")
    assert counters_in("%%tcpport", {"tcpport"}) == ()


def test_variables_may_refer_to_each_other_and_to_known_values() -> None:
    found = resolve_variables({"a": "${b}!", "b": "${c}?", "c": "${port}", "d": "$${a}"}, {"port": "3000"})
    assert found == {"a": "3000?!", "b": "3000?", "c": "3000", "d": "${a}", "port": "3000"}


def test_known_values_win() -> None:
    assert resolve_variables({"port": "1", "a": "${port}"}, {"port": "3000"}) == {"port": "3000", "a": "3000"}


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"a": "${b}"}, 'variables: undefined variable "b" (used by "a")'),
        ({"a": "${a}"}, "variables: the variables refer to each other in a cycle: a -> a"),
        ({"x": "${a}", "a": "${b}", "b": "${c}", "c": "${a}"}, "in a cycle: a -> b -> c -> a"),
        ({"alpha": "1", "b": "${alhpa}"}, 'undefined variable "alhpa" (used by "b"), did you mean "alpha"?'),
    ],
)
def test_wrong_references_between_variables(variables: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        resolve_variables(variables, {})
    assert message in str(caught.value)


@pytest.mark.parametrize("length", [1, 99, 101, 5000])
def test_a_chain_of_variables_has_an_end(length: int) -> None:
    chain = {f"v{number}": f"${{v{number + 1}}}" for number in range(length)} | {f"v{length}": "end"}
    if length < 100:
        assert resolve_variables(chain, {})["v0"] == "end"
    else:
        with pytest.raises(InvalidInput, match='more than 100 deep, from "v0" on'):
            resolve_variables(chain, {})


@pytest.mark.parametrize(
    ("text", "argv"),
    [
        ("run a b", ("run", "a", "b")),
        ("run 'a b' \"c d\" e\\ f", ("run", "a b", "c d", "e f")),
        ("run '' \"\"", ("run", "", "")),
        ("run a'b'\"c\"d", ("run", "abcd")),
        ('run "a\\"b" "a\\b" "\\$x"', ("run", 'a"b', "a\\b", "$x")),
        ("run 'a\\b'", ("run", "a\\b")),
        ("run a\\\n b", ("run", "a", "b")),
        ("run\ta\n b\r\n", ("run", "a", "b")),
        ("run ${port} --host=${host}", ("run", "3000", "--host=a b")),
        ('run "${host}" ${host}', ("run", "a b", "a", "b")),
        ("run ${many}", ("run", "-a", "b c", "-d")),
        ("run ${empty} x '${empty}'", ("run", "x", "")),
        ("run ${web.tcpport} x%tcpport", ("run", "3001", "x8080")),
        ("run date +%H%%", ("run", "date", "+%H%")),
        ("run $HOME | b > c # d", ("run", "$HOME", "|", "b", ">", "c", "#", "d")),
        ("${host}", ("a", "b")),
    ],
)
def test_a_command_is_split_before_values_go_in(text: str, argv: tuple[str, ...]) -> None:
    assert split_command(text, VALUES, COUNTERS) == argv


def test_a_claimed_value_is_always_one_argument() -> None:
    assert split_command("run ${host} ${many}", VALUES, whole={"host"}) == ("run", "a b", "-a", "b c", "-d")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "command: expected a program, found nothing"),
        ("  ", "command: expected a program, found nothing"),
        ("${empty}", "command: expected a program, found nothing"),
        ("run 'a", "command: a ' quote is not closed"),
        ('run "a', 'command: a " quote is not closed'),
        ("run a\\", "command: nothing follows the last backslash"),
        ("run ${zzz}", 'command: undefined variable "zzz"'),
        ("run ${bad}", "command: variable 'bad': a ' quote is not closed"),
    ],
)
def test_a_wrong_command_is_an_error(text: str, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        split_command(text, {**VALUES, "bad": "it's"}, COUNTERS)
    assert str(caught.value).startswith(message)


ODD = st.text(st.sampled_from("ab '\"\\$`%{}\n;|&*~#!-"), max_size=12)


@given(ODD)
def test_words_are_split_as_posix_says(text: str) -> None:
    assume("#" not in text and "$" not in text and "%" not in text)
    try:
        expected = tuple(shlex.split(text))
    except ValueError:
        return
    # shlex keeps a backslash before $, ` and a newline inside double quotes, where POSIX drops it.
    assume("\\" not in text)
    if expected:
        assert split_command(text, {}) == expected


@given(value=ODD, place=st.sampled_from(["{}", "'{}'", '"{}"', "a{}b", "'x'{}\"y\"", '"x${{other}}{}"', "\\'{}"]))
@settings(max_examples=60)
def test_in_a_shell_a_value_is_data_wherever_it_stands(value: str, place: str) -> None:
    assume("\0" not in value)
    text = interpolate_shell(f"printf %s {place.format('${value}')}", {"value": value, "other": "o"})
    ran = subprocess.run(["/bin/sh", "-c", text], capture_output=True, text=True, check=True)
    frame = {"{}": ("", ""), "'{}'": ("", ""), '"{}"': ("", ""), "a{}b": ("a", "b"), "'x'{}\"y\"": ("x", "y"),
             '"x${{other}}{}"': ("xo", ""), "\\'{}": ("'", "")}[place]  # fmt: skip
    assert ran.stdout == f"{frame[0]}{value}{frame[1]}"


@pytest.mark.parametrize(
    ("text", "output"),
    [
        ("echo ${host}", "a b"),
        ("echo $((1+1)) %tcpport", "2 8080"),
        ("X=1; echo $X \"$X\" '$X' $${X}", "1 1 $X 1"),
        ('echo "${host}\'s"', "a b's"),
        ("echo '${host}'\"'\"x", "a b'x"),
        ("date +%%Y | grep -c .", "1"),
    ],
)
def test_shell_text_keeps_its_own_language(text: str, output: str) -> None:
    ran = subprocess.run(
        ["/bin/sh", "-c", interpolate_shell(text, VALUES, COUNTERS)], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == output


@given(st.text(max_size=30), st.text(max_size=10))
def test_text_without_our_signs_stays_as_it_is(text: str, value: str) -> None:
    assume("${" not in text and "%%" not in text and "%x" not in text)
    assert interpolate(text, {"a": value}, {"x": "1"}) == text


INTRUDERS = [
    "'; touch pwned; '",
    "$(touch pwned)",
    "`touch pwned`",
    "a\ntouch pwned\n",
    "x' $(touch pwned) '",
    "\\`touch pwned\\`",
    "EOF\ntouch pwned\ncat <<EOF",
    '"; touch pwned; "',
]


@pytest.mark.parametrize(
    "text",
    [
        "echo \"$(printf %s '${value}')\"",
        "echo `printf %s ${value}`",
        "echo \"`printf %s '${value}'`\"",
        "cat <<EOF\n${value}\nEOF",
        ": # about ${value}",
        ": # don't\necho ${value}",
        "echo \"$${HOME:-'${value}'}\"",
        "cat <<'EOF'\nit's\nEOF\necho ${value}",
    ],
)
@pytest.mark.parametrize("value", INTRUDERS)
def test_no_value_is_run_as_shell_text_in_a_place_hard_to_tell(tmp_path: Path, text: str, value: str) -> None:
    script = interpolate_shell(text, {"value": value})
    subprocess.run(["/bin/sh", "-c", script], cwd=tmp_path, capture_output=True, check=False)
    assert list(tmp_path.iterdir()) == []


def test_a_plain_value_stands_in_a_shell_text_as_it_is() -> None:
    assert interpolate_shell("echo $(cat ${file})", {"file": "/a/b.txt"}) == "echo $(cat '/a/b.txt')"
