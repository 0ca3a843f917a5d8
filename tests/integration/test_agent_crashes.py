# SPDX-License-Identifier: GPL-3.0-or-later
"""Runners, run processes and fleetd are killed at random: no iteration is lost, and none is run twice in silence."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.fleetd import Fleet, alive, running, wait_for
from tests.integration.test_steering import Steerers
from tests.integration.working_agents import STEERABLE, Agent, python

from fleet_core.errors import FleetError
from fleet_node import procfs

ITERATIONS = int(os.environ.get("FLEET_CRASH_ITERATIONS", "200"))
SEED = int(os.environ.get("FLEET_CRASH_SEED", str(random.randrange(10**6))))
MARKED = re.compile(r"^\[Message \d+ from \w+(?: \(([^\]]*)\))?\]\n(.*)$", re.MULTILINE)
STATES = ("succeeded", "failed", "interrupted")

# Notes that it begins and that it ends, and whether another one ran meanwhile.
WORKER = """
import fcntl, os, sys, time

def note(word):
    os.write(truth, f"{os.environ['FLEET_ITERATION_NUMBER']} {word}\\n".encode())

truth = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
lock = os.open(sys.argv[1] + ".lock", os.O_RDWR | os.O_CREAT, 0o600)
text = sys.stdin.read()
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    note("overlap")
note("begin")
print("working", flush=True)
time.sleep(0.1)
print("worked", flush=True)
note("end")
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="fleet-") as name:
        yield Path(name)


@pytest.fixture
def fleet(folder: Path) -> Iterator[Fleet]:
    with running(folder) as fleet:
        yield fleet


def heard(truth: Path) -> list[tuple[str, str]]:
    """The messages that STEERABLE has read, each with why it came again."""
    found = []
    for _iteration, kind, text in map(json.loads, truth.read_text().splitlines()):
        if kind == "injected":
            again, _end, rest = text[1:].partition("]\n") if text.startswith("[") else ("", "", text)
            found.append((rest, again))
        else:
            found += [(message, again) for again, message in MARKED.findall(text)]
    return found


