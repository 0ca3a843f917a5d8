# SPDX-License-Identifier: GPL-3.0-or-later
"""What an adapter of a coding tool must offer, and what readers of JSON lines have in common."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Protocol

from ..errors import InvalidInput
from ..runner_events import Event, Invocation, Outcome, Turn, Usage, cut

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_DEEPEST = 100  # objects and lists in each other that a line of output may hold


class Runner(Protocol):
    """A coding tool. steers: it can take messages while it works. resumes: it can go on with an earlier session."""

    @property
    def name(self) -> str: ...

    @property
    def steers(self) -> bool: ...

    @property
    def resumes(self) -> bool: ...

    def invocation(self, turn: Turn) -> Invocation:
        """Return how to run the tool; the prompt goes by standard input or a file wherever the tool can."""

    def reader(self, turn: Turn) -> Reader:
        """Return what understands the output of one run of the tool."""


class Reader(Protocol):
    """Understands the standard output of one run, line by line."""

    @property
    def steers(self) -> bool:
        """Whether this run takes messages."""

    @property
    def idle(self) -> bool:
        """Whether the turn is over and every message was answered: standard input may be closed."""

    def feed(self, line: str) -> list[Event]:
        """Return what one line of output tells. Never raises, whatever the line holds."""

    def message(self, text: str, ident: int) -> str:
        """Return the line of standard input that carries an injected message; it counts as unanswered from now on."""

    def finish(self, exit_code: int | None, stderr: str, reason: str = "") -> Outcome:
        """Return how the run ended. exit_code: None when it was killed or never began.

        reason: the caller's own, when it ended the run itself: timeout, interrupted or not_found.
        """


class Tally:
    """Adds up usage that a tool tells piece by piece while it works, and as a sum at the end."""

    def __init__(self) -> None:
        self._settled = Usage()
        self._pieces: dict[str, Usage] = {}

    @property
    def total(self) -> Usage:
        return sum(self._pieces.values(), self._settled)

    def piece(self, ident: str, usage: Usage) -> list[Event]:
        """Note what one request has used so far; the tool may say it several times. Returns an event if it is news."""
        before = self._pieces.get(ident, Usage())
        news = usage.minus(before)
        if not news.tokens and not news.cost:
            return []
        self._pieces[ident] = before + news
        return [Event("usage", "", news.to_dict())]

    def settle(self, usage: Usage) -> list[Event]:
        """Take a sum in place of the pieces since the last one. Returns an event for what the pieces did not tell."""
        told = sum(self._pieces.values(), Usage())
        self._pieces = {}
        self._settled = self._settled + usage
        news = usage.minus(told)
        return [Event("usage", "", news.to_dict())] if news.tokens or news.cost else []


def json_line(line: str) -> Mapping[str, Any] | None:
    """Return the object that a line holds, or None if it holds something else, or more levels than anybody can use."""
    line = line.strip()
    if not line.startswith("{"):
        return None
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(data, dict) or (line.count("{") + line.count("[") > _DEEPEST and _too_deep(data)):
        return None
    return data


def _too_deep(data: Any) -> bool:
    level = [data]
    for _depth in range(_DEEPEST):
        values = [item.values() if isinstance(item, dict) else item for item in level]
        level = [item for items in values for item in items if isinstance(item, (dict, list))]
        if not level:
            return False
    return True


def mapping(value: Any) -> Mapping[str, Any]:
    """Return the value if it is a mapping, else an empty one: output of tools is not to be trusted."""
    return value if isinstance(value, dict) else {}


def sequence(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def string(value: Any) -> str:
    return value if isinstance(value, str) else ""


def plain(value: Any) -> str:
    """Return text of any value, cut to what an event may hold."""
    return cut(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def last_line(text: str) -> str:
    """Return the last line that begins with "Error", or else says anything; 500 characters at most."""
    lines = [line.strip()[:500] for line in _COLOURS.sub("", text).splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")]
    return (errors or lines or [""])[-1]


def ended_by_caller(name: str, reason: str, stderr: str) -> str:
    """Return the sentence for a run that the caller ended."""
    if reason == "timeout":
        return f"{name}: did not end within its time and was killed"
    if reason == "interrupted":
        return f"{name}: was interrupted"
    return last_line(stderr) or f"{name}: {reason}"


def failure(name: str, exit_code: int | None, stderr: str) -> str:
    """Return the sentence for a run that failed by itself."""
    how = "was killed" if exit_code is None else f"exit code {exit_code}"
    if exit_code is not None and exit_code < 0:
        how = f"ended by signal {-exit_code}"
    said = last_line(stderr)
    return f"{name}: {how}" + (f": {said}" if said else "")


def permission_mode(turn: Turn, bypass: str) -> str:
    """Return the tool's own word for a permission mode; "bypass" is everyone's word for "ask nothing"."""
    return bypass if turn.permission_mode == "bypass" else turn.permission_mode


def no_config(name: str, turn: Turn) -> None:
    """Raise InvalidInput if a turn holds settings for a tool that takes none this way."""
    if turn.config:
        key = next(iter(turn.config))
        raise InvalidInput(f'runner "{name}": config "{key}": this tool takes no config; give it arguments')


def with_system_prompt(turn: Turn) -> str:
    """Return the prompt of a tool that has no place for a system prompt: below it."""
    return f"{turn.system_prompt}\n\n{turn.prompt}" if turn.system_prompt else turn.prompt
