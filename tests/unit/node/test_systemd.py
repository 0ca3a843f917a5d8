# SPDX-License-Identifier: GPL-3.0-or-later
"""The systemd supervisor against recorded answers of systemctl; tests/system has the real one."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fleet_core.errors import InvalidInput, ProcessFailed, Unavailable
from fleet_core.process_status import ProcessStatus
from fleet_core.processes import launch, process_spec
from fleet_node import systemd
from fleet_node.supervisor import Job, Observation

RUNNING = {"ActiveState": "active", "SubState": "running", "MainPID": "77", "ExecMainPID": "77", "NRestarts": "0"}
STARTED = {"ExecMainStartTimestampMonotonic": "2434480134"}


class FakeSystemctl:
    """Answers like systemctl: units as a table, and what was asked as a list."""

    def __init__(self) -> None:
        self.units: dict[str, dict[str, str]] = {}
        self.asked: list[list[str]] = []
        self.errors: dict[str, str] = {}
        self.state = "running"

    def __call__(self, arguments: Sequence[str], timeout: float) -> subprocess.CompletedProcess[str]:
        self.asked.append(list(arguments))
        verb = arguments[0]
        output, error = "", self.errors.get(verb, "")
        if verb == "--version":
            output = "systemd 252 (252.39-1~deb12u2)\n+PAM +AUDIT\n"
        if verb == "is-system-running":
            output = f"{self.state}\n"
        if verb == "show":
            names = arguments[arguments.index("--") + 1 :]
            blocks = [
                {
                    "Id": name,
                    "LoadState": "loaded" if name in self.units else "not-found",
                    "ActiveState": "inactive",
                    **self.units.get(name, {}),
                }
                for name in names
            ]
            output = "\n".join("".join(f"{key}={value}\n" for key, value in block.items()) for block in blocks)
        return subprocess.CompletedProcess(list(arguments), 1 if error else 0, output, error)

    def verbs(self) -> list[str]:
        return [words[0] for words in self.asked]


@pytest.fixture
def systemctl() -> FakeSystemctl:
    return FakeSystemctl()


@pytest.fixture
def driver(systemctl: FakeSystemctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> systemd.Systemd:
    monkeypatch.setattr(systemd.procfs, "start_ticks", lambda pid: pid * 101)
    environ = {
        "XDG_RUNTIME_DIR": str(tmp_path),
        "PATH": "/usr/bin:/bin",
        "HOME": "/home/dev",
        "NOTIFY_SOCKET": "/x",
        "FN%%": "()",
    }
    driver = systemd.Systemd(Path("/srv/state"), "user", environ, systemctl)
    driver.prefix = "fleet-"
    return driver


def job(ident: str, command: str = "sleep 5", working_dir: str = "/", **fields: Any) -> Job:
    spec = process_spec({"id": ident, "command": command, **fields})
    return Job(spec, launch(spec, {}), f"token-{ident}", working_dir)


def test_many_processes_start_with_one_reload_and_one_command(
    driver: systemd.Systemd, systemctl: FakeSystemctl
) -> None:
    systemctl.units = {"fleet-a.service": {**RUNNING, **STARTED}, "fleet-shop:b.service": {**RUNNING, **STARTED}}
    outcomes = driver.start([job("a"), job("shop/b")])
    assert {ident: getattr(seen, "phase", seen) for ident, seen in outcomes.items()} == {
        "a": "alive",
        "shop/b": "alive",
    }
    assert systemctl.verbs() == ["--version", "daemon-reload", "start", "reset-failed", "restart", "show"]
    assert systemctl.asked[4] == ["restart", "--", "fleet-a.service", "fleet-shop:b.service"]


def test_the_same_unit_is_not_loaded_again(driver: systemd.Systemd, systemctl: FakeSystemctl) -> None:
    systemctl.units = {"fleet-a.service": {**RUNNING, **STARTED}}
    driver.start([job("a")])
    driver.start([job("a", env={"NEW": "value"})])
    assert systemctl.verbs().count("daemon-reload") == 1
    driver.start([job("a", stop_timeout=3)])
    assert systemctl.verbs().count("daemon-reload") == 2


def test_variables_are_private_and_fleetds_own_stay_behind(driver: systemd.Systemd, systemctl: FakeSystemctl) -> None:
    driver.start([job("a", env={"TOKEN": "hunter2"})])
    unit, variables = driver.units / "fleet-a.service", driver.variables / "fleet-a.env"
    assert unit.stat().st_mode & 0o777 == 0o644
    assert variables.stat().st_mode & 0o777 == 0o600
    assert driver.variables.stat().st_mode & 0o777 == 0o700
    lines = variables.read_text().splitlines()
    assert {'HOME="/home/dev"', 'TOKEN="hunter2"', 'FLEET_PROCESS="a"', 'FLEET_LAUNCH="token-a"'} <= set(lines)
    assert not [line for line in lines if line.startswith(("NOTIFY_SOCKET", "FN"))]
    assert "hunter2" not in unit.read_text()


def test_one_failure_stops_no_other(driver: systemd.Systemd, systemctl: FakeSystemctl) -> None:
    failed = {
        "ActiveState": "failed",
        "Result": "exit-code",
        "ExecMainPID": "78",
        "ExecMainCode": "1",
        "ExecMainStatus": "217",
    }
    systemctl.units = {"fleet-a.service": {**RUNNING, **STARTED}, "fleet-b.service": {**failed, **STARTED}}
    systemctl.errors["restart"] = (
        "Job for fleet-b.service failed because the control process exited with error code.\nSee x.\n"
    )
    outcomes = driver.start([job("a"), job("b"), job("c", command="no-such-program"), job("d", working_dir="/no/such")])
    assert isinstance(outcomes["a"], Observation)
    assert str(outcomes["b"]) == 'process "b": its user does not exist or cannot be set'
    assert str(outcomes["c"]).startswith('process "c": program "no-such-program" was not found in')
    assert str(outcomes["d"]) == 'process "d": working directory /no/such does not exist'
    assert ["stop", "--", "fleet-b.service"] in systemctl.asked


def test_a_program_that_fails_at_once_was_started(driver: systemd.Systemd, systemctl: FakeSystemctl) -> None:
    ended = {
        "ActiveState": "failed",
        "Result": "exit-code",
        "ExecMainPID": "78",
        "ExecMainCode": "1",
        "ExecMainStatus": "3",
    }
    systemctl.units = {"fleet-a.service": {**ended, **STARTED}}
    systemctl.errors["restart"] = "Job for fleet-a.service failed because the control process exited with error code.\n"
    assert driver.start([job("a")]) == {"a": Observation("alive", 78, 7878)}
    assert driver.observe({"a": ProcessStatus()})["a"] == Observation("ended", exit_code=3)


def test_a_unit_that_cannot_be_loaded(driver: systemd.Systemd, systemctl: FakeSystemctl) -> None:
    systemctl.errors["restart"] = (
        "Failed to restart fleet-a.service: Unit fleet-a.service has a bad unit file setting.\n"
    )
    outcome = driver.start([job("a")])["a"]
    assert isinstance(outcome, ProcessFailed)
    assert (
        str(outcome)
        == 'process "a": Failed to restart fleet-a.service: Unit fleet-a.service has a bad unit file setting'
    )


def after(active: str, sub: str, code: int, status: int, **more: str) -> dict[str, str]:
    """What is shown once the leader has ended. code: 1 exited, 2 killed, 3 dumped core."""
    ended = {"MainPID": "0", "ExecMainCode": str(code), "ExecMainStatus": str(status)}
    return {**STARTED, "ActiveState": active, "SubState": sub, **ended, **more}


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        ({}, Observation("absent")),
        ({"ActiveState": "inactive", "ExecMainStartTimestampMonotonic": "0"}, Observation("absent")),
        ({**RUNNING, **STARTED}, Observation("alive", 77, 7777)),
        ({**RUNNING, **STARTED, "ActiveState": "activating"}, Observation("alive", 77, 7777, ready=False)),
        (after("deactivating", "stop-sigterm", 1, 0), Observation("alive", 41, 4141, 0, ready=False)),
        (after("activating", "auto-restart", 2, 9, NRestarts="2"), Observation("waiting", exit_code=-9, restarts=2)),
        (after("activating", "auto-restart-queued", 1, 3), Observation("waiting", exit_code=3)),
        (after("inactive", "dead", 1, 0, Job="17"), Observation("waiting", exit_code=0)),
        (after("inactive", "dead", 1, 0), Observation("ended", exit_code=0)),
        (after("inactive", "dead", 2, 15), Observation("ended", exit_code=-15)),
        (after("failed", "failed", 3, 6), Observation("ended", exit_code=-6)),
        (
            after("failed", "failed", 2, 9, Result="oom-kill"),
            Observation("ended", exit_code=-9, error="it was killed for lack of memory"),
        ),
    ],
)
def test_what_systemd_shows_becomes_what_is_true(
    shown: dict[str, str], expected: Observation, driver: systemd.Systemd, systemctl: FakeSystemctl
) -> None:
    systemctl.units = {"fleet-a.service": shown}
    assert driver.observe({"a": ProcessStatus(pid=41, pid_start=4141)})["a"] == expected


def test_a_host_that_goes_down_ends_no_process(driver: systemd.Systemd, systemctl: FakeSystemctl) -> None:
    systemctl.units = {"fleet-a.service": after("inactive", "dead", 2, 15)}
    systemctl.state = "stopping"
    assert driver.observe({"a": ProcessStatus(pid=41, pid_start=4141)})["a"] == Observation("alive", 41, 4141)


def test_all_units_are_asked_for_at_once(driver: systemd.Systemd, systemctl: FakeSystemctl) -> None:
    driver.observe({f"p{number}": ProcessStatus() for number in range(450)})
    assert systemctl.verbs() == ["show", "show", "show"]


def test_restarts_are_counted_on_when_systemd_begins_again(driver: systemd.Systemd, systemctl: FakeSystemctl) -> None:
    def seen(shown: int, recorded: int) -> int:
        systemctl.units = {"fleet-a.service": {**RUNNING, **STARTED, "NRestarts": str(shown)}}
        return driver.observe({"a": ProcessStatus(restarts=recorded)})["a"].restarts

    assert [seen(0, 0), seen(2, 0), seen(0, 2), seen(1, 2)] == [0, 2, 2, 3]


def test_many_stops_become_one_command(driver: systemd.Systemd, systemctl: FakeSystemctl) -> None:
    jobs = [job(f"p{number}") for number in range(20)]
    with ThreadPoolExecutor(20) as pool:
        list(pool.map(lambda item: driver.terminate(item.spec, ProcessStatus()), jobs))
    assert systemctl.verbs().count("stop") < 10
    stopped = [name for words in systemctl.asked for name in words if name.endswith(".service")]
    assert sorted(stopped) == sorted(f"fleet-p{number}.service" for number in range(20))


def test_units_of_stopped_processes_go(driver: systemd.Systemd, systemctl: FakeSystemctl) -> None:
    driver.start([job("a"), job("b")])
    driver.forget(["a"])
    assert sorted(path.name for path in driver.units.iterdir()) == ["fleet-b.service", "fleet-processes.target"]
    assert [path.name for path in driver.variables.iterdir()] == ["fleet-b.env"]
    assert systemctl.verbs()[-3:] == ["stop", "reset-failed", "daemon-reload"]
    assert "fleet-a" not in (driver.units / "fleet-processes.target").read_text()


def test_two_fleetds_share_no_unit() -> None:
    environ = {"XDG_STATE_HOME": "/home/dev/.state"}
    one, two = (systemd.unit_prefix(Path(path), environ) for path in ("/tmp/one", "/tmp/two"))
    assert one != two
    assert one.startswith("fleet-_")


def test_systemd_that_does_not_answer_is_unavailable(driver: systemd.Systemd, systemctl: FakeSystemctl) -> None:
    systemctl.errors["show"] = "Failed to connect to bus: No such file or directory\n"
    with pytest.raises(Unavailable, match="Failed to connect to bus: No such file or directory"):
        driver.observe({"a": ProcessStatus()})


def test_a_scope_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match='scope: expected auto, system or user, found "global"'):
        systemd.Systemd(tmp_path, "global")
