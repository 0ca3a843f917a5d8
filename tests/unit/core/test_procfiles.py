# SPDX-License-Identifier: GPL-3.0-or-later
"""Procfiles as project files."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_core.environments import environment
from fleet_core.errors import FleetError, InvalidInput
from fleet_core.interpolation import interpolate
from fleet_core.processes import launch
from fleet_core.procfiles import Imported, literal, needs_shell, procfile


def argv(found: Imported, name: str, port: str = "3000") -> tuple[str, ...]:
    """What would be executed for a process of the imported project."""
    (spec,) = [spec for spec in environment(found.document, "/srv").processes if spec.name == name]
    claimed = {"tcpport": ("tcpport", port)} if spec.resources else {}
    return launch(spec, claimed, extra={"project_dir": "/srv"}).argv


def fields(found: Imported, name: str) -> Any:
    return found.document["processes"][name]


def test_a_procfile_becomes_a_project() -> None:
    found = procfile("# comment\n\nweb: bin/rails server -p $PORT\nworker: bin/sidekiq -c 3\n", "shop")
    assert found.document == {
        "environment": {"name": "shop"},
        "processes": {
            "web": {
                "command": "bin/rails server -p ${tcpport}",
                "restart": "always",
                "resources": ["tcpport"],
                "env_vars": {"PORT": "${tcpport}"},
            },
            "worker": {"command": "bin/sidekiq -c 3", "restart": "always"},
        },
    }
    assert len(found.notes) == 1
    assert found.notes[0].startswith("worker: no PORT is set")


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("serve $PORT", ("serve", "3000")),
        ("serve ${PORT}", ("serve", "3000")),
        ("serve --port=${PORT:-5000}", ("serve", "--port=3000")),
        ('serve "0.0.0.0:$PORT"', ("serve", "0.0.0.0:3000")),
        ("serve $PORTS", ("/bin/sh", "-c", "serve $PORTS")),
        ("serve 'a b' \\$x", ("serve", "a b", "$x")),
        ("cd web && serve -p $PORT", ("/bin/sh", "-c", "cd web && serve -p $PORT")),
        ("RAILS_ENV=x serve", ("/bin/sh", "-c", "RAILS_ENV=x serve")),
        ("serve *.js", ("/bin/sh", "-c", "serve *.js")),
        ("serve $HOME ${OTHER:-x}", ("/bin/sh", "-c", "serve $HOME ${OTHER:-x}")),
        ("serve `hostname`", ("/bin/sh", "-c", "serve `hostname`")),
        ("serve ~/x", ("/bin/sh", "-c", "serve ~/x")),
        ("exec serve", ("/bin/sh", "-c", "exec serve")),
        ("serve > log 2>&1", ("/bin/sh", "-c", "serve > log 2>&1")),
        ("serve 'a && b' \"c | d\"", ("serve", "a && b", "c | d")),
        ("date +%H%%", ("date", "+%H%%")),
        ("serve %tcpport", ("serve", "%tcpport")),
        ("serve 'it", ("/bin/sh", "-c", "serve 'it")),
    ],
)
def test_a_command_means_what_it_meant(command: str, expected: tuple[str, ...]) -> None:
    assert argv(procfile(f"web: {command}", "x"), "web") == expected


def test_env_files_are_read_by_every_process() -> None:
    found = procfile("web: a\nworker: b", "x", (".env",))
    assert [item["env_files"] for item in found.document["processes"].values()] == [[".env"], [".env"]]


def test_release_runs_once_before_the_others() -> None:
    found = procfile("web: a\nrelease: migrate\n", "x")
    assert fields(found, "release") == {"command": "migrate", "restart": "never"}
    assert fields(found, "web")["depends_on"] == [{"process": "release", "condition": "completed"}]
    assert environment(found.document, "/srv").order() == ["x/release", "x/web"]
    assert found.notes == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Procfile: expected NAME: COMMAND lines, found none"),
        ("web: a\nnonsense", "Procfile, line 2: expected NAME: COMMAND, found str 'nonsense'"),
        ("web:", "Procfile, line 1: expected NAME: COMMAND, found str 'web:'"),
        ("web: a\nweb: b", 'Procfile, line 2: process "web" stands twice'),
        ("_web: a", "process name '_web': expected a letter or digit"),
    ],
)
def test_a_wrong_procfile_is_an_error_that_names_the_line(text: str, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        procfile(text, "x")
    assert str(caught.value).startswith(message)


@given(st.text(st.sampled_from("${}%atcpport '\"\\"), max_size=20))
def test_literal_text_reads_back(text: str) -> None:
    counters = {"tcpport": "1", "vncport": "2", "serialport": "3", "gpu": "4"}
    assert interpolate(literal(text), {}, counters) == text


@given(st.text(max_size=60))
def test_any_text_is_a_project_or_an_error(text: str) -> None:
    with contextlib.suppress(FleetError):
        environment(procfile(text, "x").document, "/srv")


@given(st.text(st.sampled_from("ab '\"\\|$"), max_size=20))
def test_a_command_that_needs_no_shell_can_be_split(text: str) -> None:
    if not needs_shell(text):
        argv(procfile(f"p: x {text}", "x"), "p")
