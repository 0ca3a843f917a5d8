# SPDX-License-Identifier: GPL-3.0-or-later
"""The provider proxmox against a fake cluster; what it asked is checked against the schemas of three versions."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fakepve", reason="the fake of Proxmox VE needs Python 3.10")

from tests.fakes.proxmox_host import GIB, Host
from tests.fakes.proxmox_schema import all_problems, schemas
from tests.requirements import require_tool

from fleet_core.errors import Conflict, InvalidInput, NotFound, ProcessFailed, TimedOut, Unavailable
from fleet_core.machine_plans import Difference, differences
from fleet_core.machines import Machine, MachineSpec, Network
from fleet_machines.provider import Job
from fleet_machines.proxmox import Proxmox

KEYS = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI+test/key me@host"
SPEC = MachineSpec(
    "web-1",
    "proxmox",
    image="debian-12",
    cpu=2,
    memory=2 * GIB,
    disk=10 * GIB,
    networks=(Network("vmbr1", address="10.0.0.5/24", gateway="10.0.0.1"), Network("vmbr2", "52:54:00:00:00:01")),
    user_data="#cloud-config\npassword: hunter2-in-user-data\npackages: [git]\n",
    tags=("Web", "ip-rack", "tag-x"),
    project="Shop",
    login="dev",
)
PLAIN = MachineSpec("web-1", "proxmox", image="debian-12")


def job(seconds: float = 20, said: list[str] | None = None) -> Job:
    return Job.lasting(seconds, (said if said is not None else []).append)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    found = Host(tmp_path)
    try:
        yield found
        if schemas() is not None:
            assert all_problems(found.all_requests()) == []
    finally:
        found.stop()


def changes(adapter: Proxmox, spec: MachineSpec, full: bool = True) -> tuple[Difference, ...]:
    return differences(spec, adapter.describe([spec.name], full=full)[spec.name], adapter.capabilities)


def change(adapter: Proxmox, spec: MachineSpec) -> None:
    adapter.change(spec, changes(adapter, spec), job())


def seed_of(host: Host, name: str) -> dict[str, str]:
    """The files of an ISO that was uploaded."""
    isoinfo = require_tool("isoinfo", "to look into the seeds that are uploaded")
    path = host.folder / name
    path.write_bytes(host.pve.isos[name])
    volume = subprocess.run([isoinfo, "-d", "-i", path], capture_output=True, text=True, check=True).stdout
    assert "Volume id: cidata" in volume
    return {
        file: subprocess.run(
            [isoinfo, "-R", "-x", f"/{file}", "-i", path], capture_output=True, text=True, check=True
        ).stdout
        for file in ("user-data", "meta-data", "network-config")
    }


# -- the whole life ---------------------------------------------------------------------------------------------------


def test_a_machine_is_made_described_and_deleted_without_a_trace(host: Host) -> None:
    adapter = host.adapter()
    made = adapter.create(SPEC, job())
    assert (made.state, made.addresses[0], made.incomplete) == ("running", "10.0.0.5", "")
    assert (made.cpu, made.memory, made.disk, made.image) == (2, 2 * GIB, 10 * GIB, "debian-12")
    assert (made.tags, made.project, made.login) == (SPEC.tags, "Shop", "dev")
    config = host.vm("web-1").config
    assert config["scsi0"].endswith("size=10G")
    assert config["net0"].endswith("bridge=vmbr1,firewall=1")  # what the template has beside the bridge stays
    assert config["ipconfig0"] == "ip=10.0.0.5/24,gw=10.0.0.1"
    assert config["net1"] == "virtio=52:54:00:00:00:01,bridge=vmbr2"
    assert config["ipconfig1"] == "ip=dhcp"
    # Another process, which only lists, sees the same.
    other = host.adapter()
    assert other.describe()["web-1"] == made
    assert changes(other, SPEC) == ()
    adapter.delete("web-1", job())
    assert (host.names(), host.volumes()) == ([], [])
    assert not list(host.state_dir.rglob("*.*"))  # nothing is kept on the host
    adapter.delete("web-1", job())  # one that is gone is no error
    # Disks of its number that are not its own may be those of another cluster on the same storage.
    assert not [request for request in host.all_requests() if "destroy-unreferenced-disks" in request.params]


def test_it_takes_few_requests_and_an_unchanged_machine_two(host: Host) -> None:
    host.adapter().create(SPEC, job())
    assert len(host.requests()) <= 24
    adapter = host.adapter()
    for _time in range(2):  # before and after, as the module does
        assert differences(SPEC, adapter.describe(["web-1"], full=True)["web-1"], adapter.capabilities) == ()
    calls = [(request.method, request.path) for request in host.requests()]
    assert calls[:2] == [("GET", "/cluster/resources"), ("GET", "/cluster/tasks")]
    # It was made a moment ago, so the list may not know yet: then it is asked for itself.
    assert {path.rpartition("/")[2] for _method, path in calls[2:]} <= {"config", "current"}
    host.forget_tasks()
    adapter = host.adapter()
    for _time in range(2):
        adapter.describe(["web-1"], full=True)
    assert [request.path for request in host.requests()] == ["/cluster/resources", "/cluster/tasks"]


def test_secrets_are_in_no_request_but_the_one_that_needs_them_and_in_no_error(host: Host) -> None:
    said: list[str] = []
    host.adapter().create(SPEC, job(said=said))
    shown = json.dumps([[one.path, {k: str(v) for k, v in one.params.items()}] for one in host.requests()]) + str(said)
    assert "hunter2" not in shown
    host.pve.fail("PUT", "/config", status=500, message="bad cipassword hunter3-secret", times=9)
    host.pve.fail("POST", "/config", status=500, message="bad cipassword hunter3-secret", times=9)
    native = f"#cloud-config\npassword: hunter3-secret\nchpasswd: {{expire: false}}\nssh_authorized_keys:\n  - {KEYS}\n"
    with pytest.raises(ProcessFailed) as caught:
        host.adapter().create(replace(PLAIN, name="web-2", user_data=native), job())
    assert "bad cipassword ***" in caught.value.message
    assert "hunter3" not in repr(caught.value.__cause__) + str(host.adapter().session.settings)
    assert "token-secret" not in str(host.adapter().session.settings)


# -- user data --------------------------------------------------------------------------------------------------------


def test_plain_user_data_are_given_in_proxmox_own_keys(host: Host) -> None:
    text = f"#cloud-config\nuser: dev\nssh_authorized_keys:\n  - {KEYS}\n  - '{KEYS}2'\nhostname: web-1\n"
    host.adapter().create(replace(PLAIN, user_data=text), job())
    config = host.vm("web-1").config
    assert (config["ciuser"], str(config["ciupgrade"])) == ("dev", "0")
    # Encoded once in itself: spaces as %20, the newline as %0A.
    assert config["sshkeys"] == (KEYS + "\n" + KEYS + "2").replace("%", "%25").replace(" ", "%20").replace(
        "/", "%2F"
    ).replace("+", "%2B").replace("@", "%40").replace("\n", "%0A")
    assert config["ide2"].endswith("cloudinit,media=cdrom")
    assert host.pve.isos == {}


def test_other_user_data_are_in_a_seed_that_goes_with_the_machine(host: Host) -> None:
    adapter = host.adapter()
    adapter.create(SPEC, job())
    (name,) = host.pve.isos
    assert name == "fleet-web-1-100.iso"
    assert host.vm("web-1").config["ide2"] == f"local:iso/{name},media=cdrom"  # instead of Proxmox's own drive
    seed = seed_of(host, name)
    assert seed["user-data"] == SPEC.user_data
    assert json.loads(seed["meta-data"])["local-hostname"] == "web-1"
    first, second = json.loads(seed["network-config"])["ethernets"].values()
    assert first["addresses"] == ["10.0.0.5/24"]
    assert first["match"]["macaddress"] in host.vm("web-1").config["net0"].lower()
    assert (second["dhcp4"], second["match"]["macaddress"]) == (True, "52:54:00:00:00:01")
    assert f"local:iso/{name}" in host.volumes()
    adapter.delete("web-1", job())
    assert host.volumes() == []


def test_user_data_without_a_cloud_init_drive_in_the_template_get_one(host: Host) -> None:
    host.template(9001, "bare", ide2=None)
    text = f"#cloud-config\nssh_authorized_keys:\n  - {KEYS}\n"
    host.adapter().create(replace(PLAIN, image="bare", user_data=text), job())
    assert host.vm("web-1").config["ide2"].startswith("local-lvm:vm-100-cloudinit")
    host.adapter().create(replace(PLAIN, name="web-2", image="bare"), job())
    assert "ide2" not in host.vm("web-2").config


def test_a_failed_cloud_init_is_told_and_the_machine_is_made_anew(host: Host) -> None:
    adapter = host.adapter()
    host.pve.cloud_init = 1
    with pytest.raises(ProcessFailed, match='machine "web-1": cloud-init failed in it: status: 1'):
        adapter.create(SPEC, job())
    assert "did not come up yet" in adapter.describe()["web-1"].incomplete
    host.pve.cloud_init = 2  # done, with something that it recovered from
    first = host.vm("web-1")
    assert adapter.create(SPEC, job()).incomplete == ""
    assert host.vm("web-1") is first  # cloud-init came through after all: it is kept
    adapter.delete("web-1", job())
    host.pve.cloud_init = 1
    with pytest.raises(ProcessFailed):
        adapter.create(SPEC, job())
    stuck = host.vm("web-1")
    with pytest.raises(ProcessFailed):
        adapter.create(SPEC, job())
    assert host.vm("web-1") is not stuck


# -- where from, and where to -----------------------------------------------------------------------------------------


def test_clones_are_linked_unless_their_disks_go_elsewhere(host: Host) -> None:
    host.pve.storages["fast"] = {"type": "lvmthin", "active": 1, "content": "images", "files": set()}
    for number, (settings, full, storage) in enumerate(
        [({}, "0", None), ({"clone": "full"}, "1", None), ({"storage": "fast"}, "1", "fast"),
         ({"clone": "linked", "storage": "fast"}, "0", None)]
    ):  # fmt: skip
        host.requests()
        host.adapter(**settings).create(replace(PLAIN, name=f"web-{number}"), job())
        (clone,) = [one for one in host.requests("POST") if one.path.endswith("/clone")]
        assert (clone.params["full"], clone.params.get("storage")) == (full, storage)


def test_a_storage_that_cannot_link_gets_full_clones(host: Host) -> None:
    host.pve.vm(9000).config["scsi0"] = "local-lvm:vm-9000-disk-0,size=4G"  # no base volume
    host.adapter().create(PLAIN, job())
    clones = [one.params["full"] for one in host.requests("POST") if one.path.endswith("/clone")]
    assert clones == ["0", "1"]
    with pytest.raises(ProcessFailed, match="Linked clone feature is not supported"):
        host.adapter(clone="linked").create(replace(PLAIN, name="web-2"), job())
    assert host.names() == ["web-1"]


def test_a_machine_is_forked_from_a_stopped_one_and_from_a_checkpoint(host: Host) -> None:
    adapter = host.adapter()
    adapter.create(SPEC, job())
    with pytest.raises(Conflict, match='the machine "web-1" to clone is running; stop it, or name a checkpoint'):
        adapter.create(MachineSpec("fork", "proxmox", image="instance:web-1"), job())
    host.vm("web-1").config["scsi0"] = "local-lvm:vm-100-disk-0,size=10G"
    adapter.checkpoint("web-1", "before", job())
    forked = adapter.create(MachineSpec("fork", "proxmox", image="instance:web-1.before"), job())
    assert (forked.image, forked.state, forked.user_data) == ("instance:web-1.before", "running", "")
    assert forked.detail["vmid"] != 100
    # A new instance for cloud-init: another id and name, and no seed of the other one.
    seed = seed_of(host, "fleet-fork-101.iso")
    assert json.loads(seed["meta-data"])["local-hostname"] == "fork"
    assert "hunter2" not in seed["user-data"]
    assert host.vm("fork").config["net0"] != host.vm("web-1").config["net0"]
    adapter.delete("web-1", job())
    adapter.stop("fork", job())
    adapter.start("fork", job())  # it needs nothing of the other one
    again = adapter.describe(["fork"])["fork"]
    assert differences(MachineSpec("fork", "proxmox", image="instance:web-1.before"), again, adapter.capabilities) == ()
    with pytest.raises(NotFound, match='the machine "web-9" to clone does not exist'):
        adapter.create(MachineSpec("x", "proxmox", image="instance:web-9"), job())


def test_machines_are_spread_by_free_memory_over_the_nodes_that_can_take_them(host: Host) -> None:
    host.pve.add_node("pve2")
    host.pve.add_node("pve3", online=False)
    host.adapter().create(PLAIN, job())
    assert host.vm("web-1").node == "pve1"  # its storage is not shared
    with pytest.raises(InvalidInput, match='the template "debian-12" is on pve1 only, on storage that pve2 does not'):
        host.adapter(node="pve2").create(replace(PLAIN, name="web-2"), job())
    host.pve.storages["local-lvm"]["shared"] = 1
    adapter = host.adapter()
    for number in range(2, 8):
        adapter.create(replace(PLAIN, name=f"web-{number}", memory=GIB), job())
    nodes = [host.vm(f"web-{number}").node for number in range(2, 8)]
    assert sorted(nodes) == ["pve1"] * 3 + ["pve2"] * 3
    host.adapter(node="pve2").create(replace(PLAIN, name="web-8"), job())
    assert host.vm("web-8").node == "pve2"
    host.template(9002, "debian-12", node="pve2")
    host.pve.storages["local-lvm"]["shared"] = 0
    host.adapter(node="pve2").create(replace(PLAIN, name="web-9"), job())
    assert host.vm("web-9").node == "pve2"  # the template of that name that is there


def test_a_pool_takes_the_machine(host: Host) -> None:
    host.pve.pools["fleet"] = set()
    made = host.adapter(pool="fleet").create(PLAIN, job())
    assert host.pve.pools["fleet"] == {made.detail["vmid"]}


WRONG: list[tuple[MachineSpec, type[Exception], str]] = [
    (replace(PLAIN, image=""), InvalidInput, "image: expected a template, a golden image or instance:NAME"),
    (replace(PLAIN, image="nosuch"), NotFound, 'there is no template "nosuch" in Proxmox VE at 127.0.0.1'),
    (replace(PLAIN, image="instance:x y"), InvalidInput, "expected instance:NAME or instance:NAME.CHECKPOINT"),
    (replace(PLAIN, disk=2 * GIB), InvalidInput, 'disk: "debian-12" has one of 4G, which cannot get smaller, found 2G'),
    (replace(PLAIN, memory=GIB + 1), InvalidInput, "memory: Proxmox VE counts in MiB"),
]


@pytest.mark.parametrize(("spec", "kind", "message"), WRONG, ids=[message[:30] for _spec, _kind, message in WRONG])
def test_what_cannot_be_made_is_refused_before_anything_is_done(
    host: Host, spec: MachineSpec, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind) as caught:
        host.adapter().create(spec, job())
    assert message in str(caught.value)
    assert str(caught.value).startswith('machine "web-1": ')
    assert host.requests("POST", "PUT", "DELETE") == []


# -- changes, power ---------------------------------------------------------------------------------------------------


def test_changes_are_made_in_place_with_one_request_each(host: Host) -> None:
    adapter = host.adapter()
    adapter.create(SPEC, job())
    live = replace(SPEC, disk=12 * GIB, tags=("new",), project="", login="root")
    assert {one.name: one.way for one in changes(adapter, live)} == dict.fromkeys(
        ("disk", "tags", "project", "login"), "live"
    )
    host.requests()
    change(adapter, live)
    assert [one.path.rpartition("/")[2] for one in host.requests("PUT")] == ["resize", "config"]
    assert changes(adapter, live) == changes(host.adapter(), live) == ()
    cold = replace(live, cpu=4, memory=4 * GIB, networks=(Network("vmbr9"),))
    assert {one.name: one.way for one in changes(adapter, cold)} == dict.fromkeys(
        ("cpu", "memory", "networks"), "stopped"
    )
    adapter.stop("web-1", job())
    change(adapter, cold)
    config = host.vm("web-1").config
    assert (config["cores"], config["memory"]) == ("4", "4096")
    assert "bridge=vmbr9" in config["net0"]
    assert "net1" not in config
    assert adapter.start("web-1", job()).networks[0].name == "vmbr9"
    assert changes(adapter, cold) == changes(host.adapter(), cold) == ()
    host.vm("web-1").config["cores"] = 8  # somebody else's hands
    assert [str(one) for one in changes(host.adapter(), cold)] == ["cpu from 8 to 4"]
    small = replace(cold, disk=5 * GIB, image="other", user_data="#cloud-config\n{}\n")
    assert {one.name for one in changes(adapter, small) if not one.way} == {"disk", "image", "user_data"}


def test_addresses_that_came_with_user_data_cannot_be_changed_from_outside(host: Host) -> None:
    adapter = host.adapter()
    adapter.create(SPEC, job())
    moved = replace(SPEC, networks=(Network("vmbr1", address="10.0.0.6/24", gateway="10.0.0.1"), Network("vmbr2")))
    adapter.stop("web-1", job())
    with pytest.raises(InvalidInput, match="its addresses came with its user data at its first boot"):
        change(adapter, moved)
    adapter.create(replace(PLAIN, name="web-2", networks=(Network("vmbr0", address="10.9.0.1/24"),)), job())
    adapter.stop("web-2", job())
    change(adapter, MachineSpec("web-2", "proxmox", networks=(Network("vmbr0", address="10.9.0.2/24"),)))
    assert host.vm("web-2").config["ipconfig0"] == "ip=10.9.0.2/24"
    assert adapter.start("web-2", job()).addresses == ("10.9.0.2",)


def test_hotplug_that_the_guest_does_not_support_is_told(host: Host) -> None:
    adapter = host.adapter(hotplug=True)
    adapter.create(PLAIN, job())
    assert [one.way for one in changes(adapter, replace(PLAIN, cpu=4))] == ["live"]
    with pytest.raises(ProcessFailed, match="cores cannot be changed while it runs, and will be at its next start"):
        change(adapter, replace(PLAIN, cpu=4))


def test_machines_are_stopped_started_and_powered_off(host: Host) -> None:
    adapter = host.adapter()
    adapter.create(PLAIN, job())
    adapter.stop("web-1", job())
    assert adapter.describe()["web-1"].state == host.adapter().describe()["web-1"].state == "stopped"
    host.requests()
    adapter.stop("web-1", job())
    assert host.requests("POST") == []
    assert adapter.start("web-1", job()).state == "running"
    host.vm("web-1").acpi = False
    with pytest.raises(TimedOut, match="it did not shut down in time; force: true powers it off"):
        adapter.stop("web-1", job())
    adapter.stop("web-1", job(), force=True)
    assert host.vm("web-1").status == "stopped"
    host.vm("web-1").start_error = "no such disk"
    with pytest.raises(ProcessFailed, match='machine "web-1": start it: the task on pve1 failed: no such disk'):
        adapter.start("web-1", job())


def test_high_availability_does_later_what_it_is_asked_for(host: Host) -> None:
    adapter = host.adapter()
    adapter.create(PLAIN, job())
    host.pve.time_scale, host.pve.ha_delay = 0.05, 10
    host.vm("web-1").ha_state = "started"
    adapter.stop("web-1", job())
    assert host.vm("web-1").status == "stopped"
    assert adapter.start("web-1", job()).state == "running"
    host.pve.time_scale = 0
    adapter.delete("web-1", job())
    assert host.names() == []


def test_protected_machines_and_such_that_are_backed_up_are_not_deleted(host: Host) -> None:
    adapter = host.adapter()
    adapter.create(PLAIN, job())
    host.vm("web-1").config["protection"] = 1
    with pytest.raises(Conflict, match='it is protected in Proxmox VE; remove "protection" from virtual machine 100'):
        adapter.delete("web-1", job())
    host.vm("web-1").config.pop("protection")
    host.pve.snapshot_lock(100, "backup")
    with pytest.raises(Conflict, match=r"a backup of it is being made \(lock: backup\)"):
        adapter.delete("web-1", job())
    host.pve.unlock(100)
    adapter.delete("web-1", job())
    assert host.names() == []


def test_a_paused_machine_goes_on_before_it_is_shut_down(host: Host) -> None:
    adapter = host.adapter()
    adapter.create(PLAIN, job())
    host.vm("web-1").qmpstatus = "paused"
    adapter.stop("web-1", job())
    actions = [one.path.rpartition("/")[2] for one in host.requests("POST")]
    assert actions[-2:] == ["resume", "shutdown"]


# -- what is there ----------------------------------------------------------------------------------------------------


def test_two_machines_of_one_name_are_a_conflict_and_hide_nothing(host: Host) -> None:
    host.machine(200, "twin")
    host.machine(201, "twin", node="pve2")
    host.machine(202, "other")
    adapter = host.adapter()
    found = adapter.describe()
    assert list(found) == ["other", "twin"]
    assert found["twin"].detail["same_name"] == [201]
    for call in (
        lambda: adapter.describe(["twin"]),
        lambda: adapter.start("twin", job()),
        lambda: adapter.delete("twin", job()),
        lambda: adapter.create(replace(PLAIN, name="Twin"), job()),
    ):
        with pytest.raises(Conflict, match="2 virtual machines have this name: 200 on pve1, 201 on pve2"):
            call()
    assert len(host.pve.vms) == 4


def test_templates_and_containers_are_no_machines(host: Host) -> None:
    assert host.adapter().describe() == {}
    (image,) = host.adapter().images()
    assert (image.name, image.aliases, image.kind) == ("debian-12", ("9000",), "remote")
    assert host.adapter().create(replace(PLAIN, image="9000"), job()).image == "debian-12"


def test_machines_that_were_made_by_hand_are_taken_over(host: Host) -> None:
    host.machine(200, "old", tags="Mine;prod", net0="virtio=BC:24:11:00:00:09,bridge=vmbr7", status="running")
    host.pve.vm(200).agent = {}
    adapter = host.adapter()
    machine = adapter.describe(["old"], full=True)["old"]
    assert (machine.cpu, machine.memory, machine.disk, machine.tags) == (2, 2 * GIB, 8 * GIB, ("mine", "prod"))
    assert machine.networks == (Network("vmbr7", "bc:24:11:00:00:09"),)
    change(adapter, MachineSpec("old", "proxmox", project="shop", disk=9 * GIB))
    assert {"fleet", "mine", "prod", "project-shop"} <= set(host.pve.vm(200).config["tags"].split(";"))
    assert adapter.run("old", "echo hello", job()).stdout == "hello\n"


def test_what_the_list_does_not_know_yet_is_asked_for(host: Host) -> None:
    host.pve.lag()
    adapter = host.adapter()
    made = adapter.create(SPEC, job())
    assert adapter.describe()["web-1"] == made  # this process knows what it did
    other = host.adapter().describe(["web-1"])
    assert other["web-1"].state == "running"
    assert changes(host.adapter(), SPEC) == ()
    host.pve.lag()
    adapter.stop("web-1", job())
    change(adapter, replace(SPEC, cpu=4))
    fresh = host.adapter().describe(["web-1"])["web-1"]
    assert (fresh.state, fresh.cpu) == ("stopped", 4)  # the list still says running, with 2
    adapter.delete("web-1", job())
    assert adapter.describe() == {}


def test_scripts_run_inside_through_the_agent(host: Host) -> None:
    adapter = host.adapter()
    adapter.create(PLAIN, job())
    ran = adapter.run("web-1", "echo schön; echo weh >&2; exit 3", job())
    assert (ran.code, ran.stdout, ran.stderr) == (3, "schön\n", "weh\n")
    assert adapter.run("web-1", "kill -9 $$", job()).code == 137
    long = "true " + "x" * 100_000 + "\necho done ü"
    host.requests()
    assert adapter.run("web-1", long, job()).stdout == "done ü\n"
    sent = [one for one in host.requests("POST") if one.path.endswith("agent/exec")]
    assert all("xxxx" not in " ".join(one.params["command"]) for one in sent)
    assert max(len(one.params.get("input-data", "")) for one in sent) <= 65536
    with pytest.raises(TimedOut, match="a script did not end within 1s; it goes on inside as process"):
        adapter.run("web-1", "sleep 4", job(1))
    host.vm("web-1").agent_hangs = True
    with pytest.raises(TimedOut, match="got timeout"):
        adapter.run("web-1", "true", job())


def test_a_privilege_that_is_missing_is_named(host: Host) -> None:
    adapter = host.adapter()
    adapter.create(PLAIN, job())
    host.pve.grant("fleet@pve", "/", "VM.Audit", "VM.Clone", "Datastore.Audit", "Sys.Audit")
    with pytest.raises(Conflict) as caught:
        adapter.run("web-1", "true", job())
    assert "fleet@pve!ansible lacks the privilege VM.GuestAgent.Unrestricted on /vms/100" in caught.value.message
    assert "VM.Monitor on Proxmox VE 8" in caught.value.message
    with pytest.raises(
        Conflict, match=r'"web-2": clone debian-12 to virtual machine 101: fleet@pve!ansible may not do'
    ):
        adapter.create(replace(PLAIN, name="web-2"), job())
    assert host.names() == ["web-1"]


def test_a_machine_without_an_agent_is_waited_for_as_far_as_it_can_be(host: Host) -> None:
    host.template(9001, "mute", agent="0")
    said: list[str] = []
    adapter = host.adapter()
    made = adapter.create(replace(PLAIN, image="mute"), job(said=said))
    assert (made.state, made.addresses, made.incomplete) == ("running", (), "")
    assert any("neither a guest agent nor a static address" in text for text in said)
    static = replace(PLAIN, name="web-2", image="mute", networks=(Network("vmbr0", address="10.1.1.1/24"),))
    assert adapter.create(static, job()).addresses == ("10.1.1.1",)
    host.pve.with_agents = False
    with pytest.raises(TimedOut, match="it runs, but its guest agent did not answer within 1s"):
        adapter.create(replace(PLAIN, name="web-3"), job(1))
    assert "did not come up yet" in adapter.describe()["web-3"].incomplete
    host.pve.with_agents = True
    assert adapter.create(replace(PLAIN, name="web-3"), job()).incomplete == ""


# -- what was interrupted ---------------------------------------------------------------------------------------------


class Killed(BaseException):
    """The client goes away."""


def killed_before(adapter: Proxmox, ending: str) -> None:
    """Let the client die before it sends a request whose path ends so."""
    send = adapter.session._once

    def once(method: str, path: str, *rest: Any) -> Any:
        if path.endswith(ending) and method != "GET":
            raise Killed
        return send(method, path, *rest)

    adapter.session._once = once  # type: ignore[method-assign]


@pytest.mark.parametrize("ending", ["/upload", "/config", "/resize", "/status/start", "/agent/exec"])
def test_what_a_killed_client_left_is_found_and_finished(host: Host, ending: str) -> None:
    adapter = host.adapter()
    killed_before(adapter, ending)
    with pytest.raises(Killed):
        adapter.create(SPEC, job())
    other = host.adapter()
    left = other.describe()
    assert list(left) == ["web-1"]
    assert left["web-1"].incomplete
    made = other.create(SPEC, job())
    assert (made.incomplete, made.detail["vmid"]) == ("", left["web-1"].detail["vmid"])
    assert changes(other, SPEC) == ()
    assert host.names() == ["web-1"]
    other.delete("web-1", job())
    assert host.volumes() == []


def test_what_was_left_of_another_image_is_made_anew(host: Host) -> None:
    host.template(9001, "debian-13")
    adapter = host.adapter()
    killed_before(adapter, "/status/start")
    with pytest.raises(Killed):
        adapter.create(SPEC, job())
    made = host.adapter().create(replace(SPEC, image="debian-13"), job())
    assert (made.image, host.names()) == ("debian-13", ["web-1"])
    host.adapter().delete("web-1", job())
    assert host.volumes() == []


def test_a_clone_that_still_runs_is_waited_for(host: Host) -> None:
    host.pve.add_ceph_storage()
    host.pve.vm(9000).config["scsi0"] = "ceph-pool:base-9000-disk-0,size=4G"
    host.pve.ceph_slow(20)
    host.pve.time_scale = 0.1
    with pytest.raises(TimedOut, match="the task still runs after 1s; it goes on in Proxmox VE as UPID:pve1:"):
        host.adapter().create(PLAIN, job(1))
    other = host.adapter()
    assert "disks are being copied" in other.describe()["web-1"].incomplete
    host.pve.ceph_recover()
    assert other.create(PLAIN, job(30)).incomplete == ""
    assert host.names() == ["web-1"]


def test_a_clone_that_nobody_makes_any_more_is_told(host: Host) -> None:
    adapter = host.adapter()
    killed_before(adapter, "/config")
    with pytest.raises(Killed):
        adapter.create(PLAIN, job())
    host.pve.snapshot_lock(100, "clone")
    host.forget_tasks()
    with pytest.raises(Conflict, match="a clone that was interrupted locks it; run qm unlock 100 on node pve1"):
        host.adapter().create(PLAIN, job())


def test_a_failed_clone_leaves_nothing_and_a_lock_is_waited_for(host: Host) -> None:
    adapter = host.adapter()
    host.pve.storages["local-lvm"]["avail"] = 1
    with pytest.raises(ProcessFailed, match="clone failed: unable to write to storage"):
        adapter.create(PLAIN, job())
    assert (host.names(), adapter.describe()) == ([], {})
    host.pve.storages["local-lvm"].pop("avail")
    host.pve.fail("POST", "/clone", status=500, message="can't lock file '/var/lock/qemu-server/lock-9000.conf' - got timeout", times=2)  # fmt: skip # noqa: E501
    assert adapter.create(PLAIN, job()).state == "running"


def test_a_machine_that_exists_is_not_made_again(host: Host) -> None:
    adapter = host.adapter()
    adapter.create(PLAIN, job())
    with pytest.raises(Conflict, match='machine "web-1": there is one already, running, virtual machine 100 on pve1'):
        adapter.create(PLAIN, job())


def test_machines_of_a_node_that_is_away_stay_listed(host: Host) -> None:
    host.pve.add_node("pve2")
    host.machine(200, "far", node="pve2", tags="fleet;project-shop;size-2-2048-8192", status="running")
    host.pve.set_node_offline("pve2")
    found: dict[str, Machine] = host.adapter().describe(["far"])
    assert (found["far"].state, found["far"].project) == ("unknown", "shop")
    with pytest.raises(Unavailable, match="No route to host"):
        host.adapter().start("far", job(2))


def test_a_machine_whose_node_is_away_is_not_taken_for_one_that_is_not_there(host: Host) -> None:
    host.pve.add_node("pve2")
    host.pve.lag()  # after some minutes nobody knows the names on a node that is away
    host.machine(200, "far", node="pve2", tags="fleet;project-shop")
    host.pve.set_node_offline("pve2")
    adapter = host.adapter()
    with pytest.raises(Unavailable, match=r'"far": whether it is there cannot be known, for node pve2 does not .* 200'):
        adapter.describe(["far"])
    assert list(adapter.describe()) == ["vm-200"]
    host.pve.set_node_offline("pve2", False)
    assert host.adapter().describe(["far"])["far"].project == "shop"


def test_what_was_left_is_finished_though_the_list_does_not_know_its_name_yet(host: Host) -> None:
    host.pve.lag()
    adapter = host.adapter()
    killed_before(adapter, "/status/start")
    with pytest.raises(Killed):
        adapter.create(SPEC, job())
    other = host.adapter()
    assert "did not come up yet" in other.describe(["web-1"], full=True)["web-1"].incomplete
    assert other.create(SPEC, job()).detail["vmid"] == 100
    with pytest.raises(Conflict, match="there is one already"):
        host.adapter().create(SPEC, job())
    assert host.names() == ["web-1"]


def test_a_machine_that_was_moved_to_another_node_is_found_there(host: Host) -> None:
    adapter = host.adapter()
    adapter.create(PLAIN, job())
    host.pve.add_node("pve2")
    host.vm("web-1").node = "pve2"
    adapter.stop("web-1", job())
    assert host.vm("web-1").status == "stopped"


def test_a_fresh_clone_of_a_golden_image_is_a_machine_that_is_incomplete(host: Host) -> None:
    tags = "fleet-image;fleet-inputs-0a1b2c3d4e5f6071;fleet-created-20260101t000000;fleet-login-dev"
    host.template(9001, "base-0a1b2c3d4e", tags=tags, ide2=None)
    spec = MachineSpec("web-1", "proxmox", image="base")
    adapter = host.adapter()
    killed_before(adapter, "/config")
    with pytest.raises(Killed):
        adapter.create(spec, job())
    other = host.adapter()
    assert {image.name for image in other.images()} == {"base-0a1b2c3d4e", "debian-12"}
    assert "was cloned, but not configured" in other.describe()["web-1"].incomplete
    made = other.create(spec, job())
    assert (made.image, made.login, made.tags) == ("base-0a1b2c3d4e", "dev", ())
    assert differences(spec, made, other.capabilities) == ()  # the family stands for its newest
    assert "fleet-image" not in host.vm("web-1").config["tags"]
    assert host.vm("web-1").config["ide2"].endswith("cloudinit,media=cdrom")  # or cloud-init would do nothing
    assert host.vm("web-1").config["ipconfig0"] == "ip=dhcp"
