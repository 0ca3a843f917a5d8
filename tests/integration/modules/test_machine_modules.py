# SPDX-License-Identifier: GPL-3.0-or-later
"""machine and machine_info on a host with Multipass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.fakes.multipass_host import Host
from tests.integration.modules.plays import Play, Result, Task, task

SECRET = "hunter2-in-user-data"
WEB = {
    "name": "web-1",
    "image": "24.04",
    "cpu": 2,
    "memory": "1.5G",
    "disk": "10G",
    "networks": [{"name": "br0"}],
    "user_data": f"#cloud-config\npassword: {SECRET}\n",
    "tags": ["web"],
    "project": "shop",
}
DB = {"name": "db-1", "tags": ["db"], "project": "shop"}


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def machine(machines: Any = None, check_mode: bool = False, **options: Any) -> Task:
    if machines is not None:
        options["machines"] = machines
    return task("machine", check_mode, provider="multipass", **options)


def run(play: Play, host: Host, *tasks: Task, fails: bool = False) -> list[Result]:
    return play(list(tasks), fails=fails, **host.environ)


def test_machines_are_predicted_made_kept_and_deleted(play: Play, host: Host) -> None:
    checked, made, again, info, full, predicted, gone, still = run(
        play,
        host,
        machine([WEB, DB], True, state="started"),
        machine([WEB, DB], state="started"),
        machine([WEB, DB], state="started"),
        task("machine_info", provider="multipass", facts=True, names=["web-1", "nosuch"]),
        task("machine_info", provider="multipass", project="shop", tags=["web"], gather=["resources", "images"]),
        machine(None, True, state="absent", names=["web-1", "db-1"]),
        machine(None, state="absent", names=["web-1", "db-1"]),
        machine([WEB], state="absent", names=["db-1"]),
    )
    assert checked["actions"] == made["actions"] == ["create machine web-1", "create machine db-1"]
    assert checked["diff"] == made["diff"]
    assert made["diff"]["before"] == ""
    assert made["diff"]["after"]["web-1"]["memory"] == 1610612736
    assert [one["state"] for one in made["machines"]] == ["running", "running"]
    assert all(outcome["ok"] and outcome["done"] for outcome in made["outcomes"])
    assert any(line.endswith("web-1: launch it") for line in made["progress"])
    assert SECRET not in str([checked, made, again, info, full])
    assert not again["changed"]
    assert again["diff"] == {"before": "", "after": ""}
    (web,) = info["machines"]
    assert (web["image"], web["tags"], web["project"], web["addresses"] != []) == ("24.04", ["web"], "shop", True)
    assert info["missing"] == ["nosuch"]
    assert set(info["ansible_facts"]["fleet_machines"]) == {"web-1"}
    assert [one["name"] for one in full["machines"]] == ["web-1"]
    assert full["machines"][0]["detail"]["memory"]["total"] > 0
    assert "24.04" in [image["name"] for image in full["images"]]
    assert predicted["actions"] == gone["actions"] == ["delete machine web-1", "delete machine db-1"]
    assert gone["machines"] == []
    assert not still["changed"]
    assert host.instances() == {}


def test_check_mode_and_info_leave_no_trace(play: Play, host: Host) -> None:
    run(play, host, machine([WEB], True), task("machine_info", provider="multipass"))
    assert {call[0] for call in host.calls()} <= {"list", "info", "get"}
    assert not play.state_dir.exists()


def test_machines_are_stopped_started_restarted_and_changed(play: Play, host: Host) -> None:
    more = {"name": "web-1", "memory": "4G", "tags": ["big"]}
    _made, stopped, again, started, restarted, refused = run(
        play,
        host,
        machine([WEB]),
        machine(names=["web-1"], state="stopped"),
        machine(names=["web-1"], state="stopped"),
        machine(names=["web-1"], state="started"),
        machine(names=["web-1"], state="restarted"),
        machine([more]),
        fails=True,
    )
    assert stopped["actions"] == ["stop machine web-1"]
    assert stopped["diff"]["after"]["web-1"]["state"] == "stopped"
    assert not again["changed"]
    assert started["actions"] == ["start machine web-1"]
    assert restarted["actions"] == ["stop machine web-1", "start machine web-1"]
    assert refused["code"] == "conflict"
    assert refused["msg"].endswith("set reboot: true, or stop it first")

    changed, same, anew, other = run(
        play,
        host,
        machine([more], reboot=True),
        machine([more]),
        machine([{"name": "web-1", "image": "22.04"}], recreate=True),
        machine([{"name": "web-1", "image": "24.04"}]),
        fails=True,
    )
    assert changed["actions"][1] == "change machine web-1: memory from 1.5G to 4G, tags from web to big"
    assert changed["diff"]["before"]["web-1"]["memory"] == 1610612736
    assert not same["changed"]
    assert anew["actions"][0].startswith("delete machine web-1 to change image from 24.04 to 22.04")
    assert "set recreate: true to delete the machine and make it anew" in other["msg"]


def test_what_failed_and_what_was_done_nevertheless_is_told(play: Play, host: Host) -> None:
    host.faults({"command": "launch", "name": "db-1", "code": 2, "message": "launch failed: no space left on device"})
    (failed,) = run(play, host, machine([WEB, DB]), fails=True)
    assert failed["msg"] == '1 of 2 machines failed: machine "db-1": multipass launch: no space left on device'
    assert failed["code"] == "process_failed"
    assert (failed["changed"], failed["actions"]) == (True, ["create machine web-1"])
    assert [(one["name"], one["ok"]) for one in failed["outcomes"]] == [("web-1", True), ("db-1", False)]
    assert SECRET not in str(failed)
    (repaired,) = run(play, host, machine([WEB, DB]))
    assert repaired["actions"] == ["create machine db-1"]


def test_a_machine_that_was_left_incomplete_is_finished_by_the_next_run(play: Play, host: Host) -> None:
    host.faults({"command": "launch", "timeout": "stuck"})
    (failed,) = run(play, host, machine([DB], timeout="2s"), fails=True)
    assert failed["code"] == "timed_out"
    assert "an instance that is starting is left" in failed["msg"]
    host.edit("db-1", state="Running")
    info, finished, after = run(
        play,
        host,
        task("machine_info", provider="multipass"),
        machine([DB]),
        machine([DB]),
    )
    assert "is left" in info["machines"][0]["incomplete"]
    assert finished["actions"][0].startswith("finish machine db-1, which is incomplete")
    assert not after["changed"]


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"machines": [{"name": "no_underscore"}]}, "invalid_input", "machine name 'no_underscore': expected a host name"),
    ({"machines": [{"name": "a", "memory": "much"}]}, "invalid_input", 'machine "a": memory: expected a size'),
    ({"machines": [{"name": "a"}, {"name": "A"}]}, "invalid_input", "is the same host name"),
    ({"names": ["nosuch"]}, "not_found", "machine nosuch: not there with provider multipass"),
    ({"names": ["a"], "provider": "multipas"}, "invalid_input", 'did you mean "multipass"?'),
    ({"names": ["a"], "provider_settings": {"exe": "x"}}, "invalid_input", 'unknown key "exe"'),
    ({"names": ["a"], "provider_settings": {"executable": "/nowhere"}}, "unavailable", "/nowhere is not installed"),
    ({"machines": [{"name": "a"}], "timeout": "soon"}, "invalid_input", "timeout: expected a duration"),
    ({"machines": [{"name": "a"}], "parallel": 0}, "invalid_input", "parallel: expected a number from 1 to 64"),
]


def test_wrong_input_is_one_sentence(play: Play, host: Host) -> None:
    tasks = [
        task("machine", ignore_errors=True, **{"provider": "multipass", **options})
        for options, _code, _message in WRONG
    ]
    results = run(play, host, *tasks)
    for (_options, code, message), result in zip(WRONG, results, strict=True):
        assert (result.get("code"), message in result["msg"]) == (code, True), result["msg"]
    assert host.instances() == {}


@pytest.mark.slow
def test_fifty_machines_are_handled_in_one_call(play: Play, host: Host) -> None:
    names = [f"many-{number}" for number in range(50)]
    made, again, gone = run(
        play,
        host,
        machine([{"name": name, "project": "p"} for name in names], parallel=8),
        machine([{"name": name, "project": "p"} for name in names]),
        machine(names=names, state="absent", parallel=8),
    )
    assert len(made["machines"]) == 50
    assert not again["changed"]
    assert len(gone["actions"]) == 50
    calls = [call[0] for call in host.calls()]
    assert calls.count("launch") == 50
