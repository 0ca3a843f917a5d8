# SPDX-License-Identifier: GPL-3.0-or-later
"""What the parts of the ruleset share: the names of chains and counters, keys of sets, and addresses of a fence."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Iterable

from .errors import InvalidInput
from .fences import METADATA4, METADATA6, Bridge, Fence, Guest, Scope
from .names import describe

TABLE = "fleet_egress"
BY_NAME = "fleet_egress_bridges"  # what needs a kernel that knows bridges by their names
NOBODY = "-"  # the scope of what comes from no guest that is known
NETWORK_HEADERS = {4: "ip", 6: "ip6"}
ADDRESS_TYPES = {4: "ipv4_addr", 6: "ipv6_addr"}
NETWORK_TYPES = {4: "ip", 6: "ip6"}

_INTERFACE = re.compile(r"[A-Za-z0-9_.:@-]{1,15}")  # no "*": nft reads it as anything
_SCOPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


def check(fence: Fence) -> None:
    """Raise InvalidInput for words that nft would read as something else than they are meant for."""
    for bridge in fence.bridges:
        interface("bridge", bridge.name)
    for guest in fence.guests:
        where = f'guest "{guest.name}"'
        interface(f"{where}: bridge", guest.bridge)
        if guest.port:
            interface(f"{where}: port", guest.port)
        if not _MAC.fullmatch(guest.mac):
            raise InvalidInput(f"{where}: mac: expected six bytes as 52:54:00:12:34:56, found {describe(guest.mac)}")
    for scope in fence.scopes:
        if not _SCOPE.fullmatch(scope.name):
            raise InvalidInput(f"scope {describe(scope.name)}: expected letters, digits, '.', '_' and '-'")


def interface(what: str, name: str) -> str:
    """Return the name of an interface as a rule writes it."""
    if not _INTERFACE.fullmatch(name):
        raise InvalidInput(
            f"{what}: expected an interface's name of at most 15 letters, digits, '_', '.', ':', '@' and '-', "
            f"found {describe(name)}"
        )
    return f'"{name}"'


def interfaces(names: Iterable[str]) -> list[str]:
    return [interface("interface", name) for name in dict.fromkeys(names)]


def chain(kind: str, scope: Scope) -> str:
    return f"{kind}-{scope.name}"


def counter(scope: str, verdict: str) -> str:
    """Return the name of the counter of a scope. verdict: "allowed" or "denied"."""
    return f"fleet_c_{hashlib.sha256(scope.encode()).hexdigest()[:8]}_{verdict}"


def key(*parts: str) -> str:
    """Return what a rule looks up, or an element, of several parts."""
    return " . ".join(parts)


def address(guest: Guest, family: int) -> str:
    """Return a guest's address in a family, in its canonical form; empty for none."""
    text = guest.address4 if family == 4 else guest.address6
    return str(ipaddress.ip_address(text)) if text else ""


def own_address(bridge: Bridge, family: int) -> str:
    """Return the address that is this host's on a bridge, without prefix length; empty for none."""
    text = bridge.address4 if family == 4 else bridge.address6
    return str(ipaddress.ip_interface(text).ip) if text else ""


def link_local(mac: str) -> str:
    """Return the address that a card gives itself from its MAC (RFC 4291, appendix A)."""
    octets = [int(part, 16) for part in mac.split(":")]
    octets[0] ^= 2
    tail = bytes([*octets[:3], 0xFF, 0xFE, *octets[3:]])
    return str(ipaddress.IPv6Address(bytes.fromhex("fe80" + "00" * 6) + tail))


def inside(fence: Fence, family: int) -> list[str]:
    """Return the networks that guests live in."""
    found = [bridge.address4 if family == 4 else bridge.address6 for bridge in fence.bridges]
    return collapsed(str(ipaddress.ip_interface(text).network) for text in found if text)


def special(fence: Fence, family: int) -> list[str]:
    """Return what only a network that stands in a grant opens: special networks, metadata, neighbours."""
    own = fence.special4 + METADATA4 if family == 4 else fence.special6 + METADATA6
    return collapsed([*own, *inside(fence, family)])


def of_family(addresses: Iterable[str], family: int) -> list[str]:
    """Return the addresses, or networks, of one family in their canonical form."""
    found = [ipaddress.ip_network(text) for text in addresses]
    return [str(net) if net.num_addresses > 1 else str(net.network_address) for net in found if net.version == family]


def collapsed(networks: Iterable[str]) -> list[str]:
    """Return networks of one family without those that lie in others: sets of intervals take no overlaps."""
    nets = [ipaddress.ip_network(text) for text in networks]
    return [str(net) for net in ipaddress.collapse_addresses(nets)]  # type: ignore[type-var]


def port_words(ports: Iterable[tuple[int, int]]) -> list[str]:
    """Return ports as nft writes them."""
    return [str(low) if low == high else f"{low}-{high}" for low, high in ports]
