# SPDX-License-Identifier: GPL-3.0-or-later
"""What is in force on this host: for the module egress_info, and for people who ask `fleet egress show`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fleet_core import egress, egress_fence
    from fleet_core.egress import Declaration
    from fleet_core.egress_live import Live
    from fleet_core.errors import FleetError
    from fleet_core.fences import Fence, name_set
    from fleet_core.moments import iso
else:
    try:
        from ..fleet_core import egress, egress_fence
        from ..fleet_core.egress import Declaration
        from ..fleet_core.egress_live import Live
        from ..fleet_core.errors import FleetError
        from ..fleet_core.fences import Fence, name_set
        from ..fleet_core.moments import iso
    except ImportError:  # installed as a top-level package
        from fleet_core import egress, egress_fence
        from fleet_core.egress import Declaration
        from fleet_core.egress_live import Live
        from fleet_core.errors import FleetError
        from fleet_core.fences import Fence, name_set
        from fleet_core.moments import iso

from . import egress_conflicts, egress_denial_log, egress_wanted
from .egress_backends import Backend, backend
from .egress_engine import Engine
from .egress_store import DENIALS, Record

OLD = "(asked an hour ago or longer)"
Report = dict[str, Any]


def report(engine: Engine, denials: int = 20, conflicts: bool = True) -> Report:
    """Return all that is known. What cannot be known here and now is missing, and "problems" says why.

    denials: how many of the last. conflicts: whether to look for rules of others that get in the way.
    Raises Unavailable for somebody who may not enter the state folder.
    """
    record = engine.store.read()
    found: Report = {
        "applied": record.declared is not None,
        "backend": "",
        "since": "",
        "loaded": None,
        "scopes": [],
        "machines": [],
        "live": [],
        "learned": [],
        "counters": [],
        "denials": egress_denial_log.last(engine.store.folder / DENIALS, denials),
        "services": [],
        "conflicts": [],
        "problems": [],
    }
    if record.declared is None:
        return found
    known = egress_wanted.recorded(record)
    declaration, live = known.declaration or egress.parse(record.declared), engine.live()
    fence = known.fence or Fence()
    found["backend"] = declaration.backend
    found["since"] = iso(int(record.basis.get("now") or 0))
    found["live"] = [shown_live(one) for one in live]
    found["scopes"] = _scopes(declaration, live, fence, record)
    found["machines"] = _machines(fence)
    _ask(found, "rules", lambda: _kernel(found, backend(declaration.backend), fence))
    _ask(found, "processes", lambda: _services(found, engine))
    if conflicts:
        _ask(found, "conflicts", lambda: found.update(conflicts=egress_conflicts.conflicts(fence)))
    return found


def _ask(found: Report, what: str, question: Any) -> None:
    try:
        question()
    except FleetError as error:
        found["problems"].append(f"{what}: {error.message}")


def _kernel(found: Report, rules: Backend, fence: Fence) -> None:
    found["loaded"] = rules.loaded(fence)
    found["counters"] = [
        {
            "scope": scope,
            **{verdict: {"packets": packets, "bytes": size} for verdict, (packets, size) in sorted(by_verdict.items())},
        }
        for scope, by_verdict in sorted(rules.counters(fence).items())
    ]
    found["learned"] = learned_by_name(fence, rules.learned(fence))


def learned_by_name(fence: Fence, learned: Mapping[str, tuple[str, ...]]) -> list[dict[str, Any]]:
    """Return what each name of each scope has led to. Old addresses stand under a name of their own: OLD."""
    found: dict[tuple[str, str], list[str]] = {}
    for scope in fence.scopes:
        for grant in scope.grants:
            for family in (4, 6):
                for name in grant.names:
                    found.setdefault((scope.name, name), []).extend(learned.get(name_set(grant, name, family), ()))
                found.setdefault((scope.name, OLD), []).extend(learned.get(grant.old_set_name(family), ()))
    return [
        {"scope": scope, "name": name, "addresses": sorted(set(addresses))}
        for (scope, name), addresses in found.items()
        if addresses
    ]


def _services(found: Report, engine: Engine) -> None:
    found["services"] = [
        {
            "id": ident,
            "status": str(view.get("status") or ""),
            "pid": int(view.get("pid") or 0),
            "error": str(view.get("error") or ""),
        }
        for ident, view in sorted(engine.services.views().items())
    ]


def _scopes(declaration: Declaration, live: tuple[Live, ...], fence: Fence, record: Record) -> list[dict[str, Any]]:
    now = int(record.basis.get("now") or 0)
    found = []
    for scope in fence.scopes:
        guests = fence.guests_of(scope.name)
        project = guests[0].project if guests else ""
        policy = egress_fence.effective(declaration, live, now, scope.name, project)
        found.append(
            {
                "name": scope.name,
                "mode": scope.mode,
                "hub": scope.hub,
                "resolver_port": scope.resolver_port,
                "machines": sorted({guest.name for guest in guests}),
                "presets": list(dict.fromkeys(one.value for one in policy.presets)),
                "allow": [one.shown() for one in policy.allow] if scope.mode != "locked" else [],
                "deny": [one.shown().replace(one.text, one.target, 1) for one in policy.deny],
            }
        )
    return found


def _machines(fence: Fence) -> list[dict[str, Any]]:
    return [
        {
            "name": guest.name,
            "project": guest.project,
            "scope": guest.scope,
            "network": guest.bridge,
            "mac": guest.mac,
            "address": guest.address4,
            "address6": guest.address6,
            "port": guest.port,
            "peers": list(guest.peers),
        }
        for guest in fence.guests
    ]


def shown_live(one: Live) -> dict[str, Any]:
    """Return a live change as people and programs read it."""
    return {
        "scope": one.scope,
        "verb": one.verb,
        "entry": one.entry,
        "until": iso(one.until) if one.until else "",
        "at": iso(one.at) if one.at else "",
    }


__all__ = ["OLD", "learned_by_name", "report", "shown_live"]
