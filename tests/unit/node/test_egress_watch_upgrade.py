# SPDX-License-Identifier: GPL-3.0-or-later
"""The watch of the network policy makes room for a newer version of itself."""

from __future__ import annotations

import os
from pathlib import Path

from fleet_node import egress_watch
from fleet_node.egress_engine import Engine
from fleet_node.egress_watch import Watch, own_files, replaced


def test_the_files_that_run_are_those_of_the_application() -> None:
    files = own_files()
    assert str(egress_watch.__file__) in files
    assert all("fleet_core" in file or "fleet_node" in file for file in files)
    assert not replaced(files)


def test_files_count_as_replaced_when_all_of_them_are_there_again(tmp_path: Path) -> None:
    one, other = tmp_path / "one.py", tmp_path / "other.py"
    for file in (one, other):
        file.write_text("old")
    found = {str(file): (file.stat().st_mtime_ns, file.stat().st_size) for file in (one, other)}
    one.unlink()
    other.write_text("newer")
    assert not replaced(found)  # pip is at it
    one.write_text("new")
    os.utime(one, (1, 1))
    assert replaced(found)


def test_an_old_watch_repairs_nothing_and_ends(tmp_path: Path) -> None:
    watch = Watch(Engine(tmp_path))
    watch._code = {__file__: (0, 0)}
    watch.tick()
    assert watch._ending
