# SPDX-License-Identifier: GPL-3.0-or-later
"""The addon of mitmproxy that enforces a fence's policy and writes down what guests do. It runs in mitmproxy's Python.

A request goes out only when its guest may reach that name on that port, and when the name in CONNECT, in the TLS
greeting and in the Host header (or :authority) are one. A name must not lead to a special address. The policy is read
again whenever its file changes; a connection that it allows no longer ends with the next byte, or when time is up.

Log: a JSON object a line, with method, host, port, path, status, sizes and duration. Never bodies, headers, queries, or
parts of paths that look like keys.

Source: event hooks of mitmproxy 10 to 12 (docs.mitmproxy.org/stable/api/events.html). mitmproxy is given a copy of this
file and of egress_decisions.py beside it.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fleet_core.egress_decisions import WEB_PORTS, Policy, as_address, as_host, loggable, mismatch

    ctx: Any = None
    http: Any = None
else:
    try:
        from egress_decisions import WEB_PORTS, Policy, as_address, as_host, loggable, mismatch
        from mitmproxy import ctx, http
    except ImportError:  # elsewhere than in mitmproxy, this file is copied and tested
        ctx = http = None
        try:
            from ..fleet_core.egress_decisions import WEB_PORTS, Policy, as_address, as_host, loggable, mismatch
        except ImportError:
            from fleet_core.egress_decisions import WEB_PORTS, Policy, as_address, as_host, loggable, mismatch

TICK = 1.0  # seconds between looks at connections that say nothing
LARGEST_REFUSED = 65536  # bytes of a body that is read to its end before the refusal
KILLED = "Connection killed: "  # mitmproxy's words before ours


class PolicyFile:
    """The policy as its file has it now."""

    def __init__(self, path: str = "") -> None:
        self._path = path
        self._seen: tuple[int, int, int] = (0, 0, 0)
        self._policy = Policy()

    def now(self) -> Policy:
        """Read the file if it is another one. One that cannot be read lets nobody out."""
        try:
            found = os.stat(self._path)
            seen = (found.st_ino, found.st_mtime_ns, found.st_size)
            if seen != self._seen:
                with open(self._path, encoding="utf-8") as file:
                    self._policy = Policy(json.load(file))
                self._seen = seen
        except Exception:
            self._seen, self._policy = (0, 0, 0), Policy()
        return self._policy


class Log:
    """JSON lines, appended to whatever file has the name now: it may be rotated at any time."""

    def __init__(self, path: str) -> None:
        self._path = path

    def write(self, row: Mapping[str, Any]) -> None:
        line = (json.dumps(row, separators=(",", ":")) + "\n").encode()
        file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        try:
            os.write(file, line)
        finally:
            os.close(file)


class Counter:
    """A stream that passes bytes on as they come, remembers how many, and passes none on once it is shut."""

    def __init__(self) -> None:
        self.size, self.shut = 0, False

    def __call__(self, chunk: bytes) -> bytes:
        self.size += len(chunk)
        return b"" if self.shut else chunk


class Client:
    """A guest's connection: where it goes, so that it can be cut when one of that is no longer allowed."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.targets: set[tuple[str, int]] = set()
        self.counters: list[Counter] = []
        self.cut = ""


