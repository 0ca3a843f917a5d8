# SPDX-License-Identifier: GPL-3.0-or-later
"""One iteration: a prompt is given to the runner, and everything that comes of it is watched and recorded."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, replace
from typing import Any

from fleet_core import runners
from fleet_core.agent_runs import FAILED, INTERRUPTED, SUCCEEDED, Attempt, Prompt, RunState
from fleet_core.agents import AgentDefinition
from fleet_core.errors import InvalidInput
from fleet_core.loops import budget_reached, cost_left, seconds_left
from fleet_core.runner_events import Event, Outcome, Turn, Usage
from fleet_core.runners import Runner
from fleet_core.steering import compose
from fleet_node.agents import AgentStore
from fleet_node.runner_process import run_turn

from .control import LIMIT, WATCHDOG, Control, Stop
from .inbox import Inbox
from .orphans import TOKEN
from .recorder import Recorder
from .watchdog import Report, Watchdog

Row = dict[str, Any]


@dataclass(frozen=True)
class Context:
    """What the iterations of a run have in common."""

    store: AgentStore
    recorder: Recorder
    inbox: Inbox
    control: Control
    watchdog: Watchdog


class Iteration:
    """One iteration, from its row in the store to its outcome."""

    def __init__(
        self, context: Context, definition: AgentDefinition, revision: int, state: RunState, ask: Prompt, workspace: Row
    ) -> None:
        self._c = context
        self._definition = definition
        self._revision = revision
        self._state = state
        self._ask = ask
        self._workspace = workspace
        self._stop = Stop()
        self._usage = Usage()
        self._reports: list[Report] = []
        self.row: Row = {}

    async def run(self, run_id: int) -> Outcome:
        """Begin the iteration, and return how the runner's turn ended. Its row is not ended yet."""
        try:
            runner = runners.runner(self._definition.runner)
        except InvalidInput as error:
            self._begin(run_id, "", [], self._ask.text)
            return Outcome(ok=False, reason="not_found", error=str(error))
        session = self._ask.session if runner.resumes else ""
        messages, new = self._c.inbox.take(self._ask)
        text = compose(self._ask, messages, bool(session), self._state.result)
        self._begin(run_id, session, new, text)
        self._c.control.watch_turn(self._stop)
        self._c.watchdog.begin()
        watching = asyncio.ensure_future(self._watch())
        try:
            return self._clean(await self._turn(runner, text, session))
        finally:
            self._c.control.watch_turn(None)
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    def attempt(self, outcome: Outcome) -> Attempt:
        """Return what the run's state is to know of it."""
        state, reason, error = SUCCEEDED, "", ""
        if not outcome.ok:
            stopped = self._stop.event.is_set() and outcome.reason == "interrupted"
            state = INTERRUPTED if stopped else FAILED
            reason = self._stop.reason if stopped else outcome.reason
            error = self._stop.error if stopped else outcome.error
        usage = self._used(outcome)
        return Attempt(
            id=self.row["id"],
            state=state,
            reason=reason,
            error=error,
            result=outcome.result,
            session=outcome.session,
            session_total=outcome.session_total.to_dict(),
            cost=usage.cost or 0.0,
            tokens=usage.tokens,
        )

    def fields(self, outcome: Outcome, attempt: Attempt) -> Row:
        """Return what the iteration's row is to hold."""
        return {
            "reason": attempt.reason,
            "error": attempt.error,
            "result": outcome.result,
            "session": outcome.session,
            "usage": self._used(outcome).to_dict(),
            "watchdog": self._reports,
        }

    def report(self, report: Report | None) -> None:
        """Record what the watchdog has seen; end the turn, if one runs and the definition says so."""
        if report is None:
            return
        action = self._definition.watchdog.action
        self._reports.append(report)
        self._c.recorder.message(self.row["id"], "watchdog", report["text"], {**report, "action": action})
        if action == "stop":
            self._stop.ask(WATCHDOG, f"watchdog: {report['text']}")

    @property
    def ended_by_watchdog(self) -> str:
        """The watchdog's sentence if it asked for the end, or nothing."""
        return self._stop.error if self._stop.reason == WATCHDOG else ""

    def _begin(self, run_id: int, session: str, new: list[Row], text: str) -> None:
        """Write the row, and mark its messages as sent, in one transaction; then the prompt."""
        ask, c = self._ask, self._c
        with c.store.transaction():
            self.row = c.store.begin_iteration(
                run_id,
                self._definition.name,
                ask.step,
                self._revision,
                secrets.token_hex(16),
                item=ask.item,
                attempt_of=ask.attempt_of or None,
                session=session,
            )
            given = c.inbox.begin(self.row["id"], ask.step, new)
        c.recorder.told("iteration", self.row)
        c.recorder.told("injection", *given)
        c.recorder.message(self.row["id"], "prompt", text)
        for row in given:
            c.recorder.message(self.row["id"], "user", row["text"], {"injection": row["id"], "sender": row["sender"]})
        c.recorder.flush()

    async def _turn(self, runner: Runner, text: str, session: str) -> Outcome:
        definition = self._definition
        options, limits, totals = definition.options, definition.limits, self._state.totals
        turn = Turn(
            prompt=text,
            session=session,
            model=definition.model,
            system_prompt=options.system_prompt,
            permission_mode=options.permission_mode,
            max_turns=limits.turns,
            max_cost=cost_left(limits, totals),
            arguments=options.arguments,
            config=options.config,
            command=definition.command,
            executable=options.executable,
            baseline=Usage.from_dict(self._state.session_total) if session else Usage(),
        )
        try:
            return await run_turn(
                runner,
                turn,
                folder=self._workspace["path"],
                env=environment(definition, self.row),
                on_event=self._event,
                inbox=self._c.inbox,
                timeout=limits.iteration_timeout,
                stop=self._stop.event,
                started=self._started,
            )
        except InvalidInput as error:  # no other attempt would be better
            return Outcome(ok=False, reason="not_found", error=str(error))

    def _started(self, pid: int, pid_started: float) -> None:
        self.row = self._c.store.update_iteration(self.row["id"], pid=pid, pid_started=pid_started)
        self._c.inbox.started()

    def _event(self, event: Event) -> None:
        ident = self.row["id"]
        self._c.recorder.message(ident, event.type, event.text, event.detail)
        if event.type == "session" and event.detail.get("session"):
            self._c.store.update_iteration(ident, session=self._c.recorder.hide(str(event.detail["session"])))
        if event.type == "usage":
            self._usage = self._usage + Usage.from_dict(event.detail)
            self._check_budget()
        self.report(self._c.watchdog.heard(self._definition.watchdog, event))

    def _check_budget(self) -> None:
        limits = replace(self._definition.limits, duration=0.0)
        totals = self._state.totals.plus(cost=self._usage.cost or 0.0, tokens=self._usage.tokens)
        said = budget_reached(limits, totals)
        if said:
            self._stop.ask(LIMIT, said)

    async def _watch(self) -> None:
        """End the turn at the limit of duration; see when it is silent for too long."""
        rules, limits, totals = self._definition.watchdog, self._definition.limits, self._state.totals
        loop = asyncio.get_running_loop()
        begun = loop.time()
        while True:
            spent = totals.plus(seconds=loop.time() - begun)
            said = budget_reached(replace(limits, cost=0.0, tokens=0), spent)
            if said:
                self._stop.ask(LIMIT, said)
            self.report(self._c.watchdog.silent(rules))
            waits = [seconds for seconds in (seconds_left(limits, spent), self._c.watchdog.due(rules)) if seconds]
            await asyncio.sleep(min([*waits, 3600.0]))

    def _used(self, outcome: Outcome) -> Usage:
        """Return the outcome's usage, or what events told if the turn was ended before it could sum up."""
        return outcome.usage if outcome.usage.tokens or outcome.usage.cost else self._usage

    def _clean(self, outcome: Outcome) -> Outcome:
        hide = self._c.recorder.hide
        return replace(outcome, error=hide(outcome.error), result=hide(outcome.result), session=hide(outcome.session))


def environment(definition: AgentDefinition, row: Row) -> dict[str, str]:
    """Return what the processes of an iteration find in their environment, beside what the agent's process has.

    FLEET_LAUNCH is emptied: fleetd must not take what a killed run process left running for that process.
    """
    return {
        TOKEN: row["token"],
        "FLEET_LAUNCH": "",
        "FLEET_AGENT": definition.name,
        "FLEET_RUN": str(row["run"]),
        "FLEET_STEP": row["step"],
        "FLEET_ITERATION_NUMBER": str(row["number"]),
    }
