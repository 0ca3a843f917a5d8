# SPDX-License-Identifier: GPL-3.0-or-later
"""What a request means for the processes of this host: resolved and compared first, applied by the engine second."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fleet_core import lifecycle as life
from fleet_core.changes import Change
from fleet_core.dependencies import start_order
from fleet_core.errors import InvalidInput, NotFound
from fleet_core.names import check_process_id, nearest
from fleet_core.processes import ProcessSpec, process_spec
from fleet_core.templates import Template, instantiate

from .managed import Managed

STATES = ("started", "stopped", "restarted", "absent", "present")

Resolved = Sequence[tuple[str, "ProcessSpec | None"]]
Processes = Mapping[str, Managed]


def resolve(
    items: Sequence[Mapping[str, Any]],
    state: str,
    processes: Processes,
    templates: Callable[[], Mapping[str, Template]],
) -> list[tuple[str, ProcessSpec | None]]:
    """Return (id, declaration) for each item; None where only the id matters.

    items: plain process data, {id} alone for a declared process, or {id, declaration} with a ProcessSpec that is final.
    Raises InvalidInput or NotFound for a bad item.
    """
    if state not in STATES:
        raise InvalidInput(f'state: expected {", ".join(STATES)}, found "{state}"')
    known_templates: Mapping[str, Template] | None = None
    found: dict[str, ProcessSpec | None] = {}
    for item in items:
        ident = check_process_id(item.get("id"))
        if ident in found:
            raise InvalidInput(f'process "{ident}": stands twice in one request')
        given = {key: value for key, value in item.items() if value is not None and key != "id"}
        known = processes.get(ident)
        if known is None and (state == "stopped" or (not given and state != "absent")):
            raise unknown(ident, processes)
        if state in ("absent", "stopped") or not given:
            found[ident] = known.spec if known else None
            continue
        name = given.get("template")
        ready = given.get("declaration")
        if isinstance(ready, ProcessSpec):
            spec = ready
        elif name:
            known_templates = templates() if known_templates is None else known_templates
            if name not in known_templates:
                raise NotFound(f'template "{name}": not defined{nearest(str(name), known_templates)}')
            spec = instantiate(known_templates[name], {"id": ident, **given})
        else:
            spec = process_spec({"id": ident, **given})
        found[ident] = qualified(spec)
    return list(found.items())


def unknown(ident: str, processes: Iterable[str]) -> NotFound:
    """Return the error for a process that is not declared, with the nearest that is."""
    return NotFound(f'process "{ident}": not declared{nearest(ident, processes)}')


def plan(resolved: Resolved, state: str, processes: Processes, again: bool = False) -> Change:
    """Return what a request changes. again: processes that ran to their end are started once more."""
    before: dict[str, Any] = {}
    after: dict[str, Any] = {}
    actions: list[str] = []
    for ident, spec in resolved:
        m = processes.get(ident)
        steps = _steps(ident, spec, m, state, again)
        if not steps:
            continue
        actions.extend(steps)
        was = "stopped"
        if m is not None:
            was = "started" if m.status.state in life.WANTED or m.completed else "stopped"
            before[ident] = {**m.spec.public(), "state": was}
        if state != "absent" and spec is not None:
            will = {"present": was, "stopped": "stopped"}.get(state, "started")
            after[ident] = {**spec.public(), "state": will}
    return Change(before, after, tuple(actions))


def _steps(ident: str, spec: ProcessSpec | None, m: Managed | None, state: str, again: bool) -> list[str]:
    runs = m is not None and m.status.state in life.WANTED
    if state in ("absent", "stopped"):
        if m is None:
            return []
        idle = m.status.state in (life.STOPPED, life.ERROR) and (m.status.desired == "stopped" or m.completed)
        stop = [] if idle or (state == "absent" and m.status.state == life.STOPPED) else [f"stop process {ident}"]
        return [*stop, f"remove process {ident}"] if state == "absent" else stop
    changed = m is not None and spec != m.spec
    steps = [f"declare process {ident}"] if m is None else [f"update process {ident}"] if changed else []
    if state == "restarted" or (state == "started" and changed and runs):
        steps.append(f"restart process {ident}" if runs else f"start process {ident}")
    elif state == "started" and not runs and (again or changed or m is None or not m.completed):
        steps.append(f"start process {ident}")
    return steps


def qualified(spec: ProcessSpec) -> ProcessSpec:
    """Return a process whose dependencies are full ids: a bare name means the same environment."""
    if not spec.environment:
        return spec
    needs = [
        {**item.to_dict(), "process": item.process if "/" in item.process else f"{spec.environment}/{item.process}"}
        for item in spec.depends_on
    ]
    return process_spec({**spec.to_dict(), "depends_on": needs})


def check_dependencies(specs: Mapping[str, ProcessSpec], ids: Iterable[str]) -> None:
    """Raise InvalidInput for an unknown dependency of one of the ids, or for a cycle."""
    graph = {ident: [item.process for item in spec.depends_on] for ident, spec in specs.items()}
    reached: dict[str, list[str]] = {}
    waiting = list(ids)
    while waiting:
        ident = waiting.pop()
        if ident not in reached and ident in graph:
            reached[ident] = graph[ident]
            waiting.extend(graph[ident])
    start_order(
        {
            **reached,
            **{name: [] for needs in reached.values() for name in needs if name in graph and name not in reached},
        }
    )
