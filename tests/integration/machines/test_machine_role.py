# SPDX-License-Identifier: GPL-3.0-or-later
"""The role machine and its playbook, on a host with Multipass."""

from __future__ import annotations

import shlex
import stat
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.multipass_host import Host
from tests.integration.machines.playbooks import Hypervisor, Run
from tests.requirements import require_tool

from fleet_machines.provider import Job

SECRET = "hunter2-in-user-data"
TOLD = (
    *("ansible_host", "ansible_port", "ansible_user", "ansible_ssh_common_args", "ansible_ssh_private_key_file"),
    *("fleet_machine", "group_names"),
)
ROLE = [
    {
        "hosts": "hypervisors",
        "gather_facts": False,
        "roles": [{"role": "autovibe.fleet.machine"}],
    },
    {
        "hosts": "machines",
        "gather_facts": False,
        "tasks": [
            {
                "name": "Tell",
                "ansible.builtin.debug": {"msg": {name: f"{{{{ {name} }}}}" for name in TOLD}},
            }
        ],
    },
]
WEB = {
    "name": "web-1",
    "image": "24.04",
    "template": "python",
    "values": {"git_name": "Ada", "git_email": "ada@example.com"},
}
DB = {"name": "db-1", "image": "24.04", "user_data": f"#cloud-config\npassword: {SECRET}\n"}
BOTH = {"machine_defaults": {"project": "my-shop", "cpu": 2}, "machine_machines": [WEB, DB]}


@pytest.fixture
def run(host: Host, tmp_path: Path) -> Hypervisor:
    require_tool("ssh-keygen", "to make the fleet's key pair")
    return Hypervisor(tmp_path, host.state_dir, host.environ)


def host_of(found: Run, name: str) -> dict[str, Any]:
    variables: dict[str, Any] = found.of("Tell", name)["msg"]
    return variables


def test_machines_are_predicted_made_and_kept_and_become_hosts(run: Hypervisor, host: Host) -> None:
    predicted = run(ROLE, "--check", "--diff", **BOTH)
    assert host.instances() == {}
    assert not host.state_dir.exists()
    assert predicted.of("Make and change machines")["actions"] == ["create machine web-1", "create machine db-1"]

    made = run(ROLE, "--diff", **BOTH)
    web, db = host_of(made, "web-1"), host_of(made, "db-1")
    assert web["group_names"] == ["machines", "project_my_shop"]
    assert (web["ansible_user"], db["ansible_user"], web["ansible_port"]) == ("dev", "ubuntu", 22)
    assert web["ansible_host"] == web["fleet_machine"]["addresses"][0]
    options = shlex.split(web["ansible_ssh_common_args"])
    known = host.state_dir / "machines" / "known_hosts"
    assert {"StrictHostKeyChecking=yes", "HostKeyAlias=web-1", f'UserKnownHostsFile="{known}"'} <= set(options)
    assert "ProxyCommand" not in web["ansible_ssh_common_args"]
    private = Path(web["ansible_ssh_private_key_file"])
    assert stat.S_IMODE(private.stat().st_mode) == stat.S_IMODE(known.stat().st_mode) == 0o600
    assert [line.split()[0] for line in known.read_text().splitlines()] == ["web-1", "db-1"]
    instance = host.instances()["web-1"]
    public = private.with_suffix(".pub").read_text().split()[1]
    assert public in instance["user_data"]
    assert "Ada" in instance["user_data"]
    assert instance["cpus"] == 2
    assert public in str(host.instances()["db-1"]["authorized"])
    for one in (predicted, made):
        assert SECRET not in one.output
    assert not any(SECRET in path.read_text() for path in host.state_dir.rglob("*") if path.is_file())

    host.calls()
    again = run(ROLE, **BOTH)
    assert again.changed == []
    assert host_of(again, "web-1") == web
    assert host.calls("exec", "launch", "set", "start") == []
    assert run(ROLE, "--check", **BOTH).changed == []


def test_a_machine_made_anew_gets_its_new_host_key_and_a_lost_file_is_written_again(
    run: Hypervisor, host: Host
) -> None:
    run(ROLE, **BOTH)
    known = host.state_dir / "machines" / "known_hosts"
    before = known.read_text()
    known.unlink()
    assert run(ROLE, **BOTH).changed == ["autovibe.fleet.machine : Note the host keys on the controller"]
    assert known.read_text() == before
    other = {**DB, "image": "22.04"}
    anew = run(ROLE, machine_machines=[other], machine_recreate=True)
    assert anew.of("Make and change machines")["actions"][-1] == "create machine db-1"
    assert [line.split()[0] for line in known.read_text().splitlines()] == ["web-1", "db-1"]


