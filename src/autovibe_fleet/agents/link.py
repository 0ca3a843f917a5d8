# SPDX-License-Identifier: GPL-3.0-or-later
"""The run's connection to fleetd: reports go there, control events come from there.

fleetd may end at any moment. What was not acknowledged is reported again to the next one; a subscriber may therefore
see an event twice, with the same id. If more waits than is kept in memory, messages are read from the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from autovibe_fleet.connection import Connection
from fleet_core.errors import FleetError, TimedOut, Unavailable
from fleet_node.agents import AgentStore

Row = dict[str, Any]
_AT_ONCE = 100  # events of one report
_MOST = 8 * 1024 * 1024  # bytes of them, far below what fleetd takes as one message
_KEPT = 2000  # events that wait while fleetd is away
_PAUSES = (0.05, 0.1, 0.2, 0.5, 1.0)  # seconds between attempts to connect


class Link:
    """Reports the events of one agent. heard: is told the "what" of each control event."""

    def __init__(self, store: AgentStore, agent: str, heard: Callable[[str], None]) -> None:
        self._store = store
        self._agent = agent
        self._heard = heard
        self._waiting: deque[Row] = deque()
        self._missed = 0  # the first id of the messages that are only in the store
        self._rows: dict[tuple[str, int], Row] = {}  # the newest of each row that gave way to messages
        self._more = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Begin to connect, and to do so again whenever the connection ends."""
        self._task = asyncio.get_running_loop().create_task(self._keep_up())

    async def close(self, patience: float = 1.0) -> None:
        """Report what waits, for so many seconds at most, and end the connection."""
        if self._task is None:
            return
        deadline = asyncio.get_running_loop().time() + patience
        while self._waiting and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110 - it may never be empty
            await asyncio.sleep(0.005)
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    def report(self, event: Row) -> None:
        """Report an event as soon as fleetd listens."""
        self._waiting.append(event)
        while len(self._waiting) > _KEPT:
            lost = self._waiting.popleft()
            if lost["kind"] != "message":
                self._rows[(lost["kind"], lost["id"])] = lost
            elif not self._missed:
                self._missed = lost["id"]
        self._more.set()

    async def _keep_up(self) -> None:
        attempt = 0
        while True:
            with contextlib.suppress(FleetError, OSError):
                async with await Connection.open(self._store.folder) as connection:
                    await connection.subscribe(kinds=["control"], agents=[self._agent])
                    attempt = 0
                    self._heard("desired")
                    self._heard("injection")  # what came before we listened
                    await self._talk(connection)
            await asyncio.sleep(_PAUSES[min(attempt, len(_PAUSES) - 1)])
            attempt += 1

    async def _talk(self, connection: Connection) -> None:
        tasks = [asyncio.ensure_future(self._listen(connection)), asyncio.ensure_future(self._send(connection))]
        try:
            done, _rest = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _listen(self, connection: Connection) -> None:
        while True:
            event = await connection.event()
            if event is not None and event.get("kind") == "control" and event.get("agent") == self._agent:
                self._heard(str(event.get("what")))

    async def _send(self, connection: Connection) -> None:
        while True:
            if self._missed or self._rows:
                await self._send_missed(connection)
            while not self._waiting:
                self._more.clear()
                await self._more.wait()
            batch = _first(self._waiting)
            await self._ask(connection, batch)
            sent = {id(event) for event in batch}
            while self._waiting and id(self._waiting[0]) in sent:  # some may have given way to newer ones meanwhile
                self._waiting.popleft()

    async def _send_missed(self, connection: Connection) -> None:
        while self._rows:
            key = next(iter(self._rows))
            await self._ask(connection, [self._rows.pop(key)])
        until = next((event["id"] for event in self._waiting if event["kind"] == "message"), None)
        while self._missed:
            rows = self._store.messages(self._agent, after=self._missed - 1, limit=_AT_ONCE)
            rows = _first(row for row in rows if until is None or row["id"] < until)
            if not rows:
                self._missed = 0
                return
            await self._ask(connection, [{**row, "kind": "message"} for row in rows])
            self._missed = rows[-1]["id"] + 1

    async def _ask(self, connection: Connection, events: list[Row]) -> None:
        try:
            await connection.call("runs.report", agent=self._agent, events=events)
        except (Unavailable, TimedOut):
            raise
        except FleetError as error:  # to say it again would not help; the store has it all
            print(f"fleetd did not take a report: {error}", flush=True)


def _first(events: Iterable[Row]) -> list[Row]:
    """Return as many of the first events as one report may hold, but one at least."""
    found: list[Row] = []
    size = 0
    for event in events:
        size += len(json.dumps(event))
        if found and (size > _MOST or len(found) >= _AT_ONCE):
            break
        found.append(event)
    return found
