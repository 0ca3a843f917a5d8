# SPDX-License-Identifier: GPL-3.0-or-later
"""What agents did: runs, their iterations and the messages of those, as plain JSON-ready rows.

Times are seconds since the epoch, None for what has not come yet. Ids rise and are never given twice.
"""

from __future__ import annotations

import json
import math
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fleet_core.errors import Conflict, InvalidInput, NotFound
else:
    try:
        from ..fleet_core.errors import Conflict, InvalidInput, NotFound
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import Conflict, InvalidInput, NotFound

from .database import Database

Row = dict[str, Any]

UNFINISHED = ("running", "paused", "waiting")
FINISHED = ("completed", "failed", "stopped", "limited")
ITERATION_STATES = ("running", "succeeded", "failed", "interrupted")

SCHEMA = """
    CREATE TABLE runs (
        id INTEGER PRIMARY KEY AUTOINCREMENT, agent TEXT NOT NULL, revision INTEGER NOT NULL, state TEXT NOT NULL,
        reason TEXT NOT NULL, started REAL NOT NULL, finished REAL, position TEXT NOT NULL, totals TEXT NOT NULL,
        workspace TEXT NOT NULL, updated REAL NOT NULL
    );
    CREATE INDEX runs_agent ON runs (agent, id);
    CREATE UNIQUE INDEX runs_unfinished ON runs (agent) WHERE state IN ('running', 'paused', 'waiting');
    CREATE TABLE iterations (
        id INTEGER PRIMARY KEY AUTOINCREMENT, number INTEGER NOT NULL, run INTEGER NOT NULL, agent TEXT NOT NULL,
        step TEXT NOT NULL, item TEXT NOT NULL, revision INTEGER NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL,
        error TEXT NOT NULL, started REAL NOT NULL, finished REAL, duration REAL, session TEXT NOT NULL,
        usage TEXT NOT NULL, tokens INTEGER NOT NULL, cost REAL, result TEXT NOT NULL, attempt_of INTEGER,
        token TEXT NOT NULL, pid INTEGER NOT NULL, pid_started REAL NOT NULL, verification TEXT NOT NULL,
        watchdog TEXT NOT NULL, UNIQUE (agent, number)
    );
    CREATE INDEX iterations_step ON iterations (agent, step, id);
    CREATE INDEX iterations_run ON iterations (run, id);
    CREATE TABLE steps (
        agent TEXT NOT NULL, step TEXT NOT NULL, iterations INTEGER NOT NULL, last INTEGER NOT NULL,
        PRIMARY KEY (agent, step)
    ) WITHOUT ROWID;
    CREATE TABLE messages (
        id INTEGER PRIMARY KEY AUTOINCREMENT, agent TEXT NOT NULL, iteration INTEGER NOT NULL, time REAL NOT NULL,
        type TEXT NOT NULL, content TEXT NOT NULL, detail TEXT NOT NULL
    );
    CREATE INDEX messages_agent ON messages (agent, id);
    CREATE INDEX messages_iteration ON messages (iteration, id);
"""

_RUN = (
    "id",
    "agent",
    "revision",
    "state",
    "reason",
    "started",
    "finished",
    "position",
    "totals",
    "workspace",
    "updated",
)
_RUN_JSON: Row = {"position": {}, "totals": {}, "workspace": {}}
_NO_TOTALS = {"iterations": 0, "failed": 0, "cost": 0.0, "tokens": 0, "seconds": 0.0}
_ITERATION = (
    "id", "number", "run", "agent", "step", "item", "revision", "state", "reason", "error", "started", "finished",
    "duration", "session", "usage", "cost", "result", "attempt_of", "token", "pid", "pid_started", "verification",
    "watchdog",
)  # fmt: skip
_SHORT = ("id", "number", "run", "item", "state", "error", "started", "finished", "duration")
_ITERATION_JSON: Row = {"usage": {}, "verification": None, "watchdog": []}
_ITERATION_FIELDS = frozenset(_ITERATION) - {"id", "number", "run", "agent", "duration"}
_PAGE = 8 * 1024 * 1024  # characters of messages in one answer
_MESSAGE = ("id", "agent", "iteration", "time", "type", "content", "detail")


