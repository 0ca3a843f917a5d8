# SPDX-License-Identifier: GPL-3.0-or-later
"""What the kernel logged, in its own bytes, and what people are told of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_core.egress_denials import (
    Denial,
    Gathering,
    Roster,
    denial,
    headers,
    logged,
    messages,
    parts_of,
    refused,
    rules_changed,
    sentence,
)
from fleet_core.fences import Fence, Guest

# Recorded from Linux with nft 1.0.6: frames of a machine on a bridge, logged by rules of the families inet and bridge.
RECORDED: dict[str, Any] = json.loads((Path(__file__).parents[2] / "data" / "egress" / "nflog.json").read_text())
NAMES = {int(number): name for number, name in RECORDED["interfaces"].items()}
GUEST = Guest(
    "web-1", "fleet0", "52:54:00:00:01:10", "192.168.100.10", "fd00:100::10", "tap-web-1", "shop", "project-shop"
)
OTHER = Guest("web-2", "fleet0", "52:54:00:00:01:11", "192.168.100.11", "fd00:100::11", "", "", "default")
ROSTER = Roster(Fence(guests=(GUEST, OTHER)))
WEB = ("web-1", "shop", "project-shop")


@pytest.mark.parametrize(
    ("name", "reason", "source", "destination", "protocol", "port"),
    [
        ("tcp4", "forward", "192.168.100.10", "198.51.100.7", "tcp", 443),
        ("tcp6", "denied", "fd00:100::10", "2001:db8::7", "tcp", 443),
        ("dns4", "dns", "192.168.100.10", "198.51.100.53", "udp", 53),
        ("metadata", "metadata", "192.168.100.10", "169.254.169.254", "tcp", 80),
        ("echo4", "forward", "192.168.100.10", "198.51.100.8", "icmp", 8),
        ("options4", "forward", "192.168.100.10", "198.51.100.8", "udp", 9999),
        ("hop6", "forward", "fd00:100::10", "2001:db8::8", "udp", 8888),
        # What follows the first fragment has no ports.
        ("fragment4", "forward", "192.168.100.10", "198.51.100.8", "udp", 0),
        ("fragment6", "forward", "fd00:100::10", "2001:db8::8", "udp", 0),
        # Under a foreign address it is still known by its port and its card.
        ("spoof4", "spoof", "192.168.100.99", "198.51.100.7", "tcp", 443),
        ("arp", "spoof", "192.168.100.99", "192.168.100.1", "arp", 0),
        ("advert6", "spoof", "fd00:100::10", "ff02::1", "icmpv6", 136),
    ],
)
def test_a_recorded_packet_becomes_a_denial_of_its_machine(
    name: str, reason: str, source: str, destination: str, protocol: str, port: int
) -> None:
    (packet,) = logged(bytes.fromhex(RECORDED["messages"][name]))
    found = denial(packet, NAMES, ROSTER, 7.0)
    assert found is not None
    assert (found.machine, found.project, found.scope) == WEB
    assert (found.reason, found.source, found.destination) == (reason, source, destination)
    assert (found.protocol, found.port, found.count) == (protocol, port, 1)
    assert packet.mac == "52:54:00:00:01:10"


def test_what_this_host_says_to_many_and_hears_itself_is_no_denial() -> None:
    (packet,) = logged(bytes.fromhex(RECORDED["messages"]["advert6"]))
    heard = replace(packet, physindev=0, indev=2, mac="3a:ff:fe:80:00:00")
    assert denial(heard, NAMES, Roster(Fence()), 7.0, {"fd00:100::10"}) is None
    assert denial(heard, NAMES, Roster(Fence()), 7.0, {"fd00:100::1"}) is not None
    assert denial(packet, NAMES, Roster(Fence()), 7.0, {"fd00:100::10"}) is not None


def test_packets_that_others_log_are_no_denials() -> None:
    (packet,) = logged(bytes.fromhex(RECORDED["messages"]["other"]))
    assert packet.prefix == "other words "
    assert denial(packet, NAMES, ROSTER, 7.0) is None


def test_several_messages_of_one_read_are_all_found_and_a_half_one_ends_it() -> None:
    both = b"".join(bytes.fromhex(RECORDED["messages"][name]) for name in ("tcp4", "dns4"))
    assert [headers(one.ethertype, one.payload).port for one in logged(both)] == [443, 53]
    assert [headers(one.ethertype, one.payload).port for one in logged(both[:-8])] == [443]


@given(st.binary(max_size=400))
def test_any_bytes_give_no_error(data: bytes) -> None:
    list(messages(data))
    list(logged(data))
    for ethertype in (0, 0x0800, 0x86DD, 0x0806, 0x88CC):
        headers(ethertype, data)


@given(st.sampled_from(sorted(RECORDED["messages"])), st.integers(0, 400), st.integers(0, 255))
def test_a_changed_byte_of_a_message_gives_no_error(name: str, at: int, value: int) -> None:
    data = bytearray(bytes.fromhex(RECORDED["messages"][name]))
    data[at % len(data)] = value
    for packet in logged(bytes(data)):
        denial(packet, NAMES, ROSTER, 7.0)


def message(kind: int, body: bytes = b"\0" * 4) -> bytes:
    return (16 + len(body)).to_bytes(4, "little") + kind.to_bytes(2, "little") + b"\0" * 10 + body


@pytest.mark.parametrize(
    ("data", "changed"),
    [
        (message(10 << 8 | 12), False),  # a new element
        (message(10 << 8 | 12) + message(10 << 8 | 15), False),  # and the number of the new generation
        (message(10 << 8 | 12) + message(10 << 8 | 8), True),  # a rule is gone
        (message(10 << 8 | 2), True),  # a table is gone
        (message(10 << 8 | 14), True),  # an element is gone
        (message(10 << 8 | 12)[:-2], True),  # who knows
        (message(2), False),
        (b"", False),
    ],
)
def test_more_than_new_elements_is_a_change_of_rules(data: bytes, changed: bool) -> None:
    assert rules_changed(data) is changed


@pytest.mark.parametrize(
    ("prefix", "parts"),
    [
        ("fleet forward project-shop ", ("forward", "project-shop")),
        ("fleet spoof - ", ("spoof", "-")),
        ("fleet input", ("input", "")),
        ("fleet unknown default ", ("", "")),
        ("ufw block ", ("", "")),
        ("", ("", "")),
    ],
)
def test_the_prefix_says_reason_and_scope(prefix: str, parts: tuple[str, str]) -> None:
    assert parts_of(prefix) == parts


def test_a_machine_is_known_by_its_port_then_its_card_then_its_address() -> None:
    assert ROSTER.whose(("tap-web-1",), OTHER.mac, OTHER.address4) == GUEST
    assert ROSTER.whose(("fleet0",), OTHER.mac, GUEST.address4) == OTHER
    assert ROSTER.whose((), "", "192.168.100.11") == OTHER
    assert ROSTER.whose((), "", "198.51.100.1", "fd00:100::10") == GUEST
    assert ROSTER.whose((), "02:00:00:00:00:01", "198.51.100.1") is None


def test_alike_denials_of_a_second_are_one_and_a_flood_is_counted() -> None:
    gathering = Gathering(most=2)
    for number in range(5):
        gathering.add(Denial(10.0 + number / 10, "forward", "web-1", destination="198.51.100.7", port=443))
    gathering.add(Denial(9.0, "dns", "web-1", name="a.example"))
    gathering.add(Denial(9.5, "dns", "web-1", name="b.example"))
    found = gathering.take()
    assert [(one.time, one.name, one.count) for one in found] == [(9.0, "a.example", 1), (10.0, "", 5)]
    assert gathering.left_out == 1
    assert gathering.take() == []


def test_a_refused_name_is_told_in_lower_case_with_its_machine_and_never_too_long() -> None:
    found = refused("Secret." + "x" * 300, "192.168.100.10", ROSTER, 5.0, "default")
    assert (found.machine, found.scope, found.reason) == ("web-1", "project-shop", "dns")
    assert found.name.startswith("secret.xxx")
    assert len(found.name) == 253
    assert refused("a.example", "192.0.2.9", ROSTER, 5.0, "default").scope == "default"


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (
            {"machine": "web-1", "destination": "198.51.100.7", "protocol": "tcp", "port": 443},
            "web-1: tcp to 198.51.100.7:443 denied, not allowed by the policy",
        ),
        (
            {
                "machine": "web-1",
                "destination": "2001:db8::7",
                "protocol": "udp",
                "port": 53,
                "reason": "dns",
                "count": 3,
            },
            "web-1: udp to [2001:db8::7]:53 denied, DNS elsewhere (3 times)",
        ),
        ({"source": "192.0.2.9", "name": "a.example", "reason": "dns"}, "192.0.2.9: name a.example refused"),
        (
            {"machine": "web-1", "destination": "198.51.100.8", "protocol": "icmp", "port": 8},
            "web-1: icmp to 198.51.100.8 denied, not allowed by the policy",
        ),
    ],
)
def test_a_denial_is_a_sentence(values: dict[str, Any], text: str) -> None:
    record = Denial(**{"time": 0.0, "reason": "forward", **values}).to_dict()
    assert sentence(record) == f"1970-01-01T00:00:00Z {text}"
