# SPDX-License-Identifier: GPL-3.0-or-later
"""From a declaration to a fence: who inherits what, what is closed in the end, and what each grant is called.

Denials win over grants, whatever they are inherited from. What somebody closes while it runs reaches every scope below,
also one that does not inherit; what somebody opens reaches those that do.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from .egress import Declaration, Peers, Policy, check_outside
from .egress_entries import Entry, Net, cidr
from .egress_live import Live
from .egress_names import covered, covers, widest
from .egress_presets import preset_entries
from .errors import Conflict
from .fences import METADATA4, METADATA6, Fence, Grant, Guest, Ports, Scope, grant_key, grant_mark, name_set

BUILT_IN = Policy(mode="allowlist", hub=True, peers="none")


@dataclass(frozen=True)
class Effective:
    """The policy of a scope with all that it inherits. allow: presets are resolved. Nothing of it has ended."""

    mode: str
    hub: bool
    peers: Peers
    allow: tuple[Entry, ...] = ()
    deny: tuple[Entry, ...] = ()
    presets: tuple[Entry, ...] = field(default=(), compare=False)


def scope_names(declaration: Declaration, live: Iterable[Live] = (), now: int = 0) -> dict[tuple[str, str], str]:
    """Return the scope of each machine's card, by the names of machine and network."""
    known = {*declaration.policies, *(change.scope for change in live if change.lasts(now))}
    return {(guest.name, guest.bridge): _scope_of(guest, known) for guest in declaration.machines}


def effective(declaration: Declaration, live: Iterable[Live], now: int, scope: str, project: str = "") -> Effective:
    """Return what holds for a scope. project: of a machine's own scope."""
    return _effective(declaration, [change for change in live if change.lasts(now)], now, _chain(scope, project), {})


def _effective(
    declaration: Declaration,
    changes: Sequence[Live],
    now: int,
    chain: tuple[str, ...],
    known: dict[tuple[str, ...], Effective],
) -> Effective:
    """Return what holds for the last scope of a chain. known: what is worked out already, by chain."""
    found = _inherited(declaration, changes, now, chain, known)
    above = [change for change in changes if change.scope in chain]
    closed = tuple(change.to_entry() for change in above if change.verb == "deny")
    if any(change.verb == "mode" and change.entry == "locked" for change in above):
        found = replace(found, mode="locked")
    return replace(found, deny=tuple(dict.fromkeys((*found.deny, *closed))))


def _inherited(
    declaration: Declaration,
    changes: Sequence[Live],
    now: int,
    chain: tuple[str, ...],
    known: dict[tuple[str, ...], Effective],
) -> Effective:
    if not chain:
        return Effective(BUILT_IN.mode, bool(BUILT_IN.hub), "none")
    if chain not in known:
        above = _inherited(declaration, changes, now, chain[:-1], known)
        given = declaration.policies.get(chain[-1], Policy())
        known[chain] = _below(above, given, [change for change in changes if change.scope == chain[-1]], now)
    return known[chain]


def compile(  # noqa: A001 - what it is
    declaration: Declaration,
    live: Sequence[Live] = (),
    now: int = 0,
    ports: Mapping[str, int] | None = None,
    upstreams: Sequence[str] = (),
) -> Fence:
    """Return the fence of a declaration at a time.

    ports: of each scope's resolver, by the scope's name. upstreams: resolvers to ask where the declaration names none.
    Raises Conflict when two grants would get the same key, mark or set.
    """
    scopes_of = scope_names(declaration, live, now)
    special4, special6 = _special(declaration)
    lasting = [change for change in live if change.lasts(now)]
    chains: dict[tuple[str, ...], Effective] = {}
    known: dict[str, Effective] = {}
    guests = []
    for guest in declaration.machines:
        scope = scopes_of[guest.name, guest.bridge]
        if scope not in known:
            known[scope] = _effective(declaration, lasting, now, _chain(scope, guest.project), chains)
        guests.append(replace(guest, scope=scope))
    has_hub = bool(declaration.hub.addresses)
    fence = Fence(
        bridges=declaration.networks,
        guests=_with_peers(guests, known),
        scopes=tuple(
            _scope(name, known[name], now, special4 + special6, has_hub, (ports or {}).get(name, 0))
            for name in sorted(known, key=_scope_order)
        ),
        proxy=declaration.proxy,
        hub=declaration.hub,
        upstreams=tuple(declaration.resolvers or upstreams),
        special4=special4,
        special6=special6,
        log_rate=declaration.log_rate,
    )
    _check_keys(fence)
    return fence


