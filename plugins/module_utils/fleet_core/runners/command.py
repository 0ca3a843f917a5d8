# SPDX-License-Identifier: GPL-3.0-or-later
"""The runner `command`: any program. Its protocol is described in docs/runners.md."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from typing import Any

from ..errors import InvalidInput
from ..names import describe, nearest
from ..runner_events import PROMPT_FILE, TEXT_LIMIT, Event, Invocation, Outcome, Turn, Usage, count, cut
from .protocol import ended_by_caller, failure, json_line, mapping, plain, string

_PLAIN_LINES, _PLAIN_CHARACTERS = 10_000, 1024 * 1024  # of plain text told as events in one turn
_FORMS = ("text", "json")


class CommandRunner:
    """Shell text that gets the prompt on standard input and in the file $FLEET_PROMPT_FILE."""

    name = "command"
    steers = True
    resumes = True

    def invocation(self, turn: Turn) -> Invocation:
        if not turn.command.strip():
            raise InvalidInput('runner "command": expected a command, found none')
        steers = _steers(turn.config)
        env = {"FLEET_SESSION": turn.session, "FLEET_MODEL": turn.model, "FLEET_SYSTEM_PROMPT": turn.system_prompt}
        return Invocation(
            argv=("/bin/sh", "-c", turn.command, "sh", *turn.arguments),
            env={name: value for name, value in env.items() if value},
            stdin=_user(turn.prompt) if steers else turn.prompt,
            interactive=steers,
            files={PROMPT_FILE: turn.prompt},
        )

    def reader(self, turn: Turn) -> CommandReader:
        return CommandReader(_steers(turn.config))


def _steers(config: Mapping[str, str]) -> bool:
    for key in config:
        if key != "stdin":
            raise InvalidInput(f'runner "command": config: unknown key "{key}"{nearest(key, ["stdin"])}')
    form = config.get("stdin", "text")
    if form not in _FORMS:
        raise InvalidInput(f'runner "command": config.stdin: expected text or json, found {describe(form)}')
    return form == "json"


def _user(text: str, **more: Any) -> str:
    return json.dumps({"type": "user", "text": text, **more}, ensure_ascii=False) + "\n"


class CommandReader:
    """Takes JSON objects of a known type as events, and every other line as text."""

    def __init__(self, steers: bool = False) -> None:
        self.steers = steers
        self._over = False
        self._waiting: set[int] = set()
        self._session = ""
        self._usage = Usage()
        self._texts: deque[str] = deque()
        self._kept = 0
        self._lines = 0
        self._characters = 0
        self._full = False
        self._result: Mapping[str, Any] | None = None

    @property
    def idle(self) -> bool:
        return self._over and not self._waiting

    def feed(self, line: str) -> list[Event]:
        data = json_line(line)
        handler = getattr(self, f"_on_{data.get('type')}", None) if data is not None else None
        if handler is None:
            return self._plain(line)
        events: list[Event] = handler(data)
        return events

    def _plain(self, line: str) -> list[Event]:
        self._keep(line)
        if self._full or not line.strip():
            return []
        self._lines += 1
        self._characters += len(line)
        self._full = self._lines > _PLAIN_LINES or self._characters > _PLAIN_CHARACTERS
        if self._full:
            return [Event("error", "the command prints too much: the rest of its plain text is not recorded")]
        return [Event("text", cut(line))]

    def _keep(self, text: str) -> None:
        """Remember text for the result: the last of it, if it is too much."""
        self._texts.append(text)
        self._kept += len(text) + 1
        while self._kept > 2 * TEXT_LIMIT and len(self._texts) > 1:
            self._kept -= len(self._texts.popleft()) + 1

    def _on_session(self, data: Mapping[str, Any]) -> list[Event]:
        self._session = string(data.get("session")) or self._session
        detail = {name: data[name] for name in ("session", "model", "tools") if name in data}
        return [Event("session", "", {**detail, "steers": self.steers})]

    def _on_text(self, data: Mapping[str, Any]) -> list[Event]:
        self._keep(string(data.get("text")))
        return [Event("text", plain(data.get("text", "")))]

    def _on_thinking(self, data: Mapping[str, Any]) -> list[Event]:
        return [Event("thinking", plain(data.get("text", "")))]

    def _on_tool_use(self, data: Mapping[str, Any]) -> list[Event]:
        detail = {"id": string(data.get("id")), "name": string(data.get("name")), "input": data.get("input", {})}
        return [Event("tool_use", string(data.get("name")), detail)]

    def _on_tool_result(self, data: Mapping[str, Any]) -> list[Event]:
        detail = {"id": string(data.get("id")), "is_error": bool(data.get("is_error"))}
        return [Event("tool_result", plain(data.get("text", "")), detail)]

    def _on_usage(self, data: Mapping[str, Any]) -> list[Event]:
        usage = Usage.from_dict(data)
        self._usage = self._usage + usage
        return [Event("usage", "", usage.to_dict())]

    def _on_user(self, data: Mapping[str, Any]) -> list[Event]:
        ident = data.get("injection")
        if not isinstance(ident, int) or ident not in self._waiting:
            return []
        self._waiting.discard(ident)
        self._over = False
        return [Event("user", plain(data.get("text", "")), {"injection": ident})]

    def _on_error(self, data: Mapping[str, Any]) -> list[Event]:
        return [Event("error", plain(data.get("text", "")))]

    def _on_result(self, data: Mapping[str, Any]) -> list[Event]:
        self._result, self._over = data, True
        return []

    def message(self, text: str, ident: int) -> str:
        self._waiting.add(ident)
        return _user(text, injection=ident)

    def finish(self, exit_code: int | None, stderr: str, reason: str = "") -> Outcome:
        said = mapping(self._result)
        ok = not reason and exit_code == 0 and said.get("ok", True) is not False
        error = ""
        if reason:
            error = ended_by_caller("command", reason, stderr)
        elif not ok:
            reason = string(said.get("reason"))
            reason = reason if reason in ("max_turns", "budget", "session_unknown") else "failed"
            error = string(said.get("error")) or failure("command", exit_code, stderr)
        return Outcome(
            ok=ok,
            reason=reason,
            error=error,
            session=string(said.get("session")) or self._session,
            result=cut(string(said.get("text")) or "\n".join(self._texts).strip("\n")),
            usage=self._usage,
            turns=count(said.get("turns")),
        )
