# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/socket.md tells every method that fleetd answers, with its parameters, and every kind of event."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from autovibe_fleet.node.agent_methods import AgentMethods
from autovibe_fleet.node.agent_views import STATES
from autovibe_fleet.node.methods import Methods
from autovibe_fleet.node.server import KINDS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "socket.md").read_text(encoding="utf-8")


def rows() -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line[:3] == "| `"]


def methods() -> dict[str, set[str]]:
    found = {"events.subscribe": {"kinds", "agents"}}
    for kind, groups in ((Methods, ("daemon", "processes", "environments")), (AgentMethods, ("agents", "runs"))):
        for name, function in inspect.getmembers(kind, inspect.iscoroutinefunction):
            if name.partition("_")[0] in groups:
                found[name.replace("_", ".", 1)] = set(inspect.signature(function).parameters) - {"self"}
    return found


def test_every_method_and_its_parameters_are_told() -> None:
    told = {name: set(re.findall(r"`(\w+)`", row[1])) for row in rows() for name in re.findall(r"`(\w+\.\w+)`", row[0])}
    known = methods()
    assert set(told) == set(known)
    for name, parameters in known.items():
        if name.endswith(".plan"):
            assert parameters <= told[name], name
        else:
            assert parameters == told[name], name


def test_every_kind_of_event_and_every_state_is_told() -> None:
    first = {word for row in rows() for word in re.findall(r"`(\w+)`", row[0])}
    assert set(KINDS) <= first
    assert set(STATES) <= first
