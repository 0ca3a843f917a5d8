# SPDX-License-Identifier: GPL-3.0-or-later
"""What stands in the way of bridges on a host that runs: interfaces of others, machines, and the way of the admin."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fleet_core.errors import Conflict, NotFound
    from fleet_core.network_interfaces import HostBridge
else:
    try:
        from ..fleet_core.errors import Conflict, NotFound
        from ..fleet_core.network_interfaces import HostBridge
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import Conflict, NotFound
        from fleet_core.network_interfaces import HostBridge

from .network_links import Link, routes, strangers


def refuse(wanted: Sequence[HostBridge], was: Sequence[HostBridge], text: str, found: Mapping[str, Link]) -> None:
    """Raise Conflict or NotFound, in a sentence, for what would surprise somebody. text: of the files that are ours."""
    ours = {one.name for one in was}
    for one in wanted:
        link = found.get(one.name)
        if link is not None and one.name not in ours and not re.search(rf"(?<![\w-]){one.name}(?![\w-])", text):
            raise Conflict(
                f"bridge {one.name}: expected no interface of that name, or one that this module has made, found "
                f"{'a bridge' if link.bridge is not None else 'an interface'} of another; choose another name, "
                f"or take it over with force"
            )
        for port in one.ports:
            _check_port(one, port, found, ours)
    kept = {one.name for one in wanted}
    for one in was:
        others = strangers(one, found)
        if one.name not in kept and others:
            raise Conflict(
                f"bridge {one.name}: expected no ports of others on a bridge that is deleted, found "
                f"{', '.join(others)}; stop these machines first, or use force"
            )


def _check_port(one: HostBridge, port: str, found: Mapping[str, Link], ours: set[str]) -> None:
    link = found.get(port)
    if link is None:
        known = ", ".join(sorted(name for name, other in found.items() if other.bridge is None and name != "lo"))
        raise NotFound(
            f"bridge {one.name}: port {port}: expected an interface of this host, found none; it has {known}"
        )
    if link.bridge is not None:
        raise Conflict(f"bridge {one.name}: port {port}: expected an interface that is no bridge, found a bridge")
    if link.master and link.master != one.name and link.master not in ours:
        raise Conflict(f"bridge {one.name}: port {port}: expected one that is free, found a port of {link.master}")
    if link.master != one.name:
        _check_way(one, port, link)


def _check_way(one: HostBridge, port: str, link: Link) -> None:
    """Refuse to take an interface whose addresses or default route its bridge would not have: they would be gone."""
    for item in link.addresses:
        address = f"{item['local']}/{item.get('prefixlen', 0)}"
        version = ipaddress.ip_interface(address).version
        by_itself = one.dhcp4 if version == 4 else one.accept_ra
        if item.get("scope") != "global" or address in one.addresses or (by_itself and item.get("dynamic")):
            continue
        raise Conflict(
            f"bridge {one.name}: port {port}: expected its address {address} among the bridge's own, which takes it "
            f"over, found {', '.join(one.addresses) or 'none'}; add it, or use force"
        )
    for family, gateway, by_itself in ((4, one.gateway4, one.dhcp4), (6, one.gateway6, one.accept_ra)):
        for item in routes(family):
            leads = item.get("dst") == "default" and item.get("dev") == port
            if leads and not by_itself and item.get("gateway") != gateway:
                raise Conflict(
                    f"bridge {one.name}: port {port}: expected gateway{family} {item.get('gateway')}, by which this "
                    f"host reaches others, found {gateway or 'none'}; set it, or use force"
                )
