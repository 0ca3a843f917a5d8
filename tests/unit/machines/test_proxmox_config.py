# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration, the tags and the user data of machines on Proxmox VE: pure functions."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_core.errors import InvalidInput
from fleet_core.machines import MachineSpec, Network
from fleet_machines import proxmox_config as configs
from fleet_machines.proxmox_config_tags import Marks, decoded, differs, encoded, marks_of
from fleet_machines.proxmox_config_user_data import native

GIB = 1024**3
TAG = re.compile(r"[a-z0-9_][a-z0-9_+.-]*")  # what Proxmox takes, in the case that it keeps
CONFIG: dict[str, Any] = {
    "name": "web-1",
    "cores": 2,
    "sockets": 2,
    "memory": "4096",
    "agent": "enabled=1,fstrim_cloned_disks=1",
    "boot": "order=scsi1;net0",
    "scsi0": "local-lvm:vm-100-disk-1,size=1G",
    "scsi1": "local-lvm:vm-100-disk-0,discard=on,size=20G",
    "ide2": "local-lvm:vm-100-cloudinit,media=cdrom,size=4M",
    "net0": "virtio=BC:24:11:00:00:01,bridge=vmbr0,firewall=1,tag=12",
    "net1": "e1000=BC:24:11:00:00:02,bridge=vmbr1",
    "ipconfig0": "ip=10.0.0.5/24,gw=10.0.0.1",
    "ipconfig1": "ip6=fd00::5/64,gw6=fd00::1",
}

