# SPDX-License-Identifier: GPL-3.0-or-later
"""Streamable HTTP: for those who know the token, and under the server's own name only."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from anyio.from_thread import start_blocking_portal
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from .conftest import PROGRAM, Assistant, Host, fresh_host

HELLO = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}},
}


class Server:
    """A running `fleet mcp --http`."""

    def __init__(self, host: Host, process: subprocess.Popen[str]) -> None:
        self.host = host
        self.process = process
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.fullmatch(r"Serving (http://127\.0\.0\.1:(\d+)/mcp); the token is in (.+)\n", line)
        assert found, line
        self.url, self.port, self.token_file = found[1], int(found[2]), Path(found[3])

    @property
    def token(self) -> str:
        return self.token_file.read_text().strip()

    def status(self, path: str = "/mcp", **headers: str) -> int:
        """Send a request and return the status; headers override those of a client that may."""
        names = {
            "Host": f"127.0.0.1:{self.port}",
            "Authorization": f"Bearer {self.token}",
            "Content-Type": "application/json",
            "Accept": "application/json, text/event-stream",
        }
        names.update({key.replace("_", "-"): value for key, value in headers.items()})
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.putrequest("POST", path, skip_host=True)
        body = json.dumps(HELLO).encode()
        for name, value in {**names, "Content-Length": str(len(body))}.items():
            if value:
                connection.putheader(name, value)
        connection.endheaders(body)
        status = connection.getresponse().status
        connection.close()
        return status


@contextmanager
def serving(host: Host, **environ: str) -> Iterator[Server]:
    process = subprocess.Popen(
        [PROGRAM, "mcp", "--http", "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
        env={**host.environ, **environ},
        cwd=host.home,
    )
    try:
        yield Server(host, process)
    finally:
        process.send_signal(signal.SIGTERM)
        _out, err = process.communicate(timeout=20)
        assert "Traceback" not in err


@contextmanager
def session(server: Server, headers: Mapping[str, str], mode: str = "auto") -> Iterator[Assistant]:
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(httpx2.AsyncClient(headers=dict(headers), timeout=60)) as http_client,
        portal.wrap_async_context_manager(
            Client(streamable_http_client(server.url, http_client=http_client), mode=mode)
        ) as client,
    ):
        yield Assistant(portal, client)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    for host in fresh_host():
        with serving(host) as found:
            yield found


def test_a_client_with_the_token_uses_the_tools(server: Server) -> None:
    with session(server, {"Authorization": f"Bearer {server.token}"}) as assistant:
        project = str(server.host.project)
        assert assistant.ok("activate_environment", path=project)["environment"]["status"] == "active"
        assert assistant.ok("list_processes", environment="shop")["processes"][0]["status"] == "running"
        assert assistant.error("start_process", name="none", environment="shop")["code"] == "not_found"
        assert assistant.ok("deactivate_environment", environment="shop")["changed"]


def test_each_session_has_the_environment_that_it_activated(server: Server) -> None:
    token = {"Authorization": f"Bearer {server.token}"}
    with session(server, token, "legacy") as one, session(server, token, "legacy") as other:
        one.ok("activate_environment", path=str(server.host.project))
        assert one.ok("list_processes")["processes"][0]["id"] == "shop/web"
        assert other.error("list_processes")["code"] == "invalid_input"
        one.ok("deactivate_environment")


def test_who_may_is_answered(server: Server) -> None:
    assert server.status() == 200
    assert server.status(Host=f"localhost:{server.port}", Origin=f"http://localhost:{server.port}") == 200


@pytest.mark.parametrize("given", ["", "Bearer", "Bearer wrong", "Basic dTpw", "bearer "])
def test_without_the_token_nothing_is_answered(server: Server, given: str) -> None:
    assert server.status(Authorization=given) == 401
    assert server.status("/anything", Authorization=given) == 401


def test_the_token_must_be_the_whole_one(server: Server) -> None:
    assert server.status(Authorization=f"Bearer {server.token[:-1]}") == 401
    assert server.status(Authorization=f"Bearer {server.token}x") == 401


@pytest.mark.parametrize("name", ["evil.example", "127.0.0.1", "127.0.0.1:1", "127.0.0.1:{port}.evil.example", ""])
def test_a_name_that_is_not_its_own_is_refused(server: Server, name: str) -> None:
    assert server.status(Host=name.format(port=server.port)) in (400, 421)


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1:{port}", "http://127.0.0.1"])
def test_pages_of_other_origins_are_refused(server: Server, origin: str) -> None:
    assert server.status(Origin=origin.format(port=server.port)) == 403


def test_it_listens_on_loopback_only(server: Server) -> None:
    with open("/proc/net/tcp", encoding="ascii") as table:
        listening = [line.split()[1] for line in table if line.split()[3] == "0A"]
    assert f"0100007F:{server.port:04X}" in listening
    assert f"00000000:{server.port:04X}" not in listening


def test_the_token_is_private_and_in_no_command_line(server: Server) -> None:
    assert server.token_file == server.host.state / "mcp.token"
    assert stat.S_IMODE(server.token_file.stat().st_mode) == 0o600
    assert len(server.token) >= 32
    for name in ("cmdline", "environ"):
        assert server.token.encode() not in Path(f"/proc/{server.process.pid}/{name}").read_bytes()


def test_a_token_of_ones_own_is_used(host: Host) -> None:
    own = host.home / "token"
    own.write_text("a-token-of-my-own-making\n")
    own.chmod(0o600)
    with serving(host, FLEET_MCP_TOKEN_FILE=str(own)) as found:
        assert found.token_file == own
        assert found.status() == 200


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [("a-token-of-my-own-making", 0o644, "expected mode 0600, found 0644"), ("short", 0o600, "16 characters")],
)
def test_a_token_that_others_know_is_refused(host: Host, text: str, mode: int, words: str) -> None:
    own = host.home / "token"
    own.write_text(text)
    own.chmod(mode)
    done = host.fleet("mcp", "--http", "--port", "0", FLEET_MCP_TOKEN_FILE=str(own))
    assert done.returncode == 2
    assert words in done.stderr
    assert text not in done.stderr


def test_a_port_in_use_is_one_sentence(host: Host) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = host.fleet("mcp", "--http", "--port", str(port))
    assert done.returncode == 4
    assert done.stderr == (f"fleet: port {port} of 127.0.0.1: {os.strerror(98)}; choose another by --port\n")
