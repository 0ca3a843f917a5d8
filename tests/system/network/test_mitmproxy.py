# SPDX-License-Identifier: GPL-3.0-or-later
"""mitmproxy as the way out for real: one name in CONNECT, greeting and request; what is cut; what is written down."""

from __future__ import annotations

import json
import os
import pkgutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from tests.requirements import require_tool
from tests.system.network.lab import Lab, end, wait_for
from tests.system.network.mitmproxy import mitmdump
from tests.system.network.proxies import (
    ADDRESS4,
    ADDRESS6,
    NEAR,
    PLAIN,
    PORT,
    SCOPES,
    TLS,
    WEB,
    Site,
    fence_of,
    listening,
    site,
)
from tests.system.network.test_squid import CLOSED

from fleet_core import egress_mitmproxy
from fleet_core.fences import Fence, Scope

BASE = f"https://allowed.example:{TLS}"
TUNNEL = f"allowed.example:{TLS}"


@pytest.fixture(scope="module")
def proxy(lab: Lab) -> Iterator[Site]:
    program = mitmdump()
    for tool in ("openssl", "curl", "ss"):
        require_tool(tool, "to try the proxy")
    with site(lab) as found:
        folder = found.folder
        for name in ("fleet_node.egress_addon", "fleet_core.egress_decisions"):
            package, _dot, module = name.partition(".")
            text = pkgutil.get_data(package, f"{module}.py")
            assert text
            (folder / ("addon.py" if module == "egress_addon" else f"{module}.py")).write_bytes(text)
        write(found, fence_of(lab, "mitmproxy"))
        options = egress_mitmproxy.options(fence_of(lab, "mitmproxy"), str(folder), str(found.authority))
        (folder / "config.yaml").write_text(options)
        words = egress_mitmproxy.command(program, str(folder))
        found.process = lab.gateway.start(*words, stderr=subprocess.STDOUT, stdout=(folder / "said").open("w"))
        try:
            wait_for(lambda: listening(lab), "mitmproxy listens", 60)
            found.authority = folder / egress_mitmproxy.AUTHORITY
            yield found
            assert "Traceback" not in (folder / "said").read_text()
        finally:
            end(found.process)


def write(found: Site, fence: Fence) -> None:
    """As the engine does: another file under the same name."""
    new = found.folder / "mitmproxy.new"
    new.write_text(egress_mitmproxy.policy(fence))
    new.replace(found.folder / "mitmproxy.json")


@pytest.fixture
def changing(proxy: Site) -> Iterator[Any]:
    """Puts another policy in force, of these scopes; the first one comes back."""

    def change(*scopes: Scope) -> None:
        write(proxy, fence_of(proxy.lab, "mitmproxy", *scopes))

    yield change
    change()


def answer(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text)
    return found


@pytest.mark.parametrize("words", [["--http1.1"], ["--http2"]], ids=["http1", "http2"])
def test_an_allowed_name_is_reached_in_both_versions(proxy: Site, words: list[str]) -> None:
    status, text = proxy.curl(*words, f"{BASE}/hello-{words[0][2:]}")
    assert status == "200"
    assert answer(text)["headers"]["host"] == TUNNEL
    row = proxy.row(path=f"/hello-{words[0][2:]}")
    assert (row["machine"], row["project"], row["scope"]) == ("web-1", "shop", "project-shop")
    assert (row["method"], row["host"], row["port"], row["status"]) == ("GET", "allowed.example", TLS, 200)
    assert row["verdict"] == "allowed"
    assert row["version"] == {"--http1.1": "HTTP/1.1", "--http2": "HTTP/2.0"}[words[0]]
    assert row["sent"] > 0 <= row["milliseconds"]


def test_it_listens_on_both_families(proxy: Site) -> None:
    result = proxy.probe(f"http://allowed.example:{PLAIN}/six", method="GET", address=ADDRESS6)
    assert (result["outcome"], result["status"]) == ("open", 200)
    assert proxy.row(path="/six")["machine"] == "web-1"


