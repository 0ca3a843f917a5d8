# SPDX-License-Identifier: GPL-3.0-or-later
"""Several clients that ask for different things of the same processes at once.

FLEET_HAMMER_SECONDS says for how long.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet_core.errors import FleetError
from fleet_node.client import Client
from fleet_node.store import Store

from .fleetd import Fleet, alive, running, shell, wait_for

SECONDS = float(os.environ.get("FLEET_HAMMER_SECONDS", "4"))
NAMES = ["a", "b", "c", "d", "e"]
# What several clients may tell each other by what they do. Anything else is a fault of fleetd.
EXPECTED = ("not_found", "conflict", "process_failed")
PROCESSES = {
    "a": {"command": "sleep 1000", "resources": ["tcpport"]},
    "b": {"command": shell("trap 'exit 0' TERM; while :; do sleep 0.05; done"), "resources": ["tcpport", "vncport"]},
    "c": {"command": "sleep 1000", "resources": ["tcpport"], "depends_on": ["a"]},
    "d": {"command": shell("sleep 1000 & sleep 1000"), "resources": ["datadir:/d"], "depends_on": ["b", "c"]},
    "e": {"command": "sleep 1000", "resources": ["tcpport"], "restart": "never"},
}


@pytest.fixture
def fleet(state_dir: Path) -> Iterator[Fleet]:
    with running(state_dir) as found:
        yield found


def hammer(folder: Path, strangers: list[int], end: float, faults: list[str]) -> None:
    client = Client(folder, timeout=60)
    while time.monotonic() < end:
        names = random.sample(NAMES, random.randint(1, len(NAMES)))
        verb = random.choice(["apply", "apply", "start", "stop", "restart", "delete", "adopt", "kill", "kill", "list"])
        try:
            if verb == "apply":
                state = random.choice(["started", "started", "restarted", "present", "stopped", "absent"])
                items = [{"id": name, **PROCESSES[name], "label": random.choice("xy")} for name in NAMES]
                client.call("processes.apply", items=items, state=state, wait=random.random() < 0.5, timeout=20)
            elif verb == "adopt":
                client.call("processes.adopt", id=random.choice(["e", "f"]), pid=random.choice(strangers))
            elif verb == "kill":
                view = random.choice(client.call("processes.list")["processes"] or [{"pid": 0}])
                if view["pid"]:
                    with contextlib.suppress(OSError):
                        os.kill(view["pid"], signal.SIGKILL)
            elif verb == "list":
                client.call("processes.list")
            else:
                client.call(f"processes.{verb}", ids=names, wait=random.random() < 0.5, timeout=20)
        except FleetError as error:
            if error.code not in EXPECTED and "does not exist" not in str(error):
                faults.append(f"{verb} {names}: {error.code}: {error}")
    client.close()


def test_clients_that_disagree_leak_no_claim_and_no_process(fleet: Fleet) -> None:
    strangers = [subprocess.Popen(["sleep", "1000"], start_new_session=True) for _turn in range(3)]
    faults: list[str] = []
    end = time.monotonic() + SECONDS
    pids = [child.pid for child in strangers]
    threads = [threading.Thread(target=hammer, args=(fleet.folder, pids, end, faults)) for _turn in range(8)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert faults == []
        assert not any(thread.is_alive() for thread in threads)

        def settled() -> bool:
            states = {view["status"] for view in fleet.call("processes.list")["processes"]}
            return states <= {"running", "stopped", "error"}

        wait_for("every process settles", settled)
        views = {view["id"]: view for view in fleet.call("processes.list")["processes"]}
        up = {name: view for name, view in views.items() if view["status"] == "running"}
        assert all(alive(view["pid"]) for view in up.values())
        claims = {(claim.owner, claim.name, claim.value) for claim in Store(fleet.folder).claims()}
        assert claims == {(name, key, value) for name, view in up.items() for key, value in view["resources"].items()}
        owned = {view["pid"] for view in up.values() if not view["adopted"]}
        groups = set()
        for pid in fleet.marked():
            with contextlib.suppress(ProcessLookupError):  # b's short sleeps
                groups.add(os.getpgid(pid))
        assert groups <= owned
        fleet.call("processes.kill_all")
        assert Store(fleet.folder).claims() == []
        wait_for("no process is left", lambda: not fleet.marked())
        assert "Traceback" not in fleet.log(), fleet.log()
    finally:
        for child in strangers:
            child.kill()
            child.wait()
