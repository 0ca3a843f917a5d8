# SPDX-License-Identifier: GPL-3.0-or-later
"""resource_type, resource, resource_info and process_template on a host without fleetd."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tests.integration.modules.plays import Play, Task, task

SEATS = [{"name": "seat", "counter": True, "start": 1, "end": 3}]
SECRETS = {"x": None, "db_password": "correct horse"}
TEMPLATE = {"id": "t", "command": "run ${x}", "vars": SECRETS, "env": {"DEBUG": "1"}}


def test_types_are_predicted_defined_and_removed(play: Play) -> None:
    checked, made, again, changed, removed, gone = play(
        [
            task("resource_type", True, types=SEATS),
            task("resource_type", types=SEATS),
            task("resource_type", types=SEATS),
            task("resource_type", types=[{"name": "seat", "end": 5}, {"name": "tcpport", "start": 9000}]),
            task("resource_type", state="absent", types=SEATS),
            task("resource_type", state="absent", types=SEATS),
        ]
    )
    assert checked["changed"]
    assert checked["actions"] == made["actions"] == ["create resource type seat"]
    assert made["types"] == {"seat": {"name": "seat", "counter": True, "start": 1, "end": 3}}
    assert made["diff"] == checked["diff"] == {"before": "", "after": made["types"]}
    assert not again["changed"]
    assert again["types"] == made["types"]
    assert changed["types"]["seat"]["end"] == 5
    assert changed["types"]["tcpport"]["probe"] == "tcp"  # what is not given stays
    assert removed["changed"]
    assert removed["types"] == {}
    assert not gone["changed"]


def test_check_mode_and_readers_leave_no_trace(play: Play) -> None:
    play(
        [
            task("resource_type", True, types=SEATS),
            task("resource", True, claims=[{"owner": "a", "resources": ["tcpport"]}]),
            task("process_template", True, templates=[TEMPLATE]),
            task("resource_info"),
        ]
    )
    assert not play.state_dir.exists()


def test_claims_are_predicted_made_kept_and_released(play: Play) -> None:
    claims = [
        {"owner": "a", "resources": ["seat", {"type": "seat", "name": "second"}]},
        {"owner": "b", "resources": ["datadir:/srv/b"]},
    ]
    _types, checked, made, again, info, one, listed, rest, gone = play(
        [
            task("resource_type", types=SEATS),
            task("resource", True, claims=claims),
            task("resource", claims=claims),
            task("resource", claims=claims),
            task("resource_info", types=["seat"], facts=True),
            task("resource", state="absent", claims=[{"owner": "a", "resources": ["seat:1"]}]),
            task("resource_info", owners=["a", "b"]),
            task("resource", state="absent", claims=[{"owner": "a"}, {"owner": "b"}]),
            task("resource", True, state="absent", claims=[{"owner": "a"}, {"owner": "b"}]),
        ]
    )
    held = {"a": {"seat": "1", "second": "2"}, "b": {"datadir": "/srv/b"}}
    assert checked["claims"] == made["claims"] == again["claims"] == held
    assert (checked["changed"], made["changed"], again["changed"]) == (True, True, False)
    assert made["actions"] == ["claim seat:1 for a", "claim seat:2 for a", "claim datadir:/srv/b for b"]
    assert made["diff"]["after"] == {"a seat": "seat:1", "a second": "seat:2", "b datadir": "datadir:/srv/b"}
    assert info["owners"] == info["ansible_facts"]["fleet_resources"] == {"a": held["a"]}
    assert info["counters"] == {"seat": 3}
    assert [claim["name"] for claim in info["vanished"]] == ["seat", "second"]
    assert one["released"] == [{"type": "seat", "value": "1", "owner": "a", "name": "seat"}]
    assert listed["owners"] == {"a": {"second": "2"}, "b": held["b"]}
    assert rest["changed"]
    assert rest["claims"] == {}
    assert not gone["changed"]


def test_exclusive_releases_what_vanished_owners_hold(play: Play) -> None:
    keep = [{"owner": "keep", "resources": ["seat"]}]
    results = play(
        [
            task("resource_type", types=SEATS),
            task("resource", claims=[*keep, {"owner": "lost", "resources": ["seat"]}]),
            task("resource", True, claims=keep, exclusive=True),
            task("resource", claims=keep, exclusive=True),
            task("resource", claims=keep, exclusive=True),
        ]
    )
    checked, done, again = results[2:]
    assert checked["actions"] == done["actions"] == ["release seat:2 of lost"]
    assert done["claims"] == {"keep": {"seat": "1"}}
    assert not again["changed"]


def test_all_the_claims_of_a_task_are_made_or_none(play: Play) -> None:
    many = [{"owner": name, "resources": ["seat"]} for name in "abcd"]
    *_made, failed = play([task("resource_type", types=SEATS), task("resource", claims=many)], fails=True)
    assert failed["msg"] == 'resource type "seat": no free value in 1-3: 3 claimed, 0 busy'
    assert failed["code"] == "exhausted"
    assert play([task("resource_info", types=["seat"])])[0]["claims"] == []


WRONG: list[tuple[str, dict[str, Any], str, str]] = [
    ("resource", {"claims": [{"owner": "a", "resources": ["tcport"]}]}, "not_found", 'did you mean "tcpport"?'),
    ("resource", {"claims": [{"owner": "a", "resources": ["seat:1", "seat:2"]}]}, "invalid_input", "stands twice"),
    ("resource_type", {"types": [{"name": "x", "check": "true"}]}, "invalid_input", 'check_means "free" or "in_use"'),
    ("resource_info", {"types": ["nosuch"]}, "not_found", 'resource type "nosuch": not defined'),
    ("process_template", {"templates": [{"id": "x"}]}, "invalid_input", 'template "x": expected a command'),
    ("process", {"ids": ["web"]}, "unavailable", "the role autovibe.fleet.node installs and starts fleetd"),
    ("environment_info", {}, "unavailable", "state_dir: "),
]


def test_a_failure_says_what_is_wrong(play: Play) -> None:
    results = play([task(module, ignore_errors=True, **options) for module, options, _code, _message in WRONG])
    for result, (_module, _options, code, message) in zip(results, WRONG, strict=False):
        assert result["failed"]
        assert message in result["msg"]
        assert result["code"] == code
    assert f"state_dir: {play.state_dir}" in results[-1]["msg"]


def test_a_claimed_type_is_not_removed(play: Play) -> None:
    *_made, failed = play(
        [
            task("resource_type", types=SEATS),
            task("resource", claims=[{"owner": "a", "resources": ["seat"]}]),
            task("resource_type", True, state="absent", types=SEATS),
        ],
        fails=True,
    )
    assert failed["msg"] == 'resource type "seat": 1 of its values are claimed ("seat:1" by "a"); release them first'


def test_templates_are_predicted_defined_replaced_and_removed(play: Play) -> None:
    other = {"id": "t", "command": "run", "vars": {"db_password": "battery staple"}}
    checked, made, again, secret, replaced, removed, gone = play(
        [
            task("process_template", True, templates=[TEMPLATE]),
            task("process_template", templates=[TEMPLATE]),
            task("process_template", templates=[TEMPLATE]),
            task("process_template", templates=[{**TEMPLATE, "vars": {**SECRETS, "db_password": "another one"}}]),
            task("process_template", templates=[other]),
            task("process_template", state="absent", templates=[{"id": "t"}]),
            task("process_template", state="absent", templates=[{"id": "t"}]),
        ]
    )
    hidden = {"x": None, "db_password": "********"}
    assert checked["actions"] == made["actions"] == ["create process template t"]
    assert made["templates"]["t"]["vars"] == hidden
    assert made["templates"]["t"]["env"] == {"DEBUG": "1"}
    assert made["diff"]["after"]["t"]["vars"] == hidden
    assert not again["changed"]
    assert secret["changed"]
    assert secret["diff"]["before"] == secret["diff"]["after"]
    assert "env" not in replaced["templates"]["t"]  # the whole template is replaced
    assert removed["changed"]
    assert removed["templates"] == {}
    assert not gone["changed"]


def test_a_thousand_claims_are_one_call(play: Play) -> None:
    claims = [{"owner": f"worker-{number}", "resources": ["tcpport"]} for number in range(1000)]
    begin = time.monotonic()
    made, again = play([task("resource", claims=claims), task("resource", claims=claims)])
    assert len({held["tcpport"] for held in made["claims"].values()}) == 1000
    assert not again["changed"]
    assert again["claims"] == made["claims"]
    assert time.monotonic() - begin < 60


def test_the_action_group_sets_options_for_all_modules(play: Play, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    defaults = {"group/autovibe.fleet.fleet": {"state_dir": str(elsewhere)}}
    claims = [{"owner": "a", "resources": ["tcpport"]}]
    play([{**task("resource", claims=claims), "module_defaults": defaults}])
    assert (elsewhere / "fleet.db").exists()
    assert not play.state_dir.exists()


def shown(text: str) -> Task:
    return {"ansible.builtin.debug": {"msg": text}, "ignore_errors": True}


def test_the_lookup_gives_an_owner_the_same_values_again(play: Play) -> None:
    query = (
        "{{ query('autovibe.fleet.resource', 'tcpport', {'type': 'tcpport', 'name': 'b'}, 'tcpport', owner='shop') }}"
    )
    first, again, one, unknown, twice = play(
        [
            shown(query),
            shown(query),
            shown("{{ lookup('autovibe.fleet.resource', 'tcpport', owner='shop') }}"),
            shown("{{ lookup('autovibe.fleet.resource', 'tcport', owner='shop') }}"),
            shown("{{ lookup('autovibe.fleet.resource', 'vncport:5901', 'vncport:5902', owner='shop') }}"),
        ]
    )
    port, admin, same = first["msg"]
    assert port == same != admin
    assert again["msg"] == first["msg"]
    assert one["msg"] == port
    assert 'did you mean "tcpport"?' in unknown["msg"]
    assert 'owner "shop": resource "vncport" stands twice' in twice["msg"]
