# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands on agents that work: run, pause, resume, interrupt, message; and `fleet stop` for them."""

from __future__ import annotations

import getpass
import sys
import time
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from fleet_core.errors import Conflict, FleetError, NotFound, ProcessFailed, TimedOut

from . import agent_names, completion
from .agent_names import Agent, AgentNames
from .arguments import Timeout, seconds
from .session import Session


def run(
    session: Session,
    names: AgentNames,
    follow: Annotated[
        bool, typer.Option("--follow/--detach", "-f/-d", help="Watch until the runs end, or return at once.")
    ] = True,
    continue_run: Annotated[
        bool, typer.Option("--continue", "-c", help="Go on with the last run where it ended.")
    ] = False,
    again: Annotated[bool, typer.Option("--again", help="Begin a new run, giving up one that is unfinished.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Show whole texts, results of tools included.")] = False,
    timeout: Timeout = "",
) -> None:
    """Run agents and watch what they do.

    Ctrl-C stops watching; the agents go on. An agent whose run was cut short by a crash goes on with it. The exit code
    is 6 for a run that failed, and 5 for one that a limit ended before its completion or verification.
    """
    names = list(dict.fromkeys(agent_names.stored(session, name) for name in names))
    before = {view["name"]: view["state"] for view in session.call("agents.list", names=names)["agents"]}
    if follow:
        from .agent_live import follow_all

        watch = follow_all(session, names, full)
    answer = session.call("agents.start", names=names, again=again, continue_run=continue_run, timeout=seconds(timeout))
    if not follow:
        if session.as_json:
            session.out.data(answer)
            return
        for view in answer["agents"]:
            verb = "is running already" if before[view["name"]] in ("running", "waiting") else "runs"
            number = f" (run {view['run']['id']})" if view["run"] else ""
            session.out.line(f"{view['name']} {verb}{number}")
        session.out.note(f"Watch with `fleet agents history {names[0]} --follow`, stop with `fleet stop {names[0]}`.")
        return
    for name in names:
        if before[name] in ("running", "waiting", "paused"):
            session.out.note(f"{name} is {before[name]} already; this is what it does from now on.")
    runs = {view["name"]: view["run"]["id"] for view in answer["agents"] if view["run"]}
    watch.until_interrupted(session, runs)
    _judge(session, runs, watch.errors)


def _judge(session: Session, runs: dict[str, int], errors: dict[str, str]) -> None:
    """Raise an error for the first run that did not end well."""
    for name, ident in runs.items():
        if name in errors:
            raise ProcessFailed(f'agent "{name}": {errors[name]}; see `fleet logs agents/{name}`')
        row = session.agents.run(ident)
        definition = session.agents.definition(name, row["revision"])
        if row["state"] == "failed":
            raise ProcessFailed(f'agent "{name}": run {ident} failed: {row["reason"] or "see its last iteration"}')
        if row["state"] == "stopped":
            raise FleetError(f'agent "{name}": run {ident} was stopped: {row["reason"] or "on request"}')
        if row["state"] == "limited" and (definition.completion.phrase or definition.verification.command):
            raise TimedOut(f'agent "{name}": run {ident} ended before it was complete: {row["reason"]}')


def stop(session: Session, names: Sequence[str], timeout: str) -> list[dict[str, Any]]:
    """Stop agents for `fleet stop`, say so, and return their views."""
    before = {view["name"]: view["state"] for view in session.call("agents.list", names=list(names))["agents"]}
    views: list[dict[str, Any]] = session.call("agents.stop", names=list(names), timeout=seconds(timeout))["agents"]
    if not session.as_json:
        for view in views:
            idle = before[view["name"]] not in ("running", "waiting", "paused", "starting", "stopping")
            session.out.line(f"{view['name']} was not running" if idle else f"Stopped agent {view['name']}")
    return views


def pause(session: Session, names: AgentNames) -> None:
    """Let agents hold before their next iteration.

    The one that runs is finished first.
    """
    _each(session, names, "agents.pause", "{name} pauses after its iteration; `fleet resume {name}` lets it go on")


