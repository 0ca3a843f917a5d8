# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run of a task list looks like while it works: a line for each step, and on a terminal what runs now."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fleet_core.quantities import format_duration

from .output import printable

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

STYLES = {
    "succeeded": "green",
    "unchanged": "dim",
    "running": "yellow",
    "retrying": "yellow",
    "failed": "red",
    "interrupted": "red",
    "skipped": "dim",
    "pending": "dim",
}
_REFRESH = 0.1


def spent(seconds: float | None) -> str:
    """Return a duration for people: 0.4s, 12.3s, 2m5s."""
    if seconds is None:
        return "-"
    return f"{seconds:.1f}s" if seconds < 60 else format_duration(seconds)


def sentence(event: Mapping[str, Any]) -> str:
    """Return what an event of a task says, without the task's name; empty for what is shown in another way."""
    state, reason = str(event.get("state", "")), str(event.get("reason") or "")
    if state == "running":
        return "started" if event.get("attempts", 1) == 1 else f"attempt {event['attempts']}"
    if state == "retrying":
        return f"attempt {event['attempts']} failed, it is tried again: {reason}"
    if event.get("kept"):
        return "done before"
    text = state
    if event.get("duration") is not None:
        text += f" in {spent(event['duration'])}"
    if event.get("cost") is not None:
        text += f" for ${event['cost']:.4f}"
    return f"{text}: {reason}" if reason else text


class Progress:
    """Shows the events of a run on stderr. verbose: with every line of output that is told."""

    def __init__(self, quiet: bool = False, verbose: bool = False) -> None:
        self._quiet = quiet
        self._verbose = verbose
        self._running: dict[str, tuple[float, str]] = {}
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._live: Live | None = None
        self._painter: threading.Thread | None = None
        terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        if terminal and not quiet:
            self._begin()

    def _begin(self) -> None:
        from rich.console import Console
        from rich.live import Live

        console = Console(stderr=True, highlight=False, markup=False, emoji=False)
        self._live = Live(self._table(), console=console, transient=True, auto_refresh=False)
        self._live.start()
        self._painter = threading.Thread(target=self._paint, daemon=True)
        self._painter.start()

    def _paint(self) -> None:
        while not self._done.wait(_REFRESH):
            if self._live is not None:
                self._live.update(self._table(), refresh=True)

    def _table(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        now = time.monotonic()
        with self._lock:
            rows = list(self._running.items())
        for name, (begun, line) in rows:
            table.add_row(
                Text(name, style="bold"),
                Text(spent(now - begun), style=STYLES["running"]),
                Text(line, style="dim", overflow="ellipsis", no_wrap=True),
            )
        return table

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        if self._painter is not None:
            self._painter.join(timeout=2.0)
        if self._live is not None:
            self._running.clear()
            self._live.update(self._table())
            self._live.stop()

    def take(self, event: Mapping[str, Any]) -> None:
        """Show one event."""
        kind, name = event["event"], str(event.get("task", ""))
        if kind == "output":
            with self._lock:
                if name in self._running:
                    self._running[name] = (self._running[name][0], printable(str(event["text"])))
            if self._verbose:
                self._line(name, f"| {event['text']}", "dim")
        elif kind == "connection":
            self._line("", f"connection {event['state']}" + (f": {event['reason']}" if event.get("reason") else ""), "")
        elif kind == "run":
            for note in event.get("notes") or ():
                self._line("", str(note), "dim")
        elif kind == "task":
            self._task(name, event)

    def _task(self, name: str, event: Mapping[str, Any]) -> None:
        state = str(event.get("state", ""))
        with self._lock:
            if state == "running":
                self._running.setdefault(name, (time.monotonic(), ""))
            elif state != "retrying":
                self._running.pop(name, None)
        if state != "running" or self._live is None:
            self._line(name, sentence(event), STYLES.get(state, ""))
        for warning in event.get("warnings") or ():
            self._line(name, f"warning: {warning}", "yellow")

    def _line(self, name: str, text: str, style: str) -> None:
        if self._quiet:
            return
        label, text = f"{name}: " if name else "", printable(text)
        if self._live is not None:
            from rich.text import Text

            line = Text()
            line.append(label, style="bold")
            line.append(text, style=style or None)
            self._live.update(self._table(), refresh=True)
            self._live.console.print(line, soft_wrap=True)
        else:
            print(f"{label}{text}", file=sys.stderr, flush=True)
