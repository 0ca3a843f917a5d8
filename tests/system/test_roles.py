# SPDX-License-Identifier: GPL-3.0-or-later
"""The roles beyond their first run: other users, updates, reboots, existing installations, check mode, new files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.system.lab import Host, Lab
from tests.system.lab.playbooks import play

pytestmark = pytest.mark.timeout(600)

SLEEPER = ["fleet", "start", "sleeper", "--", "sleep 3600"]


def changed(output: str) -> int:
    return int(re.findall(r"changed=(\d+)", output)[-1])


def process(host: Host, user: str = "root", name: str = "sleeper", **options: Any) -> dict[str, Any]:
    answer = json.loads(host.login(user, "fleet", "--json", "ps", name, **options).stdout)
    return answer["processes"][0]


@pytest.fixture(scope="module")
def bare(lab: Lab) -> Iterator[Host]:
    host = lab.host("node-system", "debian12")
    yield host
    host.stop()


def test_check_mode_on_a_bare_host_changes_nothing(bare: Host) -> None:
    output = play(bare, "autovibe.fleet.node", "--check", "--diff")
    assert changed(output) > 3
    assert bare.run("test", "-e", "/opt/autovibe", check=False).returncode == 1
    assert bare.run("test", "-e", "/etc/systemd/system/fleetd.service", check=False).returncode == 1


@pytest.fixture(scope="module")
def system_node(bare: Host) -> Host:
    """Root's fleetd on a host that had nothing, with one process."""
    play(bare, "autovibe.fleet.node")
    bare.login("root", *SLEEPER)
    return bare


def test_an_update_restarts_fleetd_and_no_process(system_node: Host) -> None:
    before, daemon = process(system_node), system_node.sh("systemctl show -P MainPID fleetd")
    assert before["driver"] == "systemd"
    system_node.sh("echo older > /opt/autovibe/venv/.autovibe-fleet")
    output = play(system_node, "autovibe.fleet.node")
    assert "Restart fleetd under systemd" in output
    assert system_node.sh("systemctl show -P MainPID fleetd") != daemon
    assert process(system_node)["pid"] == before["pid"]


def test_an_existing_installation_is_used(system_node: Host) -> None:
    system_node.sh("ln -s /opt/autovibe/venv/bin /srv/bin")
    output = play(system_node, "autovibe.fleet.node", node_fleet_path="/srv/bin")
    assert "Build the application's wheel" not in output
    assert "/srv/bin/fleetd" in system_node.sh("systemctl show -P ExecStart fleetd")
    assert changed(play(system_node, "autovibe.fleet.node", node_fleet_path="/srv/bin")) == 0


PROJECT = """
[environment]
name = "small"

[processes.web]
command = "/usr/bin/python3 -m http.server --bind 127.0.0.1 --directory public %tcpport"
readiness = "http://127.0.0.1:${tcpport}/"

[processes.idle]
command = "sleep 3600"
"""


def test_a_project_is_copied_restarted_when_it_changes_and_deactivated(system_node: Host, tmp_path: Path) -> None:
    (tmp_path / "public").mkdir()
    (tmp_path / ".runcept.toml").write_text(PROJECT)
    (tmp_path / "public/index.html").write_text("one\n")
    project = {"src": str(tmp_path), "path": "/srv/small"}

    def deploy(**fields: str) -> str:
        return play(system_node, "autovibe.fleet.environments", environment_projects=[{**project, **fields}])

    output = deploy()
    assert "Ask the environments' URLs" in output
    first = process(system_node, name="small/web")
    assert system_node.sh(f"curl -s http://127.0.0.1:{first['resources']['tcpport']}/") == "one"
    assert changed(deploy()) == 0
    assert process(system_node, name="small/web")["pid"] == first["pid"]

    (tmp_path / "public/index.html").write_text("two\n")
    assert changed(deploy()) == 2
    second = process(system_node, name="small/web")
    assert second["pid"] != first["pid"]
    assert second["resources"] == first["resources"]
    assert system_node.sh(f"curl -s http://127.0.0.1:{first['resources']['tcpport']}/") == "two"
    sleeper = process(system_node)["pid"]

    assert changed(deploy(state="inactive")) == 1
    assert process(system_node, name="small/web")["status"] == "stopped"
    assert process(system_node)["pid"] == sleeper
    assert changed(deploy(state="inactive")) == 0


def test_processes_run_again_after_a_reboot(system_node: Host) -> None:
    system_node.restart()
    system_node.wait("fleet daemon status >/dev/null 2>&1")
    system_node.wait("fleet ps sleeper | grep -q running")


@pytest.fixture(scope="module")
def shared(lab: Lab) -> Iterator[Host]:
    host = lab.host("node-user", "debian13")
    host.add_user("dev")
    yield host
    host.stop()


def test_a_user_gets_a_user_service(shared: Host) -> None:
    play(shared, "autovibe.fleet.node", ansible_user="dev")
    unit = shared.login("dev", "systemctl", "--user", "is-active", "fleetd.service")
    assert unit.stdout.strip() == "active"
    path = {"PATH": "/home/dev/.local/bin:/usr/bin:/bin"}
    shared.login("dev", *SLEEPER, env=path)
    found = process(shared, "dev", env=path)
    assert (found["status"], found["driver"], found["user"]) == ("running", "systemd", "dev")


def test_a_native_node_under_systemd_keeps_processes_over_a_restart(shared: Host) -> None:
    play(shared, "autovibe.fleet.node", node_driver="native", node_state_dir="/srv/state")
    env = {"FLEET_STATE_DIR": "/srv/state"}
    shared.login("root", *SLEEPER, env=env)
    before = process(shared, env=env)
    assert before["driver"] == "native"
    shared.run("systemctl", "restart", "fleetd")
    shared.wait("FLEET_STATE_DIR=/srv/state fleet daemon status >/dev/null 2>&1")
    assert process(shared, env=env)["pid"] == before["pid"]
    assert shared.sh("stat -c %a /srv/state") == "700"
