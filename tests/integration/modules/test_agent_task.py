# SPDX-License-Identifier: GPL-3.0-or-later
"""agent_task with real plays: here, and over ssh on a host that has nothing but Python 3.9."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.integration.modules.plays import REPOSITORY, Play, task
from tests.integration.ssh_server import ssh_server
from tests.integration.test_task_machines import oldest_python
from tests.requirements import require_root

from fleet_core.task_lists import KEYS, task_list

SECRET = "correct-horse-battery"


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def listed(*tasks: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"version": 1, "tasks": list(tasks), **more}


def test_a_list_is_planned_run_and_resumed(play: Play, work: Path, tmp_path: Path) -> None:
    file = tmp_path / "files" / "build.json"
    file.parent.mkdir()
    tasks = [
        {"name": "build", "run": "mkdir -p dist && echo wheel >dist/a.whl", "artifacts": ["dist/*.whl"]},
        {"name": "test", "run": "echo testing; test -e ready", "needs": ["build"]},
    ]
    file.write_text(json.dumps(listed(*tasks)))
    options = {"src": "build.json", "workdir": str(work), "artifacts": str(tmp_path / "got")}
    checked, failed = play([task("agent_task", True, **options), task("agent_task", **options)], fails=True)
    assert checked["changed"]
    assert checked["actions"] == ["run task build", "run task test"]
    assert checked["plan"][0].startswith("build: 2 tasks, at most 4 at once, in ")
    assert checked["diff"] == {"before": "", "after": {"build": "pending", "test": "pending"}}
    assert failed["failed"]
    assert failed["msg"].startswith('task "test": exit code 1; see ')
    assert failed["state"] == "failed"
    build, test = failed["tasks"]
    assert (build["state"], build["rc"], build["artifacts"]) == ("succeeded", 0, ["dist/a.whl"])
    assert (test["state"], test["rc"], test["stdout"]) == ("failed", 1, "testing")
    assert Path(test["output_file"]).read_text() == "testing\n--- exit code 1 ---\n"
    assert failed["diff"] == {"before": "", "after": {"build": "succeeded", "test": "failed"}}
    assert failed["fetched"] == ["dist/a.whl"]
    assert (tmp_path / "got" / "dist" / "a.whl").read_text() == "wheel\n"
    assert list((play.state_dir / "tasks").rglob("*.tar")) == []

    (work / "ready").touch()
    resumed, again, checked = play(
        [
            task("agent_task", **options, resume=True),
            task("agent_task", **options, resume=True),
            task("agent_task", True, **options, resume=True),
        ]
    )
    assert resumed["changed"]
    assert resumed["actions"] == ["run task test"]
    assert resumed["run"] == failed["run"] == again["run"]
    assert [item["kept"] for item in resumed["tasks"]] == [True, False]
    assert not again["changed"]
    assert again["state"] == "succeeded"
    assert not checked["changed"]
    assert checked["diff"] == {"before": "", "after": ""}


def test_creates_makes_a_list_idempotent(play: Play, work: Path) -> None:
    tasks = [{"name": "make", "run": "touch made", "creates": "made"}]
    first, second = play([task("agent_task", tasks=tasks, workdir=str(work)) for _round in range(2)])
    assert first["changed"]
    assert not second["changed"]
    assert second["tasks"][0]["state"] == "unchanged"


def test_a_run_is_started_waited_for_and_cancelled(play: Play, work: Path) -> None:
    long = {"name": "long", "run": "echo begun; sleep 600"}
    started, waited, cancelled, still, short, finished = play(
        [
            {**task("agent_task", state="started", workdir=str(work), tasks=[long]), "register": "long"},
            task("agent_task", run="{{ long.run }}", wait=1),
            task("agent_task", state="cancelled", run="{{ long.run }}"),
            task("agent_task", state="cancelled", run="{{ long.run }}"),
            {
                **task("agent_task", state="started", workdir=str(work), tasks=[{"name": "a", "run": "sleep 1"}]),
                "register": "short",
            },
            task("agent_task", run="{{ short.run }}"),
        ]
    )
    assert started["changed"]
    assert started["state"] == "running"
    assert not waited["finished"]
    assert waited["tasks"][0]["state"] == "running"
    assert cancelled["changed"]
    assert cancelled["state"] == "interrupted"
    assert not still["changed"]
    assert not short["finished"]
    assert finished["state"] == "succeeded"
    assert not finished["changed"]


def test_secrets_of_env_reach_the_tasks_and_nothing_else(play: Play, work: Path) -> None:
    tasks = [{"name": "use", "run": 'echo "$API_TOKEN" >seen; echo "token $API_TOKEN, debug $DEBUG, 1 more"'}]
    options = {"tasks": tasks, "workdir": str(work), "env": {"API_TOKEN": SECRET, "DEBUG": "1"}}
    (result,) = play([task("agent_task", **options)], "-vvv")
    assert (work / "seen").read_text() == f"{SECRET}\n"
    assert result["tasks"][0]["stdout"] == "token ********, debug 1, 1 more"
    assert SECRET not in json.dumps(result)
    for path in play.state_dir.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes()


def test_artifacts_of_another_user_are_fetched(play: Play, work: Path, tmp_path: Path) -> None:
    """With become the connection's own user may not read them."""
    require_root("to become root without a password")
    tasks = [{"name": "make", "run": "echo made >out", "artifacts": ["out"]}]
    options = {"tasks": tasks, "workdir": str(work), "artifacts": str(tmp_path / "got")}
    (result,) = play([{**task("agent_task", **options), "become": True, "become_method": "ansible.builtin.su"}])
    assert result["fetched"] == ["out"]
    assert (tmp_path / "got" / "out").read_text() == "made\n"


