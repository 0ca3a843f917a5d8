# SPDX-License-Identifier: GPL-3.0-or-later
"""The left side: agents, their steps and the last iterations of those."""

from __future__ import annotations

from dataclasses import dataclass

from rich.cells import cell_len
from textual.events import Click
from textual.geometry import Region, Size
from textual.message import Message
from textual.strip import Strip

from ..feed import Feed
from ..figures import count, money, moves, seconds_of, short, state_mark
from ..model import Agent, Key, Line, Step
from ..text import fit, one_line
from .lines import LineView

Piece = tuple[str, str]


class AgentTree(LineView):
    """Draws the visible lines of the model's tree; the cursor stays with what it is on, wherever that moves."""

    @dataclass
    class Selected(Message):
        """The cursor is on another line."""

        key: Key | None

    class Opened(Message):
        """Enter was pressed on an iteration."""

    def __init__(self, feed: Feed) -> None:
        super().__init__(id="tree")
        self.feed = feed
        self.cursor: Key | None = None
        self.at = 0  # the cursor's line
        self._frame = 0
        self.lines: list[Line] = []

    def on_mount(self) -> None:
        self.set_interval(0.125, self._spin)

    def update(self) -> None:
        """Draw the model anew."""
        self.lines = self.feed.model.lines()
        self._find_cursor()
        height = len(self.lines)
        if self.virtual_size.height != height or self.virtual_size.width != self.scrollable_content_region.width:
            self.virtual_size = Size(self.scrollable_content_region.width, height)
        self.refresh()

    def _find_cursor(self) -> None:
        lines = self.lines
        if not lines:
            if self.feed.model.known or self.cursor is None:
                self.at, moved = 0, self.cursor is not None
                self.cursor = None
                if moved:
                    self.post_message(self.Selected(None))
            return
        if self.cursor is not None:
            if self.at < len(lines) and lines[self.at].key == self.cursor:
                return
            wanted: Key | None = self.cursor
            keys = {line.key: index for index, line in enumerate(lines)}
            while wanted is not None and wanted not in keys:
                wanted = wanted.above
            at = keys[wanted] if wanted is not None else min(self.at, len(lines) - 1)
        else:
            at = 0
        self._move_to(at, scroll=self.cursor is None or lines[at].key != self.cursor)

    def go_to(self, key: Key) -> bool:
        """Put the cursor on a line, unfolding what lies above it. Returns whether it is there."""
        above = key.above
        while above is not None:
            self.feed.unfold(above, True)
            above = above.above
        self.lines = self.feed.model.lines()
        self.virtual_size = Size(self.scrollable_content_region.width, len(self.lines))
        for index, line in enumerate(self.lines):
            if line.key == key:
                self._move_to(index)
                return True
        return False

    def _move_to(self, at: int, scroll: bool = True) -> None:
        if not self.lines:
            return
        before, top = self.at, self.scroll_offset.y
        self.at = max(0, min(at, len(self.lines) - 1))
        key = self.lines[self.at].key
        if key != self.cursor:
            self.cursor = key
            self.post_message(self.Selected(key))
        if scroll:
            self.scroll_to_region(Region(0, self.at, 1, 1), animate=False, force=True)
        if self.scroll_offset.y == top:
            self.refresh_line(before)
            self.refresh_line(self.at)

    # Keys

    def action_move(self, by: int) -> None:
        self._move_to(self.at + by)

    def action_page(self, by: int) -> None:
        self._move_to(self.at + by * max(self.size.height - 1, 1))

    def action_first(self) -> None:
        self._move_to(0)

    def action_last(self) -> None:
        self._move_to(len(self.lines) - 1)

    def _line(self) -> Line | None:
        return self.lines[self.at] if self.at < len(self.lines) else None

    def action_unfold(self) -> None:
        line = self._line()
        if line is None:
            return
        if line.foldable and not line.open:
            self._fold(line, True)
        elif line.key.kind == "iteration":
            self.post_message(self.Opened())
        elif line.key.kind == "more":
            self._more(line)
        else:
            self._move_to(self.at + 1)

    def action_fold(self) -> None:
        line = self._line()
        if line is None:
            return
        if line.foldable and line.open:
            self._fold(line, False)
        elif line.key.above is not None:
            self.go_to(line.key.above)

    def action_fold_or_unfold(self) -> None:
        line = self._line()
        if line is None:
            return
        if line.key.kind == "more":
            self._more(line)
        elif line.key.kind == "iteration":
            self.post_message(self.Opened())
        elif line.foldable:
            self._fold(line, not line.open)

    def _fold(self, line: Line, unfolded: bool) -> None:
        self.feed.unfold(line.key, unfolded)
        self.update()

    def _more(self, line: Line) -> None:
        step = self.feed.model.step(line.key)
        shown = len(step.visible) if step else 0
        self.feed.more(line.key)
        if step is not None and len(step.visible) > shown:  # go on where the eye is
            self.cursor = Key("iteration", line.key.agent, line.key.step, step.visible[shown]["id"])
            self.post_message(self.Selected(self.cursor))
        self.update()

    def on_click(self, event: Click) -> None:
        """Put the cursor where the mouse is; a click on its mark folds."""
        at = event.y + self.scroll_offset.y
        if at >= len(self.lines):
            return
        self._move_to(at, scroll=False)
        line = self.lines[at]
        if line.key.kind == "more" or (line.foldable and event.x <= line.depth * 2 + 2):
            self.action_fold_or_unfold()

    # Drawing

    def on_resize(self) -> None:
        self.update()
        self.scroll_to_region(Region(0, self.at, 1, 1), animate=False, force=True)

    def _spin(self) -> None:
        if self.app.animation_level == "none":
            return
        self._frame += 1
        top = self.scroll_offset.y
        for index, line in enumerate(self.lines[top : top + self.size.height]):
            state = line.item.get("state") if isinstance(line.item, dict) else getattr(line.item, "state", "")
            if moves(str(state or "-")):
                self.refresh_line(top + index)

    def render_line(self, y: int) -> Strip:
        width = self.scrollable_content_region.width
        at = y + self.scroll_offset.y
        if at >= len(self.lines):
            return self.blank(width)
        line = self.lines[at]
        over = None
        if at == self.at:
            over = self.style_of("cursor" if self.has_focus else "cursor-blurred")
        left, right = self._pieces(line)
        return self.strip(_spread(left, right, width), width, over)

    def _pieces(self, line: Line) -> tuple[list[Piece], list[Piece]]:
        mark = ("▾ " if line.open else "▸ ") if line.foldable else "  "
        indent = " " * (2 * line.depth + 1)
        if line.key.kind == "agent":
            return self._agent(line.item, indent + mark)
        if line.key.kind == "step":
            step: Step = line.item
            right = [(f"{count(step.count)} ", "dim")] if step.count else []
            kind = [(f"  {step.kind}", "faint")] if step.kind != "call" else []
            return [(indent + mark, "dim"), (one_line(step.label, 120), "text"), *kind], right
        if line.key.kind == "more":
            more: Step = line.item
            return [(f"{indent}  … {more.count - len(more.visible)} more", "dim")], []
        return self._iteration(line, indent + mark)

    def _agent(self, agent: Agent, indent: str) -> tuple[list[Piece], list[Piece]]:
        sign, kind = state_mark(agent.state, self._frame)
        queued = int(agent.view.get("queued") or 0)
        waiting = [(f"{queued} queued · ", "warn")] if queued else []
        return (
            [(indent, "dim"), (f"{sign} ", kind), (one_line(agent.name, 120), "name")],
            [*waiting, (f"{agent.state} ", kind)],
        )

    def _iteration(self, line: Line, indent: str) -> tuple[list[Piece], list[Piece]]:
        row = line.item
        state = str(row.get("state") or "")
        sign, kind = state_mark(state, self._frame)
        item = f"  {one_line(row['item'], 60)}" if row.get("item") else ""
        left = [
            (indent, "dim"),
            (f"{sign} ", kind),
            (f"#{row.get('number', row.get('id'))}", "strong" if line.first else "text"),
            (item, "dim"),
        ]
        right = []
        if row.get("cost"):
            right.append((f"{money(row['cost'])}  ", "faint"))
        right.append((f"{short(seconds_of(row, self.feed.now()))} ", "dim"))
        return left, right


def _spread(left: list[Piece], right: list[Piece], width: int) -> list[Piece]:
    """Lay pieces at both ends of a line; what does not fit is cut at the left side's end, then at the right side."""
    wide = sum(cell_len(text) for text, _kind in right)
    used = sum(cell_len(text) for text, _kind in left)
    if used + wide + 1 > width and wide:
        room = width - wide - 1
        if room < 12:  # the name matters more than the facts
            return _spread(left, right[1:] if len(right) > 1 else [], width)
        return [*_cut(left, room), (" ", ""), *right]
    if used > width:
        return _cut(left, width)
    return [*left, (" " * (width - used - wide), ""), *right]


def _cut(pieces: list[Piece], width: int) -> list[Piece]:
    found = []
    for text, kind in pieces:
        if width <= 0:
            break
        text = fit(text, width)
        width -= cell_len(text)
        found.append((text, kind))
    return [*found, (" " * max(width, 0), "")]
