# SPDX-License-Identifier: GPL-3.0-or-later
"""Golden images of QEMU: sealed, compressed qcow2 files that the disks of machines lie over.

An image is a folder, FOLDER/images/NAME, with disk.qcow2 and image.json. It gets that name by one rename when it is
whole; until then it is in a folder of another name. It is built in a machine as any other, whose name begins with
"build-", and which goes when the build ends, however that ends.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from . import golden
from . import qemu_base_tools as tools
from .provider import Job, Ran
from .qemu_base import Bases, clear, locked, put
from .qemu_base_disks import QCOW2, DiskFile, inspect
from .qemu_images_user_data import with_agent

if TYPE_CHECKING:
    from fleet_core.errors import Conflict, FleetError, InvalidInput, NotFound, ProcessFailed, StateDamaged, Unavailable
    from fleet_core.images import GOLDEN, Image, ImageSpec, newest
    from fleet_core.machines import Machine, MachineSpec
    from fleet_core.moments import precise
    from fleet_core.quantities import format_size
    from fleet_node import paths
else:
    try:
        from ..fleet_core.errors import (
            Conflict,
            FleetError,
            InvalidInput,
            NotFound,
            ProcessFailed,
            StateDamaged,
            Unavailable,
        )
        from ..fleet_core.images import GOLDEN, Image, newest
        from ..fleet_core.machines import MachineSpec
        from ..fleet_core.moments import precise
        from ..fleet_core.quantities import format_size
        from ..fleet_node import paths
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import (
            Conflict,
            FleetError,
            InvalidInput,
            NotFound,
            ProcessFailed,
            StateDamaged,
            Unavailable,
        )
        from fleet_core.images import GOLDEN, Image, newest
        from fleet_core.machines import MachineSpec
        from fleet_core.moments import precise
        from fleet_core.quantities import format_size
        from fleet_node import paths

IMAGES, CACHE = "images", "cache"  # folders beside those of machines, which therefore cannot have these names
DISK, RECORD = "disk.qcow2", "image.json"
BUILD = "build"  # the role of a machine that an image is built in
DEFAULT_DISK = 8 * 1024**3
_UNFINISHED, _REMOVED = ".building-", ".removed-"
POWER_OFF = 60.0  # seconds
_CLEANING = 120.0  # seconds to remove what a build needed, after its own time is over

# The end of the machine. What services would write while they stop is not wanted, and the file systems shall be clean:
# so nothing is stopped but the journal; all is made read-only by the kernel, which then powers off.
LAST_WORDS = """set -u
for unit in .socket -dev-log.socket -audit.socket .service; do
  systemctl stop "systemd-journald$unit" >/dev/null 2>&1
