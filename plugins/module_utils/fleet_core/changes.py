# SPDX-License-Identifier: GPL-3.0-or-later
"""A change: what is, what will be, and the steps between. It is computed first and applied second."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Change:
    """before and after: name to JSON-ready value, absent names missing. actions: one short sentence a step."""

    before: Mapping[str, Any] = field(default_factory=dict)
    after: Mapping[str, Any] = field(default_factory=dict)
    actions: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        return bool(self.actions)

    def to_dict(self) -> dict[str, Any]:
        return {"before": dict(self.before), "after": dict(self.after), "actions": list(self.actions)}


def change_from_dict(data: Mapping[str, Any]) -> Change:
    """Return the change that to_dict wrote."""
    return Change(dict(data.get("before") or {}), dict(data.get("after") or {}), tuple(data.get("actions") or ()))


def difference(before: Mapping[str, Any], after: Mapping[str, Any], noun: str) -> Change:
    """Return the change between two states of the same names: one action a name, unchanged names left out."""
    actions = []
    kept_before, kept_after = {}, {}
    for name in dict.fromkeys((*before, *after)):
        old, new = before.get(name), after.get(name)
        if old == new:
            continue
        verb = "create" if old is None else "remove" if new is None else "update"
        actions.append(f"{verb} {noun} {name}")
        if old is not None:
            kept_before[name] = old
        if new is not None:
            kept_after[name] = new
    return Change(kept_before, kept_after, tuple(actions))
