# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands on processes, on a real fleetd."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from autovibe_fleet.cli.help import PROCESS

from .conftest import PYTHON, SERVER, Fleet, until


def test_a_command_after_dashes_runs_in_this_folder_with_a_claimed_port(host: Fleet) -> None:
    folder = host.folder / "adhoc"
    folder.mkdir()
    (folder / "here.txt").write_text("found")
    code = "import os, sys, time; print(os.getcwd(), sys.argv[1:], flush=True); time.sleep(600)"
    result = host.ok("start", "adhoc", "--", PYTHON, "-c", code, "%tcpport", "two words", cwd=folder)
    process = host.process("adhoc")
    port = process["resources"]["tcpport"]
    assert result.out == f"Started adhoc (pid {process['pid']}, tcpport={port})\n"
    assert os.readlink(f"/proc/{process['pid']}/cwd") == str(folder)
    assert Path(f"/proc/{process['pid']}/cmdline").read_text().split("\0")[3:5] == [port, "two words"]


def test_one_word_after_dashes_is_a_command_line(host: Fleet) -> None:
    host.ok("start", "line", "--", SERVER)
    process = host.process("line")
    assert process["command"].endswith(f"http.server --bind 127.0.0.1 {process['resources']['tcpport']}")


def test_shell_operators_without_a_shell_are_noticed(host: Fleet) -> None:
    result = host("start", "pipes", "--", "sleep 600 | cat")
    assert "note: | & ; < > are plain text without a shell" in result.err
    result = host.ok("start", "pipes", "--set", "shell=true", "--", "sleep 600 | cat")
    assert "note" not in result.err
    assert host.process("pipes")["command"] == "/bin/sh -c 'sleep 600 | cat'"
    assert " sleep 600 | cat\n" in host.ok("ps", "pipes").out
    assert "note" not in host.ok("start", "quoted", "--", f"{PYTHON} -c 'import time; time.sleep(600)'").err


def test_a_template_takes_variables_and_a_bare_one_is_true(host: Fleet, tmp_path: Path) -> None:
    template = tmp_path / "echo.json"
    code = "import sys, time; time.sleep(600)"
    template.write_text(
        f'{{"id": "echo", "command": "{PYTHON} -c \'{code}\' \\"${{greeting}}\\" ${{debug}} %tcpport", '
        '"resources": ["tcpport"], "vars": {"greeting": "hello", "debug": "false"}}'
    )
    host.ok("template", "add", str(template))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    assert 'template "echo": expected TEMPLATE NAME' in host("start", "echo").err
    assert "found echo echo1 80" in host("start", "echo", "echo1", "--tcpport", "80").err
    host.ok("start", "echo", "echo1", f"--tcpport={port}", "--greeting=good morning", "--debug")
    words = Path(f"/proc/{host.process('echo1')['pid']}/cmdline").read_text().split("\0")
    assert words[-4:-1] == ["good morning", "true", port]


def test_starting_again_changes_nothing_and_another_declaration_restarts(host: Fleet) -> None:
    host.ok("start", "again", "--", "sleep", "600")
    pid = host.process("again")["pid"]
    assert host.ok("start", "again").out == f"again is running already (pid {pid})\n"
    assert host.json("start", "again", "--", "sleep", "600")["change"]["actions"] == []
    answer = host.json("start", "again", "--", "sleep", "601")
    assert answer["change"]["actions"] == ["update process again", "restart process again"]
    assert answer["processes"][0]["pid"] != pid


def test_restart_keeps_the_port_and_stop_gives_it_back(host: Fleet) -> None:
    host.ok("start", "cycle", "--", SERVER)
    before = host.process("cycle")
    assert host.ok("restart", "cycle").out.startswith("Restarted cycle (pid ")
    after = host.process("cycle")
    assert after["pid"] != before["pid"]
    assert after["resources"] == before["resources"]
    assert host.ok("stop", "cycle").out == "Stopped cycle\n"
    assert host.json("resources", "list", "--owner", "cycle") == {"resources": []}
    assert host.ok("stop", "cycle").out == "cycle is stopped already\n"
    assert host.ok("delete", "cycle").out == "Deleted cycle\n"
    assert host("inspect", "cycle").code == 3


def test_several_processes_are_stopped_and_started_in_one_call(host: Fleet) -> None:
    for name in ("many1", "many2"):
        host.ok("start", name, "--", "sleep", "600")
    assert host.ok("stop", "many1", "many2").out == "Stopped many1\nStopped many2\n"
    assert [line.split(" (")[0] for line in host.ok("start", "many1", "many2").out.splitlines()] == [
        "Started many1", "Started many2",
    ]  # fmt: skip


