# SPDX-License-Identifier: GPL-3.0-or-later
"""The chains of one scope: what its guests may begin, what they are told where they may not."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timezone
from enum import Enum

from . import egress_ipsets as sets
from .fences import METADATA4, METADATA6, Bridge, Fence, Grant, Ports, Scope

ALLOW, DENY = "FLEET-ALLOW", "FLEET-DENY"
MOST_PORTS = 15  # in one match of multiport, where a range counts twice
LONGEST_PREFIX = 63  # characters that NFLOG takes
# The time match knows no later moment (32 bits, signed): what ends later ends then.
LAST_MOMENT = 2147483646
# Of connections that a guest began, its own packets and those that come back. Nobody else begins any.
BEGUN, ANSWERED = (f"-m conntrack --ctstate ESTABLISHED --ctdir {way}" for way in ("ORIGINAL", "REPLY"))
_PLAIN_DNS = (("-p tcp --dport 53", "dns"), ("-p udp --dport 53", "dns"))


class Chain(Enum):
    """The kinds of chains of a scope; the value begins their names."""

    NEW = "NEW"  # forwarded from guests, new
    SERVICE = "SVC"  # to this host from guests, new
    FORWARD = "NO"  # forwarded, denied
    SAY = "SAY"  # why it is denied
    INPUT = "NOHOST"  # to this host, denied
    SAY_HOST = "SAYHOST"  # why it is denied
    EXPIRED = "ENDED"  # of a grant that ended
    INBOUND = "NOIN"  # from elsewhere to guests, denied

    def of(self, scope: Scope) -> str:
        """Return the name of a scope's chain."""
        return f"FLEET-{self.value}-{sets.digits(scope.name)}"


def words(rule: str) -> list[str]:
    return rule.split(" ")


def gateway(bridge: Bridge, family: int) -> str:
    """Return this host's address on a bridge, empty for none."""
    address = bridge.address4 if family == 4 else bridge.address6
    return str(ipaddress.ip_interface(address).ip) if address else ""


