# SPDX-License-Identifier: GPL-3.0-or-later
"""opencode, as `opencode run --format json`: https://opencode.ai/docs/cli/#run"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..runner_events import Event, Invocation, Outcome, Turn, Usage, count, cut, dollars
from .protocol import (
    Tally,
    ended_by_caller,
    failure,
    json_line,
    mapping,
    no_config,
    plain,
    string,
    with_system_prompt,
)

_UNKNOWN_SESSION = "Session not found"


class OpencodeRunner:
    name = "opencode"
    steers = False
    resumes = True

    def invocation(self, turn: Turn) -> Invocation:
        no_config(self.name, turn)
        argv = [turn.executable or "opencode", "run", "--format", "json"]
        if turn.session:
            argv += ["--session", turn.session]
        if turn.model:
            argv += ["--model", turn.model]
        if turn.permission_mode:  # its modes are agents: build, plan
            argv += ["--auto"] if turn.permission_mode == "bypass" else ["--agent", turn.permission_mode]
        return Invocation(
            argv=(*argv, *turn.arguments),
            env={"OPENCODE_DISABLE_AUTOUPDATE": "1"},
            stdin=with_system_prompt(turn),
        )

    def reader(self, turn: Turn) -> OpencodeReader:
        return OpencodeReader(turn)


class OpencodeReader:
    steers = False
    idle = False

    def __init__(self, turn: Turn) -> None:
        self._baseline = turn.baseline
        self._model = turn.model
        self._session = ""
        self._texts: list[str] = []
        self._error = ""
        self._steps = 0
        self._finished = False
        self._tally = Tally()

    def message(self, text: str, ident: int) -> str:
        raise NotImplementedError("opencode takes no messages while it works")

    def feed(self, line: str) -> list[Event]:
        data = json_line(line)
        if data is None:
            return []
        events = []
        session = string(data.get("sessionID"))
        if session and not self._session:
            self._session = session
            events.append(Event("session", "", {"session": session, "model": self._model, "steers": False}))
        part = mapping(data.get("part"))
        kind = data.get("type")
        if kind == "step_start":
            self._texts = []
        elif kind == "text":
            self._texts.append(string(part.get("text")))
            events.append(Event("text", plain(part.get("text", ""))))
        elif kind == "reasoning":
            events.append(Event("thinking", plain(part.get("text", ""))))
        elif kind == "tool_use":
            events += _tool(part)
        elif kind == "step_finish":
            self._steps += 1
            self._finished = part.get("reason") != "tool-calls"
            events += self._tally.piece(string(part.get("id")), _usage(part))
        elif kind == "error":
            error = mapping(data.get("error"))
            self._error = string(mapping(error.get("data")).get("message")) or string(error.get("name"))
            events.append(Event("error", plain(self._error)))
        return events

    def finish(self, exit_code: int | None, stderr: str, reason: str = "") -> Outcome:
        ok = not reason and exit_code == 0 and self._finished and not self._error
        error = ""
        if reason:
            error = ended_by_caller("opencode", reason, stderr)
        elif not ok:
            error = f"opencode: {cut(self._error, 500)}" if self._error else failure("opencode", exit_code, stderr)
            reason = "session_unknown" if _UNKNOWN_SESSION in stderr else "failed"
        return Outcome(
            ok=ok,
            reason=reason,
            error=error,
            session=self._session,
            result=cut("\n".join(self._texts)),
            usage=self._tally.total,
            turns=self._steps,
            session_total=self._baseline + self._tally.total,
        )


def _tool(part: Mapping[str, Any]) -> list[Event]:
    """Return the call of a tool and its result, which opencode tells together."""
    name, ident, state = string(part.get("tool")), string(part.get("callID")), mapping(part.get("state"))
    failed = state.get("status") == "error"
    code = mapping(state.get("metadata")).get("exit")
    said = plain(state.get("error" if failed else "output", ""))
    if isinstance(code, int) and code:
        said += f"\n[exit code {code}]"
    return [
        Event("tool_use", name, {"id": ident, "name": name, "input": state.get("input", {})}),
        Event("tool_result", said, {"id": ident, "is_error": failed or bool(code)}),
    ]


def _usage(part: Mapping[str, Any]) -> Usage:
    tokens = mapping(part.get("tokens"))
    cache = mapping(tokens.get("cache"))
    return Usage(
        input_tokens=count(tokens.get("input")),
        output_tokens=count(tokens.get("output")) + count(tokens.get("reasoning")),
        cache_read_tokens=count(cache.get("read")),
        cache_write_tokens=count(cache.get("write")),
        cost=dollars(part.get("cost")),
    )
