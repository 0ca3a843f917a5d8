# SPDX-License-Identifier: GPL-3.0-or-later
"""The behaviour of supervised processes (tests/integration/test_supervisor_behaviour.py) under systemd, on real hosts.

The suite runs on the host itself, with the host's Python: it needs pids, signals and /proc.
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from tests.system.lab import Host

REPOSITORY = Path(__file__).resolve().parents[2]
APP = "/opt/fleet-test"
SUITE = "tests/integration/test_supervisor_behaviour.py"
SOURCES = ("src/autovibe_fleet", "plugins/module_utils/fleet_core", "plugins/module_utils/fleet_node")
# pytest, and what it needs: pure Python, so that any host can import what is installed here.
TOOLS = ("_pytest", "pytest", "py", "pluggy", "iniconfig", "packaging", "pygments")
USER = "fleet-dev"


@pytest.fixture(scope="module")
def installed(host: Host) -> Host:
    """A host with the application, the suite and pytest in one folder, and a user whose manager lingers."""
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
        for file in ("tests/integration/fleetd.py", SUITE):
            shutil.copy(REPOSITORY / file, folder / file)
        folder.chmod(0o755)
        host.run("mkdir", "-p", APP)
        host.push(f"{folder}/.", APP)
    host.add_user(USER)
    return host


@pytest.mark.parametrize("driver", ["systemd:system", "systemd:user", "native"])
@pytest.mark.timeout(900)
def test_supervised_processes_behave(installed: Host, driver: str) -> None:
    output = f"/tmp/{driver.replace(':', '-')}.xml"
    words = ["python3", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", APP]
    words += ["--tb=short", f"--junit-xml={output}", f"{APP}/{SUITE}"]
    env = {"PYTHONPATH": APP, "FLEET_TEST_DRIVER": driver, "PYTHONDONTWRITEBYTECODE": "1"}
    if driver == "systemd:user":
        done = installed.login(USER, *words, env=env, check=False, timeout=800)
    else:
        done = installed.run(*words, env=env, cwd="/", check=False, timeout=800)
    print(done.stdout, done.stderr)
    suite = ElementTree.fromstring(installed.sh(f"cat {output}")).find("testsuite")
    assert suite is not None
    failed = [
        case.get("name")
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    assert failed == []
    assert done.returncode == 0
    assert int(suite.get("tests", "0")) > 50
    assert installed.sh("systemctl list-units --failed --plain --no-legend") == ""
