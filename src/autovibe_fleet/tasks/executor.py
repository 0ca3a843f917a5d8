# SPDX-License-Identifier: GPL-3.0-or-later
"""agent_executor DEV-MACHINE tasks.json: runs a task list on a machine, as `fleet task run` does."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

USAGE = """usage: agent_executor DEV-MACHINE TASKS.json [OPTION]...

Runs a task list on a machine over ssh. Options are those of `fleet task run`, such as --resume,
--artifacts DIR, --workdir DIR, --json. DEV-MACHINE is a host, USER@HOST, a name of ssh's
configuration, or localhost for this computer without ssh."""


def command_line(arguments: Sequence[str]) -> list[str] | None:
    """Return the words of the fleet command that do it, or None when the machine or the list is missing."""
    if len(arguments) < 2 or arguments[0].startswith("-") or arguments[1].startswith("--"):
        return None
    machine, file, *options = arguments
    return ["task", "run", file, "--machine", machine, *options]


def main() -> NoReturn:
    """Run the command line of this process and end with its exit code."""
    words = command_line(sys.argv[1:])
    if words is None:
        asked = sys.argv[1:] in (["-h"], ["--help"])
        print(USAGE, file=sys.stdout if asked else sys.stderr)
        sys.exit(0 if asked else 2)
    sys.argv[1:] = words
    from ..cli import main as fleet

    fleet.main()
