# SPDX-License-Identifier: GPL-3.0-or-later
"""What supervised processes do, and what crashes do to them, under systemd on real hosts.

These are the suites of tests/integration. They run on the host itself, with its Python: they need pids and signals.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from tests.system.lab import Host

REPOSITORY = Path(__file__).resolve().parents[2]
APP = "/opt/fleet-test"
SUITES = (
    "tests/integration/test_supervisor_behaviour.py",
    "tests/integration/test_crashes.py",
    "tests/integration/test_agent_processes.py",
)
SOURCES = ("src/autovibe_fleet", "plugins/module_utils/fleet_core", "plugins/module_utils/fleet_node")
# pytest, and what it needs: pure Python, so that any host can import what is installed here.
TOOLS = ("_pytest", "pytest", "py", "pluggy", "iniconfig", "packaging", "pygments")
USER = "fleet-dev"


def install(host: Host) -> Host:
    """Bring the application, the suites and pytest to a host, in one folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ignore = shutil.ignore_patterns("__pycache__")
        for source in SOURCES:
            shutil.copytree(REPOSITORY / source, folder / Path(source).name, ignore=ignore)
        for tool in TOOLS:
            found = importlib.util.find_spec(tool)
            assert found is not None
            assert found.origin is not None
            if found.submodule_search_locations:
                shutil.copytree(found.submodule_search_locations[0], folder / tool, ignore=ignore)
            else:
                shutil.copy(found.origin, folder)
        (folder / "tests/integration").mkdir(parents=True)
        for file in ("tests/integration/fleetd.py", *SUITES):
            shutil.copy(REPOSITORY / file, folder / file)
        folder.chmod(0o755)
        host.run("mkdir", "-p", APP)
        host.push(f"{folder}/.", APP)
    return host


@pytest.fixture(scope="module")
def installed(host: Host) -> Host:
    """A host with the application, the suites and pytest, and a user whose manager lingers."""
    install(host)
    host.add_user(USER)
    return host


def run_suite(host: Host, suite: str, driver: str, **environ: str) -> str:
    """Run a suite of tests/integration on the host; what fails there fails here. Returns what it printed."""
    output = f"/tmp/{driver.replace(':', '-')}.xml"
    words = ["python3", "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", APP]
    words += ["-o", "markers=timeout", "--tb=short", f"--junit-xml={output}", f"{APP}/{suite}"]
    env = {"PYTHONPATH": APP, "FLEET_TEST_DRIVER": driver, "PYTHONDONTWRITEBYTECODE": "1", **environ}
    if driver == "systemd:user":
        done = host.login(USER, *words, env=env, check=False, timeout=1800)
    else:
        done = host.run(*words, env=env, cwd="/", check=False, timeout=1800)
    print(done.stdout, done.stderr)
    found = ElementTree.fromstring(host.sh(f"cat {output}")).find("testsuite")
    assert found is not None
    cases = list(found.iter("testcase"))
    failed = [case.get("name") for case in cases if case.find("failure") is not None or case.find("error") is not None]
    assert failed == []
    assert done.returncode == 0
    assert cases
    return done.stdout


@pytest.mark.parametrize("driver", ["systemd:system", "systemd:user"])
@pytest.mark.timeout(1800)
def test_supervised_processes_behave(installed: Host, driver: str) -> None:
    run_suite(installed, SUITES[0], driver)
    assert installed.sh("systemctl list-units --failed --plain --no-legend") == ""
    assert installed.sh("ls /run/systemd/system | grep ^fleet- | grep service$ || true") == ""


@pytest.mark.parametrize("driver", ["systemd:system", "native"])
@pytest.mark.timeout(1800)
def test_crashes_lose_nothing(installed: Host, driver: str) -> None:
    """Four runs of 250 kills, a thousand in all, unless FLEET_CRASH_ROUNDS says otherwise."""
    print(run_suite(installed, SUITES[1], driver, FLEET_CRASH_ROUNDS=os.environ.get("FLEET_CRASH_ROUNDS", "250")))


@pytest.mark.timeout(900)
def test_agents_run(installed: Host) -> None:
    """One driver on each system: how they differ is in the suites above."""
    run_suite(installed, SUITES[2], {"debian12": "systemd:user"}.get(installed.image, "systemd:system"))
    assert installed.sh("ls /run/systemd/system | grep ^fleet- | grep service$ || true") == ""


FLEETD = f"""
[Service]
ExecStart=/usr/bin/python3 -m autovibe_fleet.node.daemon --driver systemd
Environment=PYTHONPATH={APP}
Restart=always

[Install]
WantedBy=multi-user.target
"""

CALL = """
import json, sys
from fleet_node.client import Client
print(json.dumps(Client().call(sys.argv[1], **json.loads(sys.argv[2]))))
"""


def test_a_boot_brings_back_what_is_wanted(new_host: Callable[[str], Host]) -> None:
    host = install(new_host("debian13"))

    def call(method: str, **params: Any) -> Any:
        return json.loads(host.run("python3", "-c", CALL, method, json.dumps(params), env={"PYTHONPATH": APP}).stdout)

    def up() -> None:
        host.wait("test -S /var/lib/autovibe/fleetd.sock && systemctl is-active --quiet fleetd")
        host.wait(f"PYTHONPATH={APP} python3 -c 'from fleet_node.client import Client; exit(not Client().answers())'")

    host.write("/etc/systemd/system/fleetd.service", FLEETD)
    host.run("systemctl", "enable", "--quiet", "--now", "fleetd")
    up()
    items = [
        {"id": "shop/db", "command": "sleep 1000", "resources": ["tcpport"], "readiness": "cmd://true"},
        {"id": "shop/web", "command": "sleep 1000", "resources": ["tcpport"], "depends_on": ["db"]},
        {"id": "shop/job", "command": "true"},
        {"id": "shop/off", "command": "sleep 1000"},
    ]
    before = {item["id"]: item for item in call("processes.apply", items=items, state="started")["processes"]}
    call("processes.stop", ids=["shop/off"])
    host.restart()
    up()
    host.wait("systemctl is-active --quiet fleet-shop:web.service")
    after = {item["id"]: item for item in call("processes.list")["processes"]}
    assert {ident: item["status"] for ident, item in after.items()} == {
        "shop/db": "running",
        "shop/web": "running",
        "shop/job": "stopped",
        "shop/off": "stopped",
    }
    for ident in ("shop/db", "shop/web"):
        assert after[ident]["resources"] == before[ident]["resources"]
    moments = "systemctl show -P ExecMainStartTimestampMonotonic fleet-shop:db fleet-shop:web"
    db, web = (int(moment) for moment in host.sh(moments).split())
    assert db < web
