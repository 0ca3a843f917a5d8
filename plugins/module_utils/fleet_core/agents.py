# SPDX-License-Identifier: GPL-3.0-or-later
"""Agents as they are declared: methods (prompts with parameters), a pipeline of steps, and how they are run."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from . import agent_settings as settings
from .agent_settings import (
    Backoff,
    CircuitBreaker,
    Completion,
    RunLimits,
    RunnerOptions,
    Schedule,
    Verification,
    Watchdog,
    Workspace,
)
from .errors import InvalidInput, NotFound
from .names import as_int, check_keys, check_name, describe, nearest

__all__ = [
    "RUNNERS",
    "AgentDefinition",
    "Backoff",
    "CircuitBreaker",
    "Completion",
    "Method",
    "RunLimits",
    "RunnerOptions",
    "Schedule",
    "Step",
    "Verification",
    "Watchdog",
    "Workspace",
    "agent_definition",
    "agent_definitions",
    "compare",
    "prompt",
    "render",
]

RUNNERS = ("claude", "codex", "opencode", "aider", "gemini", "qwen", "command")
SESSIONS = ("fresh", "resume")
KINDS = ("call", "map", "loop")
_STEP_KEYS = {
    "call": ("call", "label", "arguments"),
    "map": ("map", "label", "arguments", "over", "items"),
    "loop": ("loop", "label", "arguments", "times"),
}
_METHOD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,199}")
_LABEL_LENGTH = 200


@dataclass(frozen=True)
class Method:
    """A prompt. [parameter] in its body is replaced; other brackets stay."""

    name: str
    parameters: tuple[str, ...]
    body: str

    def to_dict(self) -> str | dict[str, Any]:
        """Return the body, or a mapping if there are parameters."""
        return {"parameters": list(self.parameters), "body": self.body} if self.parameters else self.body


@dataclass(frozen=True)
class Step:
    """One step of a pipeline. kind: call, map or loop. arguments: for the method's parameters, in their order.

    over: map: the label of an earlier step whose result is the list; items: a literal list instead.
    times: loop: iterations of this step; 0 means until completion or a limit.
    """

    label: str
    kind: str
    method: str
    arguments: tuple[str, ...] = ()
    over: str = ""
    items: tuple[str, ...] = ()
    times: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain data; what is at its default is left out."""
        data: dict[str, Any] = {self.kind: self.method}
        if self.label != self.method:
            data["label"] = self.label
        for key in ("arguments", "over", "items", "times"):
            value = getattr(self, key)
            if value:
                data[key] = settings.plain(value)
        return data


@dataclass(frozen=True)
class AgentDefinition:
    """An agent. runner: one of RUNNERS. command: shell text of the runner `command`; it reads the prompt on stdin.

    session: "resume" lets the iterations of a loop go on in one session of the runner, "fresh" begins each anew.
    env_files: files of NAME=value lines, read when a run starts, for values that must not be stored.
    legacy_form: the S-expression it came with, where that says more than the steps do (agent_forms).
    """

    name: str
    runner: str
    description: str = ""
    model: str = ""
    command: str = ""
    options: RunnerOptions = field(default_factory=RunnerOptions)
    session: str = "fresh"
    methods: tuple[Method, ...] = ()
    pipeline: tuple[Step, ...] = ()
    limits: RunLimits = field(default_factory=RunLimits)
    backoff: Backoff = field(default_factory=Backoff)
    circuit_breaker: CircuitBreaker = field(default_factory=CircuitBreaker)
    completion: Completion = field(default_factory=Completion)
    verification: Verification = field(default_factory=Verification)
    watchdog: Watchdog = field(default_factory=Watchdog)
    workspace: Workspace = field(default_factory=Workspace)
    env: Mapping[str, str] = field(default_factory=dict)
    env_files: tuple[str, ...] = ()
    schedule: Schedule = field(default_factory=Schedule)
    legacy_form: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that agent_definition reads back to an equal value; defaults are left out."""
        data: dict[str, Any] = {}
        for part in fields(self):
            value = getattr(self, part.name)
            if part.name == "methods":
                data["methods"] = {method.name: method.to_dict() for method in value}
            elif part.name == "pipeline":
                data["pipeline"] = [step.to_dict() for step in value]
            elif part.name in _SETTINGS:
                value = settings.changed_fields(value)
                if value:
                    data[part.name] = value
            elif part.name in ("name", "runner") or value not in ("", (), {}, "fresh"):
                data[part.name] = settings.plain(value)
        return data

    @property
    def id(self) -> str:
        """SHA-256 of the canonical JSON (sorted keys, no spaces, UTF-8) of to_dict, method bodies included."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def method(self, name: str) -> Method:
        """Return a method. Raises NotFound."""
        for method in self.methods:
            if method.name == name:
                return method
        hint = nearest(name, [method.name for method in self.methods])
        raise NotFound(f'agent "{self.name}": method "{name}": not defined{hint}')

    def step(self, label: str) -> Step:
        """Return a step of the pipeline. Raises NotFound."""
        for step in self.pipeline:
            if step.label == label:
                return step
        hint = nearest(label, [step.label for step in self.pipeline])
        raise NotFound(f'agent "{self.name}": step "{label}": not in the pipeline{hint}')


