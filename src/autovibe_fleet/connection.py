# SPDX-License-Identifier: GPL-3.0-or-later
"""A connection to fleetd for asyncio: calls that may overlap, and the events in the order in which they happened."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

from fleet_core.errors import TimedOut, Unavailable, from_code
from fleet_node import paths
from fleet_node.client import connect

_LONGEST = 64 * 1024 * 1024  # bytes of one message, as fleetd's own limit
_PATIENCE = 30.0  # seconds to wait for an answer; a call's own timeout comes on top


class Connection:
    """One open connection. Raises Unavailable when fleetd does not run or ends, and the FleetErrors that it answers."""

    def __init__(self, folder: Path, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._folder = folder
        self._reader = reader
        self._writer = writer
        self._count = 0
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._events: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._ended = ""
        self._listening = asyncio.create_task(self._listen())

    @classmethod
    async def open(cls, folder: Path) -> Connection:
        """Connect to the fleetd of a state folder."""
        raw = connect(paths.socket(folder), 5.0)
        raw.setblocking(False)
        reader, writer = await asyncio.open_unix_connection(sock=raw, limit=_LONGEST)
        return cls(folder, reader, writer)

    async def __aenter__(self) -> Connection:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close it; calls that still wait end with Unavailable. What they asked for goes on in fleetd."""
        self._listening.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await self._listening
        self._writer.close()
        with contextlib.suppress(Exception):
            await self._writer.wait_closed()

    async def call(self, method: str, /, **params: Any) -> Any:
        """Return the result of a method. Parameters that are None are left out."""
        given = {key: value for key, value in params.items() if value is not None}
        extra = given.get("timeout")
        patience = _PATIENCE + (float(extra) if isinstance(extra, (int, float)) else 0.0)
        if self._ended:
            raise Unavailable(self._ended)
        self._count += 1
        number = self._count
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        message = {"jsonrpc": "2.0", "id": number, "method": method, "params": given}
        try:
            self._writer.write(json.dumps(message).encode() + b"\n")
            await self._writer.drain()
            return await asyncio.wait_for(answer, patience)
        except asyncio.TimeoutError:
            raise TimedOut(f"fleetd on {paths.socket(self._folder)}: no answer within {patience:g} s") from None
        except OSError as error:
            raise Unavailable(f"fleetd on {paths.socket(self._folder)}: {error.strerror or error}") from error
        finally:
            self._waiting.pop(number, None)

    async def subscribe(self, **filters: Any) -> None:
        """Ask for events from now on; filters as events.subscribe takes them."""
        await self.call("events.subscribe", **filters)

    async def event(self, timeout: float | None = None) -> dict[str, Any] | None:
        """Return the next event since subscribe, or None when there is none in time. Raises Unavailable at the end."""
        try:
            event = await asyncio.wait_for(self._events.get(), timeout)
        except asyncio.TimeoutError:
            return None
        if event is None:
            self._events.put_nowait(None)  # for whoever asks next
            raise Unavailable(self._ended)
        return event

    async def _listen(self) -> None:
        reason = f"fleetd on {paths.socket(self._folder)}: ended while it was asked"
        try:
            while line := await self._reader.readline():
                message = json.loads(line)
                if "method" in message:
                    self._events.put_nowait(message.get("params") or {})
                    continue
                answer = self._waiting.get(message.get("id"))
                if answer is None or answer.done():
                    continue
                if "error" in message:
                    error = message["error"]
                    code = (error.get("data") or {}).get("code", "")
                    answer.set_exception(from_code(code, error.get("message", "fleetd gave an error")))
                else:
                    answer.set_result(message.get("result"))
        except (OSError, ValueError) as error:
            reason = f"fleetd on {paths.socket(self._folder)}: {error}"
        finally:
            self._ended = reason
            for answer in self._waiting.values():
                if not answer.done():
                    answer.set_exception(Unavailable(reason))
            self._events.put_nowait(None)
