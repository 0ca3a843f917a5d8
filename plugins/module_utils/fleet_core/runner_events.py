# SPDX-License-Identifier: GPL-3.0-or-later
"""One turn of a coding tool, in words that fit every tool: what it is asked, what it tells, how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

EVENT_TYPES = (*("session", "text", "thinking", "tool_use", "tool_result", "usage", "user", "error", "end"),)
# Why a turn ended badly; "" is success.
REASONS = ("", "max_turns", "budget", "session_unknown", "timeout", "interrupted", "failed", "not_found")
_COUNTS = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")
TEXT_LIMIT = 64 * 1024  # characters of one event's text, and of a result


def cut(text: str, limit: int = TEXT_LIMIT) -> str:
    """Return a text of about `limit` characters at most: its head and its tail, and how much lies between."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"


@dataclass(frozen=True)
class Usage:
    """Tokens used. input_tokens: without those read from or written to a cache. cost: USD; None where not reported."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    cost: float | None = None

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.output_tokens + self.cache_read_tokens + self.cache_write_tokens

    def __add__(self, other: Usage) -> Usage:
        cost = None if self.cost is None and other.cost is None else (self.cost or 0.0) + (other.cost or 0.0)
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cache_read_tokens + other.cache_read_tokens,
            self.cache_write_tokens + other.cache_write_tokens,
            cost,
        )

    def since(self, baseline: Usage) -> Usage:
        """Return what a sum shows on top of an earlier one; all of it, if the tool has begun to count anew."""
        anew = self.tokens < baseline.tokens or (self.cost or 0.0) < (baseline.cost or 0.0) - 1e-9
        return self if anew else self.minus(baseline)

    def minus(self, other: Usage) -> Usage:
        """Return what came on top of `other`, in no count less than nothing."""
        cost = None if self.cost is None else max(0.0, self.cost - (other.cost or 0.0))
        return Usage(
            max(0, self.input_tokens - other.input_tokens),
            max(0, self.output_tokens - other.output_tokens),
            max(0, self.cache_read_tokens - other.cache_read_tokens),
            max(0, self.cache_write_tokens - other.cache_write_tokens),
            cost,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the plain form; counts of zero and an unknown cost are left out."""
        found: dict[str, Any] = {name: count for name, count in zip(_COUNTS, self.counts) if count}
        return found if self.cost is None else {**found, "cost": self.cost}

    @property
    def counts(self) -> tuple[int, int, int, int]:
        return self.input_tokens, self.output_tokens, self.cache_read_tokens, self.cache_write_tokens

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Usage:
        """Return the usage of a plain form; what is missing, or no number, counts as nothing."""
        counts: dict[str, Any] = {name: count(data.get(name)) for name in _COUNTS}
        return cls(**counts, cost=dollars(data.get("cost")))


def count(value: Any) -> int:
    """Return a number of things that a tool told; what is none counts as zero. Tools are not to be trusted."""
    return int(value) if isinstance(value, (int, float)) and 0 <= value < 1e15 else 0


def dollars(value: Any) -> float | None:
    """Return a cost that a tool told, or None if it is none."""
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e9
    return float(value) if fits else None


def session_name(told: str) -> str:
    """Return a session that a tool told if it can be handed back to it as an argument, or nothing.

    One that begins with a dash would be taken for an option.
    """
    return told if told.isprintable() and len(told) <= 500 and not told.startswith("-") else ""


@dataclass(frozen=True)
class Event:
    """Something that a tool told while it worked. type: one of EVENT_TYPES.

    detail: session {session, model, tools, steers}; tool_use {id, name, input}; tool_result {id, is_error};
    usage: a Usage in its plain form, what came on top of the last one; user {injection}: the tool has read an injected
    message; end {ok, reason}. What a subagent did bears {parent}, the id of the tool call that began it.
    """

    type: str
    text: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Turn:
    """What a tool is asked. session: the one to go on with; "" begins one. max_cost: USD. 0 is no limit.

    permission_mode: in the tool's own words, or "bypass" for "ask nothing", which all understand.
    command: the shell text of the runner `command`. baseline: what the session had used before this turn.
    """

    prompt: str
    session: str = ""
    model: str = ""
    system_prompt: str = ""
    permission_mode: str = ""
    max_turns: int = 0
    max_cost: float = 0.0
    arguments: tuple[str, ...] = ()
    config: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    executable: str = ""
    baseline: Usage = Usage()


PROMPT_FILE = "FLEET_PROMPT_FILE"


@dataclass(frozen=True)
class Invocation:
    """How to run a tool for one turn.

    argv: its first word is looked up as an executable; "{NAME}" in a word is replaced by the path of the file NAME.
    root_env: added to env for root. files: texts to be written to private files for as long as the tool runs, by the
    variable that holds the path. interactive: standard input stays open for injected messages.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    stdin: str | None = None
    interactive: bool = False
    root_env: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How a turn ended. reason: one of REASONS. error: one sentence. usage: of this turn alone.

    session_total: what the session has used so far, which is the baseline of its next turn.
    """

    ok: bool
    reason: str = ""
    error: str = ""
    session: str = ""
    result: str = ""
    usage: Usage = Usage()
    turns: int = 0
    session_total: Usage = Usage()
