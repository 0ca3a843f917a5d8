# SPDX-License-Identifier: GPL-3.0-or-later
"""A web server behind the proxy that tells what reached it. `python web_server.py CERTIFICATE LOG TLS_PORT PLAIN_PORT`.

`/` answers with what was asked, as JSON; `/big/N` with N bytes; `/chat` becomes a WebSocket that echoes; `/drip` says
a byte ten times a second for a minute. LOG: a JSON line for each connection's name in TLS, and each request.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import ssl
import sys
from pathlib import Path
from typing import Any

_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455


class WebServer:
    def __init__(self, log: Path) -> None:
        self._log = log

    def note(self, **row: Any) -> None:
        with self._log.open("a") as file:
            file.write(json.dumps(row) + "\n")

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                line, *fields = head.decode("latin-1").strip().split("\r\n")
                method, path, _version = line.split(" ")
                headers = {
                    name.lower(): value.strip() for name, _colon, value in (one.partition(":") for one in fields)
                }
                size = await self._body(reader, headers)
                self.note(method=method, path=path, headers=headers, size=size)
                if path == "/chat":
                    await self._chat(reader, writer, headers)
                    return
                await self._answer(writer, path, {"method": method, "path": path, "headers": headers, "size": size})
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            pass
        finally:
            writer.close()

    @staticmethod
    async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> int:
        size = 0
        if headers.get("transfer-encoding") == "chunked":
            while length := int((await reader.readline()).split(b";")[0], 16):
                await reader.readexactly(length + 2)
                size += length
            await reader.readline()
            return size
        left = int(headers.get("content-length", "0"))
        while left > size:
            size += len(await reader.read(min(left - size, 1 << 20)))
        return size

    @staticmethod
    async def _answer(writer: asyncio.StreamWriter, path: str, report: dict[str, Any]) -> None:
        body = (json.dumps(report) + "\n").encode()
        length = int(path.split("/")[2]) if path.startswith("/big/") else 600 if path == "/drip" else len(body)
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nContent-Type: text/plain\r\n\r\n".encode())
        if path == "/drip":
            for _turn in range(length):
                writer.write(b".")
                await writer.drain()
                await asyncio.sleep(0.1)
        elif path.startswith("/big/"):
            while length > 0:
                writer.write(b"b" * min(length, 1 << 16))
                length -= 1 << 16
                await writer.drain()
        else:
            writer.write(body)
        await writer.drain()

    async def _chat(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, headers: dict[str, str]) -> None:
        digest = hashlib.sha1((headers["sec-websocket-key"] + _GUID).encode()).digest()
        accept = base64.b64encode(digest).decode()
        upgrade = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        writer.write(f"{upgrade}Sec-WebSocket-Accept: {accept}\r\n\r\n".encode())
        while True:
            first, second = await reader.readexactly(2)
            length = second & 0x7F  # the tests say little
            mask = await reader.readexactly(4)
            data = bytes(byte ^ mask[at % 4] for at, byte in enumerate(await reader.readexactly(length)))
            self.note(message=data.decode("latin-1"))
            if first & 0xF == 8:
                return
            writer.write(bytes([0x81, length]) + data)
            await writer.drain()


async def main(certificate: str, log: str, tls: int, plain: int) -> None:
    server = WebServer(Path(log))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def greeted(_socket: Any, name: str | None, _context: Any) -> None:
        server.note(sni=name)

    context.sni_callback = greeted
    await asyncio.start_server(server.serve, None, tls, ssl=context)
    await asyncio.start_server(server.serve, None, plain)
    server.note(ready=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
