# SPDX-License-Identifier: GPL-3.0-or-later
"""The servers of one namespace: HTTP, TLS with any name, echo over TCP and UDP, DNS, DoT and DoH.

Every answer is a JSON object that says which address was reached, from where, and what the client called it.
"""

from __future__ import annotations

import json
import selectors
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Mapping
from typing import Any

import dns_messages

Answer = Callable[[socket.socket, dict[str, Any]], None]


def plain(address: str) -> str:
    """An IPv4 address that a socket of IPv6 shows as ::ffff:ADDRESS, and no scope."""
    return address.partition("%")[0].removeprefix("::ffff:")


class Servers:
    """All that listens. Zones can be changed while it runs; queries and connections are remembered."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """settings: names (address to name), http, tls, echo, dot (TCP ports), udp (ports), addresses (of UDP and DNS),
        dns (whether port 53 is served), zones (address or "" to zone), ttl, certificate (a PEM file with its key)."""
        self.settings = settings
        self.zones: dict[str, dict[str, Any]] = dict(settings.get("zones", {}))
        self.ttl = int(settings.get("ttl", 1))
        self.queries: list[dict[str, Any]] = []
        self.connections: list[dict[str, Any]] = []

    def start(self) -> None:
        kinds: dict[str, Answer] = {"http": self._http, "tls": self._tls_http, "echo": self._echo, "dot": self._dot}
        for kind, serve in kinds.items():
            for port in self.settings.get(kind, ()):
                self._listen(int(port), kind, serve)
        if self.settings.get("dns"):
            self._listen(53, "dns", self._dns_stream)
        self._datagrams()

    def _context(self, report: dict[str, Any]) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.settings["certificate"])

        def note(_socket: Any, name: str | None, _context: Any) -> None:
            report["sni"] = name

        context.sni_callback = note
        return context

    # -- TCP ------------------------------------------------------------------------------------------------------

    def _listen(self, port: int, kind: str, serve: Answer) -> None:
        listener = socket.create_server(
            ("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=512, reuse_port=False
        )

        def accept() -> None:
            while True:
                stream, client = listener.accept()
                threading.Thread(target=self._serve, args=(stream, client, kind, port, serve), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()

    def _serve(self, stream: socket.socket, client: tuple[Any, ...], kind: str, port: int, serve: Answer) -> None:
        address = plain(stream.getsockname()[0])
        report = {
            "server": self.settings.get("names", {}).get(address, address),
            "address": address,
            "port": port,
            "client": plain(client[0]),
            "kind": kind,
        }
        self.connections.append(report)
        stream.settimeout(120)
        try:
            with stream:
                serve(stream, report)
        except (OSError, ValueError, IndexError, struct.error):
            report["broken"] = True

    def _http(self, stream: socket.socket, report: dict[str, Any]) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            data = stream.recv(65536)
            if not data:
                return
            head += data
        text, _empty, body = head.partition(b"\r\n\r\n")
        line, *fields = text.decode("latin-1").split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _colon, value in (f.partition(":") for f in fields)}
        report.update(method=line.split()[0], path=line.split()[1], host=headers.get("host", ""))
        if report["path"] == "/dns-query":
            length = int(headers.get("content-length", "0"))
            while len(body) < length:
                body += stream.recv(65536)
            answer, kind = self._answer(body, report, "doh"), "application/dns-message"
        else:
            answer, kind = (json.dumps(report) + "\n").encode(), "application/json"
        status = (
            f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(answer)}\r\nConnection: close\r\n\r\n"
        )
        stream.sendall(status.encode() + answer)

    def _tls_http(self, stream: socket.socket, report: dict[str, Any]) -> None:
        with self._context(report).wrap_socket(stream, server_side=True) as wrapped:
            self._http(wrapped, report)

    def _echo(self, stream: socket.socket, report: dict[str, Any]) -> None:
        stream.sendall((json.dumps(report) + "\n").encode())
        while data := stream.recv(65536):
            stream.sendall(data)

    def _dot(self, stream: socket.socket, report: dict[str, Any]) -> None:
        with self._context(report).wrap_socket(stream, server_side=True) as wrapped:
            self._dns_stream(wrapped, report)

    def _dns_stream(self, stream: socket.socket, report: dict[str, Any]) -> None:
        buffer = b""
        while data := stream.recv(65536):
            buffer += data
            while len(buffer) >= 2 and len(buffer) >= 2 + (size := struct.unpack(">H", buffer[:2])[0]):
                answer = self._answer(
                    buffer[2 : 2 + size], report, report["kind"] if report["kind"] == "dot" else "tcp"
                )
                buffer = buffer[2 + size :]
                stream.sendall(struct.pack(">H", len(answer)) + answer)

    # -- UDP and DNS ----------------------------------------------------------------------------------------------

    def _datagrams(self) -> None:
        selector = selectors.DefaultSelector()
        ports = [*self.settings.get("udp", ()), *([53] if self.settings.get("dns") else [])]
        for address in self.settings.get("addresses", ()):
            for port in ports:
                family = socket.AF_INET6 if ":" in address else socket.AF_INET
                listener = socket.socket(family, socket.SOCK_DGRAM)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
                listener.bind((address, int(port)))
                selector.register(listener, selectors.EVENT_READ, (address, int(port)))

        def serve() -> None:
            while True:
                for key, _events in selector.select():
                    listener = key.fileobj
                    assert isinstance(listener, socket.socket)
                    self._datagram(listener, *key.data)

        if selector.get_map():
            threading.Thread(target=serve, daemon=True).start()

    def _datagram(self, listener: socket.socket, address: str, port: int) -> None:
        data, client = listener.recvfrom(65536)
        report = {"server": self.settings.get("names", {}).get(address, address), "address": address, "port": port}
        report["client"] = plain(client[0])
        try:
            if port == 53:
                listener.sendto(self._answer(data, report, "udp"), client)
            elif data.startswith(b"#"):  # numbered: the flow's loss is counted, nobody wants words
                listener.sendto(data, client)
            else:
                self.connections.append({**report, "kind": "udp"})
                listener.sendto(json.dumps({**report, "data": data.decode(errors="replace")}).encode(), client)
        except (OSError, ValueError, IndexError, struct.error):
            return

    def _answer(self, message: bytes, report: Mapping[str, Any], transport: str) -> bytes:
        _number, name, kind, _raw = dns_messages.question(message)
        seen = {"server": report["server"], "client": report["client"], "transport": transport}
        self.queries.append({**seen, "name": name, "type": kind})
        zone = self.zones.get(str(report["address"]), self.zones.get("", {}))
        rcode, records = dns_messages.resolve(zone, name, kind, self.ttl)
        return dns_messages.answer(message, rcode, records)
