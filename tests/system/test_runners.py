# SPDX-License-Identifier: GPL-3.0-or-later
"""The real command lines of coding agents under a real fleetd: nothing but the model is made up.

claude and codex always; with FLEET_TEST_ALL_RUNNERS=1 also opencode, qwen, gemini and aider.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.model_api import ModelAPI, environment_of, failure, reply, tool
from tests.integration.fleetd import Fleet, alive, running, wait_for
from tests.integration.working_agents import FAST, Agent
from tests.pinned import runner_path
from tests.requirements import require_tool

from fleet_core.errors import FleetError

MAIN = ("claude", "codex")
OTHERS = ("opencode", "qwen", "gemini", "aider")
ALL = os.environ.get("FLEET_TEST_ALL_RUNNERS", "") not in ("", "0")
SHELLS = {"claude": "Bash", "codex": "exec_command", "opencode": "bash"}  # the tool that runs commands
# Left to itself, Gemini CLI asks a model which model to ask.
MODELS = {"gemini": "gemini-2.5-flash"}
RESUMING = tuple(name for name in (*MAIN, *OTHERS) if name != "aider")

pytestmark = pytest.mark.timeout(600)  # the first use of a command line installs it


def every(names: tuple[str, ...]) -> Any:
    """Parametrize a test with runners; of the others, only if all are asked for."""
    off = pytest.mark.skipif(not ALL, reason="set FLEET_TEST_ALL_RUNNERS=1 to test this runner too")
    return pytest.mark.parametrize("name", [pytest.param(name, marks=off if name in OTHERS else ()) for name in names])


def shell(name: str, command: str, **answer: Any) -> dict[str, Any]:
    """An answer of the model that runs a command."""
    if name == "codex":
        return reply("Working.", tool("exec_command", cmd=command), **answer)
    more = {"is_background": False} if name == "qwen" else {}
    called = tool(SHELLS.get(name, "run_shell_command"), command=command, description="Work", **more)
    return reply("Working.", called, **answer)


@pytest.fixture(scope="module")
def api() -> Iterator[ModelAPI]:
    with ModelAPI() as api:
        yield api


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with tempfile.TemporaryDirectory(prefix="fleet-") as folder, running(Path(folder)) as fleet:
        yield fleet


class Coder(Agent):
    """An agent with a real command line, which works in a folder of its own."""

    def __init__(self, fleet: Fleet, name: str, runner: str, api: ModelAPI, folder: Path) -> None:
        super().__init__(fleet, name)
        self.runner = runner
        self.work = folder / "work"
        self.work.mkdir()
        environ = environment_of(runner, api, folder / "home")
        self.env_file = folder / "agent.env"
        self.env_file.write_text("".join(f"{key}={value}\n" for key, value in environ.items()))
        self.program = runner_path(runner)

    def begin(self, **fields: Any) -> Coder:
        definition = {
            "name": self.name,
            "runner": self.runner,
            "methods": {"work": "Do the work."},
            "workspace": {"path": str(self.work)},
            "env_files": [str(self.env_file)],
            "backoff": FAST,
            "options": {"executable": self.program, "permission_mode": "bypass"},
            "model": MODELS.get(self.runner, ""),
            **fields,
        }
        definition = {key: value for key, value in definition.items() if value != ""}
        self.fleet.call("agents.apply", items=[definition], state="running")
        return self


@pytest.fixture
def coder(
    fleet: Fleet, api: ModelAPI, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Callable[..., Coder]]:
    """A function that prepares an agent with a runner; the agent is stopped in the end."""
    made: list[Coder] = []

    def prepare(runner: str) -> Coder:
        name = re.sub(r"\W+", "-", request.node.name.removeprefix("test_"))[:60].strip("-")
        made.append(Coder(fleet, name, runner, api, tmp_path))
        return made[-1]

    yield prepare
    for agent in made:
        with contextlib.suppress(FleetError):
            agent.call("stop", timeout=20)


def asks(api: ModelAPI, runner: str) -> list[str]:
    """What the model was asked by requests that offered the shell: the conversation, as JSON."""
    name = SHELLS.get(runner, "run_shell_command")
    return [
        json.dumps(request.messages, ensure_ascii=False)
        for request in api.requests
        if name in json.dumps(request.body.get("tools", ""))
    ]


@every(RESUMING)
def test_an_agent_works_in_a_loop_with_real_tool_calls(name: str, api: ModelAPI, coder: Callable[..., Coder]) -> None:
    turns = [answer for number in (1, 2) for answer in (shell(name, f"echo {number} >>made.txt"), reply("Done."))]
    api.script(*turns, offering=SHELLS.get(name, "run_shell_command"))
    agent = coder(name).begin(pipeline=[{"loop": "work", "times": 2}])
    run = agent.end("completed", timeout=120)
    assert (agent.work / "made.txt").read_text() == "1\n2\n"
    rows = agent.iterations()
    assert [(row["state"], row["result"]) for row in rows] == [("succeeded", "Done.")] * 2
    assert rows[0]["session"] != rows[1]["session"]  # fresh each time
    for row in rows:
        kinds = [message["type"] for message in agent.messages(iteration=row["id"])]
        assert kinds.index("tool_use") < kinds.index("tool_result") < len(kinds) - 1 - kinds[::-1].index("text")
        assert row["usage"]["output_tokens"] == 40
    assert (run["totals"]["cost"] > 0) == (name in ("claude", "opencode"))
    assert len(asks(api, name)) == 4
    assert all("Do the work." in asked for asked in asks(api, name))


@every(RESUMING)
def test_iterations_go_on_in_one_session(name: str, api: ModelAPI, coder: Callable[..., Coder]) -> None:
    # Some ask the model for more than their work when they take up a session.
    shell_tool = SHELLS.get(name, "run_shell_command")
    api.script(reply("The word is kumquat."), otherwise=reply("I said kumquat."), offering=shell_tool)
    agent = coder(name).begin(session="resume", pipeline=[{"loop": "work", "times": 2}])
    run = agent.end("completed", timeout=120)
    first, second = agent.iterations()
    assert first["session"] == second["session"] != ""
    assert second["result"] == "I said kumquat."
    assert "The word is kumquat." in asks(api, name)[-1]
    # What the second used, and not the sum that some tools report.
    most = 40 if name == "qwen" else 20
    assert 20 <= first["usage"]["output_tokens"] <= most
    assert 20 <= second["usage"]["output_tokens"] <= most
    assert run["totals"]["tokens"] == sum(
        row["usage"]["input_tokens"] + row["usage"]["output_tokens"] for row in (first, second)
    )


@every((*MAIN, *OTHERS))
def test_an_error_of_the_api_fails_the_iteration_with_its_message(
    name: str, api: ModelAPI, coder: Callable[..., Coder]
) -> None:
    api.script(otherwise=failure(400, "the moon is full", "invalid_request_error"))
    agent = coder(name).begin(limits={"iterations": 1})
    run = agent.end(timeout=120)
    (row,) = agent.iterations()
    assert (row["state"], row["reason"]) == ("failed", "failed")
    assert "the moon is full" in row["error"]
    assert run["totals"]["failed"] == 1


@pytest.mark.parametrize("name", MAIN)
def test_a_broken_server_fails_the_iteration_and_the_next_one_succeeds(
    name: str, api: ModelAPI, coder: Callable[..., Coder]
) -> None:
    agent = coder(name)
    if name == "claude":  # else it tries for minutes
        agent.env_file.write_text(agent.env_file.read_text() + "CLAUDE_CODE_MAX_RETRIES=0\n")
    api.script(otherwise=failure(500, "out of order"))
    agent.begin(limits={"iterations": 9})
    wait_for("an iteration failed", lambda: any(row["state"] == "failed" for row in agent.iterations()), 60)
    api.script(otherwise=reply("Done."))
    agent.end("completed", timeout=60)
    assert agent.iterations()[-1]["result"] == "Done."


def test_claude_stops_at_its_number_of_turns(api: ModelAPI, coder: Callable[..., Coder]) -> None:
    api.script(*(shell("claude", f"echo {number} >>made.txt") for number in range(9)))
    agent = coder("claude").begin(limits={"turns": 2, "iterations": 1})
    agent.end(timeout=60)
    (row,) = agent.iterations()
    assert (row["state"], row["reason"]) == ("failed", "max_turns")
    assert row["error"] == "claude: Reached maximum number of turns (2)"
    assert (agent.work / "made.txt").read_text() == "0\n1\n"


def test_claude_stops_at_the_budget_of_the_run(api: ModelAPI, coder: Callable[..., Coder]) -> None:
    api.script(
        shell("claude", "echo 1 >>made.txt", input_tokens=1000),
        shell("claude", "echo 2 >>made.txt", input_tokens=300_000),
        *(shell("claude", "echo more >>made.txt") for _turn in range(9)),
    )
    agent = coder("claude").begin(limits={"cost": 0.5})
    run = agent.end("limited", timeout=60)
    assert run["totals"]["cost"] > 0.5
    assert "more" not in (agent.work / "made.txt").read_text()
    assert len(api.requests) == 2  # after the answer that was too dear, nothing was asked any more


def test_a_session_that_is_gone_is_begun_anew(api: ModelAPI, coder: Callable[..., Coder]) -> None:
    api.script(reply("First.", delay=1), reply("Second."))
    agent = coder("claude").begin(session="resume", pipeline=[{"loop": "work", "times": 2}])
    wait_for("the model is asked", lambda: api.requests, 60)
    agent.call("pause")
    agent.until("paused", timeout=60)
    shutil.rmtree(agent.work.parent / "home" / ".claude" / "projects")
    agent.call("resume")
    agent.end("completed", timeout=60)
    rows = agent.iterations()
    assert [(row["state"], row["reason"]) for row in rows] == [
        ("succeeded", ""),
        ("failed", "session_unknown"),
        ("succeeded", ""),
    ]
    assert rows[2]["result"] == "Second."
    assert rows[2]["session"] != rows[0]["session"]


def test_claude_sees_a_message_within_the_turn(api: ModelAPI, coder: Callable[..., Coder]) -> None:
    """The proof of steering: the message stands in the request that brings the tool's result, not in a later turn."""
    api.script(shell("claude", "until [ -e go ]; do sleep 0.05; done; echo finished"), reply("I turned left."))
    agent = coder("claude").begin()
    wait_for("the tool runs", lambda: agent.messages("tool_use"), 60)
    injected = agent.inject("Turn left at the lighthouse.", sender="ada")
    wait_for("it was written", lambda: agent.injections()[0]["state"] == "sent", 20)
    assert len(api.requests) == 1  # the turn goes on: nothing new was asked
    (agent.work / "go").touch()
    agent.end("completed", timeout=60)
    (row,) = agent.iterations()  # and no further turn was needed
    (message,) = agent.injections()
    assert (message["id"], message["state"], message["delivered_in"]) == (injected["id"], "delivered", row["id"])
    first, second = (json.dumps(request.messages) for request in api.requests)
    assert "lighthouse" not in first
    assert "finished" in second
    assert "Turn left at the lighthouse." in second
    order = [item["type"] for item in agent.messages("tool_result", "user", "text")]
    assert order == ["text", "tool_result", "user", "text"]
    assert row["result"] == "I turned left."


