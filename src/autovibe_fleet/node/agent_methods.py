# SPDX-License-Identifier: GPL-3.0-or-later
"""The methods that fleetd answers about agents: they parse, call Agents, and render."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from fleet_core.errors import InvalidInput
from fleet_core.names import describe
from fleet_core.quantities import parse_duration

from .agents import Agents

_MOST = 10_000  # rows of one answer


class AgentMethods:
    """One object for all methods. A coroutine named agents_list answers agents.list."""

    def __init__(self, agents: Agents) -> None:
        self.agents = agents
        self._history = agents.history

    def table(self) -> dict[str, Callable[..., Awaitable[Any]]]:
        """Return the methods by their JSON-RPC names."""
        names = [name for name in dir(self) if name.startswith(("agents_", "runs_"))]
        return {name.replace("_", ".", 1): getattr(self, name) for name in names}

    # Definitions

    async def agents_plan(self, items: Any, state: str = "present") -> dict[str, Any]:
        plan = await self.agents.plan(_items(items), state)
        return {"change": plan.change.to_dict(), "summary": plan.summary}

    async def agents_apply(
        self, items: Any, state: str = "present", wait: bool = True, timeout: Any = 120
    ) -> dict[str, Any]:
        plan, names = await self.agents.apply(_items(items), state, wait, _seconds(timeout))
        views = await self.agents.views(names)
        return {"change": plan.change.to_dict(), "summary": plan.summary, "agents": views}

    async def agents_list(self, names: Any = None) -> dict[str, Any]:
        return {"agents": await self.agents.views(None if names is None else _names(names))}

    async def agents_delete(self, names: Any, timeout: Any = 120) -> dict[str, Any]:
        await self._views(_names(names))  # an unknown one is an error here
        return await self.agents_apply([{"name": name} for name in _names(names)], "absent", True, timeout)

    async def agents_revisions(self, name: str) -> dict[str, Any]:
        return {"revisions": await self._read(self._history.revisions, name)}

    async def agents_rollback(self, name: str, revision: Any) -> dict[str, Any]:
        change = await self.agents.rollback(name, _number("revision", revision))
        return {"change": change.to_dict(), "agents": await self.agents.views([name])}

    async def agents_edit(self, name: str, method: str, body: str, base_revision: Any = None) -> dict[str, Any]:
        base = None if base_revision is None else _number("base_revision", base_revision)
        change = await self.agents.edit(name, method, body, base)
        return {"change": change.to_dict(), "agents": await self.agents.views([name])}

    # Start and stop

    async def agents_start(
        self, names: Any, again: bool = False, continue_run: bool = False, wait: bool = True, timeout: Any = 120
    ) -> dict[str, Any]:
        await self.agents.start(_names(names), again, continue_run, wait, _seconds(timeout))
        return await self._views(names)

    async def agents_stop(self, names: Any, timeout: Any = 120) -> dict[str, Any]:
        await self.agents.stop(_names(names), _seconds(timeout))
        return await self._views(names)

    async def agents_pause(self, names: Any) -> dict[str, Any]:
        await self.agents.pause(_names(names))
        return await self._views(names)

    async def agents_resume(self, names: Any) -> dict[str, Any]:
        await self.agents.resume(_names(names))
        return await self._views(names)

    async def agents_interrupt(self, names: Any) -> dict[str, Any]:
        await self.agents.interrupt(_names(names))
        return await self._views(names)

    # Steering

    async def agents_inject(
        self, name: str, text: str, step: str | None = None, iteration: Any = None, sender: str | None = None
    ) -> dict[str, Any]:
        ident = None if iteration is None else _number("iteration", iteration)
        return {"injection": await self.agents.inject(name, text, step or "", ident, sender or "")}

    async def agents_injections(self, name: str, after: Any = 0, limit: Any = 200) -> dict[str, Any]:
        rows = await self._of(name, self._history.injections, None, _number("after", after), _limit(limit))
        return {"injections": rows}

    # History

    async def agents_runs(self, name: str, limit: Any = 20) -> dict[str, Any]:
        return {"runs": await self._of(name, self._history.runs, _limit(limit))}

    async def agents_iterations(
        self, name: str, run: Any = None, step: str | None = None, before: Any = None, limit: Any = 50
    ) -> dict[str, Any]:
        rows = await self._of(
            name, self._history.iterations, _optional("run", run), step, _optional("before", before), _limit(limit)
        )
        return {"iterations": rows}

    async def agents_messages(
        self, name: str, iteration: Any = None, after: Any = 0, before: Any = None, limit: Any = 200
    ) -> dict[str, Any]:
        rows = await self._of(
            name,
            self._history.messages,
            _optional("iteration", iteration),
            _number("after", after),
            _optional("before", before),
            _limit(limit),
        )
        return {"messages": rows}

    async def agents_statistics(self, name: str, run: Any = None, step: str | None = None) -> dict[str, Any]:
        return {"statistics": await self._of(name, self._history.statistics, _optional("run", run), step)}

    async def runs_report(self, agent: str, events: Any) -> dict[str, Any]:
        self.agents.events.report(agent, events)
        return {}

    async def _views(self, names: Sequence[str]) -> dict[str, Any]:
        return {"agents": await self.agents.views(names)}

    async def _of(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what a method of the history says of an agent that exists."""

        def read() -> Any:
            self._history.agent(name)
            return function(name, *arguments)

        return await asyncio.to_thread(read)

    @staticmethod
    async def _read(function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.to_thread(function, *arguments)


def _items(items: Any) -> Sequence[Mapping[str, Any]]:
    if not isinstance(items, list) or not all(isinstance(item, Mapping) for item in items):
        raise InvalidInput(f"items: expected a list of agents, found {describe(items)}")
    return items


def _names(names: Any) -> list[str]:
    if not isinstance(names, list) or not all(isinstance(item, str) for item in names):
        raise InvalidInput(f"names: expected a list of agents, found {describe(names)}")
    return list(dict.fromkeys(names))


def _number(what: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise InvalidInput(f"{what}: expected a whole number, found {describe(value)}")
    return value


def _optional(what: str, value: Any) -> int | None:
    return None if value is None else _number(what, value)


def _limit(value: Any) -> int:
    number = _number("limit", value)
    if not 1 <= number <= _MOST:
        raise InvalidInput(f"limit: expected 1 to {_MOST}, found {number}")
    return number


def _seconds(timeout: Any) -> float:
    return parse_duration("timeout", timeout)
