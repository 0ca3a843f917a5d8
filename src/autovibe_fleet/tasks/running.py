# SPDX-License-Identifier: GPL-3.0-or-later
"""Running a list where it is wanted: in this process, or on a machine that is then watched."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fleet_core.errors import InvalidInput
from fleet_core.processes import is_secret
from fleet_core.task_lists import TaskList
from fleet_node import task_service
from fleet_node.task_host import describe_plan
from fleet_node.task_runs import Request

from .machine import Machine

OnEvent = Callable[[Mapping[str, Any]], None]
HERE = ("", "localhost")


@dataclass(frozen=True)
class Job:
    """A list and what its run is told. environ: variables that are passed to it, never stored."""

    tasks: TaskList
    workdir: str = ""
    resume: bool = False
    source: str = ""
    environ: Mapping[str, str] = field(default_factory=dict)
    partial: bool = False

    def plain(self) -> dict[str, Any]:
        """Return it as another machine reads it."""
        return {
            "list": self.tasks.to_dict(),
            "workdir": self.workdir,
            "resume": self.resume,
            "source": self.source,
            "partial": self.partial,
            "environ": dict(self.environ),
        }

    @property
    def request(self) -> Request:
        """It as this host runs it."""
        return Request(self.tasks, self.workdir, self.environ, self.resume, self.source, self.partial)


def environment(tasks: TaskList, assignments: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables to pass: those that the list names, and those of --env, NAME or NAME=VALUE."""
    found = {name: environ[name] for name in tasks.passed if name in environ}
    for text in assignments:
        name, equals, value = text.partition("=")
        if not equals and name not in environ:
            raise InvalidInput(f'--env: the variable "{name}" is not set')
        if equals and is_secret(name):
            raise InvalidInput(f'--env: "{name}" looks like a secret, which others can see here; give its name alone')
        found[name] = value if equals else environ[name]
    return found


def machine(name: str, ssh_config: str = "", state_dir: str = "") -> Machine | None:
    """Return the machine of a name, or None for this computer."""
    if name in HERE:
        return None
    return Machine(name, ("-F", os.path.abspath(ssh_config)) if ssh_config else (), state_dir)


def run_on(where: Machine, job: Job, on_event: OnEvent) -> dict[str, Any]:
    """Run a list on a machine and return its view. Ctrl-C ends it there."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        starting = pool.submit(where.start, job.plain())
        try:
            run, position = starting.result()
        except KeyboardInterrupt:
            return _cancelled(where, starting.result()[0], on_event)
    try:
        return _last(where, run, position, on_event)
    except KeyboardInterrupt:
        return _cancelled(where, run, on_event)


def _cancelled(where: Machine, run: str, on_event: OnEvent) -> dict[str, Any]:
    on_event({"event": "connection", "state": "open", "reason": "ending the run there, a moment"})
    where.cancel(run)
    return where.view(run)


def _last(where: Machine, run: str, position: int, on_event: OnEvent) -> dict[str, Any]:
    for event in where.follow(run, position):
        if event["event"] == "end":
            found: dict[str, Any] = event["view"]
            return found
        on_event(event)
    raise AssertionError("follow ends with the event end")


def plan(where: Machine | None, job: Job, state_dir: Path) -> dict[str, Any]:
    """Return what a run would do."""
    return describe_plan(job.request, state_dir) if where is None else where.plan(job.plain())


def run_here(job: Job, state_dir: Path, on_event: OnEvent) -> dict[str, Any]:
    """Run a list in this process and return its view. Ctrl-C ends it."""
    return task_service.run_here(job.request, state_dir, on_event)
