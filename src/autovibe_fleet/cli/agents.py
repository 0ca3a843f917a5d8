# SPDX-License-Identifier: GPL-3.0-or-later
"""fleet agents: what is declared, what it does and what it did."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fleet_core.agents import AgentDefinition, agent_definition, render
from fleet_core.errors import InvalidInput, NotFound

from . import agent_names, completion
from .agent_names import Agent, AgentNames, count, moment, money, spent, tokens_of, totals, when
from .arguments import Timeout, seconds
from .commands import Noun
from .output import Column, duration, json_text, printable
from .session import Session, with_session
from .templates import write_private

app = Noun()
_SHOWN = 20
Run = Annotated[int | None, typer.Option("--run", "-r", metavar="NUMBER", help="Of this run only.")]
Step = Annotated[
    str, typer.Option("--step", "-s", metavar="LABEL", autocompletion=completion.agent_steps, help="Of this step only.")
]


def list_agents(session: Session) -> None:
    """List the agents of this host."""
    views = _views(session)
    if session.as_json:
        session.out.data({"agents": views})
        return
    columns = (
        Column("NAME"),
        Column("STATUS"),
        Column("RUNNER"),
        Column("REVISION", right=True),
        Column("ITERATIONS", right=True),
        Column("TIME", right=True),
        Column("TOKENS", right=True),
        Column("COST", right=True),
        Column("NOTE", flexible=True),
    )
    rows = [_row(view) for view in views]
    agent_names.table(session, columns, rows, empty="No agents. Declare some with `fleet apply FILE`.")


def _row(view: dict[str, Any]) -> tuple[Any, ...]:
    run = view["run"]
    sums = run["totals"] if run else {}
    took = ((run["finished"] or time.time()) - run["started"]) if run else None
    return (
        view["name"],
        view["state"],
        view["runner"],
        view["revision"],
        int(sums.get("iterations") or 0) if run else None,
        spent(took) if run else None,
        count(sums.get("tokens")) if sums.get("tokens") else None,
        money(sums.get("cost")),
        _note(view),
    )


def _note(view: dict[str, Any]) -> str:
    """Return what is most worth knowing of an agent."""
    run = view["run"] or {}
    parts = []
    if view["error"]:
        parts.append(view["error"])
    elif run.get("reason") and view["state"] not in ("running", "completed"):
        parts.append(run["reason"])
    if view["queued"]:
        parts.append(f"{view['queued']} message{'' if view['queued'] == 1 else 's'} queued")
    if view["next_run"]:
        parts.append(f"next run {when(view['next_run'])}")
    return "; ".join(parts) or view["description"].split("\n")[0]


def _views(session: Session, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Return agents as fleetd shows them; when it does not run, as they were recorded last."""
    client = session.running_client()
    if client is not None:
        given = {} if names is None else {"names": list(names)}
        found: list[dict[str, Any]] = client.call("agents.list", **given)["agents"]
        return found
    views = _recorded(session, names) if session.has_agents else []
    if views:
        session.out.note("fleetd is not running; this is what was recorded last.")
    return views


def _recorded(session: Session, names: Sequence[str] | None) -> list[dict[str, Any]]:
    from ..node.agent_views import ProcessFacts, view

    store = session.agents
    rows, runs, steps, queued = store.agents(names), store.last_runs(names), store.steps(names), store.queued()
    definitions = store.definitions(names)
    views = []
    for name, row in rows.items():
        run = runs.get(name)
        found = view(row, definitions[name], ProcessFacts(), run, steps.get(name, {}), queued.get(name, 0))
        # A run goes on without fleetd.
        views.append({**found, "state": run["state"]} if run and run["finished"] is None else found)
    return views


app.command("list")(with_session(list_agents))


@app.callback(invoke_without_command=True, help="Agents: what is declared, what it does and what it did.")
@with_session
def without_command(session: Session, context: typer.Context) -> None:
    """List them when no command is given."""
    if context.invoked_subcommand is None:
        list_agents(session)


@app.command()
@with_session
def show(
    session: Session,
    name: Agent,
    revision: Annotated[
        int | None, typer.Option("--revision", metavar="NUMBER", help="As it was declared then.")
    ] = None,
) -> None:
    """Show an agent: its state, its steps, its definition."""
    name = agent_names.stored(session, name)
    (view,) = _views(session, [name])
    definition = session.agents.definition(name, revision)
    if session.as_json:
        session.out.data({"agent": view, "definition": definition.to_dict()})
        return
    run = view["run"]
    session.out.pairs(
        {
            "Agent": name,
            "Description": definition.description.split("\n") if definition.description else None,
            "Status": view["state"],
            "Error": view["error"],
            "Reason": run["reason"] if run and not view["error"] else None,
            "Run": f"{run['id']}, {totals(run)}" if run else None,
            "Began": when(run["started"]) if run else None,
            "Branch": run["workspace"].get("branch") if run else None,
            "Folder": run["workspace"].get("path") if run else None,
            "Changes": _changes(run["workspace"]) if run else None,
            "Patch": run["workspace"].get("patch") if run else None,
            "Queued messages": view["queued"] or None,
            "Next run": when(view["next_run"]),
            "Revision": f"{view['revision']}, {when(view['updated'])}",
            "Id": view["id"],
            "Legacy id": view["legacy_id"],
            "Process": f"{view['process']} (pid {view['pid']})" if view["pid"] else None,
        }
    )
    session.out.line("")
    columns = (Column("STEP"), Column("KIND"), Column("METHOD"), Column("ITERATIONS", right=True), Column("LAST"))
    rows = [
        (step["label"], step["kind"], step["method"], step["iterations"], step["last"]["state"] if step["last"] else "")
        for step in view["steps"]
    ]
    session.out.table(columns, rows)
    session.out.line("")
    session.out.line("Declared as:" if revision is None else f"Declared as, in revision {revision}:", style="bold")
    for line in render(definition):
        session.out.line(f"  {printable(line)}")


