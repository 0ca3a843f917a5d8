# SPDX-License-Identifier: GPL-3.0-or-later
"""Starting, stopping and deleting virtual machines of Proxmox VE, high availability and locks heeded."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from . import proxmox_config as configs
from .provider import Job
from .proxmox_api import Session, reply_of, segment
from .proxmox_config import seed_file
from .proxmox_config_tags import differs
from .proxmox_machines import Guest, Guests
from .proxmox_machines_agent import Agent
from .proxmox_tasks import TaskFailed, Tasks

if TYPE_CHECKING:
    from fleet_core.errors import Conflict, FleetError, NotFound, ProcessFailed, TimedOut
else:
    try:
        from ..fleet_core.errors import Conflict, FleetError, NotFound, ProcessFailed, TimedOut
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import Conflict, FleetError, NotFound, ProcessFailed, TimedOut

SHORT = 1.0
LONG = 5.0
_HA = re.compile(r":ha(?:start|stop):")  # the type of a task
_BUSY = {"backup": "a backup of it is being made", "migrate": "it is being moved to another node"}


class Power:
    """See Provider for what the methods do. They take a guest as it is at this moment, and return it as it is then."""

    def __init__(self, session: Session, tasks: Tasks, guests: Guests, agent: Agent) -> None:
        self.session, self.tasks, self.guests, self.agent = session, tasks, guests, agent

    def start(self, guest: Guest, job: Job) -> Guest:
        """Start a machine, or let a paused one go on, and return when Proxmox calls it running."""
        what = _what(guest)
        if guest.status == "running":
            return guest
        _check_idle(guest, what)
        verb = "resume" if guest.status == "paused" else "start"
        job.report(f"{verb} it")
        upid = self.session.post(f"{guest.path}/status/{verb}", what=what, asked=f"{verb} it", job=job)
        try:
            self.tasks.run(upid, job, what=what, doing=f"{verb} it")
        except TaskFailed as error:
            if "already running" not in error.said:
                raise
        return self._until(guest, "running", job, upid)

    def ready(self, guest: Guest, job: Job, *, settled: bool = False) -> Guest:
        """Return a running machine when it can be used, and keep its addresses in its tags.

        That is when its guest agent answers and knows an address; without an agent, when it runs. settled: also wait
        for cloud-init.
        """
        config = guest.config or {}
        networks = configs.networks_of(config)
        static = configs.static_addresses(networks)
        if not configs.agent_of(config):
            if not static:
                job.report("it has neither a guest agent nor a static address: whether it is up cannot be known")
            return self._addressed(guest, None, job)
        addresses = self._addresses(guest, job, bool(networks))
        if settled:
            said = self.agent.settled(guest, job)
            if said:
                raise ProcessFailed(f"{_what(guest)}: cloud-init failed in it: {said}")
        others = None if addresses is None else tuple(one for one in addresses if one not in static)
        return self._addressed(guest, others, job)

    def stop(self, guest: Guest, job: Job, *, force: bool = False) -> Guest:
        """Shut a machine down, and return when it is off."""
        what = _what(guest)
        if guest.status == "stopped" and guest.lock != "suspended":
            return guest
        if guest.lock == "suspended" or (guest.status == "paused" and not force):
            guest = self.start(guest, job)  # only a running one shuts down
        _check_idle(guest, what)
        if force:
            job.report("power it off")
            values: dict[str, Any] = {"overrule-shutdown": True} if self.session.release() >= (8, 2) else {}
            asked, path = "power it off", f"{guest.path}/status/stop"
        else:
            job.report("shut it down")
            values, asked = {"timeout": max(1, int(job.left() * 0.9))}, "shut it down"
            path = f"{guest.path}/status/shutdown"
        upid = self.session.post(path, values, what=what, asked=asked, job=job, repeat=True)
        try:
            self.tasks.run(upid, job, what=what, doing=asked)
        except TaskFailed as error:
            if "not running" in error.said:
                return self._until(guest, "stopped", job)
            if not force and "got timeout" in error.said:
                raise TimedOut(f"{what}: it did not shut down in time; force: true powers it off") from error
            raise
        except TimedOut as error:
            raise TimedOut(f"{error.message}; force: true powers it off") from error
        return self._until(guest, "stopped", job, upid)

    def delete(self, guest: Guest, job: Job) -> None:
        """Remove a machine with its disks, its snapshots and the file with its user data."""
        what = _what(guest)
        if str((guest.config or {}).get("protection", "0")) == "1":
            raise Conflict(
                f'{what}: it is protected in Proxmox VE; remove "protection" from virtual machine {guest.vmid}'
            )
        _check_idle(guest, what)
        if guest.status not in ("stopped", "unknown"):
            guest = self.stop(guest, job, force=True)
        # First: when the machine is gone, nothing tells any more that there is such a file.
        if guest.marks.ours or guest.marks.unfinished or guest.name != guest.machine_name:
            self.drop_seed(guest, job)
        job.report("delete it")
        # Not its unreferenced disks: on a storage of two clusters those of its number may be another cluster's.
        values = {"purge": True}
        try:
            upid = self.session.delete(guest.path, values, what=what, asked="delete it", job=job, repeat=True)
            self.tasks.run(upid, job, what=what, doing="delete it")
        except FleetError as error:
            if not (isinstance(error, NotFound) or reply_of(error).missing):
                raise
        self.guests.forget(guest)

    def drop_seed(self, guest: Guest, job: Job) -> None:
        """Remove the file with a machine's user data. There need not be one."""
        storage = self.session.settings.iso_storage
        if not _seeded(guest):
            return
        volume = f"{storage}:iso/{seed_file(guest.machine_name, guest.vmid)}"
        path = f"/nodes/{guest.node}/storage/{storage}/content/{segment(volume)}"
        try:
            upid = self.session.delete(
                path, what=_what(guest), asked="delete the file with its user data", job=job, repeat=True
            )
            self.tasks.run(upid, job, what=_what(guest), doing="delete the file with its user data")
        except FleetError as error:
            if not isinstance(error, NotFound):
                raise

    # -- parts --------------------------------------------------------------------------------------------------------

    def _until(self, guest: Guest, status: str, job: Job, upid: object = "") -> Guest:
        """Return a guest when it has this status: high availability does later what it was asked for."""
        if upid and not _HA.search(str(upid)):
            config = guest.config
            return self.guests.note(guest.evolve(status=status, lock="")).evolve(config=config)
        what, pause = _what(guest), SHORT / 4
        while True:
            found = self.session.get(f"{guest.path}/status/current", what=what, asked="read its state", job=job)
            if found.get("status") == status:
                config = guest.config
                guest = guest.evolve(status=status, lock=str(found.get("lock") or ""))
                return self.guests.note(guest).evolve(config=config)
            job.check(f"{what}: it is {found.get('status')} and did not become {status}")
            job.pause(pause)
            pause = min(2 * pause, LONG)

    def _addresses(self, guest: Guest, job: Job, networked: bool) -> tuple[str, ...] | None:
        """Return the addresses of a machine when it has one; None when they may not be asked for."""
        job.report("wait for its guest agent")
        networks, pause = configs.networks_of(guest.config or {}), self.agent.first_pause
        while True:
            try:
                found = self.agent.addresses(guest, networks, job)
            except Conflict as error:
                if reply_of(error).status != 403:
                    raise
                job.report(f"its addresses are not known: {error.message}")
                return None
            if found or (found is not None and not networked):
                return found
            missing = "its guest agent did not answer" if found is None else "it did not get an address"
            job.check(f"{_what(guest)}: it runs, but {missing}")
            job.pause(pause)
            pause = min(1.5 * pause, LONG)

    def _addressed(self, guest: Guest, addresses: tuple[str, ...] | None, job: Job) -> Guest:
        """Keep the addresses of a machine of ours in its tags, where the list of all shows them; it is whole now."""
        marks = guest.marks
        if marks.ours:
            kept = marks.addresses if addresses is None else addresses
            marks = marks.evolve(addresses=kept, unfinished=False)
            if differs(guest.tags, marks):
                values = {"tags": marks.text()}
                self.session.put(
                    f"{guest.path}/config", values, what=_what(guest), asked="keep its addresses in its tags", job=job
                )
                guest = guest.evolve(tags=marks.text())
        config = guest.config
        return self.guests.note(guest).evolve(config=config)


def _seeded(guest: Guest) -> bool:
    drives = configs.drives_of(guest.config or {})
    return any(configs.is_seed(drive) for drive in drives) or incomplete(guest)


def incomplete(guest: Guest) -> bool:
    """Whether a machine may have a file of user data that is not attached yet."""
    return guest.marks.unfinished or guest.name != guest.machine_name


def _check_idle(guest: Guest, what: str) -> None:
    if guest.lock in _BUSY:
        raise Conflict(f"{what}: {_BUSY[guest.lock]} (lock: {guest.lock}); try again when that is over")


def _what(guest: Guest) -> str:
    return f'machine "{guest.machine_name}"'
