# SPDX-License-Identifier: GPL-3.0-or-later
"""The examples of the documentation run as they stand."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml
from tests.fakes.multipass_host import Host
from tests.integration.modules.plays import REPOSITORY, Play

MODULES = sorted(path.stem for path in (REPOSITORY / "plugins" / "modules").glob("*.py"))
FILTERS = sorted(path.stem for path in (REPOSITORY / "plugins" / "filter").glob("*.py"))
# They change the network of the host that they run on, or want a cluster; tests/system/network and others try them.
NOT_HERE = {"egress_info", "egress_policy", "network", "proxmox_bridges", "proxmox_environment", "proxmox_fence"}
LOOKUPS = sorted(path.stem for path in (REPOSITORY / "plugins" / "lookup").glob("*.py"))


@cache
def examples(kind: str) -> dict[str, str]:
    """Return the examples of all plugins of a kind, by their short names."""
    command = [sys.executable, "-m", "ansible", "doc", "--type", kind, "--json"]
    names = {"module": MODULES, "filter": FILTERS, "lookup": LOOKUPS}[kind]
    command += [f"autovibe.fleet.{name}" for name in names]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    return {name.rpartition(".")[2]: found["examples"] for name, found in json.loads(done.stdout).items()}


@pytest.mark.slow
def test_examples_of_modules_run(fleet: Play, tmp_path: Path) -> None:
    kept = [text for name, text in examples("module").items() if name not in NOT_HERE]
    texts = [text.replace("/tmp/fleet-example", str(tmp_path / "project")) for text in kept]
    tasks = [task for text in texts for task in yaml.safe_load(text)]
    results = fleet(tasks, **Host(tmp_path).environ)
    assert len(results) == len(tasks)
    assert not any(result.get("failed") for result in results)


def test_examples_of_plugins_run_and_give_what_they_promise(play: Play) -> None:
    found = {name: text for name, text in examples("filter").items() if name not in NOT_HERE}
    # Those that promise a result first.
    kept = sorted(found.values(), key=lambda text: re.search(r"^ +# ", text, re.MULTILINE) is None)
    texts = [*kept, examples("lookup")["resource"]]
    promised = [yaml.safe_load(line) for text in texts for line in re.findall(r"^ +# (.*)$", text, re.MULTILINE)]
    results = play([task for text in texts for task in yaml.safe_load(text)])
    assert [result["msg"] for result in results if "msg" in result][: len(promised)] == promised
    assert results[-1]["msg"][2] == "/srv/shop"


def test_the_example_of_agent_definitions_reads_a_file_beside_the_playbook(play: Play) -> None:
    agent = {"runner": "claude", "pipeline": [{"loop": "build"}]}
    file = {"agents": [{"name": "builder", **agent}, {"name": "tester", **agent}], "methods": {"build": "Build it."}}
    (play.folder / "agents.yml").write_text(yaml.safe_dump(file))
    (result,) = play(yaml.safe_load(examples("lookup")["agent_definitions"]))
    assert result["msg"] == ["builder", "tester"]
    (play.folder / "agents.yml").write_text(yaml.safe_dump({**file, "method": {}}))
    (result,) = play(yaml.safe_load(examples("lookup")["agent_definitions"]), fails=True)
    assert 'agents.yml: agents file: unknown key "method", did you mean "methods"?' in result["msg"]
