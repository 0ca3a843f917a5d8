# SPDX-License-Identifier: GPL-3.0-or-later
"""What qm is told, as a table: from every state that a killed run can leave."""

from __future__ import annotations

import shlex
from dataclasses import replace

import pytest
from tests.requirements import REPOSITORY

from fleet_core.errors import Conflict, InvalidInput, ProcessFailed
from fleet_machines import proxmox_qm as qm

GIB = 1024**3
DIGITS = "ab" * 32
HUB = qm.Template(
    101, "hub-template", "https://cloud.example/noble-server-cloudimg-amd64.img", f"sha256:{DIGITS}", disk=20 * GIB
)
PATH = f"{qm.FOLDER}/noble-server-cloudimg-amd64-{DIGITS[:16]}.qcow2"

CREATE = (
    "qm create 101 --name hub-template --ostype l26 --cores 2 --memory 2048 --scsihw virtio-scsi-pci "
    "--net0 virtio,bridge=vmbr0 --agent enabled=1 --serial0 socket --vga serial0"
)


def lines(template: qm.Template, config: dict[str, str] | None, version: tuple[int, int]) -> list[str]:
    return [shlex.join(command.argv) for command in qm.plan(template, config, version) if command.argv[0] == "qm"]


def test_a_template_is_made_from_nothing_by_import_from() -> None:
    assert lines(HUB, None, (7, 4)) == [
        CREATE,
        f"qm set 101 --scsi0 local-lvm:0,import-from={PATH}",
        "qm set 101 --boot order=scsi0 --ide2 local-lvm:cloudinit --ipconfig0 ip=dhcp",
        "qm resize 101 scsi0 20G",
        "qm template 101",
    ]


def test_versions_before_7_2_import_and_attach() -> None:
    assert lines(HUB, None, (7, 1))[1:3] == [
        f"qm importdisk 101 {PATH} local-lvm",
        "qm set 101 --scsi0 local-lvm:vm-101-disk-0",
    ]


def test_every_interrupted_run_is_taken_up_where_it_stopped() -> None:
    for version in ((7, 1), (7, 4), (8, 4)):
        whole = qm.plan(HUB, None, version)
        config = None
        for number, command in enumerate(whole):
            left = qm.plan(HUB, config, version)
            missing = [one.argv for one in whole[number:]]
            # The fetching is looked at again as long as the disk is not there; it does nothing if the file is.
            assert [one.argv for one in left if one.argv[0] == "qm"] == [argv for argv in missing if argv[0] == "qm"]
            config = command.after(config) if command.argv[0] == "qm" else config
        assert qm.plan(HUB, config, version) == ()


def test_the_address_is_no_argument_because_it_may_hold_a_signature() -> None:
    signed = replace(HUB, source="https://cloud.example/noble.img?X-Signature=hunter2")
    fetch = qm.plan(signed, None, (7, 4))[0]
    assert "hunter2" not in " ".join(fetch.argv)
    assert fetch.stdin == "https://cloud.example/noble.img?X-Signature=hunter2\n"
    assert "hunter2" not in repr(fetch)
    assert fetch.argv[-4:] == (qm.FOLDER, f"noble-{DIGITS[:16]}.qcow2", "sha256sum", DIGITS)


