# SPDX-License-Identifier: GPL-3.0-or-later
"""What processes print, on its way to their logs: through the spool, or in journald where systemd supervises."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

from fleet_core.errors import FleetError
from fleet_core.processes import ProcessSpec
from fleet_node import logs, paths
from fleet_node.spool import Spool
from fleet_node.supervisor import Supervisor


class Output:
    """The logs of every process of this host. complain: where fleetd writes about itself."""

    def __init__(self, folder: Path, supervisor: Supervisor, complain: Callable[..., None]) -> None:
        self.folder = folder
        self.complain = complain
        self._supervisor = supervisor
        self._paths: dict[str, Path] = {}
        self.on_printed: Callable[[str], None] = lambda ident: None
        self._spool: Spool | None = None
        if supervisor.name != "systemd":
            self._spool = Spool(paths.spool(folder), complain, printed=self._printed)

    def _printed(self, ident: str) -> None:
        self.on_printed(ident)

    def open(self) -> None:
        """Begin to bring what is printed into the logs. Called inside the event loop, after every process was added."""
        if self._spool is not None:
            self._spool.prune()
            self._spool.attach(asyncio.get_running_loop())

    def close(self) -> None:
        """Stop; what is printed from now on waits in the spool for the next fleetd."""
        if self._spool is not None:
            self._spool.close()

    def add(self, spec: ProcessSpec, project_dir: str, pid: int = 0) -> None:
        """Take care of a process, new or with another declaration."""
        path = log_file(spec, project_dir, self.folder)
        self._paths[spec.id] = path
        if self._spool is not None:
            self._spool.add(spec.id, spec.name, path, spec.logs, pid)

    def remove(self, ident: str) -> None:
        """Forget a process. Its log stays."""
        self._paths.pop(ident, None)
        if self._spool is not None:
            self._spool.remove(ident)

    def path(self, ident: str) -> Path:
        """Return the log file of a process."""
        return self._paths[ident]

    def unit(self, ident: str) -> str:
        """Return the systemd unit whose journal holds what a process prints, or an empty string."""
        named = getattr(self._supervisor, "unit", None)
        return str(named(ident)) if named is not None else ""

    def note(self, ident: str, pid: int, message: str, level: str = logs.LIFECYCLE) -> None:
        """Write a line of fleetd's own into the log of a process. systemd writes such lines by itself."""
        if self._spool is not None:
            self._spool.note(ident, pid, message, level)

    def drain(self, ident: str) -> None:
        """Bring all that an ended process has printed into its log."""
        if self._spool is not None:
            self._spool.drain(ident)

    def last_line(self, ident: str, pid: int) -> str:
        """Return the last line that a process printed, or an empty string."""
        with contextlib.suppress(FleetError, OSError):
            if self._spool is not None:
                return logs.last_output(self._paths[ident], pid)
        return ""

    def last_printed(self, ident: str) -> float:
        """Return when a unit of systemd last printed something, in seconds since the epoch; 0 if it cannot be told.

        Where the lines pass through fleetd, on_printed tells instead.
        """
        if self._spool is not None:
            return 0.0
        with contextlib.suppress(FleetError, OSError):
            scope = getattr(self._supervisor, "scope", "system")
            for record in logs.read_journal(self.unit(ident), scope, lines=1):
                return datetime.fromisoformat(str(record["timestamp"]).replace("Z", "+00:00")).timestamp()
        return 0.0


def log_file(spec: ProcessSpec, project_dir: str, state_folder: Path) -> Path:
    """Return where the log of a process lies: in its project, or in the state folder.

    root writes in no project that somebody else could turn elsewhere by a link.
    """
    folder = Path(project_dir) / ".runcept" / "logs"
    if project_dir and (os.geteuid() != 0 or belongs_to_root(folder)):
        return folder / f"{spec.name}.log"
    return paths.logs(state_folder) / f"{quote(spec.id, safe='')}.log"


def belongs_to_root(folder: Path) -> bool:
    """Tell whether nobody but root can change where a path leads. What is not there yet will be root's."""
    for place in (folder, *folder.parents):
        try:
            found = place.lstat()
        except FileNotFoundError:
            continue
        except OSError:
            return False
        others = 0o022 if found.st_gid else 0o002
        shared = found.st_mode & others and not found.st_mode & stat.S_ISVTX
        if found.st_uid != 0 or shared or not stat.S_ISDIR(found.st_mode):
            return False
    return True
