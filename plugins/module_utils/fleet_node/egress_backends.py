# SPDX-License-Identifier: GPL-3.0-or-later
"""What a backend does with a fence, and the backends that there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from fleet_core.errors import InvalidInput
    from fleet_core.fences import Fence
    from fleet_core.names import nearest
else:
    try:
        from ..fleet_core.errors import InvalidInput
        from ..fleet_core.fences import Fence
        from ..fleet_core.names import nearest
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import InvalidInput
        from fleet_core.fences import Fence
        from fleet_core.names import nearest

NFTABLES = "nftables"
IPTABLES = "iptables"
BACKENDS = (NFTABLES, IPTABLES)

Learned = dict[str, tuple[str, ...]]
Counters = dict[str, dict[str, tuple[int, int]]]


class Backend(Protocol):
    """One way to make a fence real. Only root can use it; all methods raise FleetError with the tool's own words.

    Sets of names are called as fences.Grant says: n (learned from DNS answers), d (of one name), o (old, end within
    an hour), a (fixed networks).
    """

    name: str

    def files(self, fence: Fence) -> dict[str, str]:
        """Return what load() and the boot script read: file name -> text. They are written with mode 0600."""

    def boot(self, folder: str) -> str:
        """Return lines of sh that load the files of a folder at boot, before bridges exist and without Python."""

    def check(self, folder: Path) -> None:
        """Ask the tool whether it would load the files; raise FleetError with its words if not."""

    def load(self, folder: Path, fence: Fence) -> None:
        """Load the files of a folder atomically: keep what the sets of names learned, drop sets that no grant uses."""

    def loaded(self, fence: Fence) -> bool:
        """Return whether the kernel holds what load() of this fence left."""

    def learned(self, fence: Fence) -> Learned:
        """Return the n, d and o sets of the fence's grants with the addresses in them."""

    def forget(self, elements: Mapping[str, Sequence[str]]) -> None:
        """Take addresses out of sets; those that are not in them are no error, nor are sets that do not exist."""

    def learn(self, elements: Mapping[str, Sequence[str]]) -> None:
        """Put addresses into sets, as an answer would: a machine's new scope starts with what its old one learned.

        Addresses that are in them are no error, nor are sets that do not exist.
        """

    def age(self, fence: Fence) -> None:
        """Move what n and d sets learned to o sets, whose elements end after an hour, without a gap."""

    def counters(self, fence: Fence) -> Counters:
        """Return scope -> "allowed" or "denied" -> (packets, bytes) since the scope exists."""

    def remove(self) -> None:
        """Remove all of ours and nothing else; nothing to remove is no error."""


def backend(name: str) -> Backend:
    """Return the backend of a name. Raises InvalidInput for one that does not exist."""
    chosen: Backend
    if name == NFTABLES:
        from .egress_nftables import Nftables  # each caller pays for one backend only

        chosen = Nftables()
    elif name == IPTABLES:
        from .egress_iptables import Iptables

        chosen = Iptables()
    else:
        raise InvalidInput(f'backend "{name}": expected {NFTABLES} or {IPTABLES}{nearest(name, BACKENDS)}')
    return chosen
