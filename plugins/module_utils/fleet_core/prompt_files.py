# SPDX-License-Identifier: GPL-3.0-or-later
"""The .p language of gprompt: methods under a header, indented by tabs, with imports, pipelines and agents.

What is read here is turned into agents by prompt_agents. Errors name file, line and column.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from . import prompt_library
from .errors import FleetError, InvalidInput, NotFound
from .names import nearest
from .prompt_pipelines import IDENTIFIER, Misplaced, Pipeline, pipeline

if TYPE_CHECKING:
    from .agents import AgentDefinition

AGENT = "agent-"
SUFFIX = ".p"
Load = Callable[[str], str]
_HEADER = re.compile(r"([^():]*)(?:\((.*)\))?[ \t]*:")
_IMPORT = re.compile(r"@([^\s()@]+\.p)(?=\s|$)")
_CALL = re.compile(r"@([A-Za-z0-9_][A-Za-z0-9_-]*)(?![A-Za-z0-9_-]|\.[A-Za-z0-9])")
_DEEPEST = 50


@dataclass(frozen=True)
class Place:
    """Where something stands. line and column count from 1."""

    file: str
    line: int
    column: int = 1

    def error(self, message: str) -> InvalidInput:
        """Return the error for what is wrong here."""
        return InvalidInput(f"{self.file}:{self.line}:{self.column}: {message}")


@dataclass(frozen=True)
class PromptMethod:
    """A method. place: of its header. body: as it stands, without the tabs; inside: where it begins.

    pipeline: what the body is, if it is no prompt.
    """

    name: str
    parameters: tuple[str, ...]
    body: str
    place: Place
    inside: Place
    pipeline: Pipeline | None = None


@dataclass(frozen=True)
class Invocation:
    """@name(arguments), or @name with text after it. Quotes around an argument are kept."""

    name: str
    arguments: tuple[str, ...]
    place: Place
    trailing: str = ""


@dataclass(frozen=True)
class PlainText:
    """Text between invocations."""

    text: str
    place: Place


@dataclass(frozen=True)
class PromptFile:
    """name: the file. methods: its own, those imported and the library's, by name.

    agents: the names of its own methods that begin with "agent-". program: what stands outside methods.
    """

    name: str
    methods: Mapping[str, PromptMethod] = field(default_factory=dict)
    agents: tuple[str, ...] = ()
    program: tuple[Invocation | PlainText, ...] = ()


def parse(text: str, name: str = "<text>", load: Load | None = None) -> PromptFile:
    """Return what a .p file says.

    load: returns the text of an imported file; it is given the path, joined to the folder of the importing file.
    stdlib.p is ours if load finds no such file. Of two methods with one name the last one wins. Raises InvalidInput.
    """
    library = _Reader(None).read(prompt_library.TEXT, prompt_library.NAME)
    found = _Reader(load).read(text, name)
    return replace(found, methods={**library.methods, **found.methods})


def agents(parsed: PromptFile, base: Mapping[str, Any] | None = None, folder: str = "") -> tuple[AgentDefinition, ...]:
    """Return the agents of a file; base: further fields of each, such as runner (prompt_agents.agents)."""
    from . import prompt_agents

    return prompt_agents.agents(parsed, base, folder)


class _Reader:
    """One file and those that it imports, each read once."""

    def __init__(self, load: Load | None) -> None:
        self._load = load
        self._read: dict[str, PromptFile] = {}
        self._open: list[str] = []

    def read(self, text: str, name: str) -> PromptFile:
        lines = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")
        methods: dict[str, PromptMethod] = {}
        program: list[Invocation | PlainText] = []
        own: dict[str, None] = {}
        self._open.append(name)
        number = 0
        while number < len(lines):
            place = Place(name, number + 1)
            line = lines[number]
            number += 1
            if _is_blank_or_comment(line):
                continue
            if line[0].isspace():
                raise place.error(_stray(line))
            stripped = line.rstrip()
            if stripped.endswith(":") and not stripped.startswith("@"):
                body, first, number = _body(lines, number, name)
                method = _method(stripped, body, place, first)
                methods[method.name] = method
                own[method.name] = None
                continue
            for item in line_items(stripped, place):
                if isinstance(item, str):
                    methods.update(self._imported(item, place).methods)
                else:
                    program.append(item)
        self._open.pop()
        agents = tuple(found for found in own if found.startswith(AGENT) and methods[found].place.file == name)
        return PromptFile(name, methods, agents, tuple(program))

    def _imported(self, path: str, place: Place) -> PromptFile:
        wanted = posixpath.normpath(posixpath.join(posixpath.dirname(place.file), path))
        if wanted in self._open:
            circle = " -> ".join([*self._open[self._open.index(wanted) :], wanted])
            raise place.error(f"expected files that do not import each other in a circle, found {circle}")
        if len(self._open) > _DEEPEST:
            raise place.error(f"expected at most {_DEEPEST} imports in each other")
        if wanted not in self._read:
            self._read[wanted] = self.read(self._text(path, wanted, place), wanted)
        return self._read[wanted]

    def _text(self, path: str, wanted: str, place: Place) -> str:
        try:
            if self._load is None:
                raise NotFound(f'import "{path}": only files that lie in a folder can import others')
            return self._load(wanted)
        except NotFound as error:
            if path == prompt_library.NAME:
                return prompt_library.TEXT
            raise place.error(str(error)) from None
        except FleetError as error:
            raise place.error(str(error)) from None


def _is_blank_or_comment(line: str) -> bool:
    text = line.strip()
    return not text or text[0] == ";" or line[0] == "#"


def _stray(line: str) -> str:
    if line[0] == "\t":
        return "expected a method header above an indented line, such as `name:`"
    return "expected a tab or no indentation, found a space"


def _body(lines: list[str], number: int, file: str) -> tuple[list[str], int, int]:
    """Return the lines of a body without their tabs, the number of the first one, and where to go on."""
    body: list[str] = []
    first = gap = 0
    while number < len(lines):
        line = lines[number]
        if line[:1] == "\t":
            first = first or number + 1
            body.extend([""] * gap if body else [])
            body.append(line[1:])
            gap = 0
        elif not line.strip():
            gap += 1
        elif _is_blank_or_comment(line):
            pass  # a comment ends no body
        elif line[0].isspace():
            raise Place(file, number + 1).error("expected a tab at the beginning of a body's line, found a space")
        else:
            break
        number += 1
    return body, first, number


def _method(header: str, body: list[str], place: Place, first: int) -> PromptMethod:
    found = _HEADER.fullmatch(header)
    if not found or not IDENTIFIER.fullmatch(found.group(1).rstrip()):
        raise place.error(f'expected `name:` or `name(parameter, …):`, found "{_short(header)}"')
    name, inner = found.group(1).rstrip(), found.group(2)
    parameters: list[str] = []
    for part in inner.split(",") if inner and inner.strip() else []:
        parameter = part.strip()
        if not IDENTIFIER.fullmatch(parameter):
            raise place.error(f'method "{name}": expected names of letters, digits, "-" and "_", found "{parameter}"')
        if parameter in parameters:
            raise place.error(f'method "{name}": parameter "{parameter}" stands twice')
        parameters.append(parameter)
    text = "\n".join(body)
    if not text.strip():
        raise place.error(f'method "{name}": expected a body, indented by a tab, found nothing')
    try:
        inner_pipeline = pipeline(text)
    except Misplaced as error:
        line = text.count("\n", 0, error.at)
        column = error.at - (text.rfind("\n", 0, error.at) + 1) + 2  # the tab, and columns from 1
        raise Place(place.file, first + line, column).error(f'method "{name}": {error}') from None
    return PromptMethod(name, tuple(parameters), text, place, Place(place.file, first, 2), inner_pipeline)


def line_items(line: str, place: Place) -> Iterator[str | Invocation | PlainText]:
    """Yield what stands in a line outside methods: the path of an import, an invocation, text.

    @name(arguments) may stand anywhere; @name without brackets takes the rest of the line. An @ that begins neither,
    as in README@main or @README.md, is text.
    """
    position = start = 0
    while position < len(line):
        at = line.find("@", position)
        if at < 0:
            break
        before = line[at - 1] if at else " "
        found = _IMPORT.match(line, at) or _CALL.match(line, at)
        if found is None or not (before.isspace() or before in "([,;:"):
            position = at + 1
            continue
        text = line[start:at].strip()
        if text:
            yield PlainText(text, replace(place, column=place.column + start))
        here = replace(place, column=place.column + at)
        if found.re is _IMPORT:
            yield found.group(1)
            position = start = found.end()
        elif line[found.end() : found.end() + 1] == "(":
            arguments, position = _arguments(line, found.end() + 1, here)
            start = position
            yield Invocation(found.group(1), arguments, here)
        else:
            yield Invocation(found.group(1), (), here, line[found.end() :].strip())
            return
    text = line[start:].strip()
    if text:
        yield PlainText(text, replace(place, column=place.column + start))


def _arguments(line: str, position: int, place: Place) -> tuple[tuple[str, ...], int]:
    """Return the arguments up to the closing bracket, and where the line goes on. Quoted text may hold commas."""
    found: list[str] = []
    depth, begin, blank, quoted, at = 0, position, True, False, position
    while at < len(line):
        sign = line[at]
        if sign == '"' and (quoted or blank):
            quoted = not quoted
        elif quoted:
            pass
        elif sign == "(":
            depth += 1
        elif sign == ")" and depth:
            depth -= 1
        elif sign in "),":
            found.append(line[begin:at].strip())
            begin = at + 1
            if sign == ")":
                return (() if found == [""] else tuple(found)), at + 1
        blank = begin > at or (blank and sign.isspace())
        at += 1
    raise place.error(f'expected a closing bracket, found "{_short(line[position - 1 :])}"')


def unquoted(argument: str) -> str:
    """Return an argument without the quotes around it."""
    return argument[1:-1] if len(argument) > 1 and argument[0] == argument[-1] == '"' else argument


def unknown(name: str, known: Mapping[str, PromptMethod], place: Place) -> InvalidInput:
    """Return the error for a method that is not defined."""
    return place.error(f'method "{name}": not defined{nearest(name, known)}')


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
