# SPDX-License-Identifier: GPL-3.0-or-later
"""Addresses that are given out stay, whoever comes and goes."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_core.egress import Declaration, parse
from fleet_core.egress_addresses import allocate, given_out
from fleet_core.errors import Exhausted

WIDE = {"name": "br", "address": "192.168.100.1/24", "address6": "fd00:100::1/64"}


def declared(count: int, network: dict[str, Any] | None = None, **machine: Any) -> Declaration:
    machines = [
        {"name": f"m-{number}", "network": "br", "mac": f"52:54:00:00:00:{number:02x}", **machine}
        for number in range(count)
    ]
    return parse({"networks": [network or WIDE], "machines": machines})


def addresses(declaration: Declaration) -> dict[str, tuple[str, str]]:
    return {guest.mac: (guest.address4, guest.address6) for guest in declaration.machines}


@given(st.integers(0, 40))
def test_every_machine_gets_an_address_of_each_family(count: int) -> None:
    found = addresses(allocate(declared(count)))
    assert all(ipaddress.ip_address(four) in ipaddress.ip_network("192.168.100.0/24") for four, _six in found.values())
    assert all(ipaddress.ip_address(six) in ipaddress.ip_network("fd00:100::/64") for _four, six in found.values())
    every = [text for pair in found.values() for text in pair]
    assert len(set(every)) == 2 * count
    assert not {"192.168.100.0", "192.168.100.1", "192.168.100.255", "fd00:100::", "fd00:100::1"} & set(every)


def test_known_addresses_stay_when_others_come_and_go() -> None:
    first = allocate(declared(20))
    known = given_out(first)
    more = addresses(allocate(declared(40), known))
    assert {mac: more[mac] for mac in addresses(first)} == addresses(first)
    fewer = allocate(declared(3), known)
    assert addresses(fewer).items() <= addresses(first).items()
    assert given_out(fewer, known) == known


def test_addresses_of_those_that_are_gone_are_the_last_to_be_given_out() -> None:
    narrow = {"name": "br", "address": "192.168.100.1/29"}
    known = {"52:54:00:00:00:99": ["192.168.100.2"]}
    assert {four for four, _six in addresses(allocate(declared(4, narrow), known)).values()} == {
        f"192.168.100.{number}" for number in (3, 4, 5, 6)
    }
    assert len(addresses(allocate(declared(5, narrow), known))) == 5
    with pytest.raises(Exhausted, match=r'machine "m-\d": network br has no address left in 192.168.100.0/29'):
        allocate(declared(6, narrow), known)


def test_what_is_declared_is_left_alone_and_kept_from_others() -> None:
    fixed = {"name": "fixed", "network": "br", "mac": "52:54:00:00:00:99", "address": "192.168.100.2"}
    network = {"name": "br", "address": "192.168.100.1/29"}
    machines = [fixed, {"name": "free", "network": "br", "mac": "52:54:00:00:00:98"}]
    known = {"52:54:00:00:00:98": ["192.168.100.2"], "52:54:00:00:00:99": ["192.168.100.3"]}
    for hub in ({}, {"addresses": ["192.168.100.4"], "ports": [80]}):
        found = addresses(allocate(parse({"networks": [network], "machines": machines, "hub": hub}), known))
        assert found["52:54:00:00:00:99"] == ("192.168.100.2", "")
        assert found["52:54:00:00:00:98"][0] not in ("192.168.100.2", *hub.get("addresses", ()))


def test_known_addresses_of_another_network_are_forgotten() -> None:
    found = addresses(allocate(declared(1), {"52:54:00:00:00:00": ["10.0.0.5", "192.168.100.77", "fd00:9::5"]}))
    assert found["52:54:00:00:00:00"][0] == "192.168.100.77"
    assert found["52:54:00:00:00:00"][1].startswith("fd00:100::")


def test_a_bridge_without_dhcp_gives_out_nothing() -> None:
    declaration = declared(1, {**WIDE, "dhcp": False}, address="192.168.100.9")
    assert allocate(declaration) == declaration


@pytest.mark.parametrize("own", ["10.0.0.0/31", "10.0.0.1/31"])
def test_a_network_of_two_addresses_has_one_for_a_guest(own: str) -> None:
    assert len(addresses(allocate(declared(1, {"name": "br", "address": own})))) == 1
    with pytest.raises(Exhausted):
        allocate(declared(2, {"name": "br", "address": own}))
