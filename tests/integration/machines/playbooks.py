# SPDX-License-Identifier: GPL-3.0-or-later
"""Real runs of ansible-playbook on localhost as a hypervisor, with a scratch state folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Run:
    """What a run did. results: (task, host) to the result. changed: names of tasks that changed something."""

    code: int
    output: str
    results: Mapping[tuple[str, str], dict[str, Any]]
    stats: Mapping[str, dict[str, int]] = field(default_factory=dict)

    @property
    def changed(self) -> list[str]:
        return [task for (task, _host), result in self.results.items() if result.get("changed")]

    def of(self, task: str, host: str = "localhost") -> dict[str, Any]:
        """Return the result of the first task whose name holds this text."""
        return next(result for (name, where), result in self.results.items() if task in name and where == host)

    @property
    def failure(self) -> str:
        """What the task that failed said."""
        failed = [result for result in self.results.values() if result.get("failed") or result.get("unreachable")]
        texts = [str(item["msg"]) for result in failed for item in result.get("results", ()) if "msg" in item]
        return "; ".join(texts or [str(result.get("msg")) for result in failed])


@dataclass(frozen=True)
class Hypervisor:
    """localhost in the group hypervisors. environ: for programs, such as that of the provider."""

    folder: Path
    state_dir: Path
    environ: Mapping[str, str]
    provider: str = "multipass"
    more: Mapping[str, Any] = field(default_factory=dict)

    def __call__(
        self, playbook: str | list[dict[str, Any]], *options: str, fails: bool = False, **variables: Any
    ) -> Run:
        """Run a playbook by its full name, or plays as data."""
        if not isinstance(playbook, str):
            path = self.folder / "play.yml"
            path.write_text(json.dumps(playbook))
            playbook = str(path)
        inventory = self.folder / "hosts.json"
        host = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        inventory.write_text(json.dumps({"hypervisors": {"hosts": {"localhost": host}}}))
        values = {"machine_provider": self.provider, **self.more, **variables}
        extra = self.folder / "extra.json"
        extra.write_text(json.dumps(values))
        command = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", str(inventory)]
        command += ["--extra-vars", f"@{extra}", *options, playbook]
        # Into files: the connections that ssh keeps for later would keep pipes open as well.
        with (self.folder / "stdout").open("w") as stdout, (self.folder / "stderr").open("w") as stderr:
            code = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                check=False,
                cwd=REPOSITORY,
                env={
                    **os.environ,
                    "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"),
                    "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
                    "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
                    "FLEET_STATE_DIR": str(self.state_dir),
                    **self.environ,
                },
            ).returncode
        run = _run(code, (self.folder / "stdout").read_text(), (self.folder / "stderr").read_text())
        assert (run.code != 0) == fails, f"{run.failure}\n{run.stats}\n{run.output[-3000:] if not run.failure else ''}"
        return run


def _run(code: int, stdout: str, stderr: str) -> Run:
    results: dict[tuple[str, str], dict[str, Any]] = {}
    stats: dict[str, dict[str, int]] = {}
    if "{\n" in stdout:
        report = json.loads(stdout[stdout.index("{\n") :])
        stats = report["stats"]
        for play in report["plays"]:
            for task in play["tasks"]:
                for host, result in task["hosts"].items():
                    name, number = task["task"]["name"], 2
                    while (name, host) in results:
                        name, number = f"{task['task']['name']} ({number})", number + 1
                    results[name, host] = result
    return Run(code, stdout + stderr, results, stats)
