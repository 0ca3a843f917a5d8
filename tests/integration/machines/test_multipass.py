# SPDX-License-Identifier: GPL-3.0-or-later
"""The adapter of Multipass against a command line as strict as the real one."""

from __future__ import annotations

import hashlib
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.multipass_host import Host

from fleet_core.errors import Conflict, InvalidInput, NotFound, ProcessFailed, TimedOut, Unavailable
from fleet_core.golden_images import Drift, drift
from fleet_core.images import ImageSpec, changed_inputs
from fleet_core.machine_plans import differences
from fleet_core.machines import Machine, MachineSpec, Network
from fleet_machines import providers
from fleet_machines.golden import ENVIRONMENT
from fleet_machines.multipass import Multipass
from fleet_machines.multipass_cli import CommandLine
from fleet_machines.provider import Job, Surroundings

GIB = 1024**3
SPEC = MachineSpec(
    "dev-1",
    "multipass",
    image="24.04",
    cpu=2,
    memory=3 * GIB // 2,
    disk=10 * GIB,
    networks=(Network("br0", "52:54:00:00:00:01"),),
    user_data="#cloud-config\npassword: hunter2\n",
    tags=("web",),
    project="shop",
)
PLAIN = MachineSpec("dev-1", "multipass")
GOLD = ImageSpec(
    "gold",
    "multipass",
    "24.04",
    cpu=1,
    disk=5 * GIB,
    commands=("apt-get install -y git", "true"),
    checks={"git": "git --version"},
    login="dev",
)
SCRIPTS = [ENVIRONMENT + script for script in ("set -e\napt-get install -y git\n", "set -e\ntrue\n", "git --version\n")]
PLAIN_OF_GOLD = replace(PLAIN, image="gold")


def job(seconds: float = 20, said: list[str] | None = None) -> Job:
    return Job.lasting(seconds, (said if said is not None else []).append)


def test_a_machine_is_launched_described_and_deleted_without_a_trace(host: Host) -> None:
    adapter = host.adapter()
    made = adapter.create(SPEC, job())
    assert (made.state, made.image, made.tags, made.project) == ("running", "24.04", ("web",), "shop")
    assert made.addresses
    (call,) = host.calls("launch")
    assert call[:-1] == [
        *("launch", "24.04", "--name", "dev-1", "--cpus", "2", "--memory", "1610612736", "--disk", "10737418240"),
        *("--network", "name=br0,mode=auto,mac=52:54:00:00:00:01", "--cloud-init", "-", "--timeout"),
    ]
    assert host.instances()["dev-1"]["user_data"] == SPEC.user_data
    full = adapter.describe(["dev-1"], full=True)["dev-1"]
    assert differences(SPEC, full, adapter.capabilities) == ()
    assert full.memory == 3 * GIB // 2  # exact, though get says 1.5GiB
    assert full.detail["memory"]["total"] < full.memory
    adapter.delete("dev-1", job())
    adapter.delete("dev-1", job())
    assert host.instances() == {}
    assert host.left() == []


def test_all_machines_are_listed_in_one_call_and_reading_leaves_no_trace(host: Host) -> None:
    adapter = host.adapter()
    for name in ("a", "b"):
        adapter.create(MachineSpec(name, "multipass"), job())
    host.calls()
    assert list(adapter.describe()) == ["a", "b"]
    assert host.calls() == [["list", "--format", "json"]]
    other = Multipass(Surroundings(str(host.state_dir / "other"), {"executable": adapter.cli.executable}))
    assert other.describe(["a"])["a"].image == ""
    assert not (host.state_dir / "other").exists()


def test_secrets_of_user_data_are_in_no_argument_and_no_record(host: Host) -> None:
    host.adapter().create(SPEC, job())
    assert "hunter2" not in str(host.calls())
    assert not any("hunter2" in path.read_text() for path in host.state_dir.rglob("*") if path.is_file())


def test_what_others_changed_is_seen(host: Host) -> None:
    adapter = host.adapter()
    adapter.create(SPEC, job())
    host.edit("dev-1", memory=4 * GIB, cpus=8)
    found = adapter.describe(full=True)["dev-1"]
    assert (found.cpu, found.memory, found.disk) == (8, 4 * GIB, 10 * GIB)


