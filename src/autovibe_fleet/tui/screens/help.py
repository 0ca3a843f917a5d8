# SPDX-License-Identifier: GPL-3.0-or-later
"""The screen that lists all keys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen

from ..keys import KEYS
from ..widgets.panes import Lines, Pieces


class HelpScreen(ModalScreen[None]):
    """Any of its keys closes it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,question_mark,q,enter", "dismiss", "Close"),
        Binding("j", "scroll(1)", show=False),
        Binding("k", "scroll(-1)", show=False),
    ]

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="help", classes="dialog"):
            yield Lines(id="help-text")

    def on_mount(self) -> None:
        self.query_one("#help-text", Lines).show(_lines())
        self.query_one("#help").border_title = "Keys"
        self.query_one("#help").border_subtitle = "Esc: close"

    def action_scroll(self, by: int) -> None:
        self.query_one("#help").scroll_relative(y=by, animate=False)


def _lines() -> Iterator[Pieces]:
    for index, (title, keys) in enumerate(KEYS):
        if index:
            yield []
        yield [(title, "title")]
        for key, text in keys:
            yield [(f"  {key:<12}", "tool-name"), (text, "text")]
