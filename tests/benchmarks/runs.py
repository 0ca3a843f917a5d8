# SPDX-License-Identifier: GPL-3.0-or-later
"""What it costs to let the fleet run a coding tool: a loop of an agent, with a shell loop over the bare command line.

Both sides do the same work against a fake model API, in short turns, so that other work slows both of them.
The fleet's time is that from the request to start the agent until its run is recorded as completed and its process has
ended. Its processor time is that of fleetd, the run process and the tool.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import measure

sys.path.insert(0, str(measure.ROOT))

from tests.fakes.model_api import ModelAPI, environment_of, reply, tool
from tests.pinned import runner_path

from fleet_node.client import Client

PROMPT = "List the files and say how many there are."
GOAL = 1.1


def stand_in(folder: Path) -> tuple[list[str], dict[str, Any], Callable[[int], None]]:
    """A program that reads a prompt, computes a little, waits, and prints as a tool would."""
    program = folder / "tool.py"
    program.write_text(
        "import json, sys, time\n"
        "sys.stdin.read()\n"
        "for number in range(20):\n"
        "    time.sleep(0.045)\n"
        "    print(json.dumps({'type': 'text', 'text': 'line %d' % number}), flush=True)\n"
        "print(json.dumps({'type': 'result', 'text': 'done'}))\n"
    )
    argv = [sys.executable, str(program)]
    return argv, {"runner": "command", "command": " ".join(argv)}, lambda count: None


def claude(stack: ExitStack, folder: Path) -> tuple[list[str], dict[str, Any], Callable[[int], None]]:
    """The real Claude Code: each iteration calls a tool and answers."""
    api = stack.enter_context(ModelAPI())
    executable = runner_path("claude")
    files = []
    for number in range(2):
        environ = {**environment_of("claude", api, folder / f"home{number}"), "IS_SANDBOX": "1"}
        environ.update(CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1", DISABLE_AUTOUPDATER="1")
        files.append(folder / f"claude{number}.env")
        files[-1].write_text("".join(f"{name}='{value}'\n" for name, value in environ.items()))
    script = (
        'set -a; . "$1"; exec "$2" -p "$3" --output-format stream-json --verbose --permission-mode bypassPermissions'
    )
    argv = ["/bin/sh", "-c", script, "sh", str(files[0]), executable, PROMPT]
    options = {"executable": executable, "permission_mode": "bypassPermissions"}

    def prepare(count: int) -> None:
        turns = [reply("I will look.", tool("Bash", command="ls", description="List")), reply("There are none.")]
        api.script(*turns * count, offering="Bash")

    return argv, {"runner": "claude", "env_files": [str(files[1])], "options": options}, prepare


def bare(argv: list[str], folder: Path, count: int) -> float:
    begun = time.monotonic()
    for _number in range(count):
        with (folder / "output").open("ab") as output:
            done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=folder, check=False)
        if done.returncode != 0:
            raise SystemExit(f"the tool failed: {(folder / 'output').read_text()[-2000:]}")
    return time.monotonic() - begun


def processor(pid: int) -> float:
    """Return the processor time of a process and of its children that have ended, and theirs."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def fleet(client: Client) -> tuple[float, float]:
    """Return the seconds of a run, and those of its iterations alone."""
    with Client(client.folder) as listener:  # to ask again and again would be work of its own
        events = listener.stream("events.subscribe", kinds=["run", "process"])
        begun = time.monotonic()
        client.call("agents.start", names=["worker"], again=True)
        ended = False
        for event in events:
            ended = ended or (event["kind"] == "run" and event["finished"] is not None)
            if ended and event["kind"] == "process" and event.get("state", event.get("status")) == "stopped":
                break
    (view,) = client.call("agents.list", names=["worker"])["agents"]
    seconds = time.monotonic() - begun
    if view["run"]["state"] != "completed":
        raise SystemExit(f"the run {view['run']['state']}: {view['run']['reason']}")
    rows = client.call("agents.iterations", name="worker", run=view["run"]["id"])["iterations"]
    return seconds, sum(row["duration"] for row in rows)


def main() -> int:
    parser = argparse.ArgumentParser(description="Overhead of a run of an agent over the bare command line.")
    parser.add_argument("--iterations", type=int, default=6, help="of each run (default: 6)")
    parser.add_argument("--rounds", type=int, default=2 if measure.QUICK else 5, help="runs of each side (default: 5)")
    parser.add_argument("--stand-in", action="store_true", help="use a program that takes a second, not Claude Code")
    options = parser.parse_args()
    count = options.iterations
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fleet-")))
        work, other_work = folder / "bare", folder / "fleet"
        work.mkdir()
        other_work.mkdir()
        name = "a program of a second"
        if options.stand_in:
            argv, fields, prepare = stand_in(folder)
        else:
            argv, fields, prepare = claude(stack, folder)
            name = "claude"
        words = [sys.executable, "-m", "autovibe_fleet.node.daemon", "--state-dir", str(folder), "--driver", "native"]
        daemon = subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        stack.callback(daemon.wait)
        stack.callback(daemon.terminate)
        client = stack.enter_context(Client(folder, timeout=60))
        measure.wait_for(client.answers, 20, "fleetd")
        definition = {
            "name": "worker",
            "methods": {"work": PROMPT},
            "pipeline": [{"loop": "work", "times": count}],
            "workspace": {"path": str(other_work)},
            **fields,
        }
        client.call("agents.apply", items=[definition])
        stack.callback(lambda: client.call("agents.apply", items=[{"name": "worker"}], state="absent"))
        prepare(1)
        bare(argv, work, 1)  # what is read from the disk for the first time
        sides: list[tuple[float, float, float]] = []
        used = [0.0, 0.0]
        for number in range(options.rounds):
            prepare(count)
            before = processor(os.getpid())
            alone = bare(argv, work, count)
            used[0] += processor(os.getpid()) - before
            prepare(count)
            before = processor(daemon.pid)
            whole, inside = fleet(client)
            used[1] += processor(daemon.pid) - before
            sides.append((alone, whole, inside))
            print(f"round {number + 1}: bare {alone:.2f} s, fleet {whole:.2f} s, its iterations {inside:.2f} s")
    ratio = statistics.median(whole / alone for alone, whole, _inside in sides)
    inside = statistics.median(inner / alone for alone, _whole, inner in sides)
    each = statistics.median(alone for alone, _whole, _inside in sides) / count
    print(f"{name}: {count} iterations of {each:.2f} s each; a run takes {ratio:.3f} times the bare loop")
    print(f"its iterations alone {inside:.3f} times; processor time {used[1] / used[0]:.3f} times; goal at most {GOAL}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
