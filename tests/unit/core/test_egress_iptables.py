# SPDX-License-Identifier: GPL-3.0-or-later
"""From a fence to the texts of iptables-restore, ipset restore and, for frames, nft."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from tests.golden import check_golden
from tests.unit.core.egress_examples import FENCE

from fleet_core import egress_frames, egress_ipsets, egress_iptables, egress_nftables_bridge
from fleet_core.egress_ipsets import AddressSet, address_sets, circles, ipsets, without_metadata
from fleet_core.egress_iptables import chain_sizes, fingerprint, restore
from fleet_core.egress_iptables_scopes import ends, port_matches
from fleet_core.errors import InvalidInput
from fleet_core.fences import METADATA4, Bridge, Fence, Grant, Guest, Scope

GUESTS = tuple(
    Guest(name, "vmbr1", f"52:54:00:00:00:0{number}", f"192.168.100.1{number}", f"fd00:100::1{number}", peers=peers)
    for number, (name, peers) in enumerate(
        {"a": ("b", "c"), "b": ("a", "c"), "c": ("a", "b"), "d": ("a",), "e": ("c", "f"), "f": ("e",)}.items()
    )
)


def small(*grants: Grant, **values: object) -> Fence:
    """A fence of one guest in a scope of these grants."""
    scope = Scope("default", "allowlist", grants, **values)  # type: ignore[arg-type]
    return Fence((Bridge("vmbr1", "192.168.100.1/24", "fd00:100::1/64"),), GUESTS[:1], (scope,))


@pytest.mark.parametrize("family", [4, 6])
def test_rules_as_iptables_restore_reads_them(family: int) -> None:
    check_golden(f"egress/rules.ip{'6' if family == 6 else ''}tables", restore(FENCE, family))


def test_sets_as_ipset_restore_reads_them() -> None:
    check_golden("egress/sets.ipset", ipsets(FENCE))


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("fence", [FENCE, Fence(), FENCE.evolve(log_rate=0)], ids=["full", "empty", "silent"])
def test_every_chain_that_is_jumped_to_is_declared_and_every_set_is_made(fence: Fence, family: int) -> None:
    text = restore(fence, family)
    declared = set(re.findall(r"^:(\S+) ", text, re.MULTILINE))
    jumped = set(re.findall(r"-[jg] (FLEET-\S+)", text))
    assert jumped <= declared
    entered = {chain for chains in egress_iptables.JUMPS.values() for chain in chains.values()}
    assert not fence.bridges or declared - jumped <= entered
    made = {one.name for one in address_sets(fence)}
    assert set(re.findall(r"--match-set (\S+)", text)) <= made
    assert all(len(name) <= 31 for name in made)
    assert all(len(chain) <= 28 for chain in declared)
    assert text.count("COMMIT") == 3
    assert ("NFLOG" in text) == bool(fence.log_rate)


def test_names_are_as_long_as_iptables_takes_them() -> None:
    bridge = Bridge("b" * 15, "192.168.100.1/24")
    scope = Scope("machine-" + "m" * 63, "allowlist", (Grant("aaaaaaaa", ("x.example",)),))
    guest = Guest("m", bridge.name, "52:54:00:00:00:01", "192.168.100.9", scope=scope.name)
    text = restore(Fence((bridge,), (guest,), (scope,)), 4)
    assert all(len(chain) <= 28 for chain in re.findall(r"^:(\S+) ", text, re.MULTILINE))
    prefixes = re.findall(r'--nflog-prefix "([^"]*)"', text)
    assert all(len(prefix) <= 63 and prefix.endswith(" ") for prefix in prefixes)


PORTS = [
    ((), [""]),
    (((443, 443),), [" --dport 443"]),
    (((8000, 8100),), [" --dport 8000:8100"]),
    (((80, 80), (443, 443)), [" -m multiport --dports 80,443"]),
    (
        tuple((n, n + 1) for n in range(0, 24, 3)),  # fifteen in a match, where a range counts twice
        [" -m multiport --dports 0:1,3:4,6:7,9:10,12:13,15:16,18:19", " -m multiport --dports 21:22"],
    ),
]


@pytest.mark.parametrize(("ports", "expected"), PORTS)
def test_ports_are_matched_with_as_few_rules_as_there_can_be(
    ports: tuple[tuple[int, int], ...], expected: list[str]
) -> None:
    assert port_matches(ports) == expected


GRANTS = [
    ("tcp", (), "-p tcp -m set --match-set fleet_a00000001_4 dst"),
    ("udp", ((443, 443),), "-p udp --dport 443 -m set --match-set fleet_a00000001_4 dst"),
    ("icmp", (), "-p icmp --icmp-type 8 -m set --match-set fleet_a00000001_4 dst"),
    ("any", (), "-m set --match-set fleet_a00000001_4 dst"),
    ("any", ((5, 6),), "-p udp --dport 5:6 -m set --match-set fleet_a00000001_4 dst"),
]


@pytest.mark.parametrize(("protocol", "ports", "expected"), GRANTS)
def test_a_grant_matches_its_protocol_and_ports(
    protocol: str, ports: tuple[tuple[int, int], ...], expected: str
) -> None:
    grant = Grant("00000001", networks4=("11.0.0.0/8",), protocol=protocol, ports=ports)
    rules = [line for line in restore(small(grant), 4).splitlines() if "fleet_a00000001" in line]
    assert any(rule.endswith(f" {expected} -g FLEET-ALLOW") for rule in rules), rules


def test_a_grant_that_ends_is_marked_and_ends_in_the_kernel() -> None:
    grant = Grant("00000001", networks4=("11.0.0.0/8",), until=2_000_000_000, mark=255)
    rules = [line for line in restore(small(grant), 4).splitlines() if "0xff" in line]
    ending = "-m time --datestop 2033-05-18T03:33:19"
    assert any(rule.endswith(f"{ending} -j CONNMARK --set-mark 0xff") for rule in rules)
    assert sum("-m connmark --mark 0xff -m time --datestart 2033-05-18T03:33:20" in rule for rule in rules) == 2


def test_an_end_that_iptables_cannot_say_is_the_last_one_that_it_can() -> None:
    assert ends(1_000_000_000) == "2001-09-09T01:46:40"
    assert ends(253402300799) == "2038-01-19T03:14:06"


CLOUDS = tuple(f"{network} nomatch" for network in METADATA4)
NETWORKS = [
    (("0.0.0.0/0",), ("0.0.0.0/1", "128.0.0.0/1", *CLOUDS)),
    (("169.0.0.0/8", "169.254.169.254/32"), ("169.0.0.0/8", "169.254.169.254/32", "169.254.0.0/16 nomatch")),
    (("169.254.0.0/16",), ("169.254.0.0/16",)),
    (("169.254.169.254/32",), ("169.254.169.254/32",)),
    (("11.0.0.0/8", "11.0.0.0/8"), ("11.0.0.0/8",)),
]


@pytest.mark.parametrize(("networks", "elements"), NETWORKS)
def test_only_a_network_as_small_as_metadata_opens_it(networks: tuple[str, ...], elements: tuple[str, ...]) -> None:
    grant = Grant("00000001", networks4=networks)
    made = {one.name: one.elements for one in address_sets(small(grant))}
    assert made[grant.fixed_set_name(4)] == elements


def test_metadata_of_ipv6_stays_closed_in_a_network_around_it() -> None:
    assert without_metadata(["fd00::/8"], 6) == ("fd00:ec2::/32", "fd20:ce::254/128")
    assert without_metadata(["::/0"], 6) == ("fd00:ec2::/32", "fd20:ce::254/128", "fe80::/10")


def test_machines_that_all_talk_to_each_other_share_a_rule() -> None:
    fence = Fence((Bridge("vmbr1", "192.168.100.1/24"),), GUESTS, (Scope("default", "allowlist"),))
    found = [(circle.speakers, circle.listeners) for circle in circles(fence, 4)]
    trio, pair = ("192.168.100.10", "192.168.100.11", "192.168.100.12"), ("192.168.100.14", "192.168.100.15")
    assert found == [(trio, trio), (pair, pair)]  # what only one of two wants is not there


def test_who_is_locked_in_has_no_peers() -> None:
    assert circles(Fence((Bridge("vmbr1", "192.168.100.1/24"),), GUESTS, (Scope("default", "locked"),)), 4) == ()


def test_learned_sets_are_made_and_never_touched() -> None:
    text = ipsets(FENCE)
    for one in address_sets(FENCE):
        lines = [line for line in text.splitlines() if f" {one.name} " in f"{line} "]
        verbs = {line.partition(" ")[0] for line in lines}
        assert verbs == ({"create"} if one.learned else {"create", "add"} if one.counted else {"create", "swap"})
        assert all(line.endswith(" -exist") for line in lines if line.startswith("create"))


def test_a_set_is_filled_beside_and_swapped_in() -> None:
    one = AddressSet("fleet_x", "hash:ip family inet", ("192.0.2.1",))
    beside = f"fleet_t{egress_ipsets.digits(one.options)}"
    assert egress_ipsets.lines_of(one) == [
        "create fleet_x hash:ip family inet -exist",
        f"create {beside} hash:ip family inet -exist",
        f"flush {beside}",
        f"add {beside} 192.0.2.1",
        f"swap {beside} fleet_x",
        f"destroy {beside}",
    ]


def test_the_fingerprint_is_of_all_rules_of_a_family() -> None:
    first, other = restore(FENCE, 4), restore(FENCE.evolve(log_rate=11), 4)
    assert fingerprint(first) != fingerprint(other)
    assert fingerprint(first) == fingerprint(restore(replace(FENCE), 4)) != ""
    assert fingerprint("*filter\nCOMMIT\n") == ""


def test_sizes_of_chains_are_read_alike_from_what_is_loaded_and_from_what_is_saved() -> None:
    saved = (
        "# by iptables-save\n*nat\n:PREROUTING ACCEPT [0:0]\n:FLEET-DNS - [0:0]\n-A PREROUTING -j FLEET-DNS\nCOMMIT\n"
    )
    assert chain_sizes(saved) == {"nat": {"FLEET-DNS": 0}}
    sizes = chain_sizes(restore(FENCE, 4))
    assert set(sizes) == {"filter", "nat", "mangle"}
    assert sizes["mangle"]["FLEET-ALLOW"] == 2


@pytest.mark.parametrize("name", ["vmbr+", "a b", "x" * 16, '"', "*"])
def test_names_that_the_tools_read_as_more_than_one_interface_are_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match="bridge: expected an interface's name"):
        restore(Fence((Bridge(name, "192.168.100.1/24"),)), 4)


def test_frames_have_tables_of_their_own_beside_those_of_nftables() -> None:
    text = egress_frames.ruleset(FENCE) + egress_frames.strangers(FENCE) + egress_frames.removal()
    assert {" ".join(found) for found in re.findall(r"table (bridge|inet) (\w+)", text)} == {
        egress_frames.TABLE,
        egress_frames.BY_NAME,
    }


def test_frames_stand_only_with_all_their_rules() -> None:
    assert not egress_frames.stand(FENCE, json.dumps({"nftables": []}))
    counters = {"nftables": [{"metainfo": {}}, {"counter": {"packets": 3, "bytes": 180}}]}
    assert list(egress_frames.counted(json.dumps(counters))) == [(3, 180)]


def test_what_the_bridge_has_marked_for_no_guest_goes_nowhere() -> None:
    known = tuple(replace(guest, port=f"tap{guest.name}") for guest in GUESTS)
    bridges, scopes = (Bridge("vmbr1", "192.168.100.1/24"),), (Scope("default", "allowlist"),)
    arrival = "-A FLEET-ARRIVAL -i vmbr1 -m mark ! --mark 0x20000000/0x20000000"
    assert f"{arrival} -g FLEET-SPOOF\n" in restore(Fence(bridges, known, scopes), 4)
    some = Fence(bridges, (*known[1:], GUESTS[0]), scopes)
    assert f"{arrival} -g FLEET-SPOOF\n" in restore(some, 4)
    assert "ether saddr @macs meta mark set meta mark or 0x20000000 goto from-mac" in egress_frames.ruleset(some)


def test_the_mark_of_the_bridge_is_the_one_that_is_looked_for() -> None:
    text = egress_frames.ruleset(FENCE)
    assert f"meta mark set meta mark or {egress_frames.HELD} " in text
    assert egress_nftables_bridge.HELD not in text


def test_what_is_denied_is_never_accepted_by_rules_further_down() -> None:
    """Packets are dropped, marked or allowed in mangle; filter refuses what is marked before it accepts the rest."""
    text = restore(FENCE, 4)
    judged = [line for line in text.splitlines() if line.startswith("-A FLEET-JUDGED")]
    assert judged[0] == "-A FLEET-JUDGED -m mark --mark 0x40000000/0x40000000 -g FLEET-REFUSED"
    assert "-A FLEET-DENY -j MARK --set-xmark 0x40000000/0x40000000\n-A FLEET-DENY -j ACCEPT\n" in text
    assert "-A FLEET-LEAVING -m mark --mark 0x40000000/0x40000000 -j DROP\n" in text
    assert "REJECT" not in text.partition("*mangle\n")[2].partition("COMMIT")[0]
