# SPDX-License-Identifier: GPL-3.0-or-later
"""Environments from outside: a real fleetd, real project files, real connections."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fleet_core.errors import Conflict, FleetError, InvalidInput, NotFound
from fleet_node.client import Client

from .fleetd import Fleet, running, wait_for

WEB = """
[environment]
name = "shop"
{head}

[environment.env_vars]
STAGE = "test"

[processes.migrate]
command = "echo migrated"
auto_restart = false

[processes.web]
command = "${{python}} -u -m http.server ${{tcpport}} --bind 127.0.0.1"
resources = ["tcpport"]
health = {{ url = "tcp://127.0.0.1:${{tcpport}}", interval = "1s" }}
depends_on = [{{ process = "migrate", condition = "completed" }}]

[processes.client]
command = "sleep 600"
depends_on = ["web"]
env_vars = {{ UPSTREAM = "127.0.0.1:${{web.tcpport}}" }}
"""


@pytest.fixture
def fleet(state_dir: Path) -> Iterator[Fleet]:
    with running(state_dir) as found:
        yield found


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "shop"
    folder.mkdir()
    write(folder)
    return folder


def write(folder: Path, head: str = "", more: str = "") -> None:
    (folder / ".runcept.toml").write_text(WEB.format(head=head) + more)


def activate(fleet: Fleet, folder: Path) -> dict[str, Any]:
    return dict(fleet.call("environments.activate", path=str(folder), timeout=30))


def status(fleet: Fleet, name: str = "shop") -> dict[str, Any]:
    return dict(fleet.call("environments.status", name=name)["environment"])


def quiet_status(fleet: Fleet) -> dict[str, Any]:
    """The environment, looked at in a way that is no activity."""
    return dict(fleet.call("environments.list")["environments"][0])


def processes(environment: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {item["name"]: item for item in environment["processes"]}


def test_an_environment_comes_up_in_order_and_once(fleet: Fleet, project: Path) -> None:
    first = activate(fleet, project)
    (environment,) = first["environments"]
    found = processes(environment)
    assert environment["status"] == "active"
    assert [found[name]["status"] for name in ("migrate", "web", "client")] == ["stopped", "running", "running"]
    assert found["migrate"]["completed"]
    variables = Path(f"/proc/{found['client']['pid']}/environ").read_bytes().split(b"\0")
    assert f"UPSTREAM=127.0.0.1:{found['web']['resources']['tcpport']}".encode() in variables
    assert b"STAGE=test" in variables
    assert os.readlink(f"/proc/{found['client']['pid']}/cwd") == str(project)
    again = activate(fleet, project / ".runcept.toml")
    assert again["change"]["actions"] == []
    assert processes(again["environments"][0])["web"]["pid"] == found["web"]["pid"]


def test_the_file_is_found_upwards(fleet: Fleet, project: Path) -> None:
    below = project / "src" / "deep"
    below.mkdir(parents=True)
    activate(fleet, below)
    assert fleet.call("environments.status", path=str(below))["environment"]["name"] == "shop"


def test_an_edited_file_is_applied_and_dropped_processes_go(fleet: Fleet, project: Path) -> None:
    before = processes(activate(fleet, project)["environments"][0])
    text = (project / ".runcept.toml").read_text()
    (project / ".runcept.toml").write_text(
        text.split("[processes.client]")[0] + '[processes.tail]\ncommand = "sleep 601"\n'
    )
    plan = fleet.call("environments.plan", items=[{"path": str(project), "state": "active"}])["change"]["actions"]
    assert set(plan) == {
        *("stop process shop/client", "remove process shop/client"),
        *("declare process shop/tail", "start process shop/tail"),
    }
    after = processes(activate(fleet, project)["environments"][0])
    assert set(after) == {"migrate", "web", "tail"}
    assert after["web"]["pid"] == before["web"]["pid"]


def test_deactivating_stops_all_and_gives_back_the_claims(fleet: Fleet, project: Path) -> None:
    port = processes(activate(fleet, project)["environments"][0])["web"]["resources"]["tcpport"]
    fleet.call("environments.deactivate", name="shop")
    assert status(fleet)["status"] == "inactive"
    assert {item["status"] for item in status(fleet)["processes"]} == {"stopped"}
    assert fleet.claims() == set()
    assert processes(activate(fleet, project)["environments"][0])["web"]["resources"]["tcpport"] == port


def test_absent_forgets_it(fleet: Fleet, project: Path) -> None:
    activate(fleet, project)
    fleet.call("environments.apply", items=[{"name": "shop", "state": "absent"}])
    assert fleet.call("environments.list")["environments"] == []
    assert fleet.call("processes.list")["processes"] == []
    change = fleet.call("environments.apply", items=[{"name": "shop", "state": "absent"}])["change"]
    assert change["actions"] == []


def test_everything_survives_a_killed_fleetd(fleet: Fleet, project: Path) -> None:
    before = processes(activate(fleet, project)["environments"][0])
    fleet.again()
    after = status(fleet)
    assert after["status"] == "active"
    assert {name: item["pid"] for name, item in processes(after).items()} == {
        name: item["pid"] for name, item in before.items()
    }
    assert activate(fleet, project)["change"]["actions"] == []


def test_an_unused_environment_is_put_to_sleep(fleet: Fleet, project: Path) -> None:
    write(project, 'inactivity_timeout = "2s"')
    activate(fleet, project)
    wait_for("it sleeps", lambda: quiet_status(fleet)["status"] == "inactive", 15)
    assert fleet.claims() == set()
    lines = (project / ".runcept" / "logs" / "client.log").read_text()
    assert "without activity" in lines


def test_requests_connections_and_output_keep_it_awake(fleet: Fleet, project: Path) -> None:
    write(project, 'inactivity_timeout = "2s"')
    port = int(processes(activate(fleet, project)["environments"][0])["web"]["resources"]["tcpport"])
    for _turn in range(6):
        fleet.call("environments.touch", name="shop")
        time.sleep(0.6)
    assert quiet_status(fleet)["status"] == "active"
    with socket.create_connection(("127.0.0.1", port)):
        time.sleep(4)
        assert quiet_status(fleet)["status"] == "active"
    wait_for("it sleeps", lambda: quiet_status(fleet)["status"] == "inactive", 15)
    write(
        project,
        'inactivity_timeout = "2s"',
        '\n[processes.chat]\ncommand = "while sleep 0.7; do echo hi; done"\nshell = true\n',
    )
    text = (project / ".runcept.toml").read_text().replace('interval = "1s"', 'interval = "60s"')
    (project / ".runcept.toml").write_text(text)
    activate(fleet, project)
    time.sleep(4)
    assert quiet_status(fleet)["status"] == "active"


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        (
            "[environment]\nname='a'\n[processes.x]\ncomand='y'",
            InvalidInput,
            r'unknown key "comand", did you mean "command"',
        ),
        ("[environment]\nname='a'\n[processes.x]\ncommand='y'\ndepends_on=['z']", InvalidInput, 'depends on "a?/?z"'),
        ("[environment\n", InvalidInput, r"\.runcept\.toml:1: "),
        ("[environment]\nname='a'\n[processes.x]\ncommand='y ${port}'", FleetError, 'undefined variable "port"'),
    ],
)
def test_a_bad_file_is_one_sentence_and_starts_nothing(
    fleet: Fleet, project: Path, text: str, kind: type[FleetError], expected: str
) -> None:
    (project / ".runcept.toml").write_text(text)
    with pytest.raises(kind, match=expected) as caught:
        activate(fleet, project)
    assert "\n" not in str(caught.value)
    assert not [item for item in fleet.call("processes.list")["processes"] if item["pid"]]
    assert fleet.claims() == set()


def test_a_name_belongs_to_one_project(fleet: Fleet, project: Path, tmp_path: Path) -> None:
    activate(fleet, project)
    other = tmp_path / "other"
    other.mkdir()
    write(other)
    with pytest.raises(Conflict, match=r'environment "shop": .*other.* uses a name that .*shop'):
        activate(fleet, other)


def test_an_unknown_environment_is_named(fleet: Fleet, project: Path) -> None:
    activate(fleet, project)
    with pytest.raises(NotFound, match='environment "shp": not known, did you mean "shop"'):
        status(fleet, "shp")


def test_events_tell_of_every_step(fleet: Fleet, project: Path) -> None:
    from fleet_node.client import Client

    listener = Client(fleet.folder)
    stream = listener.stream("events.subscribe")
    listener.call("daemon.status")
    activate(fleet, project)
    seen = []
    for event in stream:
        seen.append((event["kind"], event["id"], event["state"]))
        if seen[-1] == ("environment", "shop", "active"):
            break
    listener.close()
    assert seen.index(("process", "shop/migrate", "stopped")) < seen.index(("process", "shop/web", "running"))
    assert seen.index(("process", "shop/web", "running")) < seen.index(("process", "shop/client", "running"))


SLOW = """
[environment]
name = "slow"

