# SPDX-License-Identifier: GPL-3.0-or-later
"""image and image_info on a host with Multipass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.fakes.multipass_host import Host
from tests.integration.modules.plays import Play, Result, Task, task

SECRET = "hunter2-in-user-data"
GOLD: dict[str, Any] = {
    "name": "gold",
    "base": "24.04",
    "disk": "6G",
    "user_data": f"#cloud-config\npassword: {SECRET}\n",
    "commands": ["apt-get install -y git"],
    "checks": [{"name": "git", "run": "git --version"}],
    "login": "dev",
}


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def image(check_mode: bool = False, **options: Any) -> Task:
    return task("image", check_mode, provider="multipass", **{**GOLD, **options})


def machine(name: str, of: str = "gold") -> Task:
    return task("machine", provider="multipass", machines=[{"name": name, "image": of}])


def absent(name: str, check_mode: bool = False, **options: Any) -> Task:
    return task("image", check_mode, provider="multipass", state="absent", name=name, **options)


def run(play: Play, host: Host, *tasks: Task, fails: bool = False) -> list[Result]:
    return play(list(tasks), fails=fails, **host.environ)


def test_an_image_is_predicted_built_kept_changed_and_deleted(play: Play, host: Host) -> None:
    checked, built, again, _made, predicted, changed, info, pruned, refused = run(
        play,
        host,
        image(True),
        image(),
        image(),
        machine("dev-1"),
        image(True, commands=["true"], login="ada"),
        image(commands=["true"], login="ada"),
        task("image_info", provider="multipass", kind="golden", drift=True, names=["gold", "nosuch"], facts=True),
        image(commands=["false"], keep=0),
        absent("gold"),
        fails=True,
    )
    old = built["image"]["name"]
    assert checked["actions"] == built["actions"] == [f"build image {old}: there is none of this family"]
    assert (checked["built"], checked["image"], built["built"]) == (True, {}, True)
    assert checked["diff"] == built["diff"]
    assert set(built["diff"]["after"][old]) >= {"base", "commands", "user_data"}
    assert any(line.endswith("check git") for line in built["progress"])
    assert (again["changed"], again["built"], again["image"]) == (False, False, built["image"])
    assert predicted["changed_inputs"] == changed["changed_inputs"] == ["commands", "login"]
    assert predicted["reason"] == changed["reason"] == f"commands and login changed since {old}"
    new = changed["image"]["name"]
    assert info["newest"] == {"gold": new}
    assert info["missing"] == ["nosuch"]
    assert info["drift"] == [{"machine": "dev-1", "image": old, "newest": new}]
    assert info["drift_report"] == [f"machine dev-1 runs {old}, the newest is {new}"]
    assert set(info["ansible_facts"]["fleet_images"]) == {old, new}
    assert pruned["pruned"] == [new]  # the oldest is in use
    assert pruned["actions"][1] == f"delete image {new}"
    assert refused["code"] == "conflict"
    assert f'image "gold": it is in use: {old} runs in dev-1; delete these machines first' in refused["msg"]
    assert SECRET not in str([checked, built, again, predicted, changed, info, pruned])

    predicted, gone, still = run(
        play, host, absent("gold", True, force=True), absent("gold", force=True), absent("gold")
    )
    assert predicted["actions"] == gone["actions"]
    assert len(gone["pruned"]) == 2
    assert not still["changed"]
    assert set(host.instances()) == {"dev-1"}


def test_check_mode_leaves_no_trace(play: Play, host: Host) -> None:
    run(play, host, image(True), task("image_info", provider="multipass"))
    assert {call[0] for call in host.calls()} <= {"list", "find"}
    assert not play.state_dir.exists()


def test_a_failed_build_is_told_and_repeated(play: Play, host: Host) -> None:
    (failed,) = run(play, host, image(checks=[{"name": "node", "run": "exit 3"}]), fails=True)
    assert failed["msg"] == 'image "gold": check "node": ended with 3: sh: it did not work'
    assert failed["code"] == "process_failed"
    assert failed["progress"][-1].endswith("check node")
    assert SECRET not in str(failed)
    (repaired,) = run(play, host, image())
    assert repaired["reason"] == "there is none of this family"
    assert repaired["image"]["incomplete"] == ""


def test_the_same_inputs_are_built_again_on_request_and_when_they_come_back(play: Play, host: Host) -> None:
    first, rebuilt, same, other, back, still = run(
        play, host, image(), image(rebuild=True), image(), image(commands=[]), image(), image()
    )
    names = [one["image"]["name"] for one in (first, rebuilt, other, back)]
    assert len(set(names)) == 4
    assert rebuilt["reason"] == "rebuild was asked for"
    assert not same["changed"]
    assert same["image"]["name"] == names[1]
    assert back["changed_inputs"] == ["commands"]  # the newest counts, not one of long ago
    assert not still["changed"]


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"name": "no_underscore"}, "invalid_input", "machine name 'no_underscore': expected a host name"),
    ({"name": "x" * 60}, "invalid_input", "expected the name of a family, at most 52 letters"),
    ({"checksum": "md5:12"}, "invalid_input", 'checksum: expected "sha256:"'),
    ({"disk": "much"}, "invalid_input", 'image "gold": disk: expected a size'),
    ({"cpu": 0}, "invalid_input", 'image "gold": cpu: expected a number from 1'),
    ({"keep": -1}, "invalid_input", "keep: expected a number from 0"),
    ({"checks": [{"name": "a", "run": " "}]}, "invalid_input", 'check "a": expected a shell text to run'),
    ({"checks": [{"name": "a", "run": "true"}] * 2}, "invalid_input", "checks[1].name: expected a text of its own"),
    ({"base": "nosuch"}, "not_found", "Unable to find an image"),
    ({"timeout": "soon"}, "invalid_input", "timeout: expected a duration"),
    ({"user_data": "#!/bin/sh\n"}, "invalid_input", "user_data: Multipass takes cloud-config only"),
]


def test_wrong_input_is_one_sentence(play: Play, host: Host) -> None:
    tasks = [
        task("image", ignore_errors=True, provider="multipass", **{**GOLD, **options}) for options, *_rest in WRONG
    ]
    results = run(play, host, *tasks)
    for (_options, code, message), result in zip(WRONG, results, strict=True):
        assert (result.get("code"), message in result["msg"]) == (code, True), result["msg"]
    assert host.instances() == {}
