# SPDX-License-Identifier: GPL-3.0-or-later
"""What a client can read as a resource of MCP, by URI: states and logs, as text."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ResourceError, ResourceNotFoundError

from fleet_core.errors import FleetError, NotFound

from . import shapes
from .agents import agent
from .host import Host
from .processes import as_text
from .steering import LAST

_JSON = "application/json"
_LINES = 200


class Documents:
    """The resources of one server."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def register(self, server: MCPServer[Host]) -> None:
        """Give a server its resources."""
        server.resource("fleet://status", title="State of this host", mime_type=_JSON)(self.status)
        server.resource("fleet://environments/{name}", title="State of an environment", mime_type=_JSON)(
            self.environment
        )
        server.resource("fleet://processes/{name}/logs", title="Log of a process of no environment")(self.process_log)
        server.resource("fleet://processes/{environment}/{name}/logs", title="Log of a process")(self.environment_log)
        server.resource("fleet://agents/{name}", title="State of an agent", mime_type=_JSON)(self.agent)
        server.resource("fleet://agents/{name}/messages", title="What an agent did last")(self.agent_messages)

    async def status(self) -> str:
        """The daemon, all processes and all agents of this host."""
        with _sentences():
            daemon = await self._host.call("daemon.status")
            processes = (await self._host.call("processes.list"))["processes"]
            agents = (await self._host.call("agents.list"))["agents"]
        return _text(
            {
                "daemon": shapes.lean(daemon),
                "processes": [shapes.brief(view) for view in processes],
                "agents": [{"name": view["name"], "state": view["state"]} for view in agents],
            }
        )

    async def environment(self, name: str) -> str:
        """One environment with its processes."""
        with _sentences():
            return _text(shapes.environment((await self._host.call("environments.status", name=name))["environment"]))

    async def process_log(self, name: str) -> str:
        """The last lines of a process's log."""
        with _sentences():
            return as_text(await self._host.log(name, _LINES))

    async def environment_log(self, environment: str, name: str) -> str:
        """The last lines of the log of a process of an environment."""
        with _sentences():
            await self._host.touch(environment)
            return as_text(await self._host.log(f"{environment}/{name}", _LINES))

    async def agent(self, name: str) -> str:
        """An agent: its state, steps and newest run."""
        with _sentences():
            (view,) = (await self._host.call("agents.list", names=[name]))["agents"]
        return _text(agent(view))

    async def agent_messages(self, name: str) -> str:
        """The newest messages of an agent, oldest first."""
        with _sentences():
            answer = await self._host.call("agents.messages", name=name, before=LAST, limit=_LINES)
        return "\n".join(f"[{row['type']}] {row['content']}" for row in answer["messages"])


@contextlib.contextmanager
def _sentences() -> Iterator[None]:
    """Turn the fleet's errors into those that the SDK tells the client."""
    try:
        yield
    except NotFound as error:
        raise ResourceNotFoundError(error.message) from None
    except FleetError as error:
        raise ResourceError(error.message) from None


def _text(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False, indent=1)
