# SPDX-License-Identifier: GPL-3.0-or-later
"""What others want of the run: stop, pause, go on, interrupt, a new revision. Read from the store, told by fleetd."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from fleet_core.errors import FleetError
from fleet_node.agents import AgentStore

_POLL = 1.0  # seconds between looks at the store, for what no event has told

STOPPED, INTERRUPTED, LIMIT, WATCHDOG = "stopped", "interrupted", "limit", "watchdog"


class Stop:
    """Why a turn that runs is to be ended. The first reason counts."""

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.reason = ""
        self.error = ""

    def ask(self, reason: str, error: str) -> None:
        """End the turn. error: a sentence for the iteration's record."""
        if not self.event.is_set():
            self.reason, self.error = reason, error
            self.event.set()


class Control:
    """What is wanted of one agent, as its row in the store says. arrived: is called when messages may have come."""

    def __init__(self, store: AgentStore, name: str, arrived: Callable[[], None]) -> None:
        self._store = store
        self._name = name
        self._arrived = arrived
        self._version = -1
        self._turn: Stop | None = None
        self._seen = 0
        self.terminated = False
        self.desired = "running"
        self.interrupts = 0
        self.revision = 0
        self.changed = asyncio.Event()
        self.refresh()

    @property
    def stopping(self) -> bool:
        """Whether the run is to end, or this process."""
        return self.terminated or self.desired == "stopped"

    def terminate(self) -> None:
        """This process is asked to end (SIGTERM)."""
        self.terminated = True
        self.changed.set()
        self._check_turn()

    def hear(self, what: str) -> None:
        """Take up what fleetd has told: injection, desired, interrupt or revision."""
        if what == "injection":
            self._arrived()
        else:
            self.refresh()

    def refresh(self) -> None:
        """Read what is wanted now."""
        row = self._store.agents([self._name]).get(self._name)
        before = (self.desired, self.interrupts, self.revision)
        if row is None:  # removed meanwhile
            self.desired = "stopped"
        else:
            self.desired, self.interrupts, self.revision = row["desired"], row["interrupts"], row["revision"]
        if before != (self.desired, self.interrupts, self.revision):
            self.changed.set()
        self._check_turn()

    async def watch(self) -> None:
        """Look at the store each second, whether or not fleetd is there to tell. Runs until it is cancelled."""
        while True:
            await asyncio.sleep(_POLL)
            with contextlib.suppress(FleetError):  # who writes next will say it, and end the run's process
                version = self._store.data_version()
                if version != self._version:
                    self.refresh()
                    self._arrived()
                    self._version = version

    def watch_turn(self, stop: Stop | None) -> None:
        """From now on end this turn when that is wanted; None: there is none."""
        self._turn = stop
        self._seen = self.interrupts
        if stop is not None:
            self.refresh()

    def _check_turn(self) -> None:
        if self._turn is None:
            return
        if self.stopping:
            what = "the agent was stopped" if self.desired == "stopped" else "the agent's process was asked to end"
            self._turn.ask(STOPPED, what)
        elif self.interrupts > self._seen:
            self._turn.ask(INTERRUPTED, "the iteration was interrupted on request")

    async def wait(self, seconds: float | None) -> None:
        """Wait so long, or until something else is wanted."""
        self.changed.clear()
        try:
            await asyncio.wait_for(self.changed.wait(), seconds)
        except asyncio.TimeoutError:
            return
