# SPDX-License-Identifier: GPL-3.0-or-later
"""Changes that people make to a policy while it is in force, on top of what is declared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .egress import MODES, allowed, denied, one_of
from .egress_entries import Entry, denial, entry, preset_entry
from .egress_presets import PRESETS
from .errors import InvalidInput
from .fences import Guest
from .names import as_int, as_text, check_keys, check_name

VERBS = ("allow", "deny", "mode")


@dataclass(frozen=True)
class Live:
    """One change. entry: of allow and deny the entry as text, of mode the mode. at: when it was made; until: its end.

    Both are seconds since the epoch; an end of 0 means that it lasts until it is taken back.
    """

    scope: str
    verb: str
    entry: str
    until: int = 0
    at: int = 0

    def to_dict(self) -> dict[str, Any]:
        return {"scope": self.scope, "verb": self.verb, "entry": self.entry, "until": self.until, "at": self.at}

    def lasts(self, now: int) -> bool:
        return not self.until or now < self.until

    def to_entry(self) -> Entry:
        """Return what allow or deny names, with the end of the change."""
        if self.verb == "deny":
            return denial("live change", self.entry).evolve(until=self.until)
        if self.entry in PRESETS:
            return preset_entry("live change", self.entry, PRESETS).evolve(until=self.until)
        return allowed("live change", _forced(self.entry)).evolve(until=self.until)


def live_change(scope: str, verb: str, text: object, until: int = 0, at: int = 0, force: bool = False) -> Live:
    """Return a change in its canonical form. Raises InvalidInput for what is no scope, verb, entry or mode.

    force: whether a domain that is a public suffix, or looks like a slip, is meant.
    """
    check_scope(scope)
    one_of("live change", verb, VERBS)
    word = as_text(f"live {verb}", text).strip()
    if verb == "mode":
        return Live(scope, verb, one_of("mode", word, MODES), until, at)
    if verb == "deny":
        return Live(scope, verb, (denial if force else denied)("deny", word).target, until, at)
    if word in PRESETS:
        return Live(scope, verb, word, until, at)
    return Live(scope, verb, allowed("allow", _forced(word) if force else word).text, until, at)


def live_from_dict(data: object) -> Live:
    """Return the change that to_dict wrote. Raises InvalidInput."""
    given: Mapping[str, Any] = check_keys("live change", data, ("scope", "verb", "entry", "until", "at"))
    until, at = (as_int(f"live change: {key}", given.get(key, 0), 0, 2**53) for key in ("until", "at"))
    return live_change(str(given.get("scope")), str(given.get("verb")), given.get("entry"), until, at, force=True)


def with_live(changes: Iterable[Live], change: Live) -> tuple[Live, ...]:
    """Return the changes with one more. It replaces those of its scope that say the same or the contrary."""
    kept = [other for other in changes if not _settled_by(other, change)]
    return tuple(sorted((*kept, change), key=_order))


def without_live(changes: Iterable[Live], scope: str = "", entry: str = "") -> tuple[Live, ...]:
    """Return the changes without those of a scope, and only of an entry if one is given; of all scopes for ""."""
    return tuple(
        change
        for change in changes
        if (scope and change.scope != scope) or (entry and entry not in (change.entry, _target(change)))
    )


def lasting(changes: Iterable[Live], now: int) -> tuple[Live, ...]:
    """Return the changes that have not ended."""
    return tuple(sorted((change for change in changes if change.lasts(now)), key=_order))


def going_on(changes: Iterable[Live], machines: Iterable[Guest]) -> tuple[Live, ...]:
    """Return the changes that outlive a new declaration with these machines.

    What opens goes with the last machine that it opens something for. What closes waits for machines of that name or
    project to come back: they may be made anew at this moment.
    """
    there = {"default"}
    for guest in machines:
        there |= {f"machine-{guest.name}", f"project-{guest.project}"}
    return tuple(
        change for change in changes if change.scope in there or change.verb == "deny" or change.entry == "locked"
    )


def check_scope(scope: str) -> str:
    """Return the name of a scope. Raises InvalidInput for what is none."""
    kind, dash, name = scope.partition("-")
    if scope != "default" and not (kind in ("project", "machine") and dash):
        raise InvalidInput(f'scope "{scope}": expected default, project-NAME or machine-NAME')
    if dash:
        check_name(kind, name)
    return scope


def _settled_by(old: Live, new: Live) -> bool:
    if old.scope != new.scope or (old.verb == "mode") != (new.verb == "mode"):
        return False
    if new.verb == "mode" or old.verb == new.verb:
        return new.verb == "mode" or old.entry == new.entry
    return _target(old) == _target(new)


def _target(change: Live) -> str:
    return change.entry if change.verb == "mode" else change.to_entry().target


def _forced(text: str) -> dict[str, Any]:
    return entry("live change", text).evolve(force=True).to_dict()


def _order(change: Live) -> tuple[str, str, str, int]:
    return (change.scope, change.verb, change.entry, change.until)
