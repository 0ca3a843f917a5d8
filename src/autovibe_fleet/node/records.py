# SPDX-License-Identifier: GPL-3.0-or-later
"""What the engine has changed: written in one transaction a moment, told to subscribers, waited for by requests."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

from fleet_core.errors import StateDamaged
from fleet_node.store import Store

from .managed import Managed

_RETRY = 1.0  # seconds between attempts to write what could not be written


class Records:
    """The link between the engine's memory and the store."""

    def __init__(self, store: Store, processes: Mapping[str, Managed], complain: Callable[..., None]) -> None:
        self.store = store
        self.on_event: list[Callable[[dict[str, Any]], None]] = []
        self._processes = processes
        self._complain = complain
        self._dirty: set[str] = set()
        self._releases: set[str] = set()
        self._handle: asyncio.Handle | None = None
        self._waiters: list[asyncio.Future[None]] = []
        self._closed = False
        self._trouble = ""

    def mark(self, ident: str) -> None:
        """Have the status of a process written."""
        self._dirty.add(ident)
        self.flush_soon()

    def release(self, ident: str) -> None:
        """Have the claims of a process given back."""
        self._releases.add(ident)
        self.flush_soon()

    def drop(self, ident: str) -> None:
        """Forget what was to be written of a process that is removed."""
        self._dirty.discard(ident)
        self._releases.discard(ident)

    def close(self) -> None:
        """Write what is left, if the disk takes it."""
        self._closed = True
        self.try_flush()

    def flush_soon(self) -> None:
        """Write what has changed once the events of this moment are through."""
        if self._handle is None and not self._closed:
            self._handle = asyncio.get_running_loop().call_soon(self.try_flush)

    def try_flush(self) -> None:
        """Write what has changed. What cannot be written now is tried again every second."""
        with contextlib.suppress(StateDamaged):
            self.flush()

    def flush(self) -> None:
        """Write changed statuses and released claims in one transaction, then wake those who wait.

        Raises StateDamaged; it is tried again every second then, and those who wait are woken all the same.
        """
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        try:
            dirty = {ident: self._processes[ident].status for ident in self._dirty if ident in self._processes}
            if dirty or self._releases:
                with self.store.transaction():
                    self.store.put_statuses(dirty)
                    self.store.release(self._releases)
                self._dirty.clear()
                self._releases.clear()
        except StateDamaged as error:
            if str(error) != self._trouble:
                self._trouble = str(error)
                self._complain(self._trouble)
            if not self._closed:
                self._handle = asyncio.get_running_loop().call_later(_RETRY, self.try_flush)
            raise
        else:
            self._trouble = ""
        finally:
            waiters, self._waiters = self._waiters, []
            for future in waiters:
                if not future.done():
                    future.set_result(None)

    def publish(self, kind: str, ident: str, state: str, previous: str, message: str = "") -> None:
        """Tell every subscriber of a change. kind: "process" or "environment"."""
        event = {
            "time": time.time(),
            "kind": kind,
            "id": ident,
            "state": state,
            "previous": previous,
            "message": message,
        }
        self.tell(event)

    def tell(self, event: dict[str, Any]) -> None:
        """Tell every subscriber of an event. It has a time and a kind."""
        for listener in list(self.on_event):
            listener(event)

    async def changed(self, seconds: float) -> None:
        """Wait until something was written, or for some seconds."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(future)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(future, max(0.001, seconds))

    async def until(self, true: Callable[[], bool], deadline: float) -> bool:
        """Wait until something is true; False when the (monotonic) deadline comes first."""
        while not true():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            await self.changed(left)
        return True
