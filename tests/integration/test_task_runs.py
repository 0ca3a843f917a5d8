# SPDX-License-Identifier: GPL-3.0-or-later
"""Task lists that really run in a folder: order, limits, retries, output, artifacts, kills and what comes after."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fleet_core.errors import Conflict, FleetError, InvalidInput, NotFound
from fleet_core.task_lists import select, task_list
from fleet_node import procfs, task_runs, task_service, task_state
from fleet_node.task_runs import Request

View = dict[str, Any]


class Runs:
    """Runs lists in a folder of their own."""

    def __init__(self, folder: Path, state_dir: Path) -> None:
        self.folder = folder
        self.state_dir = state_dir
        self.events: list[dict[str, Any]] = []

    def request(self, *tasks: dict[str, Any], resume: bool = False, environ: Any = None, **more: Any) -> Request:
        data = {"name": "list", "workdir": str(self.folder), "tasks": list(tasks), **more}
        return Request(task_list(data), resume=resume, environ=environ or {})

    def __call__(self, *tasks: dict[str, Any], **more: Any) -> View:
        request = self.request(*tasks, **more)
        return asyncio.run(task_runs.run(request, self.state_dir, lambda event: self.events.append(dict(event))))

    def one(self, run: str, **fields: Any) -> dict[str, Any]:
        """Run one task and return its result."""
        result: dict[str, Any] = self({"name": "a", "run": run, **fields})["tasks"][0]
        return result


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    folder = tmp_path / "work"
    folder.mkdir()
    return Runs(folder, tmp_path / "state")


def states(view: View) -> dict[str, str]:
    return {item["name"]: item["state"] for item in view["tasks"]}


def until(true: Callable[[], Any], seconds: float = 20.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, f"still not true after {seconds} s"
        time.sleep(0.02)
    return found


def test_independent_tasks_run_at_the_same_time(runs: Runs) -> None:
    # Each waits for the other: one after the other they would never end.
    meet = "touch $FLEET_TASK; while ! test -e {other}; do sleep 0.02; done"
    view = runs(
        {"name": "a", "run": meet.format(other="b"), "timeout": 20},
        {"name": "b", "run": meet.format(other="a"), "timeout": 20},
    )
    assert states(view) == {"a": "succeeded", "b": "succeeded"}


def test_parallel_limits_how_many_run(runs: Runs) -> None:
    command = "echo + >>log; sleep 0.1; echo - >>log"
    runs(*({"name": f"t{number}", "run": command} for number in range(6)), parallel=2)
    depth = most = 0
    for sign in (runs.folder / "log").read_text().split():
        depth += 1 if sign == "+" else -1
        most = max(most, depth)
    assert most == 2


def test_tasks_come_after_what_they_need(runs: Runs) -> None:
    runs(
        {"name": "c", "run": "echo c >>log", "needs": ["a", "b"]},
        {"name": "a", "run": "sleep 0.2; echo a >>log"},
        {"name": "b", "run": "echo b >>log"},
        {"name": "d", "run": "echo d >>log", "needs": ["c"]},
    )
    assert (runs.folder / "log").read_text().split() == ["b", "a", "c", "d"]


def test_a_result_tells_all(runs: Runs) -> None:
    result = runs.one("echo out; echo err >&2; exit 7")
    assert (result["state"], result["rc"], result["reason"]) == ("failed", 7, "exit code 7")
    assert (result["stdout"], result["stderr"], result["truncated"]) == ("out", "err", False)
    assert result["attempts"] == 1
    assert 0 <= result["duration"] < 10
    assert result["started"] <= result["finished"]
    log = Path(result["output_file"])
    assert sorted(log.read_text().splitlines()[:2]) == ["err", "out"]
    assert log.stat().st_mode & 0o777 == 0o600
    assert runs.state_dir.stat().st_mode & 0o777 == 0o700


def test_a_script_ends_with_its_first_failing_command(runs: Runs) -> None:
    result = runs.one("echo before\nfalse\necho after")
    assert (result["state"], result["stdout"]) == ("failed", "before")


def test_a_failure_stops_the_list_unless_it_says_otherwise(runs: Runs) -> None:
    view = runs(
        {"name": "bad", "run": "exit 1"},
        {"name": "after", "run": "true", "needs": ["bad"]},
        {"name": "other", "run": "true"},
        parallel=1,
    )
    assert view["state"] == "failed"
    assert states(view) == {"bad": "failed", "after": "skipped", "other": "skipped"}
    assert [item["reason"] for item in view["tasks"]] == ["exit code 1", 'it needs "bad"', '"bad" failed']
    view = runs(
        {"name": "bad", "run": "exit 1", "on_failure": "continue"},
        {"name": "after", "run": "true", "needs": ["bad"]},
        {"name": "other", "run": "true"},
        parallel=1,
    )
    assert view["state"] == "failed"
    assert states(view) == {"bad": "failed", "after": "skipped", "other": "succeeded"}


def test_a_timeout_ends_the_whole_group_even_what_ignores_it(runs: Runs) -> None:
    script = "trap '' TERM; echo $$ >pid; sleep 300 & sleep 300 & wait"
    begun = time.monotonic()
    result = runs.one(script, timeout=0.5)
    assert (result["state"], result["reason"]) == ("failed", "not done within 500ms")
    assert time.monotonic() - begun < 20
    assert procfs.group_members(int((runs.folder / "pid").read_text())) == []


def test_what_a_task_leaves_in_the_background_ends_with_it(runs: Runs) -> None:
    begun = time.monotonic()
    result = runs.one("echo $$ >pid; sleep 300 & echo done")
    assert (result["state"], result["stdout"]) == ("succeeded", "done")
    assert time.monotonic() - begun < 5
    assert procfs.group_members(int((runs.folder / "pid").read_text())) == []


def test_a_task_is_tried_again(runs: Runs) -> None:
    script = "echo x >>tries; echo try $(wc -l <tries); test $(wc -l <tries) -ge 3"
    result = runs.one(script, retries=3, retry_delay="10ms")
    assert (result["state"], result["attempts"], result["stdout"]) == ("succeeded", 3, "try 3")
    log = Path(result["output_file"]).read_text()
    assert "try 1" in log
    assert "--- attempt 2 ---" in log
    assert [event["state"] for event in runs.events if event["event"] == "task"].count("retrying") == 2
    (runs.folder / "tries").unlink()
    result = runs.one(script, retries=1, retry_delay=0)
    assert (result["state"], result["attempts"]) == ("failed", 2)


@pytest.mark.parametrize(
    ("run", "expect", "reason"),
    [
        ("exit 3", {"rc": 3}, ""),
        ("exit 3", {"rc": [0, 3]}, ""),
        ("exit 0", {"rc": 3}, "exit code 0, expected 3"),
        ("exit 1", {"rc": [0, 3]}, "exit code 1, expected 0 or 3"),
        ("echo all good", {"stdout_contains": "good"}, ""),
        ("echo all good >&2", {"stdout_contains": "good"}, 'expected "good" in stdout'),
        ("echo all good >&2", {"stderr_contains": ["all", "good"]}, ""),
        ("echo all; echo good", {"stdout_contains": "all\ngood\n"}, ""),
        ("printf unfinished", {"stdout_contains": "unfinished"}, ""),
        ("echo 12 passed", {"stdout_matches": r"^\d+ passed$"}, ""),
        ("echo 1 failed", {"stdout_matches": r"^\d+ passed$"}, r'expected "^\d+ passed$" in stdout'),
        ("touch made", {"files": "ma*"}, ""),
        ("true", {"files": "made"}, 'expected the file "made"'),
        ("kill -9 $$", {}, "killed by SIGKILL"),
    ],
)
def test_expectations(runs: Runs, run: str, expect: dict[str, Any], reason: str) -> None:
    result = runs.one(run, expect=expect)
    assert result["reason"] == reason
    assert result["state"] == ("failed" if reason else "succeeded")


def test_what_is_expected_is_found_in_output_that_is_not_kept(runs: Runs) -> None:
    result = runs.one("echo needle; seq 100000", expect={"stdout_contains": "needle"})
    assert result["state"] == "succeeded"
    assert result["truncated"]
    assert len(result["stdout"]) <= 16 * 1024
    assert result["stdout"].endswith("\n99999\n100000")
    assert Path(result["output_file"]).read_text().startswith("needle\n1\n2\n")


def test_env_comes_from_the_list_files_and_the_task(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTSIDE", "inherited")
    (runs.folder / ".env").write_text("FROM_FILE='a file'\nA=file\n")
    view = runs(
        {"name": "a", "run": 'echo "$OUTSIDE|$FROM_FILE|$A|$B|$FLEET_TASK"', "env": {"B": "task"}},
        env={"A": "list", "B": "list"},
        env_files=[".env"],
    )
    assert view["tasks"][0]["stdout"] == "inherited|a file|list|task|a"


@pytest.mark.parametrize(
    "said",
    [
        'echo "wrong key: $API_TOKEN" >&2; exit 2',
        r'printf "{\"type\": \"result\", \"ok\": false, \"error\": \"wrong key: %s\"}\n" "$API_TOKEN"',
        r'printf "{\"type\": \"session\", \"session\": \"%s\"}\n" "$API_TOKEN"; exit 2',
    ],
)
def test_a_tool_that_repeats_the_key_that_was_wrong_does_not_give_it_away(runs: Runs, said: str) -> None:
    tasks = {"name": "a", "prompt": "Go", "runner": "command", "command": said}
    view = runs(tasks, pass_env=["API_TOKEN"], environ={"API_TOKEN": "passed-on-value"})
    assert view["tasks"][0]["state"] == "failed"
    everything = b"".join(path.read_bytes() for path in runs.state_dir.rglob("*") if path.is_file())
    assert b"passed-on-value" not in everything
    assert b"********" in everything
    assert "passed-on-value" not in json.dumps([view, runs.events])


def test_values_of_secrets_are_hidden_wherever_output_goes(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPLOY_PASSWORD", "inherited-hunter2")
    (runs.folder / ".env").write_text("API_TOKEN=token-of-a-file\n")
    tasks = {"name": "a", "run": 'echo "$DEPLOY_PASSWORD $API_TOKEN $NPM_TOKEN https://me:pw1234@host/"; exit 1'}
    view = runs(tasks, env_files=[".env"], pass_env=["NPM_TOKEN"], environ={"NPM_TOKEN": "passed-on-value"})
    assert view["tasks"][0]["stdout"] == "******** ******** ******** https://me:********@host/"
    everything = b"".join(path.read_bytes() for path in runs.state_dir.rglob("*") if path.is_file())
    for secret in (b"inherited-hunter2", b"token-of-a-file", b"passed-on-value"):
        assert secret not in everything
        assert secret not in json.dumps([view, runs.events]).encode()


def test_a_variable_that_is_not_there_is_named_before_anything_runs(runs: Runs) -> None:
    with pytest.raises(InvalidInput, match='task list "list": pass_env: the variable "NO_SUCH_TOKEN" is not set'):
        runs({"name": "a", "run": "touch ran"}, pass_env=["NO_SUCH_TOKEN"])
    with pytest.raises(NotFound, match=r"env file .*/nowhere: No such file"):
        runs({"name": "a", "run": "touch ran", "env_files": ["nowhere"]})
    assert not (runs.folder / "ran").exists()
    assert task_state.runs(runs.state_dir) == []


def test_artifacts_are_listed_and_copied(runs: Runs, tmp_path: Path) -> None:
    make = "mkdir -p dist/deep; echo 1 >dist/a.whl; echo 2 >dist/deep/b; ln -s a.whl dist/latest; chmod +x dist/a.whl"
    view = runs({"name": "a", "run": make, "artifacts": ["dist", "*.log", "dist/*.whl"]})
    (result,) = view["tasks"]
    assert result["artifacts"] == ["dist/a.whl", "dist/deep/b", "dist/latest"]
    assert result["warnings"] == ['artifacts: nothing matches "*.log"']
    from io import BytesIO

    from fleet_node.artifacts import unpack

    archive = BytesIO()
    assert task_service.archive(task_state.find(runs.state_dir, view["id"]), archive) == 3
    archive.seek(0)
    assert unpack(archive, tmp_path / "got") == result["artifacts"]
    assert (tmp_path / "got/dist/latest").read_text() == "1\n"
    assert not (tmp_path / "got/dist/latest").is_symlink()
    assert os.access(tmp_path / "got/dist/a.whl", os.X_OK)


@pytest.mark.parametrize(
    "make", ["ln -s /etc/passwd out", "mkdir out; ln -s ../.. out/up", "ln -s .. out", "mkdir out; mkfifo out/pipe"]
)
def test_artifacts_never_leave_the_folder(runs: Runs, make: str) -> None:
    result = runs.one(make, artifacts=["out"])
    assert result["state"] == "failed"
    assert result["reason"].startswith('artifact "')
    assert result["artifacts"] == []


def test_a_task_whose_folder_leads_out_is_refused(runs: Runs) -> None:
    (runs.folder / "sub").symlink_to("/")
    result = runs.one("touch ran", workdir="sub")
    assert "leads out of" in result["reason"]
    assert runs.one("pwd", workdir="none")["reason"].startswith("workdir: expected a folder, found none at")


def test_creates_leaves_out_what_is_there(runs: Runs) -> None:
    tasks = ({"name": "make", "run": "echo x >>log; mkdir -p venv", "creates": "venv"},)
    assert states(runs(*tasks)) == {"make": "succeeded"}
    assert states(runs(*tasks)) == {"make": "unchanged"}
    assert (runs.folder / "log").read_text() == "x\n"


def test_resume_goes_on_from_what_failed(runs: Runs) -> None:
    tasks = [
        {"name": "a", "run": "echo a >>log"},
        {"name": "b", "run": "echo b >>log; test -e ready", "needs": ["a"]},
        {"name": "c", "run": "echo c >>log", "needs": ["b"]},
    ]
    with pytest.raises(NotFound, match=r"no earlier run in .* to resume"):
        runs(*tasks, resume=True)
    first = runs(*tasks)
    assert states(first) == {"a": "succeeded", "b": "failed", "c": "skipped"}
    (runs.folder / "ready").touch()
    second = runs(*tasks, resume=True)
    assert second["id"] == first["id"]
    assert second["resumed"] == 1
    assert states(second) == {"a": "succeeded", "b": "succeeded", "c": "succeeded"}
    assert [item["kept"] for item in second["tasks"]] == [True, False, False]
    assert (runs.folder / "log").read_text().split() == ["a", "b", "b", "c"]
    assert "resumed" in Path(second["tasks"][1]["output_file"]).read_text()
    third = runs({**tasks[0], "run": "echo A >>log"}, *tasks[1:], resume=True)
    assert third["notes"] == ['task "a" has changed']
    assert (runs.folder / "log").read_text().split() == ["a", "b", "b", "c", "A", "b", "c"]


def test_a_run_of_some_tasks_is_not_what_is_resumed(runs: Runs) -> None:
    tasks = [{"name": "a", "run": "echo a >>log"}, {"name": "b", "run": "echo b >>log; exit 1", "needs": ["a"]}]
    first = runs(*tasks)
    request = runs.request(*tasks)
    some = dataclasses.replace(request, tasks=select(request.tasks, ["b"]), partial=True)
    assert states(asyncio.run(task_runs.run(some, runs.state_dir))) == {"b": "failed"}
    with pytest.raises(InvalidInput, match="expected resume or a choice of tasks, found both"):
        task_runs.plan(dataclasses.replace(some, resume=True), runs.state_dir)
    again = runs(*tasks, resume=True)
    assert again["id"] == first["id"]
    assert (runs.folder / "log").read_text().split() == ["a", "b", "b", "b"]


def test_a_list_has_a_limit_for_all_of_it(runs: Runs) -> None:
    view = runs({"name": "a", "run": "sleep 60"}, {"name": "b", "run": "true", "needs": ["a"]}, timeout=0.5)
    assert view["state"] == "failed"
    assert view["reason"] == "the list was not done within 0.5 s"
    assert states(view) == {"a": "interrupted", "b": "skipped"}


def test_a_prompt_goes_to_its_runner(runs: Runs) -> None:
    fails = {"command": "echo no; exit 1", "retries": 1, "retry_delay": 0}
    view = runs(
        {"name": "ask", "prompt": "What is it?", "runner": "command", "command": "cat; echo; echo 'It is blue.'"},
        {"name": "wrong", "prompt": "x", "runner": "command", **fails},
    )
    ask, wrong = view["tasks"]
    assert (ask["state"], ask["stdout"]) == ("succeeded", "What is it?\nIt is blue.")
    assert "It is blue." in Path(ask["output_file"]).read_text()
    assert (wrong["state"], wrong["attempts"]) == ("failed", 2)
    assert wrong["reason"]


def test_a_prompt_tells_usage_and_cost_and_goes_on_with_a_session(runs: Runs) -> None:
    say = (
        'echo \'{"type": "session", "session": "s-1"}\'; echo \'{"type": "usage", "input_tokens": 10, "cost": 0.25}\'; '
        'echo "{\\"type\\": \\"result\\", \\"text\\": \\"session was $FLEET_SESSION\\"}"'
    )
    prompt = {"runner": "command", "command": say, "prompt": "go"}
    view = runs(
        {"name": "first", **prompt},
        {"name": "second", **prompt, "session": "first", "needs": ["first"], "expect": {"stdout_contains": "s-1"}},
    )
    first, second = view["tasks"]
    assert (first["session"], first["usage"], first["cost"]) == ("s-1", {"input_tokens": 10}, 0.25)
    assert first["stdout"] == "session was "
    assert second["state"] == "succeeded", second


RUNNER = """
import sys, json
from pathlib import Path
from fleet_core.task_lists import select, task_list
from fleet_node.task_runs import Request
from fleet_node.task_service import run_here
data, state, resume = json.loads(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "resume"
view = run_here(Request(task_list(data), resume=resume), state, lambda event: None)
print(json.dumps(view))
"""


def spawn(runs: Runs, *tasks: dict[str, Any], mode: str = "new") -> subprocess.Popen[str]:
    """Run a list in a process of its own, which a test may kill."""
    data = {"name": "list", "workdir": str(runs.folder), "tasks": list(tasks)}
    argv = [sys.executable, "-c", RUNNER, json.dumps(data), str(runs.state_dir), mode]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)


CRASH = [
    {"name": "a", "run": "echo a >>log"},
    {"name": "b", "run": "echo b >>log; test -e ready || { echo $$ >pid; sleep 300; }", "needs": ["a"]},
    {"name": "c", "run": "echo c >>log", "needs": ["b"]},
]


def test_a_killed_runner_reads_as_interrupted_and_resumes(runs: Runs) -> None:
    child = spawn(runs, *CRASH)
    until((runs.folder / "pid").exists)
    (state,) = task_state.runs(runs.state_dir)
    assert state.view()["state"] == "running"
    with pytest.raises(Conflict, match=rf"task run 1: is running already \(pid {child.pid}\)"):
        runs(*CRASH, resume=True)
    child.kill()
    child.communicate()
    view = state.view()
    assert view["state"] == "interrupted"
    assert view["reason"] == "its runner is gone"
    assert states(view) == {"a": "succeeded", "b": "interrupted", "c": "pending"}
    left = int((runs.folder / "pid").read_text())
    assert procfs.group_members(left)  # nobody has ended it
    (runs.folder / "ready").touch()
    again = runs(*CRASH, resume=True)
    assert states(again) == dict.fromkeys("abc", "succeeded")
    assert any("that the earlier runner had left" in note for note in again["notes"])
    assert procfs.group_members(left) == []
    assert (runs.folder / "log").read_text().split() == ["a", "b", "b", "c"]


@pytest.mark.slow
def test_kills_at_any_moment_lose_nothing_and_repeat_nothing_that_was_done(runs: Runs) -> None:
    tasks = [
        {"name": f"t{number}", "run": f"echo {number} >>log; sleep 0.05", "needs": [f"t{number - 1}"] if number else []}
        for number in range(12)
    ]
    kills = 0
    child = spawn(runs, *tasks)
    for delay in (0.25, 0.3, 0.35, 0.4, 0.45, 0.5):
        time.sleep(delay)
        if child.poll() is None:
            child.kill()
            kills += 1
        child.communicate()
        # One that was killed before it had written this has done nothing, and the next may have another number.
        begun = any(runs.state_dir.glob("tasks/*/run.json"))
        child = spawn(runs, *tasks, mode="resume" if begun else "new")
    out, _err = child.communicate(timeout=60)
    view = json.loads(out)
    assert set(states(view).values()) == {"succeeded"}
    assert kills
    lines = [int(line) for line in (runs.folder / "log").read_text().split()]
    assert sorted(set(lines)) == list(range(12))
    assert lines == sorted(lines)  # needs hold over all kills
    assert len(lines) <= 12 + kills  # at most the one that was running is begun again


def test_sigterm_ends_a_run_cleanly(runs: Runs) -> None:
    child = spawn(runs, *CRASH)
    until((runs.folder / "pid").exists)
    child.send_signal(signal.SIGTERM)
    out, _err = child.communicate(timeout=30)
    view = json.loads(out)
    assert view["state"] == "interrupted"
    assert states(view) == {"a": "succeeded", "b": "interrupted", "c": "skipped"}
    assert procfs.group_members(int((runs.folder / "pid").read_text())) == []


def test_a_detached_run_is_started_followed_and_cancelled(runs: Runs) -> None:
    started = task_service.start(runs.request(*CRASH), runs.state_dir)
    until((runs.folder / "pid").exists)
    assert started.run.alive()
    assert task_service.cancel(started.run)
    assert states(started.run.view())["b"] == "interrupted"
    (runs.folder / "ready").touch()
    again = task_service.start(runs.request(*CRASH, resume=True), runs.state_dir)
    assert again.run.id == started.run.id
    events = list(task_service.follow(again.run, again.position))
    assert [(event["task"], event["state"]) for event in events if event["event"] == "task"] == [
        ("a", "succeeded"), ("b", "running"), ("b", "succeeded"), ("c", "running"), ("c", "succeeded"),
    ]  # fmt: skip
    assert started.run.view()["state"] == "succeeded"
    assert not task_service.cancel(again.run)


def test_an_error_of_a_detached_run_is_raised_where_it_is_started(runs: Runs) -> None:
    with pytest.raises(FleetError, match="expected a folder, found none"):
        task_service.start(runs.request({"name": "a", "run": "x"}, workdir="/no/such"), runs.state_dir)


def test_old_runs_are_removed(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_state, "KEPT_RUNS", 3)
    for _number in range(5):
        runs.one("true")
    assert [run.id for run in task_state.runs(runs.state_dir)] == ["5", "4", "3"]
    with pytest.raises(NotFound, match="task run 1: does not exist"):
        task_state.find(runs.state_dir, "1")


def test_a_service_that_a_task_has_started_for_good_outlives_kills_and_resumes(runs: Runs) -> None:
    (runs.folder / "service.py").write_text(
        "import os, time\nos.setsid()\nopen('service', 'w').write(str(os.getpid()))\ntime.sleep(300)\n"
    )
    serve = f"{sys.executable} service.py >log 2>&1 & while ! test -s service; do sleep 0.02; done"
    tasks = [
        {"name": "serve", "run": serve},
        {"name": "wait", "run": "test -e ready || { echo $$ >pid; sleep 300; }", "needs": ["serve"]},
    ]
    child = spawn(runs, *tasks)
    until((runs.folder / "pid").exists)
    service = int((runs.folder / "service").read_text())
    try:
        child.kill()
        child.communicate()
        (runs.folder / "ready").touch()
        again = runs(*tasks, resume=True)
        assert again["notes"][0].endswith("that the earlier runner had left")
        assert procfs.alive(service)
    finally:
        os.kill(service, signal.SIGKILL)
