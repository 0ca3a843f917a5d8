# SPDX-License-Identifier: GPL-3.0-or-later
"""Bridges of the nodes of a Proxmox VE, by the role network and the modules of community.proxmox."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fakepve", reason="the fake of Proxmox VE needs Python 3.10")

from tests.fakes.proxmox_network import NetworkHost
from tests.fakes.proxmox_schema import all_problems, schemas
from tests.integration.machines.playbooks import Hypervisor, Run

from fleet_core.errors import FleetError
from fleet_core.network_interfaces import bridges
from fleet_core.network_proxmox import COMMENT, staged

MANAGEMENT = {"name": "vmbr0", "ports": ["ens18"], "addresses": ["10.0.1.10/24"], "gateway4": "10.0.1.1"}
MACHINES = {"name": "vmbr1", "addresses": ["192.168.100.1/24"], "comment": "machines"}
TRUNK = {"name": "vmbr2", "ports": ["ens19"], "vlan_aware": True, "vlans": [5, "100-200"], "mtu": 9000}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NetworkHost]:
    found = NetworkHost(tmp_path_factory.mktemp("cluster"))
    try:
        yield found
        if schemas() is not None:
            assert all_problems(found.all_requests()) == []
    finally:
        found.stop()


def role(host: NetworkHost, folder: Path, *options: str, fails: bool = False, **variables: Any) -> Run:
    runner = Hypervisor(folder, folder / "state", {}, "proxmox")
    return runner("autovibe.fleet.network", *options, fails=fails, machine_provider_settings=host.settings, **variables)


def writes(host: NetworkHost) -> list[tuple[str, str]]:
    return [(request.method, request.path) for request in host.requests("POST", "PUT", "DELETE")]


NETWORK = "/nodes/pve1/network"


def test_check_mode_stages_nothing(host: NetworkHost, tmp_path: Path) -> None:
    role(host, tmp_path, "--check", network_proxmox_nodes={"pve1": [MANAGEMENT, MACHINES]})
    assert writes(host) == []


def test_what_is_not_there_is_staged_and_applied_once(host: NetworkHost, tmp_path: Path) -> None:
    """The management bridge is the installer's: it is as wanted, so that nothing is done about it."""
    run = role(host, tmp_path, network_proxmox_nodes={"pve1": [MANAGEMENT, MACHINES, TRUNK]})
    assert writes(host) == [("POST", NETWORK), ("POST", NETWORK), ("PUT", NETWORK)]
    found = host.pve.node_network("pve1")
    assert found["vmbr1"]["cidr"] == "192.168.100.1/24"
    assert found["vmbr1"]["comments"] == f"{COMMENT}: machines"
    assert found["vmbr2"]["bridge_ports"] == "ens19"
    assert (str(found["vmbr2"]["bridge_vlan_aware"]), found["vmbr2"]["bridge_vids"]) == ("1", "5 100-200")
    assert str(found["vmbr2"]["mtu"]) == "9000"
    assert host.pve.staged == {}
    assert host.settings["token_secret"] not in run.output


def test_a_second_run_changes_nothing(host: NetworkHost, tmp_path: Path) -> None:
    run = role(host, tmp_path, network_proxmox_nodes={"pve1": [MANAGEMENT, MACHINES, TRUNK]})
    assert run.changed == []
    assert writes(host) == []


def test_a_bridge_of_ours_is_changed_and_one_no_longer_wanted_goes(host: NetworkHost, tmp_path: Path) -> None:
    other = {**MACHINES, "addresses": ["192.168.101.1/24", "fd00:101::1/64"]}
    role(host, tmp_path, network_proxmox_nodes={"pve1": [MANAGEMENT, other]})
    assert writes(host) == [("DELETE", f"{NETWORK}/vmbr2"), ("PUT", f"{NETWORK}/vmbr1"), ("PUT", NETWORK)]
    found = host.pve.node_network("pve1")
    assert (found["vmbr1"]["cidr"], found["vmbr1"]["cidr6"]) == ("192.168.101.1/24", "fd00:101::1/64")
    assert set(found) == {"ens18", "ens19", "vmbr0", "vmbr1"}