def test_one_that_goes_away_while_all_are_described_is_left_out(host: Host) -> None:
    adapter = host.adapter()
    adapter.create(PLAIN, job())
    host.faults({"command": "info", "code": 2, "message": 'info failed: instance "dev-2" does not exist'})
    assert list(adapter.describe(full=True)) == ["dev-1"]


def change(adapter: Multipass, wanted: MachineSpec) -> None:
    found = adapter.describe([wanted.name], full=True)[wanted.name]
    adapter.change(wanted, differences(wanted, found, adapter.capabilities), job())


def test_sizes_tags_and_project_are_changed_in_place(host: Host) -> None:
    adapter = host.adapter()
    adapter.create(SPEC, job())
    with pytest.raises(Conflict, match=r'machine "dev-1": multipass set: .* must be stopped for modification'):
        change(adapter, replace(SPEC, cpu=4))
    adapter.stop("dev-1", job())
    wanted = replace(SPEC, cpu=4, disk=20 * GIB, tags=(), project="")
    change(adapter, wanted)
    found = adapter.describe(full=True)["dev-1"]
    assert (found.cpu, found.disk, found.tags, found.project) == (4, 20 * GIB, (), "")
    assert found.user_data == SPEC.user_data_hash
    with pytest.raises(InvalidInput, match="Disk can only be expanded; cpu had been changed"):
        adapter._set("dev-1", {"cpu": 1, "disk": GIB}, job())


def test_machines_are_started_and_stopped_from_any_state(host: Host) -> None:
    adapter = host.adapter()
    adapter.create(PLAIN, job())
    adapter.stop("dev-1", job())
    assert adapter.state("dev-1") == "stopped"
    assert adapter.start("dev-1", job()).state == "running"
    host.edit("dev-1", state="Suspended")
    adapter.stop("dev-1", job())
    assert adapter.state("dev-1") == "stopped"
    host.edit("dev-1", state="Starting")
    with pytest.raises(ProcessFailed, match="Use --force to power it off"):
        adapter.stop("dev-1", job())
    adapter.stop("dev-1", job(), force=True)
    assert adapter.state("dev-1") == "stopped"


@pytest.mark.parametrize("release", ["1.16", "main"])
def test_checkpoints_form_a_tree_and_are_restored(host: Host, release: str) -> None:
    host.settings(release=release)
    adapter = host.adapter()
    adapter.create(replace(PLAIN, cpu=1), job())
    with pytest.raises(Conflict, match=r'checkpoint "one" of machine "dev-1": .* only take snapshots of stopped'):
        adapter.checkpoint("dev-1", "one", job())
    adapter.stop("dev-1", job())
    assert adapter.checkpoint("dev-1", "one", job(), comment="A first one").comment == "A first one"
    change(adapter, replace(PLAIN, cpu=4))
    assert adapter.checkpoint("dev-1", "two", job()).parent == "one"
    adapter.restore("dev-1", "one", job())
    assert adapter.describe(full=True)["dev-1"].cpu == 1
    assert [one.name for one in adapter.checkpoints()["dev-1"]] == ["one", "two"]
    adapter.delete_checkpoint("dev-1", "two", job())
    assert [one.name for one in adapter.checkpoints(["dev-1"])["dev-1"]] == ["one"]
    for act in (adapter.restore, adapter.delete_checkpoint):
        with pytest.raises(NotFound, match=r'checkpoint "two" of machine "dev-1": .*No such snapshot'):
            act("dev-1", "two", job())
    with pytest.raises(Conflict, match="already exists"):
        adapter.checkpoint("dev-1", "one", job())


