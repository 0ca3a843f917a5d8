# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose connections are looked at, and which addresses are forgotten or kept, when a fence is replaced."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fleet_core.egress_changes import carried, consequences, forgotten, less
from fleet_core.fences import Bridge, Fence, Grant, Guest, Hub, Proxy, Scope, name_set

NOW = 1000
BASE = Grant("aaaaaaaa", names=("a.example", "b.example"), networks4=("198.51.100.0/24",), ports=((443, 443),))
SCOPE = Scope("default", "allowlist", (BASE,), denied_names=("x.example",), resolver_port=15300, hub=True)
WEB = Guest(
    "web-1", "fleet0", "52:54:00:00:01:10", "192.168.100.10", "fd00:100::10", "tap1", "shop", "default", ("web-2",)
)
DB = Guest("db-1", "fleet0", "52:54:00:00:01:12", "192.168.100.12", project="data")
FENCE = Fence((Bridge("fleet0", "192.168.100.1/24"),), (WEB, DB), (SCOPE,), hub=Hub("hub", ("10.0.0.9",), (8000,)))


def grants(**values: Any) -> tuple[Grant, ...]:
    return (replace(BASE, **values),)


@pytest.mark.parametrize(
    "wider",
    [
        SCOPE,
        replace(SCOPE, mode="open"),
        replace(SCOPE, denied_names=()),
        replace(SCOPE, grants=grants(ports=())),
        replace(SCOPE, grants=grants(ports=((400, 500),))),
        replace(SCOPE, grants=grants(protocol="any", ports=())),
        replace(SCOPE, grants=grants(names=("example",))),
        replace(SCOPE, grants=grants(networks4=("198.51.0.0/16",))),
        replace(SCOPE, grants=(*grants(names=()), replace(BASE, key="b", networks4=()))),
        replace(SCOPE, grants=(BASE, replace(BASE, key="b", names=("c.example",)))),
    ],
    ids=range(10),
)
def test_a_scope_that_lets_as_much_through_is_not_less(wider: Scope) -> None:
    assert not less(SCOPE, wider, NOW)


@pytest.mark.parametrize(
    "narrower",
    [
        None,
        replace(SCOPE, mode="strict"),
        replace(SCOPE, mode="locked", grants=()),
        replace(SCOPE, hub=False),
        replace(SCOPE, grants=()),
        replace(SCOPE, denied_names=("x.example", "b.example")),
        replace(SCOPE, denied4=("198.51.100.7/32",)),
        replace(SCOPE, denied6=("2001:db8::/32",)),
        replace(SCOPE, grants=grants(names=("a.example",))),
        replace(SCOPE, grants=grants(names=("a.example", "c.b.example"))),
        replace(SCOPE, grants=grants(ports=((80, 80),))),
        replace(SCOPE, grants=grants(protocol="udp")),
        replace(SCOPE, grants=grants(until=2000)),
        replace(SCOPE, grants=grants(networks4=("198.51.100.0/25",))),
    ],
    ids=range(14),
)
def test_a_scope_that_lets_less_through_is_less(narrower: Scope | None) -> None:
    assert less(SCOPE, narrower, NOW)


def test_what_has_ended_by_itself_is_no_loss_but_for_the_proxy() -> None:
    ended = replace(SCOPE, grants=(BASE, replace(BASE, key="b", names=("c.example",), until=900)))
    assert not less(ended, SCOPE, NOW)
    found = consequences(FENCE.evolve(scopes=(ended,)), FENCE, NOW)
    assert (found.narrowed, found.proxied) == ((), (WEB, DB))


def test_nothing_follows_from_the_same_or_more() -> None:
    assert consequences(FENCE, FENCE, NOW).narrowed == ()
    more = FENCE.evolve(scopes=(replace(SCOPE, mode="open"),), log_rate=1)
    assert consequences(FENCE, more, NOW) == consequences(FENCE, FENCE, NOW)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"scopes": (replace(SCOPE, hub=False),)}, ["web-1", "db-1"]),
        ({"guests": (replace(WEB, peers=()), DB)}, ["web-1"]),
        ({"guests": (DB,)}, ["web-1"]),
        ({"guests": (WEB, replace(DB, address4="192.168.100.13"))}, ["db-1"]),
        ({"guests": (WEB, replace(DB, mac="52:54:00:00:01:13"))}, ["db-1"]),
        ({"proxy": Proxy("squid")}, ["web-1", "db-1"]),
        ({"hub": Hub()}, ["web-1", "db-1"]),
        ({"special4": ("10.0.0.0/8",)}, ["web-1", "db-1"]),
    ],
)
def test_guests_that_may_reach_less_are_looked_at(change: dict[str, Any], names: list[str]) -> None:
    assert [guest.name for guest in consequences(FENCE, FENCE.evolve(**change), NOW).narrowed] == names


