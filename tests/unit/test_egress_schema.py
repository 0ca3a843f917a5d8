# SPDX-License-Identifier: GPL-3.0-or-later
"""The published schema of network policies and the parser agree on what is good and what is bad."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from autovibe_fleet.cli.schemas import load
from fleet_core import egress, egress_entries
from fleet_core.egress_presets import PRESETS
from fleet_core.errors import FleetError

SCHEMA = load("egress")
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
NETWORK = {"name": "vmbr1", "address": "192.168.100.1/24", "address6": "fd00:100::1/64"}
MACHINE = {"name": "web-1", "network": "vmbr1", "mac": "52:54:00:00:00:01"}


def default(**policy: Any) -> dict[str, Any]:
    return {"policies": {"default": policy}}


GOOD: list[dict[str, Any]] = [
    {},
    dict.fromkeys(egress.KEYS),
    {"networks": [NETWORK, {"name": "br2", "address6": "2a00:1::1/64", "nat": "no", "dhcp": True}]},
    {"networks": [NETWORK], "machines": [MACHINE]},
    {"networks": [NETWORK], "machines": [{**MACHINE, "mac": "52-54-00-00-00-AB", "port": "tap1", "project": "shop"}]},
    {"backend": "iptables", "proxy": {"kind": "mitmproxy", "port": "8080"}, "log_rate": 5, "resolvers": ["10.0.0.1"]},
    {"hub": {"name": "hub.fleet", "addresses": ["10.0.1.20"], "ports": [8000, "8001"]}, "special_networks": []},
    {"policies": {"projects": {"shop": None, "data": {}}, "machines": None}},
    default(mode="open", inherit=False, hub="yes", peers="project"),
    default(presets=["github", {"preset": "pypi", "for": "30m"}], peers=[]),
    default(allow=["example.org", "192.0.2.7:22", "[2001:db8::1]:443/udp"], deny=["bad.example.org", "192.0.2.0/24"]),
    default(allow=[{"domain": "example.org", "ports": [443, "8000-8100"], "protocol": "udp", "comment": "x"}]),
    default(allow=[{"host": "192.0.2.7", "ports": "22, 80-90"}, {"network": "192.0.2.0/24", "protocol": "any"}]),
    default(allow=[{"domain": "com", "force": True, "for": 60, "since": "2026-01-31T08:00:00Z"}]),
    default(deny=[{"domain": "example.org", "until": "2026-01-31T08:00:00Z", "ports": "any"}]),
]

BAD: list[Any] = [
    None,
    "x",
    [],
    {"policy": {}},
    {"backend": "nft"},
    {"networks": {}},
    *({"networks": [{**NETWORK, **other}]} for other in ({"name": "a b"}, {"name": "a" * 16}, {"gateway": "x"})),
    {"networks": [{"name": "vmbr1"}]},
    *(
        {"networks": [NETWORK], "machines": [{**MACHINE, **other}]}
        for other in ({"name": "a b"}, {"mac": "52:54"}, {"mac": None}, {"network": None}, {"ip": "192.168.100.9"})
    ),
    {"hub": {"ports": [70000], "addresses": ["10.0.0.1"]}},
    {"proxy": {"kind": "tor"}},
    {"proxy": {"port": 0}},
    {"log_rate": 0},
    {"policies": {"project": {}}},
    {"policies": {"projects": {"a b": {}}}},
    {"policies": []},
    *(default(**{key: "x"}) for key in egress.POLICY_KEYS),
    default(modes="open"),
    default(presets=["debain"]),
    default(presets=[{"preset": "debain"}]),
    default(presets=[{"preset": "debian", "ports": 80}]),
    *(
        default(allow=[entry])
        for entry in (
            *("", 5, None, {}, {"domain": "a.org", "host": "192.0.2.7", "ports": 1}, {"preset": "github"}),
            *({"domain": "a.org", "ports": 0}, {"domain": "a.org", "ports": []}, {"domain": "a.org", "ports": "http"}),
            *({"domain": "a.org", "protocol": "sctp"}, {"domain": "a.org", "for": 0}, {"domain": "a.org", "until": 0}),
            *({"domain": "a.org", "until": "soon"}, {"domain": "a.org", "force": "perhaps"}, {"domian": "a.org"}),
        )
    ),
    *(default(deny=[entry]) for entry in ({"domain": "a.org", "ports": 80}, {"preset": "github"}, {"network": None})),
]


def accepted_by_the_parser(document: Any) -> bool:
    try:
        egress.parse(document)
    except FleetError:
        return False
    return True


@pytest.mark.parametrize("document", GOOD, ids=str)
def test_what_the_schema_takes_the_parser_takes(document: dict[str, Any]) -> None:
    VALIDATOR.validate(document)
    VALIDATOR.validate(egress.to_dict(egress.parse(document)))


@pytest.mark.parametrize("document", BAD, ids=str)
def test_what_the_schema_refuses_the_parser_refuses(document: Any) -> None:
    assert not VALIDATOR.is_valid(document)
    assert not accepted_by_the_parser(document)


def test_the_schema_knows_every_word_of_the_parser() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    parts = SCHEMA["$defs"]
    assert set(SCHEMA["properties"]) == set(egress.KEYS)
    assert set(parts["policy"]["properties"]) == set(egress.POLICY_KEYS)
    assert parts["preset"]["enum"] == list(PRESETS)
    assert parts["policy"]["properties"]["mode"]["enum"] == [*egress.MODES, None]
    assert SCHEMA["properties"]["backend"]["enum"] == [*egress.BACKENDS, None]
    entry = parts["allow"]["anyOf"][1]["properties"]
    assert set(entry) == set(egress_entries.KEYS) - {"preset"}
    assert entry["protocol"]["enum"] == [*egress_entries.PROTOCOLS, None]


SCALARS = st.none() | st.booleans() | st.integers(-1, 70000) | st.sampled_from(["", "x", "a.org", "30m", "any", "443"])
ENTRIES = st.dictionaries(st.sampled_from(egress_entries.KEYS), SCALARS, max_size=3)


@given(st.sampled_from(["allow", "deny", "presets"]), ENTRIES | SCALARS)
def test_what_the_parser_takes_the_schema_takes(key: str, entry: Any) -> None:
    document = default(**{key: [entry]})
    if accepted_by_the_parser(document):
        assert VALIDATOR.is_valid(document), yaml.safe_dump(document)