def test_claude_takes_many_messages_in_their_order(api: ModelAPI, coder: Callable[..., Coder]) -> None:
    api.script(shell("claude", "until [ -e go ]; do sleep 0.05; done"), reply("Done."))
    agent = coder("claude").begin()
    wait_for("the tool runs", lambda: agent.messages("tool_use"), 60)
    for number in range(20):
        agent.inject(f"message {number:02}")
    wait_for("all were written", lambda: {row["state"] for row in agent.injections()} == {"sent"}, 20)
    (agent.work / "go").touch()
    agent.end("completed", timeout=60)
    asked = json.dumps(api.requests[1].messages)
    assert re.findall(r"message \d\d", asked) == [f"message {number:02}" for number in range(20)]
    assert {row["state"] for row in agent.injections()} == {"delivered"}
    assert len(agent.iterations()) == 1


def test_a_message_that_comes_after_the_last_tool_has_a_turn_of_its_own(
    api: ModelAPI, coder: Callable[..., Coder]
) -> None:
    api.script(reply("Finished.", delay=2), reply("Then left."))
    agent = coder("claude").begin()
    wait_for("the model is asked", lambda: api.requests, 60)
    agent.inject("Turn left.")
    agent.end("completed", timeout=60)
    assert [row["state"] for row in agent.injections()] == ["delivered"]
    assert "Turn left." in json.dumps(api.requests[-1].messages)
    assert agent.iterations()[-1]["result"] == "Then left."


