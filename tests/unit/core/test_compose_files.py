# SPDX-License-Identifier: GPL-3.0-or-later
"""Services of compose files as project files."""

from __future__ import annotations

import contextlib
import subprocess
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_core.compose_files import compose_file
from fleet_core.environments import environment
from fleet_core.errors import FleetError, InvalidInput
from fleet_core.processes import Launch, launch
from fleet_core.procfiles import Imported


def one(**service: Any) -> Imported:
    """The project of a file with one service "web"."""
    return compose_file({"services": {"web": {"command": "serve", **service}}}, "shop")


def fields(**service: Any) -> dict[str, Any]:
    found: dict[str, Any] = one(**service).document["processes"]["web"]
    return found


def launched(**service: Any) -> Launch:
    (spec,) = environment(one(**service).document, "/srv").processes
    return launch(spec, {need.name: (need.type, need.value) for need in spec.resources}, extra={"project_dir": "/srv"})


@pytest.mark.parametrize(
    ("service", "argv"),
    [
        ({"command": "serve --name 'a b'"}, ("serve", "--name", "a b")),
        ({"command": ["serve", "--name", "a b", "it's"]}, ("serve", "--name", "a b", "it's")),
        ({"entrypoint": ["sh", "-c"], "command": ["echo $$HOME"]}, ("sh", "-c", "echo $HOME")),
        ({"entrypoint": "tini --", "command": "serve x"}, ("tini", "--", "serve", "x")),
        ({"command": ["serve", "${PORT:-80}"]}, ("serve", "80")),
        ({"command": "serve $PORT"}, ("serve",)),
        ({"command": ["serve", 'a${X:-b c}$$d`"\\']}, ("serve", 'ab c$d`"\\')),
        ({"command": ["serve", "$${X}", "$$$$", "$${X}${Y:-1}"]}, ("serve", "${X}", "$$", "${X}1")),
        ({"command": ["date", "+%H", "%tcpport"]}, ("date", "+%H", "%tcpport")),
    ],
)
def test_a_command_means_what_it_meant(service: dict[str, Any], argv: tuple[str, ...]) -> None:
    assert launched(**service).argv == argv


@pytest.mark.parametrize("data", [{"A": 1, "B": True, "C": "x y", "D": None}, ["A=1", "B=true", "C=x y", "D"]])
def test_environment_as_a_map_or_a_list(data: Any) -> None:
    assert launched(environment=data).env == {"A": "1", "B": "true", "C": "x y"}
    assert any("D is passed on from the shell" in note for note in one(environment=data).notes)


@pytest.mark.parametrize(
    ("value", "result", "note"),
    [
        ("${A:-x}", "x", ""),
        ("${A-x}", "x", ""),
        ("${A:-}", "", ""),
        ("${A}", "", "A comes from the shell"),
        ("$A", "", "A comes from the shell"),
        ("${A:+x}", "", "is read as empty"),
        ("$$A", "$A", ""),
        ("$${A}", "${A}", ""),
        ("100%%", "100%%", ""),
    ],
)
def test_variables_of_the_file(value: str, result: str, note: str) -> None:
    assert launched(environment={"X": value}).env == {"X": result}
    assert any(note in line for line in one(environment={"X": value}).notes) == bool(note)


def test_a_variable_that_must_be_given_stays_open() -> None:
    found = one(environment={"X": "${SECRET:?set it}"})
    assert "vars" not in found.document["processes"]["web"]
    assert found.notes == ("web: SECRET must be given: set vars.SECRET",)
    with pytest.raises(InvalidInput, match='undefined variable "SECRET"'):
        launched(environment={"X": "${SECRET:?set it}"})


@pytest.mark.parametrize(
    ("healthcheck", "expected"),
    [
        ({"test": ["CMD", "pg_isready", "-U", "a b"]}, {"url": "cmd://pg_isready -U 'a b'"}),
        ({"test": ["CMD-SHELL", "curl -f http://x || exit 1"]}, {"url": "cmd://curl -f http://x || exit 1"}),
        ({"test": "curl -f http://x"}, {"url": "cmd://curl -f http://x"}),
        (
            {"test": "true", "interval": "1m30s", "timeout": "10s", "retries": 5, "start_period": "40s"},
            {"url": "cmd://true", "interval": "1m30s", "timeout": "10s", "retries": 5, "start_period": "40s"},
        ),
    ],
)
def test_a_health_check(healthcheck: Any, expected: dict[str, Any]) -> None:
    assert fields(healthcheck=healthcheck)["health"] == {"interval": "30s", "timeout": "30s", **expected}


