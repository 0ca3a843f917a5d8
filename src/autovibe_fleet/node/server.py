# SPDX-License-Identifier: GPL-3.0-or-later
"""The face of fleetd: JSON-RPC 2.0, one line a message, on a Unix socket of mode 0600.

Only the user that fleetd runs as, and root, are answered (SO_PEERCRED, unix(7)).
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
import socket
import struct
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleet_core.errors import FleetError, InvalidInput, Unavailable
from fleet_core.names import check_keys, describe
from fleet_node.client import ShortPath

LONGEST_MESSAGE = 64 * 1024 * 1024
_QUEUE = 10_000
_BACKLOG = 16 * 1024 * 1024  # bytes of events that may wait for one subscriber
_AT_ONCE = 256  # requests of one connection that are worked on
KINDS = ("process", "environment", "agent", "run", "iteration", "message", "injection", "control")

Method = Callable[..., Awaitable[Any]]


class EventLine(bytes):
    """One event as it is written."""


class Outbox(asyncio.Queue[bytes]):
    """What waits to be written to one client: answers, for which there is room, and events, which must fit in."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._waiting = 0  # bytes of events

    def offer(self, line: EventLine) -> bool:
        """Add an event, or return False when too many or too large ones wait."""
        if self.full() or (self._waiting and self._waiting + len(line) > _BACKLOG):
            return False
        self.put_nowait(line)
        return True

    def _put(self, item: bytes) -> None:
        self._waiting += len(item) if isinstance(item, EventLine) else 0
        super()._put(item)

    def _get(self) -> bytes:
        item: bytes = super()._get()
        self._waiting -= len(item) if isinstance(item, EventLine) else 0
        return item


@dataclass(frozen=True)
class Subscription:
    """The events that one client asked for. kinds, agents: None stands for all of them."""

    writer: asyncio.StreamWriter
    kinds: frozenset[str] | None = None
    agents: frozenset[str] | None = None

    def wants(self, event: Mapping[str, Any]) -> bool:
        """Tell whether an event is among them. One that is of no agent is not, where agents are named."""
        if self.kinds is not None and event["kind"] not in self.kinds:
            return False
        return self.agents is None or event.get("agent") in self.agents


def subscription(writer: asyncio.StreamWriter, params: Mapping[str, Any]) -> Subscription:
    """Return what the parameters of events.subscribe ask for: kinds and agents, lists or nothing."""
    check_keys("events.subscribe", params, ("kinds", "agents"))
    found: dict[str, frozenset[str]] = {}
    for key, given in params.items():
        if given is None:
            continue
        if not isinstance(given, list) or not all(isinstance(item, str) for item in given):
            raise InvalidInput(f"events.subscribe: {key}: expected a list of names, found {describe(given)}")
        found[key] = frozenset(given)
    for kind in sorted(found.get("kinds", frozenset()) - set(KINDS)):
        raise InvalidInput(f'events.subscribe: kinds: expected {", ".join(KINDS)}, found "{kind}"')
    return Subscription(writer, found.get("kinds"), found.get("agents"))


