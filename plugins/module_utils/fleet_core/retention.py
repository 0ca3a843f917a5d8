# SPDX-License-Identifier: GPL-3.0-or-later
"""Which checkpoints are kept: all of them for some days, then one a day, then one a week."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any

from .checkpoints import KINDS, Checkpoint
from .errors import InvalidInput
from .moments import moment, needed
from .names import check_keys, describe
from .quantities import parse_duration

DAY = 86400.0
# Made once, for good.
_NEVER = ("genesis", "final")
AUTOMATIC = ("automatic", "hub_daily")


@dataclass(frozen=True)
class Policy:
    """Seconds. all: how long all are kept; daily: how long the last one of each day; weekly: of each week.

    Days and weeks are those of UTC, and a week begins on Monday.
    """

    all: float = 7 * DAY
    daily: float = 30 * DAY
    weekly: float = 183 * DAY


MACHINE = Policy()
HUB = Policy(all=0.0, daily=30 * DAY, weekly=365 * DAY)


@dataclass(frozen=True)
class Retention:
    """machine: of all but the hub's daily ones. kinds: what retention may remove at all; what people made by hand, or
    with the provider's own tools, is not among them unless it is named.
    """

    machine: Policy = MACHINE
    hub: Policy = HUB
    kinds: tuple[str, ...] = AUTOMATIC


def surplus(
    checkpoints: Iterable[Checkpoint],
    now: str,
    retention: Retention = Retention(),
    *,
    current: str = "",
    chained: bool = False,
    pinned: Collection[str] = (),
) -> tuple[Checkpoint, ...]:
    """Return the checkpoints of one machine that go, oldest first.

    current: the one that the machine was last at. chained: whether the provider needs a parent as long as it has
    children. pinned: names that others need, such as those that machines were forked from. Kept are also genesis and
    final ones, the newest, and those of which it is not known when they were made.
    """
    items = tuple(checkpoints)
    present = needed("now", now)
    dated = [(when, one) for one in items if (when := moment(one.created)) is not None]
    newest = max(dated, key=lambda pair: (pair[0], pair[1].name), default=None)
    safe = {current, *pinned, newest[1].name if newest else ""}
    gone: set[str] = set()
    for kind in retention.kinds:
        policy = retention.hub if kind == "hub_daily" else retention.machine
        candidates = [(when, one) for when, one in dated if one.kind == kind]
        stay = _kept(candidates, present, policy)
        gone |= {one.name for _when, one in candidates if one.name not in stay and one.name not in safe}
    gone -= {one.name for one in items if one.kind in _NEVER}
    if chained:
        gone -= _needed(items, gone)
    return tuple(one for _when, one in sorted(dated, key=lambda pair: (pair[0], pair[1].name)) if one.name in gone)


def _kept(dated: Iterable[tuple[datetime, Checkpoint]], present: datetime, policy: Policy) -> set[str]:
    """Return the names that stay: of each stretch of time the newest."""
    newest: dict[Any, tuple[datetime, str]] = {}
    for when, one in dated:
        age = (present - when).total_seconds()
        stretch: Any
        if age <= policy.all:
            stretch = one.name
        elif age <= policy.daily:
            stretch = ("day", when.date())
        elif age <= policy.weekly:
            stretch = ("week", when.date() - timedelta(days=when.weekday()))
        else:
            continue
        if stretch not in newest or (when, one.name) > newest[stretch]:
            newest[stretch] = (when, one.name)
    return {name for _when, name in newest.values()}


def _needed(items: Iterable[Checkpoint], gone: Collection[str]) -> set[str]:
    """Return those of ``gone`` that stand above one that stays."""
    parents = {one.name: one.parent for one in items}
    found: set[str] = set()
    for name in parents:
        if name in gone:
            continue
        parent = parents[name]
        while parent in parents and parent not in found:
            found.add(parent)
            parent = parents[parent]
    return found & set(gone)


def retention_from(where: str, data: object) -> Retention:
    """Return a retention from a mapping of machine, hub (each all, daily, weekly: durations) and kinds."""
    known = check_keys(where, {} if data is None else data, ("machine", "hub", "kinds"))
    kinds = known.get("kinds")
    if kinds is None:
        kinds = AUTOMATIC
    if not isinstance(kinds, (list, tuple)) or not set(map(str, kinds)) <= set(KINDS) - set(_NEVER):
        allowed = ", ".join(kind for kind in KINDS if kind not in _NEVER)
        raise InvalidInput(f"{where}.kinds: expected some of {allowed}, found {describe(kinds)}")
    return Retention(
        _policy(f"{where}.machine", known.get("machine"), MACHINE),
        _policy(f"{where}.hub", known.get("hub"), HUB),
        tuple(map(str, kinds)),
    )


def _policy(where: str, data: object, usual: Policy) -> Policy:
    names = [part.name for part in fields(Policy)]
    known: Mapping[str, Any] = check_keys(where, {} if data is None else data, names)
    return Policy(
        *(
            parse_duration(f"{where}.{name}", getattr(usual, name) if known.get(name) is None else known[name])
            for name in names
        )
    )
