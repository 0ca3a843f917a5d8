# SPDX-License-Identifier: GPL-3.0-or-later
"""The right side: one pane for agents, one for steps, one for iterations."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from rich.style import Style
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.widgets import Static

from ..feed import Feed
from ..model import Agent, Key, Step
from . import facts
from .history import HistoryView
from .lines import KINDS
from .message_box import MessageBox

Pieces = list[tuple[str, str]]


class Lines(Static):
    """Text in the colors of the kinds. Never reads markup in what it shows."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {f"line--{kind}" for kind in KINDS}

    def __init__(self, *, id: str | None = None, wrap: bool = True, classes: str = "") -> None:  # noqa: A002
        super().__init__("", id=id, markup=False, classes=classes if wrap else f"{classes} one-line".strip())
        self._wrap = wrap
        self._last: list[Pieces] = []

    def show(self, lines: Iterable[Pieces]) -> None:
        """Show lines of (text, kind) pieces; nothing is done when they are the same as before."""
        found = [list(line) for line in lines]
        if found == self._last:
            return
        layout = self._wrap or len(found) != len(self._last)
        self._last = found
        self.paint(layout)

    def paint(self, layout: bool) -> None:
        """Draw what is shown in the colors of the theme. layout: it may need another number of lines."""
        text = Text()
        for index, line in enumerate(self._last):
            if index:
                text.append("\n")
            for piece, kind in line:
                style = self.get_component_rich_style(f"line--{kind}", partial=True) if kind else Style.null()
                text.append(piece, style)
        self.update(text, layout=layout)


class Pane(VerticalScroll):
    """A pane that scrolls by the keys of the whole program."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j,down", "scroll_down", "Down", show=False),
        Binding("k,up", "scroll_up", "Up", show=False),
        Binding("pagedown", "page_down", "Page down", show=False),
        Binding("pageup", "page_up", "Page up", show=False),
        Binding("g,home", "scroll_home", "First", show=False),
        Binding("G,end", "scroll_end", "Last", show=False),
        Binding("left,h", "back", "To the tree", show=False),
    ]

    def action_back(self) -> None:
        self.screen.set_focus(self.screen.query_one("#tree"))


class AgentPane(Pane):
    """State, run, limits, workspace, statistics and revisions of an agent."""

    def compose(self) -> ComposeResult:
        yield Lines(id="agent-facts")

    def show(self, agent: Agent, now: float) -> None:
        """Show an agent."""
        self.query_one("#agent-facts", Lines).show(facts.agent_lines(agent, now))


class StepPane(Vertical):
    """The prompt of a step, and its figures beside it."""

    def compose(self) -> ComposeResult:
        yield Lines(id="step-title", wrap=False, classes="heading")
        with Horizontal():
            with Pane(id="prompt"):
                yield Lines(id="prompt-text")
            with VerticalScroll(id="figures", can_focus=False):
                yield Lines(id="figures-text")

    def show(self, agent: Agent, step: Step) -> None:
        """Show a step."""
        self.query_one("#step-title", Lines).show([facts.step_title(agent, step)])
        self.query_one("#prompt-text", Lines).show(facts.prompt_lines(agent, step))
        self.query_one("#figures-text", Lines).show(facts.statistics_lines(agent, step))


class IterationPane(Vertical):
    """The history of an iteration, what is on its way into it, and the box to write in."""

    def __init__(self, feed: Feed) -> None:
        super().__init__(id="iteration")
        self.feed = feed

    def compose(self) -> ComposeResult:
        yield Lines(id="iteration-title", wrap=False, classes="heading")
        yield Lines(id="trouble")
        yield HistoryView(self.feed)
        yield Lines(id="below", wrap=False)
        yield Lines(id="outbox", wrap=False)
        yield MessageBox()

    def show(self, agent: Agent, key: Key) -> None:
        """Show what stands around the history; the history shows itself."""
        row = agent.iteration(key.step, key.iteration)
        if row is None:
            return
        self.query_one("#iteration-title", Lines).show([facts.iteration_title(agent, row, self.feed.now())])
        trouble = facts.iteration_trouble(row)
        self._optional("#trouble", [trouble] if trouble else [])
        outbox = agent.outbox(row)
        self._optional("#outbox", list(facts.outbox_lines(outbox)) if outbox else [])
        box = self.query_one(MessageBox)
        running = row.get("state") == "running"
        where = f"iteration #{row.get('number', '')}" if running else f"the next iteration of {key.step}"
        box.address(where)
        self.show_below()

    def show_below(self) -> None:
        """Say how much lies below the end of what is seen."""
        history = self.feed.history
        away = history is not None and history.loaded and not self.feed.following
        line: Pieces = []
        if history is not None and away:
            new = f"{history.unseen} new · " if history.unseen else ""
            line = [(f"▼ {new}G: to the end", "info")]
        self._optional("#below", [line] if line else [])

    def _optional(self, name: str, lines: list[Pieces]) -> None:
        found = self.query_one(name, Lines)
        if found.display != bool(lines):
            found.display = bool(lines)
        if lines:
            found.show(lines)
