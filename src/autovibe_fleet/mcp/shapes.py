# SPDX-License-Identifier: GPL-3.0-or-later
"""The shapes of answers, from which the tools' output schemas come. What is empty is left out of them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from pydantic import ConfigDict
from typing_extensions import TypedDict

OPEN = ConfigDict(extra="allow")


class Process(TypedDict, total=False):
    """A process. status: stopped, starting, running, stopping, backoff or error. Times in seconds, sizes in bytes."""

    __pydantic_config__ = OPEN  # type: ignore[misc]

    id: str
    name: str
    environment: str
    status: str
    pid: int
    started: str
    uptime: int
    restarts: int
    exit_code: int
    healthy: bool
    completed: bool
    error: str
    command: str
    working_dir: str
    resources: dict[str, str]
    urls: list[str]
    memory: int
    cpu: float
    waiting_for: str
    log_file: str


class Environment(TypedDict, total=False):
    """A project's processes. status: inactive, activating, active, deactivating or error."""

    __pydantic_config__ = OPEN  # type: ignore[misc]

    name: str
    path: str
    project_dir: str
    status: str
    inactivity_timeout: float
    idle: int
    last_activity: str
    error: str
    processes: list[Process]


class Changed(TypedDict):
    """Whether anything changed, and what."""

    changed: bool
    actions: list[str]


_NO_NEWS = ("pid", "uptime", "restarts", "memory", "cpu", "idle", "inactivity_timeout", "completed", "adopted")
_MOMENTS = ("started", "finished", "created", "updated", "moved", "time", "next_run")


def lean(view: Mapping[str, Any]) -> Any:
    """Return a view without what is empty, and with times in RFC 3339: a model reads every word."""
    return {
        key: _moment(value) if key in _MOMENTS and isinstance(value, (int, float)) else value
        for key, value in view.items()
        if value not in (None, "", [], {}, ()) and not (key in _NO_NEWS and not value)
    }


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds")


_ALWAYS = ("id", "name", "status")
_BRIEF = ("id", "name", "environment", "status", "pid", "uptime", "restarts", "exit_code", "healthy", "completed")
_BRIEF_TOO = ("error", "urls", "resources", "waiting_for", "memory")


def brief(view: Mapping[str, Any]) -> Any:
    """Return a process for a list of many."""
    short = {key: view[key] for key in (*_BRIEF, *_BRIEF_TOO) if key in view}
    return {**{key: view[key] for key in _ALWAYS}, **lean(short)}


def full(view: Mapping[str, Any]) -> Any:
    """Return all that is known of a process."""
    return {**{key: view[key] for key in _ALWAYS}, **lean(view)}


def environment(view: Mapping[str, Any]) -> Any:
    """Return an environment with its processes in brief."""
    found = lean({key: value for key, value in view.items() if key != "processes"})
    return {**found, "processes": [brief(process) for process in view.get("processes", ())]}


def changed(change: Mapping[str, Any]) -> Changed:
    """Return whether a change changes anything, and its actions."""
    actions = list(change.get("actions") or ())
    return {"changed": bool(actions), "actions": actions}