_SETTINGS = (
    "options",
    "limits",
    "backoff",
    "circuit_breaker",
    "completion",
    "verification",
    "watchdog",
    "workspace",
    "schedule",
)
KEYS = settings.keys_of(AgentDefinition)


def agent_definition(data: object, folder: str = "") -> AgentDefinition:
    """Return a validated definition from plain data. None stands for "not given".

    folder: what relative paths are relative to; without it they are refused. Raises InvalidInput that names the agent
    and the key.
    """
    return _definition(data, folder, {})


def agent_definitions(data: object, folder: str = "") -> tuple[AgentDefinition, ...]:
    """Return definitions from one mapping, a list, or {"agents": [...], "methods": {...}}.

    The shared methods are added to the agents whose steps name them and that have none of their own by that name.
    Raises InvalidInput, also for two agents of one name.
    """
    shared: dict[str, Method] = {}
    items: object = data
    if isinstance(data, Mapping) and "agents" in data:
        given = check_keys("agents file", data, ("agents", "methods"))
        items = given["agents"]
        shared = {method.name: method for method in _methods("agents file: methods", given.get("methods"))}
        if not isinstance(items, (list, tuple)):
            raise InvalidInput(f"agents file: agents: expected a list of definitions, found {describe(items)}")
    elif isinstance(data, Mapping):
        items = [data]
    if not isinstance(items, (list, tuple)):
        raise InvalidInput(f"agents file: expected one definition or a list of them, found {describe(items)}")
    found = [_definition(item, folder, shared) for item in items]
    check_names(found)
    return tuple(found)


def check_names(found: Iterable[AgentDefinition]) -> None:
    """Raise InvalidInput when two definitions have one name."""
    names: set[str] = set()
    for item in found:
        if item.name in names:
            raise InvalidInput(f'agent "{item.name}": stands twice')
        names.add(item.name)


def _definition(data: object, folder: str, shared: Mapping[str, Method]) -> AgentDefinition:
    if not isinstance(data, Mapping):
        raise InvalidInput(f"agent: expected a mapping with name, runner and methods, found {describe(data)}")
    name = check_name("agent", data.get("name"))
    where = f'agent "{name}"'
    check_keys(where, data, KEYS)
    given = {key: value for key, value in data.items() if value is not None}
    if "runner" not in given:
        raise InvalidInput(f"{where}: expected a runner ({', '.join(RUNNERS)}), found nothing")
    runner = settings.one_of(f"{where}: runner", given["runner"], RUNNERS)
    command = settings.text(f"{where}: command", given.get("command")).strip()
    if runner == "command" and not command:
        raise InvalidInput(f'{where}: expected a command for the runner "command", found nothing')
    if runner != "command" and command:
        raise InvalidInput(f'{where}: command: expected the runner "command" beside it, found "{runner}"')
    settings.without_password(f"{where}: command", command)
    own = _methods(f"{where}: methods", given.get("methods"))
    steps = _steps(where, given.get("pipeline"), own)
    names = {method.name for method in own}
    used = dict.fromkeys(step.method for step in steps if step.method in shared and step.method not in names)
    methods = (*own, *(shared[method] for method in used))
    if not methods and not shared:
        raise InvalidInput(f"{where}: methods: expected at least one, found none")
    found = AgentDefinition(
        name=name,
        runner=runner,
        description=settings.body(f"{where}: description", given.get("description")),
        model=settings.line(f"{where}: model", given.get("model")),
        command=command,
        options=settings.runner_options(f"{where}: options", given.get("options"), folder),
        session=settings.one_of(f"{where}: session", given.get("session"), SESSIONS),
        methods=methods,
        pipeline=steps,
        limits=settings.run_limits(f"{where}: limits", given.get("limits")),
        backoff=settings.backoff(f"{where}: backoff", given.get("backoff")),
        circuit_breaker=settings.circuit_breaker(f"{where}: circuit_breaker", given.get("circuit_breaker")),
        completion=settings.completion(f"{where}: completion", given.get("completion")),
        verification=settings.verification(f"{where}: verification", given.get("verification")),
        watchdog=settings.watchdog(f"{where}: watchdog", given.get("watchdog")),
        workspace=settings.workspace(f"{where}: workspace", given.get("workspace"), folder),
        env=settings.environment(f"{where}: env", given.get("env")),
        env_files=tuple(
            settings.anchored(f"{where}: env_files", settings.line(f"{where}: env_files", path), folder)
            for path in settings.texts(f"{where}: env_files", given.get("env_files"))
        ),
        schedule=settings.schedule(f"{where}: schedule", given.get("schedule")),
        legacy_form=_legacy_form(f"{where}: legacy_form", given.get("legacy_form"), name),
    )
    _check_steps(where, found, shared)
    return found


