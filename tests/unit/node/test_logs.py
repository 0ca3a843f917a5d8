# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fleet_core.errors import InvalidInput, Unavailable
from fleet_core.processes import LogPolicy
from fleet_node import logs

POLICY = LogPolicy(max_size=4096, keep=3)


def line(text: str, when: float = 1_700_000_000.0, out: int = 0, level: str = "Stdout", pid: int = 7) -> bytes:
    return logs.encode(logs.frame(logs.stamp(when), level, "web", pid), text, out, 0)


def texts(path: Path, **options: Any) -> list[str]:
    return [record["message"] for record in logs.read(path, **options)]


def write(path: Path, *lines: bytes, policy: LogPolicy = POLICY) -> None:
    assert logs.append(path, policy, lines) == (len(lines), None)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "a" / "logs" / "web.log"


def test_a_record_has_the_documented_fields_and_no_other(log: Path) -> None:
    write(log, line("hällo\0\x1b[1m", when=1_700_000_000.25))
    assert list(logs.read(log)) == [
        {
            "timestamp": "2023-11-14T22:13:20.250000Z",
            "level": "Stdout",
            "message": "hällo\0\x1b[1m",
            "process_name": "web",
            "process_id": 7,
        }
    ]


def test_a_log_and_its_folders_are_private(log: Path) -> None:
    write(log, line("x"))
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert stat.S_IMODE(log.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(log.parent.parent.stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_the_log_of_a_project_belongs_to_its_owner(log: Path) -> None:
    os.chown(log.parents[2], 65534, 65534)
    write(log, line("x"))
    assert [path.stat().st_uid for path in (log, log.parent, log.parent.parent)] == [65534] * 3


def test_a_log_that_does_not_exist_is_empty(log: Path) -> None:
    assert texts(log) == texts(log, lines=5) == []
    assert logs.last_position(log) is None


def test_rotation_keeps_so_many_files_of_that_size_and_the_newest_lines(log: Path) -> None:
    for number in range(1000):
        write(log, line(f"{number:060}"))
    files = sorted(log.parent.iterdir())
    assert [file.name for file in files] == ["web.log", "web.log.1", "web.log.2", "web.log.3"]
    assert all(file.stat().st_size <= 4096 for file in files)
    found = [int(text) for text in texts(log)]
    assert found == list(range(found[0], 1000))
    assert len(found) > 60


def test_many_lines_at_once_are_spread_over_files(log: Path) -> None:
    write(log, *(line(f"{number:060}") for number in range(1000)))
    found = [int(text) for text in texts(log)]
    assert found == list(range(found[0], 1000))
    assert all(file.stat().st_size <= 4096 for file in log.parent.iterdir())


def test_a_line_longer_than_a_file_gets_a_file_of_its_own(log: Path) -> None:
    write(log, line("a"), line("b" * 9000), line("c"))
    assert texts(log) == ["a", "b" * 9000, "c"]


def test_keep_0_leaves_one_file(log: Path) -> None:
    for number in range(200):
        write(log, line(f"{number:060}"), policy=LogPolicy(4096, 0))
    assert [file.name for file in log.parent.iterdir()] == ["web.log"]
    assert texts(log)[-1] == f"{199:060}"


def test_a_smaller_keep_removes_files_with_the_next_rotation(log: Path) -> None:
    write(log, *(line(f"{number:060}") for number in range(200)))
    write(log, *(line(f"{number:060}") for number in range(100)), policy=LogPolicy(4096, 1))
    assert sorted(file.name for file in log.parent.iterdir()) == ["web.log", "web.log.1"]


def test_deleted_files_and_folders_come_back(log: Path) -> None:
    write(log, line("a"))
    log.unlink()
    write(log, line("b"))
    assert texts(log) == ["b"]
    log.unlink()
    log.parent.rmdir()
    write(log, line("c"))
    assert texts(log) == ["c"]


def test_no_link_is_followed_and_no_fifo_waited_for(tmp_path: Path) -> None:
    target = tmp_path / "target"
    link = tmp_path / "link.log"
    link.symlink_to(target)
    done, error = logs.append(link, POLICY, [line("x")])
    assert done == 0
    assert error is not None
    assert not target.exists()
    fifo = tmp_path / "fifo.log"
    os.mkfifo(fifo)
    done, error = logs.append(fifo, POLICY, [line("x")])
    assert done == 0
    assert error is not None


def test_the_position_is_found_in_the_last_line_even_after_damage_and_rotation(log: Path) -> None:
    write(log, line("a", out=10), line("b", out=20))
    with open(log, "ab") as file:
        file.write(b'{"timestamp": "2023", "lev')
    logs.repair(log)
    assert logs.last_position(log) == (20, 0)
    assert texts(log) == ["a", "b"]
    with open(log, "ab") as file:
        file.write(b"not json\n{}\n[1]\n")
    assert logs.last_position(log) == (20, 0)
    logs.rotate(str(log), 3)
    assert logs.last_position(log) == (20, 0)


def test_damaged_lines_are_left_out(log: Path) -> None:
    write(log, line("a"))
    with open(log, "ab") as file:
        file.write(b'\xff\xfe\n\n{"message": 5}\n"text"\n{"message": "short"}\n')
    write(log, line("b"))
    assert texts(log) == ["a", "short", "b"]
    assert texts(log, lines=2) == ["short", "b"]


@pytest.mark.parametrize("count", [0, 1, 2, 65, 66, 500])
def test_the_last_lines_are_read_across_files(log: Path, count: int) -> None:
    write(log, *(line(f"{number:060}") for number in range(500)))
    every = texts(log)
    assert texts(log, lines=count) == every[len(every) - count if count < len(every) else 0 :]


def test_huge_lines_are_read_from_both_ends(log: Path) -> None:
    policy = LogPolicy(10**7, 1)
    expected = [f"{number}" * 200_000 for number in range(4)]
    write(log, *(line(text) for text in expected), policy=policy)
    assert texts(log) == expected
    assert texts(log, lines=3) == expected[1:]


def test_since_leaves_out_what_is_older(log: Path) -> None:
    write(log, line("old", when=1000), line("middle", when=2000.5), line("new", when=time.time()))
    assert texts(log, since=2000.5) == ["middle", "new"]
    assert texts(log, since="10m") == ["new"]
    assert texts(log, since="1970-01-01T00:33:20Z") == ["middle", "new"]
    assert texts(log, since="1970-01-01T01:33:20+0100") == ["middle", "new"]
    assert texts(log, since=2000.5, lines=9) == ["middle", "new"]
    assert texts(log, since=2000.5, lines=1) == ["new"]


@pytest.mark.parametrize("since", ["yesterday", "2026-13-01", "10 parsecs"])
def test_since_that_cannot_be_read_is_named(log: Path, since: str) -> None:
    with pytest.raises(InvalidInput, match=since):
        texts(log, since=since)


def test_a_log_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "web.log").symlink_to("elsewhere")
    with pytest.raises(Unavailable, match=r"web\.log"):
        texts(tmp_path / "web.log")


class Reader(threading.Thread):
    """Follows a log in a thread of its own."""

    def __init__(self, path: Path, **options: Any) -> None:
        super().__init__(daemon=True)
        self.path, self.options = path, options
        self.found: list[str] = []
        self.done = threading.Event()

    def run(self) -> None:
        for record in logs.read(self.path, follow=True, stop=self.done.is_set, **self.options):
            self.found.append(record["message"])


@pytest.fixture
def follow() -> Iterator[Callable[..., Reader]]:
    readers: list[Reader] = []

    def start(path: Path, **options: Any) -> Reader:
        readers.append(Reader(path, **options))
        readers[-1].start()
        return readers[-1]

    yield start
    for reader in readers:
        reader.done.set()
        reader.join(5)
        assert not reader.is_alive()


def until(true: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_follow_goes_on_through_rotation_with_no_line_lost_or_doubled(log: Path, follow: Callable[..., Reader]) -> None:
    reader = follow(log)
    for number in range(600):
        write(log, line(f"{number:060}"), policy=LogPolicy(4096, 40))
        if number % 50 == 0:
            time.sleep(0.01)
    until(lambda: len(reader.found) >= 600)
    assert [int(text) for text in reader.found] == list(range(600))


def test_follow_begins_with_the_last_lines(log: Path, follow: Callable[..., Reader]) -> None:
    write(log, *(line(text) for text in "abcd"))
    reader = follow(log, lines=2)
    until(lambda: reader.found == ["c", "d"])
    write(log, line("e"))
    until(lambda: reader.found == ["c", "d", "e"])


def test_follow_survives_removal_and_emptying_of_the_log(log: Path, follow: Callable[..., Reader]) -> None:
    write(log, line("a"))
    reader = follow(log)
    until(lambda: reader.found == ["a"])
    log.unlink()
    write(log, line("b"))
    until(lambda: reader.found == ["a", "b"])
    with open(log, "wb"):
        pass
    until(lambda: log.stat().st_size == 0)
    time.sleep(0.6)
    write(log, line("c"))
    until(lambda: reader.found == ["a", "b", "c"])


def test_follow_shows_a_line_only_when_it_is_complete(log: Path, follow: Callable[..., Reader]) -> None:
    write(log, line("a"))
    reader = follow(log)
    until(lambda: reader.found == ["a"])
    whole = line("b")
    with open(log, "ab", buffering=0) as file:
        file.write(whole[:20])
        time.sleep(0.1)
        assert reader.found == ["a"]
        file.write(whole[20:])
    until(lambda: reader.found == ["a", "b"])


def test_follow_does_not_spin(log: Path) -> None:
    write(log, line("a"))
    deadline = time.monotonic() + 1.5
    before = time.thread_time()
    assert texts(log, follow=True, stop=lambda: time.monotonic() > deadline) == ["a"]
    assert time.thread_time() - before < 0.1


def test_the_last_output_is_of_this_process_and_not_blank(log: Path) -> None:
    write(log, line("other", pid=6), line("why", level="Stderr"), line("  "), line("ended", level="Lifecycle"))
    assert logs.last_output(log, 7) == "why"
    assert logs.last_output(log, 8) == ""
    assert logs.last_output(log.parent / "none.log", 7) == ""


# A real answer of journalctl 252, shortened.
JOURNAL = [
    {"__REALTIME_TIMESTAMP": "1700000000000001", "MESSAGE": "Started fleet-web.service.", "PRIORITY": "6", "_PID": "1",
     "SYSLOG_IDENTIFIER": "systemd", "UNIT": "fleet-web.service"},
    {"__REALTIME_TIMESTAMP": "1700000000000002", "MESSAGE": "listening", "PRIORITY": "6", "_PID": "42"},
    {"__REALTIME_TIMESTAMP": "1700000000000003", "MESSAGE": [255, 104, 105], "PRIORITY": "3", "_PID": "42"},
    {"__REALTIME_TIMESTAMP": "1700000000000004", "MESSAGE": None, "PRIORITY": "6", "_PID": "42"},
]  # fmt: skip


@pytest.fixture
def journalctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A journalctl that notes its arguments and prints what is in a file."""
    program = tmp_path / "bin" / "journalctl"
    program.parent.mkdir()
    answer = tmp_path / "answer"
    program.write_text(f'#!/bin/sh\nfor word; do echo "$word"; done > {tmp_path}/words\ncat {answer} 2>&1\n')
    program.chmod(0o755)
    answer.write_text("".join(json.dumps(entry) + "\n" for entry in JOURNAL) + "damaged\n")
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return tmp_path


def test_the_journal_gives_the_same_records(journalctl: Path) -> None:
    found = list(logs.read_journal("fleet-web.service", lines=10, since=1_700_000_000.0, name="web"))
    assert found[1] == {
        "timestamp": "2023-11-14T22:13:20.000002Z",
        "level": "Stdout",
        "message": "listening",
        "process_name": "web",
        "process_id": 42,
    }
    assert [(record["level"], record["message"]) for record in found] == [
        ("Lifecycle", "Started fleet-web.service."),
        ("Stdout", "listening"),
        ("Stderr", "\ufffdhi"),
    ]
    words = (journalctl / "words").read_text().split()
    assert "--unit=fleet-web.service" in words
    assert "--lines=10" in words
    assert "--since=@1700000000.000000" in words


def test_the_journal_of_a_user_is_asked_for(journalctl: Path) -> None:
    list(logs.read_journal("fleet-web.service", "user"))
    words = (journalctl / "words").read_text().split()
    assert "--user" in words
    assert "--user-unit=fleet-web.service" in words
    assert "--lines=all" in words


def test_following_the_journal_ends_when_asked(journalctl: Path) -> None:
    program = journalctl / "bin" / "journalctl"
    program.write_text(program.read_text() + "exec sleep 60\n")
    begun = time.monotonic()
    found = []
    for record in logs.read_journal("x", follow=True, stop=lambda: len(found) >= 3):
        found.append(record)
    assert len(found) == 3
    assert time.monotonic() - begun < 5


def test_a_journalctl_that_fails_says_why(journalctl: Path) -> None:
    program = journalctl / "bin" / "journalctl"
    program.write_text("#!/bin/sh\necho 'No journal files were opened' >&2\nexit 1\n")
    with pytest.raises(Unavailable, match="No journal files were opened"):
        list(logs.read_journal("x"))
