# SPDX-License-Identifier: GPL-3.0-or-later
"""What the server offers, and its tools on environments, processes, project files and resources."""

from __future__ import annotations

import json
import re
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import jsonschema
import pytest
from mcp.shared.exceptions import MCPError

from .conftest import PROGRAM, SERVER, Assistant, Host, fresh_host

REPOSITORY = Path(__file__).resolve().parents[3]
PROJECT_TOOLS = {
    "activate_environment",
    "deactivate_environment",
    "list_environments",
    "get_environment_status",
    "start_process",
    "stop_process",
    "restart_process",
    "list_processes",
    "get_process_logs",
    "get_process_status",
    "list_all_processes",
    "kill_all_processes",
    "add_process",
    "remove_process",
    "update_process",
    "get_daemon_status",
    "record_environment_activity",
}
READING = ("get_", "list_", "diff_", "plan_")


@pytest.fixture(scope="module")
def shared() -> Iterator[Assistant]:
    """A session for tests that change nothing."""
    for host in fresh_host():
        with host.assistant() as found:
            yield found


def tools(assistant: Assistant) -> list[Any]:
    return list(assistant.run(assistant.client.list_tools).tools)


def test_every_tool_of_project_environments_is_there(shared: Assistant) -> None:
    assert {tool.name for tool in tools(shared)} >= PROJECT_TOOLS


def test_the_page_names_every_tool_and_no_other(shared: Assistant) -> None:
    page = (REPOSITORY / "docs" / "mcp.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z]+_[a-z_]+)`", page.partition("## Tools")[2].partition("Every tool is")[0]))
    assert named - {"until_end"} == {tool.name for tool in tools(shared)}


def test_every_tool_says_what_it_does_to_the_world(shared: Assistant) -> None:
    for tool in tools(shared):
        notes = tool.annotations
        assert tool.description, tool.name
        assert tool.title == notes.title, tool.name
        assert None not in (notes.read_only_hint, notes.destructive_hint, notes.idempotent_hint), tool.name
        assert notes.open_world_hint is False
        assert notes.read_only_hint == tool.name.startswith(READING), tool.name
    destructive = {tool.name for tool in tools(shared) if tool.annotations.destructive_hint}
    assert {"stop_process", "kill_all_processes", "remove_process", "stop_agent", "remove_agent"} <= destructive
    assert not destructive & {"add_process", "start_process", "inject_message", "claim_resources"}


def test_every_schema_is_sound_and_takes_no_unknown_argument(shared: Assistant) -> None:
    for tool in tools(shared):
        for schema in (tool.input_schema, tool.output_schema):
            jsonschema.Draft202012Validator.check_schema(schema)
            assert schema["type"] == "object", tool.name
        assert tool.input_schema["additionalProperties"] is False, tool.name


def test_wrong_calls_are_errors_with_code_message_and_details(shared: Assistant) -> None:
    missing = shared.error("start_process")
    assert (missing["code"], missing["message"]) == ("invalid_input", "start_process: name: field required")
    assert missing["details"]["arguments"] == [{"argument": "name", "problem": "Field required"}]
    unknown = shared.error("start_process", name="web", tmeout=3)
    assert unknown["message"] == 'start_process: unknown key "tmeout", did you mean "timeout"?'
    assert shared.error("start_process", name="web", timeout=-1)["code"] == "invalid_input"
    assert shared.error("start_proces", name="web")["message"] == (
        'tool "start_proces": there is none of that name, did you mean "start_process"?'
    )


def test_fleetd_is_started_when_it_does_not_run(host: Host, assistant: Assistant) -> None:
    assert not (host.state / "fleetd.sock").exists()
    assert assistant.ok("get_daemon_status")["state_dir"] == str(host.state)


def test_without_autostart_the_error_says_so(host: Host) -> None:
    with host.assistant(FLEET_NO_AUTOSTART="1") as assistant:
        assert assistant.error("get_daemon_status")["code"] == "unavailable"


