# SPDX-License-Identifier: GPL-3.0-or-later
"""Agents watched while they work. fleetd's events wake the watcher; what it shows comes from the store, so that
nothing is lost when fleetd is replaced meanwhile."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import typer

from fleet_core.errors import FleetError
from fleet_node.agent_history import FINISHED

from .agent_messages import Writer
from .session import Session

INTERRUPTED = 130  # as a shell reports it
_PATIENCE = 1.0  # seconds without an event after which the store is asked all the same
_CHECK = 5.0  # seconds between two questions whether the processes are well
_PAGE = 500


class Watch:
    """The view of some agents. since: the ids of the last message, injection and run that were there before."""

    def __init__(self, session: Session, names: Sequence[str], writer: Writer) -> None:
        self._session = session
        self._store = session.agents
        self._names = list(names)
        self._writer = writer
        self._messages: dict[str, int] = {}
        self._injections: dict[str, int] = {}
        self._runs: dict[str, tuple[int, str]] = {}
        self._open: dict[str, list[int]] = {name: [] for name in names}
        self._current: dict[str, int] = {}
        self._wake = threading.Event()
        self._closed = threading.Event()
        self.errors: dict[str, str] = {}

    def begin(self) -> None:
        """Take what is there now as seen, and listen for events from now on."""
        for name in self._names:
            newest = self._store.messages(name, before=2**62, limit=1)
            self._messages[name] = newest[-1]["id"] if newest else 0
            self._injections[name] = max((row["id"] for row in self._store.injections(name, limit=10_000)), default=0)
            run = self.last_run(name)
            if run:
                self._runs[name] = (run["id"], run["state"])
            rows = self._store.iterations(name, limit=20)
            self._open[name] = [row["id"] for row in reversed(rows) if row["state"] == "running"]
        threading.Thread(target=self._listen, daemon=True).start()

    def back_to(self, name: str, iteration: Mapping[str, Any]) -> None:
        """Show an iteration that is there already, too."""
        first = self._store.messages(name, iteration=iteration["id"], limit=1)
        if first:
            self._messages[name] = min(self._messages[name], first[0]["id"] - 1)
        if iteration["id"] not in self._open[name]:
            self._open[name].insert(0, iteration["id"])

    def last_run(self, name: str) -> dict[str, Any] | None:
        """Return the newest run of an agent."""
        rows = self._store.runs(name, 1)
        return rows[0] if rows else None

    def follow(self, until: Mapping[str, int] | None = None) -> None:
        """Show what happens, until the runs (agent to id) have ended; without them, until interrupted."""
        checked = time.monotonic()
        try:
            while True:
                for name in self._names:
                    self._show(name)
                sys.stdout.flush()
                if until is not None and all(self._ended(name, until[name]) for name in until):
                    return
                if not self._wake.wait(_PATIENCE) or time.monotonic() - checked > _CHECK:
                    checked = time.monotonic()
                    self._check()
                self._wake.clear()
        finally:
            self._closed.set()

    def until_interrupted(self, session: Session, until: Mapping[str, int] | None = None) -> None:
        """Follow; Ctrl-C ends the watching alone, says so, and exits as an interrupted command does."""
        try:
            self.follow(until)
        except KeyboardInterrupt:
            names = " ".join(self._names)
            many = len(self._names) > 1
            session.out.note(
                f"\nStopped watching; {', '.join(self._names)} {'go' if many else 'goes'} on. "
                f"`fleet agents history {self._names[0]} --follow` watches again, `fleet stop {names}` stops "
                f"{'them' if many else 'it'}."
            )
            raise typer.Exit(INTERRUPTED) from None

    def _ended(self, name: str, run: int) -> bool:
        if name in self.errors:
            return True
        return self._runs.get(name, (0, ""))[0] >= run and self._runs[name][1] in FINISHED

    def _show(self, name: str) -> None:
        run = self.last_run(name)  # before the messages: those of a finished run are all there then
        for row in self._store.injections(name, after=self._injections[name], limit=_PAGE):
            self._injections[name] = row["id"]
            self._writer.injection(row)
        while True:
            rows = self._store.messages(name, after=self._messages[name], limit=_PAGE)
            for row in rows:
                self._turn_to(name, row["iteration"])
                self._writer.message(row)
                self._messages[name] = row["id"]
            if len(rows) < _PAGE:
                break
        self._close(name)
        if run and (run["id"], run["state"]) != self._runs.get(name):
            known = name in self._runs and self._runs[name][0] == run["id"]
            self._runs[name] = (run["id"], run["state"])
            if run["state"] != "running" or (known and run["reason"]):
                self._writer.run(run)

    def _turn_to(self, name: str, iteration: int) -> None:
        if self._current.get(name) == iteration:
            return
        self._close(name, but=iteration)
        self._current[name] = iteration
        if iteration not in self._open[name]:
            self._open[name].append(iteration)
        self._writer.iteration_begins(self._store.iteration(iteration))

    def _close(self, name: str, but: int = 0) -> None:
        """Tell of iterations that have ended, once all of their messages are shown."""
        for ident in list(self._open[name]):
            row = self._store.iteration(ident)
            if row["state"] == "running" or ident == but:
                continue
            left = self._store.messages(name, iteration=ident, after=self._messages[name], limit=1)
            if left:
                continue
            if self._current.get(name) != ident:
                self._writer.iteration_begins(row)
                self._current[name] = ident
            self._writer.iteration(row)
            self._open[name].remove(ident)

    def _check(self) -> None:
        """Note agents whose process cannot be kept running."""
        with contextlib.suppress(FleetError):
            views = self._session.connect().call("agents.list", names=self._names)["agents"]
            for view in views:
                if view["state"] == "failed" and view["error"] and not view["pid"]:
                    self.errors[view["name"]] = view["error"]

    def _listen(self) -> None:
        while not self._closed.is_set():
            with contextlib.suppress(FleetError):
                events = self._session.connect().stream(
                    "events.subscribe", kinds=["agent", "run", "iteration", "message", "injection"], agents=self._names
                )
                self._wake.set()
                for _event in events:
                    self._wake.set()
                    if self._closed.is_set():
                        return
            self._closed.wait(_PATIENCE)


def follow_all(session: Session, names: Collection[str], full: bool = False) -> Watch:
    """Return a watch of agents that has begun."""
    watch = Watch(session, list(names), Writer(session.out, full=full, names=len(names) > 1))
    watch.begin()
    return watch
