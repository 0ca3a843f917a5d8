# SPDX-License-Identifier: GPL-3.0-or-later
"""What the addon of mitmproxy decides: who may reach what, whether names agree, what is written down of a path.

Imports nothing of ours: mitmproxy is given a copy of it beside the addon.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from typing import Any, Union

Address = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]
Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]

NAMES_ELSEWHERE = (53, 853)
# What else is spoken on these ports than HTTP hides a Host header from us.
WEB_PORTS = (80, 443, 8000, 8008, 8080, 8443, 8888)
_KEY_LIKE = re.compile(r"[A-Za-z0-9_=:+%.~-]{24,}")
_LONGEST_PATH = 200


class Ports:
    """Ranges of ports until a time; no ranges are all ports, no time is for ever."""

    def __init__(self, ports: Sequence[Sequence[int]], until: int) -> None:
        self._ranges = [(ends[0], ends[1]) for ends in ports]
        self._until = until

    def opens(self, port: int, now: float) -> bool:
        in_time = not self._until or now < self._until
        return in_time and (not self._ranges or any(first <= port <= last for first, last in self._ranges))


class ScopePolicy:
    """What guests of one scope may reach."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.mode = str(document["mode"])
        self._denied = frozenset(document["denied_names"])
        self._special = [ipaddress.ip_network(network) for network in document["special"]]
        self._closed_names = frozenset(document.get("closed_names", ()))  # of the mode open
        self._closed = [ipaddress.ip_network(network) for network in document.get("closed_networks", ())]
        self._networks: list[tuple[Network, Ports]] = [
            (ipaddress.ip_network(row["network"]), Ports(row["ports"], row["until"])) for row in document["networks"]
        ]
        self._names: dict[str, list[Ports]] = {}
        for row in document["names"]:
            self._names.setdefault(row["domain"], []).append(Ports(row["ports"], row["until"]))

    def refusal(self, host: str, port: int, now: float) -> str:
        """Return why a host is not reached on a port, or an empty text. Resolves nothing."""
        if self.mode == "locked":
            return "the mode is locked"
        address = as_address(host)
        if address is not None:
            return "" if self.opens_address(address, port, now) else f"no network of the policy has it on port {port}"
        parents = _parents(host)
        if any(parent in self._denied for parent in parents):
            return "the policy denies this name"
        if self.names(host, port, now):
            return ""
        if self.mode == "open" and port not in NAMES_ELSEWHERE:
            return "names are asked elsewhere there" if self._closed_names.intersection(parents) else ""
        named = any(parent in self._names for parent in parents)
        return f"the policy has this name, but not on port {port} now" if named else "the policy does not name it"

    def names(self, host: str, port: int, now: float) -> bool:
        """Say whether a grant names a host, or a domain that it is in."""
        return any(ports.opens(port, now) for parent in _parents(host) for ports in self._names.get(parent, ()))

    def opens_address(self, address: Address, port: int, now: float) -> bool:
        """Say whether an address is reached by itself."""
        if any(address in network and ports.opens(port, now) for network, ports in self._networks):
            return True
        closed = (*self._special, *self._closed)
        return self.mode == "open" and port not in NAMES_ELSEWHERE and not _within(address, closed)

    def leads(self, address: Address, host: str, port: int, now: float) -> bool:
        """Say whether an allowed name may lead to an address: to other resolvers only one that a grant names."""
        closed = self._special if self.names(host, port, now) else [*self._special, *self._closed]
        return not _within(address, closed) or self.opens_address(address, port, now)


class Policy:
    """The policy of all guests. document: of egress_mitmproxy.policy(); without one, nobody gets out."""

    def __init__(self, document: Mapping[str, Any] | None = None) -> None:
        found = document or {"scopes": {}, "guests": {}}
        self._scopes = {name: ScopePolicy(scope) for name, scope in found["scopes"].items()}
        self._guests = {str(as_address(address)): dict(guest) for address, guest in found["guests"].items()}

    def guest(self, source: str) -> dict[str, str]:
        """Return machine, project and scope of a source address; an empty mapping for a stranger."""
        return self._guests.get(str(as_address(source)), {})

    def scope(self, source: str) -> ScopePolicy | None:
        return self._scopes.get(self.guest(source).get("scope", ""))

    def refusal(self, source: str, host: str, port: int, now: float) -> str:
        scope = self.scope(source)
        return scope.refusal(host, port, now) if scope else "this is no machine of the policy"


def _parents(host: str) -> list[str]:
    """Return a name and the domains that it is in."""
    return [host.split(".", at)[at] for at in range(host.count(".") + 1)]


def _within(address: Address, networks: Sequence[Network]) -> bool:
    return any(address in network for network in networks)


def as_address(text: str) -> Address | None:
    """Return the address that a text is, IPv4 in IPv6 as IPv4, or None for a name."""
    try:
        address = ipaddress.ip_address(text.strip("[]").partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def as_host(text: str) -> str:
    """Return a host as it is compared: lower case, without a dot at the end, addresses in their shortest form."""
    address = as_address(text)
    return str(address) if address is not None else text.strip().rstrip(".").lower()


def without_port(authority: str) -> str:
    """Return the host of "host:port", "[address]:port" or "host"."""
    if authority.startswith("["):
        return as_host(authority.partition("]")[0])
    return as_host(authority.rpartition(":")[0] if authority.count(":") == 1 else authority)


def mismatch(target: str, sni: str | None, said: Sequence[str]) -> str:
    """Return how names differ from where the connection goes, or an empty text. said: Host and :authority."""
    if sni and as_host(sni) != target:
        return f"the TLS greeting says {as_host(sni)}, the connection is to {target}"
    other = next((name for name in map(without_port, said) if name != target), None)
    return "" if other is None else f"the request is for {other}, the connection is to {target}"


def loggable(path: str) -> str:
    """Return a path without its query, and with "*" for what could be a key."""
    plain = path.partition("?")[0].partition("#")[0][:_LONGEST_PATH]
    return "/".join("*" if _KEY_LIKE.fullmatch(part) else part for part in plain.split("/"))
