# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs that the run itself runs: git, and the verification command. Bounded in time and in what is kept of them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fleet_core.errors import FleetError, Unavailable
from fleet_core.runner_events import Invocation
from fleet_node.runner_child import Child

_KEPT = 256 * 1024  # bytes of each stream: of its head, and of its tail
_TURNS = 100
_DRAIN = 1.0  # seconds for the rest of the output, which something that left the group may hold open


@dataclass(frozen=True)
class Done:
    """How a program ended. code: None if it took too long; negative, the signal."""

    code: int | None
    output: str
    errors: str = ""


class _Kept:
    """The head and the tail of a stream."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._tail = bytearray()
        self._left = 0

    def take(self, data: bytes) -> None:
        room = _KEPT - len(self._head)
        self._head += data[:room]
        self._tail += data[room:]
        self._left += max(0, len(self._tail) - _KEPT)
        del self._tail[:-_KEPT]

    def __str__(self) -> str:
        between = f"\n[... {self._left} bytes left out ...]\n" if self._left else ""
        return self._head.decode("utf-8", "replace") + between + self._tail.decode("utf-8", "replace")


async def run(
    argv: Sequence[str],
    folder: str | os.PathLike[str],
    env: Mapping[str, str] | None = None,
    timeout: float = 0.0,
    take: Callable[[bytes], Any] | None = None,
) -> Done:
    """Run a program to its end; nothing of its process group runs on then, nor when this is cancelled.

    env: added to this process's environment. timeout: seconds, 0 for none.
    take: is given the output instead of keeping it. Raises Unavailable when the program cannot be started.
    """
    out, err = _Kept(), _Kept()
    try:
        child = Child(argv[0], Invocation(tuple(argv)), os.fspath(folder), env or {})
    except FleetError as error:
        raise Unavailable(f"{argv[0]}: cannot be run: {str(error).partition(': ')[2]}") from error
    with child:
        reading = [
            asyncio.ensure_future(child.read(take or out.take)),
            asyncio.ensure_future(child.read(err.take, stderr=True)),
        ]
        exited = asyncio.ensure_future(child.wait())
        try:
            await asyncio.wait([exited], timeout=timeout or None)
            code = child.code
            child.signal(signal.SIGKILL)
            await asyncio.wait(reading, timeout=_DRAIN)
            for _turn in range(_TURNS):
                if not child.has_others():
                    break
                await asyncio.sleep(_DRAIN / _TURNS)
            for task in reading:
                if task.done():
                    task.result()  # what take has raised
        finally:
            for task in (exited, *reading):
                task.cancel()
            await asyncio.gather(exited, *reading, return_exceptions=True)
    return Done(code, str(out), str(err))
