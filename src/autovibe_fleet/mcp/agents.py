# SPDX-License-Identifier: GPL-3.0-or-later
"""Tools on agents: what they are, and whether they run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from fleet_core.agents import agent_definition, compare
from fleet_core.errors import InvalidInput, NotFound

from . import shapes
from .tools import ENDS, READS, RUNS, SETS, Ctx, Timeout, Toolbox, host

toolbox = Toolbox()

AgentName = Annotated[str, Field(description="Name of an agent.")]
Revision = Annotated[int, Field(ge=1, description="Number of a revision.")]

_ENDED = ("completed", "failed", "limited", "stopped")


class Agent(TypedDict, total=False):
    """An agent. state: stopped, starting, running, paused, waiting (until it may go on), completed, failed, limited (a
    limit was reached) or stopping. run: its newest run, with totals. queued: messages that it has not read yet."""

    __pydantic_config__ = shapes.OPEN  # type: ignore[misc]

    name: str
    state: str
    description: str
    runner: str
    model: str
    revision: int
    id: str
    legacy_id: str
    desired: str
    error: str
    run: dict[str, Any]
    steps: list[dict[str, Any]]
    queued: int


class Agents(TypedDict):
    """Some agents."""

    agents: list[Agent]


class AgentShown(TypedDict):
    """An agent and its definition as it is now."""

    agent: Agent
    definition: dict[str, Any]


class Summary(TypedDict):
    """What became of which agents."""

    created: list[str]
    updated: list[str]
    unchanged: list[str]
    removed: list[str]


class Applied(shapes.Changed, Summary):
    """What applying definitions did, by the names of the agents, and the agents afterwards."""

    agents: list[Agent]


class AgentChanged(shapes.Changed):
    """An agent after an operation, and what the operation changed."""

    agent: Agent


class AgentNow(TypedDict):
    """An agent after an operation."""

    agent: Agent


class Revisions(TypedDict):
    """The revisions of an agent, oldest first, each with the definition that it was."""

    revisions: list[dict[str, Any]]


class Difference(TypedDict):
    """What differs between two revisions, line by line: - before, + after."""

    old: int
    new: int
    lines: list[str]


def agent(view: Mapping[str, Any]) -> Any:
    """Return an agent for an answer."""
    found = shapes.lean(view)
    if view.get("run"):
        found["run"] = shapes.lean(view["run"])
    if view.get("steps"):
        found["steps"] = [shapes.lean(step) for step in view["steps"]]
    return {"name": view["name"], "state": view["state"], **found}


def _summary(found: Mapping[str, Any]) -> Summary:
    created, updated, unchanged, removed = (
        list(found.get(key) or ()) for key in ("created", "updated", "unchanged", "removed")
    )
    return {"created": created, "updated": updated, "unchanged": unchanged, "removed": removed}


def told(names: Sequence[str]) -> Callable[[dict[str, Any]], str]:
    """Return what tells an event of the agents in words."""

    def say(event: dict[str, Any]) -> str:
        name = event.get("agent")
        if name not in names:
            return ""
        if event.get("kind") == "agent":
            return f"{name} is {event.get('state')}"
        if event.get("kind") == "iteration":
            return f"{name}: iteration {event.get('number')} ({event.get('step')}) is {event.get('state')}"
        return ""

    return say


@toolbox.tool("List agents", READS)
async def list_agents(ctx: Ctx) -> Agents:
    """List the agents that are declared on this host, with their states."""
    found = (await host(ctx).call("agents.list"))["agents"]
    return {"agents": [agent(view) for view in found]}


@toolbox.tool("Show an agent", READS)
async def get_agent(ctx: Ctx, name: AgentName) -> AgentShown:
    """Show an agent: its state, steps and newest run, and its definition with the bodies of its methods."""
    (view,) = (await host(ctx).call("agents.list", names=[name]))["agents"]
    revisions = (await host(ctx).call("agents.revisions", name=name))["revisions"]
    return {"agent": agent(view), "definition": revisions[-1]["definition"]}


@toolbox.tool("Apply agent definitions", RUNS)
async def apply_agents(
    ctx: Ctx,
    definitions: Annotated[
        list[dict[str, Any]],
        Field(
            min_length=1,
            description="Definitions: name, runner (claude, codex, opencode, aider, gemini, qwen, command), methods,"
            " pipeline, limits... as `fleet schema agent` has them.",
        ),
    ],
    state: Annotated[
        str, Field(pattern="^(present|running|stopped)$", description="What they should be: present, running, stopped.")
    ] = "present",
    plan: Annotated[bool, Field(description="Only say what would change.")] = False,
    timeout: Timeout = 120,
) -> Applied:
    """Create agents and give existing ones new revisions, all or nothing. An agent that is as it should be already is
    left alone. Nothing is ever removed by this."""
    names = [str(item.get("name")) for item in definitions]
    # Relative folders mean the server's, not fleetd's.
    items = [agent_definition(item, os.getcwd()).to_dict() for item in definitions]
    if plan:
        answer = await host(ctx).call("agents.plan", items=items, state=state)
    else:
        answer = await host(ctx).watch(ctx, told(names), "agents.apply", items=items, state=state, timeout=timeout)
    views = [agent(view) for view in answer.get("agents", ())]
    return {**shapes.changed(answer["change"]), **_summary(answer["summary"]), "agents": views}


@toolbox.tool("Remove an agent", ENDS)
async def remove_agent(ctx: Ctx, name: AgentName, timeout: Timeout = 120) -> Applied:
    """Stop an agent and forget it, its revisions and all that it did."""
    answer = await host(ctx).watch(ctx, told([name]), "agents.delete", names=[name], timeout=timeout)
    return {**shapes.changed(answer["change"]), **_summary(answer["summary"]), "agents": []}


@toolbox.tool("Run an agent", RUNS)
async def run_agent(
    ctx: Ctx,
    name: AgentName,
    again: Annotated[bool, Field(description="Begin a new run, giving up one that is unfinished.")] = False,
    continue_run: Annotated[bool, Field(description="Take the last run up again where it ended.")] = False,
    until_end: Annotated[bool, Field(description="Wait until the run has ended, with progress meanwhile.")] = False,
    timeout: Timeout = 120,
) -> AgentNow:
    """Start an agent's run. It works on by itself; get_agent, list_agent_iterations and get_agent_messages show how far
    it is, inject_message steers it."""
    deadline = time.monotonic() + timeout
    async with await host(ctx).connect() as connection:
        await connection.subscribe(kinds=["agent", "iteration"], agents=[name])
        answer = await connection.call(
            "agents.start", names=[name], again=again, continue_run=continue_run, timeout=timeout
        )
        (view,) = answer["agents"]
        say, count = told([name]), 0
        while until_end and view["state"] not in _ENDED and time.monotonic() < deadline:
            event = await connection.event(min(5.0, max(0.05, deadline - time.monotonic())))
            count += 1
            await ctx.report_progress(count, None, (say(event) if event else "") or f"{name} is {view['state']}")
            if event is None or event.get("kind") == "agent":
                (view,) = (await connection.call("agents.list", names=[name]))["agents"]
    return {"agent": agent(view)}


@toolbox.tool("Stop an agent", ENDS)
async def stop_agent(ctx: Ctx, name: AgentName, timeout: Timeout = 120) -> AgentNow:
    """Stop an agent's run and all that it has started. Its history stays."""
    answer = await host(ctx).watch(ctx, told([name]), "agents.stop", names=[name], timeout=timeout)
    return {"agent": agent(answer["agents"][0])}


