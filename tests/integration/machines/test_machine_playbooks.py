# SPDX-License-Identifier: GPL-3.0-or-later
"""machine_provision, machine_destroy and machine_checkpoints: a host with Multipass whose machines are a real sshd."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.multipass_host import Host
from tests.integration.machines.playbooks import Hypervisor
from tests.integration.ssh_server import SshServer, ssh_server
from tests.requirements import require_tool

from fleet_core.dotenv import parse_dotenv

PROVISION, DESTROY = "autovibe.fleet.machine_provision", "autovibe.fleet.machine_destroy"
CHECKPOINTS = "autovibe.fleet.machine_checkpoints"
FLEET = str(Path(sys.executable).with_name("fleet"))
SECRET = 'hunter2 it\'s a $(secret) "quoted" `one`\nin two lines \\n'
PROJECT = """
[environment]
name = "shop"

[processes.web]
command = "sleep 600"
"""
AGENTS = """
agents:
  - name: greeter
    runner: command
    command: cat
    methods: {greet: Say hello.}
    pipeline: [{call: greet}]
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    """What all machines are: an sshd with a home of its own, in which fleetd runs once it was provisioned."""
    with ssh_server(tmp_path_factory.mktemp("sshd")) as found:
        yield found
        environ = {**os.environ, "FLEET_STATE_DIR": str(found.home / "state")}
        subprocess.run([FLEET, "daemon", "stop", "--processes"], env=environ, capture_output=True, check=False)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A repository with a branch, a tag and a project file."""
    require_tool("git", "to clone a repository")
    folder = tmp_path_factory.mktemp("repository")
    (folder / ".runcept.toml").write_text(PROJECT)
    (folder / "agents.yml").write_text(AGENTS)
    for words in (
        *(["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "First"], ["tag", "v1"]),
        *(["commit", "-q", "--allow-empty", "-m", "Second"], ["branch", "next"]),
    ):
        names = ["-c", "user.name=Ada", "-c", "user.email=ada@example.com"]
        subprocess.run(["git", *names, *words], cwd=folder, check=True, capture_output=True)
    return f"file://{folder}"


@pytest.fixture
def run(host: Host, tmp_path: Path, server: SshServer) -> Hypervisor:
    folder = server.config.parent
    host.settings(host_key=" ".join((folder / "host.pub").read_text().split()[:2]))
    more = {
        # The fake's addresses lead nowhere: all machines are the one sshd.
        "ansible_host": "127.0.0.1",
        "ansible_port": server.port,
        "machine_ssh_key_file": str(folder / "user"),
        "machine_defaults": {"image": "24.04", "login": pwd.getpwuid(os.geteuid()).pw_name},
        "node_fleet_path": str(Path(FLEET).parent),
        "node_service": "background",
        "node_driver": "native",
        "node_scope": "user",
    }
    return Hypervisor(tmp_path, host.state_dir, host.environ, more=more)


def project(server: SshServer, repository: str, **more: Any) -> dict[str, Any]:
    return {
        "provision_project": "shop",
        "provision_repository": repository,
        "provision_path": str(server.home / "shop"),
        "provision_checkpoint_folders": [],
        **more,
    }


def git(server: SshServer, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(server.home / "shop"), *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.slow
@pytest.mark.timeout(900)  # seven runs of playbooks
def test_a_project_is_provisioned_kept_and_destroyed(
    run: Hypervisor, host: Host, server: SshServer, repository: str
) -> None:
    shutil.rmtree(server.home / "shop", ignore_errors=True)
    values = project(server, repository, provision_ref="v1", provision_settings={"PASSWORD": SECRET, "DEBUG": True})
    made = run(PROVISION, "--diff", **values)
    assert git(server, "log", "--format=%s") == "First"
    settings = server.home / "shop" / ".env"
    assert stat.S_IMODE(settings.stat().st_mode) == 0o600
    assert parse_dotenv(settings.read_text()) == {"PASSWORD": SECRET, "DEBUG": "true"}
    assert "hunter2" not in made.output
    environ = {**os.environ, "FLEET_STATE_DIR": str(server.home / "state")}
    for words, expected in ((["ps"], "web"), (["agents"], "greeter")):
        shown = subprocess.run([FLEET, *words], env=environ, capture_output=True, text=True, check=True).stdout
        assert expected in shown
    assert host.instances()["shop"]["snapshots"].keys() == {"genesis"}
    assert host.instances()["shop"]["state"] == "Running"

    again = run(PROVISION, **values)
    assert again.changed == []
    moved = run(PROVISION, **{**values, "provision_ref": "main", "provision_update": True})
    assert [name for name in moved.changed if "Clone" in name] == ["Clone"]
    assert git(server, "log", "-1", "--format=%s") == "Second"
    other = run(PROVISION, fails=True, **{**values, "provision_repository": "https://example.com/other.git"})
    assert f"expected a clone of https://example.com/other.git, found one of {repository}" in other.failure

    predicted = run(DESTROY, "--check", destroy_machines=["shop"])
    assert list(host.instances()) == ["shop"]
    # Variables of the role say nothing here: only what is named goes.
    gone = run(DESTROY, destroy_machines=["shop"], machine_machines=[{"name": "bystander"}], machine_state="absent")
    assert "Delete machines" in str(predicted.changed)
    assert "shop: nothing is left on localhost" in gone.output
    assert host.instances() == {}
    assert host.left() == []
    shown = subprocess.run([FLEET, "--json", "ps"], env=environ, capture_output=True, text=True, check=True).stdout
    assert '"state": "running"' not in shown
    assert run(DESTROY, destroy_machines=["shop"]).changed == []


def test_a_machine_of_another_host_key_is_refused(
    run: Hypervisor, host: Host, server: SshServer, repository: str
) -> None:
    host.settings()  # the provider tells another key than the one that answers
    failed = run(PROVISION, fails=True, fleet_connect_timeout=5, **project(server, repository))
    assert "Host key verification failed" in failed.output
    assert failed.stats["shop"]["ok"] == 0


def test_a_machine_comes_from_a_pool_and_the_same_one_again(
    run: Hypervisor, host: Host, server: SshServer, repository: str
) -> None:
    values = project(server, repository, provision_pool="dev", provision_node=False, provision_activate=False)
    values.update(provision_agents="none", provision_checkpoint="", provision_machine_fields={"image": "24.04"})
    login = run.more["machine_defaults"]["login"]
    empty = run(PROVISION, fails=True, **values)
    assert 'pool "dev": no machine is free' in empty.failure
    run(
        "autovibe.fleet.machines",
        "--tags",
        "machine_pool",
        machine_pools=[{"name": "dev", "size": 1, "machine": {"image": "24.04", "login": login}}],
    )
    (name,) = host.instances()
    first = run(PROVISION, **values)
    assert first.of("Take a machine")["machine"]["name"] == name
    assert run(PROVISION, **values).changed == []
    assert list(host.instances()) == [name]


def test_what_is_due_is_saved_also_when_agents_cannot_be_asked(run: Hypervisor, host: Host) -> None:
    run("autovibe.fleet.machines", machine_machines=[{"name": "shop", "project": "shop"}, {"name": "other"}])
    values = {"checkpoints_project": "shop", "checkpoints_stop": True}
    predicted = run(CHECKPOINTS, "--check", **values)
    saved = run(CHECKPOINTS, **values)
    assert predicted.changed == saved.changed == ["Save what is due, and remove what is old"]
    instances = host.instances()
    (name,) = instances["shop"]["snapshots"]
    assert name.startswith("automatic-")
    assert instances["other"]["snapshots"] == {}
    assert instances["shop"]["state"] == "Running"
    assert run(CHECKPOINTS, **values).changed == []
    assert run(CHECKPOINTS, checkpoints_risky=True, checkpoints_usage=False, **values).changed != []
    missing = run(CHECKPOINTS, fails=True, checkpoints_machines=["nosuch"])
    assert "expected machines that exist, found no nosuch on localhost" in missing.failure
    wrong = run(CHECKPOINTS, fails=True, checkpoints_trigger={})
    assert "checkpoints_trigger" in wrong.failure


def test_machines_that_let_nobody_in_are_destroyed_all_the_same(run: Hypervisor, host: Host) -> None:
    run("autovibe.fleet.machines", machine_machines=[{"name": "shop"}, {"name": "other"}])
    gone = run(DESTROY, destroy_machines=["shop"], ansible_port=1)
    assert gone.stats["shop"]["ignored"] > 0
    (host.state_dir / "machines" / "known_hosts").unlink()
    host.faults(*[{"command": "exec", "code": 2, "message": "exec failed: ssh connection failed"}] * 9)
    run(DESTROY, destroy_machines=["other"])
    assert host.instances() == {}


def test_the_last_state_of_a_machine_is_its_own(run: Hypervisor, host: Host) -> None:
    values: dict[str, Any] = {"destroy_machines": ["shop"], "destroy_final_checkpoint": True}
    made = {"machine_machines": [{"name": "shop"}]}
    run("autovibe.fleet.machines", **made)
    saving = {"provider": "multipass", "machines": ["shop"], "name": "final", "stop": True}
    run([{"hosts": "localhost", "gather_facts": False, "tasks": [{"autovibe.fleet.checkpoint": saving}]}])
    again = run(DESTROY, destroy_stop_agents=False, **values)
    assert "Remove last states after which the machine went on" in again.changed
    assert list(host.instances()) == ["shop-final"]
    run("autovibe.fleet.machines", **made)
    refused = run(DESTROY, fails=True, destroy_stop_agents=False, **values)
    assert 'machine "shop-final": it was kept when an earlier machine' in refused.failure
    assert sorted(host.instances()) == ["shop", "shop-final"]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"provision_repository": "https://ada:hunter2@example.com/x.git"}, "found a password in the address"),
    ({"provision_repository": f"https://ghp_{'hunter2' * 5}@example.com/x.git"}, "found a password in the address"),
    ({"provision_repository": "ext::sh -c reboot"}, "provision_repository: expected an address"),
    ({"provision_repository": "-ux@example.com:x.git"}, "provision_repository: expected an address"),
    ({"provision_repository": "git@example.com:x.git"}, "provision_git_host_keys: expected the host keys"),
    ({"provision_ref": "--upload-pack=x"}, "provision_ref: expected a branch"),
    ({"provision_path": "shop"}, "provision_path: expected an absolute path"),
    ({"provision_settings": {"A-B": "x"}}, "provision_settings: expected names"),
    ({"provision_project": "../etc"}, "provision_project: expected letters"),
    ({"provision_branch": "main"}, "provision_branch"),
]


@pytest.mark.parametrize(("more", "said"), WRONG)
def test_wrong_variables_are_a_sentence(
    run: Hypervisor, host: Host, server: SshServer, repository: str, more: dict[str, Any], said: str
) -> None:
    failed = run(PROVISION, fails=True, **project(server, repository, **more))
    assert said in failed.failure
    assert "hunter2" not in failed.output
    assert host.instances() == {}


@pytest.mark.parametrize("names", [None, "shop", [], ["-rf"]])
def test_destroying_wants_the_list_of_names(run: Hypervisor, host: Host, names: Any) -> None:
    values = {} if names is None else {"destroy_machines": names}
    failed = run(DESTROY, fails=True, **values)
    assert "destroy_machines: expected the list of the names" in failed.failure
