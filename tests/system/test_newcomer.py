# SPDX-License-Identifier: GPL-3.0-or-later
"""What the README promises, as a newcomer lives it: a fresh clone, an empty home, `make site`, and again."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.integration.fleetd import wait_for
from tests.requirements import REPOSITORY, require_tool

USER = "fleet-newcomer"
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Newcomer:
    """Somebody who has a clone, a home and nothing else."""

    name: str
    folder: Path
    user: str | None

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def checkout(self) -> Path:
        return self.folder / "fleet"

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "NO_COLOR": "1",
            "ANSIBLE_NOCOLOR": "1",
            "PATH": f"{self.home / '.local' / 'bin'}:{SEARCH_PATH if self.user else os.environ['PATH']}",
            # Root's own state folder is one for the whole machine, and not a test's to use.
            "FLEET_STATE_DIR": str(self.folder / "state"),
        }
        # The machine's own pip settings are its way to the package index.
        environment |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        if self.user is None and "PYENV_ROOT" in os.environ:
            environment["PYENV_ROOT"] = os.environ["PYENV_ROOT"]
        return subprocess.run(
            command,
            cwd=self.checkout,
            env=environment,
            user=self.user,
            group=self.user,
            extra_groups=[] if self.user else None,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def succeed(self, *command: str) -> str:
        done = self.run(*command)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module", params=["as you", "without root"])
def newcomer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Newcomer]:
    require_tool("git", "to clone as a newcomer does")
    require_tool("make", "to run `make site`")
    user = None
    if request.param == "without root":
        if os.geteuid() != 0:
            pytest.skip("you are not root: the other one is this one")
        # A user of the password file, because Ansible looks there for the home.
        require_tool("useradd", "to be somebody without root")
        user = USER
    # Not below pytest's own folder, which other users cannot enter; and short, for the socket's name.
    folder = Path(tempfile.mkdtemp(prefix="newcomer-", dir="/tmp"))
    person = Newcomer(request.param, folder, user)
    try:
        subprocess.run(["git", "clone", "--quiet", str(REPOSITORY), str(person.checkout)], check=True)
        person.home.mkdir()
        if user is not None:
            folder.chmod(0o755)
            subprocess.run(["useradd", "--no-create-home", "--home-dir", str(person.home), user], check=True)
            subprocess.run(["chown", "--recursive", f"{user}:{user}", str(folder)], check=True)
        yield person
    finally:
        fleet = person.home / ".local" / "bin" / "fleet"
        if fleet.exists():
            person.run(str(fleet), "kill-all", "--yes")
            person.run(str(fleet), "daemon", "stop")
        if user is not None:
            subprocess.run(["userdel", user], check=False)
        shutil.rmtree(folder, ignore_errors=True)


def recap(output: str) -> dict[str, int]:
    """The counts of the one host in the play recap."""
    found = re.search(r"^localhost\s+: (.*)$", output, re.MULTILINE)
    assert found is not None, output
    return {name: int(count) for name, count in re.findall(r"(\w+)=(\d+)", found[1])}


@pytest.mark.timeout(900)
def test_make_site_brings_a_fresh_machine_to_a_running_project(newcomer: Newcomer) -> None:
    output = newcomer.succeed("make", "site")
    counts = recap(output)
    assert counts["failed"] == counts["unreachable"] == 0
    assert counts["changed"] > 0

    listed = json.loads(newcomer.succeed("fleet", "ps", "--json"))
    demo = [process for process in listed["processes"] if process["environment"] == "demo"]
    states = {process["name"]: process["completed"] or process["status"] for process in demo}
    assert states == {"migrate": True, "proxy": "running", "web": "running", "worker": "running"}

    urls = set(re.findall(r"http://127\.0\.0\.1:\d+[^\s)]*", output))
    assert urls, "the closing table names no URL"
    for url in urls:
        with urllib.request.urlopen(url, timeout=10) as answer:
            assert answer.status == 200, url


def the_agent(newcomer: Newcomer) -> dict[str, Any]:
    (agent,) = json.loads(newcomer.succeed("fleet", "agents", "--json"))["agents"]
    return dict(agent)


@pytest.mark.timeout(120)
def test_the_demo_agent_comes_to_its_end_and_runs_once_more_with_a_message(newcomer: Newcomer) -> None:
    folder = newcomer.home / ".local/share/autovibe/agent-demo"
    wait_for("the agent has done its work", lambda: the_agent(newcomer)["state"] == "completed", 60)
    assert "- [ ]" not in (folder / "BACKLOG.md").read_text()
    first = the_agent(newcomer)["run"]["id"]
    newcomer.succeed("fleet", "message", "demo", "song.md: La la la.")
    newcomer.succeed("fleet", "run", "demo")
    wait_for("it has read the message", (folder / "song.md").exists, 60)
    wait_for("it has ended again", lambda: the_agent(newcomer)["state"] == "completed", 60)
    assert the_agent(newcomer)["run"]["id"] > first


@pytest.mark.timeout(120)
def test_newcomer_can_steer_and_serve_assistants(newcomer: Newcomer) -> None:
    newcomer.succeed(str(newcomer.home / ".local/share/autovibe/venv/bin/python"), "-c", "import mcp, textual")


@pytest.mark.timeout(900)
def test_second_make_site_changes_nothing(newcomer: Newcomer) -> None:
    before = json.loads(newcomer.succeed("fleet", "ps", "--json"))
    counts = recap(newcomer.succeed("make", "site"))
    assert counts["changed"] == counts["failed"] == 0
    after = json.loads(newcomer.succeed("fleet", "ps", "--json"))
    assert [process["pid"] for process in after["processes"]] == [process["pid"] for process in before["processes"]]


def test_newcomer_uses_the_newest_python_it_can_run(newcomer: Newcomer) -> None:
    found = newcomer.succeed(".ci/python").strip()
    version = newcomer.succeed(found, "-c", "import sys; print(sys.version_info[:2] >= (3, 11))")
    assert version.strip() == "True"
    assert newcomer.succeed(".venv/bin/python", "-c", "import sys; print(sys.base_prefix)").strip() != sys.prefix
