# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m autovibe_fleet.agents.run NAME`: carry the unfinished run of an agent to its end.

Exit code 0: the run reached an end of its own, or there was none to go on with. 143: it was asked to end (SIGTERM) and
the run is to go on later. Anything else: a crash; fleetd starts it again, and it goes on with the run.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from pathlib import Path

from fleet_core.errors import Conflict, FleetError, InvalidInput
from fleet_node import paths

_PATIENCE = 10.0  # seconds for an earlier process of the agent to let go of its lock


def main(argv: list[str] | None = None) -> int:
    """Run it; the only argument is the name of the agent. The state folder is $FLEET_STATE_DIR, or the usual one."""
    words = sys.argv[1:] if argv is None else argv
    try:
        if len(words) != 1 or words[0].startswith("-"):
            raise InvalidInput("usage: python -m autovibe_fleet.agents.run NAME")
        return _run(words[0])
    except FleetError as error:
        print(error, file=sys.stderr, flush=True)
        return error.exit_code


def _run(name: str) -> int:
    import asyncio

    from fleet_node.agents import AgentStore

    from .driver import Driver

    store = AgentStore(paths.state_dir())
    try:
        store.agent(name)
        folder = paths.make_private(paths.agents(store.folder) / name)
        lock = take_lock(folder / "lock", name)
        try:
            _own_temporary_folder(folder / "tmp")
            return asyncio.run(Driver(store, name, folder, dict(os.environ)).run())
        finally:
            os.close(lock)
    finally:
        store.close()


def _own_temporary_folder(folder: Path) -> None:
    """Let the private files of turns lie in a folder of the agent's own, where a killed process leaves none for long.

    This goes for this process alone: what the runner finds in its environment stays as it is.
    """
    import shutil
    import tempfile

    shutil.rmtree(folder, ignore_errors=True)
    paths.make_private(folder)
    tempfile.tempdir = os.fspath(folder)


def take_lock(path: Path, name: str) -> int:
    """Return a descriptor that keeps every other process from running the agent. Children do not inherit it.

    Raises Conflict when another process goes on holding it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(0.05)
                continue
            holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise Conflict(f'agent "{name}": is run by another process already, pid {holder or "unknown"}') from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        return descriptor


if __name__ == "__main__":
    sys.exit(main())
