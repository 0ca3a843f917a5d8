# SPDX-License-Identifier: GPL-3.0-or-later
"""The messages of gcluster's protocol: one JSON object a line, {"type", "payload"}.

What they hold was read from its public source (https://github.com/liamzebedee/gprompt, src/cluster/protocol.go and
object.go). Both of its kinds of apply_request are read: with the structure of the pipeline beside the definition, and
without.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from fleet_core.agent_forms import form, legacy_id, stored_form
from fleet_core.agents import AgentDefinition, agent_definition
from fleet_core.errors import InvalidInput
from fleet_core.names import describe
from fleet_core.prompt_agents import agent_from_form

PORT = 43252
LONGEST = 1024 * 1024  # bytes of a line that its own server reads
LONGEST_STATE = 3 * 1024 * 1024  # its steering client reads 4 MiB

APPLY, APPLIED = "apply_request", "apply_response"
SUBSCRIBE, STATE = "steer_subscribe", "steer_state"
INJECT, EDIT = "steer_inject", "steer_edit_prompt"
SHUTDOWN, ERROR = "shutdown_notice", "error"
REQUESTS = (APPLY, SUBSCRIBE, INJECT, EDIT)

# What a definition of gcluster says nothing about, so that it stays when an agent is applied again.
_OWN = ("name", "methods", "pipeline", "legacy_form")
_ZERO = "0001-01-01T00:00:00Z"  # Go's time of nothing


class NoMessage(InvalidInput):
    """What came is no message at all: whoever sent it speaks something else."""


@dataclass(frozen=True)
class Message:
    """A request of a client."""

    type: str
    payload: Mapping[str, Any]

    def text(self, key: str, required: bool = True) -> str:
        """Return a text of the payload. Raises InvalidInput."""
        value = self.payload.get(key, "")
        if not isinstance(value, str) or (required and not value.strip()):
            raise InvalidInput(f"{self.type}: {key}: expected a text, found {describe(value)}")
        return value


def message(line: bytes) -> Message:
    """Return the message of a line. Raises NoMessage for what is none, InvalidInput for an unknown one."""
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        raise NoMessage('expected a line of JSON, {"type": ..., "payload": ...}, found something else') from None
    if not isinstance(data, dict) or not isinstance(data.get("type"), str):
        raise NoMessage(f"expected a message with a type, found {describe(data)}")
    if data["type"] not in REQUESTS:
        raise InvalidInput(f"message: expected type {', '.join(REQUESTS)}, found {describe(data['type'])}")
    payload = data.get("payload")
    if not isinstance(payload, dict) and not (payload is None and data["type"] == SUBSCRIBE):
        raise InvalidInput(f"{data['type']}: expected a payload, found {describe(payload)}")
    return Message(data["type"], payload or {})


def line(kind: str, payload: Mapping[str, Any]) -> bytes:
    """Return a message as a line."""
    return json.dumps({"type": kind, "payload": payload}, separators=(",", ":")).encode() + b"\n"


def applied(summary: Mapping[str, Any] | None = None, error: str = "") -> bytes:
    """Return the answer to an apply_request."""
    names = {key: list((summary or {}).get(key) or ()) for key in ("created", "updated", "unchanged")}
    return line(APPLIED, {"summary": names, **({"error": error} if error else {})})


def names(request: Message) -> list[str]:
    """Return the names in an apply_request, whatever else may be wrong with it."""
    agents = request.payload.get("agents")
    found = [item.get("name") for item in agents if isinstance(item, dict)] if isinstance(agents, list) else []
    return list(dict.fromkeys(name for name in found if isinstance(name, str)))


def definitions(
    request: Message, known: Mapping[str, Mapping[str, Any]], base: Mapping[str, Any]
) -> list[AgentDefinition]:
    """Return the agents of an apply_request.

    known: the definitions that there are; what gcluster has no words for stays in them. base: that of new ones, such as
    runner. Raises InvalidInput.
    """
    agents = request.payload.get("agents")
    if not isinstance(agents, list):
        raise InvalidInput(f"{APPLY}: agents: expected a list, found {describe(agents)}")
    found = []
    for number, item in enumerate(agents, 1):
        if not isinstance(item, dict) or not isinstance(item.get("name"), str):
            raise InvalidInput(f"{APPLY}: agent {number}: expected one with a name, found {describe(item)}")
        old = known.get(item["name"])
        kept = base if old is None else {key: value for key, value in old.items() if key not in _OWN}
        found.append(_definition(item, kept))
    for name, count in Counter(item.name for item in found).items():
        if count > 1:
            raise InvalidInput(f'{APPLY}: agent "{name}": stands twice')
    return found


def _definition(item: Mapping[str, Any], base: Mapping[str, Any]) -> AgentDefinition:
    where = f'{APPLY}: agent "{item["name"]}"'
    methods = item.get("methods") or {}
    if not isinstance(methods, dict) or not all(isinstance(body, str) for body in methods.values()):
        raise InvalidInput(f"{where}: methods: expected names with texts, found {describe(methods)}")
    text = item.get("definition")
    if not isinstance(text, str):
        raise InvalidInput(f"{where}: definition: expected a text, found {describe(text)}")
    try:
        found = agent_from_form(text, methods, base, where)
    except InvalidInput as error:
        # It may name a line and a column, as of a file.
        text = error.message.replace(f"{where}:1:1: ", "")
        raise InvalidInput(f"{where}: {text}") from None
    if found.name != item["name"]:
        raise InvalidInput(f'{where}: its definition is that of "{found.name}"')
    return found


# What clients see


def state(objects: list[Any], runs: Mapping[str, Any], definitions: Mapping[str, AgentDefinition]) -> dict[str, Any]:
    """Return the payload of steer_state."""
    return {
        "objects": objects,
        "runs": dict(runs),
        "methods": {name: {method.name: method.body for method in item.methods} for name, item in definitions.items()},
        "pipelines": {name: pipeline(item) for name, item in definitions.items()},
    }


def cluster_object(view: Mapping[str, Any], revisions: list[dict[str, Any]]) -> dict[str, Any]:
    """Return an agent as an object of the cluster, with revisions as revision() makes them, oldest first."""
    return {
        "id": revisions[-1]["id"],
        "name": view["name"],
        "definition": revisions[-1]["definition"],
        "revisions": revisions,
        "state": run_state(view),
        "current_revision": revisions[-1]["id"],
    }


def revision(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a revision by gcluster's id, which does not cover the bodies of methods."""
    definition = agent_definition(row["definition"])
    return {
        "id": legacy_id(definition),
        "timestamp": moment(row["time"]),
        "definition": stored_form(form(definition)),
    }


