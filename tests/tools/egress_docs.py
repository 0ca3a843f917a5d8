# SPDX-License-Identifier: GPL-3.0-or-later
"""Write the table of presets in docs/egress.md from the presets. ``--check`` only says whether it is out of date."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fleet_core.egress_presets import markdown

PAGE = Path(__file__).resolve().parents[2] / "docs" / "egress.md"


def document(text: str) -> str:
    """Return the page with another table, which is its last one."""
    before, _mark, _table = text.partition("| preset | for |")
    return before + markdown()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    text = PAGE.read_text(encoding="utf-8")
    if not parser.parse_args().check:
        PAGE.write_text(document(text), encoding="utf-8")
    elif document(text) != text:
        print("docs/egress.md is out of date: run `make docs`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