def _changes(work: dict[str, Any]) -> str:
    """Return what a run in a worktree or clone has changed, or an empty string."""
    if work.get("commits") is None:
        return ""
    parts = [f"{work['commits']} commit{'' if work['commits'] == 1 else 's'}", f"{work.get('files', 0)} files"]
    return ", ".join([*parts, f"+{work.get('insertions', 0)} -{work.get('deletions', 0)}"])


@app.command()
@with_session
def history(
    session: Session,
    name: Agent,
    run: Run = None,
    step: Step = "",
    iteration: Annotated[
        int | None, typer.Option("--iteration", "-i", metavar="NUMBER", help="Show the messages of this one.")
    ] = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="How many iterations.")] = _SHOWN,
    messages: Annotated[bool, typer.Option("--messages", "-m", help="Show the messages, too.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Show whole texts, results of tools included.")] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what happens, until Ctrl-C.")] = False,
) -> None:
    """Show what an agent did: its last iterations, oldest first."""
    name = agent_names.stored(session, name)
    if follow:
        _follow(session, name, full)
        return
    store = session.agents
    if iteration is not None:
        rows = [row for row in store.iterations(name, limit=1_000_000) if row["number"] == iteration]
        if not rows:
            raise NotFound(f'agent "{name}": has no iteration {iteration}')
    else:
        if step:
            store.definition(name).step(step)
        rows = store.iterations(name, run=run, step=step or None, limit=lines)[::-1]
    if messages or iteration is not None:
        _write_messages(session, name, rows, full or iteration is not None)
        return
    if session.as_json:
        session.out.data({"iterations": rows})
        return
    columns = (
        Column("ITERATION", right=True),
        Column("RUN", right=True),
        Column("STEP"),
        Column("STATE"),
        Column("STARTED"),
        Column("TIME", right=True),
        Column("TOKENS", right=True),
        Column("COST", right=True),
        Column("RESULT", flexible=True),
    )
    table = []
    for row in rows:
        took = row["duration"] if row["duration"] is not None else time.time() - row["started"]
        used = tokens_of(row["usage"])
        result = row["error"] or row["reason"] or " ".join(row["result"].split())
        label = f"{row['step']} ({row['item']})" if row["item"] else row["step"]
        table.append(
            (row["number"], row["run"], label[:40], row["state"], moment(session, row["started"]), spent(took),
             count(used) if used else None, money(row["cost"]), result[:300])
        )  # fmt: skip
    agent_names.table(session, columns, table, empty=f"{name} has done nothing yet; start it with `fleet run {name}`.")


def _write_messages(session: Session, name: str, rows: Sequence[dict[str, Any]], full: bool) -> None:
    from .agent_messages import Writer

    store = session.agents
    found = [(row, store.messages(name, iteration=row["id"], limit=1_000_000)) for row in rows]
    if session.as_json:
        session.out.data({"iterations": [{**row, "messages": messages} for row, messages in found]})
        return
    writer = Writer(session.out, full=full)
    for row, messages in found:
        writer.iteration_begins(row)
        for message in messages:
            writer.message(message)
        if row["state"] != "running":
            writer.iteration(row)


def _follow(session: Session, name: str, full: bool) -> None:
    from .agent_live import follow_all

    session.client.call("daemon.status")  # started where it does not run
    watch = follow_all(session, [name], full)
    last = session.agents.iterations(name, limit=1)
    if last:
        watch.back_to(name, last[0])
    watch.until_interrupted(session)


