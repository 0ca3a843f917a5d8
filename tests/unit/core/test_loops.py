# SPDX-License-Identifier: GPL-3.0-or-later
"""The bounds of a loop, and a run of a pipeline as a value: tables, and properties over random runs."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_core import agent_runs
from fleet_core.agent_runs import (
    Attempt,
    Finish,
    Prompt,
    RunState,
    Verify,
    Wait,
    after,
    begin,
    decide,
    verified,
)
from fleet_core.agents import AgentDefinition, agent_definition
from fleet_core.loops import Totals, backoff_delay, budget_reached, limit_reached, list_items, opens
from fleet_core.steering import Message, compose

NOW = 1_800_000_000.0


def agent(**fields: Any) -> AgentDefinition:
    """An agent that loops one method, unless the fields say otherwise."""
    methods = {"build": "Build it.", "plan": "Plan it.", "fix": {"parameters": ["item"], "body": "Fix [item]."}}
    return agent_definition(
        {
            "name": "builder",
            "runner": "command",
            "command": "cat",
            "methods": methods,
            "pipeline": [{"loop": "build"}],
            "backoff": {"jitter": 0},
            **fields,
        }
    )


def play(definition: AgentDefinition, *results: Any, codes: tuple[int, ...] = ()) -> tuple[list[str], Finish | None]:
    """Run a pipeline: each result is what an iteration gives, or an Attempt's fields. Returns prompts and the end."""
    state = begin(definition)
    prompts: list[str] = []
    moment, left, exits = NOW, list(results), list(codes)
    while True:
        action = decide(definition, state, moment)
        if isinstance(action, Finish):
            return prompts, action
        if isinstance(action, Wait):
            moment += action.seconds
            state = agent_runs.spend(state, action.seconds)
        elif isinstance(action, Verify):
            code = exits.pop(0)
            state = verified(definition, state, code, f"output of {code}", moment, 0.5)
        else:
            if not left:
                return prompts, None
            prompts.append(action.text)
            result = left.pop(0)
            fields = {"state": "succeeded", "result": result} if isinstance(result, str) else result
            attempt = Attempt(id=len(prompts), **fields)
            state = after(definition, state, attempt, moment, 0.5)
        again = agent_runs.state_from_dict(json.loads(json.dumps(state.to_dict())), state.totals.to_dict())
        assert again == state
        state = again


FAILED = {"state": "failed", "reason": "failed", "error": "the model was overloaded"}
INTERRUPTED = {"state": "interrupted", "reason": "interrupted"}


@pytest.mark.parametrize(
    ("limits", "totals", "said"),
    [
        ({}, Totals(iterations=10**6, cost=1e9, tokens=10**12, seconds=1e9), ""),
        ({"iterations": 3}, Totals(iterations=2), ""),
        ({"iterations": 3}, Totals(iterations=3), "limit of iterations reached: 3 of 3"),
        ({"duration": 60}, Totals(seconds=60.2), "limit of duration reached: 60 s of 60 s"),
        ({"cost": 1.5}, Totals(cost=1.49), ""),
        ({"cost": 1.5}, Totals(cost=1.5), "limit of cost reached: 1.5 of 1.5 USD"),
        ({"tokens": 100}, Totals(tokens=101), "limit of tokens reached: 101 of 100"),
    ],
)
def test_a_limit_is_reached(limits: dict[str, Any], totals: Totals, said: str) -> None:
    assert limit_reached(agent(limits=limits).limits, totals) == said


def test_an_iteration_that_runs_is_not_ended_by_the_number_of_iterations() -> None:
    limits = agent(limits={"iterations": 1, "cost": 1}).limits
    assert budget_reached(limits, Totals(iterations=5)) == ""
    assert budget_reached(limits, Totals(cost=2)) == "limit of cost reached: 2 of 1 USD"


@pytest.mark.parametrize(
    ("failures", "chance", "expected"), [(1, 0, 4), (1, 1, 5), (2, 1, 10), (3, 0, 16), (5, 1, 60), (99, 1, 60)]
)
def test_backoff_doubles_up_to_its_maximum(failures: int, chance: float, expected: float) -> None:
    backoff = agent(backoff={"delay": 5, "max_delay": 60, "jitter": 0.2}).backoff
    assert backoff_delay(backoff, failures, chance) == pytest.approx(expected)


