# SPDX-License-Identifier: GPL-3.0-or-later
"""What a Multipass instance can be cloned from: a golden image, or any other instance, at a snapshot or as it is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .multipass_cli import CommandLine
from .multipass_output import listed, snapshots
from .provider import Job
from .records import Records

if TYPE_CHECKING:
    from fleet_core.errors import Conflict, FleetError, InvalidInput, NotFound
    from fleet_core.images import family_of
    from fleet_core.machines import MACHINE_NAME
else:
    try:
        from ..fleet_core.errors import Conflict, FleetError, InvalidInput, NotFound
        from ..fleet_core.images import family_of
        from ..fleet_core.machines import MACHINE_NAME
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import Conflict, FleetError, InvalidInput, NotFound
        from fleet_core.images import family_of
        from fleet_core.machines import MACHINE_NAME

PREFIX = "instance:"
SEALED = "sealed"
_KEPT = "before-fork"


@dataclass(frozen=True)
class Source:
    """snapshot: empty for the instance as it is. golden: nothing in it but the snapshot is of worth.

    login: the account of machines made from it, where that is known.
    """

    instance: str
    snapshot: str = ""
    golden: bool = False
    login: str = ""


class Sources:
    def __init__(self, cli: CommandLine, records: Records) -> None:
        self._cli = cli
        self._records = records

    def of(self, image: str) -> Source | None:
        """Return what an image's name stands for, or None when it is to be launched.

        instance:NAME and instance:NAME.SNAPSHOT are any instance; the name of a golden image is that image, and that
        of its family the newest.
        """
        if image.startswith(PREFIX):
            name, dot, snapshot = image[len(PREFIX) :].partition(".")
            if not MACHINE_NAME.fullmatch(name) or (dot and not MACHINE_NAME.fullmatch(snapshot)):
                raise InvalidInput(f"image {image!r}: expected {PREFIX}NAME or {PREFIX}NAME.SNAPSHOT")
            return Source(name, snapshot, self._is_golden(name))
        if not MACHINE_NAME.fullmatch(image):
            return None
        records = {name: record for name, record in self._records.all().items() if record.get("role") == "image"}
        family = [name for name in records if image in (name, family_of(name))]
        if not family:
            return None
        whole = [name for name in family if not records[name].get("incomplete")]
        if not whole:
            newest = max(family, key=lambda name: (records[name].get("created", ""), name))
            raise Conflict(f'image "{newest}": it is incomplete: {records[newest]["incomplete"]}; build it again')
        name = image if image in whole else max(whole, key=lambda name: (records[name].get("created", ""), name))
        return Source(name, SEALED, True, records[name].get("login", ""))

    def clone(self, source: Source, name: str, job: Job) -> None:
        """Clone a source, restored to its snapshot, under the source's lock.

        The present state of a source that is no golden image is snapshotted before, and restored afterwards.
        """
        what = f'machine "{name}"'
        with self._records.locked(source.instance, job):
            state = listed(self._cli.read("list")).get(source.instance)
            if state is None:
                raise NotFound(f'{what}: the instance "{source.instance}" to clone does not exist')
            if state.state != "stopped":
                if not source.golden:
                    raise Conflict(
                        f'{what}: the instance "{source.instance}" to clone is {state.state}; Multipass clones '
                        "stopped ones only"
                    )
                job.report(f"stop golden image {source.instance}, which somebody started")
                self._cli.run("stop", source.instance, what=f'image "{source.instance}"', job=job)
            with self._restored(source, what, job):
                job.report(f"clone {source.instance}")
                try:
                    self._cli.run("clone", source.instance, "--name", name, what=what, job=job)
                except InvalidInput as error:
                    raise InvalidInput(f"{error.message}; cloning needs Multipass 1.15 or newer") from error

    @contextlib.contextmanager
    def _restored(self, source: Source, what: str, job: Job) -> Iterator[None]:
        if not source.snapshot:
            yield
            return
        known = {one.name for one in snapshots(self._cli.read("info", "--snapshots")).get(source.instance, ())}
        if source.snapshot not in known:
            raise NotFound(f'{what}: instance "{source.instance}" has no snapshot "{source.snapshot}"')
        kept = "" if source.golden else _unused(known)
        if kept:
            self._cli.run("snapshot", source.instance, "--name", kept, what=what, job=job)
        try:
            self._cli.run("restore", "--destructive", f"{source.instance}.{source.snapshot}", what=what, job=job)
            yield
        finally:
            if kept:
                self._put_back(source.instance, kept, what, job)

    def _put_back(self, instance: str, kept: str, what: str, job: Job) -> None:
        job = Job.lasting(max(job.left(), 60.0), job.report)  # more important than the deadline
        try:
            self._cli.run("restore", "--destructive", f"{instance}.{kept}", what=what, job=job)
            self._cli.run("delete", "--purge", f"{instance}.{kept}", what=what, job=job)
        except FleetError as error:
            raise type(error)(
                f'{error.message}; the state that "{instance}" was in is its snapshot "{kept}"'
            ) from error

    def _is_golden(self, name: str) -> bool:
        return self._records.get(name).get("role") == "image"


def _unused(known: set[str]) -> str:
    number = 1
    while f"{_KEPT}{number}" in known:
        number += 1
    return f"{_KEPT}{number}"
