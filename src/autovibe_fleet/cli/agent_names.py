# SPDX-License-Identifier: GPL-3.0-or-later
"""How agents are named on the command line, and what is shown of them everywhere in the same way."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import typer

from fleet_core.errors import NotFound
from fleet_core.names import nearest

from . import completion
from .output import Column, duration
from .session import Session

PREFIX = "agents/"  # of their processes
Agent = Annotated[str, typer.Argument(metavar="AGENT", autocompletion=completion.agents)]
AgentNames = Annotated[list[str], typer.Argument(metavar="AGENT...", autocompletion=completion.agents)]


def plain(name: str) -> str:
    """Return the name of an agent, also from the name of its process, agents/NAME."""
    return name[len(PREFIX) :] if name.startswith(PREFIX) else name


def stored(session: Session, name: str) -> str:
    """Return the name of an agent that is declared. Raises NotFound."""
    name = plain(name)
    if not session.has_agents:
        raise NotFound(f'agent "{name}": not known; declare agents with `fleet apply FILE`')
    session.agents.agent(name)
    return name


def split(session: Session, names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return (agents, the rest) of names that may be those of processes. A process of the name comes first."""
    names = list(names)
    if not session.has_agents:
        return [], names
    known = session.agents.agents()
    processes = session.store.processes([name for name in names if "/" not in name])
    agents = [
        name
        for name in names
        if (name.startswith(PREFIX) and plain(name) in known) or (name in known and name not in processes)
    ]
    return [plain(name) for name in agents], [name for name in names if name not in agents]


def hint(session: Session, name: str) -> str:
    """Return ', did you mean …' for a name that is no process but nearly an agent's."""
    return nearest(name, session.agents.agents()) if session.has_agents else ""


def count(number: float | None) -> str:
    """Return a number of tokens for people: 950, 1.2k, 34k, 5.6M."""
    value = float(number or 0)
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.1f}{unit}" if value < 10 * size else f"{value / size:.0f}{unit}"
    return f"{value:.0f}"


def money(dollars: float | None) -> str:
    """Return a cost for people, or an empty string when none is known."""
    if not dollars:
        return ""
    return f"${dollars:.2f}" if dollars >= 0.1 else f"${dollars:.4f}"


def spent(seconds: float | None) -> str:
    """Return a time span; tenths below ten seconds."""
    return f"{seconds:.1f}s" if seconds is not None and seconds < 10 else duration(seconds)


def when(moment: float | None) -> str:
    """Return a moment in local time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment)) if moment else ""


def moment(session: Session, seconds: float | None) -> str:
    """Return a moment in local time, on a terminal in as few characters as it can be told."""
    if not seconds or not session.out.is_terminal:
        return when(seconds)
    there, now = time.localtime(seconds), time.localtime()
    if there[:3] == now[:3]:
        return time.strftime("%H:%M:%S", there)
    return time.strftime("%m-%d %H:%M" if there.tm_year == now.tm_year else "%Y-%m-%d", there)


def table(session: Session, columns: Sequence[Column], rows: Sequence[Sequence[Any]], empty: str = "") -> None:
    """Write a table; on a terminal without its columns of numbers that are all unknown."""
    if session.out.is_terminal and rows:
        kept = [
            index
            for index, column in enumerate(columns)
            if not column.right or any(row[index] not in (None, "") for row in rows)
        ]
        columns = [columns[index] for index in kept]
        rows = [[row[index] for index in kept] for row in rows]
    session.out.table(columns, rows, empty=empty)


def tokens_of(usage: Mapping[str, Any]) -> int:
    """Return the sum of the tokens of an iteration."""
    return sum(
        int(value) for key, value in usage.items() if key.endswith("_tokens") and isinstance(value, (int, float))
    )


def totals(run: Mapping[str, Any]) -> str:
    """Return what a run has used: "5 iterations, 1 failed, 2m03s, 12k tokens, $0.53"."""
    sums = run["totals"]
    number = int(sums.get("iterations") or 0)
    parts = [f"{number} iteration{'' if number == 1 else 's'}"]
    if sums.get("failed"):
        parts.append(f"{sums['failed']:.0f} failed")
    parts.append(spent((run["finished"] or time.time()) - run["started"]))
    if sums.get("tokens"):
        parts.append(f"{count(sums['tokens'])} tokens")
    if sums.get("cost"):
        parts.append(money(sums["cost"]))
    return ", ".join(parts)
