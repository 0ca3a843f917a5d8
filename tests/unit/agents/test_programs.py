# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs that a run runs itself: bounded in time and in output, with nothing left over."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from autovibe_fleet.agents import orphans, programs
from autovibe_fleet.agents.verification import verify
from fleet_core.errors import Unavailable
from fleet_node import procfs


def sh(script: str, folder: Path, **options: Any) -> programs.Done:
    return asyncio.run(programs.run(["/bin/sh", "-c", script], folder, **options))


def test_output_and_errors_are_kept_apart(tmp_path: Path) -> None:
    script = "echo out; echo err >&2; echo $WHO; exit 3"
    assert sh(script, tmp_path, env={"WHO": "me"}) == programs.Done(3, "out\nme\n", "err\n")


def test_a_program_that_takes_too_long_is_ended_with_its_children(tmp_path: Path) -> None:
    begun = time.monotonic()
    done = sh("sleep 1007 & sleep 1008 & echo $$; wait", tmp_path, timeout=0.3)
    assert done.code is None
    assert time.monotonic() - begun < 3
    assert procfs.group_members(int(done.output)) == []


def test_what_it_leaves_running_is_ended_and_holds_nothing_up(tmp_path: Path) -> None:
    begun = time.monotonic()
    done = sh("sleep 1009 & echo $$", tmp_path)
    assert done.code == 0
    assert time.monotonic() - begun < 3
    assert procfs.group_members(int(done.output)) == []


def test_output_without_end_is_cut_in_the_middle(tmp_path: Path) -> None:
    done = sh("echo begin; head -c 3000000 /dev/zero | tr '\\0' x; echo end", tmp_path)
    assert len(done.output) < 600_000
    assert done.output.startswith("begin\n")
    assert done.output.endswith("xend\n")
    assert "bytes left out" in done.output


def test_a_program_that_is_missing_is_said_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="nosuch: cannot be run"):
        asyncio.run(programs.run(["nosuch"], tmp_path))


def test_output_can_go_into_a_file(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as file:
        done = sh("echo out; echo err >&2", tmp_path, take=file.write)
    assert (done.output, done.errors) == ("", "err\n")
    assert (tmp_path / "out").read_text() == "out\n"


@pytest.mark.parametrize(
    ("command", "code", "output"), [("echo fine", 0, "fine\n"), ("echo bad >&2; exit 2", 2, "bad\n"), ("", 0, "")]
)
def test_a_verification_is_judged_by_its_exit_code(tmp_path: Path, command: str, code: int, output: str) -> None:
    found = asyncio.run(verify(command, os.fspath(tmp_path), {}, 10))
    assert (found["command"], found["code"], found["output"]) == (command, code, output)


def test_a_verification_in_a_folder_that_is_gone_fails(tmp_path: Path) -> None:
    found = asyncio.run(verify("true", os.fspath(tmp_path / "gone"), {}, 10))
    assert found["code"] is None
    assert "cannot be run" in found["output"]


def test_orphans_are_found_by_token_and_by_pid_and_ended(tmp_path: Path) -> None:
    script = (
        "import subprocess, sys, time; subprocess.Popen(['sleep', '1010'], env={}); print(flush=True); time.sleep(99)"
    )
    environ = {**os.environ, orphans.TOKEN: "token-of-test-orphans"}
    stubborn = "trap '' TERM; sleep 1011; sleep 1011"
    with (
        subprocess.Popen(
            [sys.executable, "-c", script],
            env={"PATH": "/bin:/usr/bin"},
            start_new_session=True,
            stdout=subprocess.PIPE,
        ) as by_pid,
        subprocess.Popen(["/bin/sh", "-c", stubborn], env=environ, start_new_session=True) as by_token,
    ):
        assert by_pid.stdout is not None
        by_pid.stdout.readline()
        members = procfs.group_members(by_pid.pid)
        assert len(members) == 2
        row = {"token": "token-of-test-orphans", "pid": by_pid.pid, "pid_started": procfs.start_ticks(by_pid.pid)}
        assert orphans.end([row])
        assert not any(procfs.alive(pid) for pid in [*members, by_token.pid])
    assert not orphans.end([row])
    assert not orphans.end([{"token": "", "pid": os.getpid(), "pid_started": 0}])