@pytest.mark.parametrize("healthcheck", [None, {"disable": True}, {"test": ["NONE"]}, {"test": "x", "disable": True}])
def test_no_health_check(healthcheck: Any) -> None:
    assert "health" not in fields(healthcheck=healthcheck)


def test_a_health_check_of_the_image_is_noted() -> None:
    assert one(healthcheck={"interval": "5s"}).notes == ("web: its health check is in the image and is left out",)


def test_a_health_check_runs_as_it_was_written() -> None:
    job = launched(healthcheck={"test": ["CMD", "printf", "%s,", "${A:-it's}", "$$HOME", "x${A}$$HOME", "$$${A}"]})
    assert job.health is not None
    ran = subprocess.run(["/bin/sh", "-c", job.health.url[6:]], check=True, capture_output=True, text=True)
    assert ran.stdout == "it's,$HOME,xit's$HOME,$it's,"


@pytest.mark.parametrize(
    ("restart", "expected"),
    [
        (None, "never"),
        ("no", "never"),
        (False, "never"),
        ("always", "always"),
        ("unless-stopped", "always"),
        ("on-failure", "on-failure"),
        ("on-failure:3", {"policy": "on-failure", "burst": 3}),
    ],
)
def test_restart(restart: Any, expected: Any) -> None:
    assert fields(restart=restart)["restart"] == expected


@pytest.mark.parametrize(
    ("ports", "values", "note"),
    [
        (["5432:5432"], ["5432"], ""),
        (["8080:80"], ["80"], "port 8080 is not mapped to 80"),
        (["80"], ["80"], ""),
        ([8000], ["8000"], ""),
        (["127.0.0.1:8001:8001"], ["8001"], ""),
        (["[::1]:8001:8001"], ["8001"], ""),
        (["3000-3002:3000-3002"], ["3000", "3001", "3002"], ""),
        (["53:53/udp"], [], "only TCP ports are"),
        (["80:80/tcp", "443:443", "80"], ["80", "443"], ""),
        ([{"target": 80, "published": "8080", "protocol": "tcp"}], ["80"], "port 8080 is not mapped"),
        (["${PORT:-8000}:8000"], ["8000"], ""),
    ],
)
def test_ports_are_claimed(ports: list[Any], values: list[str], note: str) -> None:
    (spec,) = environment(one(ports=ports).document, "/srv").processes
    assert [need.value for need in spec.resources] == values
    assert {need.type for need in spec.resources} <= {"tcpport"}
    assert any(note in line for line in one(ports=ports).notes) == bool(note)


@pytest.mark.parametrize(
    ("service", "folder"),
    [
        ({}, None),
        ({"build": "./web"}, "web"),
        ({"build": {"context": "."}}, "."),
        ({"working_dir": "/app"}, None),
        ({"working_dir": "/app", "build": "./web"}, "web"),
        ({"working_dir": "/app", "volumes": ["./src:/app"]}, "src"),
        ({"working_dir": "/app/x/", "volumes": ["./src:/app:ro", "data:/data"]}, "src/x"),
        ({"working_dir": "/app", "volumes": [{"type": "bind", "source": ".", "target": "/app"}]}, "."),
        ({"working_dir": "/application", "volumes": ["./src:/app"]}, None),
    ],
)
def test_a_working_dir_is_one_of_the_host(service: dict[str, Any], folder: str | None) -> None:
    assert fields(**service).get("working_dir") == folder


def test_dependencies_with_conditions() -> None:
    found = compose_file(
        {
            "services": {
                "web": {
                    "command": "serve",
                    "depends_on": {
                        "db": {"condition": "service_healthy"},
                        "migrate": {"condition": "service_completed_successfully"},
                        "cache": {"condition": "service_started"},
                    },
                },
                "db": {"command": "postgres"},
                "cache": {"command": "redis-server"},
                "migrate": {"command": "migrate", "depends_on": ["db"]},
            }
        },
        "shop",
    )
    assert found.document["processes"]["web"]["depends_on"] == [
        {"process": "db", "condition": "healthy"},
        {"process": "migrate", "condition": "completed"},
        {"process": "cache", "condition": "started"},
    ]
    assert found.document["processes"]["migrate"]["depends_on"] == [{"process": "db", "condition": "started"}]
    assert environment(found.document, "/srv").order() == ["shop/db", "shop/migrate", "shop/cache", "shop/web"]


