# SPDX-License-Identifier: GPL-3.0-or-later
"""The bridges of a host, as they are wanted: parsed, checked, and the same for every network stack."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import InvalidInput
from .names import as_bool, as_int, check_keys, describe, nearest

MARK = "Written by autovibe.fleet.network; changes are lost."
SMALLEST_MTU, LARGEST_MTU = 1280, 65535  # RFC 8200, section 5
LAST_VLAN = 4094  # IEEE 802.1Q; 0 and 4095 are reserved
ALL_VLANS = ((2, LAST_VLAN),)  # 1 is the one without a tag

Vlans = tuple[tuple[int, int], ...]

_INTERFACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,14}")  # IFNAMSIZ, without what stacks and sysctl stumble on
_BRIDGE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,14}")
_TAKEN = ("all", "default", "lo")  # the kernel's own, in /proc/sys/net/*/conf
_MAC = re.compile(r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}")
_KEYS = (
    *("name", "ports", "addresses", "gateway4", "gateway6", "dhcp4", "accept_ra", "nameservers"),
    *("vlan_aware", "vlans", "mtu", "mac", "comment"),
)


@dataclass(frozen=True)
class HostBridge:
    """A bridge of a host, without spanning tree and without a delay, as hosts of machines have them.

    addresses: of both families, with prefix length; none for a bridge that the host only carries. ports: interfaces of
    the host that it takes. dhcp4, accept_ra: whether it asks its network for addresses; not where guests hang on it.
    vlans: those that its ports carry with a tag. mtu: 0 for the stack's own; mac: empty for the kernel's choice.
    """

    name: str
    ports: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    gateway4: str = ""
    gateway6: str = ""
    dhcp4: bool = False
    accept_ra: bool = False
    nameservers: tuple[str, ...] = ()
    vlan_aware: bool = False
    vlans: Vlans = ALL_VLANS
    mtu: int = 0
    mac: str = ""
    comment: str = ""

    def of_family(self, family: int) -> tuple[str, ...]:
        """Return its addresses of a family, 4 or 6."""
        return tuple(one for one in self.addresses if ipaddress.ip_interface(one).version == family)

    @property
    def uplink(self) -> bool:
        """Whether the host reaches others through it, beyond its own network."""
        return bool(self.gateway4 or self.gateway6 or self.dhcp4 or self.accept_ra)


@dataclass(frozen=True)
class NetworkFile:
    """A file of a network stack. mode: 0600 where the stack refuses more."""

    path: str
    text: str
    mode: int = 0o644


def bridges(data: object) -> tuple[HostBridge, ...]:
    """Return the bridges of a list. Raises InvalidInput that names the bridge, what was expected and what was found."""
    if not isinstance(data, Sequence) or isinstance(data, (str, bytes)):
        raise InvalidInput(f"bridges: expected a list, found {describe(data)}")
    found = tuple(bridge(item) for item in data)
    _check_together(found)
    return found


def bridge(data: object) -> HostBridge:
    """Return one bridge; keys without a value are as if they were not there."""
    given = {key: value for key, value in check_keys("bridge", data, _KEYS).items() if value is not None}
    name = _bridge_name(given.get("name"))
    where = f"bridge {name}"
    listed = tuple(_address(f"{where}: addresses", item) for item in _list(where, given, "addresses"))
    made = HostBridge(
        name=name,
        ports=tuple(interface_name(f"{where}: ports", item) for item in _list(where, given, "ports")),
        addresses=tuple(sorted(listed, key=lambda one: ipaddress.ip_interface(one).version)),
        gateway4=_gateway(where, given, 4),
        gateway6=_gateway(where, given, 6),
        dhcp4=as_bool(f"{where}: dhcp4", given.get("dhcp4", False)),
        accept_ra=as_bool(f"{where}: accept_ra", given.get("accept_ra", False)),
        nameservers=tuple(_host(f"{where}: nameservers", item) for item in _list(where, given, "nameservers")),
        vlan_aware=as_bool(f"{where}: vlan_aware", given.get("vlan_aware", False)),
        vlans=_vlans(where, _list(where, given, "vlans")),
        mtu=as_int(f"{where}: mtu", given["mtu"], SMALLEST_MTU, LARGEST_MTU) if given.get("mtu") else 0,
        mac=_mac(where, given.get("mac", "")),
        comment=_comment(where, given.get("comment", "")),
    )
    _check_alone(where, made, bool(given.get("vlans")))
    return made


def interface_name(where: str, value: object) -> str:
    """Return the name of an interface of a host."""
    if not isinstance(value, str) or not _INTERFACE.fullmatch(value) or value in _TAKEN:
        raise InvalidInput(
            f"{where}: expected an interface, at most 15 letters, digits, '.', '_' or '-', found {describe(value)}"
        )
    return value


def to_dict(one: HostBridge) -> dict[str, Any]:
    """Return a bridge as data that bridge() takes, without what is as by default."""
    plain = HostBridge(name=one.name)
    result: dict[str, Any] = {"name": one.name}
    for key in _KEYS[1:]:
        value = getattr(one, key)
        if value != getattr(plain, key):
            result[key] = list(value) if isinstance(value, tuple) else value
    if "vlans" in result:
        result["vlans"] = vlan_words(one)
    return result


def vlan_words(one: HostBridge) -> list[str]:
    """Return the VLANs of a bridge as people write them: 5, 100-200."""
    return [str(low) if low == high else f"{low}-{high}" for low, high in one.vlans]


def _bridge_name(value: object) -> str:
    if not isinstance(value, str) or not _BRIDGE.fullmatch(value) or value in _TAKEN:
        raise InvalidInput(
            f"bridge name: expected a letter, then at most 14 letters, digits, '_' or '-', found {describe(value)}"
        )
    return value


def _list(where: str, given: Mapping[str, Any], key: str) -> list[Any]:
    value = given.get(key, [])
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise InvalidInput(f"{where}: {key}: expected a list, found {describe(value)}")
    twice = [item for number, item in enumerate(value) if item in value[:number]]
    if twice:
        raise InvalidInput(f"{where}: {key}: {twice[0]} stands there twice")
    return list(value)


def _address(where: str, value: object) -> str:
    """Return an address of an interface in its usual form. Raises InvalidInput for what no interface may have."""
    expected = "expected an address with its prefix length, such as 192.168.100.1/24 or fd00:100::1/64"
    try:
        if not isinstance(value, str) or "/" not in value:
            raise ValueError
        made = ipaddress.ip_interface(value)
    except ValueError:
        raise InvalidInput(f"{where}: {expected}, found {describe(value)}") from None
    if made.ip.is_multicast or made.ip.is_loopback or made.ip.is_unspecified:
        raise InvalidInput(f"{where}: expected an address that a host may have, found {value}")
    network = made.network
    few = network.prefixlen >= network.max_prefixlen - 1  # RFC 3021, RFC 6164: both ends are hosts
    if not few and made.ip == network.network_address:
        raise InvalidInput(f"{where}: expected the address of a host, found {value}, which is the network itself")
    if not few and made.version == 4 and made.ip == network.broadcast_address:
        raise InvalidInput(f"{where}: expected the address of a host, found {value}, which is for broadcasts")
    return f"{made.ip.compressed}/{network.prefixlen}"


def _host(where: str, value: object) -> str:
    try:
        return ipaddress.ip_address(value if isinstance(value, str) else "").compressed
    except ValueError:
        raise InvalidInput(f"{where}: expected an address without a prefix length, found {describe(value)}") from None


def _gateway(where: str, given: Mapping[str, Any], family: int) -> str:
    value = given.get(f"gateway{family}", "")
    if value == "":
        return ""
    address = _host(f"{where}: gateway{family}", value)
    if ipaddress.ip_address(address).version != family:
        raise InvalidInput(f"{where}: gateway{family}: expected an address of IPv{family}, found {address}")
    return address


def _vlans(where: str, words: Sequence[Any]) -> Vlans:
    found = []
    for word in words:
        low, dash, high = str(word).partition("-")
        if isinstance(word, bool) or not low.isdecimal() or (dash and not high.isdecimal()):
            raise InvalidInput(
                f"{where}: vlans: expected numbers and ranges such as 5 or 100-200, found {describe(word)}"
            )
        first, last = int(low), int(high or low)
        if not 1 <= first <= last <= LAST_VLAN:
            raise InvalidInput(
                f"{where}: vlans: expected numbers from 1 to {LAST_VLAN}, the lower one first, found {word}"
            )
        found.append((first, last))
    found.sort()
    for (_low, end), (start, _high) in zip(found, found[1:]):
        if start <= end:
            raise InvalidInput(f"{where}: vlans: {start} stands there twice")
    return tuple(found) or ALL_VLANS


def _mac(where: str, value: object) -> str:
    if value == "":
        return ""
    if not isinstance(value, str) or not _MAC.fullmatch(value.lower()):
        raise InvalidInput(
            f"{where}: mac: expected a unicast address such as 52:54:00:12:34:56, found {describe(value)}"
        )
    return value.lower()


def _comment(where: str, value: object) -> str:
    if not isinstance(value, str) or not value.isprintable() or len(value) > 200:
        raise InvalidInput(f"{where}: comment: expected one line of at most 200 characters, found {describe(value)}")
    return value.strip()


def _check_alone(where: str, made: HostBridge, vlans_given: bool) -> None:
    if made.name in made.ports:
        raise InvalidInput(f"{where}: ports: expected other interfaces, found the bridge itself")
    if vlans_given and not made.vlan_aware:
        raise InvalidInput(f"{where}: vlans: expected vlan_aware true with it, found false")
    if made.dhcp4 and made.gateway4:
        raise InvalidInput(
            f"{where}: gateway4: expected none beside dhcp4, which brings its own, found {made.gateway4}"
        )
    for family, gateway in ((4, made.gateway4), (6, made.gateway6)):
        if not gateway:
            continue
        address = ipaddress.ip_address(gateway)
        own = [ipaddress.ip_interface(one) for one in made.of_family(family)]
        if any(address == one.ip for one in own):
            raise InvalidInput(
                f"{where}: gateway{family}: expected the address of another host, found its own, {gateway}"
            )
        if not any(address in one.network for one in own) and not address.is_link_local:
            raise InvalidInput(f"{where}: gateway{family}: expected one in a network of its addresses, found {gateway}")


def _check_together(found: Sequence[HostBridge]) -> None:
    names = [one.name for one in found]
    takers: dict[str, str] = {}
    for number, one in enumerate(found):
        if one.name in names[:number]:
            raise InvalidInput(f"bridge {one.name}: stands there twice")
        for port in one.ports:
            if port in takers:
                raise InvalidInput(f"bridge {one.name}: ports: {port} is a port of {takers[port]} already")
            if port in names:
                raise InvalidInput(
                    f"bridge {one.name}: ports: {port} is a bridge; no bridge can be the port of another"
                )
            takers[port] = one.name
    for family in (4, 6):
        gates = [one.name for one in found if getattr(one, f"gateway{family}") or (family == 4 and one.dhcp4)]
        if len(gates) > 1:
            raise InvalidInput(
                f"bridge {gates[1]}: gateway{family}: {gates[0]} has one already; a host has one default route"
            )
    _check_networks(found)


def _check_networks(found: Sequence[HostBridge]) -> None:
    seen: list[tuple[str, Any]] = []
    for one in found:
        for text in one.addresses:
            network = ipaddress.ip_interface(text).network
            for name, other in seen:
                if (
                    name != one.name
                    and network.version == other.version
                    and network.overlaps(other)
                    and not network.is_link_local
                ):
                    raise InvalidInput(f"bridge {one.name}: addresses: {network} overlaps {other} of {name}")
            seen.append((one.name, network))


def check_stack(name: str, known: Sequence[str]) -> str:
    """Return the name of a network stack. Raises InvalidInput with the nearest one."""
    if name not in known:
        raise InvalidInput(f'stack "{name}": expected {", ".join(known[:-1])} or {known[-1]}{nearest(name, known)}')
    return name
