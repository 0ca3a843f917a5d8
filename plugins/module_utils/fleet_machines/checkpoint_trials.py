# SPDX-License-Identifier: GPL-3.0-or-later
"""Checkpoints are verified on scratch machines, which are forked from them and deleted, whatever happens."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .checkpoint_notes import Notes
from .provider import Job, Provider

if TYPE_CHECKING:
    from fleet_core.errors import Conflict, NotFound
    from fleet_core.machines import Machine, MachineSpec, Network
    from fleet_core.manifests import ManifestDiff
else:
    try:
        from ..fleet_core.errors import Conflict, NotFound
        from ..fleet_core.machines import MachineSpec, Network
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import Conflict, NotFound
        from fleet_core.machines import MachineSpec, Network

SCRATCH = "verify-"  # what a machine is called that exists to verify a checkpoint
UP = ("running", "starting", "suspended")
_TO_PUT_BACK = 180.0  # seconds for what must be done whatever the deadline


@dataclass(frozen=True)
class Verified:
    """how: "hash" or "restore". found: what was found, for people. diff: in what a restored machine differs."""

    how: str
    at: str
    ok: bool
    found: str
    diff: ManifestDiff | None = None

    def to_dict(self) -> dict[str, Any]:
        values = {"how": self.how, "at": self.at, "ok": self.ok, "found": self.found}
        return values if self.diff is None else {**values, "diff": self.diff.to_dict()}


def machine_of(provider: Provider, name: str) -> Machine:
    """Return a machine. Raises NotFound."""
    machine = provider.describe([name]).get(name)
    if machine is None:
        raise NotFound(f'machine "{name}": not there with provider {provider.name}')
    return machine


@contextlib.contextmanager
def stopped(provider: Provider, machine: Machine, job: Job) -> Iterator[None]:
    """Stop a machine and start it again, whatever happened meanwhile."""
    job.report("stop it")
    provider.stop(machine.name, job)
    try:
        yield
    finally:
        late = Job.lasting(max(job.left(), _TO_PUT_BACK), job.report)
        if machine_of(provider, machine.name).state not in ("running", "starting"):
            provider.start(machine.name, late)


@contextlib.contextmanager
def scratch(provider: Provider, notes: Notes, name: str, checkpoint: str, job: Job, stop: bool) -> Iterator[str]:
    """Fork a machine from a checkpoint and yield its name; nothing of it is left afterwards.

    It reaches no network where the provider can do that: it is a copy of one that may have work to do. stop: whether
    the machine itself may be stopped for it, and is started again.
    """
    trial = SCRATCH + hashlib.sha256(f"{name}.{checkpoint}".encode()).hexdigest()[:10]
    image = f"instance:{name}.{checkpoint}"
    what = f'checkpoint "{checkpoint}" of machine "{name}"'
    capabilities = provider.capabilities
    with notes.locked(trial, job):
        left = provider.describe([trial]).get(trial)
        if left is not None and left.image not in (image, ""):
            raise Conflict(f'machine "{trial}": expected none, found one made from {left.image}')
        machine = machine_of(provider, name)
        up = machine.state in UP and not capabilities.live_checkpoints
        if up and not stop:
            raise Conflict(
                f"{what}: machine {name} is {machine.state}, and provider {provider.name} forks stopped ones only; "
                "set stop: true to stop it and start it again"
            )
        networks = (Network(capabilities.isolated),) if capabilities.isolated else None
        try:
            if left is not None:
                provider.delete(trial, job)
            job.report(f"fork {trial} from it")
            with stopped(provider, machine, job) if up else contextlib.nullcontext():
                provider.create(MachineSpec(trial, provider.name, image, networks=networks, tags=("scratch",)), job)
            yield trial
        finally:
            job.report(f"delete {trial}")
            provider.delete(trial, Job.lasting(max(job.left(), _TO_PUT_BACK), job.report))
            notes.forget(trial)