def resume(session: Session, names: AgentNames) -> None:
    """Let paused agents go on."""
    names = list(dict.fromkeys(agent_names.stored(session, name) for name in names))
    for view in session.call("agents.list", names=names)["agents"]:
        if view["desired"] != "paused":
            hint = "" if view["pid"] else f"; `fleet run {view['name']}` starts it"
            raise Conflict(f'agent "{view["name"]}": expected a paused one, found {view["state"]}{hint}')
    _each(session, names, "agents.resume", "{name} goes on")


def interrupt(session: Session, names: AgentNames) -> None:
    """End the iterations that run now.

    They are recorded as interrupted; the agents go on with the next ones.
    """
    _each(session, names, "agents.interrupt", "Interrupted {name}; it goes on with the next iteration")


def _each(session: Session, names: Sequence[str], method: str, sentence: str) -> None:
    names = list(dict.fromkeys(agent_names.stored(session, name) for name in names))
    answer = session.call(method, names=names)
    if session.as_json:
        session.out.data(answer)
        return
    for name in names:
        session.out.line(sentence.format(name=name))


def message(
    session: Session,
    name: Agent,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What to tell it; - reads standard input.")],
    step: Annotated[
        str,
        typer.Option(
            "--step", "-s", metavar="LABEL", autocompletion=completion.agent_steps, help="Only for this step."
        ),
    ] = "",
    iteration: Annotated[
        int | None, typer.Option("--iteration", metavar="NUMBER", help="Only for this iteration, while it runs.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", "-w", help="Wait until it is delivered or refused.")] = False,
    timeout: Timeout = "",
) -> None:
    """Send a message into an agent while it works.

    A runner that can be steered reads it within the turn that runs; the others get it with the next iteration. Messages
    to an agent that does not run wait until it does. Each one is queued, sent, delivered, or refused with a reason.
    """
    name = agent_names.stored(session, name)
    text = sys.stdin.read() if text == "-" else text
    row = session.call(
        "agents.inject",
        name=name,
        text=text,
        step=step or None,
        iteration=None if iteration is None else _iteration(session, name, iteration),
        sender=_sender(),
    )["injection"]
    if wait:
        row = _settled(session, row, seconds(timeout))
    if session.as_json:
        session.out.data({"injection": row})
    if row["state"] == "refused":
        raise Conflict(f'agent "{name}": message {row["id"]} was refused: {row["reason"]}')
    if not session.as_json:
        session.out.line(_sentence(session, name, row))


def _iteration(session: Session, name: str, number: int) -> int:
    """Return the id of an iteration from its number."""
    rows = session.agents.iterations(name, limit=10_000)
    for row in rows:
        if row["number"] == number:
            return int(row["id"])
    raise NotFound(
        f'agent "{name}": has no iteration {number}' + (f"; the last is {rows[0]['number']}" if rows else "")
    )


def _sender() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""


def _settled(session: Session, row: dict[str, Any], limit: float) -> dict[str, Any]:
    deadline = time.monotonic() + limit
    while row["state"] in ("queued", "sent"):
        if time.monotonic() > deadline:
            raise TimedOut(
                f'agent "{row["agent"]}": message {row["id"]} is still {row["state"]} after {limit:g} s; it is kept'
            )
        time.sleep(0.1)
        row = session.agents.injection(row["id"])
    return row


def _sentence(session: Session, name: str, row: dict[str, Any]) -> str:
    head = f"Message {row['id']} to {name} is {row['state']}"
    if row["state"] == "delivered":
        number = session.agents.iteration(row["delivered_in"])["number"] if row["delivered_in"] else None
        return f"{head} in iteration {number}" if number else head
    if row["state"] == "sent":
        return f"{head}; the agent reads it within its turn"
    state = session.call("agents.list", names=[name])["agents"][0]["state"]
    if state in ("running", "waiting", "starting"):
        return head
    return f"{head}; it is {state}, and reads it when it runs again"