def test_a_breaker_without_a_number_never_opens() -> None:
    assert not opens(agent(circuit_breaker={"failures": 0}).circuit_breaker, 10**6)
    assert [opens(agent(circuit_breaker={"failures": 2}).circuit_breaker, count) for count in (1, 2, 3)] == [
        False, True, True,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ('["a", "b c", 3, {"k": null}]', ("a", "b c", "3", '{"k": null}')),
        ('```json\n["a"]\n```', ("a",)),
        ("a\n\n  b \n", ("a", "b")),
        ("[not json\nb", ("[not json", "b")),
        ("[]", ()),
        ("  \n", ()),
        ("```\na\nb\n```", ("a", "b")),
        ("[" * 100_000, ("[" * 100_000,)),
    ],
)
def test_a_list_is_a_json_array_or_lines(text: str, items: tuple[str, ...]) -> None:
    assert list_items(text) == items


def test_a_call_is_asked_once() -> None:
    prompts, end = play(agent(pipeline=[{"call": "build"}]), "done")
    assert (prompts, end) == (["Build it."], Finish("completed", 'step "build" is done'))


def test_a_pipeline_passes_results_on() -> None:
    steps = [{"call": "plan"}, {"map": "fix", "over": "plan", "label": "each"}, {"call": "fix", "label": "last"}]
    prompts, end = play(agent(pipeline=steps), '["x", "y"]', "did x", "did y", "all")
    assert prompts == ["Plan it.", "Fix x.", "Fix y.", 'Fix ["did x", "did y"].']
    assert end == Finish("completed", "all 3 steps are done")


def test_a_map_over_nothing_is_passed_over() -> None:
    steps = [{"call": "plan"}, {"map": "fix", "over": "plan", "label": "each"}]
    prompts, end = play(agent(pipeline=steps), "\n")
    assert prompts == ["Plan it."]
    assert end == Finish("completed", "all 2 steps are done")


def test_a_loop_runs_its_times_and_no_failure_counts() -> None:
    prompts, end = play(agent(pipeline=[{"loop": "build", "times": 2}]), "1", FAILED, "2")
    assert len(prompts) == 3
    assert end == Finish("completed", 'step "build" is done')


def test_a_loop_without_an_end_goes_on() -> None:
    assert play(agent(), *["x"] * 50)[1] is None


@pytest.mark.parametrize(
    ("fields", "results", "codes", "state"),
    [
        ({"completion": {"phrase": "DONE"}}, ["no", "I am DONE"], (), "completed"),
        ({"verification": {"command": "true"}}, ["a", "b"], (1, 0), "completed"),
        (
            {"completion": {"phrase": "DONE"}, "verification": {"command": "true"}},
            ["no", "DONE", "no", "DONE"],
            (1, 0),
            "completed",
        ),
    ],
)
def test_a_loop_ends_when_it_is_complete(
    fields: dict[str, Any], results: list[str], codes: tuple[int, ...], state: str
) -> None:
    prompts, end = play(agent(**fields), *results, "never", codes=codes)
    assert len(prompts) == len(results)
    assert end is not None
    assert end.state == state


def test_what_the_verification_printed_goes_into_the_next_prompt_only() -> None:
    fields = {"completion": {"phrase": "DONE"}, "verification": {"command": "make test"}}
    prompts, _end = play(agent(**fields), "DONE", "hm", "DONE", codes=(2, 0))
    assert prompts == [
        "Build it.",
        "Build it.\n\nThe verification command ended with exit code 2. Its output:\noutput of 2",
        "Build it.",
    ]


def test_times_without_completion_end_as_limited() -> None:
    fields = {"pipeline": [{"loop": "build", "times": 2}, {"call": "plan"}], "completion": {"phrase": "DONE"}}
    prompts, end = play(agent(**fields), "a", "b", "the plan")
    assert len(prompts) == 3
    assert end == Finish("limited", 'step "build" ran 2 times without completion: the result does not say "DONE"')