[processes.web]
command = "sleep 600"
resources = ["tcpport"]
readiness = "cmd://false"
start_timeout = "60s"
"""


def test_an_environment_can_be_deactivated_while_it_comes_up(fleet: Fleet, tmp_path: Path) -> None:
    (tmp_path / ".runcept.toml").write_text(SLOW)
    with ThreadPoolExecutor() as pool:
        pending = pool.submit(
            lambda: Client(fleet.folder).call("environments.activate", path=str(tmp_path), timeout=60)
        )
        wait_for("it is activating", lambda: fleet.until("slow/web", "starting")["pid"])
        assert status(fleet, "slow")["status"] == "activating"
        begun = time.monotonic()
        fleet.call("environments.deactivate", name="slow", timeout=20)
        assert time.monotonic() - begun < 10
        with pytest.raises(FleetError, match="slow/web"):
            pending.result(20)
    assert status(fleet, "slow")["status"] == "inactive"
    assert fleet.claims() == set()


def test_an_environment_that_could_not_claim_is_shown_as_an_error_until_it_can(fleet: Fleet, project: Path) -> None:
    write(project, more='\n[processes.taken]\ncommand = "sleep 600"\nresources = ["datadir:/taken"]\n')
    fleet.start("holder", "sleep 600", resources=["datadir:/taken"])
    with pytest.raises(Conflict, match="holder"):
        activate(fleet, project)
    assert status(fleet)["status"] == "error"
    assert "holder" in status(fleet)["error"]
    fleet.again()
    assert "holder" in status(fleet)["error"]
    fleet.call("processes.delete", ids=["holder"])
    activate(fleet, project)
    assert (status(fleet)["status"], status(fleet)["error"]) == ("active", "")
