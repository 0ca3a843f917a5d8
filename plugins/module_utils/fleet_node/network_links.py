# SPDX-License-Identifier: GPL-3.0-or-later
"""The interfaces of a host as they run: read by ip(8), compared with what is wanted, and set right."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fleet_core.network_interfaces import HostBridge
    from fleet_core.network_sysctls import BRIDGE_KEYS, MODULE
else:
    try:
        from ..fleet_core.network_interfaces import HostBridge
        from ..fleet_core.network_sysctls import BRIDGE_KEYS, MODULE
    except ImportError:  # installed as a top-level package
        from fleet_core.network_interfaces import HostBridge
        from fleet_core.network_sysctls import BRIDGE_KEYS, MODULE

from .egress_commands import attempt, run

SYSCTLS = Path("/proc/sys")


@dataclass(frozen=True)
class Link:
    """An interface. bridge: what the kernel tells of it if it is one. addresses: as `ip -j address` has them."""

    name: str
    up: bool
    mtu: int
    master: str
    bridge: Mapping[str, Any] | None
    addresses: tuple[Mapping[str, Any], ...]

    @property
    def vlan_filtering(self) -> bool | None:
        return bool(self.bridge.get("vlan_filtering")) if self.bridge is not None else None

    def cidrs(self, all_scopes: bool = False) -> tuple[str, ...]:
        """Return its addresses with prefix length, without those that only its own network sees."""
        return tuple(_cidr(item) for item in self.addresses if all_scopes or item.get("scope") == "global")


def links() -> dict[str, Link]:
    """Return all interfaces by name."""
    found = {}
    for item in _json("ip", "-d", "-j", "address", "show"):
        if not item.get("ifname"):
            continue
        info = item.get("linkinfo") or {}
        found[item["ifname"]] = Link(
            name=item["ifname"],
            up="UP" in item.get("flags", ()),
            mtu=int(item.get("mtu", 0)),
            master=item.get("master", ""),
            bridge=(info.get("info_data") or {}) if info.get("info_kind") == "bridge" else None,
            addresses=tuple(one for one in item.get("addr_info", ()) if one.get("local")),
        )
    return found


def routes(family: int) -> list[Mapping[str, Any]]:
    """Return the routes of the main table that the kernel did not make by itself."""
    found = _json("ip", f"-{family}", "-d", "-j", "route", "show", "table", "main")
    return [item for item in found if item.get("protocol") != "kernel" and item.get("dev")]


def route_words(item: Mapping[str, Any]) -> str:
    """Return a route in the words of ip-route(8), which find it and make it."""
    words = [str(item["dst"])]
    for key, word in (("gateway", "via"), ("dev", "dev"), ("metric", "metric"), ("prefsrc", "src")):
        words += [word, str(item[key])] if item.get(key) else []
    return " ".join([*words, *(["onlink"] if "onlink" in item.get("flags", ()) else [])])


def address_words(item: Mapping[str, Any]) -> str:
    """Return an address in the words of ip-address(8), which give it back: without its end, and at once usable."""
    words = [_cidr(item)]
    words += ["brd", str(item["broadcast"])] if item.get("broadcast") else []
    words += ["scope", "link"] if item.get("scope") == "link" else []
    words += ["noprefixroute"] if item.get("noprefixroute") else []
    return " ".join([*words, *(["nodad"] if item.get("family") == "inet6" else [])])


def listeners() -> tuple[str, ...]:
    """Return the interfaces that have their default route from a router's advertisements."""
    found = _json("ip", "-6", "-d", "-j", "route", "show", "default")
    return tuple(sorted({str(item["dev"]) for item in found if item.get("protocol") == "ra" and item.get("dev")}))


def knows_vlans() -> bool:
    """Return whether the kernel has bridges that know VLANs: tried in a network namespace that ends with the trial."""
    if Path("/proc/net/vlan").exists():
        return True
    trial = ["unshare", "--net", "ip", "link", "add", "trial", "type", "bridge", "vlan_filtering", "1"]
    return attempt(trial).returncode == 0


