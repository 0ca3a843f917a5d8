# SPDX-License-Identifier: GPL-3.0-or-later
"""What machines ask the resolvers and are refused, from the logs that dnsmasq writes.

dnsmasq appends to its log for ever: what is read is cut off once it is large.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fleet_core.egress_denials import Denial, Roster, refused
    from fleet_core.egress_dns_answers import answered
    from fleet_core.egress_dns_log import QuestionLog
    from fleet_core.fences import Fence
else:
    try:
        from ..fleet_core.egress_denials import Denial, Roster, refused
        from ..fleet_core.egress_dns_answers import answered
        from ..fleet_core.egress_dns_log import QuestionLog
        from ..fleet_core.fences import Fence
    except ImportError:  # installed as a top-level package
        from fleet_core.egress_denials import Denial, Roster, refused
        from fleet_core.egress_dns_answers import answered
        from fleet_core.egress_dns_log import QuestionLog
        from fleet_core.fences import Fence

from . import egress_wanted
from .egress_store import EgressStore

LARGEST = 2 * 1024 * 1024  # bytes of one log
_BLOCK = 1 << 20


def answers(store: EgressStore, fence: Fence, grants: Collection[str]) -> dict[str, set[str]]:
    """Return address -> names that were answered with it, in the scopes of these grants, as far as the logs go back."""
    found: dict[str, set[str]] = {}
    for scope in fence.scopes:
        if scope.resolver_port and any(grant.key in grants for grant in scope.grants):
            with contextlib.suppress(OSError):
                text = egress_wanted.dns_log(store, scope.name).read_text(encoding="utf-8", errors="replace")
                for address, names in answered(text.splitlines()).items():
                    found.setdefault(address, set()).update(names)
    return found


class Questions:
    """The logs of all resolvers, and how far they are read."""

    def __init__(self, store: EgressStore) -> None:
        self._store = store
        # What was there before this process is old news.
        self._places = {path: path.stat().st_size for path in store.folder.glob("dns-*.log")}
        self._rests: dict[Path, bytes] = {}
        self._readers: dict[Path, QuestionLog] = {}

    def refused(self, fence: Fence, roster: Roster, now: float) -> Iterator[Denial]:
        """Yield what was refused since the last time."""
        for scope in fence.scopes:
            if scope.resolver_port:
                path = egress_wanted.dns_log(self._store, scope.name)
                reader = self._readers.setdefault(path, QuestionLog())
                for one in reader.read(self._lines(path)):
                    yield refused(one.name, one.client, roster, now, scope.name)

    def _lines(self, path: Path) -> Iterator[str]:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return
        try:
            size = os.fstat(descriptor).st_size
            place = self._places.get(path, 0)
            place = 0 if place > size else place
            data = os.pread(descriptor, _BLOCK, place)
            place += len(data)
            *lines, rest = (self._rests.get(path, b"") + data).split(b"\n")
            if size > LARGEST:
                with contextlib.suppress(OSError):
                    os.ftruncate(descriptor, 0)  # dnsmasq appends (O_APPEND), wherever the end is
                place = 0
            self._places[path], self._rests[path] = place, rest[-4096:]
        finally:
            os.close(descriptor)
        for line in lines:
            yield line.decode("utf-8", "replace")
