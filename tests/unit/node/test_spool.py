# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fleet_core.processes import LogPolicy
from fleet_node import logs, spool, watch
from fleet_node.spool import Spool

PLENTY = LogPolicy(1024 * 1024, 100)


class Host:
    """A state folder with one process, "env/web", whose writer is the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "logs" / "web.log"
        self.reports: list[str] = []
        self.printed: list[str] = []

    def open(self, policy: LogPolicy = PLENTY, pid: int = 7) -> Spool:
        """What the next fleetd does."""
        found = Spool(self.folder / "spool", self.reports.append, self.printed.append)
        found.add("env/web", "web", self.log, policy, pid)
        return found

    def write(self, data: bytes, which: int = 0) -> None:
        with open(self.file(which), "ab") as file:
            file.write(data)

    def file(self, which: int = 0) -> Path:
        return self.folder / "spool" / ("env%2Fweb.out", "env%2Fweb.err")[which]

    def texts(self, level: str = "") -> list[str]:
        return [record["message"] for record in logs.read(self.log) if level in ("", record["level"])]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def pump(found: Spool) -> None:
    delay: float | None = 0.0
    found.pump(["env/web"])
    while delay == 0.0:
        delay = found.pump()


def test_lines_of_both_outputs_reach_the_log_with_name_and_pid(host: Host) -> None:
    found = host.open()
    assert [Path(file) for file in found.files("env/web")] == [host.file(0), host.file(1)]
    host.write(b"one\ntwo\r\n")
    host.write(b"bad\n", which=1)
    pump(found)
    records = [(r["level"], r["message"], r["process_name"], r["process_id"]) for r in logs.read(host.log)]
    assert records == [("Stdout", "one", "web", 7), ("Stdout", "two", "web", 7), ("Stderr", "bad", "web", 7)]
    assert set(host.printed) == {"env/web"}


def test_notes_stand_between_the_lines(host: Host) -> None:
    found = host.open(pid=0)
    found.note("env/web", 41, "started")
    host.write(b"one\n")
    found.drain("env/web")
    found.note("env/web", 41, "ended", "Info")
    records = [(r["level"], r["message"], r["process_id"]) for r in logs.read(host.log)]
    assert records == [("Lifecycle", "started", 41), ("Stdout", "one", 41), ("Info", "ended", 41)]
    found.note("env/other", 1, "of nobody")


def test_a_line_without_end_waits_and_is_written_when_nothing_follows(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "IDLE", 0.05)
    found = host.open()
    host.write(b"Password: ")
    delay = found.pump(["env/web"])
    assert delay is not None
    assert 0 < delay <= 0.05
    assert host.texts() == []
    time.sleep(0.06)
    assert found.pump() is None
    assert host.texts() == ["Password: "]
    host.write(b"secret\n")
    pump(found)
    assert host.texts() == ["Password: ", "secret"]


def test_a_line_that_grows_in_pieces_stays_whole(host: Host) -> None:
    found = host.open()
    for piece in (b"a", b"b", b"c\nd"):
        host.write(piece)
        found.pump(["env/web"])
    assert host.texts() == ["abc"]
    found.drain("env/web")
    assert host.texts() == ["abc", "d"]


def test_a_long_line_is_cut_between_characters(host: Host) -> None:
    found = host.open()
    text = "a" + "€" * 200_000
    host.write(text.encode() + b"\nnext\n")
    pump(found)
    *parts, last = host.texts()
    assert "".join(parts) == text
    assert last == "next"
    assert all(len(part.encode()) <= spool.LINE for part in parts)
    assert len(parts) == -(-len(text.encode()) // (spool.LINE - 3))


def test_what_is_not_utf8_is_replaced_and_the_rest_kept(host: Host) -> None:
    found = host.open()
    host.write(b"a\xff\0\x1b[31m\tb\n\n\xe2\x82\n")
    pump(found)
    assert host.texts() == ["a\ufffd\0\x1b[31m\tb", "", "\ufffd"]


def test_a_new_fleetd_goes_on_where_the_old_one_stopped(host: Host) -> None:
    first = host.open()
    host.write(b"1\n2\n")
    host.write(b"a\n", which=1)
    pump(first)
    host.write(b"3\n")
    host.write(b"b\n", which=1)
    pump(host.open())
    host.write(b"4\n")
    pump(host.open())
    assert host.texts("Stdout") == ["1", "2", "3", "4"]
    assert host.texts("Stderr") == ["a", "b"]


def test_a_new_fleetd_finds_the_place_in_a_rotated_log(host: Host) -> None:
    host.open()
    host.write(b"1\n")
    pump(host.open())
    logs.rotate(str(host.log), 5)
    host.write(b"2\n")
    pump(host.open())
    assert host.texts() == ["1", "2"]


def test_a_restarted_process_appends_and_nothing_is_read_twice(host: Host) -> None:
    found = host.open()
    host.write(b"first run\nno end")
    found.drain("env/web")
    host.write(b"second run\n")
    pump(found)
    assert host.texts() == ["first run", "no end", "second run"]


def test_a_removed_process_leaves_its_log_and_no_spool(host: Host) -> None:
    found = host.open()
    host.write(b"of the first\n" * 3)
    found.remove("env/web")
    assert list((host.folder / "spool").iterdir()) == []
    found = host.open()
    second = "of the second, which is longer than all of the first was"
    host.write(second.encode() + b"\n")
    pump(host.open())
    assert host.texts() == ["of the first"] * 3 + ["removed", second]


def test_prune_removes_the_files_of_unknown_processes_only(host: Host) -> None:
    found = host.open()
    host.write(b"x\n")
    for name in ("env%2Fgone.out", "env%2Fgone.err", "notes.txt"):
        (host.folder / "spool" / name).write_text("x")
    assert found.prune() == ["env/gone"]
    assert sorted(file.name for file in (host.folder / "spool").iterdir()) == ["env%2Fweb.out", "notes.txt"]


def allocated(file: Path) -> int:
    return file.stat().st_blocks * 512


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="holes are punched with fallocate(2)")
def test_the_disk_of_what_was_read_is_given_back(host: Host) -> None:
    found = host.open()
    host.write(b"x" * 99 + b"\n")
    host.write((b"y" * 99 + b"\n") * 20_000)
    assert allocated(host.file()) >= 2_000_000
    pump(found)
    assert allocated(host.file()) <= 2 * spool.HOLE
    assert host.file().stat().st_size == 2_000_100
    found.drain("env/web")
    assert allocated(host.file()) <= 8192


@pytest.mark.parametrize("all_of_it", [True, False])
def test_a_removed_log_does_not_bring_back_what_was_given_back(host: Host, all_of_it: bool) -> None:
    found = host.open()
    host.write((b"y" * 99 + b"\n") * 20_000)
    found.drain("env/web")
    assert host.log.with_name("web.log.1").exists()
    for file in list(host.log.parent.iterdir()) if all_of_it else [host.log]:
        file.unlink()
    found = host.open()
    host.write(b"after the log was removed\n")
    pump(found)
    assert [text for text in host.texts() if text != "y" * 99] == ["after the log was removed"]


def test_a_process_that_empties_its_own_output_is_read_on(host: Host) -> None:
    found = host.open()
    host.write(b"a long first line\n")
    pump(found)
    host.file().write_bytes(b"")
    host.write(b"again\n")
    pump(found)
    assert host.texts() == ["a long first line", "again"]


def test_a_replaced_spool_file_is_read_from_its_start(host: Host) -> None:
    found = host.open()
    host.write(b"old\n")
    pump(found)
    os.rename(host.file(), host.folder / "kept")
    host.write(b"new, and longer\n")
    pump(found)
    assert host.texts() == ["old", "new, and longer"]


def test_what_the_log_would_not_keep_does_not_fill_the_disk(host: Host) -> None:
    found = host.open(LogPolicy(4096, 1))
    host.write(b"%063d\n" % 0 * 200_000)
    pump(found)
    assert host.texts()[-1] == f"{0:063}"
    assert allocated(host.file()) <= 2 * spool.HOLE
    written = host.open(LogPolicy(10**8, 1))
    del written
    assert "left out" not in host.texts()[-1]


def test_how_much_is_left_out_is_said(host: Host) -> None:
    found = host.open(LogPolicy(1024 * 1024, 4))
    host.write(b"%063d\n" % 1 * 150_000)
    pump(found)
    (said,) = [text for text in host.texts("Error") if "left out" in text]
    kept = sum(1 for text in host.texts("Stdout"))
    assert int(said.split()[0]) > 3_000_000
    assert kept > 1000
    assert host.texts()[-1] == f"{1:063}"


def test_a_prompt_is_shown_while_the_other_output_is_busy(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "IDLE", 0.05)
    found = host.open()
    host.write(b"Password: ")
    for _turn in range(5):
        host.write(b"busy\n", which=1)
        found.pump(["env/web"])
        time.sleep(0.02)
    assert host.texts("Stdout") == ["Password: "]


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own, for root; else a limit on the size of files does."""
    if os.geteuid() == 0 and sys.platform.startswith("linux"):
        folder = tmp_path / "small"
        folder.mkdir()
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], check=False)
        if made.returncode == 0:
            yield folder
            subprocess.run(["umount", "-l", str(folder)], check=True)
            return
    pytest.skip("needs root and tmpfs")