class AgentHistory(Database):
    """Runs, iterations and messages. The run process writes them; everybody reads them."""

    # Runs

    def begin_run(self, agent: str, revision: int, **facts: Any) -> int:
        """Begin a run and return its id. facts: position, totals, workspace, reason.

        Raises NotFound for an unknown agent, Conflict while an earlier run of it is unfinished.
        """
        _known(facts, ("position", "totals", "workspace", "reason", "started"))
        now = float(facts.get("started") or time.time())
        totals = {**_NO_TOTALS, **(facts.get("totals") or {})}
        values = [
            agent, revision, "running", str(facts.get("reason") or ""), now, json.dumps(facts.get("position") or {}),
            json.dumps(totals), json.dumps(facts.get("workspace") or {}), now,
        ]  # fmt: skip
        try:
            with self.transaction() as connection:
                self._check_agent(agent)
                cursor = connection.execute(
                    "INSERT INTO runs (agent, revision, state, reason, started, position, totals, workspace, updated)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    values,
                )
                return int(cursor.lastrowid or 0)
        except sqlite3.IntegrityError:
            raise Conflict(f'agent "{agent}": a run of it is not finished') from None

    def run(self, ident: int) -> Row:
        """Return one run. Raises NotFound."""
        rows = self._runs("WHERE id = ?", (ident,))
        if not rows:
            raise NotFound(f"run {ident}: not known")
        return rows[0]

    def runs(self, agent: str, limit: int = 20) -> list[Row]:
        """Return the runs of an agent, newest first."""
        return self._runs("WHERE agent = ? ORDER BY id DESC LIMIT ?", (agent, limit))

    def unfinished_run(self, agent: str) -> Row | None:
        """Return the run that is to go on, or None."""
        rows = self._runs("WHERE agent = ? AND state IN ('running', 'paused', 'waiting')", (agent,))
        return rows[0] if rows else None

    def last_runs(self, agents: Iterable[str] | None = None) -> dict[str, Row]:
        """Return the newest run of each agent that ever ran."""
        if agents is None:
            rows = self._runs("WHERE id IN (SELECT max(id) FROM runs GROUP BY agent)")
        else:
            rows = [row for agent in dict.fromkeys(agents) for row in self.runs(agent, 1)]
        return {row["agent"]: row for row in rows}

    def update_run(self, ident: int, **fields: Any) -> Row:
        """Write state, reason, position, totals, workspace or revision of a run, and return it.

        A state that ends the run sets finished; one that does not clears it. Raises NotFound, InvalidInput, and
        Conflict when it would be the second unfinished run of its agent.
        """
        _known(fields, ("state", "reason", "position", "totals", "workspace", "revision", "finished"))
        now = time.time()
        state = fields.get("state")
        if state is not None:
            _one_of("run state", state, (*UNFINISHED, *FINISHED))
            if state in UNFINISHED:
                fields["finished"] = None
            elif fields.get("finished") is None:
                fields["finished"] = now
        values = {key: json.dumps(value) if key in _RUN_JSON else clean(value) for key, value in fields.items()}
        values["updated"] = now
        try:
            with self.transaction() as connection:
                _update(connection, "runs", ident, values)
                return self.run(ident)
        except sqlite3.IntegrityError:
            raise Conflict(f"run {ident}: another run of its agent is not finished") from None

    def _runs(self, where: str, values: Sequence[Any] = ()) -> list[Row]:
        rows = self._rows(f"SELECT {', '.join(_RUN)} FROM runs {where}", values)
        return [_decoded(_RUN, row, _RUN_JSON) for row in rows]

    # Iterations

    def begin_iteration(
        self,
        run: int,
        agent: str,
        step: str,
        revision: int,
        token: str,
        item: str = "",
        attempt_of: int | None = None,
        session: str = "",
    ) -> Row:
        """Begin an iteration and return its row. token: what its processes carry in FLEET_ITERATION.

        attempt_of: id of the iteration that this one does again. Raises NotFound.
        """
        now = time.time()
        with self.transaction() as connection:
            self._check_agent(agent)
            connection.execute("UPDATE agents SET iterations = iterations + 1 WHERE name = ?", (agent,))
            (number,) = connection.execute("SELECT iterations FROM agents WHERE name = ?", (agent,)).fetchone()
            cursor = connection.execute(
                "INSERT INTO iterations (number, run, agent, step, item, revision, state, reason, error, started,"
                " session, usage, tokens, result, attempt_of, token, pid, pid_started, verification, watchdog)"
                " VALUES (?, ?, ?, ?, ?, ?, 'running', '', '', ?, ?, '{}', 0, '', ?, ?, 0, 0, 'null', '[]')",
                (number, run, agent, step, clean(item), revision, now, session, attempt_of, token),
            )
            ident = int(cursor.lastrowid or 0)
            connection.execute(
                "INSERT INTO steps VALUES (?, ?, 1, ?)"
                " ON CONFLICT (agent, step) DO UPDATE SET iterations = iterations + 1, last = excluded.last",
                (agent, step, ident),
            )
            return self.iteration(ident)

    def update_iteration(self, ident: int, **fields: Any) -> Row:
        """Write facts of an iteration, such as pid and pid_started, session or usage so far, and return it."""
        _known(fields, _ITERATION_FIELDS)
        if "state" in fields:
            _one_of("iteration state", fields["state"], ITERATION_STATES)
        values = {key: json.dumps(value) if key in _ITERATION_JSON else clean(value) for key, value in fields.items()}
        if "usage" in fields:
            values["tokens"] = _tokens(fields["usage"])
            if fields.get("cost") is None and isinstance(fields["usage"], Mapping):
                values["cost"] = fields["usage"].get("cost")
        with self.transaction() as connection:
            _update(connection, "iterations", ident, values)
            return self.iteration(ident)

    def end_iteration(self, ident: int, state: str, **fields: Any) -> Row:
        """End an iteration: succeeded, failed or interrupted. fields: as update_iteration. Returns the row."""
        with self.transaction() as connection:
            finished = float(fields.pop("finished", None) or time.time())
            duration = fields.pop("duration", None)
            self.update_iteration(ident, state=state, finished=finished, **fields)
            connection.execute(
                "UPDATE iterations SET duration = coalesce(?, max(0, finished - started)) WHERE id = ?",
                (duration, ident),
            )
            return self.iteration(ident)

    def iteration(self, ident: int) -> Row:
        """Return one iteration by its id. Raises NotFound."""
        rows = self._iterations("WHERE id = ?", (ident,))
        if not rows:
            raise NotFound(f"iteration {ident}: not known")
        return rows[0]

    def iterations(
        self, agent: str, run: int | None = None, step: str | None = None, before: int | None = None, limit: int = 50
    ) -> list[Row]:
        """Return iterations of an agent, newest first. before: an id; only earlier ones."""
        where, values = _where([("agent", agent), ("run", run), ("step", step)])
        if before is not None:
            where, values = f"{where} AND id < ?", [*values, before]
        return self._iterations(f"WHERE {where} ORDER BY id DESC LIMIT ?", [*values, limit])

    def _iterations(self, where: str, values: Sequence[Any] = ()) -> list[Row]:
        rows = self._rows(f"SELECT {', '.join(_ITERATION)} FROM iterations {where}", values)
        return [_decoded(_ITERATION, row, _ITERATION_JSON) for row in rows]

    def steps(self, agents: Iterable[str] | None = None) -> dict[str, dict[str, Row]]:
        """Return for each agent and step {iterations, last}: how many there were, and the last one in short."""
        names = None if agents is None else list(dict.fromkeys(agents))
        columns = ", ".join(f"iterations.{name}" for name in _SHORT)
        query = f"SELECT steps.agent, steps.step, steps.iterations, {columns} FROM steps"
        query += " JOIN iterations ON iterations.id = steps.last"
        if names is None:
            rows = self._rows(query)
        else:
            rows = [row for name in names for row in self._rows(f"{query} WHERE steps.agent = ?", (name,))]
        found: dict[str, dict[str, Row]] = {}
        for agent, step, count, *last in rows:
            found.setdefault(agent, {})[step] = {"iterations": count, "last": dict(zip(_SHORT, last))}
        return found

    def statistics(self, agent: str, run: int | None = None, step: str | None = None) -> Row:
        """Return counts, and mean and standard deviation of duration (seconds) and tokens, over ended iterations."""
        where, values = _where([("agent", agent), ("run", run), ("step", step)])
        ((total, succeeded, failed, interrupted, cost),) = self._rows(
            "SELECT count(*), sum(state = 'succeeded'), sum(state = 'failed'), sum(state = 'interrupted'), sum(cost)"
            f" FROM iterations WHERE {where}",
            values,
        )
        ((count, seconds, squares, tokens, token_squares),) = self._rows(
            "SELECT count(*), total(duration), total(duration * duration), total(tokens), total(1.0 * tokens * tokens)"
            f" FROM iterations WHERE {where} AND state != 'running'",
            values,
        )
        return {
            "iterations": total,
            "succeeded": succeeded or 0,
            "failed": failed or 0,
            "interrupted": interrupted or 0,
            "duration": _spread(count, seconds, squares),
            "tokens": {**_spread(count, tokens, token_squares), "total": int(tokens)},
            "cost": cost or 0.0,
        }

    # Messages

    def add_messages(self, iteration: int, items: Iterable[Mapping[str, Any]]) -> list[Row]:
        """Append messages {time, type, content, detail} to an iteration in one transaction; return them with ids."""
        found = []
        with self.transaction() as connection:
            agent = self.iteration(iteration)["agent"]
            for item in items:
                values = (
                    agent, iteration, float(item.get("time") or time.time()), str(item["type"]),
                    clean(str(item.get("content") or "")), dict(item.get("detail") or {}),
                )  # fmt: skip
                cursor = connection.execute(
                    "INSERT INTO messages (agent, iteration, time, type, content, detail) VALUES (?, ?, ?, ?, ?, ?)",
                    (*values[:-1], json.dumps(values[-1])),
                )
                found.append(dict(zip(_MESSAGE, (int(cursor.lastrowid or 0), *values))))
        return found

    def messages(
        self, agent: str, iteration: int | None = None, after: int = 0, before: int | None = None, limit: int = 200
    ) -> list[Row]:
        """Return messages, oldest first: the first ones after an id, or the last ones before an id.

        iteration: the id of one iteration. before: takes the last `limit` messages that come before that id. There may
        be fewer than limit, though never none while some are left, where they are very long.
        """
        where, values = _where([("agent", agent)] if iteration is None else [("iteration", iteration)])
        if iteration is not None:
            where, values = f"{where} AND agent = ?", [*values, agent]
        query = f"SELECT {', '.join(_MESSAGE)} FROM messages WHERE {where} AND id > ?"
        if before is None:
            return self._page(f"{query} ORDER BY id LIMIT ?", [*values, after, limit])
        return self._page(f"{query} AND id < ? ORDER BY id DESC LIMIT ?", [*values, after, before, limit])[::-1]

    def _page(self, query: str, values: Sequence[Any]) -> list[Row]:
        """Return messages up to _PAGE characters of them, but one at least: who pages on gets the rest."""
        found: list[Row] = []
        size = 0
        with self.reading(query, values) as rows:
            for row in rows:
                size += len(row[5]) + len(row[6])
                if found and size > _PAGE:
                    break
                found.append(_decoded(_MESSAGE, row, {"detail": {}}))
        return found

    def _check_agent(self, name: str) -> None:
        if not self._rows("SELECT 1 FROM agents WHERE name = ?", (name,)):
            raise NotFound(f'agent "{name}": not known')


