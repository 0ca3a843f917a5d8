# SPDX-License-Identifier: GPL-3.0-or-later
"""A list of which only the visible lines are ever drawn, with the keys that every pane has."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual.binding import Binding, BindingType
from textual.geometry import Region
from textual.scroll_view import ScrollView
from textual.strip import Strip

# Kinds of text, for blocks and tree lines: component classes of these names give their colors.
KINDS = (
    "text", "dim", "faint", "time", "good", "warn", "bad", "info", "title", "name", "strong", "tool", "tool-name",
    "output", "thinking", "prompt", "prompt-title", "user", "user-title", "cursor", "cursor-blurred",
)  # fmt: skip


class LineView(ScrollView, can_focus=True):
    """Base of the tree and of the history. A subclass says how a line looks, and what the keys do."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {f"line--{kind}" for kind in KINDS}
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j,down", "move(1)", "Down", show=False),
        Binding("k,up", "move(-1)", "Up", show=False),
        Binding("pagedown", "page(1)", "Page down", show=False),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("g,home", "first", "First", show=False),
        Binding("G,end", "last", "Last", show=False),
        Binding("right,l", "unfold", "Unfold", show=False),
        Binding("left,h", "fold", "Fold", show=False),
        Binding("enter", "fold_or_unfold", "Fold or unfold", show=False),
    ]

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002 - Textual's name
        super().__init__(id=id)
        self._styles_by_kind: dict[str, Style] = {}
        self._base = Style.null()

    def render_lines(self, crop: Region) -> list[Strip]:
        """Draw; what the whole widget's colors are is asked for once, not for each line."""
        self._base = self.rich_style
        return super().render_lines(crop)

    def notify_style_update(self) -> None:
        """Forget the colors: the theme or the classes changed."""
        super().notify_style_update()
        self._styles_by_kind = {}

    def style_of(self, kind: str) -> Style:
        """Return the colors of a kind of text."""
        if not kind:
            return Style.null()
        found = self._styles_by_kind.get(kind)
        if found is None:
            found = self._styles_by_kind[kind] = self.get_component_rich_style(f"line--{kind}", partial=True)
        return found

    def strip(self, pieces: Iterable[tuple[str, str]], width: int, over: Style | None = None) -> Strip:
        """Return one line from (text, kind) pieces, filled up to the width. over: laid over the whole line."""
        base, over = self._base, over or Style.null()
        segments = [Segment(text, base + self.style_of(kind) + over) for text, kind in pieces if text]
        return Strip(segments).adjust_cell_length(width, base + over)

    def blank(self, width: int) -> Strip:
        """Return an empty line."""
        return Strip.blank(width, self._base)
