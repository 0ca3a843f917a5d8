# SPDX-License-Identifier: GPL-3.0-or-later
"""The session with Proxmox VE: TLS, logins, what is repeated and what is not, errors, tasks; over real HTTPS."""

from __future__ import annotations

import builtins
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fakepve", reason="the fake of Proxmox VE needs Python 3.10")

from fakepve import TaskError
from fakepve.certs import make_cert
from tests.fakes.proxmox_host import SECRET, TOKEN, Host

from fleet_core.errors import Conflict, FleetError, InvalidInput, NotFound, ProcessFailed, TimedOut, Unavailable
from fleet_machines.provider import Job
from fleet_machines.proxmox_api import Session, reply_of
from fleet_machines.proxmox_replies import Reply, error_of
from fleet_machines.proxmox_settings import settings_of
from fleet_machines.proxmox_tasks import TaskFailed, Tasks

WHAT = {"what": 'machine "web-1"', "asked": "do it"}


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    found = Host(tmp_path)
    try:
        yield found
    finally:
        found.stop()


def session(cluster: Host, **settings: Any) -> Session:
    found = Session({**cluster.settings, **settings})
    found.first_pause, found.lock_wait = 0.01, 0.3
    return found


def with_password(host: Host, password: str = "secret") -> Session:
    return session(host, token_id=None, token_secret=None, user="root", password=password)


# -- TLS and logins ---------------------------------------------------------------------------------------------------


def test_a_certificate_that_nobody_signed_is_not_trusted(host: Host) -> None:
    with pytest.raises(Unavailable) as caught:
        session(host, verify=None).get("/nodes")
    assert "its TLS certificate is not trusted: self-signed certificate; set verify to the file" in caught.value.message
    assert host.requests() == []  # the token was not sent
    assert session(host, verify=False).get("/nodes")
    assert session(host, verify="no").get("/nodes")


def test_a_certificate_of_another_ca_or_for_another_name_is_not_trusted(host: Host, tmp_path: Path) -> None:
    other, _key, _der = make_cert(str(tmp_path), name="other")
    with pytest.raises(Unavailable, match="its TLS certificate is not trusted"):
        session(host, verify=other).get("/nodes")
    relay = Relay(host.pve.port)
    with pytest.raises(Unavailable, match=r"its TLS certificate is not trusted: .*127\.0\.0\.2"):
        session(host, host=f"127.0.0.2:{relay.port}").get("/nodes")
    relay.close()
    with pytest.raises(InvalidInput, match="verify: expected true, false or the file of a CA, found '/nowhere"):
        session(host, verify="/nowhere/ca.pem")


class Relay:
    """The server under another address, for which its certificate is not made."""

    def __init__(self, target: int) -> None:
        import socket

        self._socket = socket.create_server(("127.0.0.2", 0))
        self.port = self._socket.getsockname()[1]

        def pump(source: Any, sink: Any) -> None:
            try:
                while data := source.recv(65536):
                    sink.sendall(data)
            except OSError:
                pass
            finally:
                sink.close()

        def serve() -> None:
            while True:
                try:
                    client, _address = self._socket.accept()
                except OSError:
                    return
                server = socket.create_connection(("127.0.0.1", target))
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=pump, args=pair, daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()

    def close(self) -> None:
        self._socket.close()


def test_tokens_and_passwords_log_in_and_wrong_ones_are_told_without_themselves(host: Host) -> None:
    assert session(host, token_id="ansible", user="fleet@pve").get("/nodes")
    assert with_password(host).put("/nodes/pve1/qemu/9000/config", {"cores": 2}) is None
    with pytest.raises(Unavailable, match="does not let fleet@pve!ansible in: authentication failure") as caught:
        session(host, token_secret="wrong-token-secret").get("/nodes")
    assert "wrong-token-secret" not in str(caught.value)
    one = with_password(host, "wrong-password")
    with pytest.raises(Unavailable, match="log in: Proxmox VE does not let root@pam in: wrong user or password") as bad:
        one.get("/nodes")
    assert "wrong-password" not in str(bad.value)
    assert one.counts["POST /access/ticket"] == 1  # once: a second try might lock the account
    host.pve.tfa = True
    with pytest.raises(Unavailable, match=r"does it need a second factor\? A token"):
        with_password(host).get("/nodes")


