# SPDX-License-Identifier: GPL-3.0-or-later
"""fleet steer on a real terminal, driven by keys, with a real fleetd and agents that really run."""

from __future__ import annotations

import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.fleetd import Fleet, running, wait_for
from tests.integration.working_agents import STEERABLE, Agent, python

from .terminal import PROGRAM, Terminal, environment

LOOP = {
    "methods": {"work": "Work on the backlog."},
    "pipeline": [{"loop": "work"}],
    "options": {"config": {"stdin": "json"}},
}


@pytest.fixture
def fleet(state_dir: Path) -> Iterator[Fleet]:
    with running(state_dir) as found:
        yield found


@pytest.fixture
def worker(fleet: Fleet, tmp_path: Path) -> Agent:
    """An agent that works in long iterations and reads what is injected."""
    program = tmp_path / "work.py"
    program.write_text(STEERABLE)
    return Agent(fleet, "worker").run(python(program, str(tmp_path / "truth"), "600"), **LOOP)


def steer(fleet: Fleet, *words: str, columns: int = 110, rows: int = 32) -> Terminal:
    return Terminal(environment(fleet.folder), "steer", *words, columns=columns, rows=rows)


def test_an_agent_is_found_and_steered_by_keys(fleet: Fleet, worker: Agent) -> None:
    for name in ("alpha", "beta"):
        Agent(fleet, name).run("cat", state="present")
    with steer(fleet) as screen:
        screen.until("3 agents · 1 running")
        screen.press("/", "w", "o", "r", "k", "e")
        screen.gone("alpha")
        screen.press("enter", "down", "down")
        screen.until("worker / work / #1")
        screen.press("escape")
        screen.until("alpha")
        screen.until("Work on the backlog.")
        screen.press("tab", "tab")
        screen.type("Use pytest, please")
        screen.press("newline")
        screen.type("and be quick")
        screen.until("and be quick")
        screen.press("enter")
        screen.until("✓ delivered")
        screen.until("read Use pytest, please")
        screen.until("Message to iteration #1")  # the box is empty again
    (injection,) = worker.injections()
    assert injection["text"] == "Use pytest, please\nand be quick"
    assert (injection["state"], injection["iteration"]) == ("delivered", worker.iterations()[0]["id"])
    assert "@" in injection["sender"]


def test_two_sessions_see_the_same(fleet: Fleet, worker: Agent) -> None:
    with steer(fleet, "worker") as one, steer(fleet, "worker", columns=90) as other:
        for screen in (one, other):
            screen.until("1 running")
            screen.press("m")
            screen.until("Message to iteration #1")
        one.type("from the first")
        one.press("enter")
        for screen in (one, other):
            screen.until("read from the first")
            screen.until("✓ delivered")
        other.type("from the second")
        other.press("enter")
        for screen in (one, other):
            screen.until("read from the second")
    assert [row["text"] for row in worker.injections()] == ["from the first", "from the second"]


def test_a_prompt_is_edited_live_and_a_conflict_is_shown(fleet: Fleet, worker: Agent) -> None:
    with steer(fleet, "worker") as screen:
        screen.until("1 running")
        screen.press("j", "e")
        screen.until("worker · work · revision 1")
        screen.type("First of all: ")
        screen.press("ctrl+s")
        screen.until("a new revision")
        screen.until("First of all: Work on the backlog.")
        screen.gone("worker · work · revision 1")
        time.sleep(0.5)  # a key that comes while the editor closes is the editor's
        screen.press("e")
        screen.until("revision 2")
        fleet.call("agents.edit", name="worker", method="work", body="Written by another.")
        screen.type("Mine: ")
        screen.press("ctrl+s")
        screen.until("Revision 3 was written meanwhile")
        screen.press("ctrl+s")
        screen.until("Mine: First of all")
        screen.gone("was written meanwhile")
    revisions = fleet.call("agents.revisions", name="worker")["revisions"]
    bodies = [row["definition"]["methods"]["work"] for row in revisions]
    assert bodies == [
        "Work on the backlog.",
        "First of all: Work on the backlog.",
        "Written by another.",
        "Mine: First of all: Work on the backlog.",
    ]


def test_a_lost_fleetd_shows_a_banner_and_nothing_is_missed(fleet: Fleet, worker: Agent) -> None:
    with steer(fleet, "worker") as screen:
        screen.until("1 running")
        screen.press("m")
        screen.until("Message to iteration #1")
        fleet.end(signal.SIGKILL)
        screen.until("Connection to fleetd lost")
        screen.type("kept")
        screen.press("enter")
        screen.until("not connected")  # it could not be sent, and stays in the box
        store = worker.store()
        store.inject("worker", "while nobody was there", sender="another")
        store.close()
        wait_for("the agent has read it", lambda: any("while nobody" in row["text"] for row in _delivered(worker)))
        fleet.up()
        screen.until("Connected again")
        screen.gone("Connected again")
        screen.until("read while nobody was there")
        screen.press("enter")
        screen.until("read kept")
        assert screen.text.count("read while nobody was there") == 1


