# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole projects under a real fleetd: the demo, imported ones, templates and global settings."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from .fleetd import Fleet, running, wait_for

DEMO = Path(__file__).resolve().parents[2] / "templates" / "environments" / "demo"


@pytest.fixture
def fleet(state_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with running(state_dir) as found:
        yield found


def activate(fleet: Fleet, folder: Path) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Activate; return the actions and the processes by name."""
    answer = fleet.call("environments.activate", path=str(folder), timeout=60)
    (environment,) = answer["environments"]
    return answer["change"]["actions"], {item["name"]: item for item in environment["processes"]}


def fetch(port: str, path: str, data: object = None) -> tuple[int, Any]:
    with closing(http.client.HTTPConnection("127.0.0.1", int(port), timeout=10)) as connection:
        connection.request("GET" if data is None else "POST", path, None if data is None else json.dumps(data))
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def init(folder: Path, *arguments: str) -> str:
    """Run `fleet init` in a folder and return what it wrote."""
    subprocess.run(
        [sys.executable, "-m", "autovibe_fleet.cli.main", "init", *arguments],
        cwd=folder,
        check=True,
        capture_output=True,
        env={**os.environ},
    )
    return (folder / ".runcept.toml").read_text()


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DEMO, tmp_path / "my demo"))


def test_the_demo_works_survives_kills_and_a_second_run_changes_nothing(fleet: Fleet, demo: Path) -> None:
    actions, up = activate(fleet, demo)
    assert actions
    assert up["migrate"]["completed"]
    assert all(up[name]["healthy"] for name in ("web", "worker", "proxy"))
    web, proxy = up["web"]["resources"]["tcpport"], up["proxy"]["resources"]["tcpport"]
    assert up["web"]["resources"]["data"] == str(demo / "data")
    assert f"127.0.0.1:{web}" in up["proxy"]["command"]
    status, made = fetch(proxy, "/jobs", {"title": "Water all plants"})
    assert status == 201
    wait_for("the job is done", lambda: fetch(proxy, f"/jobs/{made['id']}")[1]["status"] == "done")

    assert activate(fleet, demo)[0] == []

    for name in ("web", "worker", "proxy"):
        os.kill(up[name]["pid"], signal.SIGKILL)
    for name in ("web", "worker", "proxy"):
        again = fleet.until(f"demo/{name}", "running", restarts=1)
        assert again["resources"] == up[name]["resources"]
    assert fetch(proxy, f"/jobs/{made['id']}")[1]["status"] == "done"

    fleet.again()
    assert activate(fleet, demo)[0] == []
    fleet.call("environments.deactivate", path=str(demo), timeout=30)
    assert fleet.claims() == set()
    # What the application has stored is its own: it is there when the environment comes back.
    _actions, up = activate(fleet, demo)
    assert fetch(up["proxy"]["resources"]["tcpport"], f"/jobs/{made['id']}")[1]["status"] == "done"


def test_two_copies_of_the_demo_run_side_by_side(fleet: Fleet, demo: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(DEMO, tmp_path / "other"))
    file = other / ".runcept.toml"
    file.write_text(file.read_text().replace('name = "demo"', 'name = "other"'))
    first, second = activate(fleet, demo)[1], activate(fleet, other)[1]
    fetch(first["proxy"]["resources"]["tcpport"], "/jobs", {"title": "only here"})
    assert fetch(second["proxy"]["resources"]["tcpport"], "/jobs") == (200, {"jobs": []})


SERVER = """
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
        self.wfile.write((chr(34) + os.environ.get("COLOR", "") + chr(34)).encode())
    def log_message(self, *a): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
ASK = "import sys, urllib.request as r; sys.exit(r.urlopen(sys.argv[1]).status != 200)"


def test_an_imported_procfile_runs(fleet: Fleet, tmp_path: Path) -> None:
    folder = tmp_path / "heroku"
    folder.mkdir()
    (folder / "server.py").write_text(SERVER)
    (folder / ".env").write_text("COLOR=red\n")
    (folder / "Procfile").write_text(
        f"web: {sys.executable} server.py $PORT\n"
        "release: echo released > released.txt\n"
        "worker: test -f released.txt && exec sleep 600\n"
    )
    init(folder, "--from", "Procfile")
    _actions, up = activate(fleet, folder)
    assert up["release"]["completed"]
    assert up["worker"]["status"] == "running"
    port = up["web"]["resources"]["tcpport"]
    wait_for("the server answers", lambda: answers(port))
    assert fetch(port, "/") == (200, "red")


def answers(port: str) -> bool:
    try:
        return fetch(port, "/")[0] == 200
    except OSError:
        return False


def test_an_imported_compose_file_runs(fleet: Fleet, tmp_path: Path) -> None:
    port = free_port()
    folder = tmp_path / "composed"
    (folder / "src").mkdir(parents=True)
    (folder / "src" / "server.py").write_text(SERVER)
    (folder / "compose.yaml").write_text(
        json.dumps(
            {
                "services": {
                    "cache": {"image": "redis"},
                    "web": {
                        "image": "python",
                        "command": [sys.executable, "server.py", f"${{WEB_PORT:-{port}}}"],
                        "working_dir": "/app",
                        "volumes": ["./src:/app"],
                        "ports": [f"8080:{port}"],
                        "environment": {"COLOR": "$${deep} ${SHADE:-blue}"},
                        "healthcheck": {
                            "test": ["CMD", sys.executable, "-c", ASK, f"http://127.0.0.1:{port}/"],
                            "interval": "1s",
                        },
                        "depends_on": {"setup": {"condition": "service_completed_successfully"}, "cache": {}},
                        "stop_grace_period": "5s",
                    },
                    "setup": {"command": "sh -c 'test $$HOME'"},
                    "worker": {"command": "sleep 600", "depends_on": {"web": {"condition": "service_healthy"}}},
                }
            }
        )
    )  # fmt: skip
    assert "cache" not in init(folder, "--from", "compose.yaml").partition("[environment]")[2]
    _actions, up = activate(fleet, folder)
    assert up["setup"]["completed"]
    assert (up["web"]["healthy"], up["web"]["resources"]) == (True, {"tcpport": str(port)})
    assert up["worker"]["status"] == "running"
    assert fetch(str(port), "/") == (200, "${deep} blue")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
        return number


def test_templates_and_global_settings_reach_the_processes(fleet: Fleet, tmp_path: Path) -> None:
    config = tmp_path / "config" / "autovibe" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text('restart = "never"\n[env_vars]\nA = "global"\nB = "global"\nC = "global"\nD = "global"\n')
    template = {"id": "print", "command": "/bin/sh -c 'echo $A $B $C $D ${word}; exec sleep 600'",
                "vars": {"word": None}, "env": {"C": "template", "D": "template"}}  # fmt: skip
    subprocess.run(
        [sys.executable, "-m", "autovibe_fleet.cli.main", "--state-dir", str(fleet.folder), "template", "add", "-"],
        input=json.dumps(template), text=True, check=True, capture_output=True,
    )  # fmt: skip
    folder = tmp_path / "inherits"
    folder.mkdir()
    (folder / ".runcept.toml").write_text(
        '[environment]\nname = "inherits"\nenv_vars = { B = "environment", C = "environment", D = "environment" }\n'
        '[processes.p]\ntemplate = "print"\nvars = { word = "done" }\nenv_vars = { D = "process" }\n'
    )
    _actions, up = activate(fleet, folder)
    assert (up["p"]["status"], up["p"]["template"]) == ("running", "print")
    wait_for("it printed", lambda: fleet.printed("inherits/p") == ["global environment template process done"])
    os.kill(up["p"]["pid"], signal.SIGKILL)
    assert fleet.until("inherits/p", "error")["restarts"] == 0
