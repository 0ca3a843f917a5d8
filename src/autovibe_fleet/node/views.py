# SPDX-License-Identifier: GPL-3.0-or-later
"""What clients see of processes: one plain shape for the CLI, the modules and the assistants."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterable
from datetime import datetime, timezone
from typing import Any

from fleet_core import lifecycle as life
from fleet_core.processes import hide
from fleet_node import procfs

from .engine import Engine
from .managed import Managed


def timestamp(seconds: float) -> str | None:
    """Return RFC 3339 text in UTC for seconds since the epoch, or None for 0."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds") if seconds else None


def views(engine: Engine, ids: Iterable[str]) -> list[dict[str, Any]]:
    """Return the view of each process, with few passes over the host's process table for all of them."""
    found = [engine.processes[ident] for ident in ids]
    pids = [m.status.pid for m in found if m.status.pid]
    facts = procfs.facts(pids)
    for pid, (memory, cpu) in procfs.usage(pids).items():
        if memory:  # 0 for an adopted process that leads no group: then its own figures are all there is
            facts.setdefault(pid, {}).update(memory=memory, cpu=cpu)
    return [view(engine, m, facts.get(m.status.pid) or {}) for m in found]


def view(engine: Engine, m: Managed, facts: dict[str, Any]) -> dict[str, Any]:
    """Return one process as plain data."""
    spec, status = m.spec, m.status
    holds = status.state not in (life.STOPPED, life.ERROR)
    alive = status.state in life.ALIVE and status.pid > 0
    claimed = status.claimed if holds else {}
    argv = m.launch.argv if m.launch is not None and holds else ()
    return {
        "id": spec.id,
        "name": spec.name,
        "environment": spec.environment,
        "template": spec.template,
        "label": spec.label,
        "command": shlex.join(hide(word, m.secrets) for word in argv) if argv else hide(spec.command, ()),
        "status": status.state,
        "desired": status.desired,
        "pid": status.pid if alive else 0,
        "started": timestamp(status.started),
        "uptime": max(0, int(time.time() - status.started)) if alive and status.started else 0,
        "restarts": status.restarts,
        "exit_code": None if alive else status.exit_code,
        "healthy": status.healthy,
        "completed": m.completed,
        "error": status.error,
        "driver": status.driver or engine.supervisor.name,
        "resources": {name: value for name, (_type, value) in claimed.items()},
        "types": {name: kind for name, (kind, _value) in claimed.items()},
        "urls": urls(m) if holds else [],
        "memory": int(facts.get("memory") or 0),
        "cpu": round(float(facts.get("cpu") or 0.0), 2),
        "user": str(facts.get("user") or spec.user),
        "working_dir": m.folder or spec.working_dir,
        "depends_on": [item.to_dict() for item in spec.depends_on],
        "log_file": str(engine.output.path(spec.id)),
        "unit": engine.output.unit(spec.id),
        "adopted": status.adopted,
        "waiting_for": m.waiting,
    }


def urls(m: Managed) -> list[str]:
    """Return where a process can be reached: the origin of its HTTP check, else HOST:PORT of its TCP ports."""
    found = []
    launch = m.launch
    for check in (launch.readiness, launch.health) if launch is not None else ():
        if check is not None and check.url.startswith(("http://", "https://")):
            scheme, _slashes, rest = check.url.partition("://")
            origin = f"{scheme}://{rest.partition('/')[0].rpartition('@')[2]}/"
            if origin not in found:
                found.append(origin)
    if not found:
        found = [f"tcp://127.0.0.1:{value}" for kind, value in m.status.claimed.values() if kind == "tcpport"]
    return found
