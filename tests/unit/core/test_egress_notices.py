# SPDX-License-Identifier: GPL-3.0-or-later
"""What is valid and yet does nothing, or less than it seems, is told."""

from __future__ import annotations

from typing import Any

import pytest

from fleet_core.egress import parse
from fleet_core.egress_live import live_change
from fleet_core.egress_notices import notices

NOW = 1_000_000
NETWORKS = [{"name": "br", "address": "192.168.100.1/24"}, {"name": "br2", "address": "192.168.101.1/24"}]
MACHINES = [
    {"name": "a", "network": "br", "mac": "52:54:00:00:00:01", "port": "tap1", "project": "p"},
    {"name": "b", "network": "br", "mac": "52:54:00:00:00:02", "port": "tap2", "project": "p"},
    {"name": "c", "network": "br2", "mac": "52:54:00:00:00:03", "port": "tap3"},
]


def told(policies: dict[str, Any], **others: Any) -> list[str]:
    document = {"networks": NETWORKS, "machines": MACHINES, "policies": policies, **others}
    return list(notices(parse(document), [], NOW))


@pytest.mark.parametrize(
    ("policies", "expected"),
    [
        ({}, []),
        ({"default": {"allow": ["a.org"], "deny": ["b.org"], "presets": ["github"]}}, []),
        ({"projects": {"q": {}}}, ['policies: project "q": no machine belongs to it']),
        ({"default": {"allow": [{"domain": "a.org", "until": NOW}]}},
         ["policies: default: a.org has ended at 1970-01-12T13:46:40Z"]),
        ({"default": {"allow": ["x.a.org"], "deny": ["a.org"]}},
         ["default: x.a.org is allowed and denied: it stays closed"]),
        ({"default": {"mode": "strict"}}, ["default: mode strict without a proxy and a hub: nothing is reached"]),
        ({"default": {"mode": "locked", "allow": ["a.org"]}}, ["default: mode locked: what it allows stays closed"]),
        ({"machines": {"a": {"peers": ["b"]}}}, ['machine "a": its peer "b" does not have it as a peer']),
        ({"machines": {"a": {"peers": ["c"]}}}, ['machine "a": its peer "c" is not on br']),
        ({"machines": {"a": {"peers": ["b"]}, "b": {"peers": ["a"]}}}, []),
        ({"machines": {"a": {"peers": ["b"]}, "b": {"peers": "project"}}}, []),
    ],
)  # fmt: skip
def test_notices_of_policies(policies: dict[str, Any], expected: list[str]) -> None:
    assert told(policies) == expected


def test_a_proxy_or_a_hub_makes_strict_useful() -> None:
    strict = {"default": {"mode": "strict"}}
    assert told(strict, proxy={"kind": "squid"}) == []
    assert told(strict, hub={"addresses": ["10.0.0.9"], "ports": [8000]}) == []


def test_a_machine_whose_port_is_not_known_is_told() -> None:
    machines = [{"name": "a", "network": "br", "mac": "52:54:00:00:00:01"}]
    assert told({}, machines=machines) == [
        'machine "a": its port on br is not known, so that only its addresses tell it from others'
    ]


def test_live_changes_count() -> None:
    declaration = parse({"networks": NETWORKS, "machines": MACHINES, "policies": {"default": {"allow": ["a.org"]}}})
    assert notices(declaration, [live_change("project-p", "deny", "a.org")], NOW) == (
        "project-p: a.org is allowed and denied: it stays closed",
    )
