# SPDX-License-Identifier: GPL-3.0-or-later
"""What dnsmasq is told: for each mode, each backend, each version; and which dnsmasq will do."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from tests.golden import check_golden
from tests.unit.core.egress_examples import API, FENCE, SCOPES, WEB

from fleet_core import egress_dns
from fleet_core.egress_dns import Build, build, dhcp, require, resolver
from fleet_core.errors import InvalidInput, Unavailable
from fleet_core.fences import Grant, Scope, name_set

VERSION = """Dnsmasq version {version}  Copyright (c) 2000-2024 Simon Kelley
Compile time options: IPv6 GNU-getopt DBus no-UBus i18n IDN2 DHCP DHCPv6 no-Lua TFTP conntrack {options} auth
"""


def lines(scope: Scope, backend: str = "nftables", found: Build = egress_dns.DEBIAN_12) -> list[str]:
    return resolver(FENCE.evolve(scopes=(scope,)), scope, backend, "/var/log/dns.log", found).splitlines()


@pytest.mark.parametrize("scope", SCOPES[:3], ids=lambda scope: scope.name)
def test_the_configuration_of_a_scope_is_known(scope: Scope) -> None:
    check_golden(f"egress/dns-{scope.name}.conf", resolver(FENCE, scope, "nftables", "/var/lib/x/dns.log"))


def test_the_configuration_of_an_old_dnsmasq_with_ipset_is_known() -> None:
    text = resolver(FENCE, SCOPES[0], "iptables", "/var/lib/x/dns.log", Build((2, 80), frozenset({"ipset"})))
    check_golden("egress/dns-default-2.80.conf", text)


@pytest.mark.parametrize("bridge", FENCE.bridges, ids=lambda bridge: bridge.name)
def test_the_configuration_of_dhcp_is_known(bridge: object) -> None:
    check_golden(f"egress/dhcp-{bridge.name}.conf", dhcp(FENCE, bridge, "/var/lib/x/leases"))  # type: ignore[attr-defined,arg-type]


def test_a_scope_without_a_resolver_has_no_configuration() -> None:
    with pytest.raises(InvalidInput, match='scope "machine-locked-1": expected the port of a resolver, found none'):
        lines(SCOPES[3])


def test_only_allowed_names_have_servers() -> None:
    servers = [line for line in lines(SCOPES[0]) if line.startswith("server=")]
    assert "server=/example.org/10.0.1.1" in servers
    assert "server=/example.org/10.0.1.2#5353" in servers
    assert not [line for line in servers if line.startswith("server=1")]  # none for all names


def test_what_is_denied_within_an_allowed_name_has_no_server() -> None:
    assert "server=/bad.example.org/#" in lines(SCOPES[0])
    assert not [line for line in lines(SCOPES[0]) if "evil.net" in line]  # denied, and not within one


def test_an_allowed_name_below_a_denied_one_stays_closed() -> None:
    scope = replace(SCOPES[0], denied_names=("example.org",))
    assert not [line for line in lines(scope) if "example.org" in line]


def test_a_strict_scope_knows_the_hub_only() -> None:
    found = lines(SCOPES[2])
    assert "host-record=hub.fleet,10.0.1.20" in found
    assert not [line for line in found if line.startswith(("server=", "nftset=", "ipset="))]


def test_a_scope_without_the_hub_does_not_know_its_name() -> None:
    assert not [line for line in lines(SCOPES[1]) if "hub.fleet" in line]


def test_an_open_scope_asks_for_all_names_but_those_of_other_resolvers() -> None:
    found = lines(SCOPES[1])
    assert "server=10.0.1.1" in found
    assert {"local=/dns.google/", "local=/use-application-dns.net/", "local=/bad.example.org/"} <= set(found)


def test_a_granted_resolver_is_answered_in_an_open_scope() -> None:
    scope = replace(SCOPES[1], grants=(replace(WEB, names=("dns.google",)),))
    assert "local=/dns.google/" not in lines(scope)


def test_a_name_feeds_the_sets_of_all_grants_that_cover_it() -> None:
    line = next(line for line in lines(SCOPES[0]) if line.startswith("nftset=/api.example.org/"))
    for grant, name in ((WEB, "example.org"), (API, "api.example.org")):
        for family in (4, 6):
            assert f"{family}#inet#fleet_egress#{grant.set_name(family)}" in line
            assert f"{family}#inet#fleet_egress#{name_set(grant, name, family)}" in line


def test_ipset_is_told_plain_names_of_sets() -> None:
    line = next(line for line in lines(SCOPES[0], "iptables") if line.startswith("ipset=/other.net/"))
    assert line.partition("/other.net/")[2].split(",")[:2] == [WEB.set_name(4), WEB.set_name(6)]


def test_ten_thousand_names_are_written_in_a_moment() -> None:
    names = tuple(f"n{number}.example.org" for number in range(10_000))
    began = time.monotonic()
    found = lines(replace(SCOPES[0], grants=(replace(WEB, names=names),), denied_names=names[:100]))
    assert time.monotonic() - began < 10  # what is quadratic takes minutes
    assert len([line for line in found if line.startswith("nftset=")]) == 9_900


def test_no_line_is_longer_than_dnsmasq_reads() -> None:
    name = ".".join(["x" * 60] * 4)
    grants = tuple(Grant(f"{number:08x}", (name,), until=number) for number in range(8))
    scope = replace(SCOPES[0], grants=grants)
    found = lines(scope)
    assert max(map(len, found)) <= 1000
    line = next(line for line in found if line.startswith("nftset="))
    assert all(grant.set_name(family) in line for grant in grants for family in (4, 6))
    # Of those that end by themselves, what one name led to may be left out; never of the one that stays.
    assert name_set(grants[0], name, 4) in line


def test_a_name_in_more_grants_than_a_line_holds_is_an_error() -> None:
    grants = tuple(Grant(f"{number:08x}", ("x.example.org",)) for number in range(40))
    with pytest.raises(
        InvalidInput, match=r'name "x\.example\.org" of scope "default": found in too many grants \(40\)'
    ):
        lines(replace(SCOPES[0], grants=grants))


def test_names_must_not_lead_to_special_networks_but_to_granted_ones() -> None:
    found = lines(SCOPES[0])
    assert {"bogus-nxdomain=127.0.0.0/8", "bogus-nxdomain=fe80::/9", "bogus-nxdomain=10.8.0.0/16"} <= set(found)
    assert "bogus-nxdomain=10.9.0.0/16" not in found
    assert "bogus-nxdomain=10.0.0.0/8" not in found


@pytest.mark.parametrize(
    ("version", "there", "missing"),
    [
        ((2, 80), "stop-dns-rebind", "bogus-nxdomain=127.0.0.0/8"),
        ((2, 86), "stop-dns-rebind", "bogus-nxdomain=127.0.0.0/8"),
        ((2, 87), "bogus-nxdomain=127.0.0.0/8", "filter-rr=TXT,NULL,HTTPS,SVCB,ANY"),
        ((2, 90), "filter-rr=TXT,NULL,HTTPS,SVCB,ANY", "stop-dns-rebind"),
        ((2, 91), "filter-rr=TXT,NULL,HTTPS,SVCB,ANY", "stop-dns-rebind"),
    ],
)
def test_old_versions_are_told_what_they_understand(version: tuple[int, int], there: str, missing: str) -> None:
    found = lines(SCOPES[0], "iptables", Build(version))
    assert there in found
    assert missing not in found


def test_the_version_and_its_options_are_read() -> None:
    found = build(VERSION.format(version="2.90", options="ipset nftset"))
    assert found.version == (2, 90)
    assert {"ipset", "nftset"} <= found.options
    assert build(VERSION.format(version="2.80-1", options="ipset")).version == (2, 80)


def test_another_program_is_no_dnsmasq() -> None:
    with pytest.raises(Unavailable, match=r'dnsmasq: expected "Dnsmasq version 2\.NN" .*, found "BusyBox v1\.35"'):
        build("BusyBox v1.35\nUsage: ...\n")


@pytest.mark.parametrize(
    ("backend", "version", "options", "message"),
    [
        ("nftables", "2.86", "ipset no-nftset", "needs version 2.87 or newer, found 2.86; the backend iptables works"),
        ("nftables", "2.90", "ipset no-nftset", "dnsmasq 2.90: the backend nftables needs it compiled with nftset"),
        ("iptables", "2.79", "ipset", "needs version 2.80 or newer, found 2.79"),
        ("iptables", "2.90", "no-ipset nftset", "dnsmasq 2.90: the backend iptables needs it compiled with ipset"),
    ],
)
def test_a_dnsmasq_that_cannot_feed_the_sets_is_refused(backend: str, version: str, options: str, message: str) -> None:
    with pytest.raises(Unavailable) as caught:
        require(build(VERSION.format(version=version, options=options)), backend)
    assert message in caught.value.message


def test_a_dnsmasq_that_can_is_taken() -> None:
    require(build(VERSION.format(version="2.87", options="ipset nftset")), "nftables")
    require(build(VERSION.format(version="2.80", options="ipset")), "iptables")