def _where(pairs: Iterable[tuple[str, Any]]) -> tuple[str, list[Any]]:
    kept = [(name, value) for name, value in pairs if value is not None]
    return " AND ".join(f"{name} = ?" for name, _value in kept), [value for _name, value in kept]


def _known(fields: Mapping[str, Any], allowed: Iterable[str]) -> None:
    for key in fields:
        if key not in allowed:
            raise InvalidInput(f'expected one of {", ".join(sorted(allowed))}, found "{key}"')


def _one_of(what: str, value: Any, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise InvalidInput(f"{what}: expected {', '.join(allowed)}, found {value!r}")


def _update(connection: sqlite3.Connection, table: str, ident: int, values: Mapping[str, Any]) -> None:
    marks = ", ".join(f"{key} = ?" for key in values)
    cursor = connection.execute(f"UPDATE {table} SET {marks} WHERE id = ?", (*values.values(), ident))
    if cursor.rowcount != 1:
        raise NotFound(f"{table[:-1]} {ident}: not known")


def _decoded(columns: Sequence[str], row: Sequence[Any], plain: Mapping[str, Any]) -> Row:
    found = dict(zip(columns, row))
    for key in plain:
        found[key] = json.loads(found[key])
    return found


def clean(text: Any) -> Any:
    """Return text that SQLite takes: halves of characters, which a cut-off stream may hold, read "?"."""
    return text.encode("utf-8", "replace").decode() if isinstance(text, str) else text


def _tokens(usage: Any) -> int:
    if not isinstance(usage, Mapping):
        return 0
    return sum(
        int(value) for key, value in usage.items() if key.endswith("_tokens") and isinstance(value, (int, float))
    )


def _spread(count: int, total: float, squares: float) -> Row:
    mean = total / count if count else 0.0
    return {"mean": mean, "deviation": math.sqrt(max(0.0, squares / count - mean * mean)) if count else 0.0}
