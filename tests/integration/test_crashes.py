# SPDX-License-Identifier: GPL-3.0-or-later
"""SIGKILL at random moments, many callers at once, full disks, damaged databases and clocks that jump.

FLEET_CRASH_ROUNDS says how many kills there are in all (CI: 400), FLEET_CRASH_SEED repeats a run.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.integration.fleetd import MARK, Fleet, alive, python, running, shell, wait_for

from fleet_core.errors import FleetError
from fleet_node.client import Client
from fleet_node.store import Store

DRIVER, _colon, SCOPE = os.environ.get("FLEET_TEST_DRIVER", "native").partition(":")
ROUNDS = int(os.environ.get("FLEET_CRASH_ROUNDS", "40"))
SEED = int(os.environ.get("FLEET_CRASH_SEED", str(random.randrange(10**6))))
SLEEP = "sleep 1000"

# Prints numbered lines, and notes each one in a file after it was printed.
TICKER = """
import os, sys, time
run = f"{os.getpid()}-{time.monotonic_ns()}"
truth = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
for number in range(10**9):
    line = f"{run} {number}\\n".encode()
    os.write(1, line)
    os.write(truth, line)
    time.sleep(0.01)
"""

# Starts, stops and restarts processes until it is killed.
CALLER = """
import random, sys
from fleet_core.errors import FleetError
from fleet_node.client import Client
client = Client(sys.argv[1])
ids = sys.argv[2:]
print("go", flush=True)
while True:
    some = random.sample(ids, random.randint(1, len(ids)))
    try:
        verb = random.choice(["start", "start", "stop", "restart"])
        client.call(f"processes.{verb}", ids=some, wait=random.random() < 0.7)
    except FleetError as error:
        print(error, flush=True)
"""

# Claims sets of values and gives them back until it is killed.
CLAIMER = """
import sys
from fleet_core.resources import Request
from fleet_node import resources
from fleet_node.store import Store
from pathlib import Path
store = Store(Path(sys.argv[1]))
print("go", flush=True)
while True:
    resources.claim(store, [Request("tcpport", sys.argv[2], f"p{n}") for n in range(5)])
    store.release([sys.argv[2]])
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="fleet-") as name:
        yield Path(name)


@pytest.fixture
def fleet(folder: Path) -> Iterator[Fleet]:
    with running(folder, DRIVER, SCOPE or "auto") as fleet:
        yield fleet