def test_settings_can_be_taken_away(host: NetworkHost, tmp_path: Path) -> None:
    role(host, tmp_path, network_proxmox_nodes={"pve1": [{**MACHINES, "addresses": ["192.168.101.1/24"]}]})
    assert writes(host) == [("PUT", f"{NETWORK}/vmbr1"), ("PUT", NETWORK)]
    assert "cidr6" not in host.pve.node_network("pve1")["vmbr1"]
    host.pve.node_network("pve1")["vmbr1"].update({"cidr6": "fd00:9::1/64", "mtu": 9000})
    role(host, tmp_path, network_proxmox_nodes={"pve1": [{**MACHINES, "addresses": ["192.168.101.1/24"]}]})
    assert writes(host) == [("DELETE", f"{NETWORK}/vmbr1"), ("POST", NETWORK), ("PUT", NETWORK)]
    assert not {"cidr6", "mtu"} & set(host.pve.node_network("pve1")["vmbr1"])


def test_what_cannot_be_staged_reverts_all_of_it(host: NetworkHost, tmp_path: Path) -> None:
    before = dict(host.pve.node_network("pve1"))
    host.pve.refuses_to_stage = "vmbr4"
    wanted = [MANAGEMENT, {**MACHINES, "addresses": ["192.168.102.1/24"]}, {"name": "vmbr4"}]
    run = role(host, tmp_path, fails=True, network_proxmox_nodes={"pve1": wanted})
    said = run.of("Say what failed")["msg"]
    assert "unable to stage 'vmbr4'" in said
    assert said.endswith("; what was staged is reverted")
    assert writes(host)[-1] == ("DELETE", NETWORK)
    assert host.pve.staged == {}
    assert host.pve.node_network("pve1") == before


def test_changes_that_others_have_staged_are_not_applied(host: NetworkHost, tmp_path: Path) -> None:
    host.pve.refuses_to_stage = ""
    host.pve._work("pve1")["vmbr7"] = {"type": "bridge", "autostart": 1}
    run = role(host, tmp_path, fails=True, network_proxmox_nodes={"pve1": [MANAGEMENT, MACHINES]})
    assert "node pve1: expected no staged changes of the network, found those of another" in run.failure
    assert writes(host) == []
    assert "vmbr7" in host.pve.staged["pve1"]
    host.pve.staged.clear()


def test_the_way_to_the_node_is_touched_only_when_told(host: NetworkHost, tmp_path: Path) -> None:
    wanted = {"pve1": [{**MANAGEMENT, "comment": "office"}, {**MANAGEMENT, "addresses": ["10.0.1.11/24"]}][1:]}
    run = role(host, tmp_path, fails=True, network_proxmox_nodes=wanted)
    assert "bridge vmbr0: expected one that this role has made, found another's" in run.failure
    run = role(host, tmp_path, fails=True, network_proxmox_nodes=wanted, network_proxmox_take_over=["vmbr0"])
    assert "expected one without a default route, since the API has no rollback, found 10.0.1.1" in run.failure
    assert writes(host) == []
    assert host.pve.node_network("pve1")["vmbr0"]["cidr"] == "10.0.1.10/24"


FOUND: list[dict[str, Any]] = [
    {"iface": "ens18", "type": "eth"},
    {"iface": "ens19", "type": "eth", "cidr": "192.0.2.9/24"},
    {"iface": "bond0", "type": "bond"},
    {"iface": "vmbr0", "type": "bridge", "bridge_ports": "ens18", "autostart": 1},
]
REFUSED = [
    ({"name": "vmbr1", "dhcp4": True}, "dhcp4: expected none, for which the API has no word"),
    (
        {"name": "vmbr1", "addresses": ["10.1.0.1/24", "10.2.0.1/24"]},
        "expected one of IPv4 by the API, found 10.1.0.1/24",
    ),
    ({"name": "vmbr1", "mtu": 65530}, "mtu: expected at most 65520 by the API, found 65530"),
    ({"name": "vmbr1", "ports": ["ens20"]}, "ports: expected interfaces of the node, found no ens20"),
    ({"name": "vmbr1", "ports": ["ens18"]}, "expected one that is free, found ens18, which is a port of vmbr0"),
    ({"name": "vmbr1", "ports": ["ens19"]}, "expected one without an address, found ens19 with 192.0.2.9/24"),
    ({"name": "bond0"}, "expected no interface of that name, or a bridge, found bond"),
]


@pytest.mark.parametrize(("data", "message"), REFUSED)
def test_what_the_api_cannot_do_is_refused_in_one_sentence(data: dict[str, Any], message: str) -> None:
    with pytest.raises(FleetError) as caught:
        staged("pve1", bridges([data]), FOUND)
    assert message in caught.value.message
    assert caught.value.message.startswith("node pve1: bridge ")


def test_a_bridge_that_is_as_wanted_needs_nothing_whoever_made_it() -> None:
    assert staged("pve1", bridges([{"name": "vmbr0", "ports": ["ens18"]}]), FOUND) == {"present": [], "absent": []}
