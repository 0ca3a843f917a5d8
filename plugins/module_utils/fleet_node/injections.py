# SPDX-License-Identifier: GPL-3.0-or-later
"""Steering messages on their way into agents: queued, sent, delivered or refused; in the order they came."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fleet_core.errors import InvalidInput, NotFound
else:
    try:
        from ..fleet_core.errors import InvalidInput, NotFound
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import InvalidInput, NotFound

from .agent_history import clean
from .database import Database

LONGEST = 1024 * 1024  # characters of one message
STATES = ("queued", "sent", "delivered", "refused")

SCHEMA = """
    CREATE TABLE injections (
        id INTEGER PRIMARY KEY AUTOINCREMENT, agent TEXT NOT NULL, step TEXT NOT NULL, iteration INTEGER,
        sender TEXT NOT NULL, text TEXT NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL, created REAL NOT NULL,
        moved REAL NOT NULL, delivered_in INTEGER
    );
    CREATE INDEX injections_agent ON injections (agent, id);
    CREATE INDEX injections_open ON injections (agent, id) WHERE state IN ('queued', 'sent');
"""

_COLUMNS = (
    "id", "agent", "step", "iteration", "sender", "text", "state", "reason", "created", "moved", "delivered_in"
)  # fmt: skip


class Injections(Database):
    """The steering messages of all agents. None is dropped: each ends as delivered or refused."""

    def inject(
        self, agent: str, text: str, step: str = "", iteration: int | None = None, sender: str = ""
    ) -> dict[str, Any]:
        """Record a message and return its row: queued, or refused with the reason when its iteration has ended.

        iteration: the id of the iteration that alone may take it. Raises InvalidInput for an empty text, NotFound for
        an agent or an iteration of it that does not exist.
        """
        if not text.strip():
            raise InvalidInput(f'agent "{agent}": expected a message, found an empty text')
        if len(text) > LONGEST:
            raise InvalidInput(
                f'agent "{agent}": expected a message of at most {LONGEST} characters, found {len(text)}'
            )
        now = time.time()
        with self.transaction() as connection:
            if not self._rows("SELECT 1 FROM agents WHERE name = ?", (agent,)):
                raise NotFound(f'agent "{agent}": not known')
            state, reason = "queued", ""
            if iteration is not None:
                rows = self._rows(
                    "SELECT state, number, step FROM iterations WHERE id = ? AND agent = ?", (iteration, agent)
                )
                if not rows:
                    raise NotFound(f'agent "{agent}": has no iteration with the id {iteration}')
                ((its_state, number, its_step),) = rows
                if its_state != "running":
                    state, reason = "refused", f"iteration {number} has ended: {its_state}"
                step = step or its_step
            cursor = connection.execute(
                "INSERT INTO injections (agent, step, iteration, sender, text, state, reason, created, moved)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (agent, step, iteration, clean(sender), clean(text), state, reason, now, now),
            )
            return self.injection(int(cursor.lastrowid or 0))

    def injection(self, ident: int) -> dict[str, Any]:
        """Return one injection. Raises NotFound."""
        rows = self._injections("WHERE id = ?", (ident,))
        if not rows:
            raise NotFound(f"injection {ident}: not known")
        return rows[0]

    def injections(
        self, agent: str, states: Sequence[str] | None = None, after: int = 0, limit: int = 200
    ) -> list[dict[str, Any]]:
        """Return the injections of an agent after an id, in the order they came; with states only those."""
        where, values = "WHERE agent = ? AND id > ?", [agent, after]
        if states is not None:
            if set(states) <= {"queued", "sent"}:
                where += " AND state IN ('queued', 'sent')"  # so that the small index serves
            where += f" AND state IN ({','.join('?' * len(states))})"
            values += list(states)
        return self._injections(f"{where} ORDER BY id LIMIT ?", [*values, limit])

    def delivered_in(self, agent: str, iterations: Sequence[int]) -> list[dict[str, Any]]:
        """Return the injections of an agent that went into one of these iterations, in the order they came."""
        marks = ",".join("?" * len(iterations))
        where = f"WHERE agent = ? AND state = 'delivered' AND delivered_in IN ({marks}) ORDER BY id"
        return self._injections(where, [agent, *iterations])

    def queued(self) -> dict[str, int]:
        """Return how many messages wait, for each agent that has some."""
        query = "SELECT agent, count(*) FROM injections WHERE state IN ('queued', 'sent') AND state = 'queued'"
        return dict(self._rows(f"{query} GROUP BY agent"))

    def move_injections(
        self, ids: Iterable[int], state: str, reason: str = "", iteration: int | None = None
    ) -> list[dict[str, Any]]:
        """Bring injections to a state and return those that moved; delivered and refused ones stay as they are.

        iteration: the id of the iteration that the message went into.
        """
        if state not in STATES:
            raise InvalidInput(f'injection state: expected {", ".join(STATES)}, found "{state}"')
        now = time.time()
        moved = []
        with self.transaction() as connection:
            for ident in dict.fromkeys(ids):
                cursor = connection.execute(
                    "UPDATE injections SET state = ?, reason = ?, moved = ?, delivered_in = coalesce(?, delivered_in)"
                    " WHERE id = ? AND state IN ('queued', 'sent')",
                    (state, clean(reason), now, iteration, ident),
                )
                if cursor.rowcount:
                    moved.append(self.injection(ident))
        return moved

    def _injections(self, where: str, values: Sequence[Any] = ()) -> list[dict[str, Any]]:
        rows = self._rows(f"SELECT {', '.join(_COLUMNS)} FROM injections {where}", values)
        return [dict(zip(_COLUMNS, row)) for row in rows]
