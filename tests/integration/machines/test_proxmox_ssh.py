# SPDX-License-Identifier: GPL-3.0-or-later
"""Templates and golden images by qm, over a real SSH connection to a host whose qm is as strict as the real one."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tests.fakes.proxmox_faulty import FaultyHost
from tests.fakes.qm_host import QmHost, disk_image, image_server, job, qm_host
from tests.requirements import REPOSITORY, require_tool

from fleet_core.errors import Conflict, FleetError, InvalidInput, ProcessFailed, TimedOut, Unavailable
from fleet_core.images import ImageSpec
from fleet_machines import proxmox_qm as qm
from fleet_machines import proxmox_ssh as ssh
from fleet_machines.provider import Job, Ran
from fleet_machines.proxmox_marks import Mark, mark_of, tags_of

GIB = 1024**3
CREATED = "2026-01-02T03:04:05Z"
GOLD = ImageSpec(
    "agent",
    "proxmox",
    "x",
    cpu=2,
    disk=8 * GIB,
    user_data="#cloud-config\npassword: hunter2\n",
    commands=("apt-get install -y git # token-4711",),
    checks={"git": "git --version"},
    login="debian",
)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[QmHost]:
    with qm_host(tmp_path) as found:
        yield found


def local(host: QmHost, vmid: int = 100, name: str = GOLD.image_name, **values: object) -> qm.Template:
    source = disk_image(host.folder / "base.qcow2")
    return replace(qm.Template(vmid, name, str(source), disk=8 * GIB), **values)  # type: ignore[arg-type]


def clean(host: QmHost, but: tuple[str, ...] = ()) -> None:
    """Nothing is on the host but these machines and their volumes."""
    state = host.state()
    assert sorted(state["machines"]) == sorted(but)
    assert [one for one in state["volumes"] if not any(f"-{vmid}-" in one for vmid in but)] == []
    assert host.snippets() == []


@pytest.mark.parametrize("version", ["7.1-7", "7.4-3", "8.4.1"])
def test_a_template_is_made_once(host: QmHost, version: str) -> None:
    host.settings(version=version)
    done = ssh.make(local(host, 101, "hub-template"), host.local(), job())
    assert done[0] == "create hub-template"
    assert done[-1] == "make a template of hub-template"
    config = host.config(101)
    assert config["template"] == "1"
    assert config["scsi0"] == "local-lvm:base-101-disk-0,size=8G"
    assert config["ide2"] == "local-lvm:vm-101-cloudinit,media=cdrom"
    assert config["boot"] == "order=scsi0"
    host.calls()
    assert ssh.make(local(host, 101, "hub-template"), host.local(), job()) == ()
    assert host.calls() == []
    clean(host, ("101",))


def test_a_run_that_breaks_anywhere_is_finished_by_the_next(host: QmHost) -> None:
    version = "7.1-7"  # the one with the most steps
    host.settings(version=version)
    template = local(host, 101, "hub-template")
    verbs = [
        " ".join(command.argv[:2]) for command in qm.plan(template, None, qm.version_of(f"pve-manager/{version}/"))
    ]
    for verb in dict.fromkeys(verbs):
        (host.folder / "state.json").unlink(missing_ok=True)
        host.faults({"on": verb, "stderr": "no luck today", "after": True})  # it was done, and the connection is lost
        with pytest.raises(ProcessFailed, match="no luck today"):
            ssh.make(template, host.local(), job())
        ssh.make(template, host.local(), job())
        assert host.config(101)["template"] == "1", verb
        clean(host, ("101",))
        assert len(host.state()["volumes"]) == 2


def test_an_image_is_fetched_once_and_continued(host: QmHost, tmp_path: Path) -> None:
    require_tool("wget", "to fetch images as a Proxmox host does")
    (tmp_path / "www").mkdir()
    image = disk_image(tmp_path / "www" / "noble.img")
    digits = hashlib.sha256(image.read_bytes()).hexdigest()
    with image_server(tmp_path / "www", cut=1000) as (url, seen):
        template = qm.Template(
            101, "hub", f"{url}/noble.img?key=hunter2", f"sha256:{digits}", folder=str(host.cache), disk=8 * GIB
        )
        ssh.make(template, host.local(), job())
        assert seen == [0, 1000]
        other = replace(template, vmid=102, name="hub-2")
        ssh.make(other, host.local(), job())
        assert seen == [0, 1000]  # it is there
    assert [path.name for path in host.cache.iterdir() if path.suffix != ".lock"] == [f"noble-{digits[:16]}.qcow2"]
    assert host.config(102)["scsi0"].endswith("size=8G")


def test_an_image_with_another_checksum_is_refused_and_not_kept(host: QmHost, tmp_path: Path) -> None:
    require_tool("wget", "to fetch images as a Proxmox host does")
    (tmp_path / "www").mkdir()
    disk_image(tmp_path / "www" / "noble.img")
    with image_server(tmp_path / "www") as (url, _seen):
        template = qm.Template(101, "hub", f"{url}/noble.img", "sha256:" + "0" * 64, folder=str(host.cache))
        with pytest.raises(ProcessFailed, match=r"the checksum differs: expected 0000.*, found [0-9a-f]{64}"):
            ssh.make(template, host.local(), job())
    assert [path.name for path in host.cache.iterdir() if path.suffix != ".lock"] == []
    clean(host)


def test_a_disk_over_a_file_of_the_host_is_refused(host: QmHost, tmp_path: Path) -> None:
    require_tool("wget", "to fetch images as a Proxmox host does")
    tool = require_tool("qemu-img", "to look into an image as a Proxmox host does")
    (tmp_path / "www").mkdir()
    (tmp_path / "secret").write_bytes(b"x" * 1024**2)
    image = tmp_path / "www" / "evil.qcow2"
    subprocess.run(
        [tool, "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(tmp_path / "secret"), str(image)], check=True
    )
    digits = hashlib.sha256(image.read_bytes()).hexdigest()
    with image_server(tmp_path / "www") as (url, _seen):
        template = qm.Template(101, "hub", f"{url}/evil.qcow2", f"sha256:{digits}", folder=str(host.cache))
        with pytest.raises(ProcessFailed, match="the image needs another file beside it"):
            ssh.make(template, host.local(), job())
    assert [path.name for path in host.cache.iterdir() if path.suffix != ".lock"] == []


def test_a_golden_image_is_built_sealed_marked_and_not_built_again(host: QmHost) -> None:
    said: list[str] = []
    mark = ssh.build(GOLD, local(host), "local", CREATED, host.ssh(), job(said=said))
    assert mark == Mark(GOLD.inputs, CREATED, "debian")
    config = host.config(100)
    assert mark_of(tags_of(config["tags"])) == mark
    assert config["scsi0"] == "local-lvm:base-100-disk-0,size=8G"
    assert not {"ide2", "cicustom", "cipassword", "sshkeys"} & set(config)
    machine = host.state()["machines"]["100"]
    assert machine["user_data"] == GOLD.user_data
    assert len(machine["scripts"]) >= 4  # cloud-init, command, check, seal
    assert "check git" in said
    calls = host.calls()
    assert "hunter2" not in str(calls)
    assert "token-4711" not in str(calls)
    assert ssh.build(GOLD, local(host), "local", "2027-01-01T00:00:00Z", host.ssh(), job()) == mark
    assert host.calls() == []
    clean(host, ("100",))


def test_a_failed_build_is_incomplete_and_removed_by_the_next(host: QmHost) -> None:
    host.settings(inside={"token-4711": {"exitcode": 100, "err-data": "E: no git\n"}})
    with pytest.raises(ProcessFailed, match="command 1: ended with 100: E: no git"):
        ssh.build(GOLD, local(host), "local", CREATED, host.local(), job())
    found = mark_of(tags_of(host.config(100)["tags"]))
    assert found is not None
    assert found.incomplete
    assert "template" not in host.config(100)
    clean(host, ("100",))  # the user data are gone at once
    host.settings()
    ssh.build(GOLD, local(host), "local", CREATED, host.local(), job())
    assert len(host.state()["volumes"]) == 1
    clean(host, ("100",))


def test_half_a_template_is_never_taken_for_a_whole_one(host: QmHost) -> None:
    host.settings(half_template=True)
    with pytest.raises(ProcessFailed, match="lvrename failed"):
        ssh.build(GOLD, local(host), "local", CREATED, host.local(), job())
    assert host.config(100)["template"] == "1"
    host.settings()
    assert not ssh.build(GOLD, local(host), "local", CREATED, host.local(), job()).incomplete
    assert qm.is_base(host.config(100))
    assert len(host.state()["volumes"]) == 1


def test_the_machine_of_somebody_else_is_left_alone(host: QmHost) -> None:
    ssh.build(GOLD, local(host), "local", CREATED, host.local(), job())
    host.edit(100, name="router", tags="")
    with pytest.raises(Conflict, match="id 100 is taken by 'router'"):
        ssh.build(GOLD, local(host), "local", CREATED, host.local(), job())
    assert host.config(100)["name"] == "router"


def test_a_locked_machine_is_waited_for_and_told(host: QmHost) -> None:
    ssh.make(local(host, 101, "hub"), host.local(), job())
    host.faults({"on": "qm config 101", "times": 2, "stderr": "can't lock file '/var/lock/x.conf' - got timeout"})
    said: list[str] = []
    assert ssh.make(local(host, 101, "hub"), host.local(), job(said=said)) == ()
    assert said[0].startswith("wait: can't lock file")
    state = host.state()
    del state["machines"]["101"]["config"]["template"]
    host.edit(101, lock="clone")
    with pytest.raises(Conflict, match=r"101 is locked \(clone\).*`qm unlock 101` frees it"):
        ssh.make(replace(local(host, 101, "hub")), host.local(), job(1))


def test_an_image_without_guest_agent_is_told_in_time(host: QmHost) -> None:
    host.settings(no_agent=True)
    with pytest.raises(TimedOut, match="must bring qemu-guest-agent within 6s"):
        ssh.build(GOLD, local(host), "local", CREATED, host.local(), job(6))
    clean(host, ("100",))  # after the deadline, too


def test_a_full_storage_leaves_no_half_disk(host: QmHost) -> None:
    host.settings(full="no space left")
    with pytest.raises(ProcessFailed, match="unable to create image: no space left"):
        ssh.build(GOLD, local(host), "local", CREATED, host.local(), job())
    clean(host, ("100",))
    assert host.state()["volumes"] == {}
    host.settings()
    ssh.build(GOLD, local(host), "local", CREATED, host.local(), job())


def test_a_lost_connection_is_one_sentence_and_no_code_of_qm(host: QmHost) -> None:
    host.settings(import_seconds=3)
    failed: list[FleetError] = []

    def build() -> None:
        try:
            ssh.build(GOLD, local(host), "local", CREATED, host.ssh(), job())
        except FleetError as error:
            failed.append(error)

    thread = threading.Thread(target=build)
    thread.start()
    deadline = time.monotonic() + 20
    while "lock" not in host.state()["machines"].get("100", {"config": {}})["config"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    host.server.cut_connections()
    thread.join(30)
    assert isinstance(failed[0], Unavailable)
    assert failed[0].message.startswith("ssh dev-machine: ")
    time.sleep(3.5)  # the import goes on, on the host
    host.settings()
    ssh.build(GOLD, local(host), "local", CREATED, host.ssh(), job())
    assert len(host.state()["volumes"]) == 1
    clean(host, ("100",))


@pytest.mark.parametrize("step", ["qm create", "qm guest exec", "qm template"])
def test_a_killed_client_leaves_nothing_that_the_next_does_not_finish(host: QmHost, tmp_path: Path, step: str) -> None:
    template = local(host)
    host.faults({"on": step, "seconds": 4, "times": 1})
    script = tmp_path / "client.py"
    script.write_text(
        "from tests.integration.machines import test_proxmox_ssh as test\n"
        "from fleet_machines import proxmox_qm as qm, proxmox_ssh as ssh\n"
        f"ssh.build(test.GOLD, qm.Template(100, {template.name!r}, {template.source!r}, disk=8 * test.GIB), 'local',"
        f" test.CREATED, ssh.OpenSSH({host.server.name!r}, {str(host.server.config)!r}), test.job())\n"
    )
    client = subprocess.Popen(
        [sys.executable, str(script)], env={"PYTHONPATH": f"{REPOSITORY}", "PATH": "/usr/bin:/bin"}, cwd=REPOSITORY
    )
    deadline = time.monotonic() + 30
    while not host.called(step):
        assert client.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    client.send_signal(signal.SIGKILL)
    client.wait(10)
    host.server.cut_connections()
    host.faults()
    ssh.build(GOLD, template, "local", CREATED, host.ssh(), job())
    assert len(host.state()["volumes"]) == 1
    clean(host, ("100",))


def test_an_unreachable_host_and_wrong_settings_are_sentences(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("Host nowhere\n HostName 127.0.0.1\n Port 1\n")
    with pytest.raises(Unavailable, match=r"ssh nowhere: .*Connection refused"):
        ssh.Qm(ssh.OpenSSH("nowhere", str(config))).version(job())
    with pytest.raises(Unavailable, match="ssh x: /no/ssh cannot be run: No such file"):
        ssh.Qm(ssh.OpenSSH("x", program="/no/ssh")).version(job())
    for wrong in ("", "-oProxyCommand=touch /tmp/x", "a b"):
        with pytest.raises(InvalidInput, match="setting ssh"):
            ssh.OpenSSH(wrong)
    with pytest.raises(InvalidInput, match="destination: expected"):
        ssh.ssh_settings({"snippets": "local"})
    with pytest.raises(InvalidInput, match='unknown key "destinaton", did you mean "destination"'):
        ssh.ssh_settings({"destinaton": "x"})
    assert ssh.ssh_settings({"destination": "root@pve1", "ids": {"hub": 101}}).ids == {"hub": 101}


def test_the_provider_builds_by_qm_and_finds_its_images_in_the_list(host: QmHost, tmp_path: Path) -> None:
    (tmp_path / "cluster").mkdir()
    cluster = FaultyHost(tmp_path / "cluster")
    cluster.pve.version, cluster.pve.release_version = "7.4-3", "7.4"

    def execute(argv: Sequence[str], stdin: str, limits: Job) -> Ran:
        """Run it on the host, and let the cluster list what is on the host then."""
        ran = host.local()(argv, stdin, limits)
        for vmid, machine in host.state()["machines"].items():
            config = machine["config"]
            cluster.pve.vms = [vm for vm in cluster.pve.vms if vm.vmid != int(vmid)]
            template = config.get("template") == "1"
            cluster.pve.add_vm(int(vmid), config["name"], config=dict(config), template=template)
        return ran

    how = {"destination": "root@pve1", "cache": str(host.cache), "ids": {"agent": 100}}
    disk_image(host.folder / "base.qcow2")
    spec = replace(GOLD, base=str(host.folder / "base.qcow2"))
    try:
        provider = cluster.adapter(ssh=how)
        provider.golden.execute = lambda settings: execute
        image = provider.build_image(spec, job())
        assert (image.name, image.inputs, image.detail["vmid"]) == (spec.image_name, spec.inputs, 100)
        host.calls()
        assert cluster.adapter(ssh=how).build_image(spec, job()) == image
        assert host.calls() == []
        newer = provider.build_image(replace(spec, commands=("true",)), job())
        assert newer.detail["vmid"] != 100  # the older one keeps it
        assert {found.name for found in provider.images()} >= {image.name, newer.name}
    finally:
        cluster.stop()
