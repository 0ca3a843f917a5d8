# SPDX-License-Identifier: GPL-3.0-or-later
"""Names, quantities, health checks, restart policies, dependencies, changes, errors: the small values of the core."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_core import errors
from fleet_core.changes import Change, change_from_dict, difference
from fleet_core.dependencies import Dependency, dependencies, start_order
from fleet_core.errors import FleetError, InvalidInput, from_code
from fleet_core.health import HealthCheck, HttpTarget, health_check, parse_url
from fleet_core.names import as_bool, as_int, as_text, check_keys, check_name, check_process_id, describe, nearest
from fleet_core.process_status import ProcessStatus, status_from_dict
from fleet_core.quantities import format_duration, parse_duration, parse_size
from fleet_core.resource_types import DEFAULTS, resource_type
from fleet_core.restarts import RestartPolicy, delay_before, restart_policy, wants_restart, within_burst

# Names


@pytest.mark.parametrize("name", ["a", "A1", "web-server", "a.b_c", "0", "x" * 63])
def test_good_names(name: str) -> None:
    assert check_name("process", name) == name
    assert check_process_id(f"{name}/{name}") == f"{name}/{name}"


@pytest.mark.parametrize("name", ["", "-a", ".a", "_a", "a b", "a/b", "x" * 64, "a\n", "ä", None, 3, ["a"]])
def test_bad_names(name: Any) -> None:
    with pytest.raises(InvalidInput, match="process name"):
        check_name("process", name)


@pytest.mark.parametrize("name", ["", "/", "a/", "/a", "a/b/c", "a//b", "../a", None, 3])
def test_bad_process_ids(name: Any) -> None:
    with pytest.raises(InvalidInput, match="expected NAME or ENVIRONMENT/NAME"):
        check_process_id(name)


@pytest.mark.parametrize(
    ("word", "known", "hint"),
    [
        ("tcprot", ["tcpport", "gpu"], ', did you mean "tcpport"?'),
        ("env", ["env_vars", "env_files", "name"], ', did you mean "env_vars"?'),
        ("zzz", ["tcpport"], ""),
        ("x", ["xylophone"], ""),
        ("x", [], ""),
    ],
)
def test_the_nearest_known_word(word: str, known: list[str], hint: str) -> None:
    assert nearest(word, known) == hint


def test_unknown_keys_are_named() -> None:
    assert check_keys("x", {"a": 1}, ["a"]) == {"a": 1}
    with pytest.raises(InvalidInput, match='x: unknown key "b"; known keys: a, c'):
        check_keys("x", {"b": 1}, ["c", "a"])
    with pytest.raises(InvalidInput, match="x: expected a mapping, found list"):
        check_keys("x", [], ["a"])
    with pytest.raises(InvalidInput, match="x: unknown key"):
        check_keys("x", {("a",): 1}, ["a"])


@pytest.mark.parametrize(("value", "text"), [(None, "nothing"), (1, "int 1"), ("x" * 99, f"str '{'x' * 56}...")])
def test_descriptions_are_short(value: Any, text: str) -> None:
    assert describe(value) == text


@pytest.mark.parametrize(("value", "text"), [("a", "a"), (1, "1"), (1.5, "1.5")])
def test_text(value: Any, text: str) -> None:
    assert as_text("x", value) == text


@pytest.mark.parametrize("value", [True, None, [], {}, b"x"])
def test_no_text(value: Any) -> None:
    with pytest.raises(InvalidInput, match="x: expected text, found"):
        as_text("x", value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(True, True), ("yes", True), ("ON", True), (1, True), ("1", True), (False, False), ("No", False), (0, False)],
)
def test_booleans(value: Any, expected: bool) -> None:
    assert as_bool("x", value) is expected


@pytest.mark.parametrize("value", [None, "maybe", 2, [], ""])
def test_no_booleans(value: Any) -> None:
    with pytest.raises(InvalidInput):
        as_bool("x", value)


@pytest.mark.parametrize(("value", "expected"), [(1, 1), ("1", 1), (10, 10), ("-0", 0)])
def test_whole_numbers(value: Any, expected: int) -> None:
    assert as_int("x", value, 0, 10) == expected


@pytest.mark.parametrize("value", [11, -1, "x", "", 1.5, "1.5", True, None, [], "9" * 5000])
def test_no_whole_numbers(value: Any) -> None:
    with pytest.raises(InvalidInput, match="x: expected a"):
        as_int("x", value, 0, 10)


# Quantities


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (0, 0), (1.5, 1.5), ("0", 0), ("90", 90), ("1.5", 1.5), ("30s", 30), ("5m", 300), ("2h30m", 9000),
        ("500ms", 0.5), ("1d", 86400), ("1h 30m", 5400), (" 2M ", 120), ("1.5h", 5400), ("1m1m", 120), ("2 s", 2),
    ],
)  # fmt: skip
def test_durations(text: Any, seconds: float) -> None:
    assert parse_duration("x", text) == seconds


@pytest.mark.parametrize(
    "value", ["", "s", "5x", "-5s", "5s5", "1e3", -1, float("nan"), float("inf"), True, None, [], "1 000", "9" * 400]
)
def test_no_durations(value: Any) -> None:
    with pytest.raises(InvalidInput, match="x: expected a duration"):
        parse_duration("x", value)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.25, "250ms"), (1, "1s"), (59.9, "59s"), (60, "1m"), (125, "2m5s"), (3600, "1h"), (11400, "3h10m"),
     (86400, "1d"), (187200, "2d4h"), (90061, "1d1h")],
)  # fmt: skip
def test_durations_for_people(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.integers(0, 10**8))
def test_a_shown_duration_is_near_the_real_one(seconds: int) -> None:
    shown = parse_duration("x", format_duration(seconds))
    assert shown <= seconds < shown * 1.05 + 1


@pytest.mark.parametrize(
    ("text", "size"),
    [(0, 0), (5, 5), ("5", 5), ("1k", 1024), ("1K", 1024), ("1kb", 1024), ("1KiB", 1024), ("1.5M", 1572864),
     ("2G", 2**31), ("1T", 2**40), ("10b", 10), (" 1 M ", 2**20)],
)  # fmt: skip
def test_sizes(text: Any, size: int) -> None:
    assert parse_size("x", text) == size


@pytest.mark.parametrize("value", ["", "x", "-1", "1X", -1, 1.5, True, None, "9" * 400, 2**63])
def test_no_sizes(value: Any) -> None:
    with pytest.raises(InvalidInput, match="x: expected a size"):
        parse_size("x", value)


# Health checks


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://localhost:8000/health?x=1", HttpTarget(False, "localhost", 8000, "/health?x=1")),
        ("http://localhost", HttpTarget(False, "localhost", 80, "/")),
        ("https://h/", HttpTarget(True, "h", 443, "/")),
        ("http://[::1]:80/x", HttpTarget(False, "::1", 80, "/x")),
        ("tcp://localhost:5432", ("localhost", 5432)),
        ("tcp://[::1]:1/", ("::1", 1)),
        ("cmd://test -f x && echo ://", "test -f x && echo ://"),
    ],
)
def test_where_a_check_asks(url: str, target: Any) -> None:
    assert health_check("x", url) == HealthCheck(url)
    assert parse_url("x", url) == target


@pytest.mark.parametrize(
    "url",
    [
        "",
        "x",
        "ftp://x",
        "http://",
        "tcp://x",
        "tcp://x:1/path",
        "tcp://x:99999",
        "tcp://x:y",
        "http://[::1",
        "cmd://",
        3,
    ],
)
def test_wrong_check_urls(url: Any) -> None:
    with pytest.raises(InvalidInput):
        health_check("x", url)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"interval": 1}, "x: expected a url, found nothing"),
        ({"url": "tcp://a:1", "interval": 0}, "x: expected interval above 0, found 0"),
        ({"url": "tcp://a:1", "timeout": "0s"}, "x: expected timeout above 0"),
        ({"url": "tcp://a:1", "retries": -1}, "x: retries: expected a number from 1"),
        ({"url": "tcp://a:1", "action": "reboot"}, 'x: expected action "restart" or "none", found "reboot"'),
        ({"url": "tcp://a:1", "intervall": 1}, 'x: unknown key "intervall", did you mean "interval"?'),
    ],
)
def test_wrong_checks(data: Any, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        health_check("x", data)
    assert str(caught.value).startswith(message)


# Restarts


@pytest.mark.parametrize(
    ("policy", "code", "wanted"),
    [
        ("never", 1, False), ("never", None, False), ("on-failure", 0, False), ("on-failure", 1, True),
        ("on-failure", -9, True), ("on-failure", None, True), ("always", 0, True), ("always", -15, True),
    ],
)  # fmt: skip
def test_who_comes_back(policy: str, code: int | None, wanted: bool) -> None:
    assert wants_restart(RestartPolicy(policy), code) is wanted


def test_delays_double_up_to_the_longest() -> None:
    policy = RestartPolicy(delay=1.0, max_delay=10.0, jitter=0.0)
    assert [delay_before(policy, attempt, 0.5) for attempt in range(1, 8)] == [0, 1, 2, 4, 8, 10, 10]
    assert delay_before(policy, 10**9, 1.0) == 10.0


def test_a_jitter_beyond_all_numbers_is_refused() -> None:
    with pytest.raises(InvalidInput, match="expected a jitter from 0 to 1"):
        restart_policy("restart", {"jitter": 10**400})


@given(st.integers(1, 60), st.floats(0, 1), st.floats(0, 1))
def test_a_delay_lies_within_its_jitter(attempt: int, chance: float, jitter: float) -> None:
    policy = RestartPolicy(jitter=jitter)
    whole = delay_before(RestartPolicy(jitter=0.0), attempt, 0)
    assert whole * (1 - jitter) - 1e-9 <= delay_before(policy, attempt, chance) <= whole + 1e-9


def test_a_burst_is_counted_within_its_window() -> None:
    policy = RestartPolicy(burst=2, window=10.0)
    assert within_burst(policy, [], 100.0)
    assert within_burst(policy, [95.0], 100.0)
    assert not within_burst(policy, [95.0, 99.0], 100.0)
    assert within_burst(policy, [90.0, 99.0], 100.0)
    assert within_burst(RestartPolicy(burst=0), [100.0] * 1000, 100.0)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (None, RestartPolicy()),
        (True, RestartPolicy("on-failure")),
        (False, RestartPolicy("never")),
        ("always", RestartPolicy("always")),
        ({"policy": "always", "delay": "2s", "burst": 0}, RestartPolicy("always", delay=2.0, burst=0)),
        ({"delay": "2m"}, RestartPolicy(delay=120.0, max_delay=120.0)),
    ],
)
def test_restart_policies(data: Any, expected: RestartPolicy) -> None:
    assert restart_policy("x", data) == expected


@pytest.mark.parametrize(
    "data",
    ["sometimes", {"policy": 3}, {"jitter": 2}, {"jitter": "x"}, {"burst": -1}, {"delay": -1}, {"dely": 1}, 3, []],
)
def test_wrong_restart_policies(data: Any) -> None:
    with pytest.raises(InvalidInput, match="x"):
        restart_policy("x", data)


# Dependencies


def test_forms_of_dependencies() -> None:
    expected = (Dependency("a", "healthy"), Dependency("b", "completed"))
    assert dependencies("x", ["a", {"process": "b", "condition": "completed"}]) == expected
    assert dependencies("x", {"a": None, "b": {"condition": "completed"}}) == expected
    assert dependencies("x", None) == dependencies("x", []) == ()


def test_start_order_is_the_order_given_where_nothing_else_is_said() -> None:
    assert start_order({"c": [], "a": [], "b": []}) == ["c", "a", "b"]
    assert start_order({"c": ["a", "b"], "a": ["b"], "b": []}) == ["b", "a", "c"]


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        ({"a": ["b"]}, 'process "a": depends on "b", which does not exist'),
        ({"a": ["alhpa"], "alpha": []}, 'depends on "alhpa", which does not exist, did you mean "alpha"?'),
        ({"shop/a": ["shop/b"]}, 'process "shop/a": depends on "shop/b", which does not exist'),
        ({"a": ["a"]}, "processes depend on each other in a cycle: a -> a"),
        ({"x": ["a"], "a": ["b"], "b": ["c", "a"], "c": []}, "in a cycle: a -> b -> a"),
    ],
)
def test_impossible_orders(graph: dict[str, list[str]], message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        start_order(graph)
    assert str(caught.value).endswith(message)


@given(
    st.integers(1, 8).flatmap(
        lambda n: st.tuples(st.just(n), st.sets(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1))))
    )
)
def test_any_graph_has_an_order_or_a_cycle(data: tuple[int, set[tuple[int, int]]]) -> None:
    size, edges = data
    graph = {str(node): sorted(str(b) for a, b in edges if a == node) for node in range(size)}
    try:
        order = start_order(graph)
    except InvalidInput as error:
        circle = str(error).rpartition(": ")[2].split(" -> ")
        pairs = [(int(a), int(b)) for a, b in itertools.pairwise(circle)]
        correct = circle[0] == circle[-1] and set(pairs) <= edges
    else:
        correct = sorted(order) == sorted(graph) and all(order.index(str(b)) < order.index(str(a)) for a, b in edges)
    assert correct


def test_a_very_long_chain_is_no_problem() -> None:
    graph = {str(number): [str(number + 1)] for number in range(5000)} | {"5000": []}
    assert start_order(graph)[:2] == ["5000", "4999"]


# Resource types


@pytest.mark.parametrize("kind", DEFAULTS, ids=lambda kind: kind.name)
def test_the_default_types_are_valid(kind: Any) -> None:
    assert resource_type(kind.to_dict()) == kind


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "resource type: expected a name"),
        ({"name": "a-b"}, "resource type: expected a name"),
        ({"name": "1a"}, "resource type: expected a name"),
        ({"name": ""}, "resource type: expected a name"),
        ({"name": "a", "chek": "x"}, 'resource type "a": unknown key "chek", did you mean "check"?'),
        ({"name": "a", "check": "true"}, 'resource type "a": expected check_means "free" or "in_use" beside the check'),
        ({"name": "a", "check_means": "free"}, 'resource type "a": check_means needs a check'),
        ({"name": "a", "check": "x", "check_means": "free", "probe": "tcp"}, 'resource type "a": expected a check or'),
        ({"name": "a", "probe": "udp"}, 'resource type "a": expected probe tcp or path, found "udp"'),
        ({"name": "a", "check": "x ${port}", "check_means": "free"}, 'resource type "a": the check knows only'),
        ({"name": "a", "counter": True}, 'resource type "a": a counter needs start and end'),
        ({"name": "a", "counter": True, "start": 5, "end": 4}, 'resource type "a": expected an end of at least 5'),
        ({"name": "a", "counter": True, "probe": "tcp", "start": 0, "end": 70000}, 'resource type "a": expected ports'),
        ({"name": "a", "start": 5}, 'resource type "a": start and end need counter: true'),
        ({"name": "a", "timeout": 0}, 'resource type "a": expected a timeout above 0'),
    ],
)  # fmt: skip
def test_wrong_resource_types(data: Any, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        resource_type(data)
    assert str(caught.value).startswith(message)


def test_a_check_quotes_its_value() -> None:
    kind = resource_type({"name": "a", "check": "test -e ${value}", "check_means": "in_use"})
    assert kind.check_command("x; rm -rf /") == "test -e 'x; rm -rf /'"
    assert kind.space == "a"


# Changes, status, errors


def test_a_difference_names_what_changes() -> None:
    change = difference({"a": 1, "b": 2, "c": 3}, {"b": 2, "c": 4, "d": 5}, "process")
    assert change.actions == ("remove process a", "update process c", "create process d")
    assert (change.before, change.after) == ({"a": 1, "c": 3}, {"c": 4, "d": 5})
    assert change.changed
    assert change_from_dict(change.to_dict()) == change
    assert not difference({"a": 1}, {"a": 1}, "process").changed
    assert change_from_dict({}) == Change()


def test_a_status_reads_back_and_ignores_what_a_later_version_wrote() -> None:
    status = ProcessStatus(state="running", pid=5, claimed={"p": ("tcpport", "80")}, healthy=True, exit_code=None)
    data = status.to_dict()
    assert data["claimed"] == {"p": ["tcpport", "80"]}
    assert status_from_dict({**data, "from_the_future": 1}) == status
    assert status.resources == {"p": "80"}
    assert status.evolve(pid=0).pid == 0
    assert status_from_dict({}) == ProcessStatus()


KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, FleetError)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_survives_the_wire(kind: type[FleetError]) -> None:
    assert from_code(kind.code, "what").__class__ is kind
    assert from_code(kind.code, "what").message == "what"
    assert 1 <= kind.exit_code < 126
    assert -32768 <= kind.rpc_code < 0


def test_codes_are_unique() -> None:
    assert len({kind.code for kind in KINDS}) == len({kind.rpc_code for kind in KINDS}) == len(KINDS)
    assert from_code("from_the_future", "x").__class__ is FleetError
