# SPDX-License-Identifier: GPL-3.0-or-later
"""100 processes ensured by one autovibe.fleet.process task, and by 100 looped community.general.supervisorctl tasks.

Both playbooks run against a daemon that is up already, fleetd and supervisord: first with nothing running, then
again with nothing to do. The times are those of the task, as Ansible measures it; the start of ansible-playbook is not
in them. supervisord's startsecs is 0, so that it does not wait a second for each process.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import measure
import plays

PROCESSES = 100
# Nobody else sleeps so long: what is left of a run is known by it.
SLEEP = ("/bin/sleep", str(20_000_000 + os.getpid()))
AGAIN = 3  # second runs of our task; the loop's second run takes as long as its first, and is made once


def ours(folder: Path) -> Path:
    items = [{"id": f"sleep-{number}", "command": " ".join(SLEEP)} for number in range(PROCESSES)]
    task = {"name": "Ensure", "autovibe.fleet.process": {"state_dir": str(folder), "processes": items}}
    return plays.write(folder / "ours.yml", [task])


def theirs(folder: Path, looped: int) -> Path:
    arguments = {
        "name": "{{ item }}",
        "state": "started",
        "config": str(folder / "supervisord.conf"),
        "supervisorctl_path": str(measure.program("supervisorctl")),
    }
    task: dict[str, Any] = {"name": "Ensure", "community.general.supervisorctl": arguments}
    task["loop"] = [f"sleep-{number}" for number in range(looped)]
    return plays.write(folder / "theirs.yml", [task])


def fleetd(folder: Path) -> subprocess.Popen[bytes]:
    daemon = _spawn(folder, measure.own("fleetd"), "--state-dir", str(folder), "--driver", "native")
    measure.wait_for((folder / "fleetd.sock").exists, 30, "fleetd's socket")
    return daemon


def supervisord(folder: Path) -> subprocess.Popen[bytes]:
    parts = [
        f"[supervisord]\nnodaemon=true\nlogfile={folder}/supervisord.log\nchildlogdir={folder}\n",
        f"pidfile={folder}/supervisord.pid\n[unix_http_server]\nfile={folder}/supervisor.sock\n",
        "[rpcinterface:supervisor]\n",
        "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface\n",
        f"[supervisorctl]\nserverurl=unix://{folder}/supervisor.sock\n",
    ]
    for number in range(PROCESSES):
        parts.append(f"[program:sleep-{number}]\ncommand={SLEEP[0]} {SLEEP[1]}\nautostart=false\nstartsecs=0\n")
    (folder / "supervisord.conf").write_text("".join(parts))
    daemon = _spawn(folder, str(measure.program("supervisord")), "-c", str(folder / "supervisord.conf"))
    measure.wait_for((folder / "supervisor.sock").exists, 30, "supervisord's socket")
    return daemon


def _spawn(folder: Path, *argv: str) -> subprocess.Popen[bytes]:
    with open(folder / "daemon.log", "ab") as log:
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def ensure(playbook: Path, changed: bool) -> float:
    """Run a playbook and return how long its task took, in seconds."""
    play = plays.run(["-i", "localhost,", str(playbook)], {"ANSIBLE_HOME": str(playbook.parent / "ansible")})
    if play.changed is not changed:
        raise RuntimeError(f"{playbook.name}: expected changed {changed}, found {play.changed}")
    return sum(task.seconds for task in play.tasks)


def main() -> None:
    """Print the times of the task and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--looped", type=int, default=PROCESSES, metavar="N", help="measure N of the 100 loops and scale (default: all)"
    )
    looped = parser.parse_args().looped
    if not measure.program("supervisord"):
        sys.exit("modules: supervisord is not installed; tests/benchmarks/install brings it")
    print(f"modules: {PROCESSES} processes, of which {looped} are looped; {measure.load()}")
    daemons: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(prefix="fleet-") as scratch:
        mine, loop = Path(scratch) / "ours", Path(scratch) / "theirs"
        try:
            for folder, start in ((mine, fleetd), (loop, supervisord)):
                folder.mkdir(mode=0o700)
                daemons.append(start(folder))
            task, tasks = ours(mine), theirs(loop, looped)
            scale = PROCESSES / looped
            first, first_loop = ensure(task, True), ensure(tasks, True) * scale
            again = [ensure(task, False)]
            again_loop = ensure(tasks, False) * scale
            again += [ensure(task, False) for _turn in range(AGAIN - 1)]
        finally:
            for daemon in daemons:
                daemon.kill()
                daemon.wait()
            measure.kill(measure.running(SLEEP))
    second = statistics.median(again)
    print(f"modules: first run: process {first:.2f} s, looped supervisorctl {first_loop:.1f} s")
    print(f"modules: second run: process {second:.2f} s, looped supervisorctl {again_loop:.1f} s")
    print(f"modules: ratio supervisorctl/process, first run {first_loop / first:.0f} (goal: at least 20)")
    print(f"modules: ratio supervisorctl/process, second run {again_loop / second:.0f} (goal: at least 20)")


if __name__ == "__main__":
    main()
