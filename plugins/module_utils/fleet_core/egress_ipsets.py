# SPDX-License-Identifier: GPL-3.0-or-later
"""The sets that rules of iptables look into, as a text for `ipset restore`: the same whether they exist or not.

Sets of names are only made, never emptied: they hold what was learned. All others are filled beside and swapped in.
Sources: ipset(8); a set cannot hold a network of prefix length 0, a name has at most 31 characters.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Union

from .egress_entries import cidr
from .egress_nftables_bridge import peers
from .egress_presets import DOH4, DOH6
from .fences import METADATA4, METADATA6, Fence, Guest, Scope, name_set

FAMILIES = (4, 6)
PASSING = ("allowlist", "open")  # the modes in which anything is forwarded besides what goes to the hub
OLD_SECONDS = 3600  # that addresses stay open after names no longer led to them
MOST_NAMES, MOST_NETWORKS, MOST_GUESTS = 65536, 1048576, 65536
SMALL = "hashsize 64"  # to begin with: most sets stay as small, and there may be thousands
NOMATCH = " nomatch"
_WORDS = {4: "inet", 6: "inet6"}

Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]


@dataclass(frozen=True)
class AddressSet:
    """A set of the kernel. options: of its creation, its type first. elements: None where they are learned or counted.

    kept: elements that are added and have counters, which a swap would lose.
    """

    name: str
    options: str
    elements: tuple[str, ...] = ()
    learned: bool = False
    counted: bool = False


def ipsets(fence: Fence) -> str:
    """Return the text for `ipset restore` that makes the sets of a fence and fills those that are not learned."""
    return "".join(f"{line}\n" for one in address_sets(fence) for line in lines_of(one))


def lines_of(one: AddressSet) -> list[str]:
    """Return the lines that make one set and fill it."""
    create = f"create {one.name} {one.options} -exist"
    if one.learned:
        return [create]
    if one.counted:
        return [create, *(f"add {one.name} {element} -exist" for element in one.elements)]
    # Named by what it can be swapped with: one that is left by a process that was killed must not be in the way.
    beside = f"fleet_t{digits(one.options)}"
    return [
        create,
        f"create {beside} {one.options} -exist",
        f"flush {beside}",
        *(f"add {beside} {element}" for element in one.elements),
        f"swap {beside} {one.name}",
        f"destroy {beside}",
    ]


def address_sets(fence: Fence) -> tuple[AddressSet, ...]:
    """Return all sets of a fence, in the order of their making."""
    found: list[AddressSet] = []
    for family in FAMILIES:
        everybody = addresses(fence.guests, family)
        found += [
            _networks(local_set(family), local_networks(fence, family), family),
            _guests(allowed_set(family), everybody, family, counted=True),
            _guests(denied_set(family), everybody, family, counted=True),
            AddressSet(nobody_set(family), f"{_networks_options(family)} counters", _everything(family), counted=True),
            _guests(passing_set(family), addresses(passing_guests(fence), family), family),
            _guests(hub_set(family), addresses(hub_guests(fence), family), family),
            _networks(special_set(family), fence.special4 if family == 4 else fence.special6, family),
            _networks(doh_set(family), DOH4 if family == 4 else DOH6, family),
        ]
        found += (
            _guests(bridge_set(bridge.name, family), addresses(guests_on(fence, bridge.name), family), family)
            for bridge in fence.bridges
        )
        for circle in circles(fence, family):
            found += [
                _guests(circle.speakers_set(family), circle.speakers, family),
                _guests(circle.listeners_set(family), circle.listeners, family),
            ]
        for scope in fence.scopes:
            found += _of_scope(fence, scope, family)
    return tuple(found)


def _of_scope(fence: Fence, scope: Scope, family: int) -> list[AddressSet]:
    found = [_guests(scope_set(scope.name, family), addresses(fence.guests_of(scope.name), family), family)]
    closed = closed_networks(scope, family)
    if closed:
        found.append(_networks(closed_set(scope.name, family), closed, family))
    for grant in scope.grants if scope.mode in PASSING else ():
        networks = grant.networks4 if family == 4 else grant.networks6
        if networks:
            found.append(_networks(grant.fixed_set_name(family), networks, family, without_metadata(networks, family)))
        if grant.names:
            learned = f"hash:ip family {_WORDS[family]} {SMALL} maxelem {MOST_NAMES}"
            found.append(AddressSet(grant.set_name(family), learned, learned=True))
            found.append(AddressSet(grant.old_set_name(family), f"{learned} timeout {OLD_SECONDS}", learned=True))
            found += (AddressSet(name_set(grant, name, family), learned, learned=True) for name in grant.names)
    return found


def _guests(name: str, elements: Iterable[str], family: int, counted: bool = False) -> AddressSet:
    options = f"hash:ip family {_WORDS[family]} {SMALL} maxelem {MOST_GUESTS}{' counters' if counted else ''}"
    return AddressSet(name, options, tuple(elements), counted=counted)


def _networks(name: str, networks: Iterable[str], family: int, closed: Iterable[str] = ()) -> AddressSet:
    opened = sorted({half for network in networks for half in halves(network)}, key=_order)
    return AddressSet(
        name, _networks_options(family), (*map(cidr, opened), *(f"{network}{NOMATCH}" for network in closed))
    )


def _networks_options(family: int) -> str:
    return f"hash:net family {_WORDS[family]} {SMALL} maxelem {MOST_NETWORKS}"


def _everything(family: int) -> tuple[str, ...]:
    return tuple(cidr(half) for half in halves("0.0.0.0/0" if family == 4 else "::/0"))


def halves(network: str) -> tuple[Network, ...]:
    """Return a network as sets can hold it: one of prefix length 0 in two parts."""
    whole = ipaddress.ip_network(network, strict=False)
    return tuple(whole.subnets()) if whole.prefixlen == 0 else (whole,)


def without_metadata(networks: Iterable[str], family: int) -> tuple[str, ...]:
    """Return the networks of metadata services that only a wider network of these would open."""
    wanted = [ipaddress.ip_network(network, strict=False) for network in networks]
    closed = [ipaddress.ip_network(network) for network in (METADATA4 if family == 4 else METADATA6)]
    return tuple(
        cidr(one)
        for one in closed
        if one not in wanted and any(_inside(one, network) for network in wanted if network.version == one.version)
    )


def _inside(inner: Network, outer: Network) -> bool:
    return outer.prefixlen < inner.prefixlen and inner.network_address in outer


def _order(network: Network) -> tuple[int, int]:
    return int(network.network_address), network.prefixlen


# Who is in the sets


def addresses(guests: Iterable[Guest], family: int) -> tuple[str, ...]:
    """Return the addresses of guests in a family, each once, in their order."""
    found = (guest.address4 if family == 4 else guest.address6 for guest in guests)
    return tuple(dict.fromkeys(str(ipaddress.ip_address(address)) for address in found if address))


def guests_on(fence: Fence, bridge: str) -> tuple[Guest, ...]:
    """Return the guests of a bridge."""
    return tuple(guest for guest in fence.guests if guest.bridge == bridge)


def local_networks(fence: Fence, family: int) -> tuple[str, ...]:
    """Return the networks of the bridges, and the addresses of guests that are in none of them."""
    bridges = (bridge.address4 if family == 4 else bridge.address6 for bridge in fence.bridges)
    networks = [ipaddress.ip_interface(address).network for address in bridges if address]
    others = (
        address
        for address in addresses(fence.guests, family)
        if not any(ipaddress.ip_address(address) in network for network in networks)
    )
    return (*map(cidr, networks), *others)


def hub_guests(fence: Fence) -> tuple[Guest, ...]:
    """Return the guests that may reach the hub: a scope that is locked closes it too."""
    opened = {scope.name for scope in fence.scopes if scope.hub and scope.mode != "locked"}
    return tuple(guest for guest in fence.guests if guest.scope in opened)


def passing_guests(fence: Fence) -> tuple[Guest, ...]:
    """Return the guests whose packets are forwarded at all: flows of others end when their scope's mode changes."""
    passing = {scope.name for scope in fence.scopes if scope.mode in PASSING}
    return tuple(guest for guest in fence.guests if guest.scope in passing)