def test_a_call_that_is_not_complete_is_tried_again_as_a_failure() -> None:
    fields = {"pipeline": [{"call": "build"}], "verification": {"command": "false"}, "circuit_breaker": {"trips": 0}}
    prompts, end = play(agent(**fields), "a", "b", "c", "d", codes=(1, 1, 1, 1))
    assert len(prompts) == 3
    assert end is not None
    assert end.state == "failed"
    assert "exit code 1" in end.reason


def test_failures_wait_longer_each_time_until_the_breaker_opens() -> None:
    definition = agent(
        backoff={"delay": 10, "max_delay": 15, "jitter": 0}, circuit_breaker={"failures": 3, "pause": 100, "trips": 2}
    )
    state, waits = begin(definition), []
    for number in range(1, 10):
        action = decide(definition, state, NOW)
        if isinstance(action, Finish):
            break
        state = after(definition, replace(state, until=0), Attempt(number, **FAILED), NOW, 0.5)
        action = decide(definition, state, NOW)
        waits.append(action.seconds if isinstance(action, Wait) else action)
    assert waits[:4] == [10, 15, 100, 100]
    assert waits[4] == Finish(
        "failed", "5 failures in a row, and the circuit breaker has opened 2 times: the model was overloaded"
    )


def test_a_success_closes_the_breaker() -> None:
    definition = agent(circuit_breaker={"failures": 2, "pause": 1, "trips": 1})
    _prompts, end = play(definition, *[FAILED, FAILED, "good"] * 10)
    assert end is None


def test_nobody_waits_longer_because_the_clock_was_set_back() -> None:
    definition = agent()
    state = after(definition, begin(definition), Attempt(1, **FAILED), NOW, 0)
    assert decide(definition, state, NOW - 86400) == Wait(5, "backoff after 1 failure: the model was overloaded")
    assert isinstance(decide(definition, state, NOW + 86400), Prompt)


def test_a_missing_executable_fails_at_once() -> None:
    lost = {"state": "failed", "reason": "not_found", "error": "claude: not found"}
    assert play(agent(), lost)[1] == Finish("failed", "claude: not found")


def test_a_budget_that_the_runner_reached_limits_the_run() -> None:
    broke = {"state": "failed", "reason": "budget", "error": "budget exceeded", "cost": 0.99}
    assert play(agent(limits={"cost": 1}), broke)[1] == Finish("limited", "limit of cost reached: budget exceeded")
    assert play(agent(), broke, "x")[1] is None


def test_an_interrupted_iteration_is_repeated_in_its_session_and_says_so() -> None:
    definition = agent()
    state = after(definition, begin(definition), Attempt(7, session="s1", **INTERRUPTED), NOW, 0)
    action = decide(definition, state, NOW)
    assert action == Prompt("build", "", "Build it.", "s1", attempt_of=7, attempt_state="interrupted")
    assert state.failures == 0
    state = after(definition, state, Attempt(8, "succeeded", session="s1"), NOW, 0)
    assert decide(definition, state, NOW) == Prompt("build", "", "Build it.")


def test_a_failed_iteration_is_repeated_in_a_fresh_session_and_says_so() -> None:
    definition = agent()
    state = after(definition, begin(definition), Attempt(7, session="s1", **FAILED), NOW, 0)
    action = decide(definition, state, NOW + 3600)
    assert isinstance(action, Prompt)
    assert (action.session, action.attempt_of, action.attempt_state) == ("", 7, "failed")


def test_a_session_that_was_interrupted_is_not_charged_with_less_for_what_another_one_used() -> None:
    definition = agent()
    state = after(
        definition, begin(definition), Attempt(1, "succeeded", session="s1", session_total={"cost": 5}), NOW, 0
    )
    state = after(definition, state, Attempt(2, "interrupted", session="s2"), NOW, 0)
    assert (state.session, state.session_total) == ("s2", {})


def test_the_iterations_of_a_loop_go_on_in_one_session_if_asked_for() -> None:
    definition = agent(session="resume", pipeline=[{"loop": "build", "times": 2}, {"loop": "plan", "times": 2}])
    state, sessions = begin(definition), []
    for number in range(1, 5):
        action = decide(definition, state, NOW)
        assert isinstance(action, Prompt)
        sessions.append(action.session)
        state = after(definition, state, Attempt(number, "succeeded", session=f"s{(number + 1) // 2}"), NOW, 0)
    assert sessions == ["", "s1", "", "s2"]


