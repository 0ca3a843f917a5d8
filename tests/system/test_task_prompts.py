# SPDX-License-Identifier: GPL-3.0-or-later
"""Prompt tasks with the real command lines of claude and codex; only the model is made up."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.model_api import ModelAPI, environment_of, failure, reply, tool
from tests.pinned import runner_path

from fleet_core.task_lists import task_list
from fleet_node import task_runs
from fleet_node.task_runs import Request

SHELLS = {"claude": "Bash", "codex": "exec_command"}

pytestmark = pytest.mark.timeout(600)  # the first use of a command line installs it


@pytest.fixture(scope="module")
def api() -> Iterator[ModelAPI]:
    with ModelAPI() as api:
        yield api


class Lists:
    """Runs lists whose prompts go to one runner."""

    def __init__(self, name: str, api: ModelAPI, folder: Path) -> None:
        self.runner = name
        self.work = folder / "work"
        self.work.mkdir()
        self.state = folder / "state"
        environ = environment_of(name, api, folder / "home")
        (folder / "runner.env").write_text("".join(f"{key}={value}\n" for key, value in environ.items()))
        self.head = {"name": "prompts", "workdir": str(self.work), "env_files": [str(folder / "runner.env")]}
        self.options = {"executable": runner_path(name), "permission_mode": "bypass"}

    def prompt(self, name: str, text: str, **fields: Any) -> dict[str, Any]:
        return {"name": name, "prompt": text, "runner": self.runner, "options": self.options, "timeout": "3m", **fields}

    def run(self, *tasks: dict[str, Any], resume: bool = False) -> dict[str, dict[str, Any]]:
        request = Request(task_list({**self.head, "tasks": list(tasks)}), resume=resume)
        view = asyncio.run(task_runs.run(request, self.state))
        return {item["name"]: item for item in view["tasks"]}


def shell(runner: str, command: str) -> dict[str, Any]:
    if runner == "codex":
        return reply("Working.", tool("exec_command", cmd=command))
    return reply("Working.", tool("Bash", command=command, description="Work"))


@pytest.mark.parametrize("name", sorted(SHELLS))
def test_a_prompt_works_a_command_checks_it_and_the_session_goes_on(name: str, api: ModelAPI, tmp_path: Path) -> None:
    lists = Lists(name, api, tmp_path)
    turns = [shell(name, "echo repaired >result"), reply("It was the comma."), reply("Because of a typo.")]
    api.script(*turns, offering=SHELLS[name])
    results = lists.run(
        lists.prompt("repair", "Repair it.", expect={"stdout_contains": "comma"}),
        {"name": "check", "run": "grep repaired result", "needs": ["repair"]},
        lists.prompt("explain", "Say why.", session="repair", needs=["repair"]),
    )
    assert {item: results[item]["state"] for item in results} == dict.fromkeys(results, "succeeded"), results
    assert results["repair"]["stdout"] == "It was the comma."
    assert results["repair"]["usage"]["output_tokens"] >= 40
    assert results["explain"]["stdout"] == "Because of a typo."
    assert results["explain"]["session"]
    assert any("Repair it." in str(request.messages) for request in api.requests[-1:])  # the whole conversation
    log = Path(results["repair"]["output_file"]).read_text()
    assert "echo repaired >result" in log
    assert "It was the comma." in log
    everything = b"".join(path.read_bytes() for path in lists.state.rglob("*") if path.is_file())
    assert b"sk-fake" not in everything


def test_a_prompt_that_fails_is_tried_again_and_resumed(api: ModelAPI, tmp_path: Path) -> None:
    lists = Lists("claude", api, tmp_path)
    api.script(otherwise=failure(400, "the model is out of order", "invalid_request_error"))
    results = lists.run(lists.prompt("ask", "Go.", retries=1, retry_delay=0))
    assert results["ask"]["state"] == "failed"
    assert results["ask"]["attempts"] == 2
    assert "the model is out of order" in results["ask"]["reason"]
    api.script(reply("All is well."), offering="Bash")
    results = lists.run(lists.prompt("ask", "Go.", retries=1, retry_delay=0), resume=True)
    assert results["ask"]["stdout"] == "All is well."


def test_the_turns_of_a_prompt_are_limited(api: ModelAPI, tmp_path: Path) -> None:
    lists = Lists("claude", api, tmp_path)
    api.script(*(shell("claude", f"echo {number}") for number in range(9)), offering="Bash")
    results = lists.run({**lists.prompt("ask", "Go."), "options": {**lists.options, "max_turns": 2}})
    assert results["ask"]["state"] == "failed"
    assert "turns" in results["ask"]["reason"]
