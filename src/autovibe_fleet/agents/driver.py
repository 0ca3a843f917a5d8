# SPDX-License-Identifier: GPL-3.0-or-later
"""The loop around agent_runs.decide: does what it says, and stores what came of it before anything else happens.

The truth is in the store. Each iteration ends in one transaction with the state that counts it, so that a process that
is killed at any moment leaves either an iteration that runs (and is then interrupted, and repeated) or one that counts.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Coroutine, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from fleet_core import agent_runs as runs
from fleet_core.agent_runs import Attempt, Finish, Prompt, RunState, Verify, Wait
from fleet_core.agents import AgentDefinition
from fleet_core.errors import FleetError
from fleet_node.agents import AgentStore

from . import orphans
from .control import Control
from .inbox import Inbox
from .iteration import Context, Iteration, environment
from .link import Link
from .recorder import Recorder, say, secrets_of, total
from .watchdog import Watchdog

Row = dict[str, Any]
T = TypeVar("T")
TERMINATED = 143  # 128 + SIGTERM, as shells say it: the run goes on when this process is started again
_PAGE = 1000


class Driver:
    """Carries the unfinished run of one agent. folder: the agent's own; the caller holds its lock."""

    def __init__(self, store: AgentStore, name: str, folder: Path, environ: Mapping[str, str]) -> None:
        self._store = store
        self._name = name
        self._folder = folder
        self._secrets = secrets_of(environ)
        self._state = RunState()
        self._run: Row = {}
        self._revision = 0
        self._definition: AgentDefinition = store.definition(name)
        self._ticked = time.monotonic()

    async def run(self) -> int:
        """Carry the run to its end, or to where this process is asked to end. Returns the exit code."""
        row = self._store.unfinished_run(self._name)
        if row is None:
            say(f'agent "{self._name}": there is no run to go on with')
            return 0
        self._run = row
        link = Link(self._store, self._name, self._hear)
        recorder = Recorder(self._store, self._name, self._folder, self._secrets, link.report)
        inbox = Inbox(self._store, self._name, recorder.told)
        control = Control(self._store, self._name, inbox.arrived)
        self._c = Context(self._store, recorder, inbox, control, Watchdog())
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, control.terminate)
        recorder.open(row["id"])
        watching = asyncio.ensure_future(control.watch())
        try:
            self._recover()
            link.open()
            return await self._go()
        finally:
            watching.cancel()
            recorder.close()
            await link.close()

    def _hear(self, what: str) -> None:
        self._c.control.hear(what)

    # After a crash

    def _recover(self) -> None:
        """Take the run up where the store says it is: end what a killed process left, count what it had begun."""
        self._take_revision()
        run = self._run
        if run["position"]:
            self._state = runs.state_from_dict(run["position"], run["totals"])
        else:
            self._state = runs.begin(self._definition)
        rows = self._rows_since(self._state.last)
        last = [self._store.iteration(self._state.last)] if self._state.last else []
        running = orphans.end([*last, *rows])  # the last one's verification may run still
        self._c.inbox.recover()
        for row in [*last, *rows]:
            self._c.recorder.catch_up(row)
        for row in rows:
            self._count(row, running)
        if rows or run["position"]:
            say(f"run {run['id']} goes on at step {self._state.step}, after {self._state.totals.iterations} iterations")
        else:
            say(f"run {run['id']} begins at step {self._state.step}")

    def _rows_since(self, last: int) -> list[Row]:
        found: list[Row] = []
        before: int | None = None
        while True:
            rows = self._store.iterations(self._name, run=self._run["id"], before=before, limit=50)
            found += [row for row in rows if row["id"] > last]
            if len(rows) < 50 or rows[-1]["id"] <= last:
                return found[::-1]
            before = rows[-1]["id"]

    def _count(self, row: Row, running: bool) -> None:
        """Count an iteration that no state counts yet; one that ran when its process was killed was interrupted."""
        usage, heard = self._told_by(row)
        row = {**row, "usage": row["usage"] or usage}  # fleetd, which ends what a process left that is gone, knows none
        if row["state"] == "running":
            row["finished"] = time.time() if running else max(heard, row["started"])
            row.update(reason="killed", error="the agent's process was killed while the iteration ran")
            row["state"] = runs.INTERRUPTED
        attempt = Attempt(
            row["id"],
            row["state"],
            row["reason"],
            row["error"],
            row["result"],
            row["session"],
            cost=float(row["usage"].get("cost") or 0.0),
            tokens=sum(int(count) for key, count in row["usage"].items() if key.endswith("_tokens")),
            seconds=max(0.0, (row["finished"] or row["started"]) - row["started"]),
        )
        facts = {key: row[key] for key in ("reason", "error", "usage", "finished")}
        self._end(row["id"], row["state"], attempt, facts)

    def _told_by(self, row: Row) -> tuple[Row, float]:
        """Return the usage that the messages of an iteration tell of, and the time of the last one."""
        used: list[Row] = []
        after, heard = 0, 0.0
        while rows := self._store.messages(self._name, iteration=row["id"], after=after, limit=_PAGE):
            used += [message for message in rows if message["type"] == "usage"]
            after, heard = rows[-1]["id"], rows[-1]["time"]
        return total(used), heard

    # The loop

    async def _go(self) -> int:
        from . import workspace

        control = self._c.control
        known = self._run["workspace"]
        try:
            place = await self._unless_stopped(
                workspace.prepare(self._definition, self._run["id"], self._folder, known)
            )
        except FleetError as error:
            self._state = runs.ended(self._state, runs.FAILED, self._c.recorder.hide(str(error)))
        else:
            if place is not None and place != known:
                self._save(workspace=place)
        self._ticked = time.monotonic()
        while True:
            self._tick()
            if control.stopping:
                return await self._halt()
            if control.desired == "paused":
                self._show("paused", "paused on request")
                await control.wait(None)
                self._ticked = time.monotonic()  # a pause costs no time
                continue
            self._take_revision()
            action = runs.decide(self._definition, self._state, time.time())
            if isinstance(action, Finish):
                if await self._finish(action):
                    return 0
            elif isinstance(action, Wait):
                self._show("waiting", action.why)
                await control.wait(action.seconds)
            elif isinstance(action, Verify):
                self._show("running", "")
                await self._verify(action)
            else:
                self._show("running", "")
                await self._iterate(action)

    def _take_revision(self) -> None:
        """Take up a definition that was edited since the last iteration."""
        revision = self._c.control.revision
        if revision and revision != self._revision:
            before, self._definition = self._definition, self._store.definition(self._name, revision)
            if self._definition.runner != before.runner:  # to which the session means nothing
                self._state = replace(self._state, session="", session_total={})
            if self._revision:
                say(f"revision {revision} applies from here")
            self._revision = revision

    def _tick(self) -> None:
        now = time.monotonic()
        self._state = runs.spend(self._state, now - self._ticked)
        self._ticked = now

    async def _iterate(self, ask: Prompt) -> None:
        c = self._c
        place = self._run["workspace"]
        await self._look_at_commits(None)
        iteration = Iteration(c, self._definition, self._revision, self._state, ask, place)
        outcome = await iteration.run(self._run["id"])
        attempt = iteration.attempt(outcome)
        await self._look_at_commits(iteration)
        c.recorder.flush()
        self._tick()
        self._end(iteration.row["id"], attempt.state, attempt, iteration.fields(outcome, attempt))
        row = iteration.row
        said = f": {attempt.error}" if attempt.error else ""
        say(f"iteration {row['number']} ({row['step']}) {attempt.state} in {time.time() - row['started']:.1f} s{said}")
        if iteration.ended_by_watchdog and attempt.state != runs.INTERRUPTED:
            self._state = runs.ended(self._state, runs.FAILED, iteration.ended_by_watchdog)

    async def _look_at_commits(self, iteration: Iteration | None) -> None:
        """Let the watchdog see where the workspace is, before (None) or after an iteration."""
        if not self._definition.watchdog.commits:
            return
        from .workspace import head

        commit = await head(self._run["workspace"]["path"])
        if iteration is None:
            self._c.watchdog.based(commit)
        else:
            iteration.report(self._c.watchdog.committed(self._definition.watchdog, commit))

    def _end(self, ident: int, state: str, attempt: Attempt, fields: Row) -> None:
        """End an iteration and count it, in one transaction; then tell of both."""
        counted = runs.after(self._definition, self._state, attempt, time.time(), random.random())
        with self._store.transaction():
            row = self._store.end_iteration(ident, state, **fields)
            run = self._store.update_run(
                self._run["id"], position=counted.to_dict(), totals=counted.totals.to_dict(), revision=self._revision
            )
        self._state, self._run = counted, run
        self._c.inbox.end()
        self._c.recorder.told("iteration", row)
        self._c.recorder.told("run", run)

    async def _verify(self, action: Verify) -> None:
        """Run the verification command, unless this process is asked to end meanwhile: then it runs again later."""
        from .verification import verify

        c = self._c
        row = self._store.iteration(self._state.last)
        found = await self._unless_stopped(
            verify(
                self._definition.verification.command,
                self._run["workspace"]["path"],
                environment(self._definition, row),
                action.timeout,
            )
        )
        if found is None:
            return
        said = c.recorder.clean(found)
        code, output = said["code"], said["output"]
        c.recorder.message(
            row["id"], "verification", output, {key: said[key] for key in ("command", "code", "seconds")}
        )
        c.recorder.flush()
        self._tick()
        state = runs.verified(self._definition, self._state, code, output, time.time(), random.random())
        with self._store.transaction():
            row = self._store.update_iteration(row["id"], verification=said)
            run = self._store.update_run(self._run["id"], position=state.to_dict(), totals=state.totals.to_dict())
        self._state, self._run = state, run
        c.recorder.told("iteration", row)
        c.recorder.told("run", run)
        say(f"verification {'succeeded' if code == 0 else 'failed'} in {said['seconds']:.1f} s")

    async def _unless_stopped(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Do this work; cancel it and return None when this process is asked to end meanwhile."""
        control = self._c.control
        task = asyncio.ensure_future(work)
        while not task.done() and not control.stopping:
            control.changed.clear()
            changed = asyncio.ensure_future(control.changed.wait())
            await asyncio.wait([task, changed], return_when=asyncio.FIRST_COMPLETED)
            changed.cancel()
        if task.done():
            return task.result()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return None

    # The end

    async def _finish(self, action: Finish) -> bool:
        """End the run, unless messages have come that its last session is to be given. Returns whether it has ended."""
        await self._result()
        with self._store.transaction():
            if action.state == runs.COMPLETED and not self._state.owed and self._c.inbox.waiting():
                self._state = runs.owe(self._state)
                return False
            self._save(state=action.state, reason=action.reason, position=_reopened(self._state).to_dict())
        self._told_run()
        say(f"run {self._run['id']} {action.state}: {action.reason}")
        return True

    async def _halt(self) -> int:
        """End this process; and the run as well, if the agent is to be stopped."""
        self._c.control.refresh()
        if self._c.control.desired != "stopped":
            self._save()
            say(f"run {self._run['id']} goes on when the agent's process is started again")
            return TERMINATED
        self._save(state=runs.STOPPED, reason="stopped on request", position=_reopened(self._state).to_dict())
        self._told_run()
        await self._result()
        say(f"run {self._run['id']} stopped")
        return 0

    async def _result(self) -> None:
        """Leave what the work has come to: branch, diff and patch."""
        if self._run["workspace"].get("kind") in ("worktree", "clone"):
            from . import workspace

            found = await workspace.result(self._name, self._run["id"], self._folder, self._run["workspace"])
            if found != self._run["workspace"]:
                self._save(workspace=found)
                self._told_run()

    def _show(self, state: str, reason: str) -> None:
        """Write and tell the state of the run if it is another one."""
        reason = self._c.recorder.hide(reason)
        if (state, reason) != (self._run["state"], self._run["reason"]):
            self._save(state=state, reason=reason)
            self._told_run()

    def _save(self, **fields: Any) -> None:
        fields.setdefault("position", self._state.to_dict())
        self._run = self._store.update_run(
            self._run["id"], totals=self._state.totals.to_dict(), revision=self._revision, **fields
        )

    def _told_run(self) -> None:
        self._c.recorder.told("run", self._run)


def _reopened(state: RunState) -> RunState:
    """Return the state from which the run would go on, if somebody wants that after its end."""
    return replace(state, end="", reason="", failures=0, trips=0, until=0.0, pause=0.0, why="")
