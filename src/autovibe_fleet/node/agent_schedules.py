# SPDX-License-Identifier: GPL-3.0-or-later
"""Schedules of agents: each agent that has one knows when its next run begins, across restarts of fleetd.

A time that passed while fleetd was away, or while a run was going on, is skipped: runs never pile up.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from typing import Any

from fleet_core.agents import AgentDefinition
from fleet_core.errors import FleetError, InvalidInput
from fleet_core.schedules import next_time
from fleet_node.agents import AgentStore

LATE = 60.0  # seconds after its time in which a run is begun all the same
_LOOK = 30.0  # seconds between two looks at the clock, which may be set, or stand still while a laptop sleeps


class AgentSchedules:
    """Begins runs at their times. begin: starts an agent, or returns False because a run of it goes on."""

    def __init__(
        self, store: AgentStore, begin: Callable[[str], Awaitable[bool]], complain: Callable[..., None]
    ) -> None:
        self._store = store
        self._begin = begin
        self._complain = complain
        self._due: dict[str, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    async def load(self) -> None:
        """Take up the times that an earlier fleetd recorded; those missed for long are moved on."""
        rows = await asyncio.to_thread(self._store.agents)
        self._due = {name: row["next_run"] for name, row in rows.items() if row["next_run"] is not None}
        missed = [name for name, due in self._due.items() if due < time.time() - LATE]
        for name in missed:
            self._complain(f'agent "{name}": the run of {_clock(self._due[name])} was missed; fleetd did not run then')
        try:
            await self._move_on(missed)
        except InvalidInput as error:  # a definition of another version must not keep fleetd from the rest
            self._complain(f"schedules: {error}")
            self._due = {name: due for name, due in self._due.items() if name not in missed}
        self._set_timer()

    async def close(self) -> None:
        """Begin nothing more."""
        if self._timer is not None:
            self._timer.cancel()
        for task in list(self._tasks):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def arm(self, names: Iterable[str], changed: Iterable[str]) -> None:
        """Set the next run of agents from their schedules. changed: those too, unless they had none to come.

        An agent without a schedule has none to come from then on.
        """
        wanted = [*names, *(name for name in changed if name in self._due)]
        if wanted:
            await self._move_on(list(dict.fromkeys(wanted)))
            self._set_timer()

    async def disarm(self, names: Iterable[str]) -> None:
        """Begin no further runs of agents until they are armed again."""
        gone = [name for name in names if self._due.pop(name, None) is not None]
        for name in gone:
            await asyncio.to_thread(self._store.set_next_run, name, None)
        self._set_timer()

    async def _move_on(self, names: Sequence[str]) -> None:
        for name, due in (await asyncio.to_thread(self._write, names, frozenset(self._due))).items():
            if due is None:
                self._due.pop(name, None)
            else:
                self._due[name] = due

    def _write(self, names: Sequence[str], armed: Collection[str]) -> dict[str, float | None]:
        """Record when the next runs of agents begin, and return that. In a thread: it touches nothing of the loop's."""
        found = {}
        with self._store.transaction():
            for name, definition in self._store.definitions(names).items():
                found[name] = following(definition, time.time())
                if found[name] is not None or name in armed:
                    self._store.set_next_run(name, found[name])
        return found

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._due:
            delay = min(_LOOK, max(0.01, min(self._due.values()) - time.time()))
            self._timer = asyncio.get_running_loop().call_later(delay, self._look)

    def _look(self) -> None:
        self._timer = None
        now = time.time()
        due = [name for name, moment in self._due.items() if moment <= now]
        if due:
            task = asyncio.get_running_loop().create_task(self._begin_all(due))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            self._set_timer()

    async def _begin_all(self, names: list[str]) -> None:
        late = [name for name in names if self._due.get(name, 0.0) < time.time() - LATE]
        try:
            await self._move_on(names)  # first, so that a killed fleetd begins none twice
        except FleetError as error:
            self._complain(f"schedules: {error}")
            await asyncio.sleep(1.0)
            self._set_timer()
            return
        self._set_timer()
        for name in names:
            if name in late:
                self._complain(f'agent "{name}": a scheduled run was missed; this computer was not awake')
                continue
            try:
                if not await self._begin(name):
                    self._complain(f'agent "{name}": a scheduled run was skipped; the one before still goes on')
            except FleetError as error:
                self._complain(f'agent "{name}": its scheduled run could not begin: {error}')


def following(definition: AgentDefinition, now: float) -> float | None:
    """Return when the next run begins (seconds since the epoch), or None without a schedule."""
    schedule = definition.schedule
    return next_time(schedule.cron, schedule.every, now, lambda moment: float(time.localtime(moment).tm_gmtoff))


def _clock(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))
