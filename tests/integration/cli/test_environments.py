# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands on environments, on a real fleetd."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import pytest

from autovibe_fleet.cli.help import ENVIRONMENT

from .conftest import PYTHON, SERVER, Fleet

SHOP = f"""\
[environment]
name = "shop"

[processes.db]
command = "{SERVER}"
readiness = "http://127.0.0.1:${{tcpport}}/"

[processes.migrate]
command = "true"
restart = "never"
depends_on = ["db"]

[processes.web]
command = "{SERVER}"
health_check_url = "http://127.0.0.1:${{tcpport}}/"
depends_on = [{{process = "migrate", condition = "completed"}}]
"""


@pytest.fixture
def shop(fleet: Fleet) -> Path:
    return fleet.project(SHOP, "shop")


def test_activate_brings_everything_up_and_ends_with_a_table_of_urls(fleet: Fleet, shop: Path) -> None:
    inside = shop / "src"
    inside.mkdir()
    before = fleet.ok("status", cwd=inside)
    assert "inactive" in before.out
    assert not (fleet.state / "fleetd.sock").exists()
    result = fleet.ok("activate", cwd=inside)
    assert result.err.startswith("Started fleetd in the background (pid ")
    lines = result.out.splitlines()
    assert lines[0] == "Environment shop is active"
    assert lines[1].split() == ["NAME", "STATUS", "PID", "UPTIME", "RESTARTS", "MEMORY", "URL"]
    states = {line.split()[0]: line.split()[1] for line in lines[2:]}
    assert states == {"db": "running", "migrate": "completed", "web": "running"}
    url = next(line.split()[-1] for line in lines if line.startswith("web"))
    assert urllib.request.urlopen(url, timeout=10).status == 200
    assert fleet.ok("activate", cwd=inside).out.splitlines()[0] == "Environment shop is active, as it was"
    assert fleet.ok("list").out.splitlines()[1].split()[:3] == ["shop", "active", "3/3"]


def test_short_names_mean_the_environment_in_its_folder_only(fleet: Fleet, shop: Path) -> None:
    fleet.ok("activate", "--json", str(shop))
    fleet.ok("start", "db", "--", "sleep", "600")
    assert fleet.ok("stop", "db", cwd=shop).out == "Stopped shop/db\n"
    assert fleet.ok("stop", "db").out == "Stopped db\n"
    assert fleet.ok("start", "shop/db").out.startswith("Started shop/db (pid ")
    assert fleet.ok("restart", "-e", "shop", "db").out.startswith("Restarted shop/db (pid ")
    assert fleet.ok("restart", "-e", str(shop / ".runcept.toml"), "db").out.startswith("Restarted shop/db (pid ")
    assert [p["id"] for p in fleet.json("ps", "-e", "shop")["processes"]] == ["shop/db", "shop/migrate", "shop/web"]
    fleet.ok("stop", "db", "web", cwd=shop)
    started = fleet.ok("start", "db", "web", cwd=shop).out.splitlines()
    assert [line.split(" (")[0] for line in started] == ["Started shop/db", "Started shop/web"]
    assert 'process "shop/nope": not declared' in fleet("start", "db", "nope", "-e", "shop").err
    fleet.ok("start", "alone", "--", "sleep", "600")
    assert fleet.ok("stop", "alone", cwd=shop).out == "Stopped alone\n"
    assert fleet("stop", "alone", "-e", "shop").code == 3


def test_deactivate_stops_and_gives_back(fleet: Fleet, shop: Path) -> None:
    fleet.ok("activate", cwd=shop)
    assert fleet.ok("deactivate", cwd=shop).out == "Environment shop is inactive\n"
    assert fleet.ok("deactivate", "shop").out == "Environment shop is inactive, as it was\n"
    assert fleet.json("resources")["resources"] == []
    answer = fleet.json("status", "shop")["environment"]
    assert set(answer) == set(ENVIRONMENT)
    assert answer["status"] == "inactive"
    assert {process["status"] for process in answer["processes"]} == {"stopped"}


def test_a_process_of_a_project_that_is_not_active_says_so(fleet: Fleet, shop: Path) -> None:
    result = fleet("start", "web", cwd=shop)
    assert result.code == 3
    assert "not activated yet; run `fleet activate`" in result.err
    assert fleet("deactivate", cwd=shop).code == 3


