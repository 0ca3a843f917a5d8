# SPDX-License-Identifier: GPL-3.0-or-later
"""The processes that carry the runs of agents: started, stopped, adopted, scheduled by fleetd.

tests/system runs this on a systemd host, with FLEET_TEST_DRIVER=systemd:system.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.fleetd import Fleet, alive, running, wait_for

from fleet_core.errors import Conflict, FleetError
from fleet_node.agents import AgentStore
from fleet_node.client import Client

DRIVER, _colon, SCOPE = os.environ.get("FLEET_TEST_DRIVER", "native").partition(":")
# A unit of systemd has none of fleetd's variables, and the application may be found by this one only.
PATHS = {"PYTHONPATH": os.environ["PYTHONPATH"]} if os.environ.get("PYTHONPATH") else {}


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with tempfile.TemporaryDirectory(prefix="fleet-") as name, running(Path(name), DRIVER, SCOPE or "auto") as found:
        yield found


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = tmp_path / "workspace"
    folder.mkdir()
    return folder


def agent(
    workspace: Path, name: str = "builder", command: str = "cat", times: int = 1, **fields: Any
) -> dict[str, Any]:
    """An agent whose runner is a shell command: each iteration writes a line to a file named as the agent."""
    return {
        "name": name,
        "runner": "command",
        "command": f"echo line >> {name}.txt; {command}",
        "methods": {"build": fields.pop("body", "Build it.")},
        "pipeline": [{"loop": "build", "times": times}],
        "workspace": {"path": str(workspace)},
        **fields,
        "env": {**PATHS, **fields.get("env", {})},
    }


def apply(fleet: Fleet, *items: dict[str, Any], state: str = "running") -> list[str]:
    return list(fleet.call("agents.apply", items=list(items), state=state, timeout=30)["change"]["actions"])


def shown(fleet: Fleet, name: str = "builder") -> dict[str, Any]:
    (found,) = fleet.call("agents.list", names=[name])["agents"]
    return dict(found)


def until(fleet: Fleet, *states: str, name: str = "builder", timeout: float = 20.0) -> dict[str, Any]:
    """Wait until an agent is in one of the states, and return it."""
    last: dict[str, Any] = {}

    def reached() -> bool:
        last.update(shown(fleet, name))
        return last["state"] in states

    try:
        wait_for("", reached, timeout)
    except AssertionError:
        raise AssertionError(f"{name} is not {' or '.join(states)} but {last}\n{fleet.log()}") from None
    return last


def workers(fleet: Fleet) -> list[int]:
    """The pids of what the iterations of this fleetd's agents have started and what still runs."""
    own, found = f"FLEET_STATE_DIR={fleet.folder}".encode(), []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            environ = Path(f"/proc/{entry}/environ").read_bytes().split(b"\0")
            if own in environ and any(item.startswith(b"FLEET_ITERATION=") for item in environ) and alive(int(entry)):
                found.append(int(entry))
    return found


def lines(workspace: Path, name: str = "builder") -> int:
    file = workspace / f"{name}.txt"
    return len(file.read_text().splitlines()) if file.exists() else 0


def test_an_agent_runs_once_for_every_time_it_is_started(fleet: Fleet, workspace: Path) -> None:
    item = agent(workspace, times=2)
    assert apply(fleet, item) == ["create agent builder", "start agent builder"]
    found = until(fleet, "completed")
    assert (found["run"]["state"], found["steps"][0]["iterations"], lines(workspace)) == ("completed", 2, 2)
    assert apply(fleet, item) == []  # it has done what was asked
    fleet.until("agents/builder", "stopped")
    assert apply(fleet, item) == []
    for number in range(2, 6):  # again at once, also while the process of the last run is about to end
        fleet.call("agents.start", names=["builder"])
        wait_for("the run", lambda number=number: shown(fleet)["run"]["id"] == number)
        until(fleet, "completed")
    assert lines(workspace) == 10
    assert [row["state"] for row in fleet.call("agents.runs", name="builder")["runs"]] == ["completed"] * 5


