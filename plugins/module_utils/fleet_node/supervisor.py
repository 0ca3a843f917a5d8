# SPDX-License-Identifier: GPL-3.0-or-later
"""What fleetd asks of a supervisor: one protocol, two drivers (native and systemd)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Union

if TYPE_CHECKING:
    from fleet_core.errors import FleetError
    from fleet_core.process_status import ProcessStatus
    from fleet_core.processes import Launch, ProcessSpec
else:
    try:
        from ..fleet_core.errors import FleetError
        from ..fleet_core.process_status import ProcessStatus
        from ..fleet_core.processes import Launch, ProcessSpec
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import FleetError
        from fleet_core.process_status import ProcessStatus
        from fleet_core.processes import Launch, ProcessSpec


@dataclass(frozen=True)
class Job:
    """One process to launch. token: unique to this launch, put into its environment as FLEET_LAUNCH.

    working_dir is final and absolute. after: ids that must be stopped after this one when the host goes down.
    """

    spec: ProcessSpec
    launch: Launch
    token: str
    working_dir: str
    after: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        return self.spec.id


@dataclass(frozen=True)
class Observation:
    """What a supervisor sees of a process.

    phase: "alive", "waiting" (the supervisor itself will start it again), "ended", or "absent" (it knows nothing of
    it). exit_code: of the last run; negative for a signal, None when it cannot be known. restarts: made by the
    supervisor itself since the last start on request. ready is False while the supervisor waits for it to come up.
    """

    phase: str
    pid: int = 0
    pid_start: int = 0
    exit_code: int | None = None
    restarts: int = 0
    ready: bool = True
    error: str = ""


Outcome = Union[Observation, FleetError]


class Supervisor(Protocol):
    """Starts, stops and observes processes. All methods are called from fleetd's one thread or a worker thread of it.

    name: "native" or "systemd". restarts: the supervisor itself restarts by the policy (fleetd then only watches).
    blocking: calls may take long, so fleetd makes them in a worker thread.
    """

    name: str
    restarts: bool
    blocking: bool

    def listen(self, changed: Callable[[Sequence[str]], None]) -> None:
        """Call changed(ids), from any thread, whenever processes may have ended, started or been restarted."""

    def start(self, jobs: Sequence[Job]) -> dict[str, Outcome]:
        """Launch every job. Returns an alive Observation, or the error, for each id. One failure stops no other."""

    def terminate(self, spec: ProcessSpec, status: ProcessStatus) -> None:
        """Ask the whole process group (or cgroup) to end with the stop signal. Returns at once."""

    def kill(self, spec: ProcessSpec, status: ProcessStatus) -> None:
        """End the whole process group with SIGKILL. Returns at once."""

    def observe(self, known: Mapping[str, ProcessStatus]) -> dict[str, Observation]:
        """Return what is true now of each process, given what was recorded last. Makes one call for all of them."""

    def forget(self, ids: Iterable[str]) -> None:
        """Remove what the driver keeps on disk for stopped processes (units, spool files). Logs stay."""

    def close(self) -> None:
        """Release what the driver holds in fleetd; no process is touched."""
