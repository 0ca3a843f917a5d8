# SPDX-License-Identifier: GPL-3.0-or-later
"""Write docs/cli.md from the fleet command itself. ``--check`` only says whether it is out of date."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from autovibe_fleet.cli.app import PANELS, app
from autovibe_fleet.cli.help import TOPICS, page, tables
from autovibe_fleet.cli.session import SHARED

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cli.md"
INTRO = """\
<!-- Written by tests/tools/cli_docs.py from the command itself. -->
# The fleet command

`fleet` runs and watches processes and agents on one host. `fleet --help` and `fleet COMMAND --help` say the same as
this page.

- Nothing has to be set up: a command that needs fleetd, the daemon, starts it in the background.
- Results go to stdout, errors in one sentence and notes to stderr.
- On a terminal there are colors and progress; in a pipe there are plain columns, and no name is ever cut.
- `fleet --install-completion` sets up completion of commands, processes, templates and environments for your shell.

```console
$ fleet start web -- python3 -m http.server %tcpport
$ fleet template add postgres.json
$ fleet start postgres db --tcpport=5433 --datadir=/srv/db
$ fleet ps
$ fleet logs web --follow
$ fleet stop web db
$ fleet apply agents.yml
$ fleet run builder
$ fleet message builder "Leave the tests alone"
$ fleet machines
$ fleet machines ssh web-1
```
"""
# Said once, for all commands.
COMMON = {"--help", "--json", "--state-dir", "--debug", "--environment"}
HEADINGS = {
    "exit-codes": ("Exit codes", ("code", "meaning")),
    "environment": ("Environment variables", ("variable", "meaning")),
    "json": ("JSON", ("command", "what it writes with --json")),
}


def code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|")


def table(head: tuple[str, str], rows: Iterator[tuple[str, str]] | tuple[tuple[str, str], ...]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|"]
    lines.extend(f"| {name} | {text} |" for name, text in rows)
    return "\n".join(lines) + "\n"


def described(text: str) -> str:
    """A docstring as Markdown; a block after \\b is kept as it is."""
    parts = []
    for paragraph in text.strip().split("\n\n"):
        if paragraph.startswith("\b"):
            lines = paragraph.splitlines()[1:]
            parts.append("```text\n" + "\n".join(lines) + "\n```")
        else:
            words = " ".join(paragraph.split())
            parts.append(code(words) if words.startswith("fleet ") else words)
    return "\n\n".join(parts) + "\n"


def option(found: Any) -> tuple[str, str]:
    names = sorted(found.opts, key=len) + list(found.secondary_opts)
    value = f" {found.metavar}" if found.metavar else "" if found.is_flag else " N"
    return code(", ".join(names) + value), (found.help or "").replace("|", "\\|")


def usage(path: str, command: Any) -> str:
    texts = []
    for found in command.params:
        if found.param_type_name == "argument":
            text = found.metavar or found.name.upper()
            texts.append(text if found.required or text.startswith("[") else f"[{text}]")
    return " ".join([path, *texts])


def one(path: str, command: Any) -> Iterator[str]:
    yield f"### {path}\n"
    yield f"```text\n{usage(path, command)}\n```\n"
    yield described(command.help or "")
    rows = [
        (code(found.metavar or found.name.upper()), found.help)
        for found in command.params
        if getattr(found, "help", "") and found.param_type_name == "argument"
    ]
    rows += [
        option(found) for found in command.params if found.param_type_name == "option" and not COMMON & set(found.opts)
    ]
    if rows:
        yield table(
            ("argument or option", "meaning"), tuple((name, (text or "").replace("\n", " ")) for name, text in rows)
        )


def document() -> str:
    root: Any = typer.main.get_command(app)
    shared = {found.name: found for found in root.params}
    parts = [INTRO]
    parts.append("## Options of every command\n")
    parts.append(table(("option", "meaning"), tuple(option(shared[name]) for name in SHARED)))
    parts.append(
        "They may stand before or after the command's name. `-e` counts for commands on processes and environments.\n"
    )
    for panel, names in PANELS.items():
        parts.append(f"## {panel}\n")
        for name in names:
            command = root.commands[name]
            if hasattr(command, "commands"):
                if any(not COMMON & set(found.opts) for found in command.params):  # it does something by itself
                    parts.extend(one(f"fleet {name}", command))
                for inner, found in command.commands.items():
                    parts.extend(one(f"fleet {name} {inner}", found))
            else:
                parts.extend(one(f"fleet {name}", command))
    parts.append("## Names\n")
    parts.append(page("names") + "\n")
    for topic, (title, head) in HEADINGS.items():
        parts.append(f"## {title}\n")
        parts.append(f"{TOPICS[topic]} `fleet help {topic}` shows them.\n")
        mark = code if topic != "exit-codes" else str
        rows = tables()[topic]
        parts.append(
            table(
                head,
                tuple((mark(name), code(text) if topic == "json" and "{" in text else text) for name, text in rows),
            )
        )
    return "\n".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    text = document()
    if not parser.parse_args().check:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
        print("docs/cli.md is out of date: run `make docs`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
