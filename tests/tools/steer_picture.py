# SPDX-License-Identifier: GPL-3.0-or-later
"""Write docs/images/steer.svg: what fleet steer looks like, at a fixed time, with made-up agents."""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.integration.tui.screens import play, press, shown  # noqa: E402
from tests.integration.tui.stage import BUILDER, TRANSLATOR, WATCHER, Stage  # noqa: E402

PICTURE = ROOT / "docs" / "images" / "steer.svg"
FONTS = "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        stage = Stage(Path(folder))
        stage.declare(BUILDER, {**TRANSLATOR, "name": "translator"}, WATCHER)
        row = stage.history()
        delivered = stage.store.inject("builder", "Use pytest, and keep the diff small", sender="anna@laptop")
        stage.move(delivered["id"], "delivered", row)
        stage.say(
            row,
            {"type": "user", "content": delivered["text"], "detail": {"injection": delivered["id"]}},
            {"type": "text", "content": "Will do: pytest it is, and only the export changes."},
            {"type": "tool_use", "detail": {"name": "Bash", "input": {"command": "pytest -q tests/test_export.py"}}},
        )
        stage.store.inject("builder", "Then the dark theme", step="build", sender="ben@desk")
        stage.at_noon()

        async def scene() -> None:
            async with shown(stage, size=(124, 34), running=("builder",)) as (app, pilot):
                await press(pilot, "j", "j", "tab")
                PICTURE.parent.mkdir(exist_ok=True)
                PICTURE.write_text(_plain(app.export_screenshot(title="fleet steer")), encoding="utf-8")

        play(scene)
        stage.close()


def _plain(svg: str) -> str:
    """Take out what would be loaded from elsewhere, and keep the spaces."""
    svg = re.sub(r"@font-face\s*\{.*?\}\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family: ?[^;]*;", f"font-family: {FONTS};", svg)
    svg = svg.replace("<text ", '<text xml:space="preserve" ')
    return "\n".join(line.rstrip() for line in svg.splitlines() if line.strip()) + "\n"


if __name__ == "__main__":
    main()
