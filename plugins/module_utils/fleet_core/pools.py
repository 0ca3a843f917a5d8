# SPDX-License-Identifier: GPL-3.0-or-later
"""Warm pools: machines that wait, made and booted, until somebody takes one.

What a machine is to a pool stands in its tags, with its provider, and nowhere else: free (pool-NAME), being made
(filling-NAME), or taken (taken-NAME and the tag of its owner). Changing the tags once hands a machine out.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from .errors import InvalidInput
from .machine_plans import Capabilities, differences
from .machines import Machine, MachineSpec
from .names import describe

POOL_NAME = re.compile(r"[a-z](?:[a-z0-9-]{0,38}[a-z0-9])?")
KEPT = ("running", "stopped")
MOST = 1000
# In user data: the name of the machine, which is not known before it is made.
PLACEHOLDER = "name-of-the-machine"


def check_pool_name(name: object) -> str:
    """Return the name if machines and tags of every provider can begin with it."""
    if not isinstance(name, str) or not POOL_NAME.fullmatch(name):
        shown = repr(name) if isinstance(name, str) else describe(name)
        raise InvalidInput(
            f"pool name {shown}: expected a small letter, then at most 39 small letters, digits and '-', "
            "the last no '-'"
        )
    return name


@dataclass(frozen=True)
class Owner:
    """Who takes a machine: a project, and a key of its own choice that is the same when it asks again."""

    project: str
    key: str

    @property
    def tag(self) -> str:
        """The tag of the owner's machine."""
        return f"owner-{self.digest}"

    @property
    def digest(self) -> str:
        return hashlib.sha256(f"{self.project}\0{self.key}".encode("utf-8", "surrogatepass")).hexdigest()[:12]


@dataclass(frozen=True)
class Pool:
    """A pool by its name, and what its machines look like: template's name counts for nothing."""

    name: str
    template: MachineSpec

    @property
    def free_tag(self) -> str:
        return f"pool-{self.name}"

    @property
    def filling_tag(self) -> str:
        return f"filling-{self.name}"

    @property
    def taken_tag(self) -> str:
        return f"taken-{self.name}"

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags that say what a machine is to this pool."""
        return (self.free_tag, self.filling_tag, self.taken_tag)

    def filling(self, machine: str) -> MachineSpec:
        """Return a machine of this pool that nobody gets: it is being made, or about to go."""
        return self._made(machine, (self.filling_tag,), self.template.project)

    def filled(self, machine: str) -> MachineSpec:
        """Return a machine of this pool as a free one."""
        return self._made(machine, (self.free_tag,), self.template.project)

    def handed(self, machine: str, owner: Owner, tags: Iterable[str], login: str | None) -> MachineSpec:
        """Return a machine of this pool as it is when its owner has it."""
        made = self._made(machine, (self.taken_tag, owner.tag, *tags), owner.project)
        return replace(made, login=login or made.login)

    def name_for(self, owner: Owner) -> str:
        """Return the name of the machine that is made for an owner when none is free: the same one each time."""
        return f"{self.name}-{owner.digest}"

    def of(self, machines: Iterable[Machine]) -> tuple[Machine, ...]:
        """Return the machines that are free or being made."""
        return _sorted(one for one in machines if {self.free_tag, self.filling_tag} & set(one.tags))

    def free(self, machines: Iterable[Machine]) -> tuple[Machine, ...]:
        """Return the machines that can be handed out, those that run first."""
        found = [
            one
            for one in machines
            if self.free_tag in one.tags and not one.incomplete and one.state in (*KEPT, "suspended")
        ]
        return tuple(sorted(found, key=lambda one: (one.state != "running", one.name)))

    def taken(self, machines: Iterable[Machine]) -> tuple[Machine, ...]:
        """Return the machines that were handed out."""
        return _sorted(one for one in machines if self.taken_tag in one.tags)

    def owned(self, machines: Iterable[Machine], owner: Owner) -> Machine | None:
        """Return the machine that an owner has already."""
        return next((one for one in self.taken(machines) if owner.tag in one.tags), None)

    def _made(self, name: str, tags: Iterable[str], project: str | None) -> MachineSpec:
        data = self.template.user_data
        return replace(
            self.template,
            name=name,
            project=project,
            tags=tuple(sorted({*(self.template.tags or ()), *tags})),
            user_data=None if data is None else data.replace(PLACEHOLDER, name),
        )


@dataclass(frozen=True)
class Fill:
    """What brings a pool to its size. make: how many anew. finish: those that a call began and did not finish.
    delete: those that are too many or of another template, with why. power: those to start or stop.
    """

    make: int = 0
    finish: tuple[str, ...] = ()
    delete: Mapping[str, str] = field(default_factory=dict)
    power: tuple[str, ...] = ()

    def actions(self, pool: str, kept: str) -> tuple[str, ...]:
        verb = "start" if kept == "running" else "stop"
        return (
            *(f"delete machine {name} of pool {pool}: {why}" for name, why in self.delete.items()),
            *(f"finish machine {name} of pool {pool}" for name in self.finish),
            *((f"make {self.make} machines for pool {pool}",) if self.make else ()),
            *(f"{verb} machine {name} of pool {pool}" for name in self.power),
        )


def fill(pool: Pool, size: int, kept: str, machines: Iterable[Machine], capabilities: Capabilities) -> Fill:
    """Return what brings a pool to this many free machines that are as its template says.

    kept: whether they wait running or stopped. Nobody has worked on a free machine, so one that differs is replaced.
    """
    delete: dict[str, str] = {}
    finish, good = [], []
    for one in pool.of(machines):
        wrong = _wrong(pool, one, capabilities)
        if wrong:
            delete[one.name] = wrong
        elif pool.filling_tag in one.tags or one.incomplete:
            finish.append(one.name)
        else:
            good.append(one)
    # Those in the wanted state stay first; one that is half made goes first.
    good.sort(key=lambda one: (one.state != kept, one.name))
    for name in finish[max(0, size - len(good)) :]:
        delete[name] = "there are enough"
    finish = finish[: max(0, size - len(good))]
    for one in good[size:]:
        delete[one.name] = "there are enough"
    good = good[:size]
    power = tuple(one.name for one in good if one.state != kept)
    return Fill(max(0, size - len(good) - len(finish)), tuple(finish), delete, power)


def _wrong(pool: Pool, machine: Machine, capabilities: Capabilities) -> str:
    if machine.state == "deleted":
        return "it was deleted and can be recovered"
    wanted = replace(pool.filled(machine.name), tags=None, project=None, login=None)
    found = differences(wanted, machine, capabilities)
    return "it differs in " + " and ".join(one.name for one in found) if found and not machine.incomplete else ""


def _sorted(machines: Iterable[Machine]) -> tuple[Machine, ...]:
    return tuple(sorted(machines, key=lambda one: one.name))
