# SPDX-License-Identifier: GPL-3.0-or-later
"""Waiting for what Proxmox VE does in the background: a request starts a task, and its UPID tells how it went.

``OK`` and ``WARNINGS: n`` are success. One waiting thread asks for its own task; many share one list of all tasks of
the cluster, so that waiting for 64 costs as many requests as waiting for one.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .provider import Job
from .proxmox_api import Session, reply_of

if TYPE_CHECKING:
    from fleet_core.errors import FleetError, NotFound, ProcessFailed, StateDamaged, TimedOut
    from fleet_core.quantities import format_duration
else:
    try:
        from ..fleet_core.errors import FleetError, NotFound, ProcessFailed, StateDamaged, TimedOut
        from ..fleet_core.quantities import format_duration
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import FleetError, NotFound, ProcessFailed, StateDamaged, TimedOut
        from fleet_core.quantities import format_duration

SHARED = 3  # so many waiting threads, and they share a list
LINES = 5  # of the log, for errors
WORDS = 300  # of the log, at most, in characters
_UPID = re.compile(
    r"UPID:(?P<node>[A-Za-z0-9.-]+):[0-9A-Fa-f]+:[0-9A-Fa-f]+:(?P<start>[0-9A-Fa-f]{8,9}):(?P<type>[^:\s]+):"
    r"(?P<id>[^:\s]*):(?P<user>[^:\s]+):"
)


class TaskFailed(ProcessFailed):
    """A task ended with an error. upid: which; said: its last word."""

    def __init__(self, message: str, upid: str = "", said: str = "") -> None:
        super().__init__(message)
        self.upid, self.said = upid, said


class Tasks:
    """Waits for the tasks of one session. first_pause and longest_pause: seconds between two looks."""

    first_pause = 0.2
    longest_pause = 3.0
    doubt = 15.0  # seconds after which a task that a list calls running is asked for itself

    def __init__(self, session: Session) -> None:
        self.session = session
        self._lock = threading.Lock()
        self._looking = threading.Lock()
        self._waiting = 0
        self._seen: dict[str, str] = {}  # of the last list: UPID to its end, empty while it runs
        self._when = 0.0
        self._useless = False

    def wait(self, upid: object, job: Job, *, what: str, doing: str) -> None:
        """Return when a task has succeeded. what: the thing that it is about; doing: what the task does to it.

        Raises TaskFailed with the last lines of its log, and TimedOut, which names the task that goes on.
        """
        text = str(upid)
        found = _UPID.fullmatch(text)
        if found is None:
            raise StateDamaged(f"{what}: {doing}: expected the UPID of a task from Proxmox VE, found {text[:80]!r}")
        node = found["node"]
        with self._lock:
            self._waiting += 1
        try:
            end = self._end(text, node, job, f"{what}: {doing}")
        finally:
            with self._lock:
                self._waiting -= 1
        if end == "OK":
            return
        if end.startswith("WARNINGS"):
            lines = self.log(text, node)
            job.report(f"{doing}: done, with {end.lower()}: {_last(lines, ('TASK', end))}")
            return
        said = _last(self.log(text, node), ("TASK OK", end, f"TASK ERROR: {end}"))
        more = f" ({said})" if said and said not in end and end not in said else ""
        raise TaskFailed(f"{what}: {doing}: the task on {node} failed: {end}{more}", text, f"{end} {said}")

    def run(self, upid: object, job: Job, *, what: str, doing: str) -> None:
        """wait, for what some versions do at once and others in a task: no UPID, nothing to wait for."""
        if isinstance(upid, str) and upid.startswith("UPID:"):
            self.wait(upid, job, what=what, doing=doing)

    def log(self, upid: str, node: str = "", lines: int = LINES) -> tuple[str, ...]:
        """Return the last lines of a task's log; none when it cannot be read."""
        path = f"/nodes/{node or upid.split(':')[1]}/tasks/{upid}/log"
        try:
            found = self.session.get(path, {"limit": 5000}, job=Job.lasting(20.0))
        except FleetError:
            return ()
        return tuple(str(line.get("t", "")).strip() for line in found or () if line.get("t"))[-lines:]

    def recent(self, since: float) -> dict[str, str]:
        """Return what was done to machines lately: the type of the last task by machine id.

        since: by the cluster's clock; tasks that ended before are left out. Only what the account may see.
        """
        found: dict[str, tuple[float, str]] = {}
        for task in self.session.get("/cluster/tasks", asked="list the tasks") or ():
            upid = _UPID.fullmatch(str(task.get("upid", "")))
            ended = float(task.get("endtime") or 0)
            if upid is None or not upid["id"].isdigit() or (ended and ended < since):
                continue
            began = float(int(upid["start"], 16))
            if began >= found.get(upid["id"], (0.0, ""))[0]:
                found[upid["id"]] = (began, upid["type"])
        return {vmid: kind for vmid, (_began, kind) in found.items()}

    # -- parts --------------------------------------------------------------------------------------------------------

    def _end(self, upid: str, node: str, job: Job, what: str) -> str:
        pause, asked = self.first_pause, time.monotonic()
        while True:
            end = None
            if self._waiting >= SHARED and not self._useless and time.monotonic() - asked < self.doubt:
                end = self._listed(upid, pause)
            if end is None:
                end, asked = self._status(upid, node, job, what), time.monotonic()
            if end:
                return end
            if not job.left():
                limit = format_duration(job.limit)
                raise TimedOut(f"{what}: the task still runs after {limit}; it goes on in Proxmox VE as {upid}")
            job.pause(pause)
            pause = min(1.5 * pause, self.longest_pause)

    def _status(self, upid: str, node: str, job: Job, what: str) -> str:
        """How a task ended; empty while it runs."""
        try:
            found = self.session.get(f"/nodes/{node}/tasks/{upid}/status", what=what, asked="look at the task", job=job)
        except FleetError as error:
            if reply_of(error).missing:
                raise NotFound(f"{what}: Proxmox VE knows nothing of its task {upid} any more") from error
            if not job.left():
                raise TimedOut(f"{error.message}; the task may go on in Proxmox VE as {upid}") from error
            raise
        return str(found.get("exitstatus") or "unknown") if found.get("status") == "stopped" else ""

    def _listed(self, upid: str, fresh: float) -> str | None:
        """The same from a list that is at most so old; None when the task is not in it."""
        with self._looking:  # the others wait for the one who looks
            if time.monotonic() - self._when >= fresh:
                try:
                    self._seen = _ends(
                        self.session.get("/cluster/tasks", asked="list the tasks", job=Job.lasting(20.0))
                    )
                except FleetError:
                    self._useless = True
                self._when = time.monotonic()
            return self._seen.get(upid)


def _ends(tasks: object) -> dict[str, str]:
    found = {}
    for task in tasks if isinstance(tasks, list) else ():
        if isinstance(task, Mapping) and task.get("upid"):
            found[str(task["upid"])] = _status_of(task)
    return found


def _status_of(task: Mapping[str, Any]) -> str:
    """How a task of a list ended: its status is there once it has."""
    if not task.get("endtime"):
        return ""
    return str(task.get("status") or "")


def _last(lines: tuple[str, ...], without: tuple[str, ...]) -> str:
    kept = [line for line in lines if line and not line.startswith(without)]
    return " / ".join(kept)[-WORDS:]
