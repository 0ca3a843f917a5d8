# SPDX-License-Identifier: GPL-3.0-or-later
"""The projects of templates/environments, run as they are declared, by hand instead of by fleetd.

DEMO_PYTHON names another interpreter for the programs, such as the oldest that they promise to run on.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from autovibe_fleet.node import project_files
from fleet_core.environments import Environment
from fleet_core.processes import launch
from fleet_core.settings import Settings

FORM = {"Content-Type": "application/x-www-form-urlencoded"}
TEMPLATES = Path(__file__).resolve().parents[2] / "templates" / "environments"


class Project:
    """A copy of a template. Ports are taken from the kernel; start() runs one process as fleetd would."""

    def __init__(self, folder: Path) -> None:
        self.environment: Environment = project_files.load(folder, defaults=Settings())
        self.folder = folder
        self.running: dict[str, subprocess.Popen[str]] = {}
        self.claims: dict[str, dict[str, tuple[str, str]]] = {}
        for spec in self.environment.processes:
            self.claims[spec.name] = {need.name: (need.type, need.value or str(free_port())) for need in spec.resources}

    def launch(self, name: str) -> Any:
        (spec,) = [spec for spec in self.environment.processes if spec.name == name]
        others = {
            f"{owner}.{need}": value for owner, claims in self.claims.items() for need, (_type, value) in claims.items()
        }
        extra = {"project_dir": str(self.folder), "python": os.environ.get("DEMO_PYTHON", sys.executable)}
        return launch(spec, self.claims[name], others, extra)

    def start(self, name: str) -> subprocess.Popen[str]:
        job = self.launch(name)
        self.running[name] = subprocess.Popen(
            job.argv,
            cwd=self.folder,
            env={**os.environ, **job.env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return self.running[name]

    def port(self, name: str) -> int:
        return int(self.claims[name]["tcpport"][1])

    def request(self, name: str, method: str, path: str, body: object = None, **headers: str) -> tuple[int, Any, Any]:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port(name), timeout=10)) as connection:
            data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
            connection.request(method, path, data, headers)
            response = connection.getresponse()
            text = response.read()
        try:
            return response.status, json.loads(text), response.headers
        except ValueError:
            return response.status, text.decode(), response.headers

    def up(self, name: str) -> bool:
        try:
            return self.request(name, "GET", "/health")[0] == 200
        except OSError:
            return False

    def stop(self, name: str, number: int = signal.SIGTERM) -> tuple[int, str]:
        child = self.running.pop(name)
        child.send_signal(number)
        output, _errors = child.communicate(timeout=10)
        return child.returncode, output


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def eventually(check: Callable[[], Any], seconds: float = 15.0) -> Any:
    """Return what check returns as soon as it is true."""
    deadline = time.monotonic() + seconds
    while True:
        found = check()
        if found or time.monotonic() > deadline:
            assert found, "it did not happen in time"
            return found
        time.sleep(0.05)


def worker_check(project: Project) -> subprocess.CompletedProcess[str]:
    """Run the worker's health check."""
    job = project.launch("worker")
    command = job.health.url.partition("://")[2]
    env = {**os.environ, **job.env}
    return subprocess.run(command, shell=True, check=False, cwd=project.folder, env=env, capture_output=True, text=True)


@pytest.fixture
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Project]:
    folder = tmp_path / "a project"
    shutil.copytree(TEMPLATES / request.param, folder)
    found = Project(folder)
    yield found
    for child in found.running.values():
        child.kill()
        child.communicate()


@pytest.fixture
def demo(project: Project) -> Project:
    """The demo with all of its processes up."""
    assert project.start("migrate").wait(timeout=15) == 0
    project.running.pop("migrate").communicate()
    for name in ("web", "worker", "proxy"):
        project.start(name)
    for name in ("web", "proxy"):
        eventually(lambda name=name: project.up(name))
    return project


@pytest.mark.parametrize("name", sorted(path.parent.name for path in TEMPLATES.glob("*/.runcept.toml")))
def test_every_template_is_a_valid_project(name: str) -> None:
    found = project_files.load(TEMPLATES / name, defaults=Settings())
    assert found.processes
    assert all(spec.health for spec in found.processes if spec.restart.policy != "never")


@pytest.mark.parametrize("project", ["demo"], indirect=True)
def test_the_demo_starts_in_the_order_of_its_dependencies(project: Project) -> None:
    assert project.environment.order()[0] == "demo/migrate"
    assert project.environment.order().index("demo/web") < project.environment.order().index("demo/proxy")


@pytest.mark.parametrize("project", ["demo"], indirect=True)
def test_a_job_goes_through_proxy_web_and_worker(demo: Project) -> None:
    status, made, _headers = demo.request("proxy", "POST", "/jobs", {"title": "Water all plants"})
    assert (status, made["status"]) == (201, "waiting")
    assert demo.request("proxy", "POST", "/jobs", {"title": "by curl -d"}, **FORM)[0] == 201
    done = eventually(
        lambda: (found := demo.request("proxy", "GET", f"/jobs/{made['id']}")[1])["status"] == "done" and found
    )
    assert done["result"].startswith("3 words, ")
    assert [job["id"] for job in demo.request("web", "GET", "/jobs")[1]["jobs"]] == [made["id"] + 1, made["id"]]


