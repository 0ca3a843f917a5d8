# SPDX-License-Identifier: GPL-3.0-or-later
"""The protocol that every provider of machines speaks, and the registry that adapters enter.

An adapter is one file: a class with these methods, and one line in providers.py, which is how Ansible knows that the
file must go to the host. docs/machines.md shows how.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from fleet_core.checkpoints import Checkpoint
    from fleet_core.errors import TimedOut
    from fleet_core.images import Image, ImageSpec
    from fleet_core.machine_plans import Capabilities, Difference
    from fleet_core.machines import Machine, MachineSpec
    from fleet_core.quantities import format_duration
else:
    try:
        from ..fleet_core.errors import TimedOut
        from ..fleet_core.quantities import format_duration
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import TimedOut
        from fleet_core.quantities import format_duration

Report = Callable[[str], None]


def _silent(text: str) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class Job:
    """What one operation on a machine may take, and whom it tells how far it is.

    deadline: on the monotonic clock, in seconds. report: gets one short sentence for each thing that takes long.
    ended: set when nobody waits for the result any more.
    """

    deadline: float
    limit: float = 0.0
    report: Report = _silent
    ended: threading.Event = field(default_factory=threading.Event)

    @classmethod
    def lasting(cls, seconds: float, report: Report = _silent) -> Job:
        """Return a job that has this many seconds from now on."""
        return cls(time.monotonic() + seconds, seconds, report)

    def left(self) -> float:
        """Seconds that are left, at least 0."""
        return 0.0 if self.ended.is_set() else max(0.0, self.deadline - time.monotonic())

    def check(self, what: str) -> None:
        """Raise TimedOut when no time is left. what: the thing and what it did not come to."""
        if not self.left():
            raise TimedOut(f"{what} within {format_duration(self.limit)}")

    def pause(self, seconds: float) -> None:
        """Wait, but not beyond the deadline."""
        self.ended.wait(min(seconds, self.left()))


@dataclass(frozen=True)
class Ran:
    """What a script in a machine ended with. code: its exit code; both texts as far as the provider hands them over."""

    code: int
    stdout: str = ""
    stderr: str = ""


class Provider(Protocol):
    """A source of machines. One object serves one call of a module or a command, from several threads at once.

    Every method raises errors of the FleetError tree, which name the machine. What a method could not finish it
    either undoes or leaves as a machine whose ``incomplete`` says what is missing: never hidden.
    """

    name: str
    capabilities: Capabilities

    def describe(self, names: Sequence[str] | None = None, *, full: bool = False) -> dict[str, Machine]:
        """Return machines by name: all in one call to the provider, or those of names that exist.

        full: also what costs a call for each machine.
        """

    def create(self, spec: MachineSpec, job: Job) -> Machine:
        """Make a machine, boot it, and return when it can be used. One that is incomplete is finished or made anew."""

    def change(self, spec: MachineSpec, differences: Sequence[Difference], job: Job) -> None:
        """Change these fields in place. Only what capabilities.changes allows is asked for."""

    def start(self, name: str, job: Job) -> Machine:
        """Start a machine and return when it can be used."""

    def stop(self, name: str, job: Job, *, force: bool = False) -> None:
        """Shut a machine down and return when it has stopped. force: power it off."""

    def delete(self, name: str, job: Job) -> None:
        """Remove a machine with its disks and checkpoints, for good. One that is not there is no error."""

    def run(self, name: str, script: str, job: Job) -> Ran:
        """Run a shell script as root in a running machine, without its network: as a guest agent does.

        The script may hold secrets: it goes by standard input or a file, never as an argument.
        """

    def checkpoints(self, names: Sequence[str] | None = None) -> dict[str, tuple[Checkpoint, ...]]:
        """Return the checkpoints of all machines, or of these, in one call; parents before children."""

    def checkpoint(self, name: str, checkpoint: str, job: Job, *, comment: str = "") -> Checkpoint:
        """Save the state of a machine."""

    def restore(self, name: str, checkpoint: str, job: Job) -> None:
        """Put a machine back to a checkpoint. What it was since then is lost."""

    def delete_checkpoint(self, name: str, checkpoint: str, job: Job) -> None:
        """Remove a checkpoint."""

    def images(self) -> tuple[Image, ...]:
        """Return what machines can be made from."""

    def build_image(self, spec: ImageSpec, job: Job) -> Image:
        """Build a golden image, or return the one that exists if its inputs are the same."""

    def delete_image(self, name: str, job: Job) -> None:
        """Remove a golden image. Machines made from it stay."""


@dataclass(frozen=True)
class Surroundings:
    """What an adapter is made with. state_dir: where it may keep what the provider itself cannot hold.

    settings: how to reach the provider; capabilities.settings names those that it takes.
    """

    state_dir: str
    settings: Mapping[str, Any] = field(default_factory=dict)
