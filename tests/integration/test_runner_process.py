# SPDX-License-Identifier: GPL-3.0-or-later
"""One turn as a process: real small programs that end badly, never end, or leave something behind."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from fleet_core.runner_events import Event, Invocation, Outcome, Turn
from fleet_core.runners import Reader, runner
from fleet_node import paths, procfs, runner_process
from fleet_node.runner_process import run_turn

TOKEN = "FLEET_ITERATION"


class Run:
    """A turn of the runner `command`, and all that it told."""

    def __init__(self, tmp_path: Path) -> None:
        self.folder = tmp_path
        self.events: list[Event] = []
        self.pids: list[tuple[int, float]] = []
        self.stop: asyncio.Event | None = None
        self.seconds = 0.0
        self.token = f"test-{os.getpid()}-{tmp_path.name}"

    def __call__(self, command: str, *, stop_after: float | None = None, **options: Any) -> Outcome:
        turn = Turn(options.pop("prompt", "Do it"), command=command, config=options.pop("config", {}))
        return self.turn(runner(options.pop("runner", "command")), turn, stop_after=stop_after, **options)

    def turn(self, tool: Any, turn: Turn, *, stop_after: float | None = None, **options: Any) -> Outcome:
        async def go() -> Outcome:
            stop = asyncio.Event()
            if stop_after is not None:
                asyncio.get_running_loop().call_later(stop_after, stop.set)
                if stop_after == 0:
                    stop.set()
            begun = time.monotonic()
            try:
                return await run_turn(
                    tool,
                    turn,
                    folder=options.pop("folder", self.folder),
                    env={TOKEN: self.token, **options.pop("env", {})},
                    on_event=options.pop("on_event", self.events.append),
                    stop=stop,
                    started=lambda pid, start: self.pids.append((pid, start)),
                    **options,
                )
            finally:
                self.seconds = time.monotonic() - begun

        return asyncio.run(go())

    @property
    def texts(self) -> list[str]:
        return [event.text for event in self.events if event.type == "text"]

    def left(self) -> list[int]:
        """The processes that still bear the token of this turn."""
        return procfs.find_by_environment(TOKEN, self.token)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Quick to end what does not want to, so that tests are quick."""
    monkeypatch.setattr(runner_process, "ENDING", tuple((number, 0.3) for number, _grace in runner_process.ENDING))
    monkeypatch.setattr(runner_process, "LEFTOVER_GRACE", 0.3)
    monkeypatch.setattr(runner_process, "DRAIN", 0.5)
    return Run(tmp_path)


class Box:
    """An inbox with messages that come one by one."""

    def __init__(self, *messages: tuple[int, str]) -> None:
        self.messages = list(messages)
        self.log: list[tuple[str, int]] = []

    async def next(self) -> tuple[int, str]:
        if not self.messages:
            await asyncio.Event().wait()
        return self.messages.pop(0)

    def sent(self, ident: int) -> None:
        self.log.append(("sent", ident))

    def confirmed(self, ident: int) -> None:
        self.log.append(("confirmed", ident))


def python(tmp_path: Path, text: str) -> str:
    """A shell command that runs a Python program."""
    file = tmp_path / "program.py"
    file.write_text(textwrap.dedent(text))
    return f"exec '{sys.executable}' -u '{file}'"


def test_the_prompt_is_on_standard_input_and_in_a_private_file(run: Run) -> None:
    prompt = "First line\nünïcode 'quotes' $HOME `id`"
    outcome = run('cat; echo; cat "$FLEET_PROMPT_FILE"; stat -c %a "$FLEET_PROMPT_FILE"; pwd', prompt=prompt)
    assert outcome.ok
    assert outcome.result == f"{prompt}\n{prompt}600\n{run.folder}"
    assert run.events[-1] == Event("end", "", {"ok": True, "reason": ""})


