# SPDX-License-Identifier: GPL-3.0-or-later
"""The egress document: what is taken, what is refused and with which words."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_core.egress import BACKENDS, KEYS, MODES, POLICY_KEYS, Declaration, Policy, parse, policy, to_dict
from fleet_core.egress_entries import Entry
from fleet_core.errors import FleetError, InvalidInput
from fleet_core.fences import SPECIAL4, SPECIAL6, Bridge, Guest, Hub, Proxy

MAC = "52:54:00:00:00:01"
FULL: dict[str, Any] = {
    "backend": "iptables",
    "networks": [
        {"name": "vmbr1", "address": "192.168.100.1/24", "address6": "fd00:100::1/64"},
        {"name": "vmbr2", "address": "192.168.101.1/24", "nat": False, "dhcp": False},
    ],
    "machines": [
        {"name": "web-1", "network": "vmbr1", "mac": "52-54-00-00-00-0A", "address": "192.168.100.10",
         "address6": "fd00:100::10", "port": "tap3f", "project": "shop"},
        {"name": "web-2", "network": "vmbr1", "mac": "52:54:00:00:00:0b", "project": "shop"},
        {"name": "db-1", "network": "vmbr2", "mac": "52:54:00:00:00:0c", "address": "192.168.101.10"},
    ],
    "policies": {
        "default": {"mode": "allowlist", "presets": ["debian"], "hub": True},
        "projects": {"shop": {"presets": ["claude", {"preset": "github", "for": "30m"}],
                              "allow": ["registry.example.org", "192.0.2.7:22"], "peers": "project"}},
        "machines": {"web-1": {"mode": "strict", "inherit": False, "deny": ["bad.example.org"], "peers": ["web-2"]}},
    },
    "hub": {"name": "hub.fleet", "addresses": ["fd00::20", "10.0.1.20"], "ports": [8000]},
    "proxy": {"kind": "squid", "port": 3128},
    "resolvers": ["10.0.1.1", "10.0.1.2#5353"],
    "log_rate": 20,
}  # fmt: skip


def changed(path: str, value: Any) -> dict[str, Any]:
    """The full document with another value at a path such as machines.0.mac."""
    document = copy.deepcopy(FULL)
    *parts, last = path.split(".")
    inner: Any = document
    for part in parts:
        inner = inner[int(part) if isinstance(inner, list) else part]
    inner[int(last) if isinstance(inner, list) else last] = value
    return document


def test_parse_reads_all_of_a_document() -> None:
    found = parse(FULL)
    assert found.backend == "iptables"
    assert found.networks == (
        Bridge("vmbr1", "192.168.100.1/24", "fd00:100::1/64"),
        Bridge("vmbr2", "192.168.101.1/24", "", nat=False, dhcp=False),
    )
    assert found.machines == (
        Guest("db-1", "vmbr2", "52:54:00:00:00:0c", "192.168.101.10"),
        Guest("web-1", "vmbr1", "52:54:00:00:00:0a", "192.168.100.10", "fd00:100::10", "tap3f", "shop"),
        Guest("web-2", "vmbr1", "52:54:00:00:00:0b", project="shop"),
    )
    assert list(found.policies) == ["default", "project-shop", "machine-web-1"]
    assert found.policies["project-shop"].presets[1] == Entry("preset", "github", "any", span=1800)
    assert found.policies["machine-web-1"] == Policy(
        "strict", False, deny=(Entry("domain", "bad.example.org", "any"),), peers=("web-2",)
    )
    assert found.hub == Hub("hub.fleet", ("10.0.1.20", "fd00::20"), (8000,))
    assert found.proxy == Proxy("squid", 3128)
    assert found.resolvers == ("10.0.1.1", "10.0.1.2#5353")
    assert found.log_rate == 20


def test_an_empty_document_declares_nothing() -> None:
    assert parse({}) == Declaration()
    assert parse(dict.fromkeys(KEYS)) == Declaration()
    assert parse({}).special_networks == SPECIAL4 + SPECIAL6


@pytest.mark.parametrize("document", [{}, FULL, changed("special_networks", ["192.0.2.0/24"]), changed("proxy", None)])
def test_to_dict_writes_what_parse_reads(document: dict[str, Any]) -> None:
    assert parse(to_dict(parse(document))) == parse(document)
    assert to_dict(parse(to_dict(parse(document)))) == to_dict(parse(document))


def test_the_order_of_lists_of_things_does_not_count() -> None:
    other = {**FULL, "machines": FULL["machines"][::-1], "networks": FULL["networks"][::-1]}
    assert parse(other) == parse(FULL)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("bakend", "nftables", 'unknown key "bakend", did you mean "backend"'),
        ("backend", "nftable", 'did you mean "nftables"'),
        ("networks", {}, "networks: expected a list"),
        ("networks.0.name", "vmbr 1", "expected an interface's name"),
        ("networks.0.name", "a" * 16, "at most 15"),
        ("networks.0.name", "br*", "expected an interface's name"),
        ("networks.0.name", "-br", "expected an interface's name"),
        ("networks.0.name", 'br"', "expected an interface's name"),
        ("networks.0.name", "..", "expected an interface's name"),
        ("networks.0.address", "192.168.100.1", "with its prefix length, such as 192.168.100.1/24"),
        ("networks.0.address", "192.168.100.0/24", "that a host of 192.168.100.0/24 can have"),
        ("networks.0.address", "192.168.100.255/24", "can have"),
        ("networks.0.address", "fd00::1/64", "expected an IPv4 address"),
        ("networks.0.address6", "192.168.9.1/24", "expected an IPv6 address"),
        ("networks.0.address6", "fd00::/64", "can have"),
        ("networks.1.address", None, "expected address or address6"),
        ("networks.1.address", "192.168.100.129/25", "192.168.100.0/24 and 192.168.100.128/25 overlap"),
        ("networks.1.name", "vmbr1", 'network "vmbr1": stands twice'),
        ("networks.0.nat", "maybe", 'network "vmbr1": nat: expected true or false'),
        ("networks.0.gateway", "x", "unknown key"),
        ("machines.0.name", "web 1", "machine name"),
        ("machines.0.network", "vmbr9", 'machine "web-1": unknown network "vmbr9", did you mean "vmbr'),
        ("machines.0.network", None, 'unknown network ""; networks: vmbr1, vmbr2'),
        ("machines.0.mac", None, "mac: expected a hardware address"),
        ("machines.0.mac", "52:54:00:00:00", "mac: expected a hardware address"),
        ("machines.0.mac", "01:00:5e:00:00:01", "mac: expected a hardware address"),
        ("machines.0.mac", "ff:ff:ff:ff:ff:ff", "mac: expected a hardware address"),
        ("machines.0.mac", "00:00:00:00:00:00", "mac: expected a hardware address"),
        ("machines.0.mac", "52:54:00:00:00:0B", "mac 52:54:00:00:00:0b: machine"),
        ("machines.0.address", "192.168.101.10", "expected a free address in 192.168.100.0/24"),
        ("machines.0.address", "192.168.100.1", "expected a free address"),
        ("machines.0.address", "192.168.100.0", "expected a free address"),
        ("machines.0.address", "192.168.100.255", "expected a free address"),
        ("machines.0.address", "192.168.100.10/24", "expected the address of a host"),
        ("machines.0.address", "fd00:100::10", "expected an IPv4 address"),
        ("machines.0.address6", "fe80::10%eth0", "expected the address of a host"),
        ("machines.0.address6", "::ffff:192.168.100.10", "expected the address of a host"),
        ("machines.2.address6", "fd00:100::10", 'network "vmbr2" has no IPv6 address'),
        ("machines.2.address", None, 'network "vmbr2" gives out none'),
        ("machines.1.address", "192.168.100.10", "address 192.168.100.10: machine"),
        ("machines.1.name", "web-1", 'machine "web-1": stands twice on network vmbr1'),
        ("machines.1.name", "WEB-1", "stands twice on network vmbr1"),
        ("machines.0.port", "tap/1", "expected an interface's name"),
        ("machines.1.port", "tap3f", "port tap3f: machine"),
        ("machines.2.name", "web-2", "the same name and project on all its networks"),
        ("hub.addresses", ["192.168.100.10"], "address 192.168.100.10: the hub and machine"),
        ("hub.addresses", [], "hub: expected addresses and ports"),
        ("hub.ports", [0], "hub: ports: expected a number from 1"),
        ("hub.name", "hub fleet", "hub: name: expected a domain"),
        ("proxy.kind", "sqiud", 'did you mean "squid"'),
        ("proxy.port", 0, "proxy: port"),
        ("proxy.port", 53, "proxy: port: 53 is the gateway's own"),
        ("resolvers", ["10.0.1.1", "192.168.100.1#53"], "192.168.100.1 is this gateway's own address on vmbr1"),
        ("resolvers", ["fd00:100::1"], "fd00:100::1 is this gateway's own address on vmbr1"),
        ("resolvers", ["resolver.example.org"], r"resolvers\[0\]: expected the address of a host"),
        ("resolvers", ["10.0.1.1#dns"], r"resolvers\[0\]: expected a whole number"),
        ("special_networks", ["10.0.0.1/8"], 'has host bits set, expected "10.0.0.0/8"'),
        ("log_rate", 0, "log_rate: expected a number from 1"),
        ("policies.project", {}, 'unknown key "project", did you mean "projects"'),
        ("policies.machines.web-3", {}, 'unknown machine "web-3", did you mean "web-'),
        ("policies.projects", [], "projects: expected a mapping"),
        ("policies.default.mode", "allow-list", 'did you mean "allowlist"'),
        ("policies.default.presets", ["debain"], 'unknown preset "debain", did you mean "debian"'),
        ("policies.default.presets", "debian", "presets: expected a list"),
        ("policies.default.allow", ["debian"], '"debian" is a preset: it belongs under presets'),
        ("policies.default.allow", ["debain"], 'did you mean "debian"'),
        ("policies.default.allow", [{"preset": "debian"}], '"debian" belongs under presets'),
        ("policies.default.allow", ["githbu.com"], 'spelt almost like "github.com"'),
        ("policies.default.allow", ["com"], '"com" is a public suffix'),
        ("policies.default.allow", ["*.co.uk"], '"co.uk" is a public suffix'),
        ("policies.default.allow", ["192.168.100.11:22"], "lies in network vmbr1"),
        ("policies.default.allow", ["192.168.100.1:22"], "lies in network vmbr1"),
        ("policies.default.allow", ["[fd00:100::10]:22"], "lies in network vmbr1"),
        ("policies.default.deny", ["gist.githbu.com"], 'spelt almost like "github.com"'),
        ("policies.default.deny", ["github"], '"github" is a preset: presets open, they do not close'),
        ("policies.default.alow", [], 'did you mean "allow"'),
        ("policies.default.peers", "all", 'expected "none", "project" or a list'),
        ("policies.machines.web-1.peers", ["web-3"], 'machine "web-1": peers: unknown machine "web-3"'),
    ],
)
def test_parse_says_what_is_wrong(path: str, value: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as caught:
        parse(changed(path, value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("entry", [{"domain": "com", "force": True}, {"domain": "githbu.com", "force": True}])
def test_what_is_forced_is_taken(entry: dict[str, Any]) -> None:
    assert policy("x", {"allow": [entry]}).allow[0].value == entry["domain"]
    assert policy("x", {"deny": [entry]}).deny[0].value == entry["domain"]


def test_a_machine_may_hang_on_two_networks() -> None:
    second = {"name": "web-1", "network": "vmbr2", "mac": MAC, "address": "192.168.101.20", "project": "shop"}
    found = parse({**FULL, "machines": [*FULL["machines"], second]})
    assert [guest.bridge for guest in found.machines if guest.name == "web-1"] == ["vmbr1", "vmbr2"]


def test_a_policy_without_a_value_is_an_empty_one() -> None:
    assert parse({"policies": {"projects": {"shop": None}}}).policies == {"project-shop": Policy()}


@pytest.mark.parametrize("value", [None, 5, "x", [], [{}], True])
def test_a_document_is_a_mapping(value: object) -> None:
    with pytest.raises(InvalidInput, match="egress: expected a mapping"):
        parse(value)


WORDS = st.sampled_from(
    ["", "x", "vmbr1", "web-1", "default", "open", "strict", "debian", "project", "none", "192.168.100.9", "fd00::1/64",
     "10.0.0.1/24", MAC, "example.org", "example.org:80/udp", "*", "30m", "squid", "\ud800", "\0", "9" * 400]
)  # fmt: skip
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | WORDS
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from((*KEYS, *POLICY_KEYS, "name", "address", "network", "mac")), inner, max_size=4
        )
    ),
    max_leaves=8,
)


def paths(value: Any, above: str = "") -> list[str]:
    if isinstance(value, dict):
        return [path for key, item in value.items() for path in (f"{above}{key}", *paths(item, f"{above}{key}."))]
    if isinstance(value, list):
        return [path for key, item in enumerate(value) for path in (f"{above}{key}", *paths(item, f"{above}{key}."))]
    return []


@given(st.sampled_from(paths(FULL)), ANYTHING)
def test_whatever_stands_somewhere_parse_answers_with_a_declaration_or_a_sentence(path: str, value: Any) -> None:
    try:
        found = parse(changed(path, value))
    except FleetError:
        return
    assert parse(to_dict(found)) == found
    assert found.backend in BACKENDS
    assert all(item.mode in ("", *MODES) for item in found.policies.values())
