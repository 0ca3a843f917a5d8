# SPDX-License-Identifier: GPL-3.0-or-later
"""Agents through fleetd's socket: definitions and revisions, steering messages, events. Nothing here needs a runner."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fleet_core.errors import Conflict, FleetError, InvalidInput, NotFound
from fleet_node import paths
from fleet_node.agents import AgentStore
from fleet_node.client import Client, connect

from .fleetd import Fleet, running, wait_for


@pytest.fixture
def fleet(state_dir: Path) -> Iterator[Fleet]:
    with running(state_dir) as found:
        yield found


@pytest.fixture
def store(fleet: Fleet) -> Iterator[AgentStore]:
    """The agents database, as a run process has it open beside fleetd."""
    opened = AgentStore(fleet.folder)
    yield opened
    opened.close()


def agent(name: str = "builder", body: str = "Build it.", **fields: Any) -> dict[str, Any]:
    return {
        "name": name,
        "runner": "command",
        "command": "cat",
        "methods": {"build": body, "check": "Check it."},
        "pipeline": [{"loop": "build", "times": 2}, {"call": "check"}],
        **fields,
    }


def apply(fleet: Fleet, *items: dict[str, Any], state: str = "present") -> dict[str, Any]:
    found: dict[str, Any] = fleet.call("agents.apply", items=list(items), state=state)
    return found


def shown(fleet: Fleet, name: str = "builder") -> dict[str, Any]:
    (found,) = fleet.call("agents.list", names=[name])["agents"]
    return dict(found)


class Listener:
    """Subscribes, and collects what it is told in a thread."""

    def __init__(self, fleet: Fleet, **filters: Any) -> None:
        self.events: list[dict[str, Any]] = []
        self._client = Client(fleet.folder, timeout=30)
        stream = self._client.stream("events.subscribe", **filters)
        self._thread = threading.Thread(target=self._collect, args=(stream,), daemon=True)
        self._thread.start()

    def _collect(self, stream: Iterator[dict[str, Any]]) -> None:
        try:
            self.events.extend(stream)
        except (FleetError, OSError, ValueError, AttributeError):
            return  # closed

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in list(self.events) if event["kind"] == kind]


# Definitions


def test_apply_is_idempotent_and_tells_what_it_did(fleet: Fleet) -> None:
    first = apply(fleet, agent("a"), agent("b"))
    assert first["summary"] == {"created": ["a", "b"], "updated": [], "unchanged": [], "removed": []}
    assert [(item["name"], item["state"], item["revision"]) for item in first["agents"]] == [
        ("a", "stopped", 1),
        ("b", "stopped", 1),
    ]
    plan = fleet.call("agents.plan", items=[agent("a"), agent("b", "Better.")])
    assert plan["change"]["actions"] == ["update agent b"]
    assert shown(fleet, "b")["revision"] == 1
    second = apply(fleet, agent("a"), agent("b", "Better."))
    assert second["summary"] == {"created": [], "updated": ["b"], "unchanged": ["a"], "removed": []}
    third = apply(fleet, agent("a"), agent("b", "Better."))
    assert third["change"]["actions"] == []
    assert [row["number"] for row in fleet.call("agents.revisions", name="a")["revisions"]] == [1]


def test_one_bad_definition_stops_them_all(fleet: Fleet) -> None:
    for bad in (agent("b", colour="red"), agent("b", pipeline=[{"call": "nothing"}]), {"name": "b"}, agent("a")):
        with pytest.raises(FleetError):
            apply(fleet, agent("a"), bad)
    assert fleet.call("agents.list")["agents"] == []


def test_revisions_are_kept_and_an_earlier_one_comes_back(fleet: Fleet) -> None:
    apply(fleet, agent(body="one"))
    first = shown(fleet)
    apply(fleet, agent(body="two"))
    edited = fleet.call("agents.edit", name="builder", method="build", body="three", base_revision=2)
    assert edited["change"]["actions"] == ["update agent builder"]
    assert edited["agents"][0]["revision"] == 3
    back = fleet.call("agents.rollback", name="builder", revision=1)
    assert back["agents"][0]["revision"] == 4
    assert back["agents"][0]["id"] == first["id"]
    revisions = fleet.call("agents.revisions", name="builder")["revisions"]
    assert [(row["origin"], row["definition"]["methods"]["build"]) for row in revisions] == [
        ("apply", "one"),
        ("apply", "two"),
        ("edit", "three"),
        ("rollback", "one"),
    ]
    assert revisions[0]["legacy_id"] == revisions[2]["legacy_id"]  # gcluster's id does not tell bodies apart
    again = fleet.call("agents.rollback", name="builder", revision=1)
    assert (again["change"]["actions"], again["agents"][0]["revision"]) == ([], 4)
    with pytest.raises(NotFound, match="no revision 9; the newest is 4"):
        fleet.call("agents.rollback", name="builder", revision=9)


def test_an_edit_of_what_was_changed_meanwhile_is_a_conflict(fleet: Fleet) -> None:
    apply(fleet, agent())
    fleet.call("agents.edit", name="builder", method="build", body="mine", base_revision=1)
    with pytest.raises(Conflict, match="revision 1, but 2 is current"):
        fleet.call("agents.edit", name="builder", method="build", body="theirs", base_revision=1)
    with pytest.raises(NotFound, match=r'method "bild".*build'):
        fleet.call("agents.edit", name="builder", method="bild", body="x")
    with pytest.raises(InvalidInput, match="body"):
        fleet.call("agents.edit", name="builder", method="build", body="")
    assert shown(fleet)["revision"] == 2


def test_eight_appliers_at_once_leave_one_story(fleet: Fleet) -> None:
    failures: list[BaseException] = []
    updated: list[str] = []

    def work(number: int) -> None:
        try:
            with Client(fleet.folder, timeout=60) as client:
                for turn in range(5):
                    items = [agent("shared", f"{number} {turn}"), agent(f"own-{number}", str(turn))]
                    summary = client.call("agents.apply", items=items)["summary"]
                    updated.extend(name for key in ("created", "updated") for name in summary[key])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    revisions = fleet.call("agents.revisions", name="shared")["revisions"]
    assert [row["number"] for row in revisions] == list(range(1, 41))
    assert updated.count("shared") == 40
    for number in range(8):
        own = fleet.call("agents.revisions", name=f"own-{number}")["revisions"]
        assert [row["definition"]["methods"]["build"] for row in own] == [str(turn) for turn in range(5)]
        mine = [row["definition"]["methods"]["build"] for row in revisions]
        assert [body for body in mine if body.startswith(f"{number} ")] == [f"{number} {turn}" for turn in range(5)]


def test_agents_are_there_after_fleetd_was_killed(fleet: Fleet) -> None:
    apply(fleet, agent("a"), agent("b", schedule={"every": "1h"}))
    fleet.call("agents.inject", name="a", text="hello")
    before = fleet.call("agents.list")["agents"]
    fleet.again()
    assert fleet.call("agents.list")["agents"] == before
    assert fleet.call("daemon.status")["agents"] == {"stopped": 2}


def test_a_request_that_fleetd_was_killed_in_is_whole_or_not_there(fleet: Fleet) -> None:
    for turn in range(3):
        stopped = threading.Event()

        def work(turn: int = turn, stopped: threading.Event = stopped) -> None:
            number = 0
            with Client(fleet.folder, timeout=10) as client:
                while not stopped.is_set():
                    number += 1
                    try:
                        client.call("agents.apply", items=[agent(name, f"{turn} {number}") for name in ("a", "b", "c")])
                    except FleetError:
                        return

        thread = threading.Thread(target=work)
        thread.start()
        time.sleep(0.3 + 0.1 * turn)
        fleet.end(signal.SIGKILL)
        stopped.set()
        thread.join(30)
        fleet.up()
        found = {name: fleet.call("agents.revisions", name=name)["revisions"] for name in ("a", "b", "c")}
        bodies = {name: [row["definition"]["methods"]["build"] for row in rows] for name, rows in found.items()}
        assert bodies["a"] == bodies["b"] == bodies["c"]
        assert [row["number"] for row in found["a"]] == list(range(1, len(found["a"]) + 1))


def test_fleetd_ends_cleanly_amid_requests(fleet: Fleet, store: AgentStore) -> None:
    apply(fleet, agent())
    run = store.begin_run("builder", 1)
    made = store.begin_iteration(run, "builder", "build", 1, "")
    store.add_messages(made["id"], [{"type": "text", "content": "x" * 500}] * 5000)

    def work() -> None:
        with Client(fleet.folder, timeout=10) as client, contextlib.suppress(FleetError):
            while True:
                client.call("agents.messages", name="builder", limit=5000)
                client.call("agents.inject", name="builder", text="x")

    threads = [threading.Thread(target=work) for _number in range(6)]
    for thread in threads:
        thread.start()
    time.sleep(0.7)
    fleet.end(signal.SIGTERM)
    for thread in threads:
        thread.join(30)
    assert fleet.daemon is not None
    assert fleet.daemon.returncode == 0, fleet.log()
    assert "Traceback" not in fleet.log()
    fleet.up()


def test_absent_removes_an_agent_and_its_history(fleet: Fleet, store: AgentStore) -> None:
    apply(fleet, agent())
    run = store.begin_run("builder", 1)
    made = store.begin_iteration(run, "builder", "build", 1, "")
    store.add_messages(made["id"], [{"type": "text", "content": "hello"}])
    folder = paths.agents(fleet.folder) / "builder"
    folder.mkdir(parents=True)
    (folder / "run-1.jsonl").write_text("{}\n")
    found = apply(fleet, {"name": "builder"}, {"name": "unknown"}, state="absent")
    assert found["change"]["actions"] == ["remove agent builder"]
    assert found["agents"] == []
    assert not folder.exists()
    with pytest.raises(NotFound, match="builder"):
        fleet.call("agents.delete", names=["builder"])
    apply(fleet, agent())
    assert fleet.call("agents.runs", name="builder")["runs"] == []


@pytest.mark.parametrize(
    ("method", "params", "error", "message"),
    [
        ("agents.apply", {"items": {}}, InvalidInput, "expected a list of agents"),
        ("agents.apply", {"items": [{"name": "A b"}]}, InvalidInput, "agent"),
        ("agents.apply", {"items": [], "state": "asleep"}, InvalidInput, "expected present"),
        ("agents.list", {"names": ["bilder"]}, NotFound, 'agent "bilder": not known.*builder'),
        ("agents.list", {"names": "builder"}, InvalidInput, "names: expected a list"),
        ("agents.start", {"names": ["bilder"]}, NotFound, "builder"),
        ("agents.stop", {"names": ["bilder"]}, NotFound, "builder"),
        ("agents.pause", {"names": ["builder"]}, Conflict, 'agent "builder": does not run'),
        ("agents.interrupt", {"names": ["builder"]}, Conflict, "does not run"),
        ("agents.start", {"names": ["builder"], "continue_run": True}, Conflict, "no run to go on with"),
        ("agents.start", {"names": ["builder"], "continue_run": True, "again": True}, InvalidInput, "found both"),
        ("agents.inject", {"name": "builder", "text": " "}, InvalidInput, "empty text"),
        ("agents.inject", {"name": "builder", "text": "x", "step": "biuld"}, NotFound, 'step "biuld".*build'),
        ("agents.inject", {"name": "builder", "text": "x", "iteration": 7}, NotFound, "no iteration with the id 7"),
        ("agents.messages", {"name": "bilder"}, NotFound, "builder"),
        ("agents.messages", {"name": "builder", "limit": 0}, InvalidInput, "limit: expected 1 to"),
        ("agents.iterations", {"name": "builder", "before": "now"}, InvalidInput, "before: expected a whole number"),
        ("agents.rollback", {"name": "builder", "revision": True}, InvalidInput, "revision: expected a whole number"),
        ("runs.report", {"agent": "builder", "events": [{"kind": "process"}]}, InvalidInput, "of a kind run"),
        ("events.subscribe", {"kinds": ["weather"]}, InvalidInput, 'found "weather"'),
        ("events.subscribe", {"agents": "builder"}, InvalidInput, "agents: expected a list"),
        ("events.subscribe", {"colour": "red"}, InvalidInput, "colour"),
    ],
)
def test_a_wrong_request_is_one_sentence(
    fleet: Fleet, method: str, params: dict[str, Any], error: type[Exception], message: str
) -> None:
    apply(fleet, agent())
    with pytest.raises(error, match=message) as caught:
        fleet.call(method, **params)
    assert "\n" not in str(caught.value)
    assert shown(fleet)["revision"] == 1


def test_the_environment_of_agents_is_not_for_others(fleet: Fleet, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="fleet run builder"):
        fleet.apply({"id": "agents/builder", "command": "sleep 9"})
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / ".runcept.toml").write_text(
        '[environment]\nname = "agents"\n[processes.web]\ncommand = "sleep 600"\n'
    )
    with pytest.raises(FleetError, match="kept for agents"):
        fleet.call("environments.activate", path=str(tmp_path / "agents"))


# Steering messages while no run process is there


def test_a_message_waits_until_the_agent_runs(fleet: Fleet, store: AgentStore) -> None:
    apply(fleet, agent())
    listener = Listener(fleet, kinds=["injection", "control"], agents=["builder"])
    rows = [
        fleet.call("agents.inject", name="builder", text=text, step="build", sender="me")["injection"]
        for text in ("one", "two")
    ]
    assert [row["state"] for row in rows] == ["queued", "queued"]
    assert shown(fleet)["queued"] == 2
    assert [row["text"] for row in store.injections("builder", ["queued"])] == ["one", "two"]
    run = store.begin_run("builder", 1)  # what a run process does
    made = store.begin_iteration(run, "builder", "build", 1, "")
    for state in ("sent", "delivered"):
        moved = store.move_injections([rows[0]["id"]], state, iteration=made["id"])
        fleet.call("runs.report", agent="builder", events=[{"kind": "injection", **row} for row in moved])
    store.end_iteration(made["id"], "succeeded")
    late = fleet.call("agents.inject", name="builder", text="three", iteration=made["id"])["injection"]
    assert (late["state"], late["reason"]) == ("refused", "iteration 1 has ended: succeeded")
    found = fleet.call("agents.injections", name="builder")["injections"]
    assert [row["state"] for row in found] == ["delivered", "queued", "refused"]
    assert found[0]["delivered_in"] == made["id"]
    assert [
        row["id"] for row in fleet.call("agents.injections", name="builder", after=rows[0]["id"])["injections"]
    ] == [
        rows[1]["id"],
        late["id"],
    ]
    wait_for("all events", lambda: len(listener.of("injection")) == 5)
    told = [(event["text"], event["state"]) for event in listener.of("injection")]
    assert told == [
        ("one", "queued"),
        ("two", "queued"),
        ("one", "sent"),
        ("one", "delivered"),
        ("three", "refused"),
    ]
    assert [event["what"] for event in listener.of("control")] == ["injection", "injection"]


def test_messages_from_many_senders_are_told_in_the_order_of_their_ids(fleet: Fleet) -> None:
    apply(fleet, agent())
    listener = Listener(fleet, kinds=["injection"])

    def work(number: int) -> None:
        with Client(fleet.folder, timeout=60) as client:
            for turn in range(10):
                client.call("agents.inject", name="builder", text=f"{turn}", sender=str(number))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    wait_for("all events", lambda: len(listener.events) == 60)
    ids = [event["id"] for event in listener.events]
    assert ids == sorted(ids)
    for number in range(6):
        assert [event["text"] for event in listener.events if event["sender"] == str(number)] == [
            str(turn) for turn in range(10)
        ]


# History


def test_history_is_paged(fleet: Fleet, store: AgentStore) -> None:
    apply(fleet, agent())
    run = store.begin_run("builder", 1)
    for _number in range(3):
        made = store.begin_iteration(run, "builder", "build", 1, "")
        store.add_messages(made["id"], [{"type": "text", "content": "x"}] * 4)
        store.end_iteration(made["id"], "succeeded", usage={"input_tokens": 5}, cost=0.5)
    found = fleet.call("agents.iterations", name="builder", limit=2)["iterations"]
    assert [row["number"] for row in found] == [3, 2]
    rest = fleet.call("agents.iterations", name="builder", before=found[-1]["id"])["iterations"]
    assert [row["number"] for row in rest] == [1]
    messages = fleet.call("agents.messages", name="builder", limit=5)["messages"]
    more = fleet.call("agents.messages", name="builder", after=messages[-1]["id"])["messages"]
    assert [row["id"] for row in (*messages, *more)] == list(range(1, 13))
    last = fleet.call("agents.messages", name="builder", before=13, limit=2)["messages"]
    assert [row["id"] for row in last] == [11, 12]
    statistics = fleet.call("agents.statistics", name="builder", step="build")["statistics"]
    assert (statistics["iterations"], statistics["tokens"]["total"], statistics["cost"]) == (3, 15, 1.5)
    step = shown(fleet)["steps"][0]
    assert (step["label"], step["iterations"], step["last"]["number"]) == ("build", 3, 3)
    assert fleet.call("agents.runs", name="builder")["runs"][0]["state"] == "running"
    assert shown(fleet)["state"] == "stopped"  # whatever the run recorded: no process carries it


def test_a_run_whose_process_is_gone_is_ended_by_stop(fleet: Fleet, store: AgentStore) -> None:
    apply(fleet, agent())
    run = store.begin_run("builder", 1)
    made = store.begin_iteration(run, "builder", "build", 1, "token-of-nobody")
    fleet.call("agents.stop", names=["builder"])
    assert store.run(run)["state"] == "stopped"
    assert store.iteration(made["id"])["state"] == "interrupted"


def test_runs_go_on_all_or_none(fleet: Fleet, store: AgentStore) -> None:
    apply(fleet, agent("a"), agent("b"))
    run = store.begin_run("a", 1)
    store.update_run(run, state="limited", reason="the budget is spent")
    with pytest.raises(Conflict, match='agent "b": has no run to go on with'):
        fleet.call("agents.start", names=["a", "b"], continue_run=True)
    assert store.run(run)["state"] == "limited"


# Events


def test_subscribers_hear_what_they_asked_for(fleet: Fleet) -> None:
    everything = Listener(fleet)
    of_a = Listener(fleet, agents=["a"])
    runs = Listener(fleet, kinds=["run", "agent"])
    apply(fleet, agent("a"), agent("b"))
    for name in ("a", "b"):
        events = [{"kind": "run", "id": 1, "state": "running"}, {"kind": "message", "id": 1, "content": "x"}]
        fleet.call("runs.report", agent=name, events=events)
    fleet.start("other", "sleep 600")
    apply(fleet, {"name": "b"}, state="absent")
    wait_for("the removal", lambda: any(event.get("state") == "absent" for event in runs.events))
    wait_for("everything", lambda: any(event.get("state") == "absent" for event in everything.events))
    assert {event["kind"] for event in everything.events} >= {"process", "run", "message", "control", "agent"}
    assert {event["kind"] for event in runs.events} == {"run", "agent"}
    assert {event["agent"] for event in of_a.events} == {"a"}
    assert [event["content"] for event in of_a.of("message")] == ["x"]
    assert [(event["agent"], event["state"]) for event in runs.of("run")] == [("a", "running"), ("b", "running")]
    assert [(event["agent"], event["state"], event["previous"]) for event in runs.of("agent")] == [
        ("a", "stopped", ""),
        ("b", "stopped", ""),
        ("b", "absent", "stopped"),
    ]
    assert all(event["time"] > 0 for event in everything.events)


def test_a_revision_is_told_to_the_run_process(fleet: Fleet) -> None:
    apply(fleet, agent())
    listener = Listener(fleet, kinds=["control"], agents=["builder"])
    fleet.call("agents.edit", name="builder", method="build", body="new")
    wait_for("the revision", lambda: listener.events)
    assert (listener.events[0]["what"], listener.events[0]["revision"]) == ("revision", 2)


def test_a_subscriber_that_does_not_read_is_cut_off_and_keeps_nobody_waiting(fleet: Fleet) -> None:
    with connect(paths.socket(fleet.folder), 30) as deaf:
        deaf.sendall(b'{"jsonrpc":"2.0","id":1,"method":"events.subscribe","params":{"kinds":["message"]}}\n')
        assert b"result" in deaf.recv(4096)
        listener = Listener(fleet, kinds=["message"])
        event = {"kind": "message", "id": 1, "content": "x" * 100_000}
        slowest = 0.0
        for _number in range(40):
            began = time.monotonic()
            fleet.call("runs.report", agent="a", events=[event] * 10)
            slowest = max(slowest, time.monotonic() - began)
        wait_for("the one who reads has all", lambda: len(listener.events) == 400)
        assert slowest < 2.0
        memory = int(fleet.call("daemon.status")["memory"])
        assert memory < 150 * 1024 * 1024
        read = 0
        deaf.settimeout(10)
        while chunk := deaf.recv(1 << 20):  # what was on its way, then the end
            read += len(chunk)
        assert read < 40_000_000


def test_a_long_page_of_history_keeps_nobody_waiting(fleet: Fleet, store: AgentStore) -> None:
    apply(fleet, agent())
    run = store.begin_run("builder", 1)
    made = store.begin_iteration(run, "builder", "build", 1, "")
    store.add_messages(made["id"], [{"type": "text", "content": "x" * 2000}] * 5000)
    reader = threading.Thread(
        target=lambda: Client(fleet.folder, timeout=60).call("agents.messages", name="builder", limit=5000)
    )
    reader.start()
    slowest = 0.0
    while reader.is_alive():
        began = time.monotonic()
        fleet.call("daemon.status")
        slowest = max(slowest, time.monotonic() - began)
    assert slowest < 1.0


# Older and damaged state


def test_a_state_folder_without_agents_goes_on(state_dir: Path) -> None:
    with running(state_dir) as fleet:
        fleet.start("web", "sleep 600")
        fleet.end()
        for name in ("agents.db", "agents.db-wal", "agents.db-shm"):
            (state_dir / name).unlink(missing_ok=True)
        fleet.up()
        assert fleet.get("web")["status"] == "running"
        assert fleet.call("agents.list")["agents"] == []


def test_a_damaged_agents_database_is_kept_aside_and_said_so(state_dir: Path) -> None:
    with running(state_dir) as fleet:
        fleet.start("web", "sleep 600")
        apply(fleet, agent())
        fleet.end()
        for name in ("agents.db-wal", "agents.db-shm"):
            (state_dir / name).unlink(missing_ok=True)
        damage = os.urandom(20_000)
        (state_dir / "agents.db").write_bytes(damage)
        fleet.up()
        (kept,) = state_dir.glob("agents.db.corrupt-*")
        assert kept.read_bytes() == damage
        assert str(kept) in fleet.log()
        assert fleet.get("web")["status"] == "running"
        apply(fleet, agent())
        assert shown(fleet)["revision"] == 1


def test_a_writer_that_holds_the_database_does_not_stop_fleetd(fleet: Fleet) -> None:
    apply(fleet, agent())
    held = sqlite3.connect(fleet.folder / "agents.db", isolation_level=None)
    held.execute("BEGIN IMMEDIATE")
    waiting = threading.Thread(
        target=lambda: Client(fleet.folder, timeout=60).call("agents.inject", name="builder", text="x")
    )
    waiting.start()
    try:
        for _number in range(10):
            began = time.monotonic()
            fleet.call("daemon.status")
            assert time.monotonic() - began < 1.0
            time.sleep(0.05)
        assert shown(fleet)["queued"] == 0
    finally:
        held.execute("COMMIT")
        held.close()
    waiting.join(30)
    assert shown(fleet)["queued"] == 1
