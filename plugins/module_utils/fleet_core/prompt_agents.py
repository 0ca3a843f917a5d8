# SPDX-License-Identifier: GPL-3.0-or-later
"""Agents from .p files and from gcluster's forms: their pipelines become steps, their arguments fill parameters."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from .agent_forms import Form, agent_form, form_of, read_form
from .agents import AgentDefinition, Method, agent_definition, prompt
from .errors import InvalidInput
from .names import NAME, nearest
from .prompt_files import (
    AGENT,
    SUFFIX,
    Invocation,
    Place,
    PlainText,
    PromptFile,
    PromptMethod,
    line_items,
    unknown,
    unquoted,
)
from .prompt_pipelines import IDENTIFIER, Misplaced, Pipeline, PipelineStep, pipeline

_CALL = re.compile(r"@([A-Za-z0-9_][A-Za-z0-9_-]*)")
DEFAULT_RUNNER = "claude"


def agents(parsed: PromptFile, base: Mapping[str, Any] | None = None, folder: str = "") -> tuple[AgentDefinition, ...]:
    """Return the agents of a file: those that it names agent-NAME, in its order.

    A file that names none but invokes methods is one agent with the file's name. base: further fields of every agent,
    such as runner (by default claude), model, limits; folder: what relative paths in it are relative to. A line
    @agent-NAME(arguments) fills that agent's parameters. Raises InvalidInput with file, line and column.
    """
    fields = _Fields(base or {}, folder)
    calls = {node.name: node for node in parsed.program if isinstance(node, Invocation) and node.name in parsed.agents}
    found = []
    for name in parsed.agents:
        method = parsed.methods[name]
        call = calls.get(name)
        given = _bound(call, method, parsed.methods) if call else {}
        found.append(_agent(parsed, method, given, fields))
    if not parsed.agents and parsed.program:
        found.append(_program_agent(parsed, fields))
    return tuple(found)


def unused(parsed: PromptFile) -> tuple[str, ...]:
    """Return a sentence for each line outside methods that no agent uses, because the file names its agents."""
    if not parsed.agents:
        return ()
    return tuple(
        f"{node.place.file}:{node.place.line}: stands outside the agents of the file and is not used"
        for node in parsed.program
        if not isinstance(node, Invocation) or node.name not in parsed.agents
    )


def agent_from_form(
    text: str, bodies: Mapping[str, str], base: Mapping[str, Any] | None = None, name: str = "agent form"
) -> AgentDefinition:
    """Return the agent of a defagent form. bodies: of the methods that it names; a method's parameters are not known.

    Raises InvalidInput.
    """
    form = read_form(text)
    place = Place(name, 1)
    methods = {key: PromptMethod(key, (), body, place, place) for key, body in bodies.items()}
    if form.pipeline is None:
        steps = [{"call": f"{AGENT}{form.name}"}]
        plan = _Plan([Method(f"{AGENT}{form.name}", (), form.body)], steps)
    else:
        plan = _lower(replace(form.pipeline, initial=""), methods, {}, "", place)
    return _definition(place, form.name, form, plan, _Fields(base or {}))


@dataclass(frozen=True)
class _Plan:
    """Methods and steps, as plain data, of one agent."""

    methods: list[Method]
    steps: list[dict[str, Any]]


@dataclass(frozen=True)
class _Fields:
    """Further fields of an agent, and what relative paths in them are relative to."""

    base: Mapping[str, Any]
    folder: str = ""


def _agent(parsed: PromptFile, method: PromptMethod, given: Mapping[str, str], fields: _Fields) -> AgentDefinition:
    name = method.name[len(AGENT) :]
    if not NAME.fullmatch(name):
        raise method.place.error(f'expected a name after "{AGENT}", of letters, digits, "-" and "_", found "{name}"')
    missing = [parameter for parameter in method.parameters if parameter not in given]
    if missing:
        raise method.place.error(
            f'agent "{name}": nothing gives parameter "{missing[0]}"; add a line such as @{method.name}({missing[0]}=…)'
        )
    form = Form(name, method.pipeline, method.body)
    nodes = list(_body_items(method, parsed.methods)) if method.pipeline is None else []
    if method.pipeline is not None:
        plan = _lower(method.pipeline, parsed.methods, given, "", method.inside, method.parameters)
    elif nodes:
        plan = _program(nodes, parsed.methods, method.name)
    else:
        body = Method(method.name, method.parameters, method.body)
        step: dict[str, Any] = {"call": method.name}
        if given:
            step["arguments"] = [given[parameter] for parameter in method.parameters]
        plan = _Plan([body], [step])
    return _definition(method.place, name, form, plan, fields)


def _program_agent(parsed: PromptFile, fields: _Fields) -> AgentDefinition:
    place = parsed.program[0].place
    name = posixpath.basename(parsed.name)
    name = name[: -len(SUFFIX)] if name.endswith(SUFFIX) else name
    if not NAME.fullmatch(name):
        raise place.error(f'expected a definition "{AGENT}NAME:", or a file whose name can be an agent\'s')
    plan = _program(parsed.program, parsed.methods, f"{AGENT}{name}")
    return _definition(place, name, None, plan, fields)


def _definition(place: Place, name: str, form: Form | None, plan: _Plan, fields: _Fields) -> AgentDefinition:
    base = fields.base
    for key in ("name", "methods", "pipeline"):
        if key in base:
            raise InvalidInput(f'{place.file}: "{key}" comes from the file and cannot be given beside it')
    methods = {method.name: method.to_dict() for method in plan.methods}
    data = {"runner": DEFAULT_RUNNER, **base, "name": name, "methods": methods, "pipeline": plan.steps}
    try:
        found = agent_definition(data, fields.folder)
    except InvalidInput as error:
        raise place.error(str(error)) from None
    if form is not None and agent_form(form_of(found)) != agent_form(form):
        found = replace(found, legacy_form=agent_form(form))
    return found


def _body_items(method: PromptMethod, methods: Mapping[str, PromptMethod]) -> Iterator[Invocation | PlainText]:
    """Yield the items of an agent's body that invokes methods at the beginning of a line; nothing for a prompt."""
    lines = method.body.rstrip().split("\n")
    heads = [found.group(1) for found in (_CALL.match(line) for line in lines) if found]
    alone = len(lines) == 1 and re.fullmatch(r"@[\w-]+(\(.*\))?", lines[0])
    if not alone and not any(head in methods or head in ("loop", "map") for head in heads):
        return
    for number, line in enumerate(lines):
        place = replace(method.inside, line=method.inside.line + number)
        if line.strip():
            for item in line_items(line, place):
                yield PlainText(f"@{item}", place) if isinstance(item, str) else item


