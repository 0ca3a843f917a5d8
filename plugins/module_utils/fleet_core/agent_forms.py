# SPDX-License-Identifier: GPL-3.0-or-later
"""Agents, methods and pipelines as the S-expressions of gcluster, and the id that it gives them.

Its id covers the name and the pipeline but no method's body. Ours, AgentDefinition.id, covers everything.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .agents import AgentDefinition
from .errors import InvalidInput
from .names import describe
from .prompt_pipelines import IDENTIFIER, Pipeline, PipelineStep

PREFIX = "agent-"
_NAMED = {"\a": r"\a", "\b": r"\b", "\f": r"\f", "\n": r"\n", "\r": r"\r", "\t": r"\t", "\v": r"\v"}
_ESCAPES = {found[1]: sign for sign, found in _NAMED.items()} | {"\\": "\\", '"': '"'}
_TOKEN = re.compile(r'\s+|;[^\n]*|([()])|"((?:[^"\\\n]|\\.)*)"|([^\s()";]+)')
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{3})|(.))", re.DOTALL)
_DEEPEST = 50


@dataclass(frozen=True)
class Form:
    """A defagent form: a pipeline, or a body that is the prompt itself."""

    name: str
    pipeline: Pipeline | None
    body: str = ""


def quote(text: str) -> str:
    """Return text as Go's strconv.Quote writes it (https://pkg.go.dev/strconv#Quote)."""
    return '"' + "".join(_quoted(sign) for sign in text) + '"'


def _quoted(sign: str) -> str:
    if sign in '"\\':
        return f"\\{sign}"
    if sign in _NAMED:
        return _NAMED[sign]
    number = ord(sign)
    if sign.isprintable():
        return sign
    if number < 0x20 or number == 0x7F:
        return f"\\x{number:02x}"
    if 0xD800 <= number <= 0xDFFF:
        return "\\ufffd"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def method_form(name: str, parameters: Sequence[str], body: str) -> str:
    """Return the defmethod form of a prompt."""
    return f"(defmethod {name} ({' '.join(parameters)})\n  {quote(body)})"


def pipeline_form(name: str, parameters: Sequence[str], source: Pipeline) -> str:
    """Return the defpipeline form of a method whose body is a pipeline."""
    return f"(defpipeline {name} ({' '.join(parameters)})\n{_pipeline(source)})"


def agent_form(source: Form) -> str:
    """Return the defagent form."""
    inner = f"  {quote(source.body)}" if source.pipeline is None else _pipeline(source.pipeline)
    return f"(defagent {quote(source.name)}\n{inner})"


def _pipeline(source: Pipeline) -> str:
    head = f"  (pipeline {source.initial}" if source.initial else "  (pipeline"
    return "\n".join((head, *(f"    (step {quote(step.label)} {_action(step)})" for step in source.steps))) + ")"


def _action(step: PipelineStep) -> str:
    return f"({step.kind} {step.reference} {step.method})" if step.kind == "map" else f"({step.kind} {step.method})"


def form(definition: AgentDefinition) -> str:
    """Return the defagent form of a definition: the one it came with, or one of its steps.

    What gcluster has no words for (arguments, times) is left out.
    """
    return definition.legacy_form or agent_form(form_of(definition))


def form_of(definition: AgentDefinition) -> Form:
    """Return what the steps of a definition are in gcluster's words."""
    first = definition.pipeline[0]
    if len(definition.pipeline) == 1 and first.kind == "call" and first.method == f"{PREFIX}{definition.name}":
        return Form(definition.name, None, definition.method(first.method).body)
    steps = tuple(
        PipelineStep(step.label, step.kind, step.method, step.over or f"[{', '.join(step.items)}]")
        for step in definition.pipeline
    )
    return Form(definition.name, Pipeline("", steps))


def stored_form(text: str) -> str:
    """Return a form with the comment that gcluster keeps it with: the first 8 digits of its hash."""
    return f"; id={_sha256(text)[:8]}\n{text}\n"


