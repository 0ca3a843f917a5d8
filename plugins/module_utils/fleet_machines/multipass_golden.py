# SPDX-License-Identifier: GPL-3.0-or-later
"""Golden images of Multipass: stopped instances with a snapshot that machines are cloned from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .multipass_output import NAME, listed
from .multipass_sources import SEALED
from .provider import Job

if TYPE_CHECKING:
    from fleet_core.errors import Conflict, FleetError, NotFound, ProcessFailed
    from fleet_core.images import GOLDEN, Image, ImageSpec
    from fleet_core.machines import MachineSpec

    from .multipass import Multipass
    from .records import Record
else:
    try:
        from ..fleet_core.errors import Conflict, FleetError, NotFound, ProcessFailed
        from ..fleet_core.images import GOLDEN, Image
        from ..fleet_core.machines import MachineSpec
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import Conflict, FleetError, NotFound, ProcessFailed
        from fleet_core.images import GOLDEN, Image
        from fleet_core.machines import MachineSpec


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
        """Launch the base, run the commands inside, stop it and snapshot it."""
        what = f'image "{spec.name}"'
        provider = self._provider
        with provider.records.locked(spec.name, job):
            record, state = provider.records.get(spec.name), provider.state(spec.name)
            if state and record.get("role") != "image":
                raise Conflict(f"{what}: there is a machine of that name")
            if state and not record.get("incomplete"):
                if record.get("inputs") == spec.inputs:
                    return _image(spec.name, record)
                raise Conflict(f"{what}: it exists, built from other inputs; choose another name, or delete it first")
            if state:
                job.report("remove what an earlier build left of it")
                provider.cli.run("delete", "--purge", spec.name, what=what, job=job)
            record = {"role": "image", "image": spec.base, "inputs": spec.inputs}
            provider.records.put(spec.name, {**record, "incomplete": "its build was interrupted"})
            try:
                self._make(spec, job)
            except FleetError as error:
                if provider.state(spec.name):
                    provider.records.put(spec.name, {**record, "incomplete": error.message})
                else:
                    provider.records.remove(spec.name)
                raise
            provider.records.put(spec.name, record)
            return _image(spec.name, record)

    def delete(self, name: str, job: Job) -> None:
        provider = self._provider
        with provider.records.locked(name, job):
            if provider.records.get(name).get("role") != "image":
                raise NotFound(f'image "{name}": there is no golden image of that name')
            if provider.state(name):
                provider.cli.run("delete", "--purge", name, what=f'image "{name}"', job=job)
            provider.records.remove(name)

    def _make(self, spec: ImageSpec, job: Job) -> None:
        what = f'image "{spec.name}"'
        cli = self._provider.cli
        machine = MachineSpec(
            spec.name, NAME, spec.base, cpu=spec.cpu, memory=spec.memory, disk=spec.disk, user_data=spec.user_data
        )
        self._provider.launch(machine, job)
        for number, command in enumerate(spec.commands, 1):
            job.report(f"run command {number} of {len(spec.commands)}")
            # By stdin: the command may hold secrets, and a process list shows arguments.
            code, stdout, stderr = cli.attempt(
                *("exec", spec.name, "--", "sudo", "sh", "-es"), what=what, job=job, stdin=command
            )
            if code:
                last = " ".join((stderr.strip() or stdout.strip()).splitlines()[-1:]) or "it said nothing"
                raise ProcessFailed(f"{what}: command {number} ended with exit code {code}: {last}")
        job.report("seal it")
        cli.run("stop", spec.name, what=what, job=job)
        cli.run("snapshot", spec.name, "--name", SEALED, what=what, job=job)


def _image(name: str, record: Record) -> Image:
    return Image(
        name, NAME, kind=GOLDEN, inputs=record.get("inputs", ""), incomplete=record.get("incomplete", ""),
        release=record.get("image", ""),
    )  # fmt: skip
