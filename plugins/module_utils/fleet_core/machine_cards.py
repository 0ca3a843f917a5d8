# SPDX-License-Identifier: GPL-3.0-or-later
"""The network cards of machines, and which of them a network policy is for."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from .errors import InvalidInput
from .machines import Network, network_from_dict
from .names import describe

# Networks of QEMU and Multipass that are no bridges of the host: what leaves through them passes no rules of ours.
OUTSIDE = {
    "user": "QEMU itself is its gateway, so no rule of the host tells its traffic from the host's own",
    "isolated": "it has no way out",
}


def card(network: Network, port: str = "") -> dict[str, str]:
    """Return a card as the detail of a machine tells it. port: its interface on the host, empty if that is not known.

    address: the one that it was given, without the length of its prefix.
    """
    address = network.address.partition("/")[0] if network.address not in ("", "dhcp") else ""
    return {"network": network.name, "mac": network.mac, "address": address, "port": port}


def planned_mac(salt: str, machine: str, number: int) -> str:
    """Return the hardware address of a machine's card before there is one: the same each time.

    salt: tells the machines of two hosts apart, such as the host's name in the inventory.
    """
    digest = hashlib.sha256(f"{salt}\0{machine}\0{number}".encode()).hexdigest()
    return "52:54:00:" + ":".join(digest[at : at + 2] for at in (0, 2, 4))


def with_macs(
    machines: Sequence[Mapping[str, Any]], fenced: Collection[str], there: Collection[str], salt: str
) -> list[dict[str, Any]]:
    """Return declared machines with a hardware address for each card on a fenced network that has none.

    So a policy knows them before they first boot. there: those that exist, whose cards have one and keep it.
    """
    found = []
    for machine in machines:
        item = dict(machine)
        if item.get("networks") and item.get("name") not in there:
            item["networks"] = [
                _planned(item["name"], number, network, fenced, salt) for number, network in enumerate(_networks(item))
            ]
        found.append(item)
    return found


def policy_machines(
    found: Iterable[Mapping[str, Any]],
    networks: Collection[str],
    declared: Sequence[Mapping[str, Any]] = (),
    salt: str = "",
    ports: bool = True,
) -> dict[str, list[dict[str, str]]]:
    """Return the machines of a network policy, and those that it cannot reach.

    found: as the modules machine and machine_info return them. networks: those of the policy. declared: machines that
    may not be there yet, as the module machine takes them. ports: whether cards are bound to their interfaces.

    machines: as the module egress_policy takes them, one for each card. outside: name and reason, for people.
    """
    here = {str(machine["name"]): machine for machine in found if machine.get("state") != "deleted"}
    inside: list[dict[str, str]] = []
    outside: list[dict[str, str]] = []
    for name, machine in sorted(here.items()):
        cards = (machine.get("detail") or {}).get("interfaces") or []
        kept = [one for one in cards if one["network"] in networks and one["mac"]]
        inside += [_member(name, machine, one, ports) for one in kept]
        for one in cards:
            if one not in kept:
                outside.append({"name": name, "reason": _reason(one, networks)})
        if not cards:
            outside.append({"name": name, "reason": "its provider does not tell its network cards"})
    for machine in with_macs(declared, networks, here, salt):
        if machine.get("name") not in here:
            cards = [card(network) for network in _networks(machine)]
            inside += [
                _member(str(machine["name"]), machine, one, ports) for one in cards if one["network"] in networks
            ]
    return {"machines": inside, "outside": outside}


def _member(name: str, machine: Mapping[str, Any], one: Mapping[str, str], ports: bool) -> dict[str, str]:
    address = one.get("address", "")
    member = {
        "name": name,
        "network": one["network"],
        "mac": one["mac"],
        "project": str(machine.get("project") or ""),
        "address6" if ":" in address else "address": address,
        "port": one.get("port", "") if ports else "",
    }
    return {key: value for key, value in member.items() if value}


def _reason(one: Mapping[str, str], networks: Collection[str]) -> str:
    if one["network"] in OUTSIDE:
        return f'network "{one["network"]}": {OUTSIDE[one["network"]]}'
    if one["network"] in networks:
        return f"network {one['network']}: the hardware address of its card is not known"
    return f"network {one['network'] or 'without a name'}: not one of the policy"


def _networks(machine: Mapping[str, Any]) -> list[Network]:
    given = machine.get("networks") or []
    if not isinstance(given, (list, tuple)):
        raise InvalidInput(f'machine "{machine.get("name")}": networks: expected a list, found {describe(given)}')
    where = f'machine "{machine.get("name")}": networks'
    return [network_from_dict(f"{where}[{number}]", item) for number, item in enumerate(given)]


def _planned(name: str, number: int, network: Network, fenced: Collection[str], salt: str) -> dict[str, str]:
    given = network.to_dict()
    return given if network.mac or network.name not in fenced else {**given, "mac": planned_mac(salt, name, number)}
