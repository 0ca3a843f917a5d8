# SPDX-License-Identifier: GPL-3.0-or-later
"""What a newcomer does first: `make site` on this computer, in a home of its own, without root's or systemd's help."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Home:
    """A home in which site.yml was run."""

    folder: Path
    env: dict[str, str]
    first: str

    def site(self, *options: str) -> str:
        return run_site(self.env, *options)

    def processes(self) -> dict[str, dict[str, Any]]:
        fleet = self.folder / ".local/bin/fleet"
        text = subprocess.check_output([str(fleet), "--json", "ps"], env=self.env, text=True)
        return {found["name"]: found for found in json.loads(text)["processes"] if found["environment"] == "demo"}

    def agent(self) -> dict[str, Any]:
        fleet = self.folder / ".local/bin/fleet"
        text = subprocess.check_output([str(fleet), "--json", "agents"], env=self.env, text=True)
        (found,) = json.loads(text)["agents"]
        return dict(found)


def run_site(env: dict[str, str], *options: str) -> str:
    command = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", "inventories/local", "site.yml", *options]
    done = subprocess.run(
        command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    with tempfile.TemporaryDirectory(prefix="fleet-") as scratch:
        own = {"HOME": scratch, "FLEET_STATE_DIR": f"{scratch}/state", "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
        kept = {"XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")}
        pip = Path.home() / ".config/pip/pip.conf"
        if pip.exists():
            kept["PIP_CONFIG_FILE"] = str(pip)
        env = {**os.environ, **kept, **own, "ANSIBLE_NOCOLOR": "1"}
        try:
            yield Home(Path(scratch), env, run_site(env))
        finally:
            fleet = Path(scratch, ".local/bin/fleet")
            if fleet.exists():
                subprocess.run([str(fleet), "daemon", "stop", "--processes"], env=env, check=False)


def test_the_first_run_ends_with_a_table_of_what_runs(home: Home) -> None:
    table = home.first[home.first.index("PROCESS ") :]
    rows = {found[0]: found[1:] for found in re.findall(r"(demo/\w+) +(\w+) +(\S+).*?(\S+)$", table, re.MULTILINE)}
    assert {name: row[0] for name, row in rows.items()} == {
        "demo/migrate": "completed",
        "demo/web": "running",
        "demo/worker": "running",
        "demo/proxy": "running",
    }
    assert rows["demo/proxy"][2].startswith("http://")


def test_the_demo_answers(home: Home) -> None:
    (url,) = home.processes()["proxy"]["urls"]
    with urllib.request.urlopen(url, timeout=10) as answer:
        assert answer.status == 200


def test_a_killed_process_comes_back_on_its_port(home: Home) -> None:
    before = home.processes()["web"]
    os.kill(before["pid"], signal.SIGKILL)
    end = time.monotonic() + 30
    while (after := home.processes()["web"])["pid"] in (0, before["pid"]) or after["status"] != "running":
        assert time.monotonic() < end, after
        time.sleep(0.2)
    assert after["resources"] == before["resources"]


def test_the_demo_agent_works_through_its_backlog(home: Home) -> None:
    assert re.search(r"^    - demo +\w+ +command +\d+ ", home.first, re.MULTILINE), home.first
    end = time.monotonic() + 60
    while (agent := home.agent())["state"] != "completed":
        assert time.monotonic() < end, agent
        time.sleep(0.2)
    backlog = (home.folder / ".local/share/autovibe/agent-demo/BACKLOG.md").read_text()
    assert backlog.count("- [x] ") == 4
    assert "- [ ] " not in backlog
    assert agent["run"]["totals"]["iterations"] == 5


def test_a_second_run_changes_nothing(home: Home) -> None:
    before = {name: process["pid"] for name, process in home.processes().items()}
    output = home.site()
    assert re.search(r"localhost +: ok=\d+ +changed=0 ", output), output
    assert {name: process["pid"] for name, process in home.processes().items()} == before
    assert re.search(r"demo +completed +command +5 +Wrote next.md. ALL DONE", output), output
    assert home.agent()["run"]["id"] == 1


def test_nothing_but_fleetd_and_the_demo_was_started(home: Home) -> None:
    """No process of the run is left: what runs from the scratch home is fleetd and the demo's three processes."""
    shown = subprocess.check_output(["ps", "-eo", "pid,args"], text=True)
    mine = [line for line in shown.splitlines() if str(home.folder) in line]
    assert len(mine) <= 4, mine
