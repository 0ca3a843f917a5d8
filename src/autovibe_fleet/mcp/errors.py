# SPDX-License-Identifier: GPL-3.0-or-later
"""Errors as a tool's result: a code, a sentence and details; never a traceback.

A tool that fails answers with isError, so that the model reads why and can do better
(https://modelcontextprotocol.io/specification/2025-11-25/server/tools#error-handling).
"""

from __future__ import annotations

import json
import sys
import traceback
from typing import Any

from mcp_types import CallToolResult, TextContent
from pydantic import ValidationError

from fleet_core.errors import FleetError, InvalidInput


class WithDetails(FleetError):
    """An error that carries more than its sentence, such as the last lines of a log. Bears the code of its cause."""

    def __init__(self, cause: FleetError, details: dict[str, Any]) -> None:
        super().__init__(cause.message)
        self.code = cause.code
        self.details = details


def told(tool: str, error: BaseException, debug: bool = False) -> FleetError:
    """Return any exception as one that can be told. What nobody foresaw is noted on stderr."""
    if isinstance(error, FleetError):
        return error
    if isinstance(error, ValidationError):
        found = [
            {"argument": ".".join(str(part) for part in item["loc"]), "problem": item["msg"]} for item in error.errors()
        ]
        first = found[0]
        return WithDetails(
            InvalidInput(f"{tool}: {first['argument']}: {first['problem'][:1].lower()}{first['problem'][1:]}"),
            {"arguments": found},
        )
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    text = " ".join(str(error).split()) or "no message"
    print(f"fleet mcp: {tool}: unexpected {type(error).__name__}: {text}", file=sys.stderr)
    return FleetError(f"{tool}: unexpected {type(error).__name__}: {text}")


def result(tool: str, error: BaseException, debug: bool = False) -> CallToolResult:
    """Return what a failed tool answers."""
    found = told(tool, error, debug)
    content = {
        "code": found.code,
        "message": found.message,
        "details": {"tool": tool, **getattr(found, "details", {})},
    }
    text = json.dumps(content, ensure_ascii=False)
    return CallToolResult(content=[TextContent(type="text", text=text)], structured_content=content, is_error=True)
