# SPDX-License-Identifier: GPL-3.0-or-later
"""How a function becomes a tool: its title, what it does to the world, and the shape of its answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeAlias

from mcp.server.mcpserver import Context
from mcp.server.mcpserver.tools import Tool
from mcp_types import ToolAnnotations
from pydantic import Field

from .host import Host

Ctx: TypeAlias = Context[Host, Any]

Environment = Annotated[
    str | None,
    Field(
        description="Project folder, project file or name of an environment. By default the one that was activated last"
        " in this session, else the project of the server's folder."
    ),
]
Name = Annotated[str, Field(description="Name of a process in the environment, or its id: ENVIRONMENT/NAME.")]
Wait = Annotated[bool, Field(description="Wait until the processes are up, or have failed.")]
Timeout = Annotated[float, Field(ge=0, le=86400, description="How long to wait, in seconds.")]

# What a tool does (https://modelcontextprotocol.io/specification/2025-11-25/schema#toolannotations). None of them
# reaches beyond this host.
READS: dict[str, bool] = {"read_only_hint": True, "idempotent_hint": True, "destructive_hint": False}
ADDS: dict[str, bool] = {"read_only_hint": False, "idempotent_hint": False, "destructive_hint": False}
SETS: dict[str, bool] = {"read_only_hint": False, "idempotent_hint": True, "destructive_hint": False}
ENDS: dict[str, bool] = {"read_only_hint": False, "idempotent_hint": True, "destructive_hint": True}
RUNS: dict[str, bool] = {"read_only_hint": False, "idempotent_hint": False, "destructive_hint": True}


class Toolbox(list[Tool]):
    """The tools of one noun."""

    def tool(
        self, title: str, effect: dict[str, bool]
    ) -> Callable[[Callable[..., Awaitable[Any]]], Callable[..., Awaitable[Any]]]:
        """Make a coroutine function a tool of its name; its docstring is the description."""

        def add(function: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
            annotations = ToolAnnotations(title=title, open_world_hint=False, **effect)
            description = " ".join((function.__doc__ or "").split())
            made = Tool.from_function(
                function, title=title, description=description, annotations=annotations, structured_output=True
            )
            made.parameters = {**untitled(made.parameters), "additionalProperties": False}
            made.fn_metadata.output_schema = untitled(made.fn_metadata.output_schema)
            self.append(made)
            return function

        return add


def untitled(schema: Any) -> Any:
    """Return a schema without the titles that are made from the names of its properties: a model reads every word."""
    if isinstance(schema, dict):
        return {
            key: untitled(value)
            for key, value in schema.items()
            if not (key == "title" and isinstance(value, str) and "type" not in schema.get("properties", {}))
        }
    return [untitled(item) for item in schema] if isinstance(schema, list) else schema


def host(ctx: Ctx) -> Host:
    """Return what the tools of this server share."""
    found: Host = ctx.request_context.lifespan_context
    return found
