# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs of agents under a real fleetd: what a definition says is what happens, and all of it is kept."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.fleetd import Fleet, alive, running, wait_for
from tests.integration.working_agents import Agent, python
from tests.requirements import require_tool

from fleet_core.errors import FleetError


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with tempfile.TemporaryDirectory(prefix="fleet-") as folder, running(Path(folder)) as fleet:
        yield fleet


@pytest.fixture
def agent(fleet: Fleet, request: pytest.FixtureRequest) -> Iterator[Agent]:
    """An agent named for its test; stopped in the end, whatever it does."""
    agent = Agent(fleet, re.sub(r"\W+", "-", request.node.name.removeprefix("test_"))[:60].strip("-"))
    yield agent
    with contextlib.suppress(FleetError):
        agent.call("stop", timeout=20)


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "init.defaultBranch=main"]
    done = subprocess.run(["git", *identity, *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    require_tool("git", "to make a repository")
    folder = tmp_path / "shop"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "a.txt").write_text("one\n")
    git(folder, "add", "a.txt")
    git(folder, "commit", "-q", "-m", "First")
    return folder


# Loops and pipelines


def test_everything_of_a_run_is_kept_in_the_store_and_as_json_lines(agent: Agent) -> None:
    agent.run("cat; echo; echo ok", pipeline=[{"loop": "work", "times": 3}])
    run = agent.end("completed")
    assert run["reason"] == 'step "work" is done'
    assert run["totals"]["iterations"] == 3
    iterations = agent.iterations()
    assert [row["number"] for row in iterations] == [1, 2, 3]
    assert {row["state"] for row in iterations} == {"succeeded"}
    assert iterations[0]["result"] == "Do the work.\nok"
    assert all(row["pid"] > 0 and row["finished"] >= row["started"] for row in iterations)
    kept = agent.messages()
    assert [row["type"] for row in kept] == ["prompt", "text", "text", "end"] * 3
    lines = agent.recorded(run["id"])
    assert [line["id"] for line in lines if line["kind"] == "message"] == [row["id"] for row in kept]
    ends = [line["number"] for line in lines if line["kind"] == "iteration" and line["state"] == "succeeded"]
    assert ends == [1, 2, 3]
    assert (agent.folder / f"run-{run['id']}.jsonl").stat().st_mode & 0o777 == 0o600
    figures = agent.fleet.call("agents.statistics", name=agent.name)["statistics"]
    assert (figures["iterations"], figures["succeeded"]) == (3, 3)
    assert figures["duration"]["mean"] > 0


def test_a_pipeline_passes_its_results_on(agent: Agent) -> None:
    agent.run(
        r"""read -r line; case $line in List*) printf '["x", "y"]';; *) printf 'did %s' "$line";; esac""",
        methods={
            "list": "List them.",
            "fix": {"parameters": ["item"], "body": "Fix [item]."},
            "sum": {"parameters": ["all"], "body": "Sum [all]."},
        },
        pipeline=[{"call": "list"}, {"map": "fix", "over": "list"}, {"call": "sum"}],
    )
    run = agent.end("completed")
    assert [(row["step"], row["item"]) for row in agent.iterations()] == [
        ("list", ""), ("fix", "x"), ("fix", "y"), ("sum", ""),
    ]  # fmt: skip
    assert run["position"]["result"] == 'did Sum ["did Fix x.", "did Fix y."].'


def test_the_iterations_of_a_resumed_loop_share_a_session(agent: Agent, tmp_path: Path) -> None:
    program = tmp_path / "session.py"
    program.write_text(
        "import json, os, sys\n"
        "sys.stdin.read()\n"
        "session = os.environ.get('FLEET_SESSION') or 's' + os.environ['FLEET_ITERATION_NUMBER']\n"
        "print(json.dumps({'type': 'session', 'session': session}))\n"
        "print(json.dumps({'type': 'result', 'text': session}))\n"
    )
    agent.run(python(program), session="resume", pipeline=[{"loop": "work", "times": 3}])
    agent.end("completed")
    assert [row["session"] for row in agent.iterations()] == ["s1", "s1", "s1"]


# Limits, failures


def test_the_limit_of_iterations_ends_a_run(agent: Agent) -> None:
    agent.run("cat", pipeline=[{"loop": "work"}], limits={"iterations": 4})
    run = agent.end("limited")
    assert run["reason"] == "limit of iterations reached: 4 of 4"
    assert len(agent.iterations()) == 4


def test_a_limited_run_goes_on_under_another_limit(agent: Agent) -> None:
    agent.run("cat", pipeline=[{"loop": "work"}], limits={"iterations": 2})
    first = agent.end("limited")
    agent.run("cat", pipeline=[{"loop": "work"}], limits={"iterations": 5}, state="present")
    agent.call("start", continue_run=True)
    again = agent.end("limited")
    assert again["id"] == first["id"]
    assert again["reason"] == "limit of iterations reached: 5 of 5"
    assert [row["revision"] for row in agent.iterations()] == [1, 1, 2, 2, 2]


def test_the_limit_of_cost_ends_even_an_iteration_that_runs(agent: Agent) -> None:
    usage = json.dumps({"type": "usage", "input_tokens": 10, "cost": 0.7})
    agent.run(f"echo {shlex.quote(usage)}; exec sleep 100", pipeline=[{"loop": "work"}], limits={"cost": 0.5})
    begun = time.monotonic()
    run = agent.end("limited")
    assert time.monotonic() - begun < 15
    assert run["reason"] == "limit of cost reached: 0.7 of 0.5 USD"
    assert run["totals"]["cost"] == pytest.approx(0.7)
    (row,) = agent.iterations()
    assert (row["state"], row["reason"], row["cost"]) == ("interrupted", "limit", 0.7)


def test_the_limit_of_duration_ends_even_an_iteration_that_runs(agent: Agent) -> None:
    agent.run("exec sleep 100", pipeline=[{"loop": "work"}], limits={"duration": 0.6})
    run = agent.end("limited")
    assert run["reason"].startswith("limit of duration reached")
    assert 0.6 <= run["totals"]["seconds"] < 8


def test_an_iteration_that_takes_too_long_fails_and_is_repeated(agent: Agent) -> None:
    agent.run(
        'if [ "$FLEET_ITERATION_NUMBER" = 1 ]; then exec sleep 100; fi; echo quick',
        limits={"iteration_timeout": 0.5},
    )
    agent.end("completed")
    first, second = agent.iterations()
    assert (first["state"], first["reason"]) == ("failed", "timeout")
    assert second["attempt_of"] == first["id"]


def test_failures_back_off_until_the_breaker_gives_up(agent: Agent) -> None:
    agent.run(
        "echo overloaded >&2; exit 7",
        pipeline=[{"loop": "work"}],
        circuit_breaker={"failures": 2, "pause": 0.6, "trips": 1},
    )
    waiting = wait_for(
        "the breaker is open", lambda: "circuit breaker" in agent.view()["run"]["reason"] and agent.view()
    )
    assert waiting["run"]["state"] in ("waiting", "failed")
    run = agent.end("failed")
    assert run["reason"] == (
        "3 failures in a row, and the circuit breaker has opened 1 times: command: exit code 7: overloaded"
    )
    rows = agent.iterations()
    assert [row["state"] for row in rows] == ["failed"] * 3
    assert [row["attempt_of"] for row in rows] == [None, rows[0]["id"], rows[1]["id"]]
    assert rows[1]["started"] - rows[0]["finished"] >= 0.05
    assert rows[2]["started"] - rows[1]["finished"] >= 0.6


def test_a_program_that_is_missing_fails_the_run_at_once(agent: Agent) -> None:
    agent.run("", runner="claude", options={"executable": "/nonexistent/claude"}, pipeline=[{"loop": "work"}])
    run = agent.end("failed")
    assert "/nonexistent/claude" in run["reason"]
    assert len(agent.iterations()) == 1


# Completion


def test_the_agents_word_and_the_verification_must_both_agree(agent: Agent, tmp_path: Path) -> None:
    agent.run(
        f"cat > {tmp_path}/prompt-$FLEET_ITERATION_NUMBER;"
        " case $FLEET_ITERATION_NUMBER in 1) echo busy;; *) echo DONE;; esac;"
        f" if [ $FLEET_ITERATION_NUMBER = 3 ]; then touch {tmp_path}/built; fi",
        pipeline=[{"loop": "work"}],
        completion={"phrase": "DONE"},
        verification={"command": f"echo checking; test -e {tmp_path}/built"},
    )
    agent.end("completed")
    rows = agent.iterations()
    assert [(row["verification"] or {}).get("code") for row in rows] == [None, 1, 0]
    assert (tmp_path / "prompt-2").read_text() == "Do the work."
    assert (tmp_path / "prompt-3").read_text() == (
        "Do the work.\n\nThe verification command ended with exit code 1. Its output:\nchecking"
    )
    assert [row["content"].strip() for row in agent.messages("verification")] == ["checking", "checking"]


def test_a_verification_that_hangs_is_ended(agent: Agent) -> None:
    agent.run(
        "cat",
        pipeline=[{"loop": "work", "times": 1}],
        verification={"command": "echo slow; sleep 100 & wait", "timeout": 0.5},
    )
    run = agent.end("limited")
    assert "did not" in agent.iterations()[0]["verification"]["output"] or run["reason"].endswith("verification failed")
    assert agent.iterations()[0]["verification"]["code"] is None


# The watchdog


def test_the_watchdog_stops_an_agent_that_repeats_itself(agent: Agent, tmp_path: Path) -> None:
    program = tmp_path / "repeat.py"
    program.write_text(
        "import json, sys, time\n"
        "for number in range(1000):\n"
        "    print(json.dumps({'type': 'tool_use', 'name': 'read', 'input': {'path': 'a'}}), flush=True)\n"
        "    time.sleep(0.02)\n"
    )
    agent.run(python(program), pipeline=[{"loop": "work"}], watchdog={"repeats": 5, "action": "stop"})
    run = agent.end("failed")
    assert run["reason"] == "watchdog: the same call of read 5 times in a row"
    (row,) = agent.iterations()
    assert (row["state"], row["reason"]) == ("interrupted", "watchdog")
    assert row["watchdog"][0]["what"] == "repeats"
    assert agent.messages("watchdog")[0]["detail"]["action"] == "stop"


def test_the_watchdog_reports_silence_and_lets_the_agent_work(agent: Agent) -> None:
    agent.run("sleep 1; echo done", watchdog={"silence": 0.3})
    agent.end("completed")
    (said,) = agent.messages("watchdog")
    assert said["content"] == "no output for 0.3 s"


def test_the_watchdog_counts_iterations_without_a_commit(agent: Agent, repository: Path) -> None:
    commit = "git -c user.name=t -c user.email=t@localhost commit -q --allow-empty -m again"
    agent.run(
        f"if [ $FLEET_ITERATION_NUMBER = 2 ]; then {commit}; fi; echo done",
        pipeline=[{"loop": "work"}],
        limits={"iterations": 9},
        watchdog={"commits": 2, "action": "stop"},
        workspace={"kind": "worktree", "repository": str(repository)},
    )
    run = agent.end("failed")
    assert run["reason"] == "watchdog: no new commit in 2 iterations"
    assert len(agent.iterations()) == 4


# Workspaces


def test_work_in_a_worktree_leaves_a_branch_a_diff_and_a_patch(agent: Agent, repository: Path, tmp_path: Path) -> None:
    agent.run(
        "echo two >> a.txt; git add a.txt; git -c user.name=t -c user.email=t@localhost commit -q -m Second;"
        " echo left > b.txt; printf 'bin\\0ary' > c.bin; pwd",
        workspace={"kind": "worktree", "repository": str(repository)},
    )
    run = agent.end("completed")
    place = wait_for("the result", lambda: agent.view()["run"]["workspace"].get("commit") and agent.view()["run"])[
        "workspace"
    ]
    assert "error" not in place
    assert place["branch"] == f"agent/{agent.name}/run-{run['id']}"
    assert (place["commits"], place["files"]) == (2, 3)
    assert git(repository, "status", "--porcelain") == ""
    assert git(repository, "show", f"{place['branch']}:b.txt") == "left\n"
    for name, words in (("diff", ["apply"]), ("patch", ["am", "-q"])):
        other = tmp_path / name
        git(tmp_path, "clone", "-q", str(repository), str(other))
        git(other, "checkout", "-q", place["base"])
        git(other, *words, place[name])
        assert (other / "a.txt").read_text() == "one\ntwo\n"
        assert (other / "c.bin").read_bytes() == b"bin\0ary"
    assert Path(place["patch"]).stat().st_mode & 0o777 == 0o600


def test_a_clone_brings_its_branch_back(agent: Agent, repository: Path) -> None:
    agent.run("echo two >> a.txt", workspace={"kind": "clone", "repository": str(repository), "branch": "work"})
    agent.end("completed")
    place = agent.view()["run"]["workspace"]
    assert "error" not in place
    assert git(repository, "show", "work:a.txt") == "one\ntwo\n"
    assert git(repository, "rev-parse", "work").strip() == place["commit"]


def test_what_git_refuses_to_commit_is_in_the_patch(agent: Agent, repository: Path) -> None:
    agent.run(
        'echo two >> a.txt; echo new > b.txt; touch "$(git rev-parse --absolute-git-dir)/index.lock"; echo done',
        workspace={"kind": "worktree", "repository": str(repository)},
    )
    agent.end("completed")
    place = agent.view()["run"]["workspace"]
    assert "git refused" in place["error"]
    patch = Path(place["patch"]).read_text()
    assert "+two" in patch
    assert "+new" in patch
    assert (Path(place["path"]) / "b.txt").read_text() == "new\n"


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("dirty", "changes that are in no commit (a.txt)"),
        ("merge", "a merge or rebase is not finished"),
        ("base", 'base "nosuch": no such commit'),
        ("none", "expected a git repository"),
        ("gone", "does not exist"),
        ("git", "git is needed for a worktree"),
    ],
)
def test_a_repository_that_cannot_be_worked_in_is_said_in_a_sentence(
    agent: Agent, repository: Path, tmp_path: Path, what: str, said: str
) -> None:
    place: dict[str, Any] = {"kind": "worktree", "repository": str(repository)}
    fields: dict[str, Any] = {}
    if what == "dirty":
        (repository / "a.txt").write_text("changed\n")
    elif what == "merge":
        (repository / ".git" / "MERGE_HEAD").write_text("0" * 40)
    elif what == "base":
        place["base"] = "nosuch"
    elif what == "none":
        (tmp_path / "plain").mkdir()
        place["repository"] = str(tmp_path / "plain")
    elif what == "gone":
        place["repository"] = str(tmp_path / "gone")
    else:
        fields["env"] = {"PATH": "/nonexistent"}
    agent.run("echo never", workspace=place, **fields)
    run = agent.end("failed")
    assert said in run["reason"]
    assert agent.iterations() == []


