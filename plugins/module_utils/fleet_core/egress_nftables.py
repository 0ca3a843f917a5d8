# SPDX-License-Identifier: GPL-3.0-or-later
"""From a fence to the rules of nftables.

Three tables. `inet fleet_egress` judges packets that are routed or meant for this host: its base chains pick what comes
from our bridges or goes to them, one lookup finds the guest by bridge, MAC and address and jumps to the chains of its
scope (egress_nftables_scopes). `bridge fleet_egress` judges frames, before the bridge learns from them
(egress_nftables_bridge). `bridge fleet_egress_bridges` needs a module that not every kernel has: it is a script of its
own. None of them needs a bridge or a port to exist. How many guests and names there are changes the cost of no packet.

Priorities are just before the usual ones. An accept of ours ends only our own chains; a drop is final.
Source: nft(8) of nftables 1.0.6.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from . import egress_nftables_bridge as frames
from . import egress_nftables_scopes as scopes
from .egress_nftables_names import (
    ADDRESS_TYPES,
    BY_NAME,
    NETWORK_HEADERS,
    NOBODY,
    TABLE,
    address,
    chain,
    check,
    counter,
    inside,
    interface,
    interfaces,
    key,
    own_address,
    special,
)
from .egress_nftables_script import Chain, NamedSet, Table, any_of, fingerprint, script, signed
from .fences import Fence, Scope

__all__ = ["by_name", "expected", "fingerprint", "removal", "ruleset"]

FAMILIES = (4, 6)
LEARNED = ("fleet_n", "fleet_d", "fleet_o")


def ruleset(fence: Fence) -> str:
    """Return the script that makes a fence real, for `nft -f`: at boot before bridges exist, and again at any time.

    It is one transaction. Counters and what sets of names have learned stay. Raises InvalidInput for names that cannot
    be written.
    """
    check(fence)
    return script(_tables(fence))


def by_name(fence: Fence) -> str:
    """Return the script that closes our bridges to whoever is no guest at all; it needs the module nft_meta_bridge."""
    check(fence)
    return script([frames.table_by_name(fence)])


def removal() -> str:
    """Return the script that removes all of ours, whether it is there or not."""
    tables = (f"inet {TABLE}", f"bridge {TABLE}", f"bridge {BY_NAME}")
    return "".join(f"add table {table}\ndelete table {table}\n" for table in tables)


def expected(fence: Fence) -> tuple[Table, ...]:
    """Return the tables that ruleset() leaves, with their fingerprint."""
    mark = fingerprint(ruleset(fence))
    return tuple(signed(table, mark) for table in _tables(fence))


@lru_cache(maxsize=2)
def _tables(fence: Fence) -> tuple[Table, ...]:
    return routed(fence), frames.table(fence)


def routed(fence: Fence) -> Table:
    """Return the table of what is routed."""
    counted = [*(scope.name for scope in fence.scopes), NOBODY]
    limited = [*(scope.name for scope in fence.scopes), NOBODY]
    return Table(
        "inet",
        TABLE,
        chains=tuple(_chains(fence)),
        sets=tuple(_sets(fence)),
        counters=tuple(counter(name, verdict) for name in counted for verdict in ("allowed", "denied")),
        limits=tuple((scopes.limit(fence, name), frames.rate(fence)) for name in limited) if fence.log_rate else (),
    )


def _chains(fence: Fence) -> Iterator[Chain]:
    ours = any_of(interfaces(bridge.name for bridge in fence.bridges))
    yield from _base_chains(fence, ours)
    yield from frames.arrival_chains(fence)
    yield Chain("from-guest", tuple(_from_guest(fence)))
    yield Chain("to-guest", tuple(_to_guest(fence)))
    yield Chain("to-host", tuple(_to_host(fence)))
    yield Chain("spoof", tuple(frames.spoof(fence, counter(NOBODY, "denied"))))
    yield Chain("quiet", (f'counter name "{counter(NOBODY, "denied")}" drop',))
    for scope in fence.scopes:
        yield from scopes.chains(fence, scope)


def _base_chains(fence: Fence, ours: str) -> Iterator[Chain]:
    some = bool(fence.bridges)
    yield Chain(
        "prerouting",
        tuple(
            f"iifname {ours} meta l4proto {{ tcp, udp }} th dport 53 "
            f"dnat {NETWORK_HEADERS[family]} to iifname . {NETWORK_HEADERS[family]} saddr map @resolvers{family}"
            for family in FAMILIES
            if some and any(_resolvers(fence, family))
        ),
        "type nat hook prerouting priority dstnat - 5; policy accept;",
    )
    yield Chain(
        "forward",
        (f"iifname {ours} goto from-guest", f"oifname {ours} goto to-guest") if some else (),
        "type filter hook forward priority filter - 5; policy accept;",
    )
    yield Chain(
        "input",
        (f"iifname {ours} goto to-host", *_services(fence)) if some else (),
        "type filter hook input priority filter - 5; policy accept;",
    )
    yield Chain(
        "postrouting",
        tuple(
            f"{NETWORK_HEADERS[family]} saddr {any_of(networks)} oifname != {ours} masquerade"
            for family in FAMILIES
            if (networks := inside(fence.evolve(bridges=tuple(one for one in fence.bridges if one.nat)), family))
        ),
        "type nat hook postrouting priority srcnat - 5; policy accept;",
    )


def _services(fence: Fence) -> Iterator[str]:
    """Yield the rules that close resolvers and proxy of our bridges' addresses to everybody beside the bridges."""
    ports = {scope.resolver_port for scope in fence.scopes if scope.resolver_port}
    if fence.proxy.kind:
        ports.add(fence.proxy.port)
    for family in FAMILIES:
        own = [found for bridge in fence.bridges if (found := own_address(bridge, family))]
        if ports and own:
            where = f'iifname != "lo" {NETWORK_HEADERS[family]} daddr {any_of(own)} {scopes.TRANSPORTS}'
            yield f"{where} th dport {any_of(str(port) for port in sorted(ports))} goto quiet"


