# SPDX-License-Identifier: GPL-3.0-or-later
"""squid as the way out for real: who gets a connection to what, what it tells, what it keeps."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.requirements import require_tool, unavailable
from tests.system.network import internet
from tests.system.network.lab import Lab, end, wait_for
from tests.system.network.proxies import (
    ADDRESS4,
    ADDRESS6,
    NEAR,
    PLAIN,
    PORT,
    SCOPES,
    USER,
    Site,
    fence_of,
    listening,
    site,
)

from fleet_core import egress_squid

FORBIDDEN4, FORBIDDEN6 = internet.HOSTS["forbidden"]


@pytest.fixture(scope="module")
def squid(lab: Lab) -> Iterator[Site]:
    require_tool("squid", "as a proxy")
    for tool in ("openssl", "curl", "ss"):
        require_tool(tool, "to try the proxy")
    if not egress_squid.build(lab.gateway.run("squid", "-v").stdout).looks_at_tls:
        unavailable("squid is needed with OpenSSL (package squid-openssl) to look at TLS greetings")
    with site(lab) as found:
        certificate = lab.folder / "squid.pem"
        lab.gateway.run(*egress_squid.certificate_command(str(certificate)))
        found.extra["settings"] = egress_squid.Settings(USER, str(certificate))
        write(found)
        words = ("squid", "--foreground", "-N", "-f", str(path_of(found)))
        found.process = lab.gateway.start(*words, stderr=subprocess.PIPE)
        try:
            wait_for(lambda: listening(lab), "squid listens", 20)
            yield found
        finally:
            end(found.process)


def path_of(found: Site) -> Path:
    return found.lab.folder / "squid.conf"


def write(found: Site, *scopes: object) -> None:
    text = egress_squid.configuration(fence_of(found.lab, "squid", *scopes), str(found.folder), found.extra["settings"])  # type: ignore[arg-type]
    new = path_of(found).with_suffix(".new")
    new.write_text(text)
    new.replace(path_of(found))


def reconfigure(found: Site, *scopes: object) -> None:
    """Write another configuration and wait until it is in force."""
    log = found.folder / "squid.log"
    before = log.read_text().count("Accepting ")
    write(found, *scopes)
    assert found.process
    found.process.send_signal(signal.SIGHUP)
    wait_for(lambda: log.read_text().count("Accepting ") >= before + 4, "squid has read its configuration")


def test_it_reads_its_configuration_without_a_complaint(squid: Site) -> None:
    done = squid.lab.gateway.run("squid", "-k", "parse", "-f", str(path_of(squid)))
    complaints = [line for line in done.stderr.splitlines() if re.search(r"ERROR|WARNING|FATAL", line)]
    assert [line for line in complaints if "requires the use of Via" not in line] == []


def test_it_runs_as_a_user_that_is_not_root(squid: Site) -> None:
    assert squid.process
    owner = next(line for line in Path(f"/proc/{squid.process.pid}/status").read_text().splitlines() if "Uid" in line)
    assert owner.split()[2] != "0"
    written = {path.name for path in squid.folder.iterdir() if path.owner() == "root"}
    assert written <= {"web.pem", "web.pem.crt", "web.log"}, "root writes where the proxy's user may lay links"


@pytest.mark.parametrize("address", [ADDRESS4, ADDRESS6])
def test_an_allowed_name_is_reached_and_written_down(squid: Site, address: str) -> None:
    result = squid.probe("allowed.example:443", sni="allowed.example", address=address)
    assert result["server"] == "allowed"
    row = squid.row(host="allowed.example", port="443", verdict="TCP_TUNNEL")
    assert row["method"] == "CONNECT"
    assert row["address"] == internet.HOSTS["allowed"][0]
    assert row["sent"] > 0 < row["received"]
    sources = {row["source"] for row in squid.rows() if row["host"] == "allowed.example"}
    assert sources <= {"192.168.100.10", "fd00:100::10"}


CLOSED = (
    "forbidden.example:443",
    "secret.exfil.forbidden.example:443",
    "denied.allowed.example:443",
    "x.DENIED.allowed.example:443",
    "denied.allowed.example.:443",
    "notallowed.example:443",
    "allowed.example.forbidden.example:443",
    "allowed.example:8443",
    "allowed.example:3306",
    f"{FORBIDDEN4}:443",
    f"[{FORBIDDEN6}]:443",
    f"{internet.HOSTS['allowed'][0]}:443",  # an allowed name leads there; by itself it is none
    "185729034:443",  # 11.66.0.10 as one number
    "0x0b.0x42.0.10:443",
    f"[::ffff:{FORBIDDEN4}]:443",
    "10.9.9.9:80",  # granted on 443
    "10.9.8.8:443",
    f"{ADDRESS4}:22",
    f"{ADDRESS4}:{PORT}",
    "127.0.0.1:22",
    "localhost:22",
    "[::1]:22",
    "0.0.0.0:22",
    "192.168.100.11:8080",
    "169.254.169.254:80",
    "special.allowed.example:80",
    "gateway.allowed.example:22",
    "guest.allowed.example:80",
    "here.allowed.example:22",
    "mixed.allowed.example:443",
)


def test_nothing_else_is_reached(squid: Site) -> None:
    """All at once: squid lets those that it denies wait."""
    web = squid.lab.machines["web-1"]
    tries = [
        (target, sni, web.begin("proxy", address=ADDRESS4, port=PORT, target=target, sni=sni))
        for target in CLOSED
        for sni in (None, target.rpartition(":")[0].strip("[]").lower())
    ]
    reached = [(target, sni) for target, sni, future in tries if "server" in future.result(timeout=60)]
    assert reached == []


def test_nor_by_a_plain_request(squid: Site) -> None:
    found = {target: squid.curl(f"http://{target}/")[0] for target in CLOSED}
    assert set(found.values()) <= {"403", "400", "503", "000"}, found


def test_a_name_that_is_not_allowed_is_never_looked_up(squid: Site) -> None:
    squid.lab.internet.forget()
    for target in ("secret-1.forbidden.example:443", "secret-2.forbidden.example:80"):
        squid.probe(target, sni="secret-3.forbidden.example")
    squid.curl("http://secret-4.forbidden.example/")
    squid.probe("allowed.example:443", sni="secret-5.forbidden.example")
    assert not squid.lab.internet.asked("secret")
    assert not squid.lab.internet.asked("arpa")  # nor who asks


def test_an_allowed_name_leads_to_a_granted_special_address_on_its_ports(squid: Site) -> None:
    assert squid.probe("office.allowed.example:443", sni="office.allowed.example")["server"] == "neighbour"
    assert squid.probe("10.9.9.9:443", sni="")["server"] == "neighbour"
    assert "server" not in squid.probe("office.allowed.example:22", sni=None)


def greeting(found: Site, name: str, *words: str, target: str = "cdn-allowed.example:443") -> str:
    """What `openssl s_client` gets from the server behind a tunnel to an allowed name."""
    host = words[-1] if words else name
    argv = ["openssl", "s_client", "-quiet", "-proxy", f"{ADDRESS4}:{PORT}", "-connect", target]
    argv += ["-servername", name] if name else ["-noservername"]
    request = f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    return found.lab.machines["web-1"].namespace.run(*argv, stdin=request, check=False, timeout=15).stdout


def test_the_name_in_the_greeting_is_the_one_of_connect(squid: Site) -> None:
    assert '"sni": "cdn-allowed.example"' in greeting(squid, "cdn-allowed.example")
    assert '"sni": "sub.cdn-allowed.example"' in greeting(squid, "sub.cdn-allowed.example")  # the same allowed name


@pytest.mark.parametrize(
    "name", ["cdn-forbidden.example", "allowed.example", "denied.allowed.example", "cdn-allowed.example.evil.example"]
)
def test_another_name_in_the_greeting_is_cut(squid: Site, name: str) -> None:
    """Even one that is allowed itself: it is on this address that it must not be said."""
    assert greeting(squid, name) == ""
    row = squid.row(host="cdn-allowed.example", sni=name)
    assert row["tls"] == "terminate"


def test_what_squid_leaves_open_another_host_inside_tls(squid: Site) -> None:
    """It does not read what is inside: this hole is by nature, and mitmproxy closes it (test_mitmproxy.py)."""
    assert '"host": "cdn-forbidden.example"' in greeting(squid, "cdn-allowed.example", "cdn-forbidden.example")


def test_http_does_not_hide_in_a_tunnel(squid: Site) -> None:
    for target in ("allowed.example:80", "allowed.example:443"):
        with squid.tunnel(target) as stream:
            stream.sendall(b"GET / HTTP/1.1\r\nHost: forbidden.example\r\nConnection: close\r\n\r\n")
            assert b'"server"' not in stream.recv(65536)


def test_what_speaks_first_gets_through_on_its_port(squid: Site) -> None:
    with squid.tunnel("allowed.example:22") as stream:
        assert b'"server": "allowed"' in stream.recv(65536)


def test_a_plain_request_goes_to_the_host_of_its_url(squid: Site) -> None:
    status, body = squid.curl("-H", "Host: forbidden.example", f"http://allowed.example:{PLAIN}/x?token=hush")
    assert status in ("200", "409")
    assert "forbidden" not in body
    row = squid.row(host="allowed.example", port=str(PLAIN))
    assert "hush" not in (squid.folder / "proxy.log").read_text()
    assert row["method"] == "GET"


def test_it_tells_servers_nothing_of_guests_or_itself(squid: Site) -> None:
    status, _body = squid.curl("-H", "Proxy-Authorization: Basic c2VjcmV0", f"http://allowed.example:{PLAIN}/plain")
    assert status == "200"
    headers = next(row["headers"] for row in squid.web() if row.get("path") == "/plain")
    assert not {"via", "x-forwarded-for", "forwarded", "proxy-authorization", "proxy-connection"} & set(headers)
    assert "192.168.100" not in str(headers)


def test_it_tells_guests_no_version_and_nothing_of_its_cache(squid: Site) -> None:
    argv = ["curl", "-si", "--max-time", "5", "--proxy", f"http://{ADDRESS4}:{PORT}"]
    for url in (f"http://allowed.example:{PLAIN}/again", "http://forbidden.example/"):
        text = squid.lab.machines["web-1"].namespace.run(*argv, url).stdout
        assert not re.search(r"squid/\d|^via:|^x-cache", text, re.IGNORECASE | re.MULTILINE)


@pytest.mark.parametrize(
    "url",
    [f"http://{ADDRESS4}:{PORT}/squid-internal-mgr/info", "cache_object://192.168.100.1/info", "http://fleet-proxy/squid-internal-mgr/menu"],
)  # fmt: skip
def test_the_cache_manager_is_closed(squid: Site, url: str) -> None:
    line = f"GET {url} HTTP/1.1\r\nHost: {ADDRESS4}\r\nConnection: close\r\n\r\n"
    with squid.lab.machines["web-1"].namespace.inside():
        stream = socket.create_connection((ADDRESS4, PORT), 5)
    with stream:
        stream.sendall(line.encode())
        answer = b"".join(iter(lambda: stream.recv(65536), b""))
    assert answer.split()[1] in (b"403", b"400", b"404", b"409")
    assert b"Connection information" not in answer


def test_nothing_is_kept(squid: Site) -> None:
    for _turn in range(2):
        assert squid.curl(f"http://allowed.example:{PLAIN}/kept")[0] == "200"
    assert len([row for row in squid.web() if row.get("path") == "/kept"]) == 2


def test_a_machine_of_a_locked_scope_gets_nothing(squid: Site) -> None:
    assert squid.curl(f"http://allowed.example:{PLAIN}/", machine="db-1")[0] == "403"


def test_nobody_outside_gets_to_it(squid: Site) -> None:
    with squid.lab.internet.namespace.inside():
        for address in ("11.0.0.2", "2fff::2"):
            with pytest.raises(OSError, match=r"refused|timed out|unreachable"):
                socket.create_connection((address, PORT), 1).close()


def test_an_open_scope_gets_out_but_not_in(squid: Site) -> None:
    reconfigure(squid, replace(SCOPES[1], mode="open"))
    try:
        assert squid.probe("forbidden.example:443", sni="forbidden.example")["server"] == "forbidden"
        assert squid.probe(f"{FORBIDDEN4}:443", sni="")["server"] == "forbidden"
        for target in ("special.allowed.example:80", "here.allowed.example:22", f"{ADDRESS4}:22", "169.254.169.254:80",
                       "forbidden.example:853", "denied.allowed.example:443", "cloudflare-dns.com:443"):  # fmt: skip
            assert "server" not in squid.probe(target, sni=target.partition(":")[0]), target
    finally:
        reconfigure(squid)


def banner(found: Site) -> bytes:
    """What the server behind a tunnel says first."""
    try:
        with found.tunnel("allowed.example:22", seconds=2) as stream:
            return stream.recv(65536)
    except OSError:
        return b""


def test_another_configuration_keeps_tunnels_and_closes_what_it_closes(squid: Site) -> None:
    """A grant that has ended is one that the next configuration does not have."""
    with squid.tunnel("allowed.example:22") as stream:
        assert stream.recv(65536)
        reconfigure(squid, replace(SCOPES[1], grants=(NEAR,)))
        try:
            stream.sendall(b"still there")
            assert stream.recv(65536) == b"still there"
            assert not banner(squid)
        finally:
            reconfigure(squid)
    assert banner(squid)


def test_without_a_certificate_names_are_still_enforced(squid: Site) -> None:
    looking = squid.extra["settings"]
    squid.extra["settings"] = egress_squid.Settings(USER)
    try:
        reconfigure(squid)
        assert squid.probe("allowed.example:443", sni="allowed.example")["server"] == "allowed"
        assert squid.probe("forbidden.example:443", sni="forbidden.example")["outcome"] == "refused"
    finally:
        squid.extra["settings"] = looking
        reconfigure(squid)


@pytest.mark.parametrize(
    "data",
    [
        b"\0" * 4096,
        b"GET http://allowed.example/ HTTP/1.1\r\n" + b"X: " + b"y" * 70_000 + b"\r\n\r\n",
        b"GET http://allowed.example/ HTTP/1.1\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
        b"CONNECT " + b"a" * 9000 + b":443 HTTP/1.1\r\n\r\n",
        b'CONNECT x"},{"a":"\\:443 HTTP/1.1\r\n\r\n',
        b'G"ET http://allo"wed.example/"%22 HTTP/1.1\r\nHost: "\r\n\r\n',
        b"CONNECT allowed.example:443:443 HTTP/1.1\r\n\r\n",
        b"CONNECT allowed.example:99999 HTTP/1.1\r\n\r\n",
        b"CONNECT [::1 HTTP/1.1\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\n\r\n",
        b"PURGE http://allowed.example/ HTTP/1.1\r\n\r\n",
    ],
)
def test_nonsense_is_survived_and_its_log_stays_json(squid: Site, data: bytes) -> None:
    with squid.lab.machines["web-1"].namespace.inside():
        stream = socket.create_connection((ADDRESS4, PORT), 5)
    with stream:
        stream.settimeout(0.5)
        try:
            stream.sendall(data)
            answer = stream.recv(65536)
        except OSError:
            answer = b""
    assert b'"server"' not in answer
    assert squid.process
    assert squid.process.poll() is None
    assert squid.rows()  # all of them are JSON


def test_its_memory_is_bounded(squid: Site) -> None:
    url = f"http://allowed.example:{PLAIN}/big/30000000"
    assert squid.curl("-o", "/dev/null", url)[0].strip() == "200"
    before = squid.memory()
    for _turn in range(3):
        squid.curl("-o", "/dev/null", url)
    assert squid.memory() - before < 8 << 20
    assert squid.memory() < 128 << 20


def test_a_machine_has_so_many_connections_and_others_have_theirs(squid: Site) -> None:
    """One that opens more is denied; another one is not."""
    streams = []
    try:
        with squid.lab.machines["web-1"].namespace.inside():
            for _turn in range(egress_squid.CONNECTIONS + 20):
                streams.append(socket.create_connection((ADDRESS4, PORT), 5))
        wait_for(lambda: squid.curl(f"http://allowed.example:{PLAIN}/crowd")[0] == "403", "the crowd is denied")
        assert squid.curl(f"http://allowed.example:{PLAIN}/free", machine="web-2")[0] == "200"
    finally:
        for stream in streams:
            stream.close()
    wait_for(lambda: squid.curl(f"http://allowed.example:{PLAIN}/after")[0] == "200", "it gets out again")


def test_its_log_may_be_cut_off(squid: Site) -> None:
    os.truncate(squid.folder / "proxy.log", 0)
    assert squid.curl(f"http://allowed.example:{PLAIN}/cut")[0] == "200"
    assert squid.row(host="allowed.example")["time"] > time.time() - 60
