# SPDX-License-Identifier: GPL-3.0-or-later
"""When a machine counts as ready."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fleet_core.errors import Conflict, FleetError, NotFound, ProcessFailed, TimedOut, Unavailable
from fleet_machines import qemu_guest
from fleet_machines.provider import Job
from fleet_machines.qemu_guest import Guest

DONE: dict[str, Any] = {"v1": {"datasource": "DataSourceNoCloud", "errors": []}}
FAILED: dict[str, Any] = {"v1": {"errors": ["('scripts_user', RuntimeError('\x1b[1mx'))", "more"]}}


class Processes:
    """What fleetd says of the machine's process, and its console."""

    def __init__(self, status: str = "running", error: str = "") -> None:
        self.view = {"status": status, "error": error}

    def get(self, name: str) -> dict[str, str]:
        return self.view

    def console(self, name: str) -> str:
        return "Kernel panic"


def guest(
    monkeypatch: pytest.MonkeyPatch,
    booted: Callable[[], Any],
    *,
    listens: bool = True,
    greets: bool = False,
    processes: Processes | None = None,
) -> Guest:
    found: Any = Guest("web", Path("/none"), processes or Processes())  # type: ignore[arg-type]
    monkeypatch.setattr(found, "_agent_listens", lambda: listens)
    monkeypatch.setattr(found, "_booted", booted)
    monkeypatch.setattr(found, "addresses", lambda: {"mac": ("10.0.0.2",)})
    monkeypatch.setattr(qemu_guest, "_greets", lambda host, port: greets)
    monkeypatch.setattr(qemu_guest, "WITHOUT_AGENT", 0.05)
    monkeypatch.setattr(qemu_guest, "_POLL", 0.02)
    return found  # type: ignore[no-any-return]


def answers(*values: Any) -> Callable[[], Any]:
    left = list(values)

    def booted() -> Any:
        value = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(value, Exception):
            raise value
        return value

    return booted


def wait(found: Guest, first: bool = True, seconds: float = 1.0, told: list[str] | None = None) -> Any:
    report = [].append if told is None else told.append
    return found.wait(Job.lasting(seconds, report), "127.0.0.1", 22, first)


@pytest.mark.parametrize(
    "said",
    [
        (DONE,),
        (None, None, DONE),
        ({},),
        (Unavailable("not yet"), TimedOut("slow"), ProcessFailed("half"), DONE),
    ],
    ids=["done", "later", "no cloud-init", "hiccups"],
)
def test_a_machine_is_ready_when_cloud_init_is_done(said: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    assert wait(guest(monkeypatch, answers(*said))) == {"mac": ("10.0.0.2",)}


def test_an_error_of_cloud_init_fails_the_first_boot_and_quotes_the_console(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ProcessFailed) as raised:
        wait(guest(monkeypatch, answers(FAILED)))
    assert raised.value.message == (
        "machine \"web\": cloud-init ended with an error: ('scripts_user', RuntimeError('x')); "
        "its console ends with: Kernel panic"
    )


def test_an_error_of_cloud_init_at_a_later_boot_is_only_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    wait(guest(monkeypatch, answers(FAILED)), first=False, told=told)
    assert any("cloud-init ended with an error" in text for text in told)


@pytest.mark.parametrize(
    ("listens", "said"), [(False, DONE), (True, NotFound("guest-exec has been disabled"))], ids=["none", "mute"]
)
def test_without_an_agent_that_runs_commands_ssh_is_asked(
    listens: bool, said: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    wait(guest(monkeypatch, answers(said), listens=listens, greets=True), told=told)
    assert "SSH answers; there is no guest agent in it that runs commands" in told


def test_a_machine_that_is_not_ready_in_time_quotes_its_console(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TimedOut, match=r'"web": it was not ready within \S+; its console ends with: Kernel panic'):
        wait(guest(monkeypatch, answers(None)), seconds=0.1)


@pytest.mark.parametrize(
    ("processes", "message"),
    [
        (Processes("stopped"), "does not run any more: it powered itself off"),
        (Processes("error", "killed by SIGSEGV"), "does not run any more: killed by SIGSEGV"),
    ],
)
def test_a_machine_that_ends_is_not_waited_for(
    processes: Processes, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Conflict, match=message):
        wait(guest(monkeypatch, answers(None), processes=processes))


@pytest.mark.parametrize(("said", "found"), [("none", {}), ("disabled", {}), ("wait", None), ('{"v1"', None)])
def test_what_the_guest_says_of_its_boot_is_read(said: str, found: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read(monkeypatch, said, found)


def test_a_result_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read(monkeypatch, json.dumps(DONE), DONE)


def read(monkeypatch: pytest.MonkeyPatch, said: str, found: Any) -> None:
    class Agent:
        def __init__(self, *arguments: Any) -> None: ...

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *error: object) -> None: ...

        def run(self, script: str, job: Job) -> Any:
            return qemu_guest.Ran(0, said + "\n")

    monkeypatch.setattr(qemu_guest, "Agent", Agent)
    assert Guest("web", Path("/none"), Processes())._booted() == found  # type: ignore[arg-type]


def test_a_machine_that_does_not_run_runs_no_script() -> None:
    class Stopped(Processes):
        def state(self, name: str) -> str:
            return "stopped"

    with pytest.raises(FleetError, match='machine "web": it is stopped; expected a running machine'):
        Guest("web", Path("/none"), Stopped()).run("x", Job.lasting(1))  # type: ignore[arg-type]


def test_one_guest_that_talks_nonsense_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def nonsense(self: Guest, timeout: float = 0.0) -> Any:
        raise TypeError("an answer of another form")

    monkeypatch.setattr(Guest, "agent", nonsense)
    assert Guest("web", Path("/none"), Processes()).addresses() == {}  # type: ignore[arg-type]
