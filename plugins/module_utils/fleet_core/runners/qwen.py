# SPDX-License-Identifier: GPL-3.0-or-later
"""Qwen Code, which speaks the messages of Claude Code: https://qwenlm.github.io/qwen-code-docs/en/users/features/headless

It reports no cost, and its sum at the end counts the whole session.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..runner_events import Event, Invocation, Outcome, Turn
from .claude import MessageReader, message_usage
from .protocol import mapping, no_config, permission_mode, string

_SYSTEM_PROMPT = "QWEN_SYSTEM_MD"  # where Qwen Code looks for the path of one
_MAX_TURNS = 53  # its exit code
_UNKNOWN_SESSION = "No saved session found"


class QwenRunner:
    name = "qwen"
    steers = False
    resumes = True

    def invocation(self, turn: Turn) -> Invocation:
        no_config(self.name, turn)
        argv = [turn.executable or "qwen", "--output-format", "stream-json"]
        if turn.session:
            argv += ["--resume", turn.session]
        if turn.model:
            argv += ["--model", turn.model]
        if turn.permission_mode:
            argv += ["--approval-mode", permission_mode(turn, "yolo")]
        if turn.max_turns:
            argv += ["--max-session-turns", str(turn.max_turns)]
        return Invocation(
            argv=(*argv, *turn.arguments),
            env={"QWEN_CODE_SUPPRESS_YOLO_WARNING": "1"},
            stdin=turn.prompt,
            files={_SYSTEM_PROMPT: turn.system_prompt} if turn.system_prompt else {},
        )

    def reader(self, turn: Turn) -> QwenReader:
        return QwenReader(self.name, turn, steers=False)


class QwenReader(MessageReader):
    def _ended(self, data: Mapping[str, Any]) -> list[Event]:
        self._over = True
        self._result = data
        self._answer = string(data.get("result"))
        self._total = message_usage(mapping(data.get("usage")))
        self._turns = int(data["num_turns"]) if isinstance(data.get("num_turns"), int) else 0
        return self._tally.settle(self._total.since(self._baseline))

    def finish(self, exit_code: int | None, stderr: str, reason: str = "") -> Outcome:
        outcome = super().finish(exit_code, stderr, reason)
        if reason or outcome.ok:
            return outcome
        said = string(mapping(self._result.get("error")).get("message")).strip("[]")
        if said:
            outcome = replace(outcome, error=f"qwen: {said}")
        if exit_code == _MAX_TURNS:
            return replace(outcome, reason="max_turns")
        return replace(outcome, reason="session_unknown") if _UNKNOWN_SESSION in stderr else outcome
