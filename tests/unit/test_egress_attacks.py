# SPDX-License-Identifier: GPL-3.0-or-later
"""The attack table, without an attack: it is whole, and its page says what it says."""

from __future__ import annotations

import re

import pytest
from tests.system.network import attacks, uses
from tests.tools import egress_attacks

ROWS = attacks.table()


def test_the_table_has_enough_rows_in_each_group() -> None:
    assert len(ROWS) >= 40
    assert {row.group for row in ROWS} == set(attacks.GROUPS.values())


@pytest.mark.parametrize("row", [*ROWS, *uses.table()], ids=lambda row: row.name)
def test_a_row_is_a_sentence(row: attacks.Attack | uses.Use) -> None:
    assert re.fullmatch(r"[A-Z][^|]*\.", row.title), row.title


def test_names_are_unique() -> None:
    names = [row.name for row in (*ROWS, *uses.table())]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_what_is_open_says_why_and_is_never_open_in_mode_locked(row: attacks.Attack) -> None:
    assert set(row.opened) <= set(attacks.MODES) - {"locked"}
    assert all(row.opened.values())
    assert row.closed_by
    if row.opened and row.group != "Through the proxy":
        assert "open" in row.opened, "what a stricter mode leaves open, mode open leaves open too"


def test_the_page_is_what_the_table_says() -> None:
    assert egress_attacks.PAGE.read_text(encoding="utf-8") == egress_attacks.page()
    assert all(sentence.endswith((".", ")")) for sentence in egress_attacks.events())