def test_codex_gets_a_message_with_its_next_turn(api: ModelAPI, coder: Callable[..., Coder]) -> None:
    api.script(shell("codex", "until [ -e go ]; do sleep 0.05; done"), reply("Finished."), reply("Then left."))
    agent = coder("codex").begin()
    wait_for("the tool runs", lambda: agent.messages("tool_use"), 60)
    agent.inject("Turn left.")
    (agent.work / "go").touch()
    agent.end("completed", timeout=60)
    first, second = agent.iterations()
    assert first["session"] == second["session"]  # it goes on where it was
    assert agent.injections()[0]["delivered_in"] == second["id"]
    assert "Turn left." not in json.dumps(api.requests[1].messages)
    assert "Turn left." in json.dumps(api.requests[2].messages)


@pytest.mark.parametrize("name", MAIN)
def test_interrupting_leaves_no_tool_running(name: str, api: ModelAPI, coder: Callable[..., Coder]) -> None:
    api.script(shell(name, "echo $$ >pid; exec tail -f /dev/null"), otherwise=reply("Done."))
    agent = coder(name).begin(limits={"iterations": 1})
    wait_for("the tool runs", lambda: (agent.work / "pid").exists() and (agent.work / "pid").read_text(), 60)
    agent.call("interrupt")
    wait_for("it was interrupted", lambda: agent.iterations()[0]["state"] == "interrupted", 30)
    wait_for("the tool ended", lambda: not alive(int((agent.work / "pid").read_text())), 10)


