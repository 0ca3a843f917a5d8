# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the multipass command line: no terminal, English, bounded in time, tried again when it asks for that."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from .multipass_output import OK, RETRY, error_of, read_json
from .provider import Job

if TYPE_CHECKING:
    from fleet_core.errors import ProcessFailed, TimedOut, Unavailable
    from fleet_core.quantities import format_duration, format_size
else:
    try:
        from ..fleet_core.errors import ProcessFailed, TimedOut, Unavailable
        from ..fleet_core.quantities import format_duration, format_size
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import ProcessFailed, TimedOut, Unavailable
        from fleet_core.quantities import format_duration, format_size

# Where its snap and its installers for macOS put it, for those whose PATH does not lead there (sudo, launchd).
PLACES = (
    "/snap/bin/multipass",
    "/usr/local/bin/multipass",
    "/opt/homebrew/bin/multipass",
    "/Library/Application Support/com.canonical.multipass/bin/multipass",
)
READING = 60.0  # seconds for a command that only reads
MOST_PRINTED = 20 * 1024**2  # bytes
_LONGEST_PAUSE = 5.0


class CommandLine:
    """The command line of one host. executable: its path, or empty to look for it."""

    def __init__(self, executable: str = "", places: Sequence[str] = PLACES) -> None:
        self._given = executable
        self._places = places
        self._found = ""

    @property
    def executable(self) -> str:
        """The path of the program. Raises Unavailable when there is none."""
        if not self._found:
            if self._given:
                found = shutil.which(self._given)
            else:
                found = shutil.which("multipass") or next(filter(shutil.which, self._places), None)
            if found is None:
                raise Unavailable(
                    f"multipass: {self._given or 'the command multipass'} is not installed on this host; expected it "
                    "in PATH, or its path in the setting executable"
                )
            self._found = found
        return self._found

    def read(self, *arguments: str, what: str = "multipass") -> Mapping[str, Any]:
        """Return the JSON object that a command prints."""
        text = self.run(*arguments, "--format", "json", what=what, job=Job.lasting(READING))
        return read_json(arguments[0], text)

    def run(self, *arguments: str, what: str, job: Job, stdin: str | None = None) -> str:
        """Return what a command prints. what: the thing that it is about, for errors.

        Exit code 4 asks to try again: that is done until the job's time is over. Raises what error_of says.
        """
        pause, asked = 0.2, False
        while True:
            try:
                code, stdout, stderr = self.attempt(*arguments, what=what, job=job, stdin=stdin)
            except TimedOut:
                if asked:
                    raise error_of(what, arguments[0], RETRY, "") from None
                raise
            if code == OK:
                return stdout
            if code != RETRY or job.left() <= pause:
                raise error_of(what, arguments[0], code, stderr)
            asked = True
            job.report(f"multipass {arguments[0]} asked to try again")
            job.pause(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def attempt(self, *arguments: str, what: str, job: Job, stdin: str | None = None) -> tuple[int, str, str]:
        """Run a command once and return its exit code and what it printed. Raises TimedOut after the job's time."""
        command = [self.executable, *arguments]
        try:
            child = subprocess.Popen(  # pylint: disable=ansible-bad-function # no module in fleet_machines
                command,
                stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                cwd=_folder(),
                env={**os.environ, "LC_ALL": "C", "TERM": "dumb"},
            )
        except OSError as error:
            raise Unavailable(f"multipass: {self.executable} cannot be run: {error.strerror}") from error
        talk = _Talk(child, stdin)
        try:
            child.wait(max(job.left(), 0.1))
            talk.finish(max(job.left(), 1.0))
        except subprocess.TimeoutExpired:
            talk.end()
            raise TimedOut(
                f"{what}: multipass {arguments[0]}: it did not end within {format_duration(job.limit)}"
            ) from None
        except BaseException:
            talk.end()
            raise
        if talk.flooded:
            raise ProcessFailed(f"{what}: multipass {arguments[0]}: it printed more than {format_size(MOST_PRINTED)}")
        return child.returncode, talk.text(0), talk.text(1)


class _Talk:
    """What goes to a program and comes from it, at the same time and bounded: a machine decides what exec prints."""

    def __init__(self, child: subprocess.Popen[bytes], stdin: str | None) -> None:
        self._child = child
        self._printed: tuple[list[bytes], list[bytes]] = ([], [])
        self.flooded = False
        self._threads = [
            threading.Thread(target=self._read, args=(stream, blocks), daemon=True)
            for stream, blocks in zip((child.stdout, child.stderr), self._printed)
        ]
        if stdin is not None:
            data = stdin.encode("utf-8", "surrogateescape")
            self._threads.append(threading.Thread(target=self._write, args=(data,), daemon=True))
        for thread in self._threads:
            thread.start()

    def text(self, number: int) -> str:
        return b"".join(self._printed[number]).decode("utf-8", "replace")

    def finish(self, seconds: float) -> None:
        """Wait for the rest of what was printed. Raises TimeoutExpired when somebody else holds on to the pipes."""
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                raise subprocess.TimeoutExpired("multipass", seconds)

    def end(self) -> None:
        _end(self._child)
        for thread in self._threads:
            thread.join(1.0)

    def _read(self, stream: IO[bytes], blocks: list[bytes]) -> None:
        size = 0
        with stream:
            while block := os.read(stream.fileno(), 65536):
                size += len(block)
                if size > MOST_PRINTED:
                    self.flooded = True
                    _end(self._child)
                    return
                blocks.append(block)

    def _write(self, data: bytes) -> None:
        if self._child.stdin is not None:
            with contextlib.suppress(OSError), self._child.stdin as stream:  # it need not read all of it
                stream.write(data)


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the client and what it started; the daemon goes on with what it was asked for."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # it has just ended; macOS says the second of a zombie
        child.kill()
    child.wait()


def _folder() -> str | None:
    """A folder that the snap can enter: it fails in one that it cannot see."""
    try:
        return str(Path.home())
    except RuntimeError:
        return None
