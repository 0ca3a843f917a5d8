# SPDX-License-Identifier: GPL-3.0-or-later
"""The real `fleet mcp`, spoken to by the SDK's own client, with a fleetd of each test's own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from mcp import Client
from mcp.client.stdio import StdioServerParameters

PROGRAM = str(Path(sys.executable).with_name("fleet"))
SERVER = f"{sys.executable} -m http.server --bind 127.0.0.1 %tcpport"
PROJECT = f"""\
# The shop
[environment]
name = "shop"

[processes.web]  # a server
command = "{SERVER}"
"""


@dataclass
class Answer:
    """What a tool answered. data: structured; text: what a model reads. progress: what was said meanwhile."""

    error: bool
    data: dict[str, Any]
    text: str
    progress: list[str]


class Assistant:
    """A client with one session, to be used without asyncio."""

    def __init__(self, portal: BlockingPortal, client: Client) -> None:
        self.portal = portal
        self.client = client

    def __call__(self, tool: str, /, **arguments: Any) -> Answer:
        said: list[str] = []

        async def heard(_progress: float, _total: float | None, message: str | None) -> None:
            said.append(message or "")

        async def call() -> Any:
            return await self.client.call_tool(tool, arguments, progress_callback=heard)

        result = self.portal.call(call)
        text = "".join(getattr(item, "text", "") for item in result.content)
        return Answer(bool(result.is_error), result.structured_content or {}, text, said)

    def ok(self, tool: str, /, **arguments: Any) -> dict[str, Any]:
        """Call a tool that must succeed, and return its structured answer; the client checks it against the schema."""
        answer = self(tool, **arguments)
        assert not answer.error, f"{tool}: {answer.text}"
        return answer.data

    def error(self, tool: str, /, **arguments: Any) -> dict[str, Any]:
        """Call a tool that must fail, and return its error."""
        answer = self(tool, **arguments)
        assert answer.error, f"{tool}: {answer.data}"
        assert "Traceback" not in answer.text
        assert json.loads(answer.text) == answer.data
        assert answer.data["details"]["tool"] == tool
        assert set(answer.data) == {"code", "message", "details"}
        return answer.data

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a coroutine function of the client."""
        return self.portal.call(function, *arguments)


@dataclass
class Host:
    """A state folder, and a home with a project in it."""

    state: Path
    home: Path

    @property
    def project(self) -> Path:
        return self.home / "shop"

    @property
    def environ(self) -> dict[str, str]:
        kept = {key: os.environ[key] for key in ("PATH", "LANG") if key in os.environ}
        return {**kept, "HOME": str(self.home), "FLEET_STATE_DIR": str(self.state)}

    def fleet(self, *words: str, cwd: Path | None = None, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run the fleet command."""
        done = subprocess.run(
            [PROGRAM, *words],
            capture_output=True,
            text=True,
            cwd=cwd or self.home,
            env={**self.environ, **environ},
            timeout=120,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    @contextlib.contextmanager
    def assistant(self, folder: Path | None = None, **environ: str) -> Iterator[Assistant]:
        """A session over stdio, with the server in a folder."""
        parameters = StdioServerParameters(
            command=PROGRAM, args=["mcp"], env={**self.environ, **environ}, cwd=str(folder or self.home)
        )
        with connected(parameters) as found:
            yield found


@contextlib.contextmanager
def connected(server: Any) -> Iterator[Assistant]:
    """A session with a server, as the SDK's client takes it."""
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(Client(server)) as client:
        yield Assistant(portal, client)


def fresh_host() -> Iterator[Host]:
    """A host that ends with all that runs on it."""
    with tempfile.TemporaryDirectory(prefix="fleet-mcp-") as base:
        home = Path(base) / "home"
        (home / "shop").mkdir(parents=True)
        (home / "shop" / ".runcept.toml").write_text(PROJECT, encoding="utf-8")
        host = Host(Path(base) / "state", home)
        try:
            yield host
        finally:
            if (host.state / "fleetd.sock").exists():
                host.fleet("daemon", "stop", "--processes")


@pytest.fixture
def host() -> Iterator[Host]:
    """A host of one test; no fleetd runs yet."""
    yield from fresh_host()


@pytest.fixture
def assistant(host: Host) -> Iterator[Assistant]:
    """A session over stdio in no project."""
    with host.assistant() as found:
        yield found
