# SPDX-License-Identifier: GPL-3.0-or-later
"""The folder of a host's state."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from autovibe_fleet.node.daemon import main
from fleet_core.errors import StateDamaged
from fleet_node.paths import make_private


def test_the_state_folder_is_closed_to_others(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    folder.parent.mkdir(mode=0o755)
    assert stat.S_IMODE(make_private(folder).stat().st_mode) == 0o700
    folder.chmod(0o755)
    assert stat.S_IMODE(make_private(folder).stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o1777, 0o777])
def test_a_folder_that_all_use_is_not_closed(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "tmp"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(StateDamaged, match="found one of others too"):
        make_private(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == mode


def test_a_home_is_not_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(StateDamaged):
        make_private(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give folders away")
def test_fleetd_of_root_does_not_live_in_somebody_elses_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path.chmod(0o700)
    os.chown(tmp_path, 65534, 65534)
    assert main(["--state-dir", str(tmp_path), "--driver", "native"]) == StateDamaged.exit_code
    assert "who runs fleetd" in capsys.readouterr().err
