# SPDX-License-Identifier: GPL-3.0-or-later
"""Making the files of a QEMU machine: its record first, then its disk, its seed and the password of its screen."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from . import nocloud, qemu_networks
from .provider import Job
from .qemu_command import SEED, VNC_SECRET
from .qemu_disks import check_size, free_uid, own_users, readable
from .qemu_images import Disk
from .qemu_machine import FORK_VENDOR_DATA, machine_type
from .qemu_sources import Source, over, source_of

if TYPE_CHECKING:
    from fleet_core.errors import Conflict, FleetError
    from fleet_core.machines import MachineSpec, Network

    from .qemu import Qemu
else:
    try:
        from ..fleet_core.errors import Conflict, FleetError
        from ..fleet_core.machines import Network
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import Conflict, FleetError
        from fleet_core.machines import Network

DEFAULT_CPU = 1
DEFAULT_MEMORY = 1024**3
INTERRUPTED = "its creation was interrupted"
_CLEANING = 120.0  # seconds to undo what failed, after the job's time is over


class Maker:
    """Makes the machines of a provider. Callers hold the machine's lock."""

    def __init__(self, provider: Qemu) -> None:
        self._provider = provider
        self._records = provider.records
        self._disks = provider.disks

    def make(self, spec: MachineSpec, role: str, backing: Disk | None, what: str, job: Job) -> None:
        """Make all files of a machine; when that fails, nothing is left of it."""
        source = (
            over(backing, spec.image)
            if backing
            else source_of(what, spec.image, self._records.all(), self._provider.golden.disk_of)
        )
        program = self._provider.program()
        with contextlib.ExitStack() as held:
            if source.machine:
                held.enter_context(self._records.locked(source.machine, job))
                if not source.checkpoint and self._provider.running(source.machine):
                    raise Conflict(
                        f'{what}: the machine "{source.machine}" to copy runs; expected a stopped one, or '
                        f"a checkpoint: {spec.image}.CHECKPOINT"
                    )
            folder = self._disks.of(spec.name)
            if os.path.lexists(folder):  # and no record speaks of it: what fails would remove it
                raise Conflict(f"{what}: {folder} is there already, and is no machine's; expected no such folder")
            record = self._new_record(spec, source, role, program, job)
            try:
                self._disks.make(spec.name, record["uid"])
                self._make_disk(spec, source, record, what, job)
                self._make_seed(spec, source, record)
                self._records.update(spec.name, made=True)
            except BaseException:
                with contextlib.suppress(FleetError):
                    self._provider.remove(spec.name, Job.lasting(_CLEANING, job.report))
                raise

    def _new_record(self, spec: MachineSpec, source: Source, role: str, program: str, job: Job) -> dict[str, Any]:
        """Write the record of a machine that is about to be made. From here on it is there, incomplete."""
        given = dict(source.defaults or {})
        networks = qemu_networks.given_macs(spec.networks) if spec.networks else ()
        default = qemu_networks.given_macs(qemu_networks.DEFAULT)
        record: dict[str, Any] = {
            "incomplete": INTERRUPTED,
            "image": source.image,
            "origin": given.get("origin") or given.get("image") or "",
            "cpu": spec.cpu or given.get("cpu") or DEFAULT_CPU,
            "memory": spec.memory or given.get("memory") or DEFAULT_MEMORY,
            "disk": spec.disk or 0,
            "networks": [network.to_dict() for network in networks],
            "cards": [network.to_dict() for network in networks or default],
            "user_data": spec.user_data_hash,
            "tags": list(spec.tags or ()),
            "project": spec.project or "",
            "login": spec.login or given.get("login") or "",
            "role": role,
            "base": source.format,
            "type": machine_type(program),
            "uuid": str(uuid.uuid4()),
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "folder": str(self._disks.of(spec.name)),
        }
        with self._records.locked(".users", job):
            used = [one.get("uid") for one in self._records.all().values()]
            record["uid"] = free_uid(used, self._provider.state_dir) if own_users() else -1
            self._records.put(spec.name, record)
        return record

    def _make_disk(self, spec: MachineSpec, source: Source, record: dict[str, Any], what: str, job: Job) -> None:
        uid = record["uid"]
        if source.machine:
            job.report(f"copy {source.image.partition(':')[2]}")
            other = self._provider.record(source.machine)
            if source.format:
                self._disks.link_base(spec.name, self._disks.base(source.machine), what, uid)
            size = self._disks.size(source.machine)
            uids = (int(other["uid"]), int(uid))
            self._disks.fork(source.machine, source.checkpoint, source.format, spec.name, size, uids, job)
            record["disk"] = check_size(what, spec.disk, size)
            if record["disk"] > size:
                self._disks.grow(spec.name, record["disk"], uid, job)
        else:
            record["disk"] = check_size(what, spec.disk, source.size)
            self._disks.link_base(spec.name, source.path, what, uid)
            fine = bool(record["role"])  # what an image is made of must not hold what was deleted
            self._disks.create(spec.name, source.format, record["disk"], uid, job, fine=fine)
        self._records.update(spec.name, disk=record["disk"])

    def _make_seed(self, spec: MachineSpec, source: Source, record: Mapping[str, Any]) -> None:
        seed = self._disks.of(spec.name) / SEED
        networks = [Network(**one) for one in record["cards"]]
        nocloud.build(
            seed,
            spec.user_data,
            nocloud.meta_data(f"{spec.name}-{secrets.token_hex(6)}", spec.name),
            nocloud.network_config(networks),
            FORK_VENDOR_DATA if source.machine else "",
        )
        if record["uid"] >= 0:
            readable(seed, record["uid"])
        self._disks.write(spec.name, VNC_SECRET, secrets.token_urlsafe(6)[:8], record["uid"])