def test_a_changed_definition_starts_what_was_done_and_not_what_runs(fleet: Fleet, workspace: Path) -> None:
    apply(fleet, agent(workspace))
    until(fleet, "completed")
    assert apply(fleet, agent(workspace, body="Build it better.")) == ["update agent builder", "start agent builder"]
    assert until(fleet, "completed")["revision"] == 2
    slow = agent(workspace, command="sleep 600")
    apply(fleet, slow)
    pid = until(fleet, "running")["pid"]
    assert apply(fleet, {**slow, "description": "slow"}) == ["update agent builder"]
    assert until(fleet, "running")["pid"] == pid


def test_stop_ends_the_run_and_all_that_it_started(fleet: Fleet, workspace: Path) -> None:
    apply(fleet, agent(workspace, command="sleep 600"))
    until(fleet, "running")
    wait_for("the iteration", lambda: lines(workspace) == 1)
    found = fleet.call("agents.stop", names=["builder"], timeout=30)["agents"][0]
    assert (found["state"], found["desired"], found["pid"], found["run"]["state"]) == (
        "stopped",
        "stopped",
        0,
        "stopped",
    )
    assert workers(fleet) == []
    fleet.call("agents.stop", names=["builder"])
    assert apply(fleet, {"name": "builder"}, state="stopped") == []


def test_a_stopped_run_goes_on_only_when_it_is_asked_to(fleet: Fleet, workspace: Path) -> None:
    apply(fleet, agent(workspace, command="sleep 0.3", times=100))
    wait_for("some iterations", lambda: lines(workspace) > 2)
    fleet.call("agents.stop", names=["builder"], timeout=30)
    done = shown(fleet)["run"]
    fleet.call("agents.start", names=["builder"], continue_run=True)
    assert until(fleet, "running")["run"]["id"] == done["id"]
    wait_for("it went on", lambda: shown(fleet)["run"]["totals"]["iterations"] > done["totals"]["iterations"])
    fleet.call("agents.stop", names=["builder"], timeout=30)
    fleet.call("agents.start", names=["builder"])
    assert until(fleet, "running")["run"]["id"] == done["id"] + 1
    fleet.call("agents.stop", names=["builder"], timeout=30)


def test_pausing_is_shown_and_resuming_goes_on(fleet: Fleet, workspace: Path) -> None:
    apply(fleet, agent(workspace, command="sleep 0.1", times=1000))
    until(fleet, "running")
    fleet.call("agents.pause", names=["builder"])
    until(fleet, "paused")
    before = lines(workspace)
    time.sleep(0.5)
    assert lines(workspace) == before
    assert apply(fleet, agent(workspace, command="sleep 0.1", times=1000), state="present") == []
    assert fleet.call("agents.resume", names=["builder"])["agents"][0]["desired"] == "running"
    wait_for("it goes on", lambda: lines(workspace) > before)
    fleet.call("agents.stop", names=["builder"], timeout=30)


def test_absent_takes_a_running_agent_away(fleet: Fleet, workspace: Path) -> None:
    apply(fleet, agent(workspace, command="sleep 600"))
    wait_for("the iteration", lambda: lines(workspace) == 1)
    assert apply(fleet, {"name": "builder"}, state="absent") == ["stop agent builder", "remove agent builder"]
    assert fleet.call("agents.list")["agents"] == []
    assert fleet.call("processes.list")["processes"] == []
    assert workers(fleet) == []
    assert not (fleet.folder / "agents" / "builder").exists()


def test_a_run_goes_on_without_fleetd_and_the_next_one_takes_it_over(fleet: Fleet, workspace: Path) -> None:
    apply(fleet, agent(workspace, command="sleep 0.2", times=8))
    pid = until(fleet, "running")["pid"]
    fleet.end(signal.SIGKILL)
    before = lines(workspace)
    wait_for("it goes on", lambda: lines(workspace) > before + 1)
    fleet.up()
    assert shown(fleet)["pid"] == pid
    assert until(fleet, "completed")["run"]["totals"]["iterations"] == 8
    assert lines(workspace) == 8


