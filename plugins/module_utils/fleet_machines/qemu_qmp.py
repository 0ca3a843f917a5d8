# SPDX-License-Identifier: GPL-3.0-or-later
"""A client of QEMU's monitor protocol: JSON objects, one a line, over a Unix socket.

https://www.qemu.org/docs/master/interop/qmp-spec.html
"""

from __future__ import annotations

import contextlib
import errno
import json
import secrets
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fleet_core.errors import NotFound, ProcessFailed, TimedOut, Unavailable
    from fleet_node.client import ShortPath
else:
    try:
        from ..fleet_core.errors import NotFound, ProcessFailed, TimedOut, Unavailable
        from ..fleet_node.client import ShortPath
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import NotFound, ProcessFailed, TimedOut, Unavailable
        from fleet_node.client import ShortPath

ANSWER = 15.0  # seconds to wait for the answer to a command that does its work at once
LONGEST_LINE = 32 * 1024 * 1024  # bytes; what is behind the socket may have been taken over by a guest
_JOB_POLL = 0.05
_KEPT_EVENTS = 1000
_CREDENTIALS = struct.Struct("3i")  # struct ucred: process, user, group


class Lines:
    """JSON objects, one a line, to and from a Unix socket. what: the thing that it belongs to, for errors."""

    def __init__(self, path: Path, what: str, timeout: float = ANSWER) -> None:
        self.what = what
        self._buffer = b""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout)
        try:
            with ShortPath(path) as name:
                self._socket.connect(name)
            self._check_peer(path)
        except socket.timeout:
            self._socket.close()
            raise TimedOut(f"{what}: its socket {path.name} did not take a connection within {timeout:g} s") from None
        except OSError as error:
            self._socket.close()
            raise Unavailable(f"{what}: its socket {path.name} cannot be reached: {error.strerror}") from error

    def _check_peer(self, path: Path) -> None:
        """Raise OSError when it is not the owner of the folder that listens.

        That folder is the machine's own, so whoever broke out of QEMU could put a link to another machine's socket
        there, and have us do there what is meant for this one.
        """
        peer = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        if _CREDENTIALS.unpack(peer)[1] != path.parent.stat().st_uid:
            self._socket.close()
            raise PermissionError(errno.EACCES, "somebody else listens there")

    def close(self) -> None:
        self._socket.close()

    def send(self, data: bytes, deadline: float) -> None:
        """Send bytes. deadline: on the monotonic clock."""
        try:
            self._socket.settimeout(self._left(deadline))
            self._socket.sendall(data)
        except socket.timeout:
            raise TimedOut(f"{self.what}: it did not read within its time") from None
        except OSError as error:
            raise Unavailable(f"{self.what}: the connection was lost: {error.strerror}") from error

    def line(self, deadline: float) -> bytes:
        """Return the next line without its end. Raises TimedOut, Unavailable when the other side has gone."""
        while b"\n" not in self._buffer:
            if len(self._buffer) > LONGEST_LINE:
                raise ProcessFailed(f"{self.what}: it sent a line of more than {LONGEST_LINE} bytes")
            try:
                self._socket.settimeout(self._left(deadline))
                chunk = self._socket.recv(1 << 16)
            except socket.timeout:
                raise TimedOut(f"{self.what}: no answer within its time") from None
            except OSError as error:
                raise Unavailable(f"{self.what}: the connection was lost: {error.strerror}") from error
            if not chunk:
                raise Unavailable(f"{self.what}: it closed the connection")
            self._buffer += chunk
        line, _newline, self._buffer = self._buffer.partition(b"\n")
        return line

    def message(self, deadline: float) -> dict[str, Any]:
        """Return the next JSON object. Raises as line does, and ProcessFailed for anything else."""
        line = self.line(deadline)
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            raise ProcessFailed(f"{self.what}: expected a JSON object, found {line[:60]!r}") from None
        if not isinstance(found, dict):
            raise ProcessFailed(f"{self.what}: expected a JSON object, found {line[:60]!r}")
        return found

    def _left(self, deadline: float) -> float:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimedOut(f"{self.what}: no answer within its time")
        return left