@pytest.mark.parametrize("name", MAIN)
def test_a_killed_run_goes_on_and_leaves_no_tool_running(name: str, api: ModelAPI, coder: Callable[..., Coder]) -> None:
    api.script(shell(name, "echo $$ >pid; exec tail -f /dev/null"), otherwise=reply("Done."))
    agent = coder(name).begin()
    wait_for("the tool runs", lambda: (agent.work / "pid").exists() and (agent.work / "pid").read_text(), 60)
    pid = int((agent.work / "pid").read_text())
    os.kill(agent.view()["pid"], signal.SIGKILL)
    agent.end("completed", timeout=60)
    first, second = agent.iterations()
    assert (first["state"], second["state"], second["attempt_of"]) == ("interrupted", "succeeded", first["id"])
    assert not alive(pid)


def test_claude_starts_a_process_through_our_mcp_server(
    fleet: Fleet, api: ModelAPI, coder: Callable[..., Coder]
) -> None:
    agent = coder("claude")
    (agent.work / ".runcept.toml").write_text(
        f'[environment]\nname = "shop"\n\n[processes.web]\n'
        f'command = "{sys.executable} -m http.server --bind 127.0.0.1 %tcpport"\n'
    )
    config = agent.work.parent / "mcp.json"
    server = {
        "command": str(Path(sys.executable).with_name("fleet")),
        "args": ["--state-dir", str(fleet.folder), "mcp"],
        "cwd": str(agent.work),
    }
    config.write_text(json.dumps({"mcpServers": {"fleet": server}}))
    api.script(
        reply("I start it.", tool("mcp__fleet__activate_environment", path=str(agent.work))),
        reply("And look.", tool("mcp__fleet__list_all_processes")),
        reply("It runs."),
    )
    options = {
        "executable": agent.program,
        "permission_mode": "bypass",
        "arguments": ["--mcp-config", str(config), "--strict-mcp-config"],
    }
    try:
        agent.begin(options=options)
        run = agent.end("completed", timeout=120)
        assert run["totals"]["iterations"] == 1
        results = [(row["content"], row["detail"]["is_error"]) for row in agent.messages("tool_result")]
        assert [failed for _text, failed in results] == [False, False], results
        assert fleet.get("shop/web")["status"] in ("running", "healthy")
        assert "shop/web" in results[1][0]
        assert "shop/web" in json.dumps(api.requests[2].messages)
    finally:
        with contextlib.suppress(FleetError):
            fleet.call("environments.deactivate", name="shop")


@pytest.mark.skipif(not ALL, reason="set FLEET_TEST_ALL_RUNNERS=1 to test aider too")
def test_aider_edits_and_commits(api: ModelAPI, coder: Callable[..., Coder]) -> None:
    require_tool("git", "for aider to commit")
    agent = coder("aider")
    os.system(f"cd {agent.work} && git init -q && git config user.name t && git config user.email t@localhost")
    answer = "I will.\n\nmade.txt\n```\n<<<<<<< SEARCH\n=======\nhello\n>>>>>>> REPLACE\n```\n"
    api.script(reply(answer), reply("feat: Add a file"))
    agent.begin()
    agent.end("completed", timeout=120)
    assert (agent.work / "made.txt").read_text() == "hello\n"
    (row,) = agent.iterations()
    assert row["usage"]["output_tokens"] == 20
    assert row["cost"] > 0
    assert [message["content"] for message in agent.messages("tool_use")] == ["edit"]
