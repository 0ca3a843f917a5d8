# SPDX-License-Identifier: GPL-3.0-or-later
"""A fence in the words of Proxmox VE's own firewall: IP sets, security groups and what each guest is given.

It is the second fence, at the card of each guest, for the day on which the first one is not there. It knows no names of
hosts, so of what names open it takes the internet as a whole. All rules accept, and the policy is DROP: so their order
means nothing, and while they change there is never more open than was before or will be after.
https://pve.proxmox.com/pve-docs/chapter-pve-firewall.html
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .egress_networks import without
from .errors import InvalidInput
from .fences import METADATA4, METADATA6, Fence, Grant, Guest, Ports, Scope

PREFIX = "fleet-"
MARK = "autovibe.fleet"  # begins the comment of what is ours
INTERNET, GATEWAYS, PEERS = "fleet-internet", "fleet-gateways", "fleet-peers"
# An entry of a set may not be everything, so it is in halves. Of IPv6 only this part is given out.
_EVERYTHING = ("0.0.0.0/1", "128.0.0.0/1", "2000::/3")
# All but DNS, DNS over TLS and QUIC, which have their own ways.
_TCP: Ports = ((1, 52), (54, 852), (854, 65535))
_UDP: Ports = ((1, 52), (54, 442), (444, 852), (854, 65535))
_MOST_PORTS = 15  # numbers in one rule, a range counts twice
_ECHO = (("icmp", "echo-request"), ("icmpv6", "echo-request"))


@dataclass(frozen=True)
class Rule:
    """A rule, which accepts, or the use of a security group. kind: in, out, group; the rest as Proxmox has it."""

    kind: str
    action: str = "ACCEPT"
    proto: str = ""
    dport: str = ""
    source: str = ""
    dest: str = ""
    icmp_type: str = ""
    iface: str = ""

    def params(self) -> dict[str, Any]:
        """Return the parameters of the request that makes it."""
        given = {key.replace("_", "-"): value for key, value in asdict(self).items() if value and key != "kind"}
        return {"type": self.kind, **given, "enable": 1}

    def __str__(self) -> str:
        words = [self.kind, self.action, self.iface, self.proto, self.icmp_type]
        words += [f"{name} {value}" for name in ("source", "dest", "dport") if (value := getattr(self, name))]
        return " ".join(word for word in words if word)


@dataclass(frozen=True)
class Card:
    """A network card of a guest: its hardware address, and the only addresses that it may use."""

    mac: str
    addresses: tuple[str, ...]


@dataclass(frozen=True)
class Guarded:
    """What a guest is given. group: its security group; peers: addresses of those that it may talk to."""

    name: str
    group: str
    cards: tuple[Card, ...]
    peers: tuple[str, ...] = ()
    dhcp: bool = True

    def options(self) -> dict[str, Any]:
        """Return the options of its firewall."""
        six = any(":" in address for card in self.cards for address in card.addresses)
        return {
            "enable": 1,
            "policy_in": "DROP",
            "policy_out": "DROP",
            "macfilter": 1,
            "ipfilter": 1,
            "dhcp": int(self.dhcp),
            "ndp": int(six),
            "radv": 0,
        }

    def sets(self, numbers: dict[str, int]) -> dict[str, dict[str, bool]]:
        """Return its IP sets. numbers: of its cards by their hardware addresses."""
        found = {f"ipfilter-net{numbers[card.mac]}": dict.fromkeys(card.addresses, False) for card in self.cards}
        return {**found, **({PEERS: dict.fromkeys(self.peers, False)} if self.peers else {})}

    def rules(self, numbers: dict[str, int]) -> tuple[Rule, ...]:
        """Return its rules. numbers: as above."""
        found = [Rule("group", self.group, iface=f"net{numbers[card.mac]}") for card in self.cards]
        if self.peers:
            found += [Rule("out", dest=f"+guest/{PEERS}"), Rule("in", source=f"+guest/{PEERS}")]
        return tuple(found)

    def digest(self, vmid: int) -> str:
        """Return a short text that changes with all that a guest is given."""
        text = f"{vmid}\n{self}\n{sorted(self.options().items())}"
        return hashlib.sha256(text.encode()).hexdigest()[:10]


@dataclass(frozen=True)
class Outline:
    """All that a cluster is given. sets: whether an entry is one that does not match, by entry, by name of the set.

    groups: rules by the name of the group; comments: of groups and sets. guests: by name.
    """

    sets: dict[str, dict[str, bool]]
    groups: dict[str, tuple[Rule, ...]]
    comments: dict[str, str]
    guests: dict[str, Guarded]


def outline(fence: Fence, *, exact: bool = False) -> Outline:
    """Return the second fence for a first one.

    exact: open the ports that the policy names, and no others; else what is on the internet is left to the first
    fence, so that changes of its policy while guests run need no change here.
    """
    sets: dict[str, dict[str, bool]] = {
        INTERNET: _internet(fence, ()),
        GATEWAYS: dict.fromkeys(_gateways(fence), False),
    }
    comments = {INTERNET: f"{MARK}: all but special networks", GATEWAYS: f"{MARK}: the gateway of the guests"}
    groups: dict[str, tuple[Rule, ...]] = {}
    for scope in fence.scopes:
        name = group_name(scope.name)
        groups[name] = tuple(dict.fromkeys(_rules(fence, scope, sets, comments, exact)))
        comments[name] = f"{MARK}: {scope.name}"
    used = {part for rules in groups.values() for rule in rules for part in (rule.source, rule.dest)}
    kept = {name: entries for name, entries in sets.items() if f"+dc/{name}" in used}
    return Outline(kept, groups, comments, dict(_guests(fence)))


def group_name(scope: str) -> str:
    """Return the name of a scope's security group, which may have 18 characters."""
    return PREFIX + hashlib.sha256(scope.encode()).hexdigest()[:10]


