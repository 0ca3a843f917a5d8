# SPDX-License-Identifier: GPL-3.0-or-later
"""What `fleet mcp install` writes is what the real command lines read: they start the server and use its tools.

claude and codex always; with FLEET_TEST_ALL_RUNNERS=1 also opencode and qwen.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fakes.model_api import ModelAPI, environment_of, reply, tool
from tests.pinned import runner_path

FLEET = str(Path(sys.executable).with_name("fleet"))
ALL = os.environ.get("FLEET_TEST_ALL_RUNNERS", "") not in ("", "0")
PROJECT = f"""\
[environment]
name = "shop"

[processes.web]
command = "{sys.executable} -m http.server --bind 127.0.0.1 %tcpport"
"""

pytestmark = pytest.mark.timeout(600)  # the first use of a command line installs it


class Desk:
    """A home with a project in it, and a fake model."""

    def __init__(self, api: ModelAPI, folder: Path) -> None:
        self.api = api
        self.home = folder / "home"
        self.work = folder / "work"
        self.work.mkdir()
        (self.work / ".runcept.toml").write_text(PROJECT)
        self.state = folder / "state"

    def run(self, client: str, *words: str) -> str:
        """Run a program as a user of the client would, and return what it printed."""
        environ = environment_of(client, self.api, self.home)
        quiet = {"IS_SANDBOX": "1", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "DISABLE_AUTOUPDATER": "1"}
        done = subprocess.run(
            words,
            cwd=self.work,
            env={**environ, **quiet, "FLEET_STATE_DIR": str(self.state)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def install(self, client: str) -> None:
        """Enter the server into the client's settings, after the environment has written its own into them."""
        environ = {**environment_of(client, self.api, self.home), "FLEET_STATE_DIR": str(self.state)}
        subprocess.run([FLEET, "mcp", "install", "--client", client], env=environ, check=True, capture_output=True)
        self._settings = {file: file.read_text() for file in self.home.rglob("*") if file.is_file()}

    def keep(self) -> None:
        """Put the client's settings back, which environment_of writes anew each time."""
        for file, text in self._settings.items():
            file.write_text(text)


@pytest.fixture
def desk() -> Iterator[Desk]:
    with tempfile.TemporaryDirectory(prefix="fleet-clients-", ignore_cleanup_errors=True) as folder, ModelAPI() as api:
        desk = Desk(api, Path(folder))
        yield desk
        if (desk.state / "fleetd.sock").exists():
            environ = {**os.environ, "FLEET_STATE_DIR": str(desk.state)}
            subprocess.run([FLEET, "daemon", "stop", "--processes"], env=environ, capture_output=True, check=False)


def test_claude_brings_up_a_project(desk: Desk) -> None:
    desk.install("claude")
    desk.api.script(
        reply("I start it.", tool("mcp__fleet__activate_environment")),
        reply("I look.", tool("mcp__fleet__start_process", name="nobody")),
        reply("It runs."),
    )
    command = (runner_path("claude"), "-p", "Start the project", "--permission-mode", "bypassPermissions")
    assert "It runs." in desk.run("claude", *command)
    (shop,) = json.loads(desk.run("claude", FLEET, "--json", "list"))["environments"]
    assert (shop["name"], shop["status"]) == ("shop", "active")
    told = json.dumps(desk.api.requests[-1].messages)
    assert "shop/web" in told
    assert "not_found" in told  # the error of the second call


def test_codex_lists_the_server_and_offers_its_tools(desk: Desk) -> None:
    environ = environment_of("codex", desk.api, desk.home)
    file = Path(environ["CODEX_HOME"]) / "config.toml"
    desk.install("codex")
    entered = file.read_text()
    assert entered.startswith('model = "gpt-5"')

    def codex(*words: str) -> str:
        environ.update(FLEET_STATE_DIR=str(desk.state))
        done = subprocess.run(
            [runner_path("codex"), *words],
            cwd=desk.work,
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=180,
            check=True,
        )
        return done.stdout

    (listed,) = json.loads(codex("mcp", "list", "--json"))
    assert (listed["name"], listed["enabled"], listed["transport"]["args"]) == ("fleet", True, ["mcp"])
    # It starts servers while the model answers already; the tools come with a later request.
    wait = [reply("Wait.", tool("exec_command", cmd="sleep 2")) for _turn in range(6)]
    desk.api.script(*wait, reply("Done."))
    codex("exec", "--json", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", "Start it")
    offered = json.dumps(desk.api.requests[-1].body["tools"])
    assert "mcp__fleet" in offered
    assert "activate_environment" in offered


@pytest.mark.parametrize("name", ["claude", "opencode", "qwen"])
def test_the_client_connects_to_the_server(desk: Desk, name: str) -> None:
    if name != "claude" and not ALL:
        pytest.skip("set FLEET_TEST_ALL_RUNNERS=1 to test this client too")
    desk.install(name)
    environ = {**environment_of(name, desk.api, desk.home), "FLEET_STATE_DIR": str(desk.state)}
    desk.keep()
    done = subprocess.run(
        [runner_path(name), "mcp", "list"],
        cwd=desk.work,
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    shown = (done.stdout + done.stderr).lower()
    assert "fleet" in shown
    assert "connected" in shown
    assert "disconnected" not in shown
