# SPDX-License-Identifier: GPL-3.0-or-later
"""What the screen looks like in its main states. The pictures are in tests/data/tui."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from textual.events import Key

from autovibe_fleet.tui.link import Status
from autovibe_fleet.tui.widgets.message_box import MessageBox

from .screens import Still, compare, picture, play, press, settled, shown
from .stage import BUILDER, TRANSLATOR, WATCHER, Stage


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    found = Stage(tmp_path)
    yield found
    found.close()


@pytest.fixture
def full(stage: Stage) -> Stage:
    """Three agents, one of which works in its twelfth iteration and is steered."""
    stage.declare(BUILDER, TRANSLATOR, WATCHER)
    row = stage.history()
    for text, state in (("Use pytest, and\nkeep the diff small", "delivered"), ("Then the dark theme", "sent")):
        injection = stage.store.inject("builder", text, iteration=row["id"], sender="anna@laptop")
        stage.move(injection["id"], state, row)
        if state == "delivered":
            stage.say(row, {"type": "user", "content": text, "detail": {"injection": injection["id"]}})
    stage.store.inject("builder", "And the 日本語 names", step="build", sender="ben@desk")
    stage.store.inject("builder", "Too late", iteration=row["id"] - 1, sender="ben@desk")
    stage.at_noon()
    return stage


STATES = [
    ("agent", ()),
    ("step", ("j",)),
    ("iteration", ("j", "j")),
    ("unfolded", ("j", "j", "tab", "k", "k", "k", "enter", "k", "k", "k", "enter")),
    ("first-message", ("j", "j", "tab", "g")),
    ("ended", ("j", "j", "j", "j", "j")),
    ("refused", ("j", "j", "j")),
    ("message", ("m", "a", "b", "ctrl+j", "c")),
    ("search", ("slash", "w", "a", "t")),
    ("found-nothing", ("slash", "x", "y")),
    ("help", ("question_mark",)),
    ("stop", ("s",)),
    ("edit", ("e",)),
]


@pytest.mark.parametrize(("name", "keys"), STATES, ids=[name for name, _keys in STATES])
def test_the_screen(full: Stage, name: str, keys: tuple[str, ...]) -> None:
    async def scene() -> None:
        async with shown(full, running=("builder",)) as (app, pilot):
            for key in keys:
                await press(pilot, key)
            compare(app, name)

    play(scene)


@pytest.mark.parametrize("size", [(60, 20), (40, 12), (24, 6), (200, 50)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_the_screen_at_other_sizes(full: Stage, size: tuple[int, int]) -> None:
    async def scene() -> None:
        async with shown(full, size=size, running=("builder",)) as (app, pilot):
            await press(pilot, "j", "j")
            compare(app, f"tree-{size[0]}x{size[1]}")
            await press(pilot, "enter")
            compare(app, f"iteration-{size[0]}x{size[1]}")
            await press(pilot, "escape")
            assert "watcher" in picture(app) or size[1] < 14

    play(scene)


def test_a_terminal_that_changes_its_size_shows_what_fits(full: Stage) -> None:
    async def scene() -> None:
        async with shown(full, running=("builder",)) as (app, pilot):
            await press(pilot, "j", "j", "tab")
            wide = picture(app)
            for size in [(30, 8), (5, 3), (1, 1), (300, 80), (110, 32)]:
                await pilot.resize_terminal(*size)
                await settled(pilot)
            assert picture(app) == wide

    play(scene)


def test_without_agents_the_screen_says_what_to_do(stage: Stage) -> None:
    async def scene() -> None:
        async with shown(stage) as (app, _pilot):
            compare(app, "no-agents")

    play(scene)


def test_an_agent_that_is_not_there_is_said_so(stage: Stage) -> None:
    stage.declare(WATCHER)

    async def scene() -> None:
        async with shown(stage, agent="wacher") as (app, _pilot):
            assert 'agent "wacher": not known' in picture(app)

    play(scene)


def test_the_banner_comes_with_a_lost_connection_and_goes(full: Stage) -> None:
    async def scene() -> None:
        async with shown(full) as (app, pilot):
            link = app.feed.link
            assert isinstance(link, Still)
            link.set(Status(False, "fleetd is not running", 3, 1.0))
            await settled(pilot)
            compare(app, "lost")
            link.set(Status(True))
            await settled(pilot)
            assert "Connected again" in picture(app)
            await pilot.pause(3.3)
            assert "Connected again" not in picture(app)

    play(scene)


def test_names_and_texts_are_never_read_as_markup(stage: Stage) -> None:
    markup = "[bold]x[/bold] [link=y]"
    definition = {
        "name": "evil",
        "runner": "command",
        "command": "cat",
        "description": f"{markup} one",
        "methods": {"work": f"{markup} two"},
        "pipeline": [{"call": "work", "label": markup}],
    }
    stage.declare(definition)
    stage.begin_run("evil")
    ended = stage.begin("evil", markup, item=markup)
    stage.say(ended, {"type": "error", "content": f"{markup} three"})
    stage.end(ended, "failed", reason=f"{markup} four")
    stage.store.inject("evil", f"{markup} five", iteration=ended["id"], sender=markup)

    async def scene() -> None:
        async with shown(stage, size=(200, 40)) as (app, pilot):
            assert f"{markup} one" in picture(app)
            await press(pilot, "j")
            assert f"{markup} two" in picture(app)
            assert f"evil / {markup}" in picture(app)
            await press(pilot, "j")
            text = picture(app)
            for part in (f"{markup} three", f"{markup} four", f"{markup}: {markup} five", f"iteration of {markup}"):
                assert part in text
            await press(pilot, "e")
            assert f"{markup} two" in picture(app)
            await press(pilot, "escape", "slash", *"[red]")
            assert 'Nothing is called "[red]"' in picture(app)

    play(scene)


def test_the_newest_iteration_is_bold_and_the_cursor_marked(full: Stage) -> None:
    async def scene() -> None:
        async with shown(full, running=("builder",)) as (app, pilot):
            await press(pilot, "j", "j")
            styles = {}
            for strip in app.screen._compositor.render_strips():
                for segment in strip:
                    for number in ("#12", "#11"):
                        if segment.text == number and segment.style is not None:
                            styles.setdefault(number, segment.style)
            assert styles["#12"].bold
            assert not styles["#11"].bold
            assert styles["#12"].bgcolor != styles["#11"].bgcolor

    play(scene)


@pytest.mark.parametrize(("key", "box"), [("m", "message"), ("/", "search")])
def test_what_is_typed_right_after_the_key_of_a_box_is_no_command(full: Stage, key: str, box: str) -> None:
    async def scene() -> None:
        async with shown(full, running=("builder",)) as (app, pilot):
            link = app.feed.link
            assert isinstance(link, Still)
            before = len(link.calls)
            for character in f"{key}spire/m":  # all in one go
                name = {"/": "slash"}.get(character, character)
                app.post_message(Key(name, character))
            await settled(pilot)
            found = app.query_one(f"#{box}")
            assert (found.text if isinstance(found, MessageBox) else found.value) == "spire/m"  # type: ignore[attr-defined]
            methods = {method for method, _params in link.calls[before:]}
            assert not methods & {"agents.stop", "agents.pause", "agents.interrupt", "agents.start"}

    play(scene)
