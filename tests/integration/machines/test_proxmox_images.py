# SPDX-License-Identifier: GPL-3.0-or-later
"""Golden images of Proxmox VE, built without SSH, against the fake cluster; each request against Proxmox's schemas."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.fakes.proxmox_faulty import FaultyHost
from tests.fakes.proxmox_host import GIB
from tests.fakes.proxmox_schema import all_problems, schemas

from fleet_core.errors import Conflict, FleetError, InvalidInput, NotFound, ProcessFailed, TimedOut, Unavailable
from fleet_core.images import GOLDEN, ImageSpec
from fleet_core.machines import MachineSpec
from fleet_machines.provider import Job
from fleet_machines.proxmox import Proxmox
from fleet_machines.proxmox_marks import mark_of, tags_of

URL = "https://cloud.example/debian-12-genericcloud-amd64.qcow2?signature=hunter2"
DIGITS = "ab" * 32
FILE = f"import/debian-12-genericcloud-amd64-{DIGITS[:16]}.qcow2"
GOLD = ImageSpec(
    "python",
    "proxmox",
    URL,
    cpu=2,
    memory=4 * GIB,
    disk=8 * GIB,
    user_data="#cloud-config\npackages: [qemu-guest-agent]\npassword: hunter2\n",
    commands=("apt-get install -y python3",),
    checksum=f"sha256:{DIGITS}",
    checks={"python": "python3 --version"},
    login="debian",
)
needs_iso = pytest.mark.skipif(
    not any(map(shutil.which, ("xorriso", "genisoimage", "mkisofs"))), reason="no tool that makes ISO images"
)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[FaultyHost]:
    found = FaultyHost(tmp_path)
    found.serve(URL, DIGITS)
    try:
        yield found
        if schemas() is not None:
            assert all_problems(found.pve.seen) == []
    finally:
        found.stop()


def job(seconds: float = 30, said: list[str] | None = None) -> Job:
    return Job.lasting(seconds, (said if said is not None else []).append)


def adapter(host: FaultyHost, **settings: object) -> Proxmox:
    found = host.adapter(**settings)
    found.golden.building.first_pause = 0.01
    return found


def one(host: FaultyHost) -> str:
    """The one image in the list, by its name. No other thing is there but what belongs to it."""
    vms = [line for line in host.left() if line.startswith("vm ")]
    assert len(vms) == 1, host.left()
    _vm, vmid, name = vms[0].split()
    assert [line for line in host.left() if f"-{vmid}-" not in line and not line.startswith("vm ")] in (
        [],
        [f"local:{FILE}"],
    )
    return name


@needs_iso
def test_an_image_is_built_from_a_download_and_only_once(host: FaultyHost) -> None:
    said: list[str] = []
    image = adapter(host).build_image(GOLD, job(said=said))
    assert (image.name, image.kind, image.family, image.inputs) == (GOLD.image_name, GOLDEN, "python", GOLD.inputs)
    assert image.created
    assert not image.incomplete
    assert image.detail["login"] == "debian"
    vm = host.vm(GOLD.image_name)
    assert vm.template
    assert vm.config["scsi0"].startswith(f"local-lvm:base-{vm.vmid}-disk-0,")
    assert "size=8G" in vm.config["scsi0"]
    assert (vm.config["cores"], vm.config["memory"], vm.config["agent"]) == (2, "4096", "enabled=1")
    assert "hunter2" not in str(vm.config)
    assert not [key for key in vm.config if key.startswith(("ide", "ipconfig", "ci", "unused"))]
    assert host.left() == sorted([f"local-lvm:base-{vm.vmid}-disk-0", f"local:{FILE}", f"vm {vm.vmid} {vm.name}"])
    assert [text for text in said if text.startswith(("check", "seal", "command"))] == [
        "command 1 of 1",
        "check python",
        "seal it",
    ]
    host.requests()
    again = adapter(host).build_image(GOLD, job())
    assert again == image
    assert [request.method for request in host.requests()] == ["GET"]  # the one list
    assert GOLD.image_name in [found.name for found in adapter(host).images()]


@needs_iso
def test_the_seed_reaches_cloud_init_and_is_gone_afterwards(host: FaultyHost) -> None:
    adapter(host).build_image(GOLD, job())
    (iso,) = host.pve.isos.values()
    assert b"hunter2" in iso
    assert host.pve.storages["local"]["files"] == set()


def test_a_second_image_downloads_nothing_and_needs_no_seed_without_user_data(host: FaultyHost) -> None:
    plain = replace(GOLD, user_data=None)
    adapter(host).build_image(plain, job())
    host.requests()
    adapter(host).build_image(replace(plain, commands=("true",)), job())
    paths = [request.path for request in host.requests("POST")]
    assert not [path for path in paths if path.endswith(("download-url", "upload"))]
    assert len([line for line in host.left() if line.startswith("vm ")]) == 2
    assert not [line for line in host.left() if "cloudinit" in line]


def test_machines_are_made_of_it_and_by_family(host: FaultyHost) -> None:
    provider = adapter(host)
    image = provider.build_image(replace(GOLD, user_data=None), job())
    made = provider.create(MachineSpec("web-1", "proxmox", "python"), job())
    assert made.image == image.name
    assert made.login == "debian"
    assert not made.incomplete
    with pytest.raises(NotFound, match="no golden image of that name"):
        provider.delete_image("debian-12", job())  # a template that was made by hand
    provider.delete("web-1", job())
    provider.delete_image(image.name, job())
    assert host.left() == [f"local:{FILE}"]


@pytest.mark.parametrize(
    ("base", "kind"),
    [
        ("debian-12", "a template by its name"),
        ("9000", "a template by its id"),
        ("local:import/mine.qcow2", "a volume that is there"),
        ("instance:old", "a stopped machine"),
        ("instance:old.clean", "a checkpoint"),
    ],
)
def test_other_bases(host: FaultyHost, base: str, kind: str) -> None:
    host.pve.store_file("local", "mine.qcow2", 3 * GIB, "import")
    old = host.machine(700, "old")
    old.snapshots["clean"] = {"scsi0": "local-lvm:vm-700-disk-0,size=8G", "snaptime": 1}
    host.pve.storages["local-lvm"]["volumes"]["vm-700-disk-0"] = {
        "content": "images", "format": "raw", "size": 8 * GIB, "vmid": 700,
    }  # fmt: skip
    spec = replace(GOLD, base=base, checksum="", user_data=None)
    image = adapter(host).build_image(spec, job())
    vm = host.vm(image.name)
    assert vm.template, kind
    assert vm.config["scsi0"].startswith(f"local-lvm:base-{vm.vmid}-disk-0")
    clones = [request for request in host.requests("POST") if request.path.endswith("/clone")]
    assert [request.params["full"] for request in clones] == (["1"] if not base.startswith("local:") else [])


def test_a_local_file_is_uploaded_by_its_checksum(host: FaultyHost, tmp_path: Path) -> None:
    path = tmp_path / "my disk.img"
    path.write_bytes(b"QFI\xfb" + b"x" * 100)
    digits = hashlib.sha256(path.read_bytes()).hexdigest()
    spec = replace(GOLD, base=f"file://{path}", checksum="", user_data=None)
    adapter(host).build_image(spec, job())
    assert f"local:import/my-disk-{digits[:16]}.qcow2" in host.left()
    with pytest.raises(InvalidInput, match="expected the checksum abab.*, found " + digits):
        adapter(host).build_image(replace(spec, checksum=GOLD.checksum, commands=()), job())
    with pytest.raises(NotFound, match="it cannot be read: No such file"):
        adapter(host).build_image(replace(spec, base=str(path) + "x"), job())


@pytest.mark.parametrize(
    ("spec", "kind", "said"),
    [
        (replace(GOLD, checksum=""), InvalidInput, "a base that is downloaded needs one"),
        (replace(GOLD, base="debian:12", checksum=""), InvalidInput, "provider proxmox does not build that; QEMU does"),
        (replace(GOLD, base="local:import/no.qcow2", checksum=""), NotFound, "has no volume"),
        (replace(GOLD, base="nothing", checksum=""), NotFound, "there is none of that name"),
        (replace(GOLD, base="instance:running", checksum=""), Conflict, "it runs; stop it, or give a checkpoint"),
        (replace(GOLD, disk=GIB, base="debian-12", checksum=""), InvalidInput, "expected at least 4G, as the base has"),
        (replace(GOLD, base=URL.replace("12", "13")), ProcessFailed, "404 Not Found"),
        (replace(GOLD, checksum="sha256:" + "c" * 64), InvalidInput, "not the one that its checksum is of"),
    ],
)
def test_what_cannot_be_built_is_told_in_a_sentence(
    host: FaultyHost, spec: ImageSpec, kind: type[FleetError], said: str
) -> None:
    host.machine(700, "running", status="running")
    with pytest.raises(kind, match=said) as caught:
        adapter(host).build_image(spec, job())
    assert spec.image_name in caught.value.message
    assert "hunter2" not in caught.value.message
    found = mark_of(tags_of(host.vm(spec.image_name).config["tags"])) if host.vm(spec.image_name) else None
    assert found is None or found.incomplete


def test_a_storage_that_takes_no_imports_is_told_with_the_setting(host: FaultyHost) -> None:
    host.importing(False)
    with pytest.raises(Conflict, match="pvesm set local --content backup,import,iso,vztmpl"):
        adapter(host).build_image(GOLD, job())
    assert host.left() == []


def test_old_versions_are_told_of_qm(host: FaultyHost) -> None:
    host.pve.version, host.pve.release_version = "8.2.4", "8.2"
    with pytest.raises(Unavailable, match=r"8.2 cannot import a disk by its API.*the setting ssh for qm"):
        adapter(host).build_image(GOLD, job())
    assert host.left() == []


def test_a_failed_command_leaves_an_incomplete_image_that_the_next_build_removes(host: FaultyHost) -> None:
    plain = replace(GOLD, user_data=None)
    host.pve.inside = {"apt-get": {"exitcode": 100, "err-data": "E: no python\n"}}
    with pytest.raises(ProcessFailed, match="command 1: ended with 100: E: no python"):
        adapter(host).build_image(plain, job())
    (image,) = [found for found in adapter(host).images() if found.name == plain.image_name]
    assert image.incomplete
    with pytest.raises(FleetError, match="python"):
        adapter(host).create(MachineSpec("web-1", "proxmox", "python"), job())
    host.pve.inside = {}
    built = adapter(host).build_image(plain, job())
    assert not built.incomplete
    assert one(host) == plain.image_name


def test_a_template_that_only_lacks_its_last_mark_is_not_built_again(host: FaultyHost) -> None:
    plain = replace(GOLD, user_data=None)
    host.trouble("before", "PUT", "/config$", skip=1, times=100)
    with pytest.raises(FleetError):
        adapter(host).build_image(plain, job(3))
    host.calm()
    (image,) = [found for found in adapter(host).images() if found.name == plain.image_name]
    assert image.incomplete == "it is a template, but was not verified"
    host.requests()
    assert not adapter(host).build_image(plain, job()).incomplete
    assert [request.method for request in host.requests() if request.method != "GET"] == ["PUT"]


def test_an_image_in_use_by_linked_clones_is_not_deleted(host: FaultyHost) -> None:
    provider = adapter(host)
    image = provider.build_image(replace(GOLD, user_data=None), job())
    words = f"base volume 'local-lvm:base-{image.detail['vmid']}-disk-0' is still in use by linked clones"
    host.pve.task_endings["qmdestroy"] = words
    with pytest.raises(Conflict, match="machines share its disk, as linked clones"):
        provider.delete_image(image.name, job())


def test_an_image_whose_agent_never_answers_is_told(host: FaultyHost) -> None:
    host.pve.with_agents = False
    with pytest.raises(TimedOut, match="must bring qemu-guest-agent"):
        adapter(host).build_image(replace(GOLD, user_data=None), job(2))
    host.pve.with_agents = True
    adapter(host).build_image(replace(GOLD, user_data=None), job())
    assert one(host) == replace(GOLD, user_data=None).image_name


def test_a_sealed_machine_that_does_not_shut_down_is_powered_off(host: FaultyHost) -> None:
    provider = adapter(host)
    host.pve.fail("POST", "/status/shutdown", 500, "VM quit/powerdown failed - got timeout", times=20)
    provider.session.first_pause = 0.001
    provider.build_image(replace(GOLD, user_data=None), job())
    assert one(host) == replace(GOLD, user_data=None).image_name
