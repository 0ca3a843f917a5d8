# SPDX-License-Identifier: GPL-3.0-or-later
"""PostgreSQL, Redis and nginx from Debian's packages, run from the shipped templates as one project.

Once with the systemd driver (as root, on Debian 12) and once natively, without root (on Debian 13).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from tests.system.lab import Host, Lab, LabError
from tests.system.lab.playbooks import ROOT, play

PROJECT = """
[environment]
name = "shop"
description = "A table in PostgreSQL, a counter in Redis, an API that reads both, nginx in front"

[processes.db]
template = "postgres"
vars = {{ datadir = "{data}/db", run_as = "{postgres}", auth_host = "trust" }}
health_check_interval = 1

[processes.cache]
template = "redis"
vars = {{ datadir = "{data}/cache", run_as = "{redis}" }}
health_check_interval = 1
stop_timeout = "3s"

[processes.schema]
command = '''psql -h 127.0.0.1 -p ${{db.tcpport}} -U {owner} -d postgres
    -c "CREATE TABLE IF NOT EXISTS item (name text)" -c "INSERT INTO item VALUES ('one')"'''
restart = "never"
depends_on = ["db"]

[processes.api]
command = "/usr/bin/python3 api.py %tcpport ${{db.tcpport}} ${{cache.tcpport}} {owner}"
readiness = {{ url = "http://127.0.0.1:${{tcpport}}/", interval = "200ms" }}
depends_on = ["db", "cache", {{ process = "schema", condition = "completed" }}]

