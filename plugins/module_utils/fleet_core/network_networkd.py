# SPDX-License-Identifier: GPL-3.0-or-later
"""Bridges for systemd-networkd: files of /etc/systemd/network.

Sources: systemd.netdev(5), systemd.network(5).
"""

from __future__ import annotations

from collections.abc import Sequence

from .network_interfaces import MARK, HostBridge, NetworkFile, vlan_words

FOLDER = "/etc/systemd/network"
# The first file that matches an interface is the only one: ours come before those of installers and cloud-init.
PREFIX = "05-autovibe-fleet-"


def files(bridges: Sequence[HostBridge]) -> tuple[NetworkFile, ...]:
    """Return the files of bridges: of each one the device, its network, and one file for each port."""
    made = []
    for one in bridges:
        base = f"{FOLDER}/{PREFIX}{one.name}"
        made += [NetworkFile(f"{base}.netdev", _device(one)), NetworkFile(f"{base}.network", _network(one))]
        made += [NetworkFile(f"{base}-port-{port}.network", _port(one, port)) for port in one.ports]
    return tuple(made)


def _device(one: HostBridge) -> str:
    device = [f"Description={one.comment}"] if one.comment else []
    device += [f"Name={one.name}", "Kind=bridge"]
    device += [f"MTUBytes={one.mtu}"] if one.mtu else []
    device += [f"MACAddress={one.mac}"] if one.mac else []
    return _text(("NetDev", device), ("Bridge", bridge_settings(one)))


def bridge_settings(one: HostBridge) -> list[str]:
    """Return the lines of the section Bridge of a device."""
    return ["STP=no", "ForwardDelaySec=0", f"VLANFiltering={'yes' if one.vlan_aware else 'no'}"]


def vlan_sections(one: HostBridge) -> tuple[tuple[str, list[str]], ...]:
    """Return the sections by which the ports of a bridge that knows VLANs carry them."""
    return (("BridgeVLAN", [f"VLAN={word}" for word in vlan_words(one)]),) if one.vlan_aware else ()


def _network(one: HostBridge) -> str:
    # A bridge without a port has no carrier; it must have its addresses nevertheless, and must not hold up the boot.
    link = [f"MTUBytes={one.mtu}"] if one.mtu else []
    link += [] if one.uplink else ["RequiredForOnline=no"]
    network = [
        "LinkLocalAddressing=ipv6",
        f"IPv6AcceptRA={'yes' if one.accept_ra else 'no'}",
        "ConfigureWithoutCarrier=yes",
    ]
    network += ["DHCP=ipv4"] if one.dhcp4 else []
    network += [f"Address={address}" for address in one.addresses]
    network += [f"Gateway={gateway}" for gateway in (one.gateway4, one.gateway6) if gateway]
    network += [f"DNS={server}" for server in one.nameservers]
    return _text(("Match", [f"Name={one.name}"]), *((("Link", link),) if link else ()), ("Network", network))


def _port(one: HostBridge, port: str) -> str:
    network = [f"Bridge={one.name}", "LinkLocalAddressing=no", "IPv6AcceptRA=no"]
    link = [("Link", [f"MTUBytes={one.mtu}"])] if one.mtu else []
    return _text(("Match", [f"Name={port}"]), *link, ("Network", network), *vlan_sections(one))


def _text(*sections: tuple[str, list[str]]) -> str:
    return f"# {MARK}\n" + "\n".join("\n".join([f"[{name}]", *lines, ""]) for name, lines in sections)


def drop_in(*sections: tuple[str, list[str]]) -> str:
    """Return the text of a drop-in, for what another program writes the files."""
    return _text(*sections)
