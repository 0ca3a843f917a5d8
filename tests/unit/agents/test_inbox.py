# SPDX-License-Identifier: GPL-3.0-or-later
"""The way of a steering message: queued, sent, delivered; in order, and again with a reason when it must be."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autovibe_fleet.agents.inbox import KILLED, UNREAD, Inbox
from fleet_core.agent_runs import Prompt
from fleet_core.agents import agent_definition
from fleet_node.agents import AgentStore

STEPS = {"methods": {"m": "x", "n": "y"}, "pipeline": [{"call": "m"}, {"call": "n"}]}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[AgentStore]:
    store = AgentStore(tmp_path / "state")
    item = {"name": "a", "runner": "command", "command": "cat", **STEPS}
    store.put_agents([(agent_definition(item), "apply")])
    yield store
    store.close()


class Turns:
    """Iterations of a run, and what the inbox told."""

    def __init__(self, store: AgentStore) -> None:
        self.store = store
        self.told: list[tuple[int, str]] = []
        self.inbox = Inbox(store, "a", self._hear)
        self.run = store.begin_run("a", 1)

    def _hear(self, _kind: str, *rows: dict[str, Any]) -> None:
        self.told += [(row["id"], row["state"]) for row in rows]

    def begin(self, ask: Prompt) -> tuple[int, list[str]]:
        """Begin a turn; returns its iteration and the texts that its prompt holds."""
        messages, new = self.inbox.take(ask)
        ident = int(
            self.store.begin_iteration(self.run, "a", ask.step, 1, "t", attempt_of=ask.attempt_of or None)["id"]
        )
        self.inbox.begin(ident, ask.step, new)
        return ident, [f"{message.text}|{message.again}" if message.again else message.text for message in messages]

    def states(self) -> list[tuple[str, str, int | None]]:
        return [(row["state"], row["reason"], row["delivered_in"]) for row in self.store.injections("a")]


@pytest.fixture
def turns(store: AgentStore) -> Turns:
    return Turns(store)


def test_a_message_is_sent_with_the_prompt_and_delivered_when_the_runner_has_started(turns: Turns) -> None:
    turns.store.inject("a", "one")
    ident, texts = turns.begin(Prompt("m"))
    assert texts == ["one"]
    assert turns.states() == [("sent", "", ident)]
    turns.inbox.started()
    assert turns.states() == [("delivered", "", ident)]
    turns.inbox.end()
    assert turns.states() == [("delivered", "", ident)]


def test_a_message_whose_runner_never_started_is_queued_again(turns: Turns) -> None:
    turns.store.inject("a", "one")
    turns.begin(Prompt("m"))
    turns.inbox.end()
    assert turns.states()[0][:2] == ("queued", UNREAD)
    assert turns.begin(Prompt("m"))[1] == [f"one|{UNREAD}"]


def test_what_a_killed_process_had_sent_is_sent_again_and_says_so(turns: Turns) -> None:
    turns.store.inject("a", "one")
    turns.begin(Prompt("m"))
    next_one = Turns.__new__(Turns)
    next_one.__dict__.update(turns.__dict__, inbox=Inbox(turns.store, "a", turns._hear))
    next_one.inbox.recover()
    ident, texts = next_one.begin(Prompt("m"))
    next_one.inbox.started()
    assert texts == [f"one|{KILLED}"]
    assert turns.states() == [("delivered", KILLED, ident)]


def test_only_messages_for_this_step_or_for_any_are_taken(turns: Turns) -> None:
    for text, step in (("one", ""), ("two", "n"), ("three", "m")):
        turns.store.inject("a", text, step)
    assert turns.begin(Prompt("m"))[1] == ["one", "three"]
    turns.inbox.started()
    assert turns.begin(Prompt("m", messages_only=True))[1] == ["two"]


def test_an_attempt_is_given_the_messages_of_those_before_it(turns: Turns) -> None:
    turns.store.inject("a", "one")
    first, _texts = turns.begin(Prompt("m"))
    turns.inbox.started()
    turns.store.end_iteration(first, "failed")
    turns.store.inject("a", "two")
    second, texts = turns.begin(Prompt("m", attempt_of=first, attempt_state="failed"))
    assert texts == ["one|given before, in iteration 1, which did not succeed", "two"]
    turns.inbox.started()
    turns.store.end_iteration(second, "interrupted")
    third, texts = turns.begin(Prompt("m", attempt_of=second, attempt_state="interrupted"))
    assert [text.partition("|")[0] for text in texts] == ["one", "two"]
    turns.store.end_iteration(third, "succeeded")
    assert turns.begin(Prompt("m", attempt_of=third, attempt_state="succeeded"))[1] == []


def test_a_prompt_holds_only_so_many_messages_and_the_rest_keeps_its_order(turns: Turns) -> None:
    for number in range(450):
        turns.store.inject("a", f"{number:03}")
    given: list[str] = []
    for _turn in range(3):
        given += turns.begin(Prompt("m"))[1]
        turns.inbox.started()
    assert given == [f"{number:03}" for number in range(450)]


def test_a_long_message_goes_alone_but_it_goes(turns: Turns) -> None:
    turns.store.inject("a", "x" * 300_000)
    turns.store.inject("a", "short")
    assert len(turns.begin(Prompt("m"))[1]) == 1


def test_messages_that_arrive_during_a_turn_are_given_one_by_one(turns: Turns) -> None:
    async def run() -> list[tuple[int, str]]:
        turns.begin(Prompt("m"))
        waiting = asyncio.ensure_future(turns.inbox.next())
        await asyncio.sleep(0)
        assert not waiting.done()
        turns.store.inject("a", "one")
        turns.store.inject("a", "for another", "n")
        turns.store.inject("a", "two")
        turns.inbox.arrived()
        found = [await waiting, await turns.inbox.next()]
        turns.inbox.confirmed(found[0][0])
        turns.inbox.confirmed(99)
        return found

    assert [text for _ident, text in asyncio.run(run())] == ["one", "two"]
    assert [state for state, _reason, _into in turns.states()] == ["delivered", "queued", "sent"]
    turns.inbox.end()
    assert [state for state, _reason, _into in turns.states()] == ["delivered", "queued", "queued"]
    assert turns.told == [(1, "sent"), (3, "sent"), (1, "delivered"), (3, "queued")]


def test_a_cancelled_wait_takes_nothing(turns: Turns) -> None:
    async def run() -> None:
        turns.begin(Prompt("m"))
        waiting = asyncio.ensure_future(turns.inbox.next())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

    asyncio.run(run())
    turns.store.inject("a", "one")
    assert turns.states() == [("queued", "", None)]