@app.command()
@with_session
def runs(
    session: Session,
    name: Agent,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="How many runs.")] = _SHOWN,
) -> None:
    """List the runs of an agent, newest first."""
    name = agent_names.stored(session, name)
    rows = session.agents.runs(name, lines)
    if session.as_json:
        session.out.data({"runs": rows})
        return
    columns = (
        Column("RUN", right=True),
        Column("STATE"),
        Column("REVISION", right=True),
        Column("STARTED"),
        Column("TIME", right=True),
        Column("ITERATIONS", right=True),
        Column("FAILED", right=True),
        Column("TOKENS", right=True),
        Column("COST", right=True),
        Column("BRANCH"),
        Column("REASON", flexible=True),
    )
    table = []
    for row in rows:
        sums = row["totals"]
        took = (row["finished"] or time.time()) - row["started"]
        table.append(
            (row["id"], row["state"], row["revision"], moment(session, row["started"]), duration(took),
             int(sums.get("iterations") or 0), int(sums.get("failed") or 0),
             count(sums["tokens"]) if sums.get("tokens") else None,
             money(sums.get("cost")), row["workspace"].get("branch"), row["reason"])
        )  # fmt: skip
    agent_names.table(session, columns, table, empty=f"{name} has not run yet; start it with `fleet run {name}`.")


@app.command()
@with_session
def statistics(session: Session, name: Agent, run: Run = None, step: Step = "") -> None:
    """Count an agent's iterations, their time and tokens.

    For each step and in all, with mean and standard deviation.
    """
    name = agent_names.stored(session, name)
    store = session.agents
    if run is not None and run not in [row["id"] for row in store.runs(name, 1_000_000)]:
        raise NotFound(f'agent "{name}": has no run {run}')
    definition = store.definition(name)
    labels = (
        [definition.step(step).label] if step else list(dict.fromkeys([*_labels(definition), *_past(session, name)]))
    )
    found = {label: store.statistics(name, run=run, step=label) for label in labels}
    whole = store.statistics(name, run=run, step=step or None)
    if session.as_json:
        session.out.data({"statistics": whole, "steps": found})
        return
    columns = (
        Column("STEP"),
        Column("ITERATIONS", right=True),
        Column("SUCCEEDED", right=True),
        Column("FAILED", right=True),
        Column("INTERRUPTED", right=True),
        Column("TIME", right=True),
        Column("+/-", right=True),
        Column("TOKENS", right=True),
        Column("+/-", right=True),
        Column("ALL TOKENS", right=True),
        Column("COST", right=True),
    )
    rows = list(found.items())
    if len(rows) > 1:
        rows.append(("(all)", whole))
    agent_names.table(session, columns, [_figures(label, item) for label, item in rows])


def _labels(definition: AgentDefinition) -> list[str]:
    return [step.label for step in definition.pipeline]


def _past(session: Session, name: str) -> list[str]:
    """Return the labels of all steps that ever did something."""
    return list(session.agents.steps([name]).get(name, {}))


def _figures(label: str, item: dict[str, Any]) -> tuple[Any, ...]:
    seconds_, tokens = item["duration"], item["tokens"]
    counts = [count(tokens[key]) if tokens["total"] else None for key in ("mean", "deviation", "total")]
    times = [spent(seconds_[key]) if item["iterations"] else None for key in ("mean", "deviation")]
    numbers = (item[key] for key in ("iterations", "succeeded", "failed", "interrupted"))
    return (label, *numbers, *times, *counts, money(item["cost"]))


@app.command()
@with_session
def export(
    session: Session,
    names: Annotated[list[str] | None, typer.Argument(metavar="[AGENT]...", autocompletion=completion.agents)] = None,
    file: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="Write there, with mode 0600.")] = "",
    revision: Annotated[int | None, typer.Option("--revision", metavar="NUMBER", help="As it was then.")] = None,
) -> None:
    """Write definitions as YAML that `fleet apply` reads.

    As JSON with --json, or when the file's name ends with .json.
    """
    chosen = [agent_names.stored(session, name) for name in names or ()]
    if revision is not None and len(chosen) != 1:
        raise InvalidInput("export: --revision needs the name of one agent")
    if revision is not None:
        found = [session.agents.definition(chosen[0], revision)]
    else:
        found = list(session.agents.definitions(chosen if names else None).values()) if session.has_agents else []
    data = [item.to_dict() for item in found]
    for item in data:
        agent_definition(item)
    if session.as_json or file.endswith(".json"):
        text = json_text(data[0] if len(chosen) == 1 else data, indent=2) + "\n"
    else:
        from . import yaml_files

        text = "---\n".join(yaml_files.dump(item) for item in data)
    if not file:
        sys.stdout.write(text)
        return
    write_private(Path(file), text)
    session.out.note(f"Wrote {len(data)} agent(s) to {file}")


@app.command()
@with_session
def delete(
    session: Session,
    names: AgentNames,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    timeout: Timeout = "",
) -> None:
    """Stop agents and forget them.

    Their revisions and all that is recorded of their runs go with them.
    """
    names = list(dict.fromkeys(agent_names.stored(session, name) for name in names))
    with_history = [name for name in names if session.agents.runs(name, 1)]
    if with_history and not yes:
        if not sys.stdin.isatty():
            raise InvalidInput(f"delete: forgets the runs of {', '.join(with_history)}; confirm with --yes")
        typer.confirm(f"Forget {', '.join(names)} and what is recorded of their runs?", abort=True, err=True)
    answer = session.call("agents.delete", names=names, timeout=seconds(timeout))
    if session.as_json:
        session.out.data(answer)
        return
    for name in names:
        session.out.line(f"Deleted {name}")
