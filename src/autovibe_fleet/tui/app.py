# SPDX-License-Identifier: GPL-3.0-or-later
"""The application: it puts the panes side by side, hands the model's changes to them and keys to fleetd."""

from __future__ import annotations

import getpass
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.events import DescendantFocus
from textual.filter import LineFilter
from textual.widgets import Footer

from fleet_core.errors import FleetError

from .feed import Feed
from .gate import Gate
from .model import Agent, Changes, Key, Step
from .screens.confirm import ConfirmScreen
from .screens.edit import EditScreen
from .screens.help import HelpScreen
from .text import clean, one_line
from .theme import THEME
from .widgets.history import HistoryView
from .widgets.message_box import MessageBox
from .widgets.panes import AgentPane, IterationPane, Lines, StepPane
from .widgets.search_box import SearchBox
from .widgets.tree import AgentTree

_BACK = 3.0  # seconds that "connected again" is shown
_UNFOLDED = 5  # so many agents are shown unfolded at first
NARROW, LOW = 76, 14  # columns and rows below which there is one pane, and no frame around it


class SteerApp(App[None]):
    """fleet steer. folder: the state folder of the fleetd. agent: the one to begin with."""

    CSS_PATH = "styles.tcss"
    TITLE = "fleet steer"
    ENABLE_COMMAND_PALETTE = False
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (NARROW, "-wide")]
    VERTICAL_BREAKPOINTS = [(0, "-low"), (LOW, "-high")]
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("question_mark", "help", "Help", key_display="?"),
        Binding("q", "quit", "Quit"),
        Binding("tab", "pane(1)", "Pane", key_display="Tab", priority=True),
        Binding("shift+tab", "pane(-1)", "Pane", show=False, priority=True),
        # With priority, so that what is typed right after them is for the box that they go to.
        Binding("slash", "search", "Search", priority=True),
        Binding("m", "message", "Message", priority=True),
        Binding("e", "edit", "Edit"),
        Binding("p", "pause", "Pause"),
        Binding("i", "interrupt", "Interrupt"),
        Binding("r", "start", "Run"),
        Binding("s", "stop", "Stop"),
        Binding("n", "newest", "Newest", show=False),
        Binding("z", "fold_all", "Fold all", show=False),
    ]

    def __init__(self, folder: Path, agent: str = "") -> None:
        super().__init__()
        self.register_theme(THEME)
        self.theme = THEME.name
        self.feed = Feed(folder, self._draw, self._tell)
        self._first = agent
        self._began = False
        self._gate = Gate()
        self._lost_since = 0.0
        self._back_until = 0.0
        self._sender = f"{_user()}@{socket.gethostname()}"

    def get_line_filters(self) -> Sequence[LineFilter]:
        return [*super().get_line_filters(), self._gate]

    def compose(self) -> ComposeResult:
        yield Lines(id="header", wrap=False)
        yield Lines(id="banner", wrap=False)
        with Horizontal(id="body-row"):
            with Vertical(id="left"):
                yield SearchBox()
                yield AgentTree(self.feed)
                yield Lines(id="empty")
            with Vertical(id="right"):
                yield AgentPane(id="agent")
                yield StepPane(id="step")
                yield IterationPane(self.feed)
                yield Lines(id="nothing")
        yield Footer(show_command_palette=False, compact=True)

    def on_mount(self) -> None:
        self.query_one(AgentTree).focus()
        self._show_right(None)
        self._draw({("connection", ""), ("tree", "")})
        self.set_interval(1.0, self._tick)
        self.run_worker(self.feed.run(), name="feed", exit_on_error=True)

    # Drawing what changed

    def _draw(self, changes: Changes) -> None:
        """Draw what changed since the last frame."""
        if not self.is_running or len(self.screen_stack) == 0 or not self._is_composed():
            return
        whats = {what for what, _name in changes}
        selected = self.feed.selected
        if "connection" in whats:
            self._show_connection()
        if "tree" in whats:
            self._begin()
            self._main(AgentTree).update()
            self._show_empty()
            self._show_header()
        if selected is not None and (("agent", selected.agent) in changes or ("injections", selected.agent) in changes):
            self._show_right(selected)
        if self.feed.history is not None and whats & {"history", "agent", "injections"}:
            self._main(HistoryView).update()
        if whats & {"history", "follow"}:
            self._main(IterationPane).show_below()

    def _is_composed(self) -> bool:
        return bool(self.screen_stack[0].query("#iteration-title"))

    def _main(self, kind):  # type: ignore[no-untyped-def]
        return self.screen_stack[0].query_one(kind)

    def _begin(self) -> None:
        """Unfold what is there at first, once it is known; go to the agent that was asked for."""
        model = self.feed.model
        if self._began or not model.known:
            return
        self._began = True
        if self._first and self._first not in model.agents:
            self._tell(f'agent "{self._first}": not known', True)
        few = len(model.agents) <= _UNFOLDED
        for name, agent in model.agents.items():
            if few or name == self._first:
                self.feed.unfold(Key("agent", name), True)
                for label in agent.steps:
                    self.feed.unfold(Key("step", name, label), True)
        if self._first in model.agents:
            self._main(AgentTree).go_to(Key("agent", self._first))

    def _show_header(self) -> None:
        model = self.feed.model
        number = len(model.agents)
        busy = model.busy()
        facts = f"{number} agent{'' if number == 1 else 's'} · {busy} running" if model.known else ""
        self._main_lines("#header").show([[(" fleet steer", "title"), (f"   {facts}", "dim")]])

    def _show_empty(self) -> None:
        model = self.feed.model
        lines = self._main_lines("#empty")
        empty = not model.lines()
        lines.display = empty
        self._main(AgentTree).display = not empty
        if not empty:
            return
        if model.search:
            lines.show(
                [[(f"Nothing is called “{one_line(model.search, 40)}”.", "dim")], [], [("Esc shows all.", "faint")]]
            )
        elif model.known:
            lines.show(
                [[("No agents yet.", "text")], [], [("Declare one:", "dim")], [("fleet apply FILE", "tool-name")]]
            )
        else:
            lines.show([[("Connecting…", "dim")]])

    def _main_lines(self, name: str) -> Lines:
        return self.screen_stack[0].query_one(name, Lines)

    def _show_connection(self) -> None:
        status = self.feed.status
        banner = self._main_lines("#banner")
        now = time.monotonic()
        if status.connected:
            if self._lost_since and self.feed.reconnected > 0:
                self._back_until = now + _BACK
                self.set_timer(_BACK + 0.05, self._show_connection)
            self._lost_since = 0.0
            banner.set_class(False, "-lost")
            banner.display = now < self._back_until
            banner.show([[(" Connected again; nothing was missed. ", "")]])
        elif status.attempt:
            self._lost_since = self._lost_since or now
            banner.display = True
            banner.set_class(True, "-lost")
            since = f" for {int(now - self._lost_since)} s" if now - self._lost_since >= 1 else ""
            words = "No connection to fleetd" if not self.feed.reconnected else "Connection to fleetd lost"
            banner.show(
                [[(f" {words}{since}; trying again (attempt {status.attempt}). {one_line(status.error, 200)} ", "")]]
            )
        else:
            banner.display = False

    def _show_right(self, key: Key | None) -> None:
        agent = self.feed.model.agents.get(key.agent) if key else None
        step = self.feed.model.step(key) if key else None
        kind = key.kind if key is not None and agent is not None else ""
        for name in ("agent", "step", "iteration"):
            pane = self.screen_stack[0].query_one(f"#{name}")
            if pane.display != (kind == name):
                pane.display = kind == name
        nothing = self._main_lines("#nothing")
        nothing.display = kind in ("", "more")
        if kind == "more":
            nothing.show([[("Enter loads more iterations.", "dim")]])
        elif not kind:
            nothing.show([[("", "")]])
        if key is None or agent is None:
            return
        self._show_pane(key, agent, step)

    def _show_pane(self, key: Key, agent: Agent, step: Step | None) -> None:
        if key.kind == "agent":
            self._main(AgentPane).show(agent, self.feed.now())
        elif key.kind == "step" and step is not None:
            self._main(StepPane).show(agent, step)
        elif key.kind == "iteration":
            self._main(IterationPane).show(agent, key)

    def _tick(self) -> None:
        """Let the times that go on go on."""
        key = self.feed.selected
        agent = self.feed.model.agents.get(key.agent) if key else None
        if key is not None and agent is not None and agent.state in ("running", "waiting", "paused", "starting"):
            self._show_pane(key, agent, self.feed.model.step(key))
        if not self.feed.status.connected:
            self._show_connection()

    def _tell(self, text: str, bad: bool) -> None:
        if self.is_running:
            self.notify(clean(text), severity="error" if bad else "information", timeout=8 if bad else 3, markup=False)

    # The tree and the panes

    def on_agent_tree_selected(self, message: AgentTree.Selected) -> None:
        if message.key == self._main(AgentTree).cursor:  # else it has gone on
            self._select(message.key)

    def _select(self, key: Key | None) -> None:
        self.feed.select(key)
        self._show_right(key)
        if key is not None and key.kind == "iteration":
            self._main(HistoryView).update()
            self._main(IterationPane).show_below()

    def on_agent_tree_opened(self) -> None:
        self._focus_right()

    def _panes(self) -> list[str]:
        key = self.feed.selected
        kind = key.kind if key else ""
        right = {"agent": ["agent"], "step": ["prompt"], "iteration": ["history", "message"]}.get(kind, [])
        return ["tree", *right]

    def action_pane(self, by: int) -> None:
        """Go to the next pane, in a dialog to the next field."""
        if len(self.screen_stack) > 1:
            (self.screen.focus_next if by > 0 else self.screen.focus_previous)()
            return
        names = self._panes()
        now = self.focused.id if self.focused is not None else ""
        at = names.index(now) + by if now in names else 0
        self._focus(f"#{names[at % len(names)]}")

    def _focus(self, name: str) -> None:
        """Go to a widget at once: what is typed next is for it, and no command."""
        self.screen.set_focus(self.screen.query_one(name))

    def _focus_right(self) -> None:
        names = self._panes()
        if len(names) > 1:
            self._focus(f"#{names[1]}")

    def on_descendant_focus(self, event: DescendantFocus) -> None:
        """Where there is room for one pane only, show the one with the focus."""
        right = any(node.id == "right" for node in event.widget.ancestors)
        self.screen_stack[0].set_class(right, "-right")

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Leave the keys of some actions to whoever is typing, and to dialogs."""
        if action in ("search", "message"):
            return len(self.screen_stack) == 1 and not isinstance(self.focused, (SearchBox, MessageBox))
        return super().check_action(action, parameters)

    def action_search(self) -> None:
        self._focus("#search")

    def on_input_changed(self, event: SearchBox.Changed) -> None:
        self.feed.model.find(event.value)
        self._draw({("tree", "")})

    def key_escape(self) -> None:
        """Leave the right side, then the search."""
        if self.focused is self.query_one(AgentTree):
            self.query_one(SearchBox).value = ""
        self._focus("#tree")

    # Steering

    def _agent(self) -> Agent | None:
        key = self.feed.selected
        agent = self.feed.model.agents.get(key.agent) if key is not None else None
        if agent is None:
            self._tell("Choose an agent first.", True)
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
            self._tell("There is no prompt to edit here.", True)
            return

        def closed(saved: bool | None) -> None:
            if saved:
                self._tell(f"{agent.name}: a new revision; the next iteration uses it.", False)

        self.push_screen(EditScreen(self.feed, agent.name, step.method), closed)

    def action_message(self) -> None:
        key = self.feed.selected
        if key is not None and key.kind != "iteration" and not self._go_newest(key):
            self._tell("There is no iteration yet that a message could go into.", True)
            return
        if key is not None:
            self._select(self.query_one(AgentTree).cursor)
            self._focus("#message")

    def action_newest(self) -> None:
        key = self.feed.selected
        if key is not None and not self._go_newest(key):
            self._tell("There is no iteration yet.", True)

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
            await self.feed.inject(key, message.text, self._sender)
        except FleetError as error:
            self._tell(str(error), True)  # and the text stays
        else:
            if box.text == message.text:
                box.clear()

    def action_help(self) -> None:
        self.push_screen(HelpScreen())


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no name for this user id
        return str(os.getuid())


def run(folder: Path, agent: str = "") -> None:
    """Run fleet steer on this terminal until it is left."""
    SteerApp(folder, agent).run()
