# SPDX-License-Identifier: GPL-3.0-or-later
"""Agents of a test's own under a real fleetd, with the runner `command`: small programs instead of a model."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from tests.integration.fleetd import Fleet, wait_for

from fleet_node.agents import AgentStore

FAST = {"delay": 0.05, "max_delay": 0.2, "jitter": 0}

# Speaks the runner's JSON lines on both sides: reads the prompt, works for a while, and reads what is injected at the
# boundaries between its pieces of work. Everything that it reads goes into a file, a line a message.
STEERABLE = """
import json, os, select, sys, time

truth = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
work = float(sys.argv[2])
iteration = os.environ["FLEET_ITERATION_NUMBER"]

def note(kind, text):
    os.write(truth, (json.dumps([iteration, kind, text]) + "\\n").encode())

def tell(**data):
    sys.stdout.write(json.dumps(data) + "\\n")
    sys.stdout.flush()

buffer = b""
def lines(wait):
    global buffer
    while select.select([0], [], [], wait)[0]:
        chunk = os.read(0, 65536)
        if not chunk:
            return
        buffer += chunk
        while b"\\n" in buffer:
            line, buffer = buffer.split(b"\\n", 1)
            yield json.loads(line)
        wait = 0

tell(type="session", session=os.environ.get("FLEET_SESSION") or "s" + iteration)
first = next(lines(60))
note("prompt", first["text"])
end = time.monotonic() + work
while time.monotonic() < end:
    for data in lines(0.01):
        note("injected", data["text"])
        tell(type="user", injection=data["injection"], text=data["text"])
        tell(type="text", text="read " + data["text"])
        if data["text"] == "that is enough":
            end = 0
tell(type="result", text="done " + iteration)
"""


def python(program: Path, *words: str) -> str:
    """The command of an agent that runs a Python program."""
    return shlex.join([sys.executable, str(program), *words])


class Agent:
    """One agent: declared, run, looked at."""

    def __init__(self, fleet: Fleet, name: str) -> None:
        self.fleet = fleet
        self.name = name
        self.folder = fleet.folder / "agents" / name

    def run(self, command: str, state: str = "running", **fields: Any) -> Agent:
        """Declare it with one method, which its pipeline calls, and start it."""
        definition = {
            "name": self.name,
            "runner": "command",
            "command": command,
            "methods": {"work": "Do the work."},
            "backoff": FAST,
            **fields,
        }
        self.fleet.call("agents.apply", items=[definition], state=state)
        return self

    def call(self, method: str, **params: Any) -> Any:
        """Call a method of fleetd that takes names."""
        return self.fleet.call(f"agents.{method}", names=[self.name], **params)

    def view(self) -> dict[str, Any]:
        (found,) = self.fleet.call("agents.list", names=[self.name])["agents"]
        return dict(found)

    def until(self, *states: str, timeout: float = 30.0) -> dict[str, Any]:
        """Wait until it is in one of the states."""
        last: dict[str, Any] = {}

        def reached() -> bool:
            last.update(self.view())
            return last["state"] in states

        try:
            wait_for("", reached, timeout)
        except AssertionError:
            log = "\n".join(self.fleet.printed(f"agents/{self.name}", lines=50))
            raise AssertionError(f"not {' or '.join(states)} but {last}\n{log}") from None
        return last

    def end(self, *states: str, timeout: float = 30.0) -> dict[str, Any]:
        """Wait until its run has ended, in one of the states if there are some, and return the run."""
        view = self.until("completed", "failed", "limited", "stopped", timeout=timeout)
        assert not states or view["state"] in states, view["run"]["reason"]
        return dict(view["run"])

    def iterations(self, **params: Any) -> list[dict[str, Any]]:
        """All iterations, oldest first."""
        return list(self.fleet.call("agents.iterations", name=self.name, limit=1000, **params)["iterations"])[::-1]

    def messages(self, *kinds: str, **params: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while rows := self.fleet.call(
            "agents.messages", name=self.name, after=found[-1]["id"] if found else 0, limit=1000, **params
        )["messages"]:
            found += rows
        return [row for row in found if not kinds or row["type"] in kinds]

    def inject(self, text: str, **params: Any) -> dict[str, Any]:
        return dict(self.fleet.call("agents.inject", name=self.name, text=text, **params)["injection"])

    def injections(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while rows := self.fleet.call("agents.injections", name=self.name, after=found[-1]["id"] if found else 0)[
            "injections"
        ]:
            found += rows
        return found

    def recorded(self, run: int) -> list[dict[str, Any]]:
        """The lines of the run's file. Of a line that a kill has cut off, what it said comes again in the next."""
        found = []
        for line in (self.folder / f"run-{run}.jsonl").read_text().split("\n"):
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return found

    def store(self) -> AgentStore:
        return AgentStore(self.fleet.folder)
