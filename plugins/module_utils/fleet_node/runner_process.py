# SPDX-License-Identifier: GPL-3.0-or-later
"""One turn of a coding tool as a process of its own group, of which nothing is left when the turn is over.

Output is bounded: a line, what is kept of standard error, and how long a process group may take to end.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from fleet_core.errors import FleetError, NotFound
    from fleet_core.runner_events import Event, Outcome, Turn, session_name
    from fleet_core.runners import Reader, Runner
else:
    try:
        from ..fleet_core.errors import FleetError, NotFound
        from ..fleet_core.runner_events import Event, Outcome, Turn, session_name
        from ..fleet_core.runners import Reader, Runner
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import FleetError, NotFound
        from fleet_core.runner_events import Event, Outcome, Turn, session_name
        from fleet_core.runners import Reader, Runner

from . import procfs
from .runner_child import Child

MAX_LINE = 8 * 1024 * 1024  # bytes; the rest of a longer line is left out
STDERR_TAIL = 64 * 1024  # bytes
# What a tool is sent to end it, and the seconds it gets for that; then it is killed.
ENDING = ((signal.SIGINT, 5.0), (signal.SIGTERM, 5.0))
LEFTOVER_GRACE = 1.0  # seconds between SIGTERM and SIGKILL for what a tool left running in its group
DRAIN = 2.0  # seconds for the rest of the output, which something outside the group may hold open
LINGER = 60.0  # seconds that a tool may go on after its turn is over
_POLL = 0.05


class Inbox(Protocol):
    """Where messages for a working tool come from."""

    async def next(self) -> tuple[int, str]:
        """Wait for a message: its id and its text. May be cancelled, and then takes nothing."""

    def sent(self, ident: int) -> None:
        """The message was written; the tool may not have read it yet."""

    def confirmed(self, ident: int) -> None:
        """The tool said that it has read the message."""


async def run_turn(
    runner: Runner,
    turn: Turn,
    *,
    folder: str | os.PathLike[str],
    env: Mapping[str, str],
    on_event: Callable[[Event], None],
    inbox: Inbox | None = None,
    timeout: float = 0,
    stop: asyncio.Event | None = None,
    started: Callable[[int, float], None] | None = None,
) -> Outcome:
    """Run a tool for one turn and return how it ended; what it does wrong is an Outcome, never an exception.

    env: added to this process's environment. timeout: seconds, 0 for none. stop: set it to interrupt the tool.
    started: is told the pid and, as procfs.start_ticks gives it, when the process began. Messages are taken from inbox
    only while the tool can read them. Raises InvalidInput for a turn that no tool could be given, and whatever
    on_event, started or inbox raise; the tool is ended then too, as it is when this is cancelled.
    """
    turn = replace(turn, session=session_name(turn.session))
    invocation = runner.invocation(turn)
    reader = runner.reader(turn)
    if stop is not None and stop.is_set():
        return _told(reader.finish(None, "", "interrupted"), on_event)
    try:
        child = Child(runner.name, invocation, os.fspath(folder), env)
    except NotFound as error:
        return _told(reader.finish(None, str(error), "not_found"), on_event)
    except FleetError as error:
        return _told(reader.finish(None, str(error), "failed"), on_event)
    with child:
        if started is not None:
            started(child.pid, float(procfs.start_ticks(child.pid) or 0))
        outcome = await _Run(child, reader, on_event, inbox).outcome(timeout, stop)
    return _told(outcome, on_event)


def _told(outcome: Outcome, on_event: Callable[[Event], None]) -> Outcome:
    on_event(Event("end", outcome.error, {"ok": outcome.ok, "reason": outcome.reason}))
    return outcome


class _Run:
    """What happens between the start of a child and its outcome."""

    def __init__(self, child: Child, reader: Reader, on_event: Callable[[Event], None], inbox: Inbox | None) -> None:
        self._child = child
        self._reader = reader
        self._on_event = on_event
        self._inbox = inbox
        self._lines = _Lines(self._line)
        self._stderr = bytearray()
        self._over = asyncio.Event()

    async def outcome(self, timeout: float, stop: asyncio.Event | None) -> Outcome:
        loop = asyncio.get_running_loop()
        tasks: list[asyncio.Task[None]] = []

        def begin(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
            tasks.append(loop.create_task(work))
            return tasks[-1]

        output = [begin(self._read_lines()), begin(self._child.read(self._keep, stderr=True))]
        exited = begin(self._child.wait())
        talk = begin(self._talk())
        forward = begin(self._forward())
        watched = [exited, talk, forward, *output]
        stopped = begin(_set(stop)) if stop is not None else None
        if stopped is not None:
            watched.append(stopped)
        try:
            reason = await self._end_of(watched, exited, talk, stopped, timeout)
            if not exited.done():
                await self._ask_to_end(exited)
            talk.cancel()
            forward.cancel()
            await self._end_group()
            await asyncio.wait(output, timeout=DRAIN)
            for task in output:
                if task.done():
                    task.result()
            self._lines.flush()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        code = 0 if reason == "lingered" else self._child.code
        reason = "" if reason == "lingered" else reason
        return self._reader.finish(code, self._stderr.decode("utf-8", "replace"), reason)

    async def _end_of(
        self,
        watched: list[asyncio.Task[None]],
        exited: asyncio.Task[None],
        talk: asyncio.Task[None],
        stopped: asyncio.Task[None] | None,
        timeout: float,
    ) -> str:
        """Wait for the end of the child, or for a reason to end it, and return that."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout if timeout > 0 else None
        while True:
            remaining = None if deadline is None else max(0.0, deadline - loop.time())
            done, _rest = await asyncio.wait(watched, timeout=remaining, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            if exited in done:
                return ""
            if stopped is not None and stopped in done:
                return "interrupted"
            if talk in done:
                return "lingered"
            if not done:
                return "timeout"
            watched = [task for task in watched if task not in done]

    async def _ask_to_end(self, exited: asyncio.Task[None]) -> None:
        for number, grace in ENDING:
            self._child.signal(number)
            await asyncio.wait([exited], timeout=grace)
            if exited.done():
                return
        self._child.signal(signal.SIGKILL)
        await exited

    async def _end_group(self) -> None:
        """End what the child left running in its group, so that the next turn finds its ports and files free."""
        if not self._child.has_others():
            return
        self._child.signal(signal.SIGTERM)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + LEFTOVER_GRACE
        while loop.time() < deadline and self._child.has_others():  # noqa: ASYNC110 - nothing tells when a group is empty
            await asyncio.sleep(_POLL)
        self._child.signal(signal.SIGKILL)

    async def _read_lines(self) -> None:
        await self._child.read(self._lines.take)

    def _keep(self, data: bytes) -> None:
        self._stderr += data
        del self._stderr[:-STDERR_TAIL]

    def _line(self, line: str) -> None:
        for event in self._reader.feed(line):
            if event.type == "user" and self._inbox is not None and event.detail.get("injection") is not None:
                self._inbox.confirmed(event.detail["injection"])
            self._on_event(event)
        if self._reader.idle:
            self._over.set()

    async def _talk(self) -> None:
        """Write the prompt; close standard input when the turn is over; end when the child seems stuck after that."""
        await self._child.write("")
        while not self._reader.idle:
            await self._over.wait()
            self._over.clear()
        self._child.close_stdin()
        await asyncio.sleep(LINGER)

    async def _forward(self) -> None:
        """Write what the inbox holds for as long as it may be read; then wait until this is cancelled."""
        if self._inbox is not None and self._reader.steers:
            while True:
                ident, text = await self._inbox.next()
                if self._reader.idle or not await self._child.write(self._reader.message(text, ident)):
                    break
                self._inbox.sent(ident)
        await asyncio.Event().wait()


class _Lines:
    """Cuts a stream of bytes into lines."""

    def __init__(self, take: Callable[[str], None]) -> None:
        self._take = take
        self._parts: list[bytes] = []
        self._size = 0

    def take(self, data: bytes) -> None:
        *lines, rest = data.split(b"\n")
        for line in lines:
            self._add(line)
            self._give()
        self._add(rest)

    def _add(self, part: bytes) -> None:
        part = part[: MAX_LINE - self._size]
        if part:
            self._parts.append(part)
            self._size += len(part)

    def _give(self) -> None:
        line = b"".join(self._parts).decode("utf-8", "replace").rstrip("\r")
        self._parts, self._size = [], 0
        self._take(line)

    def flush(self) -> None:
        """Give away what came without an end of line."""
        if self._parts:
            self._give()


async def _set(event: asyncio.Event) -> None:
    await event.wait()
