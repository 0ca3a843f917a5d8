# SPDX-License-Identifier: GPL-3.0-or-later
"""Running a short command to its end inside fleetd's event loop: checks and actions."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence

from fleet_core.errors import ProcessFailed, TimedOut, Unavailable
from fleet_node.native import identity, inherited

Start = Callable[[int], "subprocess.Popen[bytes]"]
TAIL = 64 * 1024  # bytes of output that are kept, the last ones


async def run_command(
    argv: Sequence[str], env: Mapping[str, str], folder: str, timeout: float, user: str = ""
) -> tuple[int, str]:
    """Return the exit code (negative for a signal) and the end of what a command printed, both outputs as one.

    It runs in a session of its own, of which nothing is left behind; env is laid over fleetd's. It is waited for by
    pidfd, so that nobody who reaps fleetd's other children is disturbed. Raises TimedOut after so many seconds,
    ProcessFailed when it cannot be started.
    """
    where = f'command "{argv[0]}"'
    environ = {**inherited(os.environ, where, user), **env}
    options = {"cwd": folder or None, "env": environ, "start_new_session": True, **identity(where, user)}

    def start(stdout: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.STDOUT, **options)

    try:
        if hasattr(os, "pidfd_open"):
            return await _watched(start, timeout)
        return await asyncio.to_thread(_waited, start, timeout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise ProcessFailed(f"{where}: could not be started: {getattr(error, 'strerror', None) or error}") from None


async def _watched(start: Start, timeout: float) -> tuple[int, str]:
    loop = asyncio.get_running_loop()
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    ended: asyncio.Future[None] = loop.create_future()
    output = bytearray()
    descriptor = -1
    child: subprocess.Popen[bytes] | None = None

    def collect() -> bool:
        """Return whether there was something to read."""
        try:
            data = os.read(reading, TAIL)
        except BlockingIOError:
            return False
        if not data:
            loop.remove_reader(reading)
        output.extend(data)
        del output[:-TAIL]
        return bool(data)

    def note_end() -> None:
        loop.remove_reader(descriptor)
        if not ended.done():
            ended.set_result(None)

    try:
        try:
            os.set_blocking(writing, True)
            child = start(writing)
        finally:
            os.close(writing)
        descriptor = os.pidfd_open(child.pid)
        loop.add_reader(reading, collect)
        loop.add_reader(descriptor, note_end)
        await asyncio.wait([ended], timeout=timeout)
        if not ended.done():
            _kill(child)
            await asyncio.wait([ended], timeout=1.0)
            if ended.done():
                _reap(child, descriptor)
            raise TimedOut(f"no answer within {timeout:g} s")
        code = _reap(child, descriptor)
        for _turn in range(64):  # what is still in the pipe
            if not collect():
                break
        return code, output.decode("utf-8", "replace")
    finally:
        loop.remove_reader(reading)
        os.close(reading)
        if child is not None and child.returncode is None:
            _kill(child)
            if descriptor >= 0:
                loop.remove_reader(descriptor)
                loop.add_reader(descriptor, _bury, loop, child, descriptor)
        elif descriptor >= 0:
            loop.remove_reader(descriptor)
            os.close(descriptor)


def _kill(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)


def _reap(child: subprocess.Popen[bytes], descriptor: int) -> int:
    """Return the exit code of a child that has ended; what it left running in its group is ended first."""
    _kill(child)  # as long as it is a zombie, no other group has its number
    try:
        result = os.waitid(os.P_PIDFD, descriptor, os.WEXITED)
    except ChildProcessError:
        result = None
    if result is None:
        child.returncode = 0  # nothing for the object to wait for
        raise Unavailable("its exit code was taken by somebody else") from None
    child.returncode = result.si_status if result.si_code == os.CLD_EXITED else -result.si_status
    return child.returncode


def _bury(loop: asyncio.AbstractEventLoop, child: subprocess.Popen[bytes], descriptor: int) -> None:
    loop.remove_reader(descriptor)
    with contextlib.suppress(Unavailable):
        _reap(child, descriptor)
    os.close(descriptor)


def _waited(start: Start, timeout: float) -> tuple[int, str]:
    """What _watched does, in a worker thread: for systems without pidfd."""
    with start(subprocess.PIPE) as child:
        try:
            output, _none = child.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            _kill(child)
            raise TimedOut(f"no answer within {timeout:g} s") from None
    return child.returncode, output[-TAIL:].decode("utf-8", "replace")
