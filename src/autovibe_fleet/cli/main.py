# SPDX-License-Identifier: GPL-3.0-or-later
"""The edge of the fleet command: an error becomes one sentence and an exit code here, and nowhere else."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from .. import __version__

INTERRUPTED = 130
NOBODY_READS = 141  # 128 + SIGPIPE, as a shell reports it


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code."""
    try:
        import typer

        from .app import app

        result = typer.main.get_command(app).main(list(arguments), prog_name="fleet", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except BrokenPipeError:
        return NOBODY_READS
    except (Exception, KeyboardInterrupt) as error:
        code, message, exit_code = _told(error)
        return _fail(arguments, code, message, exit_code)


def _told(error: BaseException) -> tuple[str, str, int]:
    """Return the code, the sentence and the exit code of an error."""
    if hasattr(error, "rpc_code"):  # a FleetError
        return error.code, error.message, error.exit_code  # type: ignore[attr-defined]
    if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Abort":
        return "interrupted", "interrupted", INTERRUPTED
    if hasattr(error, "format_message"):  # of click, whichever one Typer brings
        context = getattr(error, "ctx", None)
        where = context.command_path if context is not None else "fleet"
        message = error.format_message()
        if type(error).__name__ == "NoArgsIsHelpError":
            print(message)
            return "usage", "", 2
        message = message.rstrip(".")
        return "usage", f"{message[:1].lower()}{message[1:]}; see `{where} --help`", 2
    text = " ".join(str(error).split()) or "no message"
    hint = "" if _debug() else "; FLEET_DEBUG=1 shows where"
    return "error", f"unexpected {type(error).__name__}: {text}{hint}", 1


def _fail(arguments: Sequence[str], code: str, message: str, exit_code: int) -> int:
    if _debug():
        import traceback

        traceback.print_exc()
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    if _asked("as_json") or "--json" in options:
        print(json.dumps({"error": {"code": code, "message": message, "exit_code": exit_code}}), file=sys.stderr)
    elif message:
        from .output import printable

        print(f"fleet: {printable(message)}", file=sys.stderr)
    return exit_code


def _debug() -> bool:
    return _asked("debug") or os.environ.get("FLEET_DEBUG", "0") not in ("", "0")


def _asked(option: str) -> bool:
    """Tell whether a shared option was given, as far as the command line was read."""
    session = sys.modules.get(f"{__package__}.session")
    return bool(getattr(getattr(session, "current", None), option, False))


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
