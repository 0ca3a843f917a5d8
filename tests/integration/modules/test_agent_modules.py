# SPDX-License-Identifier: GPL-3.0-or-later
"""agent, agent_info and agent_message against a real fleetd."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.integration.modules.plays import Play, task

QUICK: dict[str, Any] = {
    "name": "quick",
    "runner": "command",
    "command": "cat; echo; echo ALL DONE",
    "methods": {"go": "Go on with it."},
    "pipeline": [{"loop": "go"}],
    "completion": {"phrase": "ALL DONE"},
    "limits": {"iterations": 5},
}
SLOW = {**QUICK, "name": "slow", "command": "cat; exec sleep 1000"}
PROMPTS = "greet(whom):\n\tSay hello to [whom].\nagent-greeter:\n\tgreet(all)\n"


def test_agents_are_predicted_declared_kept_and_removed(fleet: Play) -> None:
    both = [QUICK, SLOW]
    checked, nothing, made, again, changed, info = fleet(
        [
            task("agent", True, agents=both),
            task("agent_info"),
            task("agent", agents=both),
            task("agent", agents=both),
            task("agent", agents=[{**QUICK, "methods": {"go": "Go on with it.\nQuickly."}}], names=["slow"]),
            task("agent_info", names=["quick", "nosuch"], gather=["revisions", "runs", "statistics"], facts=True),
        ]
    )
    assert checked["changed"]
    assert checked["actions"] == made["actions"] == ["create agent quick", "create agent slow"]
    assert checked["summary"] == made["summary"]
    assert nothing["agents"] == []
    assert {agent["name"]: agent["state"] for agent in made["agents"]} == {"quick": "stopped", "slow": "stopped"}
    assert not again["changed"]
    assert again["summary"]["unchanged"] == ["quick", "slow"]
    assert changed["actions"] == ["update agent quick"]
    (diff,) = changed["diff"]
    assert "    go: Go on with it." in "".join(diff["before"]) or "go: Go on with it.\n" in diff["before"]
    assert "Quickly.\n" in diff["after"]
    (quick,) = info["agents"]
    assert info["missing"] == ["nosuch"]
    assert [revision["number"] for revision in quick["revisions"]] == [1, 2]
    assert quick["runs"] == []
    assert info["ansible_facts"]["fleet_agents"]["quick"]["revision"] == 2

    removed, gone = fleet([task("agent", state="absent", names=["quick", "slow"]) for _time in range(2)])
    assert removed["summary"]["removed"] == ["quick", "slow"]
    assert removed["agents"] == []
    assert not gone["changed"]


def finished(names: list[str]) -> dict[str, Any]:
    """A task that waits until agents have come to their end."""
    return {
        "autovibe.fleet.agent_info": {"names": names, "gather": ["iterations", "messages", "injections"]},
        "register": "found",
        "until": "found.agents | map(attribute='state') | difference(['completed', 'failed', 'limited']) == []",
        "retries": 60,
        "delay": 0.5,
    }


def test_an_agent_runs_to_its_end_and_is_not_started_once_more(fleet: Play) -> None:
    started, ended, again, updated = fleet(
        [
            task("agent", state="running", agents=[QUICK]),
            finished(["quick"]),
            task("agent", state="running", agents=[QUICK]),
            task("agent", state="running", agents=[{**QUICK, "description": "Quick work"}]),
        ]
    )
    assert started["actions"] == ["create agent quick", "start agent quick"]
    (quick,) = ended["agents"]
    assert quick["state"] == "completed"
    (iteration,) = quick["iterations"]
    assert iteration["state"] == "succeeded"
    assert any("Go on with it." in message["content"] for message in quick["messages"])
    assert not again["changed"]
    assert updated["actions"] == ["update agent quick", "start agent quick"]


def test_a_running_agent_is_stopped(fleet: Play) -> None:
    _started, predicted, stopped, still = fleet(
        [
            task("agent", state="running", agents=[SLOW]),
            task("agent", True, state="stopped", names=["slow"]),
            task("agent", state="stopped", names=["slow"]),
            task("agent", state="stopped", names=["slow"]),
        ]
    )
    assert predicted["actions"] == stopped["actions"] == ["stop agent slow"]
    assert stopped["agents"][0]["state"] == "stopped"
    assert stopped["agents"][0]["pid"] == 0
    assert not still["changed"]


def test_a_message_waits_for_an_agent_that_does_not_run_and_is_read_when_it_does(fleet: Play) -> None:
    predicted, told, before, _started, after = fleet(
        [
            task("agent", agents=[QUICK]),
            task("agent_message", name="quick", text="Use short words.", sender="tests"),
            task("agent_info", names=["quick"]),
            task("agent", state="running", names=["quick"]),
            finished(["quick"]),
        ]
    )
    assert predicted["changed"]
    assert told["changed"]
    assert (told["message"]["state"], told["message"]["sender"]) == ("queued", "tests")
    assert before["agents"][0]["queued"] == 1
    (quick,) = after["agents"]
    assert [message["state"] for message in quick["injections"]] == ["delivered"]
    assert any("Use short words." in message["content"] for message in quick["messages"])


def test_a_message_is_only_predicted_in_check_mode(fleet: Play) -> None:
    _made, checked, info = fleet(
        [
            task("agent", agents=[QUICK]),
            task("agent_message", True, name="quick", text="Hello."),
            task("agent_info", gather=["injections"]),
        ]
    )
    assert checked["changed"]
    assert checked["diff"]["after"] == {"quick": "Hello."}
    assert info["agents"][0]["injections"] == []


def test_prompts_of_a_p_file_become_agents(fleet: Play, tmp_path: Path) -> None:
    (tmp_path / "words.p").write_text("greet(whom):\n\tSay hello to [whom].\n")
    (tmp_path / "loops.p").write_text("@words.p\nagent-greeter:\n\tgreet(all)\n")
    read = f"{{{{ query('autovibe.fleet.agent_definitions', '{tmp_path}/loops.p', defaults={{'runner': 'codex'}}) }}}}"
    made, again = fleet(
        [
            task("agent", content=PROMPTS, defaults={"runner": "codex"}),
            task("agent", agents=read),
        ]
    )
    assert made["summary"]["created"] == ["greeter"]
    assert made["agents"][0]["runner"] == "codex"
    assert again["summary"]["unchanged"] == ["greeter"]  # read by the controller, imports and all: the same agent


WRONG: list[tuple[str, dict[str, Any], str, str]] = [
    ("agent", {"names": ["nosuch"]}, "not_found", '"nosuch"'),
    ("agent", {"agents": [{**QUICK, "command": None}]}, "invalid_input", "expected a command"),
    ("agent", {"agents": [{**QUICK, "pipeline": [{"call": "goo"}]}]}, "invalid_input", 'did you mean "go"'),
    ("agent", {"agents": [{**QUICK, "env": {"API_TOKEN": "hunter2-hunter2"}}]}, "invalid_input", "env_files"),
    ("agent", {"agents": [{**QUICK, "limits": {"duration": "soon"}}]}, "invalid_input", "soon"),
    ("agent", {"agents": [QUICK, {**QUICK, "name": "bad/name"}]}, "invalid_input", "bad/name"),
    ("agent", {"content": "greet:\n    Say hello.\n"}, "invalid_input", "content:2"),
    ("agent_message", {"name": "nosuch", "text": "Hello."}, "not_found", '"nosuch"'),
]


@pytest.mark.parametrize("check_mode", [False, True], ids=["for real", "in check mode"])
def test_a_failure_says_what_is_wrong_and_changes_nothing(fleet: Play, check_mode: bool) -> None:
    tasks = [task(module, check_mode, ignore_errors=True, **options) for module, options, _code, _text in WRONG]
    *results, info = fleet([*tasks, task("agent_info")])
    for result, (_module, _options, code, text) in zip(results, WRONG, strict=True):
        assert result["failed"]
        assert text in result["msg"]
        assert result["code"] == code
        assert "hunter2" not in str(result)
    assert info["agents"] == []