@pytest.mark.parametrize("project", ["demo"], indirect=True)
def test_the_page_has_a_form_and_shows_titles_as_text(demo: Project) -> None:
    status, _body, headers = demo.request("proxy", "POST", "/jobs", b"title=%3Cscript%3Ealert(1)%3C/script%3E", **FORM)
    assert (status, headers["Location"]) == (303, "/")
    status, page, headers = demo.request("proxy", "GET", "/")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert "&lt;script&gt;" in page
    assert "<script>" not in page
    assert '<form method="post" action="/jobs">' in page


ODD_REQUESTS: list[tuple[str, str, object, int]] = [
    ("GET", "/nothing", None, 404),
    ("GET", "/jobs/999", None, 404),
    ("POST", "/jobs", {"title": " "}, 400),
    ("POST", "/jobs", {"title": "x" * 201}, 400),
    ("POST", "/jobs", {"title": 3}, 400),
    ("POST", "/jobs", b"{", 400),
    ("POST", "/jobs", b"\xff", 400),
    ("POST", "/other", {"title": "x"}, 404),
    ("POST", "/jobs", b"x" * 70_000, 413),
    ("HEAD", "/jobs", None, 200),
    ("GET", "/health", None, 200),
]


@pytest.mark.parametrize("project", ["demo"], indirect=True)
def test_odd_requests_have_an_answer(demo: Project) -> None:
    for method, path, body, status in ODD_REQUESTS:
        for name in ("web", "proxy"):
            assert (method, path, demo.request(name, method, path, body)[0]) == (method, path, status)


@pytest.mark.parametrize("project", ["demo"], indirect=True)
def test_a_killed_worker_leaves_no_job_behind(demo: Project) -> None:
    demo.stop("worker", signal.SIGKILL)
    made = [demo.request("web", "POST", "/jobs", {"title": f"job {number}"})[1]["id"] for number in range(5)]
    demo.start("worker")
    eventually(lambda: all(demo.request("web", "GET", f"/jobs/{number}")[1]["status"] == "done" for number in made))


@pytest.mark.parametrize("project", ["demo"], indirect=True)
def test_the_proxy_waits_for_a_web_application_that_restarts(demo: Project) -> None:
    demo.stop("web", signal.SIGKILL)
    assert demo.up("proxy")
    demo.start("web")
    assert demo.request("proxy", "GET", "/jobs")[0] == 200
    demo.stop("web", signal.SIGKILL)
    status, answer, _headers = demo.request("proxy", "GET", "/jobs")
    assert (status, "does not answer" in answer["error"]) == (502, True)


@pytest.mark.parametrize("project", ["demo"], indirect=True)
def test_every_process_ends_cleanly_on_sigterm_and_logs_no_health_checks(demo: Project) -> None:
    demo.request("proxy", "GET", "/jobs")
    eventually(lambda: worker_check(demo).returncode == 0)
    for name in ("proxy", "web", "worker"):
        begun = time.monotonic()
        code, output = demo.stop(name)
        assert code == 0, output
        assert time.monotonic() - begun < 2
        assert output.splitlines()[-1] == "stopped"
        assert "Traceback" not in output
        assert "/health" not in output
        if name != "worker":
            assert re.search(r"^listening on http://127\.0\.0\.1:\d+/$", output, re.MULTILINE)
            assert "GET /jobs 200" in output


@pytest.mark.parametrize("project", ["demo"], indirect=True)
def test_the_worker_check_fails_without_a_worker(project: Project) -> None:
    project.start("migrate").wait(timeout=15)
    check = worker_check(project)
    assert check.returncode == 1
    assert "no sign of life" in check.stdout


@pytest.mark.parametrize("project", ["demo"], indirect=True)
def test_web_says_what_is_missing_when_the_database_was_not_made(project: Project) -> None:
    child = project.start("web")
    output, _errors = child.communicate(timeout=15)
    assert child.returncode == 1
    assert "run migrate.py first" in output


@pytest.mark.parametrize("project", ["demo"], indirect=True)
def test_migrate_may_run_again(demo: Project) -> None:
    demo.request("web", "POST", "/jobs", {"title": "kept"})
    assert demo.start("migrate").wait(timeout=15) == 0
    assert demo.request("web", "GET", "/jobs")[1]["jobs"][0]["title"] == "kept"


@pytest.mark.parametrize(
    "project",
    [
        "python",
        pytest.param(
            "nodejs", marks=pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed")
        ),
    ],
    indirect=True,
)
def test_a_starter_answers_and_ends_cleanly(project: Project) -> None:
    project.start("web")
    eventually(lambda: project.up("web"))
    status, text, _headers = project.request("web", "GET", "/")
    assert (status, text.split()[0]) == (200, "Hello")
    assert project.request("web", "GET", "/nothing")[0] == 404
    code, output = project.stop("web")
    assert code == 0, output
    assert "/health" not in output
