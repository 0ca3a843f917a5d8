# SPDX-License-Identifier: GPL-3.0-or-later
"""Warm pools: fills them, hands their machines out, and empties them.

Handing out is one change of tags under the pool's lock. Whoever is killed before that has taken nothing, and whoever
is killed after it gets the same machine when it asks again. Locks are those of one host: a pool belongs to one.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from .provider import Job, Provider
from .records import Records

if TYPE_CHECKING:
    from fleet_core.errors import Exhausted, FleetError, NotFound
    from fleet_core.machine_plans import Difference, differences
    from fleet_core.machines import Machine, MachineSpec
    from fleet_core.pools import Fill, Owner, Pool, fill
    from fleet_node import paths
else:
    try:
        from ..fleet_core.errors import Exhausted, FleetError, NotFound
        from ..fleet_core.machine_plans import differences
        from ..fleet_core.pools import Fill, Owner, Pool, fill
        from ..fleet_node import paths
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import Exhausted, FleetError, NotFound
        from fleet_core.machine_plans import differences
        from fleet_core.pools import Fill, Owner, Pool, fill
        from fleet_node import paths


@dataclass(frozen=True)
class Status:
    """The machines of a pool, by what they are to it."""

    free: tuple[Machine, ...]
    filling: tuple[Machine, ...]
    taken: tuple[Machine, ...]


class Pools:
    """The pools of one provider on one host."""

    def __init__(self, provider: Provider, state_dir: str | None = None) -> None:
        self.provider = provider
        self._state = paths.state_dir(state_dir)
        self._locks = Records(str(self._state), f"{provider.name}/pools")

    def status(self, pool: Pool) -> Status:
        """Return the machines of a pool, in one call to the provider."""
        machines = tuple(self.provider.describe().values())
        free = pool.free(machines)
        others = tuple(one for one in pool.of(machines) if one not in free)
        return Status(free, others, pool.taken(machines))

    # -- filling ------------------------------------------------------------------------------------------------------

    def plan(self, pool: Pool, size: int, kept: str) -> Fill:
        """Return what brings a pool to its size."""
        names = [machine.name for machine in pool.of(self.provider.describe().values())]
        found = self.provider.describe(names, full=True).values() if names else ()
        return fill(pool, size, kept, found, self.provider.capabilities)

    def fill(self, pool: Pool, size: int, kept: str, job: Job, parallel: int = 4) -> tuple[str, ...]:
        """Bring a pool to its size and return what was done. One call at a time fills a pool; others take meanwhile.

        Raises the first error when all that could be done is done.
        """
        self._prepare()
        with self._locks.locked(f"{pool.name}-fill", job):
            with self._locks.locked(pool.name, job):
                planned = self.plan(pool, size, kept)
                for name in planned.delete:  # from now on nobody gets them
                    self._retag(pool.filling(name), name, job)
            new = [f"{pool.name}-{uuid.uuid4().hex[:8]}" for _number in range(planned.make)]
            tasks = [
                *(partial(self._delete, name, job) for name in planned.delete),
                *(partial(self._make, pool, name, kept, job) for name in (*planned.finish, *new)),
                *(partial(self._power, pool, name, kept, job) for name in planned.power),
            ]
            _all(tasks, parallel)
        return planned.actions(pool.name, kept)

    def empty(self, pool: Pool, job: Job, parallel: int = 4) -> tuple[str, ...]:
        """Delete the free machines of a pool, and those being made, and return their names. Taken ones stay."""
        self._prepare()
        with self._locks.locked(f"{pool.name}-fill", job):
            with self._locks.locked(pool.name, job):
                names = [machine.name for machine in pool.of(self.provider.describe().values())]
                for name in names:
                    self._retag(pool.filling(name), name, job)
            _all([partial(self._delete, name, job) for name in names], parallel)
        return tuple(names)

    def _make(self, pool: Pool, name: str, kept: str, job: Job) -> None:
        """Make a machine, and let it be handed out when it is as it shall wait."""
        found = self.provider.describe([name]).get(name)
        if found is None or found.incomplete:
            job.report(f"make machine {name}")
            found = self.provider.create(pool.filling(name), job)
        if kept == "stopped" and found.state != "stopped":
            self.provider.stop(name, job)
        elif kept == "running" and found.state != "running":
            self.provider.start(name, job)
        self._retag(pool.filled(name), name, job)

    def _power(self, pool: Pool, name: str, kept: str, job: Job) -> None:
        with self._locks.locked(pool.name, job):
            found = self.provider.describe([name]).get(name)
            if found is None or pool.free_tag not in found.tags:
                return  # it was taken meanwhile
            self._retag(pool.filling(name), name, job)
        self._make(pool, name, kept, job)

    def _delete(self, name: str, job: Job) -> None:
        job.report(f"delete machine {name}")
        self.provider.delete(name, job)

    # -- taking -------------------------------------------------------------------------------------------------------

    def wanted(self, pool: Pool, owner: Owner, tags: Sequence[str], login: str | None) -> tuple[str, Machine | None]:
        """Return what taking would do, empty for nothing, and the machine that the owner has or would get."""
        machines = tuple(self.provider.describe().values())
        found = pool.owned(machines, owner)
        if found is not None:
            spec = pool.handed(found.name, owner, tags, login)
            same = not self._differences(spec, found) and found.state == "running" and not found.incomplete
            return ("" if same else f"prepare machine {found.name} of {owner.project}"), found
        free = pool.free(machines)
        if free:
            return f"hand machine {free[0].name} of pool {pool.name} to {owner.project}", free[0]
        return f"make machine {pool.name_for(owner)} for {owner.project}: pool {pool.name} is empty", None

    def take(
        self, pool: Pool, owner: Owner, tags: Sequence[str], login: str | None, job: Job, *, make: bool = True
    ) -> tuple[str, Machine]:
        """Hand a machine out and return what was done, empty for nothing, and the machine, which runs.

        The same owner gets the same machine. make: whether one is made when none is free; else Exhausted is raised.
        """
        self._prepare()
        with self._locks.locked(f"{pool.name}-{owner.digest}", job):
            with self._locks.locked(pool.name, job):
                action, found = self.wanted(pool, owner, tags, login)
                if found is not None and action:
                    spec = pool.handed(found.name, owner, tags, login)
                    changed = self._differences(spec, found)
                    if changed:
                        self.provider.change(spec, changed, job)
            if found is None:
                if not make:
                    raise Exhausted(f'pool "{pool.name}": no machine is free, and make is false')
                spec = pool.handed(pool.name_for(owner), owner, tags, login)
                return action, self.provider.create(spec, job)
            if found.incomplete:
                return action, self.provider.create(pool.handed(found.name, owner, tags, login), job)
            if found.state != "running":
                job.report(f"start machine {found.name}")
                return action, self.provider.start(found.name, job)
            now = self.provider.describe([found.name]).get(found.name)
            if now is None:
                raise NotFound(f'machine "{found.name}" of pool "{pool.name}": it is gone')
            return action, now

    # -- parts --------------------------------------------------------------------------------------------------------

    def _differences(self, spec: MachineSpec, found: Machine) -> tuple[Difference, ...]:
        """What of the fields that are the fleet's own is not as wanted."""
        every = differences(spec, found, self.provider.capabilities)
        return tuple(one for one in every if one.name in ("tags", "project", "login"))

    def _retag(self, spec: MachineSpec, name: str, job: Job) -> None:
        found = self.provider.describe([name]).get(name)
        if found is not None:
            changed = self._differences(spec, found)
            if changed:
                self.provider.change(spec, changed, job)

    def _prepare(self) -> None:
        paths.make_private(self._state)


def _all(tasks: Sequence[Callable[[], None]], parallel: int) -> None:
    """Do all, at most so many at a time; then raise the first error, which tells all."""

    def one(task: Callable[[], None]) -> FleetError | None:
        try:
            task()
        except FleetError as error:
            return error
        return None

    with ThreadPoolExecutor(max_workers=min(parallel, len(tasks)) or 1, thread_name_prefix="pool") as pool:
        failed = [error for error in pool.map(one, tasks) if error is not None]
    if failed:
        raise type(failed[0])("; ".join(dict.fromkeys(error.message for error in failed)))