def test_the_variable_pwd_is_where_the_program_is(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PWD", "/elsewhere")
    outcome = run(python(run.folder, "import os; print(os.environ['PWD'], os.getcwd())"))
    assert outcome.result == f"{run.folder} {run.folder}"


def test_the_prompt_file_is_gone_after_the_turn(run: Run) -> None:
    path = Path(run('echo "$FLEET_PROMPT_FILE"').result)
    assert path.name == "fleet_prompt_file"
    assert not path.parent.exists()


def test_the_prompt_file_of_a_process_that_was_killed_is_removed_by_the_next(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(run.folder))
    mine = procfs.start_ticks(os.getpid())
    names = [f"fleet-turn-{os.getpid()}-1-dead", f"fleet-turn-{os.getpid()}-{mine}-alive", "fleet-turn-other"]
    for name in names:
        (run.folder / name).mkdir()
    assert run("true").ok
    assert sorted(path.name for path in run.folder.iterdir()) == sorted(names[1:])


def test_no_room_for_the_prompt_file_fails_the_turn(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(run.folder / "gone"))
    outcome = run("true")
    assert (outcome.ok, outcome.reason) == (False, "failed")
    assert outcome.error == 'runner "command": could not be prepared: No such file or directory'


def test_a_prompt_of_a_megabyte_reaches_a_program_that_does_not_read_it(run: Run) -> None:
    assert run('wc -c <"$FLEET_PROMPT_FILE"', prompt="x" * 1_000_000).result == "1000000"


def test_the_caller_hears_pid_and_start_time(run: Run) -> None:
    run("echo $$")
    assert [str(pid) for pid, _start in run.pids] == run.texts
    assert run.pids[0][1] > 0


@pytest.mark.parametrize(
    ("name", "executable", "message"),
    [
        ("claude", "", 'runner "claude": program "claude" was found neither in {runners}/bin nor on PATH'),
        ("codex", "./codex", 'runner "codex": expected a program at {folder}/./codex, found none'),
        ("codex", "./plain", 'runner "codex": expected a program at {folder}/./plain, found a file that may not be'),
        ("codex", "./orphan", 'runner "codex": {folder}/./orphan could not be started: what its first line names is'),
    ],
)
def test_a_program_that_is_not_there_is_named(run: Run, name: str, executable: str, message: str) -> None:
    (run.folder / "plain").write_text("")
    orphan = run.folder / "orphan"
    orphan.write_text("#!/nowhere/interpreter\n")
    orphan.chmod(0o755)
    env = {"PATH": str(run.folder / "empty"), "FLEET_RUNNERS_DIR": str(run.folder / "runners")}
    outcome = run.turn(runner(name), Turn("Go", executable=executable), env=env)
    assert (outcome.ok, outcome.reason) == (False, "not_found")
    assert message.format(folder=run.folder, runners=run.folder / "runners") in outcome.error
    assert run.pids == []


def test_a_tool_is_looked_for_where_the_role_installs_it_and_then_on_path(run: Run) -> None:
    for place in ("runners/bin", "path"):
        program = run.folder / place / "codex"
        program.parent.mkdir(parents=True)
        program.write_text(f'#!/bin/sh\necho \'{{"type": "error", "message": "{place}"}}\'\n')
        program.chmod(0o755)
    env = {"PATH": f"{run.folder}/path:{os.environ['PATH']}", "FLEET_RUNNERS_DIR": str(run.folder / "runners")}
    assert run.turn(runner("codex"), Turn("Go"), env=env).error == "codex: runners/bin"
    (run.folder / "runners" / "bin" / "codex").unlink()
    assert run.turn(runner("codex"), Turn("Go"), env=env).error == "codex: path"


def test_the_folder_of_the_runners_is_the_users_own_without_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert paths.runners_dir({"XDG_DATA_HOME": "/data"}) == Path("/data/autovibe/runners")
    assert paths.runners_dir({"FLEET_RUNNERS_DIR": "/x"}) == Path("/x")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert paths.runners_dir({}) == Path("/opt/autovibe/runners")


def test_a_folder_that_is_not_there_is_named(run: Run) -> None:
    outcome = run("true", folder=run.folder / "gone")
    assert outcome.reason == "failed"
    assert outcome.error == f'runner "command": folder {run.folder}/gone does not exist'


@pytest.mark.parametrize(
    "command",
    [
        "sleep 300",
        "trap '' INT; sleep 300 & wait",
        "trap '' INT TERM; sleep 300; sleep 300",
        "(trap '' INT TERM; sleep 300) | cat",
        "sleep 300 & sleep 300 & sleep 300",
        "setsid sleep 300 & trap '' INT TERM; sleep 300; sleep 300",
    ],
)
def test_a_timeout_ends_the_whole_group(run: Run, command: str) -> None:
    outcome = run(command, timeout=0.3)
    assert (outcome.ok, outcome.reason) == (False, "timeout")
    assert outcome.error == "command: did not end within its time and was killed"
    assert run.left() == []
    assert run.seconds < 4


def test_a_stop_ends_the_whole_group_and_keeps_what_was_printed(run: Run) -> None:
    outcome = run("echo before; (sleep 300; echo never) & wait", stop_after=0.3)
    assert (outcome.ok, outcome.reason, outcome.result) == (False, "interrupted", "before")
    assert run.left() == []


def test_a_program_may_say_its_last_words_when_it_is_stopped(run: Run) -> None:
    outcome = run("trap 'echo saved; exit 0' INT; echo ready; while :; do sleep 0.05; done", stop_after=0.5)
    assert (outcome.reason, outcome.result) == ("interrupted", "ready\nsaved")


def test_a_stop_before_the_start_starts_nothing(run: Run) -> None:
    assert run("echo started", stop_after=0).reason == "interrupted"
    assert (run.pids, run.texts) == ([], [])


def test_a_grandchild_that_holds_the_pipe_is_ended_with_the_turn(run: Run) -> None:
    outcome = run("sleep 300 & echo done")
    assert (outcome.ok, outcome.result) == (True, "done")
    assert run.left() == []
    assert run.seconds < 2


def test_a_process_that_left_the_group_cannot_hold_the_turn(run: Run) -> None:
    outcome = run("setsid sleep 300 & sleep 0.2; echo done")
    assert (outcome.ok, outcome.result) == (True, "done")
    assert run.seconds < 3
    left = run.left()  # the token finds it
    assert len(left) == 1
    os.kill(left[0], 9)


def test_a_program_that_was_killed_leaves_nothing_that_left_its_group(run: Run) -> None:
    run("setsid sleep 300 & sleep 0.2; kill -9 $$")
    assert run.left() == []


def test_cancelling_leaves_nothing(run: Run) -> None:
    async def go() -> None:
        turn = Turn("x", command="sleep 300 & sleep 300")
        task = asyncio.ensure_future(
            run_turn(runner("command"), turn, folder=run.folder, env={TOKEN: run.token}, on_event=run.events.append)
        )
        await asyncio.sleep(0.3)
        assert len(run.left()) >= 2
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(go())
    assert run.left() == []


def test_an_error_of_the_caller_ends_the_program_and_is_raised(run: Run) -> None:
    def fail(event: Event) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        run("echo hi; sleep 300", on_event=fail)
    assert run.left() == []


def test_no_descriptor_stays_open(run: Run) -> None:
    run("true")
    before = set(os.listdir("/proc/self/fd"))
    for command in ("cat", "sleep 300", "exit 3", "echo x >&2"):
        run(command, timeout=0.2)
        run(command, timeout=0.2, config={"stdin": "json"})
    run.turn(runner("codex"), Turn("x", executable="./none"))
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_a_line_without_end_is_bounded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_process, "MAX_LINE", 100_000)
    outcome = run("head -c 50000000 /dev/zero | tr '\\0' x; echo; echo after")
    assert outcome.ok
    assert [len(text) < 70_000 for text in run.texts] == [True, True]
    assert run.texts[-1] == "after"


