# SPDX-License-Identifier: GPL-3.0-or-later
"""Agents on the command line: declared, run, watched, steered, changed; with the runner `command`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from autovibe_fleet.cli.help import AGENT, AGENT_RUN, INJECTION, ITERATION, MESSAGE

from .conftest import PROGRAM, Fleet, until

WORKER = """\
name: {name}
runner: command
command: {command}
methods:
  work: |
    Work on it.
    Carefully.
pipeline:
  - {{loop: work, times: {times}}}
backoff: {{delay: 0.1s, max_delay: 0.2s}}
"""


def declare(host: Fleet, name: str, command: str = "echo done", times: int = 2, more: str = "") -> Path:
    """Write the file of an agent and apply it."""
    path = host.folder / f"{name}.yml"
    path.write_text(WORKER.format(name=name, command=json.dumps(command), times=times) + more)
    host.ok("apply", str(path))
    return path


def view(host: Fleet, name: str) -> dict[str, Any]:
    found: dict[str, Any] = host.json("agents", "show", name)["agent"]
    return found


def names(host: Fleet) -> set[str]:
    return {item["name"] for item in host.json("agents")["agents"]}


# Apply


def test_apply_creates_updates_and_leaves_alone(host: Fleet) -> None:
    file = host.folder / "a.yml"
    documents = [{"name": f"apply-{key}", "runner": "codex", "methods": {"m": "x"}} for key in "ab"]
    file.write_text(yaml.safe_dump_all(documents))
    first = host.ok("apply", str(file))
    assert first.out.splitlines() == [
        "2 agent(s) applied: 2 created, 0 updated, 0 unchanged",
        "  + apply-a (created)",
        "  + apply-b (created)",
    ]
    assert "Run with `fleet run apply-a apply-b`." in first.err
    documents[1]["methods"] = {"m": "y"}
    file.write_text(yaml.safe_dump_all(documents))
    planned = host.ok("apply", str(file), "--dry-run", "--diff")
    assert planned.out.splitlines()[0] == "2 agent(s) would be applied: 0 created, 1 updated, 1 unchanged"
    assert "    -  m: x" in planned.out.splitlines()
    assert host.json("revisions", "apply-b")["current"] == 1
    answer = host.json("apply", str(file))
    assert answer["summary"]["updated"] == ["apply-b"]
    assert answer["dry_run"] is False
    assert [item["state"] for item in answer["agents"]] == ["stopped", "stopped"]
    assert host.ok("apply", str(file)).out.startswith("2 agent(s) applied: 0 created, 0 updated, 2 unchanged\n")


def test_apply_is_all_or_nothing_over_all_files(host: Fleet) -> None:
    good = host.folder / "good.yml"
    good.write_text(WORKER.format(name="whole", command="x", times=1))
    bad = host.folder / "bad.p"
    bad.write_text("agent-half:\n\tloop(biuld)\nbuild:\n\tBuild.\n")
    result = host("apply", str(good), str(bad))
    assert result.code == 2
    assert result.err == f'fleet: {bad}:2:2: method "biuld": not defined, did you mean "build"?\n'
    assert not {"whole", "half"} & names(host)


def test_apply_reads_prompt_files_json_folders_and_standard_input(host: Fleet) -> None:
    folder = host.folder / "many"
    folder.mkdir()
    (folder / "common.p").write_text("; no agents here, so it is not for apply\nbuild:\n\tBuild.\n")
    (host.folder / "team.p").write_text("@many/common.p\nagent-team:\n\tloop(build)\n@concise\n")
    team = host.ok("apply", str(host.folder / "team.p"), "--set", "limits.cost=5", "--set", "model=opus")
    assert f"{host.folder / 'team.p'}:4: stands outside the agents of the file and is not used" in team.err
    shown = host.json("agents", "show", "team")
    assert shown["definition"]["limits"] == {"cost": 5}
    assert shown["definition"]["methods"] == {"build": "Build."}
    assert len(shown["agent"]["legacy_id"]) == 64
    (folder / "common.p").unlink()
    data = {"runner": "codex", "methods": {"m": "x"}}
    (folder / "one.json").write_text(json.dumps({"name": "in-json", **data}))
    (folder / "two.yaml").write_text(yaml.safe_dump({"agents": [{"name": "in-yaml", **data}]}))
    host.ok("apply", str(folder))
    host.ok("apply", "-", stdin=json.dumps([{"name": "from-stdin", **data}]))
    host.ok("apply", "-", stdin="agent-from-p:\n\tSay hello.\n")
    host.ok("apply", "-", stdin=yaml.safe_dump({"name": "from-yaml", **data}))
    assert {"in-json", "in-yaml", "from-stdin", "from-p", "from-yaml"} <= names(host)


BOMB = "a: &a [x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 8)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
WRONG = [
    ("x.yml", "name: a\nname: b\n", 'line 2, column 1: key "name" stands twice'),
    ("x.yml", "name: [a\n", "line 2, column 1: "),
    ("x.yml", BOMB, "expected at most 100000 values, aliases included"),
    ("x.yml", "name: &a [*a]\n", "expected at most 100000 values"),
    ("x.yml", "name: 2026-01-01\n", "found date datetime.date(2026, 1, 1); put it in quotes"),
    ("x.yml", "name: !!python/object:os.system x\n", "could not determine a constructor"),
    ("x.yml", "[" * 100000, "expected YAML that is less deep"),
    ("x.yml", "limits: " + "9" * 5000, "expected YAML: "),
    ("x.yml", "", "expected at least one agent, found none"),
    ("x.yml", "hello", "agents file: expected one definition or a list of them, found str 'hello'"),
    ("x.json", '{"name": "a", "name": "b"}', 'expected JSON: key "name" stands twice'),
    ("x.json", "[" * 100000, "expected JSON that is less deep"),
    ("x.json", "{", "expected JSON: "),
    ("x.p", "build:\n\tx\n", 'expected a definition "agent-NAME:", found none'),
    ("x.p", "agent-a:\n  x\n", "x.p:2:1: expected a tab at the beginning of a body's line, found a space"),
    ("x.p", "@no.p\n", "no.p: No such file or directory"),
    ("x.yml", b"\xff\xfe", "expected UTF-8 text"),
    ("x.yml", yaml.safe_dump([{"name": "a", "runner": "codex", "methods": {"m": "x"}}] * 2), 'agent "a": stands twice'),
]


@pytest.mark.parametrize(("name", "content", "message"), WRONG)
def test_a_wrong_file_is_one_sentence_that_names_it(
    host: Fleet, tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = names(host)
    result = host("apply", str(path))
    assert result.code == 2 if "no.p" not in message else result.code in (2, 3)
    assert message in result.err
    assert str(tmp_path) in result.err
    assert result.err.count("\n") == 1
    assert names(host) == before


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("apply", "nowhere.yml"), 3, "nowhere.yml: No such file or directory"),
        (("apply",), 2, "missing argument"),
        (("run", "nobody"), 3, 'agent "nobody": not known'),
        (("agents", "history", "errors", "-i", "9"), 3, 'agent "errors": has no iteration 9'),
        (
            ("agents", "history", "errors", "--step", "wrok"),
            3,
            'step "wrok": not in the pipeline, did you mean "work"?',
        ),
        (("agents", "statistics", "errors", "--run", "9999"), 3, 'agent "errors": has no run 9999'),
        (("message", "errors", " "), 2, "expected a message, found an empty text"),
        (("message", "errors", "x", "--iteration", "9"), 3, 'agent "errors": has no iteration 9'),
        (("pause", "errors"), 4, 'agent "errors": does not run'),
        (("resume", "errors"), 4, 'agent "errors": expected a paused one, found stopped; `fleet run errors` starts it'),
        (("interrupt", "errors"), 4, 'agent "errors": does not run'),
        (("run", "errors", "--continue"), 4, 'agent "errors": has no run to go on with'),
        (("run", "errors", "--continue", "--again"), 2, "expected a new run or the last one to go on, found both"),
        (("diff", "errors", "9"), 3, 'agent "errors": revision "9": expected 1, or the beginning of an id'),
        (("rollback", "errors", "0"), 3, 'revision "0": expected 1'),
        (("edit", "errors", "wrok", "--body-file", "-"), 3, 'method "wrok": not defined, did you mean "work"?'),
        (("edit", "errors", "work", "--body-file", "no.md"), 3, "no.md: No such file or directory"),
        (("edit", "errors", "work"), 2, "edit: expected a terminal, $EDITOR or --body-file"),
        (("edit", "errors", "--body-file", "-"), 2, "body: expected text"),
        (("stop", "error"), 3, 'process "error": not declared, did you mean "errors"?'),
        (("schema", "agents"), 3, 'schema "agents": expected agent or task-list or egress, did you mean "agent"?'),
        (("agents", "export", "--revision", "1"), 2, "export: --revision needs the name of one agent"),
    ],
)
def test_errors_are_sentences_with_their_exit_code(
    host: Fleet, words: tuple[str, ...], code: int, message: str
) -> None:
    if "errors" in words and "errors" not in names(host):
        declare(host, "errors")
    result = host(*words)
    assert (result.code, message in result.err) == (code, True), result.err
    shown = host(*words, "--json").error
    assert shown["exit_code"] == code


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("limit.cost=3", '--set: unknown field "limit", did you mean "limits"?'),
        ("name=x", '--set: unknown field "name"'),
        ("model", '--set: expected FIELD=VALUE, found "model"'),
        ("limits.cost=much", "limits: cost: expected a number"),
        ("env={", "--set: env: expected JSON"),
    ],
)
def test_settings_are_checked(host: Fleet, setting: str, message: str) -> None:
    result = host("apply", "-", "--set", setting, stdin="agent-never:\n\tx\n")
    assert (result.code, message in result.err) == (2, True), result.err


def test_settings_reach_every_agent(host: Fleet) -> None:
    host.ok(
        *("apply", "-", "--set", "runner=command", "--set", "command=echo $MODE", "--set", "env.MODE=dev"),
        *("--set", "options.arguments=-a,-b", "--set", "workspace.path=.", "--set", "limits.iterations=3"),
        stdin="- {name: set-a, runner: codex, methods: {m: x}, env: {KEPT: 1}}\n",
    )
    found = host.json("agents", "show", "set-a")["definition"]
    assert found["env"] == {"KEPT": "1", "MODE": "dev"}
    assert (found["runner"], found["options"]) == ("command", {"arguments": ["-a", "-b"]})
    assert found["workspace"] == {"path": str(host.folder)}


# Runs


def test_a_run_is_watched_to_its_end(host: Fleet) -> None:
    declare(host, "watched")
    result = host.ok("run", "watched")
    lines = result.out.splitlines()
    assert lines[0].startswith("--- iteration 1: work, ")
    assert lines[1] == "prompt: Work on it. (+1 lines)"
    assert lines.count("done") == 2
    assert any(line.startswith("iteration 2 succeeded: ") for line in lines)
    assert lines[-1].startswith("run ")
    assert " of watched is completed: 2 iterations, " in lines[-1]
    assert view(host, "watched")["state"] == "completed"
    table = host.ok("agents", "history", "watched").out.splitlines()
    assert table[0].split()[:5] == ["ITERATION", "RUN", "STEP", "STATE", "STARTED"]
    assert [line.split()[0] for line in table[1:]] == ["1", "2"]
    found = host.json("agents", "history", "watched", "--messages")["iterations"]
    assert [item["messages"][0]["type"] for item in found] == ["prompt", "prompt"]
    whole = host.ok("agents", "history", "watched", "-i", "2").out
    assert "prompt: Work on it.\n    Carefully.\n" in whole
    assert host.json("agents", "runs", "watched")["runs"][0]["state"] == "completed"
    counted = host.json("agents", "statistics", "watched")
    assert (counted["statistics"]["succeeded"], counted["steps"]["work"]["iterations"]) == (2, 2)
    assert host.ok("agents", "statistics", "watched").out.splitlines()[1].split()[:3] == ["work", "2", "2"]


def test_a_run_is_told_as_json_lines(host: Fleet) -> None:
    declare(host, "lines", times=1)
    rows = [json.loads(line) for line in host.ok("run", "lines", "--json").out.splitlines()]
    assert [row["kind"] for row in rows if row["kind"] != "message"] == ["iteration", "run"]
    assert [row["type"] for row in rows if row["kind"] == "message"][:2] == ["prompt", "text"]


def test_two_agents_are_watched_at_once(host: Fleet) -> None:
    declare(host, "both-a", times=1)
    declare(host, "both-b", times=1)
    lines = host.ok("run", "both-a", "agents/both-b").out.splitlines()
    assert {line.partition(" | ")[0] for line in lines} == {"both-a", "both-b"}
    assert sum("is completed" in line for line in lines) == 2


def test_the_exit_code_tells_how_a_run_ended(host: Fleet) -> None:
    declare(host, "fails", "echo no >&2; exit 3", more="circuit_breaker: {failures: 1, trips: 1, pause: 0.1s}\n")
    result = host("run", "fails")
    assert result.code == 6
    assert 'agent "fails": run ' in result.err
    assert "exit code 3" in result.err
    declare(host, "limited", times=0, more="limits: {iterations: 2}\n")
    assert host.ok("run", "limited").out.splitlines()[-1].count("ended at a limit") == 1
    declare(host, "incomplete", times=0, more="limits: {iterations: 2}\nverification: 'false'\n")
    result = host("run", "incomplete")
    assert (result.code, "ended before it was complete" in result.err) == (5, True)
    assert "verification failed with exit code 1" in result.out


def test_a_detached_run_is_found_again(host: Fleet) -> None:
    declare(host, "detached", "sleep 0.3; echo done", times=50)
    result = host.ok("run", "detached", "--detach")
    assert result.out.startswith("detached runs (run ")
    assert "`fleet agents history detached --follow`" in result.err
    assert host.ok("run", "detached", "-d").out.startswith("detached is running already")
    row = next(line for line in host.ok("agents").out.splitlines() if line.startswith("detached "))
    assert row.split()[1:4] == ["running", "command", "1"]
    assert "agents/detached" in host.ok("ps").out
    assert host.ok("stop", "detached").out == "Stopped agent detached\n"
    assert host.ok("stop", "agents/detached").out == "detached was not running\n"
    assert view(host, "detached")["state"] == "stopped"
    assert host.ok("run", "detached", "-d", "--continue").out.startswith("detached runs (run ")
    assert host.json("stop", "detached")["agents"][0]["state"] == "stopped"
    assert len(host.json("agents", "runs", "detached")["runs"]) == 1


def test_ctrl_c_stops_watching_and_nothing_else(host: Fleet) -> None:
    declare(host, "left", "sleep 0.2; echo done", times=200)
    for words in (("run", "left"), ("agents", "history", "left", "--follow")):
        watcher = subprocess.Popen(
            [PROGRAM, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=host.environ,
            cwd=host.folder,
        )
        assert watcher.stdout is not None
        while "succeeded" not in watcher.stdout.readline():
            assert watcher.poll() is None
        watcher.send_signal(signal.SIGINT)
        assert watcher.stderr is not None
        watcher.stdout.read()
        assert "Stopped watching; left goes on." in watcher.stderr.read()
        assert watcher.wait(20) == 130
        assert view(host, "left")["state"] == "running"
    host.ok("stop", "left")


def test_watching_goes_on_while_fleetd_is_replaced(host: Fleet) -> None:
    declare(host, "survivor", "sleep 0.4; echo done", times=6)
    watcher = subprocess.Popen(
        [PROGRAM, "run", "survivor"], stdout=subprocess.PIPE, text=True, env=host.environ, cwd=host.folder
    )
    assert watcher.stdout is not None
    assert watcher.stdout.readline().startswith("--- iteration 1")
    os.kill(host.json("daemon", "status")["pid"], signal.SIGKILL)
    time.sleep(0.5)
    host.ok("daemon", "start", "--driver", "native")
    out = watcher.stdout.read()
    assert watcher.wait(60) == 0
    assert [line for line in out.splitlines() if "succeeded" in line][-1].startswith("iteration 6 ")
    assert out.splitlines().count("done") == 6


# Steering


def test_pause_resume_interrupt(host: Fleet) -> None:
    declare(host, "steered", "sleep 0.5; echo done", times=100)
    host.ok("run", "steered", "--detach")
    assert host.ok("pause", "steered").out.startswith("steered pauses after its iteration;")
    until(lambda: view(host, "steered")["state"] == "paused")
    assert host.ok("resume", "steered").out == "steered goes on\n"
    until(lambda: any(row["state"] == "running" for row in host.json("agents", "history", "steered")["iterations"]))
    assert host.ok("interrupt", "steered").out == "Interrupted steered; it goes on with the next iteration\n"
    until(lambda: any(row["state"] == "interrupted" for row in host.json("agents", "history", "steered")["iterations"]))
    host.ok("stop", "steered")


def test_messages_are_queued_delivered_or_refused(host: Fleet) -> None:
    declare(host, "told", "cat; sleep 0.3", times=100)
    waiting = host.ok("message", "told", "before it runs")
    assert "to told is queued; it is stopped, and reads it when it runs again" in waiting.out
    host.ok("run", "told", "--detach")
    until(lambda: view(host, "told")["queued"] == 0)
    done = host.ok("message", "told", "-", "--wait", stdin="from a pipe\n")
    assert " to told is delivered in iteration " in done.out
    first = host.json("agents", "history", "told")["iterations"][0]
    assert first["state"] in ("succeeded", "running")
    until(lambda: len(host.json("agents", "history", "told")["iterations"]) > 2)
    refused = host("message", "told", "too late", "--iteration", "1")
    assert (refused.code, "was refused: iteration 1 has ended" in refused.err) == (4, True)
    row = host.json("message", "told", "for a step", "--step", "work")["injection"]
    assert (row["step"], row["state"]) == ("work", "queued")
    history = host.ok("agents", "history", "told", "--messages", "-n", "100").out
    assert "is delivered: before it runs" in history
    host.ok("stop", "told")


# Revisions


def test_revisions_are_listed_compared_and_rolled_back(host: Fleet) -> None:
    declare(host, "revised")
    assert host.ok("diff", "revised").out == "revised has one revision.\n"
    assert host.ok("edit", "revised", "--body-file", "-", stdin="Work differently.\n").out == (
        "revised is at revision 2 now, with a new work\n"
    )
    assert host.ok("edit", "revised", "work", "--body-file", "-", stdin="Work differently.").out.startswith(
        "revised is unchanged"
    )
    difference = host.ok("diff", "revised").out.splitlines()
    assert difference[:2] == ["--- revised revision 1", "+++ revised revision 2"]
    assert "+  work: Work differently." in difference
    assert host.json("diff", "revised", "1", "2")["lines"] == difference[2:]
    assert host.ok("rollback", "revised", "1").out == "revised is at revision 3 now, equal to revision 1\n"
    assert host.ok("rollback", "revised", "1").out.startswith("revised is unchanged: revision 3 is equal to revision 1")
    assert host.ok("diff", "revised", "1", "3").out == "Revisions 1 and 3 of revised are equal.\n"
    found = host.json("revisions", "revised")
    assert [row["origin"] for row in found["revisions"]] == ["apply", "edit", "rollback"]
    assert found["revisions"][0]["id"] == found["revisions"][2]["id"]
    prefix = found["revisions"][1]["id"][:8]
    assert host.json("diff", "revised", prefix)["from"] == 2
    lines = host.ok("revisions", "revised").out.splitlines()
    assert lines[1].split()[0] == "3"
    assert lines[1].endswith("  +3 -1  current")
    assert host.json("agents", "show", "revised", "--revision", "2")["definition"]["methods"]["work"] == (
        "Work differently."
    )


def test_a_prompt_is_edited_in_an_editor(host: Fleet, tmp_path: Path) -> None:
    declare(host, "written")
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nstat -c %a "$1" > "$0.mode"\nsed -i "s/Carefully/Boldly/" "$1"\n')
    editor.chmod(0o755)
    env = {"EDITOR": str(editor), "TMPDIR": str(tmp_path)}
    assert host.ok("edit", "written", env=env).out == "written is at revision 2 now, with a new work\n"
    assert (tmp_path / "editor.mode").read_text() == "600\n"
    assert host.ok("edit", "written", env=env).out == "written is unchanged\n"
    assert host("edit", "written", env={**env, "EDITOR": "false"}).code == 4
    assert host("edit", "written", env={**env, "EDITOR": "/no/such/editor"}).code == 7
    assert not list(tmp_path.glob("written-*"))
    editor.write_text('#!/bin/sh\n: > "$1"\n')
    refused = host("edit", "written", env=env)
    assert (refused.code, "your text is in" in refused.err) == (2, True)
    assert len(list(tmp_path.glob("written-*"))) == 1


def test_a_running_agent_takes_an_edit_with_its_next_iteration(host: Fleet) -> None:
    declare(host, "edited", "cat; sleep 0.2", times=100)
    host.ok("run", "edited", "--detach")
    assert (
        "its next iteration takes the new revision"
        in host.ok("edit", "edited", "--body-file", "-", stdin="A new body.").err
    )
    until(lambda: "A new body." in [row["result"] for row in host.json("agents", "history", "edited")["iterations"]])
    host.ok("stop", "edited")


# The rest


def test_what_is_exported_can_be_applied(host: Fleet, tmp_path: Path) -> None:
    declare(host, "exported", more="limits: {cost: 2.5, duration: 2h}\nenv: {MODE: 'yes'}\n")
    text = host.ok("agents", "export", "exported").out
    assert host.ok("apply", "-", stdin=text).out.splitlines()[1] == "  = exported (unchanged)"
    for name in ("all.yml", "all.json"):
        host.ok("agents", "export", "-o", str(tmp_path / name))
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
        assert " 0 created, 0 updated, " in host.ok("apply", str(tmp_path / name)).out
    assert host.json("agents", "export", "exported")["limits"] == {"duration": 7200, "cost": 2.5}


def test_deleting_asks_when_there_is_history(host: Fleet) -> None:
    declare(host, "gone", times=1)
    host.ok("run", "gone")
    refused = host("agents", "delete", "gone")
    assert (refused.code, "forgets the runs of gone; confirm with --yes" in refused.err) == (2, True)
    assert host.ok("agents", "delete", "gone", "--yes").out == "Deleted gone\n"
    assert "gone" not in names(host)
    declare(host, "gone")
    assert host.ok("agents", "delete", "gone").out == "Deleted gone\n"


def test_secrets_are_refused_and_urls_with_passwords_too(host: Fleet) -> None:
    result = host("apply", "-", stdin="{name: s, runner: codex, methods: {m: x}, env: {API_KEY: sk-secret-value}}")
    assert (result.code, "sk-secret-value" in result.err) == (2, False)
    assert 'env: "API_KEY" looks like a secret; put it into a file of env_files' in result.err


def test_what_is_recorded_is_shown_without_fleetd(fleet: Fleet) -> None:
    assert fleet.ok("agents").out == "No agents. Declare some with `fleet apply FILE`.\n"
    assert fleet.json("agents") == {"agents": []}
    assert not (fleet.state / "fleetd.sock").exists()
    declare(fleet, "kept", times=1)
    fleet.ok("run", "kept")
    fleet.ok("daemon", "stop")
    listed = fleet.ok("agents")
    assert "fleetd is not running; this is what was recorded last." in listed.err
    assert listed.out.splitlines()[1].split()[:2] == ["kept", "completed"]
    for words in (("show",), ("history",), ("runs",), ("statistics",), ("export",)):
        assert fleet.ok("agents", *words, "kept").out
    assert fleet.ok("revisions", "kept").out
    assert not (fleet.state / "fleetd.sock").exists()


def test_names_steps_methods_and_revisions_are_completed(host: Fleet) -> None:
    declare(host, "complete-me")

    def completed(line: str) -> list[str]:
        env = {"_FLEET_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
        return host(env=env).out.split()

    assert completed("fleet run complete-") == ["complete-me"]
    assert completed("fleet agents history complete-") == ["complete-me"]
    assert "complete-me" in completed("fleet stop complete-")
    assert completed("fleet edit complete-me w") == ["work"]
    assert completed("fleet rollback complete-me ") == ["1"]
    assert completed("fleet message complete-me --step w") == ["work"]
    assert completed("fleet schema ") == ["agent", "task-list", "egress"]


def test_the_help_names_every_key_of_json(host: Fleet) -> None:
    declare(host, "keys", times=1)
    host.ok("run", "keys")
    assert set(view(host, "keys")) == set(AGENT)
    assert set(host.json("agents", "runs", "keys")["runs"][0]) == set(AGENT_RUN)
    (iteration,) = host.json("agents", "history", "keys", "--messages")["iterations"]
    assert set(iteration) == {*ITERATION, "messages"}
    assert set(iteration["messages"][0]) == set(MESSAGE)
    assert set(host.json("message", "keys", "x")["injection"]) == set(INJECTION)


def test_schemas_are_printed(host: Fleet) -> None:
    for name in ("agent", "task-list", "egress"):
        schema = host.json("schema", name)
        jsonschema.Draft202012Validator.check_schema(schema)
        assert json.loads(host.ok("schema", name).out) == schema


def test_what_an_agent_prints_cannot_move_the_cursor(host: Fleet) -> None:
    declare(host, "escape", r"printf '\033[2Jhello\007\n'", times=1)
    out = host.ok("run", "escape").out
    assert "\x1b" not in out
    assert "hello" in out
    called = r"""printf '{"type": "tool_use", "name": "\\u001b[2J\\u009b\\ud800"}\n\033]52;c;x\007\n'"""
    once = "circuit_breaker: {failures: 1, trips: 0}\n"
    declare(host, "worse", rf"{called}; printf '\033[2Joops' >&2; exit 3", more=once)
    for words in (
        ("run", "worse"),
        ("agents",),
        ("agents", "history", "worse", "-m", "--full"),
        ("logs", "agents/worse"),
    ):
        for more in ((), ("--json",)):
            done = host(*words, *more)
            assert set(done.out + done.err).isdisjoint("\x1b\x07\x9b\ud800"), (words, done)
            assert "oops" in done.out + done.err or "-m" in words
