# SPDX-License-Identifier: GPL-3.0-or-later
"""The templates that users copy: valid, complete, and safe with any value."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from autovibe_fleet.cli.agent_files import read
from fleet_core.processes import launch, needs_of
from fleet_core.resource_types import DEFAULTS
from fleet_core.templates import instantiate, template

FOLDER = Path(__file__).parents[2] / "templates/processes"
FILES = sorted(FOLDER.glob("*.json"))
TYPES = {kind.name: kind for kind in DEFAULTS}
COUNTERS = {name for name, kind in TYPES.items() if kind.counter}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_template_makes_a_process(file: Path) -> None:
    source = template(json.loads(file.read_text()))
    assert source.id == file.stem
    required = {name: "http://127.0.0.1:1" for name, value in source.fields.get("vars", {}).items() if value is None}
    spec = instantiate(source, {"id": "shop/db", "vars": required})
    needs = needs_of(spec, COUNTERS)
    assert {need.type for need in needs} <= set(TYPES)
    claimed = {need.name: (need.type, need.value or "5901") for need in needs}
    made = launch(spec, claimed)
    assert made.argv
    if spec.shell:
        assert subprocess.run(["sh", "-n", "-c", made.argv[2]], check=False).returncode == 0


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_readme_names_the_template(file: Path) -> None:
    assert f"| `{file.stem}` |" in (FOLDER / "README.md").read_text()


def test_a_path_with_quotes_stays_one_word() -> None:
    source = template(json.loads((FOLDER / "redis.json").read_text()))
    spec = instantiate(source, {"id": "r"})
    made = launch(spec, {"tcpport": ("tcpport", "3000"), "datadir": ("datadir", "/srv/it's $(here)")})
    script = made.argv[2].replace("exec redis-server", "printf '%s|'").replace("mkdir -p", ":")
    output = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False).stdout
    assert "--dir|/srv/it's $(here)|" in output


def test_a_resource_does_not_need_variables_that_it_does_not_name() -> None:
    source = template(json.loads((FOLDER / "nginx-proxy.json").read_text()))
    spec = instantiate(source, {"id": "shop/web", "vars": {"upstream": "http://127.0.0.1:${api.tcpport}"}})
    assert {need.name: need.value for need in needs_of(spec, COUNTERS)} == {
        "tcpport": "",
        "datadir": "/var/lib/nginx/web",
    }


AGENTS = Path(__file__).parents[2] / "templates/agents"


def test_the_shipped_agents_can_be_applied_together() -> None:
    found = read([str(AGENTS)])
    assert [item.definition.name for item in found] == [
        "builder",
        "reviewer",
        "security-reviewer",
        "backlog",
        "bugs",
        "writer",
    ]
    text = (AGENTS / "README.md").read_text()
    assert all(f"`{Path(item.file).name}`" in text for item in found)
