# SPDX-License-Identifier: GPL-3.0-or-later
"""The health checks of the running processes, on their intervals."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fleet_core.errors import TimedOut
from fleet_core.health import HealthCheck, HttpTarget, parse_url
from fleet_core.process_status import ProcessStatus
from fleet_core.processes import Launch


@dataclass(frozen=True)
class Result:
    ok: bool
    message: str


class HealthChecks:
    """Asks each watched process on its interval and reports when the verdict is reached."""

    def __init__(self, verdict: Callable[[str, bool, str], None]) -> None:
        self._verdict = verdict
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.asked: dict[str, float] = {}

    def watch(self, ident: str, check: HealthCheck, launch: Launch, folder: str, status: ProcessStatus) -> None:
        self.forget(ident)
        self._tasks[ident] = asyncio.get_running_loop().create_task(self._loop(ident, check, launch, folder, status))

    def forget(self, ident: str) -> None:
        task = self._tasks.pop(ident, None)
        if task is not None:
            task.cancel()

    def close(self) -> None:
        for ident in list(self._tasks):
            self.forget(ident)

    async def _loop(self, ident: str, check: HealthCheck, launch: Launch, folder: str, status: ProcessStatus) -> None:
        failed = 0
        while True:
            await asyncio.sleep(check.interval)
            self.asked[ident] = time.monotonic()
            result = await self.ask(check, launch, folder, status)
            failed = 0 if result.ok else failed + 1
            if result.ok or failed == check.retries:
                asyncio.get_running_loop().call_soon(self._verdict, ident, result.ok, result.message)

    async def ask(self, check: HealthCheck, launch: Launch, folder: str, status: ProcessStatus) -> Result:
        target = parse_url("check", check.url)
        try:
            if isinstance(target, str):
                code, output = await self.run(["/bin/sh", "-c", target], dict(launch.env), folder, check.timeout)
                return Result(code == 0, f"{check.url}: exit code {code}")
            host, port = (target.host, target.port) if isinstance(target, HttpTarget) else target
            reader, writer = await asyncio.wait_for(asyncio.open_connection(host, port), check.timeout)
            with contextlib.closing(writer):
                if not isinstance(target, HttpTarget):
                    return Result(True, "")
                writer.write(f"GET {target.target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
                line = await asyncio.wait_for(reader.readline(), check.timeout)
                found = line.split()[1].decode() if len(line.split()) > 1 else "nothing"
                return Result(found[:1] in ("2", "3"), f"{check.url}: expected 2xx or 3xx, found {found}")
        except (OSError, ValueError, asyncio.TimeoutError, TimedOut) as error:
            return Result(False, f"{check.url}: {error or f'no answer within {check.timeout:g} s'}")

    async def run(self, argv: Sequence[str], env: Mapping[str, str], folder: str, timeout: float) -> tuple[int, str]:
        """Return exit code and output of a command. Raises TimedOut when it takes longer; then its whole group is ended."""

        def work() -> tuple[int, str]:
            with subprocess.Popen(
                argv,
                env={**os.environ, **env},
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            ) as child:
                try:
                    output, _none = child.communicate(timeout=timeout)
                except subprocess.TimeoutExpired:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(child.pid, signal.SIGKILL)
                    raise TimedOut(f"no answer within {timeout:g} s") from None
            return child.returncode, output

        return await asyncio.to_thread(work)
