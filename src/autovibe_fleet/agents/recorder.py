# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything a run does goes through here: to the store first, then to the run's JSON lines, then to fleetd.

Secrets go nowhere: the values of environment variables whose names look like a secret's are hidden in every text.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from fleet_core.errors import FleetError, StateDamaged
from fleet_core.processes import hide, is_secret
from fleet_core.runner_events import TEXT_LIMIT, cut
from fleet_node.agents import AgentStore

Row = dict[str, Any]
_SHORTEST_SECRET = 4  # a shorter one would blank half of every sentence
_FLUSH = 0.02  # seconds between two writes of messages
_TAIL = 1 << 20  # bytes of a run's file that are looked at when it goes on
_TOLD_AGAIN = 200  # messages that are reported once more when a run goes on
_MOST = 256 * 1024 * 1024  # characters of what one iteration tells that are recorded
_KEPT = ("prompt", "session", "usage", "user", "verification", "watchdog", "end")  # whatever came before
_SUMMARY = ("step", "phase", "done", "failures", "trips", "until", "why")  # of a position, for those who watch


def secrets_of(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return the values that must not be shown, longest first; of a text of many lines, each line too."""
    found: set[str] = set()
    for name, value in environ.items():
        if is_secret(name):
            found.update(part for part in (value, value.strip(), *value.split("\n")) if len(part) >= _SHORTEST_SECRET)
    return tuple(sorted(found, key=len, reverse=True))


class Recorder:
    """Records one agent's run. report: takes events for fleetd, in order."""

    def __init__(
        self, store: AgentStore, agent: str, folder: Path, secrets: tuple[str, ...], report: Callable[[Row], None]
    ) -> None:
        self._store = store
        self._agent = agent
        self._folder = folder
        self._secrets = secrets
        self._report = report
        self._path = folder
        self._file = -1
        self._written = 0  # the id of the last message that the file had when it was opened
        self._ended: set[int] = set()  # the iterations whose end it had
        self._iteration = 0
        self._told = 0  # characters of its messages
        self._messages: list[Row] = []
        self._flushed = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._failed: FleetError | None = None

    def open(self, run: int) -> None:
        """Begin or go on with the file of a run."""
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._path = self._folder / f"run-{run}.jsonl"
        self._file = os.open(self._path, flags, 0o600)
        self._written, self._ended = self._look_back()

    def close(self) -> None:
        self.flush()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _look_back(self) -> tuple[int, set[int]]:
        """Return the last message and the ended iterations that the file tells of; end a line that was cut off."""
        size = os.fstat(self._file).st_size
        data = os.pread(self._file, _TAIL, max(0, size - _TAIL))
        if data and not data.endswith(b"\n"):
            self._write(b"\n")
        written, ended = 0, set()
        for line in data.split(b"\n")[0 if size <= _TAIL else 1 :]:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if event.get("kind") == "message":
                written = max(written, event["id"])
            elif event.get("kind") == "iteration" and event["state"] != "running":
                ended.add(event["id"])
        return written, ended

    def catch_up(self, iteration: Row) -> None:
        """Write and report what a killed process had stored of an iteration, but perhaps did not get to tell."""
        after = self._written
        while rows := self._store.messages(self._agent, iteration=iteration["id"], after=after, limit=1000):
            after = rows[-1]["id"]
            for row in rows:
                self._line({**row, "kind": "message", "agent": self._agent})
        for row in self._store.messages(self._agent, iteration=iteration["id"], before=1 << 62, limit=_TOLD_AGAIN):
            self._report({**row, "kind": "message", "agent": self._agent})
        if iteration["state"] != "running" and iteration["id"] not in self._ended:
            self.told("iteration", iteration)

    def hide(self, text: str) -> str:
        """Return a text without secrets."""
        return hide(text, self._secrets)

    def clean(self, value: Any) -> Any:
        """Return plain data without secrets, and with no text longer than that of an event."""
        if isinstance(value, str):
            return cut(self.hide(value))
        if isinstance(value, Mapping):
            return {self.hide(str(key)): self.clean(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.clean(item) for item in value]
        if isinstance(value, float) and not math.isfinite(value):
            return str(value)  # JSON has no word for it
        return value

    def _detail(self, detail: Mapping[str, Any]) -> Row:
        """Return a detail without secrets; of what a tool was given only a part, if it is too much for an event."""
        found: Row = self.clean(detail)
        if "input" in found and len(text := json.dumps(found["input"], ensure_ascii=False)) > 2 * TEXT_LIMIT:
            found["input"] = cut(text)
        return found

    def told(self, kind: str, *rows: Row) -> None:
        """Write rows that the store has just taken to the file, and report them."""
        for row in rows:
            event = {**row, "time": row.get("time") or time.time(), "kind": kind, "agent": self._agent}
            if kind == "run":
                event["position"] = {key: value for key, value in row["position"].items() if key in _SUMMARY}
            self._line(event)
            self._report(event)

    def message(self, iteration: int, kind: str, content: str = "", detail: Mapping[str, Any] | None = None) -> None:
        """Record a message of an iteration. Messages that come in a burst are written together."""
        if iteration != self._iteration:
            self.flush()
            self._iteration, self._told = iteration, 0
        row: Row = {
            "time": time.time(),
            "type": kind,
            "content": self.hide(content),
            "detail": self._detail(detail or {}),
        }
        if kind not in _KEPT:
            before, self._told = self._told, self._told + len(row["content"]) + len(str(row["detail"])) + 100
            if before > _MOST:
                return
            if self._told > _MOST:
                row.update(type="error", content="the runner tells too much: the rest is not recorded", detail={})
        self._messages.append(row)
        now = time.monotonic()
        if now - self._flushed >= _FLUSH:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_FLUSH, self._flush_late)

    def flush(self) -> None:
        """Write the messages that wait."""
        if self._failed is not None:
            raise self._failed
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._messages:
            rows = self._store.add_messages(self._iteration, self._messages)
            self._messages = []
            self.told("message", *rows)
        self._flushed = time.monotonic()

    def _flush_late(self) -> None:
        try:
            self.flush()
        except FleetError as error:
            self._failed = error  # nobody awaits a timer: the next message raises it

    def _line(self, event: Row) -> None:
        if self._file >= 0:
            self._write(json.dumps(event, ensure_ascii=False).encode("utf-8", "replace") + b"\n")

    def _write(self, data: bytes) -> None:
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as error:
            raise StateDamaged(f"{self._path}: cannot be written: {error.strerror}") from error


def say(text: str) -> None:
    """Print a line for the log of this process. What a runner wrote in it cannot move anybody's cursor."""
    print("".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text), flush=True)


def total(rows: Iterable[Row]) -> Row:
    """Return the sum of the usage messages among rows, in Usage's plain form."""
    found: Row = {}
    for row in rows:
        if row["type"] == "usage":
            for key, value in row["detail"].items():
                if isinstance(value, (int, float)):
                    found[key] = found.get(key, 0) + value
    return found