def test_a_file_of_the_host_is_not_fetched() -> None:
    local = replace(HUB, source="/root/it's here.qcow2", checksum="")
    commands = qm.plan(local, None, (7, 4))
    assert [command.argv[0] for command in commands] == ["qm"] * 5
    assert shlex.join(commands[1].argv) == (
        """qm set 101 --scsi0 'local-lvm:0,import-from=/root/it'"'"'s here.qcow2'"""
    )


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"name": "router"}, "id 101 is taken by 'router'"),
        ({"name": "hub-template", "lock": "create"}, "`qm unlock 101` frees it"),
        ({"name": "hub-template", "tags": "else"}, "was not made by the fleet"),
    ],
)
def test_what_is_not_ours_is_left_alone(config: dict[str, str], said: str) -> None:
    with pytest.raises(Conflict, match=said):
        qm.plan(replace(HUB, tags=("fleet-image",)), {"tags": "fleet-image;other", **config}, (7, 4))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"vmid": 99}, "expected an id from 100"),
        ({"name": "-rf"}, "machine name '-rf'"),
        ({"storage": "local lvm"}, "storage: expected the name of one"),
        ({"storage": "--x"}, "storage: expected the name of one"),
        ({"bridge": "vmbr0,tag=5"}, "bridge: expected the name of one"),
        ({"memory": 2 * GIB + 1}, "memory: expected whole MiB"),
        ({"checksum": ""}, "a base that is downloaded needs one"),
        ({"checksum": "sha256:abc"}, "a base that is downloaded needs one"),
        ({"checksum": "crc32:" + DIGITS}, "a base that is downloaded needs one"),
        ({"source": "ftp://cloud.example/x.img"}, "found an address of ftp"),
        ({"source": "https://cloud.example/x.img\nhttps://evil"}, "without blanks"),
        ({"source": "relative.qcow2"}, "absolute path on the host"),
    ],
)
def test_wrong_templates_are_refused_in_a_sentence(values: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        replace(HUB, **values)  # type: ignore[arg-type]


def test_the_output_of_qm_config_is_read() -> None:
    text = (
        "agent: enabled=1\nboot: order=scsi0\ndescription: base%3A noble%0Asecond line\n"
        "net0: virtio=BC:24:11:6A:00:01,bridge=vmbr0\nscsi0: local-lvm:base-101-disk-0,size=2252M\ntags: a;b\n"
    )
    config = qm.parse_config(text)
    assert config["description"] == "base: noble\nsecond line"
    assert config["net0"] == "virtio=BC:24:11:6A:00:01,bridge=vmbr0"
    assert qm.disk_size(config) == 2252 * 1024**2
    assert qm.is_base(config)
    assert not qm.is_base({"scsi0": "local-lvm:vm-101-disk-0,size=2252M"})
    assert qm.is_base(
        {"scsi0": "local:101/base-101-disk-0.qcow2", "ide2": "local:101/vm-101-cloudinit.qcow2,media=cdrom"}
    )


def test_versions_are_read() -> None:
    assert qm.version_of("pve-manager/7.4-3/9002ab8a (running kernel: 5.15.102-1-pve)\n") == (7, 4)
    assert qm.version_of("pve-manager/8.4.1/2a5fa54a8503f96d (running kernel: 6.8.12-9-pve)") == (8, 4)
    with pytest.raises(ProcessFailed, match="expected pve-manager/VERSION"):
        qm.version_of("sh: 1: pveversion: not found")


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://e/debian-12-genericcloud-amd64.qcow2", f"debian-12-genericcloud-amd64-{DIGITS[:16]}.qcow2"),
        ("https://e/a%20b/..%2f..%2fetc?x=1", f"2f-{DIGITS[:16]}.qcow2"),
        ("https://e/disk.raw", f"disk-{DIGITS[:16]}.raw"),
        ("https://e/", f"image-{DIGITS[:16]}.qcow2"),
    ],
)
def test_downloads_are_called_by_their_checksum(url: str, name: str) -> None:
    assert qm.file_name(url, DIGITS.upper()) == name


SOURCE = "/var/lib/vz/template/fleet/noble-server-cloudimg-amd64.qcow2"
FIXED = (
    qm.Template(101, "hub-template", SOURCE, bridge="vmbr0", cpu=4, memory=8 * GIB, disk=50 * GIB),
    qm.Template(100, "agent-template", SOURCE, bridge="vmbr1", cpu=2, memory=4 * GIB, disk=20 * GIB),
)


def documented() -> str:
    return "\n\n".join("\n".join(lines(template, None, (7, 4))) for template in FIXED)


def test_the_documented_commands_are_those_that_are_run() -> None:
    text = (REPOSITORY / "docs" / "proxmox-templates.md").read_text(encoding="utf-8")
    assert text.split("```sh\n")[1].split("\n```")[0] == documented()


def test_a_machine_goes_with_its_own_disks_only() -> None:
    assert qm.destroy(100).argv == ("qm", "destroy", "100", "--purge", "1")
