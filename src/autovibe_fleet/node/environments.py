# SPDX-License-Identifier: GPL-3.0-or-later
"""Environments on one host: a project's processes, brought up together and put to sleep when nobody uses them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from fleet_core import lifecycle as life
from fleet_core.changes import Change
from fleet_core.environments import Environment
from fleet_core.errors import Conflict, FleetError, InvalidInput, NotFound
from fleet_core.names import nearest

from . import activity, project_files
from .engine import Engine
from .views import timestamp, views

STATES = ("active", "inactive", "absent")
RESERVED = "agents"  # the environment of the processes that carry the runs of agents
_INTERRUPTED = "its activation was interrupted; activate it again"
_ECHO = 1.0  # seconds after a health check in which a line of output is taken for its echo
_LOOK = 15.0  # seconds at most between two looks at connections while an inactivity timeout runs


@dataclass(frozen=True)
class Record:
    """What is remembered of an environment. path: its project file. Times in seconds since the epoch.

    error: why its last activation did not succeed.
    """

    name: str
    path: str
    project_dir: str
    active: bool = False
    inactivity_timeout: float = 0.0
    last_activity: float = 0.0
    error: str = ""


class Environments:
    """Every environment that this host has seen."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.records: dict[str, Record] = {}
        self._busy: dict[str, str] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._seen: dict[str, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    async def load(self) -> None:
        """Take up the environments that an earlier fleetd knew."""
        for name, data in self.engine.store.environments().items():
            known = {key: data[key] for key in Record.__dataclass_fields__ if key in data}
            self.records[name] = Record(**{**known, "name": name, "path": data["path"]})
            self._seen[name] = time.monotonic() - activity.idle(self.records[name].last_activity, time.time())
        self.engine.output.on_printed = self._printed
        self._schedule()

    async def close(self) -> None:
        """Stop watching; processes go on."""
        if self._timer is not None:
            self._timer.cancel()
        for name in self.records:
            with contextlib.suppress(FleetError):
                self._record_activity(name)

    # Requests

    def find(self, path: str | None, name: str | None) -> str:
        """Return the name of a known environment by its name, or by a path in or below its project."""
        if name:
            if name not in self.records:
                raise NotFound(f'environment "{name}": not known{nearest(name, self.records)}')
            return name
        if not path:
            raise InvalidInput("environment: expected a path or a name")
        file = str(project_files.find(path))
        for record in self.records.values():
            if record.path == file:
                return record.name
        raise NotFound(f"environment {file}: not known; activate it first")

    async def plan(self, items: Sequence[Mapping[str, Any]]) -> Change:
        """Return what apply would change, changing nothing."""
        before: dict[str, Any] = {}
        after: dict[str, Any] = {}
        actions: list[str] = []
        for item in items:
            change = self._plan_one(*self._resolve(item))
            before.update(change.before)
            after.update(change.after)
            actions.extend(change.actions)
        return Change(before, after, tuple(actions))

    async def apply(self, items: Sequence[Mapping[str, Any]], wait: bool, timeout: float) -> tuple[Change, list[str]]:
        """Bring environments to their states, several at once. Returns the change and the names known after it."""
        resolved = [self._resolve(item) for item in items]
        change = await self.plan(items)
        results = await asyncio.gather(
            *(self._apply_one(state, name, found, wait, timeout) for state, name, found in resolved),
            return_exceptions=True,
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return change, [name for _state, name, _found in resolved if name in self.records]

    async def deactivate_all(self, timeout: float = 60.0) -> None:
        """Deactivate every active environment."""
        active = [{"name": record.name, "state": "inactive"} for record in self.records.values() if record.active]
        await self.apply(active, True, timeout)

    def _resolve(self, item: Mapping[str, Any]) -> tuple[str, str, Environment | None]:
        state = item.get("state") or "active"
        if state not in STATES:
            raise InvalidInput(f'environment: expected state {", ".join(STATES)}, found "{state}"')
        if state == "active":
            path = item.get("path") or (
                self.records[self.find(None, item.get("name"))].path if item.get("name") else ""
            )
            if not path:
                raise InvalidInput("environment: expected a path")
            found = project_files.load(path, self.engine.store.templates())
            known = self.records.get(found.name)
            file = str(project_files.find(path))
            if found.name == RESERVED:
                raise Conflict(f'environment "{found.name}": {file} uses a name that is kept for agents; rename it')
            if known is not None and known.path != file:
                raise Conflict(
                    f'environment "{found.name}": {file} uses a name that {known.path} has; rename one of them'
                )
            for record in self.records.values():
                if record.path == file and record.name != found.name and record.active:
                    raise Conflict(
                        f'environment {file}: is active as "{record.name}"; deactivate it before it is renamed'
                    )
            return state, found.name, found
        try:
            return state, self.find(item.get("path"), item.get("name")), None
        except NotFound:
            if state == "absent":
                return state, str(item.get("name") or item.get("path")), None
            raise

    def _members(self, name: str) -> list[str]:
        return [ident for ident, m in self.engine.processes.items() if m.spec.environment == name]

    def _plan_one(self, state: str, name: str, found: Environment | None) -> Change:
        record = self.records.get(name)
        members = self._members(name)
        was = {"state": "active" if record.active else "inactive"} if record else None
        before = {name: was} if was else {}
        if state == "active":
            assert found is not None
            items = [{"id": spec.id, "declaration": spec} for spec in found.processes]
            gone = [ident for ident in members if ident not in {spec.id for spec in found.processes}]
            change = self.engine.plan(items, "started")
            removal = self.engine.plan([{"id": ident} for ident in gone], "absent")
            actions = (f"activate environment {name}",) if record is None or not record.active else ()
            after: dict[str, Any] = {name: {"state": "active"}}
            if not actions:
                before, after = {}, {}
            return Change(
                {**before, **change.before, **removal.before},
                {**after, **change.after},
                (*actions, *removal.actions, *change.actions),
            )
        if record is None:
            return Change()
        change = self.engine.plan([{"id": ident} for ident in members], "absent" if state == "absent" else "stopped")
        if state == "absent":
            return Change({**before, **change.before}, change.after, (*change.actions, f"remove environment {name}"))
        if not record.active and not change.actions:
            return Change()
        return Change(
            {**before, **change.before},
            {name: {"state": "inactive"}, **change.after},
            (*change.actions, f"deactivate environment {name}"),
        )

    async def _apply_one(self, state: str, name: str, found: Environment | None, wait: bool, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        async with self._locks.setdefault(name, asyncio.Lock()):
            if state != "active":
                if name in self.records:
                    await self._deactivate(name, timeout, forget=state == "absent")
                return
            assert found is not None
            was_active = name in self.records and self.records[name].active
            with self._noted(name):
                ids, started = await self._begin(found, timeout, deadline)
        # Without the lock, so that it can be deactivated while its processes come up.
        with self._noted(name):
            if wait:
                await self.engine.settled(ids, started, deadline)
        if name in self.records and self.records[name].active:
            self._put(replace(self.records[name], error=""))
            if not was_active:
                self.engine.records.publish("environment", name, "active", "activating")

    @contextlib.contextmanager
    def _noted(self, name: str) -> Iterator[None]:
        """Show an environment as activating, and record why it could not be activated."""
        self._busy[name] = "activating"
        try:
            yield
        except FleetError as error:
            if name in self.records and self.records[name].active:
                with contextlib.suppress(FleetError):
                    self._put(replace(self.records[name], error=str(error)))
            raise
        finally:
            if self._busy.get(name) == "activating":
                del self._busy[name]
            self._schedule()

    async def _begin(self, found: Environment, timeout: float, deadline: float) -> tuple[list[str], dict[str, str]]:
        """Record an environment as active and start its processes. Returns what Engine.begin tells of them."""
        name = found.name
        path = str(project_files.find(found.project_dir))
        for record in [r for r in self.records.values() if r.path == path and r.name != name]:
            await self._deactivate(record.name, timeout, forget=True)
        record = Record(name, path, found.project_dir, True, found.idle_limit, time.time(), _INTERRUPTED)
        items = [{"id": spec.id, "declaration": spec} for spec in found.processes]
        gone = [{"id": ident} for ident in self._members(name) if ident not in {spec.id for spec in found.processes}]
        self.engine.plan(items, "started")
        previous = self.records.get(name)
        self.engine.projects[name] = found.project_dir
        self._put(record)
        if previous is None or not previous.active:
            self.engine.records.publish("environment", name, "activating", "inactive")
        if gone:
            await self.engine.apply(gone, "absent", timeout=timeout)
        _change, ids, started = await self.engine.begin(items, "started", deadline)
        return ids, started

    async def _deactivate(self, name: str, timeout: float, forget: bool = False) -> None:
        members = [{"id": ident} for ident in self._members(name)]
        was_active = self.records[name].active
        self._put(replace(self.records[name], active=False, error=""))
        self._busy[name] = "deactivating"
        try:
            await self.engine.apply(members, "absent" if forget else "stopped", timeout=timeout)
        finally:
            self._busy.pop(name, None)
        if forget:
            self.engine.store.remove_environment(name)
            self.records.pop(name)
            self.engine.projects.pop(name, None)
        if was_active:
            self.engine.records.publish("environment", name, "inactive", "active")

    def _put(self, record: Record) -> None:
        data = asdict(record)
        del data["name"], data["path"]
        self.engine.store.put_environment(record.name, record.path, data)
        self.records[record.name] = record
        self._seen[record.name] = time.monotonic()

    # Views

    def view(self, name: str) -> dict[str, Any]:
        """Return one environment as plain data."""
        record = self.records[name]
        processes = views(self.engine, sorted(self._members(name)))
        states = {process["status"] for process in processes if not process["completed"]}
        status = self._busy.get(name) or ("active" if record.active else "inactive")
        if record.active and name not in self._busy:
            down = not processes or states & {life.STOPPED, life.ERROR}
            if life.ERROR in states or (record.error and down):
                status = "error"
            elif life.STARTING in states:
                status = "activating"
        idle = max(0.0, time.monotonic() - self._seen[name])
        errors = (process["error"] for process in processes if process["status"] == life.ERROR)
        return {
            "name": name,
            "path": record.path,
            "project_dir": record.project_dir,
            "status": status,
            "inactivity_timeout": record.inactivity_timeout,
            "idle": int(idle) if record.active else 0,
            "last_activity": timestamp(time.time() - idle),
            "error": next(errors, record.error if status == "error" else ""),
            "processes": processes,
        }

    # Activity

    def touch(self, name: str) -> None:
        """Record that somebody uses an environment now."""
        if name in self._seen:
            self._seen[name] = time.monotonic()

    def _printed(self, ident: str) -> None:
        if "/" in ident:
            self._print_seen(ident.partition("/")[0], time.monotonic())

    def _print_seen(self, name: str, moment: float) -> None:
        """Count a line of output as activity, unless it echoes a health check, as a line of an access log does."""
        asked = max((self.engine.health.asked.get(ident, 0.0) for ident in self._members(name)), default=0.0)
        if not 0 <= moment - asked <= _ECHO and moment > self._seen.get(name, moment):
            self._seen[name] = moment

    def _record_activity(self, name: str) -> None:
        record = self.records[name]
        moment = time.time() - max(0.0, time.monotonic() - self._seen[name])
        if abs(moment - record.last_activity) > 1.0:
            record = replace(record, last_activity=moment)
            data = asdict(record)
            del data["name"], data["path"]
            self.engine.store.put_environment(name, record.path, data)
            self.records[name] = record

    def _sleepy(self) -> list[Record]:
        return [record for record in self.records.values() if record.active and record.inactivity_timeout > 0]

    def _schedule(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waits = [record.inactivity_timeout - (time.monotonic() - self._seen[record.name]) for record in self._sleepy()]
        if waits:
            delay = min(_LOOK, max(0.05, min(waits)))
            self._timer = asyncio.get_running_loop().call_later(delay, self._look)

    def _look(self) -> None:
        """Count open connections as activity, then put environments to sleep that nobody has used for their timeout."""
        self._timer = None
        for record in self._sleepy():
            ports = {
                int(value)
                for ident in self._members(record.name)
                for kind, value in self.engine.processes[ident].status.claimed.values()
                if value.isdigit() and kind.endswith("port")
            }
            pids = [pid for ident in self._members(record.name) if (pid := self.engine.processes[ident].status.pid)]
            if ports and activity.established_ports(ports, pids):
                self.touch(record.name)
            printed = max((self.engine.output.last_printed(ident) for ident in self._members(record.name)), default=0.0)
            if printed:
                self._print_seen(record.name, time.monotonic() - activity.idle(printed, time.time()))
            idle = time.monotonic() - self._seen[record.name]
            if idle >= record.inactivity_timeout and record.name not in self._busy:
                task = asyncio.get_running_loop().create_task(self._fall_asleep(record.name, idle))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            else:
                with contextlib.suppress(FleetError):
                    self._record_activity(record.name)
        self._schedule()

    async def _fall_asleep(self, name: str, idle: float) -> None:
        try:
            async with self._locks.setdefault(name, asyncio.Lock()):
                if name in self.records and self.records[name].active:
                    for ident in self._members(name):
                        self.engine.output.note(
                            ident, 0, f"stopped after {idle:.0f} s without activity", level="Lifecycle"
                        )
                    await self._deactivate(name, 60.0)
        except FleetError as error:
            self.engine.output.complain(f"environment {name}: inactivity shutdown: {error}")
