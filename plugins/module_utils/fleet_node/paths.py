# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a host's state lies."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fleet_core.errors import StateDamaged
else:
    try:
        from ..fleet_core.errors import StateDamaged
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import StateDamaged

SYSTEM_STATE = "/var/lib/autovibe"
SYSTEM_RUNNERS = "/opt/autovibe/runners"
DATABASE = "fleet.db"
AGENTS_DATABASE = "agents.db"


def state_dir(given: str | os.PathLike[str] | None = None, environ: Mapping[str, str] | None = None) -> Path:
    """Return the state folder: the given one, $FLEET_STATE_DIR, /var/lib/autovibe for root, or the XDG state folder."""
    environ = os.environ if environ is None else environ
    if given:
        return Path(os.path.abspath(os.path.expanduser(os.fspath(given))))
    if environ.get("FLEET_STATE_DIR"):
        return Path(os.path.abspath(os.path.expanduser(environ["FLEET_STATE_DIR"])))
    if os.geteuid() == 0:
        return Path(SYSTEM_STATE)
    base = environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return Path(base) / "autovibe"


def make_private(folder: Path) -> Path:
    """Create a folder that only its owner can enter (0700), with its parents. Raises StateDamaged when that fails.

    A folder such as /tmp, which is not the fleet's to close, is refused.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
        if status.st_uid != os.geteuid() and os.geteuid() != 0:
            raise StateDamaged(
                f"state folder {folder}: expected one of user {os.geteuid()}, found one of user {status.st_uid}"
            )
        if status.st_mode & 0o002 or folder in (Path("/"), Path(os.path.expanduser("~"))):
            raise StateDamaged(f"state folder {folder}: expected a folder of the fleet's own, found one of others too")
        if status.st_mode & 0o077:
            folder.chmod(0o700)
    except OSError as error:
        raise StateDamaged(f"state folder {folder}: cannot be made or entered: {error.strerror}") from error
    return folder


def database(folder: Path) -> Path:
    """Return the path of the SQLite store."""
    return folder / DATABASE


def socket(folder: Path) -> Path:
    """Return the path of fleetd's socket."""
    return folder / "fleetd.sock"


def lock(folder: Path) -> Path:
    """Return the path of the file that a running fleetd holds locked."""
    return folder / "fleetd.lock"


def daemon_log(folder: Path) -> Path:
    """Return the path of fleetd's own log."""
    return folder / "fleetd.log"


def logs(folder: Path) -> Path:
    """Return the folder of the logs of processes that belong to no environment."""
    return folder / "logs"


def spool(folder: Path) -> Path:
    """Return the folder where running processes write before their lines reach the logs."""
    return folder / "spool"


def runners_dir(environ: Mapping[str, str] | None = None) -> Path:
    """Return the folder whose bin/ holds the agents' command lines.

    That is $FLEET_RUNNERS_DIR, /opt/autovibe/runners for root, or autovibe/runners in the XDG data folder.
    """
    environ = os.environ if environ is None else environ
    if environ.get("FLEET_RUNNERS_DIR"):
        return Path(os.path.abspath(os.path.expanduser(environ["FLEET_RUNNERS_DIR"])))
    if os.geteuid() == 0:
        return Path(SYSTEM_RUNNERS)
    base = environ.get("XDG_DATA_HOME") or os.path.join(os.path.expanduser("~"), ".local", "share")
    return Path(base) / "autovibe" / "runners"


def agents(folder: Path) -> Path:
    """Return the folder where each agent has a folder with the records of its runs."""
    return folder / "agents"
