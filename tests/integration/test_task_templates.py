# SPDX-License-Identifier: GPL-3.0-or-later
"""The task lists that users copy: valid, explained, and run for real on the starter projects."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from tests.pinned import node_folder
from tests.requirements import REPOSITORY

from autovibe_fleet.tasks import files
from fleet_node import task_runs
from fleet_node.task_runs import Request

FOLDER = REPOSITORY / "templates" / "tasks"
LISTS = sorted(FOLDER.glob("*.yml"))
PROJECTS = REPOSITORY / "templates" / "environments"


@pytest.mark.parametrize("file", LISTS, ids=lambda file: file.stem)
def test_a_list_is_valid_and_in_the_readme(file: Path) -> None:
    assert files.read(str(file)).name == file.stem
    Draft202012Validator(files.schema()).validate(yaml.safe_load(file.read_text()))
    assert f"| `{file.name}` |" in (FOLDER / "README.md").read_text()


def run(name: str, project: Path, tmp_path: Path, **changes: Any) -> dict[str, dict[str, Any]]:
    """Run a list in a project and return the results by task."""
    request = Request(files.read(str(FOLDER / f"{name}.yml")), str(project), **changes)
    view = asyncio.run(task_runs.run(request, tmp_path / "state"))
    return {item["name"]: item for item in view["tasks"]}


@pytest.fixture
def python(tmp_path: Path) -> Path:
    project = Path(shutil.copytree(PROJECTS / "python", tmp_path / "python"))
    (project / "test_app.py").write_text(
        "import unittest\nimport app\n\n\nclass AppTest(unittest.TestCase):\n"
        "    def test_it_answers_get(self):\n        self.assertTrue(hasattr(app.App, 'do_GET'))\n"
    )
    return project


@pytest.mark.slow
def test_the_python_list_works_on_the_starter_project(python: Path, tmp_path: Path) -> None:
    results = run("python", python, tmp_path)
    assert {name: item["state"] for name, item in results.items()} == dict.fromkeys(results, "succeeded"), results
    assert "Ran 1 test" in results["test"]["stderr"]
    assert results["build"]["artifacts"] == ["dist/app.zip"]
    assert sorted(zipfile.ZipFile(python / "dist" / "app.zip").namelist()) == ["app.py", "test_app.py"]

    (python / "test_app.py").write_text(
        "import unittest\n\n\nclass T(unittest.TestCase):\n    def test(self): self.fail()\n"
    )
    (python / "broken.py").write_text("def f(:\n")
    results = run("python", python, tmp_path)
    assert results["venv"]["state"] == "unchanged"
    assert {name: results[name]["state"] for name in ("lint", "test", "build")} == {
        "lint": "failed", "test": "failed", "build": "skipped",
    }  # fmt: skip
    assert "broken.py" in results["lint"]["stderr"]

    shutil.copy(PROJECTS / "python" / "app.py", python / "test_app.py")
    (python / "broken.py").unlink()
    results = run("python", python, tmp_path, resume=True)
    assert results["install"]["kept"]
    assert results["build"]["state"] == "succeeded"


def test_the_nodejs_list_works_on_the_starter_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{node_folder()}:{os.environ['PATH']}")
    project = Path(shutil.copytree(PROJECTS / "nodejs", tmp_path / "nodejs"))
    (project / "server.test.js").write_text(
        "const test = require('node:test')\nconst assert = require('node:assert')\n"
        "test('adds', () => assert.equal(1 + 1, 2))\n"
    )
    results = run("nodejs", project, tmp_path)
    assert {name: item["state"] for name, item in results.items()} == dict.fromkeys(results, "succeeded"), results
    assert "pass 1" in results["test"]["stdout"]
    assert results["build"]["artifacts"] == ["dist/my-node-app-0.1.0.tgz"]
    package = json.loads((project / "package.json").read_text())
    package["scripts"]["test"] = "exit 3"
    (project / "package.json").write_text(json.dumps(package))
    results = run("nodejs", project, tmp_path)
    assert (results["test"]["state"], results["build"]["state"]) == ("failed", "skipped")
