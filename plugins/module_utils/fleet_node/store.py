# SPDX-License-Identifier: GPL-3.0-or-later
"""The state of one host in SQLite: types, templates, claims, counters, processes, environments.

Every write is one transaction; a claim is a row with a unique (space, value), so two callers never hold one value.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fleet_core.process_status import ProcessStatus, status_from_dict
    from fleet_core.processes import ProcessSpec, process_spec
    from fleet_core.resource_types import DEFAULTS, ResourceType, resource_type
    from fleet_core.resources import Allocation, Claim, View
    from fleet_core.templates import Template, template
else:
    try:
        from ..fleet_core.process_status import ProcessStatus, status_from_dict
        from ..fleet_core.processes import ProcessSpec, process_spec
        from ..fleet_core.resource_types import DEFAULTS, ResourceType, resource_type
        from ..fleet_core.resources import Allocation, Claim, View
        from ..fleet_core.templates import Template, template
    except ImportError:  # installed as a top-level package
        from fleet_core.process_status import ProcessStatus, status_from_dict
        from fleet_core.processes import ProcessSpec, process_spec
        from fleet_core.resource_types import DEFAULTS, ResourceType, resource_type
        from fleet_core.resources import Allocation, Claim, View
        from fleet_core.templates import Template, template

from . import paths
from .database import Database

_MIGRATIONS = (
    """
    CREATE TABLE resource_types (name TEXT PRIMARY KEY, data TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE templates (id TEXT PRIMARY KEY, data TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE counters (type TEXT PRIMARY KEY, next INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE claims (
        space TEXT NOT NULL, value TEXT NOT NULL, type TEXT NOT NULL, owner TEXT NOT NULL, name TEXT NOT NULL,
        claimed_at REAL NOT NULL, PRIMARY KEY (space, value), UNIQUE (owner, name)
    ) WITHOUT ROWID;
    CREATE TABLE processes (
        id TEXT PRIMARY KEY, environment TEXT NOT NULL, spec TEXT NOT NULL, status TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX processes_environment ON processes (environment);
    CREATE TABLE environments (name TEXT PRIMARY KEY, path TEXT NOT NULL UNIQUE, data TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    """,
)


class Store(Database):
    """The open state database: Database says what opening it does."""

    NAME = paths.DATABASE
    MIGRATIONS = _MIGRATIONS

    # Resource types

    def types(self) -> dict[str, ResourceType]:
        """Return every resource type: the defaults, and what was put over or beside them."""
        found = {kind.name: kind for kind in DEFAULTS}
        for name, data in self._rows("SELECT name, data FROM resource_types ORDER BY name"):
            if data == "null":
                found.pop(name, None)
            else:
                found[name] = resource_type(json.loads(data))
        return found

    def put_types(self, kinds: Iterable[ResourceType]) -> None:
        """Write resource types, new or changed."""
        rows = [(kind.name, json.dumps(kind.to_dict())) for kind in kinds]
        with self.transaction() as connection:
            connection.executemany("INSERT OR REPLACE INTO resource_types VALUES (?, ?)", rows)

    def remove_types(self, names: Iterable[str]) -> None:
        """Remove resource types; a default one stays removed."""
        defaults = {kind.name for kind in DEFAULTS}
        with self.transaction() as connection:
            for name in names:
                connection.execute("DELETE FROM resource_types WHERE name = ?", (name,))
                connection.execute("DELETE FROM counters WHERE type = ?", (name,))
                if name in defaults:
                    connection.execute("INSERT INTO resource_types VALUES (?, 'null')", (name,))

    # Templates

    def templates(self) -> dict[str, Template]:
        """Return every process template by id."""
        rows = self._rows("SELECT id, data FROM templates ORDER BY id")
        return {name: template({"id": name, **json.loads(data)}) for name, data in rows}

    def template(self, name: str) -> Template | None:
        """Return one template, or None."""
        rows = self._rows("SELECT data FROM templates WHERE id = ?", (name,))
        return template({"id": name, **json.loads(rows[0][0])}) if rows else None

    def put_templates(self, items: Iterable[Template]) -> None:
        """Write templates, new or changed."""
        with self.transaction() as connection:
            rows = [(item.id, json.dumps(dict(item.fields))) for item in items]
            connection.executemany("INSERT OR REPLACE INTO templates VALUES (?, ?)", rows)

    def remove_templates(self, names: Iterable[str]) -> None:
        """Remove templates; processes made from them keep their fields."""
        with self.transaction() as connection:
            connection.executemany("DELETE FROM templates WHERE id = ?", [(name,) for name in names])

    # Claims

    def view(self, kinds: Iterable[str] | None = None, owners: Iterable[str] = ()) -> View:
        """Return what an allocation must know: all types, and the claims on values of the kinds and of the owners."""
        types = self.types()
        query = "SELECT space, value, type, owner, name FROM claims"
        values: list[str] = []
        if kinds is not None:
            spaces = sorted({types[kind].space for kind in kinds if kind in types})
            values = spaces + sorted(set(owners))
            if len(values) < 500:
                marks = ",".join("?" * len(spaces)), ",".join("?" * (len(values) - len(spaces)))
                query += f" WHERE space IN ({marks[0]}) OR owner IN ({marks[1]})"
            else:
                values = []
        with self._lock:
            claims = {(row[0], row[1]): Claim(row[2], row[1], row[3], row[4]) for row in self._rows(query, values)}
            counters = dict(self._rows("SELECT type, next FROM counters"))
        return View(types, claims, counters)

    def commit(self, allocation: Allocation, types: Mapping[str, ResourceType]) -> bool:
        """Write an allocation. Returns False, and writes nothing, when another caller was faster with a value."""
        now = time.time()
        rows = [
            (types[claim.type].space, claim.value, claim.type, claim.owner, claim.name, now)
            for claim in allocation.claimed
        ]
        try:
            with self.transaction() as connection:
                connection.executemany(
                    "DELETE FROM claims WHERE owner = ? AND name = ?",
                    [(claim.owner, claim.name) for claim in allocation.released],
                )
                connection.executemany("INSERT INTO claims VALUES (?, ?, ?, ?, ?, ?)", rows)
                connection.executemany(
                    "INSERT OR REPLACE INTO counters VALUES (?, ?)", list(allocation.counters.items())
                )
        except sqlite3.IntegrityError:
            return False
        return True

    def claims(self, owners: Iterable[str] | None = None) -> list[Claim]:
        """Return all claims, or those of the owners, in the order of type and value."""
        query = "SELECT type, value, owner, name FROM claims"
        if owners is None:
            rows = self._rows(query)
        else:
            rows = [row for owner in dict.fromkeys(owners) for row in self._rows(f"{query} WHERE owner = ?", (owner,))]
        claims = [Claim(*row) for row in rows]
        return sorted(claims, key=lambda claim: (claim.type, claim.value.zfill(8), claim.value))

    def release(self, owners: Iterable[str]) -> list[Claim]:
        """Give back every claim of the owners and return them."""
        owners = list(dict.fromkeys(owners))
        with self.transaction() as connection:
            given_back = self.claims(owners)
            connection.executemany("DELETE FROM claims WHERE owner = ?", [(owner,) for owner in owners])
        return given_back

    def release_claims(self, claims: Iterable[Claim]) -> None:
        """Give back single claims, if they are still held as given."""
        rows = [(claim.type, claim.value, claim.owner) for claim in claims]
        with self.transaction() as connection:
            connection.executemany("DELETE FROM claims WHERE type = ? AND value = ? AND owner = ?", rows)

    def set_counters(self, counters: Mapping[str, int]) -> None:
        """Set the value that each counter type gives out next."""
        with self.transaction() as connection:
            connection.executemany("INSERT OR REPLACE INTO counters VALUES (?, ?)", list(counters.items()))

    # Processes

    def processes(self, ids: Iterable[str] | None = None) -> dict[str, tuple[ProcessSpec, ProcessStatus]]:
        """Return declared processes with their last recorded status, all or those of the ids that exist."""
        query = "SELECT id, spec, status FROM processes"
        if ids is None:
            rows = self._rows(f"{query} ORDER BY id")
        else:
            rows = [row for ident in dict.fromkeys(ids) for row in self._rows(f"{query} WHERE id = ?", (ident,))]
        return {row[0]: (process_spec(json.loads(row[1])), status_from_dict(json.loads(row[2]))) for row in rows}

    def put_processes(self, items: Iterable[tuple[ProcessSpec, ProcessStatus]]) -> None:
        """Write processes with their status, new or changed."""
        rows = [
            (spec.id, spec.environment, json.dumps(spec.to_dict()), json.dumps(status.to_dict()))
            for spec, status in items
        ]
        with self.transaction() as connection:
            connection.executemany("INSERT OR REPLACE INTO processes VALUES (?, ?, ?, ?)", rows)

    def put_statuses(self, items: Mapping[str, ProcessStatus]) -> None:
        """Write the status of processes that are declared; others are passed over."""
        rows = [(json.dumps(status.to_dict()), ident) for ident, status in items.items()]
        with self.transaction() as connection:
            connection.executemany("UPDATE processes SET status = ? WHERE id = ?", rows)

    def remove_processes(self, ids: Iterable[str]) -> None:
        """Remove declared processes and their claims."""
        rows = [(ident,) for ident in ids]
        with self.transaction() as connection:
            connection.executemany("DELETE FROM claims WHERE owner = ?", rows)
            connection.executemany("DELETE FROM processes WHERE id = ?", rows)

    # Environments

    def environments(self) -> dict[str, dict[str, Any]]:
        """Return the known environments by name: path of the project file and what was recorded."""
        rows = self._rows("SELECT name, path, data FROM environments ORDER BY name")
        return {name: {"path": path, **json.loads(data)} for name, path, data in rows}

    def put_environment(self, name: str, path: str, data: Mapping[str, Any]) -> None:
        """Write one environment."""
        with self.transaction() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO environments VALUES (?, ?, ?)", (name, path, json.dumps(dict(data)))
            )

    def remove_environment(self, name: str) -> None:
        """Remove one environment; its processes are removed by remove_processes."""
        with self.transaction() as connection:
            connection.execute("DELETE FROM environments WHERE name = ?", (name,))

    # Settings

    def setting(self, key: str) -> Any:
        """Return a recorded value, or None."""
        rows = self._rows("SELECT value FROM settings WHERE key = ?", (key,))
        return json.loads(rows[0][0]) if rows else None

    def put_setting(self, key: str, value: Any) -> None:
        """Record a JSON-ready value."""
        with self.transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (key, json.dumps(value)))
