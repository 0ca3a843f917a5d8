# SPDX-License-Identifier: GPL-3.0-or-later
"""The chains of one scope: what its guests may reach, what may reach them, and what becomes of the rest.

Chains of a scope NAME, besides those of single reasons (log-REASON-NAME):
out-NAME from a guest into the world; special-NAME the part of it that leads to special networks; in-NAME from the world
to a guest; host-NAME from a guest to this host; deny-NAME and drop-NAME the end, with and without an answer.
"""

from __future__ import annotations

from collections.abc import Iterator

from .egress_nftables_names import (
    ADDRESS_TYPES,
    NETWORK_HEADERS,
    address,
    chain,
    collapsed,
    counter,
    of_family,
    port_words,
)
from .egress_nftables_script import Chain, NamedSet, braces
from .egress_presets import DOH4, DOH6
from .fences import METADATA4, METADATA6, Fence, Grant, Scope, name_set

FAMILIES = (4, 6)
# Of what is related to a connection only errors are let through: no helper's connections, and no redirects.
ERRORS = ("ct state related icmp type @errors4", "ct state related icmpv6 type @errors6")
# Of connections that a guest began, its own packets and those that come back. Nobody else begins any.
BEGUN, ANSWERED = "ct direction original ct state established", "ct direction reply ct state established"
TRANSPORTS = "meta l4proto @transports"  # what has ports that matter
DNS = f"{TRANSPORTS} th dport 53"
SILENT = ("metadata", "inbound")  # reasons that get no answer
REASONS = ("denied", "expired", "metadata", "peer", "forward", "dns", "input", "inbound")
ANSWERS = "limit rate 100/second burst 100 packets"
OLD_LASTS = "1h"  # longer than any answer of a resolver is kept by a guest


def chains(fence: Fence, scope: Scope) -> tuple[Chain, ...]:
    """Return all chains of a scope."""
    found = [
        Chain(chain("out", scope), tuple(_out(fence, scope))),
        Chain(chain("in", scope), tuple(_in(fence, scope))),
        Chain(chain("host", scope), tuple(_host(fence, scope))),
    ]
    if scope.mode in ("allowlist", "open"):
        found.append(Chain(chain("special", scope), tuple(_special(scope))))
    for grant in scope.grants:
        if grant.mark:
            found.append(Chain(f"timed-{grant.key}", (f"meta time >= {grant.until} {_why('expired', scope)}",)))
    found += (Chain(f"log-{reason}-{scope.name}", tuple(_log(fence, scope, reason))) for reason in REASONS)
    denied = f'counter name "{counter(scope.name, "denied")}"'
    found.append(
        Chain(
            chain("deny", scope),
            (
                denied,
                f"meta l4proto tcp {ANSWERS} reject with tcp reset",
                f"meta l4proto != tcp {ANSWERS} reject with icmpx admin-prohibited",
                "drop",
            ),
        )
    )
    found.append(Chain(chain("drop", scope), (f"{denied} drop",)))
    return tuple(found)


def shared_sets() -> tuple[NamedSet, ...]:
    """Return the sets that all scopes look into: the kernel's work grows with the square of the number of its sets."""
    errors = ("destination-unreachable", "time-exceeded", "parameter-problem")
    return (
        NamedSet("transports", "type inet_proto", ("tcp", "udp")),
        NamedSet("errors4", "type icmp_type", errors),
        NamedSet("errors6", "type icmpv6_type", (*errors, "packet-too-big")),
        NamedSet("to_many", "type pkt_type", ("broadcast", "multicast")),
        *(
            NamedSet(f"{name}{family}", f"type {ADDRESS_TYPES[family]}", tuple(collapsed(known)), "flags interval")
            for name, of in (("metadata", (METADATA4, METADATA6)), ("doh", (DOH4, DOH6)))
            for family, known in zip(FAMILIES, of)
        ),
    )


def sets(scope: Scope) -> Iterator[NamedSet]:
    """Yield the sets of a scope: what is closed, and of each grant its networks and what its names have led to."""
    for family in FAMILIES:
        closed = _closed(scope, family)
        if closed:
            yield NamedSet(closed_set(scope, family), f"type {ADDRESS_TYPES[family]}", tuple(closed), "flags interval")
    if scope.mode not in ("allowlist", "open"):
        return
    for grant in scope.grants:
        for family in FAMILIES:
            yield from _grant_sets(grant, family)


def limit(fence: Fence, scope: str) -> str:
    """Return the name of the limit of what is logged of a scope."""
    return f"fleet_l_{counter(scope, str(fence.log_rate)).removeprefix('fleet_c_')}"


def closed_set(scope: Scope, family: int) -> str:
    return counter(scope.name, f"closed{family}").replace("fleet_c_", "fleet_x_")


