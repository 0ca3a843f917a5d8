# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Between the options of the modules for machines and the providers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ._arguments import given
from .fleet_core.errors import NotFound
from .fleet_core.machine_plans import Plan, plan_all
from .fleet_core.machines import MachineSpec, check_machine_name, machine_specs
from .fleet_core.quantities import parse_duration
from .fleet_machines import batches, providers
from .fleet_machines.provider import Provider


def provider_of(params: Mapping[str, Any]) -> Provider:
    """Return the provider of a task."""
    return providers.provider(params["provider"], params["state_dir"], params["provider_settings"])


def specs_of(params: Mapping[str, Any]) -> tuple[MachineSpec, ...]:
    """Return the machines of a task: declared ones, and ones that are there already by name."""
    provider = params["provider"]
    items = [given(item, {}) for item in params["machines"] or ()]
    return machine_specs([*items, *({"name": name} for name in params["names"] or ())], provider)


def plans_of(params: Mapping[str, Any], provider: Provider) -> tuple[Plan, ...]:
    """Return what is to be done for each machine of a task. Raises before anything is done if one is refused."""
    specs = specs_of(params)
    sized = any(value is not None for spec in specs for value in (spec.cpu, spec.memory, spec.disk))
    found = provider.describe([spec.name for spec in specs], full=sized and params["state"] != "absent")
    missing = [name for name in params["names"] or () if name not in found]
    if missing and params["state"] != "absent":
        raise NotFound(
            f"machine {', '.join(missing)}: not there with provider {params['provider']}; "
            "expected machines that exist in the option names"
        )
    return plan_all(
        specs,
        found,
        params["state"],
        provider.capabilities,
        recreate=params["recreate"],
        reboot=params["reboot"],
    )


def carried_out(params: Mapping[str, Any], provider: Provider, plans: Sequence[Plan]) -> dict[str, Any]:
    """Carry plans out and return the values of a task. Raises BatchFailed if a machine failed."""
    events: list[str] = []
    outcomes = batches.run(
        plans,
        provider,
        timeout=parse_duration("timeout", params["timeout"]),
        parallel=params["parallel"],
        force=params["force"],
        report=lambda event: events.append(str(event)),
    )
    values = {"outcomes": [outcome.to_dict() for outcome in outcomes], "progress": events}
    if not all(outcome.ok for outcome in outcomes):
        done = [action for outcome in outcomes for action in outcome.done]
        error = batches.BatchFailed(outcomes)
        error.values = {"changed": bool(done), "actions": done, **values}
        raise error
    found = provider.describe([plan.name for plan in plans]) if params["state"] != "absent" else {}
    return {**values, "machines": [found[plan.name].to_dict() for plan in plans if plan.name in found]}


def listed(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return what machine_info returns."""
    provider = provider_of(params)
    gather = params["gather"]
    for name in params["names"] or ():
        check_machine_name(name)
    found = provider.describe(params["names"], full="resources" in gather)
    machines = {
        name: machine.to_dict()
        for name, machine in found.items()
        if (params["project"] is None or machine.project == params["project"])
        and set(params["tags"] or ()) <= set(machine.tags)
    }
    if "checkpoints" in gather:
        saved = provider.checkpoints(list(machines))
        for name, machine in machines.items():
            machine["checkpoints"] = len(saved.get(name, ()))
            machine["checkpoint_tree"] = [checkpoint.to_dict() for checkpoint in saved.get(name, ())]
    missing = [name for name in params["names"] or () if name not in found]
    values: dict[str, Any] = {"machines": list(machines.values()), "missing": missing}
    if "images" in gather:
        values["images"] = [image.to_dict() for image in provider.images()]
    if params["facts"]:
        values["ansible_facts"] = {"fleet_machines": machines}
    return values