class Crashes:
    """An agent that loops, and what is killed around it."""

    def __init__(self, agent: Agent, chance: random.Random) -> None:
        self.agent = agent
        self.fleet = agent.fleet
        self.chance = chance
        self.counts: Counter[str] = Counter()
        self.store = agent.store()

    def once(self) -> None:
        """Kill one thing, or two at once, after a moment."""
        time.sleep(self.chance.random() * 0.4)
        what = self.chance.choice(
            [self.runner, self.runner, self.carrier, self.carrier, self.fleetd, self.fleetd_and_carrier, self.all_three]
        )
        self.counts[what.__name__] += 1
        what()

    def runner(self) -> None:
        rows = self.store.iterations(self.agent.name, limit=1)
        if rows and rows[0]["state"] == "running" and rows[0]["pid"]:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(rows[0]["pid"], signal.SIGKILL)

    def carrier(self) -> None:
        """Kill the run process. fleetd would wait longer and longer before it starts it again: it is asked to."""
        self._kill_carrier()
        if self.chance.random() < 0.8:
            with contextlib.suppress(FleetError):
                self.agent.call("start", wait=False)

    def _kill_carrier(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            pid = int((self.agent.folder / "lock").read_text())
            if b"autovibe_fleet.agents.run" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)

    def fleetd(self) -> None:
        self.fleet.again(signal.SIGKILL)

    def fleetd_and_carrier(self) -> None:
        """What the runner does goes on alone until the next fleetd has started the next run process."""
        self.fleet.end(signal.SIGKILL)
        self._kill_carrier()
        self.fleet.up()

    def all_three(self) -> None:
        self.fleet.end(signal.SIGKILL)
        self._kill_carrier()
        self.runner()
        self.fleet.up()

    def go_on(self) -> dict[str, Any]:
        """Let the run come to its end: start the process again wherever fleetd has given up on it, or waits."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            view = self.agent.view()
            if view["run"]["finished"] is not None:
                return dict(view["run"])
            if not view["pid"]:
                with contextlib.suppress(FleetError):
                    self.agent.call("start", wait=False)
            time.sleep(0.2)
        raise AssertionError(f"seed {SEED}: no end, but {self.agent.view()}")


def check(agent: Agent, run: dict[str, Any], truth: Path, wanted: int) -> Counter[str]:
    """Compare what the store says with what the programs have noted."""
    rows = agent.iterations()
    where = f"seed {SEED}"
    assert run["state"] == "completed", where
    assert [row["number"] for row in rows] == list(range(1, len(rows) + 1)), where
    ids = [row["id"] for row in rows]
    assert ids == sorted(set(ids)), where
    states = Counter(row["state"] for row in rows)
    assert states["succeeded"] == wanted, f"{where}: {states}"
    assert sum(states[state] for state in STATES) == len(rows) == run["totals"]["iterations"], where
    assert (run["totals"]["failed"], run["totals"]["interrupted"]) == (states["failed"], states["interrupted"]), where
    for before, row in zip([None, *rows], rows, strict=False):
        repeats = before is not None and before["state"] != "succeeded"
        assert row["attempt_of"] == (before["id"] if repeats and before else None), f"{where}: {before} {row}"
        assert before is None or row["started"] >= before["started"], where
    noted = Counter(truth.read_text().splitlines())
    for row in rows:
        begun, ended = noted.pop(f"{row['number']} begin", 0), noted.pop(f"{row['number']} end", 0)
        if row["state"] == "succeeded":
            assert (begun, ended) == (1, 1), f"{where}: iteration {row['number']} ran {begun} times"
        else:
            assert ended <= begun <= 1, f"{where}: iteration {row['number']} ran {begun} times"
    assert not noted, f"{where}: unknown or overlapping: {noted}"
    lines = agent.recorded(run["id"])
    ends = [line["number"] for line in lines if line["kind"] == "iteration" and line["state"] != "running"]
    assert ends == [row["number"] for row in rows], where
    assert [line["id"] for line in lines if line["kind"] == "message"] == [row["id"] for row in agent.messages()], where
    return states


@pytest.mark.timeout(400)
def test_no_iteration_is_lost_and_none_is_run_twice_in_silence(fleet: Fleet, tmp_path: Path) -> None:
    print(f"seed {SEED}")
    agent, truth, program = Agent(fleet, "worker"), tmp_path / "truth", tmp_path / "worker.py"
    program.write_text(WORKER)
    agent.run(
        python(program, str(truth)),
        pipeline=[{"loop": "work", "times": ITERATIONS}],
        circuit_breaker={"failures": 0},
        backoff={"delay": 0.02, "max_delay": 0.02},
    )
    crashes = Crashes(agent, random.Random(SEED))
    while (found := crashes.store.runs("worker", 1)[0])["finished"] is None:
        if found["totals"].get("iterations", 0) > ITERATIONS * 3:
            raise AssertionError(f"seed {SEED}: too many iterations: {found}")
        crashes.once()
        if sum(crashes.counts.values()) >= ITERATIONS * 0.4:
            break
    run = crashes.go_on()
    states = check(agent, run, truth, ITERATIONS)
    assert sum(crashes.counts.values()) > 10
    wait_for("nothing of an iteration runs", lambda: not fleet.marked("FLEET_ITERATION="))
    assert list((agent.folder / "tmp").iterdir()) == []
    print(f"seed {SEED}: {dict(crashes.counts)}, {dict(states)}")
    crashes.store.close()


@pytest.mark.timeout(300)
def test_no_message_is_lost_and_none_comes_twice_in_silence(fleet: Fleet, tmp_path: Path) -> None:
    print(f"seed {SEED}")
    agent, truth, program = Agent(fleet, "worker"), tmp_path / "truth", tmp_path / "steerable.py"
    program.write_text(STEERABLE)
    agent.run(
        python(program, str(truth), "0.5"),
        options={"config": {"stdin": "json"}},
        pipeline=[{"loop": "work"}],
        circuit_breaker={"failures": 0},
        backoff={"delay": 0.02, "max_delay": 0.02},
    )
    wait_for("it works", truth.exists)
    crashes = Crashes(agent, random.Random(SEED))
    steerers = Steerers(agent, "ab", 60, pause=0.05)
    for _round in range(12):
        crashes.once()
    texts = steerers.join()

    def all_delivered() -> bool:
        if not agent.view()["pid"]:
            with contextlib.suppress(FleetError):
                agent.call("start", wait=False)
        return all(row["state"] == "delivered" for row in agent.injections())

    wait_for("all are delivered", all_delivered, 60)
    assert [row["text"] for row in agent.injections()] == texts
    wait_for("all are read", lambda: {text for text, _again in heard(truth)} >= set(texts), 30)
    agent.call("stop", timeout=20)
    seen: set[str] = set()
    for text, again in heard(truth):
        assert text not in seen or again, f"seed {SEED}: {text} came twice in silence"
        seen.add(text)
    first = list(dict.fromkeys(text for text, _again in heard(truth)))
    assert first == texts, f"seed {SEED}"
    print(f"seed {SEED}: {dict(crashes.counts)}, {len(heard(truth)) - len(texts)} of {len(texts)} messages came again")
    crashes.store.close()


def test_what_a_killed_process_left_running_is_ended_before_the_next_iteration(fleet: Fleet, tmp_path: Path) -> None:
    """Also what has left the group of the runner, or has cleared its environment."""
    agent = Agent(fleet, "worker")
    agent.run(
        "if [ $FLEET_ITERATION_NUMBER = 1 ]; then setsid sleep 1000 & env -i sleep 1001 & sleep 1002; fi; echo done"
    )
    first = wait_for("it works", lambda: agent.iterations() and agent.iterations()[0]["pid"] and agent.iterations()[0])
    wait_for("all sleep", lambda: len(procfs.group_members(first["pid"])) >= 3)
    left = [*procfs.group_members(first["pid"]), *procfs.find_by_environment("FLEET_ITERATION", first["token"])]
    fleet.end(signal.SIGKILL)
    os.kill(int((agent.folder / "lock").read_text()), signal.SIGKILL)
    time.sleep(0.2)
    assert all(alive(pid) for pid in left)
    fleet.up()
    agent.end("completed")
    assert not [pid for pid in left if alive(pid)]
    first, second = agent.iterations()
    assert (first["state"], first["reason"]) == ("interrupted", "killed")
    assert (second["attempt_of"], second["result"]) == (first["id"], "done")


def test_a_killed_runner_is_a_failure_with_backoff_and_no_crash_of_the_run(fleet: Fleet) -> None:
    agent = Agent(fleet, "worker").run(
        "if [ $FLEET_ITERATION_NUMBER = 1 ]; then exec sleep 1000; fi; echo done",
        backoff={"delay": 0.5, "jitter": 0},
    )
    pid = wait_for("it works", lambda: agent.iterations() and agent.iterations()[0]["pid"])
    carrier = agent.view()["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_for("it backs off", lambda: agent.view()["state"] == "waiting")
    assert agent.view()["pid"] == carrier
    agent.end("completed")
    first, second = agent.iterations()
    assert (first["state"], first["error"]) == ("failed", "command: ended by signal 9")
    assert second["attempt_of"] == first["id"]
    assert second["started"] - first["finished"] >= 0.45


def test_the_session_goes_on_after_a_kill(fleet: Fleet, tmp_path: Path) -> None:
    agent, program, truth = Agent(fleet, "worker"), tmp_path / "steerable.py", tmp_path / "truth"
    program.write_text(STEERABLE)
    agent.run(python(program, str(truth), "1"), options={"config": {"stdin": "json"}})
    wait_for("the session is known", lambda: agent.iterations() and agent.iterations()[0]["session"])
    os.kill(agent.view()["pid"], signal.SIGKILL)
    agent.end("completed")
    assert [row["session"] for row in agent.iterations()] == ["s1", "s1"]
    asked = [json.loads(line)[2] for line in truth.read_text().splitlines()]
    assert asked[1] == (
        "[The previous attempt at this was interrupted. Go on where it ended. The task again:]\n\nDo the work."
    )


def test_a_run_that_ends_while_fleetd_is_away_is_not_begun_again(fleet: Fleet) -> None:
    """The next fleetd does not know how the process ended, and starts it again: it must find nothing to do."""
    agent = Agent(fleet, "worker").run("sleep 1; echo done")
    pid = wait_for("it works", lambda: agent.iterations() and agent.iterations()[0]["pid"])
    fleet.end(signal.SIGKILL)
    wait_for("the runner ends", lambda: not alive(pid))
    wait_for("so does the run process", lambda: not fleet.marked("FLEET_PROCESS=agents/"))
    fleet.up()
    time.sleep(1.5)
    run = agent.end("completed")
    assert run["id"] == 1
    assert len(agent.iterations()) == 1
    assert fleet.get("agents/worker")["status"] == "stopped"


def test_a_verification_that_was_cut_off_is_run_again(fleet: Fleet, tmp_path: Path) -> None:
    agent = Agent(fleet, "worker").run(
        "echo done",
        verification={
            "command": f"echo x >> {tmp_path}/runs; if [ $(wc -l < {tmp_path}/runs) = 1 ]; then sleep 1003; fi"
        },
    )
    wait_for("it is verified", (tmp_path / "runs").exists)
    time.sleep(0.1)
    os.kill(agent.view()["pid"], signal.SIGKILL)
    run = agent.end("completed")
    assert len(agent.iterations()) == 1 == run["totals"]["iterations"]
    assert (tmp_path / "runs").read_text() == "x\nx\n"
    assert not fleet.marked("FLEET_ITERATION=")


def test_a_kill_while_it_waits_loses_neither_the_wait_nor_the_count(fleet: Fleet) -> None:
    agent = Agent(fleet, "worker").run(
        "exit 3", backoff={"delay": 1.5, "max_delay": 1.5, "jitter": 0}, circuit_breaker={"failures": 2, "trips": 0}
    )
    agent.until("waiting")
    os.kill(agent.view()["pid"], signal.SIGKILL)
    agent.end("failed")
    first, second = agent.iterations()
    assert second["started"] - first["finished"] >= 1.45
    assert second["attempt_of"] == first["id"]


def test_what_an_iteration_cost_counts_although_its_process_never_came_back(fleet: Fleet) -> None:
    agent = Agent(fleet, "worker").run("cat", "present", pipeline=[{"loop": "work"}], limits={"cost": 0.5})
    with contextlib.closing(agent.store()) as store:
        run = store.begin_run("worker", 1)
        row = store.begin_iteration(run, "worker", "work", 1, "token-of-nobody")
        store.add_messages(row["id"], [{"type": "usage", "detail": {"input_tokens": 10, "cost": 0.7}}])
    agent.call("stop")
    agent.end("stopped")
    agent.call("start", continue_run=True)
    found = agent.end("limited")
    assert (found["id"], found["totals"]["cost"], found["totals"]["tokens"]) == (run, 0.7, 10)
    assert [row["cost"] for row in agent.iterations()] == [0.7]