def problems(wanted: Iterable[HostBridge], found: Mapping[str, Link]) -> list[str]:
    """Return what running bridges lack, a sentence each, none if they are as wanted."""
    wrong = []
    for one in wanted:
        link = found.get(one.name)
        if link is None or link.bridge is None:
            wrong.append(f"bridge {one.name} is not there")
            continue
        wrong += [] if link.up else [f"bridge {one.name} is down"]
        lacking = [address for address in one.addresses if address not in link.cidrs(all_scopes=True)]
        wrong += [f"bridge {one.name} lacks {address}" for address in lacking]
        wrong += [f"bridge {one.name} {text}" for text in _settings(one, link)]
        for port in one.ports:
            if found.get(port) is None or found[port].master != one.name:
                wrong.append(f"bridge {one.name} lacks the port {port}")
            elif not found[port].up:
                wrong.append(f"port {port} of bridge {one.name} is down")
    return wrong


def settle(wanted: Iterable[HostBridge], found: Mapping[str, Link]) -> None:
    """Set what stacks do not change on a bridge that runs, or set some seconds after it came up.

    Addresses stay theirs. What fails here is found by problems() afterwards.
    """
    for one in wanted:
        link = found.get(one.name)
        if link is None or link.bridge is None:
            continue
        if _settings(one, link):
            vlans = ["vlan_filtering", str(int(one.vlan_aware))] if one.vlan_aware != link.vlan_filtering else []
            attempt(["ip", "link", "set", one.name, "type", "bridge", "stp_state", "0", "forward_delay", "0", *vlans])
            if one.mtu:
                for port in one.ports:
                    attempt(["ip", "link", "set", port, "mtu", str(one.mtu)])
                attempt(["ip", "link", "set", one.name, "mtu", str(one.mtu)])
        for port in one.ports:
            if port in found and found[port].master == one.name and not found[port].up:
                attempt(["ip", "link", "set", port, "up"])


def let_go(gone: Sequence[HostBridge], kept: Sequence[HostBridge], found: Mapping[str, Link]) -> None:
    """Delete bridges that are no longer wanted, and release ports that are none any more."""
    names = {one.name: one for one in kept}
    for one in gone:
        link = found.get(one.name)
        if link is None or link.bridge is None:
            continue
        if one.name not in names:
            attempt(["ip", "link", "delete", one.name])
            continue
        for port in set(one.ports) - set(names[one.name].ports):
            if port in found and found[port].master == one.name:
                attempt(["ip", "link", "set", port, "nomaster"])


def strangers(one: HostBridge, found: Mapping[str, Link]) -> list[str]:
    """Return the ports of a running bridge that were not named: mostly those of machines."""
    return sorted(link.name for link in found.values() if link.master == one.name and link.name not in one.ports)


def read_sysctls(keys: Iterable[str]) -> dict[str, str]:
    """Return the values of those keys that are there."""
    found = {}
    for key in keys:
        try:
            found[key] = (SYSCTLS / key).read_text(encoding="utf-8").strip()
        except OSError:
            continue
    return found


def set_sysctls(values: Mapping[str, str]) -> list[str]:
    """Set values, and return what could not be set, a sentence each. Keys that are not there are passed over."""
    if any(key in values for key in BRIDGE_KEYS) and not (SYSCTLS / BRIDGE_KEYS[0]).exists():
        attempt(["sh", "-c", f"modprobe {MODULE} 2>/dev/null || true"])
    wrong = []
    for key, value in values.items():
        path = SYSCTLS / key
        try:
            if path.exists() and path.read_text(encoding="utf-8").strip() != value:
                path.write_text(value, encoding="utf-8")
        except OSError as error:
            wrong.append(f"{key} cannot be set to {value}: {error.strerror}")
    return wrong


def _settings(one: HostBridge, link: Link) -> list[str]:
    """Return what is wrong with the settings of a bridge."""
    data = link.bridge or {}
    wrong = ["runs the spanning tree protocol"] if data.get("stp_state") else []
    wrong += ["delays its ports"] if data.get("forward_delay") else []
    if bool(data.get("vlan_filtering")) != one.vlan_aware:
        wrong.append("knows no VLANs" if one.vlan_aware else "knows VLANs")
    return [*wrong, *([f"has an MTU of {link.mtu}"] if one.mtu and one.mtu != link.mtu else [])]


def _cidr(item: Mapping[str, Any]) -> str:
    return f"{item['local']}/{item.get('prefixlen', 0)}"


def _json(*command: str) -> list[Any]:
    return list(json.loads(run(command) or "[]") or [])
