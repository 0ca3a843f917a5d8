# SPDX-License-Identifier: GPL-3.0-or-later
"""Names for shell completion. They come from the store, so that no fleetd is started by a TAB key."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from fleet_node.agents import AgentStore
    from fleet_node.store import Store


def _store(context: typer.Context) -> Store | None:
    from fleet_node import paths
    from fleet_node.store import Store

    given = next((found.params["state_dir"] for found in _chain(context) if found.params.get("state_dir")), None)
    folder = paths.state_dir(given)
    return Store(folder) if paths.database(folder).exists() else None


def _chain(context: typer.Context) -> Iterator[Any]:
    found: Any = context
    while found is not None:
        yield found
        found = found.parent


def _matching(names: list[str], incomplete: str) -> list[str]:
    return sorted(name for name in dict.fromkeys(names) if name.startswith(incomplete))


def _process_names(store: Store) -> list[str]:
    from . import projects

    ids = list(store.processes())
    project = projects.find(os.getcwd())
    environment = projects.recorded_name(store, project) if project else ""
    short = [ident.partition("/")[2] for ident in ids if environment and ident.startswith(f"{environment}/")]
    return short + ids


def processes(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of processes: ids, and short names in their project's folder."""
    store = _store(ctx)
    return _matching(_process_names(store), incomplete) if store else []


def templates(ctx: typer.Context, incomplete: str) -> list[str]:
    """Ids of templates."""
    store = _store(ctx)
    return _matching(list(store.templates()), incomplete) if store else []


def templates_or_processes(ctx: typer.Context, incomplete: str) -> list[str]:
    """What may follow `fleet start`."""
    return sorted(set(templates(ctx, incomplete)) | set(processes(ctx, incomplete)))


def resource_types(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of resource types."""
    from fleet_core.resource_types import DEFAULTS

    store = _store(ctx)
    return _matching(list(store.types()) if store else [kind.name for kind in DEFAULTS], incomplete)


def owners(ctx: typer.Context, incomplete: str) -> list[str]:
    """Owners of claimed resources."""
    store = _store(ctx)
    return _matching([claim.owner for claim in store.claims()], incomplete) if store else []


def task_runs(ctx: typer.Context, incomplete: str) -> list[str]:
    """Numbers of runs of task lists, the newest first."""
    from fleet_node import paths, task_state

    given = next((found.params["state_dir"] for found in _chain(ctx) if found.params.get("state_dir")), None)
    names = ["last", *(run.id for run in task_state.runs(paths.state_dir(given)))]
    return [name for name in names if name.startswith(incomplete)]


def machines(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of machines of which there is a record here; no provider is asked by a TAB key."""
    from fleet_core.machines import MACHINE_NAME
    from fleet_machines import providers as known
    from fleet_machines.records import Records
    from fleet_node import paths

    given = next((found.params["state_dir"] for found in _chain(ctx) if found.params.get("state_dir")), None)
    folder = str(paths.state_dir(given))
    records = {name: record for provider in known.names() for name, record in Records(folder, provider).all().items()}
    machines = [name for name, record in records.items() if MACHINE_NAME.fullmatch(name) and not record.get("role")]
    return _matching(machines, incomplete)


def egress_machines(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of machines in the network policy of this host."""
    return _matching([str(item.get("name") or "") for item in _egress(ctx)], incomplete)


def egress_projects(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of projects in the network policy of this host."""
    return _matching([str(item["project"]) for item in _egress(ctx) if item.get("project")], incomplete)


def _egress(context: typer.Context) -> list[dict[str, Any]]:
    from fleet_core.errors import FleetError
    from fleet_node.egress_store import EgressStore

    given = next((found.params["state_dir"] for found in _chain(context) if found.params.get("state_dir")), None)
    try:
        return list((EgressStore(given).read().declared or {}).get("machines") or ())
    except FleetError:
        return []


def egress_presets(incomplete: str) -> list[str]:
    """Complete the name of a preset."""
    from fleet_core.egress_presets import PRESETS

    return _matching(list(PRESETS), incomplete)


def egress_modes(incomplete: str) -> list[str]:
    """Modes of a network policy."""
    from fleet_core.egress import MODES

    return _matching(list(MODES), incomplete)


def machine_states(incomplete: str) -> list[str]:
    """States that a machine can be in."""
    from fleet_core.machines import STATES

    return _matching(list(STATES), incomplete)


def providers(incomplete: str) -> list[str]:
    """Names of providers."""
    from fleet_machines import providers as known

    return _matching(list(known.names()), incomplete)


def environments(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of known environments."""
    store = _store(ctx)
    return _matching(list(store.environments()), incomplete) if store else []


def _agent_store(context: typer.Context) -> AgentStore | None:
    from fleet_node import paths
    from fleet_node.agents import AgentStore

    given = next((found.params["state_dir"] for found in _chain(context) if found.params.get("state_dir")), None)
    folder = paths.state_dir(given)
    return AgentStore(folder) if (folder / paths.AGENTS_DATABASE).exists() else None


def agents(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of agents."""
    store = _agent_store(ctx)
    return _matching(list(store.agents()), incomplete) if store else []


def processes_or_agents(ctx: typer.Context, incomplete: str) -> list[str]:
    """What `fleet stop` takes."""
    return sorted(set(processes(ctx, incomplete)) | set(agents(ctx, incomplete)))


def agent_steps(ctx: typer.Context, incomplete: str) -> list[str]:
    """Labels of the steps of the agent that the command line names."""
    return _agent_parts(ctx, incomplete, "steps")


def agent_methods(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of the methods of the agent that the command line names."""
    return _agent_parts(ctx, incomplete, "methods")


def agent_revisions(ctx: typer.Context, incomplete: str) -> list[str]:
    """Numbers of the revisions of the agent that the command line names."""
    return _agent_parts(ctx, incomplete, "revisions")


def _agent_parts(context: typer.Context, incomplete: str, what: str) -> list[str]:
    # What stands before an option whose value is completed is no parameter yet.
    name = str(context.params.get("name") or next((word for word in context.args if not word.startswith("-")), ""))
    store = _agent_store(context)
    if store is None or name not in store.agents([name]):
        return []
    definition = store.definition(name)
    found = {
        "steps": lambda: [step.label for step in definition.pipeline],
        "methods": lambda: [method.name for method in definition.methods],
        "revisions": lambda: [str(row["number"]) for row in store.revisions(name)],
    }
    return _matching(found[what](), incomplete)
