# SPDX-License-Identifier: GPL-3.0-or-later
"""From a declaration to a fence: inheritance, denials, special networks, ends, peers, keys."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_core import egress_fence, fences
from fleet_core.egress import Declaration, parse
from fleet_core.egress_fence import check_live, effective, next_end, scope_names, settled
from fleet_core.egress_fence import compile as compile_fence
from fleet_core.egress_live import Live, live_change
from fleet_core.egress_names import covered
from fleet_core.egress_presets import preset_entries
from fleet_core.errors import Conflict, FleetError
from fleet_core.fences import METADATA4, METADATA6, Fence, Grant, Scope

NOW = 1_000_000


def declared(policies: dict[str, Any], **others: Any) -> Declaration:
    """Four machines: web-1 and web-2 of project shop, db-1 of project data, lone-1 of none."""
    machines = [
        {"name": name, "network": "vmbr1", "mac": f"52:54:00:00:00:{number:02x}", "project": project,
         "address": f"192.168.100.{number}", "address6": f"fd00:100::{number}"}
        for number, (name, project) in enumerate(
            (("web-1", "shop"), ("web-2", "shop"), ("db-1", "data"), ("lone-1", "")), start=10)
    ]  # fmt: skip
    networks = [{"name": "vmbr1", "address": "192.168.100.1/24", "address6": "fd00:100::1/64"}]
    return parse({"networks": networks, "machines": machines, "policies": policies, **others})


def one(policy: dict[str, Any], live: list[Live] | None = None, now: int = NOW, **others: Any) -> Scope:
    """The default scope with this policy."""
    return compile_fence(declared({"default": policy}, **others), live or [], now).scopes[0]


def names(scope: Scope) -> set[str]:
    return {name for grant in scope.grants for name in grant.names}


def networks(scope: Scope) -> list[str]:
    return [net for grant in scope.grants for net in (*grant.networks4, *grant.networks6)]


def scope_of(fence: Fence, machine: str) -> Scope:
    name = next(guest.scope for guest in fence.guests if guest.name == machine)
    return next(scope for scope in fence.scopes if scope.name == name)


def test_nothing_declared_opens_nothing_but_the_hub() -> None:
    assert one({}) == Scope("default", "allowlist")
    assert one({}, hub={"addresses": ["10.0.1.20"], "ports": [8000]}) == Scope("default", "allowlist", hub=True)


@pytest.mark.parametrize(
    ("policies", "live", "scopes"),
    [
        ({}, [], {"default": ["web-1", "web-2", "db-1", "lone-1"]}),
        ({"projects": {"shop": {}}}, [], {"default": ["db-1", "lone-1"], "project-shop": ["web-1", "web-2"]}),
        ({"machines": {"web-1": {}}}, [], {"default": ["web-2", "db-1", "lone-1"], "machine-web-1": ["web-1"]}),
        ({"projects": {"shop": {}}, "machines": {"web-1": {}}}, [],
         {"default": ["db-1", "lone-1"], "project-shop": ["web-2"], "machine-web-1": ["web-1"]}),
        ({}, [live_change("machine-db-1", "mode", "open")], {"default": ["web-1", "web-2", "lone-1"],
                                                             "machine-db-1": ["db-1"]}),
        ({}, [live_change("machine-db-1", "mode", "open", NOW)], {"default": ["web-1", "web-2", "db-1", "lone-1"]}),
        ({"projects": {"empty": {}}}, [], {"default": ["web-1", "web-2", "db-1", "lone-1"]}),
    ],
)  # fmt: skip
def test_a_machine_has_the_nearest_scope_with_a_policy(
    policies: dict[str, Any], live: list[Live], scopes: dict[str, list[str]]
) -> None:
    declaration = declared(policies)
    fence = compile_fence(declaration, live, NOW, {"default": 15300})
    assert [scope.name for scope in fence.scopes] == list(scopes)
    for scope, machines in scopes.items():
        assert {guest.name for guest in fence.guests_of(scope)} == set(machines)
    assert set(scope_names(declaration, live, NOW).values()) == set(scopes)
    assert fence.scopes[0].resolver_port == 15300


@pytest.mark.parametrize(
    ("shop", "web", "mode", "opened"),
    [
        ({}, {}, "allowlist", {"a.example", "b.example"}),
        ({"allow": ["c.example"]}, {"allow": ["d.example"]}, "allowlist",
         {"a.example", "b.example", "c.example", "d.example"}),
        ({"mode": "open"}, {}, "open", {"a.example", "b.example"}),
        ({"mode": "open"}, {"mode": "strict"}, "strict", {"a.example", "b.example"}),
        ({"inherit": False, "allow": ["c.example"]}, {"allow": ["d.example"]}, "allowlist",
         {"c.example", "d.example"}),
        ({"allow": ["c.example"]}, {"inherit": False}, "allowlist", set()),
        ({"mode": "open"}, {"inherit": False}, "open", set()),
        ({"deny": ["a.example"]}, {}, "allowlist", {"b.example"}),
        ({}, {"deny": ["a.example"]}, "allowlist", {"b.example"}),
        ({"deny": ["a.example"]}, {"inherit": False, "allow": ["a.example"]}, "allowlist", {"a.example"}),
    ],
)  # fmt: skip
def test_policies_add_to_those_above(shop: dict[str, Any], web: dict[str, Any], mode: str, opened: set[str]) -> None:
    policies = {
        "default": {"allow": ["a.example", "b.example"]},
        "projects": {"shop": shop},
        "machines": {"web-1": web},
    }
    scope = scope_of(compile_fence(declared(policies), [], NOW), "web-1")
    assert (scope.mode, names(scope)) == (mode, opened)


def test_hub_and_peers_come_from_the_nearest_scope_that_names_them() -> None:
    policies = {"default": {"hub": False, "peers": "project"}, "projects": {"shop": {"hub": True}},
                "machines": {"web-1": {"peers": "none"}}}  # fmt: skip
    declaration = declared(policies, hub={"addresses": ["10.0.1.20"], "ports": [8000]})
    fence = compile_fence(declaration, [], NOW)
    assert [(scope.name, scope.hub) for scope in fence.scopes] == [
        ("default", False),
        ("project-shop", True),
        ("machine-web-1", True),
    ]
    assert effective(declaration, [], NOW, "machine-web-1", "shop").peers == "none"


@pytest.mark.parametrize(
    ("allow", "deny", "left", "denied"),
    [
        (["example.org"], ["bad.example.org"], {"example.org"}, ("bad.example.org",)),
        (["good.example.org"], ["example.org"], set(), ("example.org",)),
        (["example.org"], ["example.org"], set(), ("example.org",)),
        (["good.bad.example.org", "example.org"], ["bad.example.org"], {"example.org"}, ("bad.example.org",)),
        (["badexample.org"], ["example.org"], {"badexample.org"}, ("example.org",)),
        (["EXAMPLE.org."], ["*.Example.ORG"], set(), ("example.org",)),
        (["example.org"], ["b.example.org", "a.b.example.org"], {"example.org"}, ("b.example.org",)),
        (["example.org", "a.example.org", "b.a.example.org"], [], {"example.org"}, ()),
        (["me.github.io"], ["io"], set(), ("io",)),
    ],
)
def test_denied_names_are_never_granted(allow: list[str], deny: list[str], left: set[str], denied: Any) -> None:
    scope = one({"allow": allow, "deny": deny})
    assert (names(scope), scope.denied_names) == (left, denied)


def test_a_name_below_another_stays_where_its_ports_differ() -> None:
    scope = one({"allow": ["example.org", "db.example.org:5432"]})
    assert [(grant.names, grant.ports) for grant in scope.grants] == [
        (("example.org",), ((443, 443),)),
        (("db.example.org",), ((5432, 5432),)),
    ]


@pytest.mark.parametrize(
    ("allow", "deny", "left"),
    [
        (["198.41.0.4:53/udp"], [], ["198.41.0.4/32"]),
        (["198.41.0.4:53/udp"], ["198.41.0.0/24"], []),
        (["198.41.0.0/24:53/udp"], ["198.41.0.4"], ["198.41.0.0/24"]),  # denied4 is looked at first
        (["198.41.0.0/24:53/udp", "198.41.1.0/24:53/udp"], [], ["198.41.0.0/23"]),
        (["10.0.0.5:5432"], [], ["10.0.0.5/32"]),
        (["10.0.0.0/8:5432"], [], ["10.0.0.0/8"]),
        (["8.0.0.0/6:5432"], [], ["8.0.0.0/7", "11.0.0.0/8"]),
        (["169.254.169.254:80"], [], ["169.254.169.254/32"]),
        (["169.254.0.0/16:80"], [], ["169.254.0.0/16"]),
        (["169.254.0.0/15:80"], [], ["169.255.0.0/16"]),
        (["[fd00:ec2::254]:80"], [], ["fd00:ec2::254/128"]),
        (["[fc00::/7]:80"], [], "no fd00:ec2::/32"),
        (["[fd00::/8]:80"], [], "no fd00:ec2::/32"),
    ],
)
def test_special_networks_open_only_by_name(allow: list[str], deny: list[str], left: list[str] | str) -> None:
    scope = one({"allow": allow, "deny": deny})
    if isinstance(left, list):
        assert networks(scope) == left
        return
    hole = ipaddress.ip_network(left.partition(" ")[2])
    assert networks(scope)
    assert not any(ipaddress.ip_network(net).overlaps(hole) for net in networks(scope))


@pytest.mark.parametrize("whole", ["0.0.0.0/0", "::/0", "128.0.0.0/1", "2000::/3", "0.0.0.0/1", "8000::/1"])
def test_a_wide_grant_holds_no_special_network(whole: str) -> None:
    fence = compile_fence(declared({"default": {"allow": [{"network": whole, "ports": "any"}]}}), [], NOW)
    parts = [ipaddress.ip_network(net) for net in networks(fence.scopes[0])]
    holes = [ipaddress.ip_network(net) for net in (*fence.special4, *fence.special6, *METADATA4, *METADATA6)]
    assert parts
    assert not any(part.version == hole.version and part.overlaps(hole) for part in parts for hole in holes)
    wanted = ipaddress.ip_network(whole)
    inside = [hole for hole in holes if hole.version == wanted.version and hole.subnet_of(wanted)]  # type: ignore[arg-type]
    kept = {net for net in inside if not any(net != other and net.subnet_of(other) for other in inside)}  # type: ignore[arg-type]
    assert sum(part.num_addresses for part in parts) == wanted.num_addresses - sum(net.num_addresses for net in kept)


def test_the_networks_of_bridges_are_special() -> None:
    networks = [{"name": "vmbr1", "address": "198.41.0.1/24", "address6": "2a00:1::1/64"}]
    fence = compile_fence(parse({"networks": networks, "special_networks": ["10.0.0.0/8"]}), [], NOW)
    assert fence.special4 == ("10.0.0.0/8", "198.41.0.0/24")
    assert fence.special6 == ("2a00:1::/64",)


@pytest.mark.parametrize("mode", ["open", "allowlist", "strict", "locked"])
def test_only_locked_takes_everything_away(mode: str) -> None:
    policy = {"mode": mode, "allow": ["example.org"], "deny": ["bad.example.org", "198.41.0.0/24"]}
    scope = compile_fence(declared({"default": policy}, hub={"addresses": ["10.0.1.20"], "ports": [8000]}), [], NOW,
                          {"default": 15300}).scopes[0]  # fmt: skip
    if mode == "locked":
        assert scope == Scope("default", "locked")
    else:
        assert (names(scope), scope.denied4, scope.hub, scope.resolver_port) == (
            {"example.org"}, ("198.41.0.0/24",), True, 15300)  # fmt: skip


@pytest.mark.parametrize(
    ("entry", "until"),
    [
        ({"domain": "a.example"}, 0),
        ({"domain": "a.example", "until": NOW + 1}, NOW + 1),
        ({"domain": "a.example", "until": NOW}, None),
        ({"domain": "a.example", "until": 1}, None),
        ({"domain": "a.example", "for": 60}, NOW + 60),
        ({"domain": "a.example", "for": 60, "since": NOW - 59}, NOW + 1),
        ({"domain": "a.example", "for": 60, "since": NOW - 60}, None),
    ],
)
def test_what_has_ended_opens_nothing(entry: dict[str, Any], until: int | None) -> None:
    grants = one({"allow": [entry]}).grants
    assert [grant.until for grant in grants] == ([] if until is None else [until])
    assert all(bool(grant.mark) == bool(grant.until) for grant in grants)


def test_a_preset_ends_as_its_entry_does_and_a_denial_too() -> None:
    policy = {"presets": [{"preset": "github", "until": NOW + 9}], "deny": [{"domain": "a.org", "until": NOW + 5}]}
    assert {grant.until for grant in one(policy).grants} == {NOW + 9}
    assert one(policy).denied_names == ("a.org",)
    assert one(policy, now=NOW + 5).denied_names == ()
    assert one(policy, now=NOW + 9).grants == ()
    declaration = declared({"default": policy})
    assert [next_end(declaration, [], NOW + step) for step in (0, 4, 5, 8, 9)] == [
        *(NOW + 5, NOW + 5, NOW + 9, NOW + 9),
        0,
    ]


def test_next_end_looks_at_live_changes() -> None:
    live = [live_change("default", "allow", "a.org", NOW + 7), live_change("default", "deny", "b.org")]
    assert next_end(declared({}), live, NOW) == NOW + 7
    assert next_end(declared({}), live, NOW + 7) == 0


def test_grants_that_last_longest_come_first() -> None:
    entries = [{"domain": "a.org", "until": NOW + 5}, {"domain": "a.org", "until": NOW + 50}, "a.org", "a.org:80"]
    found = one({"allow": entries}).grants
    assert [(grant.until, grant.ports) for grant in found] == [
        (0, ((80, 80),)),
        (0, ((443, 443),)),
        (NOW + 50, ((443, 443),)),
        (NOW + 5, ((443, 443),)),
    ]


def test_the_key_of_a_grant_does_not_depend_on_what_it_opens() -> None:
    first, second = one({"allow": ["a.org"]}).grants[0], one({"allow": ["b.org", "198.41.0.4:443"]}).grants[0]
    assert first.key == second.key
    assert first.names != second.names


def test_settled_gives_a_beginning_and_keeps_it() -> None:
    policy = {"allow": [{"domain": "a.org", "for": 60, "comment": "x"}], "presets": [{"preset": "pypi", "for": 60}]}
    first = settled(declared({"default": policy}), None, NOW)
    assert first.policies["default"].allow[0].since == NOW
    assert settled(first, None, NOW + 9) == first
    again = settled(declared({"default": policy}), first, NOW + 30)
    assert again == first
    policy["allow"][0]["comment"] = "y"
    assert settled(declared({"default": policy}), first, NOW + 30).policies["default"].allow[0].since == NOW
    policy["allow"][0]["for"] = 90
    assert settled(declared({"default": policy}), first, NOW + 30).policies["default"].allow[0].since == NOW + 30


def test_a_live_change_is_one_more_layer() -> None:
    live = [live_change("default", "allow", "live.example"), live_change("project-shop", "mode", "open")]
    fence = compile_fence(declared({"machines": {"web-1": {"inherit": False}}}), live, NOW)
    assert {scope.name: (scope.mode, names(scope)) for scope in fence.scopes} == {
        "default": ("allowlist", {"live.example"}),
        "project-shop": ("open", {"live.example"}),
        "machine-web-1": ("open", set()),
    }


def test_what_is_closed_live_reaches_every_scope_below() -> None:
    policies = {"machines": {"web-1": {"mode": "open", "inherit": False, "allow": ["a.example"]}}}
    denied = compile_fence(declared(policies), [live_change("project-shop", "deny", "a.example")], NOW)
    assert scope_of(denied, "web-1").denied_names == ("a.example",)
    assert not names(scope_of(denied, "web-1"))
    locked = compile_fence(declared(policies), [live_change("default", "mode", "locked")], NOW)
    assert {scope.mode for scope in locked.scopes} == {"locked"}
    opened = compile_fence(declared(policies), [live_change("default", "mode", "strict")], NOW)
    assert scope_of(opened, "web-1").mode == "open"


@pytest.mark.parametrize(
    ("scope", "entry", "message"),
    [
        ("default", "x.a.org", "x.a.org: stays closed, because a.org is denied for default"),
        ("machine-web-1", "a.org:80", "a.org:80: stays closed, because a.org is denied for machine-web-1"),
        ("machine-web-1", "b.org", "b.org: stays closed, because b.org is denied for machine-web-1"),
        ("default", "198.41.0.4:22", "198.41.0.4:22: stays closed, because 198.41.0.0/16 is denied for default"),
        ("default", "pypi", "pypi: stays closed, because pypi.org, pythonhosted.org is denied for default"),
        ("default", "192.168.100.11:22", "192.168.100.11 lies in network vmbr1"),
        ("default", "github", ""),
        ("default", "b.org", ""),
        ("default", "org.a:22", ""),
        ("default", "198.0.0.0/8:22", ""),
    ],
)
def test_a_live_change_that_would_open_nothing_is_refused(scope: str, entry: str, message: str) -> None:
    policies = {
        "default": {"deny": ["a.org", "198.41.0.0/16", "pypi.org", "pythonhosted.org", "gist.github.com"]},
        "projects": {"shop": {"deny": ["b.org"]}},
    }
    change = live_change(scope, "allow", entry)
    if not message:
        check_live(declared(policies), [change], NOW, change)
        return
    with pytest.raises(FleetError, match=message):
        check_live(declared(policies), [change], NOW, change)


@pytest.mark.parametrize(
    ("policies", "pairs"),
    [
        ({}, set()),
        ({"default": {"peers": "project"}}, {("web-1", "web-2")}),
        ({"default": {"peers": "project"}, "machines": {"web-1": {"peers": "none"}}}, set()),
        ({"default": {"peers": "project"}, "machines": {"web-1": {"mode": "locked"}}}, set()),
        ({"default": {"peers": "project"}, "machines": {"web-1": {"mode": "strict"}}}, {("web-1", "web-2")}),
        ({"machines": {"web-1": {"peers": ["db-1"]}}}, set()),
        ({"machines": {"web-1": {"peers": ["db-1"]}, "db-1": {"peers": ["web-1", "db-1"]}}}, {("db-1", "web-1")}),
        ({"projects": {"shop": {"peers": "project"}}, "machines": {"web-1": {"peers": ["web-2", "db-1"]}}},
         {("web-1", "web-2")}),
        ({"default": {"peers": ["lone-1", "db-1"]}}, {("db-1", "lone-1")}),
    ],
)  # fmt: skip
def test_peers_are_mutual(policies: dict[str, Any], pairs: set[tuple[str, str]]) -> None:
    fence = compile_fence(declared(policies), [], NOW)
    assert {tuple(sorted((guest.name, peer))) for guest in fence.guests for peer in guest.peers} == pairs
    by_name = {guest.name: guest for guest in fence.guests}
    assert all(guest.name in by_name[peer].peers for guest in fence.guests for peer in guest.peers)


def test_peers_are_of_one_bridge() -> None:
    two = [{"name": "a", "address": "192.168.1.1/24"}, {"name": "b", "address": "192.168.2.1/24"}]
    machines = [
        {"name": name, "network": name[0], "mac": f"52:54:00:00:00:0{name[2]}", "project": "p"}
        for name in ("a-1", "a-2", "b-3")
    ]
    fence = compile_fence(parse({"networks": two, "machines": machines, "policies": {"default": {"peers": "project"}}}))
    assert [guest.peers for guest in fence.guests] == [("a-2",), ("a-1",), ()]


def test_resolvers_are_those_declared_or_those_of_the_host() -> None:
    assert compile_fence(declared({}), [], NOW, {}, ["10.0.0.1"]).upstreams == ("10.0.0.1",)
    assert compile_fence(declared({}, resolvers=["10.0.0.2"]), [], NOW, {}, ["10.0.0.1"]).upstreams == ("10.0.0.2",)


@pytest.mark.parametrize("what", ["key", "mark", "set"])
def test_a_collision_of_short_names_is_an_error(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if what == "set":
        monkeypatch.setattr(egress_fence, "name_set", lambda grant, name, family: "x")
    elif what == "mark":
        monkeypatch.setattr(egress_fence, "grant_mark", lambda key: 7)
    else:
        monkeypatch.setattr(egress_fence, "grant_key", lambda *parts: "00000000")
    entries = [{"domain": "a.org", "until": NOW + 5}, {"domain": "b.org", "until": NOW + 6}, {"domain": "c.org"},
               {"domain": "d.org"}]  # fmt: skip
    with pytest.raises(Conflict, match="both get"):
        one({"allow": entries})


ENTRIES = st.sampled_from(
    ["a.org", "b.a.org", "c.b.a.org:80,443", "b.org:443/udp", "198.41.0.0/24:443", "198.41.0.4:any",
     "0.0.0.0/0:1-9/udp",
     "[2a00::/16]:443", "::/0/any", "10.1.0.0/16:22", "a.org/any"]
)  # fmt: skip
DENIALS = st.sampled_from(["a.org", "b.a.org", "198.41.0.4", "198.41.0.0/16", "0.0.0.0/0", "2a00::/20"])
POLICIES = st.fixed_dictionaries(
    {},
    optional={
        "mode": st.sampled_from(["open", "allowlist", "strict", "locked"]),
        "inherit": st.booleans(),
        "presets": st.lists(st.sampled_from(["github", "debian", "pypi"]), max_size=2),
        "allow": st.lists(ENTRIES, max_size=4),
        "deny": st.lists(DENIALS, max_size=2),
        "peers": st.sampled_from(["none", "project", ["web-1", "db-1"]]),
    },
)
WHOLE = st.fixed_dictionaries(
    {"default": POLICIES},
    optional={
        "projects": st.dictionaries(st.sampled_from(["shop", "data"]), POLICIES),
        "machines": st.dictionaries(st.sampled_from(["web-1", "db-1"]), POLICIES),
    },
)


@given(WHOLE, st.randoms(use_true_random=False))
def test_a_fence_holds_what_renderers_rely_on(policies: dict[str, Any], random: Any) -> None:
    declaration = declared(policies)
    fence = compile_fence(declaration, [], NOW)
    special = [ipaddress.ip_network(net) for net in (*fence.special4, *fence.special6)]
    for scope in fence.scopes:
        assert fence.guests_of(scope.name)
        keys = [grant.key for grant in scope.grants]
        assert len(keys) == len(set(keys))
        for grant in scope.grants:
            assert grant.names or grant.networks4 or grant.networks6
            assert grant.key == fences.grant_key(scope.name, grant.protocol, grant.ports, grant.until)
            assert not any(covered(name, scope.denied_names) for name in grant.names)
            assert list(grant.names) == sorted(set(grant.names))
            for net in map(ipaddress.ip_network, (*grant.networks4, *grant.networks6)):
                assert not any(
                    net.version == hole.version and net != hole and hole.subnet_of(net)  # type: ignore[arg-type]
                    for hole in special
                )
    shuffled = {**policies, "default": dict(policies["default"])}
    for key in ("allow", "deny", "presets"):
        shuffled["default"][key] = random.sample(
            shuffled["default"].get(key, []), len(policies["default"].get(key, []))
        )
    assert compile_fence(declared(shuffled), [], NOW) == fence


def test_presets_are_grants_of_their_entries() -> None:
    assert names(one({"presets": ["github"]})) == {item.value for item in preset_entries("github")}


def test_equal_grants_of_two_scopes_have_sets_of_their_own() -> None:
    fence = compile_fence(declared({"default": {"allow": ["a.org"]}, "projects": {"shop": {}}}), [], NOW)
    grants: list[Grant] = [grant for scope in fence.scopes for grant in scope.grants]
    assert len({grant.key for grant in grants}) == 2


def test_a_thousand_rules_and_machines_compile_soon_enough() -> None:
    machines = [
        {"name": f"m-{number}", "network": "br", "mac": f"52:54:00:00:{number // 256:02x}:{number % 256:02x}"}
        for number in range(1000)
    ]
    allow = [f"host-{number}.example.org:{1 + number % 7}" for number in range(1000)]
    document = {"networks": [{"name": "br", "address": "10.9.0.1/16"}], "machines": machines,
                "policies": {"default": {"allow": allow, "peers": "project"}}}  # fmt: skip
    fence = compile_fence(parse(document), [], NOW)
    assert len(fence.scopes[0].grants) == 7
    assert sum(len(grant.names) for grant in fence.scopes[0].grants) == 1000
