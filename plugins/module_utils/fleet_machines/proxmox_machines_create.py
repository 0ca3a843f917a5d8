# SPDX-License-Identifier: GPL-3.0-or-later
"""Making a machine: a clone, its configuration, its user data, a larger disk, its first start.

Each step finds out what is still to do, so one that was interrupted anywhere is taken up again. Until it has its tags a
clone is called NAME.incomplete; until it came up it has a tag that says so. A failed clone leaves nothing.
"""

from __future__ import annotations

import json
import random
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import nocloud
from . import proxmox_config as configs
from .provider import Job
from .proxmox_api import Session, reply_of
from .proxmox_config_tags import SUFFIX, Marks, own_tags
from .proxmox_config_user_data import native
from .proxmox_machines import Guest, Guests, incomplete_of, with_config
from .proxmox_machines_power import Power
from .proxmox_machines_sources import Source, Sources
from .proxmox_tasks import TaskFailed, Tasks

if TYPE_CHECKING:
    from fleet_core.errors import Conflict, FleetError, NotFound, ProcessFailed, TimedOut
    from fleet_core.machines import MachineSpec, Network
    from fleet_core.quantities import format_size
else:
    try:
        from ..fleet_core.errors import Conflict, FleetError, NotFound, ProcessFailed, TimedOut
        from ..fleet_core.machines import Network
        from ..fleet_core.quantities import format_size
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import Conflict, FleetError, NotFound, ProcessFailed, TimedOut
        from fleet_core.machines import Network
        from fleet_core.quantities import format_size

IDS = 20  # so many ids are tried
CLONES = 4  # so often a clone is begun that another operation's lock kept from ending
_LOCKS = re.compile(r"can't lock|got lock request timeout|is locked|got timeout|lock timeout")
_UNSURE = (0, 502, 504, 596, 597, 598, 599)
_BLOCK = re.compile(r"<!-- autovibe\.fleet (\{.*?\}) -->")