class Server:
    """Serves methods to any number of clients at once. Requests of one connection are answered as they finish."""

    def __init__(
        self, path: Path, methods: dict[str, Method], complain: Callable[[str, BaseException | None], None]
    ) -> None:
        self._path = path
        self._methods = methods
        self._complain = complain
        self._server: asyncio.AbstractServer | None = None
        self._subscribers: dict[Outbox, Subscription] = {}
        self._connections: dict[asyncio.Task[Any], asyncio.StreamWriter] = {}

    async def open(self) -> None:
        """Begin to listen. The caller holds fleetd's lock, so a socket that is there already is a dead one."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        mask = os.umask(0o177)
        try:
            with ShortPath(self._path) as name:
                listener.bind(name)
        except OSError as error:
            raise Unavailable(f"socket {self._path}: {error.strerror or error}") from error
        finally:
            os.umask(mask)
        listener.listen(256)
        self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=LONGEST_MESSAGE)

    async def close(self) -> None:
        """Stop listening and end every connection. A client that does not read has a moment for what is on its way."""
        if self._server is not None:
            self._server.close()
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        open_ones = dict(self._connections)
        for task in open_ones:
            task.cancel()
        if open_ones:
            await asyncio.wait(open_ones, timeout=1.0)
        for _turn in range(20):
            if not any(writer.transport.get_write_buffer_size() for writer in open_ones.values()):
                break
            await asyncio.sleep(0.01)
        for writer in open_ones.values():
            if writer.transport.get_write_buffer_size():  # abort is not for one that has ended
                writer.transport.abort()
        await asyncio.sleep(0)  # for the loop to take them down

    def publish(self, event: dict[str, Any]) -> None:
        """Send an event to every subscriber that asked for it; one that does not read is cut off, not waited for."""
        line = EventLine()
        for queue, subscription in list(self._subscribers.items()):
            if not subscription.wants(event):
                continue
            if not line:  # once for all of them
                line = EventLine(_message(method="event", params=event))
            if not queue.offer(line):
                self._subscribers.pop(queue).writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = writer
        queue = Outbox(_QUEUE)
        running: set[asyncio.Task[None]] = set()
        sender = asyncio.create_task(_send(queue, writer))
        try:
            if not allowed(writer.get_extra_info("socket")):
                writer.write(_error(None, Unavailable("fleetd answers only the user that it runs as, and root")))
                with contextlib.suppress(OSError):
                    await writer.drain()
                return
            while True:
                try:
                    line = await reader.readline()
                except ValueError:
                    await queue.put(_error(None, InvalidInput(f"a message may be {LONGEST_MESSAGE} bytes long")))
                    return
                if not line:  # it asks for no more, but may wait for its answers
                    left: set[asyncio.Task[None]] = set(running)
                    while left and not sender.done():
                        _done, left = await asyncio.wait({*left, sender}, return_when=asyncio.FIRST_COMPLETED)
                        left.discard(sender)
                    return
                job = asyncio.create_task(self._answer(line, queue, writer))
                running.add(job)
                job.add_done_callback(running.discard)
                if len(running) >= _AT_ONCE:
                    await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    await asyncio.sleep(0)  # for what takes the ended ones out
        except (ConnectionError, asyncio.CancelledError):
            return
        finally:
            self._subscribers.pop(queue, None)
            self._connections.pop(task, None)
            await _drained(queue)
            sender.cancel()
            writer.close()

    async def _answer(self, line: bytes, queue: Outbox, writer: asyncio.StreamWriter) -> None:
        number: Any = None
        try:
            number, method, params = _request(line)
            if method == "events.subscribe":
                self._subscribers[queue] = subscription(writer, params)
                result: Any = {}
            else:
                function = self._methods.get(method)
                if function is None:
                    await queue.put(
                        _line(number, error={"code": -32601, "message": f'fleetd has no method "{method}"'})
                    )
                    return
                _check_params(method, function, params)
                result = await function(**params)
            if number is not None:
                await queue.put(_line(number, result=result))
        except FleetError as error:
            await queue.put(_error(number, error))
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self._complain(f"request failed: {type(error).__name__}: {error}", error)
            sentence = FleetError(f"fleetd failed with {type(error).__name__}: {error}; its log has more")
            await queue.put(_error(number, sentence))


_KINDS = {"str": (str,), "bool": (bool,), "str | None": (str, type(None))}


def _check_params(name: str, function: Method, params: dict[str, Any]) -> None:
    """Raise InvalidInput for a parameter that the method does not have, must have, or that is of another type."""
    known = inspect.signature(function).parameters
    if params and not known:
        raise InvalidInput(f'{name}: takes no parameters, found "{next(iter(params))}"')
    check_keys(name, params, known)
    for key, parameter in known.items():
        if key not in params:
            if parameter.default is inspect.Parameter.empty:
                raise InvalidInput(f'{name}: expected "{key}", found nothing')
        elif not isinstance(params[key], _KINDS.get(str(parameter.annotation), (object,))):
            raise InvalidInput(f"{name}: {key}: expected {parameter.annotation}, found {describe(params[key])}")


def _request(line: bytes) -> tuple[Any, str, dict[str, Any]]:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        raise InvalidInput("expected one JSON-RPC 2.0 request a line, found something else") from None
    if not isinstance(message, dict) or not isinstance(message.get("method"), str):
        raise InvalidInput("expected a JSON-RPC 2.0 request with a method")
    params = message.get("params") or {}
    if not isinstance(params, dict) or not all(isinstance(key, str) for key in params):
        raise InvalidInput("expected params as an object of names")
    return message.get("id"), message["method"], params


async def _send(queue: Outbox, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while True:
            writer.write(await queue.get())
            await writer.drain()


async def _drained(queue: Outbox) -> None:
    for _turn in range(20):
        if queue.empty():
            return
        await asyncio.sleep(0.005)


def _message(**content: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", **content}).encode() + b"\n"


def _line(number: Any, **content: Any) -> bytes:
    return _message(id=number, **content)


def _error(number: Any, error: FleetError) -> bytes:
    return _line(number, error={"code": error.rpc_code, "message": str(error), "data": {"code": error.code}})


def allowed(connection: Any) -> bool:
    """Tell whether the peer is the user that this process runs as, or root."""
    if sys.platform != "linux":
        return True  # the socket's mode 0600 in a folder of mode 0700 is the fence there
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _pid, uid, _gid = struct.unpack("3i", data)
    return uid in (0, os.geteuid())
