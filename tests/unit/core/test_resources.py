# SPDX-License-Identifier: GPL-3.0-or-later
"""Allocation: tables for the rules, and a state machine that compares it with a simple model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fleet_core.errors import Conflict, Exhausted, FleetError, InvalidInput, NotFound
from fleet_core.resource_types import ResourceType
from fleet_core.resources import Allocation, Claim, Request, View, allocate, request

PORT = ResourceType("port", probe="tcp", counter=True, start=10, end=14)
VNC = ResourceType("vnc", probe="tcp", counter=True, start=13, end=15)
GPU = ResourceType("gpu", counter=True, start=0, end=2)
FILE = ResourceType("file", probe="path")
SHARE = ResourceType("share")
LICENSE = ResourceType("license", check="test ${value}", check_means="free")
TYPES = {kind.name: kind for kind in (PORT, VNC, GPU, FILE, SHARE, LICENSE)}


def ask(text: str, owner: str = "a", name: str = "", preferred: str = "") -> Request:
    kind, _colon, value = text.partition(":")
    return Request(kind, owner, name or kind, value, preferred)


def claims(*texts: str) -> dict[tuple[str, str], Claim]:
    """ "OWNER TYPE:VALUE" or "OWNER TYPE:VALUE NAME" as what is held."""
    found = {}
    for text in texts:
        owner, what, *name = text.split()
        kind, _colon, value = what.partition(":")
        found[(TYPES[kind].space, value)] = Claim(kind, value, owner, name[0] if name else kind)
    return found


def settle(
    requests: Iterable[Request],
    held: Mapping[tuple[str, str], Claim] | None = None,
    counters: Mapping[str, int] | None = None,
    busy: Iterable[str] = (),
) -> Allocation:
    """Allocate as a host does: check what is unknown, then ask again. busy: "TYPE:VALUE" items that are not free."""
    view = View(TYPES, held or {}, counters or {})
    requests, busy = tuple(requests), set(busy)
    free: dict[tuple[str, str], bool] = {}
    for _round in range(100):
        found = allocate(requests, view, free)
        if not found.unknown:
            return found
        assert found == Allocation(unknown=found.unknown)
        assert not set(found.unknown) & free.keys(), "it asks what it was told"
        free.update({pair: f"{pair[0]}:{pair[1]}" not in busy for pair in found.unknown})
    raise AssertionError("it never settles")


def values(found: Allocation) -> list[str]:
    return [str(claim) for claim in found.claimed]


@pytest.mark.parametrize(
    ("asked", "held", "counters", "busy", "expected"),
    [
        (["port"], [], {}, [], ["port:10"]),
        (["port"], [], {"port": 12}, [], ["port:12"]),
        (["port"], ["b port:10"], {}, [], ["port:11"]),
        (["port"], [], {}, ["port:10", "port:11"], ["port:12"]),
        (["port"], ["b port:14"], {"port": 14}, [], ["port:10"]),
        (["port"], [], {"port": 99}, [], ["port:10"]),
        (["port"], [], {"port": 1}, [], ["port:10"]),
        (["port:8080"], [], {}, [], ["port:8080"]),
        (["port:14"], [], {}, [], ["port:14"]),
        (["gpu"], ["b gpu:0"], {"gpu": 0}, [], ["gpu:1"]),
        (["share:/x y"], [], {}, [], ["share:/x y"]),
        (["file:/tmp/x"], [], {}, [], ["file:/tmp/x"]),
        (["vnc"], ["b port:13"], {}, [], ["vnc:14"]),
        (["license:27000@host"], [], {}, [], ["license:27000@host"]),
    ],
)
def test_one_value(asked: list[str], held: list[str], counters: dict[str, int], busy: list[str], expected: Any) -> None:
    assert values(settle([ask(text) for text in asked], claims(*held), counters, busy)) == expected


def test_many_values_of_one_call_never_collide() -> None:
    requests = [
        ask("port:11", "b"),
        ask("port", "a", "one"),
        ask("port", "a", "two"),
        ask("vnc", "a"),
        ask("port", "c"),
    ]
    assert values(settle(requests)) == ["port:11", "port:10", "port:12", "vnc:13", "port:14"]


def test_the_counter_moves_past_what_it_gave_and_wraps() -> None:
    assert settle([ask("port")]).counters == {"port": 11}
    assert settle([ask("port")], counters={"port": 14}).counters == {"port": 10}
    assert settle([ask("port")], busy=["port:10"]).counters == {"port": 12}
    assert settle([ask("port:12")]).counters == {}
    assert settle([ask("share:x")]).counters == {}


def test_the_same_owner_asking_again_keeps_its_value() -> None:
    held = claims("a port:12")
    for again in (ask("port"), ask("port:12"), ask("port", preferred="14")):
        found = settle([again], held, busy=["port:12"])
        assert (found.claimed, found.released, found.kept) == ((), (), (held[("tcp", "12")],))
        assert found.counters == {}


def test_the_same_owner_may_ask_under_another_name() -> None:
    assert values(settle([ask("port", "a", "second")], claims("a port:10"))) == ["port:11"]


def test_another_value_gives_the_old_one_back() -> None:
    found = settle([ask("port:14")], claims("a port:12"))
    assert (values(found), [str(claim) for claim in found.released]) == (["port:14"], ["port:12"])


def test_another_type_under_the_same_name_gives_the_old_value_back() -> None:
    found = settle([ask("gpu", "a", "it")], claims("a port:12 it"))
    assert (values(found), [str(claim) for claim in found.released]) == (["gpu:0"], ["port:12"])


def test_a_value_that_is_given_back_can_be_taken_in_the_same_call() -> None:
    found = settle([ask("port:14"), ask("port:12", "b")], claims("a port:12"))
    assert values(found) == ["port:14", "port:12"]


def test_a_preferred_value_is_taken_when_it_is_free() -> None:
    assert values(settle([ask("port", preferred="13")])) == ["port:13"]
    assert values(settle([ask("port", preferred="13")], claims("b port:13"))) == ["port:10"]
    assert values(settle([ask("port", preferred="13")], busy=["port:13"])) == ["port:10"]
    assert settle([ask("port", preferred="13")]).counters == {}


@pytest.mark.parametrize(
    ("asked", "held", "busy", "error", "message"),
    [
        (["port:12"], ["b port:12"], [], Conflict, 'resource "port:12": asked by "a", held by "b"'),
        (["vnc:14"], ["b port:14"], [], Conflict, 'resource "vnc:14": asked by "a", held by "b" as port'),
        (["port:12"], [], ["port:12"], Conflict,
         'resource "port:12": asked by "a", but something outside the fleet listens on it'),
        (["file:/x"], [], ["file:/x"], Conflict, 'resource "file:/x": asked by "a", but the path exists'),
        (["license:x"], [], ["license:x"], Conflict,
         'resource "license:x": asked by "a", but its check says that it is not available'),
        (["gpu"], ["b gpu:0", "b gpu:1 x", "c gpu:2"], [], Exhausted,
         'resource type "gpu": no free value in 0-2: 3 claimed, 0 busy'),
        (["port"], ["b port:10", "b vnc:13"], ["port:11", "port:12", "port:14"], Exhausted,
         'resource type "port": no free value in 10-14: 2 claimed, 3 busy'),
        (["prot"], [], [], NotFound, 'resource type "prot": not defined, did you mean "port"?'),
        (["share"], [], [], InvalidInput, 'resource type "share": not a counter, so "a" must name a value'),
        (["port:x"], [], [], InvalidInput, 'resource "port:x": expected a whole number'),
        (["port:70000"], [], [], InvalidInput, 'resource "port:70000": expected a number from 1 to 65535, found 70000'),
        (["gpu:-1"], [], [], InvalidInput, 'resource "gpu:-1": expected a number from 0'),
    ],
)  # fmt: skip
def test_what_cannot_be_given_is_an_error(
    asked: list[str], held: list[str], busy: list[str], error: type[FleetError], message: str
) -> None:
    with pytest.raises(error) as caught:
        settle([ask(text) for text in asked], claims(*held), busy=busy)
    assert str(caught.value).startswith(message)
    assert caught.type is error


def test_one_impossible_claim_fails_the_whole_call() -> None:
    with pytest.raises(Conflict):
        settle([ask("port"), ask("gpu"), ask("share:x")], claims("b share:x"))


def test_one_name_for_two_values_in_one_call_is_an_error() -> None:
    with pytest.raises(InvalidInput, match='"a" asks twice for "port"'):
        settle([ask("port:10"), ask("port:11")])
    with pytest.raises(InvalidInput, match='"a" asks twice for "it"'):
        settle([ask("port", "a", "it"), ask("gpu", "a", "it")], claims("a port:12 it"))


def test_asking_twice_for_the_same_in_one_call_gives_one_value() -> None:
    assert values(settle([ask("port"), ask("port")])) == ["port:10"]
    assert values(settle([ask("port:10"), ask("port")])) == ["port:10"]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("tcpport", Request("tcpport", "me", "tcpport")),
        ("tcpport:80", Request("tcpport", "me", "tcpport", "80")),
        ("dbfile:/a:b", Request("dbfile", "me", "dbfile", "/a:b")),
        ({"type": "tcpport", "name": "http", "value": 80}, Request("tcpport", "me", "http", "80")),
        ({"type": "tcpport", "value": None}, Request("tcpport", "me", "tcpport")),
    ],
)
def test_requests(data: Any, expected: Request) -> None:
    assert request(data, "me") == expected


@pytest.mark.parametrize("data", ["", ":80", {}, {"type": 3}, {"type": "x", "vlaue": 1}, 3, None])
def test_wrong_requests(data: Any) -> None:
    with pytest.raises(InvalidInput):
        request(data, "me")


def test_a_request_needs_an_owner() -> None:
    with pytest.raises(InvalidInput, match="expected an owner"):
        request("tcpport", "")


COUNTERS = st.dictionaries(st.sampled_from(["port", "vnc", "gpu"]), st.integers(-2, 20), max_size=3)


@given(
    amount=st.integers(1, 7),
    taken=st.sets(st.integers(10, 14)),
    busy=st.sets(st.integers(10, 14)),
    counters=COUNTERS,
)
def test_a_range_is_exhausted_exactly_when_too_little_is_free(
    amount: int, taken: set[int], busy: set[int], counters: dict[str, int]
) -> None:
    held = claims(*(f"b port:{number} n{number}" for number in taken))
    left = set(range(10, 15)) - taken - busy
    requests = [ask("port", "a", f"n{number}") for number in range(amount)]
    held_up = {f"port:{number}" for number in busy}
    if amount > len(left):
        expected = f"no free value in 10-14: {len(taken) + len(left)} claimed, {len(busy - taken)} busy"
        with pytest.raises(Exhausted, match=expected):
            settle(requests, held, counters, held_up)
    else:
        got = [int(claim.value) for claim in settle(requests, held, counters, held_up).claimed]
        assert len(got) == len(set(got)) == amount
        assert set(got) <= left


def test_a_name_asked_for_twice_is_answered_once_when_its_old_value_is_given_back() -> None:
    found = settle([ask("port:12"), ask("port")], claims("a port:11"))
    assert (values(found), [str(claim) for claim in found.released]) == (["port:12"], ["port:11"])


class Claims(RuleBasedStateMachine):
    """Owners claim and release at random while ports come and go; a dictionary of values is the model."""

    owners = st.sampled_from(["a", "b", "c"])
    names = st.sampled_from(["one", "two"])
    kinds = st.sampled_from(["port", "vnc", "gpu", "share", "file"])

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[tuple[str, str], Claim] = {}
        self.counters: dict[str, int] = {}
        self.busy: set[str] = set()

    @initialize(counters=COUNTERS)
    def begin(self, counters: dict[str, int]) -> None:
        self.counters = counters

    @rule(
        wanted=st.lists(
            st.tuples(owners, names, kinds, st.sampled_from(["", "", "", "10", "11", "13", "15", "0", "1"])), max_size=5
        )
    )
    def claim(self, wanted: list[tuple[str, str, str, str]]) -> None:
        requests = [
            Request(kind, owner, name, "x" if kind in ("share", "file") else value)
            for owner, name, kind, value in wanted
        ]
        before = dict(self.held)
        try:
            found = settle(requests, self.held, self.counters, self.busy)
        except FleetError:
            assert before == self.held
            return
        assert not {*found.claimed} & {*found.released}
        for released in found.released:
            assert self.held.pop((TYPES[released.type].space, released.value)) == released
        for claim in found.claimed:
            key = (TYPES[claim.type].space, claim.value)
            assert key not in self.held, "two owners for one value"
            assert str(claim) not in self.busy
            self.held[key] = claim
        self.counters.update(found.counters)
        places = {(claim.owner, claim.name): claim for claim in self.held.values()}
        for asked in requests:
            claim = places[(asked.owner, asked.name)]
            assert claim.type == asked.type
            assert asked.value in ("", claim.value)
        again = settle(requests, self.held, self.counters, self.busy)
        assert (again.claimed, again.released, again.counters) == ((), (), {})

    @rule(owner=owners)
    def release(self, owner: str) -> None:
        self.held = {key: claim for key, claim in self.held.items() if claim.owner != owner}

    @rule(busy=st.sets(st.sampled_from(["port:10", "port:12", "vnc:15", "file:x"])))
    def others_use(self, busy: set[str]) -> None:
        self.busy = busy

    @invariant()
    def every_name_of_an_owner_has_one_value(self) -> None:
        places = [(claim.owner, claim.name) for claim in self.held.values()]
        assert len(places) == len(set(places))

    @invariant()
    def counters_give_numbers_in_their_range_next(self) -> None:
        for (_space, value), claim in self.held.items():
            assert TYPES[claim.type].validate_value(value) == value


TestClaims = Claims.TestCase
