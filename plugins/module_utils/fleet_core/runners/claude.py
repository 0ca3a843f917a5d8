# SPDX-License-Identifier: GPL-3.0-or-later
"""Claude Code. Its stream of messages: https://docs.claude.com/en/docs/claude-code/sdk/sdk-headless

The first line of standard input is the prompt; later lines are read at the next tool boundary of the same turn, or
begin another turn if there is none. A line is confirmed by its replay, which bears the uuid that we gave it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..runner_events import Event, Invocation, Outcome, Turn, Usage, count, cut, dollars
from .protocol import (
    Tally,
    ended_by_caller,
    failure,
    json_line,
    mapping,
    no_config,
    permission_mode,
    plain,
    sequence,
    string,
)

_SYSTEM_PROMPT = "FLEET_SYSTEM_PROMPT_FILE"
_SUBTYPES = {"error_max_turns": "max_turns", "error_max_budget_usd": "budget"}
_UNKNOWN_SESSION = "No conversation found"
_UUID = "00000000-0000-4000-8000-{:012x}"  # of an injected message


class ClaudeRunner:
    name = "claude"
    steers = True
    resumes = True

    def invocation(self, turn: Turn) -> Invocation:
        no_config(self.name, turn)
        argv = [turn.executable or "claude", "--print", "--verbose", "--replay-user-messages"]
        argv += ["--input-format", "stream-json", "--output-format", "stream-json"]
        if turn.session:
            argv += ["--resume", turn.session]
        if turn.model:
            argv += ["--model", turn.model]
        if turn.permission_mode:
            argv += ["--permission-mode", permission_mode(turn, "bypassPermissions")]
        if turn.max_turns:
            argv += ["--max-turns", str(turn.max_turns)]
        if turn.max_cost:
            argv += ["--max-budget-usd", f"{max(turn.max_cost, 1e-6):.6f}"]
        if turn.system_prompt:
            argv += ["--system-prompt-file", f"{{{_SYSTEM_PROMPT}}}"]
        return Invocation(
            argv=(*argv, *turn.arguments),
            env={"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "DISABLE_AUTOUPDATER": "1"},
            stdin=user_line(turn.prompt),
            interactive=True,
            root_env={"IS_SANDBOX": "1"},
            files={_SYSTEM_PROMPT: turn.system_prompt} if turn.system_prompt else {},
        )

    def reader(self, turn: Turn) -> MessageReader:
        return MessageReader(self.name, turn)


def user_line(text: str, **more: str) -> str:
    """Return the line of standard input for a message."""
    data = {"type": "user", "message": {"role": "user", "content": text}, **more}
    return json.dumps(data, ensure_ascii=False) + "\n"


class MessageReader:
    """Reads the messages of Claude Code, which Qwen Code speaks too."""

    def __init__(self, name: str, turn: Turn, steers: bool = True) -> None:
        self.steers = steers
        self._name = name
        self._baseline = turn.baseline
        self._session = ""
        self._waiting: dict[str, int] = {}
        self._result: Mapping[str, Any] = {}
        self._answer = ""
        self._over = False
        self._turns = 0
        self._tally = Tally()
        self._total = Usage()
        self._said = ""

    @property
    def idle(self) -> bool:
        return self._over and not self._waiting

    def message(self, text: str, ident: int) -> str:
        uuid = _UUID.format(ident)
        self._waiting[uuid] = ident
        return user_line(text, uuid=uuid)

    def feed(self, line: str) -> list[Event]:
        data = json_line(line)
        if data is None:
            self._said = line.strip() or self._said
            return []
        kind = data.get("type")
        if kind == "system" and data.get("subtype") == "init":
            return self._begun(data)
        if kind == "assistant":
            return _of_subagent(data, self._assistant(mapping(data.get("message"))))
        if kind == "user":
            return self._user(data)
        if kind == "result":
            return self._ended(data)
        if kind == "command_lifecycle":
            return self._processed(data)
        return []

    def _begun(self, data: Mapping[str, Any]) -> list[Event]:
        session = string(data.get("session_id"))
        if session == self._session:  # said again for each message that begins another turn
            return []
        self._session = session
        tools = [tool for tool in sequence(data.get("tools")) if isinstance(tool, str)]
        detail = {"session": session, "model": string(data.get("model")), "tools": tools, "steers": self.steers}
        return [Event("session", "", detail)]

    def _assistant(self, message: Mapping[str, Any]) -> list[Event]:
        events = self._tally.piece(string(message.get("id")), message_usage(mapping(message.get("usage"))))
        for block in map(mapping, sequence(message.get("content"))):
            kind = block.get("type")
            if kind == "text" and block.get("text"):
                events.append(Event("text", plain(block["text"])))
            elif kind == "thinking" and block.get("thinking"):
                events.append(Event("thinking", plain(block["thinking"])))
            elif kind == "tool_use":
                name = string(block.get("name"))
                detail = {"id": string(block.get("id")), "name": name, "input": block.get("input", {})}
                events.append(Event("tool_use", name, detail))
        return events

    def _user(self, data: Mapping[str, Any]) -> list[Event]:
        content = mapping(data.get("message")).get("content")
        if data.get("isReplay"):
            ident = self._waiting.pop(string(data.get("uuid")), None)
            if ident is None:  # the prompt
                return []
            self._over = False
            return [Event("user", plain(content), {"injection": ident})]
        events = []
        for block in map(mapping, sequence(content)):
            if block.get("type") == "tool_result":
                detail = {"id": string(block.get("tool_use_id")), "is_error": bool(block.get("is_error"))}
                events.append(Event("tool_result", _text(block.get("content")), detail))
        return _of_subagent(data, events)

    def _processed(self, data: Mapping[str, Any]) -> list[Event]:
        """Take note of a message that was dealt with without being replayed, such as a command that is refused."""
        state = data.get("state")
        if state in ("queued", "started"):
            return []
        ident = self._waiting.pop(string(data.get("command_uuid")), None)
        return [Event("user", "", {"injection": ident})] if ident is not None and state == "completed" else []

    def _ended(self, data: Mapping[str, Any]) -> list[Event]:
        self._result, self._over = data, True
        self._session = string(data.get("session_id")) or self._session
        turns = count(data.get("num_turns"))
        self._turns += turns
        if turns or not self._answer:  # what Claude Code itself says to a command is no answer of the model
            self._answer = string(data.get("result")) or self._answer
        since = data.get("model_usage_since_last_result")
        if isinstance(since, dict):
            used = _model_usage(since)
        else:
            used = message_usage(mapping(data.get("usage")))
        # The sums hold the whole session, earlier runs of the program included.
        total = replace(_model_usage(mapping(data.get("modelUsage"))), cost=dollars(data.get("total_cost_usd")))
        if used.cost is None and total.cost is not None:
            used = replace(used, cost=total.since(self._baseline + self._tally.total).cost)
        self._total = total
        return self._tally.settle(used)

    def finish(self, exit_code: int | None, stderr: str, reason: str = "") -> Outcome:
        said = self._result
        errors = [error for error in sequence(said.get("errors")) if isinstance(error, str)]
        ok = not reason and exit_code == 0 and bool(said) and not said.get("is_error")
        error = ""
        if reason:
            error = ended_by_caller(self._name, reason, stderr)
        elif not ok:
            text = "; ".join(errors) or (string(said.get("result")) if said.get("is_error") else "")
            error = f"{self._name}: {cut(text, 500)}" if text else failure(self._name, exit_code, stderr or self._said)
            reason = _SUBTYPES.get(string(said.get("subtype")), "failed")
            if _UNKNOWN_SESSION in text or _UNKNOWN_SESSION in stderr:
                reason = "session_unknown"
        used = self._tally.total
        total = self._total if self._total.tokens else self._baseline + used
        return Outcome(
            ok=ok,
            reason=reason,
            error=error,
            session=self._session,
            result=cut(self._answer),
            usage=used,
            turns=self._turns,
            session_total=total,
        )


def _of_subagent(data: Mapping[str, Any], events: list[Event]) -> list[Event]:
    """Mark what an agent of the agent did with the id of the tool call that began it."""
    parent = data.get("parent_tool_use_id")
    if not parent:
        return events
    return [replace(event, detail={**event.detail, "parent": string(parent)}) for event in events]


def _text(content: Any) -> str:
    """Return the text of a tool's result: text, or a list of blocks."""
    if isinstance(content, str):
        return cut(content)
    blocks = [mapping(block) for block in sequence(content)]
    return cut("\n".join(string(block.get("text")) or f"[{string(block.get('type'))}]" for block in blocks))


def message_usage(data: Mapping[str, Any]) -> Usage:
    return Usage(
        input_tokens=count(data.get("input_tokens")),
        output_tokens=count(data.get("output_tokens")),
        cache_read_tokens=count(data.get("cache_read_input_tokens")),
        cache_write_tokens=count(data.get("cache_creation_input_tokens")),
    )


def _model_usage(models: Mapping[str, Any]) -> Usage:
    total = Usage()
    for data in map(mapping, models.values()):
        total = total + Usage(
            input_tokens=count(data.get("inputTokens")),
            output_tokens=count(data.get("outputTokens")),
            cache_read_tokens=count(data.get("cacheReadInputTokens")),
            cache_write_tokens=count(data.get("cacheCreationInputTokens")),
            cost=dollars(data.get("costUSD")),
        )
    return total
