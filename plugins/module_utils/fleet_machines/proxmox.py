# SPDX-License-Identifier: GPL-3.0-or-later
"""The provider proxmox: virtual machines of a Proxmox VE cluster, version 8 or 9, through its API.

A machine is a clone of a template, of a golden image, or of another machine. All that is known about it is kept in
Proxmox itself: what that has no place for, in its tags, which the one list of all machines shows. The host that this
runs on keeps nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from . import proxmox_config as configs
from .provider import Job, Ran, Surroundings
from .proxmox_api import Session
from .proxmox_checkpoints import Checkpoints
from .proxmox_config_tags import own_tags
from .proxmox_images import Images
from .proxmox_machines import PROVIDER, Guest, Guests, check_single, machine_of
from .proxmox_machines_agent import Agent
from .proxmox_machines_create import Creation, merged, new_mac
from .proxmox_machines_power import Power
from .proxmox_machines_sources import Sources
from .proxmox_settings import NAMES
from .proxmox_tasks import Tasks
from .records import Records

if TYPE_CHECKING:
    from fleet_core.checkpoints import Checkpoint
    from fleet_core.errors import InvalidInput, NotFound, ProcessFailed
    from fleet_core.images import Image, ImageSpec
    from fleet_core.machine_plans import LIVE, STOPPED, Capabilities, Difference
    from fleet_core.machines import Machine, MachineSpec
else:
    try:
        from ..fleet_core.errors import InvalidInput, NotFound, ProcessFailed
        from ..fleet_core.machine_plans import LIVE, STOPPED, Capabilities
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import InvalidInput, NotFound, ProcessFailed
        from fleet_core.machine_plans import LIVE, STOPPED, Capabilities

_PLUGGED = ("cpu", "memory", "networks")


class Proxmox:
    """See Provider for what the methods do.

    session, tasks, guests, agent and power are what its other parts work with.
    """

    name = PROVIDER

    def __init__(self, surroundings: Surroundings) -> None:
        self.session = Session(surroundings.settings)
        self.tasks = Tasks(self.session)
        self.guests = Guests(self.session, self.tasks)
        self.agent = Agent(self.session)
        self.power = Power(self.session, self.tasks, self.guests, self.agent)
        self.sources = Sources(self.session, self.guests)
        self.creation = Creation(self.session, self.tasks, self.guests, self.sources, self.power)
        self.saved = Checkpoints(self.session, self.tasks, self.guests)
        self.records = Records(surroundings.state_dir, PROVIDER)  # for its locks only
        self.golden = Images(self.session, self.tasks, self.guests, self.power, self.sources, self.records.locked)
        way = LIVE if self.session.settings.hotplug else STOPPED
        self.capabilities = Capabilities(
            changes={**dict.fromkeys(_PLUGGED, way), **dict.fromkeys(("disk", "tags", "project", "login"), LIVE)},
            live_checkpoints=True,
            settings=NAMES,
        )

    # -- what there is ------------------------------------------------------------------------------------------------

    def describe(self, names: Sequence[str] | None = None, *, full: bool = False) -> dict[str, Machine]:
        found = self.guests.machines(names, sure=names is not None, deep=full and names is not None)
        by_name: dict[str, list[Guest]] = {}
        for guest in sorted(found, key=lambda one: (one.machine_name, one.vmid)):
            by_name.setdefault(guest.machine_name or f"vm-{guest.vmid}", []).append(guest)
        result = {}
        for name, guests in by_name.items():
            if names is not None:
                check_single(name, guests)
            machine = machine_of(guests[0])
            if len(guests) > 1:
                machine = machine.evolve(detail={**machine.detail, "same_name": [one.vmid for one in guests[1:]]})
            result[name] = machine
        return result

    def images(self) -> tuple[Image, ...]:
        return self.golden.all()

    # -- machines -----------------------------------------------------------------------------------------------------

    def create(self, spec: MachineSpec, job: Job) -> Machine:
        with self.records.locked(spec.name, job):
            return machine_of(self.creation.create(spec, job))

    def change(self, spec: MachineSpec, differences: Sequence[Difference], job: Job) -> None:
        names = {difference.name for difference in differences}
        what = f'machine "{spec.name}"'
        guest = self.guests.get(spec.name)
        config = dict(guest.config or {})
        keys: dict[str, Any] = {}
        if "cpu" in names or "memory" in names:
            wanted = spec if {"cpu", "memory"} <= names else _only(spec, names)
            keys.update(configs.sizes(what, wanted, config))
        if "networks" in names and spec.networks is not None:
            keys.update(configs.nets(spec.networks, config, new_mac))
            _check_addresses(what, config, keys)
        if "disk" in names:
            guest = self.creation.grow(guest, spec.disk, job)
            config = dict(guest.config or {})
        changed = configs.changed(config, keys)
        self._set(guest, merged(config, changed), changed, spec, names, job)
        if guest.status == "running" and changed and self.session.settings.hotplug:
            self._check_pending(guest, what, job)

    def start(self, name: str, job: Job) -> Machine:
        guest = self.power.start(self.guests.get(name), job)
        return machine_of(self.power.ready(guest, job))

    def stop(self, name: str, job: Job, *, force: bool = False) -> None:
        self.power.stop(self.guests.get(name), job, force=force)

    def delete(self, name: str, job: Job) -> None:
        try:
            guest = self.guests.get(name)
        except NotFound:
            return
        self.power.delete(guest, job)

    def run(self, name: str, script: str, job: Job) -> Ran:
        return self.agent.run(self._listed(name), script, job)

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def checkpoints(self, names: Sequence[str] | None = None) -> dict[str, tuple[Checkpoint, ...]]:
        return self.saved.all(names)

    def checkpoint(self, name: str, checkpoint: str, job: Job, *, comment: str = "") -> Checkpoint:
        return self.saved.take(name, checkpoint, job, comment)

    def restore(self, name: str, checkpoint: str, job: Job) -> None:
        self.saved.restore(name, checkpoint, job, self.start)

    def delete_checkpoint(self, name: str, checkpoint: str, job: Job) -> None:
        self.saved.remove(name, checkpoint, job)

    # -- golden images ------------------------------------------------------------------------------------------------

    def build_image(self, spec: ImageSpec, job: Job) -> Image:
        return self.golden.build(spec, job)

    def delete_image(self, name: str, job: Job) -> None:
        self.golden.delete(name, job)

    # -- parts --------------------------------------------------------------------------------------------------------

    def _listed(self, name: str) -> Guest:
        """The machine of a name as it is listed: where it is does not change while scripts run in it."""
        return self.guests.find(name, age=30.0) or self.guests.get(name)

    def _set(
        self, guest: Guest, after: dict[str, Any], changed: dict[str, Any], spec: MachineSpec, names: set[str], job: Job
    ) -> None:
        """Set what differs, and with it the tags that tell of it, in one request."""
        marks = guest.marks
        disk = configs.disk_of(after)
        if names & {"tags", "project", "login"}:
            marks = marks.evolve(
                ours=True,
                tags=own_tags(spec.tags or ()) if "tags" in names else marks.tags,
                project=(spec.project or "") if "project" in names else marks.project,
                login=(spec.login or "") if "login" in names else marks.login,
            )
        if marks.ours:
            size = max(guest.disk, disk.size if disk else 0)
            marks = marks.evolve(
                networks=configs.networks_of(after),
                size=(configs.cpus_of(after), configs.memory_of(after) // configs.MIB, size // configs.MIB),
            )
            if marks.text() != str(after.get("tags") or ""):
                changed = {**changed, "tags": marks.text()}
        if not changed:
            return
        job.report("change its configuration")
        asked = "change its configuration"
        self.session.put(f"{guest.path}/config", changed, what=f'machine "{spec.name}"', asked=asked, job=job)
        self.guests.note(
            guest.evolve(
                tags=str(changed.get("tags", guest.tags)),
                cpu=configs.cpus_of(after),
                memory=configs.memory_of(after),
            )
        )

    def _check_pending(self, guest: Guest, what: str, job: Job) -> None:
        found = self.session.get(f"{guest.path}/pending", what=what, asked="read what is pending", job=job)
        waiting = sorted(str(item["key"]) for item in found or () if "pending" in item or item.get("delete"))
        if waiting:
            raise ProcessFailed(
                f"{what}: {', '.join(waiting)} cannot be changed while it runs, and will be at its next start; set "
                "hotplug: false in provider_settings, and reboot: true"
            )


def _only(spec: MachineSpec, names: set[str]) -> MachineSpec:
    """The machine with the sizes that differ: what is as wanted by another reading is not set again."""
    return replace(spec, cpu=spec.cpu if "cpu" in names else None, memory=spec.memory if "memory" in names else None)


def _check_addresses(what: str, config: dict[str, Any], keys: dict[str, Any]) -> None:
    """Raise InvalidInput for addresses of a machine whose seed holds them: that was made once."""
    changed = configs.changed(config, keys)
    seeded = any(configs.is_seed(drive) for drive in configs.drives_of(config))
    if seeded and any(key.startswith("ipconfig") for key in changed):
        raise InvalidInput(
            f"{what}: networks: its addresses came with its user data at its first boot, and cannot be changed from "
            "outside; change them inside, or set recreate: true to make it anew"
        )
