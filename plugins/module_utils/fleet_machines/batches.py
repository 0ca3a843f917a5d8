# SPDX-License-Identifier: GPL-3.0-or-later
"""Many machines in one call: their plans are carried out in parallel, and each one's outcome is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from .provider import Job, Provider

if TYPE_CHECKING:
    from fleet_core.errors import FleetError, InvalidInput, TimedOut
    from fleet_core.machine_plans import Plan, Step
    from fleet_core.machines import Machine
    from fleet_core.quantities import format_duration
else:
    try:
        from ..fleet_core.errors import FleetError, InvalidInput, TimedOut
        from ..fleet_core.machine_plans import Step
        from ..fleet_core.quantities import format_duration
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import FleetError, InvalidInput, TimedOut
        from fleet_core.machine_plans import Step
        from fleet_core.quantities import format_duration

MOST_AT_ONCE = 64


@dataclass(frozen=True)
class Event:
    """One line of progress: when (seconds since the call began), of which machine, what."""

    seconds: float
    machine: str
    text: str

    def __str__(self) -> str:
        return f"{self.seconds:.1f}s {self.machine}: {self.text}"


@dataclass(frozen=True)
class Outcome:
    """What became of one machine. done: the steps that were carried out; error: why the next one was not."""

    name: str
    done: tuple[str, ...] = ()
    not_done: tuple[str, ...] = ()
    error: FleetError | None = None
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return self.error is None

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "ok": self.ok,
            "done": list(self.done),
            "not_done": list(self.not_done),
            "error": self.error.message if self.error else "",
            "code": self.error.code if self.error else "",
            "seconds": round(self.seconds, 3),
        }


class BatchFailed(FleetError):
    """At least one machine failed. outcomes: of all of them, in the order of the plans; values: for the report."""

    def __init__(self, outcomes: Sequence[Outcome]) -> None:
        self.outcomes = tuple(outcomes)
        self.values: dict[str, Any] = {}
        failed = [outcome for outcome in outcomes if outcome.error is not None]
        said = "; ".join(dict.fromkeys(outcome.error.message for outcome in failed if outcome.error))
        count = f"{len(failed)} of {len(outcomes)} machines failed: " if len(outcomes) > 1 else ""
        super().__init__(count + said)
        codes = {outcome.error.code for outcome in failed if outcome.error}
        self.code = codes.pop() if len(codes) == 1 else FleetError.code


class Steps(Protocol):
    """The steps of one machine, in order."""

    @property
    def name(self) -> str: ...

    @property
    def steps(self) -> tuple[Step, ...]: ...


Planned = TypeVar("Planned", bound=Steps)
Take = Callable[[Step, Planned, Job], object]


def run(
    plans: Sequence[Plan],
    provider: Provider,
    *,
    timeout: float,
    parallel: int = 4,
    force: bool = False,
    report: Callable[[Event], None] | None = None,
) -> tuple[Outcome, ...]:
    """Carry the plans of machines out, as carry_out does. force: power machines off instead of shutting them down."""

    def take(step: Step, plan: Plan, job: Job) -> object:
        return _take(step, plan, provider, job, force)

    return carry_out(plans, take, timeout=timeout, parallel=parallel, report=report)


def carry_out(
    plans: Sequence[Planned],
    take: Take[Planned],
    *,
    timeout: float,
    parallel: int = 4,
    report: Callable[[Event], None] | None = None,
) -> tuple[Outcome, ...]:
    """Take the steps of the plans, at most ``parallel`` at a time, and return their outcomes in the order of the plans.

    A machine that fails keeps the others from nothing. timeout: seconds for all of them together; what has not begun
    by then is not begun.
    """
    if not 1 <= parallel <= MOST_AT_ONCE:
        raise InvalidInput(f"parallel: expected a number from 1 to {MOST_AT_ONCE}, found {parallel}")
    began = time.monotonic()
    lock = threading.Lock()

    def tell(name: str, text: str) -> None:
        if report is not None:
            with lock:
                report(Event(round(time.monotonic() - began, 3), name, text))

    def one(plan: Planned) -> Outcome:
        job = Job(began + timeout, timeout, lambda text: tell(plan.name, text))
        return _carry_out(plan, take, job, lambda text: tell(plan.name, text))

    busy = [plan for plan in plans if plan.steps]
    with ThreadPoolExecutor(max_workers=min(parallel, len(busy)) or 1, thread_name_prefix="machine") as pool:
        outcomes = {plan.name: outcome for plan, outcome in zip(busy, pool.map(one, busy))}
    return tuple(outcomes.get(plan.name) or Outcome(plan.name) for plan in plans)


def check(outcomes: Sequence[Outcome]) -> None:
    """Raise BatchFailed if a machine failed."""
    if not all(outcome.ok for outcome in outcomes):
        raise BatchFailed(outcomes)


def _carry_out(plan: Planned, take: Take[Planned], job: Job, tell: Callable[[str], None]) -> Outcome:
    began = time.monotonic()
    done: list[str] = []
    error: FleetError | None = None
    try:
        for step in plan.steps:
            if not job.left():
                begun = "began" if done else "was not begun"
                raise TimedOut(
                    f'machine "{plan.name}": {begun}, but the time of {format_duration(job.limit)} is over; '
                    f"left to do: {', '.join(step.text for step in plan.steps[len(done) :])}"
                )
            tell(step.text)
            take(step, plan, job)
            done.append(step.text)
    except FleetError as found:
        error = found
    except Exception as found:  # one machine's surprise must not take the outcome of the others away
        error = FleetError(f'machine "{plan.name}": {type(found).__name__}: {found}')
    if error is not None:
        tell(error.message)
    not_done = tuple(step.text for step in plan.steps[len(done) :])
    return Outcome(plan.name, tuple(done), not_done, error, time.monotonic() - began)


def _take(step: Step, plan: Plan, provider: Provider, job: Job, force: bool) -> Machine | None:
    if step.verb in ("create", "finish"):
        return provider.create(plan.spec, job)
    if step.verb == "start":
        return provider.start(plan.name, job)
    if step.verb == "stop":
        provider.stop(plan.name, job, force=force)
    elif step.verb == "delete":
        provider.delete(plan.name, job)
    else:
        provider.change(plan.spec, plan.differences, job)
    return None
