# SPDX-License-Identifier: GPL-3.0-or-later
"""The role node beyond its first run: other users, updates, reboots, existing installations, check mode."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
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
