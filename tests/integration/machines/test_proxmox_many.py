# SPDX-License-Identifier: GPL-3.0-or-later
"""Hundreds of machines on Proxmox VE: how many requests that takes, and what happens when many want one id."""

from __future__ import annotations

import collections
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fakepve", reason="the fake of Proxmox VE needs Python 3.10")

from tests.fakes.proxmox_host import SECRET, TOKEN, Host
from tests.fakes.proxmox_schema import all_problems, schemas
from tests.integration.modules.plays import Play, task

from fleet_core.errors import FleetError
from fleet_core.machine_plans import Plan, plan_all
from fleet_core.machines import MachineSpec, Network
from fleet_machines import batches
from fleet_machines.provider import Job
from fleet_machines.proxmox import Proxmox

MANY = 200
USER_DATA = "#cloud-config\nssh_authorized_keys:\n  - ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIhunter2key me@host\n"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    found = Host(tmp_path)
    try:
        yield found
        if schemas() is not None:
            assert all_problems(found.all_requests()) == []
    finally:
        found.stop()


def specs(count: int, **values: Any) -> list[MachineSpec]:
    return [
        MachineSpec(
            f"web-{number}",
            "proxmox",
            image="debian-12",
            cpu=2,
            memory=2 * 1024**3,
            disk=8 * 1024**3,
            networks=(Network("vmbr1", address=f"10.0.{number // 250}.{number % 250 + 1}/16"),),
            user_data=USER_DATA,
            tags=("web",),
            project="shop",
            **values,
        )
        for number in range(count)
    ]


def plans(adapter: Proxmox, wanted: list[MachineSpec], target: str = "started") -> tuple[Plan, ...]:
    found = adapter.describe([spec.name for spec in wanted], full=True)
    return plan_all(wanted, found, target, adapter.capabilities, reboot=True)


def carry_out(adapter: Proxmox, wanted: list[MachineSpec], target: str = "started") -> None:
    batches.check(batches.run(plans(adapter, wanted, target), adapter, timeout=300, parallel=32))


def test_two_hundred_machines_in_one_call(host: Host) -> None:
    wanted = specs(MANY)
    carry_out(host.adapter(), wanted)
    assert len(host.names()) == MANY
    ids = [vm.vmid for vm in host.pve.vms if not vm.template]
    assert sorted(ids) == list(range(100, 100 + MANY))
    made = collections.Counter(f"{one.method} {one.path.rpartition('/')[2]}" for one in host.requests())
    assert made["GET nextid"] == 1  # of many at once, the first one asks
    assert made["POST clone"] == MANY
    assert made["GET resources"] < 20
    assert sum(made.values()) < 20 * MANY

    # An unchanged run: one list before, which serves for afterwards too.
    host.forget_tasks()
    adapter = host.adapter()
    assert not any(plan.steps for plan in plans(adapter, wanted))
    adapter.describe([spec.name for spec in wanted])
    assert len(host.requests()) <= 4

    # A change of one costs what one costs.
    adapter = host.adapter()
    carry_out(adapter, [replace(wanted[0], tags=("db",)), *wanted[1:]])
    assert len(host.requests()) <= 8

    # The list for the inventory, with addresses, is one request.
    found = host.adapter().describe()
    assert (len(found), found["web-7"].addresses) == (MANY, ("10.0.0.8",))
    assert [one.path for one in host.requests()] == ["/cluster/resources"]

    carry_out(host.adapter(), wanted, "absent")
    assert (host.names(), host.volumes()) == ([], [])


def test_many_that_want_the_same_id_each_get_their_own(host: Host) -> None:
    adapters = [host.adapter() for _number in range(8)]  # as many controllers, none of which knows of the others

    def create(number: int) -> int:
        adapter = adapters[number % len(adapters)]
        spec = MachineSpec(f"web-{number}", "proxmox", image="debian-12")
        return int(adapter.create(spec, Job.lasting(120)).detail["vmid"])

    with ThreadPoolExecutor(16) as pool:
        ids = list(pool.map(create, range(48)))
    assert len(set(ids)) == 48
    assert len(host.names()) == 48
    assert all(vm.name.startswith("web-") and "incomplete" not in vm.name for vm in host.pve.vms if not vm.template)


def test_a_flaky_network_loses_no_machine(host: Host) -> None:
    wanted = [MachineSpec(f"web-{number}", "proxmox", image="debian-12") for number in range(12)]
    host.pve.flaky_network(drop_rate=0.1, seed=3)
    for _time in range(12):
        adapter = host.adapter()
        try:
            carry_out(adapter, wanted)
        except FleetError:
            continue  # what was not done is told, and taken up again
        break
    host.pve.flaky_network()
    adapter = host.adapter()
    assert not any(plan.steps for plan in plans(adapter, wanted))
    assert host.names() == sorted(spec.name for spec in wanted)
    carry_out(adapter, wanted, "absent")
    assert (host.names(), host.volumes()) == ([], [])


def test_the_module_keeps_two_hundred_machines_with_a_handful_of_requests(host: Host, tmp_path: Path) -> None:
    carry_out(host.adapter(), specs(MANY))
    host.forget_tasks()
    host.requests()
    play = Play(tmp_path, tmp_path / "fleet")
    how = {
        "provider": "proxmox",
        "provider_settings": {"host": host.pve.url, "token_id": TOKEN, "token_secret": SECRET, "verify": host.ca},
    }
    machines = [
        {
            **{key: value for key, value in spec.to_dict().items() if key not in ("provider", "user_data")},
            "memory": "2G",
            "disk": "8G",
            "user_data": USER_DATA,
        }
        for spec in specs(MANY)
    ]
    again, info, wrong = play(
        [
            task("machine", state="started", machines=machines, **how),
            task("machine_info", **how),
            task("machine", ignore_errors=True, machines=[{"name": "x", "image": "nosuch"}], **how),
        ]
    )
    assert not again["changed"]
    assert len(again["machines"]) == len(info["machines"]) == MANY
    assert again["machines"][0]["detail"]["node"] == "pve1"  # a setting's value is not blanked
    assert 'there is no template "nosuch"' in wrong["msg"]
    shown = json.dumps([again, info, wrong])
    assert SECRET not in shown
    assert "hunter2" not in shown
    paths = [one.path for one in host.requests()]
    assert len(paths) <= 8, paths
