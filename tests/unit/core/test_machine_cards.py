# SPDX-License-Identifier: GPL-3.0-or-later
"""Which machines a network policy is for, and how it knows those that are not there yet."""

from __future__ import annotations

from typing import Any

import pytest

from fleet_core import egress
from fleet_core.errors import InvalidInput
from fleet_core.machine_cards import OUTSIDE, card, planned_mac, policy_machines, with_macs
from fleet_core.machines import Network

MAC = "52:54:00:00:00:01"


def machine(name: str, *cards: dict[str, str], **values: Any) -> dict[str, Any]:
    return {"name": name, "project": "shop", "state": "running", "detail": {"interfaces": list(cards)}, **values}


def on(network: str, mac: str = MAC, address: str = "", port: str = "") -> dict[str, str]:
    return {"network": network, "mac": mac, "address": address, "port": port}


def test_a_card_tells_its_address_without_the_length_of_its_prefix() -> None:
    assert card(Network("vmbr1", MAC, "10.0.0.5/24"), "tap1") == on("vmbr1", MAC, "10.0.0.5", "tap1")
    assert card(Network("vmbr1", MAC, "dhcp"))["address"] == ""


def test_machines_on_networks_of_the_policy_are_taken_and_others_are_told() -> None:
    found = policy_machines(
        [
            machine("web-1", on("vmbr1", address="10.0.0.5", port="tap1"), on("vmbr0", "52:54:00:00:00:02")),
            machine("web-2", on("vmbr1", "52:54:00:00:00:03", "fd00::5")),
            machine("web-3", on("user", "52:54:00:00:00:04")),
            machine("web-4", on("vmbr1", "")),
            machine("web-5"),
            machine("web-6", on("vmbr1"), state="deleted"),
        ],
        ["vmbr1"],
    )
    assert found["machines"] == [
        {"name": "web-1", "network": "vmbr1", "mac": MAC, "project": "shop", "address": "10.0.0.5", "port": "tap1"},
        {"name": "web-2", "network": "vmbr1", "mac": "52:54:00:00:00:03", "project": "shop", "address6": "fd00::5"},
    ]
    assert {one["name"]: one["reason"] for one in found["outside"]} == {
        "web-1": "network vmbr0: not one of the policy",
        "web-3": f'network "user": {OUTSIDE["user"]}',
        "web-4": "network vmbr1: the hardware address of its card is not known",
        "web-5": "its provider does not tell its network cards",
    }
    bridge = {"name": "vmbr1", "address": "10.0.0.1/24", "address6": "fd00::1/64"}
    assert len(egress.parse({"networks": [bridge], "machines": found["machines"]}).machines) == 2


def test_machines_are_known_before_they_are_made() -> None:
    declared = [
        {"name": "web-1", "project": "shop", "networks": ["vmbr1", {"name": "user"}]},
        {"name": "web-2", "networks": [{"name": "vmbr1", "mac": MAC, "address": "10.0.0.9/24"}]},
        {"name": "there", "networks": ["vmbr1"]},
        {"name": "plain"},
    ]
    made = with_macs(declared, ["vmbr1"], ["there"], "host-1")
    mac = planned_mac("host-1", "web-1", 0)
    assert made[0]["networks"] == [{"name": "vmbr1", "mac": mac}, {"name": "user"}]
    assert made[1:] == [{**declared[1]}, declared[2], declared[3]]
    here = machine("there", on("vmbr1", "52:54:00:00:00:07"))
    found = policy_machines([here], ["vmbr1"], declared, "host-1")["machines"]
    assert [(one["name"], one["mac"]) for one in found] == [
        ("there", "52:54:00:00:00:07"),
        ("web-1", mac),
        ("web-2", MAC),
    ]
    assert found[2]["address"] == "10.0.0.9"


def test_planned_addresses_differ_by_host_machine_and_card() -> None:
    given = [("a", "web-1", 0), ("b", "web-1", 0), ("a", "web-2", 0), ("a", "web-1", 1)]
    assert len({planned_mac(*one) for one in given}) == len(given)
    assert planned_mac(*given[0]) == planned_mac(*given[0])


def test_interfaces_are_not_bound_where_that_is_not_wanted() -> None:
    (found,) = policy_machines([machine("web-1", on("vmbr1", port="tap1"))], ["vmbr1"], ports=False)["machines"]
    assert "port" not in found


def test_networks_that_are_no_list_are_refused() -> None:
    with pytest.raises(InvalidInput, match='machine "web-1": networks: expected a list'):
        with_macs([{"name": "web-1", "networks": "vmbr1"}], ["vmbr1"], [], "")