def ends(until: int) -> str:
    """Return a moment as the time match reads it, in UTC."""
    return datetime.fromtimestamp(min(until, LAST_MOMENT), timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")


def hub_rules(fence: Fence, chain: str, family: int, way: str) -> list[str]:
    """Let the guests whose scopes have it reach the hub, on this host or elsewhere, and its answers reach them."""
    guests = f"-m set --match-set {sets.hub_set(family)} {way}"
    ports = port_matches(tuple((port, port) for port in fence.hub.ports)) if fence.hub.ports else []
    hubs = [(address, match) for address in _of_family(fence.hub.addresses, family) for match in ports]
    known = f"{ANSWERED} -m set --match-set {sets.allowed_set(family)} {way} -j ACCEPT"
    if way == "dst":
        return [f"-A {chain} -s {address} -p tcp{_from(match)} {guests} {known}" for address, match in hubs]
    # The hub may be a guest itself, and answers those of other bridges.
    locked = {scope.name for scope in fence.scopes if scope.mode == "locked"}
    here = set(sets.addresses([guest for guest in fence.guests if guest.scope not in locked], family))
    return [
        *(f"-A {chain} -d {address} -p tcp{match} {guests} -j {ALLOW}" for address, match in hubs),
        *(f"-A {chain} -s {address} -p tcp{_from(match)} {known}" for address, match in hubs if address in here),
    ]


def _from(match: str) -> str:
    """Return a match of the ports that packets go to as one of those that they come from."""
    return match.replace("--dport", "--sport")


def scope_rules(fence: Fence, scope: Scope, family: int) -> list[str]:
    """Return the chains of a scope."""
    return [
        *_new(fence, scope, family),
        *_services(fence, scope, family),
        *_denials(fence, scope, family),
    ]


def _of_family(addresses: Iterable[str], family: int) -> list[str]:
    return [address for address in addresses if ipaddress.ip_address(address).version == family]


def _new(fence: Fence, scope: Scope, family: int) -> list[str]:
    chain, denied = Chain.NEW.of(scope), Chain.FORWARD.of(scope)
    rules: list[str] = []
    if scope.mode in sets.PASSING:
        rules.append(f"-A {chain} -m set --match-set {sets.local_set(family)} dst -g {denied}")
        rules += (f"-A {chain} -p {protocol} --dport 53 -g {denied}" for protocol in ("tcp", "udp"))
        for grant in scope.grants:
            rules += _opened(chain, grant, family, _fixed_sets(grant, family))
        # Names lead nowhere near: only a network that a grant names, above, opens what is special.
        rules.append(f"-A {chain} -m set --match-set {sets.special_set(family)} dst -g {denied}")
        rules += (f"-A {chain} -d {network} -g {denied}" for network in metadata(family))
        for grant in scope.grants:
            rules += _opened(chain, grant, family, _learned_sets(grant, family))
    if scope.mode == "open":
        rules += (f"-A {chain} {match} -g {denied}" for match in _other_names(family))
        rules += [f"-A {chain} -p udp --dport 443 -g {denied}", f"-A {chain} -j {ALLOW}"]
    return [*rules, f"-A {chain} -g {denied}"]


def _other_names(family: int) -> tuple[str, ...]:
    """Return the matches of questions for names that are encrypted, by port and by who answers them."""
    return ("-p tcp --dport 853", "-p udp --dport 853", f"-m set --match-set {sets.doh_set(family)} dst")


def metadata(family: int) -> tuple[str, ...]:
    """Return the networks of metadata services."""
    return METADATA4 if family == 4 else METADATA6


def _fixed_sets(grant: Grant, family: int) -> tuple[str, ...]:
    networks = grant.networks4 if family == 4 else grant.networks6
    return (grant.fixed_set_name(family),) if networks else ()


def _learned_sets(grant: Grant, family: int) -> tuple[str, ...]:
    return (grant.set_name(family), grant.old_set_name(family)) if grant.names else ()


def _opened(chain: str, grant: Grant, family: int, places: Iterable[str]) -> Iterator[str]:
    """Let guests reach what is in some sets. What begins under a grant that ends is marked, to end with it."""
    until = f" -m time --datestop {ends(grant.until - 1)}" if grant.until else ""
    for match in _reached(grant, family, places):
        if grant.mark:
            yield f"-A {chain} {match}{until} -j CONNMARK --set-mark 0x{grant.mark:x}"
        yield f"-A {chain} {match}{until} -g {ALLOW}"


def _reached(grant: Grant, family: int, places: Iterable[str]) -> list[str]:
    return [f"{protocol}-m set --match-set {place} dst" for place in places for protocol in _protocols(grant, family)]


def _protocols(grant: Grant, family: int) -> list[str]:
    """Return the matches of protocol and ports. Any protocol on some ports means those that have ports."""
    if grant.protocol == "icmp":
        return [f"{_echo(family)} "]
    if grant.protocol == "any" and not grant.ports:
        return [""]
    named = ("tcp", "udp") if grant.protocol == "any" else (grant.protocol,)
    return [f"-p {protocol}{match} " for protocol in named for match in port_matches(grant.ports)]


def _echo(family: int) -> str:
    return "-p icmp --icmp-type 8" if family == 4 else "-p icmpv6 --icmpv6-type 128"


def port_matches(ports: Ports) -> list[str]:
    """Return the matches of ports, as few as there can be."""
    if not ports:
        return [""]
    if len(ports) == 1:
        return [f" --dport {_range(ports[0])}"]
    groups: list[list[tuple[int, int]]] = [[]]
    for one in ports:
        if sum(_slots(other) for other in [*groups[-1], one]) > MOST_PORTS:
            groups.append([])
        groups[-1].append(one)
    return [f" -m multiport --dports {','.join(map(_range, group))}" for group in groups]


def _slots(ports: tuple[int, int]) -> int:
    return 1 if ports[0] == ports[1] else 2


def _range(ports: tuple[int, int]) -> str:
    return str(ports[0]) if ports[0] == ports[1] else f"{ports[0]}:{ports[1]}"


def _services(fence: Fence, scope: Scope, family: int) -> list[str]:
    """What guests may use on this host, on the address of their own bridge only: echo, their resolver, the proxy."""
    chain = Chain.SERVICE.of(scope)
    rules: list[str] = []
    for bridge in fence.bridges:
        own = gateway(bridge, family)
        here = any(guest.bridge == bridge.name for guest in fence.guests_of(scope.name))
        if own and here and scope.mode != "locked":
            to = f"-A {chain} -i {bridge.name} -d {own}"
            rules.append(f"{to} {_echo(family)} -g {ALLOW}")
            if scope.resolver_port:
                rules += (f"{to} -p {protocol} --dport {scope.resolver_port} -g {ALLOW}" for protocol in ("udp", "tcp"))
            if fence.proxy.kind:
                rules.append(f"{to} -p tcp --dport {fence.proxy.port} -g {ALLOW}")
    noise = (f"-A {chain} -m pkttype --pkt-type {kind} -j DROP" for kind in ("broadcast", "multicast"))
    return [*rules, *noise, f"-A {chain} -g {Chain.INPUT.of(scope)}"]


def _denials(fence: Fence, scope: Scope, family: int) -> list[str]:
    forward, say = Chain.FORWARD.of(scope), Chain.SAY.of(scope)
    rules = [
        _count(forward, family, "src"),
        *_limited(fence, forward, f"-j {say}"),
        *(f"-A {forward} -d {network} -j DROP" for network in metadata(family)),
        f"-A {forward} -g {DENY}",
    ]
    host, inbound = Chain.INPUT.of(scope), Chain.INBOUND.of(scope)
    rules += [
        _count(host, family, "src"),
        *_limited(fence, host, f"-j {Chain.SAY_HOST.of(scope)}"),
        f"-A {host} -j DROP",
        _count(inbound, family, "dst"),
        *_limited(fence, inbound, _log(fence, "inbound", scope)),
        f"-A {inbound} -j DROP",
    ]
    if fence.log_rate:
        rules += _said(fence, scope, Chain.SAY, (*_reasons(scope, family), ("", "forward")))
        rules += _said(fence, scope, Chain.SAY_HOST, (*_PLAIN_DNS, ("", "input")))
    if any(grant.mark for grant in scope.grants):
        ended = Chain.EXPIRED.of(scope)
        rules += [_count(ended, family, "src"), *_limited(fence, ended, _log(fence, "expired", scope))]
        rules.append(f"-A {ended} -g {DENY}")
    return rules


def _said(fence: Fence, scope: Scope, chain: Chain, reasons: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Log the first of some reasons that matches. A match is empty for all."""
    for match, reason in reasons:
        begin = f"-A {chain.of(scope)}{match and ' '}{match}"
        yield f"{begin} {_log(fence, reason, scope)}"
        yield f"{begin} -j RETURN"


def _reasons(scope: Scope, family: int) -> Iterator[tuple[str, str]]:
    """Yield why something that is forwarded is denied: match, word. What none of them matches is denied as such."""
    yield f"-m set --match-set {sets.local_set(family)} dst", "peer"
    yield from _PLAIN_DNS
    if sets.closed_networks(scope, family):
        yield f"-m set --match-set {sets.closed_set(scope.name, family)} dst", "denied"
    for network in metadata(family):
        yield f"-d {network}", "metadata"
    for grant in scope.grants if scope.mode in sets.PASSING else ():
        if grant.until:
            ended = f"-m time --datestart {ends(grant.until)}"
            for match in _reached(grant, family, (*_fixed_sets(grant, family), *_learned_sets(grant, family))):
                yield f"{match} {ended}", "expired"
    if scope.mode == "open":
        yield from ((match, "dns") for match in _other_names(family))


def _count(chain: str, family: int, way: str) -> str:
    return f"-A {chain} -m set --match-set {sets.denied_set(family)} {way}"


def _limited(fence: Fence, chain: str, target: str) -> Sequence[str]:
    return (f"-A {chain} {log_limit(fence)} {target}",) if fence.log_rate else ()


def log_limit(fence: Fence) -> str:
    """Return the match that holds what is logged to the rate of a fence, which is not 0 and at most 10,000."""
    rate = min(fence.log_rate, 10000)
    return f"-m limit --limit {rate}/sec --limit-burst {max(rate, 5)}"


def _log(fence: Fence, reason: str, scope: Scope) -> str:
    prefix = f"fleet {reason} {scope.name}"[: LONGEST_PREFIX - 1]
    return f'-j NFLOG --nflog-group {fence.log_group} --nflog-prefix "{prefix} "'
