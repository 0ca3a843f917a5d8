"""A web server to start from: replace it with your own."""

from __future__ import annotations

import argparse
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class App(BaseHTTPRequestHandler):
    """Answers GET / and GET /health."""

    def do_GET(self) -> None:
        body = {"/": b"Hello from Python.\n", "/health": b"ok\n"}.get(self.path)
        self.send_response(200 if body else 404)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.end_headers()
        self.wfile.write(body or b"Not found.\n")

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        # A health check is no use of the application; its log lines would keep an environment from falling asleep.
        if self.path != "/health":
            print(f"{self.command} {self.path} {int(code)}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    port = parser.parse_args().port
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print(f"listening on http://127.0.0.1:{port}/", flush=True)
    ThreadingHTTPServer(("127.0.0.1", port), App).serve_forever()
