# SPDX-License-Identifier: GPL-3.0-or-later
"""The keeper of checkpoints, on the fake of Multipass with real folders behind its machines."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.multipass_host import Host

from fleet_core.errors import Conflict, InvalidInput, NotFound, ProcessFailed, StateDamaged
from fleet_core.machines import MachineSpec
from fleet_core.retention import DAY, Retention
from fleet_core.triggers import Triggers, Usage
from fleet_machines.checkpoints import SCRATCH, Keeper, automatic_name
from fleet_machines.multipass import Multipass
from fleet_machines.provider import Job

FOLDERS = ("/guest/srv",)
DEV = MachineSpec("dev-1", "multipass")


def job(seconds: float = 30, said: list[str] | None = None) -> Job:
    return Job.lasting(seconds, (said if said is not None else []).append)


@pytest.fixture
def clock() -> list[float]:
    """How many days the clocks, ours and the fake's, are ahead."""
    return [0.0]


@pytest.fixture
def ahead(host: Host, clock: list[float]) -> Callable[[float], None]:
    def move(days: float) -> None:
        clock[0] = days
        host.settings(days=days)

    return move


@pytest.fixture
def keeper(host: Host, clock: list[float]) -> Keeper:
    """A keeper of a host with one running machine that has work in /guest/srv."""
    adapter = host.adapter()
    adapter.create(DEV, job())
    work = host.guest("dev-1") / "srv"
    work.mkdir()
    (work / "app.py").write_text("print('hello')\n")
    return Keeper(adapter, str(host.state_dir), lambda: time.time() + clock[0] * DAY)


def take(keeper: Keeper, name: str, **values: Any) -> Any:
    return keeper.take("dev-1", name, job(), **{"folders": FOLDERS, "stop": True, **values})


def test_a_checkpoint_is_taken_damage_found_and_undone(host: Host, keeper: Keeper) -> None:
    said: list[str] = []
    made = keeper.take(
        "dev-1", "clean", job(said=said), kind="genesis", comment="As it came", folders=FOLDERS, stop=True
    )
    assert (made.kind, made.comment, made.parent) == ("genesis", "As it came", "")
    assert said == ["look at /guest/srv", "stop it", "save it", "start it"]
    assert host.instances()["dev-1"]["state"] == "Running"
    note = keeper.note("dev-1", "clean")
    assert (note["files"], note["bytes"], note["folders"]) == (1, 15, ["/guest/srv"])

    app = host.guest("dev-1") / "srv" / "app.py"
    app.write_text("print('broken')\n")
    (app.parent / "virus").touch()
    found = keeper.diff("dev-1.clean", "dev-1", job())
    assert found.to_dict() == {
        "added": ["/guest/srv/virus"],
        "removed": [],
        "changed": {"/guest/srv/app.py": "content"},
    }
    take(keeper, "damaged", kind="automatic")
    assert [(one.name, one.parent, one.kind) for one in keeper.tree()["dev-1"]] == [
        ("clean", "", "genesis"),
        ("damaged", "clean", "automatic"),
    ]
    assert keeper.diff("dev-1.clean", "dev-1.damaged") == found
    assert keeper.diff("dev-1.damaged", "dev-1.clean").removed == ("/guest/srv/virus",)

    assert keeper.restore("dev-1", "clean", job()) == "clean"
    assert host.instances()["dev-1"]["state"] == "Running"
    assert not keeper.diff("dev-1.clean", "dev-1", job())
    assert take(keeper, "after").parent == "clean"
    assert keeper.restore("dev-1", "latest", job()) == "after"


def test_no_content_and_no_secret_is_in_what_is_kept(host: Host, keeper: Keeper) -> None:
    (host.guest("dev-1") / "srv" / "secret").write_text("hunter2")
    take(keeper, "one")
    kept = [path for path in host.state_dir.rglob("*") if path.is_file()]
    assert not any("hunter2" in path.read_text() for path in kept)
    assert {path.stat().st_mode & 0o077 for path in (*kept, *host.state_dir.rglob("*"))} <= {0, 0o44}
    assert all(path.stat().st_mode & 0o077 == 0 for path in kept)


def test_what_the_provider_cannot_do_is_refused_before_anything_is_done(host: Host, keeper: Keeper) -> None:
    for values, message in (
        ({"stop": False}, "provider multipass saves stopped machines only; set stop: true"),
        ({"live": True}, "provider multipass saves stopped machines only, not live ones"),
    ):
        with pytest.raises(Conflict) as caught:
            take(keeper, "one", **values)
        assert caught.value.message.startswith('checkpoint "one" of machine "dev-1": ')
        assert message in caught.value.message
    for values, message in (
        ({"kind": "odd"}, "kind: expected one of genesis"),
        ({"comment": "a\nb"}, "comment: expected one line"),
        ({"folders": ["srv"]}, "folders: expected absolute paths"),
    ):
        with pytest.raises(InvalidInput) as wrong:
            take(keeper, "one", **values)
        assert message in wrong.value.message
    host.edit("dev-1", state="Stopped")
    with pytest.raises(Conflict, match="it is stopped, and a manifest is made inside a running machine"):
        take(keeper, "one")
    with pytest.raises(NotFound, match='machine "nosuch"'):
        keeper.take("nosuch", "one", job())
    assert keeper.tree() == {"dev-1": ()}
    assert host.left() == ["dev-1.json"]