def test_a_full_disk_loses_no_line_and_doubles_none(
    host: Host, full_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "RETRY", 0.01)
    host.log = full_disk / "logs" / "web.log"
    ballast = full_disk / "ballast"
    ballast.write_bytes(b"x" * 40_000)
    found = host.open()
    expected = [f"{number:050}" for number in range(250)]
    for text in expected:
        host.write(text.encode() + b"\n")
        found.pump(["env/web"])
    found.note("env/web", 7, "written later")
    assert found.trouble == 1
    assert len(host.reports) == 1
    assert "No space left on device" in host.reports[0]
    assert not found.drain("env/web")
    held = host.texts()
    assert held == expected[: len(held)]
    assert 0 < len(held) < 250
    # A kill in this state changes nothing.
    found = host.open()
    pump(found)
    ballast.unlink()
    time.sleep(0.02)
    pump(found)
    assert host.texts("Stdout") == expected
    assert found.trouble == 0
    assert host.reports[-1].endswith("can be written again")


def test_a_limit_on_file_sizes_is_survived_too(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "RETRY", 0.01)
    found = host.open()
    expected = [f"{number:050}" for number in range(500)]
    host.write("".join(text + "\n" for text in expected).encode())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        pump(found)
        held = host.texts()
        assert 0 < len(held) < 500
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    time.sleep(0.02)
    pump(found)
    assert host.texts() == expected


