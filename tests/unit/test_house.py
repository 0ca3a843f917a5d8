# SPDX-License-Identifier: GPL-3.0-or-later
"""What is written down twice agrees: versions, module lists, folders, targets."""

from __future__ import annotations

import fnmatch
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import autovibe_fleet

REPOSITORY = Path(__file__).resolve().parents[2]
MODULES = sorted(file.stem for file in (REPOSITORY / "plugins" / "modules").glob("*.py"))


def load(name: str) -> Any:
    return yaml.safe_load((REPOSITORY / name).read_text(encoding="utf-8"))


def text(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def tracked_files() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    return [path for name in done.stdout.split("\0") if name and (path := REPOSITORY / name).exists()]


def test_collection_wheel_and_application_have_one_version() -> None:
    wheel = re.search(r'^version = "(.+)"$', text("pyproject.toml"), re.MULTILINE)
    assert wheel is not None
    assert load("galaxy.yml")["version"] == wheel[1] == autovibe_fleet.__version__


def test_action_group_holds_every_module() -> None:
    assert load("meta/runtime.yml")["action_groups"]["fleet"] == MODULES


def test_collection_holds_what_its_roles_install_the_application_from() -> None:
    ignored = load("galaxy.yml")["build_ignore"]
    needed = ["pyproject.toml", "README.md", "LICENSE", "src", "plugins", ".gitignore"]
    assert [name for name in needed for pattern in ignored if fnmatch.fnmatch(name, pattern)] == []


def test_git_and_the_collection_ignore_the_same_folders() -> None:
    ignored = {line.strip("/") for line in text(".gitignore").splitlines() if line.endswith("/")}
    built = set(load("galaxy.yml")["build_ignore"])
    assert ignored - built - {"*.egg-info", ".fleet-state"} == set()


def test_collection_tarball_holds_no_ignored_file() -> None:
    ignored = load("galaxy.yml")["build_ignore"]
    wrong = [
        path.relative_to(REPOSITORY).as_posix()
        for path in tracked_files()
        if any(fnmatch.fnmatch(path.relative_to(REPOSITORY).as_posix(), pattern) for pattern in ignored)
    ]
    assert wrong == []


def test_every_python_file_names_its_licence() -> None:
    line = "# SPDX-License-Identifier: GPL-3.0-or-later"
    wrong = [
        path.relative_to(REPOSITORY).as_posix()
        for path in tracked_files()
        if path.suffix == ".py"
        and not path.is_relative_to(REPOSITORY / "templates")  # users' own, once copied
        and line not in path.read_text(encoding="utf-8")[:400]
    ]
    assert wrong == []


def test_folders_of_the_contributors_page_exist() -> None:
    table = text("CONTRIBUTING.md").partition("## Where does my change go?")[2].partition("\n## ")[0]
    rows = [row for row in table.splitlines() if row.startswith("| ") and not row.startswith("| you")]
    named = {name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[2])}
    assert len(named) > 10
    assert sorted(name for name in named if not (REPOSITORY / name).exists()) == []


def test_make_targets_that_the_texts_name_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", text("Makefile"), re.MULTILINE))
    pages = ["README.md", "CONTRIBUTING.md", *(f"docs/{page.name}" for page in (REPOSITORY / "docs").glob("*.md"))]
    named = {(page, target) for page in pages for target in re.findall(r"\bmake ([a-z-]+)", text(page))}
    assert sorted((page, target) for page, target in named if target not in targets | {"sure"}) == []


def test_every_make_target_is_explained() -> None:
    phony = re.findall(r"^\.PHONY: (.+)$", text("Makefile"), re.MULTILINE)
    explained = re.findall(r"^([a-z-]+):.*## ", text("Makefile"), re.MULTILINE)
    assert sorted(phony) == sorted(explained)


@pytest.mark.parametrize("page", sorted((REPOSITORY / "docs").rglob("*.md")), ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    local = [link for link in links if not re.match(r"[a-z]+:", link)]
    assert [link for link in local if not (page.parent / link).exists()] == []


def test_links_of_the_first_pages_lead_somewhere() -> None:
    for page in ("README.md", "CONTRIBUTING.md"):
        links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text(page))
        assert [link for link in links if ":" not in link and not (REPOSITORY / link).exists()] == []
