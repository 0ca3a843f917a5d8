# SPDX-License-Identifier: GPL-3.0-or-later
"""Who stands where: the bridges, machines, hub, proxy and resolvers of an egress document."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from typing import Any, Union

from .egress_names import domain
from .errors import InvalidInput
from .fences import Bridge, Guest, Hub, Proxy
from .machines import MAC
from .names import as_bool, as_int, as_text, check_keys, check_name, describe, nearest

# What the kernel takes (15 bytes) and no tool reads as a pattern or an alias.
INTERFACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}")
PROXIES = ("none", "squid", "mitmproxy")
_TAKEN = (53, 67, 547)
_NETWORK_KEYS = ("name", "address", "address6", "nat", "dhcp")
_MACHINE_KEYS = ("name", "network", "mac", "address", "address6", "port", "project")

Address = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]
Interface = Union[ipaddress.IPv4Interface, ipaddress.IPv6Interface]


def networks(value: object) -> tuple[Bridge, ...]:
    """Return the bridges of a list. Raises InvalidInput."""
    found = []
    for number, item in enumerate(_list("networks", value)):
        data = _given(f"networks[{number}]", item, _NETWORK_KEYS)
        name = _interface(f"networks[{number}]: name", data.get("name"))
        where = f'network "{name}"'
        address4, address6 = (_own(f"{where}: {key}", data.get(key, ""), key) for key in ("address", "address6"))
        if not address4 and not address6:
            raise InvalidInput(f"{where}: expected address or address6, the bridge's own with its prefix length")
        nat, dhcp = (as_bool(f"{where}: {key}", data.get(key, True)) for key in ("nat", "dhcp"))
        found.append(Bridge(name, address4, address6, nat, dhcp))
    found.sort(key=lambda bridge: bridge.name)
    _check_apart(found)
    return tuple(found)


def machines(value: object, bridges: Iterable[Bridge]) -> tuple[Guest, ...]:
    """Return the machines of a list as guests of the default scope. Raises InvalidInput."""
    by_name = {bridge.name: bridge for bridge in bridges}
    found = []
    for number, item in enumerate(_list("machines", value)):
        data = _given(f"machines[{number}]", item, _MACHINE_KEYS)
        name = check_name(f"machines[{number}]: machine", data.get("name"))
        where = f'machine "{name}"'
        bridge = by_name.get(as_text(f"{where}: network", data.get("network", "")))
        if bridge is None:
            given = str(data.get("network", ""))
            hint = nearest(given, by_name) or f"; networks: {', '.join(sorted(by_name)) or 'none'}"
            raise InvalidInput(f'{where}: unknown network "{given}"{hint}')
        mac = as_text(f"{where}: mac", data.get("mac", "")).strip().lower().replace("-", ":")
        if not MAC.fullmatch(mac) or int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00":
            raise InvalidInput(
                f'{where}: mac: expected a hardware address such as "52:54:00:12:34:56", found {describe(mac)}'
            )
        port = _interface(f"{where}: port", data["port"]) if data.get("port") else ""
        project = check_name(f"{where}: project", data["project"]) if data.get("project") else ""
        address4 = _inside(where, data.get("address", ""), bridge.address4, bridge.name, 4)
        address6 = _inside(where, data.get("address6", ""), bridge.address6, bridge.name, 6)
        if not bridge.dhcp and not address4 and not address6:
            raise InvalidInput(f'{where}: expected address or address6: network "{bridge.name}" gives out none')
        found.append(Guest(name, bridge.name, mac, address4, address6, port, project))
    return tuple(sorted(found, key=lambda guest: (guest.name, guest.bridge)))


def check_hosts(bridges: Iterable[Bridge], guests: Iterable[Guest], its_hub: Hub) -> None:
    """Raise InvalidInput for machines, addresses, cards and ports that stand twice."""
    seen: dict[tuple[str, str], str] = {}

    def once(kind: str, value: str, owner: str) -> None:
        if value and seen.setdefault((kind, value), owner) != owner:
            raise InvalidInput(f"{kind} {value}: {seen[kind, value]} and {owner} both have it")

    projects: dict[str, Guest] = {}
    for bridge in bridges:
        for own in (bridge.address4, bridge.address6):
            once("address", own.partition("/")[0], f"network {bridge.name}")
    for address in its_hub.addresses:
        once("address", address, "the hub")
    cards: set[tuple[str, str]] = set()
    for guest in guests:
        owner = f'machine "{guest.name}" on {guest.bridge}'
        if (guest.name.lower(), guest.bridge) in cards:
            raise InvalidInput(f'machine "{guest.name}": stands twice on network {guest.bridge}')
        cards.add((guest.name.lower(), guest.bridge))
        for kind, value in (("address", guest.address4), ("address", guest.address6), ("mac", guest.mac)):
            once(kind, value, owner)
        once("port", guest.port, owner)
        other_card = projects.setdefault(guest.name.lower(), guest)
        if (other_card.name, other_card.project) != (guest.name, guest.project):
            raise InvalidInput(
                f'machine "{guest.name}": expected the same name and project on all its networks, found '
                f'"{other_card.name}" of project "{other_card.project}" and "{guest.name}" of "{guest.project}"'
            )


def hub(value: object) -> Hub:
    """Return where the hub is; an empty mapping means that there is none. Raises InvalidInput."""
    data = {key: item for key, item in _given("hub", value, ("name", "addresses", "ports")).items() if item}
    if not data:
        return Hub()
    addresses = {str(address("hub: addresses", item)) for item in _list("hub: addresses", data.get("addresses", ()))}
    ports = {as_int("hub: ports", item, 1, 65535) for item in _list("hub: ports", data.get("ports", ()))}
    if not addresses or not ports:
        raise InvalidInput("hub: expected addresses and ports")
    name = domain("hub: name", data["name"]) if "name" in data else ""
    ordered = sorted(addresses, key=lambda text: (":" in text, ipaddress.ip_address(text).packed))
    return Hub(name, tuple(ordered), tuple(sorted(ports)))


def proxy(value: object) -> Proxy:
    """Return the proxy; kind none means that there is none. Raises InvalidInput."""
    data = _given("proxy", value, ("kind", "port"))
    kind = as_text("proxy: kind", data.get("kind", "none")).strip() or "none"
    if kind not in PROXIES:
        raise InvalidInput(f'proxy: kind: expected one of {", ".join(PROXIES)}, found "{kind}"{nearest(kind, PROXIES)}')
    port = as_int("proxy: port", data.get("port", 3128), 1, 65535)
    if port in _TAKEN:
        raise InvalidInput(f"proxy: port: {port} is the gateway's own for names or addresses")
    return Proxy("" if kind == "none" else kind, port)


def upstream(where: str, value: object) -> str:
    """Return a resolver, ADDRESS or ADDRESS#PORT. Raises InvalidInput."""
    text, sharp, port = as_text(where, value).strip().partition("#")
    return str(address(where, text)) + (f"#{as_int(where, port, 1, 65535)}" if sharp else "")


