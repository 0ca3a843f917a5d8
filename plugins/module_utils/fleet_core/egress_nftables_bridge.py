# SPDX-License-Identifier: GPL-3.0-or-later
"""Frames on the bridge, before the bridge learns from them: who sends, who is sent to, and guests among each other.

A guest whose port is known is held to it: what comes from the port has its MAC and its addresses, and what goes out of
the port is for them. A guest whose port is not known is held to the addresses of its MAC. What is no IPv4, IPv6 or ARP
of Ethernet, or bears a VLAN tag, is dropped.
Sources: RFC 826 and RFC 5227 (ARP), RFC 4861 (ND), RFC 6105 (RA guard).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator

from .egress_nftables_names import (
    ADDRESS_TYPES,
    BY_NAME,
    NOBODY,
    TABLE,
    address,
    counter,
    interface,
    interfaces,
    key,
    link_local,
    own_address,
)
from .egress_nftables_scopes import limit
from .egress_nftables_script import Chain, NamedSet, Table, any_of
from .fences import Fence, Guest

FAMILIES = (4, 6)
UNICAST = "ether daddr & 01:00:00:00:00:00 == 00:00:00:00:00:00"
DENIED = counter(NOBODY, "denied")
# A bit of the packet's mark between the bridge and the first chain of what is routed: it came over a guest's port, or
# from the MAC of a guest whose port is not known.
HELD = "0x10000000"
MARKED = f"meta mark set meta mark or {HELD}"
# What guests send before they have an address.
DISCOVER = "ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67"
CLIENT = "@th,288,48"  # the MAC that a DHCP client asks for
WITHOUT_ADDRESS6 = "ip6 saddr :: icmpv6 type { nd-router-solicit, mld2-listener-report }"
PROBE6 = "ip6 saddr :: icmpv6 type nd-neighbor-solicit"  # so that nobody can claim what the gateway is about to use
PROBE = "arp operation request arp saddr ip 0.0.0.0"
SOLICITED = "icmpv6 type nd-neighbor-solicit ip6 daddr ff02::1:ff00:0/104"
TARGET = "@th,64,128"  # of a neighbour solicitation or advertisement
TARGET_IS_LINK_LOCAL = "@th,64,10 0x3fa"


def rate(fence: Fence) -> str:
    """Return the rate of what is logged, as a limit has it."""
    return f"{fence.log_rate}/second burst {max(fence.log_rate, 5)} packets"


def spoof(fence: Fence, denied: str) -> Iterator[str]:
    """Yield the rules of the chain in which everything ends that no known guest can have sent."""
    if fence.log_rate:
        words = f'log prefix "fleet spoof {NOBODY} " group {fence.log_group}'
        yield f'limit name "{limit(fence, NOBODY)}" {words}'
    yield f'counter name "{denied}" drop'


def peers(fence: Fence) -> Iterator[tuple[Guest, Guest]]:
    """Yield the pairs of guests that may talk, each way."""
    on = {(guest.bridge, guest.name): guest for guest in fence.guests}
    locked = {scope.name for scope in fence.scopes if scope.mode == "locked"}
    for guest in fence.guests:
        for name in guest.peers:
            other = on.get((guest.bridge, name))
            if other and guest.name in other.peers and not {guest.scope, other.scope} & locked:
                yield guest, other


def table(fence: Fence) -> Table:
    """Return the table of frames. It needs arrival_chains() in a table of family inet."""
    return Table(
        "bridge",
        TABLE,
        chains=tuple(_chains(fence)),
        sets=tuple(_sets(fence)),
        counters=(DENIED,),
        limits=((limit(fence, NOBODY), rate(fence)),) if fence.log_rate else (),
    )


def table_by_name(fence: Fence) -> Table:
    """Return the table that drops what comes over ports that no guest has: only bridges' names tell those."""
    ours = any_of(interfaces(bridge.name for bridge in fence.bridges))
    ports = [guest.port for guest in fence.guests if guest.port]
    loose = [guest.mac for guest in fence.guests if not guest.port]
    others = f"meta ibrname {ours}"
    if ports:
        others += f" iifname != {any_of(interfaces(ports))}"
    if loose:
        others += f" ether saddr != {any_of(dict.fromkeys(loose))}"
    return Table(
        "bridge",
        BY_NAME,
        chains=(
            Chain(
                "prerouting",
                (f"{others} goto spoof",) if fence.bridges else (),
                "type filter hook prerouting priority dstnat - 15; policy accept;",
            ),
            Chain("spoof", tuple(spoof(fence, DENIED))),
        ),
        counters=(DENIED,),
        limits=((limit(fence, NOBODY), rate(fence)),) if fence.log_rate else (),
    )


