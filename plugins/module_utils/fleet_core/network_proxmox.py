# SPDX-License-Identifier: GPL-3.0-or-later
"""Bridges of a node of Proxmox VE, by its API: what must be staged there so that they are as wanted.

Source: https://pve.proxmox.com/pve-docs/api-viewer/#/nodes/{node}/network
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .errors import Conflict, InvalidInput
from .network_interfaces import HostBridge, vlan_words

COMMENT = "Written by autovibe.fleet.network"
_LONGEST_MTU = 65520


def staged(
    node: str,
    wanted: Sequence[HostBridge],
    found: Sequence[Mapping[str, Any]],
    take_over: Sequence[str] = (),
    management: bool = False,
) -> dict[str, list[Any]]:
    """Return what must be staged on a node: absent, names, and then present, options of proxmox_node_network.

    A name may stand in both: its bridge is staged anew. That module can take away one setting at a time only (it gives
    the API a list where a text belongs).

    found: its interfaces as the API lists them. take_over: bridges of others that may be changed. management: whether
    those with a default route may be. Raises Conflict, in a sentence, for what is not to be touched.
    """
    there = {str(item["iface"]): item for item in found}
    present, absent = [], []
    for one in wanted:
        options = _options(node, one)
        current = there.get(one.name)
        if current is not None and _same(options, current):
            continue
        _check(node, one, current, there, take_over, management)
        without = {key for key, value in options.items() if value in ("", -1, False)}
        given = {key: value for key, value in options.items() if key not in without}
        gone = {key for key in without if current is not None and current.get(key) not in (None, "", 0, False)}
        if len(gone) > 1:
            absent.append(one.name)
        else:
            given.update({key: options[key] for key in gone})
        present.append(given)
    names = {one.name for one in wanted}
    absent += [name for name, item in there.items() if name not in names and COMMENT in str(item.get("comments", ""))]
    return {"present": present, "absent": sorted(absent)}


def _options(node: str, one: HostBridge) -> dict[str, Any]:
    where = f"node {node}: bridge {one.name}"
    for key, value in (
        ("dhcp4", one.dhcp4),
        ("accept_ra", one.accept_ra),
        ("mac", one.mac),
        ("nameservers", one.nameservers),
    ):
        if value:
            raise InvalidInput(f"{where}: {key}: expected none, for which the API has no word")
    cidr = {}
    for family in (4, 6):
        addresses = one.of_family(family)
        if len(addresses) > 1:
            raise InvalidInput(
                f"{where}: addresses: expected one of IPv{family} by the API, found {', '.join(addresses)}"
            )
        cidr[family] = addresses[0] if addresses else ""
    if one.mtu > _LONGEST_MTU:
        raise InvalidInput(f"{where}: mtu: expected at most {_LONGEST_MTU} by the API, found {one.mtu}")
    options: dict[str, Any] = {
        "iface": one.name,
        "autostart": True,
        "cidr": cidr[4],
        "gateway": one.gateway4,
        "cidr6": cidr[6],
        "gateway6": one.gateway6,
        "bridge_ports": " ".join(one.ports),
        "bridge_vlan_aware": one.vlan_aware,
        "mtu": one.mtu or -1,
        "comments": f"{COMMENT}: {one.comment}" if one.comment else COMMENT,
    }
    # The API takes VLANs only where they are known.
    return {**options, "bridge_vids": " ".join(vlan_words(one))} if one.vlan_aware else options


def _same(options: Mapping[str, Any], current: Mapping[str, Any]) -> bool:
    """Return whether a bridge is as wanted, whoever has made it: its comment does not count."""
    if current.get("type") != "bridge":
        return False
    for key, value in options.items():
        is_now = current.get(key)
        if key == "comments":
            continue
        if isinstance(value, bool):
            same = value == (str(is_now) in ("1", "True"))
        elif key == "mtu":
            same = str(value if value > 0 else "") == str(is_now or "")
        elif key == "bridge_ports":
            same = sorted(value.split()) == sorted(str(is_now or "").split())
        elif key == "bridge_vids":
            same = value == str(is_now or "2-4094").replace(",", " ").replace(";", " ")
        else:
            same = value == str(is_now or "")
        if not same:
            return False
    return True


def _check(
    node: str,
    one: HostBridge,
    current: Mapping[str, Any] | None,
    there: Mapping[str, Mapping[str, Any]],
    take_over: Sequence[str],
    management: bool,
) -> None:
    where = f"node {node}: bridge {one.name}"
    lacking = [port for port in one.ports if port not in there]
    if lacking:
        raise Conflict(f"{where}: ports: expected interfaces of the node, found no {', '.join(lacking)}")
    for port in one.ports:
        item = there[port]
        if item.get("cidr") or item.get("cidr6"):
            address = item.get("cidr") or item["cidr6"]
            raise Conflict(f"{where}: ports: expected one without an address, found {port} with {address}")
        taker = next(
            (
                name
                for name, other in there.items()
                if name != one.name and port in str(other.get("bridge_ports", "")).split()
            ),
            "",
        )
        if taker:
            raise Conflict(f"{where}: ports: expected one that is free, found {port}, which is a port of {taker}")
    if current is None:
        return
    if current.get("type") != "bridge":
        raise Conflict(f"{where}: expected no interface of that name, or a bridge, found {current.get('type')}")
    if COMMENT not in str(current.get("comments", "")) and one.name not in take_over:
        raise Conflict(
            f"{where}: expected one that this role has made, found another's; leave it out, or name it in "
            f"network_proxmox_take_over"
        )
    if not management and (current.get("gateway") or current.get("gateway6")):
        raise Conflict(
            f"{where}: expected one without a default route, since the API has no rollback, found "
            f"{current.get('gateway') or current.get('gateway6')}; set network_proxmox_management if you can reach the "
            f"node's console"
        )
