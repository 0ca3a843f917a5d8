# SPDX-License-Identifier: GPL-3.0-or-later
"""What happens while a command waits, shown live on a terminal; nothing in a pipe."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

from .output import STYLES

if TYPE_CHECKING:
    from rich.table import Table

    from .session import Session

_PATIENCE = 0.4  # seconds before anything is shown
_REFRESH = 0.1


class Board:
    """The latest state of every process that an event has named, with the time since its first event."""

    def __init__(self, ids: Collection[str] | None, environment: str) -> None:
        self._ids = ids
        self._environment = environment
        self._states: dict[str, tuple[str, str, float, float]] = {}
        self._lock = threading.Lock()

    def take(self, event: dict[str, Any]) -> None:
        """Note one event of fleetd."""
        ident = str(event.get("id", ""))
        if event.get("kind") != "process" or not self._concerns(ident):
            return
        state, message = str(event.get("state", "")), str(event.get("message", ""))
        if message.startswith("start requested"):
            message = ""
        if state == "stopped" and event.get("previous") in ("starting", "running") and not message:
            state = "completed"
        now = time.monotonic()
        with self._lock:
            begun = self._states.get(ident, ("", "", now, now))[2]
            self._states[ident] = (state, message, begun, now)

    def _concerns(self, ident: str) -> bool:
        if self._ids is not None:
            return ident in self._ids
        return not self._environment or ident.startswith(f"{self._environment}/")

    def __len__(self) -> int:
        return len(self._states)

    def render(self) -> Table:
        """Return the board as a Rich table."""
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        now = time.monotonic()
        with self._lock:
            items = list(self._states.items())
        for ident, (state, message, begun, changed) in items:
            moving = state in ("starting", "stopping", "backoff")
            spent = (now if moving else changed) - begun
            table.add_row(
                Text(ident.rpartition("/")[2] if self._environment else ident),
                Text(state, style=STYLES.get(state, "")),
                Text(f"{spent:.1f} s", style="dim"),
                Text(message, style="dim", overflow="ellipsis", no_wrap=True),
            )
        return table


@contextlib.contextmanager
def shown(session: Session, ids: Collection[str] | None = None, environment: str = "") -> Iterator[None]:
    """While the body runs, show how processes come up: those of the ids, or of an environment, or all."""
    if session.as_json or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield
        return
    session.client.call("daemon.status")  # started, if need be, before the display
    board = Board(ids, environment)
    events = session.connect().stream("events.subscribe")
    threading.Thread(target=_listen, args=(events, board), daemon=True).start()
    done = threading.Event()
    painter = threading.Thread(target=_paint, args=(board, done), daemon=True)
    painter.start()
    try:
        yield
    finally:
        done.set()
        painter.join(timeout=2.0)


def _listen(events: Iterator[dict[str, Any]], board: Board) -> None:
    with contextlib.suppress(Exception):  # the command itself says what is wrong with fleetd
        for event in events:
            board.take(event)


def _paint(board: Board, done: threading.Event) -> None:
    if done.wait(_PATIENCE):
        return
    from rich.console import Console
    from rich.live import Live

    with Live(board.render(), console=Console(stderr=True), transient=True, auto_refresh=False) as live:
        while not done.wait(_REFRESH):
            live.update(board.render(), refresh=True)
