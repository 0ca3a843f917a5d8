# SPDX-License-Identifier: GPL-3.0-or-later
"""The messages of an iteration: scrolled by lines, folded by messages, following the end until somebody scrolls up."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from typing import Any

from textual.events import Click
from textual.geometry import Size
from textual.strip import Strip

from ..blocks import FOLDED, Block, block
from ..feed import Feed
from ..figures import clock, seconds_of, short, state_mark
from ..history import History
from ..text import one_line
from .lines import LineView

_GUTTER = 3  # columns for the bar of a message
_MARGIN = 1  # columns before the scrollbar
_STEP = 3  # lines that a key scrolls within a message longer than the screen


class HistoryView(LineView):
    """Shows the window of messages that the feed has; asks it for more where the window ends."""

    def __init__(self, feed: Feed) -> None:
        super().__init__(id="history")
        self.feed = feed
        self.cursor = 0  # id of a message, 0 for none
        self._history: History | None = None
        self._unfolded: dict[int, bool] = {}
        self._blocks: dict[tuple[int, str, bool, str], Block] = {}
        self._shown: list[Block] = []
        self._tops: list[int] = [0]  # the first line of each block; the last item is the number of all lines
        self._width = 0
        self._syncing = False
        self._frame = 0

    def on_mount(self) -> None:
        self.set_interval(0.125, self._spin)

    # What is shown

    def update(self) -> None:
        """Lay out what the feed has. What the reader looks at stays in its place."""
        history = self.feed.history
        width = max(self.scrollable_content_region.width - _GUTTER - _MARGIN, 8)
        if history is not self._history:
            self._history = history
            self._unfolded.clear()
            self._blocks.clear()
            self.cursor = 0
        elif width != self._width:
            self._blocks.clear()
        anchor = None if self.feed.following else self._anchor()
        self._width = width
        self._lay_out()
        self._syncing = True
        try:
            if self._shown or self._history is None:  # a change of it has the whole screen laid out
                self.virtual_size = Size(self.scrollable_content_region.width, max(self._tops[-1], 1))
            if self.feed.following:
                self._to_bottom()
            elif anchor is not None:
                self._to_anchor(*anchor)
            self.vertical_scrollbar.position = self.scroll_y
        finally:
            self._syncing = False
        self.refresh()

    def _lay_out(self) -> None:
        history = self._history
        shown: list[Block] = []
        if history is not None and history.loaded:
            self._ids = list(history.ids)
            shown.append(Block(self._beginning(history)))
            before = "begin"
            for row in history.messages:
                shown.append(self._block(row, before))
                before = str(row.get("type"))
            shown.append(Block(self._ending(history)))
            if len(self._blocks) > 3 * len(shown) + 100:  # of messages that left the window
                kept = set(history.ids)
                self._blocks = {key: value for key, value in self._blocks.items() if key[0] in kept}
        else:
            self._ids = []
        self._shown = shown
        self._tops = [0, *accumulate(len(item.lines) for item in shown)]

    def _block(self, row: object, before: str) -> Block:
        assert isinstance(row, dict)
        ident = row["id"]
        unfolded = self._is_unfolded(row)
        tight = before in ("tool_use", "tool_result", "thinking", "usage", "session")
        sender = self._sender(row) if row.get("type") == "user" else ""
        key = (ident, before if tight else "other", unfolded, sender)
        found = self._blocks.get(key)
        if found is None:
            found = self._blocks[key] = block(row, self._width, unfolded, before, sender)
        return found

    def _is_unfolded(self, row: dict[str, object]) -> bool:
        return self._unfolded.get(int(str(row["id"])), row.get("type") not in FOLDED)

    def _sender(self, row: dict[str, object]) -> str:
        detail = row.get("detail")
        ident = detail.get("injection") if isinstance(detail, dict) else None
        agent = self.feed.model.agents.get(self._history.agent) if self._history else None
        injection = agent.injections.get(ident) if agent and isinstance(ident, int) else None
        return f"{injection.get('sender') or ''} · {injection.get('state')}".strip(" ·") if injection else ""

    def _beginning(self, history: History) -> tuple[tuple[tuple[str, str], ...], ...]:
        if not history.first:
            return ((("↑ older messages", "faint"),),)
        row = self._row() or {}
        facts = [f"iteration {row.get('number', '')} began {clock(row.get('started'))}".strip()] if row else []
        if row and row.get("attempt_of"):
            facts.append("a further attempt")
        if row and row.get("item"):
            facts.append(one_line(row["item"], 60))
        return (((" · ".join(facts), "faint"),),) if facts else ()

    def _ending(self, history: History) -> tuple[tuple[tuple[str, str], ...], ...]:
        row = self._row() or {}
        if not history.last:
            return ((), (("↓ newer messages", "faint"),))
        if row.get("state") == "running":
            return ((), (("working", "spinner"),))
        if not history.messages:
            return ((), (("No messages.", "dim"),))
        return ()

    def _row(self) -> dict[str, Any] | None:
        key = self.feed.selected
        row = self.feed.model.iteration(key) if key is not None else None
        return dict(row) if row else None

    # Where the reader is

    def _anchor(self) -> tuple[int, int] | None:
        """Return the message at the top of the screen, and how many of its lines are above."""
        top = self.scroll_offset.y
        index = bisect_right(self._tops, top) - 1
        for at in (index, index + 1):
            if 1 <= at <= len(self._ids):
                return self._ids[at - 1], top - self._tops[at]
        return None

    def _to_anchor(self, ident: int, above: int) -> None:
        if self._ids and ident in self._ids:
            at = self._ids.index(ident) + 1
            self._scroll_lines(self._tops[at] + above)

    def _to_bottom(self) -> None:
        self._scroll_lines(self._tops[-1])

    def _scroll_lines(self, y: int) -> None:
        self.scroll_to(y=max(0, min(y, self.max_scroll_y)), animate=False, force=True)

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        if self._syncing or self._history is None:
            return
        history = self._history
        bottom = new_value >= self.max_scroll_y - 0.5
        self.feed.following = bottom and history.last
        if new_value < self.size.height and not history.first:
            self.feed.page(self.feed.older)
        elif bottom and not history.last:
            self.feed.page(self.feed.newer)
        if self.feed.following:
            history.unseen = 0
        self.feed.changed({("follow", history.agent)})

    # Keys

    def _current(self) -> int:
        """Return the index of the cursor's block: the last message while nothing is chosen."""
        if self.cursor in self._ids:
            return self._ids.index(self.cursor) + 1
        return len(self._ids)

    def _choose(self, index: int) -> None:
        if not self._ids:
            return
        index = max(1, min(index, len(self._ids)))
        self.cursor = self._ids[index - 1]
        top, bottom = self._tops[index], self._tops[index + 1]
        first, height = self.scroll_offset.y, self.size.height
        if index == 1:
            top = 0
        if index == len(self._ids):
            bottom = self._tops[-1]
        if top < first or bottom - top >= height:
            self._scroll_lines(top)
        elif bottom > first + height:
            self._scroll_lines(bottom - height)
        self.refresh()

    def action_move(self, by: int) -> None:
        index = self._current()
        if not self._ids:
            return
        first, height = self.scroll_offset.y, self.size.height
        top, bottom = self._tops[index], self._tops[index + 1]
        visible = top < first + height and bottom > first
        if not visible:
            self._choose(self._visible(by))
        elif by > 0 and bottom > first + height:
            self._scroll_lines(first + _STEP)
        elif by < 0 and top < first:
            self._scroll_lines(first - _STEP)
        elif index + by > len(self._ids):
            self._to_bottom()
        elif index + by < 1:
            self._scroll_lines(0)
        else:
            self._choose(index + by)
            if by < 0 and self._tops[index - 1] < self.scroll_offset.y:
                self._scroll_lines(self._tops[index] - height)

    def _visible(self, by: int) -> int:
        y = self.scroll_offset.y + (0 if by > 0 else max(self.size.height - 1, 0))
        return bisect_right(self._tops, y) - 1

    def action_page(self, by: int) -> None:
        y = self.scroll_offset.y + by * max(self.size.height - 2, 1)
        self._scroll_lines(y)
        edge = self.scroll_offset.y + (0 if by < 0 else self.size.height - 1)
        index = max(1, min(bisect_right(self._tops, edge) - 1, len(self._ids)))
        if self._ids:
            self.cursor = self._ids[index - 1]
        self.refresh()

    def action_first(self) -> None:
        if self._history is not None and not self._history.first:
            self.feed.following = False
            self.feed.page(self._to_first)
        else:
            self._choose(1)

    async def _to_first(self) -> None:
        await self.feed.to_start()
        self.feed.following = False
        self.update()
        self._choose(1)

    def action_last(self) -> None:
        self.cursor = 0
        if self._history is not None and not self._history.last:
            self.feed.page(self._to_last)
        else:
            self.feed.following = True
            self._to_bottom()
            self.refresh()

    async def _to_last(self) -> None:
        await self.feed.to_end()
        self.feed.following = True
        self.update()

    def _fold(self, unfolded: bool | None) -> bool:
        """Fold or unfold the message under the cursor; None for the other way round. Returns whether it can be."""
        index = self._current()
        if self._history is None or not 1 <= index <= len(self._ids) or not self._shown[index].foldable:
            return False
        row = dict(self._history.messages[index - 1])
        before = self._is_unfolded(row)
        if unfolded == before:
            return False
        follows = self.feed.following
        self.feed.following = False
        self._unfolded[self._ids[index - 1]] = not before
        self.update()
        self._choose(index)
        self.feed.following = follows and self.scroll_offset.y >= self.max_scroll_y
        self.feed.changed({("follow", self._history.agent)})
        return True

    def action_fold_or_unfold(self) -> None:
        self._fold(None)

    def action_unfold(self) -> None:
        self._fold(True)

    def action_fold(self) -> None:
        if not self._fold(False):
            self.screen.set_focus(self.screen.query_one("#tree"))

    def unfold_all(self) -> None:
        """Unfold every message that is loaded, or fold them all."""
        if self._history is not None:
            rows = [row for row in self._history.messages if row.get("type") in FOLDED]
            unfolded = not all(self._is_unfolded(dict(row)) for row in rows)
            for row in rows:
                self._unfolded[row["id"]] = unfolded
            self.update()

    def on_click(self, event: Click) -> None:
        """Choose the message under the mouse; a click on the chosen one folds it."""
        index = bisect_right(self._tops, event.y + self.scroll_offset.y) - 1
        if 1 <= index <= len(self._ids):
            again = self.cursor == self._ids[index - 1]
            self.cursor = self._ids[index - 1]
            if self._shown[index].foldable and (again or event.x <= _GUTTER + 2):
                self._fold(None)
            self.refresh()

    # Drawing

    def on_resize(self) -> None:
        self.update()

    def on_focus(self) -> None:
        self.refresh()

    def on_blur(self) -> None:
        self.refresh()

    def _spin(self) -> None:
        if self.app.animation_level == "none":
            return
        self._frame += 1
        if self._shown and self._shown[-1].lines[-1:] == ((("working", "spinner"),),):
            self.refresh_line(self._tops[-1] - 1)

    def render_line(self, y: int) -> Strip:
        width = self.scrollable_content_region.width
        at = y + self.scroll_offset.y
        if not self._shown:
            loading = y == 1 and self._history is not None
            return self.strip([("   Loading…", "dim")], width) if loading else self.blank(width)
        if at >= self._tops[-1]:
            return self.blank(width)
        index = bisect_right(self._tops, at) - 1
        found = self._shown[index]
        line = found.lines[at - self._tops[index]]
        if line == (("working", "spinner"),):
            return self.strip(self._working(), width)
        chosen = self.has_focus and index == self._current() and 1 <= index <= len(self._ids)
        first = at == self._tops[index] and line == ()
        edge = ("   ", "")
        if not first and (chosen or found.edge):
            edge = (" ▌ ", "info") if chosen else (" │ ", found.edge)
        return self.strip([edge, *line], width)

    def _working(self) -> list[tuple[str, str]]:
        mark, kind = state_mark("running", self._frame)
        row = self._row() or {}
        taken = short(seconds_of(row, self.feed.now()))
        return [("   ", ""), (mark, kind), (f" working  {taken}", "dim")]
