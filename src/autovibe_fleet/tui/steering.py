# SPDX-License-Identifier: GPL-3.0-or-later
"""What the keys do to the agent of the chosen line: messages, edits, pause, interrupt, run and stop."""

from __future__ import annotations

import getpass
import os
import socket

from textual.app import App

from fleet_core.errors import FleetError

from .feed import Feed
from .model import Agent, Key
from .screens.confirm import ConfirmScreen
from .screens.edit import EditScreen
from .text import clean, one_line
from .widgets.history import HistoryView
from .widgets.message_box import MessageBox
from .widgets.tree import AgentTree


class Steering(App[None]):
    """The actions; SteerApp puts the screen around them."""

    feed: Feed

    def select(self, key: Key | None) -> None:
        """Show a line of the tree at the right side."""
        raise NotImplementedError

    def tell(self, text: str, bad: bool) -> None:
        if self.is_running:
            self.notify(clean(text), severity="error" if bad else "information", timeout=8 if bad else 3, markup=False)

    def focus_on(self, name: str) -> None:
        """Go to a widget at once: what is typed next is for it, and no command."""
        self.screen.set_focus(self.screen.query_one(name))

    def _agent(self) -> Agent | None:
        key = self.feed.selected
        agent = self.feed.model.agents.get(key.agent) if key is not None else None
        if agent is None:
            self.tell("Choose an agent first.", True)
        return agent

    def action_pause(self) -> None:
        agent = self._agent()
        if agent is not None and (agent.state == "paused" or agent.view.get("desired") == "paused"):
            self.feed.act("agents.resume", f"{agent.name} goes on.", names=[agent.name])
        elif agent is not None:
            self.feed.act("agents.pause", f"{agent.name} pauses.", names=[agent.name])

    def action_interrupt(self) -> None:
        agent = self._agent()
        if agent is not None:
            self.feed.act("agents.interrupt", f"Interrupting {agent.name}.", names=[agent.name])

    def action_start(self) -> None:
        agent = self._agent()
        if agent is not None:
            self.feed.act("agents.start", f"{agent.name} runs.", names=[agent.name])

    def action_stop(self) -> None:
        agent = self._agent()
        if agent is None:
            return
        name = agent.name

        def answered(yes: bool | None) -> None:
            if yes:
                self.feed.act("agents.stop", f"{name} is stopped.", names=[name])

        more = "The iteration that runs is interrupted; r runs the agent again."
        self.push_screen(ConfirmScreen(f"Stop {one_line(name, 60)}?", more), answered)

    def action_edit(self) -> None:
        agent = self._agent()
        key = self.feed.selected
        if agent is None or key is None:
            return
        step = self.feed.model.step(key) or next(iter(agent.steps.values()), None)
        if step is None or agent.method(step.method) is None:
            self.tell("There is no prompt to edit here.", True)
            return

        def closed(saved: bool | None) -> None:
            if saved:
                self.tell(f"{agent.name}: a new revision; the next iteration uses it.", False)

        self.push_screen(EditScreen(self.feed, agent.name, step.method), closed)

    def action_message(self) -> None:
        key = self.feed.selected
        if key is not None and key.kind != "iteration" and not self._go_newest(key):
            self.tell("There is no iteration yet that a message could go into.", True)
            return
        if key is not None:
            self.select(self.query_one(AgentTree).cursor)
            self.focus_on("#message")

    def action_newest(self) -> None:
        key = self.feed.selected
        if key is not None and not self._go_newest(key):
            self.tell("There is no iteration yet.", True)

    def _go_newest(self, key: Key) -> bool:
        agent = self.feed.model.agents.get(key.agent)
        if agent is None:
            return False
        steps = [agent.steps[key.step]] if key.step in agent.steps else list(agent.steps.values())
        newest = max((step for step in steps if step.newest), key=lambda step: step.newest, default=None)
        if newest is None:
            return False
        return bool(self.query_one(AgentTree).go_to(Key("iteration", agent.name, newest.label, newest.newest)))

    def action_fold_all(self) -> None:
        self.query_one(HistoryView).unfold_all()

    async def on_message_box_sent(self, message: MessageBox.Sent) -> None:
        key = self.feed.selected
        if key is None or key.kind != "iteration":
            return
        box = self.query_one(MessageBox)
        try:
            await self.feed.inject(key, message.text, sender())
        except FleetError as error:
            self.tell(str(error), True)  # and the text stays
        else:
            if box.text == message.text:
                box.clear()


def sender() -> str:
    """Return who steers, as others see it."""
    return f"{_user()}@{socket.gethostname()}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no name for this user id
        return str(os.getuid())
