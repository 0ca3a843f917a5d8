# SPDX-License-Identifier: GPL-3.0-or-later
"""1,000 claims in one call, against two other ways of the same work, in one run.

- plan: the process manager's plan: a JSON state file rewritten after each claim, and `sh -c` for each check
- bare: 1,000 INSERTs of the same rows into the same table by a loop in one SQLite transaction; nothing is decided or
  checked
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from fleet_core.resources import Request
from fleet_node import resources
from fleet_node.store import Store

CLAIMS = 1000
PLAN_CLAIMS = 200  # the plan's way is measured on fewer and scaled in its favour: its file only grows from there


def ours(folder: Path) -> float:
    store = Store(folder)
    requests = [Request("tcpport", f"process-{number}", "tcpport") for number in range(CLAIMS)]
    begin = time.perf_counter()
    allocation = resources.claim(store, requests)
    seconds = time.perf_counter() - begin
    assert len({claim.value for claim in allocation.claimed}) == CLAIMS
    store.close()
    return seconds


def bare(folder: Path) -> float:
    connection = sqlite3.connect(folder / "bare.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(
        "CREATE TABLE claims (space TEXT NOT NULL, value TEXT NOT NULL, type TEXT NOT NULL, owner TEXT NOT NULL,"
        " name TEXT NOT NULL, claimed_at REAL NOT NULL, PRIMARY KEY (space, value), UNIQUE (owner, name)) WITHOUT ROWID"
    )
    begin = time.perf_counter()
    connection.execute("BEGIN IMMEDIATE")
    for number in range(CLAIMS):
        row = ("tcp", str(3000 + number), "tcpport", f"process-{number}", "tcpport", time.time())
        connection.execute("INSERT INTO claims VALUES (?, ?, ?, ?, ?, ?)", row)
    connection.execute("COMMIT")
    seconds = time.perf_counter() - begin
    connection.close()
    return seconds


def planned(folder: Path) -> float:
    path = folder / "state.json"
    state: dict[str, dict[str, dict[str, str]]] = {"resources": {}}
    check = "! { command -v nc >/dev/null && nc -z localhost {value}; } && exit 0 || exit 1"
    begin = time.perf_counter()
    for number in range(PLAN_CLAIMS):
        value = str(3000 + number)
        subprocess.run(["sh", "-c", check.replace("{value}", value)], check=True)
        state["resources"][f"tcpport:{value}"] = {"type": "tcpport", "value": value, "owner": f"process-{number}"}
        path.write_text(json.dumps(state, indent=2))
    return (time.perf_counter() - begin) * CLAIMS / PLAN_CLAIMS


def best(measure: Callable[[Path], float], rounds: int) -> float:
    found = []
    for _round in range(rounds):
        with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
            found.append(measure(Path(name)))
    return min(found)


def main() -> None:
    """Print the three times and the two ratios."""
    mine, loop, plan = best(ours, 7), best(bare, 7), best(planned, 1)
    print(
        f"claims: ours {mine * 1000:.1f} ms, bare SQLite loop {loop * 1000:.1f} ms, the plan's way {plan * 1000:.0f} ms"
    )
    print(f"claims: ratio plan/ours {plan / mine:.0f} (goal: at least 50)")
    print(f"claims: ratio ours/bare {mine / loop:.2f} (goal: at most 3)")


if __name__ == "__main__":
    main()
