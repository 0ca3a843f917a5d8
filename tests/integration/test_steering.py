# SPDX-License-Identifier: GPL-3.0-or-later
"""Messages for agents that work: every one is delivered once, in the order of its arrival; none is dropped."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.fleetd import Fleet, alive, running, wait_for
from tests.integration.working_agents import STEERABLE, Agent, python

from fleet_core.errors import FleetError
from fleet_node.client import Client

MESSAGES = 250  # of each of two steerers
QUOTED = re.compile(r"^\[Message \d+(?: from [^\]]*)?\]\n(.*)$", re.MULTILINE)
JSON_STDIN = {"config": {"stdin": "json"}}


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with tempfile.TemporaryDirectory(prefix="fleet-") as folder, running(Path(folder)) as fleet:
        yield fleet


@pytest.fixture
def agent(fleet: Fleet, request: pytest.FixtureRequest) -> Iterator[Agent]:
    agent = Agent(fleet, re.sub(r"\W+", "-", request.node.name.removeprefix("test_"))[:60].strip("-"))
    yield agent
    with contextlib.suppress(FleetError):
        agent.call("stop", timeout=20)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "steerable.py"
    path.write_text(STEERABLE)
    return path


def read(truth: Path) -> list[list[str]]:
    """What the program has read: [iteration number, prompt or injected, text]."""
    return [json.loads(line) for line in truth.read_text().splitlines()] if truth.exists() else []


def given(truth: Path) -> list[str]:
    """The messages that the program has been given, in the order in which it read them."""
    found = []
    for _iteration, kind, text in read(truth):
        found += [text] if kind == "injected" else QUOTED.findall(text)
    return found


class Steerers:
    """Some at once, each on a connection of its own."""

    def __init__(self, agent: Agent, names: str, count: int, pause: float = 0.0) -> None:
        self.rows: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        self._threads = [threading.Thread(target=self._steer, args=(agent, name, count, pause)) for name in names]
        for thread in self._threads:
            thread.start()

    def _steer(self, agent: Agent, name: str, count: int, pause: float) -> None:
        with Client(agent.fleet.folder, timeout=60) as client:
            for number in range(count):
                text, row, failed = f"{name}{number:03}", None, False
                while row is None:
                    with contextlib.suppress(FleetError):  # killed, perhaps when it had recorded it
                        if failed:
                            row = self._recorded(client, agent.name, text)
                        if row is None:
                            failed = True
                            row = client.call("agents.inject", name=agent.name, text=text, sender=name)["injection"]
                            break
                    time.sleep(0.05)
                self.rows[name].append(row)
                time.sleep(pause)

    @staticmethod
    def _recorded(client: Client, agent: str, text: str) -> dict[str, Any] | None:
        after = 0
        while rows := client.call("agents.injections", name=agent, after=after)["injections"]:
            after = rows[-1]["id"]
            for row in rows:
                if row["text"] == text:
                    return dict(row)
        return None

    def join(self) -> list[str]:
        """Wait for all, and return their messages in the order of their ids."""
        for thread in self._threads:
            thread.join(120)
        rows = sorted((row for rows in self.rows.values() for row in rows), key=lambda row: int(row["id"]))
        return [row["text"] for row in rows]


def check_delivered(agent: Agent, texts: list[str]) -> None:
    rows = agent.injections()
    assert [row["text"] for row in rows] == texts
    assert {row["state"] for row in rows} == {"delivered"}
    into = [row["delivered_in"] for row in rows]
    assert into == sorted(into)
    numbers = {row["id"] for row in agent.iterations()}
    assert set(into) <= numbers


@pytest.mark.parametrize("in_turn", [True, False], ids=["in-turn", "next-turn"])
def test_two_steerers_inject_five_hundred_messages_into_one_agent(
    agent: Agent, program: Path, tmp_path: Path, in_turn: bool
) -> None:
    truth = tmp_path / "truth"
    if in_turn:
        agent.run(python(program, str(truth), "2.0"), options=JSON_STDIN, pipeline=[{"loop": "work"}])
    else:
        text = (
            "import json, os, sys, time; text = sys.stdin.read();"
            f" open({str(truth)!r}, 'a').write(json.dumps([os.environ['FLEET_ITERATION_NUMBER'], 'prompt', text])"
            " + chr(10)); time.sleep(0.2)"
        )
        path = tmp_path / "plain.py"
        path.write_text(text)
        agent.run(python(path), pipeline=[{"loop": "work"}])
    wait_for("it works", lambda: read(truth))
    texts = Steerers(agent, "ab", MESSAGES).join()
    assert len(texts) == 2 * MESSAGES
    wait_for("all are given", lambda: len(given(truth)) >= len(texts), 60)
    agent.call("pause")
    agent.until("paused")
    assert given(truth) == texts
    check_delivered(agent, texts)
    if in_turn:
        assert len([row for row in read(truth) if row[1] == "injected"]) > MESSAGES
    said = [row["content"] for row in agent.messages("user")]
    assert [text for text in said if text in set(texts)] == texts


def test_a_message_is_seen_inside_the_turn(agent: Agent, program: Path, tmp_path: Path) -> None:
    truth = tmp_path / "truth"
    agent.run(python(program, str(truth), "60"), options=JSON_STDIN)
    wait_for("it works", lambda: read(truth))
    row = agent.inject("use tabs", sender="ann", iteration=agent.iterations()[0]["id"])
    assert row["state"] == "queued"
    wait_for("it is read", lambda: ["1", "injected", "use tabs"] in read(truth))
    agent.inject("that is enough")
    agent.end("completed")
    row = agent.injections()[0]
    assert (row["state"], row["delivered_in"], row["reason"]) == ("delivered", agent.iterations()[0]["id"], "")
    assert len(agent.iterations()) == 1


def test_a_message_at_the_end_gets_another_turn_in_the_same_session(agent: Agent, tmp_path: Path) -> None:
    path = tmp_path / "plain.py"
    path.write_text(
        "import json, os, sys, time\n"
        "text = sys.stdin.read()\n"
        "print(json.dumps({'type': 'session', 'session': os.environ.get('FLEET_SESSION') or 'first'}), flush=True)\n"
        "time.sleep(0.5)\n"
        "print(json.dumps({'type': 'result', 'text': text}))\n"
    )
    agent.run(python(path))
    wait_for("it works", lambda: agent.messages("session"))
    agent.inject("and sweep the floor", sender="ann")
    run = agent.end("completed")
    first, second = agent.iterations()
    assert second["session"] == first["session"] == "first"
    assert second["result"] == (
        "[Steering: message. Follow what is said here.]\n\n[Message 1 from ann]\nand sweep the floor\n\n"
        "[End of the steering messages]"
    )
    assert run["totals"]["iterations"] == 2
    assert [(row["state"], row["delivered_in"]) for row in agent.injections()] == [("delivered", second["id"])]


def test_a_last_turn_that_is_killed_is_taken_again(agent: Agent, tmp_path: Path) -> None:
    path = tmp_path / "plain.py"
    path.write_text(
        "import os, sys, time\n"
        "print(sys.stdin.read(), flush=True)\n"
        "time.sleep({'1': 1, '2': 60}.get(os.environ['FLEET_ITERATION_NUMBER'], 0))\n"
    )
    agent.run(python(path))
    wait_for("it works", lambda: agent.messages("text"))
    agent.inject("and sweep the floor")
    wait_for("the last turn", lambda: len(agent.iterations()) == 2 and agent.iterations()[1]["pid"])
    wait_for("it has it", lambda: agent.injections()[0]["state"] == "delivered")
    os.kill(agent.view()["pid"], signal.SIGKILL)
    agent.end("completed")
    _first, second, third = agent.iterations()
    assert (second["state"], third["attempt_of"]) == ("interrupted", second["id"])
    assert "(given before, in iteration 2, which did not succeed)]\nand sweep the floor" in third["result"]


def test_messages_that_come_while_a_run_ends_are_never_lost(agent: Agent, tmp_path: Path) -> None:
    """Each run lasts for a moment only; what comes too late for one waits for the next."""
    truth = tmp_path / "truth"
    path = tmp_path / "plain.py"
    path.write_text(
        f"import json, sys; open({str(truth)!r}, 'a').write(json.dumps(['0', 'prompt', sys.stdin.read()]) + chr(10))"
    )
    agent.run(python(path))
    steerers = Steerers(agent, "ab", 40, pause=0.02)
    for _round in range(6):
        agent.end("completed")
        agent.call("start", again=True)
    texts = steerers.join()
    agent.end("completed")
    if agent.view()["queued"]:
        agent.call("start", again=True)
        agent.end("completed")
    assert given(truth) == texts
    check_delivered(agent, texts)


def test_a_message_for_a_stopped_agent_waits_until_it_runs(agent: Agent) -> None:
    agent.run("cat", state="present")
    agent.inject("first")
    agent.inject("second")
    assert [row["state"] for row in agent.injections()] == ["queued", "queued"]
    assert agent.view()["queued"] == 2
    agent.call("start")
    agent.end("completed")
    assert QUOTED.findall(agent.iterations()[0]["result"]) == ["first", "second"]


def test_a_message_for_a_step_waits_for_it(agent: Agent) -> None:
    agent.run(
        "cat",
        state="present",
        methods={"plan": "Plan.", "build": "Build."},
        pipeline=[{"call": "plan"}, {"call": "build"}],
    )
    agent.inject("for the build", step="build")
    agent.inject("for anybody")
    agent.call("start")
    agent.end("completed")
    plan, build = agent.iterations()
    assert QUOTED.findall(plan["result"]) == ["for anybody"]
    assert QUOTED.findall(build["result"])[-1:] == ["for the build"]
    assert [row["delivered_in"] for row in agent.injections()] == [build["id"], plan["id"]]


def test_an_iteration_that_has_ended_refuses_and_says_why(agent: Agent) -> None:
    agent.run("cat")
    agent.end("completed")
    row = agent.inject("too late", iteration=agent.iterations()[0]["id"])
    assert (row["state"], row["reason"]) == ("refused", "iteration 1 has ended: succeeded")


def test_a_message_that_a_program_never_confirms_is_sent_again_and_says_so(agent: Agent, tmp_path: Path) -> None:
    path = tmp_path / "deaf.py"
    path.write_text(
        "import json, os, sys, time\n"
        "print(json.dumps({'type': 'text', 'text': sys.stdin.readline()}), flush=True)\n"
        "time.sleep(1)\n"
        "print(json.dumps({'type': 'result', 'text': 'done'}), flush=True)\n"
    )
    agent.run(python(path), options=JSON_STDIN, pipeline=[{"loop": "work"}])
    wait_for("it works", lambda: agent.messages("text"))
    agent.inject("hear me")
    wait_for("it is sent", lambda: agent.injections()[0]["state"] == "sent")
    wait_for("it is given", lambda: agent.injections()[0]["state"] == "delivered")
    (row,) = agent.injections()
    assert row["reason"] == "sent again: the turn ended before the runner had read it"
    assert "(sent again: the turn ended" in agent.messages("prompt", iteration=row["delivered_in"])[0]["content"]


def test_messages_survive_a_kill_and_say_so_when_they_come_twice(agent: Agent, program: Path, tmp_path: Path) -> None:
    truth = tmp_path / "truth"
    agent.run(python(program, str(truth), "1.0"), options=JSON_STDIN, pipeline=[{"loop": "work"}])
    wait_for("it works", lambda: read(truth))
    agent.inject("before")
    wait_for("it is read", lambda: agent.injections()[0]["state"] == "delivered")
    (iteration,) = agent.iterations()
    os.kill(agent.view()["pid"], signal.SIGKILL)
    for number in range(5):
        agent.inject(f"after{number}")
    wait_for("it goes on", lambda: len(agent.iterations()) > 1)
    wait_for("all are given", lambda: all(row["state"] == "delivered" for row in agent.injections()))
    assert not alive(iteration["pid"])
    second = agent.iterations()[1]
    assert second["attempt_of"] == iteration["id"]
    prompt = agent.messages("prompt", iteration=second["id"])[0]["content"]
    assert "(given before, in iteration 1, which did not succeed)]\nbefore" in prompt
    after = [f"after{number}" for number in range(5)]
    wait_for("all are read", lambda: len([text for text in given(truth) if text in after]) >= 5)
    assert [text for text in given(truth) if text in after] == after


def test_messages_are_taken_while_fleetd_is_away(agent: Agent, program: Path, tmp_path: Path) -> None:
    """What was recorded before fleetd was killed is found in the store, with nobody there to tell of it."""
    truth = tmp_path / "truth"
    agent.run(python(program, str(truth), "60"), options=JSON_STDIN)
    wait_for("it works", lambda: read(truth))
    agent.fleet.end(signal.SIGKILL)
    store = agent.store()
    store.inject(agent.name, "from the store")
    wait_for("it is read", lambda: ["1", "injected", "from the store"] in read(truth))
    store.close()
    agent.fleet.up()
    agent.inject("from fleetd")
    wait_for("it is read", lambda: ["1", "injected", "from fleetd"] in read(truth))


def test_subscribers_hear_every_message_though_fleetd_is_killed(agent: Agent, tmp_path: Path) -> None:
    path = tmp_path / "talk.py"
    path.write_text(
        "import sys, time\n"
        "for number in range(int(sys.argv[1])):\n"
        "    print('line', number, flush=True)\n"
        "    time.sleep(0.002)\n"
    )
    agent.run(python(path, "1500"), state="present")
    heard: dict[int, str] = {}
    over = threading.Event()

    def listen() -> None:
        while not over.is_set():
            with contextlib.suppress(FleetError, OSError), Client(agent.fleet.folder, timeout=60) as client:
                events = client.stream("events.subscribe", kinds=["message", "agent"], agents=[agent.name])
                last = max(heard, default=0)
                with Client(agent.fleet.folder) as other:
                    for row in other.call("agents.messages", name=agent.name, after=last, limit=1000)["messages"]:
                        heard.setdefault(row["id"], row["content"])
                for event in events:
                    if event["kind"] == "message":
                        heard.setdefault(event["id"], event["content"])
                    elif over.is_set():
                        return
            time.sleep(0.01)

    listener = threading.Thread(target=listen)
    listener.start()
    try:
        agent.call("start")
        for _round in range(3):
            time.sleep(0.5)
            agent.fleet.again(signal.SIGKILL)
        agent.end("completed", timeout=60)
        kept = {row["id"]: row["content"] for row in agent.messages()}
        with contextlib.suppress(AssertionError):
            wait_for("all are heard", lambda: heard == kept, 5)
        assert len(kept) > 1500
        assert heard == kept
    finally:
        over.set()
        agent.fleet.call("agents.apply", items=[{"name": agent.name}], state="stopped")
        agent.call("start", again=True)
        listener.join(20)
    assert not listener.is_alive()
