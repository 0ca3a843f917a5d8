# SPDX-License-Identifier: GPL-3.0-or-later
"""Bridges for ifupdown2, which Proxmox VE uses: one file of /etc/network/interfaces.d.

Sources: interfaces(5) and ifupdown-addons-interfaces(5) of ifupdown2.
"""

from __future__ import annotations

from collections.abc import Sequence

from .network_interfaces import MARK, HostBridge, NetworkFile, vlan_words

# No dot: source-directory takes no other names.
FILE = "/etc/network/interfaces.d/autovibe-fleet"


def files(bridges: Sequence[HostBridge], defined: Sequence[str] = ()) -> tuple[NetworkFile, ...]:
    """Return the files of bridges, none for no bridge. defined: ports that other files say something about."""
    if not bridges:
        return ()
    stanzas = [f"# {MARK}"]
    for one in bridges:
        stanzas += [f"iface {port} inet manual" for port in one.ports if port not in defined]
        stanzas.append(_stanza(one))
    return (NetworkFile(FILE, "\n\n".join(stanzas) + "\n"),)


def _stanza(one: HostBridge) -> str:
    method = "dhcp" if one.dhcp4 else "static" if one.of_family(4) else "manual"
    lines = [f"auto {one.name}", f"iface {one.name} inet {method}"]
    lines += [f"    # {one.comment}"] if one.comment else []
    lines += [f"    address {address}" for address in one.of_family(4)]
    lines += [f"    gateway {one.gateway4}"] if one.gateway4 else []
    lines += [f"    dns-nameservers {' '.join(one.nameservers)}"] if one.nameservers else []
    # Interfaces of machines come and go by themselves; without this a reload would take them off.
    lines += [f"    bridge-ports {' '.join(one.ports) or 'none'}", "    bridge-ports-condone-regex .*"]
    lines += ["    bridge-stp off", "    bridge-fd 0"]
    if one.vlan_aware:
        lines += ["    bridge-vlan-aware yes", f"    bridge-vids {' '.join(vlan_words(one))}"]
    lines += [f"    mtu {one.mtu}"] if one.mtu else []
    lines += [f"    hwaddress {one.mac}"] if one.mac else []
    if one.of_family(6):
        lines += ["", f"iface {one.name} inet6 static"]
        lines += [f"    address {address}" for address in one.of_family(6)]
        lines += [f"    gateway {one.gateway6}"] if one.gateway6 else []
    return "\n".join(lines)
