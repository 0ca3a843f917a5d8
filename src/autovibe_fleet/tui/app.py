# SPDX-License-Identifier: GPL-3.0-or-later
"""The application: it puts the panes side by side, hands the model's changes to them and keys to fleetd."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.css.query import NoMatches
from textual.events import DescendantFocus
from textual.filter import LineFilter
from textual.timer import Timer
from textual.widgets import Footer

from .feed import Feed
from .gate import Gate
from .model import Agent, Changes, Key, Step
from .screens.help import HelpScreen
from .steering import Steering
from .text import one_line
from .theme import THEME
from .widgets.history import HistoryView
from .widgets.message_box import MessageBox
from .widgets.panes import AgentPane, IterationPane, Lines, StepPane
from .widgets.search_box import SearchBox
from .widgets.tree import AgentTree

_BACK = 3.0  # seconds that "connected again" is shown
_UNFOLDED = 5  # so many agents are shown unfolded at first
NARROW, LOW = 76, 14  # columns and rows below which there is one pane, and no frame around it


class SteerApp(Steering):
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
        self.feed = Feed(folder, self._draw, self.tell)
        self._first = agent
        self._began = False
        self._gate = Gate()
        self._lost_since = 0.0
        self._back: Timer | None = None  # while "connected again" is shown

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
        if self.is_running and self.screen_stack:
            try:
                self._draw_changes(changes)
            except NoMatches:  # the screen is being put up, or taken down
                self.feed.changed(changes)

    def _draw_changes(self, changes: Changes) -> None:
        whats = {what for what, _name in changes}
        selected = self.feed.selected
        if "connection" in whats:
            self._show_connection()
        if "tree" in whats:
            self._begin()
            self._main(AgentTree).update()
            self._show_empty()
            self._show_header()
        name = selected.agent if selected is not None else ""
        if "selected" in whats or changes & {("agent", name), ("injections", name)}:
            self._show_right(selected)
        if self.feed.history is not None and whats & {"selected", "history", "agent", "injections"}:
            self._main(HistoryView).update()
        if whats & {"selected", "history", "follow"}:
            self._main(IterationPane).show_below()

    def _main(self, kind):  # type: ignore[no-untyped-def]
        return self.screen_stack[0].query_one(kind)

    def _begin(self) -> None:
        """Unfold what is there at first, once it is known; go to the agent that was asked for."""
        model = self.feed.model
        if self._began or not model.known:
            return
        self._began = True
        if self._first and self._first not in model.agents:
            self.tell(f'agent "{self._first}": not known', True)
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
                [[(f'Nothing is called "{one_line(model.search, 40)}".', "dim")], [], [("Esc shows all.", "faint")]]
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
        now = self.feed.now()
        if status.connected:
            if self._lost_since and self.feed.reconnected > 0:
                self._back = self.set_timer(_BACK, self._was_back)
            self._lost_since = 0.0
            banner.set_class(False, "-lost")
            banner.display = self._back is not None
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

    def _was_back(self) -> None:
        self._back = None
        self._draw({("connection", "")})

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
        if agent is not None and agent.state in ("running", "waiting", "paused", "starting"):
            self._draw({("agent", agent.name)})
        if not self.feed.status.connected:
            self._draw({("connection", "")})

    # The tree and the panes

    def on_agent_tree_selected(self, message: AgentTree.Selected) -> None:
        if message.key == self._main(AgentTree).cursor:  # else it has gone on
            self.select(message.key)

    def select(self, key: Key | None) -> None:
        self.feed.select(key)
        self._draw({("selected", "")})

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
        self.focus_on(f"#{names[at % len(names)]}")

    def _focus_right(self) -> None:
        names = self._panes()
        if len(names) > 1:
            self.focus_on(f"#{names[1]}")

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
        self.focus_on("#search")

    def on_input_changed(self, event: SearchBox.Changed) -> None:
        self.feed.model.find(event.value)
        self._draw({("tree", "")})

    def key_escape(self) -> None:
        """Leave the right side, then the search."""
        if self.focused is self.query_one(AgentTree):
            self.query_one(SearchBox).value = ""
        self.focus_on("#tree")

    def action_help(self) -> None:
        self.push_screen(HelpScreen())


def run(folder: Path, agent: str = "") -> None:
    """Run fleet steer on this terminal until it is left."""
    SteerApp(folder, agent).run()