def _legacy_form(where: str, value: object, name: str) -> str:
    form = settings.text(where, value).strip()
    if form and not form.startswith(f'(defagent "{name}"\n'):
        raise InvalidInput(f'{where}: expected (defagent "{name}" …), found {describe(form)}')
    return form


def check_method_name(where: str, name: object) -> str:
    """Return the name of a method or a parameter."""
    if not isinstance(name, str) or not _METHOD.fullmatch(name):
        raise InvalidInput(
            f"{where}: expected a name of letters, digits, '_' and '-', not with '-' at its beginning, "
            f"found {describe(name)}"
        )
    return name


def method(where: str, name: object, data: object) -> Method:
    """Return a validated method from its body, or from a mapping with parameters and body."""
    name = check_method_name(where, name)
    where = f"{where}: {name}"
    if isinstance(data, str):
        data = {"body": data}
    given = check_keys(where, data, ("parameters", "body"))
    parameters = settings.texts(f"{where}: parameters", given.get("parameters"))
    for number, parameter in enumerate(parameters):
        check_method_name(f"{where}: parameters", parameter)
        if parameter in parameters[:number]:
            raise InvalidInput(f'{where}: parameters: "{parameter}" stands twice')
    body = settings.body(f"{where}: body", given.get("body"))
    if not body:
        raise InvalidInput(f"{where}: body: expected text, found {describe(given.get('body'))}")
    return Method(name, parameters, body)


def _methods(where: str, data: object) -> tuple[Method, ...]:
    if data is None:
        return ()
    if not isinstance(data, Mapping):
        raise InvalidInput(f"{where}: expected a mapping of names to bodies, found {describe(data)}")
    return tuple(method(where, name, item) for name, item in data.items())


def _steps(where: str, data: object, methods: Sequence[Method]) -> tuple[Step, ...]:
    if data is None:
        if len(methods) == 1:
            return (Step(methods[0].name, "call", methods[0].name),)
        raise InvalidInput(f"{where}: expected a pipeline, which only an agent with a single method may leave out")
    if not isinstance(data, (list, tuple)) or not data:
        raise InvalidInput(f"{where}: pipeline: expected a list of steps, found {describe(data)}")
    return tuple(_step(f"{where}: pipeline: step {number}", item) for number, item in enumerate(data, 1))


def _step(where: str, data: object) -> Step:
    if not isinstance(data, Mapping):
        raise InvalidInput(f"{where}: expected a mapping with call, map or loop, found {describe(data)}")
    kinds = [kind for kind in KINDS if data.get(kind) is not None]
    if not kinds:
        check_keys(where, data, [key for keys in _STEP_KEYS.values() for key in keys])
    if len(kinds) != 1:
        raise InvalidInput(f"{where}: expected one of call, map, loop, found {' and '.join(kinds) or 'none of them'}")
    kind = kinds[0]
    given = {key: value for key, value in check_keys(where, data, _STEP_KEYS[kind]).items() if value is not None}
    name = check_method_name(f"{where}: {kind}", given[kind])
    label = settings.line(f"{where}: label", given.get("label")) or name
    if len(label) > _LABEL_LENGTH:
        raise InvalidInput(f"{where}: label: expected at most {_LABEL_LENGTH} characters, found {len(label)}")
    items = settings.texts(f"{where}: items", given.get("items"))
    over = settings.line(f"{where}: over", given.get("over"))
    if kind == "map" and bool(items) == bool(over):
        found = "both" if items else "neither"
        raise InvalidInput(f'{where}: expected "over" (the label of an earlier step) or "items", found {found}')
    times = as_int(f"{where}: times", given.get("times", 0), 0, 10**9)
    return Step(label, kind, name, settings.texts(f"{where}: arguments", given.get("arguments")), over, items, times)