# -- tags -------------------------------------------------------------------------------------------------------------

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
macs = st.from_regex(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", fullmatch=True)
addresses = st.sampled_from(["", "dhcp", "10.0.0.5/24", "fd00::a5/64"])
networks = st.builds(
    Network, names, st.one_of(st.just(""), macs), addresses, st.sampled_from(["", "10.0.0.1", "fd00::1"])
)
like_ours = st.sampled_from(["fleet", "fleet-image", "ip-x", "net0-a", "tag-x", "size-1-2-3", "data-0"])


@given(
    st.builds(
        Marks,
        st.booleans(),
        st.booleans(),
        st.one_of(names, st.just("instance:Web-1.before"), st.text(min_size=1, max_size=8)),
        names,
        names,
        st.sampled_from(["", "sha256:0123456789abcdef"]),
        st.lists(
            st.one_of(names, like_ours), unique=True, max_size=4,
        ).map(lambda tags: tuple(sorted(tags))),
        st.lists(networks, max_size=3).map(tuple),
        st.sampled_from([(), ("10.0.0.5",), ("10.0.0.5", "fd00::5")]),
        st.one_of(st.none(), st.tuples(*[st.integers(1, 10**7)] * 3)),
    )
)  # fmt: skip
def test_what_is_written_in_tags_is_read_from_them(marks: Marks) -> None:
    text = marks.text()
    assert all(TAG.fullmatch(tag) for tag in text.split(";") if tag)
    assert marks_of(text) == marks
    assert marks_of(text.replace(";", ",").upper()) == marks  # as Proxmox may hand them back
    assert not text or not differs(text, marks)


@given(st.text(max_size=30))
def test_any_text_can_stand_in_a_tag(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    assert decoded(encoded(text)) == text


@given(st.text(max_size=60))
def test_no_tags_of_others_break_anything(text: str) -> None:
    marks_of(text)


def test_tags_of_a_golden_image_are_not_the_machine_s_own() -> None:
    found = marks_of("fleet-image;fleet-inputs-0123;fleet-login-dev;mine")
    assert (found.ours, found.tags, found.login) == (False, ("mine",), "")


# -- configuration ----------------------------------------------------------------------------------------------------


def test_a_configuration_is_read() -> None:
    disk = configs.disk_of(CONFIG)
    assert disk is not None
    assert (disk.slot, disk.storage, disk.size, disk.cdrom) == ("scsi1", "local-lvm", 20 * GIB, False)
    assert (configs.cpus_of(CONFIG), configs.memory_of(CONFIG)) == (4, 4 * GIB)
    assert configs.memory_of({"memory": "current=2048"}) == 2 * GIB
    assert configs.agent_of(CONFIG)
    assert not configs.agent_of({"agent": "enabled=0"})
    assert configs.agent_of({"agent": "1,type=virtio"})
    assert configs.networks_of(CONFIG) == (
        Network("vmbr0", "bc:24:11:00:00:01", "10.0.0.5/24", "10.0.0.1"),
        Network("vmbr1", "bc:24:11:00:00:02", "fd00::5/64", "fd00::1"),
    )
    drive = configs.cloudinit_of(CONFIG)
    assert drive is not None
    assert drive.slot == configs.seed_slot(CONFIG) == "ide2"
    assert configs.seed_slot({"ide2": "none,media=cdrom"}) == "ide2"
    assert configs.seed_slot({"ide2": "local:iso/debian.iso,media=cdrom"}) == "ide0"


@pytest.mark.parametrize(
    ("config", "slot"),
    [
        ({"virtio0": "a:b", "scsi0": "a:c"}, "scsi0"),
        ({"virtio0": "a:b", "bootdisk": "virtio0", "scsi0": "a:c"}, "virtio0"),
        ({"scsi0": "a:b", "boot": "order=ide2;net0", "ide2": "none,media=cdrom"}, "scsi0"),
        ({"boot": "cdn", "sata0": "a:b"}, "sata0"),
    ],
)
def test_the_disk_to_boot_from_is_found(config: dict[str, Any], slot: str) -> None:
    disk = configs.disk_of(config)
    assert disk is not None
    assert disk.slot == slot
    assert configs.disk_of({"ide2": "a:iso/x.iso,media=cdrom"}) is None


def test_only_what_differs_is_set() -> None:
    same = MachineSpec("web-1", "proxmox", cpu=4, memory=4 * GIB)
    assert configs.sizes("x", same, CONFIG) == {}
    more = MachineSpec("web-1", "proxmox", cpu=6, memory=1 * GIB)
    wanted = configs.sizes("x", more, {**CONFIG, "balloon": 2048, "vcpus": 3})
    assert wanted == {"cores": 6, "vcpus": None, "sockets": 1, "memory": 1024, "balloon": 1024}
    assert configs.changed({**CONFIG, "vcpus": 3}, wanted) == {
        "cores": 6, "sockets": 1, "memory": 1024, "balloon": 1024, "delete": "vcpus"
    }  # fmt: skip
    kept = configs.nets(configs.networks_of(CONFIG), CONFIG, lambda: "")
    assert configs.changed(CONFIG, kept) == {}
    fewer = configs.nets((Network("vmbr9"),), CONFIG, lambda: "")
    assert configs.changed(CONFIG, fewer) == {
        "net0": "virtio=BC:24:11:00:00:01,bridge=vmbr9,firewall=1,tag=12", "delete": "ipconfig1,net1"
    }  # fmt: skip
    new = configs.nets((Network("vmbr0", address="fd00::9/64", gateway="fd00::1"),), {}, lambda: "bc:24:11:00:00:09")
    assert new == {"net0": "virtio=BC:24:11:00:00:09,bridge=vmbr0", "ipconfig0": "ip6=fd00::9/64,gw6=fd00::1"}
    with pytest.raises(InvalidInput, match="memory: Proxmox VE counts in MiB, found 1073741825"):
        configs.sizes("x", MachineSpec("a", "proxmox", memory=GIB + 1), {})


# -- user data --------------------------------------------------------------------------------------------------------

KEY = "ssh-ed25519 AAAA+b/c= me@host"


def test_plain_user_data_become_keys_of_proxmox() -> None:
    text = (
        f"#cloud-config\n# who\nuser: dev\npassword: 'p w'\nchpasswd: {{ expire: False }}\nhostname: web-1\n"
        f'package_upgrade: true\nssh_authorized_keys:\n- {KEY}\n- "{KEY}2"\n'
    )
    found = native(text, "web-1")
    assert found is not None
    assert (found["ciuser"], found["cipassword"], found["ciupgrade"]) == ("dev", "p w", True)
    assert unquote(found["sshkeys"]) == f"{KEY}\n{KEY}2"
    assert " " not in found["sshkeys"]
    assert "+" not in found["sshkeys"]
    assert native(f'#cloud-config\n{{"ssh_authorized_keys": ["{KEY}"]}}', "web-1") is not None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "#!/bin/sh\necho hello\n",
        f"ssh_authorized_keys:\n- {KEY}\n",  # no header
        f"#cloud-config\npackages: [git]\nssh_authorized_keys:\n- {KEY}\n",
        f"#cloud-config\nssh_authorized_keys:\n- {KEY}\nruncmd:\n- ls\n",
        f"#cloud-config\nssh_authorized_keys: [{KEY}]\n",  # more YAML than is read here
        f"#cloud-config\nssh_authorized_keys:\n- {KEY}\nhostname: other\n",
        f"#cloud-config\nssh_authorized_keys:\n- {KEY}\nuser: &a dev\n",
        f"#cloud-config\nssh_authorized_keys:\n- {KEY}\nuser: 007\n",  # a number, not a text
        f"#cloud-config\nssh_authorized_keys:\n- {KEY}\nuser: yes\n",
        f"#cloud-config\nssh_authorized_keys:\n- {KEY}\nuser: a\nuser: b\n",
        f"#cloud-config\nssh_authorized_keys:\n- {KEY}\npassword: secret\n",  # one that must be changed
        "#cloud-config\nuser: dev\n",
        "#cloud-config\nssh_authorized_keys:\n",
        f"#cloud-config\nssh_authorized_keys:\n- {KEY}\n---\nuser: dev\n",
        f"## template: jinja\n#cloud-config\nssh_authorized_keys:\n- {KEY}\n",
        "#cloud-config\n{not json}\n",
        "#cloud-config\nssh_authorized_keys:\n- key: value\n",
        "#cloud-config\nusers:\n  - name: dev\n    ssh_authorized_keys:\n      - x\n",
    ],
)
def test_all_other_user_data_go_into_a_seed(text: str) -> None:
    assert native(text, "web-1") is None


@given(st.text(max_size=200))
def test_no_user_data_break_anything(text: str) -> None:
    native("#cloud-config\n" + text, "web-1")
