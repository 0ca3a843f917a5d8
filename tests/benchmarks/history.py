# SPDX-License-Identifier: GPL-3.0-or-later
"""How smooth fleet steer is with much history: 1,000 iterations of a step, 10,000 messages of the last one.

The real application on a screen of 160 by 50 that nobody looks at, with a real fleetd. Times are of this process
alone: what a terminal needs to draw comes on top. Those of keys hold the pauses of Textual's test driver too, which
waits until all is quiet; the processor time is what a key costs.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import measure
from textual.pilot import Pilot

from autovibe_fleet.tui.app import SteerApp
from autovibe_fleet.tui.model import Key
from fleet_core.agents import agent_definition
from fleet_node.agents import AgentStore
from fleet_node.client import Client

ITERATIONS, MESSAGES = 1000, 10_000
BURST, BATCH = 5000, 100  # messages, and how many one report tells
SIZE = (160, 50)
TEXT = "The tests pass; I commit this and take the next item of the backlog. "


def build(folder: Path) -> int:
    """Fill a store. Returns the id of the last iteration."""
    store = AgentStore(folder)
    definition = {"name": "worker", "runner": "command", "command": "cat", "methods": {"work": "Work."}}
    store.put_agents([(agent_definition(definition), "apply")])
    run = store.begin_run("worker", 1)
    with store.transaction():
        for _number in range(ITERATIONS - 1):
            row = store.begin_iteration(run, "worker", "work", 1, "token")
            store.end_iteration(row["id"], "succeeded", duration=60.0, usage={"input_tokens": 12000, "cost": 0.02})
        last = store.begin_iteration(run, "worker", "work", 1, "token")
        store.add_messages(last["id"], (message(number) for number in range(MESSAGES)))
    store.close()
    return int(last["id"])


def message(number: int) -> dict[str, Any]:
    if number % 3 == 1:
        return {"type": "tool_use", "detail": {"name": "Bash", "input": {"command": f"make test-{number}"}}}
    if number % 3 == 2:
        return {"type": "tool_result", "content": "ok\n" * 40}
    return {"type": "text", "content": f"{number}: {TEXT * (1 + number % 5)}"}


async def until(holds: Callable[[], Any]) -> None:
    limit = time.monotonic() + 120
    while not holds():
        if time.monotonic() > limit:
            raise TimeoutError("fleet steer did not get there")
        await asyncio.sleep(0.005)


async def timed(what: str, action: Callable[[], Awaitable[Any]], times: int = 1) -> None:
    """Do something a number of times, and print what one time takes."""
    walls = []
    processor = time.process_time()
    for _turn in range(times):
        begin = time.perf_counter()
        await action()
        walls.append(time.perf_counter() - begin)
    processor = (time.process_time() - processor) / times
    each = f"{statistics.median(walls) * 1000:.1f} ms, at most {max(walls) * 1000:.1f} ms" if times > 1 else ""
    print(f"history: {what}: {each or f'{walls[0]:.2f} s'} ({processor * 1000:.1f} ms of processor time)")


async def watch(folder: Path, last: int) -> None:
    app = SteerApp(folder, "worker")
    begin = time.perf_counter()
    async with app.run_test(size=SIZE) as pilot:
        tree, history = app.query_one("#tree"), app.query_one("#history")
        await until(lambda: Key("iteration", "worker", "work", last) in [line.key for line in tree.lines])
        print(f"history: start to the tree with the last iterations: {time.perf_counter() - begin:.2f} s")
        key = keys(pilot)

        async def everything() -> None:
            more = Key("more", "worker", "work")
            while tree.go_to(more):
                shown = len(tree.lines)
                tree.action_fold_or_unfold()
                await until(lambda shown=shown: len(tree.lines) > shown)

        await timed(f"load and show all {ITERATIONS} iterations, by pages", everything)
        await timed(f"one line down a tree of {ITERATIONS} iterations", key("j"), 100)
        await timed("one line up it", key("k"), 100)
        await timed("a screen down and up", key("pagedown", "pageup"), 20)

        async def open_last() -> None:
            tree.go_to(Key("iteration", "worker", "work", last))
            await until(lambda: history.max_scroll_y > 0 and app.feed.history.loaded)

        await timed(f"open the iteration of {MESSAGES} messages", open_last)
        history.focus()
        await pilot.pause()
        await timed("a screen up in it, pages loaded on the way", key("pageup"), 200)
        await timed("one message down in it", key("j"), 100)

        async def to_first() -> None:
            await pilot.press("g")
            await until(lambda: app.feed.history.first)

        async def to_last() -> None:
            await pilot.press("G")
            await until(lambda: app.feed.history.last)

        await timed("to the first message", to_first)
        await timed("to the last message", to_last)
        await burst(app, folder, last)
        await timed("another width: everything that is loaded wrapped anew", lambda: pilot.resize_terminal(120, 50))


def keys(pilot: Pilot[Any]) -> Callable[..., Callable[[], Awaitable[None]]]:
    def press(*names: str) -> Callable[[], Awaitable[None]]:
        return lambda: pilot.press(*names)

    return press


async def burst(app: SteerApp, folder: Path, last: int) -> None:
    """Have thousands of messages come as fast as fleetd tells them, while somebody watches."""
    lags: list[float] = []
    drawn = 0
    draw = app.feed._draw

    def counted(changes: Any) -> None:
        nonlocal drawn
        drawn += 1
        draw(changes)

    app.feed._draw = counted

    async def look() -> None:
        while True:
            begin = time.perf_counter()
            await asyncio.sleep(0.005)
            lags.append(time.perf_counter() - begin - 0.005)

    looking = asyncio.create_task(look())
    begin, processor = time.perf_counter(), time.process_time()
    reporter = await asyncio.create_subprocess_exec(sys.executable, __file__, "report", str(folder), str(last))
    history = app.feed.history
    await until(lambda: history.messages and history.messages[-1]["content"] == f"burst {BURST - 1}")
    seconds, processor = time.perf_counter() - begin, time.process_time() - processor
    looking.cancel()
    await reporter.wait()
    print(
        f"history: {BURST} messages told at once: all seen after {seconds:.2f} s, {processor / BURST * 1e6:.0f} us of"
        f" processor time each, {drawn / seconds:.0f} draws a second, the screen blocked for {max(lags) * 1000:.0f} ms"
        " at most"
    )


def report(folder: Path, last: int) -> None:
    """Add messages to the store and tell of them, as a run process does."""
    store, client = AgentStore(folder), Client(folder)
    for first in range(0, BURST, BATCH):
        rows = store.add_messages(
            last, ({"type": "text", "content": f"burst {number}"} for number in range(first, first + BATCH))
        )
        client.call("runs.report", agent="worker", events=[{**row, "kind": "message"} for row in rows])


def main() -> None:
    if sys.argv[1:2] == ["report"]:
        report(Path(sys.argv[2]), int(sys.argv[3]))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        last = build(folder)
        print(f"history: {ITERATIONS} iterations, {MESSAGES} messages, {SIZE[0]}x{SIZE[1]}; {measure.load()}")
        fleetd = subprocess.Popen([measure.own("fleetd"), "--state-dir", name, "--driver", "native"], stderr=-3)
        try:
            client = Client(folder)
            measure.wait_for(client.answers, 30, "fleetd answers")
            asyncio.run(watch(folder, last))
        finally:
            fleetd.terminate()
            fleetd.wait()


if __name__ == "__main__":
    main()
