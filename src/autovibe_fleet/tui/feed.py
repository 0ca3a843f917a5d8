# SPDX-License-Identifier: GPL-3.0-or-later
"""Brings what fleetd knows into the model: at first, as events, by pages on demand, and after a lost connection."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from fleet_core.errors import FleetError, NotFound, Unavailable

from .history import LAST, History
from .link import Link, Status
from .model import FIRST, PAGE, Agent, Changes, Key, Model

FRAME = 0.05  # seconds: changes of one frame are drawn at once
CONFIRM = 5.0  # seconds until the store is asked to confirm what came by events
# A run process may reconnect to fleetd after this does; what it wrote meanwhile is in the store only.
AFTER_RECONNECT = (2.0, 6.0, 15.0)

_OPEN = ("queued", "sent")
_INJECTIONS = 1000  # of one request

Row = Mapping[str, Any]


class Feed:
    """What stands between fleetd and the screen.

    draw: called with everything that changed, at most once a frame. tell: a sentence for the user, and whether it is an
    error.
    """

    def __init__(
        self, folder: Path, draw: Callable[[Changes], None], tell: Callable[[str, bool], None] = lambda text, bad: None
    ) -> None:
        self.model = Model()
        self.history: History | None = None
        self.selected: Key | None = None
        self.following = True
        self.reconnected = 0
        self.now: Callable[[], float] = time.time
        self.link = Link(folder, self._event, self._connected, self._status)
        self._draw = draw
        self._tell = tell
        self._changes: Changes = set()
        self._frame: asyncio.TimerHandle | None = None
        self._confirming: asyncio.TimerHandle | None = None
        self._jobs: dict[str, asyncio.Task[None]] = {}

    @property
    def status(self) -> Status:
        return self.link.status

    async def run(self) -> None:
        """Keep the model up to date until cancelled."""
        try:
            await self.link.run()
        finally:
            for handle in (self._frame, self._confirming):
                if handle is not None:
                    handle.cancel()
            for job in list(self._jobs.values()):
                job.cancel()

    # What changed

    def changed(self, changes: Changes) -> None:
        """Have changes drawn with the next frame."""
        if not changes:
            return
        self._changes |= changes
        if self._frame is None:
            self._frame = asyncio.get_running_loop().call_later(FRAME, self._flush)

    def _flush(self) -> None:
        self._frame = None
        changes, self._changes = self._changes, set()
        self._draw(changes)

    def _status(self, status: Status) -> None:
        self.changed({("connection", "")})

    def _event(self, event: Row) -> None:
        if event.get("kind") == "message":
            self._message(event)
            return
        changes = self.model.event(event)
        self.changed(changes)
        for what, name in changes:
            if what == "stale":
                self._once(f"agent {name}", self._reload(name))
            elif what == "ended" and self.selected is not None and self.selected.agent == name:
                self._once("statistics", self._statistics(self.selected, 0.3))
                self._confirm_in(0.5)

    def _message(self, event: Row) -> None:
        history = self.history
        if history is None or event.get("iteration") != history.iteration or "id" not in event:
            return
        unseen = history.unseen
        if history.live(event, self.following) or history.unseen != unseen:
            self.changed({("history", history.agent)})
        if history.provisional:
            self._confirm_in(CONFIRM)

    # The beginning, and after a lost connection

    async def _connected(self) -> None:
        self.reconnected += 1
        self._once("agents", self._agents(), again=True)
        if self.reconnected > 1:
            for delay in AFTER_RECONNECT:
                self._once(f"confirm {delay}", self._later(delay))

    async def _later(self, delay: float) -> None:
        await asyncio.sleep(delay)
        await self._confirm()
        await self._open_steps()

    async def _agents(self) -> None:
        told = {name: agent.told for name, agent in self.model.agents.items()}
        answer = await self.link.call("agents.list")
        self.changed(self.model.take_agents(answer["agents"]))
        for name, agent in self.model.agents.items():
            if agent.told != told.get(name, 0):  # while the answer was on its way, which may be the older one
                self._once(f"agent {name}", self._reload(name))
        await self._open_steps(again=True)
        if self.selected is not None:
            await self._details(self.selected)
        await self._confirm()

    async def _open_steps(self, again: bool = False) -> None:
        for key in list(self.model.open):
            step = self.model.step(key)
            if key.kind == "step" and step is not None and (again or not step.loaded):
                await self._iterations(key)

    async def _reload(self, name: str) -> None:
        told = -1
        while (agent := self.model.agents.get(name)) is None or agent.told != told:
            told = agent.told if agent else 0
            try:
                answer = await self.link.call("agents.list", names=[name])
            except NotFound:
                self.changed(self.model.forget(name))
                return
            self.changed(self.model.take_agents(answer["agents"], all_of_them=False))
        await self._open_steps()
        if self.selected is not None and self.selected.agent == name:
            await self._details(self.selected)

    # Pages of iterations

    async def _iterations(self, key: Key, before: int | None = None) -> None:
        asked = PAGE if before is not None else max(PAGE, FIRST)
        answer = await self.link.call("agents.iterations", name=key.agent, step=key.step, before=before, limit=asked)
        self.changed(self.model.take_iterations(key.agent, key.step, answer["iterations"], before, asked))

    def unfold(self, key: Key, unfolded: bool) -> None:
        """Fold or unfold a line of the tree; a step's iterations are loaded when they are needed first."""
        self.model.fold(key, unfolded)
        step = self.model.step(key)
        if unfolded and key.kind == "step" and step is not None and not step.loaded:
            self._once(f"step {key}", self._iterations(key))

    def more(self, key: Key) -> None:
        """Show more iterations of a step."""
        step = self.model.show_more(key)
        if step is not None:
            before = step.rows[-1]["id"] if step.rows else None
            self._once(f"step {key}", self._iterations(key, before))

    # What is selected

    def select(self, key: Key | None) -> None:
        """Load what the right side shows of a line."""
        if key == self.selected:
            return
        self.selected = key
        self.history = None
        if key is None or key.kind == "more":
            return
        if key.kind == "iteration":
            self.history = History(key.agent, key.iteration)
            self.following = True
        self._once("details", self._details(key), again=True)

    async def _details(self, key: Key) -> None:
        await asyncio.sleep(0.03)  # whoever scrolls past has gone on by now
        agent = self.model.agents.get(key.agent)
        if agent is None or self.selected != key:
            return
        if key.kind == "iteration" and self.history is not None and not self.history.loaded:
            await self.to_end()
        await self._statistics(key)
        name = key.agent
        if not agent.revisions:
            answer = await self.link.call("agents.revisions", name=name)
            agent.revisions = list(answer["revisions"])
            self.changed({("agent", name)})
        await self._injections(agent)

    async def _statistics(self, key: Key, delay: float = 0.0) -> None:
        await asyncio.sleep(delay)
        agent = self.model.agents.get(key.agent)
        if agent is None or key.kind == "more":
            return
        answer = await self.link.call("agents.statistics", name=key.agent, step=key.step or None)
        agent.statistics[key.step] = answer.get("statistics", answer)
        self.changed({("agent", key.agent)})

    async def _injections(self, agent: Agent) -> None:
        """Read the steering messages that are new or were still on their way."""
        waiting = [row["id"] for row in agent.injections.values() if row["state"] in _OPEN]
        after = min(waiting) - 1 if waiting else max(agent.injections, default=0)
        if not agent.injections_known:
            after = 0
        while True:
            answer = await self.link.call("agents.injections", name=agent.name, after=after, limit=_INJECTIONS)
            rows = answer["injections"]
            self.changed(self.model.take_injections(agent.name, rows))
            if len(rows) < _INJECTIONS:
                agent.injections_known = True
                return
            after = rows[-1]["id"]

    # Pages of messages

    async def _messages(self, history: History, after: int = 0, before: int | None = None) -> list[Row]:
        answer = await self.link.call(
            "agents.messages",
            name=history.agent,
            iteration=history.iteration,
            after=after,
            before=before,
            limit=history.page,
        )
        return list(answer["messages"])

    async def to_end(self) -> None:
        """Show the newest messages."""
        history = self.history
        if history is not None:
            history.end(await self._messages(history, before=LAST))
            self.changed({("history", history.agent)})

    async def to_start(self) -> None:
        """Show the first messages."""
        history = self.history
        if history is not None:
            history.start(await self._messages(history))
            self.changed({("history", history.agent)})

    async def older(self) -> None:
        """Load the page before what is shown."""
        history = self.history
        if history is not None and history.loaded and not history.first and history.ids:
            before = history.ids[0]
            if history.older(await self._messages(history, before=before), before) or history.first:
                self.changed({("history", history.agent)})

    async def newer(self) -> None:
        """Load the page after what is shown."""
        history = self.history
        while history is not None and history is self.history and history.loaded and not history.last:
            after = history.confirmed
            if history.newer(await self._messages(history, after=after), after) or history.confirmed == after:
                break
        if history is not None:
            self.changed({("history", history.agent)})

    async def _confirm(self) -> None:
        """Ask the store for what it has after the last message that it confirmed."""
        history = self.history
        while history is not None and history is self.history and history.loaded and history.last:
            after = history.confirmed
            page = await self._messages(history, after=after)
            if history.newer(page, after):
                self.changed({("history", history.agent)})
            if len(page) < history.page:
                break

    def _confirm_in(self, delay: float) -> None:
        if self._confirming is None:
            self._confirming = asyncio.get_running_loop().call_later(delay, self._confirm_now)

    def _confirm_now(self) -> None:
        self._confirming = None
        self._once("confirm", self._confirm())

    # What the user does

    def page(self, move: Callable[[], Awaitable[None]]) -> None:
        """Load a page of messages: older, newer, to_start or to_end."""

        async def load() -> None:
            await move()

        self._once("page", load())

    def act(self, method: str, done: str = "", /, **params: Any) -> None:
        """Call a method for the user and say how it ended."""

        async def call() -> None:
            await self.link.call(method, **params)
            if done:
                self._tell(done, False)

        self._once(f"{method} {params.get('names')}", call())

    async def inject(self, key: Key, text: str, sender: str) -> Row:
        """Give an agent a message; raises the FleetError that says why it could not be taken."""
        iteration = self.model.iteration(key) or {}
        running = iteration.get("state") == "running"
        answer = await self.link.call(
            "agents.inject",
            name=key.agent,
            text=text,
            step=key.step or None,
            iteration=key.iteration if running else None,
            sender=sender,
        )
        row: Row = answer["injection"]
        self.changed(self.model.take_injections(key.agent, [row], live=True))
        return row

    async def edit(self, name: str, method: str, body: str, base: int) -> None:
        """Write a method's body as a new revision. Raises Conflict when `base` is not the current one any more."""
        # `method` is a parameter of agents.edit; that of call is positional only.
        # pylint: disable-next=kwarg-superseded-by-positional-arg
        await self.link.call("agents.edit", name=name, method=method, body=body, base_revision=base)
        await self.revisions(name)

    async def revisions(self, name: str) -> None:
        """Read the revisions of an agent again."""
        answer = await self.link.call("agents.revisions", name=name)
        agent = self.model.agents.get(name)
        if agent is not None:
            agent.revisions = list(answer["revisions"])
            self.changed({("agent", name)})

    def _once(self, name: str, job: Coroutine[Any, Any, None], again: bool = False) -> None:
        """Run a job unless one of that name runs. again: end that one and run this."""
        running = self._jobs.get(name)
        if running is not None and not running.done():
            if not again:
                job.close()
                return
            running.cancel()
        task = self._jobs[name] = asyncio.get_running_loop().create_task(self._guarded(job))
        task.add_done_callback(lambda done: self._jobs.pop(name, None) if self._jobs.get(name) is done else None)

    async def _guarded(self, job: Coroutine[Any, Any, None]) -> None:
        try:
            with contextlib.suppress(Unavailable):  # the banner says so, and all is asked for again
                await job
        except FleetError as error:
            self._tell(str(error), True)
