# SPDX-License-Identifier: GPL-3.0-or-later
"""500 processes under fleetd, supervisord, circus and pm2: start, memory, processor time while idle, crash to running.

Every supervisor runs at the same time with the same processes, each named, restarted when it ends, its output in files:

- start: from the first command on a cold daemon until 500 children run
- memory: of the daemon, with its 500 processes up
- idle: processor time of the daemon over one window, the same moment for all
- restart: SIGKILL until the new process says its pid, for one process after another, by turns among the supervisors
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import measure

PROCESSES = 500
CRASHES = 9  # of the 500 processes so many are killed, one time each


class Side:
    """One supervisor: how it is configured, and what is measured of it."""

    name = ""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.daemon = 0
        self.popen: subprocess.Popen[bytes] | None = None
        self.pids: dict[str, int] = {}
        # Nobody else sleeps so long: what is left of this side is known by it.
        self.sleep = ("/bin/sleep", str(10_000_000 + 10 * os.getpid() + SIDES.index(type(self))))
        self.started = 0.0
        self.answered = 0.0
        self.memory: dict[str, float] = {}
        self.idle = 0.0
        self.restarts: list[float] = []
        fifo = folder / "fifo"
        os.mkfifo(fifo, 0o600)
        self.pipe = os.open(fifo, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self.commands = {f"sleep-{number:03d}": " ".join(self.sleep) for number in range(PROCESSES - CRASHES)}
        # A process that says its pid, so that nobody has to look for it.
        script = folder / "crash"
        script.write_text(f'#!/bin/sh\necho "$1 $$" >{fifo}\nexec {" ".join(self.sleep)}\n')
        script.chmod(0o755)
        self.crashing = {f"crash-{number}": f"{script} crash-{number}" for number in range(CRASHES)}

    @classmethod
    def missing(cls) -> str:
        """Return what is not installed, or an empty text."""
        return "" if measure.program(cls.name) else cls.name

    def launch(self) -> None:
        """Start the daemon and the processes; sets self.daemon."""
        raise NotImplementedError

    def spawn(self, *argv: str, **environ: str) -> int:
        log = open(self.folder / "daemon.log", "ab")  # noqa: SIM115
        with log:
            self.popen = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **environ}
            )
        return self.popen.pid

    def start(self) -> None:
        begin = time.perf_counter()
        self.launch()
        self.answered = time.perf_counter() - begin
        measure.wait_for(
            lambda: self.daemon > 0 and len(measure.children(self.daemon)) >= PROCESSES, 120, self.name, 0.01
        )
        self.started = time.perf_counter() - begin
        measure.wait_for(
            lambda: self._hear() and len(self.pids) == CRASHES, 30, f"{self.name}: the processes that crash"
        )
        measure.wait_for(lambda: self._asleep() == PROCESSES, 10, f"{self.name}: exactly {PROCESSES} processes")

    def _asleep(self) -> int:
        return sum(measure.argv0(pid) == "sleep" for pid in measure.children(self.daemon))

    def _hear(self) -> bool:
        with contextlib.suppress(BlockingIOError):
            for line in os.read(self.pipe, 65536).decode().splitlines():
                name, pid = line.split()
                self.pids[name] = int(pid)
        return True

    def crash(self, name: str) -> None:
        """Kill one process and note how long it takes until its successor runs."""
        old = self.pids[name]
        begin = time.perf_counter()
        os.kill(old, signal.SIGKILL)
        while self.pids[name] == old:
            if not select.select([self.pipe], [], [], 30)[0]:
                raise TimeoutError(f"{self.name}: {name} was not restarted within 30 s")
            moment = time.perf_counter()
            self._hear()
        self.restarts.append(moment - begin)

    def find_daemon(self) -> int:
        """Return the daemon's pid, also when the start was interrupted; 0 if there is none."""
        return self.popen.pid if self.popen is not None else 0

    def stop(self) -> None:
        """End the daemon, then its processes, without asking."""
        daemon = self.find_daemon()
        if daemon:
            measure.kill([daemon])
        if self.popen is not None:
            self.popen.wait()
        measure.kill(measure.running(self.sleep))
        os.close(self.pipe)


class Fleetd(Side):
    name = "fleetd"
    CALL = (
        "import json, sys; from fleet_node.client import Client;"
        "Client(sys.argv[1]).call('processes.apply', items=json.load(open(sys.argv[2])), state='started', timeout=120)"
    )

    @classmethod
    def missing(cls) -> str:
        return "" if os.path.exists(measure.own("fleetd")) else "fleetd"

    def launch(self) -> None:
        items = [
            {"id": name, "command": command, "restart": "always"}
            for name, command in (self.commands | self.crashing).items()
        ]
        (self.folder / "items.json").write_text(json.dumps(items))
        self.daemon = self.spawn(measure.own("fleetd"), "--state-dir", str(self.folder), "--driver", "native")
        measure.wait_for((self.folder / "fleetd.sock").exists, 30, "fleetd's socket", 0.005)
        measure.run([sys.executable, "-c", self.CALL, str(self.folder), str(self.folder / "items.json")])


class Supervisord(Side):
    name = "supervisord"

    def launch(self) -> None:
        user = "user=root\n" if os.geteuid() == 0 else ""
        # Each child closes so many descriptors: more than the default only where it has to be.
        need = 6 * PROCESSES
        files = f"minfds={need}\n" if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < need else ""
        parts = [
            f"[supervisord]\nnodaemon=true\nlogfile={self.folder}/supervisord.log\nchildlogdir={self.folder}\n",
            f"pidfile={self.folder}/supervisord.pid\n{files}{user}",
            f"[unix_http_server]\nfile={self.folder}/supervisor.sock\n",
            "[rpcinterface:supervisor]\n",
            "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface\n",
        ]
        for name, command in (self.commands | self.crashing).items():
            parts.append(f"[program:{name}]\ncommand={command}\nautostart=true\nautorestart=true\n")
        path = self.folder / "supervisord.conf"
        path.write_text("".join(parts))
        self.daemon = self.spawn(str(measure.program(self.name)), "-c", str(path))


