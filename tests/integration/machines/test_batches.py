# SPDX-License-Identifier: GPL-3.0-or-later
"""Many machines in one call: parallel, bounded, and nothing half done is hidden."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
from tests.fakes.multipass_host import Host

from fleet_core.errors import InvalidInput, Unavailable
from fleet_core.machine_plans import Plan, plan_all
from fleet_core.machines import Machine, MachineSpec
from fleet_machines import batches
from fleet_machines.multipass import Multipass


def plans(adapter: Multipass, specs: Sequence[MachineSpec], target: str = "started", **consent: bool) -> Sequence[Plan]:
    return plan_all(specs, adapter.describe(full=True), target, adapter.capabilities, **consent)


def specs(count: int, **values: Any) -> list[MachineSpec]:
    return [MachineSpec(f"dev-{number}", "multipass", **values) for number in range(count)]


def test_machines_are_made_in_parallel_and_a_second_run_does_nothing(host: Host) -> None:
    host.settings(seconds={"launch": 1})
    adapter = host.adapter()
    events: list[batches.Event] = []
    began = time.monotonic()
    made = batches.run(plans(adapter, specs(6)), adapter, timeout=60, parallel=6, report=events.append)
    assert time.monotonic() - began < 5.5  # one after the other needs six seconds for the launches alone
    assert [(outcome.name, outcome.ok, outcome.done) for outcome in made] == [
        (f"dev-{number}", True, (f"create machine dev-{number}",)) for number in range(6)
    ]
    assert {str(event).partition(" ")[2] for event in events} >= {"dev-0: create machine dev-0", "dev-0: launch it"}
    host.calls()
    again = batches.run(plans(adapter, specs(6)), adapter, timeout=60)
    assert [outcome.done for outcome in again] == [()] * 6
    assert {call[0] for call in host.calls()} == {"list", "info", "get"}


def test_one_that_fails_keeps_the_others_from_nothing_and_is_told(host: Host) -> None:
    adapter = host.adapter()
    host.faults(
        {"command": "launch", "name": "dev-1", "code": 2, "message": "launch failed: no space left on device"},
        {"command": "stop", "name": "dev-2", "code": 2, "message": "stop failed: it does not want to"},
    )
    outcomes = batches.run(plans(adapter, specs(4), "stopped"), adapter, timeout=60)
    assert [outcome.ok for outcome in outcomes] == [True, False, False, True]
    assert outcomes[1].to_dict()["not_done"] == ["create machine dev-1", "stop machine dev-1"]
    assert (outcomes[2].done, outcomes[2].not_done) == (("create machine dev-2",), ("stop machine dev-2",))
    with pytest.raises(batches.BatchFailed) as caught:
        batches.check(outcomes)
    assert caught.value.message == (
        '2 of 4 machines failed: machine "dev-1": multipass launch: no space left on device; '
        'machine "dev-2": multipass stop: it does not want to'
    )
    assert caught.value.code == "process_failed"
    assert {name: machine.state for name, machine in adapter.describe().items()} == {
        "dev-0": "stopped",
        "dev-2": "running",
        "dev-3": "stopped",
    }
    assert all(outcome.ok for outcome in batches.run(plans(adapter, specs(4), "stopped"), adapter, timeout=60))


def test_what_has_not_begun_in_time_is_not_begun(host: Host) -> None:
    host.settings(seconds={"launch": 2})
    adapter = host.adapter()
    outcomes = batches.run(plans(adapter, specs(5)), adapter, timeout=1.5, parallel=1)
    assert not any(outcome.ok for outcome in outcomes)
    assert {outcome.error.code for outcome in outcomes if outcome.error} == {"timed_out"}
    assert outcomes[-1].error is not None
    assert outcomes[-1].error.message == (
        'machine "dev-4": was not begun, but the time of 1s is over; left to do: create machine dev-4'
    )
    assert len(host.calls("launch")) == 1


def test_a_daemon_that_is_away_is_told_for_each(host: Host) -> None:
    adapter = host.adapter()
    wanted = plans(adapter, specs(3))
    host.faults({"command": "list", "code": 3, "times": 99})
    outcomes = batches.run(wanted, adapter, timeout=30)
    with pytest.raises(batches.BatchFailed) as caught:
        batches.check(outcomes)
    assert caught.value.code == Unavailable.code
    assert host.left() == []


def test_changes_restarts_and_deletions_go_through_the_same_steps(host: Host) -> None:
    adapter = host.adapter()
    batches.check(batches.run(plans(adapter, specs(2, cpu=1)), adapter, timeout=60))
    (one, _other) = outcomes = batches.run(plans(adapter, specs(2, cpu=2), reboot=True), adapter, timeout=60)
    batches.check(outcomes)
    assert one.done == ("stop machine dev-0", "change machine dev-0: cpu from 1 to 2", "start machine dev-0")
    changed = plans(adapter, specs(2, image="22.04"), recreate=True)
    assert all(not plan.steps for plan in changed)  # the image that they came from is not known: none was named
    batches.check(batches.run(plans(adapter, specs(2), "restarted"), adapter, timeout=60))
    batches.check(batches.run(plans(adapter, specs(2), "absent"), adapter, timeout=60))
    assert (host.instances(), host.left()) == ({}, [])


class Counting:
    """A provider that counts how many of its machines are worked on at once, and has one surprise."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.now = self.most = 0

    def create(self, spec: MachineSpec, job: Any) -> Machine:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(0.02)
        with self.lock:
            self.now -= 1
        if spec.name == "dev-3":
            raise ZeroDivisionError("a surprise")
        return Machine(spec.name, "multipass")


def test_no_more_are_worked_on_at_once_than_allowed_and_a_surprise_is_an_outcome(host: Host) -> None:
    counting: Any = Counting()
    wanted = plan_all(specs(20), {}, "started", Multipass.capabilities)
    outcomes = batches.run(wanted, counting, timeout=60, parallel=3)
    assert counting.most == 3
    assert [outcome.name for outcome in outcomes if not outcome.ok] == ["dev-3"]
    assert "ZeroDivisionError: a surprise" in str(outcomes[3].error)
    for wrong in (0, 65):
        with pytest.raises(InvalidInput, match="parallel: expected a number from 1 to 64"):
            batches.run(wanted, counting, timeout=60, parallel=wrong)
