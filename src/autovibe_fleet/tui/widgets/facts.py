# SPDX-License-Identifier: GPL-3.0-or-later
"""What the right side says of an agent and of a step, as lines of styled pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..figures import clock, count, day, duration, money, seconds_of, short, spread, state_mark
from ..model import Agent, Step
from ..text import clean, one_line

Piece = tuple[str, str]
Lines = Iterator[list[Piece]]
Row = Mapping[str, Any]

_LABEL = 13  # columns
_GAUGE = 16  # columns


def _pair(label: str, *pieces: Piece) -> list[Piece]:
    return [(f"{label:<{_LABEL}}", "dim"), *pieces]


def agent_lines(agent: Agent, now: float) -> Lines:
    """Yield everything that is known of an agent."""
    view = agent.view
    sign, kind = state_mark(agent.state)
    yield [(f"{sign} ", kind), (one_line(agent.name, 200), "title"), (f"   {agent.state}", kind)]
    if view.get("description"):
        for line in clean(view["description"]).strip().split("\n"):
            yield [(line, "dim")]
    if view.get("error"):
        yield [(f"✗ {one_line(view['error'], 500)}", "bad")]
    yield []
    yield _pair("Runner", (_runner(agent), "text"))
    yield from _run(agent, now)
    yield from _limits(agent, now)
    yield from _workspace(agent)
    if view.get("next_run"):
        yield _pair("Next run", (day(view["next_run"]), "text"))
    if view.get("queued"):
        yield _pair("Queued", (_waiting(int(view["queued"])), "warn"))
    yield []
    yield from _all_iterations(agent)
    yield from _revisions(agent)


def _waiting(number: int) -> str:
    return "1 steering message waits" if number == 1 else f"{number} steering messages wait"


def _runner(agent: Agent) -> str:
    facts = [agent.view.get("runner"), agent.view.get("model")]
    return " · ".join(one_line(fact, 80) for fact in facts if fact) or "-"


def _run(agent: Agent, now: float) -> Lines:
    run = agent.run
    if not run:
        yield _pair("Run", ("has not run yet", "dim"))
        return
    state = str(run.get("state") or "")
    _sign, kind = state_mark(state)
    took = duration(seconds_of(run, now))
    when = f" · since {clock(run.get('started'))} · {took}" if not run.get("finished") else f" · {took}"
    yield _pair("Run", (f"{run.get('id', '')} ", "strong"), (state, kind), (when, "text"))
    if run.get("finished"):
        yield _pair("", (f"ended {day(run['finished'])}", "dim"))
    if run.get("reason"):
        yield _pair("", (one_line(run["reason"], 300), "dim"))


def _limits(agent: Agent, now: float) -> Lines:
    limits = agent.definition.get("limits") or {}
    totals = agent.run.get("totals") or {}
    if agent.run:
        facts = f"{totals.get('iterations', 0)} iterations, {totals.get('failed', 0)} failed"
        yield _pair("Used", (f"{facts} · {count(totals.get('tokens'))} tokens · {money(totals.get('cost'))}", "text"))
    used: dict[str, tuple[float, Callable[[float], str]]] = {
        "iterations": (totals.get("iterations") or 0, count),
        "duration": (seconds_of(agent.run, now) or 0 if agent.run else 0, duration),
        "cost": (totals.get("cost") or 0, money),
        "tokens": (totals.get("tokens") or 0, count),
    }
    label = "Limits"
    for name, (value, shown) in used.items():
        limit = limits.get(name)
        if limit:
            part = min(1.0, float(value) / float(limit))
            full = round(part * _GAUGE)
            kind = "bad" if part >= 0.9 else "warn" if part >= 0.7 else "good"
            yield _pair(
                label,
                (f"{name:<11}", "dim"),
                ("━" * full, kind),
                ("━" * (_GAUGE - full), "faint"),
                (f"  {shown(value)} of {shown(limit)}", "text"),
            )
            label = ""


def _workspace(agent: Agent) -> Lines:
    workspace = {**(agent.definition.get("workspace") or {}), **(agent.run.get("workspace") or {})}
    if not workspace:
        return
    kind = one_line(workspace.get("kind") or "folder", 20)
    yield _pair("Workspace", (f"{kind}  {one_line(workspace.get('path') or '', 300)}".strip(), "text"))
    for key in ("repository", "branch", "base"):
        if workspace.get(key):
            yield _pair("", (f"{key} {one_line(workspace[key], 300)}", "dim"))


def _all_iterations(agent: Agent) -> Lines:
    found = agent.statistics.get("")
    if not found or not found.get("iterations"):
        return
    yield [("Statistics", "title")]
    counts = f"{found.get('succeeded', 0)} succeeded · {found.get('failed', 0)} failed"
    yield _pair("Iterations", (f"{found.get('iterations', 0)}", "strong"), (f"  {counts}", "text"))
    if found.get("interrupted"):
        yield _pair("", (f"{found['interrupted']} interrupted", "dim"))
    yield _pair("Duration", (spread(found.get("duration"), short), "text"))
    tokens = found.get("tokens") or {}
    yield _pair("Tokens", (spread(tokens, count), "text"), (f"  {count(tokens.get('total'))} in all", "dim"))
    yield _pair("Cost", (money(found.get("cost")), "text"))
    yield []


def _revisions(agent: Agent) -> Lines:
    if not agent.revisions:
        return
    yield [("Revisions", "title")]
    current = agent.view.get("revision")
    for row in reversed(agent.revisions[-20:]):
        now = row.get("number") == current
        yield [
            ("● " if now else "  ", "good"),
            (f"{row.get('number', ''):>3}  ", "strong" if now else "text"),
            (f"{day(row.get('time'))}  ", "dim"),
            (f"{one_line(row.get('origin') or '', 20):<9}", "text"),
            (str(row.get("id") or "")[:12], "faint"),
        ]
    if len(agent.revisions) > 20:
        yield [(f"  … {len(agent.revisions) - 20} older: fleet revisions {one_line(agent.name, 80)}", "dim")]


def step_title(agent: Agent, step: Step) -> list[Piece]:
    """Return the heading of a step."""
    kinds = {"loop": "loops", "map": "runs for each item", "call": "runs once"}
    return [
        (one_line(agent.name, 80), "title"),
        (" / ", "dim"),
        (one_line(step.label, 80), "title"),
        (f"   {kinds.get(step.kind, step.kind)} · method {one_line(step.method, 80)}", "dim"),
    ]


def prompt_lines(agent: Agent, step: Step) -> Lines:
    """Yield the prompt of a step."""
    method = agent.method(step.method)
    if method is None:
        yield [("Loading…" if not agent.revisions else f"method {one_line(step.method)}: not defined", "dim")]
        return
    if method.get("parameters"):
        names = ", ".join(one_line(name, 60) for name in method["parameters"])
        yield [(f"parameters: {names}", "dim")]
        yield []
    for line in clean(method.get("body") or "").split("\n"):
        yield [(line, "text")]


def statistics_lines(agent: Agent, step: Step) -> Lines:
    """Yield the figures of a step, one below the other for a narrow column."""
    found = agent.statistics.get(step.label)
    yield [("Statistics", "title")]
    if found is None:
        yield [("Loading…", "dim")]
        return
    yield []
    for label, value in _figures(found):
        yield [(label, "dim")]
        yield [(f"  {value}", "text")]


def _figures(found: Row) -> Iterator[tuple[str, str]]:
    yield "iterations", str(found.get("iterations", 0))
    ended = [f"{found.get(key, 0)} {key}" for key in ("succeeded", "failed", "interrupted") if found.get(key)]
    if ended:
        yield "of them", ", ".join(ended)
    yield "duration", spread(found.get("duration"), short)
    yield "tokens", spread(found.get("tokens"), count)
    yield "tokens in all", count((found.get("tokens") or {}).get("total"))
    yield "cost", money(found.get("cost"))


def iteration_title(agent: Agent, row: Row, now: float) -> list[Piece]:
    """Return the heading of an iteration; it says when the step has gone on to another one."""
    state = str(row.get("state") or "")
    sign, kind = state_mark(state)
    usage = row.get("usage") or {}
    tokens = sum(value for key, value in usage.items() if key.endswith("_tokens") and isinstance(value, (int, float)))
    facts = [short(seconds_of(row, now)), f"rev {row.get('revision', '')}"]
    if tokens:
        facts.append(f"{count(tokens)} tokens")
    if row.get("cost"):
        facts.append(money(row["cost"]))
    item = f"  {one_line(row['item'], 60)}" if row.get("item") else ""
    return [
        (one_line(agent.name, 80), "title"),
        (" / ", "dim"),
        (one_line(row.get("step") or "", 80), "title"),
        (" / ", "dim"),
        (f"#{row.get('number', '')}", "title"),
        (item, "dim"),
        (f"   {sign} {state}", kind),
        (_goes_on(agent, row), "info"),
        (f"   {' · '.join(facts)}", "dim"),
    ]


def _goes_on(agent: Agent, row: Row) -> str:
    step = agent.steps.get(str(row.get("step")))
    last = step.last if step else None
    if last is None or last.get("state") != "running" or last.get("id") == row.get("id"):
        return ""
    return f"   n: #{last.get('number', '')} runs"


def iteration_trouble(row: Row) -> list[Piece]:
    """Return why an iteration did not go well, and what the verification and the watchdog said."""
    parts = [one_line(row[key], 200) for key in ("reason", "error") if row.get(key)]
    found: list[Piece] = []
    if parts:
        found.append((f"✗ {' · '.join(dict.fromkeys(parts))}", "bad" if row.get("state") == "failed" else "warn"))
    verification = row.get("verification")
    if isinstance(verification, Mapping):
        good = bool(verification.get("ok", verification.get("rc") == 0))
        found.append(("  ✓ verified" if good else "  ✗ verification failed", "good" if good else "bad"))
    for warning in row.get("watchdog") or ():
        found.append((f"  ! {one_line(warning, 120)}", "warn"))
    return found


def outbox_lines(rows: list[Row], most: int = 4) -> Lines:
    """Yield the steering messages of an iteration: their state, and why it is so."""
    if len(rows) > most:
        yield [(f"  … {len(rows) - most} earlier", "dim")]
    for row in rows[-most:]:
        state = str(row.get("state") or "")
        sign, kind = state_mark(state)
        text = str(row.get("text") or "").strip()
        reason = f"   {one_line(row['reason'], 120)}" if row.get("reason") else ""
        yield [
            (f"{sign} ", kind),
            (f"{state:<10}", kind),
            (f"{one_line(row.get('sender') or '', 24)}: " if row.get("sender") else "", "dim"),
            (one_line(text, 160), "text"),
            (" …" if "\n" in text else "", "dim"),
            (reason, kind if state == "refused" else "dim"),
        ]