def test_a_golden_image_is_built_sealed_cloned_and_deleted(host: Host) -> None:
    adapter = host.adapter()
    said: list[str] = []
    built = adapter.build_image(GOLD, job(said=said))
    assert (built.name, built.family, built.kind, built.inputs) == (GOLD.image_name, "gold", "golden", GOLD.inputs)
    assert changed_inputs(replace(GOLD, commands=()), built) == ("commands",)
    gold = host.instances()[built.name]
    assert (gold["state"], list(gold["snapshots"]), gold["scripts"]) == ("Stopped", ["sealed"], SCRIPTS)
    assert gold["sealed"]
    assert said[1:] == [
        *("wait for cloud-init", "command 1 of 2", "command 2 of 2", "check git"),
        *("seal it", "stop it and snapshot it"),
    ]
    assert "apt-get" not in str(host.calls())
    assert adapter.build_image(GOLD, job()) == built
    assert host.calls("launch", "exec") == []
    assert adapter.images()[0] == built
    assert "24.04" in [image.name for image in adapter.images()]
    assert adapter.describe() == {}  # an image is no machine

    made = adapter.create(MachineSpec("dev-1", "multipass", image="gold", cpu=4, disk=8 * GIB), job())
    assert (made.state, made.image, made.login) == ("running", built.name, "dev")
    assert [call[0] for call in host.calls("restore", "clone", "set", "start", "launch")] == [
        *("restore", "clone", "set", "set", "start"),
    ]
    assert host.instances()["dev-1"]["scripts"] == SCRIPTS
    adapter.delete_image(built.name, job())
    assert list(host.instances()) == ["dev-1"]
    with pytest.raises(NotFound, match=f'image "{built.name}"'):
        adapter.delete_image(built.name, job())


def test_a_family_stands_for_its_newest_image_and_older_machines_have_drifted(host: Host) -> None:
    adapter = host.adapter()
    old = adapter.build_image(GOLD, job())
    adapter.create(PLAIN_OF_GOLD, job())
    new = adapter.build_image(replace(GOLD, commands=("true",)), job())
    adapter.create(replace(PLAIN_OF_GOLD, name="dev-2"), job())
    adapter.create(replace(PLAIN_OF_GOLD, name="dev-3", image=old.name), job())
    found = adapter.describe()
    assert {name: machine.image for name, machine in found.items()} == {
        "dev-1": old.name,
        "dev-2": new.name,
        "dev-3": old.name,
    }
    assert drift(found.values(), adapter.images()) == (
        Drift("dev-1", old.name, new.name),
        Drift("dev-3", old.name, new.name),
    )
    assert differences(PLAIN_OF_GOLD, found["dev-1"], adapter.capabilities) == ()  # drift is told, not repaired


def test_the_same_inputs_can_be_built_once_more(host: Host) -> None:
    adapter = host.adapter()
    first = adapter.build_image(GOLD, job())
    again = adapter.build_image(replace(GOLD, build="2026-01"), job())
    assert first.name != again.name
    assert changed_inputs(GOLD, again) == ()


def test_clones_come_from_the_sealed_state_whatever_happened_to_the_golden_instance(host: Host) -> None:
    adapter = host.adapter()
    adapter.build_image(GOLD, job())
    host.edit(GOLD.image_name, state="Running", scripts=["tampered"])
    adapter.create(MachineSpec("dev-1", "multipass", image="gold"), job())
    assert host.instances()["dev-1"]["scripts"] == SCRIPTS


def test_a_failed_build_is_told_and_built_again(host: Host) -> None:
    adapter = host.adapter()
    wrong = replace(GOLD, commands=("exit 9",))
    with pytest.raises(ProcessFailed, match='image "gold": command 1: ended with 9: sh: it did not work'):
        adapter.build_image(wrong, job())
    assert "ended with 9" in adapter.images()[0].incomplete
    with pytest.raises(Conflict, match=r'image "gold-.*": it is incomplete'):
        adapter.create(replace(PLAIN, image="gold"), job())
    with pytest.raises(ProcessFailed):
        adapter.build_image(wrong, job())
    assert adapter.build_image(GOLD, job()).incomplete == ""
    assert adapter.create(replace(PLAIN, image="gold"), job()).image == GOLD.image_name


def test_a_checksum_is_verified_or_refused_but_never_passed_over(host: Host, tmp_path: Path) -> None:
    adapter = host.adapter()
    base = tmp_path / "base.qcow2"
    base.write_bytes(b"disk")
    good = f"sha256:{hashlib.sha256(b'disk').hexdigest()}"
    with pytest.raises(InvalidInput, match="Multipass verifies its own releases and nothing else"):
        adapter.build_image(replace(GOLD, checksum=good), job())
    with pytest.raises(InvalidInput, match=rf"base: expected sha256:0000.*, found {good}"):
        adapter.build_image(replace(GOLD, base=f"file://{base}", checksum="sha256:" + "0" * 64), job())
    assert host.instances() == {}
    assert host.left() == []
    assert adapter.build_image(replace(GOLD, base=f"file://{base}", checksum=good), job()).incomplete == ""


