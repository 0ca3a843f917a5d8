# SPDX-License-Identifier: GPL-3.0-or-later
"""Task lists: what is taken, what is refused and how that is said, and the published schema beside the parser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

import autovibe_fleet
from fleet_core import agents, task_lists
from fleet_core.errors import FleetError, InvalidInput
from fleet_core.task_lists import TaskList, groups, select, task_list

SCHEMA = json.loads((Path(autovibe_fleet.__file__).parent / "schemas" / "task_list.json").read_text())
VALIDATOR = Draft202012Validator(SCHEMA)

PUBLISHED = {
    "version": 1,
    "workdir": "/srv/app",
    "env": {"CI": "true"},
    "tasks": [
        {
            "name": "install",
            "run": "pip install .",
            "needs": [],
            "timeout": 600,
            "retries": 1,
            "on_failure": "stop",
            "artifacts": ["dist/*.whl"],
            "expect": {"rc": 0, "stdout_contains": "Successfully installed"},
        },
        {"name": "review", "prompt": "Review the last commit.", "needs": ["install"], "on_failure": "continue"},
    ],
}


def one(**fields: Any) -> dict[str, Any]:
    return {"tasks": [{"name": "a", "run": "true", **fields}]}


def test_the_published_shape_is_read() -> None:
    found = task_list(PUBLISHED)
    assert found.workdir == "/srv/app"
    assert found.env == {"CI": "true"}
    install, review = found.tasks
    assert (install.run, install.timeout, install.retries, install.on_failure) == ("pip install .", 600.0, 1, "stop")
    assert install.artifacts == ("dist/*.whl",)
    assert install.expect.rc == (0,)
    assert install.expect.stdout_contains == ("Successfully installed",)
    assert (review.prompt, review.runner, review.needs) == ("Review the last commit.", "claude", ("install",))
    VALIDATOR.validate(PUBLISHED)


def test_a_list_survives_its_plain_form() -> None:
    found = task_list({**PUBLISHED, "name": "app", "parallel": 2, "timeout": "1h"})
    again = task_list(found.to_dict())
    assert again == found
    assert again.hash == found.hash
    assert json.loads(json.dumps(found.to_dict())) == found.to_dict()
    VALIDATOR.validate(found.to_dict())


ACCEPTED: list[dict[str, Any]] = [
    one(),
    one(timeout="2h30m", retries=3, retry_delay="500ms"),
    one(timeout=0),
    one(needs=None, env=None, expect=None),
    one(expect={"rc": [0, 2], "stderr_contains": ["x"], "stdout_matches": "^ok$", "files": ["out/*"]}),
    one(artifacts="dist/**/*.whl", creates=[".venv"], workdir="sub/folder"),
    one(env={"PORT": 8080, "DEBUG": True}, env_files=[".env"], pass_env=["API_TOKEN"]),
    {"version": 1, "name": "x", "description": "d", "parallel": 1, "timeout": "5m", **one()},
    {"tasks": [{"name": "p", "prompt": "go", "runner": "codex", "model": "m", "options": {"max_turns": 3}}]},
    {"tasks": [{"name": "p", "prompt": "go", "runner": "command", "command": "cat"}]},
    {
        "tasks": [
            {"name": "p", "prompt": "go"},
            {"name": "q", "prompt": "on", "session": "p", "needs": ["p"], "options": {"max_cost": 0.5}},
        ]
    },
    {
        "tasks": [
            {"name": "p", "prompt": "x", "runner": "codex", "options": {"config": {"model_providers.x.env_key": "K"}}}
        ]
    },
]


@pytest.mark.parametrize("data", ACCEPTED)
def test_parser_and_schema_take(data: dict[str, Any]) -> None:
    assert task_list(task_list(data).to_dict()) == task_list(data)
    VALIDATOR.validate(data)


REFUSED: list[tuple[Any, str]] = [
    (None, "task list: expected a mapping, found nothing"),
    ("x", "task list: expected a mapping, found str 'x'"),
    ([], 'task list: expected a mapping with "tasks", found a list'),
    ({}, "task list: expected a list of tasks, found nothing"),
    ({"tasks": []}, "task list: expected a list of tasks, found list []"),
    ({"tasks": {"a": {}}}, "task list: expected a list of tasks, found dict"),
    ({"version": 2, **one()}, "task list: expected version 1, found int 2"),
    ({"version": "1", **one()}, "task list: expected version 1, found str '1'"),
    ({"version": True, **one()}, "task list: expected version 1, found bool True"),
    ({"task": [], **one()}, 'task list: unknown key "task", did you mean "tasks"?'),
    ({"tasks": ["x"]}, "task number 1: expected a mapping, found str 'x'"),
    ({"tasks": [{"run": "x"}]}, "task number 1: name None: expected a letter or digit"),
    (one(name="a/b"), "task number 1: name 'a/b': expected a letter or digit"),
    (one(run=""), 'task "a": run: expected a command, found nothing'),
    (one(run=5.5, prompt="x"), 'task "a": expected "run" or "prompt", found both'),
    ({"tasks": [{"name": "a"}]}, 'task "a": expected "run" or "prompt", found neither'),
    (one(runner="codex"), 'task "a": "runner" belongs to a "prompt"; this task has "run"'),
    ({"tasks": [{"name": "a", "prompt": "x", "runner": "cdex"}]}, "did you mean \"codex\"?"),
    ({"tasks": [{"name": "a", "prompt": "x", "runner": "command"}]}, 'the runner "command" needs the key "command"'),
    ({"tasks": [{"name": "a", "prompt": "x", "command": "cat"}]}, 'the key "command" needs the runner "command"'),
    ({"tasks": [{"name": "a", "prompt": "x", "expect": {"rc": 0}}]}, '"rc" belongs to a "run"'),
    (one(tmeout=5), 'task "a": unknown key "tmeout", did you mean "timeout"?'),
    (one(timeout="soon"), 'task "a": timeout: expected a duration such as "30s"'),
    (one(timeout=-1), 'task "a": timeout: expected a duration'),
    (one(retries=1.5), 'task "a": retries: expected a whole number, found float 1.5'),
    (one(retries=101), 'task "a": retries: expected a number from 0 to 100, found 101'),
    (one(on_failure="ignore"), "task \"a\": on_failure: expected stop, continue, found str 'ignore'"),
    (one(needs=["b"]), 'task "a": needs "b", which is not in the list'),
    (one(needs=["a"]), "tasks need each other in a cycle: a -> a"),
    ({"tasks": [{"name": "a", "run": "x"}, {"name": "a", "run": "y"}]}, 'task "a": stands twice'),
    (
        {"tasks": [{"name": "lint", "run": "x", "needs": ["test"]}, {"name": "test", "run": "y", "needs": ["lint"]}]},
        "tasks need each other in a cycle: lint -> test -> lint",
    ),
    ({"tasks": [{"name": "build", "run": "x"}, {"name": "b", "run": "x", "needs": ["bild"]}]}, 'mean "build"?'),
    (one(artifacts=["../secret"]), "artifacts: expected a path inside the list's workdir, found \"../secret\""),
    (one(artifacts=["a/../../b"]), "artifacts: expected a path inside"),
    (one(artifacts=["/etc/passwd"]), "artifacts: expected a path inside"),
    (one(artifacts=["~/x"]), "artifacts: expected a path inside"),
    (one(artifacts=[""]), "artifacts: expected texts, found an empty one"),
    (one(creates=["/x"]), "creates: expected a path inside"),
    (one(workdir=".."), "workdir: expected a path inside"),
    (one(expect={"files": ["/x"]}), "expect: files: expected a path inside"),
    (one(expect={"rc": "zero"}), "expect: rc: expected a whole number"),
    (one(expect={"stdout_matches": "("}), 'stdout_matches: "(" is no regular expression'),
    (one(expect={"stdout_contain": "x"}), 'unknown key "stdout_contain", did you mean "stdout_contains"?'),
    (one(env={"API_TOKEN": "x"}), 'env: "API_TOKEN" looks like a secret, which a list must not hold'),
    ({"env": {"DB_PASSWORD": "x"}, **one()}, 'env: "DB_PASSWORD" looks like a secret'),
    (one(env={"a b": "x"}), "env: 'a b' is not a name for an environment variable"),
    (one(env={"A": "x\0"}), "expected Unicode text without NUL"),
    (one(pass_env=["A=B"]), 'pass_env: expected names of environment variables, found "A=B"'),
    ({"parallel": 0, **one()}, "parallel: expected a number from 1 to 1000, found 0"),
    ({"tasks": [{"name": "p", "prompt": "x", "session": "q"}]}, 'session: expected another prompt task'),
    (
        {"tasks": [{"name": "p", "prompt": "x"}, {"name": "q", "prompt": "x", "session": "p"}]},
        'session "p": must stand in its needs, too',
    ),
    ({"tasks": [{"name": "p", "prompt": "x", "options": {"max_cost": -1}}]}, "max_cost: expected an amount in USD"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "message"), REFUSED)
def test_what_is_wrong_is_named(data: Any, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        task_list(data)
    assert message in caught.value.message


# What the schema cannot say: relations between tasks, secrets and patterns.
UNSAID = ("cycle", "not in the list", "twice", '"build"', "regular expression", "secret", "session", "NUL")


@pytest.mark.parametrize("data", [data for data, message in REFUSED if not any(word in message for word in UNSAID)])
def test_the_schema_refuses_what_the_parser_refuses(data: Any) -> None:
    assert not VALIDATOR.is_valid(data), data


def test_the_schema_names_every_key_of_the_parser() -> None:
    task = SCHEMA["$defs"]["task"]
    assert set(SCHEMA["properties"]) == set(task_lists.KEYS)
    assert set(task["properties"]) == set(task_lists.TASK_KEYS)
    assert set(SCHEMA["$defs"]["expect"]["properties"]) == set(task_lists.EXPECT_KEYS)
    assert set(SCHEMA["$defs"]["options"]["properties"]) == set(task_lists.OPTION_KEYS)
    assert task["properties"]["runner"]["enum"] == list(task_lists.RUNNERS)
    assert task["properties"]["timeout"]["default"] == task_lists.TIMEOUT
    assert SCHEMA["properties"]["parallel"]["default"] == task_lists.PARALLEL
    Draft202012Validator.check_schema(SCHEMA)


def test_prompts_go_to_the_runners_that_agents_have() -> None:
    assert task_lists.RUNNERS == agents.RUNNERS


def test_every_property_of_the_schema_is_explained() -> None:
    parts = [SCHEMA, *(SCHEMA["$defs"][name] for name in ("task", "expect", "options"))]
    assert [key for part in parts for key, value in part["properties"].items() if not value.get("description")] == []


def test_groups_hold_what_may_run_at_once() -> None:
    found = tasks("a", "b", c="a b", d="a", e="c d")
    assert groups(found) == (("a", "b"), ("c", "d"), ("e",))


def tasks(*free: str, **needing: str) -> TaskList:
    items = [{"name": name, "run": "true"} for name in free]
    items += [{"name": name, "run": "true", "needs": needs.split()} for name, needs in needing.items()]
    return task_list({"tasks": items})


@pytest.mark.parametrize(
    ("only", "start", "kept"),
    [
        ((), "", "abcde"),
        (("c",), "", "c"),
        (("a", "e"), "", "ae"),
        ((), "d", "de"),
        ((), "a", "acde"),
        (("b",), "d", "bde"),
    ],
)
def test_select_takes_some_tasks_and_counts_the_others_as_done(only: tuple[str, ...], start: str, kept: str) -> None:
    found = select(tasks("a", "b", c="a b", d="a", e="c d"), only, start)
    assert "".join(found.names) == kept
    assert all(needed in found.names for item in found.tasks for needed in item.needs)


def test_select_names_the_nearest_task() -> None:
    with pytest.raises(InvalidInput, match=r'task "tets": not in the list, did you mean "test"\?'):
        select(tasks("test"), ["tets"])


def test_a_key_changes_with_all_that_a_task_does_and_with_nothing_else() -> None:
    base = {"env": {"A": "1"}, "tasks": [{"name": "a", "run": "x"}, {"name": "b", "run": "y"}]}
    key = task_list(base).key("a")
    assert task_list({**base, "parallel": 9, "description": "x", "timeout": 5}).key("a") == key
    assert task_list({**base, "env": {"A": "2"}}).key("a") != key
    assert task_list({**base, "tasks": [{"name": "a", "run": "z"}, {"name": "b", "run": "y"}]}).key("a") != key
    assert task_list({**base, "tasks": [{"name": "a", "run": "x"}, {"name": "b", "run": "z"}]}).key("a") == key


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.binary(max_size=2)
WORDS = st.sampled_from(["a", "b", "a b", "", "../x", "30s", "claude", "stop", "\ud800", "\0", "(", "API_TOKEN", "*"])
VALUES = st.recursive(
    SCALARS | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.just("rc"), inner, max_size=3),
    max_leaves=5,
)
TASKS = st.dictionaries(st.sampled_from(task_lists.TASK_KEYS), VALUES, max_size=6)
SHAPED = st.builds(
    lambda head, items: {**head, "tasks": items},
    st.dictionaries(st.sampled_from(task_lists.KEYS), VALUES, max_size=4),
    st.lists(
        TASKS | st.builds(lambda name, rest: {**rest, "name": name, "run": "x"}, st.sampled_from("abc"), TASKS),
        max_size=4,
    ),
)


@given(VALUES | SHAPED)
def test_any_input_gives_a_list_or_a_sentence(data: Any) -> None:
    try:
        found = task_list(data)
    except FleetError:
        return
    assert task_list(found.to_dict()) == found
    assert len(found.hash) == 64
    VALIDATOR.validate(found.to_dict())
