# SPDX-License-Identifier: GPL-3.0-or-later
"""Running tools: what they say when they fail, and what is said when they are missing."""

from __future__ import annotations

import pytest

from fleet_core.errors import InvalidInput, ProcessFailed, TimedOut, Unavailable
from fleet_node.egress_backends import BACKENDS, backend
from fleet_node.egress_commands import attempt, find, run, shown


def test_a_tool_reads_its_input_and_speaks_the_language_of_its_manual() -> None:
    assert run(("sh", "-c", "cat; echo $LC_ALL"), "words\n") == "words\nC\n"


def test_a_tool_that_fails_is_quoted() -> None:
    with pytest.raises(ProcessFailed, match=r"`sh -c .*`: expected success, found exit code 3: no way in"):
        run(("sh", "-c", "echo no way >&2; echo in >&2; exit 3"))
    assert attempt(("sh", "-c", "exit 3")).returncode == 3


def test_a_missing_tool_is_an_error_that_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_words, **_values: None)
    with pytest.raises(Unavailable, match=r'tool "ip6tables-restore": .*install the package iptables$'):
        find("ip6tables-restore")
    with pytest.raises(Unavailable, match="install the package nftables"):
        backend("nftables").remove()


def test_a_tool_that_does_not_end_is_an_error() -> None:
    with pytest.raises(TimedOut, match=r"`sleep 5`: expected an end within 0.1 seconds"):
        run(("sleep", "5"), seconds=0.1)


def test_long_commands_are_shown_in_short() -> None:
    assert shown(("nft", "list", "ruleset")) == "`nft list ruleset`"
    assert len(shown(("nft", *["x" * 9] * 100))) == 202


def test_backends_are_known_by_name() -> None:
    assert [backend(name).name for name in BACKENDS] == list(BACKENDS)
    with pytest.raises(InvalidInput, match='backend "nftable": expected nftables or iptables, did you mean "nftables"'):
        backend("nftable")
