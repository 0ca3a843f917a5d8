# SPDX-License-Identifier: GPL-3.0-or-later
"""Processes as the store recorded them, for the time when no fleetd runs. The same shape as fleetd's own answers."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from fleet_core import lifecycle
from fleet_core.errors import NotFound
from fleet_core.names import nearest
from fleet_node import paths

if TYPE_CHECKING:
    from fleet_core.process_status import ProcessStatus
    from fleet_core.processes import ProcessSpec

    from .session import Session


def processes(
    session: Session, ids: Iterable[str] | None = None, environment: str | None = None
) -> list[dict[str, Any]]:
    """Return recorded processes, all or those of the ids. Raises NotFound for an unknown id."""
    if not paths.database(session.folder).exists():
        known = {}
    else:
        known = session.store.processes()
    for ident in ids or ():
        if ident not in known:
            raise NotFound(f'process "{ident}": not declared{nearest(ident, known)}')
    chosen = known if ids is None else {ident: known[ident] for ident in ids}
    return [
        view(spec, status) for spec, status in chosen.values() if environment is None or spec.environment == environment
    ]


def view(spec: ProcessSpec, status: ProcessStatus) -> dict[str, Any]:
    """Return one process as its record says; a recorded pid that has gone counts as stopped."""
    alive = status.state in lifecycle.ALIVE and status.pid > 0 and _same_process(status.pid, status.pid_start)
    state = status.state if alive or status.state not in lifecycle.ALIVE else lifecycle.STOPPED
    return {
        "id": spec.id,
        "name": spec.name,
        "environment": spec.environment,
        "template": spec.template,
        "label": spec.label,
        "command": spec.command,
        "status": state,
        "desired": status.desired,
        "pid": status.pid if alive else 0,
        "started": _timestamp(status.started),
        "uptime": max(0, int(time.time() - status.started)) if alive and status.started else 0,
        "restarts": status.restarts,
        "exit_code": None if alive else status.exit_code,
        "healthy": None,
        "completed": state == lifecycle.STOPPED and status.desired == "running" and status.exit_code == 0,
        "error": status.error,
        "driver": status.driver,
        "resources": status.resources,
        "types": {name: kind for name, (kind, _value) in status.claimed.items()},
        "urls": [],
        "memory": 0,
        "cpu": 0.0,
        "user": spec.user,
        "working_dir": spec.working_dir,
        "depends_on": [item.to_dict() for item in spec.depends_on],
        "log_file": "",
        "unit": "",
        "adopted": status.adopted,
        "waiting_for": "",
    }


def _same_process(pid: int, start: int) -> bool:
    """Tell whether the pid is still the process that was recorded (proc(5), stat, field 22)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return not start or int(fields[19]) == start
    except FileNotFoundError:
        return False
    except OSError:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True


def _timestamp(seconds: float) -> str | None:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds") if seconds else None
