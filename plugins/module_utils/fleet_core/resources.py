# SPDX-License-Identifier: GPL-3.0-or-later
"""Claims on resources: which values a set of requests gets, decided without touching the host."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from .errors import Conflict, Exhausted, InvalidInput, NotFound
from .names import check_keys, describe, nearest
from .resource_types import ResourceType


class Claim(NamedTuple):
    """One value held by one owner. name: the owner's word for it, by default the type."""

    type: str
    value: str
    owner: str
    name: str

    def __str__(self) -> str:
        return f"{self.type}:{self.value}"

    def to_dict(self) -> dict[str, str]:
        return {"type": self.type, "value": self.value, "owner": self.owner, "name": self.name}


@dataclass(frozen=True)
class Request:
    """What an owner asks for: a type, by value or the next free one.

    preferred: a value to take if it is free, such as the one that the owner held before.
    """

    type: str
    owner: str
    name: str
    value: str = ""
    preferred: str = ""


@dataclass(frozen=True)
class View:
    """What is known when values are chosen.

    types by name; claims by (space, value), see ResourceType.space; counters: the number each type gives out next.
    """

    types: Mapping[str, ResourceType]
    claims: Mapping[tuple[str, str], Claim]
    counters: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Allocation:
    """The answer to requests: what to claim, what to give back, what stays, and the moved counters.

    unknown: values whose availability must be checked before this is an answer; then nothing else counts.
    """

    claimed: tuple[Claim, ...] = ()
    released: tuple[Claim, ...] = ()
    kept: tuple[Claim, ...] = ()
    counters: Mapping[str, int] = field(default_factory=dict)
    unknown: tuple[tuple[str, str], ...] = ()


def request(data: object, owner: str) -> Request:
    """Return a request from "type", "type:value" or {type, value, name}."""
    if isinstance(data, str):
        text = data.partition(":")
        data = {"type": text[0], "value": text[2]}
    given = check_keys("resource", data, ("type", "value", "name"))
    kind = given.get("type")
    if not isinstance(kind, str) or not kind:
        raise InvalidInput(f'resource: expected a type such as "tcpport", found {describe(kind)}')
    if not owner:
        raise InvalidInput(f'resource of type "{kind}": expected an owner, found nothing')
    value = given.get("value")
    return Request(kind, owner, str(given.get("name") or kind), "" if value is None else str(value))


def type_named(types: Mapping[str, ResourceType], name: str) -> ResourceType:
    """Return a type, or raise NotFound with the nearest name."""
    if name not in types:
        raise NotFound(f'resource type "{name}": not defined{nearest(name, types)}')
    return types[name]


def allocate(requests: Iterable[Request], view: View, free: Mapping[tuple[str, str], bool]) -> Allocation:
    """Return values for all the requests, or the values that must be checked first.

    free: availability of (type, value) pairs as checked on the host; a missing pair is unknown.
    The same owner asking again under the same name keeps its value. Claims of one call never collide.
    Raises InvalidInput for one name that must be two things, Conflict for a value that is held or busy, Exhausted when
    a counter has no free value left.
    """
    requests = tuple(requests)
    held = {(claim.owner, claim.name): claim for claim in view.claims.values()}
    taken = dict(view.claims)
    counters = dict(view.counters)
    unknown: dict[tuple[str, str], None] = {}
    claimed: list[Claim] = []
    released: list[Claim] = []
    kept: list[Claim] = []
    waiting: dict[str, int] = {}
    kinds: dict[tuple[str, str], str] = {}
    places = [(asked.owner, asked.name) for asked in requests]
    for asked, place in zip(requests, places):
        if kinds.setdefault(place, asked.type) != asked.type:
            raise _twice(asked, f"a {kinds[place]}")
        own = held.get(place)
        if not asked.value and (own is None or own.type != asked.type):
            waiting[asked.type] = waiting.get(asked.type, 0) + 1
    for name, count in waiting.items():
        # More values are probed than are asked for, lest a busy one cost a second round. A shell check has its price.
        if type_named(view.types, name).probe:
            waiting[name] = count + 16 + count // 8
    repeated = len(kinds) < len(requests)
    stalled: set[str] = set()
    answered: set[tuple[str, str]] = set()
    for asked, place in zip(requests, places):
        kind = view.types.get(asked.type) or type_named(view.types, asked.type)
        value = kind.validate_value(asked.value) if asked.value else ""
        own = held.get(place)
        again = repeated and place in answered
        if repeated:
            answered.add(place)
        if own is not None and own.type == asked.type and value in ("", own.value):
            if not again:
                kept.append(own)
            continue
        if own is not None and again:
            raise _twice(asked, str(own))
        if own is not None:
            released.append(own)
            del held[place]
            taken = {key: claim for key, claim in taken.items() if claim is not own}
        if not value and kind.counter and kind.name in stalled:
            continue
        if value:
            chosen = _explicit(kind, value, asked, taken, free, unknown)
        elif asked.preferred and _usable(kind, asked.preferred, taken, free) is not False:
            chosen = _checked(kind, asked.preferred, free, unknown)
        elif kind.counter:
            chosen = _next_free(kind, counters, taken, free, unknown, waiting.get(kind.name, 1))
            if chosen is None:
                stalled.add(kind.name)
        else:
            raise InvalidInput(f'resource type "{kind.name}": not a counter, so "{asked.owner}" must name a value')
        if chosen is not None:
            claim = Claim(kind.name, chosen, asked.owner, asked.name)
            claimed.append(claim)
            taken[(kind.space, chosen)] = claim
            held[place] = claim
    if unknown:
        return Allocation(unknown=tuple(unknown))
    moved = {name: value for name, value in counters.items() if view.counters.get(name) != value}
    return Allocation(tuple(claimed), tuple(released), tuple(kept), moved)


