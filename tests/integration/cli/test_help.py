# SPDX-License-Identifier: GPL-3.0-or-later
"""Help, completion, the documented page, and what a terminal shows."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autovibe_fleet.cli import app
from autovibe_fleet.cli.help import TOPICS, tables
from autovibe_fleet.cli.output import Column, described, duration, plain_table, size
from fleet_core import errors

from .conftest import PROGRAM, Fleet, until

REPOSITORY = Path(__file__).resolve().parents[3]
COMMANDS = [name for names in app.PANELS.values() for name in names]


def test_the_page_is_what_the_command_says() -> None:
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "tests" / "tools" / "cli_docs.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_every_command_is_in_the_help_with_a_whole_sentence(fleet: Fleet) -> None:
    text = fleet.ok("--help").out.partition("Commands:")[2]
    for name in COMMANDS:
        (line,) = re.findall(rf"^  {name} +(.*)$", text, re.MULTILINE)
        assert line.endswith("."), name
        assert not line.endswith("..."), name
    for topic in TOPICS:
        assert topic in fleet.ok("help").out
    assert fleet.ok("help", "ps").out == fleet.ok("ps", "--help").out == fleet.ok("ps", "-h").out


def test_the_exit_codes_are_those_of_the_errors(fleet: Fleet) -> None:
    kinds = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.FleetError)}
    told = {int(code) for code, _meaning in tables()["exit-codes"]}
    assert told == {0, 130} | {kind.exit_code for kind in kinds}
    assert fleet.ok("help", "exit-codes").out.splitlines()[3].split()[0] == "3"
    assert fleet("help", "exit-code").code == 3


@pytest.mark.parametrize("words", [(), ("daemon",)])
def test_without_a_command_there_is_help(fleet: Fleet, words: tuple[str, ...]) -> None:
    result = fleet(*words)
    assert result.code in (0, 2)  # click has changed its mind over time
    assert "Commands:" in result.out + result.err


def test_the_version_comes_without_loading_anything_else(fleet: Fleet) -> None:
    plain = fleet.ok("--version").out
    assert plain == fleet.ok("version").out
    assert fleet.json("version")["version"] == plain.split()[1]
    assert not loaded(fleet, "--version") & {"typer", "rich", "fleet_core", "sqlite3"}


def test_ps_loads_no_more_than_it_needs(fleet: Fleet) -> None:
    fleet.ok("daemon", "start")
    heavy = {
        "asyncio",
        "rich",
        "rich.table",
        "pydantic",
        "yaml",
        "autovibe_fleet.node.engine",
        "autovibe_fleet.cli.logs",
    }
    assert not loaded(fleet, "ps") & heavy


def loaded(fleet: Fleet, *words: str) -> set[str]:
    """Return the modules that a command imports."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", PROGRAM, *words],
        capture_output=True,
        text=True,
        env=fleet.environ,
        check=True,
    )
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}


def test_errors_that_nobody_expected_are_one_sentence_too(fleet: Fleet) -> None:
    broken = fleet.folder / "fleet_node"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise RuntimeError('two\\nlines')")
    environ = {**fleet.environ, "PYTHONPATH": str(fleet.folder)}
    for debug in ("0", "1"):
        done = subprocess.run(
            [PROGRAM, "ps"], capture_output=True, text=True, check=False, env={**environ, "FLEET_DEBUG": debug}
        )
        assert done.returncode == 1
        hint = "; FLEET_DEBUG=1 shows where" if debug == "0" else ""
        assert done.stderr.splitlines()[-1] == f"fleet: unexpected RuntimeError: two lines{hint}"
        assert ("Traceback" in done.stderr) == (debug == "1")


def completed(fleet: Fleet, line: str, cwd: Path | None = None) -> list[str]:
    """Return what bash would offer for a line."""
    done = subprocess.run(
        [PROGRAM],
        capture_output=True,
        text=True,
        cwd=cwd or fleet.folder,
        env={
            **fleet.environ,
            "_FLEET_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(line.split(" ")) - 1),
        },
        check=False,
    )
    return done.stdout.split()


def test_names_are_completed(fleet: Fleet) -> None:
    assert completed(fleet, "fleet st") == ["start", "stop", "status", "steer", "state"]
    assert completed(fleet, "fleet stop ") == []
    assert not (fleet.state / "fleetd.sock").exists()
    folder = fleet.project('[environment]\nname = "shop"\n[processes.web]\ncommand = "sleep 600"\n', "shop")
    fleet.ok("activate", str(folder))
    fleet.ok("start", "alone", "--", "sleep", "600")
    (fleet.folder / "nap.json").write_text('{"id": "nap", "command": "sleep 600"}')
    fleet.ok("template", "add", "nap.json")
    assert completed(fleet, "fleet stop ") == ["alone", "shop/web"]
    assert completed(fleet, "fleet stop ", folder) == ["alone", "shop/web", "web"]
    assert completed(fleet, "fleet logs w", folder) == ["web"]
    assert completed(fleet, "fleet start n") == ["nap"]
    assert completed(fleet, "fleet template show ") == ["nap"]
    assert completed(fleet, "fleet status -e ") == ["shop"]
    assert completed(fleet, "fleet resources claim me tcp") == ["tcpport"]
    assert completed(fleet, "fleet help ex") == ["exit-codes"]