def test_output_without_end_costs_little(run: Run) -> None:
    outcome = run("yes | head -c 2000000; echo last")
    assert outcome.ok
    assert outcome.result.endswith("\nlast")
    assert len(run.events) == 10_002
    assert len(outcome.result) < 70_000


def test_output_without_end_can_be_stopped(run: Run) -> None:
    assert run("yes", timeout=0.5).reason == "timeout"
    assert run.seconds < 5


def test_standard_error_is_kept_at_its_end(run: Run) -> None:
    outcome = run("yes filler | head -n 500000 >&2; echo 'the reason' >&2; exit 4")
    assert outcome.error == "command: exit code 4: the reason"


def test_bytes_that_are_no_text_are_taken(run: Run) -> None:
    assert run(r"printf '\377\376 caf\303\251\n'").result == "�� café"


def test_a_last_line_without_its_end_is_read(run: Run) -> None:
    run("printf 'one\\ntwo'")
    assert run.texts == ["one", "two"]


@pytest.mark.parametrize(("command", "error"), [("kill -9 $$", "ended by signal 9"), ("exit 7", "exit code 7")])
def test_how_a_program_ended_is_told(run: Run, command: str, error: str) -> None:
    assert run(command).error == f"command: {error}"


def test_a_program_that_dies_by_a_broken_pipe_behaves_as_in_a_shell(run: Run) -> None:
    assert run("yes | head -n 1; echo ${PIPESTATUS:-none}").result == "y\nnone"


def test_root_and_only_root_gets_what_is_meant_for_it(run: Run) -> None:
    class Tool:
        name = "tool"
        steers = resumes = False

        def invocation(self, turn: Turn) -> Invocation:
            return Invocation(
                ("/bin/sh", "-c", "echo $SANDBOXED $MINE"), {"MINE": "no"}, "", False, {"SANDBOXED": "yes"}
            )

        def reader(self, turn: Turn) -> Reader:
            return runner("command").reader(turn)

    outcome = run.turn(Tool(), Turn("x"), env={"MINE": "mine"})
    assert outcome.result.split() == (["yes", "mine"] if os.geteuid() == 0 else ["mine"])


# --- messages while it works

STEERED = """
    import json, sys
    def say(**data): print(json.dumps(data))
    prompt = json.loads(sys.stdin.readline())
    say(type="session", session="s1")
    print("prompt:", prompt["text"])
    for line in sys.stdin:
        message = json.loads(line)
        say(type="user", injection=message["injection"], text=message["text"])
        print("heard:", message["text"])
        if message["text"] == "finish":
            say(type="result", text="finished")
"""


