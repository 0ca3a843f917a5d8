# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs of task lists on disk: STATE_DIR/tasks/RUN/ holds the list, a result a task, events and the full output.

Every file is written whole or not at all, so a run whose runner was killed reads as interrupted, never as damaged.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fleet_core.errors import Conflict, InvalidInput, NotFound, StateDamaged
    from fleet_core.task_lists import TaskList, task_list
    from fleet_core.task_progress import outcome
else:
    try:
        from ..fleet_core.errors import Conflict, InvalidInput, NotFound, StateDamaged
        from ..fleet_core.task_lists import TaskList, task_list
        from ..fleet_core.task_progress import outcome
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import Conflict, InvalidInput, NotFound, StateDamaged
        from fleet_core.task_lists import TaskList, task_list
        from fleet_core.task_progress import outcome

from . import paths, procfs

KEPT_RUNS = 200
_EVENTS_AT_ONCE = 1024 * 1024  # bytes
HEADER = "run.json"
EVENTS = "events.jsonl"
TASK = "FLEET_TASK"
TOKEN = "FLEET_TASK_RUN"  # marks every process of a run
# The result of a task about which nothing is known yet. Times: seconds since the epoch; duration: seconds.
BLANK: Mapping[str, Any] = {
    "name": "",
    "state": "pending",
    "reason": "",
    "rc": None,
    "attempts": 0,
    "started": None,
    "finished": None,
    "duration": None,
    "stdout": "",
    "stderr": "",
    "truncated": False,
    "output_file": "",
    "artifacts": [],
    "warnings": [],
    "kept": False,
}
_OWN = ("pid",)  # of a result, for ourselves alone


def now() -> float:
    """Return the time as it is written: seconds since the epoch, to the millisecond."""
    return round(time.time(), 3)