class Creation:
    """Makes machines, many at once."""

    def __init__(self, session: Session, tasks: Tasks, guests: Guests, sources: Sources, power: Power) -> None:
        self.session, self.tasks, self.guests, self.sources, self.power = session, tasks, guests, sources, power

    def create(self, spec: MachineSpec, job: Job) -> Guest:
        """Return a machine that is up. One that an earlier call left incomplete is finished, or made anew."""
        found = self.guests.find(spec.name)
        guest = None if found is None else self._left(found, spec, job)
        if guest is not None and guest.status == "running":
            kept = self._came_up(guest, job)
            if kept is not None:
                return kept
            guest = None
        source = self.sources.find(spec, job)
        if guest is None:
            guest = self._clone(spec, source, job)
        guest = self._configure(guest, spec, source, job)
        guest = self.grow(guest, spec.disk, job)
        guest = self.power.start(guest, job)
        return self.power.ready(guest, job, settled=_has_seed(guest))

    def grow(self, guest: Guest, size: int | None, job: Job) -> Guest:
        """Return a guest whose disk has at least this size."""
        what, config = f'machine "{guest.machine_name}"', dict(guest.config or {})
        disk = configs.disk_of(config)
        if size is None or disk is None or size <= (disk.size or guest.disk):
            return guest
        amount = f"{configs.mebibytes(what, 'disk', size)}M"
        job.report(f"grow its disk to {format_size(size)}")
        upid = self.session.put(
            f"{guest.path}/resize", {"disk": disk.slot, "size": amount}, what=what, asked="grow its disk", job=job
        )
        self.tasks.run(upid, job, what=what, doing="grow its disk")
        config[disk.slot] = re.sub(r"size=[^,]*", f"size={amount}", str(config[disk.slot]))
        guest = guest.evolve(disk=size, config=config)
        return self.guests.note(guest).evolve(config=config)

    # -- what was left ------------------------------------------------------------------------------------------------

    def _left(self, found: Guest, spec: MachineSpec, job: Job) -> Guest | None:
        """Return what an earlier call left of a machine, if it can be finished; otherwise remove it."""
        what = f'machine "{spec.name}"'
        guest = self.guests.read(found)
        if guest is not None and guest.lock in ("clone", "create"):
            guest = self._unlocked(guest, job)
        if guest is None:
            self.guests.forget(found)
            return None
        if not incomplete_of(guest):
            raise Conflict(
                f"{what}: there is one already, {guest.status}, virtual machine {guest.vmid} on {guest.node}"
            )
        marks, noted = guest.marks, _block(guest.config or {})
        image = marks.image or str(noted.get("image", ""))
        data = marks.user_data or str(noted.get("user_data", ""))
        if image == self.sources.image_of(spec) and data == spec.user_data_hash:
            job.report(f"finish virtual machine {guest.vmid}, which an earlier call left")
            return guest
        job.report("remove what an earlier call left of it")
        self.power.delete(guest, job)
        return None

    def _unlocked(self, guest: Guest, job: Job) -> Guest | None:
        """Wait for the clone that makes a guest. Raises Conflict when no task does that any more."""
        what, pause, idle = f'machine "{guest.machine_name}"', 0.5, 0
        job.report("wait for the clone that an earlier call began")
        while True:
            read = self.guests.read(guest)
            if read is None or not read.lock:
                return read
            idle = 0 if self._cloning(guest, job) else idle + 1
            if idle > 2:
                raise Conflict(
                    f"{what}: a clone that was interrupted locks it; run qm unlock {guest.vmid} on node {guest.node}, "
                    "and try again"
                )
            job.check(f"{what}: its clone did not end")
            job.pause(pause)
            pause = min(2 * pause, 5.0)

    def _cloning(self, guest: Guest, job: Job) -> bool:
        """Whether any clone is made on a node. Which one, Proxmox does not tell."""
        found = self.session.get(f"/nodes/{guest.node}/tasks", {"source": "active", "limit": 500}, job=job)
        return any(task.get("type") in ("qmclone", "qmcreate") and not task.get("endtime") for task in found or ())

    def _came_up(self, guest: Guest, job: Job) -> Guest | None:
        """Return a machine that an earlier call did not wait for, if it came up after all; otherwise remove it."""
        try:
            ready = self.power.ready(guest, Job(job.deadline - job.left() / 2, job.limit, job.report, job.ended))
            said = self.power.agent.settled(ready, job) if configs.agent_of(ready.config or {}) else ""
        except (ProcessFailed, TimedOut) as error:
            said = error.message
        else:
            if not said:
                job.report("it came up after all")
                return ready
        job.report(f"make it anew, for it did not come up: {said}")
        self.power.delete(guest, job)
        return None

    # -- steps --------------------------------------------------------------------------------------------------------

    def _clone(self, spec: MachineSpec, source: Source, job: Job) -> Guest:
        """Return the clone, whose id was free."""
        what, taken, failed = f'machine "{spec.name}"', 0, 0
        full = self._full(source)
        job.report(f"clone {source.guest.name}")
        for number in range(IDS):
            vmid = self.sources.new_id(job, taken)
            try:
                return self._one_clone(spec, source, vmid, full, job)
            except TaskFailed as error:
                failed += 1
                if failed >= CLONES or not _LOCKS.search(error.said):
                    raise
                job.report(f"clone it again: {error.said.strip()}")
                job.pause(self.session.first_pause * 2**failed * (1 + random.random()))
            except FleetError as error:
                reply = reply_of(error)
                if not full and "inked clone" in reply.said and self.session.settings.clone == "auto":
                    full = True  # the storage makes copies only
                elif not reply.taken or number == IDS - 1:
                    raise
                else:
                    taken = vmid
        raise Conflict(f"{what}: no free id was found, the last that was tried is {taken}")

    def _one_clone(self, spec: MachineSpec, source: Source, vmid: int, full: bool, job: Job) -> Guest:
        what, settings = f'machine "{spec.name}"', self.session.settings
        values = {
            "newid": vmid,
            "name": spec.name + SUFFIX,
            "full": full,
            "description": _description(source.image, spec.user_data_hash),
            "snapname": source.snapshot or None,
            "storage": (settings.storage or None) if full else None,
            "pool": settings.pool or None,
            "target": source.target if source.target != source.guest.node else None,
        }
        asked = f"clone {source.guest.name} to virtual machine {vmid}"
        guest = Guest(vmid, spec.name + SUFFIX, source.target, "stopped", lock="clone")
        try:
            upid = self.session.post(f"{source.guest.path}/clone", values, what=what, asked=asked, job=job)
        except FleetError as error:
            if reply_of(error).status not in _UNSURE or not reply_of(error).sent:
                raise
            return self._perhaps(guest, source, error, job)
        self.guests.note(guest)
        try:
            self.tasks.wait(upid, job, what=what, doing=asked)
        except (TaskFailed, NotFound):
            self.guests.forget(guest)  # Proxmox removes what it had made
            raise
        return self._cloned(guest, job)

    def _perhaps(self, guest: Guest, source: Source, error: FleetError, job: Job) -> Guest:
        """Return the clone although no answer told of it, if it was begun and ends."""
        job.report(f"look whether it was cloned: {error.message}")
        for node in dict.fromkeys((source.guest.node, guest.node)):
            job.pause(self.session.first_pause)
            read = self.guests.read(guest.evolve(node=node))
            if read is not None and (read.lock or read.name == guest.name):
                unlocked = self._unlocked(read.evolve(name=guest.name), job) if read.lock else read
                if unlocked is not None and unlocked.name == guest.name:
                    return self.guests.note(unlocked).evolve(config=unlocked.config)
        raise error

    def _cloned(self, guest: Guest, job: Job) -> Guest:
        what = f'machine "{guest.machine_name}"'
        config = self.session.get(f"{guest.path}/config", what=what, asked="read its configuration", job=job)
        found = with_config(guest, config)
        return self.guests.note(found).evolve(config=config)

    def _full(self, source: Source) -> bool:
        settings = self.session.settings
        if not source.guest.template or settings.clone == "full":
            return True
        disk = configs.disk_of(source.guest.config or {})
        elsewhere = bool(settings.storage) and disk is not None and disk.storage != settings.storage
        return elsewhere and settings.clone == "auto"

    def _configure(self, guest: Guest, spec: MachineSpec, source: Source, job: Job) -> Guest:
        """Return the guest with its configuration as wanted: one request sets what differs."""
        what, config = f'machine "{spec.name}"', dict(guest.config or {})
        keys: dict[str, Any] = {"name": spec.name, "protection": None, **configs.sizes(what, spec, config)}
        networks = spec.networks
        if networks is None and not configs.net_numbers(config):
            networks = (Network(self.session.settings.bridge),)
        if networks is not None:
            keys.update(configs.nets(networks, config, new_mac))
        keys.update(self._seed(guest, spec, source, merged(config, keys), job))
        marks = marks_for(spec, guest.evolve(config=merged(config, keys)), source).evolve(unfinished=True)
        keys["tags"] = marks.text()
        keys["description"] = _described(str(config.get("description") or ""), source.image, spec.user_data_hash)
        changed = configs.changed(config, keys)
        if changed:
            job.report("configure it")
            # What makes a volume may take long, and is a task then.
            slow = any(configs.DRIVE.fullmatch(key) for key in changed)
            send = self.session.post if slow else self.session.put
            upid = send(f"{guest.path}/config", changed, what=what, asked="configure it", job=job, repeat=True)
            self.tasks.run(upid, job, what=what, doing="configure it")
        done = with_config(guest, {**merged(config, changed), "tags": marks.text()})
        return self.guests.note(done).evolve(config=done.config)

    def _seed(
        self, guest: Guest, spec: MachineSpec, source: Source, config: Mapping[str, Any], job: Job
    ) -> dict[str, Any]:
        """Return the keys for what cloud-init is to do: Proxmox's own, or a drive with a seed that is uploaded."""
        keys = native(spec.user_data, spec.name) if spec.user_data is not None else {}
        forked = any(configs.is_seed(drive) for drive in configs.drives_of(source.guest.config or {}))
        numbers = configs.net_numbers(config)
        if keys is None or (spec.user_data is None and forked):
            return self._uploaded(guest, spec, config, job)
        drive = configs.cloudinit_of(config)
        addressed = any(network.address for network in spec.networks or ())
        if drive is None and not (keys or addressed or source.golden):
            return {}
        if drive is None:
            disk = configs.disk_of(config)
            keys[configs.seed_slot(config)] = f"{disk.storage if disk else self.session.settings.storage}:cloudinit"
        keys.update({f"ipconfig{one}": "ip=dhcp" for one in numbers if f"ipconfig{one}" not in config})
        return keys

    def _uploaded(self, guest: Guest, spec: MachineSpec, config: Mapping[str, Any], job: Job) -> dict[str, Any]:
        storage, file = self.session.settings.iso_storage, configs.seed_file(spec.name, guest.vmid)
        what = f'machine "{spec.name}"'
        networks = configs.networks_of(config) if spec.networks is not None else ()
        # The id tells cloud-init in a clone of another machine that it is a new one.
        meta = nocloud.meta_data(f"{spec.name}-{guest.vmid}-{spec.user_data_hash.rpartition(':')[2]}", spec.name)
        job.report("upload its user data")
        with tempfile.TemporaryDirectory(prefix="fleet-seed-") as folder:  # 0700: user data hold secrets
            path = Path(folder) / file
            nocloud.build(path, spec.user_data, meta, nocloud.network_config(networks))
            with path.open("rb") as stream:
                upid = self.session.upload(
                    guest.node, storage, stream, "iso", what=what, asked="upload its user data", job=job
                )
            self.tasks.run(upid, job, what=what, doing="upload its user data")
        slot = configs.seed_slot(config)
        # Two drives with the label that cloud-init looks for would be one too many.
        others = {one.slot: None for one in configs.drives_of(config) if one.cloudinit or configs.is_seed(one)}
        return {**others, slot: f"{storage}:iso/{file},media=cdrom"}


