# SPDX-License-Identifier: GPL-3.0-or-later
"""Agents as they are declared: what is read, what is refused and in which words, ids, prompts, diffs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fleet_core.agents import AgentDefinition, Method, agent_definition, agent_definitions, compare, prompt, render
from fleet_core.errors import InvalidInput, NotFound

BUILD = {"name": "builder", "runner": "claude", "methods": {"build": "Build it."}}
FULL: dict[str, Any] = {
    "name": "builder",
    "description": "Builds what the backlog asks for",
    "runner": "claude",
    "model": "sonnet",
    "session": "resume",
    "options": {
        "executable": "claude",
        "permission_mode": "acceptEdits",
        "system_prompt": "Be brief.",
        "arguments": ["--add-dir", "/srv/shared"],
        "config": {"model_reasoning_effort": "high"},
    },
    "methods": {
        "plan": {"parameters": ["goal", "context"], "body": "Plan [goal].\n[context] [other]"},
        "build": "Build one item.\nCommit it.",
        "review": {"parameters": ["file"], "body": "Review [file]."},
    },
    "pipeline": [
        {"call": "plan", "arguments": ["a web shop", "in Python"]},
        {"map": "review", "over": "plan"},
        {"loop": "build", "label": "work", "times": 5},
        {"loop": "build"},
    ],
    "limits": {"iterations": 50, "duration": "8h", "cost": 12.5, "tokens": 20000, "turns": 4, "iteration_timeout": 90},
    "backoff": {"delay": "10s", "max_delay": "10m", "jitter": 0.5},
    "circuit_breaker": {"failures": 5, "pause": "15m", "trips": 2},
    "completion": {"phrase": "ALL DONE"},
    "verification": {"command": "make test", "timeout": "20m"},
    "watchdog": {"commits": 5, "repeats": 8, "silence": "10m", "action": "stop"},
    "workspace": {"kind": "worktree", "repository": "/srv/shop", "base": "main", "branch": "agent/builder"},
    "env": {"MODE": "dev", "MAX_THINKING_TOKENS": 8000},
    "env_files": ["/etc/autovibe/keys.env"],
    "schedule": {"cron": "0 22 * * mon-fri"},
}  # fmt: skip


def test_everything_is_read_and_written_back_to_an_equal_definition() -> None:
    found = agent_definition(FULL)
    assert agent_definition(found.to_dict()) == found
    assert agent_definition(json.loads(json.dumps(found.to_dict()))).id == found.id
    assert found.limits.duration == 8 * 3600
    assert found.env == {"MODE": "dev", "MAX_THINKING_TOKENS": "8000"}
    assert [step.label for step in found.pipeline] == ["plan", "review", "work", "build"]


def test_defaults_are_left_out_of_the_plain_data() -> None:
    assert agent_definition(BUILD).to_dict() == {**BUILD, "pipeline": [{"call": "build"}]}
    with_defaults = {
        **BUILD,
        "session": "fresh",
        "limits": {"iteration_timeout": "1h"},
        "watchdog": {"action": "report"},
        "workspace": None,
        "env": {},
    }
    assert agent_definition(with_defaults).id == agent_definition(BUILD).id


def test_the_only_method_is_called_when_there_is_no_pipeline() -> None:
    (step,) = agent_definition(BUILD).pipeline
    assert (step.kind, step.label, step.method) == ("call", "build", "build")


def _without(key: str) -> dict[str, Any]:
    return {name: value for name, value in FULL.items() if name != key}


CHANGES: list[dict[str, Any]] = [
    *(_without(key) for key in FULL if key not in ("name", "runner", "methods", "pipeline")),
    {**FULL, "name": "other"},
    {**FULL, "runner": "codex"},
    {**FULL, "methods": {**FULL["methods"], "build": "Build one item.\nCommit it!"}},
    {**FULL, "methods": {**FULL["methods"], "review": {"parameters": ["path"], "body": "Review [file]."}}},
    {**FULL, "pipeline": FULL["pipeline"][:-1]},
    {**FULL, "pipeline": [*FULL["pipeline"][:-1], {"loop": "build", "times": 1}]},
    {**FULL, "pipeline": [{"call": "plan", "arguments": ["a web shop", "in Rust"]}, *FULL["pipeline"][1:]]},
]


@pytest.mark.parametrize("changed", CHANGES)
def test_the_id_covers_everything(changed: dict[str, Any]) -> None:
    before, after = agent_definition(FULL), agent_definition(changed)
    assert before.id != after.id
    assert compare(before, after)


def test_the_id_is_that_of_canonical_json_and_stays_what_it_is() -> None:
    found = agent_definition(BUILD)
    assert found.id == "8fb321c6579745cf1d48d23f02b73ec265a3a860957aa2b8b09b8df0fed53479"
    reordered = {**FULL, "methods": dict(reversed(FULL["methods"].items())), "env": dict(reversed(FULL["env"].items()))}
    assert agent_definition(reordered).id == agent_definition(FULL).id


@pytest.mark.parametrize("body", ["Build it.\n", "\n  \nBuild it.", "Build it.   \n\n", "Build it.\r\n"])
def test_empty_lines_around_a_body_change_nothing(body: str) -> None:
    assert agent_definition({**BUILD, "methods": {"build": body}}).id == agent_definition(BUILD).id


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"name": None}, "agent name None: expected a letter or digit"),
    ({"name": "a b"}, "agent name 'a b': expected a letter or digit"),
    ({"runner": None}, 'agent "builder": expected a runner (claude, codex, opencode, aider, gemini, qwen, command)'),
    ({"runner": "cluade"}, 'or command, found "cluade", did you mean "claude"?'),
    ({"pipline": []}, 'agent "builder": unknown key "pipline", did you mean "pipeline"?'),
    ({"methods": None}, 'agent "builder": expected a pipeline'),
    ({"methods": {}}, 'agent "builder": expected a pipeline'),
    ({"methods": ["build"]}, "methods: expected a mapping of names to bodies, found list"),
    ({"methods": {"a b": "x"}}, "methods: expected a name of letters, digits, '_' and '-'"),
    ({"methods": {"build": " \n "}}, "methods: build: body: expected text, found str"),
    ({"methods": {"build": {"bdy": "x"}}}, 'methods: build: unknown key "bdy", did you mean "body"?'),
    ({"methods": {"build": {"parameters": ["a", "a"], "body": "x"}}}, 'parameters: "a" stands twice'),
    ({"methods": {"build": "a\0b"}}, "body: expected Unicode text without NUL"),
    ({"methods": {"build": "a\ud800b"}}, "body: expected Unicode text without NUL"),
    ({"methods": {"a": "x", "b": "y"}}, "expected a pipeline, which only an agent with a single method may leave out"),
    ({"pipeline": []}, "pipeline: expected a list of steps, found list []"),
    ({"pipeline": ["build"]}, "pipeline: step 1: expected a mapping with call, map or loop, found str 'build'"),
    ({"pipeline": [{"call": "build", "loop": "build"}]}, "expected one of call, map, loop, found call and loop"),
    ({"pipeline": [{"label": "x"}]}, "step 1: expected one of call, map, loop, found none of them"),
    ({"pipeline": [{"lop": "build"}]}, 'step 1: unknown key "lop", did you mean "loop"?'),
    ({"pipeline": [{"call": "build", "times": 3}]}, 'step 1: unknown key "times"'),
    ({"pipeline": [{"loop": "build", "times": -1}]}, "times: expected a number from 0 to 1000000000, found -1"),
    ({"pipeline": [{"call": "biuld"}]}, 'step "biuld": unknown method "biuld", did you mean "build"?'),
    ({"pipeline": [{"call": "build"}, {"call": "build"}]}, 'step "build": stands twice; give the second one a label'),
    ({"pipeline": [{"call": "build", "arguments": ["x"]}]}, 'method "build" takes 0 arguments, found 1'),
    ({"pipeline": [{"map": "build"}]}, 'expected "over" (the label of an earlier step) or "items", found neither'),
    ({"pipeline": [{"map": "build", "over": "x", "items": ["y"]}]}, 'or "items", found both'),
    ({"pipeline": [{"map": "build", "over": "build"}]}, 'an earlier step, but "build" stands later or here'),
    ({"pipeline": [{"call": "build", "label": "plan"}, {"map": "build", "over": "plam"}]},
     'over: expected the label of an earlier step, but "plam" is no step, did you mean "plan"?'),
    ({"pipeline": [{"loop": "build"}, {"call": "build", "label": "end"}]},
     'step "build": expected times, a completion or a verification, for without them step "end" is never reached'),
    ({"command": "true"}, 'command: expected the runner "command" beside it, found "claude"'),
    ({"runner": "command"}, 'expected a command for the runner "command", found nothing'),
    ({"session": "resumed"}, 'session: expected fresh or resume, found "resumed", did you mean "resume"?'),
    ({"limits": {"iteration": 3}}, 'limits: unknown key "iteration", did you mean "iterations"?'),
    ({"limits": {"cost": -1}}, "limits: cost: expected a number from 0 to 1e+09, found int -1"),
    ({"limits": {"cost": "much"}}, "limits: cost: expected a number from 0 to 1e+09, found str 'much'"),
    ({"limits": {"cost": float("nan")}}, "limits: cost: expected a number"),
    ({"limits": {"duration": "soon"}}, 'limits: duration: expected a duration such as "30s"'),
    ({"backoff": {"delay": "10m", "max_delay": "1m"}}, "expected a max_delay of at least the delay, 600 s, found 60 s"),
    ({"backoff": {"jitter": 2}}, "backoff: jitter: expected a number from 0 to 1, found int 2"),
    ({"watchdog": {"action": "kill"}}, 'watchdog: action: expected report or stop, found "kill"'),
    ({"completion": {"phrase": "a\nb"}}, "completion: phrase: expected one line"),
    ({"workspace": {"kind": "worktree"}}, 'workspace: expected a repository for kind "worktree", found nothing'),
    ({"workspace": {"branch": "x"}}, 'branch: expected kind "worktree" or "clone" beside it, found "folder"'),
    ({"workspace": {"path": "work"}}, 'workspace: path: expected an absolute path, found "work"'),
    ({"workspace": {"kind": "clone", "repository": "--upload-pack=x"}}, 'expected no "-" at the beginning'),
    ({"workspace": {"kind": "clone", "repository": "https://me:pass@host/x"}}, "expected a URL without a password"),
    ({"workspace": {"kind": "worktree", "repository": "https://host/x"}}, "expected a folder on this host"),
    ({"env": {"API_KEY": "x"}}, 'env: "API_KEY" looks like a secret; put it into a file of env_files'),
    ({"env": {"DB": "postgres://me:secret@host/db"}}, "env: DB: expected a URL without a password"),
    ({"env": {"A B": "x"}}, "env: expected a name without spaces and '=', found 'A B'"),
    ({"options": {"arguments": ["--openai-api-key", "sk-1"]}}, '"--openai-api-key" looks like a secret'),
    ({"options": {"arguments": ["--openai-api-key=sk-1"]}}, '"--openai-api-key" looks like a secret'),
    ({"options": {"config": {"x.bearer_token": "sk-1"}}}, 'options: config: "x.bearer_token" looks like a secret'),
    ({"schedule": {"cron": "* * * *"}}, "schedule: cron: expected five fields"),
    ({"schedule": {"cron": "* * * * *", "every": "1h"}}, 'schedule: expected "cron" or "every", found both'),
    ({"schedule": {"every": 0.2}}, "schedule: every: expected at least 1 s"),
    ({"legacy_form": "(defagent \"other\"\n  \"x\")"}, 'legacy_form: expected (defagent "builder"'),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_what_is_wrong_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput) as error:
        agent_definition({**BUILD, **change})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


ACCEPTED: list[dict[str, Any]] = [
    {"env": {"ANTHROPIC_API_KEY": ""}},  # unset for the runner
    {"options": {"arguments": ["--max-tokens=100", "--no-auth"]}},
    {"options": {"config": {"model_providers.local.env_key": "LOCAL_KEY", "tool_output_token_limit": "5000"}}},
    {"workspace": {"kind": "clone", "repository": "git@host:team/shop.git"}},
    {"workspace": {"path": "~/work"}},
    {"verification": "make test", "completion": "DONE"},
    {"schedule": {"cron": "@daily"}},
    {"limits": {"iterations": "5", "cost": "2.5"}},
]


@pytest.mark.parametrize("change", ACCEPTED)
def test_what_is_allowed(change: dict[str, Any]) -> None:
    assert agent_definition({**BUILD, **change}) != agent_definition(BUILD)


@pytest.mark.parametrize(
    ("parameters", "steps", "fits"),
    [
        (["a"], [{"call": "m"}], False),
        (["a"], [{"call": "m", "arguments": ["1"]}], True),
        (["a"], [{"map": "m", "items": ["1"]}], True),
        (["a", "b"], [{"map": "m", "items": ["1"]}], False),
        (["a", "b"], [{"map": "m", "items": ["1"], "arguments": ["2"]}], True),
        (["a", "b"], [{"map": "m", "items": ["1"], "arguments": ["2", "3"]}], True),
        (["a"], [{"call": "n"}, {"call": "m"}], True),
        (["a", "b"], [{"call": "n"}, {"loop": "m"}], False),
        (["a", "b"], [{"call": "n"}, {"loop": "m", "arguments": ["1"]}], True),
    ],
)
def test_arguments_must_fit_the_parameters(parameters: list[str], steps: list[Any], fits: bool) -> None:
    data = {**BUILD, "methods": {"m": {"parameters": parameters, "body": "x"}, "n": "y"}, "pipeline": steps}
    if fits:
        agent_definition(data)
    else:
        with pytest.raises(InvalidInput, match=r'method "m" takes \d arguments? \(a'):
            agent_definition(data)


def test_relative_paths_are_those_of_the_folder() -> None:
    data = {
        **BUILD,
        "workspace": {"kind": "worktree", "repository": "../shop", "path": "."},
        "env_files": ["keys.env", "/etc/keys.env"],
        "options": {"executable": "./bin/claude"},
    }
    found = agent_definition(data, folder="/srv/agents")
    assert (found.workspace.repository, found.workspace.path) == ("/srv/shop", "/srv/agents")
    assert found.env_files == ("/srv/agents/keys.env", "/etc/keys.env")
    assert found.options.executable == "/srv/agents/bin/claude"


def test_a_file_holds_one_a_list_or_agents_with_shared_methods() -> None:
    other = {**BUILD, "name": "other"}
    assert [item.name for item in agent_definitions(BUILD)] == ["builder"]
    assert [item.name for item in agent_definitions([BUILD, other])] == ["builder", "other"]
    users = [
        {"name": "a", "runner": "codex", "pipeline": [{"loop": "work"}]},
        {"name": "b", "runner": "codex", "pipeline": [{"loop": "work"}], "methods": {"work": "My own"}},
    ]
    first, second = agent_definitions({"agents": users, "methods": {"work": "Shared", "idle": "Unused"}})
    assert first.methods == (Method("work", (), "Shared"),)
    assert second.methods == (Method("work", (), "My own"),)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([BUILD, BUILD], 'agent "builder": stands twice'),
        ("builder", "agents file: expected one definition or a list of them, found str 'builder'"),
        ({"agents": BUILD}, "agents file: agents: expected a list of definitions"),
        ({"agents": [BUILD], "method": {}}, 'agents file: unknown key "method", did you mean "methods"?'),
        ({"agents": [{"name": "a", "runner": "codex", "pipeline": [{"call": "wrok"}]}], "methods": {"work": "x"}},
         'unknown method "wrok", did you mean "work"?'),
        (None, "agents file: expected one definition or a list of them, found nothing"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_named(data: Any, message: str) -> None:
    with pytest.raises(InvalidInput) as error:
        agent_definitions(data)
    assert message in str(error.value)


PLAN = Method("plan", ("goal", "way"), "Reach [goal] by [way], [goal]! [other] [ goal ]")


@pytest.mark.parametrize(
    ("arguments", "previous", "text"),
    [
        (["peace", "talk"], "", "Reach peace by talk, peace! [other] [ goal ]"),
        (["peace"], "all means", "Reach peace by all means, peace! [other] [ goal ]"),
        ([], "peace", "Reach peace by , peace! [other] [ goal ]"),
        (["[way]", "[goal]"], "", "Reach [way] by [goal], [way]! [other] [ goal ]"),
        (["a", "b"], "Result", "Reach a by b, a! [other] [ goal ]\n\nResult"),
        ([r"\1", "b"], "", r"Reach \1 by b, \1! [other] [ goal ]"),
    ],
)
def test_a_prompt_is_a_body_with_its_parameters_filled(arguments: list[str], previous: str, text: str) -> None:
    assert prompt(PLAN, arguments, previous) == text


def test_a_prompt_takes_no_more_arguments_than_parameters() -> None:
    with pytest.raises(InvalidInput, match='method "plan": expected at most 2 arguments, found 3'):
        prompt(PLAN, ["a", "b", "c"])


def test_methods_and_steps_are_found_by_name() -> None:
    found = agent_definition(FULL)
    assert found.method("build").body.startswith("Build")
    assert found.step("work").times == 5
    with pytest.raises(NotFound, match='agent "builder": method "biuld": not defined, did you mean "build"'):
        found.method("biuld")
    with pytest.raises(NotFound, match='agent "builder": step "wrk": not in the pipeline, did you mean "work"'):
        found.step("wrk")


def test_a_diff_shows_the_lines_that_differ() -> None:
    before = agent_definition(FULL)
    after = agent_definition({**FULL, "methods": {**FULL["methods"], "build": "Build two items.\nCommit it."}})
    lines = compare(before, after)
    assert "-    Build one item." in lines
    assert "+    Build two items." in lines
    assert len([line for line in lines if line[0] in "+-"]) == 2
    assert compare(before, before) == []


def test_a_rendered_definition_is_yaml_that_reads_back() -> None:
    yaml = pytest.importorskip("yaml")
    found = agent_definition({key: value for key, value in FULL.items() if key != "schedule"})
    assert agent_definition(yaml.safe_load("\n".join(render(found)))) == found


def test_definitions_are_values() -> None:
    assert agent_definition(FULL) == agent_definition(json.loads(json.dumps(FULL)))
    assert isinstance(agent_definition(FULL), AgentDefinition)