def test_a_run_whose_process_died_while_fleetd_was_away_goes_on(fleet: Fleet, workspace: Path) -> None:
    apply(fleet, agent(workspace, command="sleep 600"))
    wait_for("the iteration", lambda: lines(workspace) == 1)
    pid = shown(fleet)["pid"]
    fleet.end(signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    wait_for("its end", lambda: not alive(pid))
    fleet.up()
    found = until(fleet, "running")
    assert found["pid"] not in (0, pid)
    wait_for("the next attempt", lambda: lines(workspace) == 2)
    assert len(workers(fleet)) > 0
    rows = fleet.call("agents.iterations", name="builder")["iterations"]
    assert [(row["state"], row["attempt_of"]) for row in rows] == [("running", rows[1]["id"]), ("interrupted", None)]
    fleet.call("agents.stop", names=["builder"], timeout=30)
    assert workers(fleet) == []


def test_what_cannot_be_launched_is_said_and_shown(fleet: Fleet, workspace: Path) -> None:
    missing = workspace / "missing.env"
    with pytest.raises(FleetError, match=r"missing\.env"):
        apply(fleet, agent(workspace, env_files=[str(missing)]))
    found = shown(fleet)
    assert (found["state"], str(missing) in found["error"]) == ("failed", True)
    missing.write_text("TOKEN=abc\n")
    missing.chmod(0o600)
    fleet.call("agents.start", names=["builder"])
    until(fleet, "completed")
    assert lines(workspace) == 1


def test_variables_reach_the_runner_as_they_are_written(fleet: Fleet, workspace: Path) -> None:
    value = "100% of ${HOME} and %d $${x}"
    apply(fleet, agent(workspace, command='printf %s "$MARK" > mark', env={"MARK": value}))
    until(fleet, "completed")
    assert (workspace / "mark").read_text() == value


def test_kill_all_stops_agents_and_their_schedules(fleet: Fleet, workspace: Path) -> None:
    apply(fleet, agent(workspace, command="sleep 600"), agent(workspace, "timed", schedule={"every": "1h"}))
    until(fleet, "running")
    fleet.call("processes.kill_all")
    for name in ("builder", "timed"):
        found = shown(fleet, name)
        assert found["state"] in ("stopped", "completed")
        assert (found["desired"], found["next_run"]) == ("stopped", None)


# Schedules


def test_a_schedule_begins_run_after_run_and_never_two_at_once(fleet: Fleet, workspace: Path) -> None:
    apply(fleet, agent(workspace, command="sleep 0.1", schedule={"every": "1s"}), state="present")
    assert (shown(fleet)["state"], shown(fleet)["run"]) == ("stopped", None)
    wait_for("three runs", lambda: lines(workspace) >= 3)
    assert apply(fleet, {"name": "builder"}, state="stopped") == ["stop agent builder"]
    assert shown(fleet)["next_run"] is None
    runs = fleet.call("agents.runs", name="builder")["runs"]
    for later, earlier in itertools.pairwise(runs):
        assert later["started"] >= earlier["finished"]
    count = lines(workspace)
    time.sleep(1.5)
    assert lines(workspace) == count


def test_a_time_that_comes_while_a_run_goes_on_is_skipped(fleet: Fleet, workspace: Path) -> None:
    apply(fleet, agent(workspace, command="sleep 2.5", schedule={"every": "1s"}))
    until(fleet, "completed")
    assert len(fleet.call("agents.runs", name="builder")["runs"]) == 1
    assert "was skipped; the one before still goes on" in fleet.log()
    wait_for("the next one", lambda: len(fleet.call("agents.runs", name="builder")["runs"]) == 2)
    fleet.call("agents.stop", names=["builder"], timeout=30)


def test_a_paused_agent_is_not_begun_by_its_schedule(fleet: Fleet, workspace: Path) -> None:
    """A pause outlives the process that held for it, of a computer that was switched off for example."""
    apply(fleet, agent(workspace, schedule={"every": "1s"}), state="present")
    fleet.end(signal.SIGKILL)
    store = AgentStore(fleet.folder)
    if store.unfinished_run("builder") is None:
        store.begin_run("builder", 1)
    store.set_desired("builder", "paused")
    store.close()
    fleet.up()
    wait_for("its time comes", lambda: "was skipped; the one before still goes on" in fleet.log())
    assert (shown(fleet)["desired"], shown(fleet)["pid"]) == ("paused", 0)
    fleet.call("agents.resume", names=["builder"])
    until(fleet, "completed")
    fleet.call("agents.stop", names=["builder"], timeout=30)


def test_a_schedule_outlives_fleetd_and_missed_times_do_not_pile_up(fleet: Fleet, workspace: Path) -> None:
    apply(
        fleet,
        agent(workspace, "soon", schedule={"every": "2s"}),
        agent(workspace, "missed", schedule={"every": "1h"}),
        agent(workspace, "daily", schedule={"cron": "@daily"}),
        state="present",
    )
    daily = shown(fleet, "daily")["next_run"]
    assert time.time() < daily <= time.time() + 25 * 3600
    fleet.end(signal.SIGKILL)
    store = AgentStore(fleet.folder)
    store.set_next_run("missed", time.time() - 7200)
    store.close()
    fleet.up()
    assert shown(fleet, "daily")["next_run"] == daily
    missed = shown(fleet, "missed")
    assert (missed["run"], missed["next_run"] > time.time() + 3000) == (None, True)
    assert 'agent "missed": the run of ' in fleet.log()
    until(fleet, "completed", name="soon")
    fleet.call("agents.stop", names=["soon"], timeout=30)


def test_a_schedule_that_changes_is_kept_to_at_once(fleet: Fleet, workspace: Path) -> None:
    apply(fleet, agent(workspace, schedule={"every": "1h"}), state="present")
    apply(fleet, agent(workspace, schedule={"every": "2h"}), state="present")
    assert shown(fleet)["next_run"] > time.time() + 7000
    apply(fleet, agent(workspace), state="present")
    assert shown(fleet)["next_run"] is None


# What must not go wrong


def test_stopping_the_process_of_an_agent_stops_the_agent(fleet: Fleet, workspace: Path) -> None:
    apply(fleet, agent(workspace, command="sleep 600"))
    until(fleet, "running")
    fleet.stop("agents/builder")
    assert (shown(fleet)["state"], shown(fleet)["desired"]) == ("stopped", "stopped")
    fleet.again()
    assert shown(fleet)["state"] == "stopped"
    fleet.call("processes.delete", ids=["agents/builder"])
    assert shown(fleet)["process"] == ""
    fleet.call("agents.start", names=["builder"])
    until(fleet, "running")


def test_a_start_that_fleetd_was_killed_in_is_made_good(fleet: Fleet, workspace: Path) -> None:
    apply(fleet, agent(workspace), state="present")
    fleet.end(signal.SIGKILL)
    store = AgentStore(fleet.folder)  # what fleetd has written by then
    store.set_desired("builder", "running")
    store.begin_run("builder", 1)
    store.close()
    fleet.up()
    assert until(fleet, "completed")["run"]["id"] == 1


def test_many_callers_start_and_stop_and_what_was_said_last_holds(fleet: Fleet, workspace: Path) -> None:
    apply(fleet, agent(workspace, command="sleep 600"), state="present")
    failures: list[BaseException] = []

    def work(number: int) -> None:
        with Client(fleet.folder, timeout=120) as client:
            for turn in range(4):
                method = ("agents.start", "agents.stop", "agents.pause", "agents.interrupt")[(number + turn) % 4]
                try:
                    client.call(method, names=["builder"])
                except Conflict:  # nothing to pause or to interrupt
                    continue
                except BaseException as error:
                    failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert failures == []
    fleet.call("agents.stop", names=["builder"], timeout=30)
    found = shown(fleet)
    assert (found["state"], found["desired"], found["run"]["state"]) == ("stopped", "stopped", "stopped")
    assert workers(fleet) == []
    unfinished = [row["id"] for row in fleet.call("agents.runs", name="builder")["runs"] if row["finished"] is None]
    assert unfinished == []
    fleet.call("agents.start", names=["builder"])
    until(fleet, "running")


def test_a_run_whose_agent_was_lost_is_ended(fleet: Fleet, workspace: Path) -> None:
    apply(fleet, agent(workspace, command="sleep 600"))
    wait_for("the iteration", lambda: lines(workspace) == 1)
    pid = shown(fleet)["pid"]
    fleet.end(signal.SIGKILL)
    for suffix in ("-wal", "-shm"):
        (fleet.folder / f"agents.db{suffix}").unlink(missing_ok=True)
    (fleet.folder / "agents.db").write_bytes(os.urandom(20_000))
    fleet.up()
    wait_for("its end", lambda: not alive(pid))
    wait_for("nothing is left", lambda: fleet.call("processes.list")["processes"] == [])
    assert "agents builder: are not known any more" in fleet.log()
    wait_for("nor of its iteration", lambda: workers(fleet) == [])