def test_an_environment_from_activation_to_its_end(host: Host, assistant: Assistant) -> None:
    before = assistant.ok("get_environment_status", environment=str(host.project))["environment"]
    assert (before["status"], [item["name"] for item in before["processes"]]) == ("inactive", ["web"])

    answer = assistant("activate_environment", path=str(host.project))
    assert not answer.error, answer.text
    assert answer.data["changed"]
    (web,) = answer.data["environment"]["processes"]
    assert web["status"] == "running"
    assert any("shop/web is running" in text for text in answer.progress)
    assert not assistant.ok("activate_environment", path=str(host.project))["changed"]

    # What was activated is what later calls mean.
    port = web["resources"]["tcpport"]
    assert urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10).status == 200
    assert assistant.ok("list_processes")["processes"][0]["id"] == "shop/web"
    assert assistant.ok("get_process_status", name="web")["declaration"]["command"] == SERVER
    stopped = assistant.ok("stop_process", name="web")
    assert (stopped["changed"], stopped["process"]["status"]) == (True, "stopped")
    assert not assistant.ok("stop_process", name="web")["changed"]
    started = assistant.ok("start_process", name="shop/web")["process"]
    assert started["resources"]["tcpport"]
    restarted = assistant.ok("restart_process", name="web")["process"]
    assert restarted["pid"] != started["pid"]
    assert restarted["resources"] == started["resources"]
    assert assistant.ok("list_all_processes", running=True)["processes"][0]["id"] == "shop/web"
    assert assistant.ok("list_environments")["environments"][0]["status"] == "active"
    assert assistant.ok("record_environment_activity") == {"environment": "shop"}

    ended = assistant.ok("deactivate_environment")
    assert ended["environment"]["status"] == "inactive"
    assert assistant.ok("list_all_processes", running=True) == {"processes": []}


def test_the_servers_own_folder_is_the_project_by_default(host: Host) -> None:
    with host.assistant(host.project) as assistant:
        error = assistant.error("start_process", name="web")
        assert error["code"] == "not_found"
        assert "not activated" in error["message"]
        assert assistant.ok("activate_environment")["environment"]["name"] == "shop"


def test_without_a_project_the_error_says_what_to_give(shared: Assistant) -> None:
    assert "give the path of a project" in shared.error("activate_environment")["message"]
    assert shared.error("list_processes")["code"] == "invalid_input"
    assert shared.error("activate_environment", path="/nowhere")["code"] == "not_found"


def test_what_does_not_come_up_shows_its_log(host: Host, assistant: Assistant) -> None:
    file = host.project / ".runcept.toml"
    file.write_text('[environment]\nname = "shop"\n[processes.bad]\ncommand = "/bin/sh -c \'echo oh no; exit 3\'"\n')
    error = assistant.error("activate_environment", path=str(host.project), timeout=20)
    assert error["code"] == "process_failed"
    assert error["details"]["environment"]["processes"][0]["status"] == "error"
    error = assistant.error("start_process", name="bad", timeout=20)
    assert "oh no" in error["details"]["log"]
    logs = assistant("get_process_logs", name="bad", lines=50)
    assert "oh no" in [line["message"] for line in logs.data["lines"]]
    assert "[fleet] ended with exit code 3" in logs.text


def test_logs_are_limited(host: Host, assistant: Assistant) -> None:
    file = host.project / ".runcept.toml"
    file.write_text(
        '[environment]\nname = "shop"\n[processes.many]\ncommand = "/bin/sh -c \'seq 1 500; exec sleep 60\'"\n'
    )
    assistant.ok("activate_environment", path=str(host.project))
    deadline = time.monotonic() + 20
    while "500" not in (text := assistant("get_process_logs", name="many", lines=3).text):
        assert time.monotonic() < deadline, text
    assert text.split() == ["498", "499", "500"]
    assert assistant.error("get_process_logs", name="many", lines=0)["code"] == "invalid_input"
    assert assistant.error("get_process_logs", name="none")["code"] == "not_found"