def test_a_name_is_taken_once(keeper: Keeper) -> None:
    take(keeper, "one")
    with pytest.raises(Conflict, match="there is one of that name already"):
        take(keeper, "one", kind="genesis")
    assert keeper.note("dev-1", "one")["kind"] == "manual"
    with pytest.raises(NotFound, match=r'checkpoint "two" of machine "dev-1": expected one that exists: one'):
        keeper.resolve("dev-1", "two")


def test_a_machine_that_cannot_be_saved_runs_again_and_nothing_is_noted(host: Host, keeper: Keeper) -> None:
    host.faults({"command": "snapshot", "code": 2, "message": "snapshot failed: no space left on device"})
    with pytest.raises(ProcessFailed, match="no space left"):
        take(keeper, "one")
    assert host.instances()["dev-1"]["state"] == "Running"
    assert host.left() == ["dev-1.json"]
    assert take(keeper, "one").name == "one"


def test_a_crash_between_the_note_and_the_checkpoint_leaves_no_wrong_word(
    host: Host, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_words: Any, **_values: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Multipass, "checkpoint", die)
        with pytest.raises(KeyboardInterrupt):
            take(keeper, "one", kind="final")
    assert host.instances()["dev-1"]["state"] == "Running"
    assert keeper.tree() == {"dev-1": ()}
    take(keeper, "two")
    assert keeper.notes.all("dev-1").keys() == {"two"}


def test_checkpoints_made_by_hand_are_manual_and_ones_removed_by_hand_are_forgotten(host: Host, keeper: Keeper) -> None:
    adapter = host.adapter()
    take(keeper, "ours", kind="automatic")
    adapter.stop("dev-1", job())
    adapter.checkpoint("dev-1", "theirs", job())
    adapter.delete_checkpoint("dev-1", "ours", job())
    assert [(one.name, one.kind) for one in keeper.tree()["dev-1"]] == [("theirs", "manual")]
    with pytest.raises(NotFound, match="it has no manifest"):
        keeper.manifest("dev-1", "theirs")
    keeper.remove("dev-1", "ours", job())
    assert keeper.notes.all("dev-1") == {}


def test_a_checkpoint_is_due(keeper: Keeper, ahead: Callable[[float], None]) -> None:
    assert keeper.due("dev-1", Triggers()) == "there is none yet"
    take(keeper, "one", kind="automatic", usage=Usage(10, 0.55))
    take(keeper, "two", kind="manual")
    assert keeper.due("dev-1", Triggers(), Usage(11, 0.58)) == ""
    assert keeper.due("dev-1", Triggers(), Usage(15, 0.58)) == "5 API calls after the last one"
    assert keeper.due("dev-1", Triggers(), Usage(11, 0.61)) == "61 % of the budget is used"
    assert keeper.due("dev-1", Triggers(), risky=True) == "before a risky step"
    ahead(0.5)
    assert keeper.due("dev-1", Triggers()) == "12h after the last one"
    assert keeper.due("dev-1", Triggers(every=DAY), Usage(11, 0.58)) == ""


def test_old_checkpoints_are_pruned_and_forks_keep_theirs(
    host: Host, keeper: Keeper, ahead: Callable[[float], None]
) -> None:
    adapter = host.adapter()
    adapter.stop("dev-1", job())
    plain = {"folders": (), "stop": False}
    take(keeper, "birth", kind="genesis", **plain)
    for number in range(3):
        take(keeper, f"auto-{number}", kind="automatic", **plain)
    take(keeper, "mine", **plain)
    adapter.create(MachineSpec("fork", "multipass", image="instance:dev-1.auto-0"), job())
    keeper.restore("dev-1", "auto-1", job())
    assert keeper.prune(None, Retention(), job()) == {}
    ahead(200)
    assert keeper.prune(None, Retention(), job()) == {"dev-1": ("auto-2",)}
    assert [one.name for one in keeper.tree()["dev-1"]] == ["birth", "auto-0", "auto-1", "mine"]
    assert keeper.prune(["dev-1"], Retention(kinds=("manual",)), job()) == {}  # the newest stays


