# SPDX-License-Identifier: GPL-3.0-or-later
"""fleet logs, on what real processes print."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time

from .conftest import PROGRAM, PYTHON, Fleet, until

TALK = """
import sys, time
for n in range({count}): print("line", n, flush=True)
print("oops", file=sys.stderr, flush=True)
time.sleep(600)
"""


def talk(count: int) -> list[str]:
    return ["--", PYTHON, "-c", TALK.format(count=count)]


def test_what_was_printed_is_shown_from_the_end(host: Fleet) -> None:
    host.ok("start", "talker", *talk(200))
    lines = until(lambda: (found := host.ok("logs", "talker").out.splitlines())[-1:] == ["oops"] and found)
    assert len(lines) == 100
    assert lines[-2] == "line 199"
    everything = host.ok("logs", "talker", "--all").out.splitlines()
    assert everything[0] == "[fleet] started"
    assert everything[1:] == [*(f"line {n}" for n in range(200)), "oops"]
    assert host.ok("logs", "talker", "-n", "0").out == ""
    assert len(host.ok("logs", "talker", "--since", "1h").out.splitlines()) == 202
    assert host.ok("logs", "talker", "--since", "2999-01-01T00:00:00Z").out == ""
    assert host("logs", "talker", "--since", "yesterday").code == 2


def test_json_is_one_record_a_line(host: Fleet) -> None:
    host.ok("start", "records", *talk(1))
    until(lambda: "oops" in host.ok("logs", "records").out)
    records = [json.loads(line) for line in host.ok("logs", "records", "--json").out.splitlines()]
    assert [record["level"] for record in records] == ["Lifecycle", "Stdout", "Stderr"]
    assert {record["process"] for record in records} == {"records"}
    assert records[1]["process_id"] == host.process("records")["pid"]


def test_timestamps_are_local_and_in_front(host: Fleet) -> None:
    host.ok("start", "stamped", *talk(1))
    until(lambda: "oops" in host.ok("logs", "stamped").out)
    line = host.ok("logs", "stamped", "-t", "-n", "1").out
    assert line.endswith(" oops\n")
    time.strptime(line[:19], "%Y-%m-%d %H:%M:%S")


def test_follow_goes_on_until_it_is_interrupted(host: Fleet) -> None:
    code = "import time\nfor n in range(10**6): print(n, flush=True); time.sleep(0.05)"
    host.ok("start", "counter", "--", PYTHON, "-c", code)
    with subprocess.Popen(
        [PROGRAM, "logs", "-f", "-n", "1", "counter"], stdout=-1, stderr=-1, env=host.environ
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        numbers = [int(child.stdout.readline()) for _line in range(5)]
        child.send_signal(signal.SIGINT)
        rest = child.communicate(timeout=20)
    assert numbers == list(range(numbers[0], numbers[0] + 5))
    assert (child.returncode, rest[1]) == (130, b"")


def test_logs_of_a_project_are_in_one_stream_with_names_in_front(fleet: Fleet) -> None:
    folder = fleet.project(
        '[environment]\nname = "duo"\n'
        "[processes.first]\ncommand = \"sh -c 'echo one; sleep 600'\"\n"
        '[processes.second]\ncommand = "sh -c \'echo two; sleep 600\'"\ndepends_on = ["first"]\n'
    )
    fleet.ok("activate", cwd=folder)
    wanted = ["first  | [fleet] started", "first  | one", "second | [fleet] started", "second | two"]
    until(lambda: sorted(fleet.ok("logs", cwd=folder).out.splitlines()) == wanted)
    assert fleet.ok("logs", "second", cwd=folder).out == "[fleet] started\ntwo\n"
    (last,) = fleet.ok("logs", "-e", "duo", "-n", "1").out.splitlines()
    assert last in wanted
    assert fleet("logs").code == 2
    with subprocess.Popen(
        [PROGRAM, "logs", "-f"], cwd=folder, stdout=-1, stderr=-1, text=True, env=fleet.environ
    ) as child:
        assert child.stdout is not None
        assert sorted(child.stdout.readline().rstrip() for _line in range(4)) == wanted
        os.kill(fleet.process("duo/second")["pid"], signal.SIGKILL)
        assert child.stdout.readline() == "second | [fleet] killed by SIGKILL\n"
        child.send_signal(signal.SIGINT)
        child.communicate(timeout=20)


def test_logs_stay_readable_without_fleetd_and_after_a_deletion(fleet: Fleet) -> None:
    fleet.ok("start", "gone", *talk(1))
    until(lambda: "oops" in fleet.ok("logs", "gone").out)
    fleet.ok("daemon", "stop")
    assert "oops" in fleet.ok("logs", "gone").out
    fleet.ok("delete", "gone")
    assert "oops" in fleet.ok("logs", "gone").out
    assert fleet("logs", "never").code == 3
