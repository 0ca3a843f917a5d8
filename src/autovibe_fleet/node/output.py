# SPDX-License-Identifier: GPL-3.0-or-later
"""What processes print, on its way to their logs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fleet_core.processes import ProcessSpec
from fleet_node.supervisor import Supervisor


class Output:
    """The logs of every process of this host."""

    def __init__(self, folder: Path, supervisor: Supervisor, complain: Callable[..., None]) -> None:
        self.folder = folder
        self.daemon = complain
        self.on_activity: Callable[[str], None] = lambda ident: None
        self._paths: dict[str, Path] = {}

    def open(self) -> None:
        pass

    def close(self) -> None:
        pass

    def add(self, spec: ProcessSpec, project_dir: str) -> None:
        self._paths[spec.id] = log_file(spec, project_dir, self.folder)

    def remove(self, ident: str) -> None:
        self._paths.pop(ident, None)

    def path(self, ident: str) -> Path:
        return self._paths[ident]

    def note(self, ident: str, pid: int, message: str, level: str = "Info") -> None:
        pass

    def drain(self, ident: str) -> None:
        pass

    def last_line(self, ident: str) -> str:
        return ""


def log_file(spec: ProcessSpec, project_dir: str, state_folder: Path) -> Path:
    """Return where the log of a process lies."""
    if project_dir:
        return Path(project_dir) / ".runcept" / "logs" / f"{spec.name}.log"
    return state_folder / "logs" / f"{spec.id.replace('/', '%2F')}.log"
