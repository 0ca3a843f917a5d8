# SPDX-License-Identifier: GPL-3.0-or-later
"""What the kernel of a host with bridges must be told, on purpose: who forwards, who listens to routers, who filters.

Keys have slashes, so that the dots of an interface stay dots (sysctl.d(5)).
Source: Documentation/networking/ip-sysctl.rst of the kernel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .network_interfaces import MARK, HostBridge, NetworkFile

SYSCTL_FILE = "/etc/sysctl.d/90-autovibe-fleet-network.conf"
MODULES_FILE = "/etc/modules-load.d/autovibe-fleet-network.conf"
MODULE = "br_netfilter"
BRIDGE_KEYS = tuple(f"net/bridge/bridge-nf-call-{family}tables" for family in ("ip", "ip6", "arp"))
BR_NETFILTER = ("disabled", "enabled", "unmanaged")
STRICT, LOOSE = "1", "2"  # of rp_filter, RFC 3704


@dataclass(frozen=True)
class Forwarding:
    """What a host does with the packets of others.

    ipv4, ipv6: whether it forwards them, None to leave that as it is. br_netfilter: whether packets that only pass a
    bridge go through iptables: "disabled" (the usual wish), "enabled", or "unmanaged". listeners: interfaces that got
    their default route from a router; a host that forwards stops listening to routers unless it is told not to.
    """

    ipv4: bool | None = None
    ipv6: bool | None = None
    br_netfilter: str = "unmanaged"
    listeners: tuple[str, ...] = ()


def settings(bridges: Sequence[HostBridge], forwarding: Forwarding) -> dict[str, str]:
    """Return what stands in /proc/sys, by path, in the order in which it is set."""
    found = {}
    for name in forwarding.listeners if forwarding.ipv6 else ():
        found[f"net/ipv6/conf/{name}/accept_ra"] = "2"
    for key, value in (("net/ipv4/ip_forward", forwarding.ipv4), ("net/ipv6/conf/all/forwarding", forwarding.ipv6)):
        if value is not None:
            found[key] = str(int(value))
    if forwarding.br_netfilter != "unmanaged":
        found.update(dict.fromkeys(BRIDGE_KEYS, str(int(forwarding.br_netfilter == "enabled"))))
    for one in bridges:
        found.update(_of_bridge(one))
    return found


def files(bridges: Sequence[HostBridge], forwarding: Forwarding) -> tuple[NetworkFile, ...]:
    """Return the files that set it at boot, none if there is nothing to set."""
    values = settings(bridges, forwarding)
    if not values:
        return ()
    # A switch of a module that is not there is no error.
    lines = [f"{'-' if key in BRIDGE_KEYS else ''}{key} = {value}" for key, value in values.items()]
    made = [NetworkFile(SYSCTL_FILE, "\n".join([f"# {MARK}", *lines]) + "\n")]
    if forwarding.br_netfilter != "unmanaged":
        # Loaded later, by another program, it would come with its own idea of the switches.
        made.append(NetworkFile(MODULES_FILE, f"# {MARK}\n{MODULE}\n"))
    return tuple(made)


def differences(wanted: Mapping[str, str], found: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Return what is not as wanted: by key, what is and what should be. Keys that are not there are passed over."""
    return {key: (found[key], value) for key, value in wanted.items() if key in found and found[key] != value}


def _of_bridge(one: HostBridge) -> dict[str, str]:
    ipv4, ipv6 = f"net/ipv4/conf/{one.name}", f"net/ipv6/conf/{one.name}"
    return {
        f"{ipv4}/rp_filter": LOOSE if one.uplink else STRICT,
        f"{ipv4}/accept_redirects": "0",
        f"{ipv4}/send_redirects": "0",
        f"{ipv4}/accept_source_route": "0",
        f"{ipv6}/accept_ra": "2" if one.accept_ra else "0",
        f"{ipv6}/accept_redirects": "0",
    }
