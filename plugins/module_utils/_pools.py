# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Between the options of machine_pool and the pools."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ._arguments import given
from ._machines import provider_of
from ._module import Result
from .fleet_core.changes import Change
from .fleet_core.errors import InvalidInput
from .fleet_core.machines import Machine, machine_spec
from .fleet_core.names import as_int, check_name
from .fleet_core.pools import MOST, Owner, Pool, check_pool_name
from .fleet_core.quantities import parse_duration
from .fleet_machines.batches import MOST_AT_ONCE
from .fleet_machines.pools import Pools
from .fleet_machines.provider import Job


@dataclass(frozen=True)
class _Request:
    """The options of a task, checked."""

    pools: Pools
    pool: Pool
    size: int
    owner: Owner
    tags: tuple[str, ...]
    login: str | None
    parallel: int
    seconds: float


def plan(params: Mapping[str, Any]) -> Result:
    """Return what apply would do."""
    request = _request(params)
    if params["state"] == "taken":
        action, machine = request.pools.wanted(request.pool, request.owner, request.tags, request.login)
        return _taken(request, action, machine, [])
    if params["state"] == "absent":
        names = [one.name for one in request.pool.of(request.pools.provider.describe().values())]
        return _result(_deleted(names, request.pool.name), request, {"progress": []})
    planned = request.pools.plan(request.pool, request.size, params["kept"])
    return _result(planned.actions(request.pool.name, params["kept"]), request, {"progress": []})


def apply(params: Mapping[str, Any]) -> Result:
    """Fill a pool, hand a machine out, or empty the pool."""
    request = _request(params)
    began, said = time.monotonic(), []  # type: ignore[var-annotated]
    job = Job.lasting(request.seconds, lambda text: said.append(f"{time.monotonic() - began:.1f}s {text}"))
    if params["state"] == "taken":
        action, machine = request.pools.take(
            request.pool, request.owner, request.tags, request.login, job, make=params["create"]
        )
        return _taken(request, action, machine, said)
    if params["state"] == "absent":
        actions = _deleted(request.pools.empty(request.pool, job, request.parallel), request.pool.name)
    else:
        actions = request.pools.fill(request.pool, request.size, params["kept"], job, request.parallel)
    return _result(actions, request, {"progress": said})


def _request(params: Mapping[str, Any]) -> _Request:
    name = check_pool_name(params["name"])
    where = f'pool "{name}"'
    template = machine_spec({**given(params["machine"] or {}, {}), "name": name}, params["provider"])
    project = check_name(f"{where}: project", params["project"]) if params["state"] == "taken" else ""
    if params["state"] == "taken" and not (params["key"] or "").strip():
        raise InvalidInput(f"{where}: expected a key, which is the same when the same machine is asked for again")
    wanted = machine_spec({"name": name, "tags": params["tags"] or [], "login": params["login"]}, params["provider"])
    return _Request(
        Pools(provider_of(params), params["state_dir"]),
        Pool(name, template),
        as_int(f"{where}: size", params["size"], 0, MOST),
        Owner(project, params["key"] or ""),
        wanted.tags or (),
        wanted.login,
        as_int("parallel", params["parallel"], 1, MOST_AT_ONCE),
        parse_duration("timeout", params["timeout"]),
    )


def _taken(request: _Request, action: str, machine: Machine | None, said: list[str]) -> Result:
    values = {"machine": machine.to_dict() if machine else {}, "progress": said}
    return _result((action,) if action else (), request, values)


def _deleted(names: Any, pool: str) -> tuple[str, ...]:
    return tuple(f"delete machine {name} of pool {pool}" for name in names)


def _result(actions: tuple[str, ...], request: _Request, values: Mapping[str, Any]) -> Result:
    status = request.pools.status(request.pool)
    told = {
        "free": [one.name for one in status.free],
        "filling": [one.name for one in status.filling],
        "taken": [one.name for one in status.taken],
    }
    after = {f"step {number}": action for number, action in enumerate(actions, 1)}
    return Result(Change({}, after, tuple(actions)), {**told, **values})
