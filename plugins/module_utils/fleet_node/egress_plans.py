# SPDX-License-Identifier: GPL-3.0-or-later
"""What an apply of a network policy changes, as Ansible and people see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fleet_core.changes import Change
    from fleet_core.egress_live import Live
    from fleet_core.fences import Fence
else:
    try:
        from ..fleet_core.changes import Change
        from ..fleet_core.egress_live import Live
        from ..fleet_core.fences import Fence
    except ImportError:  # installed as a top-level package
        from fleet_core.changes import Change
        from fleet_core.egress_live import Live
        from fleet_core.fences import Fence

from . import egress_proxies
from .egress_store import Record
from .egress_wanted import Wanted


@dataclass(frozen=True)
class Planned:
    """A change of the network policy. diff: of each file, as Ansible shows it. fence, live: what is to be in force.

    notices: what of it does nothing, or less than it seems, one sentence each.
    """

    change: Change = field(default_factory=Change)
    diff: tuple[Mapping[str, str], ...] = ()
    fence: Fence | None = None
    live: tuple[Live, ...] = ()
    notices: tuple[str, ...] = ()

    def with_services(self, served: Change) -> Planned:
        """Return it with what becomes of the processes."""
        actions = (*self.change.actions, *served.actions)
        return replace(self, change=Change(self.change.before, self.change.after, actions))


def plan(record: Record, wanted: Wanted, drifted: bool, services: Change, unfinished: bool = False) -> Planned:
    """Return what leads from what is applied to what is wanted. drifted: whether the kernel has other rules."""
    new = wanted.record
    actions = []
    backend = wanted.declaration.backend
    old_backend = (record.declared or {}).get("backend")
    if record.declared is None:
        actions.append(f"load the rules with {backend}")
    elif old_backend != backend:
        actions.append(f"load the rules with {backend}, remove those of {old_backend}")
    elif _rules(record.files) != _rules(new.files):
        actions.append("replace the rules")
    elif drifted:
        actions.append("load the rules again, which others have changed")
    elif unfinished:
        actions.append("finish what an interrupted apply has begun")
    for name in dict.fromkeys((*record.files, *new.files)):
        if _is_service(name) and record.files.get(name) != new.files.get(name):
            verb = "write" if name not in record.files else "remove" if name not in new.files else "change"
            actions.append(f"{verb} {name}")
    if record.declared is not None and record.boot != new.boot:
        actions.append("change boot.sh")
    if record.declared is not None and record.declared != new.declared and not actions:
        actions.append("record the policy, which means the same as before")
    kept = {_identity(one) for one in new.live}
    actions += [f"end the live change {_shown(one)}" for one in record.live if _identity(one) not in kept]
    was = {_identity(one) for one in record.live}
    actions += [f"make the live change {_shown(one)}" for one in new.live if _identity(one) not in was]
    before = dict(record.declared or {}) if actions else {}
    after = dict(new.declared or {}) if actions else {}
    change = Change(before, after, tuple(actions))
    planned = Planned(change, _diff(record.files, new.files), wanted.fence, wanted.live, wanted.notices)
    return planned.with_services(services)


def removal(record: Record, there: bool) -> Planned:
    """Return what removing everything changes. there: whether there is anything."""
    if not there:
        return Planned()
    change = Change(dict(record.declared or {}), {}, ("remove the network policy with its rules, processes and files",))
    return Planned(change, _diff(record.files, {}))


def _is_service(name: str) -> bool:
    return name.startswith(("dns-", "dhcp-")) or name in egress_proxies.FILES


def _rules(files: Mapping[str, str]) -> dict[str, str]:
    return {name: text for name, text in files.items() if not _is_service(name)}


def _diff(before: Mapping[str, str], after: Mapping[str, str]) -> tuple[dict[str, str], ...]:
    return tuple(
        {
            "before_header": name,
            "after_header": name,
            "before": before.get(name, ""),
            "after": after.get(name, ""),
        }
        for name in dict.fromkeys((*before, *after))
        if before.get(name) != after.get(name)
    )


def _identity(one: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(one.get(key) for key in ("scope", "verb", "entry", "until"))


def _shown(one: Mapping[str, Any]) -> str:
    return f"{one.get('verb')} {one.get('entry')} of {one.get('scope')}"
