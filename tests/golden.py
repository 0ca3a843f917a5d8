# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole texts as data: what a renderer writes is compared with a file, which is what reviewers read.

``UPDATE_GOLDEN=1`` writes the files anew.
"""

from __future__ import annotations

import os
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "data"


def check_golden(name: str, text: str) -> None:
    """Compare a text with tests/data/NAME."""
    path = FOLDER / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"{path} differs; UPDATE_GOLDEN=1 writes it anew"