def _guests(fence: Fence) -> Iterator[tuple[str, Guarded]]:
    dhcp = {bridge.name: bridge.dhcp for bridge in fence.bridges}
    cards: dict[str, list[Guest]] = {}
    for guest in fence.guests:
        cards.setdefault(guest.name, []).append(guest)
    on_bridge = {(guest.bridge, guest.name): guest for guest in fence.guests}
    for name, guests in cards.items():
        others = [on_bridge[guest.bridge, peer] for guest in guests for peer in guest.peers]
        own = tuple(Card(guest.mac, tuple(_addresses([guest]))) for guest in guests)
        any_dhcp = any(dhcp.get(guest.bridge, True) for guest in guests)
        yield name, Guarded(name, group_name(guests[0].scope), own, tuple(sorted(_addresses(others))), any_dhcp)


def _addresses(guests: Iterable[Guest]) -> list[str]:
    return [address for guest in guests for address in (guest.address4, guest.address6) if address]


def _gateways(fence: Fence) -> list[str]:
    given = [address for bridge in fence.bridges for address in (bridge.address4, bridge.address6) if address]
    return [str(ipaddress.ip_interface(address).ip) for address in given]


def _internet(fence: Fence, denied: Sequence[str]) -> dict[str, bool]:
    """The entries of a set that is all but special networks and those that are denied."""
    special = [*fence.special4, *fence.special6, *METADATA4, *METADATA6, *denied]
    everything = [ipaddress.ip_network(network) for network in _EVERYTHING]
    inside = [
        network for network in special if any(_overlap(ipaddress.ip_network(network, False), one) for one in everything)
    ]
    return {**dict.fromkeys(_EVERYTHING, False), **dict.fromkeys(map(_entry, inside), True)}


def _overlap(one: Any, other: Any) -> bool:
    return one.version == other.version and bool(one.overlaps(other))


def _entry(network: str) -> str:
    """A network as Proxmox writes it: one host without the length of its prefix."""
    found = ipaddress.ip_network(network, strict=False)
    return str(found.network_address) if found.prefixlen == found.max_prefixlen else str(found)


