# SPDX-License-Identifier: GPL-3.0-or-later
"""checkpoint and checkpoint_info on a host with Multipass, whose machines have real folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.fakes.multipass_host import Host
from tests.integration.modules.plays import Play, Result, Task, task


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def checkpoint(check_mode: bool = False, **options: Any) -> Task:
    return task("checkpoint", check_mode, provider="multipass", **{"machines": ["dev-1"], **options})


def save(check_mode: bool = False, **options: Any) -> Task:
    return checkpoint(check_mode, **{"folders": ["/guest/srv"], "stop": True, **options})


def info(check_mode: bool = False, **options: Any) -> Task:
    return task("checkpoint_info", check_mode, provider="multipass", **options)


def run(play: Play, host: Host, *tasks: Task, fails: bool = False) -> list[Result]:
    return play(list(tasks), fails=fails, **host.environ)


@pytest.fixture
def work(host: Host, play: Play) -> Path:
    """The work of a machine that runs."""
    run(play, host, task("machine", provider="multipass", machines=[{"name": "dev-1"}, {"name": "dev-2"}]))
    host.calls()
    folder = host.guest("dev-1") / "srv"
    folder.mkdir()
    (folder / "app.py").write_text("print('hello')\n")
    return folder


def test_a_state_is_predicted_saved_compared_verified_restored_and_removed(play: Play, host: Host, work: Path) -> None:
    predicted, saved, again = run(
        play,
        host,
        save(True, name="clean", kind="genesis", comment="As it came"),
        save(name="clean", kind="genesis", comment="As it came"),
        save(name="clean", kind="genesis", comment="As it came"),
    )
    assert predicted["actions"] == saved["actions"] == ["save checkpoint clean of machine dev-1"]
    assert predicted["diff"] == saved["diff"]
    assert saved["diff"]["after"]["dev-1"] == {"checkpoints": ["clean"], "at": "clean"}
    (one,) = saved["checkpoints"]
    assert (one["name"], one["kind"], one["comment"], one["files"], one["current"]) == (
        *("clean", "genesis", "As it came", 1, True),
    )
    assert not again["changed"]
    assert saved["outcomes"][0]["ok"]
    assert [line.partition(" ")[2] for line in saved["progress"]] == [
        "dev-1: save checkpoint clean of machine dev-1",
        *("dev-1: look at /guest/srv", "dev-1: stop it", "dev-1: save it", "dev-1: start it"),
    ]

    (work / "app.py").write_text("print('broken')\n")
    (work / "virus").touch()
    foreseen, later, found, restored, after, verified, gone, still = run(
        play,
        host,
        save(True, name="later"),
        save(name="later"),
        info(machines=["dev-1", "nosuch"], manifests=True, diff={"from": "dev-1.clean", "to": "dev-1.later"}),
        checkpoint(state="restored", name="clean"),
        info(machines=["dev-1"], diff={"from": "dev-1.clean", "to": "dev-1"}),
        info(names=["clean"], verify="restore", stop=True),
        checkpoint(state="absent", name="later"),
        checkpoint(state="absent", name="later"),
    )
    (files,) = later["diff"]
    assert foreseen["diff"][0]["after"] == files["after"]
    assert (files["before_header"], files["after_header"]) == ("dev-1.clean", "dev-1.later")
    assert [line.split()[-1] for line in files["before"].splitlines()] == ["/guest/srv/app.py"]
    assert [line.split()[-1] for line in files["after"].splitlines()] == ["/guest/srv/app.py", "/guest/srv/virus"]
    assert found["difference"] == {
        "from": "dev-1.clean",
        "to": "dev-1.later",
        "same": False,
        "added": ["/guest/srv/virus"],
        "removed": [],
        "changed": {"/guest/srv/app.py": "content"},
    }
    assert found["missing"] == ["nosuch"]
    assert found["trees"] == {"dev-1": ["clean (genesis)", "  later (manual)"]}
    assert found["checkpoints"][0]["manifest"]["/guest/srv/app.py"][:2] == ["file", 15]
    assert restored["actions"] == ["restore machine dev-1 to checkpoint clean"]
    assert [line.split()[-1] for line in restored["diff"][0]["before"].splitlines()] == [
        "/guest/srv/app.py",
        "/guest/srv/virus",
    ]
    assert after["difference"]["same"]
    assert (work / "app.py").read_text() == "print('hello')\n"
    assert verified["unverified"] == []
    assert verified["checkpoints"][0]["verified"]["ok"]
    assert gone["actions"] == ["remove checkpoint later of machine dev-1"]
    assert not still["changed"]
    kept = play.state_dir / "machines" / "multipass" / "checkpoints"
    assert kept.exists()
    run(play, host, task("machine", provider="multipass", state="absent", names=["dev-1"]))
    assert not kept.exists()  # what is known of checkpoints goes with the machine
    assert {name: one["state"] for name, one in host.instances().items()} == {"dev-2": "Running"}


def test_check_mode_changes_nothing(play: Play, host: Host, work: Path) -> None:
    before = host.left()
    run(play, host, save(True), info(True, verify="restore", stop=True))
    assert {call[0] for call in host.calls()} <= {"list", "info", "exec"}
    assert host.left() == before


def test_one_that_is_damaged_is_told_and_fails_nothing(play: Play, host: Host, work: Path) -> None:
    run(play, host, save(name="one"))
    (host.folder / "disks" / "dev-1.one" / "guest" / "srv" / "app.py").write_text("rotten")
    (found,) = run(play, host, info(machines=["dev-1"], verify="restore", stop=True))
    assert found["unverified"] == ["dev-1.one: it boots, but of 1 files: 1 changed"]
    assert found["checkpoints"][0]["verified"]["diff"]["changed"] == {"/guest/srv/app.py": "content"}


def test_a_machine_that_cannot_be_asked_is_restored_all_the_same(play: Play, host: Host, work: Path) -> None:
    run(play, host, save(name="one"))
    host.faults(*[{"command": "exec", "code": 2, "message": "exec failed: ssh connection failed"}] * 9)
    predicted, restored = run(
        play, host, checkpoint(True, state="restored", name="one"), checkpoint(state="restored", name="one")
    )
    assert predicted["actions"] == restored["actions"] != []


def test_checkpoints_are_made_when_due_and_pruned_when_old(play: Play, host: Host, work: Path) -> None:
    auto: dict[str, Any] = {"triggers": {"every": "1h"}, "usage": {"api_calls": 3, "budget_used": 0.05}, "folders": []}
    first, quiet, calls, risky = run(
        play,
        host,
        save(**auto),
        save(**auto),
        save(**{**auto, "usage": {"api_calls": 8}}),
        save(**auto, risky=True),
    )
    assert first["actions"][0].endswith("of machine dev-1: there is none yet")
    assert first["checkpoints"][0]["kind"] == "automatic"
    assert first["checkpoints"][0]["usage"] == {"api_calls": 3, "budget_used": 0.05}
    assert not quiet["changed"]
    assert calls["checkpoints"][0]["reason"] == "5 API calls after the last one"
    assert risky["checkpoints"][0]["reason"] == "before a risky step"

    old = {"machine": {"all": 0, "daily": 0, "weekly": 0}}
    checked, pruned, none = run(
        play,
        host,
        save(True, name="mine", retention=old),
        save(name="mine", retention=old),
        checkpoint(state="absent", retention=old),
    )
    names = [one["checkpoints"][0]["name"] for one in (first, calls, risky)]
    assert {name: sorted(gone) for name, gone in pruned["pruned"].items()} == {"dev-1": sorted(names)}
    assert checked["pruned"] == pruned["pruned"]
    assert not none["changed"]


def test_many_machines_are_saved_at_once_and_one_that_fails_keeps_none(play: Play, host: Host, work: Path) -> None:
    host.faults({"command": "snapshot", "name": "dev-2", "code": 2, "message": "snapshot failed: no space left"})
    both = {"machines": ["dev-1", "dev-2"], "name": "one", "folders": []}
    failed, repaired = run(play, host, save(**both), fails=True)[0], run(play, host, save(**both))[0]
    assert failed["msg"].startswith('1 of 2 machines failed: checkpoint "one" of machine "dev-2": ')
    assert (failed["changed"], failed["actions"]) == (True, ["save checkpoint one of machine dev-1"])
    assert repaired["actions"] == ["save checkpoint one of machine dev-2"]
    assert [one["state"] for one in host.instances().values()] == ["Running", "Running"]


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"name": "a.b"}, "invalid_input", "checkpoint name 'a.b'"),
    ({"name": "latest"}, "invalid_input", 'checkpoint name "latest": it stands for the newest one'),
    ({"machines": ["dev-1", "dev-1"]}, "invalid_input", 'machine "dev-1": stands twice'),
    ({"machines": ["nosuch"]}, "not_found", "machine nosuch: not there with provider multipass"),
    ({"folders": ["../etc"]}, "invalid_input", "folders: expected absolute paths"),
    ({"folders": ["$HOME"]}, "invalid_input", "folders: expected absolute paths"),
    ({"comment": "a\nb"}, "invalid_input", "comment: expected one line"),
    ({"stop": False}, "conflict", "saves stopped machines only; set stop: true"),
    ({"live": True}, "conflict", "not live ones"),
    ({"triggers": {"every": "soon"}}, "invalid_input", "triggers.every: expected a duration"),
    ({"usage": {"api_calls": -1}}, "invalid_input", "usage.api_calls: expected a number"),
    ({"retention": {"machine": {"all": "long"}}}, "invalid_input", "retention.machine.all: expected a duration"),
    ({"state": "restored", "name": "nosuch"}, "not_found", "expected one that exists: none"),
    ({"state": "restored", "name": "latest"}, "not_found", 'machine "dev-1": it has no checkpoint'),
    ({"machines": ["dev-1", "dev-2"], "stop": False}, "conflict", 'machine "dev-2": it is running'),
]


def test_wrong_input_is_one_sentence_and_nothing_is_done(play: Play, host: Host, work: Path) -> None:
    tasks = [
        task("checkpoint", ignore_errors=True, provider="multipass", **{"machines": ["dev-1"], "stop": True, **options})
        for options, *_rest in WRONG
    ]
    results = run(play, host, *tasks)
    for (_options, code, message), result in zip(WRONG, results, strict=True):
        assert (result.get("code"), message in result["msg"]) == (code, True), result["msg"]
    assert all(one["snapshots"] == {} for one in host.instances().values())
    refused = run(play, host, info(diff={"from": "dev-1", "to": "dev-2"}), fails=True)[0]
    assert "expected MACHINE.CHECKPOINT" in refused["msg"]
