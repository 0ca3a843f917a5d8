# SPDX-License-Identifier: GPL-3.0-or-later
"""machine_pool, machine_access and machine_keys on a host with Multipass."""

from __future__ import annotations

import shutil
import stat
from typing import Any

import pytest
from tests.fakes.multipass_host import Host
from tests.integration.modules.plays import Play, Result, Task, task
from tests.requirements import require_tool

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDo2Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6 ada@example.com"
SECRET = "hunter2-in-user-data"


@pytest.fixture
def host(tmp_path: Any) -> Host:
    return Host(tmp_path)


def run(play: Play, host: Host, *tasks: Task, fails: bool = False) -> list[Result]:
    return play(list(tasks), fails=fails, **host.environ)


def pool(check_mode: bool = False, **options: Any) -> Task:
    return task("machine_pool", check_mode, provider="multipass", name="dev", **options)


def access(check_mode: bool = False, ignore_errors: bool = False, **options: Any) -> Task:
    return task("machine_access", check_mode, ignore_errors, provider="multipass", authorized_keys=[KEY], **options)


def test_a_pool_is_predicted_filled_taken_from_and_emptied(play: Play, host: Host) -> None:
    template = {"image": "24.04", "user_data": f"#cloud-config\npassword: {SECRET}\n"}
    owner = {"project": "shop", "key": "1", "tags": ["web"]}
    predicted, made, again, offered, taken, same, gone, nothing = run(
        play,
        host,
        pool(True, size=2, machine=template),
        pool(size=2, machine=template),
        pool(size=2, machine=template),
        pool(True, state="taken", **owner),
        pool(state="taken", **owner),
        pool(state="taken", **owner),
        pool(state="absent"),
        pool(state="absent"),
    )
    assert predicted["actions"] == made["actions"] == ["make 2 machines for pool dev"]
    assert len(made["free"]) == 2
    assert made["progress"]
    assert not again["changed"]
    assert offered["actions"] == taken["actions"]
    assert taken["machine"]["name"] == made["free"][0]
    assert (taken["machine"]["project"], taken["machine"]["state"]) == ("shop", "running")
    assert (same["changed"], same["machine"]) == (False, taken["machine"])
    assert gone["actions"] == [f"delete machine {made['free'][1]} of pool dev"]
    assert gone["taken"] == [taken["machine"]["name"]]
    assert not nothing["changed"]
    assert SECRET not in str([predicted, made, again, offered, taken, same, gone])
    assert list(host.instances()) == [made["free"][0]]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"name": "Dev"}, "pool name 'Dev': expected a small letter"),
    ({"size": -1}, 'pool "dev": size: expected a number from 0 to 1000, found -1'),
    ({"state": "taken", "project": "shop"}, "missing: key"),
    ({"state": "taken", "project": "shop", "key": " "}, 'pool "dev": expected a key'),
    ({"state": "taken", "project": "shop", "key": "1", "create": False}, 'pool "dev": no machine is free'),
    ({"machine": {"memory": "much"}}, 'machine "dev": memory: expected a size'),
]


def test_wrong_options_of_a_pool_are_one_sentence(play: Play, host: Host) -> None:
    tasks = [
        task("machine_pool", ignore_errors=True, **{"provider": "multipass", "name": "dev", **options})
        for options, _said in WRONG
    ]
    for (_options, said), result in zip(WRONG, run(play, host, *tasks), strict=True):
        assert said in result["msg"]
    assert host.instances() == {}


def test_people_get_in_and_host_keys_come_back(play: Play, host: Host) -> None:
    web = {"name": "web-1", "login": "ada"}
    predicted, _made, looked, done, again, own, failed = run(
        play,
        host,
        access(True, machines=[web]),
        task("machine", provider="multipass", machines=[{"name": "web-1"}]),
        access(True, machines=[web]),
        access(machines=[web]),
        access(machines=[web]),
        access(machines=[{"name": "web-1"}]),
        access(ignore_errors=True, machines=[{"name": "nosuch"}]),
    )
    assert (predicted["changed"], predicted["machines"]) == (False, [])
    assert looked["actions"] == ["machine web-1: add the user", "machine web-1: authorize a key"]
    assert done["actions"] == looked["actions"]
    assert not again["changed"]
    assert again["machines"] == done["machines"]
    (found,) = done["machines"]
    assert (found["login"], found["port"], found["address"]) == ("ada", 22, found["address"])
    assert found["host_keys"][0].startswith("ssh-ed25519 AAAA")
    assert own["machines"][0]["login"] == "ubuntu"
    assert 'machine "nosuch": not there' in failed["msg"]
    assert host.instances()["web-1"]["users"] == ["root", "ubuntu", "ada"]
    assert KEY not in str(host.calls())


def test_a_machine_that_does_not_run_or_says_nonsense_is_refused(play: Play, host: Host) -> None:
    _made, stopped = run(
        play,
        host,
        task("machine", provider="multipass", state="stopped", machines=[{"name": "web-1"}]),
        access(machines=[{"name": "web-1"}]),
        fails=True,
    )
    assert stopped["msg"] == 'machine "web-1": expected a running machine, it is stopped'
    host.edit("web-1", state="Running")
    host.faults({"command": "exec", "code": 2, "message": "exec failed: ssh connection failed"})
    (failed,) = run(play, host, access(machines=[{"name": "web-1"}]), fails=True)
    assert failed["msg"] == 'machine "web-1": multipass exec: ssh connection failed'
    host.faults({"command": "exec", "code": 2, "message": "sh: 1: useradd: not found"})
    (failed,) = run(play, host, access(machines=[{"name": "web-1"}]), fails=True)
    assert failed["msg"].startswith('machine "web-1": the script that lets people log in ended with 2')


def test_keys_are_made_once_and_host_keys_are_added_replaced_and_forgotten(play: Play, host: Host) -> None:
    require_tool("ssh-keygen", "to make the fleet's key pair")
    other = KEY.replace("Ojo6", "Ojp6").rsplit(" ", 1)[0]
    folder = play.state_dir / "machines"
    predicted, made, again, replaced, gone = run(
        play,
        host,
        task("machine_keys", True, key_pair=True, machines=[{"name": "web-1", "host_keys": [KEY]}]),
        task("machine_keys", key_pair=True, machines=[{"name": "web-1", "host_keys": [KEY]}]),
        task("machine_keys", key_pair=True, machines=[{"name": "web-1", "host_keys": [KEY]}]),
        task("machine_keys", machines=[{"name": "web-1", "host_keys": [other]}]),
        task("machine_keys", state="absent", names=["web-1", "nosuch"]),
    )
    assert predicted["actions"] == made["actions"] == ["make the key pair", "add the host key of web-1"]
    assert made["public_key"].startswith("ssh-ed25519 ")
    assert not again["changed"]
    assert (again["public_key"], again["known"]) == (made["public_key"], ["web-1"])
    assert "HostKeyAlias=web-1" in made["ssh_args"]["web-1"]
    assert replaced["actions"] == ["replace the host key of web-1"]
    assert gone["actions"] == ["forget the host key of web-1"]
    assert sorted(path.name for path in folder.iterdir()) == ["id_ed25519", "id_ed25519.pub"]
    assert stat.S_IMODE((folder / "id_ed25519").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    shutil.rmtree(play.state_dir)
