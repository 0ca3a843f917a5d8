# SPDX-License-Identifier: GPL-3.0-or-later
"""Processes are added to project files, changed in them and removed from them; nothing wrong is ever written."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest

from autovibe_fleet.mcp.project_editing import Edit, edit
from autovibe_fleet.mcp.toml_editing import toml
from fleet_core.errors import Conflict, FleetError, InvalidInput, NotFound, Unavailable

USED = """\
# The shop
[environment]
name = "shop"  # ours

[processes.web]   # the server
command = "web"

[processes.web.env_vars]
MODE = "dev" # or live

# data
[processes.db]
command = "db"
"""
PLANNED = """\
[project]
name = "shop"

# the server
[[process]]
name = "web"
command = "web"
env = { MODE = "dev" }

[[process]]
name = "db"
command = "db"
"""


@pytest.fixture(params=[USED, PLANNED], ids=["used", "planned"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    found = tmp_path / ".runcept.toml"
    found.write_text(request.param)
    return found


def processes(file: Path) -> dict[str, Any]:
    data = toml.loads(file.read_text())
    if "process" in data:
        return {table.pop("name"): table for table in data["process"]}
    return dict(data["processes"])


def test_add_declares_a_process_behind_the_others(file: Path) -> None:
    fields = {"command": "api", "depends_on": ["db"], "health_check_url": "tcp://127.0.0.1:1", "env_vars": {"A": "1"}}
    assert edit(file, lambda project: project.add("api", fields), {})
    added = processes(file)["api"]
    assert added["command"] == "api"
    assert added.get("env_vars", added.get("env")) == {"A": "1"}
    assert "health_check" in added or "health_check_url" in added


@pytest.mark.parametrize("text", [USED, PLANNED])
def test_only_the_lines_that_were_meant_change(text: str, tmp_path: Path) -> None:
    file = tmp_path / ".runcept.toml"
    file.write_text(text)
    edit(file, lambda project: project.set("web", {"command": "new"}), {})
    assert file.read_text() == text.replace('command = "web"', 'command = "new"')


def test_variables_are_set_one_by_one(file: Path) -> None:
    edit(file, lambda project: project.set("web", {"env_vars": {"PORT": "1"}}), {})
    found = processes(file)["web"]
    assert found.get("env_vars", found.get("env")) == {"MODE": "dev", "PORT": "1"}


def test_a_first_variable_is_set(file: Path) -> None:
    edit(file, lambda project: project.set("db", {"env_vars": {"PORT": "1"}}), {})
    found = processes(file)["db"]
    assert found.get("env_vars", found.get("env")) == {"PORT": "1"}


def test_fields_and_variables_are_taken_out(file: Path) -> None:
    edit(file, lambda project: project.unset("web", ["env_vars.MODE"]), {})
    found = processes(file)["web"]
    assert not found.get("env_vars")
    assert not found.get("env")
    with pytest.raises(NotFound, match='gives no field "depends_on"'):
        edit(file, lambda project: project.unset("web", ["depends_on"]), {})


def test_a_process_is_removed_with_its_comment(file: Path) -> None:
    edit(file, lambda project: project.remove("web"), {})
    assert list(processes(file)) == ["db"]
    assert "the server" not in file.read_text()


def test_nothing_to_change_is_no_change(file: Path) -> None:
    before = file.stat()
    assert not edit(file, lambda project: project.set("web", {"command": "web", "env_vars": {"MODE": "dev"}}), {})
    assert file.stat().st_ino == before.st_ino


WRONG: list[tuple[Edit, type[FleetError], str]] = [
    (lambda project: project.add("web", {"command": "x"}), Conflict, "declared already"),
    (lambda project: project.add("a b", {"command": "x"}), InvalidInput, "process name"),
    (lambda project: project.add("x", {"comand": "x"}), InvalidInput, 'unknown key "comand"'),
    (lambda project: project.add("x", {}), InvalidInput, "command"),
    (lambda project: project.add("x", {"command": "x", "depends_on": ["nobody"]}), InvalidInput, "nobody"),
    (lambda project: project.set("wbe", {"command": "x"}), NotFound, 'did you mean "web"'),
    (lambda project: project.set("web", {"command": "${db.nothing}"}), InvalidInput, "nothing"),
    (lambda project: project.set("web", {"depends_on": ["web"]}), InvalidInput, "web"),
    (lambda project: project.remove("wbe"), NotFound, 'did you mean "web"'),
]


@pytest.mark.parametrize(("change", "kind", "words"), WRONG)
def test_what_would_be_wrong_is_not_written(file: Path, change: Edit, kind: type[FleetError], words: str) -> None:
    before = file.read_text()
    with pytest.raises(kind, match=words) as caught:
        edit(file, change, {})
    assert str(file) in str(caught.value)
    assert file.read_text() == before
    assert list(file.parent.iterdir()) == [file]


def test_a_process_that_others_need_is_not_removed(tmp_path: Path) -> None:
    file = tmp_path / ".runcept.toml"
    file.write_text(USED + '\n[processes.api]\ncommand = "api"\ndepends_on = ["db"]\n')
    with pytest.raises(InvalidInput, match='depends on "shop/db"'):
        edit(file, lambda project: project.remove("db"), {})


def test_mode_and_links_stay(tmp_path: Path) -> None:
    real = tmp_path / "elsewhere.toml"
    real.write_text(USED)
    real.chmod(0o640)
    link = tmp_path / ".runcept.toml"
    link.symlink_to(real)
    edit(link, lambda project: project.set("web", {"command": "new"}), {})
    assert link.is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert "new" in real.read_text()


def test_a_process_without_a_header_is_left_to_a_person(tmp_path: Path) -> None:
    file = tmp_path / ".runcept.toml"
    file.write_text('[environment]\nname = "x"\n[processes]\nweb = { command = "web" }\n')
    with pytest.raises(InvalidInput, match="edit the file by hand"):
        edit(file, lambda project: project.set("web", {"command": "new"}), {})


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="No such file"):
        edit(tmp_path / "no" / ".runcept.toml", lambda project: project.remove("x"), {})
