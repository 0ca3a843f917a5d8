# SPDX-License-Identifier: GPL-3.0-or-later
"""A second run of site.yml on this computer against a playbook of as many tasks that do nothing.

The first run installs the application and starts fleetd and the demo, all in a scratch home and from a copy of the
checkout, so that nothing changes between two runs. Then the second run is made, by turns with the other playbook, which
has a task for each one that site.yml executed, a loop's items counted one by one: ansible.builtin.ping for what runs a
module, ansible.builtin.debug for what runs in Ansible itself.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
from pathlib import Path

import measure
import plays

TURNS = 2 if measure.QUICK else 5
GOAL = 1.5
# Actions that send nothing to the host.
WITHOUT_MODULE = {"debug", "fail", "assert", "set_fact", "meta", "include_tasks", "validate_argument_spec"}


def noop(folder: Path, tasks: list[plays.Task]) -> Path:
    """Write the playbook that does nothing."""
    found = []
    for task in tasks:
        for _run in range(task.runs):
            if task.action.rpartition(".")[2] in WITHOUT_MODULE:
                found.append({"name": task.name, "ansible.builtin.debug": {"msg": "nothing"}})
            else:
                found.append({"name": task.name, "ansible.builtin.ping": {}})
    return plays.write(folder / "noop.yml", found)


def main() -> None:
    """Print both times and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", action="store_true", help="show how long each task of a second run took")
    show = parser.parse_args().tasks
    print(f"site: {measure.load()}")
    with tempfile.TemporaryDirectory(prefix="fleet-") as scratch:
        home = Path(scratch)
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        tree = plays.copy(home)
        site = ["-i", str(tree / "inventories" / "local"), str(tree / "site.yml")]
        environ = {
            "ANSIBLE_COLLECTIONS_PATH": str(home),
            "HOME": scratch,
            "FLEET_STATE_DIR": str(home / "state"),
            "XDG_CACHE_HOME": cache,
        }
        try:
            first = plays.run(site, environ)
            print(f"site: first run {first.seconds:.1f} s, {len(first.tasks)} tasks")
            second = plays.run(site, environ)
            if second.changed:
                changed = ", ".join(task.name for task in second.tasks if task.changed)
                print(f"site: the second run changed something, so it is no fair measure: {changed}")
            playbook = noop(home, second.tasks)
            ours, theirs = [], []
            for _turn in range(TURNS):
                ours.append(plays.run(site, environ))
                theirs.append(plays.run(["-i", "localhost,", str(playbook)], environ))
        finally:
            fleet = home / ".local/share/autovibe/venv/bin/fleet"
            if fleet.exists():
                command = [str(fleet), "daemon", "stop", "--processes"]
                subprocess.run(command, env={**os.environ, **environ}, check=False, capture_output=True, timeout=60)
    mine = min(ours, key=lambda play: play.seconds)
    nothing = min(theirs, key=lambda play: play.seconds)
    if show:
        for one, other in zip(mine.tasks, nothing.tasks, strict=False):
            print(f"site:   {one.seconds:5.2f} s  {one.action} ({one.name}); nothing: {other.seconds:.2f} s")
    runs = sum(task.runs for task in second.tasks)
    print(f"site: second run {mine.seconds:.2f} s, {runs} tasks; as many that do nothing {nothing.seconds:.2f} s")
    print(f"site: ratio second run/nothing {mine.seconds / nothing.seconds:.2f} (goal: at most {GOAL})")
    work, idle = (min(play.processor for play in side) for side in (ours, theirs))
    print(f"site: of processor time {work:.2f} s and {idle:.2f} s, ratio {work / idle:.2f}")


if __name__ == "__main__":
    main()
