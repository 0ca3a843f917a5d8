# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest

from autovibe_fleet.node import health
from autovibe_fleet.node.health import HealthChecks, Result, probe
from fleet_core.health import HealthCheck
from fleet_core.process_status import ProcessStatus
from fleet_core.processes import Launch, Limits

T = TypeVar("T")
LAUNCH = Launch((), {"FLAVOUR": "vanilla"}, "/", (), "", Limits(), None, None)
Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(work, 30))


@contextlib.asynccontextmanager
async def serving(answer: bytes | Answer, host: str = "127.0.0.1", **options: Any) -> AsyncIterator[int]:
    """A server on a free port that gives one answer to whoever asks."""

    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            if callable(answer):
                await answer(reader, writer)
            else:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(answer)
            writer.close()

    server = await asyncio.start_server(reply, host, 0, **options)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def ask(url: str, answer: bytes | Answer = b"", timeout: float = 5.0, host: str = "127.0.0.1") -> Result:
    async def work() -> Result:
        async with serving(answer, host) as port:
            return await probe(HealthCheck(url.replace("PORT", str(port)), timeout=timeout), {}, "/")

    return run(work())


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\nhello", ""),
        (b"HTTP/1.0 204 No Content\r\n\r\n", ""),
        (b"HTTP/1.1 302 Found\r\nLocation: /login\r\n\r\n", ""),
        (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", ""),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", "expected 2xx or 3xx, found 503"),
        (b"HTTP/1.1 404\r\n\r\n", "expected 2xx or 3xx, found 404"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", 'expected 2xx or 3xx, found "SSH-2.0-OpenSSH_9.2"'),
        (b"", "expected 2xx or 3xx, found an empty answer"),
        (b"x" * 100_000, f'expected 2xx or 3xx, found "{"x" * 60}"'),
    ],
)
def test_an_http_check_wants_2xx_or_3xx_and_says_what_it_found(answer: bytes, found: str) -> None:
    result = ask("http://127.0.0.1:PORT/health?x=1", answer)
    assert result.ok is not bool(found)
    assert found in result.message
    if "expected" in found:
        assert result.message.startswith("GET http://127.0.0.1:")


def test_an_http_check_sends_a_plain_request() -> None:
    heard: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")

    assert ask("http://localhost:PORT/a b/ä?q=%20#part", answer).ok
    lines = heard[0].decode("ascii").split("\r\n")
    assert lines[0] == "GET /a%20b/%C3%A4?q=%20 HTTP/1.1"
    assert lines[1].startswith("Host: localhost:")
    assert "Connection: close" in lines


def test_localhost_is_ipv6_too() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    assert ask("http://localhost:PORT/", b"HTTP/1.1 200 OK\r\n\r\n", host="::1").ok
    assert ask("http://[::1]:PORT/", b"HTTP/1.1 200 OK\r\n\r\n", host="::1").ok
    assert ask("tcp://localhost:PORT", host="::1").ok


async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


def test_a_server_that_does_not_answer_in_time_is_not_ok() -> None:
    result = ask("http://127.0.0.1:PORT/", silence, timeout=0.2)
    assert not result.ok
    assert "found no answer within 0.2 s" in result.message
    assert 0.1 < result.seconds < 5


def test_a_tcp_check_only_connects() -> None:
    assert ask("tcp://127.0.0.1:PORT", silence) == Result(True, "", pytest.approx(0, abs=3))


@pytest.mark.parametrize("scheme", ["tcp", "http", "https"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_refused_connection_is_said(scheme: str, host: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        result = run(probe(HealthCheck(f"{scheme}://{host}:{free.getsockname()[1]}"), {}, "/"))
    assert not result.ok
    assert result.message.endswith("found connection refused")


def test_an_unknown_host_is_said() -> None:
    result = run(probe(HealthCheck("tcp://no-such-host.invalid:80", timeout=20), {}, "/"))
    assert "an unknown host" in result.message or "no answer" in result.message


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
def test_https_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    words = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    words += " -addext subjectAltName=DNS:localhost"
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*words.split(), *files], check=True, capture_output=True)

    async def work() -> Result:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate, key)
        async with serving(b"HTTP/1.1 200 OK\r\n\r\n", ssl=context) as port:
            return await probe(HealthCheck(f"https://localhost:{port}/"), {}, "/")

    result = run(work())
    assert not result.ok
    assert "a certificate that is not valid" in result.message
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert run(work()).ok


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("true", ""),
        ('test "$FLAVOUR" = vanilla && test "$PWD" = /', ""),
        ("echo hm; echo 'no route'; exit 3", "expected exit code 0, found 3: no route"),
        ("exit 1", "expected exit code 0, found 1"),
        ("sleep 60", "no answer within 2 s"),
    ],
)
def test_a_command_check_wants_exit_code_0_and_shows_the_last_line(command: str, message: str) -> None:
    result = run(probe(HealthCheck(f"cmd://{command}", timeout=2), LAUNCH.env, "/"))
    assert result.ok is not bool(message)
    assert result.message == (message and f"cmd://{command}: {message}")


def test_a_command_check_that_cannot_be_started_is_not_ok() -> None:
    result = run(probe(HealthCheck("cmd://true"), {}, "/no/such/folder"))
    assert not result.ok
    assert "could not be started" in result.message


# The rounds