def terminal(
    fleet: Fleet, *words: str, columns: int = 80, cwd: Path | None = None, keys: bytes = b""
) -> tuple[int, str]:
    """Run a command on a terminal and return its exit code and all that it wrote there."""
    pid, master = pty.fork()
    if pid == 0:
        os.chdir(cwd or fleet.folder)
        environ = {**fleet.environ, "TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": "40"}
        os.execve(PROGRAM, [PROGRAM, *words], environ)
    output = b""
    if keys:
        os.write(master, keys)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if select.select([master], [], [], 0.2)[0]:
            try:
                data = os.read(master, 65536)
            except OSError:
                break
            if not data:
                break
            output += data
    os.close(master)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), output.decode()


def visible(text: str) -> list[str]:
    return [line.rstrip() for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "").splitlines()]


def test_a_terminal_gets_colors_and_whole_names(fleet: Fleet) -> None:
    name = "a-process-with-quite-a-long-name-that-must-stay-whole"
    fleet.ok("start", name, "--", "sh", "-c", "sleep 600; : " + "x" * 200)
    code, text = terminal(fleet, "ps")
    assert code == 0
    assert "\x1b[32mrunning" in text
    row = next(line for line in visible(text) if line.startswith(name))
    assert "…" in row
    assert "x" * 200 not in row
    assert "\x1b" not in fleet.ok("ps").out
    assert "x" * 200 in fleet.ok("ps").out


def test_activation_is_shown_live_on_a_terminal(fleet: Fleet) -> None:
    folder = fleet.project(
        '[environment]\nname = "slow"\n[processes.first]\ncommand = "sleep 1.5"\nrestart = "never"\n'
        '[processes.second]\ncommand = "sleep 600"\ndepends_on = [{process = "first", condition = "completed"}]\n'
    )
    fleet.ok("daemon", "start")
    code, text = terminal(fleet, "activate", cwd=folder)
    assert code == 0
    lines = visible(text)
    assert any(line.startswith("second") and "starting" in line for line in lines)
    assert lines[-1].startswith("second") or "second" in text.rsplit("NAME", 1)[1]
    assert "running" in text.rsplit("NAME", 1)[1]


def test_kill_all_asks_on_a_terminal(fleet: Fleet) -> None:
    fleet.ok("start", "one", "--", "sleep", "600")
    code, text = terminal(fleet, "kill-all", keys=b"n\n")
    assert code == 130
    assert "Stop every process on this host? [y/N]" in text
    assert fleet.process("one")["status"] == "running"
    code, text = terminal(fleet, "kill-all", keys=b"y\n")
    assert (code, "Stopped one" in text) == (0, True)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0, "0s"), (59.9, "59s"), (192, "3m12s"), (7500, "2h05m"), (356400, "4d03h")],
)
def test_durations_for_people(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(None, "-"), (0, "-"), (512, "512B"), (1536, "1.5K"), (23 * 1024**2, "23M"), (2**60, "1048576T")],
)
def test_sizes_for_people(number: int | None, text: str) -> None:
    assert size(number) == text


def test_a_plain_table_is_aligned_and_ends_without_spaces() -> None:
    columns = [Column("NAME"), Column("PID", right=True), Column("X")]
    assert plain_table(["NAME", "PID", "X"], columns, [["a", "1", ""], ["bcdef", "234", "y"]]) == [
        "NAME   PID  X",
        "a        1",
        "bcdef  234  y",
    ]


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("env", {"A": "1"}, ["A=1"]),
        ("limits", {"memory": 5, "cpu": 0}, ["memory=5"]),
        ("resources", ["tcpport", {"type": "dbfile", "name": "db", "value": "/x"}], ["tcpport", "dbfile:/x as db"]),
        ("restart", {"policy": "always", "delay": 1.0, "max_delay": 60.0, "burst": 0, "window": 300.0},
         "always, after 1 s to 60 s"),
    ],
)  # fmt: skip
def test_declared_fields_for_people(key: str, value: object, shown: object) -> None:
    assert described(key, value) == shown


def test_what_a_program_prints_keeps_its_colors_on_a_terminal_and_moves_no_cursor(fleet: Fleet) -> None:
    printed = r"printf '\033[32mgreen\033[0m \033[2J\033]52;c;eA==\007 \302\233 end\n'"
    fleet.ok("start", "noisy", "--", "sh", "-c", f"{printed}; sleep 600")
    path = fleet.folder / "list.yml"
    path.write_text(json.dumps({"tasks": [{"name": "noisy", "run": printed}]}))
    fleet.ok("task", "run", str(path))
    until(lambda: "end" in fleet("logs", "noisy").out)
    for words in (("logs", "noisy"), ("task", "output", "last", "noisy")):
        _code, shown = terminal(fleet, *words)
        assert "\x1b[32mgreen\x1b[0m" in shown
        assert "end" in shown
        assert "\x1b[2J" not in shown
        assert set(shown).isdisjoint("\x07\x9b")
        assert "\x1b]52" in fleet(*words).out  # for a file, as it was
    fleet.ok("stop", "noisy")
