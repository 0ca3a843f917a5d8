# SPDX-License-Identifier: GPL-3.0-or-later
"""The edge of the fleet command: an error becomes one sentence and an exit code here, and nowhere else."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from .. import __version__

INTERRUPTED = 130
NOBODY_READS = 141  # 128 + SIGPIPE, as a shell reports it


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code."""
    import typer

    from fleet_core.errors import FleetError

    from .app import app

    try:
        result = typer.main.get_command(app).main(list(arguments), prog_name="fleet", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except FleetError as error:
        return _fail(arguments, error.code, error.message, error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _fail(arguments, "interrupted", "interrupted", INTERRUPTED)
    except BrokenPipeError:
        return NOBODY_READS
    except Exception as error:
        if hasattr(error, "format_message"):  # of click, whichever one Typer brings
            return _usage_error(arguments, error)
        text = " ".join(str(error).split()) or "no message"
        hint = "" if _debug() else "; FLEET_DEBUG=1 shows where"
        return _fail(arguments, "error", f"unexpected {type(error).__name__}: {text}{hint}", 1)


def _usage_error(arguments: Sequence[str], error: Any) -> int:
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        text = error.format_message()
        if text:
            print(text)
        return 2
    message = error.format_message().rstrip(".")
    where = context.command_path if context is not None else "fleet"
    return _fail(arguments, "usage", f"{message[:1].lower()}{message[1:]}; see `{where} --help`", 2)


def _fail(arguments: Sequence[str], code: str, message: str, exit_code: int) -> int:
    from .session import current

    if _debug():
        import traceback

        traceback.print_exc()
    if current.as_json or "--json" in _options(arguments):
        print(json.dumps({"error": {"code": code, "message": message, "exit_code": exit_code}}), file=sys.stderr)
    else:
        print(f"fleet: {message}", file=sys.stderr)
    return exit_code


def _options(arguments: Sequence[str]) -> Sequence[str]:
    return arguments[: arguments.index("--")] if "--" in arguments else arguments


def _debug() -> bool:
    from .session import current

    return current.debug or os.environ.get("FLEET_DEBUG", "0") not in ("", "0")


def main() -> NoReturn:
    """Run the command line of this process and end with its exit code."""
    arguments = sys.argv[1:]
    if arguments == ["--version"]:  # asked by scripts, so without loading Typer
        print(f"fleet {__version__}")
        sys.exit(0)
    code = run(arguments)
    if code == NOBODY_READS:  # or Python would complain when it flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


if __name__ == "__main__":
    main()
