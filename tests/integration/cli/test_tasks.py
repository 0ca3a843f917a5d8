# SPDX-License-Identifier: GPL-3.0-or-later
"""fleet task on this computer: run, plan, list, show, output, attach, cancel, artifacts, schema."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.integration.cli.conftest import PROGRAM, Fleet, until

from autovibe_fleet.cli.help import RUN, TASK
from autovibe_fleet.tasks.files import schema
from fleet_node import procfs

BUILD = """
# Comments are why people write YAML.
tasks:
  - name: build
    run: |
      mkdir -p dist
      echo wheel >dist/shop.whl
    artifacts: [dist/*.whl]
  - name: test
    run: echo checking; test -e ready
    needs: [build]
  - name: lint
    run: echo clean
    on_failure: continue
"""


def write(fleet: Fleet, text: str, name: str = "build.yml") -> str:
    (fleet.folder / name).write_text(text)
    return name


def test_a_list_runs_fails_and_goes_on(fleet: Fleet) -> None:
    file = write(fleet, BUILD)
    failed = fleet("task", "run", file)
    assert failed.code == 6
    told = failed.err.splitlines()
    assert "build: started" in told
    assert [line for line in told if line.startswith("test: failed in ") and line.endswith(": exit code 1")]
    assert told[-1] == 'fleet: task "test": exit code 1'
    assert "  test | checking" in failed.out
    assert "build: 2 succeeded, 1 failed in" in failed.out
    (fleet.folder / "ready").touch()
    again = fleet.ok("task", "run", file, "--resume", "--artifacts", "out")
    assert "build: done before" in again.err
    assert "Copied 1 artifact to " in again.out
    assert (fleet.folder / "out" / "dist" / "shop.whl").read_text() == "wheel\n"
    (run,) = fleet.json("task", "list")["runs"]
    assert (run["state"], run["resumed"]) == ("succeeded", 1)
    assert "build" in fleet.ok("task", "list").out


def test_json_is_the_result_and_nothing_else(fleet: Fleet) -> None:
    file = write(fleet, BUILD)
    done = fleet("task", "run", file, "--json")
    assert done.code == 6
    assert done.error["message"] == 'task "test": exit code 1'
    assert done.data["state"] == "failed"
    assert [item["name"] for item in done.data["tasks"]] == ["build", "test", "lint"]
    assert [key for key in RUN if key not in ("tasks: [TASK]",) and key not in done.data] == []
    assert [key for key in TASK if key not in done.data["tasks"][0]] == []
    shown = fleet.json("task", "show", "last")
    assert shown == done.data
    assert "checking" in fleet.ok("task", "output", "last", "test").out
    table = fleet.ok("task", "show", "1").out
    assert "exit code 1" in table
    fleet.ok("task", "artifacts", "1", "got")
    assert (fleet.folder / "got" / "dist" / "shop.whl").exists()


def test_plan_and_check_do_nothing(fleet: Fleet) -> None:
    file = write(fleet, BUILD)
    text = fleet.ok("task", "plan", file).out
    assert text.splitlines() == [
        "build: 3 tasks, at most 4 at once",
        "  1. build  mkdir -p dist …  [gives dist/*.whl]",
        "     lint   echo clean  [others go on if it fails]",
        "  2. test   echo checking; test -e ready  [after build]",
    ]
    assert fleet.ok("task", "run", file, "--check").out == text
    plan = fleet.json("task", "plan", file, "--only", "lint", "--parallel", "2")
    assert plan["plan"]["steps"] == [["lint"]]
    assert plan["plan"]["parallel"] == 2
    assert plan["pending"] == ["lint"]
    assert not (fleet.folder / "dist").exists()
    assert fleet.json("task", "list") == {"runs": []}


def test_only_and_from_choose_tasks(fleet: Fleet) -> None:
    (fleet.folder / "ready").touch()
    file = write(fleet, BUILD)
    assert [item["name"] for item in fleet.json("task", "run", file, "--from", "build")["tasks"]] == ["build", "test"]
    assert [item["name"] for item in fleet.json("task", "run", file, "--only", "test")["tasks"]] == ["test"]


def test_json_files_and_standard_input_are_read(fleet: Fleet) -> None:
    data = {"version": 1, "tasks": [{"name": "a", "run": "echo from json"}]}
    file = write(fleet, json.dumps(data), "python-tasks.json")
    assert fleet.json("task", "run", file)["name"] == "python-tasks"
    view = fleet.json("task", "run", "-", stdin=json.dumps(data))
    assert view["tasks"][0]["stdout"] == "from json"


def test_variables_are_passed(fleet: Fleet) -> None:
    file = write(fleet, "tasks: [{name: a, run: 'echo $MODE ${NPM_TOKEN#no-}'}]")
    view = fleet.json("task", "run", file, "--env", "MODE=dev", "--env", "NPM_TOKEN", env={"NPM_TOKEN": "no-secret"})
    assert view["tasks"][0]["stdout"] == "dev secret"
    refused = fleet("task", "run", file, "--env", "NPM_TOKEN=abc")
    assert refused.code == 2
    assert "looks like a secret, which others can see here; give its name alone" in refused.err


@pytest.mark.parametrize(
    ("text", "message", "code"),
    [
        ("tasks: [", "build.yml: expected JSON or YAML", 2),
        ('{"tasks": [}', "build.yml: expected JSON or YAML", 2),
        ("tasks: [{name: a, run: x, need: [b]}]", 'build.yml: task "a": unknown key "need", did you mean "needs"?', 2),
        ("[1]", 'build.yml: task list: expected a mapping with "tasks", found a list', 2),
        ("x: &a [*a]", "build.yml: ", 2),
        ("{" * 20000, "build.yml: expected JSON or YAML", 2),
    ],
)
def test_a_wrong_file_is_a_sentence(fleet: Fleet, text: str, message: str, code: int) -> None:
    result = fleet("task", "run", write(fleet, text))
    assert result.code == code
    assert message in result.err
    assert len(result.err.splitlines()) == 1


def test_what_is_not_there_is_named(fleet: Fleet) -> None:
    file = write(fleet, BUILD)
    for words, code, message in [
        (("run", "nosuch.yml"), 3, "task list nosuch.yml: No such file or directory"),
        (("show", "7"), 3, "task run 7: does not exist"),
        (("show", "x"), 2, 'task run "x": expected its number, or "last"'),
        (("show", "last"), 3, "task run: none so far"),
        (("run", file, "--only", "tets"), 2, 'task "tets": not in the list, did you mean "test"?'),
        (("run", file, "-C", "nowhere"), 2, "workdir: expected a folder, found none at"),
        (("run", file, "--resume"), 3, "no earlier run in"),
    ]:
        result = fleet("task", *words)
        assert (result.code, message in result.err) == (code, True), result.err
    fleet("task", "run", file, "--only", "lint")
    assert 'task run 1: has no task "lnt", did you mean "lint"?' in fleet("task", "output", "1", "lnt").err


def test_a_detached_run_is_attached_and_cancelled(fleet: Fleet) -> None:
    file = write(fleet, "tasks: [{name: long, run: 'echo $$ >pid; sleep 600'}, {name: after, run: x, needs: [long]}]")
    assert "Run 1 works by itself; watch it with `fleet task attach 1`" in fleet.ok("task", "run", file, "-d").out
    until((fleet.folder / "pid").exists)
    assert fleet.json("task", "show", "1")["state"] == "running"
    attached = subprocess.Popen(
        [PROGRAM, "task", "attach", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=fleet.environ,
        cwd=fleet.folder,
    )
    assert fleet.ok("task", "cancel", "1").out == "Ended run 1\n"
    out, err = attached.communicate(timeout=30)
    assert attached.returncode == 130
    assert "long: interrupted in" in err
    assert "1 interrupted, 1 skipped" in out
    assert fleet.ok("task", "cancel", "1").out == "Run 1 was over already\n"
    assert procfs.group_members(int((fleet.folder / "pid").read_text())) == []


def test_ctrl_c_ends_all_tasks(fleet: Fleet) -> None:
    file = write(fleet, "tasks: [{name: a, run: 'echo $$ >pid; sleep 600'}, {name: b, run: sleep 600}]")
    child = subprocess.Popen(
        [PROGRAM, "task", "run", file],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=fleet.environ,
        cwd=fleet.folder,
    )
    until((fleet.folder / "pid").exists)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=30)
    assert child.returncode == 130, err
    assert "2 interrupted" in out
    assert procfs.group_members(int((fleet.folder / "pid").read_text())) == []
    assert fleet.json("task", "show", "last")["state"] == "interrupted"


def test_a_terminal_shows_what_runs_now(fleet: Fleet) -> None:
    file = write(fleet, "tasks: [{name: steps, run: 'for i in 1 2 3; do echo step $i; sleep 0.5; done'}]")
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [PROGRAM, "task", "run", file],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**fleet.environ, "TERM": "xterm"},
        cwd=fleet.folder,
    )
    os.close(theirs)
    data = b""
    while True:
        try:
            data += os.read(ours, 4096)
        except OSError:
            break
    os.close(ours)
    assert child.wait(30) == 0
    text = data.decode()
    assert "step 1" in text  # beside the task, while it runs
    assert "steps: " in text
    assert "succeeded in" in text
    assert "Traceback" not in text


def test_the_schema_is_printed_and_accepts_what_is_read(fleet: Fleet) -> None:
    assert fleet.json("task", "schema") == schema()
    import yaml
    from jsonschema import Draft202012Validator

    Draft202012Validator(schema()).validate(yaml.safe_load(BUILD))


def test_output_that_would_move_the_cursor_does_not(fleet: Fleet) -> None:
    file = write(fleet, r"tasks: [{name: a, run: 'printf \"\\033[2Jred\\033[0m\\n\"; exit 1'}]")
    result: Any = fleet("task", "run", file, "-v")
    assert "\x1b" not in result.err
    assert "\x1b" not in result.out
    assert 'a | "red' in result.out


def test_localhost_needs_no_ssh(fleet: Fleet) -> None:
    file = write(fleet, BUILD)
    (fleet.folder / "ready").touch()
    program = str(Path(PROGRAM).with_name("agent_executor"))
    done = subprocess.run(
        [program, "localhost", file], env=fleet.environ, cwd=fleet.folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "build: 3 succeeded" in done.stdout
