# SPDX-License-Identifier: GPL-3.0-or-later
"""One run of an agent's pipeline as a value: what to do next (decide), and what has become of it (after, verified).

The state is plain data, so that a killed run goes on from the last thing that was stored. Every function gives a new
state; the clock and chance are parameters.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Union

from .agents import AgentDefinition, Step, prompt
from .loops import (
    Totals,
    backoff_delay,
    budget_reached,
    limit_reached,
    list_items,
    opens,
    says,
    seconds_left,
    totals_from_dict,
)

PROMPT, VERIFY, ENDED = "prompt", "verify", "ended"
COMPLETED, FAILED, LIMITED, STOPPED = "completed", "failed", "limited", "stopped"
SUCCEEDED, INTERRUPTED = "succeeded", "interrupted"
FEEDBACK_LIMIT = 8000  # characters of a verification's output that go into a prompt


@dataclass(frozen=True)
class RunState:
    """Where a run is.

    step: a label. phase: prompt, verify (the last iteration may have completed its step) or ended (all steps are done).
    input: the result of the step before. results: of the steps that are done, by label. collected: of a map's items.
    done: iterations of this step that succeeded. owed: messages wait for a turn of their own, after the end.
    failures: in a row. trips: openings of the breaker in a row. until: seconds since the epoch, before which nothing is
    tried; pause: how long that was, why: its reason. session: the runner's last one, with what it used so far.
    attempt_of: the id of the iteration that the next one repeats (0: none), which ended as attempt_state says.
    last: the id of the last iteration that is counted here. end, reason: how the run ends whatever comes.
    """

    step: str = ""
    phase: str = PROMPT
    input: str = ""
    results: Mapping[str, str] = field(default_factory=dict)
    collected: tuple[str, ...] = ()
    done: int = 0
    owed: bool = False
    result: str = ""
    feedback: str = ""
    failures: int = 0
    trips: int = 0
    until: float = 0.0
    pause: float = 0.0
    why: str = ""
    session: str = ""
    session_total: Mapping[str, Any] = field(default_factory=dict)
    attempt_of: int = 0
    attempt_state: str = ""
    last: int = 0
    unmet: str = ""
    end: str = ""
    reason: str = ""
    totals: Totals = field(default_factory=Totals)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON, without the totals; what is at its default is left out."""
        data = {}
        for part in fields(self):
            value = getattr(self, part.name)
            if part.name != "totals" and value not in ("", 0, (), {}):
                data[part.name] = list(value) if isinstance(value, tuple) else value
        return data


def state_from_dict(position: Mapping[str, Any], totals: Mapping[str, Any]) -> RunState:
    """Return the state that to_dict wrote, with its totals."""
    known = {part.name for part in fields(RunState)} - {"totals", "collected"}
    given = {key: value for key, value in position.items() if key in known}
    return RunState(**given, collected=tuple(position.get("collected") or ()), totals=totals_from_dict(totals))


@dataclass(frozen=True)
class Prompt:
    """Give this text to the runner. session: the one to go on with, where the runner can; "" begins one.

    messages_only: the turn is for messages that came at the end; text is empty.
    """

    step: str
    item: str = ""
    text: str = ""
    session: str = ""
    attempt_of: int = 0
    attempt_state: str = ""
    messages_only: bool = False


@dataclass(frozen=True)
class Wait:
    """Do nothing for so many seconds."""

    seconds: float
    why: str


@dataclass(frozen=True)
class Verify:
    """Run the verification command; then ask verified()."""

    timeout: float


@dataclass(frozen=True)
class Finish:
    """The run is over. state: completed, failed or limited."""

    state: str
    reason: str


Decision = Union[Prompt, Wait, Verify, Finish]


@dataclass(frozen=True)
class Attempt:
    """An iteration that has ended. state: succeeded, failed or interrupted. reason: the outcome's, or another word.

    seconds: how long it took, where that is not in the totals yet.
    """

    id: int
    state: str
    reason: str = ""
    error: str = ""
    result: str = ""
    session: str = ""
    session_total: Mapping[str, Any] = field(default_factory=dict)
    cost: float = 0.0
    tokens: int = 0
    seconds: float = 0.0


def begin(definition: AgentDefinition) -> RunState:
    """Return the state of a run that has not begun."""
    return _settle(definition, RunState(step=definition.pipeline[0].label))


def decide(definition: AgentDefinition, state: RunState, now: float) -> Decision:
    """Return what to do next. now: seconds since the epoch. The definition may be a newer one than before."""
    state = _settle(definition, state)
    if state.end:
        return Finish(state.end, state.reason)
    if state.phase == ENDED and not state.owed:
        return Finish(LIMITED, state.unmet) if state.unmet else Finish(COMPLETED, _completed(definition))
    limits = definition.limits
    if state.phase == VERIFY:
        spent = budget_reached(replace(limits, cost=0.0, tokens=0), state.totals)
        if spent:
            return Finish(LIMITED, spent)
        left = seconds_left(limits, state.totals)
        timeout = definition.verification.timeout
        return Verify(timeout if left is None else min(timeout or left, left))
    reached = limit_reached(limits, state.totals)
    if reached:
        if state.phase == ENDED:  # the work is done; what came afterwards has to wait for another run
            return Finish(COMPLETED, f"{_completed(definition)}; no turn was left for messages: {reached}")
        return Finish(LIMITED, reached)
    wait = min(state.until - now, state.pause)  # a clock that was set back makes nobody wait longer
    if wait > 0:
        left = seconds_left(limits, state.totals)
        return Wait(wait if left is None else min(wait, left), state.why)
    return _prompt(definition, state)