def _delivered(agent: Agent) -> list[dict[str, str]]:
    store = agent.store()
    try:
        return store.injections(agent.name, states=["delivered"])
    finally:
        store.close()


def test_an_agent_is_stopped_run_paused_and_interrupted(fleet: Fleet, worker: Agent) -> None:
    worker.until("running")
    with steer(fleet, "worker") as screen:
        screen.until("1 running")
        screen.press("s")
        screen.until("Stop worker?")
        screen.press("n")
        screen.gone("Stop worker?")
        screen.press("s")
        screen.until("Stop worker?")
        screen.press("y")
        screen.until("worker   stopped")
        screen.press("r")
        screen.until("worker   running")
        screen.press("p")
        screen.until("pauses")
        screen.press("i")  # else it would end its iteration first
        screen.until("worker   paused")
        screen.press("p")
        screen.until("worker   running")
        number = len(worker.iterations())
        screen.until(f"#{number}")
        screen.press("i")
        screen.until(f"#{number + 1}")


def test_the_terminal_may_have_any_size_and_is_left_as_it_was(fleet: Fleet, worker: Agent) -> None:
    worker.until("running")
    with steer(fleet, "worker") as screen:
        screen.until("1 running")
        screen.until("Revisions")
        screen.resize(50, 16)
        screen.until(lambda: "│" not in screen.text and "worker" in screen.text)  # one pane
        screen.press("tab")
        screen.until("Workspace")
        for size in ((20, 5), (3, 2), (160, 50)):
            screen.resize(*size)
            screen.read(0.3)
        screen.until("#1")
        screen.until("Revisions")
        screen.press("?")
        screen.until("Keys")
        screen.press("escape", "q")
        assert screen.wait() == 0
        for mode in (b"\x1b[?1049l", b"\x1b[?25h", b"\x1b[?1000l", b"\x1b[?2004l"):
            assert mode in screen.raw[-400:], mode
        assert b"Traceback" not in screen.raw


def test_what_an_agent_writes_does_not_touch_the_terminal(fleet: Fleet, tmp_path: Path) -> None:
    """Told by the bytes that reach the terminal: the model's own sequences are not among them."""
    program = tmp_path / "evil.sh"
    program.write_text(
        "printf 'one \\033]0;owned\\007 \\033]52;c;b3duZWQ=\\033\\\\ \\033[5m\\033[?1049l'\n"
        "printf '\\033[31;42mtwo\\033c \\0 three'\n"
        "printf ' \\342\\200\\256four [bold red]five[/] \\377 \\302\\2332J six\\n'; sleep 600\n"
    )
    name = Agent(fleet, "evil").run(f"sh {program}", description="\x1b]0;owned\x07 [red]x[/]")
    name.until("running")
    with steer(fleet, "evil") as screen:
        screen.until("1 running")
        screen.press("m")
        screen.until("[bold red]five[/]")
        screen.until("three")
        screen.press("escape", "escape", "q")
        screen.wait()
    assert b"owned" not in screen.raw
    assert b"b3duZWQ=" not in screen.raw
    assert b"\x1b[5m" not in screen.raw
    assert b"\x1bc" not in screen.raw
    assert b"\xe2\x80\xae" not in screen.raw  # turns the direction of a line
    assert b"\xc2\x9b" not in screen.raw
    assert b"\x00" not in screen.raw
    assert screen.raw.count(b"\x1b[?1049l") == 1  # our own, at the end


def test_without_a_terminal_it_says_so(fleet: Fleet) -> None:
    for words, sentence in [((), "expected a terminal"), (("--json",), "writes no JSON")]:
        done = subprocess.run(
            [PROGRAM, "steer", *words],
            env=environment(fleet.folder),
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 2
        assert sentence in done.stderr
        assert "Traceback" not in done.stderr


def test_modes_of_the_terminal_are_given_back(fleet: Fleet) -> None:
    with steer(fleet) as screen:
        screen.until("No agents yet")
        raw = termios.tcgetattr(screen._master)
        assert not raw[3] & termios.ECHO
        screen.press("q")
        screen.until(lambda: termios.tcgetattr(screen._master)[3] & termios.ECHO)
        assert termios.tcgetattr(screen._master)[:4] == screen.modes[:4]


def test_without_textual_it_says_what_to_install(fleet: Fleet) -> None:
    code = (
        "import sys; sys.modules['textual'] = None; from autovibe_fleet.cli import main; sys.exit(main.run(['steer']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(fleet.folder), capture_output=True, text=True, check=False
    )
    assert done.returncode == 7
    assert 'pip install "autovibe-fleet[steer]"' in done.stderr
    assert len(done.stderr.splitlines()) == 1