def test_a_list_from_a_vault_is_decrypted(play: Play, work: Path, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("open sesame")
    file = tmp_path / "secret.yml"
    file.write_text(f"workdir: {work}\ntasks: [{{name: a, run: echo from a vault}}]")
    command = [
        sys.executable,
        "-m",
        "ansible.cli.vault",
        "encrypt",
        "--vault-password-file",
        str(tmp_path / "password"),
    ]
    subprocess.run([*command, str(file)], check=True, capture_output=True)
    options = ["--vault-password-file", str(tmp_path / "password")]
    (result,) = play([task("agent_task", src=str(file))], *options)
    assert result["name"] == "secret"
    assert result["tasks"][0]["stdout"] == "from a vault"


def test_values_that_yaml_cannot_hold_plainly_pass(play: Play, work: Path) -> None:
    (result,) = play(
        [
            {
                **task(
                    "agent_task",
                    definition=listed(
                        {"name": "say", "run": "echo '{{ word }}' $NUMBER", "env": {"NUMBER": "{{ 3 }}"}}
                    ),
                    workdir=str(work),
                    parallel="{{ 2 }}",
                    timeout="1m",
                ),
                "vars": {"word": "from a variable"},
            }
        ]
    )
    assert result["tasks"][0]["stdout"] == "from a variable 3"


ONE = [{"name": "a", "run": "x"}]
WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, "agent_task: expected one of src, definition, tasks, run, found none of them"),
    ({"src": "x", "tasks": []}, "agent_task: expected one of src, definition, tasks, run, found src, tasks"),
    ({"src": "nosuch.yml"}, "agent_task: src nosuch.yml: cannot be read: "),
    ({"tasks": [{"name": "a", "rum": "x"}]}, 'agent_task: tasks: task "a": unknown key "rum", did you mean "run"?'),
    ({"definition": {"tasks": ONE}, "only": ["b"]}, 'task "b": not in the list'),
    ({"tasks": ONE, "timeout": "soon"}, "agent_task: timeout: expected a duration"),
    ({"tasks": ONE, "workdir": "/no/such"}, "workdir: expected a folder, found none at /no/such"),
    ({"run": "77"}, "task run 77: does not exist"),
    ({"tasks": [{"name": "a", "run": "x", "env": {"A_TOKEN": "x"}}]}, '"A_TOKEN" looks like a secret'),
]


def test_what_is_wrong_is_said_in_a_sentence(play: Play) -> None:
    results = play([task("agent_task", ignore_errors=True, **options) for options, _message in WRONG])
    for result, (_options, message) in zip(results, WRONG, strict=True):
        assert result["failed"]
        assert message in result["msg"]


def test_module_options_and_the_list_have_the_same_words() -> None:
    from ansible_collections.autovibe.fleet.plugins.modules.agent_task import OPTIONS

    shared = set(OPTIONS) & set(KEYS)
    assert shared == {"name", "workdir", "env", "parallel", "timeout", "tasks"}


def test_agent_task_runs_over_ssh_on_python_3_9(tmp_path: Path) -> None:
    (tmp_path / "sshd").mkdir()
    with ssh_server(tmp_path / "sshd", oldest_python()) as server:
        work = server.home / "work"
        work.mkdir()
        steps = "; ".join(f"echo {number}; sleep 0.3" for number in range(5))
        tasks = [
            {"name": "steps", "run": steps, "artifacts": ["out"]},
            {"name": "make", "run": "python3 -c 'import sys; print(sys.version_info[:2])'; mkdir out; echo 1 >out/a"},
        ]
        options = {"tasks": tasks, "workdir": str(work), "artifacts": str(tmp_path / "got")}
        plays = [{"hosts": "all", "gather_facts": False, "tasks": [task("agent_task", **options)]}]
        (tmp_path / "play.yml").write_text(json.dumps(plays))
        variables = {
            "ansible_python_interpreter": f"{server.home}/bin/python3",
            "ansible_ssh_common_args": f"-F {server.config}",
            "ansible_remote_tmp": f"{server.home}/tmp",
        }
        settings = {
            "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"),
            "ANSIBLE_SSH_ARGS": "-o ControlMaster=no",
        }
        command = [sys.executable, "-m", "ansible", "playbook", "-i", f"{server.name},", str(tmp_path / "play.yml")]
        done = subprocess.run(
            [*command, "--extra-vars", json.dumps(variables)],
            capture_output=True,
            text=True,
            check=False,
            cwd=REPOSITORY,
            env={**os.environ, **settings},
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "dev-machine: make: succeeded in" in done.stdout  # while it ran
        assert (tmp_path / "got" / "out" / "a").read_text() == "1\n"
        (view,) = (server.home / "state" / "tasks").glob("*/run.json")
        assert task_list(json.loads(view.read_text())["list"]).names == ("steps", "make")