def test_project_files_are_edited_and_running_environments_follow(host: Host, assistant: Assistant) -> None:
    file = host.project / ".runcept.toml"
    assistant.ok("activate_environment", path=str(host.project))
    added = assistant.ok("add_process", name="api", command=SERVER, env={"MODE": "dev"}, depends_on=["web"])
    assert (added["changed"], added["applied"], added["status"]["status"]) == (True, True, "running")
    assert file.read_text().startswith("# The shop\n")
    assert "[processes.web]  # a server" in file.read_text()

    changed = assistant.ok("update_process", name="api", env={"MODE": "live"}, unset=["depends_on"])
    assert "restart process shop/api" in changed["actions"]
    assert 'MODE = "live"' in file.read_text()
    assert "depends_on" not in file.read_text()
    assert not assistant.ok("update_process", name="api", env={"MODE": "live"})["changed"]

    before = file.read_text()
    assert assistant.error("add_process", name="api", command="x")["code"] == "conflict"
    assert 'did you mean "command"' in assistant.error("add_process", name="b", fields={"comand": "x"})["message"]
    assert assistant.error("update_process", name="api")["code"] == "invalid_input"
    assert assistant.error("remove_process", name="apy")["code"] == "not_found"
    assert file.read_text() == before

    removed = assistant.ok("remove_process", name="api")
    assert removed["actions"] == ["stop process shop/api", "remove process shop/api"]
    assert [item["name"] for item in assistant.ok("list_processes")["processes"]] == ["web"]


def test_an_inactive_project_is_only_edited(host: Host, assistant: Assistant) -> None:
    added = assistant.ok("add_process", name="api", command="true", environment=str(host.project))
    assert (added["changed"], added["applied"]) == (True, False)
    assert assistant.ok("list_all_processes") == {"processes": []}


def test_resources_are_claimed_listed_and_released(assistant: Assistant) -> None:
    (port,) = assistant.ok("claim_resources", owner="me", resources=[{"type": "tcpport"}])["resources"]
    assert assistant.ok("list_resources", owner="me", type="tcpport")["resources"] == [port]
    two = [{"type": "tcpport", "name": "a"}, {"type": "tcpport", "name": "b", "value": port["value"]}]
    error = assistant.error("claim_resources", owner="you", resources=two)
    assert error["code"] == "conflict"
    assert assistant.ok("list_resources", owner="you") == {"resources": []}
    assert assistant.error("claim_resources", owner="me", resources=[{"typ": "tcpport"}])["code"] == "invalid_input"
    assert "did you mean" in assistant.error("claim_resources", owner="me", resources=[{"type": "tcpprt"}])["message"]
    assert assistant.ok("release_resources", owner="me")["resources"] == [port]
    assert assistant.error("release_resources", owner="me")["code"] == "not_found"
    assert "tcpport" in [kind["name"] for kind in assistant.ok("list_resource_types")["types"]]


def test_many_calls_at_once_are_answered(assistant: Assistant) -> None:
    ports: list[str] = []

    async def claim(owner: str) -> None:
        asked = {"owner": owner, "resources": [{"type": "tcpport"}]}
        result = await assistant.client.call_tool("claim_resources", asked)
        assert result.structured_content is not None
        ports.append(result.structured_content["resources"][0]["value"])

    async def all_at_once() -> None:
        async with anyio.create_task_group() as group:
            for number in range(12):
                group.start_soon(claim, f"owner{number}")

    assistant.run(all_at_once)
    assert len(set(ports)) == 12


@pytest.mark.slow
def test_whoever_uses_an_environment_keeps_it_awake(host: Host, assistant: Assistant) -> None:
    file = host.project / ".runcept.toml"
    file.write_text(file.read_text().replace('name = "shop"', 'name = "shop"\ninactivity_timeout = "4s"'))
    assistant.ok("activate_environment", path=str(host.project))

    def status() -> str:
        return str(assistant.ok("list_environments")["environments"][0]["status"])

    for _turn in range(8):
        time.sleep(1)
        assistant.ok("get_process_logs", name="web")
    assert status() == "active"
    end = time.monotonic() + 20
    while status() != "inactive":
        assert time.monotonic() < end
        time.sleep(0.5)