def test_an_image_whose_check_or_sealing_fails_is_none(host: Host) -> None:
    adapter = host.adapter()
    with pytest.raises(ProcessFailed, match='image "gold": check "node": ended with 3: sh: it did not work'):
        adapter.build_image(replace(GOLD, checks={"node": "exit 3"}), job())
    host.settings(unsealed="no private keys: found /srv/a.pem")
    with pytest.raises(ProcessFailed, match=r'image "gold": sealing: ended with 1: no private keys: found /srv/a.pem'):
        adapter.build_image(GOLD, job())
    assert [image.incomplete != "" for image in adapter.images() if image.kind == "golden"] == [True, True]


def test_many_machines_are_cloned_from_one_image_at_once(host: Host) -> None:
    host.settings(seconds={"restore": 0.05, "clone": 0.05})
    adapter = host.adapter()
    adapter.build_image(GOLD, job())
    errors: list[BaseException] = []

    def make(number: int) -> None:
        try:
            adapter.create(MachineSpec(f"dev-{number}", "multipass", image="gold"), job(60))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=make, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    order = [call[0] for call in host.calls("restore", "clone")]
    assert order == ["restore", "clone"] * 6  # never a restore between another's restore and clone
    assert len(adapter.describe()) == 6
    assert [name for name in host.left() if name.endswith(".lock")] == []


def test_a_fork_from_a_checkpoint_leaves_its_machine_as_it_is(host: Host) -> None:
    adapter = host.adapter()
    adapter.create(replace(PLAIN, cpu=1), job())
    adapter.stop("dev-1", job())
    adapter.checkpoint("dev-1", "before", job())
    change(adapter, replace(PLAIN, cpu=4))
    adapter.create(MachineSpec("fork", "multipass", image="instance:dev-1.before"), job())
    assert (host.instances()["fork"]["cpus"], host.instances()["dev-1"]["cpus"]) == (1, 4)
    assert list(host.instances()["dev-1"]["snapshots"]) == ["before"]
    adapter.start("dev-1", job())
    with pytest.raises(Conflict, match='the instance "dev-1" to clone is running; Multipass clones stopped ones only'):
        adapter.create(MachineSpec("b", "multipass", image="instance:dev-1"), job())
    assert "b.json" not in host.left()


def test_a_fork_that_fails_puts_its_machine_back(host: Host) -> None:
    adapter = host.adapter()
    adapter.create(replace(PLAIN, cpu=1), job())
    adapter.stop("dev-1", job())
    adapter.checkpoint("dev-1", "before", job())
    change(adapter, replace(PLAIN, cpu=4))
    host.faults({"command": "clone", "code": 2, "message": "clone failed: no space left on device"})
    with pytest.raises(ProcessFailed, match='machine "fork": multipass clone: no space left'):
        adapter.create(MachineSpec("fork", "multipass", image="instance:dev-1.before"), job())
    assert host.instances()["dev-1"]["cpus"] == 4
    assert list(host.instances()["dev-1"]["snapshots"]) == ["before"]
    assert host.left() == ["dev-1.json"]


WRONG: list[tuple[MachineSpec, str]] = [
    (replace(PLAIN, image="--help"), "image: expected the name of an image"),
    (replace(PLAIN, image="instance:x y"), "expected instance:NAME or instance:NAME.SNAPSHOT"),
    (replace(PLAIN, memory=64 * 1024**2), "memory: Multipass wants at least 128M"),
    (replace(PLAIN, disk=64 * 1024**2), "disk: Multipass wants at least 512M"),
    (replace(PLAIN, user_data="#!/bin/sh\n"), "user_data: Multipass takes cloud-config only"),
    (replace(PLAIN, image="gold", user_data="#cloud-config\n"), 'user_data: Multipass gives a clone those of "gold-'),
    (replace(PLAIN, image="gold", networks=(Network("br0"),)), 'networks: Multipass gives a clone those of "gold-'),
]


@pytest.mark.parametrize(("spec", "message"), WRONG, ids=[message[:30] for _spec, message in WRONG])
def test_what_multipass_cannot_do_is_refused_before_anything_is_done(
    host: Host, spec: MachineSpec, message: str
) -> None:
    adapter = host.adapter()
    adapter.build_image(GOLD, job())
    with pytest.raises(InvalidInput) as caught:
        adapter.create(spec, job())
    assert message in caught.value.message
    assert list(host.instances()) == [GOLD.image_name]
    assert host.left() == [f"{GOLD.image_name}.json"]


