# SPDX-License-Identifier: GPL-3.0-or-later
"""The last gate before the terminal: whatever a widget draws goes through here, once text.clean was forgotten."""

from __future__ import annotations

from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter

from .text import same_length

_REST = {ord("\n"): "␊", ord("\t"): " "}


class Gate(LineFilter):
    """Replaces control characters in drawn lines by pictures of themselves."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """Return the segments, safe to write."""
        if all(segment.text.isprintable() for segment in segments):
            return segments
        return [
            Segment(same_length(segment.text).translate(_REST), segment.style, segment.control) for segment in segments
        ]