[processes.web]
template = "nginx-proxy"
vars = {{ datadir = "{data}/web", upstream = "http://127.0.0.1:${{api.tcpport}}" }}
health_check_interval = 1
depends_on = ["api"]
"""

API = """
import json, subprocess, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
port, db, cache, owner = sys.argv[1:]
def ask(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        items = ask("psql", "-h", "127.0.0.1", "-p", db, "-U", owner, "-Atc", "SELECT count(*) FROM item", "postgres")
        visits = ask("redis-cli", "-p", cache, "incr", "visits")
        body = json.dumps({"items": int(items), "visits": int(visits)}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
ThreadingHTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
"""


@dataclass(frozen=True)
class Node:
    """A host with fleetd, seen through its command line."""

    host: Host
    user: str
    driver: str
    project: str

    def run(self, *command: str, **options: Any) -> Any:
        return self.host.login(self.user, *command, **options)

    def fleet(self, *arguments: str) -> Any:
        return json.loads(self.run("fleet", "--json", *arguments, cwd=self.project).stdout)

    def processes(self) -> dict[str, dict[str, Any]]:
        return {process["name"]: process for process in self.fleet("ps")["processes"]}

    def status(self) -> dict[str, str]:
        return {name: process["status"] for name, process in self.processes().items()}

    def wait(self, name: str, what: str, test: Any, timeout: float = 30) -> dict[str, Any]:
        """Wait until `test` holds for a process, and return it."""
        end = time.monotonic() + timeout
        while not test(process := self.processes()[name]):
            assert time.monotonic() < end, f"{name} is not {what} after {timeout:g} s: {process}"
            time.sleep(0.2)
        return process

    def get(self) -> dict[str, int]:
        """What the project answers at nginx."""
        port = self.processes()["web"]["resources"]["tcpport"]
        return json.loads(self.run("curl", "-sS", "--fail", f"http://127.0.0.1:{port}/").stdout)

    def pids_of(self, program: str) -> set[int]:
        return {int(pid) for pid in self.run("pgrep", "-x", program, check=False).stdout.split()}


@pytest.fixture(scope="module", params=["systemd", "native"])
def node(request: pytest.FixtureRequest, lab: Lab) -> Iterator[Node]:
    driver = request.param
    host = lab.host(f"services-{driver}", "debian12" if driver == "systemd" else "debian13")
    if driver == "systemd":
        node = Node(host, "root", driver, "/srv/shop")
        play(host, "autovibe.fleet.node", node_driver="systemd")
        names = {"data": "/srv/data", "postgres": "postgres", "redis": "redis", "owner": "postgres"}
        host.sh("mkdir -p /srv/shop /srv/data && chmod 0755 /srv/data")
        host.sh("install -d -o postgres /srv/data/db; install -d -o redis /srv/data/cache")
    else:
        host.add_user("dev", linger=False)
        node = Node(host, "dev", driver, "/home/dev/shop")
        play(host, "autovibe.fleet.node", ansible_user="dev", node_service="background", node_driver="native")
        host.sh("ln -s /home/dev/.local/bin/fleet /usr/local/bin/")
        names = {"data": "/home/dev/data", "postgres": "", "redis": "", "owner": "dev"}
        node.run("mkdir", "-p", "/home/dev/shop", "/home/dev/data")
    host.push(ROOT / "templates/processes", "/opt/templates")
    host.write(f"{node.project}/.runcept.toml", PROJECT.format(**names))
    host.write(f"{node.project}/api.py", API)
    for name in ("postgres", "redis", "nginx", "nginx-proxy"):
        node.run("fleet", "template", "add", f"/opt/templates/{name}.json")
    try:
        node.run("fleet", "activate", cwd=node.project)
    except LabError as error:
        pytest.fail(f"{error}\n{node.run('fleet', 'ps', check=False).stdout}")
    yield node
    host.stop()


def test_the_project_runs_and_is_healthy(node: Node) -> None:
    processes = node.processes()
    assert {name: process["status"] for name, process in processes.items()} == {
        **dict.fromkeys(("db", "cache", "api", "web"), "running"),
        "schema": "stopped",
    }
    assert processes["schema"]["completed"]
    assert {process["driver"] for process in processes.values()} == {node.driver}
    for name in ("db", "cache", "web"):
        node.wait(name, "healthy", lambda process: process["healthy"])


def test_a_request_goes_through_all_of_them(node: Node) -> None:
    first, second = node.get(), node.get()
    assert first["items"] >= 1
    assert second["visits"] > first["visits"]


def test_services_run_as_their_users(node: Node) -> None:
    processes = node.processes()
    users = {name: node.host.sh(f"stat -c %U /proc/{processes[name]['pid']}") for name in ("db", "cache")}
    expected = {"db": "postgres", "cache": "redis"} if node.driver == "systemd" else {"db": "dev", "cache": "dev"}
    assert users == expected


def test_activating_again_changes_nothing(node: Node) -> None:
    before = {name: process["pid"] for name, process in node.processes().items()}
    node.run("fleet", "activate", cwd=node.project)
    assert {name: process["pid"] for name, process in node.processes().items()} == before


@pytest.mark.parametrize("name", ["db", "cache", "web"])
def test_a_killed_service_is_back_on_its_port(node: Node, name: str) -> None:
    before = node.processes()[name]
    node.host.run("kill", "-KILL", str(before["pid"]))
    after = node.wait(name, "back", lambda now: now["pid"] not in (0, before["pid"]) and now["healthy"])
    assert after["resources"] == before["resources"]
    assert after["restarts"] == before["restarts"] + 1
    assert node.get()["items"] >= 1


def test_a_hanging_service_is_restarted_by_its_health_check(node: Node) -> None:
    before = node.processes()["cache"]
    node.host.run("kill", "-STOP", str(before["pid"]))
    after = node.wait(
        "cache", "restarted", lambda now: now["pid"] not in (0, before["pid"]) and now["healthy"], timeout=90
    )
    assert after["resources"] == before["resources"]
    assert node.get()["items"] >= 1


def test_services_survive_fleetd(node: Node) -> None:
    before = {name: process["pid"] for name, process in node.processes().items()}
    daemon = node.fleet("daemon", "status")["pid"]
    node.host.run("kill", "-KILL", str(daemon))
    if node.driver == "native":
        node.run("fleet", "daemon", "start", "--driver", "native")
    else:
        node.host.wait("fleet daemon status >/dev/null 2>&1")
    assert node.fleet("daemon", "status")["pid"] != daemon
    assert {name: process["pid"] for name, process in node.processes().items()} == before
    assert node.get()["items"] >= 1


def test_deactivating_stops_everything_and_gives_all_back(node: Node) -> None:
    held = node.fleet("resources", "list")["resources"]
    assert {claim["owner"] for claim in held} == {"shop/db", "shop/cache", "shop/api", "shop/web"}
    visits = node.get()["visits"]
    node.run("fleet", "deactivate", cwd=node.project)
    assert set(node.status().values()) == {"stopped"}
    assert node.fleet("resources", "list")["resources"] == []
    for program in ("postgres", "redis-server", "nginx"):
        assert node.pids_of(program) == set()
    node.run("fleet", "activate", cwd=node.project)
    assert node.get()["visits"] > visits, "Redis has kept its data"


def test_a_dependent_waits_for_a_database_that_does_not_come(node: Node) -> None:
    folder = f"{node.project}-broken"
    node.run("mkdir", "-p", folder)
    text = PROJECT.format(data="/proc/none", postgres="", redis="", owner="x").replace('"shop"', '"broken"')
    node.host.write(f"{folder}/.runcept.toml", text)
    node.run("fleet", "activate", cwd=folder, check=False, timeout=200)
    processes = {process["id"]: process for process in node.fleet("ps")["processes"]}
    assert processes["broken/api"]["pid"] == 0
    assert processes["broken/web"]["pid"] == 0
    node.run("fleet", "deactivate", cwd=folder)
    owners = {claim["owner"] for claim in node.fleet("resources", "list")["resources"]}
    assert not [owner for owner in owners if owner.startswith("broken/")]
