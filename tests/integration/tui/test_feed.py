# SPDX-License-Identifier: GPL-3.0-or-later
"""What comes from a real fleetd into the model: events, pages, and what was missed in between."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.fleetd import Fleet, running

from autovibe_fleet.tui import feed as feeds
from autovibe_fleet.tui.feed import Feed
from autovibe_fleet.tui.history import LONGEST, PAGE
from autovibe_fleet.tui.model import Changes, Key

from .screens import play
from .stage import BUILDER, WATCHER, Stage


@pytest.fixture
def fleet(state_dir: Path) -> Iterator[Fleet]:
    with running(state_dir) as found:
        yield found


@pytest.fixture
def stage(fleet: Fleet) -> Iterator[Stage]:
    found = Stage(fleet.folder, fleet.client)
    found.declare(BUILDER, WATCHER)
    found.begin_run()
    yield found
    found.close()


class Watcher(Feed):
    """A feed that counts what it would have drawn and said."""

    def __init__(self, folder: Path) -> None:
        self.draws: list[Changes] = []
        self.said: list[str] = []
        super().__init__(folder, self.draws.append, lambda text, bad: self.said.append(text))

    def contents(self) -> list[str]:
        assert self.history is not None
        return [row["content"] for row in self.history.messages]


@contextlib.asynccontextmanager
async def watching(folder: Path, key: Key | None = None) -> AsyncIterator[Watcher]:
    feed = Watcher(folder)
    task = asyncio.create_task(feed.run())
    try:
        await until(lambda: feed.model.known)
        if key is not None:
            feed.unfold(Key("agent", key.agent), True)
            feed.unfold(Key("step", key.agent, key.step), True)
            feed.select(key)
            await until(lambda: feed.history is None or feed.history.loaded)
        yield feed
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(holds: Callable[[], Any], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not within {seconds} s"
        await asyncio.sleep(0.01)


def iteration(row: dict[str, Any]) -> Key:
    return Key("iteration", "builder", "build", row["id"])


async def away(function: Callable[..., Any], *arguments: Any) -> None:
    """Call what blocks, while the feed goes on."""
    await asyncio.to_thread(function, *arguments)


def test_messages_come_as_they_are_told(fleet: Fleet, stage: Stage) -> None:
    row = stage.begin()
    stage.text(row, "one")

    async def scene() -> None:
        async with watching(fleet.folder, iteration(row)) as feed:
            assert feed.contents() == ["one"]
            stage.text(row, "two")
            await until(lambda: feed.contents() == ["one", "two"])
            later = stage.begin()
            await until(lambda: feed.model.agents["builder"].steps["build"].newest == later["id"])
            stage.text(later, "of another iteration")
            stage.end(row)
            await until(lambda: (feed.model.iteration(iteration(row)) or {}).get("state") == "succeeded")
            assert feed.contents() == ["one", "two"]
            assert feed.said == []

    play(scene)


def test_a_message_whose_event_is_lost_comes_from_the_store(
    fleet: Fleet, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "CONFIRM", 0.2)
    row = stage.begin()

    async def scene() -> None:
        async with watching(fleet.folder, iteration(row)) as feed:
            stage.text(row, "lost", lost=True)
            stage.text(row, "told")
            await until(lambda: feed.contents() == ["lost", "told"])

    play(scene)


def test_after_a_restart_of_fleetd_nothing_is_missing_and_nothing_double(
    fleet: Fleet, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "AFTER_RECONNECT", (0.5, 1.0))
    row = stage.begin()
    stage.text(row, "before")

    async def scene() -> None:
        async with watching(fleet.folder, iteration(row)) as feed:
            await away(fleet.end, 9)
            await until(lambda: not feed.status.connected)
            for number in range(3 * PAGE):
                stage.text(row, str(number), lost=True)
            new = stage.store.begin_iteration(stage.run, "builder", "build", 1, "token")
            stage.declare({**WATCHER, "name": "late"})
            await away(fleet.up)
            await until(lambda: feed.status.connected and feed.reconnected == 2)
            await until(lambda: len(feed.contents()) == 3 * PAGE + 1)
            stage.text(row, "written before the run process is back", lost=True)
            await until(lambda: feed.contents()[-1] == "written before the run process is back")
            assert feed.contents()[1:-1] == [str(number) for number in range(3 * PAGE)]
            assert feed.model.agents["builder"].steps["build"].newest == new["id"]
            assert "late" in feed.model.agents

    play(scene)


def test_a_long_history_is_read_by_pages_from_both_ends(fleet: Fleet, stage: Stage) -> None:
    row = stage.begin()
    count = LONGEST + 3 * PAGE + 7
    stage.say(row, *({"type": "text", "content": str(number)} for number in range(count)), lost=True)
    everything = [str(number) for number in range(count)]

    async def scroll(feed: Watcher, move: Callable[[], Awaitable[None]], there: Callable[[], bool]) -> None:
        for _turn in range(100):
            if there():
                return
            await move()
            text = feed.contents()
            at = int(text[0])
            assert text == everything[at : at + len(text)]  # no gap, whatever page came
            assert len(text) <= LONGEST
        raise AssertionError("never there")

    async def scene() -> None:
        async with watching(fleet.folder, iteration(row)) as feed:
            history = feed.history
            assert history is not None
            assert feed.contents() == everything[-PAGE:]
            feed.following = False
            await scroll(feed, feed.older, lambda: history.first)
            assert feed.contents()[0] == "0"
            await scroll(feed, feed.newer, lambda: history.last)
            assert feed.contents()[-1] == everything[-1]
            await feed.to_start()
            assert feed.contents() == everything[:PAGE]
            stage.text(row, "later")
            await until(lambda: history.unseen == 1)
            await feed.to_end()
            assert feed.contents()[-1] == "later"

    play(scene)


def test_a_burst_of_events_is_drawn_in_few_frames(fleet: Fleet, stage: Stage) -> None:
    row = stage.begin()

    def burst() -> None:
        for first in range(0, 2000, 100):
            stage.say(row, *({"type": "text", "content": str(number)} for number in range(first, first + 100)))

    async def scene() -> None:
        async with watching(fleet.folder, iteration(row)) as feed:
            await asyncio.sleep(0.2)
            feed.draws.clear()
            begin = time.monotonic()
            await away(burst)
            await until(lambda: feed.contents()[-1:] == ["1999"])
            await asyncio.sleep(2 * feeds.FRAME)
            frames = (time.monotonic() - begin) / feeds.FRAME
            assert 1 <= len(feed.draws) <= frames + 2

    play(scene)


def test_agents_that_are_removed_or_changed_are_seen(fleet: Fleet, stage: Stage) -> None:
    async def scene() -> None:
        async with watching(fleet.folder, Key("agent", "builder")) as feed:
            await until(lambda: feed.model.agents["builder"].revisions)
            changed = {**BUILDER, "pipeline": [{"loop": "build", "times": 2}, {"call": "build", "label": "again"}]}
            await away(lambda: fleet.call("agents.apply", items=[changed]))
            await until(lambda: list(feed.model.agents["builder"].steps) == ["build", "again"])
            await until(lambda: len(feed.model.agents["builder"].revisions) == 2)
            await away(lambda: fleet.call("agents.apply", items=[{"name": "watcher"}], state="absent"))
            await until(lambda: "watcher" not in feed.model.agents)

    play(scene)


def test_an_error_is_said_once_and_the_connection_stays(fleet: Fleet, stage: Stage) -> None:
    async def scene() -> None:
        async with watching(fleet.folder) as feed:
            feed.act("agents.start", "started", names=["nobody"])
            await until(lambda: feed.said)
            assert feed.said == ['agent "nobody": not known']
            assert feed.status.connected

    play(scene)


def test_without_fleetd_it_tries_again_at_growing_intervals(tmp_path: Path) -> None:
    async def scene() -> None:
        feed = Watcher(tmp_path)
        task = asyncio.create_task(feed.run())
        waits = []
        for attempt in range(1, 5):
            await until(lambda attempt=attempt: feed.status.attempt == attempt)
            waits.append(feed.status.wait)
        assert waits == sorted(waits)
        assert "fleetd is not running" in feed.status.error
        task.cancel()

    play(scene)
