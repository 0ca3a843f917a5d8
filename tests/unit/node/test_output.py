# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the logs of processes lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from autovibe_fleet.node.output import belongs_to_root, log_file
from autovibe_fleet.node.project_files import find
from fleet_core.errors import Conflict
from fleet_core.processes import process_spec

SPEC = process_spec({"id": "shop/web", "command": "x"})
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    tmp_path.chmod(0o755)
    folder = tmp_path / "project"
    folder.mkdir()
    return folder


def test_the_log_lies_in_the_project(project: Path, tmp_path: Path) -> None:
    assert log_file(SPEC, str(project), tmp_path) == project / ".runcept" / "logs" / "web.log"
    assert log_file(SPEC, "", tmp_path) == tmp_path / "logs" / "shop%2Fweb.log"


@as_root
def test_root_writes_no_log_where_somebody_else_could_put_a_link(project: Path, tmp_path: Path) -> None:
    os.chown(project, 65534, 65534)
    assert log_file(SPEC, str(project), tmp_path) == tmp_path / "logs" / "shop%2Fweb.log"


@as_root
def test_a_folder_is_roots_when_all_above_it_are(project: Path) -> None:
    assert belongs_to_root(project / "not" / "yet")
    (project / "link").symlink_to("/etc")
    assert not belongs_to_root(project / "link" / "logs")
    project.chmod(0o777)
    assert not belongs_to_root(project)
    project.chmod(0o1777)
    assert belongs_to_root(project)


@as_root
def test_a_project_file_that_a_stranger_left_above_is_refused(project: Path) -> None:
    file = project / ".runcept.toml"
    file.write_text('[environment]\nname = "x"\n')
    os.chown(file, 65534, 65534)
    (project / "sub").mkdir()
    with pytest.raises(Conflict, match="belongs to user 65534"):
        find(project / "sub")
    assert find(project) == file
    os.chown(project / "sub", 65534, 65534)
    assert find(project / "sub") == file
