# SPDX-License-Identifier: GPL-3.0-or-later
"""Claims on a real store with real checks, one caller and many."""

from __future__ import annotations

import multiprocessing
import socket

import pytest

from fleet_core.errors import Conflict, Exhausted, NotFound, Unavailable
from fleet_core.resource_types import ResourceType, resource_type
from fleet_core.resources import Request
from fleet_node import resources
from fleet_node.checks import check_values
from fleet_node.store import Store


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path / "state")
    opened.put_types([ResourceType("seat", counter=True, start=1, end=5)])
    yield opened
    opened.close()


def ask(owner, kind="seat", value="", name=""):
    return Request(kind, owner, name or kind, value)


def values(store):
    return {claim.owner: claim.value for claim in store.claims()}


def test_the_same_owner_keeps_its_value(store):
    resources.claim(store, [ask("a")])
    again = resources.claim(store, [ask("a")])
    assert not again.claimed
    assert again.kept[0].value == "1"
    assert values(store) == {"a": "1"}


def test_a_set_of_claims_is_all_or_nothing(store):
    resources.claim(store, [ask("held", value="3")])
    with pytest.raises(Conflict, match='resource "seat:3": asked by "b", held by "held"'):
        resources.claim(store, [ask("a"), ask("b", value="3")])
    assert values(store) == {"held": "3"}


def test_the_counter_wraps_and_an_exhausted_range_says_how(store):
    for number in range(5):
        resources.claim(store, [ask(f"o{number}")])
    store.release(["o1"])
    resources.claim(store, [ask("late")])
    assert values(store)["late"] == "2"
    with pytest.raises(Exhausted, match=r'resource type "seat": no free value in 1-5: 5 claimed, 0 busy'):
        resources.claim(store, [ask("more")])


def test_a_listening_port_is_skipped_and_ports_are_one_space(store):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        store.put_types(
            [resource_type({"name": "p", "probe": "tcp", "counter": True, "start": port, "end": port + 40})]
        )
        claimed = resources.claim(store, [ask("a", "p")]).claimed[0]
        assert int(claimed.value) > port
        with pytest.raises(Conflict, match="something outside the fleet listens"):
            resources.claim(store, [ask("b", "p", str(port))])
        with pytest.raises(Conflict, match='held by "a" as p'):
            resources.claim(store, [ask("b", "tcpport", claimed.value)])


@pytest.mark.parametrize(("means", "check"), [("free", "test ! -e ${value}"), ("in_use", "test -e ${value}")])
def test_shell_checks_of_both_meanings(store, tmp_path, means, check):
    store.put_types([resource_type({"name": "file", "check": check, "check_means": means})])
    there = tmp_path / "it is 'there'; $(touch injected)"
    there.write_text("")
    with pytest.raises(Conflict, match="not available"):
        resources.claim(store, [ask("a", "file", str(there))])
    resources.claim(store, [ask("a", "file", str(tmp_path / "absent"))])
    assert not (tmp_path / "injected").exists()


@pytest.mark.parametrize(
    ("check", "expected"),
    [("no-such-program-here ${value}", "cannot run"), ("sleep 60", "expected an answer within 0.2 s")],
)
def test_a_check_that_gives_no_answer_claims_nothing(store, check, expected):
    store.put_types([resource_type({"name": "odd", "check": check, "check_means": "free", "timeout": 0.2})])
    with pytest.raises(Unavailable, match=expected):
        resources.claim(store, [ask("a", "odd", "x")])
    assert store.claims() == []


def test_unknown_types_are_named(store):
    with pytest.raises(NotFound, match='resource type "tcpprt": not defined, did you mean "tcpport"'):
        resources.claim(store, [ask("a", "tcpprt")])


def test_vanished_owners_are_listed(store):
    resources.claim(store, [ask("ghost")])
    assert [claim.owner for claim in resources.vanished(store)] == ["ghost"]
    assert resources.vanished(store, alive=["ghost"]) == []


def test_probes_answer_for_many_values_at_once(store, tmp_path):
    pairs = [("dbfile", str(tmp_path)), ("dbfile", str(tmp_path / "new")), ("seat", "1")]
    assert check_values(pairs, store.types()) == dict(zip(pairs, (False, True, True), strict=True))


def _claim_many(folder, worker, queue):
    mine = Store(folder)
    for number in range(5):
        resources.claim(mine, [Request("tcpport", f"w{worker}-{number}", "tcpport")])
    mine.close()
    queue.put(worker)


def test_fifty_callers_at_once_never_share_a_value(store):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=_claim_many, args=(store.folder, n, queue)) for n in range(50)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 50
    claims = store.claims()
    assert len(claims) == 250
    assert len({claim.value for claim in claims}) == 250