def test_changes_in_no_commit_do_not_matter_if_a_base_is_named(agent: Agent, repository: Path) -> None:
    (repository / "a.txt").write_text("changed\n")
    agent.run("cat a.txt", workspace={"kind": "worktree", "repository": str(repository), "base": "main"})
    agent.end("completed")
    assert agent.iterations()[0]["result"] == "one"


def test_the_worktrees_of_earlier_runs_go_when_all_is_in_a_branch(agent: Agent, repository: Path) -> None:
    agent.run("echo two >> a.txt", workspace={"kind": "worktree", "repository": str(repository)})
    agent.end("completed")
    first = agent.view()["run"]["workspace"]
    agent.call("start", again=True)
    agent.end("completed")
    second = agent.view()["run"]["workspace"]
    assert second["branch"] != first["branch"]
    assert not Path(first["path"]).exists()
    assert git(repository, "show", f"{first['branch']}:a.txt") == "one\ntwo\n"


def test_a_clone_stays_while_it_has_commits_that_nobody_else_has(agent: Agent, repository: Path) -> None:
    commit = "git -c user.name=a -c user.email=a@b commit -q --allow-empty -m Aside"
    aside = f"git checkout -q -b aside; {commit}; git checkout -q -"
    command = f"if [ $FLEET_ITERATION_NUMBER = 1 ]; then {aside}; fi; echo two >> a.txt"
    agent.run(command, workspace={"kind": "clone", "repository": str(repository)})
    places = []
    for _number in range(3):
        agent.end("completed")
        places.append(Path(agent.view()["run"]["workspace"]["path"]))
        agent.call("start", again=True)
    agent.end("completed")
    assert [path.is_dir() for path in places] == [True, False, False]
    assert "Aside" in git(places[0], "log", "--format=%s", "aside")


