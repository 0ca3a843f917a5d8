# SPDX-License-Identifier: GPL-3.0-or-later
"""Looks for an agent that works without getting anywhere: no commits, the same tool call again and again, silence."""

from __future__ import annotations

import json
import time
from typing import Any

from fleet_core.agents import Watchdog as Rules
from fleet_core.runner_events import Event

Report = dict[str, Any]


class Watchdog:
    """Watches one run. Its reports are {what, text, count}; each is made once for as long as nothing changes."""

    def __init__(self) -> None:
        self._call = ""
        self._calls = 0
        self._commit = ""
        self._idle = 0
        self._heard = time.monotonic()
        self._silent = False

    def begin(self) -> None:
        """An iteration begins."""
        self._heard, self._silent = time.monotonic(), False

    def heard(self, rules: Rules, event: Event) -> Report | None:
        """Take an event; return a report if it was one tool call too many."""
        self._heard, self._silent = time.monotonic(), False
        if event.type != "tool_use" or not rules.repeats:
            return None
        name = str(event.detail.get("name") or event.text)
        call = json.dumps([name, event.detail.get("input")], sort_keys=True, default=str)
        self._calls = self._calls + 1 if call == self._call else 1
        self._call = call
        if self._calls % rules.repeats:
            return None
        return {
            "what": "repeats",
            "count": self._calls,
            "text": f"the same call of {name} {self._calls} times in a row",
        }

    def due(self, rules: Rules) -> float | None:
        """Return the seconds until the silence is too long; None if that is not watched, or was reported."""
        if not rules.silence or self._silent:
            return None
        return max(0.0, rules.silence - (time.monotonic() - self._heard))

    def silent(self, rules: Rules) -> Report | None:
        """Return a report if there was no output for too long."""
        if self.due(rules) != 0.0:
            return None
        self._silent = True
        return {"what": "silence", "count": 1, "text": f"no output for {rules.silence:g} s"}

    def committed(self, rules: Rules, commit: str) -> Report | None:
        """Take the commit that the workspace is at after an iteration ("": it is no git repository)."""
        if not rules.commits:
            return None
        self._idle = 0 if commit and commit != self._commit else self._idle + 1
        self._commit = commit
        if not self._idle or self._idle % rules.commits:
            return None
        return {"what": "commits", "count": self._idle, "text": f"no new commit in {self._idle} iterations"}

    def based(self, commit: str) -> None:
        """Take the commit that the workspace is at before the first iteration."""
        self._commit = self._commit or commit
