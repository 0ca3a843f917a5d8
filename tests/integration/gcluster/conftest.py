# SPDX-License-Identifier: GPL-3.0-or-later
"""The real `fleet gcluster`, and a client that speaks as gcluster's own does."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

PROGRAM = str(Path(sys.executable).with_name("fleet"))
FORM = '(defagent "{name}"\n  (pipeline\n    (step "build" (loop build))))'


def agent(name: str = "builder", body: str = "Build it.", **fields: Any) -> dict[str, Any]:
    """An agent as `gcluster apply` sends it (src/cmd/gcluster/main.go): one loop."""
    return {
        "name": name,
        "definition": FORM.format(name=name),
        "id": "abc",
        "methods": {"build": body},
        "pipeline": {"steps": [{"label": "build", "kind": "loop", "loop_method": "build"}]},
        **fields,
    }


class Peer:
    """A connection to the bridge."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self._file = self.socket.makefile("rb")

    def send(self, kind: str, payload: Any) -> None:
        self.socket.sendall(json.dumps({"type": kind, "payload": payload}).encode() + b"\n")

    def receive(self) -> tuple[str, Any]:
        """Return the type and the payload of the next message, ("", None) at the end."""
        line = self._file.readline()
        if not line:
            return "", None
        message = json.loads(line)
        return message["type"], message["payload"]

    def apply(self, *agents: Any) -> dict[str, Any]:
        self.send("apply_request", {"agents": list(agents)})
        kind, payload = self.receive()
        assert kind == "apply_response"
        return dict(payload)

    def error(self) -> str:
        kind, payload = self.receive()
        assert kind == "error", (kind, payload)
        return str(payload["error"])

    def until(self, true: Callable[[dict[str, Any]], Any], seconds: float = 20.0) -> dict[str, Any]:
        """Return the first state of a subscription that is as wanted."""
        end = time.monotonic() + seconds
        while True:
            kind, payload = self.receive()
            assert kind == "steer_state", (kind, payload)
            if true(payload):
                return dict(payload)
            assert time.monotonic() < end, payload

    def close(self) -> None:
        self._file.close()
        self.socket.close()


class Bridge:
    """A running `fleet gcluster`."""

    def __init__(self, folder: Path, *words: str) -> None:
        kept = {key: os.environ[key] for key in ("PATH", "LANG") if key in os.environ}
        self.folder = folder
        self.environ = {**kept, "HOME": str(folder), "FLEET_STATE_DIR": str(folder / "state")}
        self.process = subprocess.Popen(
            [PROGRAM, "gcluster", "--port", "0", "--runner", "command", "--command", "cat; sleep 0.2", *words],
            stderr=subprocess.PIPE,
            text=True,
            env=self.environ,
            cwd=folder,
        )
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        while line and "Serving gcluster on 127.0.0.1:" not in line:
            line = self.process.stderr.readline()
        self.port = int(line.rpartition(":")[2])
        self._peers: list[Peer] = []

    def peer(self) -> Peer:
        self._peers.append(Peer(self.port))
        return self._peers[-1]

    def subscribed(self) -> Peer:
        found = self.peer()
        found.send("steer_subscribe", {})
        return found

    def fleet(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PROGRAM, *words], capture_output=True, text=True, env=self.environ, timeout=60, check=False
        )

    def call(self, method: str, /, **params: Any) -> Any:
        """Ask fleetd itself."""
        from fleet_node.client import Client

        with Client(self.folder / "state") as client:
            return client.call(method, **params)

    def end(self, number: int = signal.SIGTERM) -> str:
        """End the bridge; return what it said."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        _out, err = self.process.communicate(timeout=20)
        assert "Traceback" not in err, err
        return err

    def down(self) -> None:
        for peer in self._peers:
            peer.close()
        self.end()
        if (self.folder / "state" / "fleetd.sock").exists():
            names = [view["name"] for view in self.call("agents.list")["agents"]]
            self.call("agents.delete", names=names, timeout=30)
            self.fleet("daemon", "stop", "--processes")


@pytest.fixture
def start() -> Iterator[Callable[..., Bridge]]:
    """What starts a bridge in a folder of the test's own."""
    with tempfile.TemporaryDirectory(prefix="fleet-gc-") as folder:
        started: list[Bridge] = []

        def begin(*words: str) -> Bridge:
            started.append(Bridge(Path(folder), *words))
            return started[-1]

        yield begin
        for bridge in started:
            bridge.down()


@pytest.fixture
def bridge(start: Callable[..., Bridge]) -> Bridge:
    """A bridge."""
    return start()
