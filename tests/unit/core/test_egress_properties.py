# SPDX-License-Identifier: GPL-3.0-or-later
"""What holds for every policy: closing only closes, opening only opens, a policy of one's own changes nobody else's."""

from __future__ import annotations

from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fleet_core.egress import Declaration, parse
from fleet_core.egress_fence import compile as compile_fence
from fleet_core.egress_live import Live, live_change
from fleet_core.egress_names import covered
from fleet_core.fences import Fence
from fleet_core.flows import Flow, permitted

NOW = 1_000_000
# Names that machines ask for, and where they lead; one of them into a special network.
LEADS = {"a.org": "198.41.0.4", "b.a.org": "198.41.1.4", "c.b.a.org": "198.41.1.5", "b.org": "10.1.0.9"}
MACHINES = {"web-1": "shop", "web-2": "shop", "db-1": "data", "lone-1": ""}
ADDRESS = {name: f"192.168.100.{number}" for number, name in enumerate(MACHINES, start=10)}
PLACES = (*LEADS.values(), *ADDRESS.values(), "192.168.100.1", "10.0.1.20", "169.254.169.254", "1.1.1.1", "198.45.0.1")
FLOWS = [
    Flow(source, place, protocol, port)
    for source in ADDRESS.values()
    for place in PLACES
    for protocol, port in (("tcp", 443), ("tcp", 80), ("tcp", 8000), ("tcp", 3128), ("udp", 443), ("icmp", 0))
    if source != place
]
ENTRIES = st.sampled_from(
    ["a.org", "b.a.org:80", "c.b.a.org:any", "b.org", "a.org:443/udp", "198.41.0.0/16:80", "198.41.1.4:any/udp",
     "0.0.0.0/0:80,443", "10.1.0.0/16:443", "169.254.169.254:80", "1.1.1.1:443", "a.org/icmp"]
)  # fmt: skip
DENIALS = st.sampled_from(["a.org", "b.a.org", "198.41.1.4", "198.41.0.0/16", "0.0.0.0/0", "10.0.0.0/8"])
TIMED = st.tuples(ENTRIES, st.sampled_from([0, 0, NOW, NOW + 60]))


def timed(pair: tuple[str, int]) -> Any:
    text, until = pair
    if not until:
        return text
    target, _colon, ports = text.partition(":")
    if not ports or "/" in ports:
        return text
    kind = "network" if target[0].isdigit() else "domain"
    return {kind: target, "ports": ports, "until": until}


POLICIES = st.fixed_dictionaries(
    {},
    optional={
        "mode": st.sampled_from(["open", "allowlist", "allowlist", "strict", "locked"]),
        "inherit": st.booleans(),
        "allow": st.lists(TIMED.map(timed), max_size=4),
        "deny": st.lists(DENIALS, max_size=2),
        "hub": st.booleans(),
        "peers": st.sampled_from(["none", "project", ["web-1", "web-2", "db-1"]]),
    },
)
WHOLE = st.fixed_dictionaries(
    {},
    optional={
        "default": POLICIES,
        "projects": st.dictionaries(st.sampled_from(["shop", "data"]), POLICIES),
        "machines": st.dictionaries(st.sampled_from(list(MACHINES)), POLICIES),
    },
)
SCOPES = st.sampled_from(["default", "project-shop", "machine-web-1", "machine-lone-1"])


def declared(policies: dict[str, Any], **others: Any) -> Declaration:
    machines = [
        {"name": name, "network": "br", "mac": f"52:54:00:00:00:{number:02x}", "address": ADDRESS[name],
         "project": project}
        for number, (name, project) in enumerate(MACHINES.items())
    ]  # fmt: skip
    return parse(
        {
            "networks": [{"name": "br", "address": "192.168.100.1/24"}],
            "machines": machines,
            "policies": policies,
            "hub": {"addresses": ["10.0.1.20"], "ports": [8000]},
            "proxy": {"kind": "squid"},
            **others,
        }
    )


def learned(fence: Fence) -> dict[str, set[str]]:
    """What the sets hold once every machine has asked for every name: resolvers refuse what is denied."""
    return {
        grant.set_name(4): {
            address
            for name, address in LEADS.items()
            if covered(name, grant.names) and not covered(name, scope.denied_names)
        }
        for scope in fence.scopes
        for grant in scope.grants
    }


def reached(declaration: Declaration, live: list[Live], now: int = NOW) -> set[Flow]:
    fence = compile_fence(declaration, live, now)
    sets = learned(fence)
    return {flow for flow in FLOWS if permitted(fence, sets, flow, now)}


@settings(max_examples=60, deadline=None)
@given(WHOLE, SCOPES, DENIALS | st.just("locked"), st.lists(st.tuples(SCOPES, ENTRIES), max_size=2))
def test_closing_live_only_closes(policies: dict[str, Any], scope: str, what: str, opened: list[Any]) -> None:
    live = [live_change(where, "allow", text) for where, text in opened]
    closing = live_change(scope, "mode" if what == "locked" else "deny", what)
    assert reached(declared(policies), [*live, closing]) <= reached(declared(policies), live)


@settings(max_examples=60, deadline=None)
@given(WHOLE, SCOPES, ENTRIES, st.lists(st.tuples(SCOPES, DENIALS), max_size=2))
def test_opening_live_only_opens(policies: dict[str, Any], scope: str, what: str, closed: list[Any]) -> None:
    live = [live_change(where, "deny", text) for where, text in closed]
    opening = live_change(scope, "allow", what, NOW + 9)
    assert reached(declared(policies), [*live, opening]) >= reached(declared(policies), live)


@settings(max_examples=60, deadline=None)
@given(WHOLE, SCOPES, ENTRIES)
def test_what_was_opened_for_a_time_leaves_nothing_open(policies: dict[str, Any], scope: str, what: str) -> None:
    opening = live_change(scope, "allow", what, NOW + 9)
    assert reached(declared(policies), [opening], NOW + 9) == reached(declared(policies), [], NOW + 9)


@settings(max_examples=60, deadline=None)
@given(WHOLE, POLICIES)
def test_a_policy_of_a_machine_changes_nobody_elses(policies: dict[str, Any], own: dict[str, Any]) -> None:
    assume("peers" not in own)
    other = {**policies, "machines": {**policies.get("machines", {}), "web-1": own}}
    mine = (ADDRESS["web-1"],)
    before, after = (
        {flow for flow in reached(declared(each), []) if flow.source not in mine and flow.destination not in mine}
        for each in (policies, other)
    )
    assert before == after


@settings(max_examples=60, deadline=None)
@given(WHOLE)
def test_no_policy_opens_what_is_closed_in_every_mode(policies: dict[str, Any]) -> None:
    named = {"169.254.169.254"} if "169.254.169.254" in repr(policies) else set()
    for flow in reached(declared(policies), []):
        assert flow.destination != "169.254.169.254" or named
        assert flow.destination != "192.168.100.1" or flow.protocol == "icmp" or flow.port == 3128
        if flow.destination in ADDRESS.values():
            assert "peers" in repr(policies)


@settings(max_examples=40, deadline=None)
@given(WHOLE)
def test_nothing_leads_into_special_networks_that_no_entry_names(policies: dict[str, Any]) -> None:
    inside = {flow.destination for flow in reached(declared(policies), []) if flow.destination == LEADS["b.org"]}
    assert not inside or "10.1.0.0/16" in repr(policies)
