# SPDX-License-Identifier: GPL-3.0-or-later
"""The adapters read what the real command lines printed (tests/data/runners), and anything else."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_core.errors import InvalidInput
from fleet_core.runner_events import EVENT_TYPES, REASONS, Event, Outcome, Turn, Usage, session_name
from fleet_core.runners import NAMES, Reader, runner

RECORDED = Path(__file__).resolve().parents[2] / "data" / "runners"
# A turn of two requests with one tool call between them, and what the tool was given.
REAL = ("claude", "codex", "opencode", "gemini", "qwen")


def read(name: str, case: str, code: int | None, *, reason: str = "", **turn: Any) -> tuple[list[Event], Outcome]:
    """Return the events and the outcome of a recorded run."""
    reader = runner(name).reader(Turn("Write a file", **turn))
    lines = (RECORDED / name / f"{case}.out").read_text(encoding="utf-8").splitlines()
    stderr = RECORDED / name / f"{case}.err"
    events = [event for line in lines for event in reader.feed(line)]
    return events, reader.finish(code, stderr.read_text() if stderr.exists() else "", reason)


def told(events: list[Event]) -> Usage:
    return sum((Usage.from_dict(event.detail) for event in events if event.type == "usage"), Usage())


def types(events: list[Event]) -> list[str]:
    return [event.type for event in events if event.type not in ("usage", "error")]


@pytest.mark.parametrize("name", REAL)
def test_a_turn_with_a_tool_call_is_read(name: str) -> None:
    events, outcome = read(name, "tool", 0)
    assert types(events) == ["session", "text", "tool_use", "tool_result", "text"]
    use = next(event for event in events if event.type == "tool_use")
    result = next(event for event in events if event.type == "tool_result")
    assert "made.txt" in json.dumps(use.detail["input"])
    assert use.detail["id"] == result.detail["id"] != ""
    assert (result.text.strip(), result.detail["is_error"]) == ("done", False)
    assert (outcome.ok, outcome.reason, outcome.error, outcome.result) == (True, "", "", "All done.")
    assert outcome.session == next(event for event in events if event.type == "session").detail["session"] != ""


@pytest.mark.parametrize("name", [*REAL, "aider"])
def test_usage_told_on_the_way_adds_up_to_that_of_the_turn(name: str) -> None:
    events, outcome = read(name, "tool", 0)
    assert told(events) == outcome.usage == outcome.session_total
    sent = 1200 if name == "aider" else 1300  # aider does not count what it asks for a commit's message
    assert outcome.usage.input_tokens == sent
    assert (outcome.usage.cost is not None) == (name in ("claude", "opencode", "aider"))


@pytest.mark.parametrize("name", REAL)
def test_a_resumed_session_counts_what_this_turn_used(name: str) -> None:
    _events, first = read(name, "tool", 0)
    events, second = read(name, "resume", 0, session=first.session, baseline=first.session_total)
    assert second.session == first.session
    assert second.result == "I remember."
    assert told(events) == second.usage
    assert 1200 <= second.usage.input_tokens <= 1300
    assert second.session_total.tokens == first.session_total.tokens + second.usage.tokens
    if first.usage.cost is not None:
        assert second.usage.cost == pytest.approx(first.usage.cost, rel=0.5)
        assert second.session_total.cost == pytest.approx(first.usage.cost + (second.usage.cost or 0))


@pytest.mark.parametrize(
    ("name", "case", "code", "reason", "error"),
    [
        ("claude", "max-turns", 1, "max_turns", "Reached maximum number of turns (2)"),
        ("claude", "budget", 1, "budget", "Reached maximum budget ($0.5)"),
        ("claude", "session-unknown", 1, "session_unknown", "No conversation found"),
        ("claude", "api-error", 1, "failed", "API Error: 400 bad request"),
        ("codex", "session-unknown", 1, "session_unknown", "no rollout found for thread id"),
        ("codex", "api-error", 1, "failed", "bad request"),
        ("qwen", "max-turns", 53, "max_turns", "Reached max session turns"),
        ("qwen", "session-unknown", 1, "session_unknown", "No saved session found"),
        ("qwen", "api-error", 1, "failed", "API Error: 400 bad request"),
        ("gemini", "session-unknown", 42, "session_unknown", "Invalid session identifier"),
        ("gemini", "api-error", 144, "failed", "bad request"),
        ("opencode", "session-unknown", 1, "session_unknown", "Error: Session not found"),
        ("opencode", "api-error", 1, "failed", "bad request"),
        ("aider", "api-error", 0, "failed", "litellm.BadRequestError"),
    ],
)
def test_a_failure_has_its_reason_and_one_sentence(name: str, case: str, code: int, reason: str, error: str) -> None:
    _events, outcome = read(name, case, code)
    assert (outcome.ok, outcome.reason) == (False, reason)
    assert outcome.error.startswith(f"{name}: ")
    assert error in outcome.error
    assert "\n" not in outcome.error


def test_claude_over_its_budget_still_counts_what_it_spent() -> None:
    events, outcome = read("claude", "budget", 1)
    assert outcome.usage == Usage(200_000, 20_000, cost=pytest.approx(1.2))
    assert told(events) == outcome.usage


@pytest.mark.parametrize("name", REAL)
def test_a_good_result_with_a_bad_exit_code_is_a_failure(name: str) -> None:
    assert read(name, "tool", 3)[1].reason == "failed"


def test_claude_reporting_an_error_with_exit_code_zero_is_a_failure() -> None:
    assert read("claude", "api-error", 0)[1].reason == "failed"


@pytest.mark.parametrize("name", [*REAL, "aider"])
def test_output_that_ends_before_the_model_answered_is_a_failure(name: str) -> None:
    reader = runner(name).reader(Turn("Go"))
    outcome = reader.finish(0, "")
    assert (outcome.ok, outcome.reason) == (False, "failed")
    assert outcome.error != ""


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("reason", ["timeout", "interrupted"])
def test_a_run_that_the_caller_ended_keeps_its_session(name: str, reason: str) -> None:
    reader = runner(name).reader(Turn("Go"))
    for line in (RECORDED / name / "tool.out").read_text().splitlines()[:4]:
        reader.feed(line)
    outcome = reader.finish(None, "", reason)
    assert (outcome.ok, outcome.reason) == (False, reason)
    assert outcome.session != ""


def test_claude_interrupted_by_a_signal_reports_what_it_spent() -> None:
    events, outcome = read("claude", "interrupted", 0, reason="interrupted")
    assert (outcome.ok, outcome.reason) == (False, "interrupted")
    assert outcome.usage.cost == pytest.approx(0.0008)
    assert [event.detail["is_error"] for event in events if event.type == "tool_result"] == [True]


def test_messages_for_claude_are_confirmed_between_the_tools_result_and_the_answer() -> None:
    reader = runner("claude").reader(Turn("Write a file"))
    sent = [json.loads(reader.message(text, ident)) for ident, text in ((1, "Turn left"), (2, "Then right"))]
    assert [line["message"]["content"] for line in sent] == ["Turn left", "Then right"]
    kinds = []
    for line in (RECORDED / "claude" / "steered.out").read_text().splitlines():
        for event in reader.feed(line):
            kinds.append((event.type, event.detail.get("injection")))
    assert kinds.index(("tool_result", None)) < kinds.index(("user", 1)) < kinds.index(("user", 2))
    assert kinds.index(("user", 2)) < len(kinds) - 1 - kinds[::-1].index(("text", None))
    assert reader.idle


def test_claude_is_not_idle_before_a_late_message_had_its_own_turn() -> None:
    reader = runner("claude").reader(Turn("Write a file"))
    lines = (RECORDED / "claude" / "steered-late.out").read_text().splitlines()
    reader.message("Too late?", 3)
    idle_at_results = []
    for line in lines:
        reader.feed(line)
        if json.loads(line)["type"] == "result":
            idle_at_results.append(reader.idle)
    assert idle_at_results == [False, True]
    outcome = reader.finish(0, "")
    assert (outcome.ok, outcome.result, outcome.usage.input_tokens) == (True, "Second.", 200)


def test_a_message_that_claude_takes_for_a_command_is_answered_without_a_replay() -> None:
    reader = runner("claude").reader(Turn("Write a file"))
    reader.message("/exit", 7)
    events = []
    for line in (RECORDED / "claude" / "steered-refused.out").read_text().splitlines():
        assert not reader.idle
        events += reader.feed(line)
    assert reader.idle
    assert [event.detail for event in events if event.type == "user"] == [{"injection": 7}]
    assert reader.finish(0, "").result == "All done."


def test_what_a_subagent_of_claude_does_is_marked() -> None:
    line = {"type": "assistant", "parent_tool_use_id": "t1", "message": {"content": [{"type": "text", "text": "Hm."}]}}
    assert runner("claude").reader(Turn("p")).feed(json.dumps(line)) == [Event("text", "Hm.", {"parent": "t1"})]


def test_the_replayed_prompt_of_claude_confirms_nothing() -> None:
    events, _outcome = read("claude", "steered", 0)
    assert [event for event in events if event.type == "user"] == []


def test_edits_of_aider_are_tool_calls() -> None:
    events, outcome = read("aider", "tool", 0)
    assert types(events) == ["text", "text", "tool_use", "tool_result", "text"]
    assert "I will make it." in outcome.result
    assert events[-1].text.startswith("Commit ")


def test_an_edit_that_does_not_fit_is_an_error_until_aider_has_another_answer() -> None:
    events, outcome = read("aider", "edit-failed", 0)
    assert [event.text for event in events if event.type == "error"] == [
        "The LLM did not conform to the edit format.",
    ]
    assert (outcome.ok, outcome.turns) == (True, 2)
    half = runner("aider").reader(Turn("Go"))
    for line in (RECORDED / "aider" / "edit-failed.out").read_text().splitlines():
        if any(event.type == "error" for event in half.feed(line)):
            break
    assert half.finish(0, "").error == "aider: The LLM did not conform to the edit format."


@pytest.mark.parametrize(
    ("line", "usage"),
    [
        ("Tokens: 2.3k sent, 1.1k cache hit, 20 received.", Usage(2300, 20, 1100)),
        ("Tokens: 1.2M sent, 3k cache write, 9 received. Cost: $1.25 message, $9.99 session.",
         Usage(1_200_000, 9, 0, 3000, 1.25)),
    ],
)  # fmt: skip
def test_counts_of_aider_are_read(line: str, usage: Usage) -> None:
    reader = runner("aider").reader(Turn("Go"))
    for text in ("Repo-map: using 1 tokens", "Fine.", line):
        reader.feed(text)
    assert reader.finish(0, "").usage == usage


@pytest.mark.parametrize("name", NAMES)
def test_the_prompt_is_never_an_argument(name: str) -> None:
    invocation = runner(name).invocation(Turn("Secret plan", command="cat", system_prompt="Hidden manner"))
    words = " ".join(invocation.argv)
    assert "Secret plan" not in words
    assert "Hidden manner" not in words
    held = [invocation.stdin or "", *invocation.files.values(), *invocation.env.values()]
    assert any("Secret plan" in text for text in held)
    assert any("Hidden manner" in text for text in held)


@pytest.mark.parametrize(
    ("name", "turn", "words"),
    [
        ("claude", Turn("p", session="S", model="opus", permission_mode="bypass", max_turns=3, max_cost=1.5),
         "--resume S --model opus --permission-mode bypassPermissions --max-turns 3 --max-budget-usd 1.500000"),
        ("claude", Turn("p", permission_mode="plan", arguments=("--mcp-config", "m.json")),
         "--permission-mode plan --mcp-config m.json"),
        ("codex", Turn("p", session="S", model="m", permission_mode="bypass", config={"b": "2", "a": "1"}),
         "--model m --dangerously-bypass-approvals-and-sandbox --config a=1 --config b=2 resume S -"),
        ("codex", Turn("p", permission_mode="read-only"), "--config sandbox_mode=read-only -"),
        ("opencode", Turn("p", session="S", model="x/y", permission_mode="bypass"), "--session S --model x/y --auto"),
        ("opencode", Turn("p", permission_mode="plan"), "--agent plan"),
        ("gemini", Turn("p", session="S", permission_mode="bypass"), "--resume S --approval-mode yolo"),
        ("qwen", Turn("p", session="S", permission_mode="auto-edit", max_turns=4),
         "--resume S --approval-mode auto-edit --max-session-turns 4"),
        ("aider", Turn("p", model="sonnet", arguments=("made.txt",)), "--model sonnet made.txt"),
        ("command", Turn("p", command="cat", arguments=("a b",)), "/bin/sh -c cat sh a b"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)  # fmt: skip
def test_a_turn_becomes_arguments(name: str, turn: Turn, words: str) -> None:
    assert " ".join(runner(name).invocation(turn).argv).endswith(words)


@pytest.mark.parametrize("name", NAMES)
def test_a_given_executable_is_run(name: str) -> None:
    if name != "command":
        assert runner(name).invocation(Turn("p", executable="/opt/x")).argv[0] == "/opt/x"


@pytest.mark.parametrize(
    ("name", "turn", "message"),
    [
        ("command", Turn("p"), "expected a command, found none"),
        ("command", Turn("p", command="x", config={"stdn": "json"}), 'unknown key "stdn", did you mean "stdin"?'),
        ("command", Turn("p", command="x", config={"stdin": "xml"}), "expected text or json, found str 'xml'"),
        ("claude", Turn("p", config={"a": "b"}), 'config "a": this tool takes no config'),
        ("aider", Turn("p", permission_mode="ask"), "expected bypass or none"),
    ],
)
def test_what_no_tool_could_be_given_is_refused(name: str, turn: Turn, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        runner(name).invocation(turn)
    assert message in str(caught.value)


def test_an_unknown_runner_is_named_with_the_nearest() -> None:
    with pytest.raises(InvalidInput, match='runner "claud": unknown, did you mean "claude"'):
        runner("claud")


# --- the runner `command`


def command(*lines: str, code: int | None = 0, stderr: str = "") -> tuple[list[Event], Outcome, Reader]:
    reader = runner("command").reader(Turn("p", command="x", config={"stdin": "json"}))
    events = [event for line in lines for event in reader.feed(line)]
    return events, reader.finish(code, stderr), reader


def test_plain_lines_of_a_command_are_text_and_its_result() -> None:
    events, outcome, _reader = command("one", "", "two", '["no object"]', '{"type": "unheard of"}')
    assert [event.text for event in events] == ["one", "two", '["no object"]', '{"type": "unheard of"}']
    assert outcome.result == 'one\n\ntwo\n["no object"]\n{"type": "unheard of"}'
    assert outcome.ok


def test_a_command_may_speak_the_normalized_form() -> None:
    events, outcome, _reader = command(
        '{"type": "session", "session": "s1", "model": "m"}',
        '{"type": "thinking", "text": "hm"}',
        '{"type": "tool_use", "id": "1", "name": "make", "input": {"target": "all"}}',
        '{"type": "tool_result", "id": "1", "is_error": true, "text": "no rule"}',
        '{"type": "usage", "input_tokens": 10, "output_tokens": 2, "cost": 0.5}',
        '{"type": "usage", "input_tokens": 1}',
        '{"type": "error", "text": "careful"}',
        '{"type": "result", "text": "made", "turns": 2}',
    )
    assert [event.type for event in events] == [
        *("session", "thinking", "tool_use", "tool_result", "usage", "usage", "error"),
    ]
    assert events[3].detail == {"id": "1", "is_error": True}
    assert outcome == Outcome(True, session="s1", result="made", usage=Usage(11, 2, cost=0.5), turns=2)


@pytest.mark.parametrize(
    ("line", "code", "ok", "reason", "error"),
    [
        ("fine", 0, True, "", ""),
        ("fine", 3, False, "failed", "command: exit code 3: last words"),
        ("fine", -9, False, "failed", "command: ended by signal 9: last words"),
        ('{"type": "result", "ok": false}', 0, False, "failed", "command: exit code 0: last words"),
        ('{"type": "result", "ok": false, "reason": "budget", "error": "$1"}', 1, False, "budget", "$1"),
        ('{"type": "result", "ok": false, "reason": "whim"}', 1, False, "failed", "command: exit code 1: last words"),
        ('{"type": "result", "ok": true}', 1, False, "failed", "command: exit code 1: last words"),
    ],
)  # fmt: skip
def test_a_command_succeeds_by_its_exit_code(line: str, code: int, ok: bool, reason: str, error: str) -> None:
    _events, outcome, _reader = command(line, code=code, stderr="first words\nlast words\n")
    assert (outcome.ok, outcome.reason, outcome.error) == (ok, reason, error)


def test_a_command_confirms_messages_once_and_only_those_it_was_sent() -> None:
    reader = runner("command").reader(Turn("p", command="x", config={"stdin": "json"}))
    assert json.loads(reader.message("left", 7)) == {"type": "user", "text": "left", "injection": 7}
    assert reader.feed('{"type": "user", "injection": 8}') == []
    assert reader.feed('{"type": "result"}') == []
    assert not reader.idle
    assert [event.detail for event in reader.feed('{"type": "user", "injection": 7}')] == [{"injection": 7}]
    assert reader.feed('{"type": "user", "injection": 7}') == []
    assert not reader.idle  # it works on the message now
    reader.feed('{"type": "result"}')
    assert reader.idle


def test_a_command_that_prints_without_end_tells_a_bounded_number_of_events() -> None:
    events, outcome, _reader = command(*(["y"] * 50_000))
    assert len(events) == 10_001
    assert events[-1].type == "error"
    assert len(outcome.result) <= 70_000


# --- anything at all

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def recorded_objects() -> list[dict[str, Any]]:
    found = []
    for file in sorted(RECORDED.glob("*/*.out")):
        for line in file.read_text(encoding="utf-8").splitlines():
            if line.startswith("{"):
                found.append(json.loads(line))
    return found


OBJECTS = [
    *recorded_objects(),
    *({"type": kind, "text": "t", "id": "1", "name": "n", "input": {}, "is_error": False, "injection": 1, "ok": False,
       "input_tokens": 1, "cost": 0.5, "session": "s", "reason": "budget", "error": "e", "turns": 1}
      for kind in ("session", "text", "thinking", "tool_use", "tool_result", "usage", "user", "error", "result")),
]  # fmt: skip


@st.composite
def spoiled(draw: st.DrawFn) -> str:
    """A recorded line in which one value, at any depth, is another one."""
    data = json.loads(json.dumps(draw(st.sampled_from(OBJECTS))))
    place: Any = data
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = draw(st.sampled_from(keys))
        if isinstance(place[key], (dict, list)) and place[key] and draw(st.booleans()):
            place = place[key]
            continue
        place[key] = draw(values)
        return json.dumps(data)


@given(name=st.sampled_from(NAMES), lines=st.lists(spoiled() | st.text() | values.map(json.dumps), max_size=8))
def test_no_output_breaks_a_reader(name: str, lines: list[str]) -> None:
    reader = runner(name).reader(Turn("p", command="x"))
    if reader.steers:
        reader.message("left", 1)
    for line in lines:
        for event in reader.feed(line):
            assert event.type in EVENT_TYPES
            assert isinstance(event.text, str)
            json.dumps(dict(event.detail))
    for code in (0, 1, None):
        outcome = reader.finish(code, "")
        assert outcome.reason in REASONS
        assert outcome.ok == (outcome.reason == "")
        assert outcome.usage.tokens >= 0


@given(st.dictionaries(st.sampled_from(["input_tokens", "output_tokens", "cost", "other"]), values))
def test_usage_is_read_from_anything_and_kept(data: dict[str, Any]) -> None:
    usage = Usage.from_dict(data)
    assert Usage.from_dict(usage.to_dict()) == usage


def test_a_sum_that_began_anew_is_taken_whole() -> None:
    assert Usage(50, 5, cost=0.1).since(Usage(100, 10, cost=1.0)) == Usage(50, 5, cost=0.1)
    assert Usage(150, 15, cost=1.5).since(Usage(100, 10, cost=1.0)) == Usage(50, 5, cost=0.5)


@pytest.mark.parametrize(
    "line",
    [
        "Tokens: 1.2.3 sent, 4 received.",
        "Tokens: 1 sent, 4 received. Cost: $1.2.3 message, $1 session.",
        f"Tokens: {'9' * 400} sent, 4 received.",
        f"Tokens: {'1' * 200_000}.",
        f"Tokens: {'1 ' * 100_000}sent.",
    ],
)
def test_a_model_that_writes_like_aider_neither_stops_the_reader_nor_keeps_it_busy(line: str) -> None:
    reader = runner("aider").reader(Turn("Go"))
    begun = time.process_time()
    for text in ("Repo-map: using 1 tokens", line):
        reader.feed(text)
    assert time.process_time() - begun < 1
    assert reader.finish(0, "").usage.tokens < 100


@pytest.mark.parametrize("depth", [101, 490, 960, 2000, 5000, 50_000])
def test_json_with_more_levels_than_anybody_can_use_is_text(depth: int) -> None:
    deep = "[" * depth + "]" * depth
    line = f'{{"type": "tool_use", "name": "t", "input": {deep}}}'
    assert types(runner("command").reader(Turn("Go", command="x")).feed(line)) == ["text"]


@pytest.mark.parametrize(("told", "kept"), [("a-1", "a-1"), ("--yolo", ""), ("a\x1b[2J", ""), ("x" * 501, "")])
def test_a_session_is_handed_back_only_if_it_is_no_option(told: str, kept: str) -> None:
    assert session_name(told) == kept