def test_verification_by_hash_finds_a_manifest_that_is_another(host: Host, keeper: Keeper) -> None:
    take(keeper, "one")
    found = keeper.verify("dev-1", "latest")
    assert (found.ok, found.found) == (True, "the provider has it, and the manifest of 1 files fits")
    assert keeper.note("dev-1", "one")["verified"]["ok"] is True
    folder = host.state_dir / "machines" / "multipass" / "checkpoints" / "dev-1"
    note = json.loads((folder / "one.json").read_text())
    (folder / "one.json").write_text(json.dumps({**note, "digest": "sha256:" + "0" * 64}))
    found = keeper.verify("dev-1", "one")
    assert (found.ok, "is not the one that was saved" in found.found) == (False, True)
    (folder / "manifests" / "one.json").write_text('{"packed": "bm9uZQ=="}')
    assert "cannot be read" in keeper.verify("dev-1", "one").found
    with pytest.raises(StateDamaged):
        keeper.manifest("dev-1", "one")
    with pytest.raises(InvalidInput, match="verify: expected hash or restore"):
        keeper.verify("dev-1", "one", "odd")


def test_verification_by_restoring_compares_a_scratch_machine_and_leaves_none(host: Host, keeper: Keeper) -> None:
    take(keeper, "one")
    app = host.guest("dev-1") / "srv" / "app.py"
    app.write_text("later work")
    with pytest.raises(Conflict, match="provider multipass forks stopped ones only; set stop: true"):
        keeper.verify("dev-1", "one", "restore", job())
    found = keeper.verify("dev-1", "one", "restore", job(), stop=True)
    assert (found.ok, found.found) == (True, "it boots, and the manifest of 1 files fits")
    assert list(host.instances()) == ["dev-1"]
    assert (host.instances()["dev-1"]["state"], app.read_text()) == ("Running", "later work")
    (host.folder / "disks" / "dev-1.one" / "guest" / "srv" / "app.py").write_text("rotten")
    found = keeper.verify("dev-1", "one", "restore", job(), stop=True)
    assert (found.ok, found.found) == (False, "it boots, but of 1 files: 1 changed")
    assert found.diff is not None
    assert found.diff.changed == {"/guest/srv/app.py": "content"}
    assert keeper.note("dev-1", "one")["verified"]["diff"]["changed"] == {"/guest/srv/app.py": "content"}
    assert [name for name in host.left() if name.startswith(SCRATCH)] == []


def test_a_checkpoint_that_does_not_boot_is_told_and_its_scratch_machine_deleted(host: Host, keeper: Keeper) -> None:
    take(keeper, "one")
    host.faults({"command": "clone", "code": 2, "message": "clone failed: the disk is damaged"})
    found = keeper.verify("dev-1", "one", "restore", job(), stop=True)
    assert (found.ok, "the disk is damaged" in found.found) == (False, True)
    assert list(host.instances()) == ["dev-1"]
    assert host.instances()["dev-1"]["state"] == "Running"


def test_what_a_dead_verification_left_is_removed_but_nobodys_machine(host: Host, keeper: Keeper) -> None:
    take(keeper, "one")
    adapter = host.adapter()
    adapter.stop("dev-1", job())
    keeper.verify("dev-1", "one", "restore", job())
    (scratch,) = {call[-1] for call in host.calls("clone")}
    adapter.create(replace(DEV, name=scratch, image="instance:dev-1.one"), job())
    assert keeper.verify("dev-1", "one", "restore", job()).ok
    adapter.create(replace(DEV, name=scratch, image="24.04"), job())
    with pytest.raises(Conflict, match=f'machine "{scratch}": expected none, found one made from 24.04'):
        keeper.verify("dev-1", "one", "restore", job())
    assert scratch in host.instances()


HOSTILE = ["", "manifest", "x" * 1000, "manifest 1 0 \x1b[2J", "line\n" * 500]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_machine_that_lies_about_its_files_makes_an_error_and_no_checkpoint(
    host: Host, keeper: Keeper, text: str
) -> None:
    host.settings(manifest=text)
    with pytest.raises(ProcessFailed) as caught:
        take(keeper, "one")
    assert len(caught.value.message) < 400
    assert caught.value.message.isprintable()
    assert keeper.tree() == {"dev-1": ()}


def test_two_that_save_one_machine_wait_for_each_other(host: Host, keeper: Keeper) -> None:
    host.settings(seconds={"snapshot": 0.2})
    errors: list[BaseException] = []

    def one(number: int) -> None:
        try:
            take(keeper, f"c{number}")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(keeper.tree()["dev-1"]) == 3
    assert host.instances()["dev-1"]["state"] == "Running"


def test_nothing_is_left_of_a_machine_that_is_forgotten(host: Host, keeper: Keeper) -> None:
    take(keeper, "one")
    host.adapter().delete("dev-1", job())
    keeper.forget(["dev-1"])
    assert host.left() == []
    assert not Path(host.state_dir, "machines", "multipass", "checkpoints").exists()


def test_automatic_names_tell_kind_and_time() -> None:
    assert automatic_name("hub_daily", 0) == "hub-daily-19700101-000000"
    assert automatic_name("automatic", 0, ["automatic-19700101-000000"]) == "automatic-19700101-000000-2"


def test_reading_leaves_no_trace(host: Host, keeper: Keeper) -> None:
    keeper.tree()
    keeper.due("dev-1", Triggers())
    assert host.left() == ["dev-1.json"]
    assert not os.path.exists(host.state_dir / "machines" / "multipass" / "checkpoints")