class Monitor:
    """A connection to a monitor that has greeted and takes commands. machine: its name, for errors.

    events: those that came while commands were answered, oldest first.
    """

    def __init__(self, path: Path, machine: str, timeout: float = ANSWER) -> None:
        self._lines = Lines(path, f'machine "{machine}": QEMU\'s monitor', timeout)
        self.what = f'machine "{machine}"'
        self.events: list[dict[str, Any]] = []
        deadline = time.monotonic() + timeout
        try:
            greeting = self._lines.message(deadline).get("QMP")
            if not isinstance(greeting, Mapping):
                raise ProcessFailed(f"{self._lines.what}: expected the greeting of a monitor, found something else")
            version = (greeting.get("version") or {}).get("qemu") or {}
            self.version: tuple[int, int] = (int(version.get("major") or 0), int(version.get("minor") or 0))
            self.call("qmp_capabilities", timeout=timeout)
        except BaseException:
            self._lines.close()
            raise

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *_error: object) -> None:
        self._lines.close()

    def call(self, command: str, /, timeout: float = ANSWER, **arguments: Any) -> Any:
        """Return what a command returns; names of arguments are written with '_' for '-'.

        Raises ProcessFailed with what QEMU said, NotFound for a command that this QEMU does not know, TimedOut.
        """
        deadline = time.monotonic() + timeout
        number = secrets.token_hex(8)
        request: dict[str, Any] = {"execute": command, "id": number}
        if arguments:
            request["arguments"] = {name.replace("_", "-"): value for name, value in arguments.items()}
        self._lines.send(json.dumps(request).encode() + b"\n", deadline)
        while True:
            answer = self._lines.message(deadline)
            if "event" in answer:
                self._note(answer)
            elif answer.get("id") == number:
                break
        error = answer.get("error")
        if isinstance(error, Mapping):
            kind = NotFound if error.get("class") == "CommandNotFound" else ProcessFailed
            raise kind(f"{self.what}: {command}: {str(error.get('desc') or 'QEMU refused it').strip()}")
        return answer.get("return")

    def event(self, names: tuple[str, ...], timeout: float) -> dict[str, Any] | None:
        """Return the next event of one of these names, or None when none came in time or QEMU has ended."""
        for number, known in enumerate(self.events):
            if known.get("event") in names:
                return self.events.pop(number)
        deadline = time.monotonic() + timeout
        while True:
            try:
                answer = self._lines.message(deadline)
            except (TimedOut, Unavailable):
                return None
            if answer.get("event") in names:
                return answer
            if "event" in answer:
                self._note(answer)

    def job(self, command: str, /, timeout: float, **arguments: Any) -> None:
        """Run a command that starts a job, to the job's end. Raises ProcessFailed with the job's error, or TimedOut.

        A job that does not end in time is cancelled as far as QEMU can.
        """
        ident = f"fleet-{secrets.token_hex(6)}"
        deadline = time.monotonic() + timeout
        self.call(command, job_id=ident, **arguments)
        try:
            while True:
                status, error = self._job(ident)
                if status == "concluded":
                    break
                if time.monotonic() > deadline:
                    with contextlib.suppress(ProcessFailed):
                        self.call("job-cancel", id=ident)
                    raise TimedOut(f"{self.what}: {command} did not end within {timeout:g} s")
                self.event(("JOB_STATUS_CHANGE",), _JOB_POLL)
        finally:
            with contextlib.suppress(ProcessFailed, Unavailable, TimedOut):
                self.call("job-dismiss", id=ident)
        if error:
            raise ProcessFailed(f"{self.what}: {command}: {error}")

    def _job(self, ident: str) -> tuple[str, str]:
        # While the memory is written, QEMU may not answer: that counts as work, not as silence.
        for found in self.call("query-jobs", timeout=300.0):
            if found.get("id") == ident:
                return str(found.get("status")), str(found.get("error") or "")
        return "concluded", "it vanished"

    def running(self) -> bool:
        """Tell whether the machine's processors run."""
        return bool(self.call("query-status").get("running"))

    def listening(self, chardev: str) -> bool:
        """Tell whether the guest has opened its side of a character device."""
        for found in self.call("query-chardev"):
            if found.get("label") == chardev:
                return bool(found.get("frontend-open"))
        return False

    def _note(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        del self.events[:-_KEPT_EVENTS]
