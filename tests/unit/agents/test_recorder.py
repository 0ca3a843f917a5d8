# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run records: in the store first, without secrets, and reported to whoever listens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autovibe_fleet.agents import recorder as recorder_module
from autovibe_fleet.agents.recorder import Recorder, secrets_of, total
from fleet_core.agents import agent_definition
from fleet_node.agents import AgentStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[AgentStore]:
    store = AgentStore(tmp_path / "state")
    item = {"name": "a", "runner": "command", "command": "cat", "methods": {"m": "x"}}
    store.put_agents([(agent_definition(item), "apply")])
    yield store
    store.close()


def iteration(store: AgentStore) -> int:
    run = store.unfinished_run("a")
    ident = run["id"] if run else store.begin_run("a", 1)
    return int(store.begin_iteration(ident, "a", "m", 1, "token")["id"])


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        ({"API_TOKEN": "hunter22", "PATH": "/bin/hunter"}, {"hunter22"}),
        ({"MY_PASSWORD": "abc", "OTHER_SECRET": ""}, set()),
        ({"KEY_SECRET": "first line\nsecond line\n"}, {"first line\nsecond line\n", "first line", "second line"}),
    ],
)
def test_values_of_variables_with_secret_names_are_secrets(environ: dict[str, str], found: set[str]) -> None:
    assert found <= set(secrets_of(environ))
    assert all(len(value) >= 4 for value in secrets_of(environ))
    assert secrets_of({"A_TOKEN": "long-secret", "B_TOKEN": "long-secret-2"})[0] == "long-secret-2"


def test_messages_are_in_the_store_before_they_are_reported(store: AgentStore, tmp_path: Path) -> None:
    seen: list[tuple[str, bool]] = []

    def report(event: dict[str, Any]) -> None:
        stored = [row["id"] for row in store.messages("a")]
        seen.append((event["content"], event["id"] in stored))

    async def run() -> None:
        recorder = Recorder(store, "a", tmp_path, ("hunter22",), report)
        recorder.open(1)
        ident = iteration(store)
        for number in range(50):
            recorder.message(ident, "text", f"{number} hunter22", {"input": {"hunter22": ["hunter22", 1, None, True]}})
        await asyncio.sleep(0.05)
        recorder.close()

    asyncio.run(run())
    assert [content for content, _stored in seen] == [f"{number} ********" for number in range(50)]
    assert all(stored for _content, stored in seen)
    assert store.messages("a")[0]["detail"] == {"input": {"********": ["********", 1, None, True]}}
    lines = [json.loads(line) for line in (tmp_path / "run-1.jsonl").read_text().splitlines()]
    assert [line["content"] for line in lines] == [content for content, _stored in seen]


def test_messages_of_one_iteration_never_go_to_the_next(store: AgentStore, tmp_path: Path) -> None:
    async def run() -> list[int]:
        recorder = Recorder(store, "a", tmp_path, (), lambda event: None)
        idents = [iteration(store) for _number in range(3)]
        for ident in idents:
            for text in ("one", "two"):
                recorder.message(ident, "text", text)
        recorder.close()
        return idents

    idents = asyncio.run(run())
    assert [row["iteration"] for row in store.messages("a")] == [ident for ident in idents for _text in "ab"]


def test_a_run_is_reported_without_the_bulk_of_its_position(store: AgentStore, tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    ident = store.begin_run("a", 1, position={"step": "m", "results": {"m": "x" * 1000}})
    Recorder(store, "a", tmp_path, (), seen.append).told("run", store.run(ident))
    assert seen[0]["position"] == {"step": "m"}
    assert (seen[0]["kind"], seen[0]["agent"]) == ("run", "a")


def test_usage_is_summed_from_messages() -> None:
    rows = [
        {"type": "usage", "detail": {"input_tokens": 3, "cost": 0.5}},
        {"type": "text", "detail": {}},
        {"type": "usage", "detail": {"input_tokens": 4, "output_tokens": 1}},
    ]
    assert total(rows) == {"input_tokens": 7, "cost": 0.5, "output_tokens": 1}


def test_what_a_killed_process_had_stored_but_not_told_is_told_by_the_next(store: AgentStore, tmp_path: Path) -> None:
    ident = iteration(store)
    rows = store.add_messages(ident, [{"type": "text", "content": str(number)} for number in range(4)])
    store.end_iteration(ident, "succeeded")
    path = tmp_path / "run-1.jsonl"
    told = [json.dumps({**row, "kind": "message"}) for row in rows[:2]]
    path.write_text("\n".join([*told, json.dumps({**rows[2], "kind": "message"})[:20]]))
    seen: list[dict[str, Any]] = []
    for _time in range(2):  # the second time there is nothing to add to the file
        recorder = Recorder(store, "a", tmp_path, (), seen.append)
        recorder.open(1)
        recorder.catch_up(store.iteration(ident))
        recorder.close()
    lines = path.read_text().split("\n")
    assert [json.loads(line)["id"] for line in [*lines[:2], *lines[3:5]]] == [row["id"] for row in rows]
    assert json.loads(lines[5])["kind"] == "iteration"
    assert lines[6:] == [""]
    assert {event["id"] for event in seen if event["kind"] == "message"} == {row["id"] for row in rows}


def test_what_a_tool_was_given_is_kept_in_part_if_it_is_too_much(store: AgentStore, tmp_path: Path) -> None:
    async def run() -> None:
        recorder = Recorder(store, "a", tmp_path, ("hunter22",), lambda event: None)
        given = {"files": ["x" * 60_000] * 100, "key": "hunter22"}
        recorder.message(iteration(store), "tool_use", "write", {"name": "write", "input": given})
        recorder.flush()

    asyncio.run(run())
    (row,) = store.messages("a")
    assert row["detail"]["name"] == "write"
    assert row["detail"]["input"].startswith('{"files": ["xxx')
    assert "left out" in row["detail"]["input"]
    assert len(json.dumps(row["detail"])) < 100_000
    assert "hunter22" not in json.dumps(row)


def test_an_iteration_that_tells_without_end_does_not_fill_the_disk(
    store: AgentStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "_MOST", 10_000)

    async def run() -> None:
        recorder = Recorder(store, "a", tmp_path, (), lambda event: None)
        for ident in (iteration(store), iteration(store)):
            for _number in range(1000):
                recorder.message(ident, "text", "x" * 400)
            recorder.message(ident, "usage", "", {"cost": 1.5})
        recorder.flush()

    asyncio.run(run())
    kinds = [row["type"] for row in store.messages("a", limit=10_000)]
    assert kinds == 2 * [*["text"] * 19, "error", "usage"]


def test_numbers_that_json_does_not_have_are_texts() -> None:
    recorder = Recorder(None, "a", Path(), (), lambda event: None)  # type: ignore[arg-type]
    assert recorder.clean({"a": [float("nan"), float("-inf"), 1.5]}) == {"a": ["nan", "-inf", 1.5]}
