# SPDX-License-Identifier: GPL-3.0-or-later
"""Egress policies as they are declared: who hangs on which bridge, and what whom is open.

A policy belongs to a scope: "default", "project-NAME" or "machine-NAME".
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Union

from .egress_entries import Entry, cidr, denial, entry, network, preset_entry
from .egress_hosts import check_hosts, check_resolvers, hub, machines, networks, proxy, upstream
from .egress_names import check_spelling, check_whole, preset_hint
from .egress_presets import PRESETS, known_domains
from .errors import InvalidInput
from .fences import SPECIAL4, SPECIAL6, Bridge, Guest, Hub, Proxy
from .names import as_bool, as_int, as_text, check_keys, check_name, describe, nearest

BACKENDS = ("nftables", "iptables")
MODES = ("open", "allowlist", "strict", "locked")
KEYS = ("backend", "networks", "machines", "policies", "hub", "proxy", "resolvers", "special_networks", "log_rate")
POLICY_KEYS = ("mode", "inherit", "presets", "allow", "deny", "hub", "peers")
NO_HUB, NO_PROXY = Hub(), Proxy()

Peers = Union[str, tuple[str, ...]]


@dataclass(frozen=True)
class Policy:
    """What is given for one scope. mode "", hub None and peers None: as the scope above has it.

    inherit: whether presets, allow and deny add to those of the scope above. peers: "none", "project" or names.
    """

    mode: str = ""
    inherit: bool = True
    presets: tuple[Entry, ...] = ()
    allow: tuple[Entry, ...] = ()
    deny: tuple[Entry, ...] = ()
    hub: bool | None = None
    peers: Peers | None = None

    def evolve(self, **values: Any) -> Policy:
        return replace(self, **values)

    def to_dict(self) -> dict[str, Any]:
        """Return the mapping that `policy` takes, without what is not given."""
        found: dict[str, Any] = {"mode": self.mode} if self.mode else {}
        if not self.inherit:
            found["inherit"] = False
        for key in ("presets", "allow", "deny"):
            if getattr(self, key):
                found[key] = [item.to_dict() for item in getattr(self, key)]
        if self.hub is not None:
            found["hub"] = self.hub
        if self.peers is not None:
            found["peers"] = self.peers if isinstance(self.peers, str) else list(self.peers)
        return found


@dataclass(frozen=True)
class Declaration:
    """The whole document. machines: their scope and peers are not worked out yet. policies: by scope.

    resolvers: ADDRESS or ADDRESS#PORT, empty for those of this host. special_networks: what names must not lead to.
    """

    backend: str = "nftables"
    networks: tuple[Bridge, ...] = ()
    machines: tuple[Guest, ...] = ()
    policies: Mapping[str, Policy] = field(default_factory=dict)
    hub: Hub = NO_HUB
    proxy: Proxy = NO_PROXY
    resolvers: tuple[str, ...] = ()
    special_networks: tuple[str, ...] = (*SPECIAL4, *SPECIAL6)
    log_rate: int = 10

    def evolve(self, **values: Any) -> Declaration:
        return replace(self, **values)


def parse(document: object) -> Declaration:
    """Return what a document declares. A key whose value is None is not given.

    Raises InvalidInput, which names the thing, what was expected and what was found.
    """
    data = _given("egress", document, KEYS)
    bridges = networks(data.get("networks", ()))
    guests = machines(data.get("machines", ()), bridges)
    the_hub = hub(data.get("hub", {}))
    check_hosts(bridges, guests, the_hub)
    found = Declaration(
        backend=one_of("backend", data.get("backend", "nftables"), BACKENDS),
        networks=bridges,
        machines=guests,
        policies=_policies(data.get("policies", {}), guests),
        hub=the_hub,
        proxy=proxy(data.get("proxy", {})),
        resolvers=tuple(upstream(where, item) for where, item in _items("resolvers", data.get("resolvers", ()))),
        special_networks=_special(data.get("special_networks")),
        log_rate=as_int("log_rate", data.get("log_rate", 10), 1, 10000),
    )
    check_resolvers(found.resolvers, bridges)
    for scope, given in found.policies.items():
        for item in given.allow:
            check_outside(found, f"policies: {scope}", item)
    return found


def to_dict(declaration: Declaration) -> dict[str, Any]:
    """Return the document that parses to this declaration, ready for JSON."""
    policies: dict[str, Any] = {}
    for scope, given in declaration.policies.items():
        kind, _dash, name = scope.partition("-")
        if kind == "default":
            policies["default"] = given.to_dict()
        else:
            policies.setdefault(f"{kind}s", {})[name] = given.to_dict()
    return {
        "backend": declaration.backend,
        "networks": [
            {"name": item.name, "address": item.address4, "address6": item.address6, "nat": item.nat, "dhcp": item.dhcp}
            for item in declaration.networks
        ],
        "machines": [
            {
                "name": item.name,
                "network": item.bridge,
                "mac": item.mac,
                "address": item.address4,
                "address6": item.address6,
                "port": item.port,
                "project": item.project,
            }
            for item in declaration.machines
        ],
        "policies": policies,
        "hub": {
            "name": declaration.hub.name,
            "addresses": list(declaration.hub.addresses),
            "ports": list(declaration.hub.ports),
        },
        "proxy": {"kind": declaration.proxy.kind or "none", "port": declaration.proxy.port},
        "resolvers": list(declaration.resolvers),
        "special_networks": list(declaration.special_networks),
        "log_rate": declaration.log_rate,
    }


def policy(where: str, value: object) -> Policy:
    """Return the policy of one scope. Raises InvalidInput."""
    data = _given(where, value, POLICY_KEYS)
    return Policy(
        mode=one_of(f"{where}: mode", data["mode"], MODES) if "mode" in data else "",
        inherit=as_bool(f"{where}: inherit", data.get("inherit", True)),
        presets=tuple(
            preset_entry(place, item, PRESETS) for place, item in _items(f"{where}: presets", data.get("presets", ()))
        ),
        allow=tuple(allowed(place, item) for place, item in _items(f"{where}: allow", data.get("allow", ()))),
        deny=tuple(denied(place, item) for place, item in _items(f"{where}: deny", data.get("deny", ()))),
        hub=as_bool(f"{where}: hub", data["hub"]) if "hub" in data else None,
        peers=_peers(f"{where}: peers", data["peers"]) if "peers" in data else None,
    )


def allowed(where: str, value: object) -> Entry:
    """Return an entry that opens something, unless its domain is a public suffix or looks like a slip."""
    if isinstance(value, str) and value.strip() in PRESETS:
        raise InvalidInput(f"{where}: expected a domain, a host or a network{preset_hint(value.strip(), PRESETS)}")
    found = entry(where, value)
    if found.kind == "preset":
        raise InvalidInput(f'{where}: expected a domain, a host or a network; "{found.value}" belongs under presets')
    if found.kind == "domain" and not found.force:
        if "." not in found.value:
            hint = preset_hint(found.value, PRESETS)
            if hint:
                raise InvalidInput(f'{where}: expected a domain such as example.org, found "{found.value}"{hint}')
        check_spelling(where, check_whole(where, found.value), known_domains())
    return found


def denied(where: str, value: object) -> Entry:
    """Return an entry that closes something, unless it is a preset or its domain looks like a slip: a hole."""
    found = denial(where, value)
    if found.kind == "domain" and not found.force:
        if found.value in PRESETS:
            raise InvalidInput(f'{where}: "{found.value}" is a preset: presets open, they do not close')
        check_spelling(where, found.value, known_domains())
    return found


def check_outside(declaration: Declaration, where: str, item: Entry) -> None:
    """Raise InvalidInput for an entry in a bridge's network: machines reach each other as peers only."""
    if item.kind != "network":
        return
    found = ipaddress.ip_network(item.value)
    for bridge in declaration.networks:
        for own in filter(None, (bridge.address4, bridge.address6)):
            whole = _network_of(own)
            if found.version == whole.version and found.subnet_of(whole):  # type: ignore[arg-type]
                raise InvalidInput(
                    f"{where}: {item.target} lies in network {bridge.name}, whose machines are reached as peers only "
                    "and whose gateway not at all"
                )


