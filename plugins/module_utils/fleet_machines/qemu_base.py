# SPDX-License-Identifier: GPL-3.0-or-later
"""What golden images of QEMU are built on: Debian's packages, a download, or a file of this host."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from . import downloads, qemu_base_debian
from . import qemu_base_tools as tools
from .provider import Job
from .qemu_base_disks import DiskFile, inspect

if TYPE_CHECKING:
    from fleet_core.errors import InvalidInput, StateDamaged
    from fleet_core.images import ImageSpec
    from fleet_node import paths
else:
    try:
        from ..fleet_core.errors import InvalidInput, StateDamaged
        from ..fleet_node import paths
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import InvalidInput, StateDamaged
        from fleet_node import paths

# Debian's security updates go on: what was built longer ago is built anew, and sooner for an image that is built again
# for newer packages.
A_DAY = 24 * 3600.0
LONGEST_USE = 30 * A_DAY

MOUNTS = "/proc/self/mountinfo"


class Bases:
    """The bases of one host. cache: the folder of what was built and downloaded; mirror: see debian_base."""

    def __init__(self, cache: Path, mirror: str = "") -> None:
        self.cache = cache
        self._mirror = mirror

    def resolve(self, spec: ImageSpec, job: Job) -> DiskFile:
        """Return the disk that a base names, built or downloaded if need be.

        Raises InvalidInput for a base that is not one, or is no disk that stands alone; and what building and
        downloading raise.
        """
        what = f'image "{spec.name}": base {spec.base}'
        if spec.base.startswith("debian:"):
            if spec.checksum:
                raise InvalidInput(f"{what}: checksum: expected none, as it is built from packages")
            return self.debian(spec.base, job, A_DAY if spec.build else LONGEST_USE)
        if spec.base.startswith(("https://", "http://")):
            return inspect(self._download(spec, what, job), what)
        path = file_of(spec.base)
        if path is None:
            raise InvalidInput(
                f"{what}: expected {' or '.join(qemu_base_debian.SUITES)}, https://..., or the path of a qcow2 or raw "
                "disk"
            )
        if spec.checksum:
            job.report("verify the checksum of the base")
            downloads.verify(path, spec.checksum, job, what)
        return inspect(path, what)

    def debian(self, reference: str, job: Job, longest: float = LONGEST_USE) -> DiskFile:
        """Return a base built from Debian's packages: the cached one, if it is of the same inputs and not too old.

        longest: seconds for which a cached one is used.
        """
        base = qemu_base_debian.debian_base(reference, job, self._mirror)
        path = self.cache / f"{base.name}.qcow2"
        with self._locked(base.name, job) as held:
            if not _fresh(path, longest):
                work = self.cache / f".{base.name}.work"
                clear(work)
                work.mkdir(mode=0o700)
                try:
                    built = qemu_base_debian.build(base, work, job, (held,))
                    put(built, path)
                finally:
                    clear(work)
                self._forget(reference, path)
        return inspect(path, f"base {reference}")

    def _download(self, spec: ImageSpec, what: str, job: Job) -> Path:
        checksum = downloads.parse_checksum(what, spec.checksum)
        downloads.check_url(what, spec.base)
        with self._locked(f"{checksum.algorithm}-{checksum.digits}", job):
            return downloads.cached(spec.base, spec.checksum, self.cache / "downloads", job, what)

    def _forget(self, reference: str, kept: Path) -> None:
        """Remove what was built of this release from other inputs, unless somebody builds on it right now."""
        for path in self.cache.glob(f"{reference.replace(':', '-')}-*.qcow2"):
            if path != kept and time.time() - path.stat().st_mtime > LONGEST_USE:
                path.unlink()

    @contextlib.contextmanager
    def _locked(self, name: str, job: Job) -> Iterator[int]:
        _make(self.cache)
        with locked(self.cache / f".{name}.lock", job, f"base {name}: another operation") as handle:
            yield handle


@contextlib.contextmanager
def locked(path: Path, job: Job, other: str) -> Iterator[int]:
    """Hold a lock between threads and processes, and yield its open file: a child that inherits it holds it as well.

    other: begins the sentence that somebody else has it. Raises TimedOut when the job's time is over.
    """
    handle = tools.out_of_the_way(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    try:
        waited = False
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not waited:
                    waited = True
                    job.report(f"wait: {other} has begun before")
                job.check(f"{other} did not end")
                job.pause(0.2)
        yield handle
    finally:
        os.close(handle)


def file_of(base: str) -> Path | None:
    """Return the path of a base that is a file of this host, None for another one."""
    if base.startswith("file://"):
        parts = urlsplit(base)
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            return None
        return Path(unquote(parts.path))
    return Path(base) if base.startswith("/") else None


def put(built: Path, path: Path, mode: int = 0o444) -> None:
    """Move a finished file to its place: after a crash there is all of it or nothing."""
    built.chmod(mode)
    with built.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(built, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def clear(work: Path) -> None:
    """Remove a folder in which a system was built.

    If that was cut off, folders of this host may still be mounted below it: nothing of theirs is touched.
    """
    if not work.exists():
        return
    below = f"{os.path.realpath(work)}/"
    try:
        mounts = Path(MOUNTS).read_text(encoding="utf-8").splitlines()
    except OSError:
        mounts = []
    if any(line.split()[4].startswith(below) for line in mounts):
        raise StateDamaged(f"{work}: something is mounted below it; unmount it, and remove the folder")
    shutil.rmtree(work, ignore_errors=True)
    if work.exists():
        raise StateDamaged(f"{work}: what is left of an earlier operation cannot be removed")


def _make(folder: Path) -> None:
    if not folder.is_dir():
        paths.make_private(folder)


def _fresh(path: Path, longest: float) -> bool:
    try:
        return time.time() - path.stat().st_mtime < longest
    except FileNotFoundError:
        return False
