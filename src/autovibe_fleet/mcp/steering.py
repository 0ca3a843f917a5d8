# SPDX-License-Identifier: GPL-3.0-or-later
"""Tools that look at what agents do, and steer them while they work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from . import shapes
from .agents import AgentName
from .tools import ADDS, READS, Ctx, Toolbox, host

toolbox = Toolbox()

LAST = 2**62  # behind every id: the page before it is the newest one
_LONGEST = 4000  # characters of one message's content, unless more is asked for

Limit = Annotated[int, Field(ge=1, le=1000, description="How many at most.")]
Before = Annotated[int | None, Field(ge=1, description="Only those with a smaller id: the page before.")]
Run = Annotated[int | None, Field(ge=1, description="Only of this run.")]
Step = Annotated[str | None, Field(description="Only of this step of the pipeline.")]


class Iteration(TypedDict, total=False):
    """One prompt given to the runner. state: running, succeeded, failed or interrupted. Duration in seconds, cost in
    USD."""

    __pydantic_config__ = shapes.OPEN  # type: ignore[misc]

    id: int
    number: int
    run: int
    step: str
    state: str
    reason: str
    error: str
    duration: float
    cost: float
    result: str


class Iterations(TypedDict):
    """Iterations, newest first."""

    iterations: list[Iteration]


class Message(TypedDict, total=False):
    """One message of an iteration. type: text, thinking, tool_use, tool_result, user, error..."""

    __pydantic_config__ = shapes.OPEN  # type: ignore[misc]

    id: int
    iteration: int
    time: str
    type: str
    content: str
    detail: Any


class Messages(TypedDict):
    """Messages, oldest first."""

    messages: list[Message]


class Runs(TypedDict):
    """Runs, newest first."""

    runs: list[dict[str, Any]]


class Statistics(TypedDict):
    """Counts, and mean and standard deviation of durations (seconds) and tokens."""

    statistics: dict[str, Any]


class Injection(TypedDict, total=False):
    """A steering message. state: queued, sent, delivered or refused, and the reason."""

    __pydantic_config__ = shapes.OPEN  # type: ignore[misc]

    id: int
    agent: str
    step: str
    text: str
    sender: str
    state: str
    reason: str


class Injected(TypedDict):
    """The message that was taken on."""

    injection: Injection


class Injections(TypedDict):
    """Steering messages in the order in which they came."""

    injections: list[Injection]


@toolbox.tool("List an agent's runs", READS)
async def list_agent_runs(ctx: Ctx, name: AgentName, limit: Limit = 20) -> Runs:
    """List the runs of an agent, newest first: state, reason, totals of iterations, cost and tokens, workspace."""
    found = (await host(ctx).call("agents.runs", name=name, limit=limit))["runs"]
    return {"runs": [shapes.lean(row) for row in found]}


@toolbox.tool("List an agent's iterations", READS)
async def list_agent_iterations(
    ctx: Ctx, name: AgentName, run: Run = None, step: Step = None, before: Before = None, limit: Limit = 20
) -> Iterations:
    """List the iterations of an agent, newest first: state, duration, cost, result."""
    answer = await host(ctx).call("agents.iterations", name=name, run=run, step=step, before=before, limit=limit)
    return {"iterations": [shapes.lean(row) for row in answer["iterations"]]}


@toolbox.tool("Read an agent's messages", READS)
async def get_agent_messages(
    ctx: Ctx,
    name: AgentName,
    iteration: Annotated[int | None, Field(ge=1, description="Only of the iteration with this id.")] = None,
    after: Annotated[int, Field(ge=0, description="Only those with a greater id: what is new.")] = 0,
    before: Before = None,
    limit: Limit = 50,
    longest: Annotated[int, Field(ge=100, description="Cut contents that are longer, in characters.")] = _LONGEST,
) -> Messages:
    """Read what an agent said, which tools it called and what they answered, oldest first. Without after, the newest
    ones."""
    end = before if before is not None or after else LAST
    answer = await host(ctx).call(
        "agents.messages", name=name, iteration=iteration, after=after, before=end, limit=limit
    )
    return {"messages": [_message(row, longest) for row in answer["messages"]]}


def _message(row: Mapping[str, Any], longest: int) -> Any:
    found = shapes.lean(row)
    content = str(row.get("content") or "")
    if len(content) > longest:
        found["content"] = f"{content[:longest]}... ({len(content)} characters)"
    return found


@toolbox.tool("Show an agent's statistics", READS)
async def get_agent_statistics(ctx: Ctx, name: AgentName, run: Run = None, step: Step = None) -> Statistics:
    """Show how many iterations an agent has had, how they ended, and how long and how costly they were."""
    answer = await host(ctx).call("agents.statistics", name=name, run=run, step=step)
    return {"statistics": answer["statistics"]}


@toolbox.tool("Send a message to an agent", ADDS)
async def inject_message(
    ctx: Ctx,
    name: AgentName,
    text: Annotated[str, Field(min_length=1, description="What to tell it.")],
    step: Annotated[str | None, Field(description="Only when it is in this step.")] = None,
    iteration: Annotated[int | None, Field(ge=1, description="Only in the iteration with this id.")] = None,
    sender: Annotated[str | None, Field(description="Who says it.")] = None,
) -> Injected:
    """Send a message into an agent's work: into the running turn where its runner can take it, else with the next
    iteration. Messages arrive in order, and none is dropped; list_injections shows what became of each."""
    answer = await host(ctx).call(
        "agents.inject", name=name, text=text, step=step, iteration=iteration, sender=sender or "mcp"
    )
    return {"injection": shapes.lean(answer["injection"])}


@toolbox.tool("List messages sent to an agent", READS)
async def list_injections(
    ctx: Ctx,
    name: AgentName,
    after: Annotated[int, Field(ge=0, description="Only those with a greater id.")] = 0,
    limit: Limit = 100,
) -> Injections:
    """List the messages that were sent to an agent and what became of each: queued, sent, delivered or refused."""
    found = (await host(ctx).call("agents.injections", name=name, after=after, limit=limit))["injections"]
    return {"injections": [shapes.lean(row) for row in found]}
