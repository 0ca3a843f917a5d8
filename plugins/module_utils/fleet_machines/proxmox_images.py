# SPDX-License-Identifier: GPL-3.0-or-later
"""Golden images of Proxmox VE: templates that machines are cloned from, built without SSH by the API alone.

One is marked as incomplete from its first moment until it is a template whose disks are base volumes. What an
interrupted build left is removed by the next one of the same image.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
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
from .proxmox_marks import Mark, image_of, mark_of, tags_of
from .proxmox_tasks import TaskFailed, Tasks

if TYPE_CHECKING:
    from fleet_core.errors import Conflict, FleetError, InvalidInput, NotFound, ProcessFailed, TimedOut
    from fleet_core.images import GOLDEN, Image, ImageSpec
    from fleet_core.quantities import format_size
else:
    try:
        from ..fleet_core.errors import Conflict, FleetError, InvalidInput, NotFound, ProcessFailed, TimedOut
        from ..fleet_core.images import GOLDEN
        from ..fleet_core.quantities import format_size
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import Conflict, FleetError, InvalidInput, NotFound, ProcessFailed, TimedOut
        from fleet_core.images import GOLDEN
        from fleet_core.quantities import format_size

Lock = Callable[[str, Job], AbstractContextManager[None]]

CPU = 2
MEMORY = 2048  # MiB
SHUTDOWN = 120.0  # seconds for a sealed machine to shut down; all is on its disk, so it is powered off then
IDS = 10  # numbers that are tried, when others take them at the same time
# What a machine made from the image must get for itself.
_FORGOTTEN = ("ciuser", "cipassword", "sshkeys", "cicustom", "nameserver", "searchdomain")


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


class Images:
    """lock: keeps two builds of one image on this host apart. clock: the present time, ISO 8601.

    first_pause: seconds between two looks at the beginning. settling: seconds to see a machine of whose creation the
    answer was lost.
    """

    first_pause = 2.0
    settling = 30.0

    def __init__(
        self, session: Session, tasks: Tasks, guests: Guests, power: Power, sources: Sources, lock: Lock,
        clock: Callable[[], str] = _now,
    ) -> None:  # fmt: skip
        self._session, self._tasks, self._guests, self._sources = session, tasks, guests, sources
        self._agent, self._power, self._lock, self._clock = power.agent, power, lock, clock
        self._bases = Bases(session, tasks, guests)

    def all(self) -> tuple[Image, ...]:
        """Return all templates, and golden images in the making, from the one list of all guests."""
        return self._sources.images()

    def build(self, spec: ImageSpec, job: Job) -> Image:
        """Build a golden image, or return the one that exists of the same inputs."""
        what = f'image "{spec.image_name}"'
        with self._lock(f"image-{spec.image_name}", job):
            there = self._there(what, spec)
            if there is not None:
                whole = self._finished(what, there, job)
                if whole is not None:
                    return whole
                if not (self._session.settings.ssh and is_fetched(spec.base)):
                    self._clear(what, there, job)
            if self._session.settings.ssh and is_fetched(spec.base):
                return self._by_ssh(spec, there, job)
            return self._built(what, spec, job)

    def delete(self, name: str, job: Job) -> None:
        """Remove a golden image. Raises Conflict while machines share its disk."""
        what = f'image "{name}"'
        found = [
            guest
            for guest in self._guests.all(age=0.0)
            if name in (guest.machine_name, str(guest.vmid)) and mark_of(tags_of(guest.tags)) and guest.is_image
        ]
        if not found:
            raise NotFound(f"{what}: there is no golden image of that name")
        for guest in found:
            self._clear(what, guest, job)

    # -- what is there ------------------------------------------------------------------------------------------------

    def _there(self, what: str, spec: ImageSpec) -> Guest | None:
        """Return the image, or what an earlier build left of it. Raises Conflict for anything else of its name."""
        found = [guest for guest in self._guests.all(age=0.0) if guest.machine_name == spec.image_name]
        for guest in found:
            ours = mark_of(tags_of(guest.tags)) is not None or guest.name.endswith(SUFFIX)
            if not ours:
                kind = "a template" if guest.template else "a machine"
                raise Conflict(f"{what}: {guest.vmid} on {guest.node} is {kind} of that name, not made by the fleet")
        return found[0] if found else None

    def _finished(self, what: str, guest: Guest, job: Job) -> Image | None:
        """Return the image if it is whole; of one that only lacks its last mark, that is set."""
        mark = mark_of(tags_of(guest.tags))
        if mark is None or not guest.template:
            return None
        if not mark.incomplete:
            return _image(guest)
        fresh = self._guests.read(guest)
        if fresh is None or not qm.is_base({key: str(value) for key, value in (fresh.config or {}).items()}):
            return None
        return self._mark(what, fresh, replace(mark, incomplete=False), job)

    def _clear(self, what: str, guest: Guest, job: Job) -> None:
        """Remove a guest with all that belongs to it."""
        fresh = self._guests.read(guest)
        if fresh is None:
            return
        job.report(f"remove {fresh.machine_name}" + ("" if fresh.template else ", which an earlier build left"))
        fresh = self._unlocked(what, fresh, job)
        try:
            self._power.delete(fresh, job)
        except TaskFailed as error:
            if "in use" not in error.said and "linked clone" not in error.said:
                raise
            raise Conflict(f"{what}: machines share its disk, as linked clones: {error.said.strip()[:200]}") from error
        self._drop_seed(what, fresh, job)

    def _unlocked(self, what: str, guest: Guest, job: Job) -> Guest:
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

    # -- building -----------------------------------------------------------------------------------------------------

    def _built(self, what: str, spec: ImageSpec, job: Job) -> Image:
        node = pick_node(self._session, what)
        stores = [one for one in stores_of(self._session, what, node) if one.get("active", 1)]
        by_volume = is_fetched(spec.base) or (":" in spec.base and not spec.base.startswith(INSTANCE))
        base = self._bases.volume(what, spec, node, stores, job) if by_volume else self._bases.guest(what, spec.base)
        mark = Mark(spec.inputs, self._clock(), spec.login, incomplete=True)
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
        guest = self._converted(what, guest, job)
        return self._mark(what, guest, replace(mark, incomplete=False), job)

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
        return self._fresh(what, guest)

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
        fresh = self._fresh(what, guest)
        keys: dict[str, Any] = {"name": spec.image_name, "tags": ";".join(mark.tags()), "agent": "enabled=1"}
        if spec.cpu:
            keys.update(cores=spec.cpu, sockets=1)
        if spec.memory:
            keys["memory"] = configs.mebibytes(what, "memory", spec.memory)
        if spec.user_data is None and configs.cloudinit_of(fresh.config or {}) is not None:
            keys["ipconfig0"] = "ip=dhcp"
        return self._put(what, fresh, keys, "mark it", job)

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
                fresh = self._unlocked(what, fresh, job)
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
            return self._fresh(what, guest)
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
        return self._put(what, guest, {slot: f"{storage}:iso/{name},media=cdrom"}, "attach the user data", job)

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
        fresh = self._fresh(what, guest)
        config = fresh.config or {}
        gone = [drive.slot for drive in configs.drives_of(config) if drive.cdrom]
        gone += [key for key in config if key in _FORGOTTEN or key.startswith(("ipconfig", "unused"))]
        return self._put(what, fresh, {"delete": ",".join(sorted(gone))}, "clean it", job) if gone else fresh

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
        fresh = self._fresh(what, guest)
        if not fresh.template or not qm.is_base({key: str(value) for key, value in (fresh.config or {}).items()}):
            raise ProcessFailed(f"{what}: {guest.vmid} did not become a template wholly: its disk is no base volume")
        return fresh

    def _mark(self, what: str, guest: Guest, mark: Mark, job: Job) -> Image:
        return _image(self._put(what, guest, {"tags": ";".join(mark.tags())}, "mark it", job))

    # -- small parts --------------------------------------------------------------------------------------------------

    def _put(self, what: str, guest: Guest, values: Mapping[str, Any], doing: str, job: Job) -> Guest:
        self._session.put(f"{guest.path}/config", values, what=what, asked=doing, job=job)
        fresh = self._fresh(what, guest)
        return self._guests.note(fresh).evolve(config=fresh.config)

    def _fresh(self, what: str, guest: Guest) -> Guest:
        found = self._guests.read(guest)
        if found is None:
            raise NotFound(f"{what}: the guest {guest.vmid} that it is built in is gone: somebody removed it")
        return with_config(found, found.config or {})

    def _drop_seed(self, what: str, guest: Guest, job: Job) -> None:
        volume = f"{self._session.settings.iso_storage}:iso/{_seed_name(guest)}"
        remove_file(self._session, self._tasks, what, guest.node, volume, job)

    def _drop_seed_late(self, what: str, guest: Guest, spec: ImageSpec, job: Job) -> None:
        """Take the user data away, also when the time is over; an error of the build is worth more than one of this.

        A CD that a guest still has is in its way only when that guest is started again, which nobody does.
        """
        if spec.user_data is None:
            return
        late = Job.lasting(max(job.left(), 30.0), job.report)
        try:
            self._drop_seed(what, guest, late)
        except FleetError as error:
            job.report(f"the user data could not be removed: {error.message}")

    def _by_ssh(self, spec: ImageSpec, there: Guest | None, job: Job) -> Image:
        """Build it by qm, for versions whose API imports no disks."""
        from . import proxmox_ssh as ssh

        settings = self._session.settings
        how = ssh.ssh_settings(settings.ssh)
        vmid = there.vmid if there else how.ids.get(spec.image_name) or how.ids.get(spec.name)
        template = qm.Template(
            vmid or self._sources.new_id(job),
            spec.image_name,
            spec.base[len("file://") :] if spec.base.startswith("file://") else spec.base,
            checksum=spec.checksum,
            storage=settings.storage or "local-lvm",
            bridge=settings.bridge,
            cpu=spec.cpu or CPU,
            memory=spec.memory or MEMORY * 1024**2,
            disk=spec.disk or 0,
            description=f"Golden image of the family {spec.name}, made from {shown(spec.base)}",
            folder=how.cache,
        )
        execute = ssh.OpenSSH(how.destination, how.config)
        mark = ssh.build(spec, template, how.snippets, self._clock(), execute, job)
        self._guests.refresh()
        found = next((one for one in self.all() if one.name == spec.image_name and one.kind == GOLDEN), None)
        if found is None:
            raise NotFound(f'image "{spec.image_name}": it was built as {mark.inputs}, and is not listed')
        return found


def _image(guest: Guest) -> Image:
    return image_of(
        {
            "vmid": guest.vmid,
            "name": guest.name,
            "node": guest.node,
            "tags": guest.tags,
            "template": guest.template,
            "maxdisk": guest.disk,
        }
    )


def _seed_name(guest: Guest) -> str:
    return f"fleet-build-{guest.vmid}.iso"
