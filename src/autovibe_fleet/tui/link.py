# SPDX-License-Identifier: GPL-3.0-or-later
"""A connection to fleetd that comes back by itself, with backoff and jitter."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleet_core.errors import FleetError, Unavailable

from ..connection import Connection

KINDS = ["agent", "run", "iteration", "message", "injection", "control"]
DELAY, LONGEST_DELAY = 0.2, 5.0  # seconds until the first try again, and at most
_AT_ONCE = 64  # events that are taken before others get a turn


@dataclass(frozen=True)
class Status:
    """How the connection stands. error: why it is lost. attempt: tries since then. wait: seconds until the next one."""

    connected: bool = False
    error: str = ""
    attempt: int = 0
    wait: float = 0.0


class Link:
    """Keeps one connection to the fleetd of a state folder. Calls fail with Unavailable while there is none.

    on_event: takes the parameters of every event. on_connected: is awaited each time that the subscription stands.
    on_status: hears of every change.
    """

    def __init__(
        self,
        folder: Path,
        on_event: Callable[[Mapping[str, Any]], None],
        on_connected: Callable[[], Awaitable[None]],
        on_status: Callable[[Status], None],
    ) -> None:
        self.folder = folder
        self.status = Status()
        self._on_event = on_event
        self._on_connected = on_connected
        self._on_status = on_status
        self._connection: Connection | None = None

    async def run(self) -> None:
        """Connect, and connect again whenever the connection ends, until cancelled."""
        attempt = 0
        while True:
            try:
                await self._talk()
                error = "fleetd ended the connection"
            except FleetError as found:
                error = str(found)
            except OSError as found:
                error = found.strerror or str(found)
            if self.status.connected:
                attempt = 0
            wait = min(LONGEST_DELAY, DELAY * 2 ** min(attempt, 10)) * random.uniform(0.8, 1.2)
            attempt += 1
            self._set(Status(False, error, attempt, wait))
            await asyncio.sleep(wait)

    async def call(self, method: str, /, **params: Any) -> Any:
        """Return the result of a method; parameters that are None are left out.

        Raises the FleetError that fleetd answered, Unavailable or TimedOut.
        """
        if self._connection is None:
            raise Unavailable("fleetd: not connected")
        return await self._connection.call(method, **params)

    async def _talk(self) -> None:
        async with await Connection.open(self.folder) as connection:
            self._connection = connection
            greeting: asyncio.Task[None] | None = None
            try:
                await connection.subscribe(kinds=KINDS)
                self._set(Status(True))
                greeting = asyncio.create_task(self._greet())
                count = 0
                while True:
                    event = await connection.event()
                    if event is not None:
                        self._on_event(event)
                    count += 1
                    if count % _AT_ONCE == 0:
                        await asyncio.sleep(0)
            finally:
                self._connection = None
                if greeting is not None:
                    greeting.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await greeting

    async def _greet(self) -> None:
        with contextlib.suppress(Unavailable):  # then the events end too
            await self._on_connected()

    def _set(self, status: Status) -> None:
        self.status = status
        self._on_status(status)
