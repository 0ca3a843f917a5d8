# SPDX-License-Identifier: GPL-3.0-or-later
"""How late events of agents reach those who watch: 50 subscribers of one fleetd, 20 agents that report to it.

Each agent reports a batch of messages at regular times, as a run process does; every subscriber gets all of them. Late
is the time from the report to the line that a subscriber has read. Half of the subscribers ask for kinds, so that
filters are part of it; one more subscriber never reads, and must not delay the others.
"""

from __future__ import annotations

import argparse
import json
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import measure

from fleet_node import paths
from fleet_node.client import Client, connect

SUBSCRIBERS = 50
AGENTS = 20
BATCH = 5  # messages of one report
EVERY = 0.25  # seconds between the reports of one agent
TEXT = "The tests pass; I commit this and take the next item of the backlog. " * 7
GOAL = 1.0  # seconds, at the 99th percentile


class Subscriber:
    """One connection that reads events, and notes how late each was."""

    def __init__(self, folder: Path, number: int) -> None:
        self.late: list[float] = []
        self._rest = b""
        self.link: socket.socket = connect(paths.socket(folder), 10)
        params = {"kinds": ["message", "run"]} if number % 2 else {}
        request = {"jsonrpc": "2.0", "id": 1, "method": "events.subscribe", "params": params}
        self.link.sendall(json.dumps(request).encode() + b"\n")
        answer = self.link.recv(4096)
        if b"result" not in answer:
            raise RuntimeError(f"events.subscribe: {answer!r}")
        self.link.setblocking(False)

    def read(self) -> None:
        chunk = self.link.recv(1 << 20)
        now = time.monotonic()
        if not chunk:
            raise RuntimeError("fleetd has cut a subscriber off that reads")
        lines = (self._rest + chunk).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            _head, mark, rest = line.partition(b'"sent": ')
            if mark:
                self.late.append(now - float(rest[: rest.index(b",")]))


def report(folder: Path, begin: float, seconds: float) -> None:
    """Report as all the agents do, each at its own times, from one process. It runs as a child."""
    clients = [Client(folder, timeout=30) for _number in range(AGENTS)]
    rounds = int(seconds / EVERY)
    count = 0
    for turn in range(rounds):
        for number, client in enumerate(clients):
            moment = begin + turn * EVERY + number * EVERY / AGENTS
            time.sleep(max(0.0, moment - time.monotonic()))
            events = []
            for _message in range(BATCH):
                count += 1
                # The moment is the first key, so that a reader finds it without parsing.
                row = {"sent": time.monotonic(), "id": count, "iteration": turn, "type": "text", "content": TEXT}
                events.append({**row, "detail": {}, "kind": "message"})
            client.call("runs.report", agent=f"agent-{number}", events=events)


def watch(subscribers: list[Subscriber], expected: int, seconds: float) -> None:
    """Read until every subscriber has all events. Raises TimeoutError."""
    limit = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        for subscriber in subscribers:
            selector.register(subscriber.link, selectors.EVENT_READ, subscriber)
        while any(len(subscriber.late) < expected for subscriber in subscribers):
            if time.monotonic() > limit:
                got = [len(subscriber.late) for subscriber in subscribers]
                raise TimeoutError(f"{expected} events expected, {min(got)} to {max(got)} came in time")
            for key, _events in selector.select(1.0):
                key.data.read()


def main() -> int:
    parser = argparse.ArgumentParser(description="How late events of 20 agents reach 50 subscribers.")
    parser.add_argument(
        "--seconds", type=float, default=5.0 if measure.QUICK else 10.0, help="how long the agents report (default: 10)"
    )
    parser.add_argument("--report", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.report:
        report(Path(options.report[0]), float(options.report[1]), options.seconds)
        return 0
    expected = int(options.seconds / EVERY) * AGENTS * BATCH
    with tempfile.TemporaryDirectory(prefix="fleet-") as name:
        folder = Path(name)
        words = [sys.executable, "-m", "autovibe_fleet.node.daemon", "--state-dir", name, "--driver", "native"]
        fleetd = subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        reporter: subprocess.Popen[bytes] | None = None
        try:
            with Client(folder) as client:
                measure.wait_for(client.answers, 20, "fleetd")
            subscribers = [Subscriber(folder, number) for number in range(SUBSCRIBERS)]
            deaf = Subscriber(folder, 0)
            before = measure.cpu(fleetd.pid)
            begin = time.monotonic() + 1.0
            again = [sys.executable, __file__, f"--seconds={options.seconds}", "--report", name, str(begin)]
            reporter = subprocess.Popen(again)
            watch(subscribers, expected, options.seconds + 60)
            used = measure.cpu(fleetd.pid) - before
            if reporter.wait(60):
                raise RuntimeError(f"the reporting process ended with {reporter.returncode}")
            deaf.link.close()
        finally:
            for process in (reporter, fleetd):
                if process is not None and process.poll() is None:
                    process.terminate()
                    process.wait(20)
    late = sorted(value for subscriber in subscribers for value in subscriber.late)
    cuts = statistics.quantiles(late, n=100)
    print(f"{AGENTS} agents, {expected} events in {options.seconds:g} s, {SUBSCRIBERS} subscribers; {measure.load()}")
    head = ("events delivered", "p50", "p99", "worst", "fleetd's processor time")
    row = [f"{len(late)}", *(f"{value * 1000:.1f} ms" for value in (cuts[49], cuts[98], late[-1])), f"{used:.2f} s"]
    print(measure.table(head, [row]))
    print(f"goal: p99 within {GOAL:g} s: {'reached' if cuts[98] <= GOAL else 'missed'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
