# SPDX-License-Identifier: GPL-3.0-or-later
"""The application without a terminal: at a fixed time, on a store alone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from textual.pilot import Pilot

from autovibe_fleet.tui.app import SteerApp
from autovibe_fleet.tui.link import Status

from .stage import NOON, Stage, StoreLink

SNAPSHOTS = Path(__file__).resolve().parents[2] / "data" / "tui"
UPDATE = os.environ.get("UPDATE_SNAPSHOTS", "") not in ("", "0")


class Still(StoreLink):
    """A link that is up at once and stays up."""

    def __init__(self, app: SteerApp, stage: Stage, running: tuple[str, ...] = ()) -> None:
        super().__init__(stage.store, running)
        self.app = app
        self.status = Status()

    async def run(self) -> None:
        self.set(Status(True))
        await self.app.feed._connected()
        await asyncio.Event().wait()

    def set(self, status: Status) -> None:
        """Have the connection stand otherwise."""
        self.status = status
        self.app.feed._status(status)


@contextlib.asynccontextmanager
async def shown(
    stage: Stage, size: tuple[int, int] = (110, 32), agent: str = "", running: tuple[str, ...] = ()
) -> AsyncIterator[tuple[SteerApp, Pilot[Any]]]:
    """The application on a stage, once everything is there."""
    os.environ["TZ"] = "UTC"
    time.tzset()
    app = SteerApp(Path("/nowhere"), agent)
    app.animation_level = "none"
    app.feed.link = Still(app, stage, running)  # type: ignore[assignment]
    app.feed.now = lambda: NOON + 800
    async with app.run_test(size=size, notifications=True) as pilot:
        await settled(pilot)
        yield app, pilot


async def settled(pilot: Pilot[Any]) -> None:
    """Wait until everything that was asked for is drawn."""
    app = pilot.app
    assert isinstance(app, SteerApp)
    for _turn in range(100):
        await pilot.pause(0.06)
        if not app.feed._jobs and app.feed._frame is None:
            break
    await pilot.pause()


async def press(pilot: Pilot[Any], *keys: str) -> None:
    await pilot.press(*keys)
    await settled(pilot)


def picture(app: SteerApp) -> str:
    """What stands on the screen, line by line."""
    strips = app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip).rstrip() for strip in strips) + "\n"


def compare(app: SteerApp, name: str) -> None:
    """Compare the screen with the picture of that name; UPDATE_SNAPSHOTS=1 takes it anew."""
    path, found = SNAPSHOTS / f"{name}.txt", picture(app)
    if UPDATE:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(found, encoding="utf-8")
    wanted = path.read_text(encoding="utf-8") if path.exists() else ""
    assert found == wanted, f"{path.name} shows something else; UPDATE_SNAPSHOTS=1 takes it anew\n{found}"


def play(scene: Callable[[], Awaitable[None]]) -> None:
    """Run a scene to its end."""

    async def run() -> None:
        await asyncio.wait_for(scene(), 60)

    asyncio.run(run())
