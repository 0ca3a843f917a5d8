# SPDX-License-Identifier: GPL-3.0-or-later
"""One process in the engine's hands."""

from __future__ import annotations

import asyncio
import signal

from fleet_core import lifecycle as life
from fleet_core.process_status import ProcessStatus
from fleet_core.processes import Launch, ProcessSpec


class Managed:
    """A declared process, its recorded status, and what the engine remembers of it between two events.

    launched: monotonic time of the last launch. attempt, crashes: of this row of restarts. relaunch: it was ended so
    that it starts again. late: why it was ended for not becoming ready or healthy. give_up: no restart may follow.
    secrets: values that nobody may be shown.
    """

    __slots__ = (
        "attempt",
        "crashes",
        "folder",
        "give_up",
        "kill_timer",
        "late",
        "launch",
        "launched",
        "ready_task",
        "relaunch",
        "restart_timer",
        "restart_times",
        "secrets",
        "spawning",
        "spec",
        "status",
        "waiting",
        "was_ready",
    )  # fmt: skip

    def __init__(self, spec: ProcessSpec, status: ProcessStatus) -> None:
        self.spec = spec
        self.status = status
        self.launch: Launch | None = None
        self.folder = ""
        self.secrets: tuple[str, ...] = ()
        self.restart_times: list[float] = []
        self.attempt = 0
        self.launched = 0.0
        self.spawning = False
        self.relaunch = False
        self.restart_timer: asyncio.TimerHandle | None = None
        self.kill_timer: asyncio.TimerHandle | None = None
        self.ready_task: asyncio.Task[None] | None = None
        self.waiting = ""
        self.crashes = 0
        self.was_ready = False
        self.late = ""
        self.give_up = False

    @property
    def id(self) -> str:
        return self.spec.id

    @property
    def completed(self) -> bool:
        """It was wanted, ran to its end with exit code 0, and is not wanted back."""
        status = self.status
        return (
            status.state == life.STOPPED and status.desired == "running" and status.exit_code == 0 and status.ended > 0
        )


def ended_text(code: int | None) -> str:
    """Say how a process ended."""
    if code is None:
        return "ended; its exit code is not known"
    if code < 0:
        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"killed by signal {-code}"
    return f"ended with exit code {code}"
