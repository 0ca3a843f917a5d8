# SPDX-License-Identifier: GPL-3.0-or-later
"""What the two HTTP servers share: start, log lines on standard output, a clean end on SIGTERM."""

from __future__ import annotations

import argparse
import json
import signal
import socketserver
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BODY_LIMIT = 64 * 1024


class Server(ThreadingHTTPServer):
    """A threaded HTTP server that asks no name service for its own name."""

    daemon_threads = True
    request_queue_size = 128

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])


class Handler(BaseHTTPRequestHandler):
    """Answers with keep-alive; health checks leave no log line, so that they do not look like use."""

    protocol_version = "HTTP/1.1"
    timeout = 30

    def answer(self, status: int, body: bytes, kind: str = "application/json", **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_json(self, status: int, data: object) -> None:
        self.answer(status, json.dumps(data).encode() + b"\n")

    def body(self) -> bytes | None:
        """Return the request's body; None, with the answer sent, when it is too long or of unknown length."""
        try:
            length = int(self.headers.get("Content-Length") or 0)
        except ValueError:
            length = -1
        if self.headers.get("Transfer-Encoding") or not 0 <= length <= BODY_LIMIT:
            self.close_connection = True
            # Closing with unread bytes would reset the connection before the answer is read.
            self.rfile.read(min(max(length, 0), 1024 * 1024))
            self.answer_json(413, {"error": f"expected a body of at most {BODY_LIMIT} bytes with a Content-Length"})
            return None
        return self.rfile.read(length)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        if self.path != "/health":
            print(f"{self.command} {self.path} {int(code)}", flush=True)

    def log_error(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        pass


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Return the options that both servers have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    return parser


def serve(handler: type[Handler], host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT."""
    with Server((host, port), handler) as server:
        for number in (signal.SIGTERM, signal.SIGINT):
            # shutdown() waits for the loop that this very thread runs, so another thread calls it.
            signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
        print(f"listening on http://{host}:{server.server_port}/", flush=True)
        server.serve_forever(poll_interval=0.2)
    print("stopped", flush=True)