class Addon:
    """The hooks of mitmproxy. What we know of a flow stands in its metadata."""

    def __init__(self) -> None:
        self._file, self.log = PolicyFile(), Log(os.devnull)
        self._clients: dict[str, Client] = {}
        self._asked: dict[int, tuple[str, int]] = {}  # names of server connections that are being made to addresses
        self._ticking: asyncio.Task[None] | None = None

    @property
    def policy(self) -> Policy:
        return self._file.now()

    # -- life -----------------------------------------------------------------------------------------------------

    def load(self, loader: Any) -> None:
        loader.add_option("fleet_policy", str, "", "File of the policy.")
        loader.add_option("fleet_log", str, os.devnull, "File that requests are written to.")

    def configure(self, updated: Any) -> None:
        self._file, self.log = PolicyFile(ctx.options.fleet_policy), Log(ctx.options.fleet_log)

    def running(self) -> None:
        self._ticking = asyncio.get_running_loop().create_task(self._tick())

    def done(self) -> None:
        """End the process: mitmproxy goes on without an addon whose file is gone or another one, and lets all out."""
        if self._ticking:
            self._ticking.cancel()
        for ident in tuple(self._clients):
            self._cut(ident, "the policy is no longer enforced")
        ctx.master.shutdown()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            now, policy = time.time(), self.policy
            for ident, client in tuple(self._clients.items()):
                if any(policy.refusal(client.source, *target, now) for target in client.targets):
                    self._cut(ident, "the policy allows it no longer")

    def _cut(self, ident: str, reason: str) -> None:
        """End a guest's connection and all that goes through it."""
        client = self._clients.get(ident)
        if client is None:
            return
        client.cut = reason
        for counter in client.counters:
            counter.shut = True
        for handler in tuple(ctx.master.addons.get("proxyserver").connections.values()):
            transport = handler.transports.get(handler.client) if handler.client.id == ident else None
            if transport and transport.handler:
                transport.handler.cancel(reason)

    # -- connections ----------------------------------------------------------------------------------------------

    # mitmproxy goes on when a hook raises. So each of these first closes what it may open at its end.

    def client_connected(self, client: Any) -> None:
        client.error = "this is no machine of the policy"
        source = client.peername[0]
        if self.policy.guest(source):
            self._clients[client.id] = Client(source)
            client.error = None

    def client_disconnected(self, client: Any) -> None:
        self._clients.pop(client.id, None)

    def tls_failed_client(self, data: Any) -> None:
        """A machine that does not trust our certificate authority, or a program that trusts one server only."""
        target = data.context.server.address or ("", 0)
        self._write(
            data.context.client, str(target[0]), int(target[1]), "CONNECT", "the machine ended the TLS greeting"
        )

    async def server_connect(self, data: Any) -> None:
        """Resolve the name ourselves, look at what it leads to, and connect to exactly that."""
        data.server.error = "the policy could not be asked"
        host, port = as_host(data.server.address[0]), int(data.server.address[1])
        client = self._clients.get(data.client.id)
        reason = client.cut if client else "this is no machine of the policy"
        reason = reason or self._refusal(data.client, host, port)
        if not reason:
            reason, address = await self._resolved(data.client.peername[0], host, port)
        if reason:
            data.server.error = reason
            return
        self._asked[id(data.server)] = data.server.address
        data.server.address = (address, port)
        data.server.error = None

    async def _resolved(self, source: str, host: str, port: int) -> tuple[str, str]:
        """Return why a host is not connected to, and the address that is."""
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            return f"{host}: {error.strerror or error}", ""
        scope, now = self.policy.scope(source), time.time()
        addresses = [as_address(str(row[4][0])) for row in found]
        usable = [one for one in addresses if one is not None and scope and scope.leads(one, host, port, now)]
        if not usable or len(usable) < len(addresses):
            return f"{host} leads to an address that names must not lead to", ""
        return "", str(usable[0])

    def server_connected(self, data: Any) -> None:
        """Put the name back: the certificate is verified against it, and connections are reused by it."""
        asked = self._asked.pop(id(data.server), None)
        if asked:
            object.__setattr__(data.server, "address", asked)  # mitmproxy itself wants no other address once it is open

    server_connect_error = server_connected

    # -- requests -------------------------------------------------------------------------------------------------

    def http_connect(self, flow: Any) -> None:
        flow.response = refused(500, "the policy could not be asked")
        host, port = as_host(flow.request.host), int(flow.request.port)
        reason = self._refusal(flow.client_conn, host, port)
        flow.response = refused(403, f"{host}:{port}: {reason}") if reason else None
        if reason:
            self._write(flow.client_conn, host, port, "CONNECT", reason, status=403)

    def requestheaders(self, flow: Any) -> None:
        try:
            self._requestheaders(flow)
        except Exception:
            flow.kill()
            raise

    def _requestheaders(self, flow: Any) -> None:
        request = flow.request
        host, port = as_host(request.host), int(request.port)
        said = [*request.headers.get_all("host"), *([request.authority] if request.authority else [])]
        different = mismatch(host, flow.client_conn.sni, said)
        reason = different or self._refusal(flow.client_conn, host, port)
        if reason:
            self._refuse(flow, 421 if different else 403, reason)
            return
        for name in ("proxy-connection", "proxy-authorization"):
            request.headers.pop(name, None)
        flow.metadata["fleet_received"] = request.stream = self._counter(flow)

    def _counter(self, flow: Any) -> Counter:
        counter = Counter()
        client = self._clients.get(flow.client_conn.id)
        if client:
            client.counters = [*client.counters[-99:], counter]
        return counter

    def _refuse(self, flow: Any, status: int, reason: str) -> None:
        flow.metadata["fleet_reason"] = reason
        length = flow.request.headers.get("content-length", "0")
        endless = "transfer-encoding" in flow.request.headers or not length.isdigit() or int(length) > LARGEST_REFUSED
        if endless or (flow.request.is_http2 and "content-length" not in flow.request.headers and has_body(flow)):
            flow.kill()
        else:
            flow.response = refused(status, f"{as_host(flow.request.host)}:{flow.request.port}: {reason}")

    def responseheaders(self, flow: Any) -> None:
        if "fleet_reason" not in flow.metadata:
            flow.metadata["fleet_sent"] = flow.response.stream = self._counter(flow)

    def response(self, flow: Any) -> None:
        self._write_flow(flow, flow.metadata.get("fleet_reason", ""))

    def error(self, flow: Any) -> None:
        if "fleet_written" not in flow.metadata:
            words = str(flow.error or "")
            ours = words[len(KILLED) :] if words.startswith(KILLED) else ""
            self._write_flow(flow, flow.metadata.get("fleet_reason", "") or ours, "" if ours else words)

    # -- what is not requests -------------------------------------------------------------------------------------

    def websocket_message(self, flow: Any) -> None:
        message = flow.websocket.messages[-1]
        flow.websocket.messages.clear()
        content, message.content = message.content, b""
        if self._refusal(flow.client_conn, as_host(flow.request.host), int(flow.request.port)):
            message.drop()
            self._cut(flow.client_conn.id, "the policy allows it no longer")
            return
        message.content = content
        sizes = flow.metadata.setdefault("fleet_messages", [0, 0])
        sizes[0 if message.from_client else 1] += len(message.content)

    def websocket_end(self, flow: Any) -> None:
        received, sent = flow.metadata.get("fleet_messages", (0, 0))
        self._write_flow(flow, "", "", method="WEBSOCKET", received=received, sent=sent)

    def tcp_start(self, flow: Any) -> None:
        """A tunnel of something else, such as SSH: only where no HTTP is expected, and not within TLS."""
        host, port = flow.server_conn.address or ("", 0)
        if flow.client_conn.tls_established or int(port) in WEB_PORTS:
            flow.metadata["fleet_reason"] = "only HTTP leaves on this port"
            self._cut(flow.client_conn.id, flow.metadata["fleet_reason"])
            self._write(flow.client_conn, as_host(str(host)), int(port), "TUNNEL", flow.metadata["fleet_reason"])
        else:
            flow.metadata["fleet_opened"] = True

    def tcp_message(self, flow: Any) -> None:
        message = flow.messages[-1]
        flow.messages.clear()
        content, message.content = message.content, b""
        client = self._clients.get(flow.client_conn.id)
        if client is None or client.cut or "fleet_opened" not in flow.metadata:
            return
        message.content = content
        sizes = flow.metadata.setdefault("fleet_messages", [0, 0])
        sizes[0 if message.from_client else 1] += len(content)

    def tcp_end(self, flow: Any) -> None:
        host, port = flow.server_conn.address or ("", 0)
        received, sent = flow.metadata.get("fleet_messages", (0, 0))
        if "fleet_reason" not in flow.metadata:
            self._write(flow.client_conn, as_host(str(host)), int(port), "TUNNEL", "", received=received, sent=sent)

    tcp_error = tcp_end

    # -- words ----------------------------------------------------------------------------------------------------

    def _refusal(self, connection: Any, host: str, port: int) -> str:
        reason = self.policy.refusal(connection.peername[0], host, port, time.time())
        client = self._clients.get(connection.id)
        if client and not reason:
            client.targets.add((host, port))
        return reason

    def _write_flow(self, flow: Any, reason: str, failure: str = "", **more: Any) -> None:
        flow.metadata["fleet_written"] = True
        request, response = flow.request, flow.response
        ended = response.timestamp_end or time.time() if response else time.time()
        sizes = {side: getattr(flow.metadata.get(f"fleet_{side}"), "size", 0) for side in ("received", "sent")}
        row = {
            "path": loggable(request.path),
            "version": request.http_version,
            "status": response.status_code if response else 0,
            "milliseconds": round((ended - request.timestamp_start) * 1000),
            **({"failure": failure} if failure else {}),
            **sizes,
            **more,
        }
        method = row.pop("method", request.method)
        self._write(flow.client_conn, as_host(request.host), int(request.port), method, reason, **row)

    def _write(self, connection: Any, host: str, port: int, method: str, reason: str, **more: Any) -> None:
        source = connection.peername[0]
        row = {"time": round(time.time(), 3), "source": source, **self.policy.guest(source), "method": method}
        row.update(host=host, port=port, sni=connection.sni or "", verdict="denied" if reason else "allowed")
        self.log.write({**row, **({"reason": reason} if reason else {}), **more})


def refused(status: int, sentence: str) -> Any:
    """Return the answer that a machine gets: one sentence, no page."""
    return http.Response.make(
        status, f"fleet: {sentence}\n", {"Content-Type": "text/plain", "X-Fleet-Egress": "denied"}
    )


def has_body(flow: Any) -> bool:
    return flow.request.method not in ("GET", "HEAD", "OPTIONS", "DELETE")


addons = [Addon()]
