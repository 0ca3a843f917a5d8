# SPDX-License-Identifier: GPL-3.0-or-later
"""fleet apply, and the files that it reads: YAML of one or many documents, JSON, .p; all of them, or none."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from fleet_core import agents as core
from fleet_core import prompt_agents, prompt_files
from fleet_core.agents import AgentDefinition
from fleet_core.errors import FleetError, InvalidInput, NotFound
from fleet_core.names import describe, nearest

from .arguments import Timeout, seconds
from .output import printable
from .session import Session

SUFFIXES = (".yml", ".yaml", ".json", ".p")
_FIXED = ("name", "methods", "pipeline", "legacy_form")
_SETTABLE = tuple(key for key in core.KEYS if key not in _FIXED)
_LISTS = ("env_files", "arguments")
_MOST = 100_000  # values in one file, those counted again that an alias repeats


@dataclass(frozen=True)
class Source:
    """A definition and the file that it comes from."""

    definition: AgentDefinition
    file: str


Files = Annotated[
    list[str],
    typer.Argument(metavar="FILE...", help="YAML, JSON or .p; a folder of them; - reads standard input."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="A field of every agent in the files, such as runner=codex, model=opus, limits.cost=5 or env.MODE=dev.",
    ),
]


def apply(
    session: Session,
    files: Files,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Say what would be done, and do nothing.")] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Show the lines that differ.")] = False,
    start: Annotated[bool, typer.Option("--run", help="Start them, too.")] = False,
    assignments: Settings = None,
    timeout: Timeout = "",
) -> None:
    """Create or update agents from files.

    What is as declared stays as it is. All agents of all files are checked first: if one is wrong, none is changed.
    Nothing is ever removed by it; that is what `fleet agents delete` does. An agent that runs takes its new definition
    with its next iteration.
    """
    sources = read(files, overrides(assignments or ()), session.out.note)
    if not sources:
        raise InvalidInput(f"{', '.join(files)}: expected at least one agent, found none")
    before = _stored(session, [item.definition.name for item in sources])
    items = [item.definition.to_dict() for item in sources]
    state = "running" if start else "present"
    if dry_run:
        answer = session.call("agents.plan", items=items, state=state)
    else:
        answer = session.call("agents.apply", items=items, state=state, timeout=seconds(timeout))
    if session.as_json:
        session.out.data({**answer, "dry_run": dry_run})
        return
    lines = list(summary(answer["summary"], dry_run))
    for line in lines[:1]:
        session.out.line(line)
    signs = {line.split()[1]: line for line in lines[1:]}
    for item in sources:
        name = item.definition.name
        session.out.line(signs[name], style=_STYLES[signs[name].split()[0]])
        if diff:
            show_diff(session, before.get(name), item.definition, indent="    ")
    _afterwards(session, answer, [item.definition.name for item in sources], dry_run, start)


_STYLES = {"+": "green", "~": "yellow", "=": "dim"}


def summary(names: Mapping[str, Sequence[str]], dry_run: bool = False) -> Iterator[str]:
    """Yield what apply tells: a line of counts, then a line for each agent."""
    signs = {"created": "+", "updated": "~", "unchanged": "="}
    counts = ", ".join(f"{len(names.get(kind, ()))} {kind}" for kind in signs)
    total = sum(len(names.get(kind, ())) for kind in signs)
    yield f"{total} agent(s) {'would be ' if dry_run else ''}applied: {counts}"
    for kind, sign in signs.items():
        for name in names.get(kind, ()):
            yield f"  {sign} {name} ({kind})"


def _afterwards(session: Session, answer: Mapping[str, Any], names: list[str], dry_run: bool, start: bool) -> None:
    """Say what follows from it."""
    if dry_run:
        return
    views = {view["name"]: view for view in answer["agents"]}
    updated = [name for name in answer["summary"]["updated"] if views[name]["state"] in ("running", "waiting")]
    if updated:
        session.out.note(f"Running: {', '.join(updated)}; the next iteration takes the new definition.")
    if start:
        for name in names:
            session.out.line(f"{name} is {views[name]['state']}")
        session.out.note(f"Watch with `fleet agents history {names[0]} --follow`.")
        return
    idle = [name for name in names if views[name]["state"] not in ("running", "waiting", "paused", "starting")]
    if idle and answer["summary"]["created"]:
        session.out.note(f"Run with `fleet run {' '.join(idle)}`.")


def show_diff(session: Session, before: AgentDefinition | None, after: AgentDefinition, indent: str = "") -> None:
    """Write the lines that differ between two definitions; all lines of a new one."""
    lines = [f"+{line}" for line in core.render(after)] if before is None else core.compare(before, after)
    for line in lines:
        session.out.line(f"{indent}{printable(line)}", style={"+": "green", "-": "red", "@": "cyan"}.get(line[:1], ""))


def _stored(session: Session, names: Iterable[str]) -> dict[str, AgentDefinition]:
    return session.agents.definitions(names) if session.has_agents else {}


def overrides(assignments: Iterable[str]) -> dict[str, Any]:
    """Return definition fields from FIELD=VALUE texts; FIELD.KEY=VALUE sets one key of a mapping."""
    found: dict[str, Any] = {}
    for text in assignments:
        path, equals, value = text.partition("=")
        keys = path.split(".", 2 if path.startswith("options.config.") else 1)
        if not equals:
            raise InvalidInput(f'--set: expected FIELD=VALUE, found "{text}"')
        if keys[0] not in _SETTABLE:
            hint = nearest(keys[0], _SETTABLE) or f"; fields: {', '.join(_SETTABLE)}"
            raise InvalidInput(f'--set: unknown field "{keys[0]}"{hint}')
        inner = found
        for key in keys[:-1]:
            inner = inner.setdefault(key, {})
            if not isinstance(inner, dict):
                raise InvalidInput(f'--set: "{key}" is given whole and by key')
        inner[keys[-1]] = _value(keys[-1], value)
    return found


def _value(name: str, text: str) -> Any:
    if text[:1] in ("[", "{"):
        try:
            return json.loads(text)
        except ValueError as error:
            raise InvalidInput(f"--set: {name}: expected JSON: {error}") from None
    if name in _LISTS:
        return [part.strip() for part in text.split(",") if part.strip()]
    return text


def read(files: Sequence[str], settings: Mapping[str, Any] | None = None, note: Any = None) -> list[Source]:
    """Return the agents of files, in their order. settings: fields that are set in each of them.

    note: is told of lines that no agent uses. Raises InvalidInput that names the file, also for a name in two files.
    """
    found: dict[str, Source] = {}
    for file in _expanded(files):
        for definition in _definitions(file, settings or {}, note):
            name = definition.name
            if name in found:
                raise InvalidInput(f'agent "{name}": stands in {found[name].file} and in {file}')
            found[name] = Source(definition, file)
    return list(found.values())


def _expanded(files: Sequence[str]) -> Iterator[str]:
    """Yield the files, those of a folder in place of it."""
    for file in dict.fromkeys(files):
        if file == "-" or not os.path.isdir(file):
            yield file
            continue
        inside = sorted(os.path.join(file, name) for name in os.listdir(file) if name.endswith(SUFFIXES))
        if not inside:
            raise NotFound(f"{file}: expected files that end with {', '.join(SUFFIXES)}, found none")
        yield from inside


def _definitions(file: str, settings: Mapping[str, Any], note: Any) -> tuple[AgentDefinition, ...]:
    text = _text(file)
    folder = os.getcwd() if file == "-" else os.path.dirname(os.path.abspath(file))
    if file.endswith(prompt_files.SUFFIX) or (file == "-" and _is_prompt_file(text)):
        parsed = prompt_files.parse(text, "<stdin>" if file == "-" else file, _text)
        for sentence in prompt_agents.unused(parsed) if note else ():
            note(sentence)
        found = prompt_agents.agents(parsed, settings, os.getcwd())
        if not found:
            raise InvalidInput(f'{file}: expected a definition "agent-NAME:", found none')
        return found
    try:
        documents = list(_documents(file, text))
        return tuple(item for data in documents for item in core.agent_definitions(_laid_over(data, settings), folder))
    except FleetError as error:
        raise type(error)(f"{file}: {error}") from None


def _text(file: str) -> str:
    try:
        return sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except OSError as error:
        kind = NotFound if isinstance(error, FileNotFoundError) else InvalidInput
        raise kind(f"{file}: {error.strerror}") from None
    except ValueError:
        raise InvalidInput(f"{file}: expected UTF-8 text") from None


def _is_prompt_file(text: str) -> bool:
    """Tell a .p file from YAML, in which no line begins with a tab."""
    return bool(re.search(r"^\t|^@", text, re.MULTILINE))


def _laid_over(data: Any, settings: Mapping[str, Any]) -> Any:
    """Return the data of a file with fields set in each definition."""
    if isinstance(data, list):
        return [_laid_over(item, settings) for item in data]
    if not isinstance(data, dict):
        return data
    if "agents" in data:
        return {**data, "agents": _laid_over(data["agents"], settings)}
    result = dict(data)
    for key, value in settings.items():
        if isinstance(value, dict) and isinstance(result.get(key), dict):
            value = _laid_over(result[key], value)
        result[key] = value
    return result


def _documents(file: str, text: str) -> Iterator[Any]:
    if file.endswith(".json"):
        try:
            found = [json.loads(text, object_pairs_hook=_unique)]
        except RecursionError:
            raise InvalidInput("expected JSON that is less deep") from None
        except ValueError as error:
            raise InvalidInput(f"expected JSON: {error}") from None
    else:  # JSON is YAML, too
        from . import yaml_files

        found = yaml_files.documents(text)
    for data in found:
        _check_size(data)
        yield data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f'key "{key}" stands twice')
        found[key] = value
    return found


def _check_size(data: Any) -> None:
    """Raise InvalidInput for data without end, or for data that aliases make huge."""
    count, waiting = 0, [data]
    while waiting:
        value = waiting.pop()
        count += 1
        if count > _MOST:
            raise InvalidInput(f"expected at most {_MOST} values, aliases included")
        if isinstance(value, dict):
            waiting.extend(value.values())
        elif isinstance(value, (list, tuple, set)):
            waiting.extend(value)
        elif not isinstance(value, (str, int, float, bool, type(None))):
            raise InvalidInput(f"expected text, numbers, lists and mappings, found {describe(value)}; put it in quotes")
