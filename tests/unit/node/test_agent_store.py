# SPDX-License-Identifier: GPL-3.0-or-later
"""The agents database: revisions, runs, iterations, messages, injections; many writers, and writers that are killed."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import time

import pytest

from fleet_core.agents import agent_definition
from fleet_core.errors import Conflict, InvalidInput, NotFound
from fleet_node.agents import AgentStore
from fleet_node.store import Store


def definition(name="builder", body="Build it.", **fields):
    return agent_definition(
        {
            "name": name,
            "runner": "command",
            "command": "cat",
            "methods": {"build": body},
            "pipeline": [{"loop": "build"}],
            **fields,
        }
    )


@pytest.fixture
def store(tmp_path):
    opened = AgentStore(tmp_path / "state")
    yield opened
    opened.close()


@pytest.fixture
def running(store):
    """A store with one agent and one run of it."""
    store.put_agents([(definition(), "apply")])
    store.begin_run("builder", 1)
    return store


def iterate(store, agent="builder", run=1, step="build", **fields):
    return store.begin_iteration(run, agent, step, 1, "token", **fields)


# Definitions


def test_the_database_is_private_and_lies_beside_the_other_one(store):
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
    Store(store.folder).close()
    assert store.path.name == "agents.db"
    assert (store.folder / "fleet.db").exists()


def test_a_definition_comes_back_as_it_was(store):
    put = definition(env={"A": "ü"}, limits={"duration": "10m"})
    store.put_agents([(put, "apply")])
    assert store.definition("builder") == put
    assert store.definitions() == {"builder": put}
    row = store.agents()["builder"]
    assert (row["id"], row["revision"], row["desired"], row["interrupts"]) == (put.id, 1, "stopped", 0)
    assert row["next_run"] is None


def test_a_revision_is_added_only_when_the_id_changes(store):
    first, second = definition(), definition(body="Build it well.")
    for put in (first, first, second, second):
        store.put_agents([(put, "apply")])
    assert [row["number"] for row in store.revisions("builder")] == [1, 2]
    store.put_agents([(first, "rollback")])
    assert [(row["id"], row["origin"]) for row in store.revisions("builder")] == [
        (first.id, "apply"),
        (second.id, "apply"),
        (first.id, "rollback"),
    ]
    assert store.definition("builder", 2) == second
    with pytest.raises(NotFound, match="no revision 9; the newest is 3"):
        store.definition("builder", 9)


def test_definitions_are_written_all_or_not_at_all(store):
    with pytest.raises(InvalidInput, match="origin"):
        store.put_agents([(definition("one"), "apply"), (definition("two"), "nowhere")])
    assert store.agents() == {}


def test_an_edit_of_an_older_revision_is_a_conflict(store):
    store.put_agents([(definition(), "apply")])
    store.put_agents([(definition(body="b"), "edit")], {"builder": 1})
    with pytest.raises(Conflict, match="expected revision 1, found 2"):
        store.put_agents([(definition(body="c"), "edit")], {"builder": 1})
    assert store.definition("builder").method("build").body == "b"


def test_an_unknown_agent_is_an_error_that_names_the_nearest(store):
    store.put_agents([(definition(), "apply")])
    for ask in (
        lambda: store.agent("bilder"),
        lambda: store.revisions("bilder"),
        lambda: store.definition("bilder"),
        lambda: store.set_desired("bilder", "running"),
        lambda: store.interrupt("bilder"),
    ):
        with pytest.raises(NotFound, match="builder"):
            ask()


def test_what_is_wanted_is_recorded(store):
    store.put_agents([(definition(), "apply")])
    assert store.set_desired("builder", "paused")["desired"] == "paused"
    assert [store.interrupt("builder"), store.interrupt("builder")] == [1, 2]
    assert store.set_next_run("builder", 7.5)["next_run"] == 7.5
    with pytest.raises(InvalidInput, match="desired"):
        store.set_desired("builder", "sleeping")


def test_a_removed_agent_leaves_nothing_and_its_ids_are_not_given_again(running):
    made = iterate(running)
    (message,) = running.add_messages(made["id"], [{"type": "text", "content": "hello"}])
    injected = running.inject("builder", "faster")
    running.remove_agents(["builder", "unknown"])
    with sqlite3.connect(running.path) as connection:
        for table in ("agents", "revisions", "runs", "iterations", "steps", "messages", "injections"):
            assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,), table
    running.put_agents([(definition(), "apply")])
    assert running.agents()["builder"]["revision"] == 1
    run = running.begin_run("builder", 1)
    again = iterate(running, run=run)
    assert (run > 1, again["id"] > made["id"], again["number"]) == (True, True, 1)
    assert running.add_messages(again["id"], [{"type": "text"}])[0]["id"] > message["id"]
    assert running.inject("builder", "x")["id"] > injected["id"]


# Runs


def test_a_run_is_begun_written_and_finished(running):
    assert running.unfinished_run("builder")["state"] == "running"
    row = running.update_run(1, state="waiting", reason="backoff", position={"step": "build"})
    assert (row["state"], row["reason"], row["position"], row["finished"]) == (
        "waiting", "backoff", {"step": "build"}, None,
    )  # fmt: skip
    row = running.update_run(1, state="completed", totals={"iterations": 3})
    assert row["finished"] >= row["started"]
    assert row["totals"] == {"iterations": 3}
    assert running.unfinished_run("builder") is None
    assert running.begin_run("builder", 1, workspace={"path": "/w"}) == 2
    assert [item["id"] for item in running.runs("builder")] == [2, 1]
    assert running.last_runs()["builder"]["workspace"] == {"path": "/w"}
    assert running.update_run(2, state="stopped")["state"] == "stopped"
    assert running.update_run(2, state="running")["finished"] is None


def test_an_agent_has_one_unfinished_run(running):
    with pytest.raises(Conflict, match="not finished"):
        running.begin_run("builder", 1)
    running.update_run(1, state="failed")
    running.begin_run("builder", 1)
    with pytest.raises(Conflict, match="not finished"):
        running.update_run(1, state="running")
    assert running.run(1)["state"] == "failed"


@pytest.mark.parametrize(
    ("fields", "message"), [({"state": "asleep"}, "run state"), ({"colour": "red"}, 'found "colour"')]
)
def test_a_run_takes_only_what_it_knows(running, fields, message):
    with pytest.raises(InvalidInput, match=message):
        running.update_run(1, **fields)


def test_runs_need_their_agent(store):
    with pytest.raises(NotFound, match='agent "builder"'):
        store.begin_run("builder", 1)
    with pytest.raises(NotFound, match="run 5"):
        store.update_run(5, state="failed")


# Iterations and messages


def test_iterations_are_counted_for_each_agent(running):
    running.put_agents([(definition("other"), "apply")])
    other = running.begin_run("other", 1)
    rows = [iterate(running), iterate(running, agent="other", run=other), iterate(running, step="test")]
    assert [(row["agent"], row["number"]) for row in rows] == [("builder", 1), ("other", 1), ("builder", 2)]
    assert [row["id"] for row in running.iterations("builder")] == [3, 1]
    assert [row["id"] for row in running.iterations("builder", step="build")] == [1]
    assert [row["id"] for row in running.iterations("builder", before=3)] == [1]
    steps = running.steps()
    assert {step: item["iterations"] for step, item in steps["builder"].items()} == {"build": 1, "test": 1}
    assert running.steps(["builder"])["builder"]["test"]["last"]["number"] == 2


def test_an_iteration_ends_with_what_became_of_it(running):
    row = iterate(running, item="a", attempt_of=None, session="s")
    assert (row["state"], row["verification"], row["watchdog"], row["duration"]) == ("running", None, [], None)
    running.update_iteration(row["id"], pid=7, pid_started=1.5)
    row = running.end_iteration(
        row["id"],
        "failed",
        error="boom",
        usage={"input_tokens": 10, "output_tokens": 5, "cost": 0.25},
        verification={"ok": False},
        watchdog=["silence"],
    )
    assert (row["state"], row["error"], row["pid"], row["cost"], row["watchdog"]) == (
        "failed", "boom", 7, 0.25, ["silence"],
    )  # fmt: skip
    assert row["duration"] == pytest.approx(row["finished"] - row["started"])
    with pytest.raises(InvalidInput, match="iteration state"):
        running.end_iteration(row["id"], "fine")
    with pytest.raises(InvalidInput, match="number"):
        running.update_iteration(row["id"], number=9)


def test_statistics_tell_mean_and_deviation(running):
    for seconds, tokens, state in ((1.0, 10, "succeeded"), (3.0, 30, "failed")):
        row = iterate(running)
        running.end_iteration(row["id"], state, duration=seconds, usage={"input_tokens": tokens}, cost=0.5)
    iterate(running)
    found = running.statistics("builder")
    assert (found["iterations"], found["succeeded"], found["failed"], found["interrupted"]) == (3, 1, 1, 0)
    assert found["duration"] == {"mean": 2.0, "deviation": 1.0}
    assert found["tokens"] == {"mean": 20.0, "deviation": 10.0, "total": 40}
    assert found["cost"] == 1.0
    assert running.statistics("builder", step="other")["duration"] == {"mean": 0.0, "deviation": 0.0}


def test_messages_are_paged_in_both_directions(running):
    first, second = iterate(running)["id"], iterate(running)["id"]
    running.add_messages(first, [{"type": "text", "content": str(number)} for number in range(5)])
    running.add_messages(second, [{"type": "tool_use", "content": "x", "detail": {"name": "Bash"}}])

    def contents(**options):
        return [row["content"] for row in running.messages("builder", **options)]

    assert contents() == ["0", "1", "2", "3", "4", "x"]
    assert contents(limit=2) == ["0", "1"]
    assert contents(after=2, limit=2) == ["2", "3"]
    assert contents(before=5, limit=2) == ["2", "3"]
    assert contents(iteration=first, before=10**9, limit=2) == ["3", "4"]
    assert running.messages("builder", iteration=second)[0]["detail"] == {"name": "Bash"}
    assert running.messages("other", iteration=second) == []
    with pytest.raises(NotFound, match="iteration 99"):
        running.add_messages(99, [{"type": "text"}])


# Injections


def test_injections_move_in_the_order_they_came(running):
    ids = [running.inject("builder", text, sender="me")["id"] for text in ("one", "two", "three")]
    assert running.queued() == {"builder": 3}
    made = iterate(running)
    (sent,) = running.move_injections(ids[:1], "sent", iteration=made["id"])
    assert (sent["state"], sent["delivered_in"], sent["sender"]) == ("sent", made["id"], "me")
    assert running.move_injections(ids[:1], "delivered")[0]["delivered_in"] == made["id"]
    assert running.move_injections(ids[:2], "refused", "too late")[0]["id"] == ids[1]
    assert running.move_injections(ids[:2], "queued") == []
    assert [row["text"] for row in running.injections("builder", ["queued"])] == ["three"]
    assert [row["state"] for row in running.injections("builder")] == ["delivered", "refused", "queued"]
    assert [row["id"] for row in running.injections("builder", after=ids[1])] == [ids[2]]
    assert running.queued() == {"builder": 1}


def test_a_message_to_an_ended_iteration_is_refused_with_the_reason(running):
    made = iterate(running)
    assert running.inject("builder", "now", iteration=made["id"])["state"] == "queued"
    running.end_iteration(made["id"], "succeeded")
    row = running.inject("builder", "now", iteration=made["id"])
    assert (row["state"], row["reason"]) == ("refused", "iteration 1 has ended: succeeded")
    with pytest.raises(NotFound, match="no iteration with the id 99"):
        running.inject("builder", "now", iteration=99)
    with pytest.raises(InvalidInput, match="empty text"):
        running.inject("builder", " \n")
    with pytest.raises(NotFound, match='agent "nobody"'):
        running.inject("nobody", "hello")


# Many processes


def test_data_version_tells_of_the_writes_of_others(running):
    other = AgentStore(running.folder)
    before = running.data_version()
    running.inject("builder", "own")
    assert running.data_version() == before
    other.inject("builder", "theirs")
    assert running.data_version() != before
    other.close()


WRITER = """
import sys
from fleet_node.agents import AgentStore
store = AgentStore(sys.argv[1])
name, count = sys.argv[2], int(sys.argv[3])
run = store.begin_run(name, 1)
print("ready", flush=True)
number = 0
while count < 0 or number < count:
    row = store.begin_iteration(run, name, "build", 1, "token")
    with store.transaction():
        store.add_messages(row["id"], [{"type": "text", "content": "a"}, {"type": "text", "content": "b"}])
        store.end_iteration(row["id"], "succeeded", usage={"input_tokens": 1})
    store.inject("shared", f"{name} {number}")
    number += 1
