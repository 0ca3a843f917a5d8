# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of machines, and what qemu-img does with their disks.

FOLDER/NAME belongs to the fleet: machine.json, seed.iso, base (a hard link to the image, so that the image may be
deleted) and vnc.secret. FOLDER/NAME/run belongs to the machine's own user: disk.qcow2 and the sockets. A guest that has
broken out of QEMU can write there only, so nothing in it is opened by root: qemu-img runs as that user, in that folder.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
import struct
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .provider import Job
from .qemu_command import BASE, DISK, RUN

if TYPE_CHECKING:
    from fleet_core.errors import Conflict, InvalidInput, NotFound, ProcessFailed, StateDamaged, TimedOut, Unavailable
    from fleet_core.quantities import format_duration, format_size
    from fleet_node import paths
else:
    try:
        from ..fleet_core.errors import (
            Conflict,
            InvalidInput,
            NotFound,
            ProcessFailed,
            StateDamaged,
            TimedOut,
            Unavailable,
        )
        from ..fleet_core.quantities import format_duration, format_size
        from ..fleet_node import paths
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import (
            Conflict,
            InvalidInput,
            NotFound,
            ProcessFailed,
            StateDamaged,
            TimedOut,
            Unavailable,
        )
        from fleet_core.quantities import format_duration, format_size
        from fleet_node import paths

# Each machine has a user of its own, without an account: above what systemd, shadow and containers give out
# (https://systemd.io/UIDS-GIDS/).
FIRST_UID, LAST_UID = 1_900_000_000, 1_900_065_535
SECTOR = 512
_COPIED = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP)


def own_users(uid_map: str = "/proc/self/uid_map") -> bool:
    """Tell whether machines can have users of their own: as root, and where all user ids are there."""
    if os.geteuid() != 0:
        return False
    try:
        with open(uid_map, encoding="ascii") as lines:
            ranges = [[int(word) for word in line.split()] for line in lines]
    except (OSError, ValueError):
        return False
    return any(first <= FIRST_UID and first + count > LAST_UID for first, _outside, count in ranges)


def free_uid(used: Iterable[object], fleet: str = "") -> int:
    """Return a user id that no machine has. Raises Conflict when there is none.

    fleet: its state folder. Two fleets of one host do not know each other's machines, so each begins elsewhere.
    """
    taken, count = set(used), LAST_UID - FIRST_UID + 1
    first = int(hashlib.sha256(fleet.encode("utf-8", "surrogateescape")).hexdigest(), 16) % count if fleet else 0
    for number in range(count):
        uid = FIRST_UID + (first + number) % count
        if uid not in taken:
            return uid
    raise Conflict(f"machines: all {len(taken)} user ids are taken")


