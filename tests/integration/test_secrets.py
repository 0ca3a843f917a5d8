# SPDX-License-Identifier: GPL-3.0-or-later
"""What must not be shown of a process, nor reach other users, is nowhere but in the process itself."""

from __future__ import annotations

import json
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet_core.errors import FleetError

from .fleetd import Fleet, running, shell, wait_for

SECRET = "hunter2's"
NOBODY = "nobody"


@pytest.fixture
def fleet(state_dir: Path) -> Iterator[Fleet]:
    with running(state_dir) as found:
        yield found


def test_no_answer_event_or_note_shows_a_secret(fleet: Fleet) -> None:
    item = {
        "id": "p",
        "command": "sleep 1000; : ${pin_token}",
        "shell": True,
        "vars": {"pin_token": SECRET, "tail": "x"},
        "env": {"DB_PASSWORD": SECRET},
        "health": {"url": "cmd://test -z ${pin_token}", "interval": 0.1, "retries": 1, "action": "none"},
        "readiness": "cmd://test -z ${tail}",
        "start_timeout": 0.3,
        "restart": "never",
    }
    said = [json.dumps(fleet.call("processes.plan", items=[item]))]
    with pytest.raises(FleetError) as caught:
        fleet.apply(item)
    said.append(str(caught.value))
    fleet.apply({**item, "readiness": "cmd://true"})
    view = fleet.until("p", "unhealthy")
    assert view["command"].startswith("/bin/sh -c 'sleep 1000")
    said += [json.dumps(view), json.dumps(fleet.call("processes.inspect", id="p"))]
    said += [fleet.log(), *(record["message"] for record in fleet.logs("p"))]
    assert not [text for text in said if "hunter2" in text]


def test_nothing_of_the_state_can_be_read_by_other_users(fleet: Fleet) -> None:
    fleet.start("p", shell("echo hello; sleep 1000"))
    wait_for("a line", lambda: fleet.printed("p"))
    for path in fleet.folder.rglob("*"):
        if path.name != "fleetd.log":  # the test's own
            assert not stat.S_IMODE(path.lstat().st_mode) & 0o007, path


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs processes as others")
def test_another_users_process_inherits_nothing_of_roots_environment(state_dir: Path) -> None:
    with running(state_dir) as fleet:
        fleet.end()
        fleet.up({"CLOUD_KEY": SECRET, "SSH_AUTH_SOCK": "/run/agent", "LC_ALL": "C.UTF-8"})
        fleet.start("p", "sleep 1000", user=NOBODY, working_dir="/", env={"OWN": "1"})
        environ = Path(f"/proc/{fleet.get('p')['pid']}/environ").read_text().split("\0")
        names = dict(line.split("=", 1) for line in environ if line)
        assert not {"CLOUD_KEY", "SSH_AUTH_SOCK"} & set(names)
        assert names["USER"] == NOBODY
        assert names["HOME"] == pwd.getpwnam(NOBODY).pw_dir
        assert names["OWN"] == "1"
        assert names["LC_ALL"] == "C.UTF-8"
        assert names["PATH"]
