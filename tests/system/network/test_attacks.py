# SPDX-License-Identifier: GPL-3.0-or-later
"""The attack table against the product: both backends, each mode. docs/egress-attacks.md is made of the same rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tests.requirements import require_tool
from tests.system.network import attacks, uses
from tests.system.network.field import Field, run_all
from tests.system.network.lab import Lab
from tests.system.network.product import Product, field_of, running

ROWS = attacks.table()
USES = uses.table()
SIDES = [(backend, mode) for backend in attacks.BACKENDS for mode in attacks.MODES]


@pytest.fixture(scope="module")
def product(lab: Lab) -> Iterator[Product]:
    for tool in ("nft", "iptables", "ipset", "dnsmasq", "squid", "conntrack"):
        require_tool(tool, "to enforce a network policy")
    with running(lab) as product:
        yield product


@pytest.fixture(scope="module", params=SIDES, ids="-".join)
def field(request: pytest.FixtureRequest, product: Product) -> Field:
    return field_of(product, *request.param)


@pytest.fixture(scope="module")
def outcomes(field: Field) -> dict[str, Any]:
    return {**run_all(field, USES), **run_all(field, ROWS)}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_attack(field: Field, outcomes: dict[str, Any], row: attacks.Attack) -> None:
    got_through = outcomes[row.name]
    expected = row.expected(field.mode)
    assert got_through is expected, f"{row.title} {got_through!r}; {row.opened.get(field.mode) or row.closed_by}"


@pytest.mark.parametrize("row", USES, ids=lambda row: row.name)
def test_use(field: Field, outcomes: dict[str, Any], row: uses.Use) -> None:
    assert outcomes[row.name] is (field.mode in row.modes), f"{row.title} {outcomes[row.name]!r}"
