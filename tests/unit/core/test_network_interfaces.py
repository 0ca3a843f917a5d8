# SPDX-License-Identifier: GPL-3.0-or-later
"""Bridges of hosts: what may be asked for, and what each network stack is given for it, word by word.

UPDATE_GOLDEN=1 writes the files of tests/data/network anew.
"""

from __future__ import annotations

import configparser
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from fleet_core import network_ifupdown, network_netplan, network_networkd, network_networkmanager, network_sysctls
from fleet_core.errors import InvalidInput
from fleet_core.network_interfaces import MARK, HostBridge, bridge, bridges, to_dict
from fleet_core.network_sysctls import Forwarding

DATA = Path(__file__).resolve().parents[2] / "data" / "network"
UPLINK = {
    "name": "vmbr0",
    "ports": ["ens18", "ens19"],
    "addresses": ["2001:db8:1::10/64", "10.0.1.10/24"],
    "gateway4": "10.0.1.1",
    "gateway6": "fe80::1",
    "nameservers": ["10.0.1.53", "2001:db8:1::53"],
    "vlan_aware": True,
    "vlans": ["100-200", 5],
    "mtu": 9000,
    "mac": "52:54:00:AA:bb:01",
    "comment": "management",
}
MACHINES = {"name": "vmbr1", "addresses": ["192.168.100.1/24", "fd00:100:0::1/64"]}
ASKING = {"name": "lan0", "ports": ["enp3s0"], "dhcp4": True, "accept_ra": True}
BARE = {"name": "trunk"}
ALL = (UPLINK, MACHINES, ASKING, BARE)
STACKS: Mapping[str, Any] = {
    "ifupdown2": network_ifupdown,
    "netplan": network_netplan,
    "networkd": network_networkd,
    "networkmanager": network_networkmanager,
}


def wanted(*data: Mapping[str, Any]) -> tuple[HostBridge, ...]:
    """Bridges that go together but for their default routes, of which the golden files show both kinds."""
    return tuple(bridge(item) for item in data)


@pytest.mark.parametrize("stack", STACKS)
def test_files_of_each_stack(stack: str) -> None:
    text = "".join(f"==> {file.path} {file.mode:04o}\n{file.text}" for file in STACKS[stack].files(wanted(*ALL)))
    golden = DATA / f"{stack}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(text)
    assert text == golden.read_text()


@pytest.mark.parametrize("stack", STACKS)
def test_every_file_says_whose_it_is_and_no_bridge_means_no_file(stack: str) -> None:
    made = STACKS[stack].files(wanted(*ALL))
    assert all(file.text.startswith(f"# {MARK}\n") for file in made)
    assert len({file.path for file in made}) == len(made)
    assert STACKS[stack].files(()) == ()


def test_netplan_writes_what_yaml_reads() -> None:
    file = network_netplan.files(wanted(*ALL))[0]
    found = yaml.safe_load(file.text)["network"]
    assert found["bridges"]["vmbr0"]["addresses"] == ["10.0.1.10/24", "2001:db8:1::10/64"]
    assert found["bridges"]["vmbr0"]["routes"][1] == {"to": "::/0", "via": "fe80::1"}
    assert found["bridges"]["vmbr1"]["interfaces"] == []
    assert found["bridges"]["trunk"]["optional"] is True
    assert set(found["ethernets"]) == {"ens18", "ens19", "enp3s0"}
    odd = wanted({"name": "on", "ports": ["1e3"], "mac": "52:54:00:12:34:56"})  # words and numbers of YAML
    found = yaml.safe_load(network_netplan.files(odd)[0].text)["network"]
    assert list(found["bridges"]) == ["on"]
    assert list(found["ethernets"]) == ["1e3"]
    assert "ethernets" not in yaml.safe_load(network_netplan.files(odd, ["1e3"])[0].text)["network"]


def test_networkmanager_writes_keyfiles_whose_ports_name_their_bridge() -> None:
    found = {}
    for file in network_networkmanager.files(wanted(*ALL)):
        parser = configparser.ConfigParser()
        parser.read_string(file.text)
        found[parser["connection"]["id"]] = parser
        assert file.mode == 0o600
    assert (
        found["autovibe-fleet-vmbr0-port-ens18"]["connection"]["master"]
        == (found["autovibe-fleet-vmbr0"]["connection"]["uuid"])
    )
    assert len({parser["connection"]["uuid"] for parser in found.values()}) == len(found)
    assert found["autovibe-fleet-trunk"]["ipv4"]["method"] == "disabled"


def test_interfaces_of_machines_stay_on_their_bridge_when_ifupdown2_reloads() -> None:
    text = network_ifupdown.files(wanted(MACHINES))[0].text
    assert "bridge-ports none" in text
    assert "bridge-ports-condone-regex .*" in text
    assert "iface ens18 inet manual" in network_ifupdown.files(wanted(UPLINK))[0].text
    assert "iface ens18 " not in network_ifupdown.files(wanted(UPLINK), ["ens18"])[0].text


def test_what_is_read_back_is_what_was_written() -> None:
    for data in ALL:
        made = bridge(data)
        assert bridge(to_dict(made)) == made


def test_keys_without_a_value_are_as_if_they_were_not_there() -> None:
    assert bridge({"name": "vmbr1", "ports": None, "gateway4": None, "mtu": None}) == HostBridge("vmbr1")