def test_fields_are_set_by_name(host: Fleet) -> None:
    code = "import os, time; print(os.environ['MODE'], flush=True); time.sleep(600)"
    host.ok(
        *("start", "fields", "--set", "env.MODE=dev", "--set", "restart=never", "--set", "stop_timeout=2s"),
        *("--set", 'resources=["tcpport", {"type": "tcpport", "name": "admin"}]', "--", PYTHON, "-c", code),
    )
    answer = host.json("inspect", "fields")
    assert answer["declaration"]["env"] == {"MODE": "dev"}
    assert answer["declaration"]["restart"]["policy"] == "never"
    assert answer["declaration"]["stop_timeout"] == 2.0
    assert set(answer["process"]["resources"]) == {"tcpport", "admin"}


def test_secrets_are_hidden_when_a_process_is_inspected(host: Fleet) -> None:
    host.ok("start", "secret", "--set", "env.API_TOKEN=abc123", "--", "sleep", "600")
    assert "abc123" not in host.ok("inspect", "secret").out + host.ok("inspect", "secret", "--json").out


def test_ps_lists_names_whole_and_json_has_every_field(host: Fleet) -> None:
    name = "a-name-of-sixty-three-letters-is-the-longest-that-is-allowed-xx"
    host.ok("start", name, "--", "sleep", "600")
    lines = host.ok("ps").out.splitlines()
    assert lines[0].split() == ["NAME", "STATUS", "PID", "UPTIME", "RESTARTS", "MEMORY", "RESOURCES", "COMMAND"]
    assert any(line.startswith(f"{name}  running") for line in lines)
    assert "\033" not in "".join(lines)
    assert set(host.process(name)) == set(PROCESS)
    host.ok("stop", name)
    assert name not in host.ok("ps", "--running").out


FOREVER = ("--", "sleep", "600")


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("start", "nobody"), 3, 'process "nobody": not declared'),
        (("start", "no-template", "x"), 3, 'template "no-template": not defined'),
        (("start", "x y", "--", "sleep", "1"), 2, "expected NAME or ENVIRONMENT/NAME"),
        (("start", "x", "--"), 2, "expected a command after --"),
        (("start", "x", "--key=value"), 2, '"key" needs a template'),
        (("start", "a", "b", "c"), 3, 'process "a": not declared'),
        (("start", "--key=value"), 2, "expected NAME, found only options"),
        (("start", "t", "x", "-k"), 2, 'expected --KEY=VALUE, found "-k"'),
        (("start", "x", "--set", "restrat=always", *FOREVER), 2, '"restrat", did you mean "restart"?'),
        (("start", "x", "--set", "restart=often", *FOREVER), 2, 'on-failure, always, found "often"'),
        (("start", "x", "--", "/no/such/program"), 6, "was not found"),
        (("start", "x", "--set", "restart=never", "--", "false"), 6, "ended with exit code 1; see `fleet logs x`"),
        (("start", "x", "--timeout=1s", "--set", "readiness=tcp://127.0.0.1:1", *FOREVER), 5, "not up in time"),
        (("start", "x", "--timeout=soon", "--", "true"), 2, "--timeout: expected a duration"),
        (("stop", "nobody"), 3, "not declared"),
        (("discover",), 2, "expected --pid or --port"),
        (("discover", "--port", "1"), 3, "port 1: nothing"),
        (("kill-all",), 2, "confirm with --yes"),
        (("ps", "--nonsense"), 2, "no such option: --nonsense; see `fleet ps --help`"),
        (("strat",), 2, "no such command 'strat'"),
        (("run-action", "nobody"), 3, "not declared"),
    ],
)  # fmt: skip
def test_an_error_is_one_sentence_and_an_exit_code(host: Fleet, words: tuple[str, ...], code: int, text: str) -> None:
    result = host(*words)
    assert (result.code, result.out) == (code, "")
    assert result.err.startswith("fleet: ")
    assert text in result.err
    assert result.err.count("\n") == 1
    if words[:2] == ("start", "x"):
        host("delete", "x")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("stop", "nobody"), {"code": "not_found", "message": 'process "nobody": not declared', "exit_code": 3}),
        (("stop",), {"code": "usage", "exit_code": 2}),
        (("resource-type", "show", "none"), {"code": "not_found", "exit_code": 3}),
    ],
)
def test_errors_are_json_on_stderr_when_that_is_asked(
    host: Fleet, words: tuple[str, ...], error: dict[str, object]
) -> None:
    for line in ((*words, "--json"), ("--json", *words)):
        result = host(*line)
        assert (result.code, result.out) == (error["exit_code"], "")
        assert error.items() <= result.error.items()


