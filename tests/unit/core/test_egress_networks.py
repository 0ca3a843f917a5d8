# SPDX-License-Identifier: GPL-3.0-or-later
"""Which networks a proxy may reach for a scope, and which its names must not lead to."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.core.egress_examples import API, FENCE, SCOPES

from fleet_core.egress_networks import granted_networks, special_networks, without


def within(address: str, networks: list[str]) -> bool:
    found = ipaddress.ip_address(address)
    return any(found in ipaddress.ip_network(network) for network in networks)


@pytest.mark.parametrize(
    ("address", "reached"),
    [
        ("10.9.0.7", True),
        ("10.9.9.7", False),  # denied
        ("192.168.7.7", True),
        ("192.168.100.1", False),  # this host
        ("192.168.101.10", False),  # a guest
        ("169.254.169.254", True),  # stands there as small as this
        ("10.8.0.1", False),
        ("fd09::1", True),
        ("fd00:100::10", False),
    ],
)
def test_a_grant_opens_its_networks_but_not_this_host(address: str, reached: bool) -> None:
    assert within(address, granted_networks(FENCE, SCOPES[0], API)) is reached


def test_a_wide_network_does_not_open_metadata() -> None:
    from dataclasses import replace

    wide = replace(API, networks4=("0.0.0.0/0",), networks6=("::/0",))
    found = granted_networks(FENCE, SCOPES[0], wide)
    for closed in (
        "169.254.169.254",
        "fe80::1",
        "fd00:ec2::254",
        "127.0.0.1",
        "::1",
        "192.168.100.10",
        "::ffff:1.2.3.4",
    ):
        assert not within(closed, found), closed
    assert within("8.8.8.8", found)
    assert within("2600::1", found)


def test_names_lead_nowhere_special() -> None:
    found = special_networks(FENCE, SCOPES[0])
    for closed in ("10.9.0.7", "127.0.0.1", "169.254.169.254", "192.168.100.10", "fd00:100::10", "::1", "fe80::1"):
        assert within(closed, found), closed
    assert not within("8.8.8.8", found)
    assert not within("2600::1", found)


def test_granted_networks_are_left_out_of_the_special_ones() -> None:
    found = special_networks(FENCE, SCOPES[0], ["10.9.0.0/16"])
    assert not within("10.9.0.7", found)
    assert within("10.8.0.7", found)
    assert within("10.9.9.1", found)


@st.composite
def networks(draw: st.DrawFn) -> str:
    length = draw(st.integers(0, 8))
    return str(ipaddress.IPv4Network((draw(st.integers(0, 255)) << 24, length), strict=False))


@given(st.lists(networks(), max_size=5), st.lists(networks(), max_size=5), st.integers(0, 2**32 - 1))
def test_without_is_exactly_the_difference(some: list[str], holes: list[str], number: int) -> None:
    address = str(ipaddress.IPv4Address(number))
    assert within(address, without(some, holes)) is (within(address, some) and not within(address, holes))
