# SPDX-License-Identifier: GPL-3.0-or-later
"""A reverse proxy in front of the web application. /health is its own; everything else goes to --upstream."""

from __future__ import annotations

import http.client
import time

import serving

# They concern one connection only: RFC 9110, 7.6.1.
HOP_BY_HOP = {
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
}
PATIENCE = 3.0  # seconds to wait for an application that restarts


class Proxy(serving.Handler):
    """Passes requests on. upstream is HOST:PORT."""

    upstream = ""

    def forward(self) -> None:
        if self.path == "/health":
            self.answer_json(200, {"status": "ok", "upstream": self.upstream})
            return
        body = self.body()
        if body is None:
            return
        try:
            status, headers, answer = self.ask(body)
        except (OSError, http.client.HTTPException) as error:
            self.answer_json(502, {"error": f"{self.upstream} does not answer: {error}"})
            return
        self.send_response_only(status)
        self.log_request(status)
        for name, value in headers:
            if name.lower() not in HOP_BY_HOP and name.lower() != "content-length":
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = forward  # noqa: N815 - the base class looks for these

    def ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        """Return status, headers and body of the application's answer; it may be a moment away."""
        headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
        headers["X-Forwarded-For"] = ", ".join(
            filter(None, (self.headers.get("X-Forwarded-For"), str(self.client_address[0])))
        )
        headers["Content-Length"] = str(len(body))
        deadline = time.monotonic() + PATIENCE
        while True:
            connection = http.client.HTTPConnection(self.upstream, timeout=30)
            try:
                connection.connect()
                break
            except ConnectionRefusedError:
                # Nothing was sent yet, so asking again does nothing twice.
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.1)
        try:
            connection.request(self.command, self.path, body, headers)
            response = connection.getresponse()
            return response.status, response.getheaders(), response.read()
        finally:
            connection.close()


if __name__ == "__main__":
    parser = serving.arguments(__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--upstream", required=True, metavar="HOST:PORT")
    options = parser.parse_args()
    Proxy.upstream = options.upstream
    serving.serve(Proxy, options.host, options.port)