def test_a_held_port_is_a_conflict_that_names_the_holder(host: Fleet) -> None:
    host.ok("start", "holder", "--", SERVER)
    port = host.process("holder")["resources"]["tcpport"]
    result = host("start", "wants", f"--tcpport={port}", "--", SERVER)
    assert result.code == 4
    assert f'resource "tcpport:{port}": asked by "wants", held by "holder"' in result.err
    assert "wants" not in host.ok("resources", "list").out


def test_a_running_process_is_found_by_its_port_and_adopted(host: Fleet) -> None:
    with subprocess.Popen([PYTHON, "-m", "http.server", "--bind", "127.0.0.1", "0"], stdout=-1, text=True) as child:
        try:
            assert child.stdout is not None
            port = child.stdout.readline().split("port ")[1].split()[0]
            (found,) = host.json("discover", "--port", port)["found"]
            assert found["pid"] == child.pid
            assert host.ok("discover", "--pid", str(child.pid)).out.splitlines()[1].split()[0] == str(child.pid)
            adopted = host.ok("discover", "--port", port, "--adopt", "taken")
            assert adopted.out.startswith(f"Adopted pid {child.pid} as taken: ")
            process = host.process("taken")
            assert (process["pid"], process["adopted"], process["resources"]["tcpport"]) == (child.pid, True, port)
            assert host("discover", "--port", port, "--adopt", "twice").code == 4
            host.ok("stop", "taken")
        finally:
            child.kill()
    assert child.returncode == -signal.SIGTERM


def test_an_action_prints_and_returns_its_exit_code(host: Fleet, tmp_path: Path) -> None:
    template = tmp_path / "acting.yaml"
    template.write_text("command: sleep ${time}\nvars: {time: '600'}\naction: echo about ${name}; exit 3\n")
    host.ok("template", "add", str(template))
    host.ok("start", "acting", "actor")
    result = host("run-action", "actor")
    assert (result.code, result.out) == (3, "about actor\n")
    assert host("run-action", "actor", "--json").data["exit_code"] == 3


def test_a_killed_process_comes_back(host: Fleet) -> None:
    host.ok("start", "phoenix", "--", "sleep", "600")
    pid = host.process("phoenix")["pid"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: host.process("phoenix")["restarts"] == 1 and host.process("phoenix")["status"] == "running")
    assert host.process("phoenix")["pid"] not in (0, pid)


def test_kill_all_stops_every_process(fleet: Fleet) -> None:
    folder = fleet.project('[environment]\nname = "env"\n[processes.one]\ncommand = "sleep 600"\n')
    fleet.ok("activate", str(folder))
    fleet.ok("start", "two", "--", "sleep", "600")
    assert fleet.ok("kill-all", "--yes").out == "Stopped env/one\nStopped two\n"
    assert fleet.ok("kill-all", "--yes").out == "Nothing was running.\n"
    assert {process["status"] for process in fleet.json("ps")["processes"]} == {"stopped"}


def test_what_was_recorded_is_shown_while_fleetd_is_down(fleet: Fleet) -> None:
    assert fleet.ok("ps").out.startswith("No processes.")
    assert not (fleet.state / "fleetd.sock").exists()
    fleet.ok("start", "left", "--", "sleep", "600")
    before = fleet.process("left")
    fleet.ok("daemon", "stop")
    result = fleet.ok("ps", "--json")
    (process,) = result.data["processes"]
    assert set(process) == set(PROCESS)
    assert (process["status"], process["pid"]) == ("running", before["pid"])
    os.kill(before["pid"], signal.SIGKILL)
    until(lambda: fleet.process("left")["status"] == "stopped")
    assert "fleetd is not running" in fleet.ok("ps").err
    assert fleet("ps", "nobody").code == 3
    assert fleet.process("left")["status"] == "stopped"


def test_nobody_reading_is_no_error(host: Fleet) -> None:
    done = subprocess.run(
        f"{sys.executable} -m autovibe_fleet.cli.main help | head -n 1; exit ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        env=host.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 141)
    assert done.stderr == ""