def check_live(declaration: Declaration, live: Iterable[Live], now: int, change: Live) -> None:
    """Raise Conflict for a change that opens what stays closed, InvalidInput for one that opens a bridge's network.

    live: all changes, with this one.
    """
    if change.verb != "allow":
        return
    projects = {f"machine-{guest.name}": guest.project for guest in declaration.machines}
    policy = effective(declaration, live, now, change.scope, projects.get(change.scope, ""))
    found = _resolved(change.to_entry(), now)
    for item in found:
        check_outside(declaration, "live change", item)
    closed = [next((other for other in policy.deny if _holds(other, item)), None) for item in found]
    if all(closed):
        names = ", ".join(dict.fromkeys(other.target for other in closed if other))
        raise Conflict(f"{change.entry}: stays closed, because {names} is denied for {change.scope}")


def _holds(closed: Entry, item: Entry) -> bool:
    if closed.kind != item.kind:
        return False
    if item.kind == "domain":
        return covers(closed.value, item.value)
    return _inside(_net(item.value), _net(closed.value))


def next_end(declaration: Declaration, live: Iterable[Live], now: int) -> int:
    """Return when the next of what holds now ends, in seconds since the epoch; 0 if nothing does."""
    ends = [change.until for change in live if change.until > now]
    for given in declaration.policies.values():
        ends += [end for item in (*given.presets, *given.allow, *given.deny) if (end := item.end(now)) > now]
    return min(ends, default=0)


def settled(declaration: Declaration, before: Declaration | None, now: int) -> Declaration:
    """Return the declaration with a beginning for every entry that lasts for some time.

    An entry that stood in the same place before goes on as it began, so that applying a document again opens nothing
    for longer.
    """
    policies = {}
    for scope, given in declaration.policies.items():
        old = before.policies.get(scope, Policy()) if before else Policy()
        policies[scope] = given.evolve(
            **{key: _begun(getattr(given, key), getattr(old, key), now) for key in ("presets", "allow", "deny")}
        )
    return declaration.evolve(policies=policies)


def _begun(entries: Iterable[Entry], before: Iterable[Entry], now: int) -> tuple[Entry, ...]:
    begun = {item.evolve(since=0, comment=""): item.since for item in before if item.span and item.since}
    return tuple(
        item.evolve(since=begun.get(item.evolve(comment=""), now)) if item.span and not item.since else item
        for item in entries
    )


def _scope_of(guest: Guest, known: Iterable[str]) -> str:
    if f"machine-{guest.name}" in known:
        return f"machine-{guest.name}"
    return f"project-{guest.project}" if guest.project and f"project-{guest.project}" in known else "default"


def _chain(scope: str, project: str) -> tuple[str, ...]:
    """Return a scope and those above it, the widest first."""
    if scope.startswith("machine-") and project:
        return ("default", f"project-{project}", scope)
    return ("default",) if scope == "default" else ("default", scope)


def _scope_order(name: str) -> tuple[int, str]:
    return (("default", "project", "machine").index(name.partition("-")[0]), name)


def _below(above: Effective, given: Policy, changes: Sequence[Live], now: int) -> Effective:
    """Return what holds for a scope, from what holds above it and what is given for it."""
    kept = above if given.inherit else replace(above, allow=(), deny=(), presets=())
    mode = next((change.entry for change in changes if change.verb == "mode"), given.mode)
    opened = [change.to_entry() for change in changes if change.verb == "allow"]
    named = [item for item in (*given.presets, *given.allow, *opened) if item.lasts(now)]
    return Effective(
        mode=mode or above.mode,
        hub=above.hub if given.hub is None else given.hub,
        peers=above.peers if given.peers is None else given.peers,
        allow=(*kept.allow, *(item for entry in named for item in _resolved(entry, now))),
        deny=(*kept.deny, *(item for item in given.deny if item.lasts(now))),
        presets=(*kept.presets, *(item for item in named if item.kind == "preset")),
    )


def _resolved(item: Entry, now: int) -> list[Entry]:
    """Return an entry, or those of a preset, with the time of its end."""
    found = preset_entries(item.value) if item.kind == "preset" else (item,)
    return [entry.evolve(until=item.end(now), span=0, since=0, comment="", force=False) for entry in found]


def _scope(
    name: str, policy: Effective, now: int, special: tuple[str, ...], has_hub: bool, resolver_port: int
) -> Scope:
    if policy.mode == "locked":
        return Scope(name, "locked")
    closed = tuple(item.value for item in policy.deny if item.kind == "network")
    denied = widest(item.value for item in policy.deny if item.kind == "domain")
    kept_out = (*special, *METADATA4, *METADATA6)
    return Scope(
        name,
        policy.mode,
        grants=_grants(name, policy.allow, frozenset(denied), closed, kept_out),
        denied_names=denied,
        denied4=_texts(map(_net, closed), 4),
        denied6=_texts(map(_net, closed), 6),
        resolver_port=resolver_port,
        hub=policy.hub and has_hub,
    )


Slot = tuple[str, Ports, int]


