# SPDX-License-Identifier: GPL-3.0-or-later
"""Bridges for netplan with systemd-networkd behind it: one file of /etc/netplan, and drop-ins for VLANs.

netplan has no word for bridges that know VLANs; systemd-networkd, for which it writes, takes that from a drop-in.
Source: https://netplan.readthedocs.io/en/stable/netplan-yaml/
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from . import network_networkd
from .network_interfaces import MARK, HostBridge, NetworkFile

FILE = "/etc/netplan/90-autovibe-fleet.yaml"
DROP_IN = "autovibe-fleet.conf"


def files(bridges: Sequence[HostBridge], defined: Sequence[str] = ()) -> tuple[NetworkFile, ...]:
    """Return the files of bridges, none for no bridge. defined: ports that are bonds or VLANs of other files."""
    if not bridges:
        return ()
    lines = [f"# {MARK}", "network:", "  version: 2"]
    ports = [(port, one.mtu) for one in bridges for port in one.ports if port not in defined]
    if ports:
        lines.append("  ethernets:")
        for port, mtu in ports:
            lines += [f"    {_word(port)}:", "      dhcp4: false", "      dhcp6: false", "      accept-ra: false"]
            lines += ["      link-local: []", *([f"      mtu: {mtu}"] if mtu else [])]
    lines.append("  bridges:")
    for one in bridges:
        lines += _bridge(one)
    made = [NetworkFile(FILE, "\n".join(lines) + "\n", 0o600)]
    for one in bridges:
        made += _drop_ins(one)
    return tuple(made)


def _bridge(one: HostBridge) -> list[str]:
    lines = [f"    # {one.comment}"] if one.comment else []
    lines += [f"    {_word(one.name)}:", "      renderer: networkd"]
    lines += [f"      interfaces: [{', '.join(_word(port) for port in one.ports)}]"]
    lines += [f"      macaddress: {_word(one.mac)}"] if one.mac else []
    lines += [f"      mtu: {one.mtu}"] if one.mtu else []
    lines += [f"      dhcp4: {_truth(one.dhcp4)}", f"      accept-ra: {_truth(one.accept_ra)}"]
    lines += ["      link-local: [ipv6]"]
    lines += (
        ["      addresses:", *(f"        - {_word(address)}" for address in one.addresses)] if one.addresses else []
    )
    routes = [(to, via) for to, via in (("0.0.0.0/0", one.gateway4), ("::/0", one.gateway6)) if via]
    if routes:
        lines += ["      routes:", *(f"        - {{to: {_word(to)}, via: {_word(via)}}}" for to, via in routes)]
    if one.nameservers:
        lines += [
            "      nameservers:",
            f"        addresses: [{', '.join(_word(server) for server in one.nameservers)}]",
        ]
    lines += [] if one.uplink else ["      optional: true"]
    return [*lines, "      parameters:", "        stp: false", "        forward-delay: 0"]


def _drop_ins(one: HostBridge) -> list[NetworkFile]:
    """Return what says to systemd-networkd that a bridge knows VLANs, beside the files that netplan makes for it."""
    if not one.vlan_aware:
        return []
    base = f"{network_networkd.FOLDER}/10-netplan-"
    device = network_networkd.drop_in(("Bridge", ["VLANFiltering=yes"]))
    made = [NetworkFile(f"{base}{one.name}.netdev.d/{DROP_IN}", device)]
    ports = network_networkd.drop_in(*network_networkd.vlan_sections(one))
    return made + [NetworkFile(f"{base}{port}.network.d/{DROP_IN}", ports) for port in one.ports]


def _truth(value: bool) -> str:
    return "true" if value else "false"


def _word(text: str) -> str:
    return json.dumps(text)  # a scalar of YAML in double quotes: no name or address is taken for a number
