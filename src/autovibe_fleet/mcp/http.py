# SPDX-License-Identifier: GPL-3.0-or-later
"""Streamable HTTP on 127.0.0.1, for those who know the token.

A web page must not reach it through a name that it points here: Host and Origin are checked (DNS rebinding,
https://modelcontextprotocol.io/specification/2025-11-25/basic/transports#security-warning).
"""

from __future__ import annotations

import asyncio
import hmac
import os
import secrets
import socket
import stat
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from mcp.server.transport_security import TransportSecuritySettings

from fleet_core.errors import Conflict, InvalidInput, Unavailable
from fleet_node import paths

from .server import FleetServer

ADDRESS = "127.0.0.1"
PATH = "/mcp"
_SHORTEST = 16  # characters of a token

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


def token_file(folder: Path) -> Path:
    """Return where the token is: $FLEET_MCP_TOKEN_FILE, else mcp.token in the state folder."""
    given = os.environ.get("FLEET_MCP_TOKEN_FILE")
    return Path(os.path.abspath(os.path.expanduser(given))) if given else folder / "mcp.token"


def token(folder: Path) -> str:
    """Return the token; one is made the first time. Raises InvalidInput for one that others can read, or guess."""
    file = token_file(folder)
    try:
        if file.parent == folder:
            paths.make_private(folder)
        try:
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            pass
        else:
            with open(descriptor, "w", encoding="ascii") as new:
                new.write(secrets.token_urlsafe(32) + "\n")
        mode = file.stat().st_mode
        text = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not ASCII text"
        raise Unavailable(f"token file {file}: {reason}") from error
    if mode & 0o077:
        raise InvalidInput(f"token file {file}: expected mode 0600, found {stat.S_IMODE(mode):04o}: others can read it")
    if len(text) < _SHORTEST or any(character.isspace() for character in text):
        raise InvalidInput(f"token file {file}: expected one word of {_SHORTEST} characters at least")
    return text


def serve(server: FleetServer, folder: Path, port: int, note: Callable[[str], None]) -> None:
    """Serve until a signal ends it. Raises Conflict when the port is taken."""
    import uvicorn

    known = token(folder)
    listener = _listener(port)
    number = listener.getsockname()[1]
    hosts = [f"{name}:{number}" for name in (ADDRESS, "localhost", "[::1]")]
    security = TransportSecuritySettings(allowed_hosts=hosts, allowed_origins=[f"http://{name}" for name in hosts])
    application = server.streamable_http_app(streamable_http_path=PATH, transport_security=security)
    note(f"Serving http://{ADDRESS}:{number}{PATH}; the token is in {token_file(folder)}")
    config = uvicorn.Config(
        Guard(application, known, hosts),
        log_level="debug" if server.debug else "warning",
        access_log=server.debug,
        server_header=False,
        timeout_graceful_shutdown=3,
    )
    asyncio.run(uvicorn.Server(config).serve(sockets=[listener]))


def _listener(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((ADDRESS, port))
    except OSError as error:
        listener.close()
        raise Conflict(f"port {port} of {ADDRESS}: {error.strerror}; choose another by --port") from None
    listener.listen(128)  # so that whoever reads the note can connect at once
    return listener


class Guard:
    """Answers nobody who does not give the token, whatever the path, and no request that was meant for another host."""

    def __init__(self, application: Application, token: str, hosts: list[str]) -> None:
        self._application = application
        self._wanted = f"Bearer {token}".encode()
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._application(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        origin = headers.get(b"origin", b"").decode("latin-1")
        if headers.get(b"host", b"").decode("latin-1") not in self._hosts:
            await _refuse(send, 421, "this server answers only on the name that it serves")
        elif origin and origin not in [f"http://{name}" for name in self._hosts]:
            await _refuse(send, 403, "requests of other origins are not answered")
        elif not hmac.compare_digest(headers.get(b"authorization", b""), self._wanted):
            await _refuse(send, 401, "expected the header Authorization: Bearer TOKEN")
        else:
            await self._application(scope, receive, send)


async def _refuse(send: Send, status: int, message: str) -> None:
    body = b'{"error":{"code":"refused","message":"' + message.encode() + b'"}}'
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
