# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of both proxies share: a fence, servers behind it, and clients as programs of a machine are."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.system.network import internet
from tests.system.network.lab import Lab, end, wait_for
from tests.system.network.namespaces import HERE, command

from fleet_core.fences import Fence, Grant, Proxy, Scope

ADDRESS4, ADDRESS6, PORT = "192.168.100.1", "fd00:100::1", 3128
TLS, PLAIN = 9443, 9080  # of web_server.py
USER = "proxy"
# One grant of everything that servers listen on, one of addresses; cdn-allowed is on the address of cdn-forbidden.
NAMES = ("allowed.example", "cdn-allowed.example", "other.example")
WEB = Grant("0000aaaa", NAMES, protocol="tcp", ports=((22, 22), (80, 80), (443, 443), (PLAIN, PLAIN), (TLS, TLS)))
NEAR = Grant("0000bbbb", (), ("10.9.9.0/24",), protocol="tcp", ports=((443, 443),))
SCOPES = (
    Scope("default", "locked"),
    Scope("project-shop", "strict", (WEB, NEAR), ("denied.allowed.example",)),
)
RECORDS = {
    "allowed.example": {"A": [internet.HOSTS["allowed"][0]]},
    "other.example": {"A": [internet.HOSTS["allowed"][0]]},
    "special.allowed.example": {"A": [internet.HOSTS["neighbour"][0]]},
    "office.allowed.example": {"A": [internet.HOSTS["neighbour"][0]]},
    "gateway.allowed.example": {"A": [ADDRESS4]},
    "guest.allowed.example": {"A": ["192.168.100.11"]},
    "here.allowed.example": {"A": ["127.0.0.1"]},
    "mixed.allowed.example": {"A": [internet.HOSTS["allowed"][0], "169.254.169.254"]},
}


def fence_of(lab: Lab, kind: str, *scopes: Scope) -> Fence:
    return lab.fence(*(scopes or SCOPES), proxy=Proxy(kind, PORT))


@dataclass
class Site:
    """A running proxy with what is behind it. folder: the proxy's own. authority: whom clients trust."""

    lab: Lab
    folder: Path
    web_log: Path
    authority: Path
    process: subprocess.Popen[str] | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def rows(self) -> list[dict[str, Any]]:
        """What the proxy has written down."""
        path = self.folder / "proxy.log"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def row(self, **wanted: Any) -> dict[str, Any]:
        """Wait for a line of the log with these values."""
        found: dict[str, Any] = wait_for(
            lambda: next((row for row in self.rows() if wanted.items() <= row.items()), None), f"the log has {wanted}"
        )
        return found

    def web(self) -> list[dict[str, Any]]:
        """What reached the web server."""
        return [json.loads(line) for line in self.web_log.read_text().splitlines()]

    def probe(self, target: str, machine: str = "web-1", **values: Any) -> Any:
        given = {"address": ADDRESS4, "port": PORT, **values}
        return self.lab.machines[machine].probe("proxy", target=target, **given)

    def curl(self, *words: str, machine: str = "web-1") -> tuple[str, str]:
        """Fetch as a program does that is configured for the proxy; return the status (000 for none) and the text."""
        argv = ["curl", "--silent", "--max-time", "10", "--proxy", f"http://{ADDRESS4}:{PORT}", "--cacert"]
        tail = [str(self.authority), "--write-out", "\n%{http_code}", *words]
        text = self.lab.machines[machine].namespace.run(*argv, *tail, check=False).stdout
        body, _newline, status = text.rpartition("\n")
        return status, body

    @contextmanager
    def tunnel(self, target: str, machine: str = "web-1", seconds: float = 5) -> Iterator[socket.socket]:
        """A tunnel through the proxy, by CONNECT. Raises ConnectionError with the proxy's words when there is none."""
        with self.lab.machines[machine].namespace.inside():
            stream = socket.create_connection((ADDRESS4, PORT), seconds)
        with stream:
            stream.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
            head = b""
            while b"\r\n\r\n" not in head:
                more = stream.recv(1)
                if not more:
                    raise ConnectionError(head.decode())
                head += more
            if b" 200 " not in head.split(b"\r\n")[0]:
                raise ConnectionError(head.decode())
            yield stream

    @contextmanager
    def tls(self, target: str, sni: str) -> Iterator[ssl.SSLSocket]:
        context = ssl.create_default_context(cafile=str(self.authority))
        with self.tunnel(target) as stream, context.wrap_socket(stream, server_hostname=sni) as wrapped:
            yield wrapped

    def memory(self) -> int:
        """Bytes that the proxy holds."""
        assert self.process
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) * 1024


def make_certificate(path: Path) -> None:
    names = ",".join(f"DNS:{name}" for name in (*NAMES, "sub.allowed.example", "office.allowed.example"))
    command(
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days"),
        *("2", "-subj", "/CN=web", "-addext", f"subjectAltName={names}", "-keyout", str(path), "-out", f"{path}.crt"),
    )
    path.write_text(path.read_text() + Path(f"{path}.crt").read_text())


@contextmanager
def site(lab: Lab) -> Iterator[Site]:
    """The servers behind a proxy, and the folder that the proxy gets; the proxy itself is the caller's."""
    lab.internet.records(RECORDS, ttl=1)
    folder = Path(tempfile.mkdtemp(prefix="fleetlab-proxy-"))
    folder.chmod(0o755)
    certificate, log = folder / "web.pem", folder / "web.log"
    make_certificate(certificate)
    log.touch()
    # The resolver of programs that are started on the gateway.
    resolving = Path("/etc/netns") / lab.gateway.name
    resolving.mkdir(parents=True)
    (resolving / "resolv.conf").write_text(f"nameserver {internet.HOSTS['resolver'][0]}\noptions timeout:1\n")
    words = [sys.executable, str(HERE / "web_server.py"), str(certificate), str(log), str(TLS), str(PLAIN)]
    server = lab.internet.namespace.start(*words)
    try:
        wait_for(lambda: log.stat().st_size, "the web server listens")
        shutil.chown(folder, USER, USER)
        yield Site(lab, folder, log, Path(f"{certificate}.crt"))
    finally:
        end(server)
        shutil.rmtree(resolving)
        shutil.rmtree(folder)


def listening(lab: Lab) -> bool:
    found = lab.gateway.run("ss", "-Hltn").stdout
    return f"{ADDRESS4}:{PORT}" in found and f"[{ADDRESS6}]:{PORT}" in found
