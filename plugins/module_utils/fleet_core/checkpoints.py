# SPDX-License-Identifier: GPL-3.0-or-later
"""Checkpoints: saved states of machines, which form a tree."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from .errors import InvalidInput
from .machines import MACHINE_NAME
from .names import describe

# genesis: the first one of a machine; final: before it goes away; automatic: of a trigger; hub_daily: of the hub.
KINDS = ("genesis", "automatic", "manual", "final", "hub_daily")


@dataclass(frozen=True)
class Checkpoint:
    """parent: the checkpoint that the machine was at before, or empty. created: ISO 8601, empty when not known.

    live: whether it holds the memory of a running machine. size: bytes, 0 when not known. kind: one of KINDS.
    """

    name: str
    machine: str
    parent: str = ""
    comment: str = ""
    created: str = ""
    live: bool = False
    size: int = 0
    kind: str = "manual"

    def to_dict(self) -> dict[str, Any]:
        return {part.name: getattr(self, part.name) for part in fields(self)}


def check_checkpoint_name(name: object) -> str:
    """Return the name if every provider takes it: a letter, then letters, digits and "-"."""
    if not isinstance(name, str) or not MACHINE_NAME.fullmatch(name):
        shown = repr(name) if isinstance(name, str) else describe(name)
        raise InvalidInput(
            f"checkpoint name {shown}: expected a letter, then at most 62 letters, digits and '-', the last no '-'"
        )
    return name


def in_order(checkpoints: Iterable[Checkpoint]) -> tuple[Checkpoint, ...]:
    """Return checkpoints so that each stands behind its parent, siblings by time and name.

    One whose parent is gone is a root.
    """
    rest = sorted(checkpoints, key=lambda one: (one.created, one.name))
    names = {one.name for one in rest}
    found: list[Checkpoint] = []

    def add(parent: str) -> None:
        for one in rest:
            if one not in found and (one.parent if one.parent in names else "") == parent:
                found.append(one)
                add(one.name)

    add("")
    return (*found, *(one for one in rest if one not in found))  # a damaged tree may have a circle
