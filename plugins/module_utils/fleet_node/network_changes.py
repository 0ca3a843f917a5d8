# SPDX-License-Identifier: GPL-3.0-or-later
"""Changes of a host's network that take themselves back, unless they are confirmed in time over another connection.

Who keeps the time is systemd: a timer for this boot, a unit for the next one. Both run the script of network_rollback,
so that neither the connection nor the process that made the change has to live on.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fleet_core import network_rollback
    from fleet_core.errors import Conflict, NotFound, StateDamaged, TimedOut, Unavailable
    from fleet_core.moments import iso
    from fleet_core.network_rollback import Before
    from fleet_core.quantities import format_duration
else:
    try:
        from ..fleet_core import network_rollback
        from ..fleet_core.errors import Conflict, NotFound, StateDamaged, TimedOut, Unavailable
        from ..fleet_core.moments import iso
        from ..fleet_core.network_rollback import Before
        from ..fleet_core.quantities import format_duration
    except ImportError:  # installed as a top-level package
        from fleet_core import network_rollback
        from fleet_core.errors import Conflict, NotFound, StateDamaged, TimedOut, Unavailable
        from fleet_core.moments import iso
        from fleet_core.network_rollback import Before
        from fleet_core.quantities import format_duration

from . import paths
from .egress_commands import attempt, run

FOLDER = "network"
SYSTEMD = Path("/run/systemd/system")
WHY = {
    "timeout": "no confirmation came within {limit}",
    "boot": "the host was booted before a confirmation came",
    "failed": "it could not be applied",
    "asked": "somebody asked for it",
}


@dataclass(frozen=True)
class Pending:
    """A change that waits for its confirmation. ends: seconds since the epoch; connection: of SSH, that it came by."""

    ident: str
    ends: float
    seconds: float
    connection: str = ""


class Changes:
    """The record of changes in a state folder: at most one waits."""

    def __init__(self, state_dir: str | os.PathLike[str] | None = None) -> None:
        self.folder = paths.state_dir(state_dir) / FOLDER

    def pending(self) -> Pending | None:
        """Return the change that waits for its confirmation."""
        data = _read(self.folder / network_rollback.PENDING)
        if not data:
            return None
        return Pending(str(data["id"]), float(data["ends"]), float(data["seconds"]), str(data.get("connection", "")))

    def waits(self, pending: Pending) -> bool:
        """Return whether somebody keeps the time of a change; not so after a kill in its first moment."""
        name = network_rollback.timer_name(pending.ident)
        units = [f"{name}.timer", f"{name}.service"]
        states = attempt(["systemctl", "show", "--property=ActiveState", "--value", *units]).stdout.split()
        return bool(set(states) - {"inactive", "failed"})  # a service that rolls back is "activating"

    def refuse_pending(self) -> None:
        """Raise Conflict if a change waits."""
        pending = self.pending()
        if pending is not None and self.waits(pending):
            raise self.conflict(pending)

    def clear(self) -> None:
        """Roll back a change whose time nobody keeps: its process was killed in its first moment."""
        pending = self.pending()
        if pending is not None and not self.waits(pending):
            self.roll_back("asked")

    @staticmethod
    def conflict(pending: Pending) -> Conflict:
        """Return the error of one who wants to change what waits."""
        return Conflict(
            f"change {pending.ident}: waits for its confirmation until {iso(pending.ends)}; "
            f"confirm it, roll it back, or wait"
        )

    def arm(self, before: Before, seconds: float, connection: str) -> Pending:
        """Save what was, and let systemd roll back to it in some seconds. Nothing is changed yet.

        Raises Unavailable where there is no systemd, since nobody else would keep the time.
        """
        if not SYSTEMD.is_dir():
            raise Unavailable(f"systemd: expected it to keep the time of a rollback, found no {SYSTEMD}")
        pending = Pending(before.ident, time.time() + seconds, seconds, connection)
        with self._locked():
            other = self.pending()
            if other is not None:
                raise self.conflict(other)
            self._save(before)
            write(self.folder / network_rollback.SCRIPT, network_rollback.script(before), 0o700)
            write(Path(network_rollback.BOOT_FILE), network_rollback.boot_unit(str(self.folder)), 0o644)
            link = Path(network_rollback.BOOT_LINK)
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(network_rollback.BOOT_FILE)
            data = {"id": pending.ident, "ends": pending.ends, "seconds": seconds, "connection": connection}
            write(self.folder / network_rollback.PENDING, json.dumps(data) + "\n", 0o600)
        try:
            run(["systemctl", "daemon-reload"])
            self._start_timer(before.ident, seconds)
        except BaseException:
            with self._locked():
                self._forget(before.ident)
            raise
        return pending

    def confirm(self, ident: str, connection: str) -> bool:
        """Keep a change, the one that waits if ident is empty; return whether one waited.

        Raises TimedOut for one that was rolled back, Conflict for another one or for the connection it was made over,
        NotFound for one that nobody knows.
        """
        with self._locked():
            pending = self.pending()
            if pending is None:
                self._check_last(ident)
                return False
            if ident and pending.ident != ident:
                raise Conflict(f"change {ident}: expected the one that waits, which is {pending.ident}")
            if connection and connection == pending.connection:
                raise Conflict(
                    f"change {pending.ident}: expected its confirmation over a new connection, found the one that it "
                    f"was made over; close that first (meta: reset_connection)"
                )
            self._record(pending.ident, "confirmed")
            self._forget(pending.ident)
        return True

    def keep(self, ident: str) -> None:
        """Keep a change at once, without a confirmation. Raises TimedOut if it was rolled back meanwhile."""
        with self._locked():
            self.check_waiting(ident)
            self._record(ident, "confirmed")
            self._forget(ident)

    def check_waiting(self, ident: str) -> None:
        """Raise TimedOut if a change does not wait any more."""
        pending = self.pending()
        if pending is None or pending.ident != ident:
            self._check_last(ident)

    def roll_back(self, why: str) -> bool:
        """Go back to what was before the change that waits; return whether one waited."""
        if self.pending() is None:
            return False
        # A process of its own session, so that it outlives a connection that ends with it.
        done = subprocess.run(  # pylint: disable=ansible-bad-function
            ["/bin/sh", str(self.folder / network_rollback.SCRIPT), why],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            start_new_session=True,
            check=False,
        )
        if self.pending() is not None:
            raise StateDamaged(f"{self.folder}: the rollback did not finish: {' '.join(done.stderr.split())[:1000]}")
        return True

    def last(self) -> dict[str, Any]:
        """Return how the last change ended: id, outcome, why, time; empty if there was none."""
        return _read(self.folder / network_rollback.LAST)

    def _check_last(self, ident: str) -> None:
        last = self.last()
        if ident and last.get("id") != ident:
            raise NotFound(f"change {ident}: expected one that waits for its confirmation, found none of that name")
        if last.get("outcome") == "rolled back":
            limit = format_duration(float(last.get("seconds") or 0)) if last.get("seconds") else "its time"
            why = WHY.get(str(last.get("why")), "{limit}").format(limit=limit)
            raise TimedOut(f"change {last['id']}: was rolled back at {iso(float(last['time']))}, since {why}")

    def _save(self, before: Before) -> None:
        folder = self.folder / network_rollback.SAVED
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        for one in before.files:
            if one.saved:
                text = Path(one.path).read_text(encoding="utf-8", errors="surrogateescape")
                write(folder / one.saved, text, 0o600)

    def _start_timer(self, ident: str, seconds: float) -> None:
        # With AccuracySec systemd may be late by as much, which is a minute by default.
        run(
            [
                *("systemd-run", "--quiet", "--collect", f"--unit={network_rollback.timer_name(ident)}"),
                *(f"--on-active={seconds:.0f}s", "--timer-property=AccuracySec=100ms", "--service-type=oneshot"),
                "--description=Roll back a change of the network that nobody confirmed",
                *("/bin/sh", str(self.folder / network_rollback.SCRIPT), "timeout"),
            ]
        )

    def _record(self, ident: str, outcome: str) -> None:
        data = {"id": ident, "outcome": outcome, "time": int(time.time())}
        write(self.folder / network_rollback.LAST, json.dumps(data) + "\n", 0o600)
        (self.folder / network_rollback.PENDING).unlink()

    def _forget(self, ident: str) -> None:
        """Take away what would roll back: whatever of it remains finds no change that waits.

        With the lock held: what lies there may be the next change's otherwise, which then could not be rolled back.
        """
        (self.folder / network_rollback.PENDING).unlink(missing_ok=True)
        for path in (network_rollback.BOOT_LINK, network_rollback.BOOT_FILE):
            Path(path).unlink(missing_ok=True)
        attempt(["systemctl", "stop", f"{network_rollback.timer_name(ident)}.timer"])
        attempt(["systemctl", "daemon-reload"])
        (self.folder / network_rollback.SCRIPT).unlink(missing_ok=True)
        shutil.rmtree(self.folder / network_rollback.SAVED, ignore_errors=True)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        paths.make_private(self.folder.parent)
        paths.make_private(self.folder)
        with (self.folder / network_rollback.LOCK).open("a", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def new_ident() -> str:
    """Return the name of a new change."""
    return os.urandom(4).hex()


def connection() -> str:
    """Return the SSH connection that this process came by, as SSH_CONNECTION has it; empty for none.

    sudo takes that out of the environment, so it is looked for in that of the parents.
    """
    pid = os.getpid()
    while pid > 1:
        try:
            entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        for entry in entries:
            if entry.startswith(b"SSH_CONNECTION="):
                return entry[15:].decode("utf-8", "replace")
        pid = int(status.rpartition(")")[2].split()[1])
    return ""


def write(path: Path, text: str, mode: int) -> None:
    """Write a file at once: whoever reads it, and whoever finds it after a crash, sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with open(handle, "w", encoding="utf-8", errors="surrogateescape") as file:
            os.fchmod(file.fileno(), mode)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise StateDamaged(f"{path}: cannot be read: {error}") from error
    return data if isinstance(data, dict) else {}
