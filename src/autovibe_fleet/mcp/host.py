# SPDX-License-Identifier: GPL-3.0-or-later
"""This host as the tools see it: fleetd, the store, and the project that a session works in."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import anyio.to_thread

from fleet_core.errors import FleetError, InvalidInput, Unavailable
from fleet_node.store import Store

from ..cli import logs, projects
from ..cli.session import Session
from ..connection import Connection

if TYPE_CHECKING:
    from .tools import Ctx

T = TypeVar("T")
Event = dict[str, Any]

_SESSIONS = 1000  # whose chosen environment is remembered
_HEARTBEAT = 5.0  # seconds between two progress notes while nothing happens


class Host:
    """What all tools of a server share. launch: starts fleetd, or raises Unavailable."""

    def __init__(self, folder: Path, launch: Callable[[], object]) -> None:
        self.folder = folder
        self._launch = launch
        self._chosen: OrderedDict[str, str] = OrderedDict()
        self._launching = asyncio.Lock()

    # fleetd

    async def connect(self) -> Connection:
        """Return a new connection to fleetd, which is started when it does not run."""
        try:
            return await Connection.open(self.folder)
        except Unavailable:
            async with self._launching:
                try:
                    return await Connection.open(self.folder)
                except Unavailable:
                    await self.thread(self._launch)
            return await Connection.open(self.folder)

    async def call(self, method: str, /, **params: Any) -> Any:
        """Return the result of a method of fleetd."""
        async with await self.connect() as connection:
            return await connection.call(method, **params)

    async def watch(self, ctx: Ctx, told: Callable[[Event], str], method: str, /, **params: Any) -> Any:
        """Return the result of a method, and report progress meanwhile. told: what an event means, or nothing.

        When the request is cancelled, what it asked for goes on in fleetd.
        """
        async with await self.connect() as connection:
            await connection.subscribe()
            reporting = asyncio.create_task(report(ctx, connection, told, method))
            try:
                return await connection.call(method, **params)
            finally:
                reporting.cancel()

    async def thread(self, function: Callable[..., T], *arguments: Any) -> T:
        """Return what a blocking function returns, run in a thread."""
        return await anyio.to_thread.run_sync(function, *arguments, abandon_on_cancel=True)

    # Projects

    def session(self, environment: str = "") -> Session:
        """Return a session as a command line has it. environment: as -e takes it."""
        return Session(state_dir=str(self.folder), environment=environment)

    @contextlib.contextmanager
    def store(self) -> Iterator[Store]:
        """Give the state database; it needs no fleetd."""
        store = Store(self.folder)
        try:
            yield store
        finally:
            store.close()

    def choose(self, ctx: Ctx, name: str) -> None:
        """Remember the environment that a session works in; an empty name forgets it."""
        key = _key(ctx)
        self._chosen.pop(key, None)
        if name and key:
            self._chosen[key] = name
        while len(self._chosen) > _SESSIONS:
            self._chosen.popitem(last=False)

    def wanted(self, ctx: Ctx, given: str | None) -> str:
        """Return what a tool's parameter says, else the session's choice, else nothing: the server's folder."""
        return given or self._chosen.get(_key(ctx), "")

    async def environment(self, ctx: Ctx, given: str | None) -> tuple[str, Path | None]:
        """Return (name, project file). The name is empty where it is not known yet, the file None where not needed."""

        def look() -> tuple[str, Path | None]:
            session = self.session(self.wanted(ctx, given))
            try:
                return projects.chosen(session)
            finally:
                session.store.close()

        return await self.thread(look)

    async def known(self, ctx: Ctx, given: str | None) -> dict[str, str]:
        """Return {"name"} or {"path"} of an environment, for a method of fleetd. Raises InvalidInput without one."""
        name, file = await self.environment(ctx, given)
        if not name and file is None:
            raise InvalidInput(
                "environment: none was given, none was activated in this session, and the server runs in no project"
            )
        return {"name": name} if name else {"path": str(file)}

    async def process_id(self, ctx: Ctx, name: str, given: str | None) -> str:
        """Return the id of a process by the name that a tool was given."""

        def look() -> str:
            session = self.session(self.wanted(ctx, given))
            try:
                return projects.process_ids(session, [name])[0]
            finally:
                session.store.close()

        ident = await self.thread(look)
        await self.touch(ident.rpartition("/")[0])
        return ident

    async def log(self, ident: str, lines: int, since: str = "") -> list[dict[str, Any]]:
        """Return the last lines of a process's log, as records. since: as `fleet logs` takes it."""

        def read() -> list[dict[str, Any]]:
            session = self.session()
            try:
                (source,) = logs.sources(session, [ident])
                return [dict(record) for record in source.read(lines, since, False)]
            finally:
                session.store.close()

        return await self.thread(read)

    async def touch(self, name: str) -> None:
        """Record that somebody uses an environment; that it cannot be recorded is no error."""
        if name:
            with contextlib.suppress(FleetError):
                async with await Connection.open(self.folder) as connection:
                    await connection.call("environments.touch", name=name)


async def report(ctx: Ctx, connection: Connection, told: Callable[[Event], str], what: str) -> None:
    """Report events as progress until the connection ends; now and then, that it still goes on."""
    begun = time.monotonic()
    count = 0
    with contextlib.suppress(FleetError):
        while True:
            event = await connection.event(_HEARTBEAT)
            text = told(event) if event is not None else f"{what}: {time.monotonic() - begun:.0f} s"
            if text:
                count += 1
                await ctx.report_progress(count, None, text)


def _key(ctx: Ctx) -> str:
    """Return what tells sessions apart: over HTTP the session's id if it has one, else the one of stdio."""
    headers = ctx.headers
    return "stdio" if headers is None else headers.get("mcp-session-id", "")