def arrival_chains(fence: Fence) -> tuple[Chain, ...]:
    """Return the chains in which packets with a machine's MAC end if they did not come over its port.

    Frames of table() that did bear a bit of the packet's mark, which is taken off here: routing must not meet it.
    """
    ours = any_of(interfaces(bridge.name for bridge in fence.bridges))
    return (
        Chain(
            "arrival",
            (f"iifname {ours} goto arrived",) if fence.bridges else (),
            "type filter hook prerouting priority raw - 10; policy accept;",
        ),
        Chain(
            "arrived",
            (
                f"meta mark & {HELD} == {HELD} meta mark set meta mark xor {HELD} accept",
                "iifname . ether saddr @held goto spoof",
            ),
        ),
    )


def held(fence: Fence) -> NamedSet:
    """Return the set of cards whose port is known."""
    rows = (key(interface("bridge", guest.bridge), guest.mac) for guest in fence.guests if guest.port)
    return _fixed("held", "type ifname . ether_addr", rows)


def _chains(fence: Fence) -> Iterator[Chain]:
    yield Chain(
        "prerouting",
        (
            *_honest(),
            f"iifname @ports {MARKED} goto from-port",
            f"ether saddr @macs {MARKED} goto from-mac",
        ),
        "type filter hook prerouting priority dstnat - 10; policy accept;",
    )
    yield Chain(
        "input",
        (
            "meta pkttype host meta protocol != arp accept",
            "iifname @ports goto to-host",
            "ether saddr @macs goto to-host",
            # From who is nobody, that a machine's address is at another MAC.
            "arp saddr ip @addresses arp saddr ether . arp saddr ip != @mac_of goto spoof",
        ),
        "type filter hook input priority filter - 5; policy accept;",
    )
    yield Chain(
        "forward",
        (
            "iifname @ports goto between",
            "oifname @ports goto between",
            "ether saddr @macs goto between",
            "ether daddr @macs goto between",
        ),
        "type filter hook forward priority filter - 5; policy accept;",
    )
    yield Chain(
        "postrouting",
        ("oifname . ether daddr . ip daddr @port_bound4 accept", "oifname @ports goto to-port"),
        "type filter hook postrouting priority srcnat - 5; policy accept;",
    )
    yield from _sender_chains("port", "iifname . ")
    yield from _sender_chains("mac", "")
    yield Chain("to-host", tuple(_to_host()))
    yield Chain("between", tuple(_between()))
    yield Chain("peers", tuple(_peers()))
    yield Chain("to-port", tuple(_to_port()))
    yield Chain("spoof", tuple(spoof(fence, DENIED)))
    yield Chain("peer", tuple(_peer(fence)))
    yield Chain("quiet", (f'counter name "{DENIED}" drop',))


def _honest() -> Iterator[str]:
    """Yield what nearly all frames of machines end with: one lookup instead of three. It says nothing of its own."""
    card = "iifname . ether saddr"
    yield f"ether type ip ip hdrlength 5 {card} . ip saddr @port_bound4 {MARKED} accept"
    yield f"ether type ip6 meta l4proto {{ tcp, udp }} {card} . ip6 saddr @port_bound6 {MARKED} accept"