WRONG = [
    ({"name": "vmbr.1"}, "expected a letter, then at most 14 letters, digits, '_' or '-', found str 'vmbr.1'"),
    ({"name": "all"}, "bridge name: expected a letter"),
    ({"name": "a-name-that-is-too-long"}, "bridge name: expected a letter"),
    ({"name": "vmbr1", "adresses": []}, 'bridge: unknown key "adresses", did you mean "addresses"?'),
    ({"addresses": ["192.168.100.1"]}, "expected an address with its prefix length, such as 192.168.100.1/24"),
    ({"addresses": "192.168.100.1/24"}, "bridge vmbr1: addresses: expected a list, found str"),
    ({"addresses": ["192.168.100.0/24"]}, "found 192.168.100.0/24, which is the network itself"),
    ({"addresses": ["192.168.100.255/24"]}, "found 192.168.100.255/24, which is for broadcasts"),
    ({"addresses": ["fd00:100::/64"]}, "found fd00:100::/64, which is the network itself"),
    ({"addresses": ["224.0.0.1/24"]}, "expected an address that a host may have, found 224.0.0.1/24"),
    ({"addresses": ["10.0.0.1/24", "10.0.0.1/24"]}, "bridge vmbr1: addresses: 10.0.0.1/24 stands there twice"),
    ({"gateway4": "10.0.1.1"}, "gateway4: expected one in a network of its addresses, found 10.0.1.1"),
    ({"addresses": ["10.0.1.1/24"], "gateway4": "10.0.1.1"}, "expected the address of another host, found its own"),
    ({"gateway6": "10.0.1.1"}, "gateway6: expected an address of IPv6, found 10.0.1.1"),
    ({"dhcp4": True, "addresses": ["10.0.1.2/24"], "gateway4": "10.0.1.1"}, "gateway4: expected none beside dhcp4"),
    ({"ports": ["vmbr1"]}, "ports: expected other interfaces, found the bridge itself"),
    ({"ports": ["eth0", "eth0"]}, "ports: eth0 stands there twice"),
    ({"ports": ["../etc"]}, "ports: expected an interface, at most 15 letters"),
    ({"vlans": [5]}, "vlans: expected vlan_aware true with it, found false"),
    ({"vlan_aware": True, "vlans": ["5-3"]}, "vlans: expected numbers from 1 to 4094, the lower one first, found 5-3"),
    ({"vlan_aware": True, "vlans": ["1-9", 5]}, "vlans: 5 stands there twice"),
    ({"vlan_aware": True, "vlans": [True]}, "vlans: expected numbers and ranges such as 5 or 100-200"),
    ({"mtu": 576}, "mtu: expected a number from 1280 to 65535, found 576"),
    ({"mac": "01:00:5e:00:00:01"}, "mac: expected a unicast address"),
    ({"comment": "a\nb"}, "comment: expected one line of at most 200 characters"),
    ({"nameservers": ["one.one"]}, "nameservers: expected an address without a prefix length, found str 'one.one'"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "message"), WRONG)
def test_what_cannot_be_is_refused_in_one_sentence(data: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        bridge({"name": "vmbr1", **data})
    assert message in caught.value.message
    assert "\n" not in caught.value.message


TOGETHER = [
    ([{"name": "a"}, {"name": "a"}], "bridge a: stands there twice"),
    ([{"name": "a", "ports": ["x"]}, {"name": "b", "ports": ["x"]}], "bridge b: ports: x is a port of a already"),
    ([{"name": "a"}, {"name": "b", "ports": ["a"]}], "bridge b: ports: a is a bridge; no bridge can be the port"),
    (
        [{"name": "a", "addresses": ["10.0.0.1/16"]}, {"name": "b", "addresses": ["10.0.1.1/24"]}],
        "bridge b: addresses: 10.0.1.0/24 overlaps 10.0.0.0/16 of a",
    ),
    (
        [{"name": "a", "dhcp4": True}, {"name": "b", "addresses": ["10.0.1.2/24"], "gateway4": "10.0.1.1"}],
        "bridge b: gateway4: a has one already; a host has one default route",
    ),
    ("vmbr1", "bridges: expected a list, found str 'vmbr1'"),
    ([["vmbr1"]], "bridge: expected a mapping, found list"),
]


@pytest.mark.parametrize(("data", "message"), TOGETHER)
def test_bridges_that_do_not_go_together_are_refused(data: Any, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        bridges(data)
    assert message in caught.value.message


def test_a_host_that_forwards_goes_on_listening_to_its_router() -> None:
    values = network_sysctls.settings(wanted(MACHINES), Forwarding(True, True, "disabled", ("eth0.100",)))
    assert next(iter(values)) == "net/ipv6/conf/eth0.100/accept_ra"  # before forwarding ends it
    assert values["net/ipv6/conf/eth0.100/accept_ra"] == "2"
    assert values["net/ipv4/ip_forward"] == values["net/ipv6/conf/all/forwarding"] == "1"
    assert values["net/bridge/bridge-nf-call-iptables"] == "0"
    assert values["net/ipv6/conf/vmbr1/accept_ra"] == "0"


def test_a_source_must_be_where_a_bridge_leads_unless_it_is_the_way_to_others() -> None:
    values = network_sysctls.settings(wanted(UPLINK, MACHINES), Forwarding())
    assert values["net/ipv4/conf/vmbr0/rp_filter"] == "2"
    assert values["net/ipv4/conf/vmbr1/rp_filter"] == "1"
    assert "net/ipv4/ip_forward" not in values


def test_switches_that_are_not_there_are_no_error_at_boot() -> None:
    settings, modules = network_sysctls.files((), Forwarding(True, None, "enabled"))
    assert "-net/bridge/bridge-nf-call-ip6tables = 1\n" in settings.text
    assert "net/ipv6/conf/all/forwarding" not in settings.text
    assert modules.text.endswith("\nbr_netfilter\n")
    assert network_sysctls.files((), Forwarding()) == ()


def test_only_what_is_there_and_other_than_wanted_differs() -> None:
    found = network_sysctls.differences({"a": "1", "b": "1", "c": "1"}, {"a": "0", "b": "1"})
    assert found == {"a": ("0", "1")}
