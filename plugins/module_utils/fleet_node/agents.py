# SPDX-License-Identifier: GPL-3.0-or-later
"""The agents of one host in SQLite: definitions with their revisions, what is wanted of them, and what they did.

fleetd and every run process have this database open at once. Each write is one short transaction.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fleet_core.agent_forms import legacy_id
    from fleet_core.agents import AgentDefinition, agent_definition
    from fleet_core.errors import Conflict, InvalidInput, NotFound
    from fleet_core.names import nearest
else:
    try:
        from ..fleet_core.agent_forms import legacy_id
        from ..fleet_core.agents import AgentDefinition, agent_definition
        from ..fleet_core.errors import Conflict, InvalidInput, NotFound
        from ..fleet_core.names import nearest
    except ImportError:  # installed as a top-level package
        from fleet_core.agent_forms import legacy_id
        from fleet_core.agents import AgentDefinition, agent_definition
        from fleet_core.errors import Conflict, InvalidInput, NotFound
        from fleet_core.names import nearest

from . import agent_history, injections, paths
from .agent_history import AgentHistory
from .injections import Injections

DESIRED = ("stopped", "running", "paused")
ORIGINS = ("apply", "edit", "rollback", "import")

_SCHEMA = """
    CREATE TABLE agents (
        name TEXT PRIMARY KEY, id TEXT NOT NULL, legacy_id TEXT NOT NULL, revision INTEGER NOT NULL,
        desired TEXT NOT NULL, interrupts INTEGER NOT NULL, created REAL NOT NULL, updated REAL NOT NULL, next_run REAL,
        iterations INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE revisions (
        agent TEXT NOT NULL, number INTEGER NOT NULL, id TEXT NOT NULL, legacy_id TEXT NOT NULL, time REAL NOT NULL,
        origin TEXT NOT NULL, definition TEXT NOT NULL, PRIMARY KEY (agent, number)
    ) WITHOUT ROWID;
"""

_AGENT = ("name", "id", "legacy_id", "revision", "desired", "interrupts", "created", "updated", "next_run")
_REVISION = ("number", "id", "legacy_id", "time", "origin", "definition")


class AgentStore(AgentHistory, Injections):
    """The open agents database: Database says what opening it does. Times are seconds since the epoch."""

    NAME = paths.AGENTS_DATABASE
    MIGRATIONS = (_SCHEMA + agent_history.SCHEMA + injections.SCHEMA,)

    # Definitions

    def agents(self, names: Iterable[str] | None = None) -> dict[str, dict[str, Any]]:
        """Return agents by name: name, id, legacy_id, revision, desired, interrupts, created, updated, next_run.

        names: only those of them that exist, in this order.
        """
        query = f"SELECT {', '.join(_AGENT)} FROM agents"
        if names is None:
            rows = self._rows(f"{query} ORDER BY name")
        else:
            rows = [row for name in dict.fromkeys(names) for row in self._rows(f"{query} WHERE name = ?", (name,))]
        return {row[0]: dict(zip(_AGENT, row)) for row in rows}

    def agent(self, name: str) -> dict[str, Any]:
        """Return one agent. Raises NotFound that names the nearest one."""
        found = self.agents([name])
        if not found:
            raise unknown(name, self.agents())
        return found[name]

    def revisions(self, name: str) -> list[dict[str, Any]]:
        """Return all revisions of an agent, oldest first; definition is plain data. Raises NotFound."""
        self.agent(name)
        query = f"SELECT {', '.join(_REVISION)} FROM revisions WHERE agent = ? ORDER BY number"
        found = [dict(zip(_REVISION, row)) for row in self._rows(query, (name,))]
        return [{**row, "definition": json.loads(row["definition"])} for row in found]

    def definition(self, name: str, number: int | None = None) -> AgentDefinition:
        """Return the definition of an agent: the current one, or that of a revision. Raises NotFound."""
        row = self.agent(name)
        number = row["revision"] if number is None else number
        rows = self._rows("SELECT definition FROM revisions WHERE agent = ? AND number = ?", (name, number))
        if not rows:
            raise NotFound(f'agent "{name}": has no revision {number}; the newest is {row["revision"]}')
        return agent_definition(json.loads(rows[0][0]))

    def definitions(self, names: Iterable[str] | None = None) -> dict[str, AgentDefinition]:
        """Return the current definitions of agents, all or those of the names that exist."""
        query = (
            "SELECT agents.name, definition FROM agents"
            " JOIN revisions ON revisions.agent = agents.name AND revisions.number = agents.revision"
        )
        if names is None:
            rows = self._rows(f"{query} ORDER BY agents.name")
        else:
            rows = [row for name in dict.fromkeys(names) for row in self._rows(f"{query} WHERE name = ?", (name,))]
        return {name: agent_definition(json.loads(data)) for name, data in rows}

    def put_agents(
        self, items: Iterable[tuple[AgentDefinition, str]], expected: Mapping[str, int] | None = None
    ) -> dict[str, dict[str, Any]]:
        """Write definitions, each with its origin (apply, edit, rollback, import): all of them, or none.

        A revision is added only where the id has changed; a new agent is stopped. expected: the revision that must be
        the current one, by name; else Conflict is raised. Returns the agents.
        """
        now = time.time()
        names = []
        with self.transaction() as connection:
            known = self.agents()
            for name, number in (expected or {}).items():
                found = known[name]["revision"] if name in known else 0
                if found != number:
                    raise Conflict(f'agent "{name}": expected revision {number}, found {found}; read it again')
            for definition, origin in items:
                _check("origin", origin, ORIGINS)
                name = definition.name
                names.append(name)
                before = known.get(name)
                if before is not None and before["id"] == definition.id:
                    continue
                number = before["revision"] + 1 if before else 1
                facts = (definition.id, legacy_id(definition))
                connection.execute(
                    "INSERT INTO revisions VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (name, number, *facts, now, origin, json.dumps(definition.to_dict(), ensure_ascii=False)),
                )
                if before is None:
                    connection.execute(
                        "INSERT INTO agents VALUES (?, ?, ?, ?, 'stopped', 0, ?, ?, NULL, 0)",
                        (name, *facts, number, now, now),
                    )
                else:
                    connection.execute(
                        "UPDATE agents SET id = ?, legacy_id = ?, revision = ?, updated = ? WHERE name = ?",
                        (*facts, number, now, name),
                    )
                known.update(self.agents([name]))
            return self.agents(names)

    def import_agent(
        self, name: str, revisions: Sequence[tuple[AgentDefinition, float, str]], current: int, desired: str = "stopped"
    ) -> None:
        """Write an agent that does not exist yet with all its revisions (definition, time, origin), oldest first."""
        _check("desired", desired, DESIRED)
        with self.transaction() as connection:
            if self.agents([name]):
                raise Conflict(f'agent "{name}": exists already')
            if not 1 <= current <= len(revisions):
                raise InvalidInput(f'agent "{name}": current revision: expected 1 to {len(revisions)}, found {current}')
            rows = [
                (
                    name, number, definition.id, legacy_id(definition), moment, origin,
                    json.dumps(definition.to_dict(), ensure_ascii=False),
                )
                for number, (definition, moment, origin) in enumerate(revisions, 1)
            ]  # fmt: skip
            connection.executemany("INSERT INTO revisions VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
            row = rows[current - 1]
            connection.execute(
                "INSERT INTO agents VALUES (?, ?, ?, ?, ?, 0, ?, ?, NULL, 0)",
                (name, row[2], row[3], current, desired, rows[0][4], rows[-1][4]),
            )

    def remove_agents(self, names: Iterable[str]) -> None:
        """Remove agents with their revisions, and the history of their runs; unknown ones are passed over."""
        rows = [(name,) for name in names]
        with self.transaction() as connection:
            connection.executemany("DELETE FROM agents WHERE name = ?", rows)
            for table in ("revisions", "runs", "iterations", "steps", "messages", "injections"):
                connection.executemany(f"DELETE FROM {table} WHERE agent = ?", rows)

    # What is wanted

    def set_desired(self, name: str, desired: str) -> dict[str, Any]:
        """Record what is wanted of an agent: stopped, running or paused. Returns the agent. Raises NotFound."""
        _check("desired", desired, DESIRED)
        return self._set(name, "desired = ?", desired)

    def set_next_run(self, name: str, moment: float | None) -> dict[str, Any]:
        """Record when the schedule of an agent begins its next run. Returns the agent. Raises NotFound."""
        return self._set(name, "next_run = ?", moment)

    def interrupt(self, name: str) -> int:
        """Ask for the end of the iteration that runs, and return how often that was asked for. Raises NotFound."""
        return int(self._set(name, "interrupts = interrupts + ?", 1)["interrupts"])

    def _set(self, name: str, assignment: str, value: Any) -> dict[str, Any]:
        with self.transaction() as connection:
            connection.execute(f"UPDATE agents SET {assignment} WHERE name = ?", (value, name))
            return self.agent(name)

    def data_version(self) -> int:
        """Return a number that changes when another connection has written (PRAGMA data_version)."""
        return int(self._rows("PRAGMA data_version")[0][0])


def unknown(name: str, names: Iterable[str]) -> NotFound:
    """Return the error for an agent that is not declared, with the nearest that is."""
    return NotFound(f'agent "{name}": not known{nearest(name, names)}')


def _check(what: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise InvalidInput(f'{what}: expected {", ".join(allowed)}, found "{value}"')
