# SPDX-License-Identifier: GPL-3.0-or-later
"""From what is wanted of a machine and what is there to the steps between, and to a refusal where there is no way.

What can be changed in place is the provider's to say, in its Capabilities. Losing work needs consent: a machine is
made anew only with ``recreate``, and a running one is stopped for a change only with ``reboot``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from .changes import Change
from .errors import Conflict, FleetError, InvalidInput
from .images import same_image
from .machines import Machine, MachineSpec, shown

# How a field of an existing machine can be changed.
LIVE = "live"  # at any time
STOPPED = "stopped"  # while the machine is stopped

# In the order in which they are shown and changed.
FIELDS = ("image", "cpu", "memory", "disk", "networks", "user_data", "tags", "project", "login")
TARGETS = ("present", "absent", "started", "stopped", "restarted")

_UP = ("running", "starting")
_OURS = ("tags", "project", "login")


@dataclass(frozen=True)
class Capabilities:
    """What a provider can do.

    changes: field to LIVE or STOPPED; a field that is not in it needs a new machine. shrinks: whether a disk can get
    smaller. rounds: sizes are known to one decimal of their unit only. live_checkpoints: of running machines, which are
    also put back to one, and forked from one, while they run. chained_checkpoints: one is needed as long as it has
    children. isolated: the name of a network from which nothing can be reached, for machines that are only looked at.
    settings: the names of the settings that it takes. network_fields: those of Network that it heeds.
    """

    changes: Mapping[str, str] = field(default_factory=dict)
    shrinks: bool = False
    rounds: bool = False
    live_checkpoints: bool = False
    chained_checkpoints: bool = False
    isolated: str = ""
    settings: tuple[str, ...] = ()
    network_fields: tuple[str, ...] = ("name", "mac", "address", "gateway")


@dataclass(frozen=True)
class Difference:
    """A field that is not as wanted. way: LIVE, STOPPED, or empty when it cannot be changed in place."""

    name: str
    before: Any
    after: Any
    way: str = ""

    def __str__(self) -> str:
        if self.name == "user_data":
            return "user_data"
        return f"{self.name} from {shown(self.name, self.before)} to {shown(self.name, self.after)}"


@dataclass(frozen=True)
class Step:
    """verb: create, finish, change, start, stop or delete. text: what is done, for people."""

    verb: str
    text: str


@dataclass(frozen=True)
class Plan:
    """The steps of one machine, in order. differences: what the step "change" changes."""

    spec: MachineSpec
    found: Machine | None
    steps: tuple[Step, ...] = ()
    differences: tuple[Difference, ...] = ()
    after: str = ""  # the state that it ends in; empty: none, it is gone

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def change(self) -> Change:
        """Both sides hold the fields that are known, and the state."""
        actions = tuple(step.text for step in self.steps)
        if not actions:
            return Change()
        before = {} if self.found is None else {self.name: _fields_of(self.found)}
        if not self.after:
            return Change(before, {}, actions)
        fresh = any(step.verb == "create" for step in self.steps)
        wanted = {name: value for name, value in self.spec.to_dict().items() if name not in ("name", "provider")}
        base = {} if fresh or self.found is None else _fields_of(self.found)
        if not fresh:
            kept = {difference.name for difference in self.differences}
            wanted = {name: value for name, value in wanted.items() if name in kept}
        after = {"provider": self.spec.provider, **base, **wanted, "state": self.after}
        return Change(before, {self.name: after}, actions)


def differences(spec: MachineSpec, found: Machine, capabilities: Capabilities) -> tuple[Difference, ...]:
    """Return what of the given fields is not as wanted. What the provider does not know cannot differ."""
    result = []
    for name in FIELDS:
        before: Any = getattr(found, name)
        after: Any = spec.user_data_hash if name == "user_data" else getattr(spec, name)
        # Tags, projects and logins are the fleet's own, so "none" is known; of the rest, nothing found means: unknown.
        if after is None or (after == "" and name != "project") or (name not in _OURS and not before):
            continue
        if name == "networks":
            same = _same_networks(before, after)
        elif name == "image":
            same = same_image(after, before)
        elif name in ("memory", "disk") and capabilities.rounds:
            same = _rounded(before) == _rounded(after)
        else:
            same = before == after
        if not same:
            way = capabilities.changes.get(name, "")
            if name == "disk" and after < before and not capabilities.shrinks:
                way = ""
            result.append(Difference(name, before, after, way))
    return tuple(result)


def plan(
    spec: MachineSpec,
    found: Machine | None,
    target: str,
    capabilities: Capabilities,
    *,
    recreate: bool = False,
    reboot: bool = False,
) -> Plan:
    """Return the steps from found to the target state, one of TARGETS.

    Raises Conflict when there is no way in place, or only one that was not consented to.
    """
    if target not in TARGETS:
        raise InvalidInput(f"state: expected one of {', '.join(TARGETS)}, found {target!r}")
    if target == "absent":
        steps = () if found is None else (_step("delete", f"delete machine {spec.name}"),)
        return Plan(spec, found, steps)
    _check_networks(spec, capabilities)
    if found is None:
        return _new(spec, None, target, ())
    if found.state == "deleted":
        if not recreate:
            raise Conflict(
                f'machine "{spec.name}": it was deleted and can still be recovered; recover or purge it, '
                "or set recreate: true"
            )
        return _new(spec, found, target, (_step("delete", f"delete machine {spec.name} for good"),))
    if found.incomplete:
        finish = _step("finish", f"finish machine {spec.name}, which is incomplete: {found.incomplete}")
        return Plan(spec, found, (finish, *_last(spec.name, target, "running")), (), _end(target, "running"))
    wrong = differences(spec, found, capabilities)
    stuck = [difference for difference in wrong if not difference.way]
    if stuck:
        what = " and ".join(map(str, stuck))
        if not recreate:
            raise Conflict(
                f'machine "{spec.name}": provider {spec.provider} cannot change {what} in place; '
                "set recreate: true to delete the machine and make it anew"
            )
        return _new(spec, found, target, (_step("delete", f"delete machine {spec.name} to change {what}"),))
    return _in_place(spec, found, target, wrong, reboot)


def plan_all(
    specs: Iterable[MachineSpec],
    found: Mapping[str, Machine],
    target: str,
    capabilities: Capabilities,
    *,
    recreate: bool = False,
    reboot: bool = False,
) -> tuple[Plan, ...]:
    """Return the plans of many machines; one error tells all that is refused, before anything is done."""
    plans: list[Plan] = []
    refused: list[FleetError] = []
    for spec in specs:
        try:
            plans.append(
                plan(spec, found.get(spec.name), target, capabilities, recreate=recreate, reboot=reboot),
            )
        except FleetError as error:
            refused.append(error)
    if refused:
        raise type(refused[0])("; ".join(error.message for error in refused))
    return tuple(plans)


class Changing(Protocol):
    """What knows its change."""

    @property
    def change(self) -> Change: ...


def joined(plans: Iterable[Changing]) -> Change:
    """Return the one change of many plans."""
    changes = [one.change for one in plans]
    return Change(
        {name: value for change in changes for name, value in change.before.items()},
        {name: value for change in changes for name, value in change.after.items()},
        tuple(action for change in changes for action in change.actions),
    )


def _new(spec: MachineSpec, found: Machine | None, target: str, before: tuple[Step, ...]) -> Plan:
    """A new machine boots once, so that cloud-init does its work; then it is stopped if that is the target."""
    create = _step("create", f"create machine {spec.name}")
    last = () if target == "restarted" else _last(spec.name, target, "running")
    return Plan(spec, found, (*before, create, *last), (), _end(target, "running"))


def _in_place(spec: MachineSpec, found: Machine, target: str, wrong: tuple[Difference, ...], reboot: bool) -> Plan:
    steps: list[Step] = []
    state = found.state
    cold = [difference.name for difference in wrong if difference.way == STOPPED]
    up = state in _UP or state == "suspended"
    if (cold and state != "stopped") or (target == "restarted" and up):
        if cold and not reboot and target not in ("restarted", "stopped"):
            raise Conflict(
                f'machine "{spec.name}": it is {state}, and provider {spec.provider} changes '
                f"{' and '.join(cold)} only while a machine is stopped; set reboot: true, or stop it first"
            )
        steps.append(_step("stop", f"stop machine {spec.name}"))
        state = "stopped"
    if wrong:
        steps.append(_step("change", f"change machine {spec.name}: {', '.join(map(str, wrong))}"))
    if target in ("started", "restarted") or (target == "present" and up):
        if state != "running":
            steps.append(_step("start", f"start machine {spec.name}"))
            state = "running"
    elif target == "stopped" and state != "stopped":
        steps.append(_step("stop", f"stop machine {spec.name}"))
        state = "stopped"
    if target == "present" and not cold:  # its power is none of our business
        steps = [step for step in steps if step.verb not in ("start", "stop")]
        state = found.state
    return Plan(spec, found, tuple(steps), wrong, state)


def _last(name: str, target: str, state: str) -> tuple[Step, ...]:
    return (_step("stop", f"stop machine {name}"),) if target == "stopped" and state != "stopped" else ()


def _end(target: str, state: str) -> str:
    return "stopped" if target == "stopped" else state


def _step(verb: str, text: str) -> Step:
    return Step(verb, text)


def _check_networks(spec: MachineSpec, capabilities: Capabilities) -> None:
    for number, network in enumerate(spec.networks or ()):
        for name in network.to_dict():
            if name not in capabilities.network_fields:
                raise InvalidInput(
                    f'machine "{spec.name}": networks[{number}]: provider {spec.provider} knows no "{name}" of a '
                    f"network, only {', '.join(capabilities.network_fields)}"
                )


def _same_networks(before: Iterable[Any], after: Iterable[Any]) -> bool:
    """The same networks in the same order; of each, what is given must agree."""
    before, after = list(before), list(after)
    return len(before) == len(after) and all(
        getattr(old, name) == value for old, new in zip(before, after) for name, value in new.to_dict().items()
    )


def _rounded(size: int) -> str:
    for factor in (1024**3, 1024**2, 1024):
        if size >= factor:
            return f"{size / factor:.1f} {factor}"
    return str(size)


def _fields_of(machine: Machine) -> dict[str, Any]:
    known = {name: value for name, value in machine.to_dict().items() if name in FIELDS and value not in ("", 0, [])}
    return {"provider": machine.provider, **known, "state": machine.state}
