# SPDX-License-Identifier: GPL-3.0-or-later
"""The attack table: what a machine tries, what stops it, and what stays open by nature, in each mode.

An attack is a function that returns whether it got through. Its documentation is its row in docs/egress-attacks.md.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.system.network.field import Field

MODES = ("open", "allowlist", "strict", "locked")
BACKENDS = ("nftables", "iptables")

# Reasons that several attacks share.
INTERNET = {"open": "the mode opens the internet, to any address and port that no rule closes"}
NAMES = {"open": "the mode answers all names that no rule closes, so the question itself goes out"}


@dataclass(frozen=True)
class Attack:
    """One row. run: whether it got through. closed_by: what stops it. opened: mode -> why it gets through there.

    bare: whether it gets through a gateway without a fence, which proves that the attempt itself is real; False where
    the kernel stops it too, or where it is aimed at a service of the fence. alone: it upsets others where it works.
    """

    group: str
    name: str
    title: str
    run: Callable[[Field], bool]
    closed_by: str
    opened: Mapping[str, str]
    bare: bool
    alone: bool

    def expected(self, mode: str) -> bool:
        """Return whether it gets through."""
        return mode in self.opened


_table: list[Attack] = []
# The order of the documentation.
GROUPS = {
    "attacks_forwarding": "Straight out",
    "attacks_packets": "Odd packets",
    "attacks_names": "Names",
    "attacks_links": "On the wire of the bridge",
    "attacks_hosts": "The gateway, other machines, metadata",
    "attacks_proxy": "Through the proxy",
}


def attack(
    closed_by: str, opened: Mapping[str, str] | None = None, bare: bool = True, alone: bool = False
) -> Callable[[Callable[[Field], bool]], Callable[[Field], bool]]:
    """Put a function into the table."""

    def add(run: Callable[[Field], bool]) -> Callable[[Field], bool]:
        group = GROUPS[run.__module__.rpartition(".")[2]]
        title = " ".join((run.__doc__ or "").split())
        _table.append(
            Attack(group, run.__name__.replace("_", "-"), title, run, closed_by, dict(opened or {}), bare, alone)
        )
        return run

    return add


def table() -> tuple[Attack, ...]:
    """Return all rows, in the order of the documentation."""
    for module in GROUPS:
        importlib.import_module(f"tests.system.network.{module}")
    order = list(GROUPS.values())
    return tuple(sorted(_table, key=lambda row: order.index(row.group)))
