# SPDX-License-Identifier: GPL-3.0-or-later
"""The coding tools that an agent can use, by name. docs/runners.md compares them."""

from __future__ import annotations

from ..errors import InvalidInput
from ..names import nearest
from .claude import ClaudeRunner
from .codex import CodexRunner
from .command import CommandRunner
from .protocol import Reader, Runner

__all__ = ["NAMES", "Reader", "Runner", "runner"]

_RUNNERS: dict[str, Runner] = {each.name: each for each in (ClaudeRunner(), CodexRunner(), CommandRunner())}
NAMES = tuple(_RUNNERS)


def runner(name: str) -> Runner:
    """Return the runner of a name. Raises InvalidInput for an unknown one."""
    found = _RUNNERS.get(name)
    if found is None:
        raise InvalidInput(f'runner "{name}": unknown{nearest(name, NAMES)}; known: {", ".join(NAMES)}')
    return found
