# SPDX-License-Identifier: GPL-3.0-or-later
"""Checkpoints of machines on Proxmox VE: its snapshots, with the memory of a machine that runs.

Proxmox lists the snapshots of one machine a request, and no others. So they are read only when asked for, in parallel.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .provider import Job
from .proxmox_api import Reply, Session, reply_of
from .proxmox_config import Drive, drives_of
from .proxmox_config_tags import differs
from .proxmox_machines import Guest, Guests
from .proxmox_tasks import TaskFailed, Tasks

if TYPE_CHECKING:
    from fleet_core.checkpoints import Checkpoint, check_checkpoint_name, in_order
    from fleet_core.errors import Conflict, FleetError, InvalidInput, NotFound, TimedOut
else:
    try:
        from ..fleet_core.checkpoints import Checkpoint, check_checkpoint_name, in_order
        from ..fleet_core.errors import Conflict, FleetError, InvalidInput, NotFound, TimedOut
    except ImportError:  # installed as a top-level package
        from fleet_core.checkpoints import Checkpoint, check_checkpoint_name, in_order
        from fleet_core.errors import Conflict, FleetError, InvalidInput, NotFound, TimedOut

CURRENT = "current"  # what Proxmox calls the machine as it is now, in the list of its snapshots
LONGEST = 40
READERS = 16
_NAME = re.compile(r"[a-z][a-z0-9_-]+", re.IGNORECASE)  # pve-configid
_RESERVED = (CURRENT, "pending")
_MARKED = "incomplete"

_LOCKED = re.compile(r"is locked|can't lock file|lock request|cfs-lock", re.IGNORECASE)
_UNABLE = re.compile(r"snapshot feature is not available|can't (?:take )?snapshot|not support(?:ed)?.*snapshot", re.I)
_TAKEN = re.compile(r"snapshot name '[^']*' already used")
_GONE = re.compile(r"snapshot '[^']*' does not exist")
_NEWER = re.compile(r"(?:is not|not the) most recent snapshot", re.IGNORECASE)


@dataclass(frozen=True)
class Snapshot:
    """A snapshot as Proxmox has it. state: of one that is being made or removed, or was when that was interrupted."""

    name: str
    parent: str = ""
    description: str = ""
    time: int = 0
    memory: bool = False
    state: str = ""

    def checkpoint(self, machine: str) -> Checkpoint:
        comment = self.description
        if self.state:
            comment = f"{_MARKED} ({self.state}); delete it" + (f": {comment}" if comment else "")
        return Checkpoint(
            self.name, machine, parent=self.parent, comment=comment, created=_iso(self.time), live=self.memory
        )


@dataclass(frozen=True)
class Tree:
    """The snapshots of one machine. current: the one that it is at."""

    snapshots: tuple[Snapshot, ...] = ()
    current: str = ""

    def get(self, name: str) -> Snapshot | None:
        return next((one for one in self.snapshots if one.name == name), None)

    def checkpoints(self, machine: str) -> tuple[Checkpoint, ...]:
        return in_order(one.checkpoint(machine) for one in self.snapshots)


def tree_of(items: Sequence[Mapping[str, Any]]) -> Tree:
    """Return the snapshots from what the API lists; the item of the machine itself says which one it is at."""
    snapshots, current = [], ""
    for item in items:
        name, parent = str(item.get("name") or ""), str(item.get("parent") or "")
        if name == CURRENT:
            current = parent
        elif name:
            snapshots.append(
                Snapshot(
                    name,
                    parent,
                    str(item.get("description") or "").strip(),
                    int(item.get("snaptime") or 0),
                    bool(int(item.get("vmstate") or 0)),
                    str(item.get("snapstate") or ""),
                )
            )
    return Tree(tuple(snapshots), current)


def check_name(name: str) -> str:
    """Return the name if Proxmox takes it for a snapshot, else raise InvalidInput."""
    check_checkpoint_name(name)
    if len(name) > LONGEST or not _NAME.fullmatch(name) or name.lower() in _RESERVED:
        raise InvalidInput(
            f'checkpoint "{name}": Proxmox VE takes names of 2 to {LONGEST} letters, digits, "_" and "-" that begin '
            f"with a letter, but not {' and '.join(_RESERVED)}"
        )
    return name


class Checkpoints:
    """Of all machines of a provider, from several threads at once.

    first_pause: seconds before something that was locked is tried again; settling: seconds to find out whether a
    request whose answer was lost was carried out.
    """

    first_pause = 1.0
    settling = 20.0

    def __init__(self, session: Session, tasks: Tasks, guests: Guests) -> None:
        self._session, self._tasks, self._guests = session, tasks, guests

    def all(self, names: Sequence[str] | None = None) -> dict[str, tuple[Checkpoint, ...]]:
        """Return the checkpoints of all machines, or of these, parents before children."""
        found = self.trees(names)
        return {name: tree.checkpoints(name) for name, tree in found.items()}

    def trees(self, names: Sequence[str] | None = None) -> dict[str, Tree]:
        """Return the snapshots by machine. A machine that goes away meanwhile is left out."""
        guests = self._guests.machines(names)
        if not guests:
            return {}
        with ThreadPoolExecutor(max_workers=min(READERS, len(guests)), thread_name_prefix="snapshots") as pool:
            trees = list(pool.map(self._tree_if_there, guests))
        return {guest.machine_name: tree for guest, tree in zip(guests, trees) if tree is not None}

    def take(self, name: str, checkpoint: str, job: Job, comment: str = "") -> Checkpoint:
        """Snapshot a machine, with its memory if it runs. What is left of one that was interrupted is removed first."""
        check_name(checkpoint)
        what = _what(checkpoint, name)
        guest = self._guests.get(name)
        there = self._tree(guest).get(checkpoint)
        if there is not None:
            if not there.state or guest.lock.startswith("snapshot"):
                raise Conflict(f"{what}: there is one of that name already")
            job.report("remove what is left of an interrupted one")
            self._remove(guest, checkpoint, what, job, force=True)
        live = guest.status == "running"
        values = {"snapname": checkpoint, "vmstate": live, "description": comment or None}

        def done() -> bool:
            found = self._tree(guest).get(checkpoint)
            return found is not None and not found.state

        try:
            self._do(
                lambda: self._session.post(
                    f"{guest.path}/snapshot", values, what=what, asked="take the snapshot", job=job
                ),
                job,
                what,
                "take the snapshot",
                guest,
                done,
            )
        except TaskFailed as error:
            raise self._told(error, what, guest) from error
        found = self._tree(guest).get(checkpoint)
        if found is None:
            raise Conflict(f"{what}: it was taken, and is gone again: somebody else removed it")
        return found.checkpoint(name)

    def restore(self, name: str, checkpoint: str, job: Job, start: Callable[[str, Job], Any]) -> None:
        """Roll a machine back. start: is called with its name if it ran before and does not by itself.

        One with memory runs afterwards, as it did when the checkpoint was taken.
        """
        what = _what(checkpoint, name)
        guest = self._guests.get(name)
        found = self._tree(guest).get(checkpoint)
        if found is None:
            raise NotFound(f"{what}: there is none of that name")
        if found.state:
            raise Conflict(f"{what}: it is {_MARKED} ({found.state}) and cannot be restored; delete it")
        path = f"{guest.path}/snapshot/{checkpoint}/rollback"
        # Rolling back twice is the same as once, so a lost answer needs no settling.
        try:
            self._do(
                lambda: self._session.post(path, what=what, asked="roll back", job=job, repeat=True),
                job,
                what,
                "roll back",
                guest,
                None,
            )
        except TaskFailed as error:
            raise self._told(error, what, guest) from error
        after = self._guests.get(name)
        self._guests.note(self._handed_on(guest, after, what, job))
        if guest.status in ("running", "paused") and after.status not in ("running", "paused"):
            start(name, job)

    def remove(self, name: str, checkpoint: str, job: Job) -> None:
        """Remove a snapshot; its children get its parent. Raises NotFound when it is not there."""
        what = _what(checkpoint, name)
        guest = self._guests.get(name)
        found = self._tree(guest).get(checkpoint)
        if found is None:
            raise NotFound(f"{what}: there is none of that name")
        # Of one that was not finished, some disks may have no snapshot: then only force gets it out of the list.
        self._remove(guest, checkpoint, what, job, force=bool(found.state))

    # -- parts --------------------------------------------------------------------------------------------------------

    def _tree(self, guest: Guest) -> Tree:
        what = f'machine "{guest.machine_name}"'
        return tree_of(self._session.get(f"{guest.path}/snapshot", what=what, asked="list the snapshots") or ())

    def _handed_on(self, before: Guest, after: Guest, what: str, job: Job) -> Guest:
        """Give a machine back whose it is: a snapshot holds the tags of its day, also that it was free in a pool."""
        found = self._guests.read(after) or after
        now, marks = before.marks, found.marks
        marks = marks.evolve(ours=now.ours, project=now.project, login=now.login, tags=now.tags)
        if now.ours and differs(found.tags, marks):
            values = {"tags": marks.text()}
            self._session.put(f"{after.path}/config", values, what=what, asked="keep its tags", job=job)
            after = after.evolve(tags=marks.text())
        return after

    def _tree_if_there(self, guest: Guest) -> Tree | None:
        try:
            return self._tree(guest)
        except NotFound:
            return None

    def _remove(self, guest: Guest, checkpoint: str, what: str, job: Job, force: bool) -> None:
        path = f"{guest.path}/snapshot/{checkpoint}"
        values = {"force": True} if force else {}
        try:
            self._do(
                lambda: self._session.delete(path, values, what=what, asked="remove the snapshot", job=job),
                job,
                what,
                "remove the snapshot",
                guest,
                lambda: self._tree(guest).get(checkpoint) is None,
            )
        except TaskFailed as error:
            if not _GONE.search(error.said):
                raise self._told(error, what, guest) from error

    def _do(
        self,
        request: Callable[[], Any],
        job: Job,
        what: str,
        doing: str,
        guest: Guest,
        done: Callable[[], bool] | None,
    ) -> None:
        """Start a task and wait for it; again while another operation holds the machine.

        done: tells whether a request whose answer was lost was carried out nevertheless.
        """
        pause = self.first_pause
        while True:
            try:
                upid = request()
            except FleetError as error:
                if done is None or not _lost(reply_of(error)) or not self._settled(guest, done, job, what):
                    raise
                return
            try:
                self._tasks.run(upid, job, what=what, doing=doing)
                return
            except TaskFailed as error:
                # Locks are looked at before anything is done.
                if not _LOCKED.search(error.said) or job.left() <= pause:
                    raise
                job.report(f"wait for another operation: {error.said.strip()[:100]}")
            job.pause(pause)
            pause = min(2 * pause, 10.0)

    def _settled(self, guest: Guest, done: Callable[[], bool], job: Job, what: str) -> bool:
        """Tell whether a task that may have begun has ended with what was wanted."""
        job.report("the answer was lost: look whether it was done")
        limit = time.monotonic() + self.settling
        while True:
            if done():
                return True
            fresh = self._guests.read(guest)
            busy = fresh is not None and fresh.lock.startswith(("snapshot", "rollback"))
            if not busy and time.monotonic() > limit:
                return False
            if busy and not job.left():
                raise TimedOut(f"{what}: Proxmox VE still works on it")
            if not job.left():
                return False
            job.pause(min(2.0, self.settling / 4))

    def _told(self, error: TaskFailed, what: str, guest: Guest) -> FleetError:
        """The error in words that help."""
        said = error.said
        if _TAKEN.search(said):
            return Conflict(f"{what}: there is one of that name already")
        if _LOCKED.search(said):
            return Conflict(
                f"{what}: another operation holds the machine: {said.strip()}; if nothing works on it any more, "
                f"`qm unlock {guest.vmid}` on {guest.node} frees it"
            )
        if _UNABLE.search(said):
            disks = self._disks(guest)
            return Conflict(
                f"{what}: Proxmox VE cannot snapshot {disks or 'its disks'} there; expected ZFS, LVM-thin, Ceph RBD, "
                "Btrfs, or a file in the format qcow2"
            )
        if _NEWER.search(said):
            return Conflict(
                f"{what}: on ZFS only the newest checkpoint can be restored: delete those that are newer, or fork a "
                "machine from this one"
            )
        if _GONE.search(said):
            return NotFound(f"{what}: there is none of that name")
        return error

    def _disks(self, guest: Guest) -> str:
        try:
            fresh = self._guests.read(guest)
        except FleetError:
            return ""
        found = [_shown(drive) for drive in drives_of(fresh.config or {}) if not drive.cdrom] if fresh else []
        return ", ".join(found)


def _lost(reply: Reply) -> bool:
    """Whether the request may have been carried out although it failed."""
    return reply.sent and reply.status in (0, 502, 504, 596, 597, 598, 599)


def _shown(drive: Drive) -> str:
    form = drive.options.get("format") or drive.volume.rpartition(".")[2]
    return f"{drive.slot} on {drive.storage or drive.volume}" + (f" ({form})" if form in ("raw", "vmdk") else "")


def _what(checkpoint: str, machine: str) -> str:
    return f'checkpoint "{checkpoint}" of machine "{machine}"'


def _iso(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds)) if seconds else ""