class Disks:
    """The folders and disks of the machines in a folder.

    image_tool: the path of qemu-img, or empty to look for it. recorded: gives the folder that a machine was made in,
    empty when there is no machine: it stays there, whatever the setting says now.
    """

    def __init__(self, folder: Path, image_tool: str = "", recorded: Callable[[str], str] = lambda name: "") -> None:
        self.folder = folder
        self._tool = image_tool
        self._recorded = recorded

    def of(self, name: str) -> Path:
        """Return the folder of a machine."""
        known = self._recorded(name)
        return Path(known) if known else self.folder / name

    def run_folder(self, name: str) -> Path:
        return self.of(name) / RUN

    def disk(self, name: str) -> Path:
        return self.run_folder(name) / DISK

    def base(self, name: str) -> Path:
        return self.of(name) / BASE

    def make(self, name: str, uid: int) -> None:
        """Make the empty folders of a machine. uid: of its user, -1 for ours."""
        paths.make_private(self.folder)
        folder = self.of(name)
        try:
            folder.mkdir(mode=0o711)
            folder.chmod(0o711)  # its user reaches the folder run, and what it may read, through it
            (folder / RUN).mkdir(mode=0o700)
            if uid >= 0:
                os.chown(folder / RUN, uid, uid)
        except OSError as error:
            raise StateDamaged(f'machine "{name}": its folder {folder} cannot be made: {error.strerror}') from error

    def remove(self, name: str) -> None:
        """Remove all files of a machine."""
        try:
            shutil.rmtree(self.of(name))
        except FileNotFoundError:
            pass
        except OSError as error:
            raise StateDamaged(
                f'machine "{name}": its folder {self.of(name)} cannot be removed: {error.strerror}'
            ) from error

    def write(self, name: str, file: str, text: str, uid: int = -1) -> None:
        """Write a file of the fleet's into a machine's folder: 0600, or 0440 for the machine's user to read."""
        path = self.of(name) / file
        temporary = path.with_name(f".{file}.new")
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
        if uid >= 0:
            readable(path, uid)

    def link_base(self, name: str, source: Path, what: str, uid: int) -> None:
        """Give a machine the image that its disk lies on: the same file where that can be, else a copy."""
        target = self.of(name) / BASE
        with contextlib.suppress(FileNotFoundError):
            target.unlink()
        source = Path(os.path.realpath(source))  # a link to a link would follow wherever that leads tomorrow
        try:
            if uid < 0 or os.stat(source).st_mode & 0o004:
                os.link(source, target)
                return
        except FileNotFoundError:
            raise NotFound(f"{what}: there is no file {source}") from None
        except OSError as error:
            if error.errno not in _COPIED:
                raise StateDamaged(f"{what}: {source} cannot be used: {error.strerror}") from error
        self._call(("cp", "--reflink=auto", "--sparse=always", str(source), str(target)), what, Job.lasting(3600.0))
        target.chmod(0o400)
        if uid >= 0:
            readable(target, uid)

    def create(self, name: str, base: str, size: int, uid: int, job: Job, *, fine: bool = False) -> None:
        """Make a machine's disk over its base. base: the format of that. size: bytes.

        fine: in clusters of 4K, the blocks of file systems. Whatever the guest discards is then gone, and not only what
        fills a whole cluster of 64K; it is slower.
        """
        words = ["create", "-q", "-f", "qcow2", *(["-o", "cluster_size=4k"] if fine else [])]
        self.image(name, [*words, "-b", f"../{BASE}", "-F", base, DISK, str(round_up(size))], uid, job)

    def fork(
        self, source: str, checkpoint: str, base: str, name: str, size: int, uids: tuple[int, int], job: Job
    ) -> None:
        """Copy what a machine's disk holds beyond its base, now or at a checkpoint, to a new machine.

        base: the format of its base, empty without one. size: bytes of the disk as it is now, also for a checkpoint of
        when it was smaller. uids: of the source's user and
        of the new one's. Each file is made or read by its own user only; the copy is written through an open one.
        """
        over = ["-u", "-b", f"../{BASE}", "-F", base] if base else []
        self.image(name, ["create", "-q", "-f", "qcow2", *over, DISK, str(round_up(size))], uids[1], job)
        descriptor = os.open(self.disk(name), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if uids[0] >= 0:
                os.fchown(descriptor, uids[0], uids[0])
            target = f"driver=qcow2,file.driver=file,file.filename=/proc/self/fd/{descriptor}"
            if base:
                target += f",backing.driver={base},backing.file.driver=file,backing.file.filename=../{BASE}"
            words = ["convert", "-q", "-n", "-f", "qcow2", "--target-image-opts"]
            # What a snapshot holds is never written again, so the machine may run meanwhile (-U).
            words += ["-U", "-l", f"snapshot.name={checkpoint}"] if checkpoint else []
            words += ["-B", f"../{BASE}", "-F", base] if base else []
            self.image(source, [*words, DISK, target], uids[0], job, keep=(descriptor,))
            if uids[1] >= 0:
                os.fchown(descriptor, uids[1], uids[1])
        finally:
            os.close(descriptor)

    def flatten(self, name: str, target: Path, uid: int, job: Job, options: Sequence[str] = ()) -> None:
        """Write a stopped machine's disk to a new file of ours that stands alone. options: of qemu-img convert."""
        descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            if uid >= 0:
                os.fchown(descriptor, uid, uid)
            words = ["convert", "-q", "-f", "qcow2", "-O", "qcow2", *options, DISK, f"/proc/self/fd/{descriptor}"]
            self.image(name, words, uid, job, keep=(descriptor,))
            os.fchown(descriptor, os.geteuid(), os.getegid())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def grow(self, name: str, size: int, uid: int, job: Job) -> None:
        """Make a stopped machine's disk larger."""
        self.image(name, ["resize", "-q", "-f", "qcow2", DISK, str(round_up(size))], uid, job)

    def snapshot(self, name: str, option: str, checkpoint: str, uid: int, job: Job) -> None:
        """Make (-c), apply (-a) or delete (-d) an internal snapshot of a stopped machine's disk."""
        self.image(name, ["snapshot", "-q", option, checkpoint, DISK], uid, job)

    def size(self, name: str) -> int:
        """Return the size of a machine's disk in bytes as the guest sees it, 0 when it cannot be read."""
        try:
            descriptor = os.open(
                self.run_folder(name) / DISK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            )
        except OSError:
            return 0
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return 0
            head = os.read(descriptor, 32)
        finally:
            os.close(descriptor)
        # docs/interop/qcow2.txt: magic, version, backing file's offset and length, cluster bits, size
        return int(struct.unpack(">4sIQIIQ", head)[5]) if len(head) == 32 and head.startswith(b"QFI\xfb") else 0

    def image(self, name: str, words: Sequence[str], uid: int, job: Job, keep: tuple[int, ...] = ()) -> str:
        """Run qemu-img in a machine's folder run, as its user, and return what it printed."""
        what = f'machine "{name}": qemu-img {words[0]}'
        return self._call((self.tool, *words), what, job, uid, self.run_folder(name), keep)

    @property
    def tool(self) -> str:
        """The path of qemu-img. Raises Unavailable when there is none."""
        if not self._tool:
            found = shutil.which("qemu-img")
            if found is None:
                raise Unavailable(
                    "qemu-img is not installed on this host; install the package qemu-utils (Debian, Ubuntu), "
                    "qemu-img (Fedora) or qemu"
                )
            self._tool = found
        return self._tool

    def _call(
        self,
        words: Sequence[str],
        what: str,
        job: Job,
        uid: int = -1,
        folder: Path | None = None,
        keep: tuple[int, ...] = (),
    ) -> str:
        # Popen enters the folder before it gives up root, so the user needs no way to it.
        identity: Mapping[str, Any] = {"user": uid, "group": uid, "extra_groups": ()} if uid >= 0 else {}
        job.check(f"{what}: it was not begun")
        try:
            done = subprocess.run(  # pylint: disable=ansible-bad-function # no module in fleet_machines
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
                env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
                cwd=folder,
                umask=0o077,
                timeout=max(job.left(), 0.1),
                pass_fds=keep,
                start_new_session=True,  # away from our terminal: its user could type there what we then run
                check=False,
                **identity,
            )
        except subprocess.TimeoutExpired:
            raise TimedOut(f"{what}: it did not end within {format_duration(job.limit)}") from None
        except OSError as error:
            raise Unavailable(f"{what}: {words[0]} cannot be run: {error.strerror}") from error
        if done.returncode:
            said = " ".join(done.stdout.split())[-300:]
            raise ProcessFailed(f"{what}: it ended with {done.returncode}: {said.removeprefix('qemu-img: ')}")
        return str(done.stdout)


def readable(path: Path, uid: int) -> None:
    """Let a machine's user read a file, and nobody write it."""
    os.chown(path, os.geteuid(), uid)
    path.chmod(0o440)


def round_up(size: int) -> int:
    """Return a size in whole sectors."""
    return -(-size // SECTOR) * SECTOR


def check_size(what: str, wanted: int | None, least: int) -> int:
    """Return the size of a new disk. Raises InvalidInput for one that is smaller than what it is made from."""
    if wanted is None:
        return least
    if wanted < least:
        raise InvalidInput(f"{what}: disk: its image needs at least {format_size(least)}, found {format_size(wanted)}")
    return wanted