def test_nothing_else_is_reached(proxy: Site) -> None:
    """What squid denies, mitmproxy denies as well, before anything is connected to or looked up."""
    proxy.lab.internet.forget()
    web = proxy.lab.machines["web-1"]
    tries = [
        (target, sni, web.begin("proxy", address=ADDRESS4, port=PORT, target=target, sni=sni))
        for target in CLOSED
        for sni in (None, target.rpartition(":")[0].strip("[]").lower())
    ]
    reached = [(target, sni) for target, sni, future in tries if "server" in future.result(timeout=60)]
    assert reached == []
    for name in ("forbidden", "denied", "notallowed"):
        assert not proxy.lab.internet.asked(name), name


def test_a_denied_tunnel_says_why(proxy: Site) -> None:
    with pytest.raises(ConnectionError, match="403"), proxy.tunnel("forbidden.example:443"):
        pass
    row = proxy.row(method="CONNECT", host="forbidden.example")
    assert (row["verdict"], row["reason"]) == ("denied", "the policy does not name it")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--http1.1", "-H", "Host: cdn-allowed.example"], "the request is for cdn-allowed.example"),
        (["--http2", "-H", "Host: cdn-allowed.example"], "the request is for cdn-allowed.example"),
        (["--http1.1", "-H", "Host: forbidden.example"], "the request is for forbidden.example"),
        (["--http2", "-H", "Host: forbidden.example"], "the request is for forbidden.example"),
        (["--http1.1", "--request-target", "https://forbidden.example/x"], "the request is for forbidden.example"),
    ],
)
def test_the_host_header_is_the_name_of_connect(proxy: Site, words: list[str], reason: str) -> None:
    """Domain fronting, which squid leaves open: even to another allowed name."""
    before = len(proxy.web())
    status, text = proxy.curl(*words, f"{BASE}/fronting")
    assert status == "421"
    assert reason in text
    assert len([row for row in proxy.web()[before:] if "path" in row]) == 0
    assert proxy.row(path="/fronting" if "target" not in str(words) else "/x", status=421)["verdict"] == "denied"


def test_two_host_headers_do_not_pass(proxy: Site) -> None:
    with proxy.tls(TUNNEL, "allowed.example") as stream:
        stream.sendall(b"GET /two HTTP/1.1\r\nHost: allowed.example\r\nHost: forbidden.example\r\n\r\n")
        assert stream.recv(65536).split()[1] in (b"400", b"421")
    assert not [row for row in proxy.web() if row.get("path") == "/two"]


@pytest.mark.parametrize("sni", ["cdn-allowed.example", "forbidden.example", "denied.allowed.example"])
def test_the_greeting_is_the_name_of_connect(proxy: Site, sni: str) -> None:
    before = len(proxy.web())
    with proxy.tls(TUNNEL, sni) as stream:
        stream.sendall(b"GET / HTTP/1.1\r\nHost: allowed.example\r\n\r\n")
        assert b" 421 " in stream.recv(65536)
    assert proxy.web()[before:] == []  # nobody was even connected to


def test_a_greeting_without_a_name_is_not_a_way_around(proxy: Site) -> None:
    context = ssl.create_default_context(cafile=str(proxy.authority))
    context.check_hostname = False
    with proxy.tunnel(TUNNEL) as stream, context.wrap_socket(stream) as wrapped:
        wrapped.sendall(b"GET / HTTP/1.1\r\nHost: forbidden.example\r\n\r\n")
        assert b" 421 " in wrapped.recv(65536)


def test_a_plain_request_has_the_host_of_its_url(proxy: Site) -> None:
    url = f"http://allowed.example:{PLAIN}/plain"
    assert proxy.curl(url)[0] == "200"
    assert proxy.curl("-H", "Host: forbidden.example", url)[0] == "421"
    headers = next(row["headers"] for row in proxy.web() if row.get("path") == "/plain")
    assert not {"via", "x-forwarded-for", "forwarded", "proxy-authorization", "proxy-connection"} & set(headers)


