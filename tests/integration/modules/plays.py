# SPDX-License-Identifier: GPL-3.0-or-later
"""Real plays on localhost, with a state folder of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
Task = dict[str, Any]
Result = dict[str, Any]


def task(module: str, /, check_mode: bool = False, ignore_errors: bool = False, **options: Any) -> Task:
    """Return a task of the collection that shows its diff."""
    return {f"autovibe.fleet.{module}": options, "check_mode": check_mode, "ignore_errors": ignore_errors, "diff": True}


class Play:
    """Runs tasks on localhost. interpreter: the Python of the managed host."""

    def __init__(self, folder: Path, state_dir: Path, interpreter: str = sys.executable) -> None:
        self.folder = folder
        self.state_dir = state_dir
        self.interpreter = interpreter

    def __call__(
        self, tasks: Sequence[Task], *options: str, fails: bool = False, **environ: str
    ) -> list[dict[str, Any]]:
        """Return the result of each task. A task that fails ends the play, and the test unless fails."""
        plays = [{"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": list(tasks)}]
        playbook = self.folder / "play.yml"
        playbook.write_text(json.dumps(plays))
        done = subprocess.run(
            [
                *(sys.executable, "-m", "ansible", "playbook", "--inventory", "localhost,"),
                *("--extra-vars", json.dumps({"ansible_python_interpreter": self.interpreter})),
                *options,
                str(playbook),
            ],
            capture_output=True,
            text=True,
            check=False,
            cwd=REPOSITORY,
            env={
                **os.environ,
                "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"),
                "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
                "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
                "FLEET_STATE_DIR": str(self.state_dir),
                **environ,
            },
        )
        try:
            report = json.loads(done.stdout[done.stdout.index("{\n") :])
        except ValueError:
            pytest.fail(done.stdout + done.stderr)
        results = [task["hosts"]["localhost"] for play in report["plays"] for task in play["tasks"]]
        assert (done.returncode != 0) == fails, json.dumps(results[-1:], indent=1) + done.stderr
        return results