def test_an_unknown_session_is_not_asked_for_again() -> None:
    definition = agent(session="resume")
    state = after(definition, begin(definition), Attempt(1, "succeeded", session="s1"), NOW, 0)
    state = after(definition, state, Attempt(2, "failed", "session_unknown", "no such session"), NOW, 0)
    action = decide(definition, state, NOW + 3600)
    assert isinstance(action, Prompt)
    assert action.session == ""


def test_an_edited_method_is_used_from_the_next_iteration() -> None:
    definition = agent()
    state = after(definition, begin(definition), Attempt(1, "succeeded"), NOW, 0)
    edited = agent(methods={"build": "Build it well."})
    action = decide(edited, state, NOW)
    assert isinstance(action, Prompt)
    assert action.text == "Build it well."


def test_a_step_that_vanished_ends_the_run() -> None:
    definition = agent(verification={"command": "true"})
    state = begin(definition)
    edited = agent(pipeline=[{"loop": "plan"}], verification={"command": "true"})
    gone = Finish("failed", 'step "build" is no longer in the pipeline')
    assert decide(edited, state, NOW) == gone
    checked = after(definition, state, Attempt(1, "succeeded"), NOW, 0)
    for code in (0, 1):
        assert decide(edited, verified(edited, checked, code, "", NOW, 0), NOW) == gone


def test_the_run_ends_when_its_iteration_was_stopped_for_a_limit_or_by_the_watchdog() -> None:
    said = {"state": "interrupted", "error": "limit of cost reached: 2 of 1 USD"}
    assert play(agent(), {**said, "reason": "limit"})[1] == Finish("limited", said["error"])
    said["error"] = "watchdog: no output for 60 s"
    assert play(agent(), {**said, "reason": "watchdog"})[1] == Finish("failed", said["error"])


def test_messages_at_the_end_get_a_turn_in_the_same_session() -> None:
    definition = agent(pipeline=[{"call": "build"}])
    state = after(definition, begin(definition), Attempt(1, "succeeded", session="s", result="built"), NOW, 0)
    assert isinstance(decide(definition, state, NOW), Finish)
    state = agent_runs.owe(state)
    action = decide(definition, state, NOW)
    assert action == Prompt("build", session="s", messages_only=True)
    failed = after(definition, state, Attempt(2, **FAILED), NOW, 0)
    assert isinstance(decide(definition, failed, NOW), Wait)
    state = after(definition, failed, Attempt(3, "succeeded", session="s", result="and changed"), NOW, 0)
    assert decide(definition, state, NOW) == Finish("completed", 'step "build" is done')
    assert state.result == "and changed"


def test_a_turn_for_messages_that_was_killed_is_owed_still() -> None:
    """The process was killed before it could record that it owed one."""
    definition = agent(pipeline=[{"call": "build"}])
    state = after(definition, begin(definition), Attempt(1, "succeeded", session="s"), NOW, 0)
    state = after(definition, state, Attempt(2, "interrupted", "killed", session="s"), NOW, 0)
    action = decide(definition, state, NOW)
    assert action == Prompt("build", session="s", attempt_of=2, attempt_state="interrupted", messages_only=True)


def test_what_messages_at_the_end_did_is_verified_again() -> None:
    definition = agent(verification={"command": "true"})
    state = after(definition, begin(definition), Attempt(1, "succeeded"), NOW, 0)
    state = verified(definition, state, 0, "", NOW, 0)
    assert isinstance(decide(definition, state, NOW), Finish)
    state = after(definition, agent_runs.owe(state), Attempt(2, "succeeded"), NOW, 0)
    assert isinstance(decide(definition, state, NOW), Verify)
    state = verified(definition, state, 1, "broken", NOW, 0)
    action = decide(definition, state, NOW)
    assert isinstance(action, Prompt)
    assert "broken" in action.text