def timed(fence: Fence) -> dict[int, str]:
    """Return the marks of grants that end, and the chain that tells whether they have."""
    return {grant.mark: f"timed-{grant.key}" for scope in fence.scopes for grant in scope.grants if grant.mark}


def _grant_sets(grant: Grant, family: int) -> Iterator[NamedSet]:
    kind = f"type {ADDRESS_TYPES[family]}"
    if grant.names:
        # Without a size: the kernel would take the memory for that many elements at once, of each set.
        yield NamedSet(grant.set_name(family), kind)
        yield NamedSet(grant.old_set_name(family), kind, flags=f"flags timeout; timeout {OLD_LASTS}")
        for name in grant.names:
            yield NamedSet(name_set(grant, name, family), kind)
    networks = _networks(grant, family)
    if networks:
        yield NamedSet(grant.fixed_set_name(family), kind, tuple(networks), "flags interval")


def _networks(grant: Grant, family: int) -> list[str]:
    return collapsed(grant.networks4 if family == 4 else grant.networks6)


def _closed(scope: Scope, family: int) -> list[str]:
    return collapsed(scope.denied4 if family == 4 else scope.denied6)


def _allow(scope: Scope) -> str:
    return f'counter name "{counter(scope.name, "allowed")}" accept'


def _why(reason: str, scope: Scope) -> str:
    return f"goto log-{reason}-{scope.name}"


def _log(fence: Fence, scope: Scope, reason: str) -> Iterator[str]:
    if fence.log_rate:
        words = f'log prefix "fleet {reason} {scope.name} " group {fence.log_group}'
        yield f'limit name "{limit(fence, scope.name)}" {words}'
    yield f"goto {chain('drop' if reason in SILENT else 'deny', scope)}"


def _hub(fence: Fence, scope: Scope, way: str) -> Iterator[str]:
    """Yield the rules of the hub. way: "d" for what goes to it, "s" for its answers."""
    if not scope.hub or not fence.hub.ports or scope.mode == "locked":
        return
    ports = braces(str(port) for port in fence.hub.ports)
    state = "" if way == "d" else f"{ANSWERED} "
    for family in FAMILIES:
        addresses = of_family(fence.hub.addresses, family)
        if addresses:
            where = f"{NETWORK_HEADERS[family]} {way}addr {braces(addresses)}"
            yield f"{where} tcp {way}port {ports} {state}{_allow(scope)}"


def _closed_rules(scope: Scope, way: str, verdict: str) -> Iterator[str]:
    for family in FAMILIES:
        if _closed(scope, family):
            yield f"{NETWORK_HEADERS[family]} {way}addr @{closed_set(scope, family)} {verdict}"


def _out(fence: Fence, scope: Scope) -> Iterator[str]:
    if scope.mode in ("allowlist", "open"):
        yield from _out_by_grants(fence, scope)
        return
    yield from _named(fence, scope)
    yield from (f"{NETWORK_HEADERS[family]} daddr @inside{family} {_why('peer', scope)}" for family in FAMILIES)
    yield f"{DNS} {_why('dns', scope)}"
    if scope.mode == "strict":
        yield from _closed_rules(scope, "d", _why("denied", scope))
        yield from _metadata(scope)
    yield _why("forward", scope)


def _out_by_grants(fence: Fence, scope: Scope) -> Iterator[str]:
    """Yield the rules of modes that forward: what most packets need comes as early as it may."""
    closed = list(_closed_rules(scope, "d", _why("denied", scope)))
    if closed:
        yield from _named(fence, scope)
        yield from closed
    yield f"{BEGUN} {_allow(scope)}"
    yield from (f"{error} {_allow(scope)}" for error in ERRORS)
    if not closed:
        yield from _named(fence, scope)
    yield f"{DNS} {_why('dns', scope)}"
    for family in FAMILIES:
        yield f"{NETWORK_HEADERS[family]} daddr @special{family} goto {chain('special', scope)}"
    yield from _grants(scope, with_names=True)
    yield from _at_large(scope)
    yield _why("forward", scope)


def _named(fence: Fence, scope: Scope) -> Iterator[str]:
    """Yield what is open whatever else is closed: peers, where their packets are routed, and the hub."""
    if scope.mode != "locked" and any(guest.peers for guest in fence.guests_of(scope.name)):
        for family in FAMILIES:
            header = NETWORK_HEADERS[family]
            yield f"{header} saddr . {header} daddr @pairs{family} {_allow(scope)}"
    yield from _hub(fence, scope, "d")
    yield from _answers_of_hub(fence, scope)