def test_a_server_with_another_certificate_is_not_talked_to(proxy: Site) -> None:
    """The lab's own TLS servers have one that nobody trusts."""
    status, text = proxy.curl("https://cdn-allowed.example/")
    assert status == "502"
    assert "ertificate verify failed" in text
    assert proxy.row(host="cdn-allowed.example", path="/")["failure"].startswith("Certificate verify failed")


def test_an_allowed_name_leads_nowhere_special(proxy: Site) -> None:
    for name in ("special", "gateway", "guest", "here", "mixed"):
        assert proxy.curl(f"http://{name}.allowed.example:{PLAIN}/")[0] == "502", name
        assert "must not lead to" in proxy.row(host=f"{name}.allowed.example", verdict="denied")["reason"]


def test_a_name_leads_to_a_granted_special_address_on_its_ports(proxy: Site) -> None:
    assert proxy.curl("http://office.allowed.example/")[0] == "502"  # granted on 443
    status, text = proxy.curl("https://office.allowed.example/")
    assert (status, "ertificate verify failed" in text) == ("502", True)  # it was connected to


def test_what_speaks_first_gets_through_on_its_port_only(proxy: Site) -> None:
    with proxy.tunnel("allowed.example:22") as stream:
        stream.sendall(b"SSH-2.0-x\r\n")
        told = b""
        while not (b'"server": "allowed"' in told and b"SSH-2.0-x" in told):  # it says who it is, and echoes
            told += stream.recv(65536)
    row = proxy.row(method="TUNNEL", host="allowed.example", port=22)
    assert row["received"] == len(b"SSH-2.0-x\r\n")
    with proxy.tunnel("allowed.example:443") as stream:
        stream.sendall(b"SSH-2.0-x\r\n")
        assert stream.recv(65536) == b""
    assert proxy.row(method="TUNNEL", port=443)["verdict"] == "denied"


def test_nothing_but_http_leaves_inside_tls(proxy: Site) -> None:
    before = len(proxy.web())
    with proxy.tls(TUNNEL, "allowed.example") as stream:
        stream.sendall(b"\x00\x01 a protocol of my own \xff\xfe" * 20)
        try:
            told = stream.recv(65536)
        except OSError:
            told = b""
    assert b"200" not in told
    assert not [row for row in proxy.web()[before:] if "path" in row]


SECRET = "hush-hush-hush"


def test_nothing_secret_is_written_down(proxy: Site) -> None:
    words = [
        "-H",
        f"Authorization: Bearer {SECRET}-1",
        "-H",
        f"Cookie: {SECRET}-2",
        "-d",
        f"{SECRET}-3",
        "-u",
        f"me:{SECRET}-4",
    ]
    key = "0123456789abcdefABCDEF0123456789"
    status, _text = proxy.curl(*words, f"{BASE}/bot{key}/send?token={SECRET}-5#{SECRET}-6")
    assert status == "200"
    row = proxy.row(path="/*/send")
    assert row["received"] == len(f"{SECRET}-3")
    for path in (proxy.folder / "proxy.log", proxy.folder / "said"):
        text = path.read_text()
        assert SECRET not in text
        assert key not in text


def test_the_policy_is_read_again_without_a_restart(proxy: Site, changing: Any) -> None:
    assert proxy.curl(f"{BASE}/before")[0] == "200"
    changing(SCOPES[0], replace(SCOPES[1], grants=(NEAR,)))
    assert proxy.curl(f"{BASE}/after")[0] == "000"
    assert not [row for row in proxy.web() if row.get("path") == "/after"]
    changing()
    assert proxy.curl(f"{BASE}/again")[0] == "200"


def test_without_a_policy_that_can_be_read_nobody_gets_out(proxy: Site, changing: Any) -> None:
    for text in ("{", "[]", '{"guests": {}}', ""):
        (proxy.folder / "mitmproxy.json").write_text(text)
        assert proxy.curl(f"{BASE}/broken")[0] == "000"
    changing()
    assert proxy.curl(f"{BASE}/mended")[0] == "200"