def marks_for(spec: MachineSpec, guest: Guest, source: Source) -> Marks:
    """Return the marks of a new machine."""
    config = guest.config or {}
    disk = configs.disk_of(config)
    size = max(spec.disk or 0, disk.size if disk else 0)
    return Marks(
        ours=True,
        image=source.image,
        project=spec.project or "",
        login=spec.login or source.login,
        user_data=spec.user_data_hash,
        tags=own_tags(spec.tags or ()),
        networks=configs.networks_of(config),
        size=(configs.cpus_of(config), configs.memory_of(config) // configs.MIB, size // configs.MIB),
    )


def _has_seed(guest: Guest) -> bool:
    return any(drive.cloudinit or configs.is_seed(drive) for drive in configs.drives_of(guest.config or {}))


def merged(config: Mapping[str, Any], keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with these keys set; None, and what stands in "delete", is removed."""
    gone = {key for key, value in keys.items() if value is None} | set(str(keys.get("delete") or "").split(","))
    both = {**config, **{key: value for key, value in keys.items() if key != "delete"}}
    return {key: value for key, value in both.items() if key not in gone}


def _block(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the description of a guest holds of ours: it is there from the first moment of a clone on."""
    found = _BLOCK.search(str(config.get("description") or ""))
    try:
        return dict(json.loads(found[1])) if found else {}
    except ValueError:
        return {}


def _description(image: str, user_data: str) -> str:
    values = json.dumps({"image": image, "user_data": user_data}, sort_keys=True)
    return f"Made by autovibe.fleet from {image}. Its tags are its record.\n\n<!-- autovibe.fleet {values} -->"


def _described(before: str, image: str, user_data: str) -> str:
    """The description of a machine: people may have written more into it."""
    if _block({"description": before}) == {"image": image, "user_data": user_data}:
        return before
    return _description(image, user_data)


def new_mac() -> str:
    """Return a hardware address with the prefix of Proxmox Server Solutions."""
    return "BC:24:11:" + ":".join(f"{random.randrange(256):02X}" for _place in range(3))
