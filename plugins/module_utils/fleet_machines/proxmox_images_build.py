# SPDX-License-Identifier: GPL-3.0-or-later
"""The steps in which a golden image of Proxmox VE is built: a machine of its base, prepared, sealed, and a template.

It is marked as incomplete from its first moment on, and every step can be cut off.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import golden, nocloud
from . import proxmox_config as configs
from . import proxmox_qm as qm
from .provider import Job
from .proxmox_api import Session, reply_of
from .proxmox_config_tags import SUFFIX
from .proxmox_images_base import (
    INSTANCE,
    Base,
    Bases,
    disk_storage,
    is_fetched,
    pick_node,
    remove_file,
    shown,
    stores_of,
)
from .proxmox_machines import Guest, Guests, with_config
from .proxmox_machines_power import Power
from .proxmox_machines_sources import Sources
from .proxmox_marks import Mark
from .proxmox_tasks import TaskFailed, Tasks

if TYPE_CHECKING:
    from fleet_core.errors import Conflict, FleetError, InvalidInput, NotFound, ProcessFailed, TimedOut
    from fleet_core.images import ImageSpec
    from fleet_core.quantities import format_size
else:
    try:
        from ..fleet_core.errors import Conflict, FleetError, InvalidInput, NotFound, ProcessFailed, TimedOut
        from ..fleet_core.quantities import format_size
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import Conflict, FleetError, InvalidInput, NotFound, ProcessFailed, TimedOut
        from fleet_core.quantities import format_size

CPU = 2
MEMORY = 2048  # MiB
SHUTDOWN = 120.0  # seconds for a sealed machine to shut down; all is on its disk, so it is powered off then
IDS = 10  # numbers that are tried, when others take them at the same time
# What a machine made from the image must get for itself.
_FORGOTTEN = ("ciuser", "cipassword", "sshkeys", "cicustom", "nameserver", "searchdomain")


class Building:
    """The steps of a build. They return the guest as it is then."""

    def __init__(self, session: Session, tasks: Tasks, guests: Guests, power: Power, sources: Sources) -> None:
        self._session, self._tasks, self._guests, self._sources = session, tasks, guests, sources
        self._agent, self._power = power.agent, power
        self._bases = Bases(session, tasks, guests)
        self.first_pause = 2.0  # seconds between two looks at the beginning
        self.settling = 30.0  # seconds to see a machine of whose creation the answer was lost

    def sealed(self, what: str, spec: ImageSpec, mark: Mark, job: Job) -> Guest:
        """Return a template that was made of the base, prepared and sealed. It still has its mark as incomplete."""
        node = pick_node(self._session, what)
        stores = [one for one in stores_of(self._session, what, node) if one.get("active", 1)]
        by_volume = is_fetched(spec.base) or (":" in spec.base and not spec.base.startswith(INSTANCE))
        base = self._bases.volume(what, spec, node, stores, job) if by_volume else self._bases.guest(what, spec.base)
        guest = self._made(what, spec, base, node, stores, mark, job)
        try:
            guest = self._configured(what, spec, guest, job)
            guest = self._power.start(guest, job)
            self._wait_for_agent(what, guest, job)
            golden.prepare(spec, lambda script: self._agent.run(guest, script, job), job)
            guest = self._stopped(guest, job)
        finally:
            self._drop_seed_late(what, guest, spec, job)
        guest = self._cleaned(what, guest, job)
        return self._converted(what, guest, job)

    def unlocked(self, what: str, guest: Guest, job: Job) -> Guest:
        """Wait until nothing works on a guest any more."""
        pause = self.first_pause
        while guest.lock in ("create", "clone"):
            job.check(
                f"{what}: {guest.vmid} on {guest.node} is locked ({guest.lock}) and was not freed; if nothing works on "
                f"it any more, `qm unlock {guest.vmid}` frees it; it was waited for"
            )
            job.pause(pause)
            pause = min(2 * pause, 10.0)
            fresh = self._guests.read(guest)
            if fresh is None:
                return guest
            guest = fresh
        return guest

    def put(self, what: str, guest: Guest, values: Mapping[str, Any], doing: str, job: Job) -> Guest:
        self._session.put(f"{guest.path}/config", values, what=what, asked=doing, job=job)
        fresh = self.fresh(what, guest)
        return self._guests.note(fresh).evolve(config=fresh.config)

    def fresh(self, what: str, guest: Guest) -> Guest:
        found = self._guests.read(guest)
        if found is None:
            raise NotFound(f"{what}: the guest {guest.vmid} that it is built in is gone: somebody removed it")
        return with_config(found, found.config or {})

    def drop_seed(self, what: str, guest: Guest, job: Job) -> None:
        volume = f"{self._session.settings.iso_storage}:iso/{_seed_name(guest)}"
        remove_file(self._session, self._tasks, what, guest.node, volume, job)

    # -- steps --------------------------------------------------------------------------------------------------------

    def _made(
        self,
        what: str,
        spec: ImageSpec,
        base: Base,
        node: str,
        stores: Sequence[Mapping[str, Any]],
        mark: Mark,
        job: Job,
    ) -> Guest:
        """Return a stopped guest of the base, marked as incomplete. A number that another took meanwhile is passed."""
        taken = 0
        for _number in range(IDS):
            vmid = self._sources.new_id(job, taken)
            try:
                if base.guest is not None:
                    return self._cloned(what, spec, base, base.guest, vmid, mark, job)
                return self._imported(
                    what, spec, base, node, disk_storage(self._session, what, node, stores), vmid, mark, job
                )
            except FleetError as error:
                if not reply_of(error).taken:
                    raise
                taken = vmid
        raise Conflict(f"{what}: no free number was found, the last that was tried is {taken}")

    def _imported(
        self, what: str, spec: ImageSpec, base: Base, node: str, storage: str, vmid: int, mark: Mark, job: Job
    ) -> Guest:
        job.report(f"import {base.volume}")
        settings = self._session.settings
        values = {
            "vmid": vmid,
            "name": spec.image_name,
            "ostype": "l26",
            "cpu": "x86-64-v2-AES",
            "cores": spec.cpu or CPU,
            "memory": configs.mebibytes(what, "memory", spec.memory) if spec.memory else MEMORY,
            "scsihw": "virtio-scsi-pci",
            "scsi0": f"{storage}:0,import-from={base.volume}",
            "boot": "order=scsi0",
            "net0": f"virtio,bridge={settings.bridge}",
            "agent": "enabled=1",
            "serial0": "socket",
            "vga": "serial0",
            "tags": ";".join(mark.tags()),
            "description": f"Golden image of the family {spec.name}, made from {shown(spec.base)}",
            "pool": settings.pool or None,
        }
        if spec.user_data is None:
            values.update(ide2=f"{storage}:cloudinit", ipconfig0="ip=dhcp")
        guest = Guest(vmid, spec.image_name, node, tags=";".join(mark.tags()))
        self._task(what, guest, f"/nodes/{node}/qemu", values, "make the machine that it is built in", job)
        return self.fresh(what, guest)

    def _cloned(self, what: str, spec: ImageSpec, base: Base, source: Guest, vmid: int, mark: Mark, job: Job) -> Guest:
        job.report(f"clone {source.machine_name}")
        settings = self._session.settings
        values = {
            "newid": vmid,
            "name": spec.image_name + SUFFIX,
            "full": True,
            "snapname": base.snapshot or None,
            "storage": settings.storage or None,
            "pool": settings.pool or None,
            "description": f"Golden image of the family {spec.name}, made from {shown(spec.base)}",
        }
        guest = Guest(vmid, spec.image_name + SUFFIX, source.node)
        self._task(what, guest, f"{source.path}/clone", values, "clone its base", job)
        fresh = self.fresh(what, guest)
        keys: dict[str, Any] = {"name": spec.image_name, "tags": ";".join(mark.tags()), "agent": "enabled=1"}
        if spec.cpu:
            keys.update(cores=spec.cpu, sockets=1)
        if spec.memory:
            keys["memory"] = configs.mebibytes(what, "memory", spec.memory)
        if spec.user_data is None and configs.cloudinit_of(fresh.config or {}) is not None:
            keys["ipconfig0"] = "ip=dhcp"
        return self.put(what, fresh, keys, "mark it", job)

    def _task(self, what: str, guest: Guest, path: str, values: Mapping[str, Any], doing: str, job: Job) -> None:
        """Have a guest made. When the answer was lost, it is looked for."""
        try:
            upid = self._session.post(path, values, what=what, asked=doing, job=job)
        except FleetError as error:
            reply = reply_of(error)
            if not (reply.sent and reply.status in (0, 502, 504, 596, 597, 598, 599)):
                raise
            job.report("the answer was lost: look whether it was made")
            if not self._appeared(what, guest, job):
                raise
            return
        self._tasks.run(upid, job, what=what, doing=doing)

    def _appeared(self, what: str, guest: Guest, job: Job) -> bool:
        limit = time.monotonic() + self.settling
        while time.monotonic() < limit and job.left():
            fresh = self._guests.read(guest)
            if fresh is not None and fresh.name == guest.name:
                fresh = self.unlocked(what, fresh, job)
                return self._guests.read(fresh) is not None and configs.disk_of(fresh.config or {}) is not None
            if fresh is not None and fresh.name:
                return False  # another's
            job.pause(self.first_pause)
        return False

    def _configured(self, what: str, spec: ImageSpec, guest: Guest, job: Job) -> Guest:
        """Give the guest its disk size and its user data."""
        disk = configs.disk_of(guest.config or {})
        if disk is None:
            raise Conflict(f"{what}: its base has no disk")
        if spec.disk and disk.size and spec.disk < disk.size:
            raise InvalidInput(
                f"{what}: disk: expected at least {format_size(disk.size)}, as the base has, found "
                f"{format_size(spec.disk)}"
            )
        if spec.disk and spec.disk > disk.size:
            job.report(f"enlarge its disk to {format_size(spec.disk)}")
            values = {"disk": disk.slot, "size": f"{configs.mebibytes(what, 'disk', spec.disk)}M"}
            upid = self._session.put(f"{guest.path}/resize", values, what=what, asked="enlarge its disk", job=job)
            self._tasks.run(upid, job, what=what, doing="enlarge its disk")
        if spec.user_data is None:
            return self.fresh(what, guest)
        return self._seeded(what, spec, guest, job)

    def _seeded(self, what: str, spec: ImageSpec, guest: Guest, job: Job) -> Guest:
        """Attach the user data on a CD, which no API can give as they are."""
        job.report("hand the user data over")
        storage, name = self._session.settings.iso_storage, _seed_name(guest)
        with tempfile.TemporaryDirectory(prefix="fleet-") as folder:
            path = os.path.join(folder, name)
            nocloud.build(path, spec.user_data, nocloud.meta_data(f"build-{spec.image_name}", spec.name))
            with open(path, "rb") as file:
                upid = self._session.upload(
                    guest.node, storage, file, "iso", what=what, asked="upload user data", job=job
                )
        self._tasks.run(upid, job, what=what, doing="upload user data")
        slot = configs.seed_slot(guest.config or {})
        return self.put(what, guest, {slot: f"{storage}:iso/{name},media=cdrom"}, "attach the user data", job)

    def _wait_for_agent(self, what: str, guest: Guest, job: Job) -> None:
        job.report("wait for the guest agent")
        pause = self.first_pause
        while self._agent.addresses(guest, (), job) is None:
            job.check(
                f"{what}: the guest agent of {guest.vmid} did not answer; the base or its user data must bring "
                "qemu-guest-agent: it did not come up"
            )
            job.pause(pause)
            pause = min(1.5 * pause, 5.0)

    def _stopped(self, guest: Guest, job: Job) -> Guest:
        """Everything is on the disk already; a machine that nobody can reach any more may not obey."""
        try:
            return self._power.stop(guest, Job.lasting(min(job.left(), SHUTDOWN), job.report))
        except (TimedOut, TaskFailed):
            fresh = self._guests.read(guest) or guest
            return self._power.stop(fresh, job, force=True)

    def _cleaned(self, what: str, guest: Guest, job: Job) -> Guest:
        """Take away what machines made from the image must not inherit."""
        fresh = self.fresh(what, guest)
        config = fresh.config or {}
        gone = [drive.slot for drive in configs.drives_of(config) if drive.cdrom]
        gone += [key for key in config if key in _FORGOTTEN or key.startswith(("ipconfig", "unused"))]
        return self.put(what, fresh, {"delete": ",".join(sorted(gone))}, "clean it", job) if gone else fresh

    def _converted(self, what: str, guest: Guest, job: Job) -> Guest:
        job.report("make a template of it")
        doing = "make a template of it"
        try:
            upid = self._session.post(f"{guest.path}/template", what=what, asked=doing, job=job)
            self._tasks.run(upid, job, what=what, doing=doing)
        except FleetError as error:
            reply = reply_of(error)
            if not reply.sent or reply.status not in (0, 502, 504, 596, 597, 598, 599):
                raise
            job.pause(self.first_pause)
        fresh = self.fresh(what, guest)
        if not fresh.template or not qm.is_base({key: str(value) for key, value in (fresh.config or {}).items()}):
            raise ProcessFailed(f"{what}: {guest.vmid} did not become a template wholly: its disk is no base volume")
        return fresh

    def _drop_seed_late(self, what: str, guest: Guest, spec: ImageSpec, job: Job) -> None:
        """Take the user data away, also when the time is over; an error of the build is worth more than one of this.

        A CD that a guest still has is in its way only when that guest is started again, which nobody does.
        """
        if spec.user_data is None:
            return
        late = Job.lasting(max(job.left(), 30.0), job.report)
        try:
            self.drop_seed(what, guest, late)
        except FleetError as error:
            job.report(f"the user data could not be removed: {error.message}")


def _seed_name(guest: Guest) -> str:
    return f"fleet-build-{guest.vmid}.iso"