def _twice(asked: Request, first: str) -> InvalidInput:
    second = f"{asked.type}:{asked.value}" if asked.value else f"a {asked.type}"
    return InvalidInput(f'"{asked.owner}" asks twice for "{asked.name}": for {first} and for {second}')


def _usable(
    kind: ResourceType, value: str, taken: Mapping[tuple[str, str], Claim], free: Mapping[tuple[str, str], bool]
) -> bool | None:
    if (kind.space, value) in taken:
        return False
    return free.get((kind.name, value)) if kind.checked else True


def _checked(
    kind: ResourceType, value: str, free: Mapping[tuple[str, str], bool], unknown: dict[tuple[str, str], None]
) -> str | None:
    if kind.checked and (kind.name, value) not in free:
        unknown[(kind.name, value)] = None
        return None
    return value


def _explicit(
    kind: ResourceType,
    value: str,
    asked: Request,
    taken: Mapping[tuple[str, str], Claim],
    free: Mapping[tuple[str, str], bool],
    unknown: dict[tuple[str, str], None],
) -> str | None:
    holder = taken.get((kind.space, value))
    if holder is not None:
        as_other = f" as {holder.type}" if holder.type != kind.name else ""
        raise Conflict(f'resource "{kind.name}:{value}": asked by "{asked.owner}", held by "{holder.owner}"{as_other}')
    if _checked(kind, value, free, unknown) is None:
        return None
    if kind.checked and not free[(kind.name, value)]:
        raise Conflict(f'resource "{kind.name}:{value}": asked by "{asked.owner}", {_BUSY.get(kind.probe, _BUSY[""])}')
    return value


_BUSY = {
    "tcp": "but something outside the fleet listens on it",
    "path": "but the path exists",
    "": "but its check says that it is not available",
}


def _next_free(
    kind: ResourceType,
    counters: dict[str, int],
    taken: Mapping[tuple[str, str], Claim],
    free: Mapping[tuple[str, str], bool],
    unknown: dict[tuple[str, str], None],
    lookahead: int,
) -> str | None:
    """Return the next free value from the counter on, wrapping once; None when values must be checked first."""
    size = kind.end - kind.start + 1
    begin = counters.get(kind.name, kind.start)
    if not kind.start <= begin <= kind.end:
        begin = kind.start
    held = busy = asked = 0
    for offset in range(size):
        number = kind.start + (begin - kind.start + offset) % size
        value = str(number)
        if (kind.space, value) in taken:
            held += 1
            continue
        usable = free.get((kind.name, value)) if kind.checked else True
        if usable is None:
            unknown[(kind.name, value)] = None
            asked += 1
            if asked >= lookahead:
                break
        elif usable and not asked:
            counters[kind.name] = kind.start + (number - kind.start + 1) % size
            return value
        else:
            busy += 1
    if asked:
        return None
    raise Exhausted(
        f'resource type "{kind.name}": no free value in {kind.start}-{kind.end}: {held} claimed, {busy} busy'
    )
