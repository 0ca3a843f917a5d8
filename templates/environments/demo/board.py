# SPDX-License-Identifier: GPL-3.0-or-later
"""The job board's database: jobs that wait, run and are done, and the worker's sign of life."""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path
from typing import Any

TITLE_LIMIT = 200


def database_file() -> Path:
    """Return where the database lies: $DATABASE, else data/jobs.db beside this file."""
    return Path(os.environ.get("DATABASE") or Path(__file__).resolve().parent / "data" / "jobs.db")


def connect(path: Path | None = None, create: bool = False) -> sqlite3.Connection:
    """Return a connection with one row a dict. Only create=True makes a file that is not there."""
    path = path or database_file()
    if create:
        path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(
        f"{path.resolve().as_uri()}?mode={'rwc' if create else 'rw'}", uri=True, timeout=5, isolation_level=None
    )
    connection.row_factory = sqlite3.Row
    return connection


def migrate(connection: sqlite3.Connection) -> int:
    """Bring the schema to the newest version and return that version."""
    connection.execute("PRAGMA journal_mode = WAL")
    connection.executescript(
        """
        CREATE TABLE IF NOT EXISTS jobs (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            title TEXT NOT NULL,
            status TEXT NOT NULL DEFAULT 'waiting' CHECK (status IN ('waiting', 'running', 'done')),
            result TEXT,
            created REAL NOT NULL,
            finished REAL
        );
        CREATE INDEX IF NOT EXISTS jobs_status ON jobs (status, id);
        CREATE TABLE IF NOT EXISTS heartbeats (name TEXT PRIMARY KEY, at REAL NOT NULL);
        PRAGMA user_version = 1;
        """
    )
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def add(connection: sqlite3.Connection, title: str) -> dict[str, Any]:
    """Add a job that waits for a worker. Raises ValueError for a title that is empty or too long."""
    title = title.strip()
    if not title or len(title) > TITLE_LIMIT:
        raise ValueError(f"expected a title of 1 to {TITLE_LIMIT} characters, found {len(title)}")
    made = connection.execute("INSERT INTO jobs (title, created) VALUES (?, ?)", (title, time.time()))
    return dict(connection.execute("SELECT * FROM jobs WHERE id = ?", (made.lastrowid,)).fetchone())


def job(connection: sqlite3.Connection, number: int) -> dict[str, Any] | None:
    """Return one job, or None."""
    row = connection.execute("SELECT * FROM jobs WHERE id = ?", (number,)).fetchone()
    return dict(row) if row else None


def jobs(connection: sqlite3.Connection, limit: int = 100) -> list[dict[str, Any]]:
    """Return the newest jobs, newest first."""
    return [dict(row) for row in connection.execute("SELECT * FROM jobs ORDER BY id DESC LIMIT ?", (limit,))]


def requeue(connection: sqlite3.Connection) -> int:
    """Let jobs wait again that a killed worker has left behind; return how many."""
    return connection.execute("UPDATE jobs SET status = 'waiting' WHERE status = 'running'").rowcount


def take(connection: sqlite3.Connection) -> dict[str, Any] | None:
    """Take the oldest waiting job, or None. Two workers never take the same one."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        row = connection.execute("SELECT * FROM jobs WHERE status = 'waiting' ORDER BY id LIMIT 1").fetchone()
        if row:
            connection.execute("UPDATE jobs SET status = 'running' WHERE id = ?", (row["id"],))
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    return dict(row) if row else None


def finish(connection: sqlite3.Connection, number: int, result: str) -> None:
    """Record the result of a job."""
    connection.execute(
        "UPDATE jobs SET status = 'done', result = ?, finished = ? WHERE id = ?", (result, time.time(), number)
    )


def beat(connection: sqlite3.Connection, name: str) -> None:
    """Record that a worker is alive."""
    connection.execute("INSERT OR REPLACE INTO heartbeats VALUES (?, ?)", (name, time.time()))


def last_beat(connection: sqlite3.Connection, name: str) -> float:
    """Return when a worker was last alive, 0 for never."""
    row = connection.execute("SELECT at FROM heartbeats WHERE name = ?", (name,)).fetchone()
    return float(row["at"]) if row else 0.0
