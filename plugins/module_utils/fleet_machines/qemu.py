# SPDX-License-Identifier: GPL-3.0-or-later
"""The provider qemu: virtual machines of this host, with no daemon but fleetd.

A machine is a process of fleetd, from the template "qemu": fleetd gives it its ports, restarts it when QEMU crashes,
and starts it again after a boot of the host. Its disk is a qcow2 overlay on an image, cloud-init gets a NoCloud seed,
QEMU's monitor stops it and saves its states, and its guest agent says when it is ready. What it is made of is in a
record.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import qemu_accel, qemu_checkpoints, qemu_networks
from .provider import Job, Ran, Surroundings
from .qemu_command import (
    BRIDGE,
    CONFIG,
    ISOLATED,
    Hardware,
    ssh_card,
)
from .qemu_create import Maker
from .qemu_disks import Disks
from .qemu_guest import Guest
from .qemu_images import Disk, QemuImages
from .qemu_machine import machine_of
from .qemu_processes import Processes, process_id
from .records import Records

if TYPE_CHECKING:
    from fleet_core.checkpoints import Checkpoint, check_checkpoint_name
    from fleet_core.errors import Conflict, FleetError, InvalidInput, NotFound, Unavailable
    from fleet_core.images import Image, ImageSpec
    from fleet_core.machine_plans import LIVE, STOPPED, Capabilities, Difference
    from fleet_core.machines import Machine, MachineSpec, Network
else:
    try:
        from ..fleet_core.checkpoints import check_checkpoint_name
        from ..fleet_core.errors import Conflict, FleetError, InvalidInput, NotFound, Unavailable
        from ..fleet_core.machine_plans import LIVE, STOPPED, Capabilities
        from ..fleet_core.machines import Network
    except ImportError:  # installed as a top-level package
        from fleet_core.checkpoints import check_checkpoint_name
        from fleet_core.errors import Conflict, FleetError, InvalidInput, NotFound, Unavailable
        from fleet_core.machine_plans import LIVE, STOPPED, Capabilities
        from fleet_core.machines import Network

NAME = "qemu"
PROGRAM = "qemu-system-x86_64"
SMALLEST_MEMORY = 64 * 1024**2
RESERVED = ("images", "cache", "checkpoints", "pools")  # folders beside those of machines
_READERS = 8


class Qemu:
    """See Provider for what the methods do."""

    name = NAME
    capabilities = Capabilities(
        changes={"cpu": STOPPED, "memory": STOPPED, "disk": LIVE, "tags": LIVE, "project": LIVE, "login": LIVE},
        live_checkpoints=True,
        isolated=ISOLATED,
        settings=("executable", "accel", "folder", "cache", "mirror"),
    )

    def __init__(self, surroundings: Surroundings) -> None:
        self.settings: Mapping[str, Any] = surroundings.settings
        self.state_dir = surroundings.state_dir
        self.records = Records(surroundings.state_dir, NAME)
        self.folder = Path(os.path.abspath(str(self.settings.get("folder") or self.records.folder)))
        self.disks = Disks(self.folder, recorded=lambda name: str(self.records.get(name).get("folder") or ""))
        self.processes = Processes(surroundings.state_dir)
        self.saved = qemu_checkpoints.Checkpoints(self)
        self.golden = QemuImages(self)
        self.maker = Maker(self)

    # -- what there is ------------------------------------------------------------------------------------------------

    def describe(self, names: Sequence[str] | None = None, *, full: bool = False) -> dict[str, Machine]:
        records = {
            name: record
            for name, record in self.records.all().items()
            if (names is None or name in names) and not record.get("role")
        }
        views = self.processes.all() if records else {}
        found = {name: self._of(name, one, views.get(process_id(name))) for name, one in records.items()}
        up = [name for name, machine in found.items() if full and machine.state == "running"]
        if up:
            with ThreadPoolExecutor(max_workers=_READERS) as pool:
                for name, told in zip(up, pool.map(lambda one: self.guest(one).addresses(), up)):
                    record = {**records[name], "addresses": self._reached(records[name], told)}
                    found[name] = self._of(name, record, views.get(process_id(name)))
        return found

    def state(self, name: str) -> str:
        """Return the state of a machine, empty when there is none."""
        return self.processes.state(name) if self.records.get(name) else ""

    def role(self, name: str) -> str:
        """Return what a machine that is not shown is for, empty for people's machines."""
        return str(self.records.get(name).get("role") or "")

    def running(self, name: str) -> bool:
        """Tell whether QEMU runs for a machine."""
        return self.state(name) in ("running", "starting", "stopping")

    def images(self) -> tuple[Image, ...]:
        return self.golden.all()

    def checkpoints(self, names: Sequence[str] | None = None) -> dict[str, tuple[Checkpoint, ...]]:
        return {
            name: qemu_checkpoints.of(name, record)
            for name, record in self.records.all().items()
            if (names is None or name in names) and not record.get("role")
        }

    # -- machines -----------------------------------------------------------------------------------------------------

    def create(self, spec: MachineSpec, job: Job, *, role: str = "", backing: Disk | None = None) -> Machine:
        """See Provider. role: of a machine that is not shown. backing: what its disk lies over, instead of an image."""
        what = f'machine "{spec.name}"'
        self._check(spec, what)
        self.processes.call("daemon.status")  # before anything is made
        with self.records.locked(spec.name, job):
            record = self.records.get(spec.name)
            if record and not record.get("incomplete"):
                raise Conflict(f"{what}: there is one already, {self.state(spec.name)}")
            if record.get("made") and self._as_wanted(spec, record) and self.running(spec.name):
                job.report("it runs already, and is waited for")
            else:
                if record:
                    job.report("remove what an earlier call left of it")
                    self.remove(spec.name, job)
                self.maker.make(spec, role, backing, what, job)
            with self._told(spec.name):
                self._boot(spec.name, job, first=True)
            self.records.update(spec.name, incomplete="")
        return self._machine(spec.name)

    def change(self, spec: MachineSpec, differences: Sequence[Difference], job: Job) -> None:
        names = {difference.name for difference in differences}
        with self.records.locked(spec.name, job):
            self.record(spec.name)
            if "disk" in names and spec.disk is not None:
                self._grow(spec.name, spec.disk, job)
            plain = ("cpu", "memory", "project", "login")
            kept: dict[str, Any] = {name: getattr(spec, name) for name in plain if name in names}
            if "tags" in names:
                kept["tags"] = list(spec.tags or ())
            if names & {"cpu", "memory"} and self.running(spec.name):
                raise Conflict(f'machine "{spec.name}": it runs; cpu and memory change while it is stopped')
            self.records.update(spec.name, **kept)

    def start(self, name: str, job: Job) -> Machine:
        with self.records.locked(name, job):
            record = self.record(name)
            if record.get("incomplete"):
                raise Conflict(f'machine "{name}": it is incomplete: {record["incomplete"]}')
            self._boot(name, job, first=False)
        return self._machine(name)

    def stop(self, name: str, job: Job, *, force: bool = False) -> None:
        with self.records.locked(name, job):
            self.record(name)
            if not force and self.running(name):
                job.report("shut it down")
                self.guest(name).shut_down(job)
            self.power_off(name, job)

    def delete(self, name: str, job: Job) -> None:
        with self.records.locked(name, job):
            self.remove(name, job)

    def run(self, name: str, script: str, job: Job) -> Ran:
        self.record(name)
        return self.guest(name).run(script, job)

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def checkpoint(self, name: str, checkpoint: str, job: Job, *, comment: str = "") -> Checkpoint:
        check_checkpoint_name(checkpoint)
        with self.records.locked(name, job):
            self._whole(name)
            return self.saved.take(name, checkpoint, job, comment)

    def restore(self, name: str, checkpoint: str, job: Job) -> None:
        with self.records.locked(name, job):
            self._whole(name)
            self.saved.restore(name, checkpoint, job)

    def delete_checkpoint(self, name: str, checkpoint: str, job: Job) -> None:
        with self.records.locked(name, job):
            self._whole(name)
            self.saved.remove(name, checkpoint, job)

    # -- golden images ------------------------------------------------------------------------------------------------

    def build_image(self, spec: ImageSpec, job: Job) -> Image:
        return self.golden.build(spec, job)

    def delete_image(self, name: str, job: Job) -> None:
        self.golden.delete(name, job)

    def serial_tail(self, name: str) -> str:
        """Return the last lines of a machine's serial console."""
        return self.processes.console(name)

    def flatten(self, name: str, target: Path, job: Job, options: Sequence[str] = ()) -> None:
        """Write the disk of a stopped machine to a new file that stands alone. options: of qemu-img convert."""
        self.disks.flatten(name, target, self.record(name)["uid"], job, options)

    # -- for checkpoints ----------------------------------------------------------------------------------------------

    def guest(self, name: str) -> Guest:
        """Return the inside of a machine."""
        return Guest(name, self.disks.run_folder(name), self.processes)

    def image_tool(self, name: str, option: str, checkpoint: str, job: Job) -> None:
        """Make, apply or delete a snapshot of a stopped machine's disk."""
        self.disks.snapshot(name, option, checkpoint, self.record(name)["uid"], job)

    def power_on(self, name: str, job: Job) -> None:
        """Start QEMU, if it does not run, and return when its monitor answers."""
        if self.state(name) not in ("running", "starting"):
            record = self.record(name)
            wanted = str(self.settings.get("accel") or qemu_accel.AUTO)
            accel = qemu_accel.choose(wanted, self.program(), self.folder, own_user=record["uid"] >= 0)
            record = self.records.update(name, accel=accel)
            made = self._hardware(name, record)
            self.disks.write(name, CONFIG, made.to_json())
            job.report("start it" if accel == "kvm" else "start it, emulated")
            self.processes.start(name, self.disks.of(name), ssh_card(made.cards) >= 0, job)
        with self.guest(name).monitor() as monitor:
            # QEMU pauses a machine itself when the host's disk is full.
            if monitor.call("query-status").get("status") in ("paused", "io-error"):
                monitor.call("cont")

    def power_off(self, name: str, job: Job) -> None:
        """End QEMU, however far the guest is."""
        self.processes.stop(name, job)

    def boot(self, name: str, job: Job) -> None:
        """Start a machine that has booted before, and return when it can be used."""
        self._boot(name, job, first=False)

    # -- parts --------------------------------------------------------------------------------------------------------

    def _check(self, spec: MachineSpec, what: str) -> None:
        """Raise InvalidInput for what no machine here can have."""
        if spec.name.lower() in RESERVED:
            raise InvalidInput(f"{what}: that name is kept for a folder; expected another one")
        if spec.memory is not None and spec.memory < SMALLEST_MEMORY:
            raise InvalidInput(f"{what}: memory: QEMU machines want at least 64M")
        qemu_networks.check(what, spec.networks or (), os.geteuid() == 0)

    def _hardware(self, name: str, record: Mapping[str, Any]) -> Hardware:
        networks = [Network(**one) for one in record["cards"]]
        return Hardware(
            name=name,
            executable=self.program(),
            type=record["type"],
            cpu=record["cpu"],
            memory=record["memory"],
            uuid=record["uuid"],
            cards=qemu_networks.cards_of(name, networks, self.state_dir),
            accel=record["accel"],
            base=record["base"],
            uid=record["uid"],
            gid=record["uid"],
        )

    def _boot(self, name: str, job: Job, first: bool) -> None:
        """Start a machine and return when it can be used."""
        self.power_on(name, job)
        record = self.record(name)
        machine = machine_of(name, record, self.processes.get(name))
        host = machine.addresses[0] if machine.addresses else ""
        told = self.guest(name).wait(job, host, machine.port, first)
        self.records.update(name, addresses=self._reached(record, told))

    def _reached(self, record: Mapping[str, Any], told: Mapping[str, tuple[str, ...]]) -> list[str]:
        """Return the addresses of a machine on bridges, as this host reaches them; known: what its agent says."""
        networks = [Network(**one) for one in record["cards"]]
        found: list[str] = []
        for network, card in zip(networks, qemu_networks.cards_of("", networks, "")):
            if card.kind == BRIDGE:
                found += [*qemu_networks.fixed_addresses([network]), *told.get(network.mac, ())]
        return list(dict.fromkeys(found)) or list(record.get("addresses") or ())

    def _grow(self, name: str, size: int, job: Job) -> None:
        """Make a disk larger. A running guest is told at once, and asked to use it; else it does so when it boots."""
        record = self.record(name)
        if not self.running(name):
            self.disks.grow(name, size, record["uid"], job)
        else:
            with self.guest(name).monitor() as monitor:
                monitor.call("block_resize", node_name="disk", size=size)
        self.records.update(name, disk=size)
        if self.running(name):
            self.guest(name).fill_disk(job)

    def _as_wanted(self, spec: MachineSpec, record: Mapping[str, Any]) -> bool:
        """Tell whether a machine that is not finished is the one that is asked for."""
        given = {"image": spec.image, "user_data": spec.user_data_hash, "cpu": spec.cpu, "memory": spec.memory}
        same = all(not value or record.get(key) == value for key, value in given.items() if key != "image")
        return same and (not spec.image or str(record.get("image", "")).startswith(spec.image))

    def remove(self, name: str, job: Job) -> None:
        """Remove a machine with all that it had. Its record goes last: until then this can be done again."""
        if self.records.get(name):
            self.records.update(name, incomplete="its deletion was interrupted")
            self.processes.remove(name, job)
            self.disks.remove(name)
            shutil.rmtree(self.records.folder / "checkpoints" / name, ignore_errors=True)
        self.records.remove(name)

    @contextlib.contextmanager
    def _told(self, name: str) -> Iterator[None]:
        """Note in the record what a failure leaves behind."""
        try:
            yield
        except FleetError as error:
            with contextlib.suppress(FleetError):  # the first error counts
                self.records.update(name, incomplete=error.message)
            raise

    def record(self, name: str) -> dict[str, Any]:
        record = self.records.get(name)
        if not record:
            raise NotFound(f'machine "{name}": it does not exist')
        return record

    def _whole(self, name: str) -> None:
        record = self.record(name)
        if record.get("incomplete"):
            raise Conflict(f'machine "{name}": it is incomplete: {record["incomplete"]}')

    def _machine(self, name: str) -> Machine:
        return self._of(name, self.record(name), self.processes.get(name))

    def _of(self, name: str, record: Mapping[str, Any], view: Mapping[str, Any] | None) -> Machine:
        return machine_of(name, record, view, self.state_dir)

    def program(self) -> str:
        """Return the path of QEMU. Raises Unavailable when it is not there."""
        given = str(self.settings.get("executable") or PROGRAM)
        found = shutil.which(given)
        if found is None:
            raise Unavailable(
                f"{given}: not installed on this host; install the package qemu-system-x86 (Debian, Ubuntu, Fedora), "
                "or give its path in the setting executable"
            )
        return os.path.abspath(found)
