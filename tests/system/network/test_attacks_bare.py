# SPDX-License-Identifier: GPL-3.0-or-later
"""The attacks against a gateway without a fence: what the fence stops later would have got through."""

from __future__ import annotations

import pytest
from tests.system.network import attacks
from tests.system.network.field import Field, run_all
from tests.system.network.lab import Lab

ROWS = attacks.table()


@pytest.fixture(scope="module")
def outcomes(lab: Lab) -> dict[str, bool]:
    return run_all(Field(lab, "none", "none", {}), [row for row in ROWS if row.bare])


@pytest.mark.parametrize("row", [row for row in ROWS if row.bare], ids=lambda row: row.name)
def test_without_a_fence_the_attack_gets_through(outcomes: dict[str, bool], row: attacks.Attack) -> None:
    assert outcomes[row.name] is True, f"{row.title} {outcomes[row.name]!r}"
