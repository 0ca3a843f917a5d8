# SPDX-License-Identifier: GPL-3.0-or-later
"""The role agent on real hosts: a runner from npm without a network, environment files, the demo agent, and removal."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.model_api import ModelAPI, environment_of, reply, tool
from tests.integration.fleetd import running, wait_for
from tests.integration.modules.plays import Play
from tests.pinned import node_folder
from tests.requirements import REPOSITORY
from tests.system.lab import Host, Lab
from tests.system.lab.images import cache_folder
from tests.system.lab.playbooks import play

pytestmark = pytest.mark.timeout(900)

FILES = REPOSITORY / "roles/agent/files"
RUNNER = "gemini"  # the smallest one that Node.js runs
SECRET = "hunter2-hunter2"
DEMO = {"src": str(REPOSITORY / "templates/agents/demo"), "path": "/srv/agent-demo"}


def changed(output: str) -> int:
    return int(re.findall(r"changed=(\d+)", output)[-1])


def run(*command: str, folder: Path) -> None:
    done = subprocess.run(
        command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def packages() -> dict[str, str]:
    """What a host without a network needs, fetched by this machine's pip and npm once: role variables."""
    path = f"{node_folder()}:{os.environ['PATH']}"
    locks = [FILES / "node/requirements.txt", FILES / "runners" / RUNNER / "package-lock.json"]
    key = hashlib.sha256(b"".join(path.read_bytes() for path in locks)).hexdigest()[:12]
    folder = cache_folder() / f"runner-{key}"
    if not folder.is_dir():
        cache_folder().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache_folder()) as scratch:
            result, work = Path(scratch, "result"), Path(scratch, "work")
            result.mkdir()
            work.mkdir()
            for path in (FILES / "runners" / RUNNER).glob("package*.json"):
                (work / path.name).write_bytes(path.read_bytes())
            pip = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--disable-pip-version-check",
                "--require-hashes",
            ]
            run(*pip, "--only-binary=:all:", "--dest", str(result / "wheels"), "-r", str(locks[0]), folder=work)
            npm = ["env", f"PATH={path}", "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
            run(*npm, "--cache", f"{scratch}/cache", folder=work)
            run("tar", "-cf", str(result / "npm.tar"), "-C", f"{scratch}/cache", ".", folder=work)
            result.rename(folder)
    return {"agent_wheelhouse": str(folder / "wheels"), "agent_npm_cache": str(folder / "npm.tar")}


@pytest.fixture(scope="module")
def node(lab: Lab) -> Iterator[Host]:
    """A host with fleetd, of root, and with a user who has one, too."""
    host = lab.host("agent", "debian13")
    play(host, "autovibe.fleet.node")
    host.add_user("dev")
    yield host
    host.stop()


def agents(host: Host) -> dict[str, dict[str, Any]]:
    found = json.loads(host.login("root", "fleet", "--json", "agents").stdout)["agents"]
    return {agent["name"]: agent for agent in found}


def deploy(host: Host, *options: str, **variables: Any) -> str:
    return play(host, "autovibe.fleet.agents", *options, **variables)


def test_the_demo_runs_to_its_end_and_is_left_alone_then(node: Host) -> None:
    assert changed(deploy(node, "--check", agent_projects=[DEMO], agent_state="running")) == 2
    assert agents(node) == {}
    assert changed(deploy(node, agent_projects=[DEMO], agent_state="running")) == 2
    node.wait(
        "! grep -q '^- \\[ \\]' /srv/agent-demo/BACKLOG.md && grep -q '^- \\[x\\]' /srv/agent-demo/BACKLOG.md", 60
    )
    node.wait("fleet --json ps agents/demo | grep -q '\"completed\": true'", 30)
    assert agents(node)["demo"]["state"] == "completed"
    assert changed(deploy(node, agent_projects=[DEMO], agent_state="running")) == 0
    assert changed(deploy(node, agent_projects=[DEMO], agent_state="absent")) == 1
    assert agents(node) == {}
    assert node.sh("ls /srv/agent-demo/BACKLOG.md")


def test_a_runner_is_installed_configured_kept_and_removed(node: Host, packages: dict[str, str]) -> None:
    runner = {"name": RUNNER, "env": {"API_TOKEN": SECRET}, "settings": '{"general": {}}\n'}
    definition = {"name": "helper", "runner": RUNNER, "methods": {"help": "Help."}}
    wanted = {**packages, "agent_runners": [runner], "agent_definitions": [definition]}
    checked = deploy(node, "--check", "--diff", **wanted)
    assert changed(checked) > 5
    assert node.run("test", "-e", "/opt/autovibe/runners", check=False).returncode == 1

    output = deploy(node, "--diff", "-vv", **wanted)
    assert SECRET not in checked + output
    assert node.run(f"/opt/autovibe/runners/bin/{RUNNER}", "--version").stdout.strip() == pinned()
    assert node.sh(f"stat -c '%a %U' /etc/autovibe/runners/{RUNNER}.env") == "600 root"
    assert f"API_TOKEN={SECRET}" in node.sh(f"cat /etc/autovibe/runners/{RUNNER}.env")
    assert node.sh("cat /root/.gemini/settings.json") == '{"general": {}}'
    assert changed(deploy(node, **wanted)) == 0

    # Somebody deletes a link; a version that was never finished is begun again.
    node.sh(f"rm /opt/autovibe/runners/bin/{RUNNER}; mkdir /opt/autovibe/runners/versions/{RUNNER}-0123456789ab")
    assert changed(deploy(node, **wanted)) == 1
    node.sh(f"rm /opt/autovibe/runners/versions/{RUNNER}-*/.complete")
    assert changed(deploy(node, **wanted)) > 1
    assert changed(deploy(node, **wanted)) == 0

    assert changed(deploy(node, **wanted, agent_state="absent")) > 1
    assert (
        node.sh("find /opt/autovibe/runners/bin /opt/autovibe/runners/versions /etc/autovibe/runners -mindepth 1") == ""
    )
    assert changed(deploy(node, **wanted, agent_state="absent")) == 0


def test_a_runner_that_does_not_work_leaves_the_old_one_in_use(node: Host, packages: dict[str, str]) -> None:
    """As another user, without root: everything is below the home."""
    wanted: dict[str, Any] = {**packages, "agent_runners": [{"name": RUNNER}], "ansible_user": "dev"}
    deploy(node, **wanted)
    program = f"/home/dev/.local/share/autovibe/runners/bin/{RUNNER}"
    before = node.sh(f"readlink {program}")
    assert node.login("dev", program, "--version").stdout.strip() == pinned()

    output = play(node, "autovibe.fleet.agents", check=False, **{**wanted, "agent_node_path": "/no/such/folder"})
    assert "failed=1" in output
    assert node.sh(f"readlink {program}") == before
    assert node.login("dev", program, "--version").stdout.strip() == pinned()


def test_a_playbook_runs_an_agent_with_the_real_runner_that_the_role_installed(tmp_path: Path, state_dir: Path) -> None:
    """On this computer, with a prefix of its own. Only the model is made up."""
    with ModelAPI() as api, running(state_dir):
        made = "echo hello >made.txt"
        api.script(reply("Working.", tool("Bash", command=made, description="Work")), reply("Done."), offering="Bash")
        environ = {**environment_of("claude", api, tmp_path / "home"), "IS_SANDBOX": "1"}
        definition = {
            "name": "coder",
            "runner": "claude",
            "options": {"permission_mode": "bypass"},
            "methods": {"work": "Make made.txt."},
            "workspace": {"path": str(tmp_path / "work")},
            "verification": {"command": "test -s made.txt"},
        }
        role = {
            "ansible.builtin.include_role": {"name": "autovibe.fleet.agent"},
            "vars": {
                "agent_prefix": str(tmp_path / "runners"),
                "agent_config_dir": str(tmp_path / "config"),
                "agent_node_path": str(node_folder()),
                "agent_runners": [{"name": "claude", "env": environ}],
                "agent_definitions": [definition],
                "agent_state": "running",
            },
        }
        (tmp_path / "work").mkdir()
        playing = Play(tmp_path, state_dir)
        results = playing([role], "-vv")
        assert environ["ANTHROPIC_API_KEY"] not in json.dumps(results)

        def coder() -> Any:
            asked = {"autovibe.fleet.agent_info": {"names": ["coder"], "gather": ["iterations", "revisions"]}}
            found = playing([asked])[0]["agents"][0]
            return found if found["state"] not in ("starting", "running") else None

        found = wait_for("the agent has come to its end", coder, 90)
        assert found["state"] == "completed", found
        assert (tmp_path / "work/made.txt").read_text() == "hello\n"
        assert found["iterations"][0]["result"] == "Done."
        given = found["revisions"][0]["definition"]
        assert given["options"]["executable"] == str(tmp_path / "runners/bin/claude")
        assert given["env_files"] == [str(tmp_path / "config/claude.env")]
        assert not any(result.get("changed") for result in playing([role]))


def pinned() -> str:
    lock = json.loads((FILES / "runners" / RUNNER / "package-lock.json").read_text())
    return str(lock["packages"]["node_modules/@google/gemini-cli"]["version"])