def run_state(view: Mapping[str, Any]) -> str:
    """Return pending, running or stopped for a state of ours."""
    if view["state"] in ("starting", "running", "paused", "waiting", "stopping"):
        return "running"
    return "stopped" if view.get("run") else "pending"


def pipeline(definition: AgentDefinition) -> dict[str, Any]:
    """Return the structure of a pipeline."""
    steps = []
    for step in definition.pipeline:
        kind = "simple" if step.kind == "call" else step.kind
        key = {"simple": "method", "map": "map_method", "loop": "loop_method"}[kind]
        found = {"label": step.label, "kind": kind, key: step.method}
        if kind == "map":
            found["map_ref"] = step.over or f"[{', '.join(step.items)}]"
        steps.append(found)
    return {"steps": steps}


def iteration(row: Mapping[str, Any], messages: list[dict[str, Any]]) -> dict[str, Any]:
    """Return an iteration with its messages."""
    found = {
        "iteration": row["number"],
        "started_at": moment(row["started"]),
        "finished_at": moment(row.get("finished")),
        "messages": messages,
    }
    error = row.get("error") or (row.get("reason") if row["state"] in ("failed", "interrupted") else "")
    return {**found, "error": error or row["state"]} if row["state"] in ("failed", "interrupted") else found


def spoken(row: Mapping[str, Any], longest: int) -> dict[str, Any] | None:
    """Return a message of an iteration, or None for a kind that gcluster does not know."""
    kind = {"text": "text", "tool_use": "tool_use", "tool_result": "tool_result", "user": "text", "error": "text"}.get(
        str(row["type"])
    )
    if kind is None:
        return None
    detail: Any = row.get("detail") or {}
    content = str(row.get("content") or "")
    if kind == "tool_use":
        content = str(detail.get("name") or content)
    if row["type"] in ("user", "error"):
        content = f"[{'steering' if row['type'] == 'user' else 'error'}] {content}"
    found = {"id": f"msg-{row['id']}", "type": kind, "content": content[:longest]}
    argument = _argument(detail.get("input")) if kind == "tool_use" else ""
    return {**found, "detail": argument[:200]} if argument else found


def _argument(given: Any) -> str:
    """Return the most telling argument of a call of a tool."""
    if isinstance(given, Mapping):
        for key in ("command", "file_path", "path", "pattern", "url", "query", "description"):
            if isinstance(given.get(key), str):
                return str(given[key])
        return json.dumps(given, ensure_ascii=False)[:200] if given else ""
    return "" if given is None else str(given)


def moment(seconds: Any) -> str:
    """Return a time as Go reads it (RFC 3339)."""
    if not isinstance(seconds, (int, float)) or not seconds:
        return _ZERO
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
