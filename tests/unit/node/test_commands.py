# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest

from autovibe_fleet.node import commands
from autovibe_fleet.node.commands import run_command
from fleet_core.errors import NotFound, ProcessFailed, TimedOut
from fleet_node import procfs

T = TypeVar("T")


@pytest.fixture(params=["pidfd", "thread"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With a pidfd, and as on systems without one."""
    if request.param == "thread":
        monkeypatch.delattr(os, "pidfd_open", raising=False)
    elif not hasattr(os, "pidfd_open"):
        pytest.skip("no pidfd here")
    return str(request.param)


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def shell(text: str, timeout: float = 10.0, **env: str) -> tuple[int, str]:
    return run(run_command(("/bin/sh", "-c", text), env, "/", timeout))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("true", (0, "")),
        ("echo out; echo err >&2; exit 7", (7, "out\nerr\n")),
        ("kill -TERM $$", (-signal.SIGTERM, "")),
        ("pwd; echo $FLAVOUR", (0, "/\nvanilla\n")),
        ("printf 'bad\\377'", (0, "bad\ufffd")),
    ],
)
def test_a_command_gives_its_exit_code_and_what_it_printed(text: str, expected: tuple[int, str]) -> None:
    assert shell(text, FLAVOUR="vanilla") == expected


def test_only_the_end_of_much_output_is_kept() -> None:
    code, output = shell("yes | head -c 1000000; echo; echo end")
    assert code == 0
    assert len(output) == commands.TAIL
    assert output.endswith("y\n\nend\n")


def test_a_command_that_takes_too_long_is_ended_with_its_whole_group(tmp_path: Path) -> None:
    begun = time.monotonic()
    token = f"t{time.time_ns()}"
    with pytest.raises(TimedOut, match=r"no answer within 0\.3 s"):
        shell("sleep 60 & sleep 60", 0.3, FLEET_LAUNCH=token)
    assert time.monotonic() - begun < 5
    wait_until_gone(token)


def test_what_a_command_leaves_running_is_ended(way: str) -> None:
    if way == "thread":
        pytest.skip("without pidfd, output that is held open is waited for")
    token = f"t{time.time_ns()}"
    begun = time.monotonic()
    assert shell("sleep 60 & echo done", FLEET_LAUNCH=token) == (0, "done\n")
    assert time.monotonic() - begun < 5
    wait_until_gone(token)


def test_a_cancelled_command_is_ended(way: str) -> None:
    if way == "thread":
        pytest.skip("a thread cannot be cancelled")
    token = f"t{time.time_ns()}"

    async def work() -> None:
        task = asyncio.create_task(run_command(("/bin/sleep", "60"), {"FLEET_LAUNCH": token}, "/", 60))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.2)

    run(work())
    assert procfs.find_launches([token])[token] == []
    assert no_children()


def wait_until_gone(token: str) -> None:
    deadline = time.monotonic() + 5
    while procfs.find_launches([token])[token]:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def no_children() -> bool:
    """Whether every child was reaped."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return True
    return not [row for row in procfs.TABLE.rows() if row.ppid == os.getpid() and row.zombie]


def test_commands_are_reaped_and_leave_no_open_file() -> None:
    shell("true")

    async def many() -> None:
        await asyncio.gather(*(run_command(("/bin/true",), {}, "/", 10) for _turn in range(20)))

    run(many())
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    run(many())
    assert no_children()
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before


def test_a_reaper_of_known_children_and_a_command_do_not_disturb_each_other(way: str) -> None:
    async def work() -> tuple[int, str]:
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, lambda: None)
        return await run_command(("/bin/sh", "-c", "exit 3"), {}, "/", 10)

    assert run(work()) == (3, "")


@pytest.mark.parametrize(("program", "folder"), [("/no/such/program", "/"), ("/bin/true", "/no/such")])
def test_a_command_that_cannot_be_started_is_named(program: str, folder: str) -> None:
    with pytest.raises(ProcessFailed, match=program):
        run(run_command((program,), {}, folder, 5))


def test_an_unknown_user_is_named() -> None:
    with pytest.raises(NotFound, match="nobody-of-that-name"):
        run(run_command(("/bin/true",), {}, "/", 5, "nobody-of-that-name"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_command_runs_as_another_user() -> None:
    code, output = run(run_command(("/bin/sh", "-c", "id -un; id -Gn; echo $HOME"), {}, "/", 5, "nobody"))
    assert code == 0
    assert output.splitlines()[:2] == ["nobody", "nogroup"]