def after(definition: AgentDefinition, state: RunState, attempt: Attempt, now: float, chance: float) -> RunState:
    """Return the state after an iteration. chance: a number from 0 to 1, for the jitter of a backoff."""
    state = _settle(definition, state)
    again = attempt.state != SUCCEEDED
    same = again and attempt.session in ("", state.session)  # what another session used says nothing of this one
    state = replace(
        state,
        last=max(state.last, attempt.id),
        totals=state.totals.plus(
            iterations=1,
            failed=int(attempt.state == FAILED),
            interrupted=int(attempt.state == INTERRUPTED),
            cost=attempt.cost,
            tokens=attempt.tokens,
            seconds=attempt.seconds,
        ),
        session=attempt.session or (state.session if again else ""),
        session_total=attempt.session_total or (state.session_total if same else {}),
        attempt_of=attempt.id if again else 0,
        attempt_state=attempt.state if again else "",
        owed=state.owed or (again and state.phase == ENDED),  # after the end there are turns for messages only
    )
    if state.end:
        return state
    if attempt.state == INTERRUPTED:
        return _interrupted(state, attempt)
    if attempt.state == FAILED:
        return _failed(definition, state, attempt, now, chance)
    state = replace(state, until=0.0, pause=0.0, why="", feedback="", result=attempt.result)
    if state.phase == ENDED:
        phase = VERIFY if definition.verification.command and _gated(definition, state.step) else ENDED
        return replace(_closed(state), owed=False, phase=phase)
    return _settle(definition, _judge(definition, state, now, chance))


def verified(
    definition: AgentDefinition, state: RunState, code: int | None, output: str, now: float, chance: float
) -> RunState:
    """Return the state after the verification command. code: its exit code, None if it took too long or did not run.

    output: what it printed, already cut to a size that fits into a prompt.
    """
    state = _settle(definition, state)
    if state.phase != VERIFY:
        return state
    if code == 0:
        return _settle(definition, _complete(definition, replace(state, phase=PROMPT, feedback="", unmet="")))
    ended = "did not end in time" if code is None else f"ended with exit code {code}"
    feedback = f"The verification command {ended}. Its output:\n{output.strip() or '(none)'}"
    state = replace(state, phase=PROMPT, feedback=feedback)
    step = _step(definition, state.step)
    if step is None:
        return _settle(definition, state)
    if step.kind == "loop":
        return _settle(definition, _go_on(definition, step, state, "the verification failed"))
    return _retry(definition, _undone(state), f"the verification command {ended}", now, chance)


def owe(state: RunState) -> RunState:
    """Return the state of an ended run that messages have reached before its end was recorded."""
    return replace(state, owed=True)


def spend(state: RunState, seconds: float) -> RunState:
    """Return the state after so much time of work or of waiting."""
    return replace(state, totals=state.totals.plus(seconds=max(0.0, seconds)))


def ended(state: RunState, end: str, reason: str) -> RunState:
    """Return the state of a run that ends whatever comes."""
    return replace(state, end=end, reason=reason)


def _completed(definition: AgentDefinition) -> str:
    count = len(definition.pipeline)
    return f"all {count} steps are done" if count > 1 else f'step "{definition.pipeline[0].label}" is done'


def _step(definition: AgentDefinition, label: str) -> Step | None:
    return next((step for step in definition.pipeline if step.label == label), None)


def _settle(definition: AgentDefinition, state: RunState) -> RunState:
    """Return the state moved past the steps that have nothing to do; ended if its step is gone."""
    while not state.end and state.phase == PROMPT:
        step = _step(definition, state.step)
        if step is None:
            return ended(state, FAILED, f'step "{state.step}" is no longer in the pipeline')
        if step.kind != "map":
            return state
        if step.over and step.over not in state.results:
            return ended(state, FAILED, f'step "{step.label}" maps over "{step.over}", which has no result in this run')
        if state.done < len(_items(step, state)):
            return state
        state = _complete(definition, state)
    return state


def _items(step: Step, state: RunState) -> tuple[str, ...]:
    return list_items(state.results[step.over]) if step.over else step.items