class TaskRun:
    """One run on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.id = folder.name
        self._lock = -1

    @property
    def token(self) -> str:
        """What marks the processes of this run in their environment."""
        return str(self.folder)

    def log(self, name: str) -> Path:
        """Return the file with all that a task printed."""
        return self.folder / f"{name}.log"

    def lock(self) -> None:
        """Become the one runner of this run, until this process ends. Raises Conflict."""
        handle = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            raise Conflict(f"task run {self.id}: is running already (pid {self.header().get('pid')})") from None
        self._lock = handle

    def unlock(self) -> None:
        """Let another be its runner."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def header(self) -> dict[str, Any]:
        """Return what is known of the run as a whole."""
        return _read(self.folder / HEADER)

    def write_header(self, data: Mapping[str, Any]) -> None:
        """Replace what is known of the run as a whole."""
        _write(self.folder / HEADER, data)

    def write_result(self, name: str, data: Mapping[str, Any]) -> None:
        """Replace the result of one task."""
        _write(self.folder / f"{name}.result", data)

    def result(self, name: str) -> dict[str, Any]:
        """Return the result of one task; pending as long as there is none."""
        path = self.folder / f"{name}.result"
        return _read(path) if path.exists() else {**BLANK, "name": name}

    def forget(self, name: str) -> None:
        """Make a task pending again."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.folder / f"{name}.result")

    def tasks(self) -> TaskList:
        """Return the list as it was run last."""
        return task_list(self.header()["list"])

    def alive(self) -> bool:
        """Return whether its runner works."""
        header = self.header()
        return header["state"] == "running" and procfs.alive(header["pid"], header["pid_started"])

    def end_left(self) -> int:
        """Kill what a runner that was killed has left of its tasks, and return how many processes that were.

        Only what is still in the process group of a task: a service that a task has started for good is not ours.
        """
        running = [result for name in self.tasks().names if (result := self.result(name))["state"] == "running"]
        marked = set(procfs.find_by_environment(TOKEN, self.token)) if running else set()
        groups = procfs.groups(result["pid"] for result in running if result.get("pid"))
        ours = {pid for members in groups.values() for pid in members}
        for result in running:
            if not result.get("pid"):  # killed in the moment before it could be written
                ours.update(procfs.find_by_environment(TASK, result["name"]))
        killed = 0
        for pid in ours & marked:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
                killed += 1
        return killed

    def view(self, output: bool = True) -> dict[str, Any]:
        """Return the run with the results of its tasks in the order of the list.

        output: with what is kept of their stdout and stderr. A run without its runner is interrupted.
        """
        header = self.header()
        if header["state"] == "running" and not procfs.alive(header["pid"], header["pid_started"]):
            header = {**self.header(), "reason": "its runner is gone"}
            if header["state"] == "running":
                header["state"] = "interrupted"
        results = []
        for item in header["list"]["tasks"]:
            result = self.result(item["name"])
            if result["state"] == "running" and header["state"] != "running":
                result = {**result, "state": "interrupted", "reason": "its runner is gone"}
            hidden = _OWN if output else (*_OWN, "stdout", "stderr")
            results.append({key: value for key, value in result.items() if key not in hidden})
        shown = {key: value for key, value in header.items() if key not in ("list", "pid", "pid_started")}
        return {**shown, "tasks": results}

    def states(self) -> dict[str, str]:
        """Return task to state."""
        return {result["name"]: result["state"] for result in self.view(False)["tasks"]}

    def add_event(self, event: Mapping[str, Any]) -> None:
        """Add one event for those who follow the run."""
        try:
            with open(self.folder / EVENTS, "a", encoding="utf-8", opener=_private) as file:
                file.write(json.dumps(event, ensure_ascii=True) + "\n")
        except OSError as error:
            raise StateDamaged(f"task run {self.id}: an event cannot be written: {error.strerror}") from error

    def events_size(self) -> int:
        """Return the position behind the last event so far."""
        try:
            return (self.folder / EVENTS).stat().st_size
        except FileNotFoundError:
            return 0

    def events(self, after: int = 0) -> list[dict[str, Any]]:
        """Return the events behind a position, each with its own. A line still being written is left for later."""
        try:
            with open(self.folder / EVENTS, "rb") as file:
                file.seek(after)
                data = file.read(_EVENTS_AT_ONCE)
        except FileNotFoundError:
            return []
        found = []
        for line in data[: data.rfind(b"\n") + 1].splitlines(keepends=True):
            after += len(line)
            found.append({**json.loads(line), "position": after})
        return found


def folder(state_dir: Path) -> Path:
    """Return where the runs lie."""
    return state_dir / "tasks"


def create(state_dir: Path) -> TaskRun:
    """Make the folder of a new run, numbered after the last one, and lock it."""
    root = paths.make_private(paths.make_private(state_dir) / "tasks")
    number = max((int(run.id) for run in runs(state_dir)), default=0)
    while True:
        number += 1
        try:
            (root / str(number)).mkdir(mode=0o700)
        except FileExistsError:
            continue
        except OSError as error:
            raise StateDamaged(f"task run {number}: cannot be recorded in {root}: {error.strerror}") from error
        run = TaskRun(root / str(number))
        run.lock()
        return run


def runs(state_dir: Path) -> list[TaskRun]:
    """Return all runs, the newest first."""
    try:
        names = [name for name in os.listdir(folder(state_dir)) if name.isascii() and name.isdecimal()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StateDamaged(f"task runs: {folder(state_dir)} cannot be read: {error.strerror}") from error
    return [TaskRun(folder(state_dir) / name) for name in sorted(names, key=int, reverse=True)]


def written(state_dir: Path) -> Iterator[TaskRun]:
    """Give the runs that have begun, the newest first."""
    for run in runs(state_dir):
        if (run.folder / HEADER).exists():
            yield run


def find(state_dir: Path, number: str) -> TaskRun:
    """Return one run; "last" is the newest. Raises NotFound."""
    if number == "last":
        for run in written(state_dir):
            return run
        raise NotFound("task run: none so far")
    if not (number.isascii() and number.isdecimal()):
        raise InvalidInput(f'task run "{number}": expected its number, or "last"')
    run = TaskRun(folder(state_dir) / number)
    if not (run.folder / HEADER).exists():
        raise NotFound(f"task run {number}: does not exist")
    return run


def latest(state_dir: Path, name: str, workdir: str) -> TaskRun | None:
    """Return the newest run of the whole list of this name in this folder."""
    for run in written(state_dir):
        header = run.header()
        if header.get("name") == name and header.get("workdir") == workdir and not header.get("partial"):
            return run
    return None


def prune(state_dir: Path) -> None:
    """Remove the oldest runs beyond KEPT_RUNS that have ended."""
    for run in runs(state_dir)[KEPT_RUNS:]:
        with contextlib.suppress(OSError, KeyError, StateDamaged):
            if not run.alive():
                shutil.rmtree(run.folder)


def summary(view: Mapping[str, Any]) -> str:
    """Return the state of a run whose runner has just ended its last task."""
    return outcome({item["name"]: item["state"] for item in view["tasks"]})


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFound(f"task run {path.parent.name}: does not exist") from None
    except (OSError, ValueError) as error:
        raise StateDamaged(f"task run {path.parent.name}: {path} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise StateDamaged(f"task run {path.parent.name}: {path}: expected an object")
    return data


def _write(path: Path, data: Mapping[str, Any]) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "w", encoding="utf-8", opener=_private) as file:
            json.dump(data, file, ensure_ascii=True)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        raise StateDamaged(f"task run {path.parent.name}: {path} cannot be written: {error.strerror}") from error
