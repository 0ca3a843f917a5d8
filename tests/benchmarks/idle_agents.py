# SPDX-License-Identifier: GPL-3.0-or-later
"""What agents that are declared but idle cost fleetd: its memory and processor time with none and with 100 of them.

Two fleetd run at the same time, one with each. 20 of the 100 have a schedule, so its clock is part of it. "restarted"
is a fleetd that found its 100 agents in the database, which is how one is met most of the time.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import measure

from fleet_node.client import Client

AGENTS = 100
PROMPT = "Read BACKLOG.md, pick one item, build it, run the tests, commit.\n" * 15  # about 1 KiB


def definition(number: int) -> dict[str, object]:
    found: dict[str, object] = {
        "name": f"agent-{number:03d}",
        "runner": "claude",
        "methods": {"plan": PROMPT, "build": PROMPT},
        "pipeline": [{"call": "plan"}, {"loop": "build"}],
        "limits": {"duration": "2h", "cost": 10},
    }
    return {**found, "schedule": {"cron": "0 3 * * *"}} if number % 5 == 0 else found


def launch(folder: str) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "autovibe_fleet.node.daemon", "--state-dir", folder, "--driver", "native"]
    started = subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with Client(folder) as client:
        measure.wait_for(client.answers, 20, "fleetd")
    return started


def main() -> int:
    parser = argparse.ArgumentParser(description="Memory and processor time of fleetd with 0 and 100 idle agents.")
    parser.add_argument(
        "--seconds", type=float, default=6.0 if measure.QUICK else 15.0, help="how long they are watched (default: 15)"
    )
    options = parser.parse_args()
    names = ("0 agents", f"{AGENTS} agents, just applied", f"{AGENTS} agents, restarted")
    running: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(prefix="fleet-") as name:
        try:
            for number, what in enumerate(names):
                folder = Path(name) / str(number)
                folder.mkdir(mode=0o700)
                fleetd = launch(str(folder))
                running.append(fleetd)
                if number:
                    with Client(folder) as client:
                        client.call("agents.apply", items=[definition(i) for i in range(AGENTS)])
                if "restarted" in what:
                    fleetd.terminate()
                    fleetd.wait(20)
                    running[-1] = launch(str(folder))
            time.sleep(1.0)
            begin = [measure.cpu(fleetd.pid) for fleetd in running]
            time.sleep(options.seconds)
            rows = []
            for what, fleetd, before in zip(names, running, begin, strict=True):
                used = measure.memory(fleetd.pid)
                spent = measure.cpu(fleetd.pid) - before
                figures = [f"{used[key]:.1f} MiB" for key in ("rss", "pss", "private")]
                rows.append([what, *figures, f"{spent / options.seconds * 1000:.2f} ms/s"])
        finally:
            for fleetd in running:
                if fleetd.poll() is None:
                    fleetd.terminate()
                    fleetd.wait(20)
    print(f"fleetd, watched for {options.seconds:g} s; {measure.load()}")
    print(measure.table(("fleetd with", "RSS", "PSS", "private", "processor time"), rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
