# SPDX-License-Identifier: GPL-3.0-or-later
"""The methods that fleetd answers: they parse, call the engine, and render."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from fleet_core import lifecycle as life
from fleet_core.errors import InvalidInput, NotFound
from fleet_core.names import nearest
from fleet_core.processes import action_of
from fleet_core.quantities import parse_duration
from fleet_node import procfs

from .. import __version__
from .agent_methods import AgentMethods
from .agent_processes import agents_of, refuse_reserved
from .agents import Agents
from .engine import Engine
from .environments import Environments
from .views import timestamp, views


class Methods:
    """One object for all methods. A coroutine named processes_list answers processes.list."""

    def __init__(self, engine: Engine, environments: Environments, agents: Agents, stop: Callable[[], None]) -> None:
        self.engine = engine
        self.environments = environments
        self.agents = agents
        self.started = time.time()
        self._stop = stop

    def table(self) -> dict[str, Callable[..., Awaitable[Any]]]:
        """Return the methods by their JSON-RPC names."""
        groups = ("daemon_", "processes_", "environments_")
        names = [name for name in dir(self) if name.startswith(groups)]
        own = {name.replace("_", ".", 1): getattr(self, name) for name in names}
        return {**own, **AgentMethods(self.agents).table()}

    # The daemon

    async def daemon_status(self) -> dict[str, Any]:
        states: dict[str, int] = {}
        for m in self.engine.processes.values():
            states[m.status.state] = states.get(m.status.state, 0) + 1
        return {
            "version": __version__,
            "pid": os.getpid(),
            "started": timestamp(self.started),
            "driver": self.engine.supervisor.name,
            "scope": getattr(self.engine.supervisor, "scope", ""),
            "state_dir": str(self.engine.store.folder),
            "python": sys.executable,
            "processes": states,
            "environments": len(self.environments.records),
            "agents": await self.agents.events.counts(),
            "memory": (procfs.facts([os.getpid()]).get(os.getpid()) or {}).get("memory", 0),
        }

    async def daemon_stop(self, processes: bool = False, timeout: Any = 60) -> dict[str, Any]:
        stopped: list[str] = []
        if processes:
            stopped = await self._stop_everything(_seconds(timeout))
        asyncio.get_running_loop().call_later(0.05, self._stop)
        return {"stopped": stopped}

    async def _stop_everything(self, timeout: float) -> list[str]:
        running = [m.id for m in self.engine.processes.values() if m.status.state not in (life.STOPPED, life.ERROR)]
        try:
            await self.agents.stop_all(timeout)
            await self.environments.deactivate_all(timeout)
        finally:
            await self.engine.stop_all(timeout)
        return running

    # Processes

    async def processes_plan(self, items: Any, state: str = "started", again: bool = False) -> dict[str, Any]:
        refuse_reserved(_items(items), state)
        return {"change": self.engine.plan(_items(items), state, again).to_dict()}

    async def processes_apply(
        self, items: Any, state: str = "started", wait: bool = True, timeout: Any = 120, again: bool = False
    ) -> dict[str, Any]:
        items = _items(items)
        refuse_reserved(items, state)
        await self.agents.stop_known(agents_of(items), _seconds(timeout))  # else they were wanted, and would come back
        self._touch(item.get("id") for item in items)
        change, ids = await self.engine.apply(items, state, wait, _seconds(timeout), again)
        return {
            "change": change.to_dict(),
            "processes": views(self.engine, [i for i in ids if i in self.engine.processes]),
        }

    async def processes_list(self, ids: Any = None, environment: str | None = None) -> dict[str, Any]:
        known = self.engine.processes
        if ids is None:
            ids = sorted(known)
        else:
            for ident in (ids := _ids(ids)):
                if ident not in known:
                    raise NotFound(f'process "{ident}": not declared{nearest(ident, known)}')
        if environment is not None:
            ids = [ident for ident in ids if known[ident].spec.environment == environment]
        return {"processes": views(self.engine, ids)}

    async def processes_start(self, ids: Any, wait: bool = True, timeout: Any = 120) -> dict[str, Any]:
        return await self.processes_apply([{"id": i} for i in _ids(ids)], "started", wait, timeout, again=True)

    async def processes_stop(self, ids: Any, wait: bool = True, timeout: Any = 120) -> dict[str, Any]:
        return await self.processes_apply([{"id": i} for i in _ids(ids)], "stopped", wait, timeout)

    async def processes_restart(self, ids: Any, wait: bool = True, timeout: Any = 120) -> dict[str, Any]:
        return await self.processes_apply([{"id": i} for i in _ids(ids)], "restarted", wait, timeout)

    async def processes_delete(self, ids: Any, wait: bool = True, timeout: Any = 120) -> dict[str, Any]:
        for ident in _ids(ids):
            if ident not in self.engine.processes:
                raise NotFound(f'process "{ident}": not declared{nearest(ident, self.engine.processes)}')
        return await self.processes_apply([{"id": i} for i in _ids(ids)], "absent", wait, timeout)

    async def processes_kill_all(self, timeout: Any = 60) -> dict[str, Any]:
        return {"stopped": await self._stop_everything(_seconds(timeout))}

    async def processes_inspect(self, id: str) -> dict[str, Any]:
        if id not in self.engine.processes:
            raise NotFound(f'process "{id}": not declared{nearest(id, self.engine.processes)}')
        (view,) = views(self.engine, [id])
        return {"process": view, "declaration": self.engine.processes[id].spec.public()}

    async def processes_discover(self, pid: Any = None, port: Any = None) -> dict[str, Any]:
        return {"found": _discovered(pid, port)}

    async def processes_adopt(self, id: str, pid: Any = None, port: Any = None) -> dict[str, Any]:
        refuse_reserved([{"id": id}], "started")
        found = _discovered(pid, port)
        if len(found) > 1:
            parents = {item["pid"] for item in found}
            leaders = [item for item in found if item.get("ppid") not in parents]
            if len(leaders) != 1:
                pids = ", ".join(str(item["pid"]) for item in found)
                raise InvalidInput(f"port {port}: expected one process, found pids {pids}; name one by --pid")
            found = leaders
        await self.engine.adopt(id, found[0])
        (view,) = views(self.engine, [id])
        return {"process": view}

    async def processes_run_action(self, id: str, timeout: Any = 60) -> dict[str, Any]:
        m = self.engine.processes.get(id)
        if m is None:
            raise NotFound(f'process "{id}": not declared{nearest(id, self.engine.processes)}')
        if not m.spec.action:
            raise InvalidInput(f'process "{id}": its template has no action')
        argv = ("/bin/sh", "-c", action_of(m.spec, m.status.claimed, *self.engine.known_to(m)))
        env = m.launch.env if m.launch is not None else {}
        code, output = await self.engine.health.run(argv, env, m.folder or "/", _seconds(timeout), m.spec.user)
        return {"exit_code": code, "output": output}

    # Environments

    async def environments_plan(self, items: Any) -> dict[str, Any]:
        return {"change": (await self.environments.plan(_items(items, "environments"))).to_dict()}

    async def environments_apply(self, items: Any, wait: bool = True, timeout: Any = 120) -> dict[str, Any]:
        change, names = await self.environments.apply(_items(items, "environments"), wait, _seconds(timeout))
        return {"change": change.to_dict(), "environments": [self.environments.view(name) for name in names]}

    async def environments_activate(self, path: str, wait: bool = True, timeout: Any = 120) -> dict[str, Any]:
        return await self.environments_apply([{"path": path, "state": "active"}], wait, timeout)

    async def environments_deactivate(
        self, path: str | None = None, name: str | None = None, timeout: Any = 120
    ) -> dict[str, Any]:
        return await self.environments_apply([{"path": path, "name": name, "state": "inactive"}], True, timeout)

    async def environments_list(self) -> dict[str, Any]:
        return {"environments": [self.environments.view(name) for name in sorted(self.environments.records)]}

    async def environments_status(self, path: str | None = None, name: str | None = None) -> dict[str, Any]:
        found = self.environments.find(path, name)
        self.environments.touch(found)
        return {"environment": self.environments.view(found)}

    async def environments_touch(self, path: str | None = None, name: str | None = None) -> dict[str, Any]:
        self.environments.touch(self.environments.find(path, name))
        return {}

    def _touch(self, ids: Any) -> None:
        for name in {str(ident).partition("/")[0] for ident in ids if ident and "/" in str(ident)}:
            self.environments.touch(name)


def _items(items: Any, what: str = "processes") -> Sequence[Mapping[str, Any]]:
    if not isinstance(items, list) or not all(isinstance(item, Mapping) for item in items):
        raise InvalidInput(f"items: expected a list of {what}, found {type(items).__name__}")
    return items


def _ids(ids: Any) -> list[str]:
    if not isinstance(ids, list) or not all(isinstance(item, str) for item in ids):
        raise InvalidInput(f"ids: expected a list of process ids, found {type(ids).__name__}")
    return list(dict.fromkeys(ids))


def _seconds(timeout: Any) -> float:
    return parse_duration("timeout", timeout)


def _discovered(pid: Any, port: Any) -> list[dict[str, Any]]:
    if (pid is None) == (port is None):
        raise InvalidInput("discover: expected a pid or a port")
    try:
        number = int(pid if pid is not None else port)
    except (TypeError, ValueError):
        raise InvalidInput(f"discover: expected a number, found {pid if pid is not None else port!r}") from None
    pids = [number] if pid is not None else procfs.listeners(number)
    if not pids:
        raise NotFound(f"port {number}: nothing that this user may see listens on it")
    return [procfs.describe(found) for found in pids]
