# SPDX-License-Identifier: GPL-3.0-or-later
"""Networks as a proxy sees them: what it may reach for a scope, and what an allowed name must not lead to.

A proxy runs on the gateway, whose own connections no rule of the fence looks at: it has to know by itself that this
host, its guests and metadata services are not what a guest may reach through it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Union

from .fences import METADATA4, METADATA6, Fence, Grant, Scope

Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]

_HOST4, _HOST6 = ("0.0.0.0/8", "127.0.0.0/8"), ("::/127",)
# Proxies see IPv4 addresses that are written like this as what they are; squid would take this network for all of IPv4.
_MAPPED = "::ffff:0:0/96"


def granted_networks(fence: Fence, scope: Scope, grant: Grant) -> list[str]:
    """Return the networks of a grant without what is denied, this host, its guests, and metadata that is not meant."""
    four = _without_metadata(grant.networks4, METADATA4)
    six = _without_metadata(grant.networks6, METADATA6)
    own4, own6 = _own(fence)
    return [*without(four, (*scope.denied4, *own4)), *without(six, (*scope.denied6, *own6, _MAPPED))]


def special_networks(fence: Fence, scope: Scope, granted: Iterable[str] = ()) -> list[str]:
    """Return what the names of a scope must not lead to. granted: networks that they may lead to nonetheless."""
    networks = [ipaddress.ip_network(network) for network in granted]
    four = without((*fence.special4, *METADATA4), [str(one) for one in networks if one.version == 4])
    six = without((*fence.special6, *METADATA6), [str(one) for one in networks if one.version == 6])
    own4, own6 = _own(fence)
    return [*_reduced([*four, *scope.denied4, *own4]), *without([*six, *scope.denied6, *own6], [_MAPPED])]


def without(networks: Iterable[str], holes: Iterable[str]) -> list[str]:
    """Return networks with holes cut out of them, as few as possible, in order. All are of one family."""
    left = [ipaddress.ip_network(network) for network in networks]
    for hole in (ipaddress.ip_network(text) for text in holes):
        left = [part for network in left for part in _cut(network, hole)]
    return _collapsed(left)


def _own(fence: Fence) -> tuple[list[str], list[str]]:
    """Return this host and the networks of its guests."""
    four = [str(ipaddress.ip_interface(bridge.address4).network) for bridge in fence.bridges if bridge.address4]
    six = [str(ipaddress.ip_interface(bridge.address6).network) for bridge in fence.bridges if bridge.address6]
    return [*_HOST4, *four], [*_HOST6, *six]


def _without_metadata(networks: Iterable[str], metadata: Iterable[str]) -> list[str]:
    """Cut metadata services out of networks, except of those that lie within: they were meant."""
    outer = [ipaddress.ip_network(network) for network in metadata]
    kept: list[str] = []
    for text in networks:
        network = ipaddress.ip_network(text)
        meant = any(network.subnet_of(one) for one in outer)  # type: ignore[arg-type]
        kept += [text] if meant else without([text], map(str, outer))
    return kept


def _reduced(networks: Iterable[str]) -> list[str]:
    return _collapsed([ipaddress.ip_network(network) for network in networks])


def _collapsed(networks: Iterable[Network]) -> list[str]:
    return [str(network) for network in ipaddress.collapse_addresses(networks)]  # type: ignore[type-var]


def _cut(network: Network, hole: Network) -> list[Network]:
    if not network.overlaps(hole):
        return [network]
    if network.prefixlen >= hole.prefixlen:
        return []
    return list(network.address_exclude(hole))  # type: ignore[arg-type]
