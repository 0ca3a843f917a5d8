# SPDX-License-Identifier: GPL-3.0-or-later
"""What a provider cannot hold about its machines: one small JSON file a machine, and locks between processes."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from .provider import Job

if TYPE_CHECKING:
    from fleet_core.errors import StateDamaged
    from fleet_node import paths
else:
    try:
        from ..fleet_core.errors import StateDamaged
        from ..fleet_node import paths
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import StateDamaged
        from fleet_node import paths

Record = dict[str, Any]


class Records:
    """The records of one provider, in STATE_DIR/machines/PROVIDER. Reading makes no folder."""

    def __init__(self, state_dir: str, provider: str) -> None:
        self.folder = Path(state_dir) / "machines" / provider

    def all(self) -> dict[str, Record]:
        """Return all records by the names of their machines."""
        return {path.stem: self._read(path) for path in sorted(self.folder.glob("*.json"))}

    def get(self, name: str) -> Record:
        """Return the record of a machine, empty when there is none."""
        return self._read(self.folder / f"{name}.json")

    def put(self, name: str, record: Mapping[str, Any]) -> None:
        """Write a record: after a crash there is the old one or the new one."""
        self._make()
        try:
            handle, temporary = tempfile.mkstemp(dir=self.folder, prefix=f".{name}.")
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    json.dump(record, file, indent=2, sort_keys=True)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, self.folder / f"{name}.json")
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary)
                raise
        except OSError as error:
            raise StateDamaged(f"record of machine {name} in {self.folder}: cannot be written: {error}") from error

    def update(self, name: str, **values: Any) -> Record:
        """Change some values of a record and return it."""
        record = {**self.get(name), **values}
        self.put(name, record)
        return record

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            (self.folder / f"{name}.json").unlink()

    @contextlib.contextmanager
    def locked(self, name: str, job: Job) -> Iterator[None]:
        """Hold the lock of a name against other threads and processes. Raises TimedOut when the job's time is over."""
        self._make()
        path = self.folder / f"{name}.lock"
        waited = False
        while True:
            # A file of its own each time: flock then works between threads too.
            with path.open("a", encoding="utf-8") as file:
                if _lock(file, path):
                    try:
                        yield
                    finally:
                        path.unlink()  # nothing is left of a machine that is gone
                    return
            if not waited:
                waited = True
                job.report(f"wait for {name}, which another operation uses")
            job.check(f'"{name}": another operation did not give it up')
            job.pause(0.05)

    def _make(self) -> None:
        paths.make_private(self.folder.parent.parent)
        paths.make_private(self.folder.parent)
        paths.make_private(self.folder)

    def _read(self, path: Path) -> Record:
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise StateDamaged(f"record {path}: cannot be read: {error}") from error
        if not isinstance(found, dict):
            raise StateDamaged(f"record {path}: expected a JSON object")
        return found


def forget_checkpoints(state_dir: str, provider: str, machine: str) -> None:
    """Remove what is kept of the checkpoints of a machine that is gone, and the folders that are empty then."""
    folder = Path(state_dir) / "machines" / provider / "checkpoints"
    shutil.rmtree(folder / machine, ignore_errors=True)
    for empty in (folder, folder.parent):
        with contextlib.suppress(OSError):
            empty.rmdir()


def _lock(file: IO[str], path: Path) -> bool:
    """Tell whether the file could be locked, and is still the one that the path leads to."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    try:
        return os.fstat(file.fileno()).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False