def _from_guest(fence: Fence) -> Iterator[str]:
    card = "iifname . ether saddr"
    yield "ct state invalid goto quiet"
    if scopes.timed(fence):
        yield "ct mark vmap @timed"
    yield f"{card} . ip saddr vmap @senders4"
    yield "exthdr rt exists goto spoof"
    if any(frames.peers(fence)):
        # Where br_netfilter is on, what peers find each other by comes here too. No router passes it on.
        yield f"iifname . oifname @loops {frames.SOLICITED} accept"
    yield f"{card} . ip6 saddr vmap @senders6"
    yield "goto spoof"


def _to_guest(fence: Fence) -> Iterator[str]:
    yield "ct state invalid goto quiet"
    if scopes.timed(fence):
        yield "ct mark vmap @timed"
    for family in FAMILIES:
        yield f"oifname . {NETWORK_HEADERS[family]} daddr vmap @receivers{family}"
    yield "goto quiet"


def _to_host(fence: Fence) -> Iterator[str]:
    """Yield what guests may send to this host: what it asked for, DHCP, ND, and what the scope opens."""
    dhcp4 = [bridge.name for bridge in fence.bridges if bridge.dhcp and bridge.address4]
    dhcp6 = [bridge.name for bridge in fence.bridges if bridge.dhcp and bridge.address6]
    yield "ct state invalid goto quiet"
    yield "exthdr rt exists goto spoof"
    yield "ct direction reply ct state established accept"
    yield from (f"{error} accept" for error in scopes.ERRORS)
    card = "iifname . ether saddr"
    if dhcp4:
        dhcp = f"iifname {any_of(interfaces(dhcp4))} udp sport 68 udp dport 67"
        yield f"{dhcp} ip saddr 0.0.0.0 ip daddr 255.255.255.255 {card} @cards4 accept"
        yield f"{dhcp} {card} . ip saddr @bound4 iifname . ip daddr @gateways4 accept"
        yield f"{dhcp} {card} . ip saddr @bound4 ip daddr 255.255.255.255 accept"
    if dhcp6:
        dhcp = f"iifname {any_of(interfaces(dhcp6))} udp sport 546 udp dport 547"
        yield f"{dhcp} ip6 saddr fe80::/10 {card} @cards6 accept"
    neighbours = "{ nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert }"
    yield f"icmpv6 type {neighbours} ip6 hoplimit 255 {card} @cards6 accept"
    for family in FAMILIES:
        yield f"{card} . {NETWORK_HEADERS[family]} saddr vmap @callers{family}"
    yield f"ip6 saddr {{ ::, fe80::/10 }} {card} @cards6 goto quiet"
    yield "goto spoof"


