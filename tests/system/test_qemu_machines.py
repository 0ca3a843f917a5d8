# SPDX-License-Identifier: GPL-3.0-or-later
"""The life of real machines: clones of a golden image, SSH by Ansible, checkpoints, damage, restore, fork, the end.

Four boots in all. Each test begins by putting the first machine back to its checkpoint "up", which takes seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.fleetd import Fleet
from tests.requirements import require_root, require_tool
from tests.system.vm import BOOT, Machines

from fleet_core.images import Image
from fleet_core.machines import Machine, MachineSpec, Network
from fleet_machines import providers
from fleet_machines.provider import Job

pytestmark = pytest.mark.timeout(3 * BOOT)
STATE = "/home/fleet/work/state"
IDENTITY = "hostname; cat /etc/machine-id /sys/class/net/net0/address; cut -d' ' -f2 /etc/ssh/ssh_host_ed25519_key.pub"


@pytest.fixture(scope="module")
def one(vms: Machines, golden: Image) -> Iterator[Machine]:
    """A clone of the golden image with some work in it, its checkpoints "up" (running) and "off" (stopped)."""
    machine = vms.create("one", golden.family, tags=("web",))
    assert vms.ssh(machine, f"mkdir -p {STATE} && echo good >{STATE}/file").code == 0
    up = vms.provider.checkpoint("one", "up", vms.job(), comment="before the damage")
    assert up.live
    vms.provider.stop("one", vms.job())
    assert vms.provider.describe()["one"].state == "stopped"
    off = vms.provider.checkpoint("one", "off", vms.job())
    assert (off.live, off.parent) == (False, "up")
    yield machine
    vms.delete("one")


def put_back(vms: Machines) -> Machine:
    vms.provider.restore("one", "up", vms.job())
    machine: Machine = vms.provider.describe()["one"]
    assert machine.state == "running"
    return machine


def identity(vms: Machines, name: str) -> list[str]:
    said = vms.run(name, IDENTITY)
    assert said.code == 0, said
    return said.stdout.splitlines()


def test_ansible_reaches_a_clone(vms: Machines, one: Machine, golden: Image, tmp_path: Path) -> None:
    machine = put_back(vms)
    assert machine.image == golden.name
    inventory = tmp_path / "hosts.json"
    inventory.write_text(json.dumps({"all": {"hosts": {"one": vms.inventory(machine)}}}))
    program = str(Path(sys.executable).with_name("ansible"))
    words = [program, "-i", str(inventory), "one", "-m", "ansible.builtin.command", "-a", "hostname"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=BOOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "one" in [line.strip() for line in done.stdout.splitlines()], done.stdout


def test_damage_to_a_running_machine_is_undone_while_it_runs(vms: Machines, one: Machine) -> None:
    machine = put_back(vms)
    pid = vms.run("one", "pidof -s sshd || pgrep -o sshd").stdout
    assert vms.ssh(machine, "sudo rm -rf /home/fleet/work /usr/bin/python3; sudo sync").code == 0
    assert vms.run("one", f"cat {STATE}/file; test -e /usr/bin/python3").code != 0
    machine = put_back(vms)
    assert vms.ssh(machine, f"cat {STATE}/file").stdout == "good\n"
    assert vms.run("one", "python3 -c 'print(1)'").stdout == "1\n"
    assert vms.run("one", "pidof -s sshd || pgrep -o sshd").stdout == pid  # its memory is back, not only its disk
    drift = abs(int(vms.run("one", "date +%s").stdout) - int(subprocess.check_output(["date", "+%s"])))
    assert drift < 60


def test_a_script_in_a_machine_is_no_argument_of_anything(vms: Machines, one: Machine) -> None:
    put_back(vms)
    look = "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -c 'hidden[-]word' || true"
    said = vms.run("one", f"secret=hidden-word-7; {look}")
    assert said.stdout == "0\n"
    assert vms.run("one", "echo out; echo err >&2; exit 7") == type(said)(7, "out\n", "err\n")


def test_damage_is_undone_from_an_offline_checkpoint(vms: Machines, one: Machine) -> None:
    put_back(vms)
    assert vms.run("one", "rm -rf /home/fleet/work /etc/ssh; sync").code == 0
    vms.provider.stop("one", vms.job(), force=True)
    vms.provider.restore("one", "off", vms.job())
    assert vms.provider.describe()["one"].state == "stopped"  # as it was
    machine = vms.provider.start("one", vms.job())
    assert vms.ssh(machine, f"cat {STATE}/file").stdout == "good\n"


def test_a_fork_has_the_work_and_an_identity_of_its_own(vms: Machines, one: Machine) -> None:
    put_back(vms)
    assert vms.run("one", f"echo later >{STATE}/file; sync").code == 0
    first = identity(vms, "one")
    vms.provider.stop("one", vms.job(), force=True)
    with vms.booted("fork", "instance:one.up") as fork:
        assert vms.ssh(fork, f"cat {STATE}/file").stdout == "good\n"
        second = identity(vms, "fork")
        assert second[0] == "fork"
        assert all(old != new for old, new in zip(first, second, strict=True)), (first, second)
    assert identity_is_gone(vms, "fork")


def test_a_clone_on_a_bridge_is_reached_there_and_only_there(vms: Machines, golden: Image, tmp_path: Path) -> None:
    """In a network namespace of its own, with a fleetd of its own: no traffic leaves it."""
    require_root("to make a network namespace")
    ip = require_tool("ip", "to make a network namespace")
    space = f"fleet-{os.getpid()}"
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)

    def inside(*words: str, check: bool = True) -> str:
        done = subprocess.run([ip, "netns", "exec", space, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0 or not check, done
        return done.stdout

    with contextlib.ExitStack() as stack:
        subprocess.run([ip, "netns", "add", space], check=True)
        stack.callback(subprocess.run, [ip, "netns", "del", space], check=True)
        for line in ("link set lo up", "link add br0 type bridge", "addr add 10.9.0.1/24 dev br0", "link set br0 up"):
            inside(ip, *line.split())
        fleet = Fleet(folder)
        stack.callback(lambda: print(fleet.down()))
        fleet.up(prefix=(ip, "netns", "exec", space))
        provider: Any = providers.provider("qemu", str(folder))
        disk = vms.provider.golden.disk_of(golden.name).path
        networks = (Network("br0", address="10.9.0.2/24", gateway="10.9.0.1"),)
        spec = MachineSpec("two", "qemu", str(disk), cpu=2, networks=networks, user_data=vms.user_data())
        machine = provider.create(spec, Job.lasting(BOOT))
        assert (machine.addresses, machine.port) == (("10.9.0.2",), 22)
        options = [word for option in vms.ssh_options() for word in ("-o", option)]
        assert inside("ssh", *options, "fleet@10.9.0.2", "hostname") == "two\n"
        links = json.loads(inside(ip, "-j", "link", "show", "master", "br0"))
        assert [one["operstate"] for one in links] in (["UP"], ["UNKNOWN"])
        assert not any(kind == "tcpport" for kind, _value, _owner in fleet.claims())
        provider.stop("two", Job.lasting(BOOT))
        provider.delete("two", Job.lasting(60))
        assert json.loads(inside(ip, "-j", "link", "show", "master", "br0")) == []
        assert [path for path in provider.folder.rglob("*") if not path.name.startswith(".")] == []
        assert fleet.claims() == set()
        assert fleet.call("processes.list")["processes"] == []


def test_nothing_is_left_of_a_machine(vms: Machines, one: Machine) -> None:
    put_back(vms)
    pid = vms.provider.describe()["one"].detail["pid"]
    vms.delete("one")
    assert identity_is_gone(vms, "one")
    assert not Path(f"/proc/{pid}").exists()
    assert "one" not in vms.provider.describe()
    vms.delete("one")


def identity_is_gone(vms: Machines, name: str) -> bool:
    """Tell whether no file, claim, process or log bears a machine's name."""
    folder = vms.provider.folder
    files = [*folder.glob(f"{name}*"), *(vms.folder / "logs").glob(f"machine-{name}.*")]
    claims = [claim for claim in vms.fleet.claims() if claim[2] == f"machine-{name}"]
    processes = [one["id"] for one in vms.fleet.call("processes.list")["processes"] if one["name"] == f"machine-{name}"]
    return (files, claims, processes) == ([], [], [])
