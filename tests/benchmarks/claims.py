# SPDX-License-Identifier: GPL-3.0-or-later
"""1,000 claims in one call, against two other ways of the same work, by turns in one run.

- plan: the process manager's plan: a JSON state file rewritten after each claim, and `sh -c` for each check
- bare: 1,000 INSERTs of the same rows into the same table by a loop in one SQLite transaction; nothing is decided or
  checked
"""

from __future__ import annotations

import json
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import measure

from fleet_core.resources import Request
from fleet_node import resources
from fleet_node.store import Store

CLAIMS = 1000
ROUNDS, PLAN_ROUNDS = (5, 1) if measure.QUICK else (15, 2)
PLAN_CLAIMS = 200  # the plan's way is measured on fewer and scaled in its favour: its file only grows from there


class Seconds(NamedTuple):
    """By the wall clock and of the processor: sides that only compute compare by the latter on a busy machine."""

    wall: float
    processor: float

    @classmethod
    def now(cls) -> Seconds:
        return cls(time.perf_counter(), time.process_time())

    def elapsed(self) -> Seconds:
        return Seconds(time.perf_counter() - self.wall, time.process_time() - self.processor)

    def __str__(self) -> str:
        return f"{self.wall * 1000:.1f} ms ({self.processor * 1000:.1f} ms of processor time)"


def ours(folder: Path) -> Seconds:
    store = Store(folder)
    requests = [Request("tcpport", f"process-{number}", "tcpport") for number in range(CLAIMS)]
    begin = Seconds.now()
    allocation = resources.claim(store, requests)
    seconds = begin.elapsed()
    assert len({claim.value for claim in allocation.claimed}) == CLAIMS
    store.close()
    return seconds


def bare(folder: Path) -> Seconds:
    connection = sqlite3.connect(folder / "bare.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(
        "CREATE TABLE claims (space TEXT NOT NULL, value TEXT NOT NULL, type TEXT NOT NULL, owner TEXT NOT NULL,"
        " name TEXT NOT NULL, claimed_at REAL NOT NULL, PRIMARY KEY (space, value), UNIQUE (owner, name)) WITHOUT ROWID"
    )
    begin = Seconds.now()
    connection.execute("BEGIN IMMEDIATE")
    for number in range(CLAIMS):
        row = ("tcp", str(3000 + number), "tcpport", f"process-{number}", "tcpport", time.time())
        connection.execute("INSERT INTO claims VALUES (?, ?, ?, ?, ?, ?)", row)
    connection.execute("COMMIT")
    seconds = begin.elapsed()
    connection.close()
    return seconds


def planned(folder: Path) -> Seconds:
    path = folder / "state.json"
    state: dict[str, dict[str, dict[str, str]]] = {"resources": {}}
    check = "! { command -v nc >/dev/null && nc -z localhost {value}; } && exit 0 || exit 1"
    begin = Seconds.now()
    for number in range(PLAN_CLAIMS):
        value = str(3000 + number)
        subprocess.run(["sh", "-c", check.replace("{value}", value)], check=True)
        state["resources"][f"tcpport:{value}"] = {"type": "tcpport", "value": value, "owner": f"process-{number}"}
        path.write_text(json.dumps(state, indent=2))
    seconds = begin.elapsed()
    return Seconds(seconds.wall * CLAIMS / PLAN_CLAIMS, seconds.processor * CLAIMS / PLAN_CLAIMS)


def main() -> None:
    """Measure all sides by turns and print the best times and the two ratios."""
    found: dict[Callable[[Path], Seconds], list[Seconds]] = {ours: [], bare: [], planned: []}
    for turn in range(ROUNDS):
        for side, times in found.items():
            if side is not planned or turn < PLAN_ROUNDS:
                with tempfile.TemporaryDirectory() as name:
                    times.append(side(Path(name)))
    mine, loop, plan = (
        Seconds(min(t.wall for t in times), min(t.processor for t in times)) for times in found.values()
    )
    print(f"claims: {CLAIMS} claims; {measure.load()}")
    print(f"claims: ours {mine}, bare SQLite loop {loop}, the plan's way {plan.wall * 1000:.0f} ms")
    print(f"claims: ratio plan/ours {plan.wall / mine.wall:.0f} (goal: at least 50)")
    print(f"claims: ratio ours/bare {mine.processor / loop.processor:.2f} of processor time (goal: at most 3)")


if __name__ == "__main__":
    main()