def test_what_cannot_run_without_a_container_is_noted_and_left_out() -> None:
    found = compose_file(
        {
            "version": "3",
            "name": "mine",
            "x-common": {},
            "networks": {"a": None},
            "volumes": {"data": None},
            "services": {
                "db": {"image": "postgres:15"},
                "built": {"build": "."},
                "web": {
                    "image": "web:1",
                    "command": "serve",
                    "depends_on": ["db"],
                    "volumes": ["data:/data", "/tmp"],
                    "networks": ["a"],
                    "privileged": True,
                    "x-mine": 1,
                    "deploy": {"replicas": 2, "resources": {"limits": {"memory": "512M", "cpus": "1.5"}}},
                    "ulimits": {"nofile": {"soft": 1024, "hard": 2048}, "nproc": 64},
                },
            },
        },
        "shop",
    )
    assert found.document["environment"] == {"name": "mine"}
    assert list(found.document["processes"]) == ["web"]
    web = found.document["processes"]["web"]
    assert "depends_on" not in web
    assert web["limits"] == {"memory": "512M", "cpu": 150, "open_files": 1024, "processes": 64}
    assert set(found.notes) == {
        '"networks" of the file is not taken over',
        '"volumes" of the file is not taken over',
        "db: left out: image postgres:15, and no command says what this host should run",
        "built: left out: it is built from a Dockerfile, and no command says what this host should run",
        "web: image web:1 is not used; its program must be installed on this host",
        'web: "networks" is not taken over',
        'web: "privileged" is not taken over',
        "web: volume data:/data is not mounted",
        "web: volume /tmp is not mounted",
        'web: deploy: "replicas" is not taken over',
        "web: no longer waits for db, which is left out",
    }


def test_life_of_a_process() -> None:
    found = fields(stop_signal="SIGINT", stop_grace_period="1m30s", user="1000:1000", env_file=[".env", {"path": "b"}])
    assert (found["stop_signal"], found["stop_timeout"], found["user"]) == ("SIGINT", "1m30s", "1000")
    assert found["env_files"] == [".env", "b"]
    assert fields(env_file=".env")["env_files"] == [".env"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "compose file: expected services, found nothing"),
        ({"services": []}, "compose file: expected services, found list []"),
        ({"services": {"a": 1}}, 'service "a": expected a mapping, found int 1'),
        ({"services": {"a b": {}}}, "service name 'a b': expected"),
        (
            {"services": {"a": {"image": "x"}}},
            "compose file: no service has a command that this host could run: a: left",
        ),
        ({"services": {"a": {"command": 3}}}, 'service "a": command: expected text or a list, found int 3'),
        ({"services": {"a": {"command": "x", "ports": "80"}}}, 'service "a": ports: expected a list'),
        ({"services": {"a": {"command": "x", "ports": ["web"]}}}, 'service "a": ports: expected a whole number'),
        ({"services": {"a": {"command": "x", "restart": "maybe"}}}, 'service "a": restart: expected no, false, always'),
        ({"services": {"a": {"command": "x", "cpus": "many"}}}, 'service "a": cpus: expected a number'),
        (
            {"services": {"a": {"command": "x", "depends_on": {"b": {"condition": "done"}}}}},
            'service "a": depends_on "b": expected service_started, service_healthy',
        ),
        (
            {"services": {"a": {"command": "x", "healthcheck": {"test": "x", "interval": "often"}}}},
            'service "a": healthcheck: interval: expected a duration',
        ),
    ],
)
def test_a_wrong_compose_file_is_an_error_that_names_the_service(data: Any, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        compose_file(data, "shop")
    assert str(caught.value).startswith(message)


KEYS = ("command", "entrypoint", "environment", "ports", "depends_on", "healthcheck", "restart", "volumes", "user",
        "working_dir", "env_file", "deploy", "ulimits", "stop_grace_period", "build", "image")  # fmt: skip
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.sampled_from(
    ["80:80", "1-3:1-3", "${A:-b}", "no", "service_healthy", "CMD", "CMD-SHELL", "x"]
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["test", "condition", "path", "target", "limits", "nofile", "a"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=6))
def test_any_service_is_a_project_or_an_error(service: dict[str, Any]) -> None:
    with contextlib.suppress(FleetError):
        environment(compose_file({"services": {"a": {"command": "x", **service}}}, "shop").document, "/srv")
