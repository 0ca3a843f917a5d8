# SPDX-License-Identifier: GPL-3.0-or-later
"""Golden images of Proxmox VE: templates that machines are cloned from, built without SSH by the API alone.

One is marked as incomplete from its first moment until it is a template whose disks are base volumes. What an
interrupted build left is removed by the next one of the same image.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING

from . import proxmox_qm as qm
from .provider import Job
from .proxmox_api import Session
from .proxmox_config_tags import SUFFIX
from .proxmox_images_base import is_fetched, shown
from .proxmox_images_build import CPU, MEMORY, Building
from .proxmox_machines import Guest, Guests
from .proxmox_machines_power import Power
from .proxmox_machines_sources import Sources
from .proxmox_marks import Mark, image_of, mark_of, tags_of
from .proxmox_tasks import TaskFailed, Tasks

if TYPE_CHECKING:
    from fleet_core.errors import Conflict, NotFound
    from fleet_core.images import GOLDEN, Image, ImageSpec

    from .proxmox_ssh import Execute, SshSettings
else:
    try:
        from ..fleet_core.errors import Conflict, NotFound
        from ..fleet_core.images import GOLDEN
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import Conflict, NotFound
        from fleet_core.images import GOLDEN

Lock = Callable[[str, Job], AbstractContextManager[None]]


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


class Images:
    """lock: keeps two builds of one image on this host apart. clock: the present time, ISO 8601."""

    def __init__(
        self, session: Session, tasks: Tasks, guests: Guests, power: Power, sources: Sources, lock: Lock,
        clock: Callable[[], str] = _now,
    ) -> None:  # fmt: skip
        self._session, self._guests, self._power, self._sources = session, guests, power, sources
        self._lock, self._clock = lock, clock
        self.building = Building(session, tasks, guests, power, sources)

    @staticmethod
    def execute(how: SshSettings) -> Execute:
        """Return what runs commands on a node."""
        from .proxmox_ssh import OpenSSH

        return OpenSSH(how.destination, how.config)

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

    # -- parts --------------------------------------------------------------------------------------------------------

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
        fresh = self.building.unlocked(what, fresh, job)
        self.building.drop_seed(what, fresh, job)  # first: when the machine is gone, nothing tells of its file
        try:
            self._power.delete(fresh, job)
        except TaskFailed as error:
            if "in use" not in error.said and "linked clone" not in error.said:
                raise
            raise Conflict(f"{what}: machines share its disk, as linked clones: {error.said.strip()[:200]}") from error

    def _built(self, what: str, spec: ImageSpec, job: Job) -> Image:
        mark = Mark(spec.inputs, self._clock(), spec.login, incomplete=True)
        guest = self.building.sealed(what, spec, mark, job)
        return self._mark(what, guest, replace(mark, incomplete=False), job)

    def _mark(self, what: str, guest: Guest, mark: Mark, job: Job) -> Image:
        return _image(self.building.put(what, guest, {"tags": ";".join(mark.tags())}, "mark it", job))

    def _by_ssh(self, spec: ImageSpec, there: Guest | None, job: Job) -> Image:
        """Build it by qm, for versions whose API imports no disks."""
        from . import proxmox_ssh as ssh

        settings = self._session.settings
        how = ssh.ssh_settings(settings.ssh)
        vmid = there.vmid if there else self._fixed(spec, how.ids)
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
        mark = ssh.build(spec, template, how.snippets, self._clock(), self.execute(how), job)
        self._guests.refresh()
        found = next((one for one in self.all() if one.name == spec.image_name and one.kind == GOLDEN), None)
        if found is None:
            raise NotFound(f'image "{spec.image_name}": it was built as {mark.inputs}, and is not listed')
        return found

    def _fixed(self, spec: ImageSpec, ids: Mapping[str, int]) -> int:
        """Return the number that an image is to have, 0 for any: the older images of its family keep theirs."""
        wanted = ids.get(spec.image_name) or ids.get(spec.name) or 0
        older = [image for image in self.all() if image.kind == GOLDEN and image.family == spec.name]
        return 0 if wanted in [image.detail.get("vmid") for image in older] else wanted


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