def test_a_template_that_has_changed_is_told_and_only_makes_machines_anew_if_asked(run: Hypervisor, host: Host) -> None:
    values = {"machine_machines": [WEB]}
    run(ROLE, **values)
    other = {"machine_machines": [{**WEB, "values": {"git_name": "Eve", "git_email": "eve@example.com"}}]}
    kept = run(ROLE, **other)
    assert kept.changed == []
    assert "web-1: their template" in kept.of("Tell which machines")["msg"]
    assert "Ada" in host.instances()["web-1"]["user_data"]
    assert "msg" not in run(ROLE, **values).of("Tell which machines")
    run(ROLE, machine_recreate=True, **other)
    assert "Eve" in host.instances()["web-1"]["user_data"]


def test_forks_begin_where_a_checkpoint_was(run: Hypervisor, host: Host) -> None:
    run(ROLE, **BOTH)
    adapter = host.adapter()
    adapter.stop("db-1", Job.lasting(10))
    adapter.checkpoint("db-1", "clean", Job.lasting(10))
    forks = [
        {"from": "db-1", "checkpoint": "clean", "count": 2},
        {"from": "db-1", "checkpoint": "clean", "names": ["spare"], "project": "other", "tags": ["spare"]},
    ]
    variables = {"machine_defaults": {"project": "my-shop"}, "machine_forks": forks}
    made = run(ROLE, **variables)
    assert made.of("Fork machines")["actions"] == [
        f"create machine {name}" for name in ("db-1-fork-1", "db-1-fork-2", "spare")
    ]
    assert host_of(made, "db-1-fork-2")["group_names"] == ["machines", "project_my_shop"]
    assert host_of(made, "spare")["fleet_machine"]["image"] == "instance:db-1.clean"
    assert host_of(made, "spare")["group_names"] == ["machines", "project_other"]
    assert run(ROLE, **variables).changed == []


def test_pools_are_kept_and_their_machines_bear_their_own_names(run: Hypervisor, host: Host) -> None:
    pool = {"name": "dev", "size": 2, "kept": "stopped", "machine": {"image": "24.04", "template": "python"}}
    made = run(ROLE, machine_pools=[pool])
    assert len(host.instances()) == 2
    for name, instance in host.instances().items():
        assert f"hostname: {name}\n" in instance["user_data"]
        assert instance["state"] == "Stopped"
    assert "Keep pools" in made.changed[-1]
    assert run(ROLE, machine_pools=[pool]).changed == []
    run(ROLE, machine_pools=[pool], machine_state="absent")
    assert host.instances() == {}


def test_destroying_leaves_the_key_of_the_fleet_and_nothing_else(run: Hypervisor, host: Host) -> None:
    run(ROLE, **BOTH)
    predicted = run(ROLE, "--check", machine_state="absent", **BOTH)
    assert len(host.instances()) == 2
    gone = run(ROLE, machine_state="absent", **BOTH)
    assert predicted.changed == gone.changed != []
    assert host.instances() == {}
    assert host.left() == ["id_ed25519", "id_ed25519.pub"]
    assert run(ROLE, machine_state="absent", **BOTH).changed == []


def test_a_remote_host_is_the_way_to_its_machines(run: Hypervisor, host: Host) -> None:
    made = run(ROLE, machine_machines=[{"name": "web-1"}], machine_jump="ops@rack-1")
    options = shlex.split(host_of(made, "web-1")["ansible_ssh_common_args"])
    assert "ProxyCommand=ssh -W [%h]:%p ops@rack-1" in options


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"machine_machines": [{"name": "a", "template": "python", "user_data": "x"}]}, "expected template or user_data"),
    ({"machine_machines": [{"name": "a"}, {"name": "a"}]}, 'machine "a": expected each name once'),
    ({"machine_machines": [{"name": "a", "template": "pythn"}]}, 'did you mean "python"?'),
    ({"machine_machines": [{"name": "a", "memory": "much"}]}, 'machine "a": memory: expected a size'),
    ({"machine_machines": [{"nme": "a"}]}, "nme"),
    ({"machine_provider": "vmware", "machine_machines": [{"name": "a"}]}, 'provider "vmware": unknown'),
]


@pytest.mark.parametrize(("variables", "said"), WRONG)
def test_wrong_variables_are_a_sentence(run: Hypervisor, host: Host, variables: dict[str, Any], said: str) -> None:
    assert said in run(ROLE, fails=True, **variables).failure
    assert host.instances() == {}