def _rules(
    fence: Fence, scope: Scope, sets: dict[str, dict[str, bool]], comments: dict[str, str], exact: bool
) -> Iterator[Rule]:
    """The rules of a scope; sets that they use are added."""
    gateways = f"+dc/{GATEWAYS}"
    yield Rule("in", source=gateways)
    if scope.mode == "locked":
        return
    for proto, kind in _ECHO:
        yield Rule("out", proto=proto, icmp_type=kind, dest=gateways)
    if scope.resolver_port or scope.mode != "strict" or scope.hub:
        yield from (Rule("out", proto=proto, dport="53", dest=gateways) for proto in ("udp", "tcp"))
    if fence.proxy.kind:
        yield Rule("out", proto="tcp", dport=str(fence.proxy.port), dest=gateways)
    if scope.hub and fence.hub.ports:
        ports = tuple((port, port) for port in fence.hub.ports)
        yield from (rule for address in fence.hub.addresses for rule in _opened(address, "tcp", ports))
    if scope.mode == "strict":
        return
    internet = INTERNET
    denied = (*scope.denied4, *scope.denied6)
    if denied:
        internet = f"{PREFIX}net-{group_name(scope.name)[len(PREFIX) :]}"
        sets[internet] = _internet(fence, denied)
        comments[internet] = f"{MARK}: all but special networks and those that {scope.name} denies"
    yield from _outside(scope, f"+dc/{internet}", exact)
    for grant in scope.grants:
        networks = _networks(grant, scope)
        if networks:
            name = f"{PREFIX}to-{grant.key}"
            sets[name] = dict.fromkeys(networks, False)
            comments[name] = f"{MARK}: networks that {scope.name} names"
            yield from _opened(f"+dc/{name}", grant.protocol, grant.ports)


def _outside(scope: Scope, internet: str, exact: bool) -> Iterator[Rule]:
    """What is open on the internet."""
    if scope.mode == "open" or not exact:
        yield from _opened(internet, "tcp", _TCP)
        yield from _opened(internet, "udp", _UDP)
    if scope.mode == "open":
        yield from _opened(internet, "icmp", ())
    for grant in scope.grants:
        if grant.names and (exact or not _within(grant)):
            yield from _opened(internet, grant.protocol, grant.ports)


def _within(grant: Grant) -> bool:
    """Whether a grant lies within what is open anyway."""
    ranges = {"tcp": _TCP, "udp": _UDP}.get(grant.protocol)
    if ranges is None or not grant.ports:
        return False
    return all(any(low <= first and last <= high for low, high in ranges) for first, last in grant.ports)


def _opened(dest: str, protocol: str, ports: Ports) -> Iterator[Rule]:
    if protocol == "icmp":
        yield from (Rule("out", proto=proto, icmp_type=kind, dest=dest) for proto, kind in _ECHO if _fits(proto, dest))
    elif protocol == "any" and not ports:
        yield Rule("out", dest=dest)
    else:
        for proto in ("tcp", "udp") if protocol == "any" else (protocol,):
            texts = _port_texts(ports) if ports else [""]
            yield from (Rule("out", proto=proto, dport=text, dest=dest) for text in texts)


def _fits(proto: str, dest: str) -> bool:
    """Whether a protocol is of the family of an address; a set may hold both."""
    return dest.startswith("+") or (":" in dest) == (proto == "icmpv6")


def _port_texts(ports: Ports) -> list[str]:
    """Ports as rules take them, 15 numbers at most in each."""
    texts: list[list[str]] = [[]]
    count = 0
    for first, last in ports:
        size = 1 if first == last else 2
        if count + size > _MOST_PORTS:
            texts.append([])
            count = 0
        texts[-1].append(str(first) if first == last else f"{first}:{last}")
        count += size
    return [",".join(text) for text in texts]


def _networks(grant: Grant, scope: Scope) -> list[str]:
    """What a grant opens by addresses, without what its scope denies."""
    found = [*without(grant.networks4, scope.denied4), *without(grant.networks6, scope.denied6)]
    return [entry for network in found for entry in _halves(ipaddress.ip_network(network))]


def _halves(network: Any) -> list[str]:
    """A network as entries: all there is of a family is too much for one."""
    return [_entry(str(half)) for half in network.subnets()] if network.prefixlen == 0 else [_entry(str(network))]


def check(outlined: Outline) -> None:
    """Raise InvalidInput for what a cluster cannot be given."""
    for guest in outlined.guests.values():
        for card in guest.cards:
            if not card.addresses:
                raise InvalidInput(
                    f'machine "{guest.name}": card {card.mac}: expected an address, so that Proxmox VE can bind it'
                )