def _check_steps(where: str, agent: AgentDefinition, shared: Iterable[str]) -> None:
    """Raise InvalidInput for a reference that leads nowhere, a label twice, or arguments that do not fit."""
    methods = {item.name: item for item in agent.methods}
    labels = [step.label for step in agent.pipeline]
    ends = bool(agent.completion.phrase or agent.verification.command)
    for number, step in enumerate(agent.pipeline):
        here = f'{where}: step "{step.label}"'
        if step.label in labels[:number]:
            raise InvalidInput(f"{here}: stands twice; give the second one a label of its own")
        if step.method not in methods:
            raise InvalidInput(f'{here}: unknown method "{step.method}"{nearest(step.method, {*methods, *shared})}')
        if step.over and step.over not in labels[:number]:
            what = "stands later or here" if step.over in labels else "is no step"
            hint = nearest(step.over, labels[:number])
            raise InvalidInput(f'{here}: over: expected the label of an earlier step, but "{step.over}" {what}{hint}')
        _check_arguments(here, step, methods[step.method], first=number == 0)
        if step.kind == "loop" and not step.times and not ends and number + 1 < len(labels):
            raise InvalidInput(
                f'{here}: expected times, a completion or a verification, for without them step "{labels[number + 1]}" '
                "is never reached"
            )


def _check_arguments(where: str, step: Step, target: Method, first: bool) -> None:
    parameters = target.parameters
    filled = len(step.arguments) + (0 if first and step.kind != "map" else 1)
    if len(step.arguments) > len(parameters) or filled < len(parameters):
        names = f" ({', '.join(parameters)})" if parameters else ""
        noun = "argument" if len(parameters) == 1 else "arguments"
        given = "no arguments" if not step.arguments else f"{len(step.arguments)}"
        beside = ""
        if filled > len(step.arguments) and filled < len(parameters):
            beside = " beside the item" if step.kind == "map" else " beside the result of the step before"
        raise InvalidInput(
            f'{where}: method "{target.name}" takes {len(parameters)} {noun}{names}, found {given}{beside}'
        )


def prompt(method: Method, arguments: Sequence[str], previous: str = "") -> str:
    """Return a method's body with [parameter] replaced, in one pass: brackets in an argument stay.

    previous: the result before this one, or the item of a map. It fills the first parameter that has no argument; if
    all have one, it is added after a blank line. Parameters left are empty. Raises InvalidInput for too many arguments.
    """
    if len(arguments) > len(method.parameters):
        raise InvalidInput(
            f'method "{method.name}": expected at most {len(method.parameters)} arguments, found {len(arguments)}'
        )
    values = dict(zip(method.parameters, arguments))
    left = [name for name in method.parameters if name not in values]
    if left:
        values[left[0]] = previous
    text = method.body
    if method.parameters:
        names = "|".join(re.escape(name) for name in method.parameters)
        text = re.sub(rf"\[({names})\]", lambda found: values.get(found.group(1), ""), text)
    return text if left or not previous else f"{text}\n\n{previous}"


def render(definition: AgentDefinition) -> list[str]:
    """Return a definition as lines for people, texts of many lines as blocks."""
    return list(_lines(definition.to_dict(), ""))


def compare(before: AgentDefinition, after: AgentDefinition) -> list[str]:
    """Return the lines of a unified diff of two definitions, without a header; none when they are equal."""
    lines = list(difflib.unified_diff(render(before), render(after), lineterm="", n=2))
    return lines[2:]


def _lines(value: Mapping[str, Any] | list[Any], indent: str) -> Iterable[str]:
    pairs: Iterable[tuple[str, Any]]
    if isinstance(value, Mapping):
        pairs = ((f"{key}:", item) for key, item in value.items())
    else:
        pairs = (("-", item) for item in value)
    for head, item in pairs:
        if isinstance(item, (dict, list)) and item:
            inner = list(_lines(item, f"{indent}  "))
            if head == "-":
                yield f"{indent}- {inner[0].lstrip()}"
                yield from inner[1:]
            else:
                yield f"{indent}{head}"
                yield from inner
        elif isinstance(item, str) and "\n" in item:
            yield f"{indent}{head} |"
            yield from (f"{indent}  {line}".rstrip() for line in item.split("\n"))
        else:
            yield f"{indent}{head} {item if isinstance(item, str) and item else json.dumps(item, ensure_ascii=False)}"
