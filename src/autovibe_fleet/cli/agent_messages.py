# SPDX-License-Identifier: GPL-3.0-or-later
"""How the messages of iterations are written, for people as lines and for programs as JSON."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from .agent_names import count, money, spent, tokens_of, totals, when
from .output import Output, json_text, printable

Row = Mapping[str, Any]
_TELLING = ("command", "file_path", "path", "pattern", "url", "query", "description", "prompt")  # of a tool's input
_HIDDEN = ("usage", "session", "end")
_STYLES = {
    "prompt": "dim",
    "thinking": "dim italic",
    "tool_use": "cyan",
    "tool_result": "dim",
    "user": "magenta",
    "error": "red",
    "watchdog": "yellow",
    "verification": "blue",
}
_WIDTH = 100  # of a line in a pipe


class Writer:
    """Writes rows. full: whole texts instead of their beginnings. names: with the agent before each line."""

    def __init__(self, out: Output, full: bool = False, names: bool = False) -> None:
        self._out = out
        self._full = full
        self._names = names
        self._width = shutil.get_terminal_size().columns if out.is_terminal else _WIDTH

    def iteration_begins(self, row: Row) -> None:
        """Say which iteration the next messages belong to."""
        item = f" ({_first_line(row['item'], 40)})" if row["item"] else ""
        again = ", another attempt" if row["attempt_of"] else ""
        if not self._out.as_json:
            title = f"iteration {row['number']}: {row['step']}{item}{again}"
            self._line(row["agent"], f"--- {title}, {when(row['started'])}", "bold")

    def iteration(self, row: Row) -> None:
        """Say how an iteration ended."""
        if self._out.as_json:
            self._json("iteration", row)
            return
        parts = [spent(row["duration"])]
        tokens = tokens_of(row["usage"])
        parts += [f"{count(tokens)} tokens"] if tokens else []
        parts += [money(row["cost"])] if row["cost"] else []
        why = row["error"] or row["reason"]
        text = f"iteration {row['number']} {row['state']}: {', '.join(parts)}" + (f"; {why}" if why else "")
        style = {"succeeded": "green", "failed": "red"}.get(row["state"], "yellow")
        self._line(row["agent"], _one_line(text), style)

    def message(self, row: Row) -> None:
        """Write one message."""
        if self._out.as_json:
            self._json("message", row)
            return
        for text in self._texts(row):
            self._line(row["agent"], text, _style(row))

    def injection(self, row: Row) -> None:
        """Tell of a steering message that waits, or that was refused."""
        if self._out.as_json:
            self._json("injection", row)
        elif row["state"] in ("queued", "sent", "refused"):
            sender = f" from {row['sender']}" if row["sender"] else ""
            why = f" ({row['reason']})" if row["reason"] else ""
            text = f"message {row['id']}{sender} is {row['state']}{why}: {row['text']}"
            self._line(row["agent"], self._cut(_one_line(text)), _STYLES["user"])

    def run(self, row: Row) -> None:
        """Say what state a run has come to."""
        if self._out.as_json:
            self._json("run", row)
            return
        why = f"; {row['reason']}" if row["reason"] else ""
        if row["finished"] is None:
            self._line(row["agent"], _one_line(f"run {row['id']} is {row['state']}{why}"), "yellow")
        else:
            style = {"completed": "green", "failed": "red"}.get(row["state"], "yellow")
            text = f"run {row['id']} of {row['agent']} {_ENDS.get(row['state'], row['state'])}: {totals(row)}{why}"
            self._line(row["agent"], _one_line(text), f"bold {style}")
            work = row["workspace"]
            if work.get("branch"):
                self._line(row["agent"], f"work is on branch {work['branch']} in {work.get('path', '')}", "bold")

    def _texts(self, row: Row) -> Iterator[str]:
        kind, content, detail = row["type"], printable(row["content"]).strip("\n"), row["detail"]
        if kind in _HIDDEN and not self._full:
            return
        if kind == "tool_use":
            yield self._cut(f"  > {detail.get('name', 'tool')}: {_input(detail.get('input'))}", self._full)
        elif kind == "tool_result":
            yield from self._block("  < failed: " if detail.get("is_error") else "  < ", content or "(nothing)")
        elif kind == "prompt":
            yield from self._block("prompt: ", content)
        elif kind == "thinking":
            yield from self._block("thinks: ", content)
        elif kind == "user":
            sender = f" from {detail['sender']}" if detail.get("sender") else ""
            yield from self._block(f"message {detail.get('injection', '')}{sender} is delivered: ", content)
        elif kind == "verification":
            code = detail.get("code")
            said = "passed" if code == 0 else f"failed with exit code {code}"
            yield from self._block(f"verification {said}: ", content or str(detail.get("command", "")))
        elif kind == "text":
            yield from content.split("\n")
        elif kind in _HIDDEN:
            yield f"{kind}: {json.dumps(detail, ensure_ascii=False)}"
        else:
            yield from self._block(f"{kind}: ", content)

    def _block(self, head: str, content: str) -> Iterator[str]:
        lines = content.split("\n")
        if self._full:
            yield f"{head}{lines[0]}"
            yield from (f"{' ' * min(len(head), 4)}{line}" for line in lines[1:])
        else:
            more = f" (+{len(lines) - 1} lines)" if len(lines) > 1 else ""
            room = self._width - len(more)
            text = f"{head}{lines[0]}"
            yield (text if len(text) <= room else f"{text[: room - 1]}…") + more

    def _cut(self, text: str, whole: bool = False) -> str:
        return text if whole or len(text) <= self._width else f"{text[: self._width - 1]}…"

    def _line(self, agent: str, text: str, style: str = "") -> None:
        self._out.line(f"{agent} | {text}" if self._names else text, style=style)

    @staticmethod
    def _json(kind: str, row: Row) -> None:
        print(json_text({"kind": kind, **row}), flush=True)


_ENDS = {"completed": "is completed", "failed": "failed", "stopped": "was stopped", "limited": "ended at a limit"}


def _style(row: Row) -> str:
    if row["detail"].get("is_error") or (row["type"] == "verification" and row["detail"].get("code") != 0):
        return "red"
    return _STYLES.get(row["type"], "")


def _input(value: Any) -> str:
    """Return what a tool was asked, on one line."""
    if isinstance(value, Mapping):
        told = next((value[key] for key in _TELLING if isinstance(value.get(key), str)), None)
        value = told if told is not None else json.dumps(value, ensure_ascii=False)
    return _one_line(str(value if value is not None else ""))


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()))


def _first_line(text: str, length: int) -> str:
    line = _one_line(text.strip().split("\n")[0])
    return line if len(line) <= length else f"{line[: length - 1]}…"
