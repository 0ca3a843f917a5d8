# SPDX-License-Identifier: GPL-3.0-or-later
"""The parts of the native supervisor that need no fleetd."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from fleet_core.errors import NotFound
from fleet_core.processes import Limits
from fleet_node.native import identity, limited


def test_limits_hold_for_what_is_executed(tmp_path: Path) -> None:
    argv = limited(("/bin/cat", "/proc/self/limits"), Limits(open_files=64, memory=1 << 30, processes=321))
    lines = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()
    soft = {line[:26].strip(): line[26:].split()[0] for line in lines}
    assert soft["Max open files"] == "64"
    assert soft["Max address space"] == str(1 << 30)
    assert soft["Max processes"] == "321"


@pytest.mark.parametrize("user", ["no-such-user", "99999999999999999999", "4000000000", "²", "a b"])
def test_a_user_who_does_not_exist_is_named(user: str) -> None:
    with pytest.raises(NotFound, match="does not exist"):
        identity('process "p"', user)