def test_what_is_no_longer_allowed_ends_in_mid_answer(proxy: Site, changing: Any) -> None:
    argv = ["curl", "-sN", "--proxy", f"http://{ADDRESS4}:{PORT}", "--cacert", str(proxy.authority), f"{BASE}/drip"]
    client = proxy.lab.machines["web-1"].namespace.start(*argv, stdout=subprocess.PIPE)
    try:
        assert client.stdout
        assert client.stdout.read(3) == "..."
        changing(SCOPES[0], replace(SCOPES[1], grants=(NEAR,)))
        assert client.wait(5) != 0
    finally:
        end(client)


def test_a_grant_that_ends_takes_its_connections_with_it(proxy: Site, changing: Any) -> None:
    changing(SCOPES[0], replace(SCOPES[1], grants=(replace(WEB, until=int(time.time()) + 2),)))
    with proxy.tunnel("allowed.example:22") as stream:
        stream.sendall(b"SSH-2.0-x\r\n")
        assert stream.recv(65536)
        stream.settimeout(10)
        while stream.recv(65536):  # what was said before comes back; then the end, not a timeout
            pass
    assert proxy.curl(f"{BASE}/late")[0] == "000"


def frame(text: bytes) -> bytes:
    """A WebSocket frame of a client (RFC 6455): masked with zeros."""
    return bytes([0x81, 0x80 | len(text)]) + bytes(4) + text


UPGRADE = (
    b"GET /chat HTTP/1.1\r\nHost: allowed.example:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n" % TLS
)


def test_a_websocket_passes_and_is_cut_when_it_is_no_longer_allowed(proxy: Site, changing: Any) -> None:
    with proxy.tls(TUNNEL, "allowed.example") as stream:
        stream.settimeout(10)
        stream.sendall(UPGRADE)
        assert b" 101 " in stream.recv(65536)
        for text in (b"one", b"two"):
            stream.sendall(frame(text))
            assert text in stream.recv(65536)
        changing(SCOPES[0], replace(SCOPES[1], grants=(NEAR,)))
        try:
            stream.sendall(frame(b"three"))
            told = b"".join(iter(lambda: stream.recv(65536), b""))
        except OSError:
            told = b""
        assert b"three" not in told
    assert not [row for row in proxy.web() if row.get("message") == "three"]
    row = proxy.row(method="WEBSOCKET")
    assert (row["received"], row["sent"], row["path"]) == (6, 6, "/chat")


def test_bodies_pass_through_and_are_not_held(proxy: Site) -> None:
    upload = proxy.folder / "upload"
    with upload.open("wb") as file:
        file.truncate(64 << 20)
    before = proxy.memory()
    status, text = proxy.curl("-T", str(upload), f"{BASE}/upload")
    assert (status, answer(text)["size"]) == ("200", 64 << 20)
    assert proxy.curl("-o", "/dev/null", f"{BASE}/big/{64 << 20}")[0].strip() == "200"
    assert proxy.memory() - before < 48 << 20
    assert proxy.row(path="/upload")["received"] == 64 << 20
    assert proxy.row(path=f"/big/{64 << 20}")["sent"] == 64 << 20


def test_a_refused_body_is_not_held_either(proxy: Site) -> None:
    before = proxy.memory()
    upload = proxy.folder / "upload"
    for version in ("--http1.1", "--http2"):
        status, _text = proxy.curl(version, "-H", "Host: forbidden.example", "-T", str(upload), f"{BASE}/refused")
        assert status in ("000", "421")
    assert proxy.memory() - before < 16 << 20
    assert not [row for row in proxy.web() if row.get("path") == "/refused"]


def test_without_its_addon_it_does_not_run(proxy: Site) -> None:
    """mitmproxy would let everybody out."""
    folder = proxy.folder / "alone"
    folder.mkdir()
    options = answer((proxy.folder / "config.yaml").read_text())
    modes = [mode.replace(f":{PORT}", ":3199") for mode in options["mode"]]
    for text in ("import nothing_of_that_name\n", None):
        (folder / "config.yaml").write_text(json.dumps({**options, "mode": modes}))
        if text:
            (folder / "addon.py").write_text(text)
        else:
            (folder / "addon.py").unlink()
        done = proxy.lab.gateway.run(*egress_mitmproxy.command(mitmdump(), str(folder)), check=False, timeout=30)
        assert done.returncode != 0


