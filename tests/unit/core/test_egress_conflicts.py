# SPDX-License-Identifier: GPL-3.0-or-later
"""What gets in the way of a fence. The rules are recorded: Docker 20.10, firewalld 1.3 and ufw 0.36 made them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from tests.golden import FOLDER
from tests.unit.core.egress_examples import FENCE

from fleet_core.egress_conflicts import conflicts
from fleet_core.egress_foreign_rules import Packet, of_nft, of_save
from fleet_core.errors import InvalidInput
from fleet_core.fences import Bridge, Fence, Scope

RECORDED = FOLDER / "egress" / "conflicts"
ONE = FENCE.evolve(bridges=FENCE.bridges[:1])
CHAINS = ("input", "forward")


def recorded(name: str) -> str:
    return (RECORDED / name).read_text(encoding="utf-8")


def ruleset(*rows: dict[str, Any], base: str = "") -> str:
    before = json.loads(base)["nftables"] if base else []
    return json.dumps({"nftables": [*before, *rows]})


def rule(chain: str, *expressions: dict[str, Any], family: str = "inet", table: str = "t") -> dict[str, Any]:
    return {"rule": {"family": family, "table": table, "chain": chain, "expr": list(expressions)}}


def chain(name: str, policy: str = "accept", hook: str = "forward", **values: str) -> dict[str, Any]:
    fixed = {"family": "inet", "table": "t", "name": name, "type": "filter", "hook": hook, "prio": 0, "policy": policy}
    return {"chain": {**fixed, **values}}


def iif(name: Any, op: str = "==", key: str = "iifname") -> dict[str, Any]:
    return {"match": {"op": op, "left": {"meta": {"key": key}}, "right": name}}


ACCEPT: dict[str, Any] = {"accept": None}
DROP: dict[str, Any] = {"drop": None}
TO_X: dict[str, Any] = {"jump": {"target": "x"}}

KNOWN = [
    ("docker.json", ["Docker (table ip filter, chain FORWARD)"]),
    (
        "firewalld.json",
        [
            "firewalld (table inet firewalld, chain filter_INPUT)",
            "firewalld (table inet firewalld, chain filter_FORWARD)",
        ],
    ),
    (
        "ufw.json",
        [f"ufw (table {family} filter, chain {chain})" for family in ("ip", "ip6") for chain in ("INPUT", "FORWARD")],
    ),
    ("proxmox.json", ["the Proxmox firewall (table ip filter, chain INPUT)"]),
]


@pytest.mark.parametrize(("name", "owners"), KNOWN)
def test_rules_of_others_that_drop_are_named(name: str, owners: list[str]) -> None:
    found = conflicts(ONE, recorded(name))
    assert sorted(sentence.partition(":")[0] for sentence in found) == sorted(owners)
    assert all("vmbr1" in sentence.rpartition(", found that it drops it; ")[2] for sentence in found), found


def test_rules_of_iptables_legacy_are_read_too() -> None:
    found = conflicts(ONE, saved=[("ip", recorded("proxmox.save"))])
    assert [sentence.partition(":")[0] for sentence in found] == ["the Proxmox firewall (table ip filter, chain INPUT)"]


def test_what_the_sentence_says_helps() -> None:
    """Docker's user chain with the two rules, as iptables-nft writes them at its head."""
    rows = json.loads(recorded("docker.json"))["nftables"]
    at = next(n for n, row in enumerate(rows) if row.get("rule", {}).get("chain") == "DOCKER-USER")
    added = [
        rule("DOCKER-USER", iif("vmbr1", key=key), {"counter": {}}, ACCEPT, family="ip", table="filter")
        for key in ("iifname", "oifname")
    ]
    assert conflicts(ONE, ruleset(*rows[:at], *added, *rows[at:])) == []
    assert conflicts(ONE, ruleset(*rows[:at], added[0], *rows[at:])) != []


@pytest.mark.parametrize("name", ["firewalld-trusted.json", "ufw-allowed.json"])
def test_what_the_sentence_says_helps_with_others_too(name: str) -> None:
    """After the commands of the sentence, run with the real firewalld and ufw."""
    assert conflicts(ONE, recorded(name)) == []


