# SPDX-License-Identifier: GPL-3.0-or-later
"""The clients of QEMU's monitor and guest agent, against small servers on real sockets."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.requirements import require_root

from fleet_core.errors import NotFound, ProcessFailed, TimedOut, Unavailable
from fleet_machines import qemu_agent, qemu_qmp
from fleet_machines.provider import Job
from fleet_machines.qemu_agent import Agent
from fleet_machines.qemu_qmp import Monitor

Answer = Callable[[dict[str, Any]], "list[dict[str, Any]]"]
GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}}, "capabilities": []}}


class Server:
    """Answers each line of one client after another by a function; keeps what it was asked."""

    def __init__(self, path: Path, answer: Answer, greeting: list[bytes], delimit: bool = False) -> None:
        self.asked: list[dict[str, Any]] = []
        self._answer, self._greeting, self._delimit = answer, greeting, delimit
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _address = self._listener.accept()
                with connection, contextlib.suppress(OSError):
                    self._talk(connection)

    def _talk(self, connection: socket.socket) -> None:
        for line in self._greeting:
            connection.sendall(line)
        buffer = b""
        while data := connection.recv(65536):
            buffer += data
            while b"\n" in buffer:
                line, _newline, buffer = buffer.partition(b"\n")
                request = json.loads(line.lstrip(b"\xff"))
                self.asked.append(request)
                for answer in self._answer(request):
                    if "id" in request:
                        answer = answer if "event" in answer else {"id": request["id"], **answer}
                    prefix = b"\xff" if self._delimit and request["execute"] == "guest-sync-delimited" else b""
                    connection.sendall(prefix + json.dumps(answer).encode() + b"\n")


Start = Callable[..., Server]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Start]:
    started: list[Server] = []

    def start(answer: Answer, greeting: list[bytes] | None = None, delimit: bool = False) -> Server:
        lines = [json.dumps(GREETING).encode() + b"\r\n"] if greeting is None else greeting
        started.append(Server(tmp_path / "s", answer, lines, delimit))
        return started[-1]

    yield start
    for server in started:
        server.close()


def ok(request: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"return": {}}]


def test_a_monitor_is_greeted_and_answers(serve: Start, tmp_path: Path) -> None:
    server = serve(ok)
    with Monitor(tmp_path / "s", "web") as monitor:
        assert monitor.version == (7, 2)
        monitor.call("block_resize", node_name="disk", size=5)
    assert [one["execute"] for one in server.asked] == ["qmp_capabilities", "block_resize"]
    assert server.asked[1]["arguments"] == {"node-name": "disk", "size": 5}


def test_events_between_answers_are_kept(serve: Start, tmp_path: Path) -> None:
    event = {"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 0}}
    serve(lambda request: [dict(event), {"return": {"running": False}}])
    with Monitor(tmp_path / "s", "web") as monitor:
        assert not monitor.running()
        assert monitor.event(("STOP",), 1.0) is not None
        assert monitor.event(("RESUME",), 0.05) is None


def test_an_answer_to_somebody_else_is_skipped(serve: Start, tmp_path: Path) -> None:
    serve(lambda request: [{"return": "old", "id": "other"}, {"return": "mine"}])
    with Monitor(tmp_path / "s", "web") as monitor:
        assert monitor.call("query-name") == "mine"


@pytest.mark.parametrize(
    ("error", "kind"),
    [({"class": "GenericError", "desc": "no space"}, ProcessFailed), ({"class": "CommandNotFound"}, NotFound)],
)
def test_errors_name_the_machine_and_the_command(
    error: dict[str, str], kind: type[Exception], serve: Start, tmp_path: Path
) -> None:
    serve(lambda request: [{"error": error}] if request["execute"] == "x" else [{"return": {}}])
    with Monitor(tmp_path / "s", "web") as monitor, pytest.raises(kind, match='machine "web": x: '):
        monitor.call("x")


def jobs(*states: dict[str, Any]) -> Answer:
    left = list(states)

    def answer(request: dict[str, Any]) -> list[dict[str, Any]]:
        if request["execute"] != "query-jobs":
            return [{"return": {}}]
        state = left.pop(0) if len(left) > 1 else left[0]
        return [{"return": [{**state, "id": ident(server)}]}]

    server: list[Server] = []
    answer.server = server  # type: ignore[attr-defined]
    return answer


def ident(server: list[Server]) -> str:
    return next(one["arguments"]["job-id"] for one in server[0].asked if "job-id" in one.get("arguments", {}))


@pytest.mark.parametrize(
    ("last", "message"),
    [({"status": "concluded"}, ""), ({"status": "concluded", "error": "no room"}, "snapshot-save: no room")],
)
def test_a_job_is_waited_for_and_dismissed(last: dict[str, Any], message: str, serve: Start, tmp_path: Path) -> None:
    answer = jobs({"status": "running"}, last)
    server = serve(answer)
    answer.server.append(server)  # type: ignore[attr-defined]
    with Monitor(tmp_path / "s", "web") as monitor:
        if message:
            with pytest.raises(ProcessFailed, match=message):
                monitor.job("snapshot-save", 5.0, tag="a")
        else:
            monitor.job("snapshot-save", 5.0, tag="a")
    assert server.asked[-1]["execute"] == "job-dismiss"


def test_a_job_that_lasts_too_long_is_cancelled(serve: Start, tmp_path: Path) -> None:
    answer = jobs({"status": "running"})
    server = serve(answer)
    answer.server.append(server)  # type: ignore[attr-defined]
    with Monitor(tmp_path / "s", "web") as monitor, pytest.raises(TimedOut, match=r"did not end within 0\.2 s"):
        monitor.job("snapshot-save", 0.2, tag="a")
    assert "job-cancel" in [one["execute"] for one in server.asked]


@pytest.mark.parametrize(
    ("greeting", "kind"),
    [([], TimedOut), ([b"garbage\n"], ProcessFailed), ([b"[1]\n"], ProcessFailed), ([b"{}\n"], ProcessFailed)],
    ids=["silent", "garbage", "list", "empty"],
)
def test_what_is_no_monitor_is_refused(
    greeting: list[bytes], kind: type[Exception], serve: Start, tmp_path: Path
) -> None:
    serve(ok, greeting)
    with pytest.raises(kind, match='machine "web"'):
        Monitor(tmp_path / "s", "web", timeout=0.3)


def test_an_endless_line_is_cut_off(serve: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu_qmp, "LONGEST_LINE", 1000)
    serve(ok, [b"x" * 5000])
    with pytest.raises(ProcessFailed, match="more than 1000 bytes"):
        Monitor(tmp_path / "s", "web", timeout=5)


def test_a_monitor_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r'machine "web".*cannot be reached'):
        Monitor(tmp_path / "none", "web")


def test_a_socket_in_a_deep_folder_is_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path.joinpath(*["deep" * 10] * 4)
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    server = Server(Path("s"), ok, [json.dumps(GREETING).encode() + b"\n"])
    with Monitor(folder / "s", "web") as monitor:
        monitor.call("stop")
    server.close()


# -- the agent --------------------------------------------------------------------------------------------------------


def agent_of(**returns: Any) -> Answer:
    """Answers of an agent: of a list, one after another, the last again and again."""

    def answer(request: dict[str, Any]) -> list[dict[str, Any]]:
        name = request["execute"]
        if name == "guest-sync-delimited":
            return [{"return": request["arguments"]["id"]}]
        value = returns.get(name.replace("-", "_"), {})
        if isinstance(value, list) and name == "guest-exec-status":
            value = value.pop(0) if len(value) > 1 else value[0]
        if isinstance(value, Exception):
            return [{"error": {"class": "GenericError", "desc": str(value)}}]
        return [{"return": value}]

    return answer


def test_a_script_goes_in_by_standard_input_never_as_an_argument(serve: Start, tmp_path: Path) -> None:
    done = {"exited": True, "exitcode": 3, "out-data": base64.b64encode(b"out").decode(), "err-data": "ZXJy"}
    server = serve(agent_of(guest_exec={"pid": 7}, guest_exec_status=[{"exited": False}, done]), [], True)
    with Agent(tmp_path / "s", "web") as agent:
        ran = agent.run("echo SECRET\n", Job.lasting(5))
    assert (ran.code, ran.stdout, ran.stderr) == (3, "out", "err")
    (started,) = [one["arguments"] for one in server.asked if one["execute"] == "guest-exec"]
    assert "SECRET" not in json.dumps(started)
    assert base64.b64decode(started["input-data"]) == b"echo SECRET\n"
    assert started["path"] == "/bin/sh"


def test_a_script_that_was_killed_has_the_code_of_a_shell(serve: Start, tmp_path: Path) -> None:
    serve(agent_of(guest_exec={"pid": 7}, guest_exec_status=[{"exited": True, "signal": 9}]), [], True)
    with Agent(tmp_path / "s", "web") as agent:
        assert agent.run("x", Job.lasting(5)).code == 137


def test_a_script_that_does_not_end_is_told(serve: Start, tmp_path: Path) -> None:
    serve(agent_of(guest_exec={"pid": 7}, guest_exec_status=[{"exited": False}]), [], True)
    with Agent(tmp_path / "s", "web") as agent, pytest.raises(TimedOut, match="a script did not end within"):
        agent.run("x", Job.lasting(0.3))


def test_what_an_earlier_connection_left_is_skipped(serve: Start, tmp_path: Path) -> None:
    serve(agent_of(guest_ping={}), [b'{"return": "half of an old ans', b'wer"}\n'], True)
    with Agent(tmp_path / "s", "web") as agent:
        agent.ping()


def test_what_is_no_answer_is_skipped(serve: Start, tmp_path: Path) -> None:
    serve(agent_of(guest_ping={}), [b"\xff5\n", b'\xff["return"]\n', b"\xff" + b"[" * 200_000 + b"\n"], True)
    with Agent(tmp_path / "s", "web") as agent:
        agent.ping()


def test_an_error_is_bounded_and_fit_for_a_terminal(serve: Start, tmp_path: Path) -> None:
    serve(agent_of(guest_ping=Exception("\x1b]0;evil\x07no" + "!" * 10_000)), [], True)
    with Agent(tmp_path / "s", "web") as agent, pytest.raises(ProcessFailed) as caught:
        agent.ping()
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_socket_that_somebody_else_listens_on_is_refused(serve: Start, tmp_path: Path) -> None:
    require_root("to give a folder to another user")
    server = serve(ok)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "qmp.sock").symlink_to(tmp_path / "s")
    os.chown(folder, 1_900_000_001, 1_900_000_001)
    with pytest.raises(Unavailable, match="somebody else listens there"):
        Monitor(folder / "qmp.sock", "web")
    assert server.asked == []


def test_an_agent_that_is_silent_is_timed_out(serve: Start, tmp_path: Path) -> None:
    serve(lambda request: [], [], True)
    with pytest.raises(TimedOut, match='machine "web": its guest agent'):
        Agent(tmp_path / "s", "web", timeout=0.2)


def test_addresses_of_a_guest_are_its_own_words_sifted(serve: Start, tmp_path: Path) -> None:
    told = [
        {"name": "lo", "hardware-address": "00:00:00:00:00:00", "ip-addresses": [{"ip-address": "127.0.0.1"}]},
        {
            "hardware-address": "52:54:00:AA:BB:CC",
            "ip-addresses": [{"ip-address": "fe80::1"}, {"ip-address": "fd00::2"}, {"ip-address": "10.0.0.2"}],
        },
        {
            "hardware-address": "52:54:00:aa:bb:dd",
            "ip-addresses": [
                {"ip-address": "-oProxyCommand=touch x"},
                {"ip-address": "2001:db8::1%$(touch x)"},
                {"ip-address": "{{ 1 }}"},
                {"ip-address": ["10.0.0.3"]},
            ],
        },
        {"name": "no mac", "ip-addresses": "nonsense"},
        "nonsense",
    ]
    serve(agent_of(guest_network_get_interfaces=told), [], True)
    with Agent(tmp_path / "s", "web") as agent:
        assert agent.addresses() == {"52:54:00:aa:bb:cc": ("10.0.0.2", "fd00::2")}


def test_the_clock_is_set_in_nanoseconds(serve: Start, tmp_path: Path) -> None:
    server = serve(agent_of(), [], True)
    with Agent(tmp_path / "s", "web") as agent:
        agent.set_time(1.5)
    assert server.asked[-1]["arguments"] == {"time": 1_500_000_000}


def test_a_script_that_is_too_long_is_refused(serve: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu_agent, "MOST_INPUT", 3)
    serve(agent_of(), [], True)
    with Agent(tmp_path / "s", "web") as agent, pytest.raises(ProcessFailed, match="too long"):
        agent.run("four", Job.lasting(1))