# Secrets


def test_secrets_reach_neither_store_nor_files_nor_logs_nor_arguments(agent: Agent, tmp_path: Path) -> None:
    secret = "hunter2-sesame-0815"
    (tmp_path / "secrets.env").write_text(f"API_TOKEN={secret}\n")
    program = tmp_path / "leak.py"
    program.write_text(
        "import json, os, sys, time\n"
        "secret = os.environ['API_TOKEN']\n"
        "tell = lambda **data: print(json.dumps(data), flush=True)\n"
        "tell(type='session', session=secret)\n"
        "tell(type='text', text='the token is ' + secret)\n"
        "tell(type='tool_use', name='curl', input={'headers': ['auth ' + secret], secret: 1})\n"
        "tell(type='tool_result', text=secret)\n"
        "print('plain', secret, flush=True)\n"
        "time.sleep(0.3)\n"
        "tell(type='result', text='done with ' + secret)\n"
        "print('broken: ' + secret, file=sys.stderr)\n"
        "sys.exit(int(os.environ['FLEET_ITERATION_NUMBER']) % 2)\n"
    )
    agent.run(
        python(program),
        env_files=[str(tmp_path / "secrets.env")],
        pipeline=[{"loop": "work", "times": 1}],
        verification={"command": "echo verified $API_TOKEN; false"},
        limits={"iterations": 2},
    )
    wait_for("it works", agent.iterations)
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            assert secret.encode() not in path.read_bytes()
    run = agent.end("limited")
    assert "********" in "".join(row["content"] for row in agent.messages())
    assert "********" in agent.iterations()[1]["verification"]["output"]
    assert secret not in json.dumps([run, agent.iterations(), agent.messages()])
    assert not [line for line in agent.fleet.printed(f"agents/{agent.name}") if secret in line]
    database = sqlite3.connect(agent.fleet.folder / "agents.db")
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    found = [path for path in agent.fleet.folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
    assert found == []


# While it runs


def test_a_paused_agent_ends_its_iteration_and_begins_no_other(agent: Agent) -> None:
    agent.run("sleep 0.3; echo done", pipeline=[{"loop": "work"}])
    wait_for("it works", agent.iterations)
    agent.call("pause")
    agent.until("paused")
    count = len(agent.iterations())
    assert {row["state"] for row in agent.iterations()} == {"succeeded"}
    seconds = agent.view()["run"]["totals"]["seconds"]
    time.sleep(3)
    assert len(agent.iterations()) == count
    agent.call("resume")
    agent.until("running")
    wait_for("it goes on", lambda: len(agent.iterations()) > count + 1)
    assert agent.view()["run"]["totals"]["seconds"] < seconds + 3


def test_an_interrupted_iteration_ends_and_the_next_one_says_so(agent: Agent) -> None:
    agent.run(
        "cat; echo; if [ $FLEET_ITERATION_NUMBER = 1 ]; then exec sleep 100; fi",
        pipeline=[{"loop": "work", "times": 1}],
    )
    wait_for("it works", lambda: agent.messages("text"))
    agent.call("interrupt")
    agent.end("completed")
    first, second = agent.iterations()
    assert (first["state"], first["reason"]) == ("interrupted", "interrupted")
    assert second["attempt_of"] == first["id"]
    assert second["result"].startswith("[The previous attempt at this was interrupted.")
    assert not alive(first["pid"])


def test_a_stopped_run_can_go_on(agent: Agent) -> None:
    agent.run(
        "cat; echo; if [ $FLEET_ITERATION_NUMBER = 2 ]; then exec sleep 100; fi",
        pipeline=[{"loop": "work", "times": 2}],
    )
    wait_for("the second iteration", lambda: len(agent.messages("text")) >= 2)
    agent.call("stop", timeout=20)
    run = agent.end("stopped")
    assert run["reason"] == "stopped on request"
    assert [(row["state"], row["reason"]) for row in agent.iterations()] == [
        ("succeeded", ""), ("interrupted", "stopped"),
    ]  # fmt: skip
    agent.call("start", continue_run=True)
    again = agent.end("completed")
    assert again["id"] == run["id"]
    assert [row["attempt_of"] for row in agent.iterations()] == [None, None, agent.iterations()[1]["id"]]


def test_an_edited_method_applies_from_the_next_iteration(agent: Agent) -> None:
    agent.run("cat; sleep 0.2", pipeline=[{"loop": "work"}])
    wait_for("it works", agent.iterations)
    agent.fleet.call("agents.edit", name=agent.name, method="work", body="Do it better.", base_revision=1)
    wait_for("the new text", lambda: [row for row in agent.iterations() if row["result"] == "Do it better."])
    assert {(row["revision"], row["result"]) for row in agent.iterations() if row["state"] == "succeeded"} == {
        (1, "Do the work."), (2, "Do it better."),
    }  # fmt: skip
    assert agent.view()["run"]["revision"] == 2


def test_a_step_that_an_edit_takes_away_ends_the_run(agent: Agent) -> None:
    agent.run("sleep 0.2; echo done", pipeline=[{"loop": "work"}])
    wait_for("it works", agent.iterations)
    agent.run("sleep 0.2; echo done", pipeline=[{"loop": "work", "label": "other"}], state="present")
    run = agent.end("failed")
    assert run["reason"] == 'step "work" is no longer in the pipeline'


# One process for one run


def run_process(agent: Agent, first: str = "pass") -> subprocess.CompletedProcess[str]:
    """Run another process of the agent, past fleetd."""
    code = f"import sys; from autovibe_fleet.agents import run; {first}; sys.exit(run.main([{agent.name!r}]))"
    environ = {**os.environ, "FLEET_STATE_DIR": str(agent.fleet.folder)}
    return subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=False)


