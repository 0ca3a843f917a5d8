# SPDX-License-Identifier: GPL-3.0-or-later
"""Processes that others started and the fleet took over."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet_core.errors import Conflict
from fleet_node import procfs

from .fleetd import Fleet, alive, running, shell, wait_for


@pytest.fixture
def fleet(state_dir: Path) -> Iterator[Fleet]:
    with running(state_dir) as found:
        yield found


def test_what_a_leader_leaves_in_its_group_is_ended_too(fleet: Fleet) -> None:
    script = "(trap '' TERM; sleep 1000) & exec sleep 1000"
    stranger = subprocess.Popen(["/bin/sh", "-c", script], start_new_session=True)
    try:
        fleet.call("processes.adopt", id="taken", pid=stranger.pid)
        fleet.call("processes.stop", ids=["taken"], timeout=30)
        stranger.wait(5)
        assert procfs.group_members(stranger.pid) == []
    finally:
        stranger.kill()
        stranger.wait()


def test_a_process_in_anothers_group_is_ended_alone(fleet: Fleet) -> None:
    leader = subprocess.Popen(
        ["/bin/sh", "-c", "sleep 1000 & echo $!; wait; sleep 1000"], start_new_session=True, stdout=subprocess.PIPE
    )
    try:
        assert leader.stdout is not None
        member = int(leader.stdout.readline())
        fleet.call("processes.adopt", id="taken", pid=member)
        fleet.call("processes.stop", ids=["taken"])
        assert not alive(member)
        assert leader.poll() is None
    finally:
        os.killpg(leader.pid, 9)
        leader.wait()


def test_a_part_of_a_process_is_not_adopted_as_another(fleet: Fleet) -> None:
    own = fleet.start("own", shell("sleep 1000 & wait"))
    children = Path(f"/proc/{own['pid']}/task/{own['pid']}/children")
    (part,) = wait_for("its child", lambda: children.read_text().split())
    with pytest.raises(Conflict, match='belongs to process "own"'):
        fleet.call("processes.adopt", id="part", pid=int(part))
