# SPDX-License-Identifier: GPL-3.0-or-later
"""Gemini CLI: https://geminicli.com/docs/cli/headless"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..runner_events import Event, Invocation, Outcome, Turn, Usage, count, cut
from .protocol import (
    Tally,
    ended_by_caller,
    failure,
    json_line,
    mapping,
    no_config,
    permission_mode,
    plain,
    string,
)

_SYSTEM_PROMPT = "GEMINI_SYSTEM_MD"  # where Gemini CLI looks for the path of one
_MAX_TURNS = 53  # its exit code
_UNKNOWN_SESSION = "Error resuming session"


class GeminiRunner:
    name = "gemini"
    steers = False
    resumes = True

    def invocation(self, turn: Turn) -> Invocation:
        no_config(self.name, turn)
        # Without --skip-trust it runs no tool in a folder that nobody has declared trusted at a terminal.
        argv = [turn.executable or "gemini", "--output-format", "stream-json", "--skip-trust"]
        if turn.session:
            argv += ["--resume", turn.session]
        if turn.model:
            argv += ["--model", turn.model]
        if turn.permission_mode:
            argv += ["--approval-mode", permission_mode(turn, "yolo")]
        return Invocation(
            argv=(*argv, *turn.arguments),
            stdin=turn.prompt,
            files={_SYSTEM_PROMPT: turn.system_prompt} if turn.system_prompt else {},
        )

    def reader(self, turn: Turn) -> GeminiReader:
        return GeminiReader(turn)


class GeminiReader:
    steers = False

    def __init__(self, turn: Turn) -> None:
        self._baseline = turn.baseline
        self._session = ""
        self._texts: list[str] = []
        self._pending: list[str] = []
        self._turns = 0
        self._result: Mapping[str, Any] = {}
        self._tally = Tally()

    @property
    def idle(self) -> bool:
        return bool(self._result)

    def message(self, text: str, ident: int) -> str:
        raise NotImplementedError("gemini takes no messages while it works")

    def feed(self, line: str) -> list[Event]:
        data = json_line(line)
        kind = string(data.get("type")) if data is not None else ""
        if data is None or not kind:
            return []
        if kind == "message":
            if data.get("role") == "assistant":
                self._pending.append(string(data.get("content")))  # a piece of it
            return []
        events = self._flush()
        if kind == "init":
            self._session = string(data.get("session_id"))
            detail = {"session": self._session, "model": string(data.get("model")), "steers": False}
            events.append(Event("session", "", detail))
        elif kind == "tool_use":
            name = string(data.get("tool_name"))
            detail = {"id": string(data.get("tool_id")), "name": name, "input": data.get("parameters", {})}
            events.append(Event("tool_use", name, detail))
            self._texts = []
        elif kind == "tool_result":
            detail = {"id": string(data.get("tool_id")), "is_error": data.get("status") != "success"}
            said = data.get("output") or mapping(data.get("error")).get("message") or ""
            events.append(Event("tool_result", plain(said), detail))
        elif kind == "error":
            events.append(Event("error", plain(data.get("message", ""))))
        elif kind == "result":
            self._result = data
            events += self._tally.settle(_usage(mapping(data.get("stats"))))
        return events

    def _flush(self) -> list[Event]:
        """Return the text whose pieces have come."""
        text = "".join(self._pending)
        self._pending = []
        if not text:
            return []
        self._turns += 1
        self._texts.append(text)
        return [Event("text", plain(text))]

    def finish(self, exit_code: int | None, stderr: str, reason: str = "") -> Outcome:
        self._flush()
        ok = not reason and exit_code == 0 and self._result.get("status") == "success"
        error = ""
        if reason:
            error = ended_by_caller("gemini", reason, stderr)
        elif not ok:
            said = string(mapping(self._result.get("error")).get("message")).strip("[]")
            error = f"gemini: {cut(said, 500)}" if said else failure("gemini", exit_code, stderr)
            reason = "max_turns" if exit_code == _MAX_TURNS else "failed"
            if _UNKNOWN_SESSION in stderr:
                reason = "session_unknown"
        return Outcome(
            ok=ok,
            reason=reason,
            error=error,
            session=self._session,
            result=cut("\n".join(self._texts)),
            usage=self._tally.total,
            turns=self._turns,
            session_total=self._baseline + self._tally.total,
        )


def _usage(stats: Mapping[str, Any]) -> Usage:
    """input_tokens holds what came from the cache; what is in no other count are thoughts, which are output."""
    given, cached = count(stats.get("input_tokens")), count(stats.get("cached"))
    output = max(count(stats.get("output_tokens")), count(stats.get("total_tokens")) - given)
    return Usage(input_tokens=max(0, given - cached), output_tokens=output, cache_read_tokens=cached)