def _sender_chains(kind: str, where: str) -> Iterator[Chain]:
    """Yield the chains for what comes from guests. kind: "port" or "mac", by which they are known; where: its key."""
    card = f"{where}ether saddr"
    yield Chain(
        f"from-{kind}",
        (
            # The type as it is on the wire: a tag's where there is one, although the kernel has taken the tag off.
            f"ether type vmap {{ ip : goto ip-{kind}, ip6 : goto ip6-{kind}, arp : goto arp-{kind} }}",
            "goto spoof",
        ),
    )
    yield Chain(
        f"ip-{kind}",
        (
            f"ip hdrlength 5 {card} . ip saddr @{kind}_bound4 accept",
            f"ip protocol igmp {card} . ip saddr @{kind}_bound4 accept",  # has an option, always
            f"{DISCOVER} {card} @{kind}_cards {card} . {CLIENT} @{kind}_clients accept",
            "goto spoof",
        ),
    )
    yield Chain(
        f"ip6-{kind}",
        (
            f"{card} . ip6 saddr @{kind}_bound6 goto nd-{kind}",
            # A link-local address is as good as another, but for those that other guests have by their MACs.
            f"ip6 saddr fe80::/10 ip6 saddr != @link_locals {card} @{kind}_cards6 goto nd-{kind}",
            f"{WITHOUT_ADDRESS6} {card} @{kind}_cards6 accept",
            f"{PROBE6} {card} @{kind}_cards6 goto target-{kind}",
            "goto spoof",
        ),
    )
    yield Chain(
        f"nd-{kind}",
        (
            "meta l4proto != icmpv6 accept",
            "icmpv6 type { nd-router-advert, nd-redirect, router-renumbering } goto spoof",
            "icmpv6 type != nd-neighbor-advert accept",
            f"goto target-{kind}",
        ),
    )
    yield Chain(
        f"target-{kind}",
        (
            f"{card} . {TARGET} @{kind}_targets accept",
            f"{TARGET_IS_LINK_LOCAL} {TARGET} != @foreign_targets accept",
            "goto spoof",
        ),
    )
    bound = f"@{kind}_bound4"
    yield Chain(
        f"arp-{kind}",
        (
            "arp htype != 1 goto spoof",
            "arp ptype != ip goto spoof",
            "arp hlen != 6 goto spoof",
            "arp plen != 4 goto spoof",
            f"{card} . arp saddr ip {bound} {where}arp saddr ether . arp saddr ip {bound} accept",
            # A probe, whether the address that it is about to use is free.
            f"{PROBE} {card} . arp daddr ip {bound} {where}arp saddr ether . arp daddr ip {bound} accept",
            "goto spoof",
        ),
    )


def _to_host() -> Iterator[str]:
    """Yield what may go up to this host: no frames of bridges among each other, and ARP for our own address only."""
    yield "ether daddr & ff:ff:ff:ff:ff:f0 == 01:80:c2:00:00:00 goto quiet"
    yield "meta protocol != arp accept"
    yield "arp daddr ip @gateways accept"
    yield "ether saddr . arp daddr ip @mac_of accept"
    yield "goto quiet"


def _between() -> Iterator[str]:
    """Yield what guests may send each other: what peers do, and the ARP and ND with which they find each other."""
    for family, header in ((4, "ip"), (6, "ip6")):
        ends = f"ether saddr . ether daddr . {header} saddr . {header} daddr"
        yield f"{ends} @peers{family} goto peers"
    yield "arp saddr ip . arp daddr ip @arp_pairs arp operation request ether daddr ff:ff:ff:ff:ff:ff accept"
    yield "ether saddr . ether daddr . arp saddr ip . arp daddr ip @peers4 accept"
    yield f"{SOLICITED} ip6 saddr . {TARGET} @nd_pairs accept"
    yield f"{UNICAST} goto peer"
    yield "drop"  # what is sent to all does not reach the other machines, which is nothing to count


def _peers() -> Iterator[str]:
    """Yield what peers may not do either: serve DHCP and routers' advertisements."""
    yield "udp sport { 67, 547 } goto spoof"
    yield "udp dport { 68, 546 } goto spoof"
    yield "accept"


def _to_port() -> Iterator[str]:
    """Yield what may leave by a guest's port: what is for this guest, whatever the bridge has learned."""
    yield "oifname . ether daddr . ip6 daddr @port_bound6 accept"
    yield "ether daddr & 01:00:00:00:00:00 == 01:00:00:00:00:00 accept"
    yield "meta protocol arp oifname . ether daddr @port_cards accept"
    yield "ip6 daddr fe80::/10 oifname . ether daddr @port_cards6 accept"
    yield "ip daddr 255.255.255.255 oifname . ether daddr @port_cards accept"
    yield "goto quiet"


def _peer(fence: Fence) -> Iterator[str]:
    if fence.log_rate:
        words = f'log prefix "fleet peer {NOBODY} " group {fence.log_group}'
        yield f'limit name "{limit(fence, NOBODY)}" {words}'
    yield f'counter name "{DENIED}" drop'


