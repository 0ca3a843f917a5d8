# SPDX-License-Identifier: GPL-3.0-or-later
"""Tools on agents, on what they do, and on task lists."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from .conftest import Assistant, Host

DEFINITION: dict[str, Any] = {
    "name": "builder",
    "runner": "command",
    "command": "cat; sleep 0.2",
    "methods": {"build": "Build it."},
    "pipeline": [{"loop": "build", "times": 2}],
}


def test_a_definition_from_plan_to_removal(assistant: Assistant) -> None:
    assert assistant.ok("list_agents") == {"agents": []}
    plan = assistant.ok("apply_agents", definitions=[DEFINITION], plan=True)
    assert (plan["changed"], plan["created"], plan["agents"]) == (True, ["builder"], [])
    assert assistant.ok("list_agents") == {"agents": []}

    applied = assistant.ok("apply_agents", definitions=[DEFINITION])
    assert applied["created"] == ["builder"]
    assert applied["agents"][0]["state"] == "stopped"
    assert assistant.ok("apply_agents", definitions=[DEFINITION])["unchanged"] == ["builder"]
    shown = assistant.ok("get_agent", name="builder")
    assert shown["definition"]["methods"] == {"build": "Build it."}
    assert shown["agent"]["revision"] == 1

    removed = assistant.ok("remove_agent", name="builder")
    assert removed["removed"] == ["builder"]
    assert assistant.error("get_agent", name="builder")["code"] == "not_found"


def test_wrong_definitions_apply_nothing(assistant: Assistant) -> None:
    wrong = {**DEFINITION, "name": "other", "runer": "claude"}
    error = assistant.error("apply_agents", definitions=[DEFINITION, wrong])
    assert error["message"] == 'agent "other": unknown key "runer", did you mean "runner"?'
    assert assistant.error("apply_agents", definitions=[])["code"] == "invalid_input"
    assert assistant.error("apply_agents", definitions=[DEFINITION], state="gone")["code"] == "invalid_input"
    assert assistant.ok("list_agents") == {"agents": []}


def test_methods_are_edited_compared_and_rolled_back(assistant: Assistant) -> None:
    assistant.ok("apply_agents", definitions=[DEFINITION])
    edited = assistant.ok("edit_agent_method", name="builder", method="build", body="Build more.")
    assert edited["agent"]["revision"] == 2
    difference = assistant.ok("diff_agent_revisions", name="builder")
    assert (difference["old"], difference["new"]) == (1, 2)
    assert "-  build: Build it." in difference["lines"]
    assert "+  build: Build more." in difference["lines"]
    stale = {"name": "builder", "method": "build", "body": "x", "base_revision": 1}
    assert assistant.error("edit_agent_method", **stale)["code"] == "conflict"
    assert assistant.error("edit_agent_method", name="builder", method="bild", body="x")["code"] == "not_found"
    assert assistant.error("edit_agent_method", name="builder", method="build", body=" ")["code"] == "invalid_input"
    assert assistant.ok("rollback_agent", name="builder", revision=1)["agent"]["revision"] == 3
    assert assistant.error("rollback_agent", name="builder", revision=9)["code"] == "not_found"
    assert assistant.error("diff_agent_revisions", name="builder", new=9)["code"] == "not_found"
    origins = [row["origin"] for row in assistant.ok("list_agent_revisions", name="builder")["revisions"]]
    assert origins == ["apply", "edit", "rollback"]


def test_a_run_to_its_end_and_what_it_left(host: Host, assistant: Assistant) -> None:
    workspace = {"workspace": {"path": str(host.home)}}
    assistant.ok("apply_agents", definitions=[{**DEFINITION, **workspace}])
    answer = assistant("run_agent", name="builder", until_end=True, timeout=60)
    assert not answer.error, answer.text
    assert answer.data["agent"]["state"] == "completed"
    assert any("iteration 2 (build) is succeeded" in text for text in answer.progress)

    (run,) = assistant.ok("list_agent_runs", name="builder")["runs"]
    assert run["totals"]["iterations"] == 2
    newest, oldest = assistant.ok("list_agent_iterations", name="builder", run=run["id"])["iterations"]
    assert (newest["number"], oldest["number"]) == (2, 1)
    assert len(assistant.ok("list_agent_iterations", name="builder", before=newest["id"])["iterations"]) == 1
    messages = assistant.ok("get_agent_messages", name="builder", iteration=newest["id"])["messages"]
    assert "Build it." in [message.get("content") for message in messages]
    last = assistant.ok("get_agent_messages", name="builder", limit=1)["messages"][0]
    assert assistant.ok("get_agent_messages", name="builder", after=last["id"]) == {"messages": []}
    statistics = assistant.ok("get_agent_statistics", name="builder")["statistics"]
    assert (statistics["iterations"], statistics["succeeded"]) == (2, 2)
    assert assistant.error("get_agent_messages", name="nobody")["code"] == "not_found"


def test_an_agent_is_steered_while_it_works(host: Host, assistant: Assistant) -> None:
    endless = {**DEFINITION, "pipeline": [{"loop": "build"}], "workspace": {"path": str(host.home)}}
    assistant.ok("apply_agents", definitions=[endless], state="running")
    injected = assistant.ok("inject_message", name="builder", text="focus on tests")["injection"]
    assert injected["sender"] == "mcp"
    until(assistant, "list_injections", lambda found: found["injections"][0]["state"] == "delivered")
    assert assistant.error("inject_message", name="builder", text="x", step="nothing")["code"] == "not_found"
    assert assistant.error("inject_message", name="builder", text="")["code"] == "invalid_input"
    assert assistant.ok("list_injections", name="builder", after=injected["id"]) == {"injections": []}

    assistant.ok("pause_agent", name="builder")
    until(assistant, "get_agent", lambda found: found["agent"]["state"] == "paused")
    assistant.ok("resume_agent", name="builder")
    until(assistant, "get_agent", lambda found: found["agent"]["state"] == "running")
    assistant.ok("interrupt_agent", name="builder")
    assert assistant.ok("stop_agent", name="builder")["agent"]["state"] == "stopped"
    assert assistant.error("pause_agent", name="builder")["code"] == "conflict"


def until(assistant: Assistant, tool: str, true: Any, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not true(found := assistant.ok(tool, name="builder")):
        assert time.monotonic() < end, found
        time.sleep(0.1)


def test_a_task_list_is_planned_and_run(host: Host, assistant: Assistant) -> None:
    tasks = {
        "version": 1,
        "tasks": [{"name": "one", "run": "echo first"}, {"name": "two", "run": "exit 3", "needs": ["one"]}],
    }
    where = {"tasks": tasks, "workdir": str(host.home)}
    assert assistant.ok("plan_task_list", **where)["run"] == ["one", "two"]
    answer = assistant("run_task_list", **where)
    assert not answer.error, answer.text
    assert [item["state"] for item in answer.data["tasks"]] == ["succeeded", "failed"]
    assert answer.data["tasks"][0]["stdout"].strip() == "first"
    assert answer.data["tasks"][1]["rc"] == 3
    assert "one is succeeded" in answer.progress
    assert assistant.ok("plan_task_list", **where, resume=True)["run"] == ["two"]

    file = host.home / "tasks.yml"
    file.write_text(json.dumps(tasks))
    assert assistant.ok("plan_task_list", file=str(file), workdir=str(host.home))["tasks"] == ["one", "two"]
    assert assistant.error("plan_task_list")["code"] == "invalid_input"
    assert assistant.error("plan_task_list", file="/nowhere.yml")["code"] == "not_found"
    file.write_text("tasks: [")
    assert assistant.error("plan_task_list", file=str(file))["code"] == "invalid_input"
    wrong = {"version": 1, "tasks": [{"name": "one", "rn": "x"}]}
    assert 'did you mean "run"' in assistant.error("run_task_list", tasks=wrong)["message"]


def until_written(file: Path) -> None:
    end = time.monotonic() + 20
    while not file.exists() or not file.read_text().strip():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_run_of_tasks_that_is_cancelled_ends_what_runs(host: Host, assistant: Assistant) -> None:
    mark = Path(host.home) / "pid"
    tasks = {"version": 1, "tasks": [{"name": "long", "run": f"echo $$ > {mark}; exec sleep 600"}]}

    async def impatient() -> None:
        with anyio.move_on_after(30) as scope:
            async with anyio.create_task_group() as group:

                async def watch() -> None:
                    await anyio.to_thread.run_sync(until_written, mark)
                    scope.cancel()

                group.start_soon(watch)
                await assistant.client.call_tool("run_task_list", {"tasks": tasks, "workdir": str(host.home)})

    assistant.run(impatient)
    pid = int(mark.read_text())
    end = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
        assert time.monotonic() < end
        time.sleep(0.1)
