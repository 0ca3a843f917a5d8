# SPDX-License-Identifier: GPL-3.0-or-later
"""Project files on disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from autovibe_fleet.node import project_files
from fleet_core.errors import FleetError, InvalidInput, NotFound, Unavailable
from fleet_core.settings import Settings
from fleet_core.templates import template

GOOD = '[environment]\nname = "shop"\n\n[processes.web]\ncommand = "serve"\n'


def project(folder: Path, text: str = GOOD) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".runcept.toml").write_text(text, encoding="utf-8")
    return folder


def test_the_file_is_found_upwards(tmp_path: Path) -> None:
    folder = project(tmp_path / "a")
    below = folder / "b" / "c"
    below.mkdir(parents=True)
    expected = Path(os.path.realpath(folder / ".runcept.toml"))
    for start in (below, folder, folder / ".runcept.toml", str(below)):
        assert project_files.find(start) == expected


def test_the_nearest_file_wins_and_a_folder_of_that_name_does_not_count(tmp_path: Path) -> None:
    outer = project(tmp_path / "a")
    inner = project(outer / "b")
    (inner / "c" / ".runcept.toml").mkdir(parents=True)
    assert project_files.find(inner / "c").parent == Path(os.path.realpath(inner))


def test_a_project_has_one_path_however_it_is_reached(tmp_path: Path) -> None:
    folder = project(tmp_path / "a")
    (tmp_path / "link").symlink_to(folder)
    assert project_files.find(tmp_path / "link") == project_files.find(folder)


def test_no_file_up_to_the_root_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"no \.runcept\.toml in .* or above it"):
        project_files.find(tmp_path)
    with pytest.raises(NotFound, match="no such file or folder"):
        project_files.find(tmp_path / "gone")


def test_a_file_of_another_name_can_be_read_but_is_no_project(tmp_path: Path) -> None:
    file = tmp_path / "other.toml"
    file.write_text(GOOD)
    assert project_files.load(file).name == "shop"
    with pytest.raises(InvalidInput, match=r"expected a folder or a file called \.runcept\.toml"):
        project_files.find(file)


def test_load_reads_the_environment_with_templates_and_settings(tmp_path: Path) -> None:
    folder = project(tmp_path / "a", '[environment]\nname = "shop"\n[processes.db]\ntemplate = "pg"\n')
    found = project_files.load(
        folder, {"pg": template({"id": "pg", "command": "postgres"})}, Settings(env={"A": "1"}, inactivity_timeout=5)
    )
    assert (found.project_dir, found.inactivity_timeout) == (os.path.realpath(folder), 5)
    assert (found.processes[0].command, found.processes[0].env) == ("postgres", {"A": "1"})


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("[environment\n", 1, "expected ']' at the end of a table declaration"),
        ('[environment]\nname = "x"\nname = "y"\n', 3, "cannot overwrite a value"),
        ('[environment]\nname = "x', 2, "unterminated string"),
        ('[environment]\nname = "x"\nfoo = 3', 3, '[environment]: unknown key "foo"'),
        ('[environment]\nname = "x"\ninactivity_timeout = "a"', 3, 'environment "x": inactivity_timeout: expected'),
        (f"{GOOD}health_check_ur = 'x'", 6, '[processes.web]: unknown key "health_check_ur"'),
        (f"{GOOD}stop_timeout = 'x'", 6, 'process "shop/web": stop_timeout: expected a duration'),
        (f"{GOOD}depends_on = ['wob']", 4, 'process "shop/web": depends on "shop/wob", which does not exist'),
        (f"{GOOD}[processes.'b.c']\ncommand='x'\n[processes.b]\ncommand='x'\nuser=[1]", 10, 'process "shop/b": user'),
        (f"{GOOD}[processes.web.limits]\nmemry=1", 7, 'process "shop/web": limits: unknown key "memry"'),
        ("[project]\nname='x'\n[[process]]\nname='a'\ncommand='c'\n[[process]]\nname='b'\ncommand='c'\nlabel='l'", 9,
         '[[process]] "b": "label" needs the dialect'),
        ("[project]\nname='x'\n[[process]]\nname='a'\ncommand='c'\n[process.env]\n'A=B'='l'", 6,
         'process "x/a": env: \'A=B\' is not a name'),
        ("", 0, "project file: expected [environment]"),
    ],
)  # fmt: skip
def test_an_error_names_file_and_line(tmp_path: Path, text: str, line: int, message: str) -> None:
    file = Path(os.path.realpath(project(tmp_path / "a", text))) / ".runcept.toml"
    with pytest.raises(InvalidInput) as caught:
        project_files.load(file, defaults=Settings())
    place = f"{file}:{line}: " if line else f"{file}: "
    assert str(caught.value).lower().startswith((place + message).lower())
    assert "\n" not in str(caught.value)


def test_an_error_keeps_its_kind(tmp_path: Path) -> None:
    folder = project(tmp_path / "a", '[environment]\nname = "shop"\n[processes.db]\ntemplate = "pg"\n')
    with pytest.raises(NotFound, match=r'\.runcept\.toml:4: process "shop/db": template "pg": not defined'):
        project_files.load(folder, defaults=Settings())


def test_a_file_that_is_no_text_is_an_error(tmp_path: Path) -> None:
    folder = project(tmp_path / "a")
    (folder / ".runcept.toml").write_bytes(b"[environment]\nname = '\xff'")
    with pytest.raises(InvalidInput, match="expected UTF-8 text, found byte 0xff"):
        project_files.load(folder)
    (folder / ".runcept.toml").write_text("a = " + "[" * 5000)
    with pytest.raises(FleetError):
        project_files.load(folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_an_error(tmp_path: Path) -> None:
    folder = project(tmp_path / "a")
    (folder / ".runcept.toml").chmod(0)
    with pytest.raises(Unavailable, match="cannot be read"):
        project_files.load(folder)


def test_our_settings_win_over_runcepts(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path)}
    assert project_files.settings_file(environ) is None
    assert project_files.load_settings(environ) == Settings()
    theirs = tmp_path / ".runcept" / "config.toml"
    theirs.parent.mkdir()
    theirs.write_text('[process]\ndefault_inactivity_timeout = "1h"\n[global_env_vars]\nA = "1"\n')
    assert project_files.load_settings(environ) == Settings(inactivity_timeout=3600.0, env={"A": "1"})
    ours = tmp_path / ".config" / "autovibe" / "config.toml"
    ours.parent.mkdir(parents=True)
    ours.write_text('inactivity_timeout = "2h"\n')
    assert project_files.load_settings(environ) == Settings(inactivity_timeout=7200.0)
    other = {**environ, "XDG_CONFIG_HOME": str(tmp_path / "xdg")}
    assert project_files.settings_file(other) == theirs


def test_an_error_in_the_settings_names_their_file(tmp_path: Path) -> None:
    file = tmp_path / "autovibe" / "config.toml"
    file.parent.mkdir()
    file.write_text("restrt = 1\n")
    with pytest.raises(InvalidInput, match=r'autovibe/config\.toml: unknown key "restrt", did you mean "restart"\?'):
        project_files.load_settings({"XDG_CONFIG_HOME": str(tmp_path)})