def test_files_are_launched_on_linux_only(host: Host, tmp_path: Path) -> None:
    image = tmp_path / "image.qcow2"
    image.touch()
    spec = replace(PLAIN, image=f"file://{image}")
    with pytest.raises(InvalidInput, match="Multipass launches files on Linux only"):
        host.adapter("darwin").create(spec, job())
    assert host.adapter().create(spec, job()).image == f"file://{image}"


@pytest.mark.parametrize(
    ("spec", "kind", "message"),
    [
        (replace(PLAIN, image="nosuch"), NotFound, 'Unable to find an image matching "nosuch"'),
        (replace(PLAIN, networks=(Network("br9"),)), NotFound, 'network "br9" does not exist'),
        (replace(PLAIN, image="instance:nosuch"), NotFound, 'the instance "nosuch" to clone does not exist'),
    ],
)
def test_a_refused_launch_leaves_nothing(host: Host, spec: MachineSpec, kind: Any, message: str) -> None:
    with pytest.raises(kind) as caught:
        host.adapter().create(spec, job())
    assert caught.value.message.startswith('machine "dev-1": ')
    assert message in caught.value.message
    assert host.instances() == {}
    assert host.left() == []


@pytest.mark.parametrize("init", [True, False])
@pytest.mark.parametrize("leaves", ["running", "starting"])
def test_a_launch_that_timed_out_but_came_up_is_a_machine(host: Host, leaves: str, init: bool) -> None:
    host.faults({"command": "launch", "timeout": leaves, "init": init})
    said: list[str] = []
    made = host.adapter().create(SPEC, job(said=said))
    assert (made.state, made.incomplete) == ("running", "")
    assert any("the launch timed out, and left an instance" in text for text in said)


def test_a_launch_that_timed_out_is_told_and_finished_later(host: Host) -> None:
    adapter = host.adapter()
    host.faults({"command": "launch", "timeout": "stuck"})
    with pytest.raises(TimedOut, match="Timed out waiting for instance launch; an instance that is starting is left"):
        adapter.create(SPEC, job(2))
    left = adapter.describe()["dev-1"]
    assert (left.state, "is left" in left.incomplete) == ("starting", True)
    host.edit("dev-1", state="Running", scripts=["mine"])
    assert adapter.create(SPEC, job()).incomplete == ""
    assert host.instances()["dev-1"]["scripts"] == ["mine"]  # it came up after all: nothing is thrown away


def test_what_never_came_up_is_made_anew(host: Host) -> None:
    adapter = host.adapter()
    host.faults({"command": "launch", "timeout": "stuck"})
    with pytest.raises(TimedOut):
        adapter.create(PLAIN, job(2))
    host.edit("dev-1", state="Stopped", scripts=["old"])
    assert adapter.create(PLAIN, job()).state == "running"
    assert host.instances()["dev-1"]["scripts"] == []


def test_a_launch_that_timed_out_without_a_trace_is_forgotten(host: Host) -> None:
    host.faults({"command": "launch", "timeout": "nothing"})
    with pytest.raises(TimedOut):
        host.adapter().create(PLAIN, job())
    assert host.left() == []


def test_a_clone_that_was_not_configured_is_told_and_made_anew(host: Host) -> None:
    adapter = host.adapter()
    adapter.build_image(GOLD, job())
    spec = replace(PLAIN, image="gold", cpu=3)
    host.faults({"command": "set", "code": 2, "message": "set failed: out of luck"})
    with pytest.raises(ProcessFailed, match="multipass set: out of luck"):
        adapter.create(spec, job())
    assert "out of luck" in adapter.describe()["dev-1"].incomplete
    assert adapter.create(spec, job()).incomplete == ""
    assert host.instances()["dev-1"]["cpus"] == 3


def test_a_machine_that_exists_is_not_made_again(host: Host) -> None:
    adapter = host.adapter()
    adapter.create(PLAIN, job())
    with pytest.raises(Conflict, match='machine "dev-1": there is one already, running'):
        adapter.create(PLAIN, job())


