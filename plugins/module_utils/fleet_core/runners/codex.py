# SPDX-License-Identifier: GPL-3.0-or-later
"""OpenAI Codex, as `codex exec --json`: https://developers.openai.com/codex/noninteractive"""

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
    plain,
    sequence,
    string,
)

_SYSTEM_PROMPT = "FLEET_SYSTEM_PROMPT_FILE"
_UNKNOWN_SESSION = "no rollout found"
_TALK = ("agent_message", "reasoning", "error")


class CodexRunner:
    name = "codex"
    steers = False
    resumes = True

    def invocation(self, turn: Turn) -> Invocation:
        argv = [turn.executable or "codex", "exec", "--json", "--skip-git-repo-check"]
        if turn.model:
            argv += ["--model", turn.model]
        if turn.permission_mode == "bypass":
            argv += ["--dangerously-bypass-approvals-and-sandbox"]
        elif turn.permission_mode:
            argv += ["--config", f"sandbox_mode={turn.permission_mode}"]
        if turn.system_prompt:
            argv += ["--config", f"model_instructions_file={{{_SYSTEM_PROMPT}}}"]
        for key, value in sorted(turn.config.items()):
            argv += ["--config", f"{key}={value}"]
        argv += turn.arguments
        if turn.session:
            argv += ["resume", turn.session]
        return Invocation(
            argv=(*argv, "-"),
            stdin=turn.prompt,
            files={_SYSTEM_PROMPT: turn.system_prompt} if turn.system_prompt else {},
        )

    def reader(self, turn: Turn) -> CodexReader:
        return CodexReader(turn)


class CodexReader:
    steers = False

    def __init__(self, turn: Turn) -> None:
        self._baseline = turn.baseline
        self._model = turn.model
        self._session = ""
        self._total = turn.baseline
        self._tally = Tally()
        self._result = ""
        self._error = ""
        self._completed = 0
        self._said = ""
        self._shown: set[str] = set()  # ids of the items whose beginning was told

    @property
    def idle(self) -> bool:
        return self._completed > 0

    def message(self, text: str, ident: int) -> str:
        raise NotImplementedError("codex takes no messages while it works")

    def feed(self, line: str) -> list[Event]:
        data = json_line(line)
        if data is None:
            self._said = line.strip() or self._said
            return []
        kind = string(data.get("type"))
        if kind == "thread.started":
            self._session = string(data.get("thread_id"))
            return [Event("session", "", {"session": self._session, "model": self._model, "steers": False})]
        if kind in ("item.started", "item.completed"):
            return self._item(mapping(data.get("item")), completed=kind == "item.completed")
        if kind == "turn.completed":
            self._completed += 1
            total = _usage(mapping(data.get("usage")))
            used, self._total = total.since(self._total), total
            return self._tally.settle(used)
        if kind in ("error", "turn.failed"):
            return self._failed(mapping(data.get("error")).get("message") or data.get("message"))
        return []

    def _failed(self, message: Any) -> list[Event]:
        said = string(message)
        inner = mapping((json_line(said) or {}).get("error"))  # the API's own error, as it came
        said = string(inner.get("message")) or said
        if said == self._error:  # `error`, and then `turn.failed` with the same
            return []
        self._error = said
        return [Event("error", plain(said))]

    def _item(self, item: Mapping[str, Any], completed: bool) -> list[Event]:
        kind, ident = string(item.get("type")), string(item.get("id"))
        if kind in _TALK:
            text = string(item.get("text")) or string(item.get("message"))
            if not completed or not text:
                return []
            if kind == "agent_message":
                self._result = text
            types = {"agent_message": "text", "reasoning": "thinking", "error": "error"}
            return [Event(types[kind], plain(text))]
        events = []
        if ident not in self._shown:
            self._shown.add(ident)
            name, given = _call(kind, item)
            events.append(Event("tool_use", name, {"id": ident, "name": name, "input": given}))
        if completed:
            failed = item.get("status") == "failed" or bool(item.get("error"))
            events.append(Event("tool_result", _told(item), {"id": ident, "is_error": failed}))
        return events

    def finish(self, exit_code: int | None, stderr: str, reason: str = "") -> Outcome:
        ok = not reason and exit_code == 0 and self._completed > 0 and not self._error
        error = ""
        if reason:
            error = ended_by_caller("codex", reason, stderr)
        elif not ok:
            reason = "session_unknown" if _UNKNOWN_SESSION in stderr else "failed"
            said = cut(self._error, 500)
            error = f"codex: {said}" if said else failure("codex", exit_code, stderr or self._said)
        return Outcome(
            ok=ok,
            reason=reason,
            error=error,
            session=self._session,
            result=cut(self._result),
            usage=self._tally.total,
            turns=self._completed,
            session_total=self._total,
        )


def _call(kind: str, item: Mapping[str, Any]) -> tuple[str, Any]:
    """Return the name of a tool and what it was given."""
    if kind == "command_execution":
        return "shell", {"command": string(item.get("command"))}
    if kind == "mcp_tool_call":
        return f"{string(item.get('server'))}.{string(item.get('tool'))}", item.get("arguments") or {}
    if kind == "file_change":
        return kind, {"changes": sequence(item.get("changes"))}
    known = ("id", "type", "status", "aggregated_output", "result", "error")
    return kind, {key: value for key, value in item.items() if key not in known}


def _told(item: Mapping[str, Any]) -> str:
    """Return the text of a tool's result."""
    error = mapping(item.get("error")).get("message")
    if error:
        return plain(error)
    output = item.get("aggregated_output")
    if output is not None:
        code = item.get("exit_code")
        return plain(output) + (f"\n[exit code {code}]" if code else "")
    content = [mapping(part) for part in sequence(mapping(item.get("result")).get("content"))]
    if content:
        return cut("\n".join(string(part.get("text")) for part in content))
    return string(item.get("status"))


def _usage(data: Mapping[str, Any]) -> Usage:
    """Codex counts what came from a cache, or went into it, among the input tokens."""
    read, write = count(data.get("cached_input_tokens")), count(data.get("cache_write_input_tokens"))
    return Usage(
        input_tokens=max(0, count(data.get("input_tokens")) - read - write),
        output_tokens=count(data.get("output_tokens")),
        cache_read_tokens=read,
        cache_write_tokens=write,
    )