"""


def writer(store, name, count):
    words = [sys.executable, "-c", WRITER, os.fspath(store.folder), name, str(count)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def test_several_processes_write_at_once_and_nothing_is_lost(store):
    names = ["one", "two", "three", "four"]
    store.put_agents([(definition(name), "apply") for name in (*names, "shared")])
    writers = [writer(store, name, 25) for name in names]
    assert [process.wait(60) for process in writers] == [0] * 4
    for process in writers:
        process.stdout.close()
    for name in names:
        assert [row["number"] for row in store.iterations(name)] == list(range(25, 0, -1))
        assert len(store.messages(name)) == 50
        assert store.statistics(name)["succeeded"] == 25
    injected = store.injections("shared")
    ids = [row["id"] for row in injected]
    assert len(set(ids)) == 100
    assert ids == sorted(ids)
    for name in names:  # each one's messages are in its own order
        assert [row["text"] for row in injected if row["text"].startswith(f"{name} ")] == [
            f"{name} {number}" for number in range(25)
        ]


def test_a_killed_writer_leaves_whole_transactions_only(store):
    store.put_agents([(definition("one"), "apply"), (definition("shared"), "apply")])
    for number in range(3):
        process = writer(store, "one", -1)
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.1 + 0.05 * number)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        run = store.unfinished_run("one")
        assert run is not None
        for row in store.iterations("one", run=run["id"], limit=10_000):
            messages = store.messages("one", iteration=row["id"])
            assert len(messages) == (2 if row["state"] == "succeeded" else 0)
        store.update_run(run["id"], state="stopped")
    assert [row["number"] for row in store.iterations("one", limit=1)] == [store.steps()["one"]["build"]["iterations"]]


def test_a_damaged_database_is_kept_aside_and_the_other_one_is_not_touched(tmp_path):
    main = Store(tmp_path)
    main.put_setting("mark", 1)
    AgentStore(tmp_path).close()
    for suffix in ("-wal", "-shm"):
        if os.path.exists(tmp_path / f"agents.db{suffix}"):
            os.unlink(tmp_path / f"agents.db{suffix}")
    (tmp_path / "agents.db").write_bytes(b"no database" * 1000)
    second = AgentStore(tmp_path)
    assert second.kept_aside is not None
    assert second.kept_aside.name.startswith("agents.db.corrupt-")
    assert second.agents() == {}
    assert main.setting("mark") == 1
    second.close()
    main.close()


def test_long_messages_come_in_smaller_pages(running):
    made = iterate(running)["id"]
    running.add_messages(made, [{"type": "text", "content": "x" * 5_000_000} for _number in range(3)])
    assert [row["id"] for row in running.messages("builder")] == [1]
    assert [row["id"] for row in running.messages("builder", after=1)] == [2]
    assert [row["id"] for row in running.messages("builder", before=4)] == [3]


def test_halves_of_characters_are_no_trouble(running):
    made = iterate(running, item="\ud83d")
    (message,) = running.add_messages(made["id"], [{"type": "text", "content": "a\ud83d", "detail": {"k": "\udc00"}}])
    assert message["content"] == running.messages("builder")[0]["content"] == "a?"
    assert running.messages("builder")[0]["detail"] == {"k": "\udc00"}
    assert running.end_iteration(made["id"], "failed", error="\ud83d", result="\ud83d")["error"] == "?"
    assert running.update_run(1, reason="\ud83d")["reason"] == "?"
    assert running.inject("builder", "x\ud83d", sender="\ud83d")["text"] == "x?"
    with pytest.raises(InvalidInput, match="at most"):
        running.inject("builder", "x" * 2_000_000)
