# SPDX-License-Identifier: GPL-3.0-or-later
"""fleet egress on a host whose policy is written down, but not in force: what needs no root, and what is refused."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from autovibe_fleet.cli import completion
from fleet_core import egress
from fleet_core.egress_denials import Denial
from fleet_node import egress_denial_log
from fleet_node.egress_store import DENIALS, METRICS, EgressStore, Record

from .conftest import Fleet

DOCUMENT = {
    "networks": [{"name": "fleet0", "address": "192.168.100.1/24"}],
    "machines": [
        {"name": name, "network": "fleet0", "mac": f"52:54:00:00:01:1{number}", "address": f"192.168.100.1{number}",
         "project": project}
        for number, (name, project) in enumerate((("web-1", "shop"), ("db-1", "data")))
    ],
    "policies": {
        "default": {"allow": ["example.org"], "deny": ["ads.example.org"]},
        "projects": {"data": {"mode": "locked"}},
    },
}  # fmt: skip


@pytest.fixture
def applied(fleet: Fleet) -> EgressStore:
    """A generation as an apply leaves it."""
    store = EgressStore(fleet.state)
    live = {"scope": "default", "verb": "allow", "entry": "other.example.org", "until": 0, "at": 7}
    declared = egress.to_dict(egress.parse(DOCUMENT))
    record = Record(declared=declared, live=(live,), ports={"default": 15300}, basis={"now": 1000, "upstreams": []})
    store.commit(store.prepare(record).name)
    return store


@pytest.mark.parametrize("words", [("egress",), ("egress", "show"), ("egress", "allow", "example.org", "--default")])
def test_without_a_policy_there_is_nothing_to_show_or_change(fleet: Fleet, words: tuple[str, ...]) -> None:
    found = fleet(*words)
    assert found.code == 3
    assert found.err.startswith("fleet: network policy: none is in force here; apply one with")


def test_show_tells_what_is_open_and_what_it_could_not_find_out(fleet: Fleet, applied: EgressStore) -> None:
    found = fleet.json("egress", "show", "--machine", "web-1")
    (scope,) = found["scopes"]
    assert scope["allow"] == ["example.org", "other.example.org"]
    assert (scope["deny"], scope["mode"]) == (["ads.example.org"], "allowlist")
    assert found["live"] == [
        {"scope": "default", "verb": "allow", "entry": "other.example.org", "until": "", "at": "1970-01-01T00:00:07Z"}
    ]
    assert any(problem.startswith("processes: fleetd is not running") for problem in found["problems"])
    text = fleet.ok("egress", "show", "--project", "data").out
    assert "project-data" in text
    assert "locked" in text
    assert "\ndefault" not in text


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("allow", "example.org"), 2, "allow: expected whom it is for: --machine NAME, --project NAME or --default"),
        (("deny", "x.example.org", "--default", "--project", "shop"), 2, "expected one of --machine, --project and"),
        (("allow", "example.org", "--machine", "web-2"), 3, 'policy of this host, did you mean "web-1"?'),
        (("mode", "strct", "--default"), 2, 'did you mean "strict"?'),
        (("allow", "example.org", "--default", "--for", "soon"), 2, "--for: expected a duration"),
        (("allow", "example.org", "--default", "--for", "0s"), 2, "--for: expected at least one second"),
        (("allow", "debain", "--default"), 2, 'did you mean'),
        (("forget", "--all", "--machine", "web-1"), 2, "--all: expected it alone"),
        (("forget", "nothing.example.org", "--default"), 3, 'live change "nothing.example.org": not there'),
        (("show", "--machine", "nobody"), 3, '"nobody": not in the network policy of this host'),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence(
    fleet: Fleet, applied: EgressStore, words: tuple[str, ...], code: int, text: str
) -> None:
    found = fleet("egress", *words)
    assert (found.code, found.out) == (code, "")
    assert text in found.err
    assert len(found.err.splitlines()) == 1


def test_watch_shows_the_last_denials_of_a_machine_or_project(fleet: Fleet, applied: EgressStore) -> None:
    rows = [
        Denial(1.0, "forward", "web-1", "shop", "default", "192.168.100.10", "198.51.100.7", "tcp", 443),
        Denial(2.0, "dns", "db-1", "data", "project-data", "192.168.100.11", name="evil.example\x1b[31m"),
    ]
    egress_denial_log.write(applied.folder / DENIALS, rows)
    lines = fleet.ok("egress", "watch", "--no-follow").out.splitlines()
    assert lines == [
        "1970-01-01T00:00:01Z web-1: tcp to 198.51.100.7:443 denied, not allowed by the policy",
        "1970-01-01T00:00:02Z db-1: name evil.example\\x1b[31m refused",
    ]
    assert fleet.ok("egress", "watch", "--no-follow", "--machine", "web-1").out.splitlines() == lines[:1]
    out = fleet.ok("egress", "watch", "--no-follow", "--json", "--project", "data", "-n", "1").out
    assert json.loads(out)["name"] == "evil.example\x1b[31m"
    assert "\x1b" not in out


def test_metrics_are_printed_as_they_were_written(fleet: Fleet, applied: EgressStore) -> None:
    assert "the process egress-watch writes it" in fleet("egress", "metrics").err
    applied.put(METRICS, "x 1\n")
    assert fleet.ok("egress", "metrics").out == "x 1\n"


def test_names_are_completed(applied: EgressStore) -> None:
    context: Any = SimpleNamespace(params={"state_dir": str(applied.state_dir)}, parent=None)
    assert completion.egress_machines(context, "w") == ["web-1"]
    assert completion.egress_projects(context, "") == ["data", "shop"]
    assert completion.egress_modes("st") == ["strict"]
    nowhere: Any = SimpleNamespace(params={"state_dir": str(applied.state_dir / "none")}, parent=None)
    assert completion.egress_machines(nowhere, "") == []
