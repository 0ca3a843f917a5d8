# SPDX-License-Identifier: GPL-3.0-or-later
"""Pipelines as a .p file writes them: `input -> method -> label (method) -> map(list, method) -> loop(method)`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .errors import InvalidInput

IDENTIFIER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
_ARROW = " -> "
_CALL = re.compile(r"(loop|map)\((.*)\)")
_LABELED = re.compile(r"([^()]*?) \((.*)\)")
_BEGINS = re.compile(r"(?:loop|map) ?\(|[A-Za-z0-9_][A-Za-z0-9_-]* ->(?: |$)")


@dataclass(frozen=True)
class PipelineStep:
    """kind: call, map or loop. reference: map: what its list is called. items: map: a literal list instead."""

    label: str
    kind: str
    method: str
    reference: str = ""
    items: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pipeline:
    """initial: the parameter that is the first input, or an empty string."""

    initial: str
    steps: tuple[PipelineStep, ...]


class Misplaced(InvalidInput):
    """What is wrong in a text, and at which character of it (from 0)."""

    def __init__(self, at: int, message: str) -> None:
        super().__init__(message)
        self.at = at


def pipeline(body: str) -> Pipeline | None:
    """Return the pipeline that a method's body is, or None for a prompt.

    A body of one line that begins like a pipeline must be one, a longer one may be a prompt. Raises Misplaced.
    """
    text = body.strip()
    if not _BEGINS.match(text):
        return None
    begin = len(body) - len(body.lstrip())
    if "\n" not in text:
        return _parse(text, begin)
    try:
        return _parse(" ".join(line.strip() for line in text.split("\n")), begin)
    except Misplaced:
        return None


def _parse(text: str, at: int) -> Pipeline:
    parts = text.split(_ARROW)
    initial = ""
    if len(parts) > 1 and IDENTIFIER.fullmatch(parts[0].strip()):
        initial = parts[0].strip()
        at += len(parts[0]) + len(_ARROW)
        parts = parts[1:]
    steps = []
    for part in parts:
        steps.append(_step(part, at))
        at += len(part) + len(_ARROW)
    return Pipeline(initial, tuple(steps))


def _step(text: str, at: int) -> PipelineStep:
    at += len(text) - len(text.lstrip())
    text = text.strip()
    if not text:
        raise Misplaced(at, 'expected a step beside "->", found nothing')
    if IDENTIFIER.fullmatch(text):
        return PipelineStep(text, "call", text)
    if re.match(r"(loop|map) \(", text):
        raise Misplaced(at, f'expected "{text.split()[0]}(" without a space, found "{text}"')
    found = _CALL.fullmatch(text)
    if found:
        return _action("", found.group(1), found.group(2), at)
    found = _LABELED.fullmatch(text)
    if not found or not found.group(1).strip():
        raise Misplaced(at, f'expected METHOD, LABEL (METHOD), loop(METHOD) or map(LIST, METHOD), found "{text}"')
    label, inner = found.group(1).strip(), found.group(2).strip()
    at += text.index("(") + 1
    if IDENTIFIER.fullmatch(inner):
        return PipelineStep(label, "call", inner)
    found = _CALL.fullmatch(inner)
    if not found:
        raise Misplaced(at, f'expected METHOD, loop(METHOD) or map(LIST, METHOD) in the brackets, found "{inner}"')
    return _action(label, found.group(1), found.group(2), at)


def _action(label: str, kind: str, inner: str, at: int) -> PipelineStep:
    at += len(kind) + 1
    if kind == "loop":
        method = inner.strip()
        if not IDENTIFIER.fullmatch(method):
            raise Misplaced(at, f'expected the name of a method in loop(), found "{inner}"')
        return PipelineStep(label or method, "loop", method)
    first, comma, second = inner.rpartition(",")
    reference, method = first.strip(), second.strip()
    if not comma or not IDENTIFIER.fullmatch(method):
        raise Misplaced(at, f'expected map(LIST, METHOD), found "map({inner})"')
    if reference.startswith("[") and reference.endswith("]"):
        items = tuple(item.strip() for item in reference[1:-1].split(",") if item.strip())
        if not items:
            raise Misplaced(at, f'expected at least one item in the list, found "{reference}"')
        return PipelineStep(label or method, "map", method, reference, items)
    if not IDENTIFIER.fullmatch(reference):
        raise Misplaced(at, f'expected a label or [ITEM, ITEM] in map(), found "{reference}"')
    return PipelineStep(label or method, "map", method, reference)
