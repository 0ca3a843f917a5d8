# SPDX-License-Identifier: GPL-3.0-or-later
"""What a fence says of one connection, in a table that is the meaning of every mode."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_core.egress_presets import DOH4, DOH6
from fleet_core.fences import Bridge, Fence, Grant, Guest, Hub, Proxy, Scope
from fleet_core.flows import ALLOWED, REASONS, Flow, permitted, verdict

NOW = 1000
WEB4, WEB6, OTHER4, FAR4 = "192.168.100.10", "fd00:100::10", "192.168.100.11", "192.168.101.10"
GATE4, GATE6 = "192.168.100.1", "fd00:100::1"
NAMED = Grant("11111111", names=("example.org",), ports=((443, 443),))
NETS = Grant("22222222", networks4=("198.41.0.0/24", "10.5.0.0/16"), networks6=("2a00:1::/32",), ports=((22, 22),))
UDP = Grant("33333333", names=("quic.example",), protocol="udp", ports=((443, 443), (8000, 8010)))
PING = Grant("44444444", networks4=("198.41.0.0/24",), protocol="icmp")
ANY = Grant("55555555", networks4=("198.42.0.4/32",), protocol="any")
SOON = Grant("66666666", names=("soon.example",), ports=((443, 443),), until=NOW + 1, mark=6)
OVER = Grant("77777777", names=("over.example",), ports=((443, 443),), until=NOW, mark=7)
META = Grant("88888888", networks4=("169.254.169.254/32",), ports=((80, 80),))
LEARNED = {
    "fleet_n11111111_4": ["198.43.0.1", "10.9.9.9", "198.44.0.1", "169.254.7.7"],
    "fleet_o11111111_4": ["198.43.0.2"],
    "fleet_n11111111_6": ["2a00:2::1", "fd00:9::9"],
    "fleet_n33333333_4": ["198.43.0.3"],
    "fleet_n66666666_4": ["198.43.0.6"],
    "fleet_n77777777_4": ["198.43.0.7"],
}
GRANTS = (NAMED, NETS, UDP, PING, ANY, SOON, OVER)
FENCE = Fence(
    bridges=(Bridge("vmbr1", f"{GATE4}/24", f"{GATE6}/64"), Bridge("vmbr2", "192.168.101.1/24", dhcp=False)),
    guests=(
        Guest("web-1", "vmbr1", "52:54:00:00:00:01", WEB4, WEB6, peers=("web-2",)),
        Guest("web-2", "vmbr1", "52:54:00:00:00:02", OTHER4, peers=("web-1",)),
        Guest("web-3", "vmbr1", "52:54:00:00:00:03", "192.168.100.12"),
        Guest("far-1", "vmbr2", "52:54:00:00:00:04", FAR4),
    ),
    scopes=(Scope("default", "allowlist", GRANTS, denied4=("198.44.0.0/16",), resolver_port=15300, hub=True),),
    proxy=Proxy("squid", 3128),
    hub=Hub("hub.fleet", ("10.0.1.20", GATE6), (8000,)),
)


def fence(mode: str, **scope: Any) -> Fence:
    return FENCE.evolve(scopes=(replace(FENCE.scopes[0], mode=mode, **scope),))


# Destination, protocol, port, then the verdict in the modes allowlist, open and strict. Locked leaves nothing but DHCP.
TABLE = [
    # names
    ("198.43.0.1", "tcp", 443, "allowed", "allowed", "forward"),
    ("198.43.0.2", "tcp", 443, "allowed", "allowed", "forward"),
    ("2a00:2::1", "tcp", 443, "allowed", "allowed", "forward"),
    ("198.43.0.1", "tcp", 80, "forward", "allowed", "forward"),
    ("198.43.0.1", "udp", 443, "forward", "forward", "forward"),
    ("198.43.0.1", "icmp", 0, "forward", "allowed", "forward"),
    ("198.43.0.3", "udp", 443, "allowed", "allowed", "forward"),
    ("198.43.0.3", "udp", 8010, "allowed", "allowed", "forward"),
    ("198.43.0.3", "udp", 8011, "forward", "allowed", "forward"),
    ("198.43.0.3", "tcp", 443, "forward", "allowed", "forward"),
    ("198.43.0.6", "tcp", 443, "allowed", "allowed", "forward"),
    ("198.43.0.7", "tcp", 443, "expired", "allowed", "forward"),
    ("198.43.0.7", "tcp", 444, "forward", "allowed", "forward"),
    ("10.9.9.9", "tcp", 443, "forward", "forward", "forward"),  # a name that leads inside
    ("fd00:9::9", "tcp", 443, "forward", "forward", "forward"),
    ("169.254.7.7", "tcp", 443, "metadata", "metadata", "metadata"),
    # networks
    ("198.41.0.4", "tcp", 22, "allowed", "allowed", "forward"),
    ("198.41.1.4", "tcp", 22, "forward", "allowed", "forward"),
    ("10.5.0.1", "tcp", 22, "allowed", "allowed", "forward"),
    ("10.5.0.1", "tcp", 23, "forward", "forward", "forward"),
    ("2a00:1::5", "tcp", 22, "allowed", "allowed", "forward"),
    ("198.41.0.4", "icmp", 0, "allowed", "allowed", "forward"),
    ("198.42.0.4", "tcp", 1, "allowed", "allowed", "forward"),
    ("198.42.0.4", "gre", 0, "allowed", "allowed", "forward"),
    ("198.42.0.4", "udp", 443, "allowed", "allowed", "forward"),
    # denials
    ("198.44.0.1", "tcp", 443, "denied", "denied", "denied"),
    ("198.44.0.1", "gre", 0, "denied", "denied", "denied"),
    # the internet
    ("198.45.0.1", "tcp", 80, "forward", "allowed", "forward"),
    ("2a00:9::1", "tcp", 80, "forward", "allowed", "forward"),
    ("198.45.0.1", "udp", 443, "forward", "forward", "forward"),
    ("198.45.0.1", "tcp", 853, "forward", "dns", "forward"),
    ("198.45.0.1", "udp", 853, "forward", "dns", "forward"),
    ("1.1.1.1", "tcp", 443, "forward", "dns", "forward"),
    ("2606:4700:4700::1111", "tcp", 443, "forward", "dns", "forward"),
    # special networks
    ("10.0.0.1", "tcp", 80, "forward", "forward", "forward"),
    ("127.0.0.1", "tcp", 80, "forward", "forward", "forward"),
    ("64:ff9b::c633:1", "tcp", 443, "forward", "forward", "forward"),
    ("224.0.0.251", "udp", 5353, "forward", "forward", "forward"),
    ("169.254.169.254", "tcp", 80, "metadata", "metadata", "metadata"),
    ("fd00:ec2::254", "tcp", 80, "metadata", "metadata", "metadata"),
    ("fe80::1", "tcp", 80, "metadata", "metadata", "metadata"),
    ("100.100.100.200", "tcp", 80, "metadata", "metadata", "metadata"),  # of Alibaba Cloud
    ("168.63.129.16", "tcp", 32526, "metadata", "metadata", "metadata"),  # of Azure
    ("fd20:ce::254", "tcp", 80, "metadata", "metadata", "metadata"),  # of Google
    # names are asked of our resolver, wherever they are sent
    ("198.45.0.1", "udp", 53, "allowed", "allowed", "allowed"),
    ("198.45.0.1", "tcp", 53, "allowed", "allowed", "allowed"),
    (GATE4, "udp", 53, "allowed", "allowed", "allowed"),
    ("169.254.169.254", "udp", 53, "allowed", "allowed", "allowed"),
    # this host
    (GATE4, "udp", 67, "allowed", "allowed", "allowed"),
    ("255.255.255.255", "udp", 67, "allowed", "allowed", "allowed"),
    (GATE6, "udp", 547, "allowed", "allowed", "allowed"),
    ("ff02::1:2", "udp", 547, "allowed", "allowed", "allowed"),
    (GATE4, "icmp", 0, "allowed", "allowed", "allowed"),
    (GATE4, "tcp", 3128, "allowed", "allowed", "allowed"),
    (GATE4, "udp", 3128, "input", "input", "input"),
    (GATE4, "tcp", 22, "input", "input", "input"),
    (GATE4, "tcp", 8000, "input", "input", "input"),
    (GATE6, "tcp", 8000, "allowed", "allowed", "allowed"),  # the hub
    ("192.168.101.1", "tcp", 3128, "input", "input", "input"),
    ("192.168.101.1", "icmp", 0, "input", "input", "input"),
    # the hub elsewhere
    ("10.0.1.20", "tcp", 8000, "allowed", "allowed", "allowed"),
    ("10.0.1.20", "udp", 8000, "forward", "forward", "forward"),
    ("10.0.1.20", "tcp", 22, "forward", "forward", "forward"),
    # other guests
    (OTHER4, "tcp", 22, "allowed", "allowed", "allowed"),
    ("192.168.100.12", "tcp", 22, "peer", "peer", "peer"),
    ("192.168.100.99", "tcp", 22, "peer", "peer", "peer"),
    (FAR4, "tcp", 22, "peer", "peer", "peer"),
]


@pytest.mark.parametrize(("destination", "protocol", "port", "allowlist", "opened", "strict"), TABLE)
def test_verdicts_of_the_modes(
    destination: str, protocol: str, port: int, allowlist: str, opened: str, strict: str
) -> None:
    flow = Flow(WEB6 if ":" in destination else WEB4, destination, protocol, port)
    found = [verdict(fence(mode), LEARNED, flow, NOW) for mode in ("allowlist", "open", "strict")]
    assert found == [allowlist, opened, strict]


@pytest.mark.parametrize(("destination", "protocol", "port"), [row[:3] for row in TABLE])
def test_locked_leaves_dhcp_only(destination: str, protocol: str, port: int) -> None:
    flow = Flow(WEB6 if ":" in destination else WEB4, destination, protocol, port)
    guests = tuple(replace(guest, peers=()) for guest in FENCE.guests)
    found = verdict(FENCE.evolve(guests=guests, scopes=(Scope("default", "locked"),)), LEARNED, flow, NOW)
    assert (found == ALLOWED) is (port in (67, 547))


@pytest.mark.parametrize(
    ("source", "destination", "expected"),
    [
        ("192.168.100.99", "198.43.0.1", "spoof"),
        ("fd00:100::99", "2a00:2::1", "spoof"),
        ("198.45.0.1", WEB4, "inbound"),
        ("10.0.0.9", FAR4, "inbound"),
        (GATE4, WEB4, "allowed"),
        (GATE6, WEB6, "allowed"),
        ("10.0.0.9", "198.45.0.1", "allowed"),
    ],
)
def test_where_a_connection_comes_from_counts(source: str, destination: str, expected: str) -> None:
    assert verdict(FENCE, LEARNED, Flow(source, destination, "tcp", 443), NOW) == expected


@pytest.mark.parametrize("destination", ["198.45.0.1", GATE4])
def test_names_are_not_answered_without_a_resolver(destination: str) -> None:
    assert verdict(fence("open", resolver_port=0), {}, Flow(WEB4, destination, "udp", 53), NOW) == "dns"


def test_a_proxy_a_hub_and_dhcp_are_there_only_if_declared() -> None:
    bare = fence("strict", hub=False).evolve(proxy=Proxy())
    assert verdict(bare, {}, Flow(WEB4, GATE4, "tcp", 3128), NOW) == "input"
    assert verdict(bare, {}, Flow(WEB4, "10.0.1.20", "tcp", 8000), NOW) == "forward"
    assert verdict(FENCE, {}, Flow(FAR4, "192.168.101.1", "udp", 67), NOW) == "input"


def test_metadata_opens_to_those_that_name_it() -> None:
    named = fence("allowlist", grants=(META,))
    assert verdict(named, {}, Flow(WEB4, "169.254.169.254", "tcp", 80), NOW) == ALLOWED
    assert verdict(named, {}, Flow(WEB4, "169.254.169.254", "tcp", 81), NOW) == "metadata"
    assert verdict(fence("strict", grants=(META,)), {}, Flow(WEB4, "169.254.169.254", "tcp", 80), NOW) == "metadata"


def test_resolvers_over_https_open_to_those_that_name_them() -> None:
    named = fence("open", grants=(Grant("99999999", networks4=("1.1.1.1/32",), ports=((443, 443),)),))
    assert verdict(named, {}, Flow(WEB4, "1.1.1.1", "tcp", 443), NOW) == ALLOWED
    assert verdict(named, {}, Flow(WEB4, "1.1.1.2", "tcp", 443), NOW) == "dns"


def test_a_grant_ends_at_its_second() -> None:
    flow = Flow(WEB4, "198.43.0.6", "tcp", 443, mark=6)
    assert [verdict(FENCE, LEARNED, flow, now) for now in (NOW, NOW + 1)] == [ALLOWED, "expired"]


def test_what_a_name_led_to_is_forgotten_with_its_grant() -> None:
    flow = Flow(WEB4, "198.43.0.1", "tcp", 443)
    assert permitted(FENCE, LEARNED, flow, NOW)
    assert not permitted(FENCE, {}, flow, NOW)
    assert not permitted(fence("allowlist", grants=(NETS,)), LEARNED, flow, NOW)


ADDRESSES = st.sampled_from([row[0] for row in TABLE] + [WEB4, WEB6, "192.168.100.99", DOH4[0][:-3], DOH6[1][:-3]])
FLOWS = st.builds(
    Flow, ADDRESSES, ADDRESSES, st.sampled_from(["tcp", "udp", "icmp", "gre"]), st.sampled_from([0, 22, 53, 443, 853])
).filter(lambda flow: (":" in flow.source) == (":" in flow.destination))
WIDTH = ("locked", "strict", "allowlist", "open")


@given(FLOWS, st.integers(0, 3), st.integers(0, 3))
def test_a_wider_mode_permits_all_that_a_narrower_does(flow: Flow, first: int, second: int) -> None:
    narrow, wide = fence(WIDTH[min(first, second)]), fence(WIDTH[max(first, second)])
    assert permitted(wide, LEARNED, flow, NOW) or not permitted(narrow, LEARNED, flow, NOW)
    assert verdict(narrow, LEARNED, flow, NOW) in (ALLOWED, *REASONS)


@given(FLOWS, st.sampled_from(WIDTH), st.sets(st.sampled_from(GRANTS)))
def test_grants_only_open(flow: Flow, mode: str, fewer: set[Grant]) -> None:
    less = fence(mode, grants=tuple(grant for grant in GRANTS if grant in fewer))
    assert permitted(fence(mode), LEARNED, flow, NOW) or not permitted(less, LEARNED, flow, NOW)


@given(FLOWS, st.sampled_from(WIDTH), st.sampled_from(["0.0.0.0/0", "198.41.0.0/16", "198.43.0.1/32"]))
def test_denials_only_close(flow: Flow, mode: str, denied: str) -> None:
    closed = fence(mode, denied4=(*FENCE.scopes[0].denied4, denied))
    assert permitted(fence(mode), LEARNED, flow, NOW) or not permitted(closed, LEARNED, flow, NOW)
