# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known of a process at one moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from . import lifecycle


@dataclass(frozen=True)
class ProcessStatus:
    """The state of a process; every field survives a restart of fleetd.

    desired: "running" or "stopped". pid_start: start time of the pid in clock ticks since boot (proc(5), field 22),
    which tells a pid from a later one of the same number. launch: a token in the environment of what was launched.
    claimed: need name to (type, value). started, ended: seconds since the epoch. restarts: since the last start on
    request. exit_code: of the last run; negative for a signal, None when unknown. healthy: None until a check answers.
    """

    state: str = lifecycle.STOPPED
    desired: str = "stopped"
    driver: str = ""
    pid: int = 0
    pid_start: int = 0
    launch: str = ""
    claimed: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    started: float = 0.0
    ended: float = 0.0
    restarts: int = 0
    exit_code: int | None = None
    error: str = ""
    healthy: bool | None = None
    adopted: bool = False

    def evolve(self, **changes: Any) -> ProcessStatus:
        """Return a copy with some fields replaced."""
        return replace(self, **changes)

    @property
    def resources(self) -> dict[str, str]:
        """Need name to value."""
        return {name: value for name, (_type, value) in self.claimed.items()}

    def to_dict(self) -> dict[str, Any]:
        data = {part.name: getattr(self, part.name) for part in fields(self)}
        data["claimed"] = {name: list(pair) for name, pair in self.claimed.items()}
        return data


def status_from_dict(data: Mapping[str, Any]) -> ProcessStatus:
    """Return the status that to_dict wrote; unknown keys of a later version are ignored."""
    known = {part.name for part in fields(ProcessStatus)}
    kept = {key: value for key, value in data.items() if key in known}
    kept["claimed"] = {name: (pair[0], pair[1]) for name, pair in dict(data.get("claimed") or {}).items()}
    return ProcessStatus(**kept)