def test_it_tries_again_when_it_is_asked_to(host: Host) -> None:
    host.faults({"command": "start", "code": 4, "times": 2})
    adapter = host.adapter()
    adapter.create(PLAIN, job())
    adapter.stop("dev-1", job())
    said: list[str] = []
    assert adapter.start("dev-1", job(said=said)).state == "running"
    assert said.count("multipass start asked to try again") == 2
    host.faults({"command": "stop", "code": 4, "times": 99})
    began = time.monotonic()
    with pytest.raises(Unavailable, match="asked to try again, until there was no more time"):
        adapter.stop("dev-1", job(1))
    assert time.monotonic() - began < 5


def test_a_daemon_that_does_not_answer_is_named(host: Host) -> None:
    host.faults({"command": "list", "code": 3})
    with pytest.raises(Unavailable) as caught:
        host.adapter().describe()
    assert "multipass list: the daemon multipassd is unavailable: cannot connect" in caught.value.message


def test_a_daemon_that_goes_away_during_a_launch_hides_nothing(host: Host) -> None:
    adapter = host.adapter()
    host.faults({"command": "start", "code": 3})
    adapter.build_image(GOLD, job())
    with pytest.raises(Unavailable, match='machine "dev-1": multipass start'):
        adapter.create(replace(PLAIN, image="gold"), job())
    assert "unavailable" in adapter.describe()["dev-1"].incomplete


def test_a_command_that_hangs_is_ended(host: Host) -> None:
    adapter = host.adapter()
    adapter.create(PLAIN, job())
    host.faults({"command": "stop", "hang": 30})
    began = time.monotonic()
    with pytest.raises(TimedOut, match="it did not end within 1s; force: true powers it off"):
        adapter.stop("dev-1", job(1))
    assert time.monotonic() - began < 10


def test_a_machine_that_prints_without_end_is_cut_off(tmp_path: Path) -> None:
    program = tmp_path / "multipass"
    program.write_text("#!/bin/sh\nyes | head -c 60000000\n")
    program.chmod(0o755)
    with pytest.raises(ProcessFailed, match='machine "a": multipass exec: it printed more than 20M'):
        CommandLine(str(program)).run("exec", what='machine "a"', job=job())


def test_a_program_that_reads_nothing_and_one_that_leaves_a_child_behind_are_ended(tmp_path: Path) -> None:
    program = tmp_path / "multipass"
    program.write_text("#!/bin/sh\necho done\n")
    program.chmod(0o755)
    assert CommandLine(str(program)).run("x", what="x", job=job(), stdin="y" * 2_000_000) == "done\n"
    program.write_text("#!/bin/sh\nsleep 30 &\necho done\n")
    began = time.monotonic()
    with pytest.raises(TimedOut):
        CommandLine(str(program)).run("x", what="x", job=job(1))
    assert time.monotonic() - began < 10


def test_without_multipass_it_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="the command multipass is not installed on this host"):
        CommandLine(places=()).run("list", what="x", job=job())
    with pytest.raises(Unavailable, match="/nowhere/multipass is not installed"):
        CommandLine("/nowhere/multipass").run("list", what="x", job=job())
    place = tmp_path / "place"
    place.write_text("#!/bin/sh\necho found\n")
    place.chmod(0o755)
    assert CommandLine(places=("/nowhere", str(place))).run("list", what="x", job=job()) == "found\n"


def test_the_registry_names_what_is_wrong(host: Host) -> None:
    with pytest.raises(InvalidInput, match='provider "multipas": unknown, did you mean "multipass"'):
        providers.provider("multipas")
    with pytest.raises(InvalidInput, match='settings of provider "multipass": unknown key "executeable", did you mean'):
        providers.provider("multipass", str(host.state_dir), {"executeable": "x"})


def test_a_provider_is_added_with_one_class(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    class Paper(Multipass):
        name = "paper"

        def describe(self, names: Any = None, *, full: bool = False) -> dict[str, Machine]:
            return {"sketch": Machine("sketch", "paper", "stopped")}

    monkeypatch.setattr(providers, "_ADAPTERS", dict(providers._ADAPTERS))
    providers.register("paper", Paper)
    assert "paper" in providers.names()
    assert list(providers.provider("paper", str(host.state_dir)).describe()) == ["sketch"]