def _sets(fence: Fence) -> Iterator[NamedSet]:
    yield from scopes.shared_sets()
    for family in FAMILIES:
        kind = ADDRESS_TYPES[family]
        own = [(bridge.name, found) for bridge in fence.bridges if (found := own_address(bridge, family))]
        yield NamedSet(f"special{family}", f"type {kind}", tuple(special(fence, family)), "flags interval")
        yield NamedSet(f"inside{family}", f"type {kind}", tuple(inside(fence, family)), "flags interval")
        yield NamedSet(
            f"gateways{family}",
            f"type ifname . {kind}",
            tuple(key(interface("bridge", name), found) for name, found in own),
        )
        yield NamedSet(f"pairs{family}", f"type {kind} . {kind}", tuple(_pairs(fence, family)))
        yield NamedSet(
            f"resolvers{family}",
            f"type ifname . {kind} : {kind} . inet_service",
            tuple(_resolvers(fence, family)),
            kind="map",
        )
        yield from _guest_sets(fence, family)
    yield frames.held(fence)
    names = interfaces(bridge.name for bridge in fence.bridges)
    yield NamedSet("loops", "type ifname . ifname", tuple(key(name, name) for name in names))
    yield NamedSet(
        "timed",
        "type mark : verdict",
        tuple(f"{mark} : jump {name}" for mark, name in sorted(scopes.timed(fence).items())),
        kind="map",
    )
    for scope in fence.scopes:
        yield from scopes.sets(scope)


def _guest_sets(fence: Fence, family: int) -> Iterator[NamedSet]:
    """Yield what knows guests: who they are, and the chains of their scope for each way a packet can go."""
    kind = ADDRESS_TYPES[family]
    rows = [
        (interface("bridge", guest.bridge), guest.mac, found, scope)
        for scope in fence.scopes
        for guest in fence.guests_of(scope.name)
        if (found := address(guest, family))
    ]
    card, bound = "type ifname . ether_addr", f"type ifname . ether_addr . {kind}"
    yield NamedSet(f"cards{family}", card, tuple(dict.fromkeys(key(row[0], row[1]) for row in rows)))
    yield NamedSet(f"bound{family}", bound, tuple(key(*row[:3]) for row in rows))
    for name, word in (("senders", "out"), ("callers", "host")):
        elements = tuple(f"{key(*row[:3])} : goto {chain(word, row[3])}" for row in rows)
        yield NamedSet(f"{name}{family}", f"{bound} : verdict", elements, kind="map")
    elements = tuple(f"{key(row[0], row[2])} : goto {chain('in', row[3])}" for row in rows)
    yield NamedSet(f"receivers{family}", f"type ifname . {kind} : verdict", elements, kind="map")


def _pairs(fence: Fence, family: int) -> Iterator[str]:
    for guest, other in frames.peers(fence):
        if address(guest, family) and address(other, family):
            yield key(address(guest, family), address(other, family))


def _resolvers(fence: Fence, family: int) -> Iterator[str]:
    """Yield guest -> address and port of its scope's resolver, on the bridge that it hangs on."""
    own = {bridge.name: own_address(bridge, family) for bridge in fence.bridges}
    known: dict[str, Scope] = {scope.name: scope for scope in fence.scopes}
    for guest in fence.guests:
        scope = known.get(guest.scope)
        found, gateway = address(guest, family), own.get(guest.bridge)
        if scope and scope.resolver_port and scope.mode != "locked" and found and gateway:
            asking = key(interface("bridge", guest.bridge), found)
            yield f"{asking} : {gateway} . {scope.resolver_port}"
