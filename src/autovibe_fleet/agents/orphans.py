# SPDX-License-Identifier: GPL-3.0-or-later
"""What a killed run process left running: found by the token in its environment, and by the recorded pid; ended."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from typing import Any

from fleet_node import procfs

TOKEN = "FLEET_ITERATION"  # the variable that all processes of an iteration carry
_GRACE = 1.0  # seconds between SIGTERM and SIGKILL
_PATIENCE = 10.0  # seconds after which what cannot be ended is left


def end(rows: Iterable[dict[str, Any]]) -> bool:
    """End everything that still runs of these iterations. Returns whether there was anything.

    It blocks: nothing else may happen before they are gone.
    """
    rows = [row for row in rows if row["token"]]
    found = False
    begun = time.monotonic()
    number = signal.SIGTERM
    while rows and time.monotonic() - begun < _PATIENCE:
        pids = {pid for row in rows for pid in _of(row)} - {os.getpid()}
        if not pids:
            break
        found = True
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
        if time.monotonic() - begun >= _GRACE:
            number = signal.SIGKILL
        time.sleep(0.02)
    return found


def _of(row: dict[str, Any]) -> list[int]:
    pids = procfs.find_by_environment(TOKEN, row["token"])
    leader = int(row["pid"] or 0)
    if leader > 1 and procfs.alive(leader, int(row["pid_started"] or 0)):
        pids += procfs.group_members(leader)  # also those that have cleared their environment
    return pids
