# SPDX-License-Identifier: GPL-3.0-or-later
"""fleetd: one small daemon a host. It watches processes; ending it, by whatever signal, ends none of them."""

from __future__ import annotations

from . import later  # noqa: F401  # pylint: disable=unused-import  # before anything imports asyncio

# isort: split
import argparse
import asyncio
import contextlib
import fcntl
import gc
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from fleet_core import lifecycle
from fleet_core.errors import Conflict, FleetError, InvalidInput, StateDamaged
from fleet_node import paths
from fleet_node.agents import AgentStore
from fleet_node.native import Native
from fleet_node.store import Store
from fleet_node.supervisor import Supervisor

from .. import __version__
from .agents import Agents
from .engine import Engine
from .environments import Environments
from .methods import Methods
from .output import Output
from .server import Server


def main(arguments: list[str] | None = None) -> int:
    """Run fleetd in the foreground until SIGTERM or SIGINT. Returns the exit code."""
    parser = argparse.ArgumentParser("fleetd", description="Watch the processes of this host. Runs in the foreground.")
    parser.add_argument("--state-dir", help="state folder (default: $FLEET_STATE_DIR, else by user)")
    parser.add_argument(
        "--driver", choices=("auto", "native", "systemd"), default="auto", help="supervisor (default: auto)"
    )
    parser.add_argument(
        "--scope", choices=("auto", "system", "user"), default="auto", help="scope of systemd (default: auto)"
    )
    parser.add_argument("--version", action="version", version=f"fleetd {__version__}")
    options = parser.parse_args(arguments)
    try:
        folder = paths.make_private(paths.state_dir(options.state_dir))
        if folder.stat().st_uid != os.geteuid():  # its owner could have put links there
            raise StateDamaged(f"state folder {folder}: expected one of user {os.geteuid()}, who runs fleetd")
        with hold(paths.lock(folder)):
            asyncio.run(serve(folder, options.driver, options.scope))
    except FleetError as error:
        print(f"fleetd: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        pass
    return 0


@contextlib.contextmanager
def hold(path: Path) -> Any:
    """Hold the lock of the state folder. Raises Conflict when another fleetd has it.

    Children close the lock when they are executed, not before. So whoever gets the lock after a killed fleetd can be
    sure that everything which that one has forked carries its FLEET_LAUNCH token by now.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StateDamaged(f"state folder {path.parent}: {path.name} cannot be written: {error.strerror}") from error
    try:
        deadline = time.monotonic() + 2.0
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    pid = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
                    raise Conflict(
                        f"state folder {path.parent}: a fleetd runs there already, as pid {pid or 'unknown'}"
                    ) from None
                time.sleep(0.02)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def choose_supervisor(driver: str, scope: str, store: Store, folder: Path) -> Supervisor:
    """Return the supervisor asked for; "auto" takes the one in use, else systemd where it runs, else native."""
    from fleet_node import systemd

    used = {
        status.driver
        for _spec, status in store.processes().values()
        if status.driver and not status.adopted and status.state not in (lifecycle.STOPPED, lifecycle.ERROR)
    }
    if driver == "auto":
        driver = store.setting("driver") if used else ""
        driver = driver or ("systemd" if systemd.available(scope) else "native")
    elif used - {driver}:
        other = (used - {driver}).pop()
        raise Conflict(f"driver {driver}: processes still run under {other}; stop them first with `fleet kill-all`")
    if driver == "systemd":
        if not systemd.available(scope):
            raise InvalidInput(f"driver systemd: systemd does not run here in scope {scope}")
        supervisor: Supervisor = systemd.Systemd(folder, scope)
    else:
        supervisor = Native(paths.spool(folder))
    store.put_setting("driver", supervisor.name)
    return supervisor


async def serve(folder: Path, driver: str, scope: str) -> None:
    """Serve until a signal or daemon.stop asks for the end."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    if signal.getsignal(signal.SIGQUIT) is signal.SIG_IGN:  # as for whatever a shell starts with &
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)  # processes would inherit it, and not hear a stop signal
    loop.add_signal_handler(signal.SIGHUP, lambda: None)  # SIG_IGN would be inherited by every process
    store = Store(folder, check=True)
    agent_store = AgentStore(folder, check=True)
    for database in (store, agent_store):
        if database.kept_aside is not None:
            complain(f"the database was damaged; it is kept as {database.kept_aside}, and a new one was begun")
    supervisor = choose_supervisor(driver, scope, store, folder)
    output = Output(folder, supervisor, complain)
    engine = Engine(store, supervisor, output)
    environments = Environments(engine)
    agents = Agents(engine, agent_store, complain)
    methods = Methods(engine, environments, agents, ended.set)
    server = Server(paths.socket(folder), dict(methods.table()), complain)
    engine.records.on_event.append(server.publish)
    try:
        await engine.load()
        output.open()
        await environments.load()
        await agents.load()
        await server.open()
        gc.collect()
        gc.freeze()
        complain(f"fleetd {__version__} runs as pid {os.getpid()} with the {supervisor.name} supervisor in {folder}")
        await ended.wait()
    finally:
        await server.close()
        await agents.close()
        await environments.close()
        await engine.close()
        output.close()
        store.close()
        complain("fleetd has ended; its processes go on")


def complain(message: str, error: BaseException | None = None) -> None:
    """Write one line to standard error, and the trace of an unexpected error below it."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    with contextlib.suppress(OSError, ValueError):
        print(f"{stamp} {message}", file=sys.stderr, flush=True)
        if error is not None and not isinstance(error, FleetError):
            traceback.print_exception(type(error), error, error.__traceback__)


if __name__ == "__main__":
    sys.exit(main())