def test_a_second_process_for_one_agent_is_refused(agent: Agent) -> None:
    agent.run("sleep 100")
    wait_for("it works", agent.iterations)
    done = run_process(agent, "run._PATIENCE = 0.2")
    assert done.returncode == 4
    assert f"is run by another process already, pid {agent.view()['pid']}" in done.stderr
    assert len(agent.iterations()) == 1


def test_a_process_that_is_started_after_the_end_does_nothing_twice(agent: Agent) -> None:
    agent.run("echo done")
    agent.end("completed")
    wait_for("its process ends", lambda: not agent.view()["pid"])
    done = run_process(agent)
    assert (done.returncode, done.stderr) == (0, "")
    assert "there is no run to go on with" in done.stdout
    assert len(agent.iterations()) == 1


def test_a_process_that_is_asked_to_end_leaves_a_run_that_goes_on(agent: Agent) -> None:
    agent.run("cat; echo; if [ $FLEET_ITERATION_NUMBER = 1 ]; then exec sleep 100; fi")
    wait_for("it works", lambda: agent.messages("text"))
    os.kill(agent.view()["pid"], signal.SIGTERM)
    run = agent.end("completed")
    first, second = agent.iterations()
    assert (first["state"], first["reason"], second["attempt_of"]) == ("interrupted", "stopped", first["id"])
    assert run["totals"]["iterations"] == 2


def test_the_process_of_a_run_is_small(agent: Agent) -> None:
    agent.run("sleep 100")
    wait_for("it works", agent.iterations)
    status = Path(f"/proc/{agent.view()['pid']}/status").read_text()
    (kilobytes,) = re.findall(r"VmRSS:\s+(\d+)", status)
    assert int(kilobytes) < 40_000
