# SPDX-License-Identifier: GPL-3.0-or-later
"""Warm pools on a host with Multipass: many takers at once, and takers that are killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from tests.fakes.multipass_host import Host

from fleet_core.errors import Exhausted, ProcessFailed
from fleet_core.machines import MachineSpec
from fleet_core.pools import Owner, Pool
from fleet_machines.pools import Pools
from fleet_machines.provider import Job

POOL = Pool(
    "dev", MachineSpec("dev", "multipass", image="24.04", user_data="#cloud-config\nhostname: name-of-the-machine\n")
)

TAKER = """
import json, sys
from tests.fakes.multipass_host import FAKE
from fleet_core.machines import MachineSpec
from fleet_core.pools import Owner, Pool
from fleet_machines import providers
from fleet_machines.pools import Pools
from fleet_machines.provider import Job
state, executable, key = sys.argv[1:]
provider = providers.provider("multipass", state, {"executable": executable})
pool = Pool("dev", MachineSpec("dev", "multipass", image="24.04"))
print("ready", flush=True)
action, machine = Pools(provider, state).take(pool, Owner("shop", key), (), None, Job.lasting(60))
print(json.dumps([action, machine.name]), flush=True)
"""


def job(seconds: float = 60) -> Job:
    return Job.lasting(seconds)


@pytest.fixture
def pools(host: Host) -> Pools:
    return Pools(host.adapter(), str(host.state_dir))


def taker(host: Host, key: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", TAKER, str(host.state_dir), str(host.executable), key],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **host.environ},
        cwd=Path(__file__).resolve().parents[3],
        start_new_session=True,
    )


def result(child: subprocess.Popen[str]) -> tuple[str, str]:
    stdout, stderr = child.communicate(timeout=90)
    assert child.returncode == 0, stderr
    action, name = json.loads(stdout.splitlines()[-1])
    return action, name


def test_a_pool_is_filled_taken_from_and_emptied(host: Host, pools: Pools) -> None:
    assert pools.fill(POOL, 2, "running", job()) == ("make 2 machines for pool dev",)
    first, second = pools.status(POOL).free
    assert host.instances()[first.name]["user_data"] == f"#cloud-config\nhostname: {first.name}\n"
    assert pools.fill(POOL, 2, "running", job()) == ()
    shop = Owner("shop", "1")
    action, mine = pools.take(POOL, shop, ("web",), "ada", job())
    assert (action, mine.name) == (f"hand machine {first.name} of pool dev to shop", first.name)
    assert (mine.project, mine.login, mine.tags) == ("shop", "ada", (shop.tag, "taken-dev", "web"))
    assert pools.take(POOL, shop, ("web",), "ada", job()) == ("", mine)
    assert pools.fill(POOL, 1, "stopped", job()) == (f"stop machine {second.name} of pool dev",)
    _action, other = pools.take(POOL, Owner("shop", "2"), (), None, job())
    assert (other.name, other.state) == (second.name, "running")
    with pytest.raises(Exhausted, match='pool "dev": no machine is free'):
        pools.take(POOL, Owner("shop", "3"), (), None, job(), make=False)
    action, made = pools.take(POOL, Owner("shop", "3"), (), None, job())
    assert action == f"make machine {made.name} for shop: pool dev is empty"
    assert pools.take(POOL, Owner("shop", "3"), (), None, job()) == ("", made)
    pools.fill(POOL, 1, "running", job())
    assert len(pools.empty(POOL, job())) == 1
    assert sorted(host.instances()) == sorted([first.name, second.name, made.name])
    for name in host.instances():
        pools.provider.delete(name, job())
    assert host.left() == []


def test_what_failed_or_was_interrupted_is_finished_by_the_next_fill(host: Host, pools: Pools) -> None:
    host.faults(
        {"command": "launch", "timeout": "stuck"}, {"command": "launch", "code": 2, "message": "launch failed: x"}
    )
    with pytest.raises(Exception, match="an instance that is starting is left"):
        pools.fill(POOL, 3, "running", job(3))
    status = pools.status(POOL)
    assert (len(status.free), len(status.filling)) == (1, 1)
    half = status.filling[0].name
    host.edit(half, state="Running")
    actions = pools.fill(POOL, 3, "running", job())
    assert actions == (f"finish machine {half} of pool dev", "make 1 machines for pool dev")
    assert len(pools.status(POOL).free) == 3


def test_a_machine_of_another_template_is_replaced_and_a_taken_one_stays(host: Host, pools: Pools) -> None:
    pools.fill(POOL, 2, "running", job())
    _action, mine = pools.take(POOL, Owner("shop", "1"), (), None, job())
    other = Pool("dev", MachineSpec("dev", "multipass", image="22.04"))
    actions = pools.fill(other, 1, "running", job())
    assert [text.partition(":")[2] for text in actions] == [" it differs in image", ""]
    assert host.instances()[mine.name]["release"] == "24.04 LTS"
    assert [one.image for one in pools.status(other).free] == ["22.04"]


def test_nothing_is_handed_out_that_could_not_be_made(host: Host, pools: Pools) -> None:
    host.faults({"command": "launch", "code": 2, "message": "launch failed: no space left on device"})
    with pytest.raises(ProcessFailed, match="no space left on device"):
        pools.take(POOL, Owner("shop", "1"), (), None, job())
    assert pools.status(POOL).taken == ()
    assert pools.take(POOL, Owner("shop", "1"), (), None, job())[1].name == POOL.name_for(Owner("shop", "1"))


def test_eight_takers_at_once_get_eight_machines(host: Host, pools: Pools) -> None:
    pools.fill(POOL, 6, "running", job(), parallel=6)
    children = [taker(host, str(number)) for number in range(8)]
    found = [result(child) for child in children]
    assert len({name for _action, name in found}) == 8
    assert Counter(action.split()[0] for action, _name in found) == {"hand": 6, "make": 2}
    again = [result(taker(host, str(number))) for number in range(8)]
    assert again == [("", name) for _action, name in found]
    assert [path for path in host.left() if path.endswith(".lock")] == []


@pytest.mark.slow
def test_takers_that_are_killed_never_share_a_machine_and_get_theirs_later(host: Host, pools: Pools) -> None:
    pools.fill(POOL, 6, "running", job(), parallel=6)
    picked = random.Random(7)
    owners: dict[str, str] = {}
    for _round in range(4):
        children = {str(number): taker(host, str(number)) for number in range(8)}
        for child in children.values():
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
        victims = picked.sample(sorted(children), 4)
        time.sleep(picked.uniform(0.05, 0.8))
        for key in victims:
            os.killpg(children[key].pid, signal.SIGKILL)
        for key, child in children.items():
            stdout, stderr = child.communicate(timeout=90)
            if key not in victims:
                assert child.returncode == 0, stderr
            for line in stdout.splitlines():
                if line.startswith("["):
                    assert owners.setdefault(key, json.loads(line)[1]) == json.loads(line)[1]
    final = {str(number): result(taker(host, str(number)))[1] for number in range(8)}
    assert len(set(final.values())) == 8
    assert owners.items() <= final.items()
    status = pools.status(POOL)
    assert sorted(one.name for one in status.taken) == sorted(final.values())
    assert all(not one.incomplete for one in status.taken)
