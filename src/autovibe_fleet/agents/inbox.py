# SPDX-License-Identifier: GPL-3.0-or-later
"""Steering messages on their way into the run: in the order of their ids, each shown as queued, sent or delivered.

A message is marked as sent before anything could read it, so that after a crash it is given again and says so, rather
than twice in silence. docs/runs.md has the rules.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fleet_core.agent_runs import Prompt
from fleet_core.steering import Message
from fleet_node.agents import AgentStore

Row = dict[str, Any]
_PAGE = 200
_MOST = 200  # messages of one prompt; the rest go into the next
_MOST_TEXT = 200_000  # characters of them
_ATTEMPTS = 50  # earlier attempts whose messages are given again

KILLED = "sent again after the runner was killed"
UNREAD = "sent again: the turn ended before the runner had read it"


class Inbox:
    """The messages of one agent; one turn at a time. told: takes the rows that have moved."""

    def __init__(self, store: AgentStore, agent: str, told: Callable[..., None]) -> None:
        self._store = store
        self._agent = agent
        self._told = told
        self._arrived = asyncio.Event()
        self._iteration = 0
        self._step = ""
        self._given: list[Row] = []  # what the prompt of this turn holds
        self._flying: dict[int, Row] = {}  # written to the runner, not confirmed yet

    def arrived(self) -> None:
        """There may be new messages."""
        self._arrived.set()

    def waiting(self) -> bool:
        """Tell whether any message is queued."""
        return bool(self._store.injections(self._agent, ["queued"], limit=1))

    def recover(self) -> None:
        """Queue again what an earlier process had sent and nobody confirmed."""
        self._requeue(KILLED)

    # For the next prompt

    def take(self, ask: Prompt) -> tuple[tuple[Message, ...], list[Row]]:
        """Return the messages for a prompt, and the rows of those that are new.

        An attempt that repeats an iteration is given that one's messages again.
        """
        again = [
            (row, f"given before, in iteration {number}, which did not succeed") for row, number in self._earlier(ask)
        ]
        new: list[Row] = []
        size = 0
        for row in self._queued("" if ask.messages_only else ask.step):
            size += len(row["text"])
            if new and (len(new) >= _MOST or size > _MOST_TEXT):
                break
            new.append(row)
        found = sorted([*again, *((row, row["reason"]) for row in new)], key=lambda pair: int(pair[0]["id"]))
        return tuple(Message(row["sender"], row["text"], why) for row, why in found), new

    def begin(self, iteration: int, step: str, rows: Sequence[Row]) -> list[Row]:
        """Take up a turn whose prompt holds these messages; returns their rows, sent. In the caller's transaction."""
        self._iteration, self._step, self._flying = iteration, step, {}
        self._given = []
        for row in rows:
            self._given += self._store.move_injections([row["id"]], "sent", row["reason"], iteration)
        return self._given

    def started(self) -> None:
        """The runner of the turn runs: it has the prompt."""
        moved = []
        with self._store.transaction():
            for row in self._given:
                moved += self._store.move_injections([row["id"]], "delivered", row["reason"], self._iteration)
        self._given = []
        self._told("injection", *moved)

    def end(self) -> None:
        """The turn is over: what nobody read is queued again."""
        self._given, self._flying = [], {}
        self._requeue(UNREAD)

    # For a runner that takes messages while it works (fleet_node.runner_process.Inbox)

    async def next(self) -> tuple[int, str]:
        """Wait for the next message of this step."""
        while True:
            for row in self._queued(self._step):
                moved = self._store.move_injections([row["id"]], "sent", row["reason"], self._iteration)
                if moved:
                    self._flying[row["id"]] = moved[0]
                    self._told("injection", *moved)
                    again = f"[{row['reason']}]\n" if row["reason"] else ""
                    return row["id"], f"{again}{row['text']}"
            self._arrived.clear()
            await self._arrived.wait()

    def sent(self, ident: int) -> None:
        """It was written. It counted as sent before."""

    def confirmed(self, ident: int) -> None:
        """The runner has read it."""
        row = self._flying.pop(ident, None)
        if row is not None:
            moved = self._store.move_injections([ident], "delivered", row["reason"], self._iteration)
            self._told("injection", *moved)

    # Reading

    def _queued(self, step: str) -> Iterator[Row]:
        """Yield queued messages, oldest first; with a step only those for it, or for whichever comes."""
        after = 0
        while True:
            rows = self._store.injections(self._agent, ["queued"], after, _PAGE)
            for row in rows:
                if not step or row["step"] in ("", step):
                    yield row
            if len(rows) < _PAGE:
                return
            after = rows[-1]["id"]

    def _earlier(self, ask: Prompt) -> list[tuple[Row, int]]:
        """Return the messages that earlier attempts at the prompt had, with the number of the iteration."""
        numbers: dict[int, int] = {}
        ident = ask.attempt_of if ask.attempt_state != "succeeded" else 0
        while ident and len(numbers) < _ATTEMPTS:
            row = self._store.iteration(ident)
            if row["state"] == "succeeded":
                break
            numbers[ident] = row["number"]
            ident = row["attempt_of"] or 0
        rows = self._store.delivered_in(self._agent, list(numbers)) if numbers else []
        return [(row, numbers[row["delivered_in"]]) for row in rows]

    def _requeue(self, reason: str) -> None:
        moved = []
        with self._store.transaction():
            while True:
                rows = self._store.injections(self._agent, ["sent"], 0, _PAGE)
                if not rows:
                    break
                moved += self._store.move_injections([row["id"] for row in rows], "queued", reason)
        self._told("injection", *moved)
