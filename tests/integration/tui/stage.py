# SPDX-License-Identifier: GPL-3.0-or-later
"""Agents with a history, in a real store; and somebody who plays the run process of one of them."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autovibe_fleet.node.agent_views import ProcessFacts, view
from fleet_core.agents import agent_definition
from fleet_core.errors import NotFound
from fleet_node import paths
from fleet_node.agents import AgentStore
from fleet_node.client import Client

BUILD = """\
Read BACKLOG.md, pick one item, build it, test it, commit.

Rules:
- One item at a time.
- Write a test first.
- Never touch generated files; run `make docs` instead.

When the backlog is empty, say ALL DONE."""

BUILDER = {
    "name": "builder",
    "runner": "claude",
    "model": "sonnet",
    "description": "Builds what the backlog says, one item at a time.",
    "methods": {"build": BUILD, "review": {"parameters": ["branch"], "body": "Review [branch] for mistakes."}},
    "pipeline": [{"loop": "build"}, {"call": "review", "arguments": ["main"]}],
    "completion": {"phrase": "ALL DONE"},
    "limits": {"iterations": 50, "cost": 5, "duration": "2h"},
    "workspace": {"kind": "worktree", "repository": "/srv/shop", "branch": "agent/builder/run-1"},
}
TRANSLATOR = {
    "name": "translator-of-the-very-long-documentation-pages",
    "runner": "codex",
    "methods": {"translate": {"parameters": ["page"], "body": "Translate [page] into 日本語."}},
    "pipeline": [{"map": "translate", "items": ["docs/index.md", "docs/quickstart.md"]}],
}
WATCHER = {"name": "watcher", "runner": "command", "command": "cat", "methods": {"watch": "Look after the log."}}

MESSAGES: Sequence[Mapping[str, Any]] = (
    {"type": "session", "detail": {"session": "5f2c81", "model": "claude-sonnet"}},
    {"type": "text", "content": "I begin with the backlog.\n\nThere are three open items; the first is the smallest."},
    {"type": "tool_use", "detail": {"id": "1", "name": "Bash", "input": {"command": "cat BACKLOG.md"}}},
    {
        "type": "tool_result",
        "content": "- [ ] \x1b[1mexport as CSV\x1b[0m\n- [ ] dark theme\n- [ ] 日本語 names\n",
        "detail": {"id": "1"},
    },
    {"type": "thinking", "content": "The export is the smallest. A test first."},
    {"type": "tool_use", "detail": {"id": "2", "name": "Write", "input": {"file_path": "tests/test_export.py"}}},
    {"type": "tool_result", "content": "permission denied", "detail": {"id": "2", "is_error": True}},
)
NOON = 1_767_268_800.0  # 2026-01-01 12:00:00 UTC


class Stage:
    """A state folder with agents. client: given when a fleetd should tell what happens to its subscribers."""

    def __init__(self, folder: Path, client: Client | None = None) -> None:
        self.store = AgentStore(folder)
        self.client = client
        self.run = 0

    def close(self) -> None:
        self.store.close()

    def declare(self, *definitions: Mapping[str, Any]) -> None:
        """Write definitions straight into the store, as an earlier fleetd left them."""
        self.store.put_agents([(agent_definition(item), "apply") for item in definitions])

    def begin_run(self, agent: str = "builder") -> None:
        self.run = self.store.begin_run(agent, 1, workspace={"kind": "worktree", "path": "/srv/worktrees/builder-1"})
        self.tell(agent, "run", self.store.run(self.run))

    def begin(self, agent: str = "builder", step: str = "build", item: str = "") -> dict[str, Any]:
        """Begin an iteration."""
        row = self.store.begin_iteration(self.run, agent, step, 1, "token", item=item)
        self.tell(agent, "iteration", row)
        return row

    def end(self, row: Mapping[str, Any], state: str = "succeeded", **facts: Any) -> dict[str, Any]:
        ended = self.store.end_iteration(row["id"], state, **facts)
        self.tell(row["agent"], "iteration", ended)
        return ended

    def say(self, row: Mapping[str, Any], *messages: Mapping[str, Any], lost: bool = False) -> list[dict[str, Any]]:
        """Add messages to an iteration. lost: no event tells of them."""
        rows = self.store.add_messages(row["id"], messages)
        if not lost:
            self.tell(row["agent"], "message", *rows)
        return rows

    def text(self, row: Mapping[str, Any], content: str, **options: Any) -> None:
        self.say(row, {"type": "text", "content": content}, **options)

    def move(self, injection: int, state: str, row: Mapping[str, Any], reason: str = "") -> None:
        """Bring a steering message on its way."""
        moved = self.store.move_injections([injection], state, reason, iteration=row["id"])
        self.tell(row["agent"], "injection", *moved)

    def tell(self, agent: str, kind: str, *rows: Mapping[str, Any]) -> None:
        if self.client is not None and rows:
            self.client.call("runs.report", agent=agent, events=[{**row, "kind": kind} for row in rows])

    def history(self, ended: int = 11) -> dict[str, Any]:
        """A run of the builder with ended iterations and one that runs. Returns that one."""
        self.begin_run()
        for number in range(ended):
            row = self.begin()
            self.say(row, *MESSAGES[:2], {"type": "text", "content": f"Item {number + 1} is done."})
            trouble = {"reason": "timeout", "error": "no output for 600 s"} if number % 5 == 3 else {}
            self.end(
                row,
                "failed" if trouble else "succeeded",
                duration=40.0 + number,
                usage={"input_tokens": 12000 + number * 100, "output_tokens": 800, "cost": 0.02 + number / 1000},
                **trouble,
            )
        row = self.begin()
        self.say(row, {"type": "prompt", "content": BUILD}, *MESSAGES)
        totals = {"iterations": ended, "failed": ended // 5, "cost": 1.42, "tokens": 154000, "seconds": 812}
        self.store.update_run(self.run, totals=totals)
        return row

    def at_noon(self) -> None:
        """Set every time that was recorded to the same moments of one day, for pictures that stay the same."""
        with sqlite3.connect(self.store.path) as connection:
            connection.execute(f"UPDATE agents SET created = {NOON}, updated = {NOON}")
            connection.execute(f"UPDATE revisions SET time = {NOON}")
            connection.execute(f"UPDATE runs SET started = {NOON}, updated = {NOON}")
            connection.execute(f"UPDATE iterations SET started = {NOON} + 60 * number")
            connection.execute("UPDATE iterations SET finished = started + duration WHERE duration IS NOT NULL")
            connection.execute(f"UPDATE messages SET time = {NOON} + 60 * iteration + id % 50")
            connection.execute(f"UPDATE injections SET created = {NOON}, moved = {NOON}")
        connection.close()


class StoreLink:
    """Answers as fleetd does, from a store alone: nothing runs, no event comes by itself."""

    def __init__(self, store: AgentStore, running: Sequence[str] = ()) -> None:
        self.store = store
        self.running = running
        self.calls: list[tuple[str, dict[str, Any]]] = []

    async def call(self, method: str, /, **params: Any) -> Any:
        given = {key: value for key, value in params.items() if value is not None}
        self.calls.append((method, given))
        noun = method.partition(".")[2]
        if noun == "list":
            return {"agents": self._views(given.get("names"))}
        if noun == "inject":
            return {"injection": self.store.inject(given.pop("name"), given.pop("text"), **given)}
        name = given.pop("name")
        return {noun: getattr(self.store, noun)(name, **given)}

    def _views(self, names: Sequence[str] | None) -> list[dict[str, Any]]:
        rows, definitions = self.store.agents(names), self.store.definitions(names)
        for name in names or ():
            if name not in rows:
                raise NotFound(f'agent "{name}": not known')
        runs, steps, queued = self.store.last_runs(), self.store.steps(), self.store.queued()
        return [
            view(row, definitions[name], self._process(name), runs.get(name), steps.get(name, {}), queued.get(name, 0))
            for name, row in rows.items()
        ]

    def _process(self, name: str) -> ProcessFacts:
        return ProcessFacts(f"agents/{name}", "running", 4711, NOON) if name in self.running else ProcessFacts()


def database(folder: Path) -> Path:
    """Where the store of a state folder is."""
    return folder / paths.AGENTS_DATABASE
