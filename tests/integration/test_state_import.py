# SPDX-License-Identifier: GPL-3.0-or-later
"""What an import adopts, fleetd then really supervises."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

from tests.integration.fleetd import Fleet, alive, running, wait_for

from fleet_node import state_file
from fleet_node.store import Store


def import_into(folder: Path, data: dict[str, object]) -> state_file.Import:
    folder.mkdir(mode=0o700, exist_ok=True)
    store = Store(folder)
    try:
        return state_file.import_state(store, data)
    finally:
        store.close()


def test_a_process_of_vp_is_supervised_after_the_import(state_dir: Path) -> None:
    child = subprocess.Popen(["sleep", "300"], start_new_session=True)
    try:
        entry = {"name": "nap", "command": "sleep 300", "pid": child.pid, "status": "running"}
        entry["resources"] = {"tcpport": "3999"}
        assert import_into(state_dir / "state", {"instances": {"nap": entry}}).adopted == ("nap",)
        with running(state_dir / "state") as fleet:
            nap = fleet.get("nap")
            assert (nap["status"], nap["pid"], nap["resources"]) == ("running", child.pid, {"tcpport": "3999"})
            fleet.stop("nap")
            child.wait(10)
            assert fleet.claims() == set()
            assert fleet.start("other", "sleep 300", resources=["tcpport:3999"])["status"] == "running"
    finally:
        child.kill()
        child.wait()


def test_running_processes_move_to_another_state_folder(state_dir: Path) -> None:
    old, new = state_dir / "old", state_dir / "new"
    old.mkdir(mode=0o700)
    first = Fleet(old).up()
    try:
        web = first.start("web", "sleep 300", resources=["tcpport"], restart="always", env={"A": "1"})
        first.end(signal.SIGKILL)
        store = Store(old)
        data = state_file.export_state(store)
        store.close()
        assert import_into(new, data).adopted == ("web",)
        with running(new) as second:
            moved = second.get("web")
            assert (moved["pid"], moved["resources"], moved["status"]) == (web["pid"], web["resources"], "running")
            second.apply({"id": "web"}, state="restarted")
            assert second.get("web")["resources"] == web["resources"]
            wait_for("the old process ends", lambda: not alive(web["pid"]))
    finally:
        for pid in first.marked():
            subprocess.run(["kill", "-9", str(pid)], check=False)