def test_messages_reach_a_program_in_their_order_and_are_confirmed(run: Run) -> None:
    box = Box((3, "left"), (5, "finish"))
    outcome = run(python(run.folder, STEERED), inbox=box, config={"stdin": "json"}, prompt="Go\nthere")
    assert (outcome.ok, outcome.result, outcome.session) == (True, "finished", "s1")
    assert run.texts == ["prompt: Go", "there", "heard: left", "heard: finish"]
    assert [event.detail["injection"] for event in run.events if event.type == "user"] == [3, 5]
    assert box.log.index(("sent", 3)) < box.log.index(("confirmed", 3)) < box.log.index(("confirmed", 5))


def test_a_message_larger_than_the_pipe_arrives_whole(run: Run) -> None:
    program = """
        import json, sys, time
        sys.stdin.readline()
        time.sleep(0.3)
        message = json.loads(sys.stdin.readline())
        print(len(message["text"]))
        print(json.dumps({"type": "user", "injection": message["injection"]}))
        print(json.dumps({"type": "result", "text": "ok"}))
    """
    box = Box((1, "x" * 1_000_000))
    outcome = run(python(run.folder, program), inbox=box, config={"stdin": "json"})
    assert (outcome.ok, run.texts) == (True, ["1000000"])
    assert box.log == [("sent", 1), ("confirmed", 1)]


def test_messages_stay_in_the_inbox_of_a_program_that_takes_none(run: Run) -> None:
    box = Box((3, "left"))
    assert run("sleep 0.3; cat", inbox=box).result == "Do it"
    assert (box.messages, box.log) == ([(3, "left")], [])


def test_standard_input_is_closed_once_the_turn_is_over(run: Run) -> None:
    program = """
        import json, sys
        sys.stdin.readline()
        print(json.dumps({"type": "result", "text": "over"}))
        print("rest:", repr(sys.stdin.read()))
    """
    outcome = run(python(run.folder, program), inbox=Box(), config={"stdin": "json"})
    assert (outcome.ok, outcome.result, run.texts) == (True, "over", ["rest: ''"])


def test_a_program_that_closes_its_standard_input_is_left_alone(run: Run) -> None:
    box = Box((1, "x" * 300_000))
    outcome = run("exec <&-; sleep 0.3; echo done", inbox=box, config={"stdin": "json"})
    assert (outcome.ok, outcome.result, box.log) == (True, "done", [])


def test_a_program_that_never_reads_can_still_be_stopped(run: Run) -> None:
    box = Box((1, "x" * 300_000))
    outcome = run("sleep 300", inbox=box, config={"stdin": "json"}, prompt="y" * 300_000, timeout=0.4)
    assert (outcome.reason, box.log) == ("timeout", [])
    assert run.left() == []


def test_a_program_that_hangs_after_its_result_is_ended_and_has_succeeded(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_process, "LINGER", 0.3)
    outcome = run('echo \'{"type": "result", "text": "over"}\'; sleep 300', config={"stdin": "json"})
    assert (outcome.ok, outcome.result) == (True, "over")
    assert run.left() == []
    assert run.seconds < 3


def test_the_program_of_the_documentation_takes_messages(run: Run) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "runners.md").read_text(encoding="utf-8")
    program = page.split("```python\n")[1].split("```")[0]
    box = Box((1, "left"), (2, "right"))
    outcome = run(python(run.folder, program), inbox=box, config={"stdin": "json"}, prompt="the backlog")
    assert (outcome.ok, run.texts) == (True, ["working on: the backlog"])
    assert [event.detail["injection"] for event in run.events if event.type == "user"] == [1, 2]
    assert outcome.result == "did that too: right"


def test_an_error_of_the_inbox_is_raised(run: Run) -> None:
    class Broken(Box):
        async def next(self) -> tuple[int, str]:
            raise OSError("store gone")

    with pytest.raises(OSError, match="store gone"):
        run(python(run.folder, STEERED), inbox=Broken(), config={"stdin": "json"})
    assert run.left() == []


def test_ten_turns_at_once_keep_apart(run: Run) -> None:
    async def go() -> list[Outcome]:
        def turn(number: int) -> Any:
            command = f"cat; for i in 1 2 3 4 5; do echo {number}; done; exit {number % 2}"
            return run_turn(
                runner("command"), Turn("", command=command), folder=run.folder, env={}, on_event=lambda event: None
            )

        return list(await asyncio.gather(*(turn(number) for number in range(10))))

    outcomes = asyncio.run(go())
    assert [outcome.ok for outcome in outcomes] == [True, False] * 5
    assert [outcome.result for outcome in outcomes] == ["\n".join([str(n)] * 5) for n in range(10)]


def test_without_pidfd_a_turn_ends_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    assert run("echo hi").result == "hi"
    assert run("sleep 300", timeout=0.2).reason == "timeout"
