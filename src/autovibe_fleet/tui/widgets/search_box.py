# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the tree is searched."""

from __future__ import annotations

from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.widgets import Input


class SearchBox(Input):
    """What is written filters the tree at once."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter,down", "leave", "To the tree", key_display="Enter"),
        Binding("escape", "clear", "Show all", key_display="Esc"),
    ]

    def __init__(self) -> None:
        super().__init__(id="search", placeholder="/ search", select_on_focus=True)

    def action_leave(self) -> None:
        self.screen.set_focus(self.screen.query_one("#tree"))

    def action_clear(self) -> None:
        self.value = ""
        self.action_leave()