def check_resolvers(resolvers: Iterable[str], bridges: Iterable[Bridge]) -> None:
    """Raise InvalidInput for a resolver that is this gateway itself, which would ask itself."""
    own = {text.partition("/")[0]: bridge.name for bridge in bridges for text in (bridge.address4, bridge.address6)}
    for text in resolvers:
        found = text.partition("#")[0]
        if found in own:
            raise InvalidInput(f"resolvers: {found} is this gateway's own address on {own[found]}")


def address(where: str, value: object) -> Address:
    """Return an address that one host can have. Raises InvalidInput."""
    text = value.strip() if isinstance(value, str) else ""
    try:
        found = ipaddress.ip_address(text) if "%" not in text else None
    except ValueError:
        found = None
    if found is None or found.is_multicast or found.is_unspecified or getattr(found, "ipv4_mapped", None):
        raise InvalidInput(f"{where}: expected the address of a host, found {describe(value)}")
    return found


def _check_apart(bridges: Iterable[Bridge]) -> None:
    names: set[str] = set()
    wholes: list[tuple[Interface, str]] = []
    for bridge in bridges:
        if bridge.name in names:
            raise InvalidInput(f'network "{bridge.name}": stands twice')
        names.add(bridge.name)
        for found in map(ipaddress.ip_interface, filter(None, (bridge.address4, bridge.address6))):
            for other, name in wholes:
                if other.version == found.version and other.network.overlaps(found.network):
                    raise InvalidInput(
                        f"networks {name} and {bridge.name}: {other.network} and {found.network} overlap"
                    )
            wholes.append((found, bridge.name))


def _own(where: str, value: object, key: str) -> str:
    if value == "":
        return ""
    text = as_text(where, value).strip()
    try:
        found = ipaddress.ip_interface(text) if "/" in text and "%" not in text else None
    except ValueError:
        found = None
    version = 6 if key == "address6" else 4
    if found is None or found.version != version:
        example = "fd00:100::1/64" if version == 6 else "192.168.100.1/24"
        raise InvalidInput(
            f"{where}: expected an IPv{version} address with its prefix length, such as {example}, "
            f"found {describe(value)}"
        )
    if not _usable(found.ip, found):
        raise InvalidInput(f"{where}: expected an address that a host of {found.network} can have, found {found}")
    return str(found)


def _inside(where: str, value: object, own: str, bridge: str, version: int) -> str:
    key = "address6" if version == 6 else "address"
    if value == "":
        return ""
    found = address(f"{where}: {key}", value)
    if found.version != version:
        raise InvalidInput(f"{where}: {key}: expected an IPv{version} address, found {found}")
    if not own:
        raise InvalidInput(f'{where}: {key}: network "{bridge}" has no IPv{version} address, found {found}')
    whole = ipaddress.ip_interface(own)
    if found == whole.ip or not _usable(found, whole):
        raise InvalidInput(f"{where}: {key}: expected a free address in {whole.network}, found {found}")
    return str(found)


def _usable(found: Address, whole: Interface) -> bool:
    """Tell whether a host of the network can have the address: no network, broadcast or anycast address."""
    if found not in whole.network or found.is_multicast or found.is_loopback:
        return False
    if whole.network.prefixlen >= whole.network.max_prefixlen - 1:
        return True
    first, last = whole.network.network_address, whole.network.broadcast_address
    return found != first and (found.version == 6 or found != last)


def _interface(where: str, value: object) -> str:
    if not isinstance(value, str) or not INTERFACE.fullmatch(value) or value in (".", ".."):
        raise InvalidInput(
            f"{where}: expected an interface's name of at most 15 letters, digits, '.', '_' and '-', "
            f"found {describe(value)}"
        )
    return value


def _given(where: str, value: object, known: tuple[str, ...]) -> dict[str, Any]:
    return {key: item for key, item in check_keys(where, value, known).items() if item is not None}


def _list(where: str, value: object) -> list[object]:
    if isinstance(value, (str, Mapping)) or not isinstance(value, (list, tuple)):
        raise InvalidInput(f"{where}: expected a list, found {describe(value)}")
    return list(value)
