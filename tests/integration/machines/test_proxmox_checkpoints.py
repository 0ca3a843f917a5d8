# SPDX-License-Identifier: GPL-3.0-or-later
"""Checkpoints of machines on Proxmox VE against the fake cluster; each request against Proxmox's schemas."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fakes.proxmox_faulty import FaultyHost
from tests.fakes.proxmox_host import GIB
from tests.fakes.proxmox_schema import all_problems, schemas

from fleet_core.errors import Conflict, FleetError, InvalidInput, NotFound
from fleet_core.machines import MachineSpec
from fleet_machines.provider import Job
from fleet_machines.proxmox import Proxmox
from fleet_machines.proxmox_checkpoints import Tree, tree_of


@pytest.fixture
def host(tmp_path: Path) -> Iterator[FaultyHost]:
    found = FaultyHost(tmp_path)
    try:
        yield found
        if schemas() is not None:
            assert all_problems(found.pve.seen) == []
    finally:
        found.stop()


def job(seconds: float = 20, said: list[str] | None = None) -> Job:
    return Job.lasting(seconds, (said if said is not None else []).append)


def adapter(host: FaultyHost) -> Proxmox:
    found = host.adapter()
    found.saved.first_pause = 0.01
    found.saved.settling = 0.5
    return found


def machine(host: FaultyHost, vmid: int, name: str, status: str = "stopped") -> None:
    host.machine(vmid, name, status=status)
    host.pve.storages["local-lvm"]["volumes"][f"vm-{vmid}-disk-0"] = {
        "content": "images", "format": "raw", "size": 8 * GIB, "vmid": vmid,
    }  # fmt: skip


def test_checkpoints_form_a_tree_with_memory_of_those_that_ran(host: FaultyHost) -> None:
    machine(host, 200, "web")
    provider = adapter(host)
    first = provider.checkpoint("web", "first", job(), comment="before all")
    assert (first.live, first.comment, first.parent) == (False, "before all", "")
    assert first.created.endswith("Z")
    provider.start("web", job())
    second = provider.checkpoint("web", "second", job())
    assert (second.live, second.parent) == (True, "first")
    provider.restore("web", "first", job())
    third = provider.checkpoint("web", "third", job())
    assert third.parent == "first"
    tree = provider.saved.trees(["web"])["web"]
    assert tree.current == "third"
    assert [one.name for one in provider.checkpoints(["web"])["web"]] == ["first", "second", "third"]
    provider.delete_checkpoint("web", "first", job())
    assert [one.parent for one in provider.checkpoints()["web"]] == ["", ""]


@pytest.mark.parametrize(("before", "after"), [("running", "running"), ("stopped", "stopped")])
def test_a_machine_that_ran_runs_after_a_restore(host: FaultyHost, before: str, after: str) -> None:
    machine(host, 200, "web")
    provider = adapter(host)
    provider.checkpoint("web", "first", job())
    if before == "running":
        provider.start("web", job())
    host.vm("web").config["description"] = "damaged"
    provider.restore("web", "first", job())
    assert provider.describe(["web"])["web"].state == after


def test_a_restored_machine_stays_its_owner_s(host: FaultyHost) -> None:
    machine(host, 200, "web")
    vm = host.vm("web")
    vm.config["tags"] = "fleet;pool-dev"
    provider = adapter(host)
    provider.checkpoint("web", "free", job())
    vm.config["tags"] = "fleet;project-shop;taken-dev"
    assert adapter(host).describe()["web"].project == "shop"
    adapter(host).restore("web", "free", job())
    assert host.vm("web").config["tags"] == "fleet;project-shop;taken-dev"


def test_many_machines_cost_one_request_each_and_only_when_asked(host: FaultyHost) -> None:
    for number in range(20):
        machine(host, 200 + number, f"web-{number}")
    provider = adapter(host)
    provider.describe()
    assert len(host.requests()) == 1
    assert len(provider.checkpoints()) == 20
    paths = [request.path for request in host.requests()]
    assert len([path for path in paths if path.endswith("/snapshot")]) == 20
    assert len(paths) <= 21
    provider.checkpoints(["web-3"])
    assert [request.path for request in host.requests()][-1:] == ["/nodes/pve1/qemu/203/snapshot"]


@pytest.mark.parametrize("name", ["a", "current", "Pending", "x" * 41, "1st", "with space", "under_score"])
def test_names_that_proxmox_does_not_take_are_refused_without_asking(host: FaultyHost, name: str) -> None:
    machine(host, 200, "web")
    with pytest.raises(InvalidInput, match="checkpoint"):
        adapter(host).checkpoint("web", name, job())
    assert host.requests("POST") == []


def test_errors_are_sentences(host: FaultyHost) -> None:
    machine(host, 200, "web")
    provider = adapter(host)
    provider.checkpoint("web", "first", job())
    with pytest.raises(Conflict, match="there is one of that name already"):
        provider.checkpoint("web", "first", job())
    for call in (provider.restore, provider.delete_checkpoint):
        with pytest.raises(NotFound, match='checkpoint "no" of machine "web": there is none'):
            call("web", "no", job())
    with pytest.raises(NotFound, match='machine "gone"'):
        provider.checkpoint("gone", "first", job())
    host.vm("web").snapshots["first"]["snapstate"] = "prepare"
    with pytest.raises(Conflict, match=r"incomplete \(prepare\) and cannot be restored; delete it"):
        provider.restore("web", "first", job())


def test_a_storage_that_takes_no_snapshots_is_named_with_those_that_do(host: FaultyHost) -> None:
    host.machine(200, "web", scsi0="local:200/vm-200-disk-0.raw,size=8G")
    with pytest.raises(Conflict, match=r"cannot snapshot scsi0 on local \(raw\) there; expected ZFS, LVM-thin"):
        adapter(host).checkpoint("web", "first", job())
    assert host.vm("web").snapshots == {}


def test_an_interrupted_checkpoint_is_listed_and_taken_anew(host: FaultyHost) -> None:
    machine(host, 200, "web")
    host.vm("web").snapshots["first"] = {"snapstate": "prepare", "snaptime": 5, "scsi0": "local-lvm:vm-200-disk-0"}
    provider = adapter(host)
    (found,) = provider.checkpoints()["web"]
    assert found.comment == "incomplete (prepare); delete it"
    provider.checkpoint("web", "first", job())
    assert [request.params for request in host.requests("DELETE")] == [{"force": "1"}]
    assert not host.vm("web").snapshots["first"].get("snapstate")


def test_a_busy_machine_is_waited_for(host: FaultyHost) -> None:
    machine(host, 200, "web")
    host.pve.snapshot_lock(200, "backup")
    said: list[str] = []

    def report(text: str) -> None:
        said.append(text)
        host.pve.unlock(200)

    adapter(host).checkpoint("web", "first", Job.lasting(20, report))
    assert said == ["wait for another operation: VM is locked (backup)"]
    host.pve.snapshot_lock(200, "backup")
    with pytest.raises(Conflict, match=r"VM is locked \(backup\).*`qm unlock 200` on pve1 frees it"):
        adapter(host).checkpoint("web", "second", job(0.5))


@pytest.mark.parametrize("kind", ["before", "after"])
def test_a_lost_answer_is_found_out_about(host: FaultyHost, kind: str) -> None:
    machine(host, 200, "web")
    provider = adapter(host)
    host.trouble(kind, "POST", "/snapshot$")
    if kind == "after":
        assert provider.checkpoint("web", "first", job()).name == "first"
        assert len(host.requests("POST")) == 1
    else:
        with pytest.raises(FleetError, match="it may have been done nevertheless"):
            provider.checkpoint("web", "first", job())
        assert host.vm("web").snapshots == {}
        provider.checkpoint("web", "first", job())
    host.trouble(kind, "POST", "/rollback$")
    provider.restore("web", "first", job())
    host.trouble(kind, "DELETE", "/snapshot/first$")
    if kind == "before":
        with pytest.raises(FleetError):
            provider.delete_checkpoint("web", "first", job())
    provider_again = adapter(host)
    if host.vm("web").snapshots:
        provider_again.delete_checkpoint("web", "first", job())
    assert host.vm("web").snapshots == {}


def test_machines_are_forked_from_a_checkpoint(host: FaultyHost) -> None:
    machine(host, 200, "web", status="running")
    provider = adapter(host)
    provider.checkpoint("web", "first", job())
    host.requests()
    for number in range(3):
        made = provider.create(MachineSpec(f"fork-{number}", "proxmox", "instance:web.first"), job())
        assert made.image == "instance:web.first"
    clones = [request.params for request in host.requests("POST") if request.path.endswith("/clone")]
    assert [(params["snapname"], params["full"]) for params in clones] == [("first", "1")] * 3
    assert provider.describe(["web"])["web"].state == "running"
    assert all(not host.vm(f"fork-{number}").snapshots for number in range(3))


def test_the_list_of_snapshots_is_read() -> None:
    items = [
        {"name": "first", "snaptime": 0, "vmstate": 0, "description": "a\n"},
        {"name": "second", "snaptime": 1760000000, "vmstate": 1, "parent": "first", "description": ""},
        {"name": "current", "parent": "second", "running": 1, "description": "You are here!"},
    ]
    tree = tree_of(items)
    assert tree.current == "second"
    first, second = tree.checkpoints("web")
    assert (first.comment, first.created, second.created, second.live) == ("a", "", "2025-10-09T08:53:20Z", True)
    assert tree_of([]) == Tree()
