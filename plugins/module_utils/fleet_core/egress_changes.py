# SPDX-License-Identifier: GPL-3.0-or-later
"""What follows from replacing one fence by another: whose connections to look at, which addresses to forget or keep.

In doubt a guest has less than before: to look at its connections costs little, to overlook one that must end does not.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from .fences import Fence, Grant, Guest, Ports, Scope, name_set

_WIDTH = {"locked": 0, "strict": 1, "allowlist": 2, "open": 3}
_ALL_PORTS: Ports = ((0, 65535),)

Learned = Mapping[str, Iterable[str]]


@dataclass(frozen=True)
class Consequences:
    """What is to be done once another fence is in force.

    narrowed: guests, as they were, that may reach less than before. proxied: those that may reach less by way of the
    proxy, also where what they had has ended by itself. moved: guests whose names another resolver answers now. forget:
    keys of grants that learned addresses of names that they no longer have.
    """

    narrowed: tuple[Guest, ...] = ()
    proxied: tuple[Guest, ...] = ()
    moved: tuple[Guest, ...] = ()
    forget: tuple[str, ...] = ()


def consequences(old: Fence, new: Fence, now: int) -> Consequences:
    """Return what follows from replacing old by new. now: seconds since the epoch."""
    before, after = {scope.name: scope for scope in old.scopes}, {scope.name: scope for scope in new.scopes}
    guests = {(guest.name, guest.bridge): guest for guest in new.guests}
    shared = _shared(old) != _shared(new)
    verdicts: dict[tuple[str, str, int], bool] = {}

    def lesser(was: str, will: str, since: int) -> bool:
        if (was, will, since) not in verdicts:
            verdicts[was, will, since] = less(before.get(was), after.get(will), since)
        return verdicts[was, will, since]

    narrowed, proxied, moved = [], [], []
    for guest in old.guests:
        found = guests.get((guest.name, guest.bridge))
        if (
            found is None
            or shared
            or _identity(found) != _identity(guest)
            or set(guest.peers) - set(found.peers)
            or lesser(guest.scope, found.scope, now)
        ):
            narrowed.append(guest)
            proxied.append(guest)
        elif lesser(guest.scope, found.scope, 0):
            proxied.append(guest)
        if found is None or _port(before, guest.scope) != _port(after, found.scope):
            moved.append(guest)
    forget = [key for name, scope in after.items() if name in before for key in _poorer(before[name], scope)]
    return Consequences(tuple(narrowed), tuple(proxied), tuple(moved), tuple(forget))


def _shared(fence: Fence) -> tuple[object, ...]:
    """Return what is the same for all scopes, and whose changes may close something."""
    return (
        fence.proxy, fence.hub, fence.special4, fence.special6,
        tuple((bridge.name, bridge.address4, bridge.address6) for bridge in fence.bridges),
    )  # fmt: skip


def _identity(guest: Guest) -> tuple[str, ...]:
    return (guest.bridge, guest.mac, guest.address4, guest.address6, guest.port)


def _port(scopes: Mapping[str, Scope], name: str) -> int:
    return scopes[name].resolver_port if name in scopes else 0


def less(old: Scope | None, new: Scope | None, now: int) -> bool:
    """Tell whether guests that had the one scope may reach less with the other. What has ended by now is no loss."""
    if old is None:
        return False
    if new is None or _WIDTH[new.mode] < _WIDTH[old.mode] or (old.hub and not new.hub):
        return True
    if old.mode == "locked":
        return False
    if not set(new.denied_names) <= set(old.denied_names):
        return True
    if not (_inside(new.denied4, old.denied4) and _inside(new.denied6, old.denied6)):
        return True
    lasting = [grant for grant in old.grants if not grant.until or grant.until > now]
    return not all(_covered(grant, new.grants) for grant in lasting)


def _covered(grant: Grant, others: Iterable[Grant]) -> bool:
    wider = [other for other in others if _as_wide(other, grant)]
    names = {name for other in wider for name in other.names}
    return (
        all(_below(name, names) for name in grant.names)
        and _inside(grant.networks4, [network for other in wider for network in other.networks4])
        and _inside(grant.networks6, [network for other in wider for network in other.networks6])
    )


def _as_wide(wide: Grant, narrow: Grant) -> bool:
    """Tell whether one grant lets all through by protocol, ports and time that the other one lets through."""
    ends = not wide.until or (narrow.until and wide.until >= narrow.until)
    if wide.protocol not in ("any", narrow.protocol) or not ends:
        return False
    ports = wide.ports or _ALL_PORTS
    return all(any(low <= first and last <= high for low, high in ports) for first, last in narrow.ports or _ALL_PORTS)


def _inside(networks: Iterable[str], others: Iterable[str]) -> bool:
    """Tell whether each network lies in one of the others."""
    wide = set(others)
    parsed = [ipaddress.ip_network(one) for one in wide]
    for text in networks:
        if text in wide:
            continue
        one = ipaddress.ip_network(text)
        if not any(one.version == other.version and one.subnet_of(other) for other in parsed):  # type: ignore[arg-type]
            return False
    return True


def _below(name: str, domains: Iterable[str]) -> bool:
    """Tell whether a name is one of the domains, or below one."""
    known = domains if isinstance(domains, (set, frozenset)) else set(domains)
    return any(one in known for one in _parents(name))


def _parents(name: str) -> list[str]:
    """Return a name and all domains that it lies in, the widest last."""
    parts = name.split(".")
    return [".".join(parts[at:]) for at in range(len(parts))]


def _poorer(old: Scope, new: Scope) -> list[str]:
    """Return the keys of grants of both scopes that may have learned what they no longer open."""
    denied = set(new.denied_names) - set(old.denied_names)
    kept = {grant.key: grant for grant in new.grants}
    found = []
    for grant in old.grants:
        if grant.key in kept and grant.names:
            names = set(kept[grant.key].names)
            went = not all(_below(name, names) for name in grant.names)
            closed = any(_below(name, names) for name in denied) or any(_below(name, denied) for name in names)
            if went or closed:
                found.append(grant.key)
    return found


def forgotten(
    new: Fence, keys: Iterable[str], learned: Learned, names_of: Mapping[str, Collection[str]] | None = None
) -> dict[str, tuple[str, ...]]:
    """Return what to take out of which sets, for grants that have fewer names, or more denied ones, than before.

    names_of: address -> names that were answered with it, as far as that is known. An address stays that only names led
    to that are still allowed. Without that knowledge it stays if it is in the set of a name below which nothing is
    closed; what is old goes.
    """
    wanted, known = set(keys), names_of or {}
    found: dict[str, tuple[str, ...]] = {}
    for scope in new.scopes:
        denied = set(scope.denied_names)
        for grant in scope.grants:
            if grant.key in wanted:
                for family in (4, 6):
                    found.update(_forgotten_of(grant, denied, family, learned, known))
    return {name: addresses for name, addresses in found.items() if addresses}


def _forgotten_of(
    grant: Grant, denied: set[str], family: int, learned: Learned, known: Mapping[str, Collection[str]]
) -> dict[str, tuple[str, ...]]:
    above, names = {part for name in denied for part in _parents(name)}, set(grant.names)
    sets = (grant.set_name(family), grant.old_set_name(family), *(name_set(grant, one, family) for one in grant.names))
    every = {address for name in sets for address in learned.get(name, ())}
    safe = {
        address
        for address in every
        if known.get(address) and all(_below(one, names) and not _below(one, denied) for one in known[address])
    }
    found, kept = {}, set(safe)
    for name in grant.names:
        own = name_set(grant, name, family)
        those = tuple(learned.get(own, ()))
        stays = safe if name in above or _below(name, denied) else set(those)
        kept |= stays
        found[own] = tuple(one for one in those if one not in stays)
    found[sets[0]] = tuple(one for one in learned.get(sets[0], ()) if one not in kept)
    found[sets[1]] = tuple(one for one in learned.get(sets[1], ()) if one not in safe)
    return found


def has_new_grants(old: Fence, new: Fence) -> bool:
    """Tell whether a grant with names is new in its scope, so that carried() may have something to say."""
    before = {scope.name: {grant.key for grant in scope.grants} for scope in old.scopes}
    return any(
        grant.names and grant.key not in before.get(scope.name, ()) for scope in new.scopes for grant in scope.grants
    )


def carried(old: Fence, new: Fence, learned: Learned) -> dict[str, tuple[str, ...]]:
    """Return what to put into which sets of the new fence, so that a machine need not ask again for names it has asked.

    A grant that is new in its scope gets what the same names led to in the scopes that its guests were in. learned: of
    the old fence.
    """
    was = {(guest.name, guest.bridge): guest.scope for guest in old.guests}
    before = {scope.name: scope for scope in old.scopes}
    found: dict[str, tuple[str, ...]] = {}
    for scope in new.scopes:
        known = {grant.key for grant in before[scope.name].grants} if scope.name in before else set()
        names = dict.fromkeys(
            [scope.name, *(was.get((guest.name, guest.bridge), "") for guest in new.guests_of(scope.name))]
        )
        sources = [before[name] for name in names if name in before]
        for grant in scope.grants:
            if grant.names and grant.key not in known:
                found.update(_inherited(grant, scope, sources, learned))
    return {name: addresses for name, addresses in found.items() if addresses}


def _inherited(grant: Grant, scope: Scope, sources: Iterable[Scope], learned: Learned) -> dict[str, tuple[str, ...]]:
    denied = {part for name in scope.denied_names for part in _parents(name)}
    clean = {name for name in grant.names if name not in denied}
    found: dict[str, tuple[str, ...]] = {}
    for family in (4, 6):
        every: dict[str, None] = {}
        for old in (grant for source in sources for grant in source.grants):
            for name in old.names:
                addresses = learned.get(name_set(old, name, family), ())
                covering = next((one for one in _parents(name) if one in clean), "")
                if covering and addresses:
                    own = name_set(grant, covering, family)
                    found[own] = tuple(dict.fromkeys([*found.get(own, ()), *addresses]))
                    every.update(dict.fromkeys(addresses))
            if old.names and all(_below(name, clean) for name in old.names):
                every.update(dict.fromkeys(learned.get(old.old_set_name(family), ())))
        found[grant.set_name(family)] = tuple(every)
    return found
