# SPDX-License-Identifier: GPL-3.0-or-later
"""Taking over a running process that the fleet did not start."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Mapping
from typing import Any

from fleet_core import lifecycle as life
from fleet_core.errors import Conflict, InvalidInput
from fleet_core.names import check_process_id
from fleet_core.process_status import ProcessStatus
from fleet_core.processes import ProcessSpec, process_spec
from fleet_core.resources import Request


def adopted(ident: str, facts: Mapping[str, Any]) -> tuple[ProcessSpec, ProcessStatus, list[Request]]:
    """Return the declaration, the status and the claims of a running process. facts: as procfs.describe gives them.

    The ports that it listens on become its claims. It is never restarted by itself: how it was started is only guessed.
    """
    check_process_id(ident)
    pid = int(facts["pid"])
    if pid in (1, os.getpid()):
        raise Conflict(f"pid {pid}: may not be adopted")
    argv = [str(word) for word in facts.get("argv") or []]
    if not argv:
        raise InvalidInput(f"pid {pid}: has no command line; a kernel thread cannot be adopted")
    ports = [str(port) for port in facts.get("ports") or []]
    needs = [
        {"type": "tcpport", "name": f"port{port}" if number else "tcpport", "value": port}
        for number, port in enumerate(ports)
    ]
    spec = process_spec(
        {
            "id": ident,
            "command": shlex.join(argv).replace("%", "%%").replace("${", "$${"),
            "working_dir": facts.get("cwd") or "/",
            "resources": needs,
            "restart": "never",
        }
    )
    status = ProcessStatus(
        state=life.STOPPED,
        desired="running",
        pid=pid,
        pid_start=int(facts.get("pid_start") or 0),
        started=float(facts.get("started") or time.time()),
        adopted=True,
    )
    return spec, status, [Request("tcpport", ident, need["name"], need["value"]) for need in needs]
