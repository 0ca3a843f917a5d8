# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the programs that disks are made with: English, no terminal, bounded in time, ended with all they started."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .provider import Job

if TYPE_CHECKING:
    from fleet_core.errors import ProcessFailed, TimedOut, Unavailable
    from fleet_core.quantities import format_duration
else:
    try:
        from ..fleet_core.errors import ProcessFailed, TimedOut, Unavailable
        from ..fleet_core.quantities import format_duration
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import ProcessFailed, TimedOut, Unavailable
        from fleet_core.quantities import format_duration

# A user's PATH may lack the folders of system programs.
PLACES = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_GRACE = 20.0  # seconds to clean up after SIGTERM: mmdebstrap removes what it mounted
_LONGEST = 400


def find(program: str) -> str:
    """Return the path of a program, empty when it is not installed."""
    return shutil.which(program) or shutil.which(program, path=PLACES) or ""


def need(program: str, package: str, what: str) -> str:
    """Return the path of a program. Raises Unavailable, which names the package that has it."""
    path = find(program)
    if not path:
        raise Unavailable(f"{what}: the program {program} is not installed on this host; expected package {package}")
    return path


def out_of_the_way(handle: int) -> int:
    """Return an open file under a high number: programs whose shells know one digit need the low ones themselves."""
    moved = fcntl.fcntl(handle, fcntl.F_DUPFD_CLOEXEC, 100)
    os.close(handle)
    return moved


def run(
    command: Sequence[str],
    job: Job,
    what: str,
    *,
    environment: Mapping[str, str] | None = None,
    held: Sequence[int] = (),
    folder: str | None = None,
) -> str:
    """Run a program and return what it printed. Raises ProcessFailed with its last line, and TimedOut.

    held: open files that it inherits: a lock that this process holds stays held as long as the program runs, even if
    this process is killed. folder: where it runs.
    """
    name = os.path.basename(command[0])
    try:
        child = subprocess.Popen(  # pylint: disable=ansible-bad-function # no module in fleet_machines
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
            pass_fds=tuple(held),
            cwd=folder,
            env={
                **os.environ,
                "PATH": f"{os.environ.get('PATH', '')}:{PLACES}",
                "LC_ALL": "C.UTF-8",
                **(environment or {}),
            },
        )
    except OSError as error:
        raise Unavailable(f"{what}: {command[0]} cannot be run: {error.strerror}") from error
    try:
        stdout, stderr = child.communicate(timeout=max(job.left(), 0.1))
    except subprocess.TimeoutExpired:
        _end(child)
        raise TimedOut(f"{what}: {name} did not end within {format_duration(job.limit)}") from None
    except BaseException:
        _end(child)
        raise
    if child.returncode:
        raise ProcessFailed(f"{what}: {name} ended with {child.returncode}: {last_line(stderr or stdout)}")
    return stdout


def last_line(text: str) -> str:
    """Return what a program said about its failure, fit for a message.

    mmdebstrap and apt mark errors with a letter; what ran inside has said why just before the first of them.
    """
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith(("I: ", "W: "))]
    errors = [number for number, line in enumerate(lines) if line.startswith(("E: ", "Err:"))]
    wanted = lines[max(errors[0] - 2, 0) : errors[0] + 2] if errors else lines[-1:]
    return fit("; ".join(line.strip()[: _LONGEST // 3] for line in wanted)) or "it said nothing"


def fit(text: str) -> str:
    """Return what a program or a guest said, fit for a message: one line, nothing that moves a cursor, bounded."""
    said = "".join(letter if letter.isprintable() else " " for letter in " ".join(text.split()))
    return said if len(said) <= _LONGEST else "..." + said[3 - _LONGEST :]


def _end(child: subprocess.Popen[str]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, number)
        except (ProcessLookupError, PermissionError):  # it has just ended
            child.kill()
        try:
            child.communicate(timeout=_GRACE)
            return
        except subprocess.TimeoutExpired:
            continue
