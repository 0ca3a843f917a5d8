# SPDX-License-Identifier: GPL-3.0-or-later
"""The server that gcluster's clients connect to, on 127.0.0.1. It keeps nothing: all of it is in fleetd.

The protocol knows no password. So only this user's processes, and root's, are answered, and a connection whose first
words are no message is closed: a web page can make a browser send HTTP here, but no more than its first line is read.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from fleet_core.errors import Conflict, FleetError, InvalidInput, NotFound, Unavailable

from ..connection import Connection
from . import messages, peers
from .messages import Message, NoMessage
from .snapshot import Snapshot

ADDRESS = "127.0.0.1"
_PAUSE = 0.15  # seconds at least between two states
_PATIENCE = 10.0  # seconds that a client may take to read a state
_KINDS = ["agent", "run", "iteration", "message", "injection", "control"]
_RETRIES = (0.2, 0.5, 1.0, 2.0, 5.0)  # seconds between attempts to reach fleetd
_MOST = 200  # connections


class Bridge:
    """Speaks with clients on one side and with fleetd on the other.

    base: fields of agents that are new, such as runner. start: run agents that are new, changed or
    never ran, as gcluster does.
    launch: starts fleetd, or raises Unavailable. note: takes a sentence for whoever watches.
    """

    def __init__(
        self,
        folder: Path,
        base: Mapping[str, Any],
        start: bool,
        launch: Callable[[], object],
        note: Callable[[str], None],
    ) -> None:
        self._folder = folder
        self._base = base
        self._start = start
        self._launch = launch
        self._note = note
        self._snapshot = Snapshot()
        self._line = b""
        self._version = 0  # of the line; 0 until fleetd has been asked
        self._changed = asyncio.Condition()
        self._subscribers: set[asyncio.StreamWriter] = set()
        self._connections: set[asyncio.Task[Any]] = set()
        self._up: Connection | None = None
        self._background: set[asyncio.Task[Any]] = set()

    async def serve(self, port: int, stop: asyncio.Event, ready: Callable[[int], None]) -> None:
        """Serve until stop is set. Raises Conflict when the port is taken."""
        listener = _listener(port)
        number = listener.getsockname()[1]
        following = asyncio.create_task(self._follow())
        server = await asyncio.start_server(self._accept, sock=listener, limit=messages.LONGEST)
        ready(number)
        try:
            await stop.wait()
        finally:
            server.close()
            following.cancel()
            await self._farewell("fleet gcluster is stopped; the agents go on")

    async def _farewell(self, reason: str) -> None:
        notice = messages.line(messages.SHUTDOWN, {"reason": reason})
        for writer in list(self._subscribers):
            with contextlib.suppress(Exception):
                writer.write(notice)
                await asyncio.wait_for(writer.drain(), 1.0)
        for task in [*self._connections, *self._background]:
            task.cancel()
        if self._up is not None:
            await self._up.close()

    # fleetd

    async def _fleetd(self) -> Connection:
        """Return a connection of one's own to fleetd. Raises Unavailable."""
        try:
            return await Connection.open(self._folder)
        except Unavailable:
            await asyncio.to_thread(self._launch)
            return await Connection.open(self._folder)

    async def _follow(self) -> None:
        """Keep the snapshot like fleetd, for ever."""
        failures = 0
        while True:
            try:
                async with await self._fleetd() as connection:
                    await connection.subscribe(kinds=_KINDS)
                    await self._refresh(connection, None)
                    failures = 0
                    while True:
                        await self._refresh(connection, await self._heard(connection))
            except FleetError as error:
                if not failures:
                    self._note(f"fleetd: {error}; trying again")
            await asyncio.sleep(_RETRIES[min(failures, len(_RETRIES) - 1)])
            failures += 1

    async def _heard(self, connection: Connection) -> set[str]:
        """Wait for events, and a moment longer for those that come with them; return the agents that they name."""
        names: set[str] = set()
        event = await connection.event()
        loop = asyncio.get_running_loop()
        end = loop.time() + _PAUSE
        while True:
            if event is not None and isinstance(event.get("agent"), str):
                names.add(event["agent"])
            left = end - loop.time()
            if left <= 0:
                return names
            event = await connection.event(left)

    async def _refresh(self, connection: Connection, names: set[str] | None) -> None:
        await self._snapshot.refresh(connection, names)
        line = self._snapshot.line()
        if line != self._line or not self._version:
            async with self._changed:
                self._line = line
                self._version += 1
                self._changed.notify_all()

    # Clients

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        pushing: asyncio.Task[None] | None = None
        try:
            if len(self._connections) >= _MOST:
                writer.write(_error(f"expected at most {_MOST} connections at once"))
                return
            self._connections.add(task)
            if not peers.allowed(writer.get_extra_info("socket")):
                writer.write(_error("only processes of the user that it runs as, and root's, are answered"))
                return
            async for line in _lines(reader):
                try:
                    request = messages.message(line)
                    if request.type == messages.SUBSCRIBE:
                        pushing = pushing or self._subscribe(writer)
                    else:
                        await self._answer(request, writer)
                except NoMessage as error:
                    writer.write(_error(error.message))
                    return
                except FleetError as error:
                    writer.write(_error(error.message))
                await asyncio.wait_for(writer.drain(), _PATIENCE)
        except (ConnectionError, TimeoutError, asyncio.TimeoutError, asyncio.CancelledError):
            pass
        except FleetError as error:
            writer.write(_error(error.message))
        except Exception as error:
            self._note(f"unexpected {type(error).__name__}: {error}")
            writer.write(_error("the server could not work on this message"))
        finally:
            self._connections.discard(task)
            self._subscribers.discard(writer)
            if pushing is not None:
                pushing.cancel()
            with contextlib.suppress(Exception):
                await asyncio.wait_for(writer.drain(), 1.0)
            writer.close()

    def _subscribe(self, writer: asyncio.StreamWriter) -> asyncio.Task[None]:
        writer.transport.set_write_buffer_limits(high=64 * 1024)
        self._subscribers.add(writer)
        return asyncio.create_task(self._push(writer))

    async def _push(self, writer: asyncio.StreamWriter) -> None:
        """Send the state now and when it changes. A slow client misses states, one that reads nothing is cut off."""
        sent = 0
        try:
            while True:
                async with self._changed:
                    while self._version == sent:
                        await self._changed.wait()
                    sent, line = self._version, self._line
                writer.write(line)
                await asyncio.wait_for(writer.drain(), _PATIENCE)
        except (ConnectionError, TimeoutError, asyncio.TimeoutError):
            self._subscribers.discard(writer)
            writer.transport.abort()

    async def _answer(self, request: Message, writer: asyncio.StreamWriter) -> None:
        table: dict[str, Callable[[Message, asyncio.StreamWriter], Awaitable[None]]] = {
            messages.APPLY: self._apply,
            messages.INJECT: self._inject,
            messages.EDIT: self._edit,
        }
        await table[request.type](request, writer)

    async def _apply(self, request: Message, writer: asyncio.StreamWriter) -> None:
        try:
            async with await self._fleetd() as connection:
                known = await _current(connection, messages.names(request))
                found = messages.definitions(request, known, self._base)
                answer = await connection.call("agents.apply", items=[item.to_dict() for item in found])
        except FleetError as error:
            writer.write(messages.applied(error=error.message))
            return
        writer.write(messages.applied(answer["summary"]))
        fresh = {*answer["summary"]["created"], *answer["summary"]["updated"]}
        names = [
            view["name"] for view in answer["agents"] if view["name"] in fresh or messages.run_state(view) == "pending"
        ]
        if self._start and names:
            task = asyncio.create_task(self._begin(names))
            self._background.add(task)
            task.add_done_callback(self._background.discard)

    async def _begin(self, names: list[str]) -> None:
        """Start agents, each by itself: that one cannot be started keeps no other from it."""
        for name in names:
            try:
                async with await self._fleetd() as connection:
                    await connection.call("agents.start", names=[name], wait=False)
            except FleetError as error:
                self._note(f'agent "{name}": {error}')

    async def _inject(self, request: Message, writer: asyncio.StreamWriter) -> None:
        name, text = request.text("agent_name"), request.text("message")
        label = request.text("step_label", required=False)
        async with await self._fleetd() as connection:
            step = self._snapshot.coming_step(name, label)
            await connection.call("agents.inject", name=name, text=text, step=step or None, sender="gcluster")

    async def _edit(self, request: Message, writer: asyncio.StreamWriter) -> None:
        name, method = request.text("agent_name"), request.text("method_name")
        async with await self._fleetd() as connection:
            await connection.call("agents.edit", name=name, method=method, body=request.text("new_body"))


async def _current(connection: Connection, names: list[str]) -> dict[str, dict[str, Any]]:
    """Return the current definitions of those agents that there are."""
    found = {}
    for name in names:
        with contextlib.suppress(NotFound):
            found[name] = (await connection.call("agents.revisions", name=name))["revisions"][-1]["definition"]
    return found


async def _lines(reader: asyncio.StreamReader) -> Any:
    """Yield the lines of a client that are not empty. Raises InvalidInput for one that is too long."""
    while True:
        try:
            line = await reader.readline()
        except ValueError:
            raise InvalidInput(f"a message may be {messages.LONGEST} bytes long") from None
        if not line:
            return
        if line.strip():
            yield line


def _error(text: str) -> bytes:
    return messages.line(messages.ERROR, {"error": text})


def _listener(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((ADDRESS, port))
    except OSError as error:
        listener.close()
        raise Conflict(
            f"port {port} of {ADDRESS}: {os.strerror(error.errno or 0)}; gcluster may run already; --port takes another"
        ) from None
    listener.listen(64)
    return listener
