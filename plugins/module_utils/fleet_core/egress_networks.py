# SPDX-License-Identifier: GPL-3.0-or-later
"""Lists of networks in CIDR: without others, and as short as they can be."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Union

Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]


def without(networks: Iterable[str], holes: Iterable[str]) -> list[str]:
    """Return networks with holes cut out of them, reduced. All are of one family."""
    left = [ipaddress.ip_network(network) for network in networks]
    for hole in (ipaddress.ip_network(text) for text in holes):
        left = [part for network in left for part in _cut(network, hole)]
    return _collapsed(left)


def reduced(networks: Iterable[str]) -> list[str]:
    """Return the fewest networks that mean the same, in order. All are of one family."""
    return _collapsed([ipaddress.ip_network(network) for network in networks])


def _collapsed(networks: Iterable[Network]) -> list[str]:
    return [str(network) for network in ipaddress.collapse_addresses(networks)]  # type: ignore[type-var]


def _cut(network: Network, hole: Network) -> list[Network]:
    if not network.overlaps(hole):
        return [network]
    if network.prefixlen >= hole.prefixlen:
        return []
    return list(network.address_exclude(hole))  # type: ignore[arg-type]
