# SPDX-License-Identifier: GPL-3.0-or-later
"""Every Molecule scenario, from create to destroy, on real systemd hosts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.system.lab import Lab

ROOT = Path(__file__).parents[2]
SCENARIOS = sorted(path.parent.name for path in ROOT.glob("molecule/*/molecule.yml"))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scenario(lab: Lab, scenario: str) -> None:
    """`lab` is asked for only because it skips where no lab can run; Molecule starts its own."""
    programs = Path(sys.executable).parent
    env = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "NO_COLOR": "1"}
    command = [str(programs / "molecule"), "test", "--scenario-name", scenario]
    done = subprocess.run(
        command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