def test_rules_of_iptables_legacy_can_help_too() -> None:
    text = recorded("proxmox.save").replace(
        "-A INPUT -j PVEFW-INPUT", "-A INPUT -i vmbr+ -j ACCEPT\n-A INPUT -j PVEFW-INPUT"
    )
    assert conflicts(ONE, saved=[("ip", text)]) == []


def test_what_our_own_rules_of_iptables_accept_first_is_in_nobodys_way() -> None:
    rules = "*filter\n:FORWARD DROP [0:0]\n{}\nCOMMIT\n"
    others, ours = "-A FORWARD -i vmbr1 -j DROP", "-A FORWARD -j FLEET-JUDGED"
    assert conflicts(ONE, saved=[("ip", rules.format(f"{ours}\n{others}"))]) == []
    assert conflicts(ONE, saved=[("ip", rules.format(f"{others}\n{ours}"))]) != []


QUIET = [
    ("nothing", ruleset()),
    ("a policy of accept", ruleset(chain("f"), rule("f", iif("eth0"), DROP))),
    ("our own", ruleset(chain("f", "drop", table="fleet_egress"))),
    ("what is not read", ruleset(chain("f"), rule("f", {"xt": {"type": "match", "name": "mark"}}, DROP))),
    ("a rate", ruleset(chain("f"), rule("f", {"limit": {"rate": 1, "per": "second"}}, DROP))),
    ("another interface", ruleset(chain("f", "drop"), rule("f", iif("eth*", "!="), ACCEPT))),
    (
        "a set of bridges",
        ruleset(
            chain("f", "drop"),
            rule("f", iif({"set": ["a", "vmbr1"]}), ACCEPT),
            rule("f", iif("vmbr1", key="oif"), ACCEPT),
        ),
    ),
    (
        "a map",
        ruleset(
            chain("f", "drop"),
            chain("x", hook="none"),
            rule("x", ACCEPT),
            rule("f", {"vmap": {"key": {"meta": {"key": "iif"}}, "data": {"set": [["vmbr1", TO_X]]}}}),
            rule("f", iif("vmbr1", key="oif"), ACCEPT),
        ),
    ),
]


@pytest.mark.parametrize("rules", [rules for _name, rules in QUIET], ids=[name for name, _rules in QUIET])
def test_rules_that_are_in_nobodys_way_are_not_named(rules: str) -> None:
    assert conflicts(ONE, rules) == []


def test_answers_must_come_back_too() -> None:
    rules = ruleset(chain("f", "drop"), rule("f", iif("vmbr1"), ACCEPT))
    (sentence,) = conflicts(ONE, rules)
    assert sentence == (
        "somebody's rules (table inet t, chain f): expected to let pass what machines of vmbr1 are allowed to reach, "
        "found that it drops it; accept there what comes in or goes out by vmbr1"
    )
    states = {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["established", "related"]}}
    back = rule("f", states, ACCEPT)
    assert conflicts(ONE, ruleset(back, base=rules)) == []


def test_forwarding_matters_only_to_who_forwards() -> None:
    rules = ruleset(chain("f", "drop"))
    assert conflicts(ONE.evolve(scopes=(Scope("default", "strict"), Scope("project-open", "locked"))), rules) == []
    assert conflicts(ONE.evolve(scopes=(Scope("default", "strict", hub=True),)), rules) != []


def test_the_host_must_answer_what_the_fence_lets_machines_ask() -> None:
    fence = Fence((Bridge("vmbr1", "10.8.0.1/24"),), (), (Scope("default", "allowlist", resolver_port=5301),))

    def port(number: int, protocol: str = "udp") -> dict[str, Any]:
        return {"match": {"op": "==", "left": {"payload": {"protocol": protocol, "field": "dport"}}, "right": number}}

    rows = [chain("i", "drop", "input"), rule("i", port(5301), ACCEPT)]
    assert conflicts(fence, ruleset(*rows)) != []
    assert conflicts(fence, ruleset(*rows, rule("i", port(67), ACCEPT))) == []
    assert conflicts(fence.evolve(bridges=(Bridge("vmbr1", "10.8.0.1/24", dhcp=False),)), ruleset(*rows)) == []


def test_rules_of_a_family_that_bridges_do_not_speak_do_not_matter() -> None:
    fence = ONE.evolve(bridges=(Bridge("vmbr1", "192.168.100.1/24"),))
    assert conflicts(fence, ruleset(chain("f", "drop", family="ip6"))) == []
    assert conflicts(ONE, ruleset(chain("f", "drop", family="ip6"))) != []