def test_an_environment_that_does_not_come_up_shows_what_failed(fleet: Fleet) -> None:
    code = "import sys; sys.exit('no such table')"
    folder = fleet.project(
        f'[environment]\nname = "bad"\n[processes.ok]\ncommand = "sleep 600"\n'
        f'[processes.broken]\ncommand = "{PYTHON} -c \\"{code}\\""\nrestart = "never"\n'
    )
    result = fleet("activate", cwd=folder)
    assert result.code == 6
    assert 'process "bad/broken": ended with exit code 1: no such table' in result.err.splitlines()[-1]
    assert any(line.split()[:2] == ["broken", "error"] for line in result.out.splitlines())
    as_json = fleet("activate", "--json", cwd=folder)
    assert (as_json.code, as_json.out, as_json.error["code"]) == (6, "", "process_failed")


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ('[environment]\nname = "x"\n[processes.a]\ncomand = "true"\n', 2, 'did you mean "command"?'),
        ('[environment\nname = "x"\n', 2, ".runcept.toml:1: "),
        ('[processes.a]\ntemplate = "none"\n', 3, 'template "none"'),
        ('[processes.a]\ncommand = "true"\ndepends_on = ["b"]\n', 2, 'depends on "project/b"'),
    ],
)
def test_a_wrong_project_file_is_named_with_its_line(fleet: Fleet, text: str, code: int, message: str) -> None:
    folder = fleet.project(text)
    for command in ("activate", "status"):
        result = fleet(command, cwd=folder)
        assert result.code == code, result.err
        assert message in result.err
        assert result.err.splitlines()[-1].startswith(f"fleet: {folder}/.runcept.toml")


def test_outside_of_a_project_there_is_nothing_to_activate(fleet: Fleet) -> None:
    result = fleet("activate")
    assert result.code == 3
    assert result.err == f"fleet: no .runcept.toml in {fleet.folder} or above it; `fleet init` writes one\n"
    assert fleet("activate", "nowhere").code == 3
    assert fleet("status").code == 7
    assert fleet.ok("list").out.startswith("No environments.")


def test_environments_are_shown_from_the_record_while_fleetd_is_down(fleet: Fleet, shop: Path) -> None:
    fleet.ok("activate", cwd=shop)
    fleet.ok("daemon", "stop")
    result = fleet.ok("status", cwd=shop)
    assert "fleetd is not running" in result.err
    assert [line.split()[1] for line in result.out.splitlines()[-3:]] == ["running", "completed", "running"]
    (listed,) = fleet.json("list")["environments"]
    assert set(listed) == set(ENVIRONMENT)
    assert listed["name"] == "shop"
    fleet.ok("kill-all", "--yes")


def test_init_writes_a_project_that_runs(fleet: Fleet) -> None:
    folder = fleet.folder / "My first project!"
    folder.mkdir()
    assert fleet.ok("init", cwd=folder).out.startswith(f"Wrote {folder}/.runcept.toml\n")
    assert fleet("init", cwd=folder).code == 4
    answer = fleet.json("activate", cwd=folder)
    assert answer["environment"]["name"] == "My-first-project"
    (web,) = answer["environment"]["processes"]
    assert urllib.request.urlopen(web["urls"][0], timeout=10).status == 200
    again = fleet.folder / "other" / "My first project!"
    again.mkdir(parents=True)
    fleet.ok("init", str(again))
    assert 'name = "My-first-project-2"' in (again / ".runcept.toml").read_text()


def test_init_takes_a_procfile_over(fleet: Fleet) -> None:
    folder = fleet.folder / "app"
    folder.mkdir()
    (folder / "Procfile").write_text(
        f"web: {PYTHON} -m http.server --bind 127.0.0.1 $PORT\nworker: sleep 600\nrelease: true\n"
    )
    result = fleet.ok("init", "--from", "Procfile", cwd=folder)
    assert "note: worker: no PORT is set" in result.err
    processes = {p["name"]: p for p in fleet.json("activate", cwd=folder)["environment"]["processes"]}
    assert {name: process["status"] for name, process in processes.items()} == {
        "web": "running", "worker": "running", "release": "stopped",
    }  # fmt: skip
    assert processes["release"]["completed"]


def test_init_takes_a_compose_file_over_and_says_what_it_leaves(fleet: Fleet) -> None:
    folder = fleet.folder / "stack"
    folder.mkdir()
    (folder / "compose.yaml").write_text(
        "services:\n  one:\n    image: python\n    command: sleep 600\n    networks: [back]\n"
        "  two:\n    command: sleep 601\n    depends_on: [one]\n"
    )
    plain = fleet.json("init", cwd=folder)
    assert plain["notes"] == [
        "compose.yaml is there; `fleet init --force --from compose.yaml` takes its processes over"
    ]
    answer = fleet.json("init", "--force", "--from", "compose.yaml", cwd=folder)
    assert any("networks" in note for note in answer["notes"])
    processes = fleet.json("activate", cwd=folder)["environment"]["processes"]
    assert {process["name"]: process["status"] for process in processes} == {"one": "running", "two": "running"}
    assert fleet("init", "--force", "--from", "missing.yaml", cwd=folder).code == 3
    (folder / "bad.yaml").write_text("a: [")
    assert fleet("init", "--force", "--from", "bad.yaml", cwd=folder).code == 2


def test_init_begins_with_a_template(fleet: Fleet) -> None:
    (fleet.folder / "nap.json").write_text('{"id": "nap", "command": "sleep ${time}", "vars": {"time": "600"}}')
    fleet.ok("template", "add", "nap.json")
    folder = fleet.folder / "napping"
    folder.mkdir()
    fleet.ok("init", str(folder), "--template", "nap")
    (process,) = fleet.json("activate", str(folder))["environment"]["processes"]
    assert (process["id"], process["command"]) == ("napping/nap", "sleep 600")
    assert fleet("init", str(folder), "--force", "--template", "nip").code == 3
