# SPDX-License-Identifier: GPL-3.0-or-later
"""One SQLite file of a state folder: opened, migrated, kept aside when damaged, written in transactions."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fleet_core.errors import StateDamaged
else:
    try:
        from ..fleet_core.errors import StateDamaged
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import StateDamaged

from . import paths

_BUSY_SECONDS = 30.0


class Database:
    """One open database file. Safe to use from several threads of a process and from several processes.

    Raises StateDamaged, in a sentence, when the disk is full or the file cannot be read or written. A file that is no
    sound database is moved to NAME.corrupt-TIME and a new one is begun; kept_aside then names it.
    check: look at every page for that, not only at the first one.
    """

    NAME = ""  # of the file in the state folder
    MIGRATIONS: tuple[str, ...] = ()  # one script a version; PRAGMA user_version counts those that have run

    def __init__(self, folder: str | os.PathLike[str] | None = None, check: bool = False) -> None:
        self.folder = paths.make_private(paths.state_dir(folder))
        self.path = self.folder / self.NAME
        self.kept_aside: Path | None = None
        self._check = check
        self._lock = threading.RLock()
        self._depth = 0
        with _sentences(self.path):
            self._connection = self._open()

    def _open(self) -> sqlite3.Connection:
        try:
            return self._connect()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError) and "malformed" not in str(error):
                raise
            with open(self.path.with_name(f"{self.path.name}.lock"), "a", encoding="ascii") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                try:
                    return self._connect()
                except sqlite3.DatabaseError:
                    self.kept_aside = self._keep_aside()
                    return self._connect()

    def _connect(self) -> sqlite3.Connection:
        new = not self.path.exists()
        if new:
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
        connection = sqlite3.connect(
            os.fspath(self.path), timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version > len(self.MIGRATIONS):
                raise StateDamaged(
                    f"state {self.path}: expected schema {len(self.MIGRATIONS)} or older, "
                    f"found {version}; it was written by a newer version"
                )
            if version < len(self.MIGRATIONS):
                _migrate(connection, self.MIGRATIONS)
            else:
                connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if self._check and connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                raise sqlite3.DatabaseError("malformed")
        except BaseException:
            connection.close()
            raise
        return connection

    def _keep_aside(self) -> Path:
        stamp = time.strftime("%Y%m%dT%H%M%S")
        kept = self.path.with_name(f"{self.path.name}.corrupt-{stamp}-{os.getpid()}")
        os.replace(self.path, kept)
        for suffix in ("-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.replace(f"{self.path}{suffix}", f"{kept}{suffix}")
        return kept

    def close(self) -> None:
        """Close the database, once other threads are done with it. Nothing is lost when a process ends without it."""
        with self._lock:
            self._connection.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Give the connection inside one write transaction: all is kept, or nothing is when an error passes."""
        with self._lock, _sentences(self.path):
            if self._depth:
                yield self._connection
                return
            self._connection.execute("BEGIN IMMEDIATE")
            self._depth += 1
            try:
                yield self._connection
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                raise
            else:
                try:
                    self._connection.execute("COMMIT")
                except BaseException:
                    with contextlib.suppress(sqlite3.Error):
                        self._connection.execute("ROLLBACK")
                    raise
            finally:
                self._depth -= 1

    @contextlib.contextmanager
    def reading(self, query: str, values: Iterable[Any] = ()) -> Iterator[sqlite3.Cursor]:
        """Give the rows of a query one by one, for as many as are wanted."""
        with self._lock, _sentences(self.path):
            cursor = self._connection.execute(query, tuple(values))
            try:
                yield cursor
            finally:
                cursor.close()

    def _rows(self, query: str, values: Iterable[Any] = ()) -> list[tuple[Any, ...]]:
        with self._lock, _sentences(self.path):
            return self._connection.execute(query, tuple(values)).fetchall()


def _migrate(connection: sqlite3.Connection, migrations: Sequence[str]) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        for script in migrations[version:]:
            for statement in script.split(";"):
                if statement.strip():
                    connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(migrations)}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


@contextlib.contextmanager
def _sentences(path: Path) -> Iterator[None]:
    """Turn what SQLite and the system say into StateDamaged; IntegrityError passes."""
    try:
        yield
    except sqlite3.IntegrityError:
        raise
    except sqlite3.Error as error:
        text = str(error)
        if "disk is full" in text or "disk I/O" in text:
            text = "the disk is full or failing; nothing was changed"
        elif "locked" in text:
            text = f"another program has held it for {_BUSY_SECONDS:g} seconds"
        raise StateDamaged(f"state {path}: {text}") from error
    except OSError as error:
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EIO, errno.EROFS):
            raise
        raise StateDamaged(f"state {path}: {error.strerror}") from error