def _prompt(definition: AgentDefinition, state: RunState) -> Prompt:
    session = state.session
    if state.phase == ENDED:
        return Prompt(state.step, "", "", session, state.attempt_of, state.attempt_state, messages_only=True)
    step = definition.step(state.step)
    item = _items(step, state)[state.done] if step.kind == "map" else ""
    text = prompt(definition.method(step.method), step.arguments, item if step.kind == "map" else state.input)
    if state.feedback:
        text = f"{text}\n\n{state.feedback}"
    resumes = definition.session == "resume" and step.kind == "loop"
    if state.attempt_state != INTERRUPTED and not resumes:
        session = ""
    return Prompt(step.label, item, text, session, state.attempt_of, state.attempt_state)


def _gated(definition: AgentDefinition, label: str) -> bool:
    """Tell whether a step is over only when the agent says so or the verification succeeds.

    That goes for loops; in a pipeline without one, for the last step.
    """
    if not definition.completion.phrase and not definition.verification.command:
        return False
    loops = [step.label for step in definition.pipeline if step.kind == "loop"]
    return label in (loops or [definition.pipeline[-1].label])


def _judge(definition: AgentDefinition, state: RunState, now: float, chance: float) -> RunState:
    """Return the state after an iteration of a step that succeeded."""
    step = definition.step(state.step)
    state = replace(state, done=state.done + 1)
    if step.kind == "map":
        state = replace(state, collected=(*state.collected, state.result))
        if state.done < len(_items(step, state)):
            return _closed(state)
    if not _gated(definition, step.label):
        return _go_on(definition, step, _closed(state), "")
    phrase = definition.completion.phrase
    if step.kind == "loop":  # to go on is no failure there
        state = _closed(state)
    if says(phrase, state.result):
        return replace(state, phase=VERIFY) if definition.verification.command else _complete(definition, state)
    lacking = f'the result does not say "{phrase}"'
    if step.kind == "loop":
        return _go_on(definition, step, state, lacking)
    return _retry(definition, _undone(state), lacking, now, chance)


def _go_on(definition: AgentDefinition, step: Step, state: RunState, lacking: str) -> RunState:
    """Return the state with one more iteration done. lacking: what completion lacks, if it is asked for."""
    if step.kind == "loop" and (not step.times or state.done < step.times):
        return state
    if lacking:
        state = replace(state, unmet=f'step "{step.label}" ran {step.times} times without completion: {lacking}')
    return _complete(definition, state)


def _complete(definition: AgentDefinition, state: RunState) -> RunState:
    """Return the state at the beginning of the next step, or ended."""
    labels = [step.label for step in definition.pipeline]
    if state.step not in labels:
        return state
    state = _closed(state)
    step = definition.step(state.step)
    result = json.dumps(list(state.collected), ensure_ascii=False) if step.kind == "map" else state.result
    state = replace(state, result=result, results={**state.results, state.step: result}, feedback="")
    following = labels[labels.index(state.step) + 1 :]
    if not following:
        return replace(state, phase=ENDED)
    return replace(
        state, step=following[0], phase=PROMPT, input=result, collected=(), done=0, session="", session_total={}
    )


def _closed(state: RunState) -> RunState:
    """Return the state without failures behind it."""
    return replace(state, failures=0, trips=0)


def _undone(state: RunState) -> RunState:
    """Return the state with its last iteration to be done again."""
    done = max(0, state.done - 1)
    return replace(state, done=done, collected=state.collected[:done], attempt_of=state.last, attempt_state=SUCCEEDED)


def _interrupted(state: RunState, attempt: Attempt) -> RunState:
    if attempt.reason == "limit":
        return ended(state, LIMITED, attempt.error)
    if attempt.reason == "watchdog":
        return ended(state, FAILED, attempt.error)
    return state


def _failed(definition: AgentDefinition, state: RunState, attempt: Attempt, now: float, chance: float) -> RunState:
    if attempt.reason == "not_found":  # another attempt would not find it either
        return ended(state, FAILED, attempt.error)
    if attempt.reason == "budget" and definition.limits.cost:
        return ended(state, LIMITED, f"limit of cost reached: {attempt.error or 'the runner says so'}")
    if attempt.reason == "session_unknown":
        state = replace(state, session="", session_total={})
    return _retry(definition, state, attempt.error or attempt.reason or "the iteration failed", now, chance)


def _retry(definition: AgentDefinition, state: RunState, error: str, now: float, chance: float) -> RunState:
    """Return the state that waits before the next attempt, or that has given up."""
    state = replace(state, failures=state.failures + 1)
    breaker = definition.circuit_breaker
    row = f"{state.failures} failures in a row" if state.failures > 1 else "1 failure"
    if not opens(breaker, state.failures):
        delay = backoff_delay(definition.backoff, state.failures, chance)
        return replace(state, until=now + delay, pause=delay, why=f"backoff after {row}: {error}")
    if state.trips >= breaker.trips:
        return ended(state, FAILED, f"{row}, and the circuit breaker has opened {state.trips} times: {error}")
    trips = state.trips + 1
    return replace(
        state,
        trips=trips,
        until=now + breaker.pause,
        pause=breaker.pause,
        why=f"circuit breaker open ({trips} of {breaker.trips}) after {row}: {error}",
        session="",  # a session that has grown too long fails for ever
        session_total={},
    )