def _grants(
    scope: str, allow: Iterable[Entry], denied: frozenset[str], closed: tuple[str, ...], special: tuple[str, ...]
) -> tuple[Grant, ...]:
    """Group entries by protocol, ports and end. Those that last longest come first: the first that matches marks."""
    names: dict[Slot, set[str]] = {}
    nets: dict[Slot, list[Net]] = {}
    for item in allow:
        slot = (item.protocol, item.ports, item.until)
        if item.kind == "domain":
            if not covered(item.value, denied):
                names.setdefault(slot, set()).add(item.value)
        else:
            nets.setdefault(slot, []).extend(_without(item.value, special, closed))
    grants = []
    for slot in sorted({*names, *nets}, key=_slot_order):
        protocol, ports, until = slot
        its_names, its_nets = widest(names.get(slot, ())), nets.get(slot, [])
        if its_names or its_nets:
            key = grant_key(scope, protocol, ports, until)
            mark = grant_mark(key) if until else 0
            networks4, networks6 = _texts(its_nets, 4), _texts(its_nets, 6)
            grants.append(Grant(key, its_names, networks4, networks6, protocol, ports, until, mark))
    return tuple(grants)


def _slot_order(slot: Slot) -> tuple[bool, int, str, Ports]:
    protocol, ports, until = slot
    return (until > 0, -until, protocol, ports)


@lru_cache(maxsize=4096)
def _without(text: str, special: tuple[str, ...], closed: tuple[str, ...]) -> tuple[Net, ...]:
    """Return a network without the special ones that it is wider than; nothing if it is closed.

    What lies in a special network, or is one, has been named on purpose.
    """
    whole = _net(text)
    if any(_inside(whole, _net(other)) for other in closed):
        return ()
    parts = [whole]
    for hole in map(_net, special):
        if hole != whole and _inside(hole, whole):
            parts = [rest for part in parts for rest in _minus(part, hole)]
    return tuple(parts)


@lru_cache(maxsize=4096)
def _net(text: str) -> Net:
    return ipaddress.ip_network(text)


def _minus(part: Net, hole: Net) -> list[Net]:
    if _inside(part, hole):
        return []
    return list(part.address_exclude(hole)) if _inside(hole, part) else [part]  # type: ignore[arg-type]


def _inside(small: Net, large: Net) -> bool:
    return small.version == large.version and small.subnet_of(large)  # type: ignore[arg-type]


def _texts(nets: Iterable[Net], version: int) -> tuple[str, ...]:
    return _collapsed(tuple(net for net in nets if net.version == version))


@lru_cache(maxsize=1024)
def _collapsed(nets: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(cidr(net) for net in ipaddress.collapse_addresses(nets))


def _special(declaration: Declaration) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the special networks of both families; those of our bridges are among them, for guests live there."""
    own = [
        ipaddress.ip_interface(address).network
        for bridge in declaration.networks
        for address in (bridge.address4, bridge.address6)
        if address
    ]
    nets = [*map(_net, declaration.special_networks), *own]
    return _texts(nets, 4), _texts(nets, 6)


def _with_peers(guests: Sequence[Guest], policies: Mapping[str, Effective]) -> tuple[Guest, ...]:
    """Return guests with those of their bridge that they may talk to: both must have the other among their peers."""

    def wants(one: Guest, peer: Guest) -> bool:
        policy = policies[one.scope]
        if policy.mode == "locked" or policy.peers == "none":
            return False
        if policy.peers == "project":
            return bool(one.project) and one.project == peer.project
        return peer.name in policy.peers

    by_name = {(guest.bridge, guest.name): guest for guest in guests}
    by_project: dict[tuple[str, str], list[Guest]] = {}
    for guest in guests:
        by_project.setdefault((guest.bridge, guest.project), []).append(guest)
    found = []
    for guest in guests:
        named = policies[guest.scope].peers
        if named == "project":
            others: Iterable[Guest] = by_project[guest.bridge, guest.project]
        else:
            names = () if isinstance(named, str) else named
            others = [by_name[guest.bridge, name] for name in names if (guest.bridge, name) in by_name]
        mutual = {other.name for other in others if wants(guest, other) and wants(other, guest)} - {guest.name}
        found.append(replace(guest, peers=tuple(sorted(mutual))))
    return tuple(found)


def _check_keys(fence: Fence) -> None:
    """Raise Conflict if two things would get one name: hashes are short, and nothing may open by accident."""
    keys: dict[str, str] = {}
    marks: dict[int, str] = {}
    for scope in fence.scopes:
        for grant in scope.grants:
            shown = f"{scope.name} {grant.protocol} {grant.ports} until {grant.until}"
            if keys.setdefault(grant.key, shown) != shown:
                raise Conflict(f"grants {keys[grant.key]} and {shown}: both get the key {grant.key}: change either")
            if grant.mark and marks.setdefault(grant.mark, shown) != shown:
                raise Conflict(f"grants {marks[grant.mark]} and {shown}: both get the mark {grant.mark}: change either")
            sets: dict[str, str] = {}
            for name in grant.names:
                if sets.setdefault(name_set(grant, name, 4), name) != name:
                    raise Conflict(f"grant {shown}: {sets[name_set(grant, name, 4)]} and {name} both get one set")
