# SPDX-License-Identifier: GPL-3.0-or-later
"""Addresses for machines that declare none: the same ones every time, whoever comes and goes."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from .egress import Declaration
from .errors import Exhausted
from .fences import Bridge, Guest

Known = Mapping[str, Sequence[str]]

# In an IPv6 network hosts get one of so many addresses behind its beginning; nobody has more machines.
_WIDEST = 2**32


def allocate(declaration: Declaration, known: Known | None = None) -> Declaration:
    """Return the declaration with an address of each family that a bridge has for every machine.

    known: hardware address to the addresses that were given out before (see `given_out`). They are kept while they fit;
    those of cards that are gone are the last to be given out again. A bridge without DHCP gives out nothing.
    Raises Exhausted when a network is full.
    """
    known = known or {}
    bridges = {bridge.name: bridge for bridge in declaration.networks}
    taken = {text for guest in declaration.machines for text in (guest.address4, guest.address6) if text}
    taken |= {str(ipaddress.ip_interface(own).ip) for bridge in bridges.values() for own in _own(bridge) if own}
    taken |= set(declaration.hub.addresses) | {text.partition("#")[0] for text in declaration.resolvers}
    kept: dict[str, dict[int, str]] = {}
    for guest in declaration.machines:  # first those that had one, so that nobody new takes it
        for family, own in _wanted(guest, bridges[guest.bridge]):
            before = _known(known.get(guest.mac, ()), own, family)
            if before and before not in taken:
                taken.add(before)
                kept.setdefault(guest.mac, {})[family] = before
    present = {guest.mac for guest in declaration.machines}
    gone = {text for mac, texts in known.items() if mac not in present for text in texts}
    found = []
    for guest in declaration.machines:
        for family, own in _wanted(guest, bridges[guest.bridge]):
            text = kept.get(guest.mac, {}).get(family) or _free(guest, own, taken, gone)
            taken.add(text)
            guest = replace(guest, address4=text) if family == 4 else replace(guest, address6=text)
        found.append(guest)
    return declaration.evolve(machines=tuple(found))


def given_out(declaration: Declaration, known: Known | None = None) -> dict[str, list[str]]:
    """Return what to remember for `allocate`, ready for JSON: the addresses of all cards, those that are gone too."""
    now = {guest.mac: [text for text in (guest.address4, guest.address6) if text] for guest in declaration.machines}
    return dict(sorted({**{mac: list(texts) for mac, texts in (known or {}).items()}, **now}.items()))


def _own(bridge: Bridge) -> tuple[str, str]:
    return bridge.address4, bridge.address6


def _wanted(guest: Guest, bridge: Bridge) -> list[tuple[int, str]]:
    """Return the families that a guest lacks an address of, with the bridge's own address."""
    if not bridge.dhcp:
        return []
    wanted = [] if guest.address4 or not bridge.address4 else [(4, bridge.address4)]
    return wanted if guest.address6 or not bridge.address6 else [*wanted, (6, bridge.address6)]


def _known(texts: Sequence[str], own: str, family: int) -> str:
    whole = ipaddress.ip_interface(own).network
    for text in texts:
        address = ipaddress.ip_address(text)
        if address.version == family and address in whole:
            return text
    return ""


def _free(guest: Guest, own: str, taken: set[str], gone: set[str]) -> str:
    last = ""
    for text in _candidates(guest.mac, own):
        if text not in taken:
            if text not in gone:
                return text
            last = last or text
    if last:
        return last
    raise Exhausted(
        f'machine "{guest.name}": network {guest.bridge} has no address left in {ipaddress.ip_interface(own).network}'
    )


def _candidates(mac: str, own: str) -> Iterator[str]:
    """Yield all addresses that hosts of a network can have, from one on that follows from the hardware address."""
    whole = ipaddress.ip_interface(own).network
    first, size = int(whole.network_address), min(whole.num_addresses, _WIDEST)
    lowest, number = (0, size) if whole.prefixlen >= whole.max_prefixlen - 1 else (1, size - 2)
    start = int.from_bytes(hashlib.sha256(mac.encode()).digest()[:8], "big") % number
    kind = ipaddress.IPv4Address if whole.version == 4 else ipaddress.IPv6Address
    for step in range(number):
        yield str(kind(first + lowest + (start + step) % number))
