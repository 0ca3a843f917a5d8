# SPDX-License-Identifier: GPL-3.0-or-later
"""Which machines the role firewall makes part of a policy: a provider's, those that are to be made, others by hand.

In check mode: nothing of this computer is changed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.integration.fleetd import Fleet
from tests.integration.modules.plays import REPOSITORY
from tests.requirements import require_linux, require_root

from fleet_core.machine_cards import planned_mac
from fleet_machines.qemu_command import tap_name
from fleet_machines.records import Records

MACS = {"web-1": "52:54:00:00:00:01", "dev-1": "52:54:00:00:00:02"}
VARIABLES: dict[str, Any] = {
    "ansible_connection": "local",
    "machine_provider": "qemu",
    "machine_defaults": {"project": "shop", "networks": [{"name": "vmbr1"}]},
    "machine_machines": [{"name": "web-1"}, {"name": "web-2"}],
    "firewall_networks": [{"name": "vmbr1", "address": "192.168.100.1/24"}],
    "firewall_policies": {"projects": {"shop": {"allow": ["registry.example.org"]}}},
    "firewall_machines": [
        {"name": "by-hand", "network": "vmbr1", "mac": "52:54:00:00:00:03", "address": "192.168.100.77"},
    ],
    "firewall_install": False,
}


@pytest.fixture
def state(tmp_path: Path) -> Any:
    """A state folder with a machine on a bridge and one on QEMU's own network, and its fleetd."""
    require_linux("for network policies")
    require_root("which the role wants")
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    records = Records(str(folder), "qemu")
    for name, network in (("web-1", "vmbr1"), ("dev-1", "user")):
        records.put(name, {"project": "shop", "cards": [{"name": network, "mac": MACS[name]}], "login": "dev"})
    fleet = Fleet(folder).up()
    yield folder
    fleet.end()


def play(folder: Path, tmp_path: Path, gateway: dict[str, Any] | None = None, **variables: Any) -> dict[str, Any]:
    """Return the results of the role's tasks by their names. gateway: variables of a node that is one, if there is."""
    here = {**VARIABLES, "ansible_python_interpreter": sys.executable}
    groups = {"hypervisors": {"hosts": {"localhost": {**here, **variables}}}}
    if gateway is not None:
        groups["gateways"] = {"hosts": {"pve1": {**here, **gateway}}}
    inventory = tmp_path / "hosts.json"
    inventory.write_text(json.dumps(groups))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "ansible",
            "playbook",
            "-i",
            str(inventory),
            "autovibe.fleet.firewall",
            "--check",
            "--diff",
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"),
            "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
            "FLEET_STATE_DIR": str(folder),
        },
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout[done.stdout.index("{\n") :])
    return {
        task["task"]["name"].rpartition(" : ")[2]: task["hosts"] for one in report["plays"] for task in one["tasks"]
    }


def test_a_policy_knows_machines_that_are_there_that_are_to_be_made_and_others(state: Path, tmp_path: Path) -> None:
    tasks = play(state, tmp_path)
    planned = tasks["Put the policy in force"]["localhost"]
    assert {one["name"]: one["scope"] for one in planned["machines"]} == {
        "web-1": "project-shop",
        "web-2": "project-shop",
        "by-hand": "default",
    }
    shown = json.dumps(planned["diff"])
    for text in (MACS["web-1"], tap_name("web-1", 0, str(state)), planned_mac("localhost", "web-2", 0)):
        assert text in shown, text
    assert MACS["dev-1"] not in shown
    told = tasks["Tell which machines no policy holds"]["localhost"]["msg"]
    assert [text.partition(":")[0] for text in told] == ["dev-1"]
    assert planned["changed"]
    assert not (state / "egress").exists()


def test_without_a_bridge_nothing_is_asked_and_nothing_is_done(state: Path, tmp_path: Path) -> None:
    tasks = play(state, tmp_path, firewall_networks=[])
    ran = {name for name, hosts in tasks.items() if not hosts["localhost"].get("skipped")}
    assert {name for name in ran if not name.startswith("Validating arguments")} == set()


def test_machines_that_are_deleted_are_no_part_of_it(state: Path, tmp_path: Path) -> None:
    planned = play(state, tmp_path, machine_state="absent")["Put the policy in force"]["localhost"]
    assert {one["name"] for one in planned["machines"]} == {"web-1", "by-hand"}


def test_nodes_of_proxmox_hold_the_machines_that_its_api_tells_with_both_fences(state: Path, tmp_path: Path) -> None:
    pytest.importorskip("fakepve", reason="the fake of Proxmox VE needs Python 3.10")
    from tests.fakes.proxmox_host import SECRET, TOKEN, Host

    folder = tmp_path / "pve"
    folder.mkdir()
    host = Host(folder)
    try:
        tags = "fleet;project-shop;net0-vmbr1+mbc2411000001+i192.168.100.21+2f24"
        host.machine(201, "web-1", net0="virtio=BC:24:11:00:00:01,bridge=vmbr1", tags=tags)
        settings = {"host": host.pve.url, "token_id": TOKEN, "token_secret": SECRET, "verify": host.ca}
        api = {"machine_provider": "proxmox", "machine_provider_settings": settings, "machine_machines": []}
        node = {
            "firewall_provider": "proxmox",
            "firewall_provider_settings": settings,
            "firewall_machines": [],
            "firewall_provider_host": "localhost",
            "firewall_proxmox": True,
        }
        tasks = play(state, tmp_path, gateway=node, **api)
    finally:
        host.stop()
    (card,) = tasks["Put the policy in force"]["pve1"]["machines"]
    assert (card["name"], card["address"], card["scope"]) == ("web-1", "192.168.100.21", "project-shop")
    second = tasks["Write the policy into the firewall of the cluster"]["pve1"]
    assert "put the second fence round machine web-1" in second["actions"]
    assert any("not enforced" in text for text in tasks["Tell what weakens the second fence"]["pve1"]["msg"])
    assert not any(request.method != "GET" for request in host.all_requests())


def test_a_host_without_fleetd_shows_what_would_be_done(tmp_path: Path) -> None:
    require_linux("for network policies")
    require_root("which the role wants")
    planned = play(tmp_path / "none", tmp_path)["Put the policy in force"]["localhost"]
    assert planned["changed"]
    assert {one["name"] for one in planned["machines"]} == {"web-1", "web-2", "by-hand"}
