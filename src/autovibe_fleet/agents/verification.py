# SPDX-License-Identifier: GPL-3.0-or-later
"""The verification command: whether the work is done, asked of the work itself and not of the agent."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from fleet_core.agent_runs import FEEDBACK_LIMIT
from fleet_core.errors import Unavailable
from fleet_core.runner_events import cut

from .programs import run


async def verify(command: str, folder: str, env: Mapping[str, str], timeout: float) -> dict[str, Any]:
    """Run the command with /bin/sh in the workspace and return {command, code, output, seconds}.

    code: None if it took longer than timeout seconds (0: no limit) or could not be run. output: both streams, cut to
    what fits into a prompt.
    """
    begun = time.monotonic()
    code: int | None = 0
    output = ""
    if command:
        try:
            done = await run(["/bin/sh", "-c", f"exec 2>&1\n{command}"], folder, env, timeout)
        except Unavailable as error:
            code, output = None, str(error)
        else:
            code, output = done.code, done.output
    seconds = round(time.monotonic() - begun, 3)
    return {"command": command, "code": code, "output": cut(output, FEEDBACK_LIMIT), "seconds": seconds}