def test_a_guest_whose_names_another_resolver_answers_has_moved() -> None:
    own = Scope(
        "machine-web-1", "allowlist", (replace(BASE, key="bbbbbbbb"),), ("x.example",), resolver_port=15301, hub=True
    )
    new = FENCE.evolve(guests=(replace(WEB, scope="machine-web-1"), DB), scopes=(SCOPE, own))
    found = consequences(FENCE, new, NOW)
    assert ([guest.name for guest in found.moved], found.narrowed) == (["web-1"], ())


def d(name: str, grant: Grant = BASE) -> str:
    return name_set(grant, name, 4)


LEARNED = {
    BASE.set_name(4): ("198.18.0.1", "198.18.0.2", "198.18.0.3"),
    BASE.old_set_name(4): ("198.18.0.9",),
    d("a.example"): ("198.18.0.1", "198.18.0.3"),
    d("b.example"): ("198.18.0.2", "198.18.0.3"),
}


def test_addresses_of_a_name_that_went_are_forgotten_unless_another_name_leads_there() -> None:
    fewer = FENCE.evolve(scopes=(replace(SCOPE, grants=grants(names=("a.example",))),))
    assert consequences(FENCE, fewer, NOW).forget == (BASE.key,)
    learned = {name: those for name, those in LEARNED.items() if name != d("b.example")}
    found = forgotten(fewer, (BASE.key,), learned)
    assert found == {BASE.set_name(4): ("198.18.0.2",), BASE.old_set_name(4): ("198.18.0.9",)}


def test_addresses_of_a_name_are_forgotten_when_something_below_it_is_closed() -> None:
    closed = FENCE.evolve(scopes=(replace(SCOPE, denied_names=("bad.a.example", "x.example")),))
    assert consequences(FENCE, closed, NOW).forget == (BASE.key,)
    found = forgotten(closed, (BASE.key,), LEARNED)
    assert found[d("a.example")] == ("198.18.0.1", "198.18.0.3")
    assert found[BASE.set_name(4)] == ("198.18.0.1",)  # .3 belongs to b.example too
    assert d("b.example") not in found


def test_addresses_stay_that_only_names_led_to_that_are_still_allowed() -> None:
    closed = FENCE.evolve(scopes=(replace(SCOPE, denied_names=("bad.a.example", "x.example")),))
    learned = {**LEARNED, d("a.example"): ("198.18.0.1", "198.18.0.3", "198.18.0.5"), d("b.example"): ()}
    known = {
        "198.18.0.1": {"a.example", "www.a.example"},
        "198.18.0.3": {"deep.bad.a.example"},
        "198.18.0.5": {"a.example", "bad.a.example"},  # both lead there
        "198.18.0.9": {"www.a.example"},
        "198.18.0.2": {"other.example"},
    }
    found = forgotten(closed, (BASE.key,), learned, known)
    assert found == {d("a.example"): ("198.18.0.3", "198.18.0.5"), BASE.set_name(4): ("198.18.0.2", "198.18.0.3")}


def test_nothing_is_forgotten_where_names_are_added() -> None:
    more = FENCE.evolve(scopes=(replace(SCOPE, grants=grants(names=("a.example", "b.example", "c.example"))),))
    assert consequences(FENCE, more, NOW).forget == ()


def test_a_new_scope_of_a_machine_starts_with_what_its_old_one_learned() -> None:
    own = replace(BASE, key="bbbbbbbb")
    new = FENCE.evolve(
        guests=(replace(WEB, scope="machine-web-1"), DB), scopes=(SCOPE, Scope("machine-web-1", "allowlist", (own,)))
    )
    found = carried(FENCE, new, LEARNED)
    assert found[d("a.example", own)] == LEARNED[d("a.example")]
    assert set(found[own.set_name(4)]) == {"198.18.0.1", "198.18.0.2", "198.18.0.3", "198.18.0.9"}


def test_what_is_closed_or_wider_is_not_taken_along() -> None:
    own = replace(BASE, key="bbbbbbbb", names=("a.example", "deep.b.example"))
    scope = Scope("machine-web-1", "allowlist", (own,), denied_names=("bad.a.example",))
    new = FENCE.evolve(guests=(replace(WEB, scope="machine-web-1"), DB), scopes=(SCOPE, scope))
    assert carried(FENCE, new, LEARNED) == {}


def test_a_grant_that_was_there_before_is_given_nothing() -> None:
    assert carried(FENCE, FENCE, LEARNED) == {}


def test_a_thousand_names_are_compared_in_no_time() -> None:
    names = tuple(f"n{number}.example" for number in range(1000))
    old = FENCE.evolve(scopes=(replace(SCOPE, grants=grants(names=names)),))
    own = Scope("machine-web-1", "allowlist", (replace(BASE, key="bbbbbbbb", names=names),))
    new = old.evolve(guests=(replace(WEB, scope="machine-web-1"), DB), scopes=(*old.scopes, own))
    consequences(old, new, NOW)
    carried(old, new, {})
    assert forgotten(new, (BASE.key,), {}) == {}