def _program(nodes: Iterable[Invocation | PlainText], methods: Mapping[str, PromptMethod], name: str) -> _Plan:
    """Return the plan of invocations and text: the pipeline that one of them invokes, or one prompt of all of them."""
    texts: list[str] = []
    chosen: tuple[Pipeline, dict[str, str], PromptMethod | None, Place] | None = None
    for node in nodes:
        if isinstance(node, PlainText):
            texts.append(node.text)
            continue
        found = _invoked_pipeline(node, methods)
        if found is None:
            texts.append(_expanded(node, methods))
        elif chosen is not None:
            raise node.place.error("expected one pipeline, found a second one")
        else:
            chosen = (*found, node.place)
            if node.trailing:
                texts.append(node.trailing)
    preamble = "\n".join(texts)
    if chosen is None:
        return _Plan([Method(name, (), preamble)], [{"call": name}])
    source, given, owner, where = chosen
    return _lower(source, methods, given, preamble, where, owner.parameters if owner else ())


def _invoked_pipeline(
    node: Invocation, methods: Mapping[str, PromptMethod]
) -> tuple[Pipeline, dict[str, str], PromptMethod | None] | None:
    if node.name in ("loop", "map") and node.name not in methods:
        try:
            found = pipeline(f"{node.name}({', '.join(node.arguments)})")
        except Misplaced as error:
            raise node.place.error(str(error)) from None
        return None if found is None else (found, {}, None)
    if node.name not in methods:
        raise unknown(node.name, methods, node.place)
    method = methods[node.name]
    return None if method.pipeline is None else (method.pipeline, _bound(node, method, methods), method)