def test_connections_that_go_round_all_rules_are_named() -> None:
    (sentence,) = conflicts(ONE, ruleset(chain("f"), rule("f", {"flow": {"op": "add", "flowtable": "@fast"}})))
    assert sentence.startswith(
        "flowtable of the table inet t: expected none, found rules that let connections go round"
    )


def test_machines_without_a_port_need_a_kernel_that_knows_bridges() -> None:
    ours = {"table": {"family": "bridge", "name": "fleet_egress"}}
    by_name = {"table": {"family": "bridge", "name": "fleet_egress_bridges"}}
    (sentence,) = conflicts(ONE, ruleset(ours))
    assert sentence.startswith(
        "machines web-1, web-2, open-1, strict-1, locked-1: expected their ports in the policy, or"
    )
    assert conflicts(ONE, ruleset(ours, by_name)) == []
    held = ONE.evolve(guests=tuple(replace(guest, port=f"tap-{guest.name}") for guest in ONE.guests))
    assert conflicts(held, ruleset(ours)) == []


def test_ports_that_lead_out_and_switches_are_named() -> None:
    switches = {"bridge-nf-call-iptables": "1\n", "bridge-nf-call-ip6tables": "0\n"}
    found = conflicts(ONE, uplinks={"vmbr1": ("eth0", "bond0.5"), "other": ("eth1",)}, switches=switches)
    ports, switch = found
    assert ports.startswith("bridge vmbr1: expected the ports of machines alone, found eth0, bond0.5: what comes from")
    assert switch.startswith("net.bridge.bridge-nf-call-iptables: expected 0, found 1: IPv4 frames between the ports")


def test_the_firewall_of_proxmox_may_have_its_switches() -> None:
    found = conflicts(ONE, recorded("proxmox.json"), switches={"bridge-nf-call-iptables": "1\n"})
    assert [sentence.partition(":")[0] for sentence in found] == ["the Proxmox firewall (table ip filter, chain INPUT)"]


def test_jumps_that_never_end_end() -> None:
    rows = [chain("f"), rule("f", {"jump": {"target": "f"}}), rule("f", DROP)]
    (base,) = of_nft(ruleset(*rows))
    assert base.verdict(Packet("vmbr1")) == "drop"


SAVED = [
    ("-A FORWARD ! -i eth0 -j DROP", "drop"),
    ("-A FORWARD -i eth0 -j DROP", "accept"),
    ("-A FORWARD -p tcp -m tcp --dport 20:30 -j REJECT --reject-with tcp-reset", "drop"),
    ("-A FORWARD -p tcp -m tcp --dport 23 -j DROP", "accept"),
    ("-A FORWARD -m mark --mark 0x1 -j DROP", "accept"),
    ("-A FORWARD -j LOG\n-A FORWARD -g OTHER\n-A OTHER -m comment --comment \"a b\" -j DROP", "drop"),
    ("-A FORWARD -m conntrack ! --ctstate ESTABLISHED,RELATED -j DROP", "drop"),
    ("-A FORWARD -s 10.0.0.0/8 -j DROP", "accept"),
    ("-A FORWARD -m addrtype --dst-type LOCAL -j RETURN\n-A FORWARD -j DROP", "drop"),
    ("-A FORWARD -m addrtype ! --dst-type LOCAL -j RETURN\n-A FORWARD -j DROP", "accept"),
]  # fmt: skip


@pytest.mark.parametrize(("lines", "verdict"), SAVED)
def test_rules_of_iptables_save_mean_what_they_mean(lines: str, verdict: str) -> None:
    (base,) = of_save(
        f"*nat\n:INPUT DROP [0:0]\nCOMMIT\n*filter\n:FORWARD ACCEPT [0:0]\n:OTHER - [0:0]\n{lines}\nCOMMIT\n", "ip"
    )
    assert base.verdict(Packet("vmbr1", "eth0", "new", "tcp", 22)) == verdict


@pytest.mark.parametrize("text", ["{", "[]", '{"nftables": 3}', '{"nftables": [3]}'])
def test_what_is_no_list_of_rules_is_an_error(text: str) -> None:
    with pytest.raises(InvalidInput, match="expected what `nft -j list ruleset` shows"):
        conflicts(ONE, text)
