# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Between the options of the agent modules and what fleetd takes and answers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ._arguments import given
from ._fleetd import call
from .fleet_core import prompt_agents, prompt_files
from .fleet_core.agents import agent_definition, render
from .fleet_core.errors import Conflict, NotFound, TimedOut
from .fleet_core.names import nearest
from .fleet_core.quantities import parse_duration

_NEVER = 2**53  # an id that no message will have
_MOST = 10_000  # rows of one answer
_PAUSE = 0.2  # seconds between two looks at a message
_FINAL = ("delivered", "refused")
# States in which an agent reads what is sent to it, now or soon.
_LISTENING = ("starting", "running", "waiting", "stopping")


def definitions(params: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what agents.apply takes: definitions, and a name alone for an agent that exists."""
    found = [given(item, {}) for item in params["agents"] or ()]
    if params["content"]:
        parsed = prompt_files.parse(params["content"], "content")
        found += [item.to_dict() for item in prompt_agents.agents(parsed, params["defaults"])]
    names = [item["name"] for item in found]
    return found + [{"name": name} for name in params["names"] or () if name not in names]


def readable(change: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return Ansible's diff of a change of definitions: an entry an agent, with the text that people read."""
    before, after = change["before"], change["after"]
    return [
        {
            "before_header": f"agent {name}",
            "after_header": f"agent {name}",
            "before": _text(before.get(name)),
            "after": _text(after.get(name)),
        }
        for name in dict.fromkeys((*before, *after))
    ]


def _text(shown: Mapping[str, Any] | None) -> str:
    if shown is None:
        return ""
    definition = agent_definition({key: value for key, value in shown.items() if key != "state"})
    return "".join(f"{line}\n" for line in (f"state: {shown['state']}", *render(definition)))


def gather(params: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return what agent_info was asked to gather of one agent, by the names of its option."""
    limit = params["limit"]
    options = {
        "revisions": {},
        "statistics": {},
        "messages": {"limit": limit, "before": _NEVER},
        "injections": {"limit": _MOST},
    }
    found = {}
    for what in dict.fromkeys(params["gather"]):
        rows = call(params["state_dir"], f"agents.{what}", name=name, **options.get(what, {"limit": limit}))[what]
        found[what] = rows[-limit:] if what == "injections" else rows
    return found


def check_receiver(params: Mapping[str, Any]) -> None:
    """Raise NotFound when there is no agent, or no step of it, that could read the message."""
    known = {item["name"]: item for item in call(params["state_dir"], "agents.list")["agents"]}
    name, step = params["name"], params["step"]
    if name not in known:
        raise NotFound(f'agent "{name}": not declared{nearest(name, known)}')
    labels = [item["label"] for item in known[name]["steps"]]
    if step and step not in labels:
        raise NotFound(f'agent "{name}": step "{step}": not in the pipeline{nearest(step, labels)}')


def delivered(params: Mapping[str, Any], message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a message that was sent, once it is delivered if that is waited for and the agent runs.

    Raises Conflict when it is refused and TimedOut when it is not delivered in time.
    """
    where = f'agent "{params["name"]}": message {message["id"]}'
    limit = parse_duration("timeout", params["timeout"])
    end = time.monotonic() + limit
    while params["wait"] and message["state"] not in _FINAL and _listens(params):
        if time.monotonic() > end:
            raise TimedOut(f"{where}: expected it to be delivered within {limit:g} s, found it {message['state']}")
        time.sleep(_PAUSE)
        message = _look(params, message)
    message = _look(params, message)
    if message["state"] == "refused":
        raise Conflict(f"{where}: refused: {message['reason']}")
    return message


def _look(params: Mapping[str, Any], message: Mapping[str, Any]) -> Mapping[str, Any]:
    after = message["id"] - 1
    rows = call(params["state_dir"], "agents.injections", name=params["name"], after=after, limit=1)["injections"]
    found: Mapping[str, Any] = rows[0] if rows else message
    return found


def _listens(params: Mapping[str, Any]) -> bool:
    (agent,) = call(params["state_dir"], "agents.list", names=[params["name"]])["agents"]
    return agent["state"] in _LISTENING
