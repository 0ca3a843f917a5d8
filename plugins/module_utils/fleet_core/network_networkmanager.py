# SPDX-License-Identifier: GPL-3.0-or-later
"""Bridges for NetworkManager: keyfiles of /etc/NetworkManager/system-connections.

Sources: nm-settings-keyfile(5), nm-settings-nmcli(5). Their older words (slave, master) are used, which all
versions take.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Sequence

from .network_interfaces import MARK, HostBridge, NetworkFile, vlan_words

FOLDER = "/etc/NetworkManager/system-connections"
PREFIX = "autovibe-fleet-"

Section = tuple[str, list[str]]


def files(bridges: Sequence[HostBridge]) -> tuple[NetworkFile, ...]:
    """Return the keyfiles of bridges: of each one the bridge, and one for each port, which is an Ethernet interface."""
    made = []
    for one in bridges:
        ident = connection_id(one.name)
        made.append(NetworkFile(f"{FOLDER}/{ident}.nmconnection", _bridge(one), 0o600))
        for port in one.ports:
            ident = connection_id(one.name, port)
            made.append(NetworkFile(f"{FOLDER}/{ident}.nmconnection", _port(one, port), 0o600))
    return tuple(made)


def connection_id(bridge: str, port: str = "") -> str:
    """Return the name of a connection."""
    return f"{PREFIX}{bridge}-port-{port}" if port else f"{PREFIX}{bridge}"


def connection_uuid(ident: str) -> str:
    """Return the UUID of a connection: the same for the same name (RFC 9562, version 8)."""
    digits = hashlib.sha256(ident.encode()).hexdigest()
    variant = "89ab"[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-8{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:32]}"


def _bridge(one: HostBridge) -> str:
    settings = ["stp=false", "forward-delay=0", f"vlan-filtering={'true' if one.vlan_aware else 'false'}"]
    extra = ["autoconnect-slaves=1"] if one.ports else []
    return _text(
        ("connection", _connection(connection_id(one.name), "bridge", one.name, *extra)),
        ("ethernet", _ethernet(one, one.mac)),
        ("bridge", settings),
        ("ipv4", _ip(one, 4, "auto" if one.dhcp4 else "manual" if one.of_family(4) else "disabled")),
        ("ipv6", _ip(one, 6, "auto" if one.accept_ra else "manual" if one.of_family(6) else "link-local")),
    )


def _port(one: HostBridge, port: str) -> str:
    # Before what NetworkManager would do with the interface by itself.
    master = [f"master={connection_uuid(connection_id(one.name))}", "slave-type=bridge", "autoconnect-priority=100"]
    vlans = ("bridge-port", [f"vlans={', '.join(vlan_words(one))}"] if one.vlan_aware else [])
    return _text(
        ("connection", _connection(connection_id(one.name, port), "ethernet", port, *master)),
        ("ethernet", _ethernet(one)),
        vlans,
    )


def _connection(ident: str, kind: str, interface: str, *extra: str) -> list[str]:
    return [f"id={ident}", f"uuid={connection_uuid(ident)}", f"type={kind}", f"interface-name={interface}", *extra]


def _ethernet(one: HostBridge, mac: str = "") -> list[str]:
    return [*([f"mtu={one.mtu}"] if one.mtu else []), *([f"cloned-mac-address={mac}"] if mac else [])]


def _ip(one: HostBridge, family: int, method: str) -> list[str]:
    lines = [f"method={method}"]
    lines += [f"address{number}={address}" for number, address in enumerate(one.of_family(family), 1)]
    gateway = one.gateway4 if family == 4 else one.gateway6
    lines += [f"gateway={gateway}"] if gateway else []
    servers = [server for server in one.nameservers if ipaddress.ip_address(server).version == family]
    return [*lines, f"dns={';'.join(servers)};"] if servers else lines


def _text(*sections: Section) -> str:
    return f"# {MARK}\n" + "\n".join("\n".join([f"[{name}]", *lines, ""]) for name, lines in sections if lines)