@contextlib.contextmanager
def program(code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A Python program that has said that it is about to go; killed in the end."""
    child = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    with child.stdout:
        assert child.stdout.readline() == "go\n"
        yield child
        child.kill()
        child.wait()


class Crashes:
    """Processes, their fleetd and their callers are killed; and what must be true after it."""

    def __init__(self, fleet: Fleet, chance: random.Random) -> None:
        self.fleet = fleet
        self.chance = chance
        self.ids = [f"shop/p{number}" for number in range(4)]
        self.truth = {ident: fleet.folder / f"truth-{ident[5:]}" for ident in self.ids}
        self.counts: Counter[str] = Counter()
        items = [
            {
                "id": ident,
                "command": python(TICKER, str(self.truth[ident])),
                "resources": ["tcpport", {"type": "tcpport", "name": "admin"}],
                "restart": {"policy": "always", "delay": 0.05, "max_delay": 0.1, "burst": 0},
                "stop_timeout": 5,
            }
            for ident in self.ids
        ]
        fleet.apply(*items)

    def fleetd(self) -> None:
        """Kill fleetd."""
        self.fleet.again(signal.SIGKILL)

    def process(self) -> None:
        """Kill a process, whatever fleetd thinks of it at the moment."""
        pids = self.fleet.marked("FLEET_LAUNCH=")
        if pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.chance.choice(pids), signal.SIGKILL)

    def caller(self) -> None:
        """Kill a program in the middle of its requests."""
        with program(CALLER, str(self.fleet.folder), *self.ids):
            time.sleep(self.chance.random() * 0.3)

    def caller_and_fleetd(self) -> None:
        """Kill fleetd in the middle of a request."""
        with program(CALLER, str(self.fleet.folder), *self.ids):
            time.sleep(self.chance.random() * 0.2)
            self.fleet.again(signal.SIGKILL)

    def once(self) -> None:
        """Kill one of them after a moment."""
        time.sleep(self.chance.random() * 0.05)
        what = self.chance.choice([self.fleetd, self.process, self.process, self.caller, self.caller_and_fleetd])
        self.counts[what.__name__] += 1
        what()

    def wrong(self) -> str:
        """Say what is not as it must be; empty if all is well."""
        found = {ident: self.fleet.get(ident) for ident in self.ids}
        odd = [item for item in found.values() if item["status"] not in ("running", "stopped")]
        if odd:
            return f"not settled: {odd}"
        up = [item for item in found.values() if item["status"] == "running"]
        wanted = {(kind, item["resources"][name], item["id"]) for item in up for name, kind in item["types"].items()}
        if len(wanted) != 2 * len(up) or len({value for _kind, value, _owner in wanted}) != len(wanted):
            return f"a value is held twice: {wanted}"
        if self.fleet.claims() != wanted:
            return f"claims are {self.fleet.claims()}, expected {wanted}"
        if self.fleet.marked() != sorted(item["pid"] for item in up):
            return f"running are {self.fleet.marked()}, expected {sorted(item['pid'] for item in up)}"
        return ""

    def check(self) -> None:
        """Wait until all is as it must be."""
        try:
            wait_for("", lambda: not self.wrong(), 30)
        except AssertionError:
            raise AssertionError(f"seed {SEED}, after {dict(self.counts)}: {self.wrong()}") from None

    def check_logs(self) -> int:
        """Compare what was printed with the logs. Returns how many lines there were."""
        total = 0
        for ident in self.ids:
            truth = self.truth[ident].read_text().splitlines()
            wait_for(f"the last line of {ident}", lambda: truth[-1] in self.fleet.printed(ident, lines=50))  # noqa: B023
            printed = Counter(self.fleet.printed(ident))
            assert not [line for line in truth if line not in printed], f"seed {SEED}: {ident} lost lines"
            assert not [line for line, count in printed.items() if count > 1], f"seed {SEED}: {ident} has lines twice"
            total += len(truth)
        return total


@pytest.mark.timeout(300 + ROUNDS * 3)
def test_nothing_is_lost_when_things_are_killed_at_random(fleet: Fleet) -> None:
    crashes = Crashes(fleet, random.Random(SEED))
    for number in range(1, ROUNDS + 1):
        crashes.once()
        if number % 10 == 0:
            crashes.check()
    crashes.check()
    fleet.call("processes.stop", ids=crashes.ids)
    lines = crashes.check_logs()
    print(f"seed {SEED}: {dict(crashes.counts)}, {lines} log lines")
    assert fleet.claims() == set()
    wait_for("nothing runs, not even a command of fleetd", lambda: not fleet.marked())


def test_a_killed_claimer_holds_all_or_nothing(folder: Path) -> None:
    chance = random.Random(SEED)
    store = Store(folder)
    for number in range(max(4, ROUNDS // 10)):
        with program(CLAIMER, str(folder), f"owner{number}"):
            time.sleep(chance.random() * 0.2)
    held = Counter(claim.owner for claim in store.claims())
    assert set(held.values()) <= {5}, f"seed {SEED}"
    store.release(list(held))
    assert list(store.claims()) == []
    store.close()


def test_fifty_callers_at_once_never_share_a_value(fleet: Fleet) -> None:
    def one(number: int) -> dict[str, Any]:
        with Client(fleet.folder, timeout=60) as client:
            item = {"id": f"p{number}", "command": SLEEP, "resources": ["tcpport", "vncport"]}
            found: dict[str, Any] = client.call("processes.apply", items=[item], state="started")["processes"][0]
            return found

    with ThreadPoolExecutor(50) as pool:
        found = list(pool.map(one, range(50)))
    assert {process["status"] for process in found} == {"running"}
    for kind in ("tcpport", "vncport"):
        assert len({process["resources"][kind] for process in found}) == 50
    assert len(fleet.claims()) == 100


def test_fifty_callers_of_one_process_start_it_once(fleet: Fleet) -> None:
    def one(_number: int) -> int:
        with Client(fleet.folder, timeout=60) as client:
            item = {"id": "web", "command": SLEEP, "resources": ["tcpport"]}
            return int(client.call("processes.apply", items=[item], state="started")["processes"][0]["pid"])

    with ThreadPoolExecutor(50) as pool:
        pids = set(pool.map(one, range(50)))
    assert len(pids) == 1
    assert fleet.marked() == sorted(pids)
    assert len(fleet.claims()) == 1


@pytest.mark.skipif(os.geteuid() != 0 or not sys.platform.startswith("linux"), reason="needs root to make a small disk")
def test_a_full_disk_ends_nothing_and_is_said(folder: Path) -> None:
    disk = folder / "disk"
    disk.mkdir()
    options = "size=8m,mode=0700"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("no file system can be mounted here")
    try:
        with running(disk, DRIVER, SCOPE or "auto") as fleet:
            line = shell("while :; do echo a line of output; sleep 0.05; done")
            before = fleet.start("web", line, resources=["tcpport"])
            filler = disk / "filler"
            with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(b"\0" * 4096)
            with pytest.raises(FleetError, match=r"(?i)disk|space|full"):
                _start_many(fleet)
            time.sleep(0.5)
            assert fleet.get("web")["pid"] == before["pid"]
            assert alive(before["pid"])
            filler.unlink()
            wait_for("there is room again", lambda: _starts(fleet))
            fleet.stop("web")
            fleet.until("web", "stopped")
            wait_for(
                "claims are those of what runs",
                lambda: (
                    {owner for _kind, _value, owner in fleet.claims()}
                    == {
                        process["id"]
                        for process in fleet.call("processes.list")["processes"]
                        if process["resources"] and process["status"] == "running"
                    }
                ),
            )
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def _start_many(fleet: Fleet) -> None:
    for number in range(200):
        fleet.start(f"p{number}", SLEEP, env={"FILLER": "x" * 4000}, resources=["vncport"])


def _starts(fleet: Fleet) -> bool:
    try:
        return bool(fleet.start("again", SLEEP, resources=["vncport"])["status"] == "running")
    except FleetError:
        return False


@pytest.mark.parametrize("damage", ["garbage", "cut", "page"])
def test_a_damaged_database_is_kept_aside(fleet: Fleet, damage: str) -> None:
    fleet.apply(*({"id": f"p{number}", "command": SLEEP, "env": {"X": "x" * 2000}} for number in range(20)))
    fleet.call("processes.kill_all")
    fleet.end()
    database = fleet.folder / "fleet.db"
    data = database.read_bytes()
    for extra in ("-wal", "-shm"):
        database.with_name(f"fleet.db{extra}").unlink(missing_ok=True)
    damaged = {
        "garbage": b"this is no database\n" * 500,
        "cut": data[: len(data) // 2],
        "page": data[:4096] + b"\xff" * (len(data) - 4096),
    }[damage]
    database.write_bytes(damaged)
    fleet.up()
    kept = [path for path in fleet.folder.iterdir() if ".corrupt" in path.name]
    assert damaged in [path.read_bytes() for path in kept]
    assert "the database was damaged" in fleet.log()
    assert fleet.call("processes.list")["processes"] == []
    assert fleet.start("web", SLEEP, resources=["tcpport"])["status"] == "running"


CLOCK = """
# Shifts the wall clock of this program by the seconds in a file.
import os, time
_path, _time, _time_ns = os.environ.get("FAKE_CLOCK", ""), time.time, time.time_ns
def _shift():
    try:
        with open(_path) as file:
            return float(file.read() or 0)
    except (OSError, ValueError):
        return 0.0
time.time = lambda: _time() + _shift()
time.time_ns = lambda: _time_ns() + int(_shift() * 1e9)
"""


@pytest.mark.parametrize("jump", [86400 * 400.0, -86400 * 400.0])
def test_a_clock_that_jumps_changes_nothing(folder: Path, jump: float) -> None:
    """Only fleetd's own clock: by a module that Python loads before everything else."""
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(CLOCK)
    clock = folder / "clock"
    paths = os.pathsep.join(filter(None, [str(folder / "site"), os.environ.get("PYTHONPATH")]))
    fleet = Fleet(folder, DRIVER, SCOPE or "auto")
    try:
        fleet.up({"PYTHONPATH": paths, "FAKE_CLOCK": str(clock)})
        healthy = {"url": "cmd://true", "interval": 0.1}
        fast = {"delay": 0.2, "max_delay": 0.2, "burst": 3, "window": 60}
        before = fleet.start("web", SLEEP, health=healthy, restart=fast, resources=["tcpport"])
        clock.write_text(str(jump))
        seconds = fleet.call("daemon.status")["started"]
        assert seconds
        time.sleep(0.5)
        same = fleet.get("web")
        assert (same["pid"], same["status"], same["healthy"]) == (before["pid"], "running", True)
        assert same["uptime"] >= 0
        os.kill(before["pid"], signal.SIGKILL)
        begun = time.monotonic()
        wait_for("another pid", lambda: fleet.get("web")["pid"] not in (0, before["pid"]))
        assert time.monotonic() - begun < 5
        clock.write_text(str(-jump))
        for _round in range(2):
            now = fleet.until("web", "running", healthy=True)
            os.kill(now["pid"], signal.SIGKILL)
            wait_for("another state", lambda: fleet.get("web")["pid"] != now["pid"])  # noqa: B023
        last = fleet.until("web", "running", healthy=True)
        assert last["restarts"] == 3
        assert last["resources"] == before["resources"]
        os.kill(last["pid"], signal.SIGKILL)
        fleet.until("web", "error")  # the fourth within the window, whatever the clock on the wall says
        clock.write_text("0")
        fleet.start("slow", shell("trap '' TERM; while :; do sleep 0.1; done"), stop_timeout=0.5)
        clock.write_text(str(jump))
        begun = time.monotonic()
        fleet.stop("slow")
        assert time.monotonic() - begun < 10
    finally:
        left = fleet.down()
    assert left == []


def test_the_mark_finds_everything(fleet: Fleet) -> None:
    """What the other tests rely on."""
    pid = fleet.start("web", SLEEP)["pid"]
    assert fleet.marked() == [pid]
    assert f"{MARK}={fleet.mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes()
