# SPDX-License-Identifier: GPL-3.0-or-later
"""Claiming resources on one host. Checks run outside the transaction; the claim is made inside it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fleet_core.errors import Conflict
    from fleet_core.resources import Allocation, Claim, Request, View, allocate, type_named
else:
    try:
        from ..fleet_core.errors import Conflict
        from ..fleet_core.resources import Allocation, Claim, Request, View, allocate, type_named
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import Conflict
        from fleet_core.resources import Allocation, Claim, Request, View, allocate, type_named

from .checks import Checker, check_values
from .store import Store

_ATTEMPTS = 200


def plan(store: Store, requests: Iterable[Request], checker: Checker = check_values) -> Allocation:
    """Return what the requests would get now, claiming nothing."""
    return _decide(store, tuple(requests), {}, checker)[0]


def claim(
    store: Store,
    requests: Iterable[Request],
    checker: Checker = check_values,
    known: Mapping[tuple[str, str], bool] | None = None,
) -> Allocation:
    """Claim all that is asked, or nothing. A lost race is tried again with the next values.

    known: availability that needs no check, by (type, value), such as of files that the owner made itself.
    Raises NotFound (unknown type), InvalidInput, Conflict (held or busy), Exhausted, Unavailable (no answer).
    """
    requests = tuple(requests)
    free: dict[tuple[str, str], bool] = dict(known or {})
    for _attempt in range(_ATTEMPTS):
        allocation, view = _decide(store, requests, free, checker)
        if not allocation.claimed and not allocation.released:
            return allocation
        if store.commit(allocation, view.types):
            return allocation
    raise Conflict(f"{len(requests)} claims: other callers were faster {_ATTEMPTS} times in a row")


def _decide(
    store: Store, requests: tuple[Request, ...], free: dict[tuple[str, str], bool], checker: Checker
) -> tuple[Allocation, View]:
    kinds = {asked.type for asked in requests}
    owners = {asked.owner for asked in requests}
    while True:
        view = store.view(kinds, owners)
        for kind in sorted(kinds):
            type_named(view.types, kind)
        allocation = allocate(requests, view, free)
        if not allocation.unknown:
            return allocation, view
        free.update(checker(allocation.unknown, view.types))


def granted(allocation: Allocation) -> dict[str, dict[str, Claim]]:
    """Return an allocation as owner to name to claim, kept claims included."""
    found: dict[str, dict[str, Claim]] = {}
    for item in (*allocation.kept, *allocation.claimed):
        found.setdefault(item.owner, {})[item.name] = item
    return found


def vanished(store: Store, alive: Iterable[str] = ()) -> list[Claim]:
    """Return claims whose owner is neither a declared process nor in alive."""
    known: Mapping[str, object] = dict.fromkeys((*store.processes(), *alive))
    return [item for item in store.claims() if item.owner not in known]
