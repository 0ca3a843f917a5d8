# SPDX-License-Identifier: GPL-3.0-or-later
"""Readiness and health checks: one question to a process, and the rounds of all watched ones."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import heapq
import os
import random
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from fleet_core.errors import FleetError
from fleet_core.health import Health, HealthCheck, HttpTarget, judge, parse_url
from fleet_core.process_status import ProcessStatus
from fleet_core.processes import Launch

from .commands import run_command

Run = Callable[[Sequence[str], Mapping[str, str], str, float, str], Awaitable["tuple[int, str]"]]
CONCURRENCY = 32  # checks that are under way at one time
COMMANDS = 8  # of them, commands
_BLOCK = 65536


@dataclass(frozen=True)
class Result:
    """The answer to one check. message: what was expected and what was found, of a failure. seconds: its duration."""

    ok: bool
    message: str = ""
    seconds: float = 0.0


async def probe(
    check: HealthCheck, env: Mapping[str, str], folder: str, user: str = "", run: Run = run_command
) -> Result:
    """Ask once. Never raises: what goes wrong is a Result. env, folder, user: of the process, for a command."""
    begun = time.monotonic()
    url = check.url
    try:
        target = parse_url("check", url)
        if isinstance(target, str):
            code, output = await run(("/bin/sh", "-c", target), env, folder, check.timeout, user)
            last = output.strip().rpartition("\n")[2].strip()[:200]
            message = "" if code == 0 else f"{url}: expected exit code 0, found {code}" + (f": {last}" if last else "")
        else:
            ask = _http(target) if isinstance(target, HttpTarget) else _reach(*target)
            found = await asyncio.wait_for(ask, check.timeout)
            message = found and f"{url}: {found}"
            if message and isinstance(target, HttpTarget):
                message = f"GET {message}"
    except asyncio.TimeoutError:
        message = f"{url}: found no answer within {check.timeout:g} s"
    except FleetError as error:
        message = f"{url}: {error}"
    except (OSError, ValueError) as error:
        message = f"{url}: found {_reason(error)}"
    return Result(not message, message, time.monotonic() - begun)


async def _reach(host: str, port: int) -> str:
    (await _connect(host, port)).close()
    return ""


async def _http(target: HttpTarget) -> str:
    """Return what is wrong with the answer, or an empty text."""
    host = f"[{target.host}]" if ":" in target.host else target.host.encode("idna").decode()
    host = host if target.port == (443 if target.tls else 80) else f"{host}:{target.port}"
    path = quote(target.target, safe="/%?&=#:;,+@!$'()*~[]")
    lines = (f"GET {path} HTTP/1.1", f"Host: {host}", "User-Agent: fleetd", "Accept: */*", "Connection: close")
    request = "".join(f"{line}\r\n" for line in (*lines, "")).encode()
    connection = await _connect(target.host, target.port)
    try:
        if not target.tls:
            connection.sendall(request)  # fits into the empty buffer of a new connection
            return await _answer(functools.partial(_receive, connection))
        import ssl

        context = ssl.create_default_context()
        reader, writer = await asyncio.open_connection(sock=connection, ssl=context, server_hostname=target.host)
        with contextlib.closing(writer):
            writer.write(request)
            return await _answer(functools.partial(reader.read, _BLOCK))
    finally:
        if not target.tls:
            connection.close()


async def _answer(receive: Callable[[], Awaitable[bytes]]) -> str:
    """Read an answer and return what is wrong with it, or an empty text."""
    data, ended, code = b"", False, 0
    while not code:
        chunk = await receive()
        data += chunk
        ended = not chunk or len(data) > _BLOCK
        code = status_code(data)
        if ended and not code:
            text = data.partition(b"\n")[0].decode("utf-8", "replace").strip()[:60]
            return f'expected 2xx or 3xx, found "{text}"' if text else "expected 2xx or 3xx, found an empty answer"
    # Let the server finish: many log an error when a client leaves in the middle of an answer.
    with contextlib.suppress(asyncio.TimeoutError, OSError):
        await asyncio.wait_for(_rest(receive), 0.2)
    return "" if 200 <= code < 400 else f"expected 2xx or 3xx, found {code}"


async def _rest(receive: Callable[[], Awaitable[bytes]]) -> None:
    size = 1
    total = 0
    while size and total < _BLOCK:
        size = len(await receive())
        total += size


def status_code(data: bytes) -> int:
    """Return the final status of the begin of an HTTP/1 answer, 0 as long as there is none. RFC 9112, section 4."""
    while True:
        line, newline, _more = data.partition(b"\n")
        part = line.split(None, 2)
        if not newline or len(part) < 2 or not line.startswith(b"HTTP/1.") or not part[1].isdigit():
            return 0
        if not 100 <= int(part[1]) < 200:
            return int(part[1])
        # An interim answer, such as 103 Early Hints: the final one follows its headers.
        end = data.find(b"\r\n\r\n")
        if end < 0:
            return 0
        data = data[end + 4 :]


async def _receive(connection: socket.socket) -> bytes:
    while True:
        try:
            return connection.recv(_BLOCK)
        except BlockingIOError:
            await _ready(connection, asyncio.get_running_loop().add_reader, asyncio.get_running_loop().remove_reader)


async def _ready(connection: socket.socket, add: Callable[..., Any], remove: Callable[..., Any]) -> None:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    add(connection, _set, future)
    try:
        await future
    finally:
        remove(connection)


async def _connect(host: str, port: int) -> socket.socket:
    """Return a connected socket. localhost is both of its addresses; only a name to look up takes a thread."""
    if host == "localhost":
        found = [(socket.AF_INET, ("127.0.0.1", port)), (socket.AF_INET6, ("::1", port))]
    else:
        try:
            answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        except socket.gaierror:
            answers = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        found = [(answer[0], answer[4]) for answer in answers]  # type: ignore[misc]
    errors = []
    for family, address in found:
        try:
            return await _connect_to(family, address)
        except OSError as error:
            errors.append(error)
    # An address family that this host does not have says nothing about the process.
    absent = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
    raise next((error for error in errors if error.errno not in absent), errors[0])


async def _connect_to(family: int, address: tuple[str, int]) -> socket.socket:
    # Not by loop.sock_connect or a stream: both load the TLS modules, which fleetd keeps out of memory without need.
    loop = asyncio.get_running_loop()
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        number = connection.connect_ex(address)
        if number == errno.EINPROGRESS:
            await _ready(connection, loop.add_writer, loop.remove_writer)
            number = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            raise OSError(number, os.strerror(number))
    except BaseException:
        connection.close()
        raise
    return connection


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _reason(error: Exception) -> str:
    if isinstance(error, socket.gaierror):
        return f"an unknown host: {error.strerror}"
    verify = getattr(error, "verify_message", "")  # ssl.SSLCertVerificationError
    if verify:
        return f"a certificate that is not valid: {verify}"
    number = getattr(error, "errno", None)
    return os.strerror(number).lower() if isinstance(number, int) and number > 0 else str(error) or type(error).__name__


class _Watched:
    __slots__ = ("begun", "check", "due", "folder", "health", "ident", "launch", "status", "task")

    def __init__(self, ident: str, check: HealthCheck, launch: Launch, folder: str, status: ProcessStatus) -> None:
        self.ident = ident
        self.check = check
        self.launch = launch
        self.folder = folder
        self.status = status
        self.health = Health(healthy=status.healthy)
        self.begun = time.monotonic() - (max(0.0, time.time() - status.started) if status.started else 0.0)
        self.due = 0.0
        self.task: asyncio.Task[Result] | None = None


class HealthChecks:
    """Asks each watched process on its interval and reports when the verdict changes.

    verdict: called with the id, whether it is healthy, and why not. One timer serves all; a task lives only while its
    check is under way. asked: when each process was last asked, on the monotonic clock.
    """

    def __init__(
        self,
        verdict: Callable[[str, bool, str], None],
        run: Run = run_command,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.asked: dict[str, float] = {}
        self._verdict = verdict
        self._run = run
        self._chance = chance
        self._watched: dict[str, _Watched] = {}
        self._heap: list[tuple[float, int, _Watched]] = []
        self._count = 0
        self._queue: deque[_Watched] = deque()
        self._under_way = 0
        self._commands: asyncio.Semaphore | None = None
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, ident: str, check: HealthCheck, launch: Launch, folder: str, status: ProcessStatus) -> None:
        """Check a process from now on. The first time is random, so that many processes are not asked at one moment."""
        self.forget(ident)
        watched = self._watched[ident] = _Watched(ident, check, launch, folder, status)
        watched.due = time.monotonic() + check.interval * self._chance()
        self._push(watched)

    def forget(self, ident: str) -> None:
        """Check a process no more; an answer that is still awaited counts for nothing."""
        watched = self._watched.pop(ident, None)
        self.asked.pop(ident, None)
        if watched is not None and watched.task is not None:
            watched.task.cancel()

    def close(self) -> None:
        """Check nothing any more."""
        for ident in list(self._watched):
            self.forget(ident)
        self._heap.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def ask(self, check: HealthCheck, launch: Launch, folder: str, status: ProcessStatus) -> Result:
        """Ask once, now."""
        if check.url.startswith("cmd://"):
            if self._commands is None:
                self._commands = asyncio.Semaphore(COMMANDS)
            async with self._commands:
                return await probe(check, launch.env, folder, launch.user, self._run)
        return await probe(check, launch.env, folder, launch.user, self._run)

    async def run(
        self, argv: Sequence[str], env: Mapping[str, str], folder: str, timeout: float, user: str = ""
    ) -> tuple[int, str]:
        """Return exit code and output of a command. Raises TimedOut when it takes longer; its whole group is ended."""
        return await self._run(argv, env, folder, timeout, user)

    def _push(self, watched: _Watched) -> None:
        self._count += 1
        heapq.heappush(self._heap, (watched.due, self._count, watched))
        if self._heap[0][2] is watched:
            self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._heap and not self._is_current(self._heap[0][2]):
            heapq.heappop(self._heap)
        if self._heap:
            delay = max(0.0, self._heap[0][0] - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay, self._fire)

    def _is_current(self, watched: _Watched) -> bool:
        return self._watched.get(watched.ident) is watched

    def _fire(self) -> None:
        now = time.monotonic()
        while self._heap and self._heap[0][0] <= now:
            watched = heapq.heappop(self._heap)[2]
            if self._is_current(watched):
                self._queue.append(watched)
        self._begin()
        self._arm()

    def _begin(self) -> None:
        while self._queue and self._under_way < CONCURRENCY:
            watched = self._queue.popleft()
            if self._is_current(watched):
                self._under_way += 1
                self.asked[watched.ident] = time.monotonic()
                work = self.ask(watched.check, watched.launch, watched.folder, watched.status)
                watched.task = asyncio.get_running_loop().create_task(work)
                watched.task.add_done_callback(lambda task, watched=watched: self._answered(watched, task))  # type: ignore[misc]

    def _answered(self, watched: _Watched, task: asyncio.Task[Result]) -> None:
        self._under_way -= 1
        watched.task = None
        if not task.cancelled() and self._is_current(watched):
            error = task.exception()
            result = task.result() if error is None else Result(False, f"{watched.check.url}: {error!r}")
            before = watched.health
            now = time.monotonic()
            watched.health = judge(watched.check, before, result.ok, now - watched.begun)
            watched.due = max(now, watched.due + watched.check.interval)
            self._push(watched)
            if watched.health.healthy is not None and watched.health.healthy != before.healthy:
                self._verdict(watched.ident, watched.health.healthy, result.message)
        self._begin()
