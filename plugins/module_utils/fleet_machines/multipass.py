# SPDX-License-Identifier: GPL-3.0-or-later
"""The provider multipass: virtual machines of Canonical's Multipass on Linux and macOS, through its command line.

A golden image is a stopped instance with a snapshot. There is no way to launch from a snapshot, so a machine is made
from one by restoring the golden instance and cloning it, under a lock. What Multipass cannot hold about a machine (its
image, tags, project, the hash of its user data) is in a record on the host.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from . import multipass_cli, multipass_output
from .multipass_golden import GoldenImages
from .multipass_output import NAME
from .multipass_sources import PREFIX, Sources
from .provider import Job, Ran, Surroundings
from .records import Records

if TYPE_CHECKING:
    from fleet_core.checkpoints import Checkpoint, check_checkpoint_name
    from fleet_core.errors import Conflict, FleetError, InvalidInput, NotFound, TimedOut
    from fleet_core.images import Image, ImageSpec
    from fleet_core.machine_cards import card
    from fleet_core.machine_plans import LIVE, STOPPED, Capabilities, Difference
    from fleet_core.machines import Machine, MachineSpec, Network
else:
    try:
        from ..fleet_core.checkpoints import check_checkpoint_name
        from ..fleet_core.errors import Conflict, FleetError, InvalidInput, NotFound, TimedOut
        from ..fleet_core.machine_cards import card
        from ..fleet_core.machine_plans import LIVE, STOPPED, Capabilities
        from ..fleet_core.machines import Network
    except ImportError:  # installed as a top-level package
        from fleet_core.checkpoints import check_checkpoint_name
        from fleet_core.errors import Conflict, FleetError, InvalidInput, NotFound, TimedOut
        from fleet_core.machine_cards import card
        from fleet_core.machine_plans import LIVE, STOPPED, Capabilities
        from fleet_core.machines import Network

SMALLEST_MEMORY = 128 * 1024**2
SMALLEST_DISK = 512 * 1024**2
_KEYS = {"cpu": "cpus", "memory": "memory", "disk": "disk"}
_READERS = 8


class Multipass:
    """See Provider for what the methods do."""

    name = NAME
    capabilities = Capabilities(
        changes={"cpu": STOPPED, "memory": STOPPED, "disk": STOPPED, "tags": LIVE, "project": LIVE, "login": LIVE},
        rounds=True,
        settings=("executable",),
        network_fields=("name", "mac"),
    )

    def __init__(self, surroundings: Surroundings, platform: str = sys.platform) -> None:
        self.cli = multipass_cli.CommandLine(str(surroundings.settings.get("executable") or ""))
        self.records = Records(surroundings.state_dir, NAME)
        self.sources = Sources(self.cli, self.records)
        self.golden = GoldenImages(self)
        self._platform = platform

    # -- what there is ------------------------------------------------------------------------------------------------

    def describe(self, names: Sequence[str] | None = None, *, full: bool = False) -> dict[str, Machine]:
        records = self.records.all()
        listed = multipass_output.listed(self.cli.read("list"))
        found = {
            name: _recorded(machine, records.get(name, {}))
            for name, machine in sorted(listed.items())
            if (names is None or name in names) and records.get(name, {}).get("role") != "image"
        }
        if full and found:
            try:
                info = multipass_output.described(self.cli.read("info", *found))
            except NotFound:  # one of them has just been deleted
                info = multipass_output.described(self.cli.read("info"))
                found = {name: machine for name, machine in found.items() if name in info}
            with ThreadPoolExecutor(max_workers=_READERS) as pool:
                sizes = dict(zip(found, pool.map(self._sizes, found)))
            for name, machine in found.items():
                told = _recorded(info.get(name, machine), records.get(name, {}))
                found[name] = _sized(told.evolve(detail={**machine.detail, **told.detail}), sizes[name])
        return found

    def state(self, name: str) -> str:
        """Return the state of an instance, empty when there is none."""
        machine = multipass_output.listed(self.cli.read("list")).get(name)
        return "" if machine is None else machine.state

    def images(self) -> tuple[Image, ...]:
        return (*self.golden.all(), *multipass_output.images(self.cli.read("find")))

    def checkpoints(self, names: Sequence[str] | None = None) -> dict[str, tuple[Checkpoint, ...]]:
        found = multipass_output.snapshots(self.cli.read("info", "--snapshots"))
        machines = self.describe(names)
        return {name: found.get(name, ()) for name in machines}

    # -- machines -----------------------------------------------------------------------------------------------------

    def create(self, spec: MachineSpec, job: Job) -> Machine:
        what = f'machine "{spec.name}"'
        source = self.sources.of(spec.image)
        if source and source.golden and not spec.image.startswith(PREFIX):
            spec = replace(spec, image=source.instance, login=spec.login or source.login or None)
        self.check(spec, cloned=bool(source))
        with self.records.locked(spec.name, job):
            record, state = self.records.get(spec.name), self.state(spec.name)
            if state and not record.get("incomplete"):
                other = "a golden image" if record.get("role") == "image" else f"there is one already, {state}"
                raise Conflict(f"{what}: {other}")
            if state and record.get("launched") and self._usable(spec.name, job):
                job.report("it came up after all")
            else:
                if state:
                    job.report("remove what an earlier call left of it")
                    self._remove(spec.name, job)
                wanted = {**_record_of(spec), "launched": not source}
                self.records.put(spec.name, {**wanted, "incomplete": "its creation was interrupted"})
                with self._told(spec.name):
                    if source:
                        self.sources.clone(source, spec.name, job)
                        self._set(spec.name, _sizes_of(spec), job)
                        self.start(spec.name, job)
                    else:
                        self.launch(spec, job)
            self.records.update(spec.name, incomplete="")
        return self._ready(spec.name, job)

    def launch(self, spec: MachineSpec, job: Job) -> None:
        """Launch an instance. One that can be used although the launch timed out is as good as any."""
        arguments = ["launch", *([spec.image] if spec.image else []), "--name", spec.name]
        for name, value in _sizes_of(spec).items():
            arguments += [f"--{_KEYS[name]}", str(value)]
        for network in spec.networks or ():
            mac = f",mac={network.mac}" if network.mac else ""
            arguments += ["--network", f"name={network.name},mode=auto{mac}"]
        if spec.user_data is not None:
            arguments += ["--cloud-init", "-"]  # by stdin: the snap cannot read /tmp, and a process list shows no stdin
        arguments += ["--timeout", _seconds(job)]
        job.report("launch it")
        try:
            self.cli.run(*arguments, what=f'machine "{spec.name}"', job=job, stdin=spec.user_data)
        except TimedOut as error:
            state = self.state(spec.name)
            if not state:
                raise
            job.report(f"the launch timed out, and left an instance that is {state}")
            if not self._usable(spec.name, job):
                raise TimedOut(f"{error.message}; an instance that is {state} is left") from error

    def change(self, spec: MachineSpec, differences: Sequence[Difference], job: Job) -> None:
        names = [difference.name for difference in differences]
        self._set(spec.name, {name: value for name, value in _sizes_of(spec).items() if name in names}, job)
        kept = {name: value for name, value in _record_of(spec).items() if name in names}
        if kept:
            self.records.update(spec.name, **kept)

    def start(self, name: str, job: Job) -> Machine:
        job.report("start it")
        self.cli.run("start", name, "--timeout", _seconds(job), what=f'machine "{name}"', job=job)
        return self._ready(name, job)

    def stop(self, name: str, job: Job, *, force: bool = False) -> None:
        what = f'machine "{name}"'
        state = self.state(name)
        if state == "suspended" and not force:
            self.cli.run("start", name, "--timeout", _seconds(job), what=what, job=job)  # only a running one shuts down
        try:
            self.cli.run("stop", *(["--force"] if force else []), name, what=what, job=job)
        except TimedOut as error:
            raise TimedOut(f"{error.message}; force: true powers it off") from error

    def delete(self, name: str, job: Job) -> None:
        with self.records.locked(name, job):
            self._remove(name, job)

    def run(self, name: str, script: str, job: Job) -> Ran:
        code, stdout, stderr = self.cli.attempt(
            *("exec", name, "--", "sudo", "sh", "-s"), what=f'machine "{name}"', job=job, stdin=script
        )
        if code and stderr.startswith("exec failed:"):  # nothing ran: it is stopped, or cannot be entered
            raise multipass_output.error_of(f'machine "{name}"', "exec", code, stderr)
        return Ran(code, stdout, stderr)

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def checkpoint(self, name: str, checkpoint: str, job: Job, *, comment: str = "") -> Checkpoint:
        check_checkpoint_name(checkpoint)
        note = ["--comment", comment] if comment else []
        what = f'checkpoint "{checkpoint}" of machine "{name}"'
        with self.records.locked(name, job):
            self.cli.run("snapshot", name, "--name", checkpoint, *note, what=what, job=job)
        for found in self.checkpoints([name]).get(name, ()):
            if found.name == checkpoint:
                return found
        raise NotFound(f"{what}: it was made, but multipass does not list it")

    def restore(self, name: str, checkpoint: str, job: Job) -> None:
        what = f'checkpoint "{checkpoint}" of machine "{name}"'
        with self.records.locked(name, job):
            self.cli.run("restore", "--destructive", f"{name}.{checkpoint}", what=what, job=job)

    def delete_checkpoint(self, name: str, checkpoint: str, job: Job) -> None:
        what = f'checkpoint "{checkpoint}" of machine "{name}"'
        with self.records.locked(name, job):
            self.cli.run("delete", "--purge", f"{name}.{checkpoint}", what=what, job=job)

    # -- golden images ------------------------------------------------------------------------------------------------

    def build_image(self, spec: ImageSpec, job: Job) -> Image:
        return self.golden.build(spec, job)

    def delete_image(self, name: str, job: Job) -> None:
        self.golden.delete(name, job)

    # -- parts --------------------------------------------------------------------------------------------------------

    def check(self, spec: MachineSpec, cloned: bool = False) -> None:
        """Raise InvalidInput for what Multipass cannot do, or would silently leave out."""
        what = f'machine "{spec.name}"'
        if spec.image.startswith("-") or spec.image != spec.image.strip():
            raise InvalidInput(f"{what}: image: expected the name of an image, found {spec.image!r}")
        if spec.image.startswith("file://") and not self._platform.startswith("linux"):
            raise InvalidInput(f"{what}: image: Multipass launches files on Linux only, found {spec.image!r}")
        if spec.memory is not None and spec.memory < SMALLEST_MEMORY:
            raise InvalidInput(f"{what}: memory: Multipass wants at least 128M")
        if spec.disk is not None and spec.disk < SMALLEST_DISK:
            raise InvalidInput(f"{what}: disk: Multipass wants at least 512M")
        if cloned:
            for field, value in (("user_data", spec.user_data), ("networks", spec.networks)):
                if value:
                    raise InvalidInput(
                        f'{what}: {field}: Multipass gives a clone those of "{spec.image}"; put them into that '
                        "image, or name one that is launched"
                    )
        elif spec.user_data is not None and not spec.user_data.startswith("#cloud-config"):
            raise InvalidInput(
                f'{what}: user_data: Multipass takes cloud-config only, expected a first line of "#cloud-config"'
            )

    @contextlib.contextmanager
    def _told(self, name: str) -> Iterator[None]:
        """Note in the record what a failure leaves behind; forget a machine of which nothing is left."""
        try:
            yield
        except FleetError as error:
            with contextlib.suppress(FleetError):  # the first error counts
                if self.state(name):
                    self.records.update(name, incomplete=error.message)
                else:
                    self.records.remove(name)
            raise

    def _usable(self, name: str, job: Job) -> bool:
        """Tell whether an instance came up and cloud-init is done; wait for that as long as the job lasts."""
        job = job if job.left() > 1 else Job.lasting(5.0, job.report)
        what = f'machine "{name}"'
        while self.state(name) == "starting" and job.left():
            job.pause(0.5)
        if self.state(name) != "running":
            return False
        try:
            code, _stdout, stderr = self.cli.attempt(
                *("exec", name, "--", "cloud-init", "status", "--wait"), what=what, job=job
            )
        except TimedOut:
            return False
        # 0: done; 2: done, with something that it recovered from; 127: an image without cloud-init.
        return code in (0, 2, 127) and not stderr.startswith("exec failed:")

    def _ready(self, name: str, job: Job) -> Machine:
        """Return the machine when it runs and has an address."""
        while True:
            machine = self.describe([name]).get(name)
            if machine is None:
                raise NotFound(f'machine "{name}": it is gone')
            if machine.state == "running" and machine.addresses:
                return machine
            job.check(f'machine "{name}": it is {machine.state} and did not get an address')
            job.pause(0.5)

    def _set(self, name: str, wanted: Mapping[str, int], job: Job) -> None:
        done: list[str] = []
        for field, value in wanted.items():
            try:
                self.cli.run("set", f"local.{name}.{_KEYS[field]}={value}", what=f'machine "{name}"', job=job)
            except FleetError as error:
                also = f"; {' and '.join(done)} had been changed" if done else ""
                raise type(error)(f"{error.message}{also}") from error
            done.append(field)
            self.records.update(name, **{field: value})

    def _sizes(self, name: str) -> dict[str, str]:
        """Return what an instance was given: info says what it uses, and nothing while it is stopped."""
        what, job = f'machine "{name}"', Job.lasting(multipass_cli.READING)
        try:
            return {
                field: self.cli.run("get", f"local.{name}.{key}", what=what, job=job).strip()
                for field, key in _KEYS.items()
            }
        except NotFound:
            return {}

    def _remove(self, name: str, job: Job) -> None:
        with contextlib.suppress(NotFound):
            self.cli.run("delete", "--purge", name, what=f'machine "{name}"', job=job)
        self.records.remove(name)


def _recorded(machine: Machine, record: Mapping[str, Any]) -> Machine:
    if not record:
        return machine
    networks = tuple(Network(**network) for network in record.get("networks", ()))
    return machine.evolve(
        detail={**machine.detail, "interfaces": [card(network) for network in networks]},
        image=record.get("image", ""),
        cpu=machine.cpu or record.get("cpu", 0),
        memory=record.get("memory", 0),
        disk=record.get("disk", 0),
        networks=networks,
        user_data=record.get("user_data", ""),
        tags=tuple(record.get("tags", ())),
        project=record.get("project", ""),
        login=record.get("login", "") or "ubuntu",
        incomplete=record.get("incomplete", ""),
    )


def _sized(machine: Machine, told: Mapping[str, str]) -> Machine:
    """Take the sizes that Multipass tells, to a tenth of their unit; where ours round to them, they are exact."""
    if not told:
        return machine
    memory, disk = (multipass_output.size_of(told[field]) for field in ("memory", "disk"))
    return machine.evolve(
        cpu=multipass_output.whole_number(told["cpu"]),
        memory=machine.memory if multipass_output.human(machine.memory) == told["memory"] else memory,
        disk=machine.disk if multipass_output.human(machine.disk) == told["disk"] else disk,
    )


def _sizes_of(spec: MachineSpec) -> dict[str, int]:
    return {field: value for field in _KEYS if (value := getattr(spec, field)) is not None}


def _record_of(spec: MachineSpec) -> dict[str, Any]:
    record = spec.to_dict()
    record.update({field: list(getattr(spec, field) or ()) for field in ("tags",)})
    return {**record, "project": spec.project or ""}


def _seconds(job: Job) -> str:
    """For --timeout: a little less than is left, so that there is time to look at what it left behind."""
    return str(max(1, int(job.left() * 0.9)))
