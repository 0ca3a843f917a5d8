"""What the agent `demo` runs for every prompt: a small program that follows a few sentences, instead of a model.

It speaks the protocol of the runner `command` with `stdin: json` (docs/runners.md): a JSON object a line. The first one
that comes in is the prompt; the others are messages of people who steer, and each is confirmed.
"""

from __future__ import annotations

import json
import os
import queue
import re
import sys
import threading
from pathlib import Path

BACKLOG = Path("BACKLOG.md")
OPEN, DONE = "- [ ] ", "- [x] "
# Seconds between two sentences, so that there is something to watch.
PAUSE = float(os.environ.get("DEMO_PAUSE", "0.8"))


def tell(kind: str, **fields: object) -> None:
    print(json.dumps({"type": kind, **fields}), flush=True)


class Inbox:
    """What comes in on standard input: the prompt, then messages."""

    def __init__(self) -> None:
        self._lines: queue.Queue[dict | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in sys.stdin:
            self._lines.put(json.loads(line))
        self._lines.put(None)

    def next(self, seconds: float | None = None) -> dict | None:
        """Return what comes next, None at the end; wait so long for it. Raises queue.Empty."""
        found = self._lines.get(timeout=seconds)
        if found is None:
            self._lines.put(None)
        return found


def open_items() -> list[str]:
    lines = BACKLOG.read_text().splitlines() if BACKLOG.exists() else []
    return [line.removeprefix(OPEN) for line in lines if line.startswith(OPEN)]


def add(item: str) -> None:
    """Write a sentence down as an item."""
    known = BACKLOG.read_text() if BACKLOG.exists() else "# Backlog\n\n"
    BACKLOG.write_text(f"{known}{OPEN}{' '.join(item.split())}\n")


def do(item: str) -> str:
    """Do an item: "FILE: text" is written into that file, anything else becomes a note. Returns what was done."""
    found = re.fullmatch(r"([\w-]+\.\w+): (.+)", item)
    name, text = found.groups() if found else ("notes.md", item)
    tell("tool_use", id=name, name="write", input={"file": name, "text": text})
    with Path(name).open("w" if found else "a") as file:
        file.write(text.replace(" / ", "\n") + "\n")
    tell("tool_result", id=name, text=f"{len(text)} characters")
    BACKLOG.write_text(BACKLOG.read_text().replace(f"{OPEN}{item}\n", f"{DONE}{item}\n", 1))
    return f"Wrote {name}."


def said_in(prompt: str) -> tuple[str, list[str]]:
    """Return a prompt without the messages that fleetd has put into it, and these."""
    task, _begin, rest = prompt.partition("[Steering: ")
    messages = re.split(r"^\[Message .*\]$", rest.partition("[End of the steering messages]")[0], flags=re.MULTILINE)
    return task, [message.strip() for message in messages[1:]]


def pause(inbox: Inbox) -> None:
    """Wait a little; take up the messages that come in the meantime."""
    try:
        message = inbox.next(PAUSE)
    except queue.Empty:
        return
    if message is not None:
        take_up(message)
        pause(inbox)


def take_up(message: dict) -> None:
    tell("user", injection=message.get("injection"), text=message["text"])
    add(message["text"])
    tell("text", text=f"I have written it down: {message['text']}")


def plan(task: str) -> None:
    items = [line for line in task.splitlines() if line.startswith(OPEN)]
    BACKLOG.write_text("\n".join(["# Backlog", "", *items, ""]))


def work(inbox: Inbox, task: str) -> str:
    """Do one item, or, when the task is nothing but messages, everything that is open. Returns what was done."""
    report = []
    while items := open_items():
        tell("text", text=f"Next: {items[0]}")
        pause(inbox)
        report.append(do(items[0]))
        pause(inbox)
        if "first open item" in task:
            break
    return " ".join([*report, state()])


def state() -> str:
    left = len(open_items())
    return f"{left} to go." if left else "ALL DONE"


def main() -> None:
    inbox = Inbox()
    task, messages = said_in((inbox.next() or {"text": ""})["text"])
    planning = "Write BACKLOG.md" in task
    if planning:
        plan(task)
    for message in messages:
        add(message)
        tell("text", text=f"I have written it down: {message}")
    result = state() if planning else work(inbox, task)
    tell("text", text=result)
    tell("result", ok=True, text=result)
    while (message := inbox.next()) is not None:  # one that came at the very end
        take_up(message)
        result = state() if task.strip() else work(inbox, task)  # the next iteration will do it
        tell("text", text=result)
        tell("result", ok=True, text=result)


if __name__ == "__main__":
    main()
