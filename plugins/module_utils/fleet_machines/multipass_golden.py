# SPDX-License-Identifier: GPL-3.0-or-later
"""Golden images of Multipass: stopped instances with a snapshot that machines are cloned from."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from . import downloads, golden
from .multipass_output import NAME, listed
from .multipass_sources import SEALED
from .provider import Job

if TYPE_CHECKING:
    from fleet_core.errors import Conflict, FleetError, InvalidInput, NotFound
    from fleet_core.images import GOLDEN, Image, ImageSpec
    from fleet_core.machines import MachineSpec
    from fleet_core.moments import precise

    from .multipass import Multipass
    from .records import Record
else:
    try:
        from ..fleet_core.errors import Conflict, FleetError, InvalidInput, NotFound
        from ..fleet_core.images import GOLDEN, Image
        from ..fleet_core.machines import MachineSpec
        from ..fleet_core.moments import precise
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import Conflict, FleetError, InvalidInput, NotFound
        from fleet_core.images import GOLDEN, Image
        from fleet_core.machines import MachineSpec
        from fleet_core.moments import precise


class GoldenImages:
    """provider: the adapter that they belong to."""

    def __init__(self, provider: Multipass) -> None:
        self._provider = provider

    def all(self) -> tuple[Image, ...]:
        """Return the golden images whose instances exist."""
        there = listed(self._provider.cli.read("list"))
        records = self._provider.records.all()
        return tuple(
            _image(name, record) for name, record in records.items() if record.get("role") == "image" and name in there
        )

    def build(self, spec: ImageSpec, job: Job) -> Image:
        """Launch the base, prepare it, stop it and snapshot it, under the name of its inputs."""
        name, provider = spec.image_name, self._provider
        what = f'image "{name}"'
        with provider.records.locked(name, job):
            record, state = provider.records.get(name), provider.state(name)
            if state and record.get("role") != "image":
                raise Conflict(f"{what}: there is a machine of that name")
            if state and not record.get("incomplete"):
                return _image(name, record)
            if state:
                job.report("remove what an earlier build left of it")
                provider.cli.run("delete", "--purge", name, what=what, job=job)
            record = {"role": "image", "image": spec.base, "inputs": spec.inputs, "parts": spec.parts}
            record.update(login=spec.login, created=precise(time.time()))
            provider.records.put(name, {**record, "incomplete": "its build was interrupted"})
            try:
                self._make(spec, job)
            except FleetError as error:
                if provider.state(name):
                    provider.records.put(name, {**record, "incomplete": error.message})
                else:
                    provider.records.remove(name)
                raise
            record["created"] = precise(time.time())
            provider.records.put(name, record)
            return _image(name, record)

    def delete(self, name: str, job: Job) -> None:
        provider = self._provider
        with provider.records.locked(name, job):
            if provider.records.get(name).get("role") != "image":
                raise NotFound(f'image "{name}": there is no golden image of that name')
            if provider.state(name):
                provider.cli.run("delete", "--purge", name, what=f'image "{name}"', job=job)
            provider.records.remove(name)

    def _make(self, spec: ImageSpec, job: Job) -> None:
        name, provider = spec.image_name, self._provider
        what = f'image "{name}"'
        machine = MachineSpec(
            name, NAME, spec.base, cpu=spec.cpu, memory=spec.memory, disk=spec.disk, user_data=spec.user_data
        )
        provider.check(machine)
        _verify(spec, job)
        provider.launch(machine, job)
        golden.prepare(spec, lambda script: provider.run(name, script, job), job)
        job.report("stop it and snapshot it")
        provider.cli.run("stop", name, what=what, job=job)
        provider.cli.run("snapshot", name, "--name", SEALED, what=what, job=job)


def _verify(spec: ImageSpec, job: Job) -> None:
    """Verify a base that is a file. Raises InvalidInput for a checksum that nobody would look at."""
    what = f'image "{spec.name}": base'
    if not spec.checksum:
        return
    if not spec.base.startswith("file://"):
        raise InvalidInput(
            f"{what}: Multipass verifies its own releases and nothing else; download {spec.base} and name it as "
            "file:///path, or leave the checksum out"
        )
    downloads.verify(Path(spec.base[len("file://") :]), spec.checksum, job, what)


def _image(name: str, record: Record) -> Image:
    return Image(
        name,
        NAME,
        kind=GOLDEN,
        inputs=record.get("inputs", ""),
        incomplete=record.get("incomplete", ""),
        created=record.get("created", ""),
        release=record.get("image", ""),
        detail={key: record[key] for key in ("parts", "login") if record.get(key)},
    )
