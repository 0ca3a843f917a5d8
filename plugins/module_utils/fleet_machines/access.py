# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes machines let their owners in, and reads their host keys, through the provider: nothing is taken on trust."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .provider import Job, Provider

if TYPE_CHECKING:
    from fleet_core.errors import Conflict, FleetError, InvalidInput, NotFound
    from fleet_core.machine_access import answer, script
    from fleet_core.machines import Machine
else:
    try:
        from ..fleet_core.errors import Conflict, FleetError, InvalidInput, NotFound
        from ..fleet_core.machine_access import answer, script
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import Conflict, FleetError, InvalidInput, NotFound
        from fleet_core.machine_access import answer, script

_PAUSE = 1.0


@dataclass(frozen=True)
class Access:
    """How a machine is reached from the provider's host. done: what was done for that, or would be."""

    name: str
    login: str
    address: str
    port: int
    host_keys: tuple[str, ...]
    done: tuple[str, ...] = ()


def grant(
    provider: Provider,
    logins: Mapping[str, str],
    keys: Sequence[str],
    *,
    timeout: float,
    parallel: int = 4,
    change: bool = True,
) -> tuple[Access, ...]:
    """Let the owners of these public keys log in to machines, and return how to reach these.

    logins: the account by the name of the machine; empty: the one that the machine has. change: False only looks, and
    leaves machines out that do not run. Raises one error that tells all machines that failed.
    """
    machines = provider.describe(list(logins))
    deadline = time.monotonic() + timeout
    wanted = [name for name in logins if change or (name in machines and machines[name].state == "running")]

    def one(name: str) -> Access | FleetError:
        try:
            return _one(provider, name, machines.get(name), logins[name], keys, Job(deadline, timeout), change)
        except FleetError as error:
            return error
        except Exception as error:  # what one machine says must not take the answers of the others away
            return FleetError(f'machine "{name}": {type(error).__name__}: {error}')

    with ThreadPoolExecutor(max_workers=min(parallel, len(wanted)) or 1, thread_name_prefix="access") as pool:
        found = list(pool.map(one, wanted))
    failed = [error for error in found if isinstance(error, FleetError)]
    if failed:
        raise type(failed[0])("; ".join(error.message for error in failed))
    return tuple(access for access in found if isinstance(access, Access))


def shared(found: Iterable[Access]) -> tuple[str, ...]:
    """Return a sentence for each host key that more than one machine has: one could pass for the other."""
    owners: dict[str, list[str]] = {}
    for access in found:
        for key in access.host_keys:
            owners.setdefault(key, []).append(access.name)
    names = dict.fromkeys(tuple(names) for names in owners.values() if len(names) > 1)
    return tuple(
        f"machines {', '.join(group)}: they have the same SSH host key, so one can pass for the other; "
        "their image must not hold host keys"
        for group in names
    )


def _one(
    provider: Provider, name: str, machine: Machine | None, login: str, keys: Sequence[str], job: Job, change: bool
) -> Access:
    what = f'machine "{name}"'
    if machine is None:
        raise NotFound(f"{what}: not there with provider {provider.name}")
    if machine.state != "running":
        raise Conflict(f"{what}: expected a running machine, it is {machine.state}")
    login = login or machine.login
    if not login:
        raise InvalidInput(
            f'{what}: neither it nor its image names an account to log in with; give it one, such as "login: dev", '
            "which is added if it is not there"
        )
    while True:
        ran = provider.run(name, script(login, keys, change=change), job)
        said = answer(what, ran.code, ran.stdout, ran.stderr)
        if said.host_keys or not change or job.left() <= _PAUSE:
            break
        job.pause(_PAUSE)  # its first boot makes them
    if not said.host_keys and change:
        raise Conflict(f"{what}: expected an SSH server with host keys in /etc/ssh, found none")
    address = machine.addresses[0] if machine.addresses else ""
    return Access(name, login, address, machine.port, said.host_keys, said.done)