class Circus(Side):
    name = "circus"

    @classmethod
    def missing(cls) -> str:
        return "" if measure.program("circusd") else "circus"

    def launch(self) -> None:
        parts = [
            f"[circus]\nendpoint=ipc://{self.folder}/endpoint\npubsub_endpoint=ipc://{self.folder}/pubsub\n",
            f"pidfile={self.folder}/circus.pid\nstatsd=false\nhttpd=false\n",
        ]
        for name, command in (self.commands | self.crashing).items():
            parts.append(
                f"[watcher:{name}]\ncmd={command}\nwarmup_delay=0\nrespawn=true\ncopy_env=true\n"
                f"stdout_stream.class=FileStream\nstdout_stream.filename={self.folder}/{name}.out\n"
                f"stderr_stream.class=FileStream\nstderr_stream.filename={self.folder}/{name}.err\n"
            )
        path = self.folder / "circus.ini"
        path.write_text("".join(parts))
        self.daemon = self.spawn(str(measure.program("circusd")), str(path))


class Pm2(Side):
    name = "pm2"

    def launch(self) -> None:
        apps = []
        for name, command in (self.commands | self.crashing).items():
            script, _space, arguments = command.partition(" ")
            app = {"name": name, "script": script, "args": arguments, "interpreter": "none", "exec_mode": "fork"}
            apps.append({**app, "autorestart": True, "vizion": False})
        path = self.folder / "ecosystem.config.json"
        path.write_text(json.dumps({"apps": apps}))
        measure.run([str(measure.program(self.name)), "start", str(path), "--silent"], {"PM2_HOME": str(self.folder)})
        self.daemon = self.find_daemon()

    def find_daemon(self) -> int:
        file = self.folder / "pm2.pid"
        return int(file.read_text()) if file.exists() else 0


SIDES: tuple[type[Side], ...] = (Fleetd, Supervisord, Circus, Pm2)


def compare(kinds: list[type[Side]], window: float) -> list[Side]:
    """Run all sides at once and measure them; a side that does not come up is told of and left out."""
    with tempfile.TemporaryDirectory(prefix="fleet-") as scratch:
        sides: list[Side] = []
        try:
            for kind in kinds:
                folder = Path(scratch) / kind.name
                folder.mkdir(mode=0o700)
                side = kind(folder)
                sides.append(side)
                try:
                    side.start()
                except (OSError, RuntimeError, subprocess.SubprocessError) as error:
                    print(f"supervisors: {kind.name} did not come up: {error}")
                    sides.remove(side)
                    side.stop()
            time.sleep(3)  # supervisord calls a process running after a second
            for side in sides:
                side.memory = measure.memory(side.daemon)
            before = [measure.cpu(side.daemon) for side in sides]
            begin = time.perf_counter()
            time.sleep(window)
            seconds = time.perf_counter() - begin
            for side, used in zip(sides, before, strict=True):
                side.idle = (measure.cpu(side.daemon) - used) / seconds
            for number in range(CRASHES):
                for side in sides:
                    side.crash(f"crash-{number}")
                    time.sleep(0.1)
        finally:
            for side in sides:
                side.stop()
        return sides


def ratio(theirs: float, ours: float) -> str:
    """Say how many times better ours is; processor time that is not there at all has no ratio."""
    return f"{theirs / ours:.1f}" if ours > 1e-7 else ("unmeasurably high" if theirs > 1e-7 else "even")


def main() -> None:
    """Print a table, and for every figure how many times better fleetd is than each other side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--idle",
        type=float,
        default=8.0 if measure.QUICK else 20.0,
        metavar="SECONDS",
        help="idle window (default: 20)",
    )
    parser.add_argument("--only", help="names of the sides, with commas between")
    options = parser.parse_args()
    wanted = options.only.split(",") if options.only else [kind.name for kind in SIDES]
    for kind in SIDES:
        if kind.name in wanted and kind.missing():
            print(f"supervisors: {kind.missing()} is left out: not installed; tests/benchmarks/install brings it")
    kinds = [kind for kind in SIDES if kind.name in wanted and not kind.missing()]
    print(f"supervisors: {PROCESSES} processes each; {measure.load()}")
    sides = compare(kinds, options.idle)
    rows, figures = [], {}
    for side in sides:
        restart = statistics.median(side.restarts)
        figures[side.name] = (side.started, side.memory["rss"], side.memory["pss"], side.idle, restart)
        rows.append(
            (
                side.name,
                f"{side.started:.2f} s",
                f"{side.memory['rss']:.1f} MiB",
                f"{side.memory['pss']:.1f} MiB",
                f"{side.memory['private']:.1f} MiB",
                f"{side.idle * 1000:.3f} ms/s",
                f"{restart * 1000:.1f} ms",
                f"{max(side.restarts) * 1000:.1f} ms",
            )
        )
    head = ("", "start", "RSS", "PSS", "private", "idle CPU", "restart (median)", "restart (worst)")
    print(measure.table(head, rows))
    ours = figures.pop("fleetd", None)
    names = ("start", "RSS", "PSS", "idle", "restart")
    for name, theirs in figures.items() if ours else ():
        ratios = [f"{what} {ratio(a, b)}" for what, a, b in zip(names, theirs, ours, strict=True)]
        print(f"supervisors: ratio {name}/fleetd: {', '.join(ratios)} (goal: each above 1)")


if __name__ == "__main__":
    main()
