# SPDX-License-Identifier: GPL-3.0-or-later
"""Entries of policies: one grammar, one canonical form, and errors that say what was expected."""

from __future__ import annotations

import datetime
import ipaddress
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_core.egress_entries import Entry, cidr, denial, entry, format_ports, merged, network, ports, preset_entry
from fleet_core.errors import InvalidInput

HTTPS = ((443, 443),)


@pytest.mark.parametrize(
    ("value", "expected", "text"),
    [
        ("example.org", Entry("domain", "example.org", "tcp", HTTPS), "example.org"),
        ("*.Example.org.", Entry("domain", "example.org", "tcp", HTTPS), "example.org"),
        ("example.org:443", Entry("domain", "example.org", "tcp", HTTPS), "example.org"),
        ("example.org:8443,80,81", Entry("domain", "example.org", "tcp", ((80, 81), (8443, 8443))),
         "example.org:80-81,8443"),
        ("example.org:443/udp", Entry("domain", "example.org", "udp", HTTPS), "example.org:443/udp"),
        ("example.org:any", Entry("domain", "example.org", "tcp", ()), "example.org:any"),
        ("example.org:1-65535", Entry("domain", "example.org", "tcp", ()), "example.org:any"),
        ("example.org/any", Entry("domain", "example.org", "any", ()), "example.org/any"),
        ("example.org/ICMP", Entry("domain", "example.org", "icmp", ()), "example.org/icmp"),
        ("192.0.2.7:22", Entry("network", "192.0.2.7/32", "tcp", ((22, 22),)), "192.0.2.7:22"),
        ("192.0.2.0/24:8000-8100/tcp", Entry("network", "192.0.2.0/24", "tcp", ((8000, 8100),)),
         "192.0.2.0/24:8000-8100"),
        ("192.0.2.0/24/any", Entry("network", "192.0.2.0/24", "any", ()), "192.0.2.0/24/any"),
        ("[2001:DB8::1]:443", Entry("network", "2001:db8::1/128", "tcp", HTTPS), "[2001:db8::1]:443"),
        ("[2001:db8::/32]:53/udp", Entry("network", "2001:db8::/32", "udp", ((53, 53),)), "[2001:db8::/32]:53/udp"),
        ("2001:db8::/32/any", Entry("network", "2001:db8::/32", "any", ()), "2001:db8::/32/any"),
        ("2001:db8::1/icmp", Entry("network", "2001:db8::1/128", "icmp", ()), "2001:db8::1/icmp"),
        ("[2001:db8::1]:any", Entry("network", "2001:db8::1/128", "tcp", ()), "[2001:db8::1]:any"),
        ("0.0.0.0/0:123/udp", Entry("network", "0.0.0.0/0", "udp", ((123, 123),)), "0.0.0.0/0:123/udp"),
        ({"domain": "Example.org"}, Entry("domain", "example.org", "tcp", HTTPS), "example.org"),
        ({"domain": "example.org", "ports": None, "protocol": None}, Entry("domain", "example.org", "tcp", HTTPS),
         "example.org"),
        ({"host": "192.0.2.7", "ports": 22}, Entry("network", "192.0.2.7/32", "tcp", ((22, 22),)), "192.0.2.7:22"),
        ({"network": "192.0.2.0/24", "ports": [443, "8000-8100"], "protocol": "udp"},
         Entry("network", "192.0.2.0/24", "udp", (*HTTPS, (8000, 8100))), "192.0.2.0/24:443,8000-8100/udp"),
        ({"domain": "com", "force": True}, Entry("domain", "com", "tcp", HTTPS, force=True), "com"),
        ({"domain": "example.org", "for": "30m"}, Entry("domain", "example.org", "tcp", HTTPS, span=1800),
         "example.org"),
        ({"domain": "example.org", "for": 60, "since": "2026-01-31T08:00:00Z"},
         Entry("domain", "example.org", "tcp", HTTPS, span=60, since=1769846400), "example.org"),
        ({"domain": "example.org", "until": "2026-01-31T09:00:00+01:00", "comment": " a\n b "},
         Entry("domain", "example.org", "tcp", HTTPS, until=1769846400, comment="a b"), "example.org"),
        ({"domain": "example.org", "until": datetime.datetime(2026, 1, 31, 8)},
         Entry("domain", "example.org", "tcp", HTTPS, until=1769846400), "example.org"),
        ({"domain": "example.org", "until": 1769846400},
         Entry("domain", "example.org", "tcp", HTTPS, until=1769846400), "example.org"),
    ],
)  # fmt: skip
def test_entry_reads_text_and_mappings(value: object, expected: Entry, text: str) -> None:
    found = entry("x", value)
    assert found == expected
    assert found.text == text
    assert entry("x", found.to_dict()) == found


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("https://example.org", "without a scheme"),
        ("example.org/path", 'unknown protocol "path"'),
        ("example.org:443/tpc", 'did you mean "tcp"'),
        ("example.org/udp", "expected ports with example.org, such as example.org:443/udp"),
        ("192.0.2.7", "expected ports with 192.0.2.7, such as 192.0.2.7:443;"),
        ("2001:db8::1", r"such as \[2001:db8::1\]:443;"),
        ("2001:db8::1:443", "expected ports with 2001:db8::1:443"),
        ("192.0.2.1/24:22", 'has host bits set, expected "192.0.2.0/24"'),
        ("192.0.2.300:22", "expected an address or a network"),
        ("[2001:db8::1:443", r"such as \[2001:db8::1\]:443"),
        ("[2001:db8::1]443", r"such as \[2001:db8::1\]:443"),
        ("[::ffff:192.0.2.7]:22", 'is IPv4 written as IPv6, expected "192.0.2.7"'),
        ("::ffff:c000:207/any", 'expected "192.0.2.7"'),
        ("::ffff:0:0/96/any", 'expected "0.0.0.0/0"'),
        ("[fe80::1%eth0]:22", "expected an address or a network"),
        ("example.org:0", "expected a number from 1 to 65535"),
        ("example.org:65536", "expected a number from 1 to 65535"),
        ("example.org:443-80", "goes upwards"),
        ("example.org:", "expected ports such as"),
        ("example.org:80,", "expected ports such as"),
        ("example.org:80,any", "expected ports such as"),
        ("example.org:http", "expected ports such as"),
        ("example.org:\u0664\u0664\u0663", "expected ports such as"),
        ("example.org:443/icmp", "goes without ports"),
        ("127.1:22", "expected an address or a network"),
        ("0x7f000001:22", "does not end in a number"),
        ("", "expected a domain"),
        (5, "expected text such as"),
        (None, "expected text such as"),
        ({}, "expected one of domain, host, network, preset, found none"),
        ({"domain": "a.org", "host": "192.0.2.7"}, "found domain and host"),
        ({"domian": "a.org"}, 'unknown key "domian", did you mean "domain"'),
        ({"host": "example.org", "ports": 22}, "a name is a domain"),
        ({"host": "192.0.2.0/24", "ports": 22}, "expected an address, found the network"),
        ({"domain": "a.org", "ports": []}, "expected ports such as"),
        ({"domain": "a.org", "ports": True}, "expected a whole number"),
        ({"domain": "a.org", "ports": 4.5}, "expected a whole number"),
        ({"domain": "a.org", "for": "30m", "until": "2026-01-31T08:00:00Z"}, "either for or until"),
        ({"domain": "a.org", "since": "2026-01-31T08:00:00Z"}, "expected for beside it"),
        ({"domain": "a.org", "for": 0}, "at least one second"),
        ({"domain": "a.org", "for": "soon"}, "expected a duration"),
        ({"domain": "a.org", "until": "tomorrow"}, "expected a moment"),
        ({"domain": "a.org", "until": 0}, "expected a number from 1"),
        ({"domain": "a.org", "until": True}, "expected text"),
        ({"domain": "a.org", "force": "perhaps"}, "expected true or false"),
    ],
)
def test_entry_says_what_it_expected(value: object, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        entry("x", value)


@pytest.mark.parametrize(
    ("value", "target"),
    [
        ("bad.example.org", "bad.example.org"),
        ("ru", "ru"),
        ("192.0.2.0/24", "192.0.2.0/24"),
        ("2001:db8::1", "2001:db8::1"),
        ({"network": "0.0.0.0/0"}, "0.0.0.0/0"),
        ({"domain": "a.org", "ports": "any", "protocol": "any", "for": "1h"}, "a.org"),
    ],
)
def test_denial_closes_whole_targets(value: object, target: str) -> None:
    found = denial("x", value)
    assert (found.target, found.protocol, found.ports) == (target, "any", ())
    assert denial("x", found.to_dict()) == found


@pytest.mark.parametrize("value", [{"domain": "a.org", "ports": 80}, {"domain": "a.org", "protocol": "tcp"},
                                   "a.org:80", "192.0.2.7:80", {"preset": "github"}, None])  # fmt: skip
def test_denial_takes_no_ports_and_no_presets(value: object) -> None:
    with pytest.raises(InvalidInput):
        denial("x", value)


def test_preset_entry_gives_the_nearest_name() -> None:
    assert preset_entry("x", "github", ["github"]).value == "github"
    assert preset_entry("x", {"preset": "github", "for": "30m"}, ["github"]).span == 1800
    with pytest.raises(InvalidInput, match='unknown preset "githb", did you mean "github"'):
        preset_entry("x", "githb", ["github", "pypi"])
    with pytest.raises(InvalidInput, match="presets: github, pypi"):
        preset_entry("x", "zzz", ["pypi", "github"])
    with pytest.raises(InvalidInput, match="found the domain"):
        preset_entry("x", {"domain": "github.com"}, ["github"])
    with pytest.raises(InvalidInput, match="its own ports"):
        preset_entry("x", {"preset": "github", "ports": 22}, ["github"])


PORT = st.integers(1, 65535)
RANGES = st.lists(st.tuples(PORT, PORT).map(lambda pair: (min(pair), max(pair))), min_size=1, max_size=6)


@given(RANGES)
def test_ports_keep_their_meaning_in_one_form(ranges: list[tuple[int, int]]) -> None:
    found = merged(ranges)
    edges = {edge + step for pair in ranges for edge in pair for step in (-1, 0, 1)}
    for port in edges & set(range(1, 65536)):
        assert any(low <= port <= high for low, high in found or ((1, 65535),)) == any(
            low <= port <= high for low, high in ranges
        )
    assert all(high + 1 < low for (_first, high), (low, _last) in itertools.pairwise(found))
    assert ports("x", format_ports(found)) == found


ADDRESSES = st.ip_addresses(v=4).map(str) | st.ip_addresses(v=6).map(str)
TARGETS = st.sampled_from(["example.org", "a.example.org", "192.0.2.7", "192.0.2.0/24", "2001:db8::/32"]) | ADDRESSES
MAPPINGS = st.fixed_dictionaries(
    {"ports": st.none() | PORT | st.just("any") | RANGES.map(lambda item: [f"{low}-{high}" for low, high in item])},
    optional={
        "protocol": st.sampled_from(["tcp", "udp", "icmp", "any"]),
        "for": st.integers(1, 10**6),
        "until": st.integers(1, 4 * 10**9),
        "comment": st.text(max_size=8),
        "force": st.booleans(),
    },
)


@given(TARGETS, MAPPINGS)
def test_entry_reads_what_it_writes(target: str, data: dict[str, Any]) -> None:
    kind = "network" if target[0].isdigit() or ":" in target else "domain"
    try:
        found = entry("x", {kind: target, **data})
    except InvalidInput:
        return
    assert entry("x", found.to_dict()) == found
    plain = found.evolve(until=0, span=0, since=0, comment="", force=False)
    assert entry("x", found.text) == plain


@given(st.text(max_size=30))
def test_any_text_is_an_entry_or_an_error(text: str) -> None:
    for read in (entry, denial):
        try:
            found = read("x", text)
        except InvalidInput:
            continue
        assert "\n" not in found.text


def test_network_is_written_alike_on_every_python() -> None:
    assert cidr(network("x", "::ffff:0:0/96")) == "::ffff:0:0/96"
    assert cidr(network("x", "::ffff:c000:200/120")) == "::ffff:c000:200/120"
    assert cidr(ipaddress.ip_network("192.0.2.0/24")) == "192.0.2.0/24"


@pytest.mark.parametrize(
    ("found", "now", "end", "lasts"),
    [
        (Entry("domain", "a.org"), 100, 0, True),
        (Entry("domain", "a.org", until=100), 99, 100, True),
        (Entry("domain", "a.org", until=100), 100, 100, False),
        (Entry("domain", "a.org", span=10), 100, 110, True),
        (Entry("domain", "a.org", span=10, since=90), 99, 100, True),
        (Entry("domain", "a.org", span=10, since=90), 100, 100, False),
    ],
)
def test_an_entry_lasts_until_its_end(found: Entry, now: int, end: int, lasts: bool) -> None:
    assert (found.end(now), found.lasts(now)) == (end, lasts)
