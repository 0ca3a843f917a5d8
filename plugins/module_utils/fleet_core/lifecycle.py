# SPDX-License-Identifier: GPL-3.0-or-later
"""The life cycle of a process: one table of state and event to the next state and its actions."""

from __future__ import annotations

from .errors import ImpossibleEvent

STOPPED, STARTING, RUNNING, STOPPING, ERROR = "stopped", "starting", "running", "stopping", "error"
UNHEALTHY, BACKOFF = "unhealthy", "backoff"
STATES = (STOPPED, STARTING, RUNNING, UNHEALTHY, BACKOFF, STOPPING, ERROR)
ALIVE = (STARTING, RUNNING, UNHEALTHY, STOPPING)
WANTED = (STARTING, RUNNING, UNHEALTHY, BACKOFF)

START = "start"  # somebody wants it to run
READY = "ready"  # it runs and its readiness check passed, or it has none
LATE = "late"  # it was not ready within the start timeout
LAUNCH_FAILED = "launch_failed"  # it could not be executed, or its claims failed
UNHEALTHY_NOW = "unhealthy"  # its health check failed often enough, and only a report is asked
UNHEALTHY_RESTART = "unhealthy_restart"  # the same, and a restart is asked
EXITED_RETRY = "exited_retry"  # it ended and the policy wants it back
EXITED_DONE = "exited_done"  # it ended and that is fine
EXITED_FAILED = "exited_failed"  # it ended badly and stays down
RETRY = "retry"  # the delay before a restart is over
STOP = "stop"  # somebody wants it to stop
STOP_LATE = "stop_late"  # it did not end within the stop timeout
GONE = "gone"  # the whole process group has ended after a stop
ADOPT = "adopt"  # a running process that others started is taken over

LAUNCH, WATCH, TERMINATE, KILL = "launch", "watch", "terminate", "kill"
SCHEDULE, CANCEL, RELEASE = "schedule_restart", "cancel_restart", "release"

TABLE: dict[tuple[str, str], tuple[str, tuple[str, ...]]] = {
    (STOPPED, START): (STARTING, (LAUNCH,)),
    (STOPPED, ADOPT): (RUNNING, (WATCH,)),
    (STOPPED, STOP): (STOPPED, (RELEASE,)),
    (STARTING, READY): (RUNNING, (WATCH,)),
    (STARTING, LATE): (STARTING, (TERMINATE,)),
    (STARTING, LAUNCH_FAILED): (ERROR, (RELEASE,)),
    (STARTING, EXITED_RETRY): (BACKOFF, (SCHEDULE,)),
    (STARTING, EXITED_DONE): (STOPPED, (RELEASE,)),
    (STARTING, EXITED_FAILED): (ERROR, (RELEASE,)),
    (STARTING, STOP): (STOPPING, (TERMINATE,)),
    (RUNNING, UNHEALTHY_NOW): (UNHEALTHY, ()),
    (RUNNING, UNHEALTHY_RESTART): (UNHEALTHY, (TERMINATE,)),
    (RUNNING, EXITED_RETRY): (BACKOFF, (SCHEDULE,)),
    (RUNNING, EXITED_DONE): (STOPPED, (RELEASE,)),
    (RUNNING, EXITED_FAILED): (ERROR, (RELEASE,)),
    (RUNNING, STOP): (STOPPING, (TERMINATE,)),
    (UNHEALTHY, READY): (RUNNING, ()),
    (UNHEALTHY, EXITED_RETRY): (BACKOFF, (SCHEDULE,)),
    (UNHEALTHY, EXITED_DONE): (STOPPED, (RELEASE,)),
    (UNHEALTHY, EXITED_FAILED): (ERROR, (RELEASE,)),
    (UNHEALTHY, STOP): (STOPPING, (TERMINATE,)),
    (BACKOFF, START): (STARTING, (CANCEL, LAUNCH)),
    (BACKOFF, RETRY): (STARTING, (LAUNCH,)),
    (BACKOFF, STOP): (STOPPED, (CANCEL, RELEASE)),
    (BACKOFF, EXITED_FAILED): (ERROR, (CANCEL, RELEASE)),
    (STOPPING, STOP_LATE): (STOPPING, (KILL,)),
    (STOPPING, GONE): (STOPPED, (RELEASE,)),
    (ERROR, START): (STARTING, (LAUNCH,)),
    (ERROR, ADOPT): (RUNNING, (WATCH,)),
    (ERROR, STOP): (STOPPED, (RELEASE,)),
}


def step(state: str, event: str) -> tuple[str, tuple[str, ...]]:
    """Return (next state, actions). Raises ImpossibleEvent where the table has no row."""
    try:
        return TABLE[(state, event)]
    except KeyError:
        allowed = sorted(other for known, other in TABLE if known == state)
        raise ImpossibleEvent(
            f'a process that is {state} cannot take "{event}": expected one of {", ".join(allowed)}'
        ) from None


def diagram() -> str:
    """Return the table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", f"    [*] --> {STOPPED}"]
    for (state, event), (following, actions) in TABLE.items():
        note = f" / {', '.join(actions)}" if actions else ""
        lines.append(f"    {state} --> {following}: {event}{note}")
    return "\n".join(lines) + "\n"