def test_a_ticket_that_ran_out_is_renewed_once_for_all_threads(host: Host) -> None:
    one = with_password(host)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda _number: one.get("/nodes"), range(64)))
        assert one.counts["POST /access/ticket"] == 1
        host.pve.revoke_tickets()
        list(pool.map(lambda _number: one.put("/nodes/pve1/qemu/9000/config", {"cores": 2}), range(64)))
    assert one.counts["POST /access/ticket"] <= 3


def test_connections_are_shared_and_kept(host: Host) -> None:
    one, seen = session(host), set()
    middleware = host.pve._record

    def record(request: Any, body: bytes) -> None:
        seen.add(request.transport.get_extra_info("peername"))
        middleware(request, body)

    host.pve._record = record  # type: ignore[method-assign]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _number: one.get("/nodes"), range(200)))
    assert len(seen) <= 8
    assert one.requests == one.counts["GET /nodes"] == 200


def test_nobody_there_is_told(host: Host) -> None:
    one = session(host, host="127.0.0.1:1")
    with pytest.raises(Unavailable, match=r"Proxmox VE at 127.0.0.1:1: GET /nodes: .*Connection refused"):
        one.get("/nodes")
    assert one.requests == 6
    with pytest.raises(Unavailable, match=r"nosuch\.invalid"):
        session(host, host="nosuch.invalid").get("/nodes", job=Job.lasting(1))


