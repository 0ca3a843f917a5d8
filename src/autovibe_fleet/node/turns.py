# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests that change the same things take turns; those that change other things go on beside them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable

Names = Callable[[], Iterable[str]]


class Turns:
    """Who may change what, first come, first served. Lives in one event loop."""

    def __init__(self) -> None:
        self._held: set[str] = set()
        self._waiting: list[tuple[Names, asyncio.Future[set[str]]]] = []

    @contextlib.asynccontextmanager
    async def take(self, names: Names) -> AsyncIterator[bool]:
        """Hold all the names at once. Gives whether others went before, so that things may have changed meanwhile.

        names: asked again whenever it may be its turn.
        """
        future: asyncio.Future[set[str]] = asyncio.get_running_loop().create_future()
        self._waiting.append((names, future))
        self._grant()
        waited = not future.done()
        try:
            await future
            yield waited
        finally:
            self._waiting = [item for item in self._waiting if item[1] is not future]
            if future.done() and not future.cancelled():
                self._held -= future.result()
            self._grant()

    def _grant(self) -> None:
        blocked = set(self._held)
        for names, future in list(self._waiting):
            wanted = set(names())
            if not wanted & blocked and not future.done():
                self._held |= wanted
                self._waiting.remove((names, future))
                future.set_result(wanted)
            blocked |= wanted
