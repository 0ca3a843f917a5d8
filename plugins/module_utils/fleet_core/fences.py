# SPDX-License-Identifier: GPL-3.0-or-later
"""A fence: what a gateway enforces, with every policy worked out and every name of a set decided.

Renderers turn a fence into the texts of nftables, iptables, dnsmasq, squid and mitmproxy. They decide nothing, so that
all of them say the same.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

# What no name may lead to, and what only a rule that names it opens: this host, its neighbours, other guests,
# the metadata services of clouds (RFC 6890, RFC 8190).
SPECIAL4 = (
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24"),
    *("192.0.2.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3"),
)
SPECIAL6 = (
    *("::/96", "::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32"),
    *("2002::/16", "3fff::/20", "5f00::/16", "fc00::/7", "fe80::/9", "ff00::/8"),
)
# Closed in every mode, unless a network stands there as small as this: instances get credentials from them. Not all are
# link-local: Alibaba Cloud's is 100.100.100.200, Azure's (with keys of extensions) 168.63.129.16, Oracle's 192.0.0.192.
METADATA4 = ("100.100.100.200/32", "168.63.129.16/32", "169.254.0.0/16", "192.0.0.192/32")
METADATA6 = ("fd00:ec2::/32", "fd20:ce::254/128", "fe80::/10")  # Amazon's, Google's

Ports = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Bridge:
    """A bridge whose gateway is this host. address4, address6: its own, with prefix length, empty for none.

    nat: whether its guests get out under this host's addresses. dhcp: whether dnsmasq gives guests their addresses.
    """

    name: str
    address4: str = ""
    address6: str = ""
    nat: bool = True
    dhcp: bool = True


@dataclass(frozen=True)
class Guest:
    """A machine's network card. port: its interface on this host, empty if not known; scope: of its policy.

    mac: lower case. address4, address6: the only ones that it may use, without prefix length, empty for none.
    peers: guests of the same bridge that it may talk to; talking is mutual, so both name each other.
    """

    name: str
    bridge: str
    mac: str
    address4: str = ""
    address6: str = ""
    port: str = ""
    project: str = ""
    scope: str = "default"
    peers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Grant:
    """What guests of a scope may reach: names, or addresses, by one protocol and some ports, until a time.

    key: a short stable word that the names of sets are made of; it does not depend on names and addresses.
    names: domains without a dot at the end, each with all that is below it. networks4, networks6: CIDR.
    protocol: tcp, udp, icmp (both families' echo) or any. ports: ranges, empty for all; both ends belong to them.
    until: seconds since the epoch, 0 for ever. mark: of conntrack, so that what began under a grant that ends, ends
    with it; 0 for one without an end.
    """

    key: str
    names: tuple[str, ...] = ()
    networks4: tuple[str, ...] = ()
    networks6: tuple[str, ...] = ()
    protocol: str = "tcp"
    ports: Ports = ()
    until: int = 0
    mark: int = 0

    def set_name(self, family: int) -> str:
        """The set of what names of this grant have led to. family: 4 or 6."""
        return f"fleet_n{self.key}_{family}"

    def old_set_name(self, family: int) -> str:
        """The set of what names of this grant led to some time ago; its elements end by themselves."""
        return f"fleet_o{self.key}_{family}"

    def fixed_set_name(self, family: int) -> str:
        """The set of networks4 or networks6."""
        return f"fleet_a{self.key}_{family}"


@dataclass(frozen=True)
class Scope:
    """Guests with one policy: "default", "project-NAME" or "machine-NAME".

    mode: open, allowlist, strict, locked. denied_*: closed even where a grant opens them. resolver_port: of this
    scope's dnsmasq on this host, 0 where names are not answered. hub: whether the hub is reached.
    """

    name: str
    mode: str
    grants: tuple[Grant, ...] = ()
    denied_names: tuple[str, ...] = ()
    denied4: tuple[str, ...] = ()
    denied6: tuple[str, ...] = ()
    resolver_port: int = 0
    hub: bool = False


@dataclass(frozen=True)
class Proxy:
    """The explicit proxy. kind: "squid", "mitmproxy", or empty for none. port: on each bridge's addresses."""

    kind: str = ""
    port: int = 3128


@dataclass(frozen=True)
class Hub:
    """Where the hub is. name: as guests call it; addresses: of both families; ports: of TCP."""

    name: str = ""
    addresses: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()


@dataclass(frozen=True)
class Fence:
    """All that a gateway enforces. upstreams: resolvers that names are asked of, ADDRESS or ADDRESS#PORT.

    special4, special6: what names must not lead to. log_group: of NFLOG; log_rate: denials a second that are logged of
    each scope.
    """

    bridges: tuple[Bridge, ...] = ()
    guests: tuple[Guest, ...] = ()
    scopes: tuple[Scope, ...] = ()
    proxy: Proxy = Proxy()
    hub: Hub = Hub()
    upstreams: tuple[str, ...] = ()
    special4: tuple[str, ...] = SPECIAL4
    special6: tuple[str, ...] = SPECIAL6
    log_group: int = 4711
    log_rate: int = 10

    def evolve(self, **values: Any) -> Fence:
        return replace(self, **values)

    def guests_of(self, scope: str) -> tuple[Guest, ...]:
        return tuple(guest for guest in self.guests if guest.scope == scope)


def grant_key(scope: str, protocol: str, ports: Ports, until: int) -> str:
    """Return the key of a grant: the same for the same scope, protocol, ports and end, whatever it opens."""
    return _digits(f"{scope}\n{protocol}\n{ports}\n{until}")


def name_set(grant: Grant, name: str, family: int) -> str:
    """Return the set of what one name of a grant has led to, so that it can be taken out of the grant's set."""
    return f"fleet_d{grant.key}{_digits(name)}_{family}"


def grant_mark(key: str) -> int:
    """Return the mark of a grant that ends: 31 bits, never 0."""
    return int(key, 16) & 0x7FFFFFFF or 1


def _digits(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
