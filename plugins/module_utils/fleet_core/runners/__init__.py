# SPDX-License-Identifier: GPL-3.0-or-later
"""The coding tools that an agent can use, by name. docs/runners.md compares them."""

from __future__ import annotations

from ..errors import InvalidInput
from ..names import nearest
from .aider import AiderRunner
from .claude import ClaudeRunner
from .codex import CodexRunner
from .command import CommandRunner
from .gemini import GeminiRunner
from .opencode import OpencodeRunner
from .protocol import Reader, Runner
from .qwen import QwenRunner

__all__ = ["NAMES", "Reader", "Runner", "runner"]

_ALL: tuple[Runner, ...] = (
    *(ClaudeRunner(), CodexRunner(), OpencodeRunner(), AiderRunner(), GeminiRunner(), QwenRunner(), CommandRunner()),
)
_RUNNERS = {each.name: each for each in _ALL}
NAMES = tuple(_RUNNERS)


def runner(name: str) -> Runner:
    """Return the runner of a name. Raises InvalidInput for an unknown one."""
    found = _RUNNERS.get(name)
    if found is None:
        raise InvalidInput(f'runner "{name}": unknown{nearest(name, NAMES)}; known: {", ".join(NAMES)}')
    return found
