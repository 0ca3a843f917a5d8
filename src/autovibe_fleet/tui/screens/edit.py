# SPDX-License-Identifier: GPL-3.0-or-later
"""The editor of a method's body. What is written becomes a new revision, unless somebody made one meanwhile."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.events import Key
from textual.screen import ModalScreen

from fleet_core.errors import Conflict, FleetError

from ..feed import Feed
from ..text import one_line
from ..widgets.message_box import SafeTextArea
from ..widgets.panes import Lines


class Editor(SafeTextArea):
    """Leaves Esc to the screen."""

    async def _on_key(self, event: Key) -> None:
        if event.key == "escape":
            event.stop()
            event.prevent_default()
            await self.screen.run_action("leave")


class EditScreen(ModalScreen[bool]):
    """Returns whether a revision was written."""

    BINDINGS: ClassVar[list[BindingType]] = [
        # None of them before the keys that were typed ahead of it.
        Binding("ctrl+s", "save", "Save"),
        Binding("ctrl+r", "load", "Load theirs"),
        Binding("escape", "leave", "Close"),
    ]

    def __init__(self, feed: Feed, agent: str, method: str) -> None:
        super().__init__()
        self.feed = feed
        self.agent = agent
        self.method = method
        self.base = 0
        self._before = ""
        self._warned = False

    def compose(self) -> ComposeResult:
        with Vertical(id="edit", classes="dialog"):
            yield Editor("", id="body", tab_behavior="indent", soft_wrap=True, show_line_numbers=True)
            yield Lines(id="edit-note")

    def on_mount(self) -> None:
        self._read()
        self.query_one("#edit").border_subtitle = "Ctrl+S: save as a new revision    Esc: close"
        self.query_one("#body").focus()

    def _read(self) -> None:
        agent = self.feed.model.agents[self.agent]
        method = agent.method(self.method) or {}
        self._before = str(method.get("body") or "")
        self.base = int(agent.revisions[-1]["number"]) if agent.revisions else int(agent.view.get("revision") or 0)
        self.query_one("#body", SafeTextArea).load_text(self._before)
        self._title()

    def _title(self) -> None:
        title = f"{one_line(self.agent, 40)} · {one_line(self.method, 40)} · revision {self.base}"
        self.query_one("#edit").border_title = title.replace("[", "\\[")
        self._note("")

    def _note(self, text: str, kind: str = "bad") -> None:
        note = self.query_one("#edit-note", Lines)
        note.display = bool(text)
        note.show([[(text, kind)]])

    def _body(self) -> str:
        return self.query_one("#body", SafeTextArea).text

    async def action_save(self) -> None:
        """Write the body. After a conflict the next Ctrl+S writes it over the newer revision."""
        body = self._body()
        if body == self._before:
            self._note("Nothing has changed.", "dim")
            return
        try:
            await self.feed.edit(self.agent, self.method, body, self.base)
        except Conflict:
            try:
                await self.feed.revisions(self.agent)
            except FleetError as error:
                self._note(one_line(error, 300))
                return
            mine, agent = self.base, self.feed.model.agents.get(self.agent)
            if agent is None or not agent.revisions:
                self._note(f"agent {self.agent} was removed")
                return
            newest = agent.revisions[-1]
            self.base = int(newest["number"])
            self._title()
            if (agent.method(self.method) or {}).get("body") == self._before:  # it changed something else
                await self.action_save()
                return
            self._note(
                f"Revision {self.base} was written meanwhile ({one_line(newest.get('origin') or 'apply', 20)}); yours"
                f" began with {mine}. Ctrl+S: write yours over it. Ctrl+R: load theirs, yours is lost."
            )
        except FleetError as error:
            self._note(one_line(error, 300))
        else:
            self.dismiss(True)

    def action_load(self) -> None:
        """Take what the newest revision says."""
        self._read()
        self._note("Loaded.", "dim")

    def action_leave(self) -> None:
        """Close; with changes only when asked twice."""
        if self._body() == self._before or self._warned:
            self.dismiss(False)
        else:
            self._warned = True
            self._note("Not saved yet. Esc again: close and lose the changes. Ctrl+S: save.", "warn")
