# SPDX-License-Identifier: GPL-3.0-or-later
"""All keys, as the help screen and the documentation list them."""

from __future__ import annotations

KEYS: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    (
        "Everywhere",
        (
            ("j k  ↓ ↑", "down and up"),
            ("PgDn PgUp", "a screen down and up"),
            ("g  G", "the first and the last line or message"),
            ("Tab", "the next pane: tree, right side, message box"),
            ("/", "search agents and steps; Esc shows all again"),
            ("?", "this help"),
            ("q", "quit"),
        ),
    ),
    (
        "Tree",
        (
            ("→ ←  l h", "unfold and fold; ← on a line goes to the one above it"),
            ("Enter", "fold or unfold; go to an iteration's history; load more"),
            ("n", "the newest iteration of this agent or step"),
        ),
    ),
    (
        "History",
        (
            ("Enter", "fold or unfold a tool use, a result, a thought"),
            ("→ ←  l h", "unfold and fold; ← on a folded one goes to the tree"),
            ("z", "fold or unfold all of them"),
        ),
    ),
    (
        "Steering",
        (
            ("m", "write a message to the agent"),
            ("Enter", "in the message box: send"),
            ("Ctrl+J", "in the message box: another line (Alt+Enter too)"),
            ("Esc", "leave the message box; the text stays"),
            ("e", "edit the prompt; Ctrl+S writes a new revision"),
            ("p", "pause the agent, or let it go on"),
            ("i", "interrupt the iteration that runs"),
            ("r", "run the agent"),
            ("s", "stop the agent; asks first"),
        ),
    ),
)
