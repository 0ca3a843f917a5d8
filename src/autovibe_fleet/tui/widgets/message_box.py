# SPDX-License-Identifier: GPL-3.0-or-later
"""Where text is written: the box for steering messages, and the editor of a method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.events import Key
from textual.message import Message
from textual.widgets import TextArea

from ..text import one_line, same_length

_KEYS = {
    "enter": "send",
    "ctrl+j": "new_line",
    "shift+enter": "new_line",
    "alt+enter": "new_line",
    "escape": "leave",
}


class SafeTextArea(TextArea):
    """An editor that shows control characters as pictures; what is edited stays as it is."""

    def get_line(self, line_index: int) -> Text:
        line = super().get_line(line_index)
        safe = same_length(line.plain)
        return line if safe == line.plain else Text(safe, end="")


class MessageBox(SafeTextArea):
    """Enter sends, Ctrl+J begins another line."""

    BINDINGS: ClassVar[list[BindingType]] = [  # for the footer: _on_key sees the keys first
        Binding("enter", "send", "Send"),
        Binding("ctrl+j", "new_line", "Another line", key_display="Ctrl+J"),
        Binding("escape", "leave", "Leave", key_display="Esc"),
    ]

    @dataclass
    class Sent(Message):
        """A message is to be sent."""

        text: str

    def __init__(self) -> None:
        super().__init__(id="message", tab_behavior="focus", soft_wrap=True, show_line_numbers=False)

    def address(self, where: str) -> None:
        """Say where a message goes."""
        self.placeholder = Content(f"Message to {one_line(where, 60)}")  # a text would be read as markup

    async def _on_key(self, event: Key) -> None:
        action = _KEYS.get(event.key)
        if action is not None:  # which an editor takes for itself otherwise
            event.stop()
            event.prevent_default()
            await self.run_action(action)

    def action_send(self) -> None:
        if self.text.strip():
            self.post_message(self.Sent(self.text))

    def action_new_line(self) -> None:
        self.insert("\n")

    def action_leave(self) -> None:
        self.screen.set_focus(self.screen.query_one("#history"))