@lru_cache(maxsize=256)
def _network_of(own: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    return ipaddress.ip_interface(own).network


def one_of(where: str, value: object, known: tuple[str, ...]) -> str:
    """Return one of the known words. Raises InvalidInput with the nearest."""
    word = as_text(where, value).strip()
    if word not in known:
        hint = nearest(word, known) or f"; known are {', '.join(known)}"
        raise InvalidInput(f"{where}: expected one of {', '.join(known)}, found {describe(word)}{hint}")
    return word


def _policies(value: object, guests: tuple[Guest, ...]) -> dict[str, Policy]:
    data = _given("policies", value, ("default", "projects", "machines"))
    found = {"default": policy("policies: default", data["default"])} if "default" in data else {}
    known = sorted({guest.name for guest in guests})
    for kind in ("projects", "machines"):
        given = data.get(kind, {})
        if not isinstance(given, Mapping):
            raise InvalidInput(f"policies: {kind}: expected a mapping of names to policies, found {describe(given)}")
        for name in sorted(given, key=str):
            check_name(f"policies: {kind[:-1]}", name)
            if kind == "machines" and name not in known:
                raise InvalidInput(f'policies: machines: unknown machine "{name}"{nearest(name, known)}')
            found[f"{kind[:-1]}-{name}"] = policy(f'policies: {kind[:-1]} "{name}"', given[name] or {})
    for scope, item in found.items():
        for peer in item.peers if isinstance(item.peers, tuple) else ():
            if peer not in known:
                where = scope.replace("-", ' "', 1) + ('"' if "-" in scope else "")
                raise InvalidInput(f'policies: {where}: peers: unknown machine "{peer}"{nearest(peer, known)}')
    return found


def _peers(where: str, value: object) -> Peers:
    if value in ("none", "project"):
        return str(value)
    if isinstance(value, str) or not isinstance(value, (list, tuple)):
        raise InvalidInput(f'{where}: expected "none", "project" or a list of machines, found {describe(value)}')
    return tuple(sorted({check_name(f"{where}: machine", item) for item in value})) or "none"


def _special(value: object) -> tuple[str, ...]:
    if value is None:
        return (*SPECIAL4, *SPECIAL6)
    return tuple(dict.fromkeys(cidr(network(where, item)) for where, item in _items("special_networks", value)))


def _given(where: str, value: object, known: tuple[str, ...]) -> dict[str, Any]:
    return {key: item for key, item in check_keys(where, value, known).items() if item is not None}


def _items(where: str, value: object) -> list[tuple[str, Any]]:
    if not isinstance(value, (list, tuple)):
        raise InvalidInput(f"{where}: expected a list, found {describe(value)}")
    return [(f"{where}[{number}]", item) for number, item in enumerate(value)]
