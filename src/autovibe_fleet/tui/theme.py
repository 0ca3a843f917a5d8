# SPDX-License-Identifier: GPL-3.0-or-later
"""The colors."""

from __future__ import annotations

from textual.theme import Theme

THEME = Theme(
    name="fleet",
    primary="#7aa2f7",
    secondary="#9d7cd8",
    accent="#7dcfff",
    foreground="#d5d9ea",
    background="#15161e",
    surface="#1a1b26",
    panel="#24283b",
    success="#9ece6a",
    warning="#e0af68",
    error="#f7768e",
    dark=True,
    variables={
        "border": "#3b4261",
        "dim": "#9aa1c0",
        "faint": "#6d759b",
        "cursor": "#2f3b63",
        "cursor-blurred": "#272b3f",
        "footer-background": "#24283b",
        "footer-key-foreground": "#7dcfff",
        "footer-description-foreground": "#a9b1d6",
        "scrollbar": "#3b4261",
        "scrollbar-background": "#1a1b26",
        "input-cursor-foreground": "#15161e",
    },
)