@pytest.mark.parametrize("text", [None, "import nothing_of_that_name\n", ""], ids=["gone", "broken", "empty"])
def test_once_its_addon_is_not_there_nobody_gets_out(proxy: Site, text: str | None) -> None:
    """mitmproxy unloads an addon whose file is gone, and loads one that is another, and goes on in any case."""
    folder = proxy.folder / f"unloaded-{text}".strip()[:10]
    folder.mkdir()
    for name in ("addon.py", "egress_decisions.py", "mitmproxy.json"):
        (folder / name).write_bytes((proxy.folder / name).read_bytes())
    options = answer((proxy.folder / "config.yaml").read_text())
    options.update(fleet_policy=f"{folder}/mitmproxy.json", fleet_log=f"{folder}/proxy.log")
    options["mode"] = [mode.replace(f":{PORT}", ":3199") for mode in options["mode"]]
    (folder / "config.yaml").write_text(json.dumps(options))
    process = proxy.lab.gateway.start(*egress_mitmproxy.command(mitmdump(), str(folder)), stderr=subprocess.DEVNULL)
    try:
        tries: dict[str, Any] = {"target": f"forbidden.example:{TLS}", "method": "CONNECT", "port": 3199}
        wait_for(lambda: proxy.probe(**tries).get("proxy_status") == 403, "it listens", 60)
        new = folder / "new"
        new.write_text(text or "")
        new.replace(folder / "addon.py")
        if text is None:
            (folder / "addon.py").unlink()
        end_of_it = time.monotonic() + 20
        while process.poll() is None and time.monotonic() < end_of_it:
            assert proxy.probe(**tries).get("proxy_status") != 200
        assert process.poll() is not None, "it goes on without its addon"
    finally:
        end(process)


def test_a_machine_of_a_locked_scope_gets_nothing(proxy: Site) -> None:
    assert proxy.curl(f"http://allowed.example:{PLAIN}/", machine="db-1")[0] == "403"


def test_a_stranger_is_hung_up_on(proxy: Site, changing: Any) -> None:
    fence = fence_of(proxy.lab, "mitmproxy")
    write(proxy, fence.evolve(guests=tuple(guest for guest in fence.guests if guest.name != "web-2")))
    assert proxy.curl(f"http://allowed.example:{PLAIN}/", machine="web-2")[0] == "000"


@pytest.mark.parametrize(
    "data",
    [
        b"\0" * 4096,
        b"CONNECT " + b"a" * 9000 + b":443 HTTP/1.1\r\n\r\n",
        b'CONNECT x"},{"a":"\\:443 HTTP/1.1\r\n\r\n',
        b"CONNECT allowed.example:99999 HTTP/1.1\r\n\r\n",
        b"GET http://mitm.it/ HTTP/1.1\r\nHost: mitm.it\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: allowed.example\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\nabcd",
    ],
)
def test_nonsense_is_survived_and_the_log_stays_json(proxy: Site, data: bytes) -> None:
    with proxy.lab.machines["web-1"].namespace.inside():
        stream = socket.create_connection((ADDRESS4, PORT), 5)
    with stream:
        stream.settimeout(0.5)
        try:
            stream.sendall(data)
            told = stream.recv(65536)
        except OSError:
            told = b""
    assert b" 200 " not in told
    assert proxy.process
    assert proxy.process.poll() is None
    assert proxy.rows()


def test_the_log_may_be_taken_away(proxy: Site) -> None:
    os.replace(proxy.folder / "proxy.log", proxy.folder / "proxy.log.1")
    assert proxy.curl(f"{BASE}/rotated")[0] == "200"
    assert proxy.row(path="/rotated")["host"] == "allowed.example"
    assert (proxy.folder / "proxy.log").stat().st_mode & 0o007 == 0