def _sets(fence: Fence) -> Iterator[NamedSet]:
    ports = [guest for guest in fence.guests if guest.port]
    loose = [guest for guest in fence.guests if not guest.port]
    yield _fixed("ports", "type ifname", (interface("port", guest.port) for guest in ports))
    yield _fixed("macs", "type ether_addr", (guest.mac for guest in loose))
    yield from _sender_sets("port", "ifname . ", "iifname . ", [(f"{_port(guest)} . ", guest) for guest in ports])
    yield from _sender_sets("mac", "", "", [("", guest) for guest in loose])
    with6 = [guest for guest in fence.guests if address(guest, 6)]
    yield _fixed("link_locals", "type ipv6_addr", (link_local(guest.mac) for guest in with6))
    yield _fixed("foreign_targets", f"typeof {TARGET}", (_number(link_local(guest.mac)) for guest in with6))
    own = (own_address(bridge, 4) for bridge in fence.bridges)
    yield _fixed("gateways", "type ipv4_addr", (text for text in own if text))
    yield _fixed("addresses", "type ipv4_addr", (address(guest, 4) for guest in fence.guests if guest.address4))
    yield _fixed(
        "mac_of",
        "type ether_addr . ipv4_addr",
        (key(guest.mac, address(guest, 4)) for guest in fence.guests if guest.address4),
    )
    yield from _peer_sets(fence)


def _sender_sets(kind: str, typed: str, where: str, rows: list[tuple[str, Guest]]) -> Iterator[NamedSet]:
    """Yield what is known of guests. typed, where, rows: how keys begin in types, rules, guests."""
    with6 = [(at, guest) for at, guest in rows if address(guest, 6)]
    yield _fixed(
        f"{kind}_bound4",
        f"type {typed}ether_addr . ipv4_addr",
        (f"{at}{key(guest.mac, address(guest, 4))}" for at, guest in rows if guest.address4),
    )
    yield _fixed(
        f"{kind}_bound6",
        f"type {typed}ether_addr . ipv6_addr",
        (f"{at}{key(guest.mac, found)}" for at, guest in with6 for found in _addresses6(guest)),
    )
    yield _fixed(f"{kind}_cards", f"type {typed}ether_addr", (f"{at}{guest.mac}" for at, guest in rows))
    yield _fixed(f"{kind}_cards6", f"type {typed}ether_addr", (f"{at}{guest.mac}" for at, guest in with6))
    yield _fixed(
        f"{kind}_targets",
        f"typeof {where}ether saddr . {TARGET}",
        (f"{at}{key(guest.mac, _number(found))}" for at, guest in with6 for found in _addresses6(guest)),
    )
    yield _fixed(
        f"{kind}_clients",
        f"typeof {where}ether saddr . {CLIENT}",
        (f"{at}{key(guest.mac, '0x' + guest.mac.replace(':', ''))}" for at, guest in rows),
    )


def _peer_sets(fence: Fence) -> Iterator[NamedSet]:
    pairs = list(peers(fence))
    for family in FAMILIES:
        kind = ADDRESS_TYPES[family]
        yield _fixed(
            f"peers{family}",
            f"type ether_addr . ether_addr . {kind} . {kind}",
            (
                key(guest.mac, other.mac, address(guest, family), address(other, family))
                for guest, other in pairs
                if address(guest, family) and address(other, family)
            ),
        )
    yield _fixed(
        "arp_pairs",
        "type ipv4_addr . ipv4_addr",
        (key(one.address4, other.address4) for one, other in pairs if one.address4 and other.address4),
    )
    yield _fixed(
        "nd_pairs",
        f"typeof ip6 saddr . {TARGET}",
        (
            key(address(guest, 6), _number(address(other, 6)))
            for guest, other in pairs
            if address(guest, 6) and address(other, 6)
        ),
    )


def _fixed(name: str, kind: str, elements: Iterable[str]) -> NamedSet:
    return NamedSet(name, kind, tuple(dict.fromkeys(elements)))


def _port(guest: Guest) -> str:
    return interface("port", guest.port)


def _addresses6(guest: Guest) -> tuple[str, str]:
    return address(guest, 6), link_local(guest.mac)


def _number(address6: str) -> str:
    """Return an IPv6 address as nft writes bytes that it has no type for."""
    return f"0x{int(ipaddress.IPv6Address(address6)):032x}"
