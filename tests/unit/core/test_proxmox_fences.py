# SPDX-License-Identifier: GPL-3.0-or-later
"""A fence in the words of Proxmox VE's firewall: what each mode opens, and what an IP set may hold."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from fleet_core.errors import InvalidInput
from fleet_core.fences import Bridge, Fence, Grant, Guest, Hub, Proxy, Scope
from fleet_core.proxmox_fences import GATEWAYS, INTERNET, Card, Guarded, Outline, check, group_name, outline

BRIDGE = Bridge("vmbr1", "192.168.100.1/24", "fd00:100::1/64")
WEB = Guest("web-1", "vmbr1", "52:54:00:00:00:01", "192.168.100.10", scope="default")


def made(scope: Scope, exact: bool = True, **values: Any) -> Outline:
    return outline(Fence((BRIDGE,), (WEB,), (scope,), **values), exact=exact)


def rules(scope: Scope, exact: bool = True, **values: Any) -> set[str]:
    return {str(rule) for rule in made(scope, exact, **values).groups[group_name(scope.name)]}


def test_locked_opens_nothing_but_to_be_spoken_to_by_the_gateway() -> None:
    hub, proxy = Hub("hub.fleet", ("10.0.1.20",), (8000,)), Proxy("squid")
    assert rules(Scope("default", "locked", hub=True), hub=hub, proxy=proxy) == {f"in ACCEPT source +dc/{GATEWAYS}"}


def test_strict_opens_the_proxy_and_the_hub_and_no_grant() -> None:
    grant = Grant("aa", names=("example.org",), ports=((443, 443),))
    hub = Hub("hub.fleet", ("10.0.1.20", "fd00:1::20"), (8000, 8001))
    found = rules(Scope("default", "strict", (grant,), hub=True), hub=hub, proxy=Proxy("squid", 3129))
    assert {rule for rule in found if "dport" in rule and not rule.endswith("dport 53")} == {
        f"out ACCEPT tcp dest +dc/{GATEWAYS} dport 3129",
        "out ACCEPT tcp dest 10.0.1.20 dport 8000,8001",
        "out ACCEPT tcp dest fd00:1::20 dport 8000,8001",
    }


def test_open_leaves_out_dns_elsewhere_dns_over_tls_and_quic() -> None:
    found = rules(Scope("default", "open"))
    assert f"out ACCEPT tcp dest +dc/{INTERNET} dport 1:52,54:852,854:65535" in found
    assert f"out ACCEPT udp dest +dc/{INTERNET} dport 1:52,54:442,444:852,854:65535" in found
    assert f"out ACCEPT icmp echo-request dest +dc/{INTERNET}" in found


@pytest.mark.parametrize("exact", [True, False])
def test_quic_and_ping_are_open_where_a_grant_names_them(exact: bool) -> None:
    grants = (
        Grant("aa", names=("example.org",), protocol="udp", ports=((443, 443),)),
        Grant("bb", networks4=("192.0.2.0/24",), protocol="icmp"),
    )
    found = rules(Scope("default", "allowlist", grants), exact)
    assert f"out ACCEPT udp dest +dc/{INTERNET} dport 443" in found
    assert "out ACCEPT icmp echo-request dest +dc/fleet-to-bb" in found


def test_many_ports_are_several_rules_of_at_most_fifteen_numbers() -> None:
    ports = (*((port, port + 1) for port in range(1000, 1040, 4)), (22, 22))
    scope = Scope("default", "allowlist", (Grant("aa", ("a.org",), ports=ports),))
    found = [rule for rule in rules(scope) if INTERNET in rule]
    texts = [rule.rpartition("dport ")[2] for rule in found]
    assert sorted(len(text.replace(":", ",").split(",")) for text in texts) == [7, 14]


def test_what_is_denied_is_cut_out_of_what_grants_and_names_open() -> None:
    grant = Grant("aa", ("a.org",), ("198.51.0.0/16",), ("2001:db9::/32",), ports=((443, 443),))
    scope = Scope("default", "allowlist", (grant,), denied4=("198.51.100.0/24",), denied6=("2001:db9:1::/48",))
    sets = made(scope).sets
    opened = [ipaddress.ip_network(entry) for entry in sets["fleet-to-aa"]]
    assert not any(ipaddress.ip_address("198.51.100.7") in network for network in opened)
    assert any(ipaddress.ip_address("198.51.101.7") in network for network in opened)
    assert not any(ipaddress.ip_address("2001:db9:1::1") in network for network in opened)
    (internet,) = [entries for name, entries in sets.items() if name.startswith("fleet-net-")]
    assert internet["198.51.100.0/24"] is True
    assert INTERNET not in sets  # nobody uses it


def test_no_entry_of_a_set_is_all_there_is() -> None:
    grant = Grant("aa", networks4=("0.0.0.0/0",), networks6=("::/0",), protocol="any")
    for entries in made(Scope("default", "allowlist", (grant,))).sets.values():
        assert not any(entry.endswith("/0") for entry in entries)
        assert all("/" not in entry or ipaddress.ip_network(entry).prefixlen > 0 for entry in entries)


def test_names_fit_what_proxmox_takes() -> None:
    scope = Scope("project-" + "x" * 60, "allowlist", (Grant("0a0a0a0a", ("a.org",)),), denied4=("192.0.2.0/24",))
    found = made(scope)
    assert all(len(name) <= 18 for name in found.groups)
    assert all(len(name) <= 64 for name in found.sets)


def test_a_machine_with_cards_on_two_bridges_is_one_guest_with_two_bound_cards() -> None:
    far = Bridge("vmbr2", "192.168.101.1/24", dhcp=False)
    second = Guest("web-1", "vmbr2", "52:54:00:00:00:02", "192.168.101.10", scope="default", peers=("db-1",))
    other = Guest("db-1", "vmbr2", "52:54:00:00:00:03", "192.168.101.11", scope="default", peers=("web-1",))
    guests = outline(Fence((BRIDGE, far), (WEB, second, other), (Scope("default", "allowlist"),))).guests
    found = guests["web-1"]
    assert found.cards == (Card(WEB.mac, ("192.168.100.10",)), Card(second.mac, ("192.168.101.10",)))
    assert (found.peers, found.dhcp, guests["db-1"].dhcp) == (("192.168.101.11",), True, False)
    assert [str(rule) for rule in found.rules({WEB.mac: 1, second.mac: 0})][:2] == [
        f"group {group_name('default')} net1",
        f"group {group_name('default')} net0",
    ]


def test_the_digest_tells_what_a_guest_is_given_and_which_guest_it_is() -> None:
    one = Guarded("web-1", "fleet-0a", (Card("52:54:00:00:00:01", ("192.168.100.10",)),))
    same = Guarded("web-1", "fleet-0a", (Card("52:54:00:00:00:01", ("192.168.100.10",)),))
    others = [Guarded("web-1", "fleet-0b", one.cards), Guarded("web-1", "fleet-0a", one.cards, ("192.168.100.11",))]
    assert one.digest(120) == same.digest(120)
    assert len({one.digest(120), one.digest(121), *(other.digest(120) for other in others)}) == 4


def test_a_card_without_an_address_is_refused() -> None:
    bare = outline(Fence((BRIDGE,), (Guest("web-1", "vmbr1", "52:54:00:00:00:01"),), (Scope("default", "allowlist"),)))
    with pytest.raises(InvalidInput, match='machine "web-1": card 52:54:00:00:00:01: expected an address'):
        check(bare)
