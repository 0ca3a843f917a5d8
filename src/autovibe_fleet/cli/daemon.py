# SPDX-License-Identifier: GPL-3.0-or-later
"""Starting and stopping fleetd: by its systemd unit where that is installed, else in the background."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fleet_core.errors import TimedOut, Unavailable
from fleet_node import paths
from fleet_node.client import Client

UNIT = "fleetd.service"
_STATE_DIR = re.compile(r"--state-dir[= ](\S+)")
_PATIENCE = 10.0  # seconds until the socket must answer


def launch(folder: Path, options: Sequence[str] = ()) -> str:
    """Start fleetd for a state folder and return how ("pid 1234"). Raises Unavailable when it does not come up."""
    scope = unit_scope(folder)
    if scope is not None and not options:
        return _start_unit(folder, scope)
    return _spawn(folder, options)


def relaunch(folder: Path, status: Mapping[str, Any]) -> str:
    """Start fleetd again as it was, given its last daemon.status."""
    if unit_scope(folder) is not None:
        return launch(folder)
    scope = ["--scope", status["scope"]] if status.get("scope") else []
    return launch(folder, ["--driver", status["driver"], *scope])


def unit_scope(folder: Path) -> list[str] | None:
    """Return systemctl's options for the installed fleetd.service of this state folder, or None where there is none."""
    if not os.path.isdir("/run/systemd/system") or shutil.which("systemctl") is None:
        return None
    scope = [] if os.geteuid() == 0 else ["--user"]
    shown = _systemctl(scope, "show", "--property=LoadState,ExecStart", UNIT)
    if shown.returncode != 0 or "LoadState=loaded" not in shown.stdout:
        return None
    given = _STATE_DIR.search(shown.stdout)
    default = paths.state_dir(environ={**os.environ, "FLEET_STATE_DIR": ""})
    return scope if folder == (Path(given.group(1)) if given else default) else None


def unit_runs(scope: Sequence[str]) -> bool:
    """Tell whether fleetd.service is up, or on its way."""
    return _systemctl(scope, "show", "--property=ActiveState", "--value", UNIT).stdout.strip() in (
        "active",
        "activating",
        "reloading",
    )


def _systemctl(scope: Sequence[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            ["systemctl", *scope, *arguments], capture_output=True, text=True, timeout=60, check=False
        )
    except subprocess.TimeoutExpired:
        raise TimedOut(f"systemctl {' '.join(arguments)}: no answer within 60 s") from None


def _start_unit(folder: Path, scope: Sequence[str]) -> str:
    done = _systemctl(scope, "start", UNIT)
    if done.returncode:
        raise Unavailable(f"systemctl start {UNIT}: {' '.join(done.stderr.split()) or 'failed'}")
    _wait(folder, None)
    return UNIT


def _program() -> list[str]:
    """Return the fleetd that belongs to this installation."""
    beside = Path(sys.executable).with_name("fleetd")
    if os.access(beside, os.X_OK):
        return [str(beside)]
    return [sys.executable, "-m", "autovibe_fleet.node.daemon"]


def _spawn(folder: Path, options: Sequence[str]) -> str:
    paths.make_private(folder)
    with open(folder / "fleetd.starting", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several commands at once, one starts it and the others find it
        with Client(folder) as client:
            if not client.answers():
                _spawn_alone(folder, options)
            return f"pid {client.call('daemon.status')['pid']}"


def _spawn_alone(folder: Path, options: Sequence[str]) -> None:
    log = paths.daemon_log(folder)
    try:
        with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as out:
            begun = out.tell()
            child = subprocess.Popen(
                [*_program(), "--state-dir", str(folder), *options],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd="/",
                start_new_session=True,
            )
    except OSError as error:
        raise Unavailable(f"fleetd: cannot be started: {error.strerror}") from error
    _wait(folder, (child, log, begun))


def _wait(folder: Path, spawned: tuple[subprocess.Popen[bytes], Path, int] | None) -> None:
    deadline = time.monotonic() + _PATIENCE
    with Client(folder, timeout=2.0) as client:
        while not client.answers():
            if spawned is not None:
                child, log, begun = spawned
                if child.poll() is not None and not client.answers():
                    raise Unavailable(
                        f"fleetd: ended at once: {_last_line(log, begun) or f'exit code {child.returncode}'}"
                    )
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"fleetd: no answer on {paths.socket(folder)} within {_PATIENCE:g} s; see `fleet daemon logs`"
                )
            time.sleep(0.02)


def _last_line(log: Path, begun: int) -> str:
    with open(log, "rb") as file:
        file.seek(begun)
        lines = file.read().decode(errors="replace").strip().splitlines()
    return lines[-1].removeprefix("fleetd: ") if lines else ""


def stop(folder: Path, processes: bool, timeout: float) -> list[str]:
    """Stop fleetd, and with processes=True all processes before it. Returns the processes that were stopped."""
    stopped: list[str] = []
    with Client(folder) as client:
        pid = client.call("daemon.status")["pid"]
        if processes:
            stopped = client.call("processes.kill_all", timeout=timeout)["stopped"]
        scope = unit_scope(folder)
        if scope is not None and unit_runs(scope):
            done = _systemctl(scope, "stop", UNIT)
            if done.returncode:
                raise Unavailable(f"systemctl stop {UNIT}: {' '.join(done.stderr.split()) or 'failed'}")
        else:
            client.call("daemon.stop")
    deadline = time.monotonic() + _PATIENCE
    while _runs(folder, pid):
        if time.monotonic() > deadline:
            raise TimedOut(f"fleetd: still runs as pid {pid} after {_PATIENCE:g} s")
        time.sleep(0.02)
    return stopped


def _runs(folder: Path, pid: int) -> bool:
    """Tell whether somebody holds fleetd's lock, or its pid still exists where the lock cannot be asked."""
    try:
        descriptor = os.open(paths.lock(folder), os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
