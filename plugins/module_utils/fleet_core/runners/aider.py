# SPDX-License-Identifier: GPL-3.0-or-later
"""aider, as one message without a terminal: https://aider.chat/docs/scripting.html

It prints text only, and ends with exit code 0 even when the model could not be reached.
"""

from __future__ import annotations

import re

from ..errors import InvalidInput
from ..runner_events import PROMPT_FILE, Event, Invocation, Outcome, Turn, Usage, cut
from .protocol import Tally, ended_by_caller, failure, no_config, plain, with_system_prompt

_QUIET = (
    *("--yes-always", "--no-stream", "--no-pretty", "--no-fancy-input", "--no-check-update", "--no-show-release-notes"),
    *("--no-show-model-warnings", "--no-suggest-shell-commands", "--no-detect-urls"),
)
# The model's own words may look like these lines, so numbers have a length and lines of usage as well.
_TOKENS = re.compile(r"Tokens: (.{1,200}?)\.(?: Cost: \$(\d{1,9}(?:\.\d{0,9})?) message)?(?:,|$)")
_COUNT = re.compile(r"\b(\d{1,12}(?:\.\d{1,9})?)([kM]?) (sent|received|cache write|cache hit)")
_ERROR = re.compile(r"litellm\.\w+: .+|.*LLM did not conform to the edit format.*")
_EDIT = re.compile(r"Applied edit to (.+)")
_COMMIT = re.compile(r"Commit [0-9a-f]{7,} ")
_SCALE = {"": 1, "k": 1000, "M": 1_000_000}


class AiderRunner:
    name = "aider"
    steers = False
    resumes = False

    def invocation(self, turn: Turn) -> Invocation:
        no_config(self.name, turn)
        if turn.permission_mode not in ("", "bypass"):
            raise InvalidInput(
                f'runner "aider": permission mode "{turn.permission_mode}": expected bypass or none, it never asks'
            )
        argv = [turn.executable or "aider", *_QUIET, "--message-file", f"{{{PROMPT_FILE}}}"]
        if turn.model:
            argv += ["--model", turn.model]
        return Invocation(
            argv=(*argv, *turn.arguments),
            env={"AIDER_ANALYTICS": "false"},
            stdin="",
            files={PROMPT_FILE: with_system_prompt(turn)},
        )

    def reader(self, turn: Turn) -> AiderReader:
        return AiderReader()


class AiderReader:
    steers = False
    idle = False

    def __init__(self) -> None:
        self._begun = False  # the lines about itself are over
        self._lines: list[str] = []
        self._result = ""
        self._error = ""
        self._replies = 0
        self._edits = 0
        self._tally = Tally()

    def message(self, text: str, ident: int) -> str:
        raise NotImplementedError("aider takes no messages while it works")

    def feed(self, line: str) -> list[Event]:
        if not self._begun:
            self._begun = line.startswith("Repo-map:")
            return []
        told = _TOKENS.match(line)
        if told is not None:
            self._replies += 1
            self._error = ""
            self._result = "\n".join(self._lines).strip()
            return [*self._flush(), *self._tally.piece(str(self._replies), _usage(told))]
        edit = _EDIT.match(line)
        if edit is not None:
            self._edits += 1
            ident = f"edit-{self._edits}"
            detail = {"id": ident, "name": "edit", "input": {"file": edit[1]}}
            result = Event("tool_result", line, {"id": ident, "is_error": False})
            return [*self._flush(), Event("tool_use", "edit", detail), result]
        if _ERROR.match(line):
            self._error = line.strip()
            return [*self._flush(), Event("error", plain(self._error))]
        self._lines.append(line)
        return self._flush() if _COMMIT.match(line) or len(self._lines) >= 2000 else []

    def _flush(self) -> list[Event]:
        text = "\n".join(self._lines).strip()
        self._lines = []
        return [Event("text", plain(text))] if text else []

    def finish(self, exit_code: int | None, stderr: str, reason: str = "") -> Outcome:
        ok = not reason and exit_code == 0 and self._replies > 0 and not self._error
        error = ""
        if reason:
            error = ended_by_caller("aider", reason, stderr)
        elif not ok:
            reason = "failed"
            if exit_code == 0:
                error = f"aider: {cut(self._error, 500) or 'the model did not answer'}"
            else:
                error = failure("aider", exit_code, stderr or self._error)
        return Outcome(
            ok=ok,
            reason=reason,
            error=error,
            result=cut(self._result),
            usage=self._tally.total,
            turns=self._replies,
            session_total=self._tally.total,
        )


def _usage(told: re.Match[str]) -> Usage:
    counts = {name: int(float(value) * _SCALE[scale]) for value, scale, name in _COUNT.findall(told[1])}
    read, write = counts.get("cache hit", 0), counts.get("cache write", 0)
    return Usage(
        input_tokens=counts.get("sent", 0),
        output_tokens=counts.get("received", 0),
        cache_read_tokens=read,
        cache_write_tokens=write,
        cost=float(told[2]) if told[2] else None,
    )