def test_a_log_that_cannot_be_written_stops_no_other(host: Host, tmp_path: Path) -> None:
    found = host.open()
    other = tmp_path / "other.log"
    found.add("other", "other", other)
    host.log.mkdir(parents=True)
    host.write(b"x\n")
    with open(found.files("other")[0], "ab") as file:
        file.write(b"y\n")
    delay = found.pump(["env/web", "other"])
    assert delay is not None
    assert delay > 0.5
    assert [record["message"] for record in logs.read(other)] == ["y"]
    host.log.rmdir()
    found.drain("env/web")
    assert host.texts() == ["x"]


@pytest.fixture(params=["inotify", "polling"])
def watched(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "polling":
        monkeypatch.setattr(spool, "watcher", watch.Clockwork)
    elif not sys.platform.startswith("linux"):
        pytest.skip("no inotify here")
    return str(request.param)


def test_in_the_event_loop_lines_arrive_by_themselves(host: Host, watched: str) -> None:
    async def work() -> None:
        host.open()
        host.write(b"before\n")
        found = host.open()
        found.attach(asyncio.get_running_loop())
        for number in range(20):
            host.write(b"%d\n" % number)
            await asyncio.sleep(0.03)
        host.write(b"no end")
        await until(lambda: host.texts()[-1:] == ["no end"], 3)
        host.write(b"at the end\n")
        found.close()
        found.close()

    asyncio.run(work())
    assert host.texts() == ["before", *map(str, range(20)), "no end", "at the end"]


async def until(true: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


def test_in_the_event_loop_a_full_log_is_tried_again(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "RETRY", 0.1)

    async def work() -> None:
        host.log.mkdir(parents=True)
        found = host.open()
        found.attach(asyncio.get_running_loop())
        host.write(b"x\n")
        await asyncio.sleep(0.3)
        host.log.rmdir()
        await until(lambda: host.texts() == ["x"])
        found.close()

    asyncio.run(work())


def test_a_writer_of_many_small_lines_leaves_fleetd_idle(host: Host) -> None:
    program = f"""
import os, time
file = os.open({str(host.file())!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
end = time.monotonic() + 1.5
number = 0
while time.monotonic() < end:
    os.write(file, b"%d\\n" % number)
    number += 1
    time.sleep(0.001)
"""

    async def work() -> float:
        found = host.open()
        found.attach(asyncio.get_running_loop())
        child = await asyncio.create_subprocess_exec(sys.executable, "-c", program)
        before = time.process_time()
        await child.wait()
        used = time.process_time() - before
        found.close()
        return used

    assert asyncio.run(work()) < 0.5
    assert [int(text) for text in host.texts()] == list(range(len(host.texts())))


def test_an_idle_spool_uses_no_time(host: Host) -> None:
    async def work() -> float:
        found = host.open()
        found.attach(asyncio.get_running_loop())
        await asyncio.sleep(0.1)
        before = time.process_time()
        await asyncio.sleep(1)
        used = time.process_time() - before
        found.close()
        return used

    assert asyncio.run(work()) < 0.02


def test_lost_inotify_events_are_made_up_for(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        found = host.open()
        found.attach(asyncio.get_running_loop())
        assert found._watcher is not None
        real = found._watcher.read
        monkeypatch.setattr(watch.Watcher, "read", lambda self: None if real() else set())
        host.write(b"x\n")
        await until(lambda: host.texts() == ["x"])
        found.close()

    asyncio.run(work())


# Exactly once, whatever is killed when.

PUMP = """
import asyncio, sys
from fleet_core.processes import LogPolicy
from fleet_node.spool import Spool

async def work():
    found = Spool(sys.argv[1])
    found.add("env/web", "web", sys.argv[2], LogPolicy(int(sys.argv[3]), 500))
    found.attach(asyncio.get_running_loop())
    await asyncio.sleep(3600)

asyncio.run(work())
"""
WRITER = """
import os, random, sys, time
chance = random.Random(sys.argv[3])
files = [os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT) for path in sys.argv[1:3]]
numbers = [0, 0]
pad = "0123456789" * 3000
while True:
    which = chance.randrange(2)
    text = ""
    for _ in range(chance.choice([1, 1, 1, 30])):
        text += "%d %s\\n" % (numbers[which], pad[: chance.choice([0, 3, 50, 50, 1000, 30000])])
        numbers[which] += 1
    data = text.encode()
    cut = chance.randrange(len(data)) if chance.random() < 0.3 else 0
    for piece in (data[:cut], data[cut:]):
        os.write(files[which], piece)
    if chance.random() < 0.2:
        time.sleep(0.005)
"""


def start(*argv: Any) -> subprocess.Popen[bytes]:
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return subprocess.Popen([sys.executable, "-c", *map(str, argv)], env={**os.environ, "PYTHONPATH": path})


def end(child: subprocess.Popen[bytes], number: int = signal.SIGKILL) -> None:
    with contextlib.suppress(ProcessLookupError):
        child.send_signal(number)
    child.wait()


@pytest.mark.parametrize("size", [1024 * 1024, 10**9], ids=["rotating", "one file"])
def test_killed_pumps_and_writers_lose_and_double_no_line(host: Host, size: int) -> None:
    chance = random.Random(size)
    host.open()
    writer = start(WRITER, host.file(0), host.file(1), size)
    try:
        for _turn in range(15):
            pumper = start(PUMP, host.folder / "spool", host.log, size)
            time.sleep(0.15 + chance.random() * 0.25)
            end(pumper)
    finally:
        end(writer)
    found = Spool(host.folder / "spool")
    found.add("env/web", "web", host.log, LogPolicy(size, 500))
    found.drain("env/web")
    check(host)


def check(host: Host) -> None:
    """All lines of each output, complete, in order, once; only the very last may be half, its writer was killed."""
    for level in ("Stdout", "Stderr"):
        numbers = []
        for text in host.texts(level):
            number, _space, pad = text.partition(" ")
            assert pad == ("0123456789" * 3000)[: len(pad)]
            numbers.append(int(number))
        assert len(numbers) > 100
        assert numbers[:-1] == list(range(len(numbers) - 1))
    assert host.texts("Error") == []