def test_a_prompt_is_composed_of_task_and_messages() -> None:
    ask = Prompt("build", text="Build it.", attempt_of=3, attempt_state="interrupted")
    text = compose(ask, (Message("ann", "use tabs"), Message("", "hurry", "sent again")), resumed=True)
    assert text == (
        "[The previous attempt at this was interrupted. Go on where it ended. The task again:]\n\nBuild it.\n\n"
        "[Steering: 2 messages, in the order of their arrival. Follow what is said here.]\n\n"
        "[Message 1 from ann]\nuse tabs\n\n[Message 2 (sent again)]\nhurry\n\n[End of the steering messages]"
    )
    last = Prompt("build", messages_only=True)
    assert compose(last, (Message("", "more"),), resumed=False, result="built").startswith(
        "[The work is done. Its last result was:]\nbuilt\n\n[Steering: message."
    )
    assert compose(Prompt("build", text="Build it."), (), resumed=False) == "Build it."


@st.composite
def definitions(draw: st.DrawFn) -> AgentDefinition:
    kinds = draw(st.lists(st.sampled_from(["call", "map", "loop"]), min_size=1, max_size=3))
    steps: list[dict[str, Any]] = []
    for number, kind in enumerate(kinds):
        step: dict[str, Any] = {kind: "plan", "label": f"s{number}"}
        if kind == "map":
            before = [other["label"] for other in steps]
            if before and draw(st.booleans()):
                step["over"] = draw(st.sampled_from(before))
            else:
                step["items"] = draw(st.lists(st.text("abc", min_size=1), min_size=1, max_size=3))
        if kind == "loop":
            step["times"] = draw(st.integers(0 if number == len(kinds) - 1 else 1, 3))
        steps.append(step)
    limits = {
        "iterations": draw(st.integers(1, 30)),
        "cost": draw(st.sampled_from([0, 0, 1.0])),
        "tokens": draw(st.sampled_from([0, 0, 500])),
        "duration": draw(st.sampled_from([0, 0, 1000])),
    }
    return agent(
        pipeline=steps,
        limits=limits,
        completion={"phrase": draw(st.sampled_from(["", "DONE"]))},
        verification={"command": draw(st.sampled_from(["", "true"]))},
        circuit_breaker={
            "failures": draw(st.integers(0, 3)),
            "pause": 10,
            "trips": draw(st.integers(0, 2)),
        },
        session=draw(st.sampled_from(["fresh", "resume"])),
    )


@given(definitions(), st.integers(0, 2**32))
def test_a_limited_run_always_ends_and_never_exceeds_its_limits(definition: AgentDefinition, seed: int) -> None:
    chance = random.Random(seed)
    state, moment, begun = begin(definition), NOW, 0
    limits = definition.limits
    for _turn in range(1000):
        action = decide(definition, state, moment)
        if isinstance(action, Finish):
            if not state.owed and action.state == "completed" and chance.random() < 0.3:
                state = agent_runs.owe(state)
                continue
            break
        if isinstance(action, Wait):
            assert action.seconds > 0
            assert action.why
            moment += action.seconds
            state = agent_runs.spend(state, action.seconds)
        elif isinstance(action, Verify):
            code = chance.choice([0, 1, None])
            state = verified(definition, state, code, "out", moment, chance.random())
        else:
            before = state.totals
            assert before.iterations < limits.iterations
            assert not limits.cost or before.cost < limits.cost
            assert not limits.tokens or before.tokens < limits.tokens
            assert not limits.duration or before.seconds < limits.duration
            assert (action.attempt_of == 0) == (action.attempt_state == "")
            begun += 1
            end = chance.choice(["succeeded", "succeeded", "failed", "interrupted"])
            reason = chance.choice(["failed", "timeout", "session_unknown", "max_turns"]) if end == "failed" else ""
            result = chance.choice(["", "a\nb", "DONE", '["x"]'])
            attempt = Attempt(begun, end, reason, "", result, f"s{begun}", {}, 0.1, 60, 40.0)
            state = after(definition, state, attempt, moment, chance.random())
            assert state.last == begun
        state = agent_runs.state_from_dict(json.loads(json.dumps(state.to_dict())), state.totals.to_dict())
    else:
        raise AssertionError(f"no end within 1000 decisions: {state}")
    assert state.totals.iterations == begun <= limits.iterations


def test_an_unknown_key_of_an_older_or_newer_version_is_passed_over() -> None:
    assert agent_runs.state_from_dict({"step": "build", "colour": "red"}, {"iterations": 2, "more": 1}) == RunState(
        step="build", totals=Totals(iterations=2)
    )