class Answers:
    """Commands that answer what the test wants, at once."""

    def __init__(self) -> None:
        self.codes: dict[str, int] = {}
        self.asked: list[tuple[str, float]] = []
        self.under_way = self.most = 0
        self.pause = 0.0

    async def run(
        self, argv: Sequence[str], env: Mapping[str, str], folder: str, timeout: float, user: str
    ) -> tuple[int, str]:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        self.asked.append((argv[-1], time.monotonic()))
        try:
            await asyncio.sleep(self.pause)
        finally:
            self.under_way -= 1
        return self.codes.get(argv[-1], 0), "text"


def watch(checks: HealthChecks, ident: str, healthy: bool | None = None, **options: Any) -> None:
    check = HealthCheck(f"cmd://{ident}", **{"interval": 0.05, **options})
    checks.watch(ident, check, LAUNCH, "/", ProcessStatus(healthy=healthy, started=time.time()))


def test_verdicts_are_told_when_they_change() -> None:
    told: list[tuple[str, bool, str]] = []
    answers = Answers()

    async def work() -> None:
        checks = HealthChecks(lambda *verdict: told.append(verdict), answers.run)
        watch(checks, "a", retries=3)
        await asyncio.sleep(0.2)
        answers.codes["a"] = 1
        await asyncio.sleep(0.3)
        answers.codes["a"] = 0
        await asyncio.sleep(0.2)
        assert time.monotonic() - checks.asked["a"] < 0.2
        checks.close()

    run(work())
    assert told == [("a", True, ""), ("a", False, "cmd://a: expected exit code 0, found 1: text"), ("a", True, "")]


def test_a_healthy_process_that_is_watched_again_is_no_news() -> None:
    told: list[Any] = []

    async def work() -> None:
        checks = HealthChecks(lambda *verdict: told.append(verdict), Answers().run)
        watch(checks, "a", healthy=True)
        await asyncio.sleep(0.2)
        checks.close()

    run(work())
    assert told == []


def test_the_first_round_is_spread_over_the_interval_and_then_keeps_its_pace() -> None:
    answers = Answers()

    async def work() -> None:
        checks = HealthChecks(lambda *verdict: None, answers.run)
        for number in range(100):
            watch(checks, f"p{number}", interval=0.4)
        await asyncio.sleep(1.3)
        checks.close()

    begun = time.monotonic()
    run(work())
    first: dict[str, float] = {}
    for ident, moment in answers.asked:
        first.setdefault(ident, moment - begun)
    assert len(first) == 100
    assert len([moment for moment in first.values() if moment < 0.2]) in range(25, 76)
    assert 260 <= len(answers.asked) <= 400


def test_commands_under_way_are_bounded_and_all_get_their_turn() -> None:
    answers = Answers()
    answers.pause = 0.01

    async def work() -> None:
        checks = HealthChecks(lambda *verdict: None, answers.run, chance=lambda: 0.0)
        for number in range(100):
            watch(checks, f"p{number}", interval=60)
        await asyncio.sleep(1)
        checks.close()

    run(work())
    assert answers.most == health.COMMANDS
    assert len(answers.asked) == 100


def test_a_forgotten_process_is_asked_no_more_and_its_last_answer_counts_for_nothing() -> None:
    told: list[Any] = []
    answers = Answers()
    answers.pause = 0.1

    async def work() -> None:
        checks = HealthChecks(lambda *verdict: told.append(verdict), answers.run, chance=lambda: 0.0)
        watch(checks, "a")
        watch(checks, "b", interval=60)
        await asyncio.sleep(0.05)
        checks.forget("a")
        checks.forget("unknown")
        await asyncio.sleep(0.3)
        assert "a" not in checks.asked
        checks.close()

    run(work())
    assert [ident for ident, _moment in answers.asked] == ["a", "b"]
    assert told == [("b", True, "")]


def test_a_process_may_be_forgotten_in_its_own_verdict() -> None:
    answers = Answers()

    async def work() -> None:
        checks = HealthChecks(lambda ident, ok, message: checks.forget(ident), answers.run, chance=lambda: 0.0)
        watch(checks, "a")
        await asyncio.sleep(0.3)
        checks.close()

    run(work())
    assert len(answers.asked) == 1


def test_500_idle_checks_cost_almost_nothing() -> None:
    async def work() -> float:
        checks = HealthChecks(lambda *verdict: None, Answers().run)
        for number in range(500):
            watch(checks, f"p{number}", interval=3600)
        await asyncio.sleep(0.1)
        before = time.process_time()
        await asyncio.sleep(1)
        used = time.process_time() - before
        checks.close()
        return used

    assert run(work()) < 0.05


def test_checks_without_tls_leave_the_tls_modules_out_of_memory() -> None:
    program = """
import socket, sys, threading
from autovibe_fleet.node import later
import asyncio
from autovibe_fleet.node.health import probe
from fleet_core.health import HealthCheck

def serve(server):
    for answer in (b"", b"HTTP/1.1 200 OK\\r\\n\\r\\n"):
        connection = server.accept()[0]
        connection.recv(1000) if answer else None
        connection.sendall(answer)
        connection.close()

async def work():
    server = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=serve, args=(server,), daemon=True).start()
    port = server.getsockname()[1]
    for url in (f"tcp://localhost:{port}", f"http://127.0.0.1:{port}/", "cmd://true"):
        result = await probe(HealthCheck(url), {}, "/")
        assert result.ok, result

asyncio.run(work())
assert "_ssl" not in sys.modules
"""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": path}, check=True)