def closed_networks(scope: Scope, family: int) -> tuple[str, ...]:
    """Return the networks that a scope closes even where a grant opens them."""
    return scope.denied4 if family == 4 else scope.denied6


@dataclass(frozen=True)
class Circle:
    """Guests with the same peers. speakers: their addresses; listeners: of the peers and of themselves."""

    key: str
    speakers: tuple[str, ...]
    listeners: tuple[str, ...]

    def speakers_set(self, family: int) -> str:
        return f"fleet_p{self.key}_{family}"

    def listeners_set(self, family: int) -> str:
        return f"fleet_q{self.key}_{family}"


def circles(fence: Fence, family: int) -> tuple[Circle, ...]:
    """Return guests that talk to each other, grouped so that a project whose machines all do needs one rule only."""
    found: dict[tuple[tuple[str, str], ...], list[Guest]] = {}
    by_name = {(guest.bridge, guest.name): guest for guest in fence.guests}
    others: dict[Guest, list[Guest]] = {}
    for guest, other in peers(fence):
        others.setdefault(guest, [guest]).append(other)
    for guest, everybody in others.items():
        found.setdefault(tuple(sorted((one.bridge, one.name) for one in everybody)), []).append(guest)
    return tuple(
        Circle(digits(repr(names)), addresses(speakers, family), addresses((by_name[name] for name in names), family))
        for names, speakers in found.items()
    )


# How the sets are called


def local_set(family: int) -> str:
    """The networks of our bridges, where other guests are."""
    return f"fleet_local_{family}"


def doh_set(family: int) -> str:
    """Who answers encrypted questions for names."""
    return f"fleet_doh_{family}"


def allowed_set(family: int) -> str:
    """All guests, with counters of what they were allowed."""
    return f"fleet_allowed_{family}"


def denied_set(family: int) -> str:
    """All guests, with counters of what they were denied."""
    return f"fleet_denied_{family}"


def nobody_set(family: int) -> str:
    """All addresses, with counters of what came from no guest that is known."""
    return f"fleet_nobody_{family}"


def passing_set(family: int) -> str:
    """The guests whose packets are forwarded."""
    return f"fleet_passing_{family}"


def hub_set(family: int) -> str:
    """The guests that may reach the hub."""
    return f"fleet_hub_{family}"


def special_set(family: int) -> str:
    """What names must not lead to."""
    return f"fleet_special_{family}"


def bridge_set(bridge: str, family: int) -> str:
    """The guests of a bridge."""
    return f"fleet_b{digits(bridge)}_{family}"


def scope_set(scope: str, family: int) -> str:
    """The guests of a scope."""
    return f"fleet_s{digits(scope)}_{family}"


def closed_set(scope: str, family: int) -> str:
    """What a scope closes even where a grant opens it."""
    return f"fleet_x{digits(scope)}_{family}"


def digits(text: str) -> str:
    """Return eight hexadecimal digits that stand for a name, which may be too long for a set or a chain."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]
