# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs that the run itself runs: git, and the verification command. Bounded in time and in what is kept of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fleet_core.errors import Unavailable

_KEPT = 256 * 1024  # bytes of each stream: the head and the tail
_DRAIN = 1.0  # seconds for the rest of the output, which something that was left running may hold open


@dataclass(frozen=True)
class Done:
    """How a program ended. code: None if it took too long; negative, the signal."""

    code: int | None
    output: str
    errors: str = ""


async def run(
    argv: Sequence[str],
    folder: str | os.PathLike[str],
    env: Mapping[str, str] | None = None,
    timeout: float = 0.0,
    apart: bool = True,
    stdout: int | None = None,
) -> Done:
    """Run a program to its end; nothing of its process group runs on then, nor when this is cancelled.

    env: added to this process's environment. timeout: seconds, 0 for none. apart: keep errors apart from the output.
    stdout: a descriptor that takes the output instead. Raises Unavailable when it cannot be started.
    """
    pipe = asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=pipe if stdout is None else stdout,
            stderr=pipe if apart else asyncio.subprocess.STDOUT,
            cwd=folder,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
    except OSError as error:
        raise Unavailable(f"{argv[0]}: cannot be run in {folder}: {error.strerror or error}") from error
    streams = [stream for stream in (process.stdout, process.stderr) if stream is not None]
    readers = [asyncio.ensure_future(_read(stream)) for stream in streams]
    code: int | None = None
    try:
        with contextlib.suppress(asyncio.TimeoutError):
            code = await asyncio.wait_for(process.wait(), timeout or None)
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        if process.returncode is None:
            await process.wait()
        if readers:
            await asyncio.wait(readers, timeout=_DRAIN)
            for reader in readers:
                reader.cancel()
    texts = [_text(reader) for reader in readers]
    if stdout is not None:
        texts.insert(0, "")
    return Done(code, *texts)


def _text(reader: asyncio.Future[bytes]) -> str:
    return reader.result().decode("utf-8", "replace") if reader.done() and not reader.cancelled() else ""


async def _read(stream: asyncio.StreamReader) -> bytes:
    head, tail, left = b"", bytearray(), 0
    with contextlib.suppress(asyncio.CancelledError):
        while chunk := await stream.read(65536):
            room = _KEPT - len(head)
            head, chunk = head + chunk[:room], chunk[room:]
            tail += chunk
            left += max(0, len(tail) - _KEPT)
            del tail[:-_KEPT]
    return head + (b"\n[... %d bytes left out ...]\n" % left if left else b"") + bytes(tail)