def legacy_id(definition: AgentDefinition) -> str:
    """Return the id that gcluster gives an agent: SHA-256 of its stored form."""
    return _sha256(stored_form(form(definition)))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def read_form(text: str) -> Form:
    """Return what a defagent form says. Comments are skipped. Raises InvalidInput."""
    tokens = _tokens(text)
    found = _list(tokens, 0) if next(tokens, "") == "(" else None
    if found is None or next(tokens, None) is not None or len(found) != 3 or found[0] != "defagent":
        raise InvalidInput(f'agent form: expected (defagent "NAME" …), found {describe(text.strip())}')
    name, inner = found[1], found[2]
    if not isinstance(name, Text):
        raise InvalidInput(f"agent form: expected a name in quotes, found {describe(name)}")
    if isinstance(inner, Text):
        return Form(name.value, None, inner.value)
    if not isinstance(inner, list) or not inner or inner[0] != "pipeline":
        raise InvalidInput(f'agent form "{name.value}": expected (pipeline …) or a text, found {describe(inner)}')
    initial = inner[1] if len(inner) > 1 and isinstance(inner[1], str) else ""
    steps = tuple(_step(f'agent form "{name.value}"', item) for item in inner[2 if initial else 1 :])
    return Form(name.value, Pipeline(initial, steps))


@dataclass(frozen=True)
class Text:
    """A quoted text, as against a bare word."""

    value: str


def _step(where: str, item: object) -> PipelineStep:
    if isinstance(item, list) and len(item) == 3 and item[0] == "step" and isinstance(item[1], Text):
        action = item[2]
        if isinstance(action, list) and all(isinstance(word, str) for word in action):
            kind, words = (action[0] if action else ""), [str(word) for word in action[1:]]
            if kind in ("call", "loop") and len(words) == 1 and IDENTIFIER.fullmatch(words[0]):
                return PipelineStep(item[1].value, kind, words[0])
            if kind == "map" and len(words) > 1 and IDENTIFIER.fullmatch(words[-1]):
                reference = " ".join(words[:-1])
                inner = reference[1:-1].split(",") if reference[:1] + reference[-1:] == "[]" else []
                items = tuple(part.strip() for part in inner if part.strip())
                return PipelineStep(item[1].value, kind, words[-1], reference, items)
    raise InvalidInput(
        f'{where}: expected (step "LABEL" (call METHOD)), (loop METHOD) or (map LIST METHOD), found {describe(item)}'
    )


def _tokens(text: str) -> Iterator[str | Text]:
    position = 0
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None:
            line = text.count("\n", 0, position) + 1
            raise InvalidInput(f"agent form: line {line}: expected a closing quote")
        position = found.end()
        if found.group(1) or found.group(3):
            yield found.group(1) or found.group(3)
        elif found.group(2) is not None:
            yield Text(_ESCAPE.sub(_unescaped, found.group(2)))


def _unescaped(found: re.Match[str]) -> str:
    hexadecimal = found.group(1) or found.group(2) or found.group(3)
    if hexadecimal or found.group(4):
        number = int(hexadecimal, 16) if hexadecimal else int(found.group(4), 8)
        return "\ufffd" if number > 0x10FFFF or 0xD800 <= number <= 0xDFFF else chr(number)
    if found.group(5) not in _ESCAPES:
        raise InvalidInput(f'agent form: expected an escape of Go, found "\\{found.group(5)}"')
    return _ESCAPES[found.group(5)]


def _list(tokens: Iterator[str | Text], depth: int) -> list[object]:
    found: list[object] = []
    for token in tokens:
        if token == ")":
            return found
        if token == "(":
            if depth >= _DEEPEST:
                raise InvalidInput(f"agent form: expected at most {_DEEPEST} brackets in each other")
            found.append(_list(tokens, depth + 1))
        else:
            found.append(token)
    raise InvalidInput("agent form: expected a closing bracket at the end")