done
rm -rf /var/log/journal/*
rm -f /var/lib/systemd/random-seed /var/lib/dbus/machine-id
[ ! -e /etc/machine-id ] || : >/etc/machine-id
sync # what is freed can be discarded when the journal says so on the disk
fstrim --all >/dev/null 2>&1
sync
(trap '' HUP; sleep 1; for key in s u; do echo $key >/proc/sysrq-trigger; sleep 1; done
 echo o >/proc/sysrq-trigger) </dev/null >/dev/null 2>&1 &
exit 0
"""


@dataclass(frozen=True)
class Disk:
    """What a machine's disk lies over. size: bytes as the guest sees them. name: of the image, in full.

    cpu, memory, login: what the image gives machines that ask for nothing else; 0 and "" when it does not say.
    """

    name: str
    path: Path
    format: str
    size: int
    cpu: int = 0
    memory: int = 0
    login: str = ""


class Host(Protocol):
    """What is needed of the provider that images belong to."""

    folder: Path
    settings: Mapping[str, Any]

    def create(self, spec: MachineSpec, job: Job, *, role: str = "", backing: Disk | None = None) -> Machine:
        """Make a machine over a disk. role: for machines that are not shown."""

    def run(self, name: str, script: str, job: Job) -> Ran:
        """See Provider."""

    def stop(self, name: str, job: Job, *, force: bool = False) -> None:
        """See Provider."""

    def delete(self, name: str, job: Job) -> None:
        """See Provider."""

    def state(self, name: str) -> str:
        """Return the state of a machine, empty when there is none."""

    def role(self, name: str) -> str:
        """Return the role that it was made with, empty when there is none."""

    def serial_tail(self, name: str) -> str:
        """Return the last lines of its serial console."""

    def flatten(self, name: str, target: Path, job: Job, options: Sequence[str] = ()) -> None:
        """Write the disk of a stopped machine to a new file that stands alone. options: of qemu-img convert."""


class QemuImages:
    """provider: the adapter that the images belong to."""

    def __init__(self, provider: Host) -> None:
        self._provider = provider
        self.folder = provider.folder / IMAGES
        cache = provider.settings.get("cache")
        self.bases = Bases(
            Path(str(cache)) if cache else provider.folder / CACHE, str(provider.settings.get("mirror") or "")
        )

    # -- what there is ------------------------------------------------------------------------------------------------

    def all(self) -> tuple[Image, ...]:
        """Return all golden images, also those that are not whole, by name."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            for path in sorted(self.folder.iterdir()):
                name = path.name
                unfinished = name.startswith(_UNFINISHED)
                if path.is_dir() and (unfinished or not name.startswith(".")):
                    name = name[len(_UNFINISHED) :] if unfinished else name
                    image = self._read(path, name)
                    if image is not None:
                        found.append(image)
        return tuple(sorted(found, key=lambda image: image.name))

    def disk_of(self, reference: str) -> Disk:
        """Return the disk of the image of this name, or of the newest of this family.

        Raises NotFound, and Conflict for an image that is not whole.
        """
        image = newest(self.all(), reference)
        if image is None:
            known = ", ".join(dict.fromkeys(image.name for image in self.all())) or "none is built yet"
            raise NotFound(f'image "{reference}": there is no golden image of that name or family; known: {known}')
        if image.incomplete:
            raise Conflict(f'image "{image.name}": it cannot be used: {image.incomplete}')
        path = self.folder / image.name / DISK
        if not path.is_file():
            raise StateDamaged(f'image "{image.name}": its disk {path} is gone; delete the image, and build it again')
        detail = image.detail
        return Disk(
            image.name,
            path,
            QCOW2,
            detail["disk"],
            detail.get("cpu", 0),
            detail.get("memory", 0),
            detail.get("login", ""),
        )

    # -- building -----------------------------------------------------------------------------------------------------

    def build(self, spec: ImageSpec, job: Job) -> Image:
        """Return the image of these inputs; build it if there is none."""
        what = f'image "{spec.name}"'
        name = spec.image_name
        if spec.provider != "qemu":
            raise InvalidInput(f"{what}: expected provider qemu, found {spec.provider}")
        self._make_folder()
        with locked(self.folder / f".{spec.name}.lock", job, f"{what}: another build"):
            found = self._read(self.folder / name, name)
            if found is not None and not found.incomplete:
                if found.inputs != spec.inputs:
                    raise Conflict(f"{what}: {name} is there, built from other inputs; delete it first")
                return found
            machine = f"build-{spec.name}"
            self._clean(name, machine, job)
            base = self.bases.resolve(spec, job)
            work = self.folder / f"{_UNFINISHED}{name}"
            work.mkdir(mode=0o700)
            self._write(work, _record(spec, incomplete="its build was interrupted"))
            try:
                size = self._build(spec, base, machine, work, job)
                self._write(work, _record(spec, disk=size, file=work / DISK))
                self._discard(name)  # a damaged one of that name
                os.rename(work, self.folder / name)
            except BaseException:
                with contextlib.suppress(FleetError):  # the first error counts, and the next build cleans as well
                    self._clean(name, machine, Job.lasting(_CLEANING, job.report))
                raise
            self._clean(name, machine, Job.lasting(_CLEANING, job.report))
            image = self._read(self.folder / name, name)
            if image is None:
                raise StateDamaged(f"{what}: {self.folder / name} has just been made, and is gone")
            return image

    def _build(self, spec: ImageSpec, base: DiskFile, machine: str, work: Path, job: Job) -> int:
        """Leave the sealed disk in the folder, and return its size as guests see it."""
        what = f'image "{spec.name}"'
        provider = self._provider
        size = spec.disk or max(base.size, DEFAULT_DISK)
        if size < base.size:
            raise InvalidInput(
                f"{what}: disk: expected at least the {format_size(base.size)} of its base, found {format_size(size)}"
            )
        own = spec.base.startswith("debian:")
        user_data = spec.user_data if own else with_agent(spec.user_data)
        wanted = MachineSpec(
            machine, "qemu", cpu=spec.cpu, memory=spec.memory, disk=size, user_data=user_data, login=spec.login or None
        )
        job.report(f"boot {spec.base}")
        with self._console(machine, what):
            provider.create(wanted, job, role=BUILD, backing=Disk("", base.path, base.format, base.size))
            self._reached(machine, what, job)
        golden.prepare(spec, lambda script: provider.run(machine, script, job), job)
        self._power_off(machine, what, job)
        job.report("compress it")
        self._convert(machine, work / DISK, what, job)
        return size

    @contextlib.contextmanager
    def _console(self, machine: str, what: str) -> Iterator[None]:
        """Add to an error what the machine said last: the reason is there, and the machine will be gone."""
        try:
            yield
        except FleetError as error:
            said = ""
            with contextlib.suppress(FleetError, OSError):
                said = tools.fit(self._provider.serial_tail(machine))
            message = error.message if error.message.startswith(what) else f"{what}: {error.message}"
            raise type(error)(f"{message}; its console said last: {said or 'nothing'}") from error

    def _reached(self, machine: str, what: str, job: Job) -> None:
        """Wait for the guest agent, which cloud-init may still have to install."""
        while True:
            try:
                self._provider.run(machine, "exit 0\n", job)
                return
            except Unavailable as error:
                job.check(f"{what}: its guest agent did not answer ({error.message})")
                job.pause(2.0)

    def _power_off(self, machine: str, what: str, job: Job) -> None:
        job.report("power it off")
        ran = self._provider.run(machine, LAST_WORDS, job)
        if ran.code:
            raise ProcessFailed(f"{what}: it could not be powered off: {golden.said(ran)}")
        until = time.monotonic() + POWER_OFF
        while self._provider.state(machine) not in ("stopped", "") and time.monotonic() < until and job.left():
            job.pause(0.5)
        if self._provider.state(machine) not in ("stopped", ""):
            job.check(f"{what}: it did not power off")
            self._provider.stop(machine, job, force=True)

    def _convert(self, machine: str, target: Path, what: str, job: Job) -> None:
        """Make one compressed disk of the machine's and its base."""
        try:
            self._provider.flatten(machine, target, job, ("-c", "-o", "compression_type=zstd"))
        except ProcessFailed as error:
            if "compression" not in error.message and "zstd" not in error.message:
                raise
            target.unlink(missing_ok=True)
            self._provider.flatten(machine, target, job, ("-c",))  # a QEMU before 5.1, or built without zstd
        inspect(target, what)
        program = tools.need("qemu-img", "qemu-utils", what)
        tools.run([program, "check", "-q", "-f", QCOW2, str(target)], job, what)
        put(target, target)

    # -- removing -----------------------------------------------------------------------------------------------------

    def delete(self, name: str, job: Job) -> None:
        """Remove an image, whole or not. Machines that were made from it have its file under another name."""
        what = f'image "{name}"'
        image = {image.name: image for image in self.all()}.get(name)
        if image is None:
            raise NotFound(f"{what}: there is no golden image of that name")
        with locked(self.folder / f".{image.family}.lock", job, f"{what}: another operation"):
            self._discard(name)
            self._clean(name, f"build-{image.family}", job)

    def _discard(self, name: str) -> None:
        """Remove an image. The first rename ends it; what a crash leaves then is nothing but files."""
        removed = self.folder / f"{_REMOVED}{name}"
        clear(removed)
        with contextlib.suppress(FileNotFoundError):
            os.rename(self.folder / name, removed)
        clear(removed)

    def _clean(self, name: str, machine: str, job: Job) -> None:
        """Remove what a build leaves: its machine and its folder."""
        if self._provider.role(machine) == BUILD:  # people may call a machine of theirs so
            self._provider.delete(machine, job)
        clear(self.folder / f"{_UNFINISHED}{name}")
        clear(self.folder / f"{_REMOVED}{name}")

    # -- records ------------------------------------------------------------------------------------------------------

    def _make_folder(self) -> None:
        paths.make_private(self._provider.folder)
        paths.make_private(self.folder)

    def _read(self, path: Path, name: str) -> Image | None:
        """Return the image in a folder, None when there is none."""
        try:
            record = json.loads((path / RECORD).read_text(encoding="utf-8"))
            size = (path / DISK).stat().st_size if not record["incomplete"] else 0
            return Image(
                name, "qemu", kind=GOLDEN, release=record["base"], inputs=record["inputs"], created=record["created"],
                incomplete=record["incomplete"], size=size, detail=record["detail"],
            )  # fmt: skip
        except FileNotFoundError:
            if not path.is_dir():
                return None
            return Image(name, "qemu", kind=GOLDEN, incomplete="a part of it is missing; delete it, and build it again")
        except (OSError, ValueError, KeyError, TypeError) as error:
            return Image(name, "qemu", kind=GOLDEN, incomplete=f"its record cannot be read: {error}")

    def _write(self, folder: Path, record: Mapping[str, Any]) -> None:
        new = folder / f"{RECORD}.new"
        new.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        put(new, folder / RECORD, mode=0o640)


def _record(spec: ImageSpec, incomplete: str = "", disk: int = 0, file: Path | None = None) -> dict[str, Any]:
    given = {"cpu": spec.cpu, "memory": spec.memory, "login": spec.login, "disk": disk}
    detail: dict[str, Any] = {key: value for key, value in given.items() if value}
    if file is not None:
        digest = hashlib.sha256()
        with file.open("rb") as opened:
            shutil.copyfileobj(opened, _Hashing(digest))
        detail["checksum"] = f"sha256:{digest.hexdigest()}"
    return {
        "base": spec.base,
        "inputs": spec.inputs,
        "created": precise(time.time()),
        "incomplete": incomplete,
        "detail": {**detail, "parts": dict(spec.parts)},
    }


class _Hashing:
    """A file that is only hashed."""

    def __init__(self, digest: Any) -> None:
        self._digest = digest

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        return len(data)
