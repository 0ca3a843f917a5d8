# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from fleet_core.errors import NotFound
from fleet_node import procfs

Start = Callable[..., "subprocess.Popen[bytes]"]
SLEEP = (sys.executable, "-c", "import time; time.sleep(60)")


@pytest.fixture
def start() -> Iterator[Start]:
    """Start programs that do not outlive the test."""
    running: list[subprocess.Popen[bytes]] = []

    def run(*argv: str, **options: object) -> subprocess.Popen[bytes]:
        running.append(subprocess.Popen(argv, start_new_session=True, **options))  # type: ignore[call-overload]
        return running[-1]

    yield run
    for child in running:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


@pytest.fixture(params=["proc", "ps"])
def table(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every fact is the same whether it comes from /proc or from ps."""
    found = procfs.Proc() if request.param == "proc" else procfs.Ps()
    if request.param == "proc" and not os.path.exists("/proc/self/stat"):
        pytest.skip("no /proc here")
    monkeypatch.setattr(procfs, "TABLE", found)
    return str(request.param)


def until(true: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_process_is_alive_until_it_ends_even_if_nobody_reaps_it(start: Start, table: str) -> None:
    child = start(*SLEEP)
    begun = procfs.start_ticks(child.pid)
    assert begun is not None
    assert procfs.alive(child.pid, begun)
    assert not procfs.alive(child.pid, begun + 1)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not procfs.alive(child.pid, begun)
    child.wait()
    assert procfs.start_ticks(child.pid) is None
    assert not procfs.alive(0)


def test_facts_tell_memory_time_and_owner_of_many_processes_at_once(start: Start, table: str) -> None:
    child = start(sys.executable, "-c", "sum(range(8_000_000)); import time; time.sleep(60)")
    until(lambda: procfs.cpu_seconds(child.pid) >= (0.02 if table == "proc" else 0))
    found = procfs.facts([os.getpid(), child.pid, 0, 2**22 + 1])
    assert set(found) == {os.getpid(), child.pid}
    one = found[child.pid]
    assert one["memory"] > 1_000_000
    assert one["ppid"] == os.getpid()
    assert one["group"] == child.pid
    assert one["user"] == procfs.user_name(os.geteuid())
    assert abs(one["started"] - time.time()) < 15
    assert procfs.rss(child.pid) > 1_000_000


def test_groups_leave_out_zombies_and_groups_that_are_gone(start: Start, table: str) -> None:
    program = "import subprocess as s, sys; s.Popen(['sleep', '60'], stdout=s.DEVNULL); print(1, flush=True)"
    child = start(sys.executable, "-c", program, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    left = procfs.group_members(child.pid)
    assert len(left) == 1
    assert left != [child.pid]
    os.kill(left[0], signal.SIGKILL)
    until(lambda: procfs.groups([child.pid, 2**22 + 1]) == {})


def test_usage_sums_over_the_group(start: Start, table: str) -> None:
    child = start("/bin/sh", "-c", f"{sys.executable} -c 'import time; time.sleep(60)' & wait")
    until(lambda: len(procfs.group_members(child.pid)) == 2)
    until(lambda: procfs.usage([child.pid])[child.pid][0] > procfs.rss(child.pid) > 0)


def test_launches_are_found_by_their_token_with_their_children(start: Start, table: str) -> None:
    env = {**os.environ, "FLEET_LAUNCH": "token-one", "XFLEET_LAUNCH": "token-three"}
    child = start("/bin/sh", "-c", f"{sys.executable} -c 'import time; time.sleep(60)' & wait", env=env)
    until(lambda: len(procfs.group_members(child.pid)) == 2)
    expected = sorted(procfs.group_members(child.pid))
    found = procfs.find_launches(["token-one", "token-two", "token-three"])
    assert sorted(found["token-one"]) == expected
    assert found["token-two"] == found["token-three"] == []
    assert sorted(procfs.find_by_environment("XFLEET_LAUNCH", "token-three")) == expected


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_listening_port_leads_to_its_process(family: socket.AddressFamily, table: str) -> None:
    with socket.socket(family) as server:
        try:
            server.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
        except OSError:
            pytest.skip("no IPv6 here")
        port = server.getsockname()[1]
        assert port not in procfs.listening_ports()
        assert procfs.listeners(port) == []
        server.listen()
        assert port in procfs.listening_ports()
        assert procfs.listeners(port) == [os.getpid()]
        assert port in procfs.describe(os.getpid())["ports"]
    assert procfs.listeners(port) == []


def test_describe_gives_the_command_line_as_it_was(start: Start, tmp_path: object) -> None:
    words = ["a b", "", "ä'\"", "line\nbreak"]
    child = start(*SLEEP, *words, cwd=str(tmp_path))
    until(lambda: procfs.TABLE.argv(child.pid)[1:2] == ["-c"])
    found = procfs.describe(child.pid)
    assert found["argv"] == [*SLEEP, *words]
    assert found["cwd"] == str(tmp_path)
    assert found["ports"] == []
    assert found["pid_start"] == procfs.start_ticks(child.pid)


def test_describe_says_which_pid_does_not_exist() -> None:
    with pytest.raises(NotFound, match="pid 4194305: no such process"):
        procfs.describe(2**22 + 1)


@pytest.mark.parametrize(
    ("text", "seconds"), [("0:01.50", 1.5), ("00:02:03", 123), ("1-00:00:01", 86401), ("10:00.00", 600)]
)
def test_the_clock_of_ps_is_read(text: str, seconds: float) -> None:
    assert procfs._clock(text) == seconds


def test_a_name_with_brackets_and_spaces_does_not_confuse_the_table(tmp_path: object) -> None:
    folder = f"{tmp_path}/77"
    os.makedirs(folder)
    with open(f"{folder}/stat", "w", encoding="ascii") as file:
        file.write(
            "77 (a) R 1 (b) S 5 77 77 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 1 0 12345 1000 7 18446744073709551615\n"
        )
    row = procfs.Proc(str(tmp_path)).row(77)
    assert row is not None
    assert (row.ppid, row.group, row.state, row.start) == (5, 77, "S", 12345)
    assert row.memory == 7 * os.sysconf("SC_PAGE_SIZE")
    assert row.cpu == 300 / os.sysconf("SC_CLK_TCK")