def _bound(node: Invocation, method: PromptMethod, methods: Mapping[str, PromptMethod]) -> dict[str, str]:
    """Return the values of parameters: arguments by name or by position."""
    given: dict[str, str] = {}
    left = list(method.parameters)
    for argument in node.arguments:
        key, equals, value = (part.strip() for part in argument.partition("="))
        if equals and IDENTIFIER.fullmatch(key):
            if key not in method.parameters:
                hint = nearest(key, method.parameters) or '; put the argument in quotes if "=" belongs to it'
                raise node.place.error(f'method "{node.name}": unknown parameter "{key}"{hint}')
            name, value = key, unquoted(value)
        elif left:
            name, value = left[0], unquoted(argument)
        else:
            takes = f"takes {len(method.parameters)} ({', '.join(method.parameters)})" if method.parameters else "none"
            raise node.place.error(f'method "{node.name}" {takes}: expected no further argument, found "{argument}"')
        if name in given:
            raise node.place.error(f'method "{node.name}": parameter "{name}" is given twice')
        given[name] = value
        left.remove(name)
    return given


def _expanded(node: Invocation, methods: Mapping[str, PromptMethod]) -> str:
    method = methods[node.name]
    given = _bound(node, method, methods)
    missing = [name for name in method.parameters if name not in given]
    if missing:
        raise node.place.error(f'method "{node.name}": expected a value for "{missing[0]}", found none')
    plain = Method(method.name, method.parameters, method.body.strip())
    text = prompt(plain, [given[name] for name in method.parameters])
    return f"{text}\n{node.trailing}" if node.trailing else text


def _lower(
    source: Pipeline,
    methods: Mapping[str, PromptMethod],
    given: Mapping[str, str],
    preamble: str,
    place: Place,
    parameters: tuple[str, ...] = (),
) -> _Plan:
    """Return the steps of a pipeline whose parameters have these values. preamble: text before the first prompt."""
    steps = list(source.steps)
    values = dict(given)
    first_input = ""
    if source.initial in values:
        first_input = values[source.initial]
    elif source.initial in parameters:
        raise place.error(f'nothing gives parameter "{source.initial}", with which the pipeline begins')
    elif source.initial in methods:
        steps.insert(0, PipelineStep(source.initial, "call", source.initial))
    elif source.initial:
        hint = nearest(source.initial, [*parameters, *methods])
        raise place.error(f'expected a parameter or a method at the beginning, found "{source.initial}"{hint}')
    used: dict[str, Method] = {}
    plan: list[dict[str, Any]] = []
    labels: list[str] = []
    for number, step in enumerate(steps):
        if step.method not in methods:
            raise unknown(step.method, methods, place)
        target = methods[step.method]
        if target.pipeline is not None:
            raise place.error(f'step "{step.label}": expected a prompt, found the pipeline "{target.name}"')
        filled = [name for name in target.parameters if name in values]
        open_ones = [name for name in target.parameters if name not in values]
        for name in open_ones:
            if name in labels[:-1]:
                raise place.error(
                    f'step "{step.label}": parameter "{name}" is the result of an earlier step, '
                    "but only the step right before can fill one"
                )
        arguments = [values[name] for name in filled]
        body = target.body
        if number == 0 and first_input and source.initial not in target.parameters:
            if open_ones:
                arguments.append(first_input)
                filled.append(open_ones.pop(0))
            elif not any(source.initial in methods[item.method].parameters for item in steps if item.method in methods):
                body = f"{body.rstrip()}\n\n{first_input}"
        if number == 0 and preamble:
            body = f"{preamble}\n\n{body}"
        name = _method_name(target.name, body, target.body, steps[1:])
        used[name] = Method(name, (*filled, *open_ones), body)
        data: dict[str, Any] = {step.kind: name, "label": step.label}
        if arguments:
            data["arguments"] = arguments
        if step.kind == "map":
            data.update(_list(step, labels, values, place))
        plan.append(data)
        labels.append(step.label)
    return _Plan(list(used.values()), plan)


def _method_name(name: str, body: str, original: str, others: list[PipelineStep]) -> str:
    """Return the name of a method whose body was extended, another one if later steps use it as it was."""
    if body == original or all(step.method != name for step in others):
        return name
    return f"{name}-first"


def _list(step: PipelineStep, labels: list[str], values: Mapping[str, str], place: Place) -> dict[str, Any]:
    if step.items:
        return {"items": list(step.items)}
    if step.reference in labels:
        return {"over": step.reference}
    if step.reference in values:
        return {"items": [item.strip() for item in re.split(r"[\n,]", values[step.reference]) if item.strip()]}
    if labels:
        return {"over": labels[-1]}
    raise place.error(
        f'step "{step.label}": expected map([ITEM, …], {step.method}), for no step before it gives a list'
    )