@toolbox.tool("Pause an agent", SETS)
async def pause_agent(ctx: Ctx, name: AgentName) -> AgentNow:
    """Let an agent finish its iteration and begin no other until resume_agent."""
    answer = await host(ctx).call("agents.pause", names=[name])
    return {"agent": agent(answer["agents"][0])}


@toolbox.tool("Resume an agent", SETS)
async def resume_agent(ctx: Ctx, name: AgentName) -> AgentNow:
    """Let a paused agent go on."""
    answer = await host(ctx).call("agents.resume", names=[name])
    return {"agent": agent(answer["agents"][0])}


@toolbox.tool("Interrupt an agent", ENDS)
async def interrupt_agent(ctx: Ctx, name: AgentName) -> AgentNow:
    """End the iteration that an agent is in, as Escape does in a terminal; the run goes on with the next one."""
    answer = await host(ctx).call("agents.interrupt", names=[name])
    return {"agent": agent(answer["agents"][0])}


@toolbox.tool("List an agent's revisions", READS)
async def list_agent_revisions(ctx: Ctx, name: AgentName) -> Revisions:
    """List the revisions of an agent, oldest first, with where each came from: apply, edit or rollback."""
    found = (await host(ctx).call("agents.revisions", name=name))["revisions"]
    return {"revisions": [shapes.lean(row) for row in found]}


@toolbox.tool("Compare revisions of an agent", READS)
async def diff_agent_revisions(
    ctx: Ctx,
    name: AgentName,
    old: Annotated[int | None, Field(ge=1, description="By default the one before new.")] = None,
    new: Annotated[int | None, Field(ge=1, description="By default the current one.")] = None,
) -> Difference:
    """Show what differs between two revisions of an agent, the bodies of its methods included."""
    known = {row["number"]: row for row in (await host(ctx).call("agents.revisions", name=name))["revisions"]}
    after = new if new is not None else max(known)
    before = old if old is not None else after - 1
    for number in (before, after):
        if number not in known:
            raise NotFound(f'agent "{name}": there is no revision {number}, only 1 to {max(known)}')
    pair = [agent_definition(known[number]["definition"]) for number in (before, after)]
    return {"old": before, "new": after, "lines": compare(*pair)}


@toolbox.tool("Roll an agent back", RUNS)
async def rollback_agent(ctx: Ctx, name: AgentName, revision: Revision) -> AgentChanged:
    """Make an earlier revision of an agent the current one again, as a new revision. A run goes on with it at its next
    iteration."""
    answer = await host(ctx).call("agents.rollback", name=name, revision=revision)
    return {**shapes.changed(answer["change"]), "agent": agent(answer["agents"][0])}


@toolbox.tool("Edit a method of an agent", RUNS)
async def edit_agent_method(
    ctx: Ctx,
    name: AgentName,
    method: Annotated[str, Field(description="Name of the method.")],
    body: Annotated[str, Field(description="The whole new prompt; [parameter] in it is replaced.")],
    base_revision: Annotated[
        int | None, Field(ge=1, description="Refuse the edit when the agent has come to another revision meanwhile.")
    ] = None,
) -> AgentChanged:
    """Give a method of an agent a new body, as a new revision. A run goes on with it at its next iteration."""
    if not body.strip():
        raise InvalidInput(f'agent "{name}": method "{method}": expected a text, found none')
    answer = await host(ctx).call("agents.edit", name=name, method=method, body=body, base_revision=base_revision)
    return {**shapes.changed(answer["change"]), "agent": agent(answer["agents"][0])}