def _answers_of_hub(fence: Fence, scope: Scope) -> Iterator[str]:
    """Yield the rules for a guest of this scope that is the hub itself, and answers guests of other bridges."""
    if scope.mode == "locked" or not fence.hub.ports:
        return
    ports = braces(str(port) for port in fence.hub.ports)
    here = {address(guest, family) for guest in fence.guests_of(scope.name) for family in FAMILIES}
    for family in FAMILIES:
        own = [text for text in of_family(fence.hub.addresses, family) if text in here]
        if own:
            yield f"{NETWORK_HEADERS[family]} saddr {braces(own)} tcp sport {ports} {ANSWERED} {_allow(scope)}"


def _special(scope: Scope) -> Iterator[str]:
    """Yield what opens special networks: networks that stand in a grant, never names."""
    yield from (f"{NETWORK_HEADERS[family]} daddr @inside{family} {_why('peer', scope)}" for family in FAMILIES)
    yield from _grants(scope, with_names=False)
    yield from _metadata(scope)
    yield _why("forward", scope)


def _metadata(scope: Scope) -> Iterator[str]:
    for family in FAMILIES:
        yield f"{NETWORK_HEADERS[family]} daddr @metadata{family} {_why('metadata', scope)}"


def _at_large(scope: Scope) -> Iterator[str]:
    """Yield what mode open opens: all but other resolvers, known or by their ports, and QUIC."""
    if scope.mode != "open":
        return
    yield f"{TRANSPORTS} th dport 853 {_why('dns', scope)}"
    for family in FAMILIES:
        yield f"{NETWORK_HEADERS[family]} daddr @doh{family} {_why('dns', scope)}"
    yield f"udp dport 443 {_why('forward', scope)}"
    yield _allow(scope)


def _grants(scope: Scope, with_names: bool) -> Iterator[str]:
    """Yield the rules of grants in their order, and after them what is only closed because its time is over."""
    for grant in scope.grants:
        for match in _matches(grant, with_names):
            if grant.until:
                yield f"{match} meta time < {grant.until} ct mark set {grant.mark} {_allow(scope)}"
            else:
                yield f"{match} {_allow(scope)}"
    if scope.mode == "allowlist" or not with_names:
        for grant in scope.grants:
            if grant.until:
                yield from (f"{match} {_why('expired', scope)}" for match in _matches(grant, with_names))


def _matches(grant: Grant, with_names: bool) -> Iterator[str]:
    for family in FAMILIES:
        names = []
        if with_names and grant.names:
            names += [grant.set_name(family), grant.old_set_name(family)]
        if _networks(grant, family):
            names.append(grant.fixed_set_name(family))
        for name in names:
            for transport in _transport(grant, family):
                yield f"{transport}{NETWORK_HEADERS[family]} daddr @{name}"


def _transport(grant: Grant, family: int) -> Iterator[str]:
    """Yield what a grant asks of a packet besides its address."""
    ports = braces(port_words(grant.ports)) if grant.ports else ""
    if grant.protocol == "icmp":
        yield "icmp type echo-request " if family == 4 else "icmpv6 type echo-request "
    elif grant.protocol == "any":
        yield f"{TRANSPORTS} th dport {ports} " if ports else ""
    else:
        yield f"{grant.protocol} dport {ports} " if ports else f"meta l4proto {grant.protocol} "


def _in(fence: Fence, scope: Scope) -> Iterator[str]:
    """Yield what may come to a guest of a scope: answers. Only this host itself may begin, and does not come here."""
    yield from _hub(fence, scope, "s")
    if scope.mode in ("allowlist", "open"):
        yield from _closed_rules(scope, "s", f"goto {chain('drop', scope)}")
        yield f"{ANSWERED} {_allow(scope)}"
    if scope.mode != "locked":
        yield from (f"{error} {_allow(scope)}" for error in ERRORS)
    yield _why("inbound", scope)


def _host(fence: Fence, scope: Scope) -> Iterator[str]:
    """Yield what guests of a scope may reach of this host. Each packet is judged, so that a change works at once."""
    if scope.mode != "locked":
        for family in FAMILIES:
            own = f"iifname . {NETWORK_HEADERS[family]} daddr @gateways{family}"
            if scope.resolver_port:
                yield f"{TRANSPORTS} th dport {scope.resolver_port} {own} {_allow(scope)}"
            if fence.proxy.kind:
                yield f"tcp dport {fence.proxy.port} {own} {_allow(scope)}"
            echo = "icmp type echo-request" if family == 4 else "icmpv6 type echo-request"
            yield f"{echo} {own} {_allow(scope)}"
        yield from _hub(fence, scope, "d")
    yield f"meta pkttype @to_many goto {chain('drop', scope)}"
    yield f"{DNS} {_why('dns', scope)}"
    yield _why("input", scope)
