# SPDX-License-Identifier: GPL-3.0-or-later
"""A fleetd of a test's own, used from outside: through its socket, its signals and /proc."""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fleet_core.errors import FleetError, NotFound, Unavailable
from fleet_node import logs
from fleet_node.client import Client
from fleet_node.store import Store

MARK = "FLEET_TEST_MARK"


def wait_for(what: str, condition: Callable[[], Any], timeout: float = 20.0) -> Any:
    """Return the first true value of condition; the test fails when there is none in time."""
    end = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout:g} s: {what}")
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Tell whether a process runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def command(*words: str) -> str:
    """Return the words as a command of a process: quoted, and with nothing for fleetd to replace in them."""
    return shlex.join(words).replace("%", "%%").replace("${", "$${")


def shell(script: str) -> str:
    """Return a command that runs a shell script as it is."""
    return command("/bin/sh", "-c", script)


def python(code: str, *arguments: str) -> str:
    """Return a command that runs Python code as it is."""
    return command(sys.executable, "-c", code, *arguments)


class Fleet:
    """One fleetd with a state folder of its own. Whatever it starts bears a mark, so that nothing is left unseen."""

    def __init__(self, folder: Path, driver: str = "native", scope: str = "auto") -> None:
        self.folder = folder
        self.driver = driver
        self.mark = secrets.token_hex(8)
        self.client = Client(folder, timeout=30)
        self.daemon: subprocess.Popen[bytes] | None = None
        self._options = ["--state-dir", str(folder), "--driver", driver, "--scope", scope]

    def up(self, environ: Mapping[str, str] | None = None, prefix: tuple[str, ...] = ()) -> Fleet:
        """Start fleetd and wait until it answers. prefix: words before its command line."""
        words = [*prefix, sys.executable, "-m", "autovibe_fleet.node.daemon", *self._options]
        self.client.close()
        with (self.folder / "fleetd.log").open("ab") as log:
            self.daemon = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **(environ or {}), MARK: self.mark},
                start_new_session=True,
            )
        daemon = self.daemon
        wait_for("fleetd answers", lambda: daemon.poll() is not None or self._answers_as(daemon.pid))
        if daemon.poll() is not None:
            raise AssertionError(f"fleetd ended with {daemon.returncode}: {self.log()}")
        return self

    def _answers_as(self, pid: int) -> bool:
        return self.client.answers() and self.client.call("daemon.status")["pid"] == pid

    def log(self) -> str:
        """What fleetd said."""
        return (self.folder / "fleetd.log").read_text(errors="replace")

    def end(self, number: int = signal.SIGTERM) -> None:
        """End fleetd, and nothing else."""
        assert self.daemon is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.daemon.pid, number)
        self.daemon.wait(15)
        self.client.close()

    def again(self, number: int = signal.SIGKILL) -> None:
        """End fleetd and start the next one."""
        self.end(number)
        self.up()

    def call(self, method: str, /, **params: Any) -> Any:
        return self.client.call(method, **params)

    def apply(self, *items: Mapping[str, Any], state: str = "started", **params: Any) -> list[dict[str, Any]]:
        """Bring processes to a state and return them."""
        found: list[dict[str, Any]] = self.call("processes.apply", items=list(items), state=state, **params)[
            "processes"
        ]
        return found

    def start(self, ident: str, line: str, wait: bool = True, **fields: Any) -> dict[str, Any]:
        """Start one process and return it."""
        return self.apply({"id": ident, "command": line, **fields}, wait=wait)[0]

    def stop(self, *ids: str, **params: Any) -> None:
        self.call("processes.stop", ids=list(ids), **params)

    def get(self, ident: str) -> dict[str, Any]:
        """One process as fleetd shows it."""
        (found,) = self.call("processes.list", ids=[ident])["processes"]
        return dict(found)

    def until(self, ident: str, *states: str, timeout: float = 20.0, **values: Any) -> dict[str, Any]:
        """Wait until a process is in one of the states, with these values, and return it."""
        last: dict[str, Any] = {}

        def reached() -> dict[str, Any] | None:
            try:
                last.update(self.get(ident))
            except NotFound:  # not yet
                return None
            fits = last["status"] in states and all(last[key] == value for key, value in values.items())
            return dict(last) if fits else None

        try:
            found: dict[str, Any] = wait_for("", reached, timeout)
        except AssertionError:
            raise AssertionError(
                f"{ident} is not {' or '.join(states)} {values or ''} but {last}\n{self.log()}"
            ) from None
        return found

    def logs(self, ident: str, **options: Any) -> Iterator[dict[str, Any]]:
        """What a process printed, and what was said of it, as `fleet logs` reads it: past fleetd."""
        process = self.get(ident)
        if process.get("unit"):
            return logs.read_journal(process["unit"], self.call("daemon.status")["scope"], name=ident, **options)
        return logs.read(process["log_file"], **options)

    def printed(self, ident: str, **options: Any) -> list[str]:
        """The lines that a process printed."""
        return [item["message"] for item in self.logs(ident, **options) if item["level"] in (logs.STDOUT, logs.STDERR)]

    def claims(self) -> set[tuple[str, str, str]]:
        """All claims: type, value, owner; read from the store, past fleetd."""
        store = Store(self.folder)
        try:
            return {(claim.type, claim.value, claim.owner) for claim in store.claims()}
        finally:
            store.close()

    def marked(self, variable: str = "") -> list[int]:
        """The pids of everything that this fleetd or an earlier one has started; with a variable of that beginning."""
        found = []
        own, wanted = f"{MARK}={self.mark}".encode(), variable.encode()
        for entry in os.listdir("/proc"):
            if entry.isdigit() and (self.daemon is None or int(entry) != self.daemon.pid):
                with contextlib.suppress(OSError):
                    environ = Path(f"/proc/{entry}/environ").read_bytes().split(b"\0")
                    if own in environ and any(item.startswith(wanted) for item in environ) and alive(int(entry)):
                        found.append(int(entry))
        return sorted(found)

    def down(self) -> list[int]:
        """Stop all processes and fleetd. Returns the pids of what ran on all the same, once it has been killed."""
        with contextlib.suppress(FleetError):
            if self.daemon is None or self.daemon.poll() is not None or not self.client.answers():
                self.up()
            known = [process["id"] for process in self.call("processes.list")["processes"]]
            self.call("processes.delete", ids=known, timeout=30)
        with contextlib.suppress(FleetError):
            self.call("daemon.stop", processes=True, timeout=30)
        if self.daemon is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.daemon.wait(10)
            self.daemon.kill()
            self.daemon.wait()
        self.client.close()
        with contextlib.suppress(AssertionError):
            wait_for("nothing is left", lambda: not self.marked(), 3)
        left = self.marked()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return left


@contextlib.contextmanager
def running(folder: Path, driver: str = "native", scope: str = "auto") -> Iterator[Fleet]:
    """A fleetd that has ended, with all that it started, when the test is over; what it left behind fails the test."""
    fleet = Fleet(folder, driver, scope)
    try:
        fleet.up()
        yield fleet
    except BaseException:
        with contextlib.suppress(OSError, Unavailable):
            print(fleet.log(), file=sys.stderr)
        fleet.down()
        raise
    left = fleet.down()
    assert not left, f"processes were left behind: {left}\n{fleet.log()}"