def test_kill_all_stops_everything(host: Host, assistant: Assistant) -> None:
    assistant.ok("activate_environment", path=str(host.project))
    assert assistant.ok("kill_all_processes") == {"stopped": ["shop/web"]}


def test_a_call_that_is_cancelled_stops_waiting_and_the_session_goes_on(host: Host, assistant: Assistant) -> None:
    slow = '[environment]\nname = "shop"\n[processes.slow]\ncommand = "sleep 60"\nreadiness = "tcp://127.0.0.1:1"\n'
    (host.project / ".runcept.toml").write_text(slow)

    async def impatient() -> bool:
        with anyio.move_on_after(2.0) as scope:
            await assistant.client.call_tool("activate_environment", {"path": str(host.project)})
        return scope.cancelled_caught

    assert assistant.run(impatient)
    assert assistant.ok("get_environment_status", environment="shop")["environment"]["status"] == "activating"


def test_secrets_are_hidden(host: Host, assistant: Assistant) -> None:
    file = host.project / ".runcept.toml"
    file.write_text(
        '[environment]\nname = "shop"\n[processes.web]\ncommand = "sleep 60"\nenv_vars = { API_TOKEN = "hunter22" }\n'
    )
    assistant.ok("activate_environment", path=str(host.project))
    assert "hunter22" not in json.dumps(assistant.ok("get_process_status", name="web"))


def test_states_and_logs_can_be_read_as_resources(host: Host, assistant: Assistant) -> None:
    assistant.ok("activate_environment", path=str(host.project))

    def read(uri: str) -> str:
        return str(assistant.run(assistant.client.read_resource, uri).contents[0].text)

    assert json.loads(read("fleet://status"))["processes"][0]["id"] == "shop/web"
    assert json.loads(read("fleet://environments/shop"))["status"] == "active"
    assert "[fleet] started" in read("fleet://processes/shop/web/logs")
    with pytest.raises(MCPError, match="not declared"):
        read("fleet://processes/shop/none/logs")
    with pytest.raises(MCPError):
        read("fleet://agents/nobody")


def test_stdout_carries_nothing_but_messages(host: Host) -> None:
    request = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {
            "protocolVersion": "2025-06-18",
            "capabilities": {},
            "clientInfo": {"name": "test", "version": "1"},
        },
    }
    lines = [json.dumps(request), "this is no message", json.dumps({"jsonrpc": "2.0", "id": 2, "method": "ping"})]
    with subprocess.Popen(
        [PROGRAM, "mcp"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=host.environ,
        cwd=host.home,
    ) as served:
        assert served.stdin is not None
        assert served.stdout is not None
        served.stdin.write("\n".join(lines) + "\n")
        served.stdin.flush()
        answered: set[object] = set()
        for line in served.stdout:  # closing stdin ends the server, so it stays open until both are answered
            answered.add(json.loads(line).get("id"))
            if answered >= {1, 2}:
                break
        rest, errors = served.communicate(timeout=60)
    assert served.returncode == 0
    assert answered >= {1, 2}
    assert all(json.loads(line) for line in rest.splitlines())
    assert "Traceback" not in errors


def test_without_the_sdk_one_sentence_says_how_to_get_it(host: Host, tmp_path: Path) -> None:
    broken = tmp_path / "mcp"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'mcp'\", name='mcp')\n")
    done = host.fleet("mcp", PYTHONPATH=str(tmp_path))
    assert done.returncode == 7
    assert done.stdout == ""
    assert done.stderr == "fleet: fleet mcp: needs the Python package mcp: pip install 'autovibe-fleet[mcp]'\n"
    assert host.fleet("mcp", "install", "--client", "claude", PYTHONPATH=str(tmp_path)).returncode == 0
