# SPDX-License-Identifier: GPL-3.0-or-later
"""What a machine is cloned from, on which node it is made, and under which id."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import proxmox_config as configs
from .provider import Job
from .proxmox_api import Session
from .proxmox_machines import Guest, Guests
from .proxmox_marks import image_of

if TYPE_CHECKING:
    from fleet_core.checkpoints import check_checkpoint_name
    from fleet_core.errors import Conflict, InvalidInput, NotFound, Unavailable
    from fleet_core.images import Image, newest
    from fleet_core.machines import MachineSpec, check_machine_name
    from fleet_core.quantities import format_size
else:
    try:
        from ..fleet_core.checkpoints import check_checkpoint_name
        from ..fleet_core.errors import Conflict, InvalidInput, NotFound, Unavailable
        from ..fleet_core.images import newest
        from ..fleet_core.machines import check_machine_name
        from ..fleet_core.quantities import format_size
    except ImportError:  # installed as a top-level package
        from fleet_core.checkpoints import check_checkpoint_name
        from fleet_core.errors import Conflict, InvalidInput, NotFound, Unavailable
        from fleet_core.images import newest
        from fleet_core.machines import check_machine_name
        from fleet_core.quantities import format_size

INSTANCE = "instance:"
AGE = 30.0  # seconds that what is known of nodes and templates serves for


@dataclass(frozen=True)
class Source:
    """guest: with its configuration. image: the name to record. snapshot: of it, or empty. target: the node of the
    new machine. login: the account of machines made from it, when it is known. golden: built by the fleet."""

    guest: Guest
    image: str
    target: str
    snapshot: str = ""
    login: str = ""
    golden: bool = False


class Sources:
    """Finds sources for many machines at once; what is asked for one serves for all."""

    def __init__(self, session: Session, guests: Guests) -> None:
        self.session, self.guests = session, guests
        self._lock = threading.Lock()
        self._asking = threading.Lock()
        self._configs: dict[int, tuple[float, Mapping[str, Any]]] = {}
        self._shared: dict[tuple[str, str], bool] = {}
        self._nodes: dict[str, float] = {}  # online ones, with their free memory in bytes
        self._when = float("-inf")
        self._next = 0
        self._given: set[int] = set()

    def image_of(self, spec: MachineSpec) -> str:
        """Return the full name of the image that a machine is to be made from."""
        return spec.image if spec.image.startswith(INSTANCE) else self._image(spec).name

    def images(self, age: float = 2.0) -> tuple[Image, ...]:
        """Return the golden images, and all other templates."""
        return tuple(image_of(_item(guest)) for guest in self.guests.all(age) if guest.is_image)

    def find(self, spec: MachineSpec, job: Job) -> Source:
        """Return what a machine is made from. Raises InvalidInput, NotFound or Conflict, which name the machine."""
        found = self._instance(spec) if spec.image.startswith(INSTANCE) else self._template(spec)
        what = f'machine "{spec.name}"'
        disk = configs.disk_of(found.guest.config or {})
        if disk is None:
            raise InvalidInput(f'{what}: image: "{spec.image}" has no disk to boot from')
        if spec.disk is not None and spec.disk < disk.size:
            raise InvalidInput(
                f'{what}: disk: "{spec.image}" has one of {format_size(disk.size)}, which cannot get smaller, '
                f"found {format_size(spec.disk)}"
            )
        for field, size in (("memory", spec.memory), ("disk", spec.disk)):
            if size is not None:
                configs.mebibytes(what, field, size)
        return found

    def new_id(self, job: Job, taken: int = 0) -> int:
        """Return an id for a new guest. taken: one that turned out not to be free.

        Proxmox tells the next free one; those behind it are given to other threads without asking again.
        """
        with self._lock:
            if taken or not self._next:
                found = self.session.get("/cluster/nextid", asked="ask for a free id", job=job)
                self._next = max(int(found), taken + 1 if taken else 0)
            known = {guest.vmid for guest in self.guests.all(AGE)} | self._given
            while self._next in known:
                self._next += 1
            self._given.add(self._next)
            return self._next

    # -- parts --------------------------------------------------------------------------------------------------------

    def _instance(self, spec: MachineSpec) -> Source:
        name, _dot, snapshot = spec.image[len(INSTANCE) :].partition(".")
        what = f'machine "{spec.name}": image'
        try:
            check_machine_name(name)
            if snapshot:
                check_checkpoint_name(snapshot)
        except InvalidInput as error:
            raise InvalidInput(
                f"{what}: expected instance:NAME or instance:NAME.CHECKPOINT: {error.message}"
            ) from error
        try:
            guest = self.guests.get(name)
        except NotFound:
            raise NotFound(f'{what}: the machine "{name}" to clone does not exist') from None
        if not snapshot and guest.status != "stopped":
            raise Conflict(f'{what}: the machine "{name}" to clone is {guest.status}; stop it, or name a checkpoint')
        target = self.session.settings.node or guest.node
        disks = self._disks(guest)
        if target != guest.node and not all(self._is_shared(guest.node, storage) for storage in disks):
            target = guest.node  # a copy is made where the original is
        return Source(guest, spec.image, target, snapshot, guest.marks.login)

    def _image(self, spec: MachineSpec) -> Image:
        what = f'machine "{spec.name}": image'
        if not spec.image:
            raise InvalidInput(f"{what}: expected a template, a golden image or instance:NAME")
        for age in (AGE, 1.0):  # it may have been built a moment ago
            found = newest(self.images(age), spec.image)
            if found is not None and not found.incomplete:
                return found
        if found is not None:
            raise Conflict(f'{what}: "{spec.image}" is incomplete: {found.incomplete}')
        known = ", ".join(sorted({guest.name for guest in self.guests.all(AGE) if guest.is_image})) or "none"
        raise NotFound(f'{what}: there is no template "{spec.image}" in {self.session.settings.where}; there: {known}')

    def _template(self, spec: MachineSpec) -> Source:
        image = self._image(spec)
        guests = [self._configured(guest) for guest in self.guests.templates(image.name, AGE)]
        if not guests:
            raise NotFound(f'machine "{spec.name}": image: the template "{image.name}" is gone')
        guest, target = self._place(spec, guests)
        login = str(image.detail.get("login") or "")
        return Source(guest, image.name, target, login=login, golden=bool(image.inputs))

    def _place(self, spec: MachineSpec, guests: Sequence[Guest]) -> tuple[Guest, str]:
        """Return which of the templates of one name is cloned, and to which node."""
        wanted = self.session.settings.node
        here = {guest.node: guest for guest in guests}
        anywhere = next((guest for guest in guests if self._everywhere(guest)), None) if self._several() else None
        if wanted:
            if wanted in here:
                return here[wanted], wanted
            if anywhere is not None:
                return anywhere, wanted
            raise InvalidInput(
                f'machine "{spec.name}": the template "{guests[0].name}" is on {", ".join(sorted(here))} only, on '
                f"storage that {wanted} does not share; make it there too, or name another node in the setting node"
            )
        nodes = [node for node in self._free() if anywhere is not None or node in here]
        if not nodes:
            raise Unavailable(
                f'machine "{spec.name}": the nodes with the template "{guests[0].name}", {", ".join(sorted(here))}, '
                "are not online"
            )
        memory = spec.memory or configs.memory_of(guests[0].config or {})
        with self._lock:
            best = max(nodes, key=lambda node: (self._nodes.get(node, 0.0), node))
            if best in self._nodes:
                self._nodes[best] -= memory  # the next machine sees that
        return here.get(best) or anywhere or guests[0], best

    def _several(self) -> bool:
        return len(self._free()) > 1

    def _free(self) -> dict[str, float]:
        """The nodes that are online, with their free memory."""
        with self._asking:
            if time.monotonic() - self._when > AGE:
                found = self.session.get("/nodes", asked="list the nodes")
                self._nodes = {
                    str(node["node"]): float(node.get("maxmem") or 0) - float(node.get("mem") or 0)
                    for node in found or ()
                    if node.get("status", "online") == "online"
                }
                self._when = time.monotonic()
            return dict(self._nodes)

    def _everywhere(self, guest: Guest) -> bool:
        return all(self._is_shared(guest.node, storage) for storage in self._disks(guest))

    def _disks(self, guest: Guest) -> set[str]:
        drives = configs.drives_of(guest.config or {})
        return {drive.storage for drive in drives if not drive.cdrom and drive.storage}

    def _is_shared(self, node: str, storage: str) -> bool:
        with self._asking:
            if (node, storage) not in self._shared:
                for item in self.session.get(f"/nodes/{node}/storage", asked=f"list the storage of {node}") or ():
                    self._shared[(node, str(item["storage"]))] = bool(int(item.get("shared") or 0))
            return self._shared.setdefault((node, storage), False)

    def _configured(self, guest: Guest) -> Guest:
        """A template with its configuration, which does not change."""
        with self._asking:
            when, config = self._configs.get(guest.vmid, (float("-inf"), {}))
            if time.monotonic() - when > AGE:
                asked = "read its configuration"
                config = self.session.get(f"{guest.path}/config", what=f'template "{guest.name}"', asked=asked)
                self._configs[guest.vmid] = (time.monotonic(), config)
        return guest.evolve(config=config)


def _item(guest: Guest) -> dict[str, Any]:
    return {
        "name": guest.name,
        "vmid": guest.vmid,
        "node": guest.node,
        "template": int(guest.template),
        "tags": guest.tags,
        "maxdisk": guest.disk,
    }
