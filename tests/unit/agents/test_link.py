# SPDX-License-Identifier: GPL-3.0-or-later
"""Reports to a fleetd that comes and goes: everything arrives, whatever does not fit into memory from the store."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autovibe_fleet.agents import link as links
from autovibe_fleet.agents.link import Link
from fleet_core.agents import agent_definition
from fleet_node import paths
from fleet_node.agents import AgentStore


@pytest.fixture
def store(state_dir: Path) -> Iterator[AgentStore]:
    store = AgentStore(state_dir)
    item = {"name": "a", "runner": "command", "command": "cat", "methods": {"m": "x"}}
    store.put_agents([(agent_definition(item), "apply")])
    yield store
    store.close()


class Listener:
    """Answers on fleetd's socket, and ends each connection after so many reports. refuse: answers with an error."""

    def __init__(self, store: AgentStore, reports: int = 10**6, refuse: bool = False) -> None:
        self._path = paths.socket(store.folder)
        self._reports = reports
        self._refuse = refuse
        self.events: list[dict[str, Any]] = []
        self.writers: list[asyncio.StreamWriter] = []
        self.server: asyncio.AbstractServer | None = None

    async def open(self) -> None:
        self.server = await asyncio.start_unix_server(self._serve, self._path, limit=1 << 26)

    async def close(self) -> None:
        assert self.server is not None
        self.server.close()
        for writer in self.writers:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        left = self._reports
        while line := await reader.readline():
            request = json.loads(line)
            answer: dict[str, Any] = {"jsonrpc": "2.0", "id": request["id"], "result": {}}
            if request["method"] == "runs.report":
                if left == 0:
                    writer.close()  # heard, but not acknowledged
                    return
                left -= 1
                if self._refuse:
                    answer = {"id": request["id"], "error": {"message": "no", "data": {"code": "invalid_input"}}}
                self.events += request["params"]["events"]
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()


async def until(condition: Any) -> None:
    for _turn in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("not within ten seconds")


def messages(store: AgentStore, count: int) -> list[dict[str, Any]]:
    run = store.unfinished_run("a") or {"id": store.begin_run("a", 1)}
    ident = store.begin_iteration(run["id"], "a", "m", 1, "t")["id"]
    rows = store.add_messages(ident, [{"type": "text", "content": str(number)} for number in range(count)])
    return [{**row, "kind": "message"} for row in rows]


def test_everything_is_reported_once_more_until_it_is_acknowledged(store: AgentStore) -> None:
    async def run() -> tuple[list[int], list[int]]:
        heard: list[str] = []
        listener, link = Listener(store, reports=2), Link(store, "a", heard.append)
        link.open()
        rows = messages(store, 1000)
        for row in rows[:500]:
            link.report(row)
        await asyncio.sleep(0.1)  # nobody listens yet
        await listener.open()
        for row in rows[500:]:
            link.report(row)
            await asyncio.sleep(0)
        await until(lambda: len({event["id"] for event in listener.events}) == 1000)
        await link.close()
        await listener.close()
        assert "desired" in heard
        return [row["id"] for row in rows], list(dict.fromkeys(event["id"] for event in listener.events))

    reported, arrived = asyncio.run(run())
    assert arrived == reported


def test_what_does_not_fit_into_memory_comes_from_the_store(store: AgentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "_KEPT", 50)

    async def run() -> None:
        listener, link = Listener(store), Link(store, "a", lambda what: None)
        link.open()
        first, rows = messages(store, 100), messages(store, 300)
        link.report({**store.iteration(1), "kind": "iteration"})
        for row in [*first, *rows]:
            link.report(row)
        assert len(link._waiting) == 50
        await listener.open()
        await until(lambda: len({event["id"] for event in listener.events if event["kind"] == "message"}) == 400)
        found = [event["id"] for event in listener.events if event["kind"] == "message"]
        assert found == [row["id"] for row in [*first, *rows]]
        assert [event["id"] for event in listener.events if event["kind"] == "iteration"] == [1]
        await link.close()
        await listener.close()

    asyncio.run(run())


def test_a_report_that_is_refused_is_not_repeated_for_ever(
    store: AgentStore, capsys: pytest.CaptureFixture[str]
) -> None:
    async def run() -> None:
        listener, link = Listener(store, refuse=True), Link(store, "a", lambda what: None)
        await listener.open()
        link.open()
        for row in messages(store, 10):
            link.report(row)
        await until(lambda: len(listener.events) >= 10)
        await link.close()
        assert len(listener.events) == 10
        await listener.close()

    asyncio.run(run())
    assert "fleetd did not take a report: no" in capsys.readouterr().out


def test_closing_does_not_wait_for_a_fleetd_that_is_away(store: AgentStore) -> None:
    async def run() -> float:
        link = Link(store, "a", lambda what: None)
        link.open()
        link.report(messages(store, 1)[0])
        begun = asyncio.get_running_loop().time()
        await link.close(patience=0.2)
        return asyncio.get_running_loop().time() - begun

    assert asyncio.run(run()) < 1


def test_a_report_is_never_longer_than_what_fleetd_takes(store: AgentStore) -> None:
    async def run() -> None:
        listener, link = Listener(store), Link(store, "a", lambda what: None)
        rows = messages(store, 20)
        for row in rows:
            link.report({**row, "content": "\U0001f600" * 400_000})  # 4.8 MB each, as JSON
        await listener.open()
        link.open()
        await until(lambda: len(listener.events) >= 20)
        assert [event["id"] for event in listener.events] == [row["id"] for row in rows]
        await link.close()
        await listener.close()

    asyncio.run(run())
