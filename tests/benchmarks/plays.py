# SPDX-License-Identifier: GPL-3.0-or-later
"""Playbooks run for a benchmark, and what Ansible tells of their tasks."""

from __future__ import annotations

import json
import os
import resource
import shutil
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import measure


class Task(NamedTuple):
    """One task as it was executed. seconds: as Ansible measured it. runs: how often, one for each item of a loop."""

    name: str
    action: str
    seconds: float
    runs: int
    changed: bool


class Play(NamedTuple):
    """One run of ansible-playbook. seconds: from its start to its end. processor: seconds of processor time in it."""

    seconds: float
    processor: float
    tasks: list[Task]

    @property
    def changed(self) -> bool:
        return any(task.changed for task in self.tasks)


def run(arguments: Sequence[str], environ: dict[str, str]) -> Play:
    """Run ansible-playbook in the checkout. Raises RuntimeError with its output when a task fails."""
    command = [measure.own("ansible-playbook"), *arguments]
    environ = {
        "ANSIBLE_CONFIG": str(measure.ROOT / "ansible.cfg"),
        "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
        "ANSIBLE_DEPRECATION_WARNINGS": "false",
        "PATH": os.path.dirname(command[0]) + os.pathsep + os.environ.get("PATH", os.defpath),
        **environ,
    }
    begin, used = time.perf_counter(), _processor()
    text = measure.run(command, environ, seconds=1800, folder=measure.ROOT)
    seconds = time.perf_counter() - begin
    data = json.loads(text[text.index("{") :])
    tasks = [task for play in data["plays"] for item in play["tasks"] for task in _tasks(item)]
    return Play(seconds, _processor() - used, tasks)


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _tasks(item: dict[str, Any]) -> list[Task]:
    span = item["task"]["duration"]
    seconds = (_moment(span["end"]) - _moment(span["start"])).total_seconds() if span.get("end") else 0.0
    found = []
    for result in item["hosts"].values():
        if result.get("skipped"):
            continue
        runs = [one for one in result.get("results", [result]) if not one.get("skipped")]
        changed = bool(result.get("changed"))
        found.append(Task(item["task"]["name"], result.get("action", ""), seconds, len(runs), changed))
    return found


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def copy(folder: Path) -> Path:
    """Copy the checkout's own files to where a collections path of folder finds them, and return where that is."""
    tree = folder / "ansible_collections" / "autovibe" / "fleet"
    names = measure.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], folder=measure.ROOT
    ).split("\0")
    for name in names:
        source = measure.ROOT / name
        if name and source.is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, tree / name)
    return tree


def write(path: Path, tasks: Sequence[dict[str, Any]]) -> Path:
    """Write a playbook of one play on this computer. JSON is YAML."""
    play = {
        "name": "Benchmark",
        "hosts": "localhost",
        "connection": "local",
        "gather_facts": False,
        "tasks": list(tasks),
    }
    play["vars"] = {"ansible_python_interpreter": "{{ ansible_playbook_python }}"}
    path.write_text(json.dumps([play], indent=1))
    return path
