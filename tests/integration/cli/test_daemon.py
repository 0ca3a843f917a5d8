# SPDX-License-Identifier: GPL-3.0-or-later
"""Starting, stopping and restarting fleetd by the fleet command."""

from __future__ import annotations

import os
import signal
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .conftest import Fleet, until


def is_gone(pid: int) -> bool:
    """Tell whether a process has ended; whoever adopts orphans here may leave a zombie of it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_start_is_idempotent_and_waits_for_the_socket(fleet: Fleet) -> None:
    first = fleet.ok("daemon", "start")
    pid = fleet.json("daemon", "status")["pid"]
    assert first.out == f"Started fleetd (pid {pid})\n"
    assert fleet.ok("daemon", "start").out == f"fleetd is running already (pid {pid})\n"
    assert fleet.json("daemon", "start")["result"] == "running"
    assert os.getsid(pid) == pid
    for name in ("fleetd.sock", "fleetd.log", "fleet.db"):
        assert stat.S_IMODE((fleet.state / name).stat().st_mode) == 0o600, name


def test_a_fleetd_that_cannot_start_says_why(fleet: Fleet) -> None:
    result = fleet("daemon", "start", "--driver", "sytemd")
    assert result.code == 7
    assert result.err.startswith("fleet: fleetd: ended at once: ")
    assert "sytemd" in result.err


def test_commands_start_fleetd_by_themselves_and_say_so(fleet: Fleet) -> None:
    result = fleet.ok("start", "one", "--", "sleep", "600")
    assert result.err.startswith("Started fleetd in the background (pid ")
    assert fleet.ok("stop", "one").err == ""


def test_no_fleetd_is_started_where_that_is_not_wanted(fleet: Fleet) -> None:
    result = fleet("start", "one", "--", "sleep", "600", env={"FLEET_NO_AUTOSTART": "1"})
    assert result.code == 7
    assert result.err == (
        "fleet: fleetd is not running and FLEET_NO_AUTOSTART is set; start it with `fleet daemon start`\n"
    )
    assert not fleet.state.exists() or not (fleet.state / "fleetd.sock").exists()


def test_several_commands_at_once_start_one_fleetd(fleet: Fleet) -> None:
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(lambda n: fleet("start", f"p{n}", "--", "sleep", "600"), range(6)))
    assert [result.code for result in results] == [0] * 6, [result.err for result in results]
    assert fleet.json("daemon", "status")["processes"] == {"running": 6}
    assert fleet.ok("daemon", "logs").out.count(" runs as pid ") == 1
    assert "runs there already" not in fleet.ok("daemon", "logs").out


def test_stop_leaves_processes_alone_and_the_next_fleetd_takes_them_over(fleet: Fleet) -> None:
    fleet.ok("start", "one", "--", "sleep", "600")
    pid = fleet.process("one")["pid"]
    first = fleet.json("daemon", "status")["pid"]
    assert fleet.ok("daemon", "stop").out == "Stopped fleetd; its processes go on\n"
    assert fleet.ok("daemon", "stop").out == "fleetd is not running\n"
    os.kill(pid, 0)
    assert fleet("daemon", "status").code == 7
    assert fleet("daemon", "status", "--json").data == {"running": False, "state_dir": str(fleet.state)}
    fleet.ok("daemon", "start")
    assert fleet.process("one")["pid"] == pid
    restarted = fleet.json("daemon", "restart")
    assert restarted["pid"] != first
    assert restarted["driver"] == "native"
    assert fleet.process("one")["pid"] == pid
    assert fleet.ok("daemon", "stop", "--processes").out == "Stopped one\nStopped fleetd\n"
    until(lambda: is_gone(pid))


def test_a_killed_fleetd_is_started_again_by_the_next_command(fleet: Fleet) -> None:
    fleet.ok("start", "one", "--", "sleep", "600")
    pid = fleet.process("one")["pid"]
    os.kill(fleet.json("daemon", "status")["pid"], signal.SIGKILL)
    until(lambda: fleet("daemon", "status").code == 7)
    result = fleet.ok("start", "one")
    assert result.err.startswith("Started fleetd in the background")
    assert result.out == f"one is running already (pid {pid})\n"


def test_status_tells_what_runs(fleet: Fleet) -> None:
    fleet.ok("start", "one", "--", "sleep", "600")
    lines = dict(line.split(":", 1) for line in fleet.ok("status").out.splitlines())
    assert lines["Processes"].strip() == "1 running"
    assert lines["State folder"].strip() == str(fleet.state)
    answer = fleet.json("daemon", "status")
    assert answer["running"] is True
    assert {"version", "pid", "started", "driver", "scope", "state_dir", "processes", "environments"} <= set(answer)


def test_the_log_of_fleetd_is_shown(fleet: Fleet) -> None:
    assert fleet("daemon", "logs").code == 3
    fleet.ok("daemon", "start")
    assert " runs as pid " in fleet.ok("daemon", "logs").out
    assert fleet.ok("daemon", "logs", "-n", "0").out == ""


def test_the_state_folder_can_be_named(fleet: Fleet) -> None:
    other = fleet.state.parent / "other"
    fleet.ok("--state-dir", str(other), "daemon", "start")
    try:
        assert fleet.json("daemon", "status", "--state-dir", str(other))["state_dir"] == str(other)
        assert fleet("daemon", "status").code == 7
    finally:
        fleet.ok("daemon", "stop", "--state-dir", str(other))


def test_damaged_state_is_told_in_a_sentence(fleet: Fleet) -> None:
    fleet.state.parent.joinpath("file").write_text("")
    result = fleet("--state-dir", str(fleet.state.parent / "file"), "template", "list")
    assert result.code == 8
    assert result.err.startswith("fleet: state ")