def test_without_its_packages_it_says_which(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == "requests":
            raise ImportError("No module named 'requests'")
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(Unavailable, match=r"needs the Python packages proxmoxer and requests for .*: No module"):
        session(host).get("/nodes")


# -- what is repeated -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [500, 502, 503, 504, 595, 596, 599, 429])
def test_reading_is_repeated_until_it_works(host: Host, status: int) -> None:
    host.pve.fail("GET", "/nodes", status=status, message="a moment, please", times=3)
    one = session(host)
    assert one.get("/nodes")
    assert one.requests == 4


@pytest.mark.parametrize(("status", "tries"), [(500, 1), (502, 1), (504, 1), (596, 1), (503, 6), (429, 6), (595, 6)])
def test_doing_is_repeated_only_when_nothing_was_done(host: Host, status: int, tries: int) -> None:
    host.pve.fail("POST", "/status/start", status=status, message="a moment, please")
    one = session(host)
    with pytest.raises(FleetError) as caught:
        one.post("/nodes/pve1/qemu/9000/status/start", **WHAT)
    assert one.requests == tries
    assert ("it may have been done nevertheless" in caught.value.message) == (status in (502, 504, 596))


def test_what_stays_wrong_is_asked_once(host: Host) -> None:
    one = session(host)
    for call in (
        lambda: one.get("/nodes/pve1/qemu/999/config"),
        lambda: one.put("/nodes/pve1/qemu/9000/config", {"nosuch": 1}),
        lambda: one.get("/nosuch"),
    ):
        before = one.requests
        with pytest.raises(FleetError):
            call()
        assert one.requests == before + 1


@pytest.mark.parametrize("text", ["can't lock file '/var/lock/qemu-server/lock-9000.conf' - got timeout", "VM is locked (backup)"])  # fmt: skip # noqa: E501
def test_locks_are_waited_for_with_anything_and_told_in_the_end(host: Host, text: str) -> None:
    host.pve.fail("POST", "/status/start", status=500, message=text, times=4)
    one, said = session(host), list[str]()
    one.post("/nodes/pve1/qemu/9000/status/start", job=Job.lasting(9, said.append), **WHAT)
    assert one.requests == 5
    assert said == [f"try again: {text}"]
    host.pve.fail("POST", "/status/start", status=500, message=text)
    with pytest.raises(Conflict, match='machine "web-1": do it: it is held by another operation: '):
        one.post("/nodes/pve1/qemu/9000/status/start", **WHAT)


def test_a_connection_that_breaks_is_repeated_for_reading_only(host: Host) -> None:
    host.pve.flaky_network(drop_rate=0.4, seed=7)
    one = session(host)
    for _time in range(20):
        assert one.get("/nodes")
    assert one.requests > 20
    host.pve.flaky_network(drop_rate=1.0)
    before = one.requests
    with pytest.raises(Unavailable, match=r"the connection failed: .*; it may have been done nevertheless"):
        one.post("/nodes/pve1/qemu/9000/status/start", **WHAT)
    assert one.requests == before + 1


def test_an_answer_that_does_not_come_is_waited_for_no_longer_than_allowed(host: Host) -> None:
    host.pve.time_scale = 1.0
    host.pve.slow_network(30)
    began = time.monotonic()
    with pytest.raises(Unavailable, match="the answer did not come in time"):
        session(host, timeout=1).get("/nodes", job=Job.lasting(2))
    assert time.monotonic() - began < 6
    with pytest.raises(Unavailable, match="the answer did not come in time; it may have been done nevertheless"):
        session(host, timeout=1).post("/nodes/pve1/qemu/9000/status/start", **WHAT)


def test_an_answer_that_is_not_of_proxmox_is_told(host: Host) -> None:
    host.pve.fail("GET", "/nodes", status=200, message="<h1>Welcome to nginx</h1>", html=True)
    with pytest.raises(Unavailable, match="is there something else at this address"):
        session(host).get("/nodes", job=Job.lasting(1))


# -- errors -----------------------------------------------------------------------------------------------------------

ERRORS: list[tuple[Reply, type[FleetError], str]] = [
    (Reply(400, "Parameter verification failed.", {"cores": "no number", "name": "bad"}), InvalidInput,
     "Proxmox VE does not take it: cores: no number; name: bad"),
    (Reply(401, "authentication failure"), Unavailable, "does not let fleet@pve!ansible in"),
    (Reply(403, "Permission check failed (/vms/100, VM.Monitor)"), Conflict,
     "fleet@pve!ansible lacks the privilege VM.Monitor on /vms/100"),
    (Reply(403, "Permission check failed (/vms/1, VM.GuestAgent.Audit|VM.GuestAgent.Unrestricted)"), Conflict,
     "lacks the privilege VM.GuestAgent.Audit or VM.GuestAgent.Unrestricted on /vms/1"),
    (Reply(403, "Permission check failed (user != root@pam)"), Conflict, "may not do that: user != root@pam"),
    (Reply(500, "Configuration file 'nodes/a/qemu-server/1.conf' does not exist"), NotFound, "does not exist"),
    (Reply(500, "VM is locked (migrate)"), Conflict, "held by another operation: VM is locked (migrate)"),
    (Reply(500, "unable to create VM 100: config file already exists"), Conflict, "already exists"),
    (Reply(500, "VM 100 qmp command 'guest-ping' failed - got timeout"), TimedOut, "got timeout"),
    (Reply(500, "something else"), ProcessFailed, "Proxmox VE answered 500: something else"),
    (Reply(501, "Method 'POST /x' not implemented"), Unavailable, "this version of Proxmox VE cannot do that"),
    (Reply(595, "No route to host"), Unavailable, "Proxmox VE answered 595: No route to host"),
]  # fmt: skip


@pytest.mark.parametrize(("reply", "kind", "text"), ERRORS, ids=[reply.said[:40] for reply, _kind, _text in ERRORS])
def test_every_error_is_one_sentence(reply: Reply, kind: type[FleetError], text: str) -> None:
    error = error_of('machine "web-1"', "clone it", reply, "fleet@pve!ansible")
    assert error.__class__ is kind
    assert error.message.startswith('machine "web-1": clone it: ')
    assert text in error.message
    assert "\n" not in error.message


def test_what_was_answered_can_be_looked_at(host: Host) -> None:
    with pytest.raises(NotFound) as caught:
        session(host).get("/nodes/pve1/qemu/999/config")
    reply = reply_of(caught.value)
    assert (reply.status, reply.missing, reply.taken) == (500, True, False)
    assert reply_of(ValueError("x")).status == 0


# -- tasks ------------------------------------------------------------------------------------------------------------


def start_task(host: Host, end: str = "OK", seconds: float = 0.0, log: tuple[str, ...] = ()) -> str:
    import asyncio

    async def body() -> None:
        await host.pve.pause(seconds)
        if end != "OK":
            raise TaskError(end)

    found = host.pve.task("pve1", "qmstart", 9000, TOKEN, body, log=log)
    return asyncio.run_coroutine_threadsafe(found, host._serving.loop).result(9)


def test_tasks_that_end_well_or_with_warnings_are_success(host: Host) -> None:
    tasks, said = Tasks(session(host)), list[str]()
    tasks.wait(start_task(host), Job.lasting(5, said.append), what="x", doing="y")
    assert said == []
    upid = start_task(host, "WARNINGS: 2", log=("first", "WARN: iothread is only valid with virtio disk"))
    tasks.wait(upid, Job.lasting(5, said.append), what="x", doing="start it")
    assert said == ["start it: done, with warnings: 2: first / WARN: iothread is only valid with virtio disk"]
    tasks.run(None, Job.lasting(5), what="x", doing="y")


def test_a_task_that_fails_is_told_with_the_end_of_its_log(host: Host) -> None:
    upid = start_task(host, "start failed: QEMU exited with code 1", log=("one", "kvm: no such image"))
    with pytest.raises(TaskFailed) as caught:
        Tasks(session(host)).wait(upid, Job.lasting(5), what='machine "web-1"', doing="start it")
    assert caught.value.message == (
        'machine "web-1": start it: the task on pve1 failed: start failed: QEMU exited with code 1 '
        "(one / kvm: no such image)"
    )
    assert caught.value.upid == upid


def test_a_task_that_takes_too_long_is_named_for_it_goes_on(host: Host) -> None:
    host.pve.time_scale = 1.0
    upid = start_task(host, seconds=5)
    with pytest.raises(TimedOut, match="the task still runs after 1s; it goes on in Proxmox VE as UPID:pve1:"):
        Tasks(session(host)).wait(upid, Job.lasting(1), what="x", doing="y")
    ended = threading.Event()
    job = Job(time.monotonic() + 60, 60, ended=ended)
    threading.Timer(0.3, ended.set).start()
    with pytest.raises(TimedOut, match="goes on in Proxmox VE as UPID"):
        Tasks(session(host)).wait(upid, job, what="x", doing="y")
    with pytest.raises(FleetError, match="expected the UPID of a task from Proxmox VE, found 'nonsense'"):
        Tasks(session(host)).wait("nonsense", job, what="x", doing="y")


def test_many_that_wait_share_one_list(host: Host) -> None:
    host.pve.time_scale = 1.0
    upids = [start_task(host, seconds=2.0) for _number in range(64)]
    one = session(host)
    tasks = Tasks(one)
    with ThreadPoolExecutor(64) as pool:
        list(pool.map(lambda upid: tasks.wait(upid, Job.lasting(20), what="x", doing="y"), upids))
    # One after the other would look at each a dozen times; what the list has dropped is asked for itself.
    assert one.counts["GET /cluster/tasks"] < 40
    assert one.requests < 64 * 3


# -- settings ---------------------------------------------------------------------------------------------------------


def test_settings_come_from_the_environment_too_and_wrong_ones_are_named() -> None:
    environ = {"PROXMOX_HOST": "https://pve1:8007/", "PROXMOX_TOKEN_ID": TOKEN, "PROXMOX_TOKEN_SECRET": SECRET}
    found = settings_of({"verify": "no", "timeout": "2m"}, {**environ, "PROXMOX_NODE": "pve9"})
    assert (found.host, found.port, found.user, found.token_id) == ("pve1", 8007, "fleet@pve", "ansible")
    assert (found.node, found.verify, found.timeout, found.account) == ("pve9", False, 120.0, TOKEN)
    assert settings_of({"host": "fd00::1"}, environ).where == "Proxmox VE at [fd00::1]:8006"
    assert settings_of({"host": "[fd00::1]:99"}, environ).port == 99
    assert settings_of({"host": "a", "user": "x", "password": "y"}, environ).account == "x@pam"  # what is given wins
    for given, text in (
        ({}, "host: expected the name of a node, here or in the environment as PROXMOX_HOST"),
        ({"host": "a"}, r"token_id: expected an API token \(token_id and token_secret\), or user and password"),
        ({"host": "a", "token_id": "u@pve!tt"}, "token_secret: expected the secret of the token u@pve!tt"),
        ({"host": "a", "token_id": "tt", "token_secret": "s"}, "user: expected a user with its realm"),
        ({"host": "a b", "user": "u", "password": "p"}, "host: expected a host name or address"),
        ({"host": "a", "user": "u", "password": "p", "clone": "x"}, "clone: expected one of auto, linked, full"),
        ({"host": "a", "user": "u", "password": "p", "port": 0}, "port: expected a number from 1 to 65535"),
        ({"host": "a", "user": "u", "password": ["hunter2"]}, "password: expected text$"),
    ):
        with pytest.raises(InvalidInput, match=text):
            settings_of(given, {})
