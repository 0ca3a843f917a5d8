# SPDX-License-Identifier: GPL-3.0-or-later
"""What goes wrong between a host and Proxmox VE, at every request: it is survived, or told in a sentence and finished
by the next run, and nothing is orphaned: no machine, no volume, no file.

Each request that was recorded is also checked against Proxmox's schemas.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.proxmox_faulty import CHANGING, FaultyHost
from tests.fakes.proxmox_host import GIB
from tests.fakes.proxmox_schema import all_problems, schemas
from tests.requirements import REPOSITORY

from fleet_core.errors import Conflict, FleetError, ProcessFailed, TimedOut, Unavailable
from fleet_core.images import ImageSpec
from fleet_core.machines import MachineSpec
from fleet_machines.provider import Job
from fleet_machines.proxmox import Proxmox

# Every kind of step: a clone, a seed that is uploaded, a configuration, a larger disk, a start, addresses.
SPEC = MachineSpec(
    "web-1",
    "proxmox",
    "debian-12",
    cpu=2,
    memory=2 * GIB,
    disk=10 * GIB,
    user_data="#cloud-config\nruncmd: [[touch, /done]]\npassword: hunter2\n",
    tags=("web",),
    project="shop",
)
GOLD = ImageSpec("gold", "proxmox", "local:import/base.qcow2", disk=8 * GIB, user_data="#cloud-config\n{}\n")

CLIENT = """
import json, sys
from ansible.module_utils import basic
basic._ANSIBLE_ARGS = json.dumps({"ANSIBLE_MODULE_ARGS": json.load(open(sys.argv[1]))}).encode()
basic._ANSIBLE_PROFILE = "legacy"
from ansible_collections.autovibe.fleet.plugins.modules import machine
machine.main()
"""


@pytest.fixture
def host(tmp_path: Path) -> Iterator[FaultyHost]:
    found = FaultyHost(tmp_path)
    found.pve.store_file("local", "base.qcow2", 3 * GIB, "import")
    found._first |= {"local:import/base.qcow2"}
    try:
        yield found
        if schemas() is not None:
            assert all_problems(found.pve.seen) == []
    finally:
        found.stop()


def job(seconds: float = 20, said: list[str] | None = None) -> Job:
    return Job.lasting(seconds, (said if said is not None else []).append)


def adapter(host: FaultyHost, **settings: Any) -> Proxmox:
    found = host.adapter(**settings)
    found.golden.building.first_pause = 0.01
    found.golden.building.settling = 0.5
    found.saved.first_pause = 0.01
    return found


def failure(call: Callable[[], object]) -> str:
    """What an error says, empty when there was none."""
    try:
        call()
    except FleetError as error:
        return error.message
    return ""


def check_whole(host: FaultyHost) -> None:
    """One machine is there, as it was wanted, with what belongs to it, and nothing else."""
    (machine,) = adapter(host).describe().values()
    assert (machine.name, machine.state, machine.incomplete) == ("web-1", "running", "")
    assert (machine.cpu, machine.memory, machine.disk) == (2, 2 * GIB, 10 * GIB)
    assert (machine.image, machine.project, machine.tags) == ("debian-12", "shop", ("web",))
    vmid = machine.detail["vmid"]
    assert host.left() == [
        f"local-lvm:vm-{vmid}-disk-0",
        f"local:iso/fleet-web-1-{vmid}.iso",
        f"vm {vmid} web-1",
    ]
    assert "hunter2" not in str([vm.config for vm in host.pve.vms])


def check_accounted(host: FaultyHost) -> None:
    """What is there belongs to the one machine, which is listed: incomplete, or whole."""
    listed = adapter(host).describe()
    vms = [line.split() for line in host.left() if line.startswith("vm ")]
    assert len(vms) <= 1, host.left()
    assert len(listed) == len(vms)
    if not vms:
        assert host.left() == []
        return
    assert list(listed) == ["web-1"]
    rest = [line for line in host.left() if not line.startswith("vm ")]
    assert [line for line in rest if not re.search(rf"-{vms[0][1]}[-.]", line)] == []


def steps(host: FaultyHost) -> int:
    """How many requests that change something a new machine takes."""
    adapter(host).create(SPEC, job())
    check_whole(host)
    found = len(host.requests(*CHANGING))
    adapter(host).delete("web-1", job())
    assert host.left() == []
    host.requests()
    return found


def again(host: FaultyHost) -> None:
    """A rerun: what is wanted is there afterwards."""
    host.calm()
    there = adapter(host).describe().get("web-1")
    if there is None or there.incomplete:
        adapter(host).create(SPEC, job())
    check_whole(host)


@pytest.mark.parametrize("kind", ["before", "after"])
def test_a_connection_that_breaks_at_any_step(host: FaultyHost, kind: str) -> None:
    for step in range(steps(host)):
        host.trouble(kind, skip=step)
        message = failure(lambda: adapter(host).create(SPEC, job()))
        assert not message or "web-1" in message, (step, message)
        assert "hunter2" not in message
        check_accounted(host)
        again(host)
        adapter(host).delete("web-1", job())
        assert host.left() == [], step


def test_every_read_that_fails_for_a_while_is_survived(host: FaultyHost) -> None:
    for status, words in ((500, "got timeout"), (502, "Bad Gateway"), (596, "Connection timed out"), (503, "busy")):
        for path in ("/cluster/resources", "/cluster/nextid", "/status/current", "/config", "network-get-interfaces"):
            host.pve.fail("GET", path, status, words, times=2)
    adapter(host).create(SPEC, job())
    check_whole(host)


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("POST", "/clone", 503, "busy"),
        ("POST", "/clone", 595, "No route to host"),
        ("POST", "/clone", 500, "can't lock file '/var/lock/qemu-server/lock-9000.conf' - got timeout"),
        ("POST", "/upload", 500, "got timeout"),
        ("PUT", "/resize", 500, "can't lock file '/var/lock/qemu-server/lock-100.conf' - got timeout"),
        ("POST", "/status/start", 500, "VM is locked (backup)"),
        ("PUT", "/config", 596, "Connection timed out"),
    ],
)
def test_what_passes_is_tried_again(host: FaultyHost, method: str, path: str, status: int, words: str) -> None:
    host.pve.fail(method, path, status, words, times=2)
    adapter(host).create(SPEC, job())
    check_whole(host)


@pytest.mark.parametrize(
    ("method", "path", "kind", "said"),
    [
        ("POST", "/clone", ProcessFailed, "unable to create image: out of luck"),
        ("POST", "/upload", ProcessFailed, "out of luck"),
        ("PUT", "/resize", ProcessFailed, "out of luck"),
        ("POST", "/status/start", ProcessFailed, "out of luck"),
    ],
)
def test_what_stays_is_told_and_finished_later(
    host: FaultyHost, method: str, path: str, kind: type[FleetError], said: str
) -> None:
    host.pve.fail(method, path, 500, said)
    with pytest.raises(kind, match=said) as caught:
        adapter(host).create(SPEC, job(3))
    assert caught.value.message.startswith('machine "web-1": ')
    check_accounted(host)
    again(host)


@pytest.mark.parametrize("task", ["qmclone", "imgcopy", "qmconfig", "resize", "qmstart"])
def test_a_task_that_fails_is_told_and_finished_later(host: FaultyHost, task: str) -> None:
    host.pve.task_endings[task] = "command 'lvcreate' failed: exit code 5"
    with pytest.raises(FleetError, match="lvcreate") as caught:
        adapter(host).create(SPEC, job(3))
    assert caught.value.message.startswith('machine "web-1": ')
    if task == "qmclone":  # Proxmox removes what it made of a failed clone, the fake does not begin it
        host.pve.vms = [vm for vm in host.pve.vms if vm.lock != "clone"]
    check_accounted(host)
    again(host)


def test_tasks_that_end_with_warnings_are_a_success_and_told(host: FaultyHost) -> None:
    for task in ("qmclone", "imgcopy", "qmconfig", "resize", "qmstart", "qmsnapshot", "qmdestroy"):
        host.pve.task_endings[task] = "WARNINGS: 2"
    said: list[str] = []
    provider = adapter(host)
    provider.create(SPEC, job(said=said))
    check_whole(host)
    assert [text for text in said if "warnings: 2" in text]
    provider.checkpoint("web-1", "first", job())
    provider.delete("web-1", job())
    assert host.left() == []


def test_a_full_storage_leaves_nothing(host: FaultyHost) -> None:
    host.pve.storages["local-lvm"]["avail"] = 1
    with pytest.raises(FleetError, match="No space left on device"):
        adapter(host, clone="full").create(SPEC, job())
    assert host.left() == []
    host.pve.storages["local-lvm"].pop("avail")
    host.pve.storages["local"]["avail"] = 1
    with pytest.raises(FleetError, match="No space left on device"):
        adapter(host).create(SPEC, job())
    check_accounted(host)
    host.pve.storages["local"]["avail"] = 50 * GIB
    again(host)


def test_a_clone_that_stays_locked_is_told_with_what_frees_it(host: FaultyHost) -> None:
    vm = host.machine(300, "web-1.incomplete", lock="clone")
    vm.lock = "clone"
    host.pve.storages["local-lvm"].setdefault("volumes", {})["vm-300-disk-0"] = {
        "content": "images", "format": "raw", "size": 4 * GIB, "vmid": 300,
    }  # fmt: skip
    with pytest.raises(Conflict, match="qm unlock 300 on node pve1"):
        adapter(host).create(SPEC, job(10))
    (machine,) = adapter(host).describe().values()
    assert "disks are being copied, or that was interrupted" in machine.incomplete
    host.pve.unlock(300)
    again(host)


def test_two_machines_of_one_name_are_told_and_neither_is_touched(host: FaultyHost) -> None:
    host.machine(300, "web-1")
    host.machine(301, "web-1")
    provider = adapter(host)
    for call in (
        lambda: provider.create(SPEC, job()),
        lambda: provider.delete("web-1", job()),
        lambda: provider.checkpoint("web-1", "first", job()),
    ):
        with pytest.raises(Conflict, match="2 virtual machines have this name: 300 on pve1, 301 on pve1"):
            call()
    assert host.requests(*CHANGING) == []


def test_an_id_that_another_takes_at_the_same_time_is_passed(host: FaultyHost) -> None:
    taken = int(adapter(host).session.get("/cluster/nextid"))
    host.machine(taken, "somebody-elses")
    provider = adapter(host)
    provider.sources._next = taken
    provider.guests.all()
    listed = provider.guests._list
    provider.guests._list = tuple(guest for guest in listed if guest.vmid != taken)
    provider.create(SPEC, job())
    assert host.vm("somebody-elses").status == "stopped"
    assert host.vm("web-1").vmid != taken


def test_a_cluster_that_does_not_answer_is_told_in_time(host: FaultyHost) -> None:
    host.trouble("hang", "GET", "/cluster/resources", times=100, seconds=3)
    provider = adapter(host, timeout=1)
    began = time.monotonic()
    with pytest.raises((Unavailable, TimedOut)):
        provider.create(SPEC, job(4))
    assert time.monotonic() - began < 15
    assert host.left() == []


def test_a_late_answer_to_a_clone_makes_no_second_one(host: FaultyHost) -> None:
    host.trouble("hang", "POST", "/clone$", seconds=3)
    adapter(host, timeout=1).create(SPEC, job(30))
    check_whole(host)
    assert len([one for one in host.requests("POST") if one.path.endswith("/clone")]) == 1


def test_a_network_that_loses_one_request_in_seven(host: FaultyHost) -> None:
    host.trouble("before", "any", share=0.15, times=10_000)
    names = [f"web-{number}" for number in range(1, 7)]
    for _run in range(10):
        provider = adapter(host)
        for name in names:
            try:
                there = provider.describe([name]).get(name)
                if there is None or there.incomplete:
                    provider.create(replace(SPEC, name=name), job())
            except FleetError:
                continue
    host.calm()
    assert host.names() == names
    assert len([line for line in host.left() if "disk-0" in line]) == len(names)
    assert len([line for line in host.left() if line.startswith("local:iso/")]) == len(names)
    assert {machine.incomplete for machine in adapter(host).describe().values()} == {""}


def test_a_delete_that_is_interrupted_anywhere_is_finished_by_the_next(host: FaultyHost) -> None:
    adapter(host).create(SPEC, job())
    host.requests()
    adapter(host).delete("web-1", job())
    count = len(host.requests(*CHANGING))
    assert count == 3  # off, the seed, the machine
    for kind in ("before", "after"):
        for step in range(count):
            adapter(host).create(SPEC, job())
            host.trouble(kind, skip=step, times=100)
            message = failure(lambda: adapter(host).delete("web-1", job(3)))
            assert not message or message.startswith('machine "web-1": '), (kind, step, message)
            check_accounted(host)
            host.calm()
            adapter(host).delete("web-1", job())
            assert host.left() == [], (kind, step)


# -- golden images -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["before", "after"])
def test_a_build_whose_connection_breaks_at_any_step(host: FaultyHost, kind: str) -> None:
    adapter(host).build_image(GOLD, job())
    count = len(host.requests(*CHANGING))
    adapter(host).delete_image(GOLD.image_name, job())
    assert host.left() == []
    for step in range(count):
        host.calm()
        host.trouble(kind, skip=step)
        message = failure(lambda: adapter(host).build_image(GOLD, job()))
        assert not message or GOLD.image_name in message, (kind, step, message)
        found = [image for image in adapter(host).images() if image.name == GOLD.image_name]
        assert all(bool(image.incomplete) is bool(message) for image in found), (kind, step)
        host.calm()
        adapter(host).build_image(GOLD, job())
        vm = host.vm(GOLD.image_name)
        assert host.left() == [f"local-lvm:base-{vm.vmid}-disk-0", f"vm {vm.vmid} {vm.name}"], (kind, step)
        adapter(host).delete_image(GOLD.image_name, job())
        assert host.left() == [], (kind, step)


# -- a client that is killed -------------------------------------------------------------------------------------------


class Client:
    """The module machine, in a process of its own, which is killed while a request of it is carried out."""

    def __init__(self, host: FaultyHost, folder: Path) -> None:
        machine = {**SPEC.to_dict(), "user_data": SPEC.user_data}
        machine.pop("provider")
        arguments = {
            "state": "started",
            "provider": "proxmox",
            "provider_settings": host.settings,
            "state_dir": str(host.state_dir),
            "machines": [machine],
            "timeout": 30,
        }
        (folder / "arguments.json").write_text(json.dumps(arguments))
        (folder / "client.py").write_text(CLIENT)
        self.process = subprocess.Popen(
            [sys.executable, str(folder / "client.py"), str(folder / "arguments.json")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=REPOSITORY,
            text=True,
        )

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate(timeout=10)

    def result(self) -> dict[str, Any]:
        out, _nothing = self.process.communicate(timeout=60)
        found: dict[str, Any] = json.loads(out[out.index("{") :])
        return found


def test_the_module_makes_a_machine_and_an_unchanged_run_asks_once(host: FaultyHost, tmp_path: Path) -> None:
    found = Client(host, tmp_path).result()
    assert found["changed"] is True, found
    check_whole(host)
    host.pve.tasklog.clear()  # what was done to it is long ago
    host.requests()
    assert Client(host, tmp_path).result()["changed"] is False
    paths = [f"{request.method} {request.path}" for request in host.requests()]
    assert [path for path in paths if not path.startswith("GET")] == []
    assert len(paths) <= 3, paths


def test_a_client_that_is_killed_at_any_step(host: FaultyHost, tmp_path: Path) -> None:
    for step in range(steps(host)):
        trouble = host.trouble("hold", skip=step)
        client = Client(host, tmp_path)
        assert trouble.reached.wait(30), (step, client.process.poll())
        client.kill()
        trouble.go_on.set()
        _quiet(host)
        check_accounted(host)
        again(host)
        adapter(host).delete("web-1", job())
        assert host.left() == [], step
        host.calm()
    assert not list(host.state_dir.rglob("*.json"))


def _quiet(host: FaultyHost) -> None:
    """Wait until the request that was held has been carried out."""
    deadline = time.monotonic() + 5
    while any("endtime" not in task for task in host.pve.tasklog) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.2)


def test_many_machines_at_once_through_trouble_are_all_whole_or_told(host: FaultyHost) -> None:
    for path in ("/clone$", "/config$", "/status/start$"):
        host.trouble("before", "POST", path, times=3, skip=2)
        host.trouble("after", "POST", path, times=3, skip=4)
    specs = [replace(SPEC, name=f"web-{number}") for number in range(1, 13)]
    failed: dict[str, str] = {}
    provider = adapter(host)

    def make(spec: MachineSpec) -> None:
        try:
            provider.create(spec, job())
        except FleetError as error:
            failed[spec.name] = error.message

    threads = [threading.Thread(target=make, args=(spec,)) for spec in specs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(name in message for name, message in failed.items())
    host.calm()
    for spec in specs:
        there = adapter(host).describe([spec.name]).get(spec.name)
        if there is None or there.incomplete:
            adapter(host).create(spec, job())
    assert host.names() == sorted(spec.name for spec in specs)
    assert len([line for line in host.left() if "-disk-" in line]) == 12
    assert len([line for line in host.left() if line.startswith("local:iso/")]) == 12
