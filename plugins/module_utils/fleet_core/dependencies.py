# SPDX-License-Identifier: GPL-3.0-or-later
"""Dependencies between processes: conditions, order, cycles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .errors import InvalidInput
from .names import as_text, check_keys, describe, nearest

CONDITIONS = ("started", "healthy", "completed")


@dataclass(frozen=True)
class Dependency:
    """Another process and what must be true of it: started, healthy (it passed its check), completed (exit code 0)."""

    process: str
    condition: str = "healthy"

    def to_dict(self) -> dict[str, str]:
        return {"process": self.process, "condition": self.condition}


def dependencies(where: str, data: object) -> tuple[Dependency, ...]:
    """Return dependencies from names, {process, condition} items, or compose's {name: {condition}} mapping."""
    if data is None:
        return ()
    if isinstance(data, Mapping):
        data = [{"process": name, **(rest if isinstance(rest, Mapping) else {})} for name, rest in data.items()]
    if isinstance(data, str) or not isinstance(data, Iterable):
        raise InvalidInput(f"{where}: expected a list of processes, found {describe(data)}")
    found = []
    for item in data:
        if isinstance(item, str):
            item = {"process": item}
        check_keys(where, item, ("process", "condition"))
        name = as_text(f"{where}: process", item.get("process"))
        condition = item.get("condition") or "healthy"
        if condition not in CONDITIONS:
            raise InvalidInput(
                f'{where}: "{name}": expected condition {", ".join(CONDITIONS)}, found "{condition}"'
                f"{nearest(str(condition), CONDITIONS)}"
            )
        found.append(Dependency(name, str(condition)))
    return tuple(found)


def start_order(graph: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the names so that each comes after all it depends on; otherwise in the order given.

    Raises InvalidInput that names an unknown dependency, or every member of a cycle.
    """
    order: list[str] = []
    state: dict[str, int] = {}

    for root in graph:
        stack: list[tuple[str, int]] = [(root, 0)]
        path: list[str] = []
        while stack:
            name, position = stack.pop()
            if position == 0:
                if state.get(name) == 2:
                    continue
                state[name] = 1
                path.append(name)
            if position < len(graph[name]):
                stack.append((name, position + 1))
                needed = graph[name][position]
                if needed not in graph:
                    hint = nearest(needed, [other for other in graph if other != name])
                    raise InvalidInput(f'process "{name}": depends on "{needed}", which does not exist{hint}')
                if state.get(needed) == 1:
                    circle = " -> ".join((*path[path.index(needed) :], needed))
                    raise InvalidInput(f"processes depend on each other in a cycle: {circle}")
                if state.get(needed) != 2:
                    stack.append((needed, 0))
            else:
                state[name] = 2
                path.pop()
                order.append(name)
    return order
