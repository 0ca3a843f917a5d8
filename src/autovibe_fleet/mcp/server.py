# SPDX-License-Identifier: GPL-3.0-or-later
"""The MCP server: its tools and resources, over stdio or streamable HTTP."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import CallToolResult, InputRequiredResult

from fleet_core.errors import NotFound
from fleet_core.names import check_keys, nearest

from .. import __version__
from . import agents, declarations, environments, errors, processes, resources, steering, tasks
from .documents import Documents
from .host import Host

_NOUNS = (environments, processes, declarations, resources, agents, steering, tasks)
_INSTRUCTIONS = """\
Runs and watches processes on this host: servers, databases, workers, coding agents. A project declares its processes
in .runcept.toml; activate_environment starts them in order, and start_process one of them. Ports, files and devices are
claimed, so look at a process's urls and resources instead of guessing a port. When something does not come up, the
error and get_process_logs say why. Errors are JSON: code, message, details."""


class FleetServer(MCPServer[Host]):
    """An MCP server whose tools answer every error with a code, a sentence and details."""

    def __init__(self, folder: Path, launch: Callable[[], object], debug: bool = False) -> None:
        host = Host(folder, launch)

        @asynccontextmanager
        async def lifespan(_server: MCPServer[Host]) -> AsyncIterator[Host]:
            yield host

        # Before the SDK does it, whose handler draws boxes. stderr: over stdio, stdout is the wire.
        logging.basicConfig(level=logging.DEBUG if debug else logging.ERROR, format="%(name)s: %(message)s")
        super().__init__(
            "autovibe-fleet",
            title="autovibe fleet",
            instructions=_INSTRUCTIONS,
            version=__version__,
            tools=[tool for noun in _NOUNS for tool in noun.toolbox],
            lifespan=lifespan,
            log_level="DEBUG" if debug else "ERROR",
        )
        self.debug = debug
        Documents(host).register(self)

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context[Host, Any] | None = None
    ) -> CallToolResult | InputRequiredResult:
        """Call a tool. A failure is its result, not an exception."""
        try:
            tool = self._tool_manager.get_tool(name)
            if tool is None:
                known = [item.name for item in self._tool_manager.list_tools()]
                raise NotFound(f'tool "{name}": there is none of that name{nearest(name, known)}')
            check_keys(name, arguments, tool.parameters.get("properties", {}))
            return await super().call_tool(name, arguments, context)
        except ToolError as error:
            return errors.result(name, error.__cause__ or error, self.debug)
        except Exception as error:
            return errors.result(name, error, self.debug)


def debugging() -> bool:
    """Tell whether FLEET_DEBUG asks for more on stderr."""
    return os.environ.get("FLEET_DEBUG", "0") not in ("", "0")
