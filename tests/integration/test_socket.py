# SPDX-License-Identifier: GPL-3.0-or-later
"""fleetd's socket: who is answered, and what happens to nonsense."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fleet_core.errors import Unavailable
from fleet_node import paths
from fleet_node.client import Client, connect

from .fleetd import Fleet, running, shell, wait_for

STRANGER = """
import socket, sys
link = socket.socket(socket.AF_UNIX)
link.connect(sys.argv[1])
print(link.makefile().readline())
"""


@pytest.fixture
def fleet(state_dir: Path) -> Iterator[Fleet]:
    with running(state_dir) as found:
        yield found


def raw(fleet: Fleet, *lines: bytes) -> list[dict[str, Any]]:
    """Send lines as they are and return one answer for each."""
    with connect(paths.socket(fleet.folder), 10) as link, link.makefile("rwb") as file:
        answers = []
        for line in lines:
            file.write(line + b"\n")
            file.flush()
            answers.append(json.loads(file.readline()))
        return answers


def test_only_its_user_can_reach_it(fleet: Fleet) -> None:
    assert stat.S_IMODE(os.stat(paths.socket(fleet.folder)).st_mode) == 0o600
    assert stat.S_IMODE(fleet.folder.stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can try as another user")
def test_another_user_is_refused_even_with_the_doors_open(fleet: Fleet) -> None:
    path = paths.socket(fleet.folder)
    fleet.folder.chmod(0o755)
    path.chmod(0o666)
    done = subprocess.run(
        ["python3", "-c", STRANGER, path],
        user=65534,
        group=65534,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["error"]["message"] == "fleetd answers only the user that it runs as, and root"
    assert "result" not in answer


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"nonsense", "expected one JSON-RPC 2.0 request a line"),
        (b"[]", "expected a JSON-RPC 2.0 request with a method"),
        (b'{"id":1,"method":5}', "expected a JSON-RPC 2.0 request with a method"),
        (b'{"id":1,"method":"daemon.status","params":[1]}', "expected params as an object"),
        (b'{"id":1,"method":"__init__"}', 'fleetd has no method "__init__"'),
        (b'{"id":1,"method":"daemon.status","params":{"x":1}}', 'takes no parameters, found "x"'),
        (b'{"id":1,"method":"processes.apply","params":{"items":{}}}', "items: expected a list"),
        (b'{"id":1,"method":"processes.apply","params":{"items":[{"id":7}]}}', "expected NAME or ENVIRONMENT/NAME"),
        (
            b'{"id":1,"method":"processes.apply","params":{"items":[{"id":"a","command":[]}]}}',
            'process "a": expected a command',
        ),
        (b'{"id":1,"method":"processes.apply","params":{"items":[],"timeout":"soon"}}', "timeout: expected a duration"),
        (b'{"id":1,"method":"processes.list","params":{"ids":["nobody"]}}', 'process "nobody": not declared'),
        (b"\xff\xfe\x00", "expected one JSON-RPC 2.0 request a line"),
    ],
)
def test_nonsense_gets_one_sentence_and_the_next_request_an_answer(fleet: Fleet, line: bytes, expected: str) -> None:
    first, second = raw(fleet, line, b'{"jsonrpc":"2.0","id":9,"method":"daemon.status"}')
    assert expected in first["error"]["message"]
    assert "\n" not in first["error"]["message"]
    assert second["id"] == 9
    assert second["result"]["pid"] == fleet.daemon.pid  # type: ignore[union-attr]


def test_a_slow_request_keeps_nobody_waiting(fleet: Fleet) -> None:
    slow = threading.Thread(
        target=lambda: Client(fleet.folder).call(
            "processes.apply",
            items=[{"id": "slow", "command": shell("sleep 600"), "readiness": "cmd://sleep 2"}],
            state="started",
            timeout=20,
        )
    )
    slow.start()
    with Client(fleet.folder, timeout=1.5) as client:
        assert client.call("daemon.status")["pid"]
        client.call("processes.apply", items=[{"id": "quick", "command": "sleep 600"}], state="started")
    slow.join(20)
    assert not slow.is_alive()
    assert fleet.get("slow")["status"] == "running"


def test_forty_clients_at_once(fleet: Fleet) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            with Client(fleet.folder) as client:
                item = {"id": f"p{number}", "command": "sleep 600", "resources": ["tcpport"]}
                client.call("processes.apply", items=[item], state="started", timeout=30)
                client.call("processes.stop", ids=[f"p{number}"])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert fleet.claims() == set()


def test_a_client_that_leaves_changes_nothing(fleet: Fleet) -> None:
    with connect(paths.socket(fleet.folder), 5) as link:
        item = {"id": "left", "command": "sleep 600"}
        params = {"items": [item], "state": "started"}
        link.sendall(
            json.dumps({"jsonrpc": "2.0", "id": 1, "method": "processes.apply", "params": params}).encode() + b"\n"
        )
    wait_for(
        "it is declared", lambda: [item for item in fleet.call("processes.list")["processes"] if item["id"] == "left"]
    )
    assert fleet.until("left", "running")["pid"]


def test_a_path_longer_than_a_socket_name_works(tmp_path: Path) -> None:
    folder = tmp_path / ("long-" * 30)
    folder.mkdir(mode=0o700)
    with running(folder) as fleet:
        assert len(str(paths.socket(folder))) > 108
        assert fleet.call("daemon.status")["state_dir"] == str(folder)


def test_no_fleetd_is_one_sentence(state_dir: Path) -> None:
    with pytest.raises(Unavailable, match=r"fleetd is not running: .* start it with `fleet daemon start`"):
        Client(state_dir).call("daemon.status")
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(paths.socket(state_dir)))
    dead.close()
    with pytest.raises(Unavailable, match="fleetd is not running: nothing listens"):
        Client(state_dir).call("daemon.status")


@pytest.mark.parametrize(
    ("request_line", "sentence"),
    [
        ('{"id": 1, "method": "processes.list", "params": {"environmnt": "x"}}', 'did you mean "environment"'),
        ('{"id": 1, "method": "processes.inspect"}', 'processes.inspect: expected "id", found nothing'),
        ('{"id": 1, "method": "processes.inspect", "params": {"id": [1]}}', "id: expected str, found list"),
        ('{"id": 1, "method": "environments.status", "params": {"path": 5}}', "path: expected str"),
        ('{"id": 1, "method": "processes.stop", "params": {"ids": [], "wait": "no"}}', "wait: expected bool"),
        ("[" * 200_000, "expected one JSON-RPC 2.0 request a line"),
    ],
)
def test_wrong_parameters_are_told_in_one_sentence(fleet: Fleet, request_line: str, sentence: str) -> None:
    (answer,) = raw(fleet, request_line.encode())
    assert sentence in answer["error"]["message"]
    assert "\n" not in answer["error"]["message"]
    assert "Traceback" not in fleet.log()


def test_a_client_that_asks_for_no_more_still_gets_its_answers(fleet: Fleet) -> None:
    with connect(paths.socket(fleet.folder), 10) as link:
        items = '[{"id": "p", "command": "sleep 1000"}]'
        link.sendall(b'{"id": 1, "method": "processes.apply", "params": {"items": %s}}\n' % items.encode())
        link.shutdown(socket.SHUT_WR)
        answer = json.loads(link.makefile().readline())
    assert answer["result"]["processes"][0]["status"] == "running"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_a_state_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    script = 'mount -t tmpfs -o ro,mode=700 none "$1" && exec "$2" -m autovibe_fleet.node.daemon --state-dir "$1"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", str(tmp_path), sys.executable],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 8
    assert done.stderr == f"fleetd: state folder {tmp_path}: fleetd.lock cannot be written: Read-only file system\n"


def test_processes_hear_signals_that_fleetd_was_started_to_ignore(state_dir: Path) -> None:
    with running(state_dir) as fleet:
        fleet.end()
        fleet.up(prefix=("sh", "-c", "trap '' INT QUIT HUP; exec \"$@\"", "sh"))
        for name in ("SIGINT", "SIGQUIT", "SIGHUP"):
            fleet.start(name, "sleep 600", stop_signal=name, stop_timeout=30)
            begun = time.monotonic()
            fleet.stop(name)
            assert time.monotonic() - begun < 10
