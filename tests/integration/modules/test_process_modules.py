# SPDX-License-Identifier: GPL-3.0-or-later
"""process, process_info, environment and environment_info against a real fleetd."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from tests.integration.modules.plays import REPOSITORY, Play, task

WEB: dict[str, Any] = {
    "id": "web",
    "command": f"{sys.executable} -m http.server --bind 127.0.0.1 %tcpport",
    "env": {"API_TOKEN": "hunter2-hunter2", "DEBUG": "1"},
    "readiness": {"url": "http://127.0.0.1:${tcpport}/", "interval": "200ms"},
}
WORKER = {"id": "worker", "command": "sleep 1000", "depends_on": [{"process": "web"}]}


def test_processes_are_predicted_started_kept_and_removed(fleet: Play) -> None:
    both = [WORKER, WEB]
    checked, made, again, info = fleet(
        [
            task("process", True, processes=both),
            task("process", processes=both),
            task("process", processes=both),
            task("process_info", ids=["web", "nosuch"], facts=True),
        ]
    )
    assert checked["changed"]
    assert checked["actions"] == made["actions"]
    assert checked["diff"]["after"]["web"]["env"] == {"API_TOKEN": "********", "DEBUG": "1"}
    states = {process["id"]: process["status"] for process in made["processes"]}
    assert states == {"web": "running", "worker": "running"}
    assert not again["changed"]
    assert again["actions"] == []
    (web,) = info["processes"]
    assert info["missing"] == ["nosuch"]
    assert info["ansible_facts"]["fleet_processes"]["web"]["resources"] == web["resources"]
    with urllib.request.urlopen(f"http://127.0.0.1:{web['resources']['tcpport']}/", timeout=5) as answer:
        assert answer.status == 200

    updated, restarted, stopped, still, started, removed, gone = fleet(
        [
            task("process", processes=[{**WORKER, "command": "sleep 1001"}]),
            task("process", state="restarted", ids=["worker"]),
            task("process", state="stopped", ids=["worker"]),
            task("process", state="stopped", ids=["worker"]),
            task("process", ids=["worker"]),
            task("process", state="absent", ids=["worker", "web"]),
            task("process", True, state="absent", ids=["worker", "web"]),
        ]
    )
    before = {process["id"]: process["pid"] for process in made["processes"]}
    assert updated["actions"] == ["update process worker", "restart process worker"]
    assert updated["processes"][0]["pid"] != before["worker"]
    assert restarted["changed"]
    assert restarted["processes"][0]["pid"] != updated["processes"][0]["pid"]
    assert stopped["changed"]
    assert stopped["processes"][0]["status"] == "stopped"
    assert not still["changed"]
    assert started["processes"][0]["command"] == "sleep 1001"  # an id alone keeps the declaration
    assert removed["changed"]
    assert removed["processes"] == []
    assert not gone["changed"]


def test_a_process_is_made_from_a_template(fleet: Play) -> None:
    template = {"id": "pause", "command": "sleep ${seconds}", "vars": {"seconds": None}, "env": {"A": "1"}}
    nap = {"id": "nap", "template": "pause", "vars": {"seconds": 1234}}
    _template, made, again, replaced = fleet(
        [
            task("process_template", templates=[template]),
            task("process", processes=[nap]),
            task("process", processes=[nap]),
            task("process", processes=[{**nap, "command": "sleep 1${seconds}"}]),
        ]
    )
    assert made["processes"][0]["command"] == "sleep 1234"
    assert not again["changed"]
    assert replaced["processes"][0]["command"] == "sleep 11234"
    assert replaced["diff"]["after"]["nap"]["env"] == {"A": "1"}  # all but the command comes from the template


def test_secrets_show_nowhere(fleet: Play) -> None:
    """Neither in results and diffs, nor in what Ansible reports of the call, nor in the command of the process."""
    item = {"id": "job", "command": "sleep 1000 ${db_password}", "shell": False, "vars": {"db_password": "900001"}}
    item["env"] = {"API_TOKEN": "hunter2-hunter2", "AUTH": "1", "DEBUG": "1"}
    results = fleet([task("process", processes=[item])], "-vvv", ANSIBLE_INJECT_INVOCATION="true")
    text = json.dumps(results)
    assert "hunter2" not in text
    assert "900001" not in text
    given = results[0]["invocation"]["module_args"]["processes"][0]
    assert given["env"] == {"API_TOKEN": "********", "AUTH": "********", "DEBUG": "1"}
    assert results[0]["processes"][0]["resources"] == {}
    assert results[0]["changed"] is True


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"ids": ["nosuch"]}, "not_found", 'process "nosuch": not declared'),
    ({"processes": [{"id": "a", "template": "nosuch"}]}, "not_found", 'template "nosuch": not defined'),
    ({"processes": [{"id": "a", "command": "sleep ${x}"}]}, "process_failed", 'undefined variable "x"'),
    ({"processes": [{"id": "a", "command": "/no/such/program"}]}, "process_failed", "/no/such/program"),
    ({"processes": [{"id": "b", "command": "sleep 9", "stop_signal": "X"}]}, "invalid_input", "expected stop_signal"),
    ({"processes": [{"id": "c", "command": "sleep 9", "depends_on": [{"process": "z"}]}]}, "invalid_input", '"z"'),
]


def test_a_failure_says_what_is_wrong(fleet: Play) -> None:
    results = fleet([task("process", ignore_errors=True, **options) for options, _code, _message in WRONG])
    for result, (_options, code, message) in zip(results, WRONG, strict=False):
        assert result["failed"]
        assert message in result["msg"]
        assert result["code"] == code


def test_an_environment_is_activated_listed_and_removed(fleet: Play, tmp_path: Path) -> None:
    project = tmp_path / "shop"
    (project / "deeper").mkdir(parents=True)
    (project / ".runcept.toml").write_text(
        '[environment]\nname = "shop"\n\n[processes.db]\ncommand = "sleep 1000"\n\n'
        '[processes.web]\ncommand = "sleep 1001"\ndepends_on = ["db"]\n'
    )
    checked, made, again, info, inactive, still, absent, gone = fleet(
        [
            task("environment", True, paths=[str(project)]),
            task("environment", paths=[str(project / "deeper")]),
            task("environment", paths=[str(project)]),
            task("environment_info", names=["shop", "nosuch"], facts=True),
            task("environment", state="inactive", names=["shop"]),
            task("environment", state="inactive", names=["shop"]),
            task("environment", state="absent", names=["shop"]),
            task("environment", state="absent", names=["shop"]),
        ]
    )
    assert checked["changed"]
    assert "environments" not in checked
    (shop,) = made["environments"]
    assert (shop["name"], shop["status"]) == ("shop", "active")
    assert {process["id"]: process["status"] for process in shop["processes"]} == {
        "shop/db": "running",
        "shop/web": "running",
    }
    assert not again["changed"]
    assert info["missing"] == ["nosuch"]
    assert info["ansible_facts"]["fleet_environments"]["shop"]["path"] == str(project / ".runcept.toml")
    assert inactive["changed"]
    assert inactive["environments"][0]["status"] == "inactive"
    assert not still["changed"]
    assert absent["changed"]
    assert absent["environments"] == []
    assert not gone["changed"]


def pythons() -> list[str]:
    """Return the oldest Python that a managed host may have, where it is installed."""
    found = subprocess.run([REPOSITORY / ".ci" / "python", "3.9", "3.9"], capture_output=True, text=True, check=False)
    return found.stdout.split() if found.returncode == 0 else []


@pytest.mark.slow
@pytest.mark.skipif(not pythons(), reason="no Python 3.9 here")
def test_modules_run_on_the_oldest_python_of_a_managed_host(fleet: Play) -> None:
    fleet.interpreter = pythons()[0]
    template = {"id": "pause", "command": "sleep ${seconds}", "vars": {"seconds": 1000}}
    claims = [{"owner": "me", "resources": ["tcpport", "dbfile:/no/such/file"]}]
    results = fleet(
        [
            {"ansible.builtin.setup": {"gather_subset": ["!all", "!min", "python"]}},
            task("resource_type", types=[{"name": "own", "check": "true", "check_means": "free"}]),
            task("resource", claims=claims),
            task("resource", True, claims=claims),
            task("resource_info"),
            task("process_template", templates=[template]),
            task("process", processes=[{"id": "nap", "template": "pause"}]),
            task("process", processes=[{"id": "nap", "template": "pause"}]),
            task("process_info"),
            task("environment_info"),
            task("agent", content="go:\n\tGo on.\nagent-walker:\n\tgo\n", defaults={"runner": "aider"}),
            task("agent", names=["walker"]),
            task("agent_info", gather=["revisions", "runs", "iterations", "messages", "injections", "statistics"]),
            task("agent_message", name="walker", text="Left, please."),
        ]
    )
    assert results[0]["ansible_facts"]["ansible_python"]["version"]["minor"] == 9
    assert [bool(result["changed"]) for result in results[1:]] == [
        *(True, True, False, False, True, True, False, False, False),
        *(True, False, False, True),
    ]


def test_a_hundred_processes_are_one_call(fleet: Play) -> None:
    processes = [{"id": f"sleeper-{number}", "command": "sleep 1000"} for number in range(100)]
    made, again = fleet([task("process", processes=processes), task("process", processes=processes)])
    assert len({process["pid"] for process in made["processes"]}) == 100
    assert not again["changed"]
    assert all(os.path.exists(f"/proc/{process['pid']}") for process in again["processes"]) or sys.platform != "linux"
