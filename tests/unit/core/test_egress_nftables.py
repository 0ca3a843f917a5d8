# SPDX-License-Identifier: GPL-3.0-or-later
"""From a fence to the scripts of nft."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from tests.golden import check_golden
from tests.unit.core.egress_examples import FENCE, SCOPES

from fleet_core.egress_nftables import by_name, expected, fingerprint, removal, ruleset
from fleet_core.egress_nftables_names import link_local
from fleet_core.egress_nftables_script import NamedSet
from fleet_core.errors import InvalidInput
from fleet_core.fences import Bridge, Fence, Grant, Guest, Proxy, Scope

PEERS = {"web-1": ("open-1", "locked-1"), "open-1": ("web-1",), "locked-1": ("web-1",)}
FULL = FENCE.evolve(
    guests=tuple(
        replace(guest, port=f"tap-{guest.name}" if guest.name != "strict-1" else "", peers=PEERS.get(guest.name, ()))
        for guest in FENCE.guests
    )
)


def small(*grants: Grant, mode: str = "allowlist", **values: object) -> Fence:
    """A fence of one guest in a scope of these grants."""
    guest = Guest("a", "vmbr1", "52:54:00:00:00:01", "192.168.100.10", "fd00:100::10", "tap1")
    scope = Scope("default", mode, grants, **values)  # type: ignore[arg-type]
    return Fence((Bridge("vmbr1", "192.168.100.1/24", "fd00:100::1/64"),), (guest,), (scope,))


def many(guests: int, names: int) -> Fence:
    """A fence of many guests that may reach many names."""
    grant = Grant("00000001", tuple(f"n{number}.example" for number in range(names)), ports=((443, 443),))
    rows = (
        Guest(
            f"m{n}", "vmbr1", f"52:54:00:00:{n // 256:02x}:{n % 256:02x}", f"10.8.{n // 250}.{n % 250 + 2}", "", f"t{n}"
        )
        for n in range(guests)
    )
    return Fence((Bridge("vmbr1", "10.8.0.1/16"),), tuple(rows), (Scope("default", "allowlist", (grant,)),))


def rules(fence: Fence, chain: str, family: str = "inet") -> list[str]:
    """The rules of one chain."""
    table = next(table for table in expected(fence) if table.family == family)
    return [rule for one in table.chains if one.name == chain for rule in one.rules]


def named(fence: Fence, name: str, family: str = "inet") -> NamedSet:
    table = next(table for table in expected(fence) if table.family == family)
    return next(one for one in table.sets if one.name == name)


def test_rules_as_nft_reads_them() -> None:
    check_golden("egress/egress.nft", ruleset(FULL))


def test_rules_for_kernels_that_know_bridges_by_name() -> None:
    check_golden("egress/egress-bridges.nft", by_name(FULL))


@pytest.mark.parametrize(
    "fence",
    [FULL, FENCE, Fence(), FULL.evolve(log_rate=0), FULL.evolve(bridges=FULL.bridges[:1], guests=())],
    ids=["full", "no-ports", "empty", "silent", "no-guests"],
)
def test_all_that_a_rule_names_is_declared_and_nothing_else_is(fence: Fence) -> None:
    for table in expected(fence):
        text = "\n".join(rule for chain in table.chains for rule in chain.rules)
        elements = "\n".join(element for one in table.sets for element in one.elements or ())
        jumps = set(re.findall(r"\b(?:goto|jump) (\S+?),?(?=\s|$)", f"{text}\n{elements}"))
        chains = {chain.name for chain in table.chains}
        assert jumps <= chains
        entered = {chain.name for chain in table.chains if chain.hook} | {"fingerprint"}
        unused = chains - jumps - entered
        assert not fence.guests or not {name for name in unused if not name.startswith(("log-", "drop-", "deny-"))}
        assert set(re.findall(r"@([a-z]\w*)", text.replace("@th,", ""))) <= {one.name for one in table.sets}
        assert set(re.findall(r'counter name "(\S+)"', text)) <= set(table.counters)
        assert set(re.findall(r'limit name "(\S+)"', text)) <= {name for name, _rate in table.limits}
        assert ("log prefix" in text) == bool(fence.log_rate)


def test_the_number_of_rules_depends_on_scopes_and_grants_only() -> None:
    few, lots = expected(many(1, 1)), expected(many(300, 200))
    assert [table.sizes() for table in few] == [table.sizes() for table in lots]


def test_a_script_bears_the_fingerprint_of_all_of_it() -> None:
    marks = {fingerprint(ruleset(fence)) for fence in (FULL, FULL, FENCE, FULL.evolve(log_rate=3))}
    assert len(marks) == 3
    assert all(re.fullmatch(r"[0-9a-f]{32}", mark) for mark in marks)
    assert ruleset(FULL).count(fingerprint(ruleset(FULL))) == 2
    assert fingerprint(removal()) == ""


def test_what_is_learned_is_never_flushed() -> None:
    text = ruleset(FULL)
    assert not re.findall(r"flush (?:set|map) \S+ \S+ fleet_[ndo]", text)
    assert not re.findall(r"^(?:delete|flush ruleset|reset)", text, re.MULTILINE)
    assert re.findall(r"add set inet fleet_egress fleet_o\S+ \{ type ipv4_addr; flags timeout; timeout 1h; \}", text)


TRANSPORTS = [
    ("tcp", ((443, 443),), "tcp dport 443 ip daddr @fleet_a00000001_4"),
    ("tcp", ((22, 22), (8000, 8100)), "tcp dport { 22, 8000-8100 } ip daddr @fleet_a00000001_4"),
    ("udp", (), "meta l4proto udp ip daddr @fleet_a00000001_4"),
    ("icmp", (), "icmp type echo-request ip daddr @fleet_a00000001_4"),
    ("any", (), "ip daddr @fleet_a00000001_4"),
    ("any", ((53, 53),), "meta l4proto @transports th dport 53 ip daddr @fleet_a00000001_4"),
]


@pytest.mark.parametrize(("protocol", "ports", "match"), TRANSPORTS)
def test_a_grant_matches_its_protocol_and_ports(protocol: str, ports: tuple[tuple[int, int], ...], match: str) -> None:
    fence = small(Grant("00000001", networks4=("11.0.0.0/8",), protocol=protocol, ports=ports))
    assert any(rule.startswith(f"{match} counter") for rule in rules(fence, "out-default"))
    assert any(rule.startswith(f"{match} counter") for rule in rules(fence, "special-default"))


def test_names_open_no_special_network() -> None:
    fence = small(Grant("00000001", names=("example.org",), ports=((443, 443),)))
    assert not [rule for rule in rules(fence, "special-default") if "fleet_" in rule and "accept" in rule]
    order = rules(fence, "out-default")
    special = next(number for number, rule in enumerate(order) if "@special4" in rule)
    assert all(number > special for number, rule in enumerate(order) if "@fleet_n" in rule)


def test_what_is_closed_comes_before_what_is_established() -> None:
    order = rules(small(denied4=("11.0.0.0/8",), hub=True), "out-default")
    assert order[0].endswith("goto log-denied-default")
    assert order[1].startswith("ct direction original ct state established")


def test_a_grant_that_ends_is_marked_and_ends_in_the_kernel() -> None:
    fence = small(Grant("00000001", networks4=("11.0.0.0/8",), until=2_000_000_000, mark=255))
    allowed = [rule for rule in rules(fence, "out-default") if "ct mark set 255" in rule]
    assert allowed
    assert all("meta time < 2000000000" in rule for rule in allowed)
    assert named(fence, "timed").elements == ("255 : jump timed-00000001",)
    assert rules(fence, "timed-00000001") == ["meta time >= 2000000000 goto log-expired-default"]
    for chain in ("from-guest", "to-guest"):
        assert "ct mark vmap @timed" in rules(fence, chain)
        assert "ct mark vmap @timed" not in rules(small(), chain)


@pytest.mark.parametrize("mode", ["strict", "locked"])
def test_modes_that_forward_nothing_take_no_established_connection(mode: str) -> None:
    fence = small(Grant("00000001", names=("example.org",)), mode=mode, hub=True)
    assert not [rule for rule in rules(fence, "out-default") if "accept" in rule and "established" in rule]
    assert not [one for table in expected(fence) for one in table.sets if one.name.startswith(("fleet_n", "fleet_d"))]


def test_only_the_machines_of_a_scope_get_to_its_resolver() -> None:
    chain = rules(FULL, "host-default")
    assert any("th dport 5301" in rule for rule in chain)
    assert not any("th dport 5302" in rule for rule in chain)
    assert not any(word in rule for rule in rules(FULL, "host-machine-locked-1") for word in ("accept", "3128"))
    assert named(FULL, "resolvers4").elements == (
        '"vmbr1" . 192.168.100.10 : 192.168.100.1 . 5301',
        '"vmbr2" . 192.168.101.10 : 192.168.101.1 . 5301',
        '"vmbr1" . 192.168.100.11 : 192.168.100.1 . 5302',
    )


def test_peers_must_both_want_it_and_neither_be_locked_in() -> None:
    assert named(FULL, "pairs4").elements == (
        "192.168.100.10 . 192.168.100.11",
        "192.168.100.11 . 192.168.100.10",
    )


def test_link_local_addresses_follow_from_cards() -> None:
    assert link_local("52:54:00:12:34:56") == "fe80::5054:ff:fe12:3456"
    assert link_local("02:00:00:00:00:01") == "fe80::ff:fe00:1"


def test_removal_removes_what_may_not_be_there() -> None:
    lines = removal().splitlines()
    assert len(lines) == 6
    assert {line.partition(" ")[0] for line in lines[::2]} == {"add"}
    assert {line.partition(" ")[0] for line in lines[1::2]} == {"delete"}


WRONG = [
    (FULL.evolve(bridges=(Bridge("vm*", "10.0.0.1/8"),)), "bridge: expected an interface's name .* found str 'vm\\*'"),
    (FULL.evolve(bridges=(Bridge('a"b', "10.0.0.1/8"),)), "expected an interface's name"),
    (FULL.evolve(guests=(Guest("a", "vmbr1", "52:54:00:00:00:01", "10.0.0.2", port="x" * 16),)), 'guest "a": port'),
    (FULL.evolve(guests=(Guest("a", "vmbr1", "52:54:00:00:00:GG", "10.0.0.2"),)), 'guest "a": mac: expected six bytes'),
    (FULL.evolve(scopes=(*SCOPES, Scope("x y", "open"))), "scope str 'x y': expected letters"),
]


@pytest.mark.parametrize(("fence", "words"), WRONG)
def test_words_that_nft_would_read_otherwise_are_errors(fence: Fence, words: str) -> None:
    for render in (ruleset, by_name):
        with pytest.raises(InvalidInput, match=words):
            render(fence)


def test_who_has_no_bridge_gets_no_rules_that_match_everybody() -> None:
    for table in expected(Fence(proxy=Proxy("squid"))):
        rules = [rule for chain in table.chains if chain.hook for rule in chain.rules]
        assert not [rule for rule in rules if "@" not in rule and not rule.endswith(" accept")]
