# SPDX-License-Identifier: GPL-3.0-or-later
"""The fleet command where systemd runs: its unit of fleetd, units of processes, and journald."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.system.lab import Host, Lab
from tests.system.lab.wheels import wheelhouse

pytestmark = pytest.mark.timeout(600)

REPOSITORY = Path(__file__).resolve().parents[2]
FLEET = "/opt/fleet/bin/fleet"
USER = "fleet-cli"
UNIT = """\
[Unit]
Description=fleetd
[Service]
ExecStart=/opt/fleet/bin/fleetd --driver systemd --scope system
Restart=always
RestartSec=1
KillMode=process
"""


@pytest.fixture(scope="module", params=["debian12", "debian13"])
def installed(request: pytest.FixtureRequest, lab: Lab) -> Iterator[Host]:
    """A host with the application in /opt/fleet, and a user whose manager lingers."""
    host = lab.host(f"cli-{request.param}", request.param)
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
        subprocess.run([*pip, "--no-deps", "--wheel-dir", folder, str(REPOSITORY)], check=True)
        host.push(f"{wheelhouse()}/.", "/opt/wheels")
        host.push(f"{folder}/.", "/opt/wheels")
    host.sh(
        "python3 -m venv /opt/fleet && /opt/fleet/bin/pip install -q --no-index --find-links /opt/wheels autovibe-fleet"
    )
    host.add_user(USER)
    yield host
    host.stop()


def fleet(host: Host, *words: str, user: str = "root", check: bool = True) -> subprocess.CompletedProcess[str]:
    return host.login(user, FLEET, *words, check=check)


def data(host: Host, *words: str, user: str = "root") -> Any:
    return json.loads(fleet(host, *words, "--json", user=user).stdout)


def test_the_installed_unit_is_what_is_started_and_stopped(installed: Host) -> None:
    installed.write("/etc/systemd/system/fleetd.service", UNIT)
    installed.run("systemctl", "daemon-reload")
    result = fleet(installed, "start", "one", "--", "sh", "-c", "echo hello; echo trouble >&2; exec sleep 600")
    assert "Started fleetd in the background (fleetd.service)." in result.stderr
    assert installed.sh("systemctl is-active fleetd") == "active"
    status = data(installed, "daemon", "status")
    assert (status["driver"], status["scope"]) == ("systemd", "system")
    assert str(status["pid"]) == installed.sh("systemctl show -P MainPID fleetd")
    (process,) = data(installed, "ps", "one")["processes"]
    assert (process["driver"], process["unit"]) == ("systemd", "fleet-one.service")
    assert "Stopped fleetd" in fleet(installed, "daemon", "stop").stdout
    assert installed.run("systemctl", "is-active", "fleetd", check=False).stdout.strip() == "inactive"
    assert fleet(installed, "daemon", "status", check=False).returncode == 7
    assert data(installed, "ps", "one")["processes"][0]["pid"] == process["pid"]
    assert "hello" in fleet(installed, "logs", "one").stdout
    assert "(fleetd.service)" in fleet(installed, "daemon", "restart").stdout
    assert data(installed, "ps", "one")["processes"][0]["pid"] == process["pid"]
    assert " runs as pid " in fleet(installed, "daemon", "logs").stdout


def test_logs_come_from_the_journal(installed: Host) -> None:
    installed.wait(f"{FLEET} logs one | grep -q trouble")
    lines = fleet(installed, "logs", "one").stdout.splitlines()
    assert {"hello", "trouble"} <= set(lines)
    assert any(line.startswith("[fleet] Started ") for line in lines)
    records = [json.loads(line) for line in fleet(installed, "logs", "one", "--json").stdout.splitlines()]
    assert {"Lifecycle", "Stdout"} <= {record["level"] for record in records}
    assert fleet(installed, "logs", "one", "-n", "1", "--since", "1h").stdout.count("\n") == 1
    follow = installed.sh(f"(sleep 2; {FLEET} restart one >/dev/null) & timeout 8 {FLEET} logs one -f -n 0 || true")
    assert "hello" in follow


def test_a_user_has_a_fleet_of_their_own(installed: Host) -> None:
    result = fleet(installed, "start", "mine", "--", "sleep", "600", user=USER)
    assert "Started fleetd in the background (pid " in result.stderr
    status = data(installed, "daemon", "status", user=USER)
    assert (status["driver"], status["scope"]) == ("systemd", "user")
    (process,) = data(installed, "ps", user=USER)["processes"]
    assert (process["user"], process["driver"]) == (USER, "systemd")
    assert "one" in {found["id"] for found in data(installed, "ps")["processes"]}
    for words in (
        ("ps",),
        ("start", "x", "--", "true"),
        ("template", "list"),
        ("daemon", "status"),
        ("state", "export"),
    ):
        at = words.index("--") if "--" in words else len(words)
        theirs = (*words[:at], "--state-dir", "/var/lib/autovibe", *words[at:])
        other = fleet(installed, *theirs, user=USER, check=False)
        assert (other.returncode, other.stdout) == (7, "")
        assert "state folder /var/lib/autovibe: belongs to another user: Permission denied" in other.stderr
    assert data(installed, "daemon", "restart", user=USER)["driver"] == "systemd"
    assert "Stopped mine" in fleet(installed, "daemon", "stop", "--processes", user=USER).stdout
