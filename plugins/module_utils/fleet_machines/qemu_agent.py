# SPDX-License-Identifier: GPL-3.0-or-later
"""A client of QEMU's guest agent, over the host's side of its virtio-serial port.

https://www.qemu.org/docs/master/interop/qemu-ga-ref.html. Everything that comes from it is a guest's word: bounded,
and never taken for more than text.
"""

from __future__ import annotations

import base64
import contextlib
import json
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .provider import Job, Ran
from .qemu_processes import plain
from .qemu_qmp import Lines

if TYPE_CHECKING:
    from fleet_core.errors import NotFound, ProcessFailed
    from fleet_core.machines import ip_addresses
else:
    try:
        from ..fleet_core.errors import NotFound, ProcessFailed
        from ..fleet_core.machines import ip_addresses
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import NotFound, ProcessFailed
        from fleet_core.machines import ip_addresses

PORT = "org.qemu.guest_agent.0"
ANSWER = 20.0  # seconds; a guest under TCG is slow
MOST_INPUT = 32 * 1024 * 1024  # bytes of a script, before base64; the agent reads at most 48 MB
_DELIMITER = b"\xff"
_LONGEST_ERROR = 300  # characters
_POLLS = (0.02, 0.05, 0.1, 0.2, 0.5)
_LOOPBACK = ("127.", "::1")
_LINK_LOCAL = ("169.254.", "fe80:")


class Agent:
    """A connection to an agent that has answered. machine: its name, for errors.

    One connection at a time: QEMU keeps a second one waiting.
    """

    def __init__(self, path: Path, machine: str, timeout: float = ANSWER) -> None:
        self.what = f'machine "{machine}": its guest agent'
        self._lines = Lines(path, self.what, timeout)
        try:
            self._synchronise(time.monotonic() + timeout)
        except BaseException:
            self._lines.close()
            raise

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *_error: object) -> None:
        self._lines.close()

    def call(self, command: str, arguments: Mapping[str, Any] | None = None, timeout: float = ANSWER) -> Any:
        """Return what a command returns. Raises ProcessFailed with the agent's words, NotFound for one that it does
        not have or may not do, TimedOut."""
        deadline = time.monotonic() + timeout
        request: dict[str, Any] = {"execute": command}
        if arguments:
            request["arguments"] = dict(arguments)
        self._lines.send(json.dumps(request).encode() + b"\n", deadline)
        answer = self._lines.message(deadline)
        error = answer.get("error")
        if isinstance(error, Mapping):
            text = plain(str(error.get("desc") or "refused")[:_LONGEST_ERROR])
            unknown = error.get("class") == "CommandNotFound" or "disabled" in text or "not allowed" in text
            raise (NotFound if unknown else ProcessFailed)(f"{self.what}: {command}: {text}")
        return answer.get("return")

    def tell(self, command: str, arguments: Mapping[str, Any] | None = None) -> None:
        """Send a command that has no answer, such as guest-shutdown."""
        request = {"execute": command, **({"arguments": dict(arguments)} if arguments else {})}
        self._lines.send(json.dumps(request).encode() + b"\n", time.monotonic() + ANSWER)

    def ping(self) -> None:
        self.call("guest-ping")

    def run(self, script: str, job: Job) -> Ran:
        """Run a shell script as root; it goes in by standard input, so no process list shows it.

        Raises TimedOut when it does not end within the job's time; it then goes on inside.
        """
        data = script.encode("utf-8", "surrogateescape")
        if len(data) > MOST_INPUT:
            raise ProcessFailed(f"{self.what}: a script of {len(data)} bytes is too long, at most {MOST_INPUT}")
        started = self.call(
            "guest-exec",
            {
                "path": "/bin/sh",
                "arg": ["-s"],
                "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C"],
                "input-data": base64.b64encode(data).decode(),
                "capture-output": True,
            },
            timeout=max(ANSWER, min(job.left(), 120.0)),
        )
        pid = started.get("pid") if isinstance(started, Mapping) else None
        count = 0
        while True:
            state = self.call("guest-exec-status", {"pid": pid}, timeout=max(ANSWER, min(job.left(), 120.0)))
            if isinstance(state, Mapping) and state.get("exited"):
                return _ran(state)
            job.check(f"{self.what}: a script did not end")
            job.pause(_POLLS[min(count, len(_POLLS) - 1)])
            count += 1

    def addresses(self) -> dict[str, tuple[str, ...]]:
        """Return the IP addresses of the guest by hardware address, IPv4 first; loopback and link-local left out."""
        found: dict[str, tuple[str, ...]] = {}
        for interface in _items(self.call("guest-network-get-interfaces")):
            mac = str(interface.get("hardware-address") or "").lower()
            known = ip_addresses([one.get("ip-address") for one in _items(interface.get("ip-addresses"))])
            usable = [one for one in known if not one.startswith((*_LOOPBACK, *_LINK_LOCAL))]
            if mac and usable:
                found[mac] = tuple(sorted(usable, key=lambda one: ":" in one))
        return found

    def set_time(self, seconds: float) -> None:
        """Set the guest's clock, which stood still while its state lay on disk. seconds: since 1970."""
        self.call("guest-set-time", {"time": int(seconds * 1_000_000_000)})

    def _synchronise(self, deadline: float) -> None:
        """Skip what an earlier connection left: the answer to our number follows the byte 0xFF."""
        number = secrets.randbelow(2**31)
        request = {"execute": "guest-sync-delimited", "arguments": {"id": number}}
        # The first 0xFF makes the agent drop half a command of somebody who has gone.
        self._lines.send(_DELIMITER + json.dumps(request).encode() + b"\n", deadline)
        while True:
            line = self._lines.line(deadline)
            _before, found, rest = line.rpartition(_DELIMITER)
            if not found:
                continue
            with contextlib.suppress(ValueError, RecursionError):
                answer = json.loads(rest)
                if isinstance(answer, dict) and answer.get("return") == number:
                    return


def _items(value: object) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def _ran(state: Mapping[str, Any]) -> Ran:
    code = state.get("exitcode")
    if not isinstance(code, int):
        number = state.get("signal")
        code = 128 + number if isinstance(number, int) else 255
    return Ran(code, _text(state.get("out-data")), _text(state.get("err-data")))


def _text(data: object) -> str:
    try:
        return base64.b64decode(data if isinstance(data, str) else "").decode("utf-8", "replace")
    except ValueError:
        return ""
