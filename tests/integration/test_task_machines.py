# SPDX-License-Identifier: GPL-3.0-or-later
"""Task lists on another machine: a real sshd, behind which there is nothing but Python 3.9."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.ssh_server import SshServer, ssh_server
from tests.requirements import REPOSITORY

from autovibe_fleet.tasks import bundle
from autovibe_fleet.tasks.machine import Machine
from fleet_core.errors import InvalidInput, Unavailable
from fleet_node import procfs

FLEET = str(Path(sys.executable).with_name("fleet"))


def oldest_python() -> str:
    """The oldest Python that runs here, 3.9 if there is one."""
    script = str(REPOSITORY / ".ci" / "python")
    for version in ("3.9", "3.10", "3.11"):
        done = subprocess.run([script, version, version], capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout.strip():
            return done.stdout.strip()
    return "python3"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    with ssh_server(tmp_path_factory.mktemp("sshd"), oldest_python()) as found:
        yield found


@pytest.fixture
def machine(server: SshServer) -> Machine:
    return Machine(server.name, ("-F", str(server.config)))


@pytest.fixture
def folder(server: SshServer, tmp_path: Path) -> Path:
    """A project's folder on the machine."""
    path = server.home / f"work-{tmp_path.name}"
    path.mkdir()
    return path


def request(folder: Path, *tasks: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"list": {"name": folder.name, "workdir": str(folder), "tasks": list(tasks)}, **more}


def fleet(server: SshServer, tmp_path: Path, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [FLEET, "task", *words, "--machine", server.name, "--ssh-config", str(server.config)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        timeout=120,
        **options,
    )


def finish(machine: Machine, run: str, position: int = 0) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    *events, last = machine.follow(run, position)
    assert last["event"] == "end"
    return events, last["view"]


def test_the_program_is_the_same_for_the_same_sources_and_holds_nothing_but_ours() -> None:
    first = bundle.build()
    bundle.build.cache_clear()
    assert bundle.build() == first
    code = "import sys; sys.path.insert(0, sys.argv[1]); import fleet_node.task_host; print(*sys.modules)"
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".pyz") as file:
        file.write(first)
        file.flush()
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", code, file.name], capture_output=True, text=True, check=True
        )
    assert "fleet_node.task_runs" in done.stdout.split()
    assert "yaml" not in done.stdout.split()


