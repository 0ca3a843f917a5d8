# SPDX-License-Identifier: GPL-3.0-or-later
"""How far a task list is: one table of states, what may start next, what a resumed run does, what a plan says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import ImpossibleEvent
from .quantities import format_duration
from .task_lists import TIMEOUT, Task, TaskList, groups

# unchanged: left out because of `creates`, or done by the run that is resumed.
DONE = ("succeeded", "unchanged")
FAILED = ("failed", "skipped", "interrupted")
STATES = ("pending", "running", *DONE, *FAILED)

_TABLE: Mapping[str, tuple[str, ...]] = {
    "pending": ("running", "unchanged", "skipped"),
    "running": ("succeeded", "unchanged", "failed", "interrupted"),
    "succeeded": (),
    "unchanged": (),
    "failed": (),
    "skipped": (),
    "interrupted": (),
}


@dataclass(frozen=True)
class Next:
    """What to do now. start: tasks in the order of the list. skip: task to the reason. done: nothing is left."""

    start: tuple[str, ...] = ()
    skip: Mapping[str, str] = field(default_factory=dict)
    done: bool = False


def move(states: Mapping[str, str], name: str, state: str) -> dict[str, str]:
    """Return the states after one task has moved. Raises ImpossibleEvent for a move that is not in the table."""
    before = states.get(name, "")
    if state not in _TABLE.get(before, ()):
        raise ImpossibleEvent(f'task "{name}": cannot go from "{before}" to "{state}"')
    return {**states, name: state}


def next_ready(found: TaskList, states: Mapping[str, str], stopping: str = "") -> Next:
    """Return what may start and what never will.

    states: task to state; one that is missing is pending. stopping: why nothing more may start, or an empty string.
    A failed task with on_failure "stop" lets nothing more start; with "continue", all but what needs it goes on.
    """
    now = {item.name: states.get(item.name, "pending") for item in found.tasks}
    if not stopping:
        stops = [item.name for item in found.tasks if now[item.name] == "failed" and item.on_failure == "stop"]
        stopping = f'"{stops[0]}" failed' if stops else ""
    needs = {item.name: item.needs for item in found.tasks}
    skip: dict[str, str] = {}
    for step in groups(found) if stopping or any(state in FAILED for state in now.values()) else ():
        for name in step:
            if now[name] == "pending":
                missing = [needed for needed in needs[name] if now[needed] in FAILED]
                reason = f'it needs "{missing[0]}"' if missing else stopping
                if reason:
                    skip[name], now[name] = reason, "skipped"
    running = sum(state == "running" for state in now.values())
    ready = [
        item.name
        for item in found.tasks
        if now[item.name] == "pending" and all(now[needed] in DONE for needed in item.needs)
    ]
    start = tuple(ready[: max(0, found.parallel - running)])
    return Next(start, skip, not running and "pending" not in now.values())


def outcome(states: Mapping[str, str]) -> str:
    """Return the state of a run whose tasks have these states: running, interrupted, failed or succeeded."""
    found = set(states.values())
    if found & {"pending", "running"}:
        return "running"
    for state in ("interrupted", "failed"):
        if state in found:
            return state
    return "failed" if "skipped" in found else "succeeded"


@dataclass(frozen=True)
class Resume:
    """What a resumed run does. keep: done before, as it stands now. run: the others. notes: what has changed since."""

    keep: tuple[str, ...]
    run: tuple[str, ...]
    notes: tuple[str, ...]


def resume(found: TaskList, before: TaskList, states: Mapping[str, str]) -> Resume:
    """Compare a list with that of an earlier run and say what is still to be done.

    A task is kept when it was done, is the same, and all that it needs is kept.
    """
    old = set(before.names)
    needs = {item.name: item.needs for item in found.tasks}
    kept: set[str] = set()
    notes = [f'task "{name}" is new' for name in found.names if name not in old]
    notes += [f'task "{name}" is gone' for name in before.names if name not in found.names]
    for step in groups(found):
        for name in step:
            same = name in old and found.key(name) == before.key(name)
            if name in old and not same:
                notes.append(f'task "{name}" has changed')
            if same and states.get(name) in DONE and all(needed in kept for needed in needs[name]):
                kept.add(name)
    return Resume(
        tuple(name for name in found.names if name in kept),
        tuple(name for name in found.names if name not in kept),
        tuple(notes),
    )


def plan(found: TaskList, kept: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return what a run would do: {name, workdir, parallel, steps: [[NAME]], tasks: [{name, step, what, …}]}."""
    steps = groups(found)
    at = {name: number for number, step in enumerate(steps, 1) for name in step}
    return {
        "name": found.name,
        "workdir": found.workdir,
        "parallel": found.parallel,
        "steps": [list(step) for step in steps],
        "tasks": [
            {
                "name": item.name,
                "step": at[item.name],
                "action": "keep" if item.name in kept else "run",
                "what": item.what,
                "runner": item.runner if item.prompt else "",
                "needs": list(item.needs),
                "timeout": item.timeout,
                "retries": item.retries,
                "on_failure": item.on_failure,
                "creates": list(item.creates),
                "artifacts": list(item.artifacts),
            }
            for item in found.tasks
        ],
    }


def plan_text(found: TaskList, kept: tuple[str, ...] = ()) -> str:
    """Return the plan for people, a task a line; those of one number may run at once."""
    count = len(found.tasks)
    head = f"{found.name or 'task list'}: {count} task{'s' if count > 1 else ''}, at most {found.parallel} at once"
    if found.workdir:
        head += f", in {found.workdir}"
    width = max(len(name) for name in found.names)
    lines = [head]
    for number, step in enumerate(groups(found), 1):
        for position, name in enumerate(step):
            item = found.task(name)
            label = f"{number}." if position == 0 else ""
            done = " (done before)" if name in kept else ""
            lines.append(f"{label:>4} {name:<{width}}  {_line(item)}{done}")
    return "\n".join(lines)


def _line(item: Task) -> str:
    parts = [f"{item.runner}: {item.what}" if item.prompt else item.what]
    if item.needs:
        parts.append(f"after {', '.join(item.needs)}")
    if item.timeout and item.timeout != TIMEOUT:
        parts.append(f"at most {format_duration(item.timeout)}")
    if item.retries:
        parts.append(f"{item.retries + 1} attempts")
    if item.on_failure == "continue":
        parts.append("others go on if it fails")
    if item.creates:
        parts.append(f"unless {', '.join(item.creates)}")
    if item.artifacts:
        parts.append(f"gives {', '.join(item.artifacts)}")
    return f"{parts[0]}  [{'; '.join(parts[1:])}]" if parts[1:] else parts[0]
