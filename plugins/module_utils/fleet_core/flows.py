# SPDX-License-Identifier: GPL-3.0-or-later
"""What a fence says of one connection: the meaning that every renderer has to reproduce.

Tests compare the kernel's rules with it, and connections that it no longer permits are cut when a policy changes.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Union

from .egress_presets import DOH4, DOH6
from .fences import METADATA4, METADATA6, Bridge, Fence, Grant, Guest, Scope

ALLOWED = "allowed"
# What a connection is refused for; the words of the log.
REASONS = ("spoof", "peer", "metadata", "denied", "expired", "forward", "dns", "input", "inbound")
_EVERYBODY = ("255.255.255.255", "ff02::1:2")  # where DHCP clients send to

Address = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]
Net = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]
Learned = Mapping[str, Iterable[str]]


@dataclass(frozen=True)
class Flow:
    """A connection in its original direction, before any translation.

    protocol: tcp, udp, icmp (of both families), or anything else. port: of the destination, 0 for none. mark: of
    conntrack, 0 for none.
    """

    source: str
    destination: str
    protocol: str = "tcp"
    port: int = 0
    mark: int = 0


def permitted(fence: Fence, learned: Learned, flow: Flow, now: int) -> bool:
    """Tell whether a connection may begin, or go on. learned: set name to the addresses that names have led to."""
    return verdict(fence, learned, flow, now) == ALLOWED


def verdict(fence: Fence, learned: Learned, flow: Flow, now: int) -> str:
    """Return ALLOWED, or one of REASONS.

    What neither comes from nor goes to the networks of our bridges is none of our business, and allowed. Connections of
    this host itself to a guest are known by the address of a bridge as their source.
    """
    source, destination = ipaddress.ip_address(flow.source), ipaddress.ip_address(flow.destination)
    guest = _guest(fence, flow.source)
    if guest is None:
        if _bridge_with(fence, source) is not None:
            return ALLOWED
        if _in_bridges(fence, source):
            return "spoof"
        return "inbound" if _in_bridges(fence, destination) else ALLOWED
    bridge = next(bridge for bridge in fence.bridges if bridge.name == guest.bridge)
    scope = next(scope for scope in fence.scopes if scope.name == guest.scope)
    if _is_dhcp(flow, bridge, destination):
        return ALLOWED
    if _bridge_with(fence, destination) is not None:
        return _input(fence, scope, flow, bridge, destination)
    other = _guest(fence, flow.destination)
    if other is not None or _in_bridges(fence, destination):
        together = other is not None and other.bridge == guest.bridge and other.name in guest.peers
        return ALLOWED if together or _is_hub(fence, scope, flow) else "peer"
    if scope.mode == "locked":
        return "dns" if _is_dns(flow) else "forward"
    if _is_dns(flow):  # wherever it is sent, the scope's resolver answers
        return ALLOWED if scope.resolver_port else "dns"
    if _is_hub(fence, scope, flow):
        return ALLOWED
    return _forward(fence, scope, learned, flow, destination, now)


def grants_of(scope: Scope, flow: Flow) -> Iterator[Grant]:
    """Yield the grants whose protocol and ports a connection has, in the order in which they count."""
    for grant in scope.grants:
        if grant.protocol == "any" or (
            grant.protocol == flow.protocol
            and (not grant.ports or any(low <= flow.port <= high for low, high in grant.ports))
        ):
            yield grant


def _forward(fence: Fence, scope: Scope, learned: Learned, flow: Flow, destination: Address, now: int) -> str:
    family = destination.version
    metadata = _within(destination, METADATA4 if family == 4 else METADATA6)
    if _within(destination, scope.denied4 if family == 4 else scope.denied6):
        return "denied"
    if scope.mode == "strict":
        return "metadata" if metadata else "forward"
    ended = False

    def opened(reaches: Callable[[Grant], bool]) -> bool:
        nonlocal ended
        for grant in grants_of(scope, flow):
            if reaches(grant):
                if not grant.until or now < grant.until:
                    return True
                ended = True
        return False

    if opened(lambda grant: _within(destination, grant.networks4 if family == 4 else grant.networks6)):
        return ALLOWED
    if metadata:
        return "metadata"
    if not _within(destination, fence.special4 if family == 4 else fence.special6):
        text = str(destination)
        if opened(lambda grant: any(text in learned.get(name, ()) for name in _sets(grant, family))):
            return ALLOWED
        if scope.mode == "open":
            return _at_large(flow, destination)
    return "expired" if ended else "forward"


def _at_large(flow: Flow, destination: Address) -> str:
    """Return the verdict of mode open on what no grant names."""
    if flow.port == 853 and flow.protocol in ("tcp", "udp"):
        return "dns"
    if _within(destination, DOH4 if destination.version == 4 else DOH6):
        return "dns"
    return "forward" if flow.protocol == "udp" and flow.port == 443 else ALLOWED


def _input(fence: Fence, scope: Scope, flow: Flow, bridge: Bridge, destination: Address) -> str:
    """Return the verdict on what is sent to this host."""
    own = _bridge_with(fence, destination) is bridge
    if scope.mode == "locked":
        return "dns" if _is_dns(flow) else "input"
    if _is_dns(flow):
        return ALLOWED if scope.resolver_port else "dns"
    if own and flow.protocol == "icmp":
        return ALLOWED
    if own and flow.protocol == "tcp" and fence.proxy.kind and flow.port == fence.proxy.port:
        return ALLOWED
    return ALLOWED if _is_hub(fence, scope, flow) else "input"


def _is_dhcp(flow: Flow, bridge: Bridge, destination: Address) -> bool:
    to_us = flow.destination in _EVERYBODY or str(destination) in (_host(bridge.address4), _host(bridge.address6))
    return bridge.dhcp and to_us and flow.protocol == "udp" and flow.port == (67 if destination.version == 4 else 547)


def _is_dns(flow: Flow) -> bool:
    return flow.port == 53 and flow.protocol in ("tcp", "udp")


def _is_hub(fence: Fence, scope: Scope, flow: Flow) -> bool:
    hub = fence.hub
    return scope.hub and flow.protocol == "tcp" and flow.port in hub.ports and flow.destination in hub.addresses


def _sets(grant: Grant, family: int) -> tuple[str, str]:
    return grant.set_name(family), grant.old_set_name(family)


class _Same:
    """A fence as a key that is itself and none that is equal: comparing thousands of guests takes its time."""

    def __init__(self, fence: Fence) -> None:
        self.fence = fence

    def __hash__(self) -> int:
        return id(self.fence)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.fence is self.fence


def _guest(fence: Fence, address: str) -> Guest | None:
    return _by_address(_Same(fence)).get(address)


@lru_cache(maxsize=4)
def _by_address(same: _Same) -> dict[str, Guest]:
    return {text: guest for guest in same.fence.guests for text in (guest.address4, guest.address6) if text}


def _bridge_with(fence: Fence, address: Address) -> Bridge | None:
    """Return the bridge whose own address this is."""
    text = str(address)
    return next((bridge for bridge in fence.bridges if text in (_host(bridge.address4), _host(bridge.address6))), None)


def _in_bridges(fence: Fence, address: Address) -> bool:
    return any(
        address in ipaddress.ip_interface(own).network
        for bridge in fence.bridges
        for own in (bridge.address4, bridge.address6)
        if own
    )


def _host(own: str) -> str:
    return own.partition("/")[0]


def _within(address: Address, networks: tuple[str, ...]) -> bool:
    return any(address in net for net in _nets(networks))


@lru_cache(maxsize=4096)
def _nets(networks: tuple[str, ...]) -> tuple[Net, ...]:
    return tuple(ipaddress.ip_network(text) for text in networks)
