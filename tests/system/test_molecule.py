# SPDX-License-Identifier: GPL-3.0-or-later
"""Every Molecule scenario, from create to destroy, on real systemd hosts or with real machines."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.system.lab import Lab

ROOT = Path(__file__).parents[2]
SCENARIOS = {path.parent.name: path.read_text() for path in sorted(ROOT.glob("molecule/*/molecule.yml"))}
ON_HOSTS = [name for name, text in SCENARIOS.items() if "lab_image" in text]
WITH_MACHINES = [name for name in SCENARIOS if name not in ON_HOSTS]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("scenario", ON_HOSTS)
def test_scenario_on_systemd_hosts(lab: Lab, scenario: str) -> None:
    """`lab` is asked for only because it skips where no lab can run; Molecule starts its own."""
    run(scenario)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("scenario", WITH_MACHINES)
def test_scenario_with_machines(vm_base: Path, scenario: str) -> None:
    """`vm_base` likewise skips where no machine can run; it is what the scenarios boot, too."""
    run(scenario)


def run(scenario: str) -> None:
    programs = Path(sys.executable).parent
    env = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "NO_COLOR": "1"}
    command = [str(programs / "molecule"), "test", "--scenario-name", scenario]
    done = subprocess.run(
        command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