def test_a_list_runs_there_and_its_artifacts_come_back(server: SshServer, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "build.json"
    tasks = [
        {"name": "version", "run": "python3 -c 'import sys; print(sys.version_info[:2])'"},
        {"name": "build", "run": "mkdir -p dist/sub; echo wheel >dist/sub/a.whl", "artifacts": ["dist"]},
        {"name": "test", "run": "echo $HI; cat dist/sub/a.whl", "needs": ["build"], "env": {"HI": "hi there"}},
    ]
    file.write_text(json.dumps({"version": 1, "workdir": str(folder), "tasks": tasks}))
    done = fleet(server, tmp_path, "run", str(file), "--artifacts", "got", "--json")
    assert done.returncode == 0, done.stderr
    view = json.loads(done.stdout)
    assert view["state"] == "succeeded"
    assert {item["name"]: item["stdout"] for item in view["tasks"]}["test"] == "hi there\nwheel"
    assert (tmp_path / "got" / "dist" / "sub" / "a.whl").read_text() == "wheel\n"
    assert not (tmp_path / "dist").exists()
    programs = list((server.home / "cache" / "autovibe").glob("*.pyz"))
    assert [item.name for item in programs] == [bundle.name()]
    sent = programs[0].stat().st_mtime_ns

    again = fleet(server, tmp_path, "run", str(file))
    assert again.returncode == 0, again.stderr
    assert "test: succeeded" in again.stderr
    assert programs[0].stat().st_mtime_ns == sent  # once is enough
    listed = fleet(server, tmp_path, "list", "--json")
    assert [run["state"] for run in json.loads(listed.stdout)["runs"]][:2] == ["succeeded", "succeeded"]
    output = fleet(server, tmp_path, "output", "last", "test")
    assert output.stdout == "hi there\nwheel\n"


def test_agent_executor_keeps_the_call_of_the_original(server: SshServer, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "python-tasks.json"
    file.write_text(json.dumps(request(folder, {"name": "hello", "run": "echo hello"})["list"]))
    program = str(Path(sys.executable).with_name("agent_executor"))
    done = subprocess.run(
        [program, server.name, str(file), "--ssh-config", str(server.config)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "hello: succeeded" in done.stderr
    assert "1 succeeded" in done.stdout
    bad = subprocess.run([program, server.name], capture_output=True, text=True, check=False)
    assert bad.returncode == 2
    assert bad.stderr.startswith("usage: agent_executor DEV-MACHINE TASKS.json")


def test_a_failure_there_is_a_sentence_here_and_resume_goes_on(server: SshServer, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "list.json"
    first = {"name": "first", "run": "echo x >>count"}
    second = {"name": "second", "run": "test -f ready", "needs": ["first"]}
    file.write_text(json.dumps(request(folder, first, second)["list"]))
    done = fleet(server, tmp_path, "run", str(file))
    assert done.returncode == 6
    assert 'task "second": exit code 1' in done.stderr
    (folder / "ready").touch()
    again = fleet(server, tmp_path, "run", str(file), "--resume")
    assert again.returncode == 0, again.stderr
    assert "first: done before" in again.stderr
    assert (folder / "count").read_text() == "x\n"


def test_a_lost_connection_ends_nothing_and_no_event_is_missing(
    machine: Machine, server: SshServer, folder: Path
) -> None:
    steps = "; ".join(f"echo step {number}; sleep 0.4" for number in range(10))
    run, position = machine.start(request(folder, {"name": "long", "run": steps}))
    cut: list[int] = []
    events = []
    view: dict[str, Any] = {}
    for event in machine.follow(run, position):
        events.append(event)
        if event["event"] == "end":
            view = event["view"]
        if event.get("text") == "step 2" and not cut:
            cut.append(server.cut_connections())
    assert cut == [1]
    assert [event["state"] for event in events if event["event"] == "connection"] == ["lost", "back"]
    assert view["state"] == "succeeded"
    assert [event["text"] for event in events if event["event"] == "output"] == [f"step {n}" for n in range(10)]


def test_a_run_goes_on_without_anybody_and_can_be_watched_later(machine: Machine, folder: Path) -> None:
    run, _position = machine.start(request(folder, {"name": "a", "run": "sleep 1; echo done"}))
    events, view = finish(machine, run)
    assert view["tasks"][0]["stdout"] == "done"
    assert events[0]["event"] == "run"
    assert finish(machine, run)[1] == view  # and again


def test_cancel_ends_the_tasks_there(machine: Machine, folder: Path) -> None:
    task = {"name": "a", "run": "echo $$ >pid; sleep 600 & sleep 600"}
    run, position = machine.start(request(folder, task, {"name": "b", "run": "true", "needs": ["a"]}))
    deadline = time.monotonic() + 10
    while not (folder / "pid").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    answer = machine.cancel(run)
    assert answer["cancelled"]
    assert answer["view"]["state"] == "interrupted"
    assert [item["state"] for item in answer["view"]["tasks"]] == ["interrupted", "skipped"]
    assert procfs.group_members(int((folder / "pid").read_text())) == []
    assert not machine.cancel(run)["cancelled"]
    assert finish(machine, run, position)[1]["state"] == "interrupted"


def test_ctrl_c_ends_the_run_there(server: SshServer, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "list.json"
    file.write_text(json.dumps(request(folder, {"name": "a", "run": "echo $$ >pid; sleep 600"})["list"]))
    child = subprocess.Popen(
        [FLEET, "task", "run", str(file), "-m", server.name, "--ssh-config", str(server.config)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 20
    while not (folder / "pid").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 130, err
    assert "1 interrupted" in out
    assert procfs.group_members(int((folder / "pid").read_text())) == []


def test_secrets_travel_neither_in_arguments_nor_into_files(
    machine: Machine, server: SshServer, folder: Path, tmp_path: Path
) -> None:
    secret = "correct-horse-battery"
    data = request(folder, {"name": "use", "run": 'echo "it is $API_TOKEN" >seen; echo "it is $API_TOKEN"'})
    data["list"]["pass_env"] = ["API_TOKEN"]
    seen: list[str] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    seen.append(path.read_bytes().decode(errors="replace"))
                except OSError:
                    continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run, _position = machine.start({**data, "environ": {"API_TOKEN": secret}})
        view = finish(machine, run)[1]
    finally:
        stop.set()
        watcher.join()
    assert (folder / "seen").read_text() == f"it is {secret}\n"
    assert view["tasks"][0]["stdout"] == "it is ********"
    assert not [line for line in seen if secret in line]
    for base, _folders, names in os.walk(server.home / "state"):
        for name in names:
            assert secret.encode() not in Path(base, name).read_bytes(), name


def test_what_is_wrong_there_is_said_here(machine: Machine, server: SshServer, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"dev-machine: task list: workdir: expected a folder, found none at /no"):
        machine.start({"list": {"workdir": "/no/such", "tasks": [{"name": "a", "run": "true"}]}})
    with pytest.raises(Unavailable, match=r'machine "nosuch\.invalid": cannot be reached'):
        Machine("nosuch.invalid", ("-F", str(server.config))).view("1")
    with pytest.raises(InvalidInput, match='machine "-oProxyCommand=x": expected HOST'):
        Machine("-oProxyCommand=x")
    file = tmp_path / "wrong.yml"
    file.write_text("tasks: [{name: a, rum: x}]")
    done = fleet(server, tmp_path, "run", str(file))
    assert done.returncode == 2
    assert done.stderr == f'fleet: {file}: task "a": unknown key "rum", did you mean "run"?\n'


def test_a_machine_without_a_new_python_is_named(tmp_path: Path) -> None:
    with ssh_server(tmp_path, "/bin/false") as server:
        for minor in range(9, 15):
            (server.home / "bin" / f"python3.{minor}").symlink_to("/bin/false")
        with pytest.raises(Unavailable, match=r'machine "dev-machine": expected Python 3\.9 or newer, found none'):
            Machine(server.name, ("-F", str(server.config))).runs()


def test_check_shows_the_plan_of_the_machine(server: SshServer, folder: Path, tmp_path: Path) -> None:
    (folder / "venv").mkdir()
    file = tmp_path / "list.yml"
    file.write_text(f"workdir: {folder}\ntasks: [{{name: a, run: exit 1, creates: venv}}, {{name: b, run: exit 1}}]")
    done = fleet(server, tmp_path, "run", str(file), "--check", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["pending"] == ["b"]
