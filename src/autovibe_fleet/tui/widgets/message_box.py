# SPDX-License-Identifier: GPL-3.0-or-later
"""Where text is written: the box for steering messages, and the editor of a method."""

from __future__ import annotations

from dataclasses import dataclass

from rich.text import Text
from textual.events import Key
from textual.message import Message
from textual.widgets import TextArea

from ..text import one_line, same_length

_NEW_LINE = ("ctrl+j", "shift+enter", "alt+enter")


class SafeTextArea(TextArea):
    """An editor that shows control characters as pictures; what is edited stays as it is."""

    def get_line(self, line_index: int) -> Text:
        line = super().get_line(line_index)
        safe = same_length(line.plain)
        return line if safe == line.plain else Text(safe, end="")


class MessageBox(SafeTextArea):
    """Enter sends, Ctrl+J begins another line."""

    @dataclass
    class Sent(Message):
        """A message is to be sent."""

        text: str

    def __init__(self) -> None:
        super().__init__(id="message", tab_behavior="focus", soft_wrap=True, show_line_numbers=False)

    def address(self, where: str) -> None:
        """Say where a message goes."""
        self.placeholder = f"Message to {one_line(where, 60)}"

    async def _on_key(self, event: Key) -> None:
        if event.key == "enter":
            event.stop()
            event.prevent_default()
            if self.text.strip():
                self.post_message(self.Sent(self.text))
        elif event.key in _NEW_LINE:
            event.stop()
            event.prevent_default()
            self.insert("\n")
        elif event.key == "escape":
            event.stop()
            event.prevent_default()
            self.screen.query_one("#history").focus()
        else:
            await super()._on_key(event)
