# SPDX-License-Identifier: GPL-3.0-or-later
"""gcluster's protocol, message by message. Its own clients are written in Go and are not run here: what they send and
read was taken from their source (src/cluster/{protocol,object,server,steerclient}.go, src/cmd/gcluster/main.go)."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autovibe_fleet.gcluster import messages, peers
from autovibe_fleet.gcluster.messages import Message, message
from fleet_core.errors import FleetError, InvalidInput

from .conftest import FORM, Bridge, agent

# Go reads these times, and no others (time.RFC3339).
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


def test_apply_creates_updates_and_leaves_alone(start: Callable[..., Bridge]) -> None:
    peer = start("--no-start").peer()
    assert peer.apply(agent(), agent("tester")) == {
        "summary": {"created": ["builder", "tester"], "updated": [], "unchanged": []}
    }
    assert peer.apply(agent())["summary"]["unchanged"] == ["builder"]
    # gcluster's own id does not cover the bodies; here an edited body counts.
    assert peer.apply(agent(body="Build more."), agent("tester"))["summary"] == {
        "created": [],
        "updated": ["builder"],
        "unchanged": ["tester"],
    }


def test_apply_runs_what_is_new_as_gcluster_does(bridge: Bridge) -> None:
    steer = bridge.subscribed()
    assert steer.until(lambda state: True)["objects"] == []
    bridge.peer().apply(agent())
    state = steer.until(lambda state: len(state["runs"].get("builder", {}).get("iterations", [])) >= 2)
    (found,) = state["objects"]
    assert found["state"] == "running"
    assert found["id"] == found["current_revision"] == found["revisions"][0]["id"]
    assert found["id"] == "08e730bdcd38bc1d179975defe8a56367ac71dd72683828b2f21791c2736e588"
    assert found["definition"] == "; id=0281ec2f\n" + FORM.format(name="builder") + "\n"
    assert state["methods"] == {"builder": {"build": "Build it."}}
    assert state["pipelines"]["builder"] == {"steps": [{"label": "build", "kind": "loop", "loop_method": "build"}]}
    run = state["runs"]["builder"]
    assert run["revision_id"] == found["id"]
    assert [item["iteration"] for item in run["iterations"][:2]] == [1, 2]
    done = run["iterations"][0]
    assert {"type": "text", "content": "Build it."}.items() <= next(
        item for item in done["messages"] if item["content"] == "Build it."
    ).items()
    for moment in (run["started_at"], done["started_at"], done["finished_at"], found["revisions"][0]["timestamp"]):
        assert MOMENT.fullmatch(moment)
    live = steer.until(lambda state: "live_iter" in state["runs"]["builder"])["runs"]["builder"]["live_iter"]
    assert live["finished_at"] == "0001-01-01T00:00:00Z"


def test_an_older_client_sends_no_pipeline(start: Callable[..., Bridge]) -> None:
    peer = start("--no-start").peer()
    old = agent()
    del old["pipeline"]
    assert peer.apply(old)["summary"]["created"] == ["builder"]


def test_what_gcluster_has_no_words_for_stays(start: Callable[..., Bridge]) -> None:
    bridge = start("--no-start")
    own = {
        "name": "builder",
        "runner": "command",
        "command": "cat",
        "limits": {"iterations": 3},
        "methods": {"build": "Build it."},
        "pipeline": [{"loop": "build"}],
    }
    bridge.peer().apply()  # fleetd runs from here on
    bridge.call("agents.apply", items=[own])
    assert bridge.peer().apply(agent(body="Build more."))["summary"]["updated"] == ["builder"]
    definition = bridge.call("agents.revisions", name="builder")["revisions"][-1]["definition"]
    assert definition["limits"] == {"iterations": 3}
    assert definition["methods"] == {"build": "Build more."}


def test_every_kind_of_step_comes_and_goes(start: Callable[..., Bridge]) -> None:
    bridge = start("--no-start")
    text = (
        '(defagent "plan"\n  (pipeline\n    (step "spec" (call write))\n    (step "todo" (map spec split))\n'
        '    (step "build" (loop build))))'
    )
    bodies = {"write": "Write.", "split": "Split [item].", "build": "Build."}
    assert bridge.peer().apply(agent("plan", definition=text, methods=bodies))["summary"]["created"] == ["plan"]
    state = bridge.subscribed().until(lambda state: state["objects"])
    assert state["pipelines"]["plan"]["steps"] == [
        {"label": "spec", "kind": "simple", "method": "write"},
        {"label": "todo", "kind": "map", "map_method": "split", "map_ref": "spec"},
        {"label": "build", "kind": "loop", "loop_method": "build"},
    ]
    assert state["objects"][0]["definition"].endswith(text + "\n")


WRONG: list[tuple[Any, str]] = [
    (agent("tester", definition="(defagent"), "tester"),
    (agent("tester", definition=3), "definition: expected a text"),
    (agent("tester", definition=FORM.format(name="other")), 'its definition is that of "other"'),
    (agent("tester", methods={}), 'method "build": not defined'),
    (agent("tester", methods={"build": 3}), "methods: expected names with texts"),
    (agent("no name"), "no name"),
    ({"definition": "x"}, "agent 2: expected one with a name"),
    (agent(), "stands twice"),
    ("text", "agent 2: expected one with a name"),
]


@pytest.mark.parametrize(("second", "words"), WRONG)
def test_one_wrong_agent_applies_none(start: Callable[..., Bridge], second: Any, words: str) -> None:
    bridge = start("--no-start")
    answer = bridge.peer().apply(agent(), second)
    assert words in answer["error"]
    assert answer["summary"] == {"created": [], "updated": [], "unchanged": []}
    assert bridge.call("agents.list") == {"agents": []}


def test_messages_are_injected_and_methods_edited(bridge: Bridge) -> None:
    steer = bridge.subscribed()
    bridge.peer().apply(agent())
    steer.until(lambda state: state["runs"].get("builder", {}).get("iterations"))
    sent = time.monotonic()
    steer.send("steer_edit_prompt", {"agent_name": "builder", "method_name": "build", "new_body": "Build on."})
    steer.until(lambda state: state["methods"]["builder"]["build"] == "Build on.")
    assert time.monotonic() - sent < 1.0
    inject = {"agent_name": "builder", "step_label": "build", "iteration": 1, "message": "focus on tests"}
    steer.send("steer_inject", inject)
    steer.until(
        lambda state: any(
            "focus on tests" in item["content"]
            for turn in state["runs"]["builder"]["iterations"]
            for item in turn["messages"]
        )
    )
    (injection,) = bridge.call("agents.injections", name="builder")["injections"]
    assert (injection["state"], injection["sender"]) == ("delivered", "gcluster")
    assert [row["origin"] for row in bridge.call("agents.revisions", name="builder")["revisions"]] == ["apply", "edit"]


def test_two_steering_clients_see_the_same(bridge: Bridge) -> None:
    first, second = bridge.subscribed(), bridge.subscribed()
    bridge.peer().apply(agent())
    for steer in (first, second):
        steer.until(lambda state: state["objects"] and state["objects"][0]["name"] == "builder")


def test_a_change_made_elsewhere_is_pushed(start: Callable[..., Bridge]) -> None:
    bridge = start("--no-start")
    steer = bridge.subscribed()
    bridge.peer().apply(agent())
    steer.until(lambda state: state["objects"])
    bridge.call("agents.delete", names=["builder"])
    steer.until(lambda state: not state["objects"])


ERRORS: list[tuple[str, Any, str]] = [
    ("steer_inject", {"agent_name": "nobody", "message": "x"}, '"nobody": not known'),
    ("steer_inject", {"agent_name": "nobody", "message": " "}, "message: expected a text"),
    ("steer_inject", {"message": "x"}, "agent_name: expected a text"),
    ("steer_inject", [], "expected a payload"),
    ("steer_edit_prompt", {"agent_name": "nobody", "method_name": "m", "new_body": "x"}, '"nobody": not known'),
    ("steer_edit_prompt", {"agent_name": "a", "method_name": "m"}, "new_body: expected a text"),
    ("apply", {}, "expected type apply_request"),
]


def test_wrong_messages_get_one_error_and_the_connection_stays(start: Callable[..., Bridge]) -> None:
    peer = start("--no-start").peer()
    for kind, payload, words in ERRORS:
        peer.send(kind, payload)
        assert words in peer.error()
    assert peer.apply(agent())["summary"]["created"] == ["builder"]


@pytest.mark.parametrize(
    "line",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x16\x03\x01\x00\n",
        b"[]\n",
        b"{}\n",
        b'{"type": 3}\n',
        b"[" * 5000 + b"\n",
        b"x" * 1_100_000,
    ],
)
def test_what_is_no_message_ends_the_connection(start: Callable[..., Bridge], line: bytes) -> None:
    bridge = start("--no-start")
    peer = bridge.peer()
    # As a page in a browser would, with a request in the body.
    with contextlib.suppress(ConnectionError):
        peer.socket.sendall(line)
        peer.send("apply_request", {"agents": [agent()]})
    with contextlib.suppress(ConnectionError):
        kind, payload = peer.receive()
        assert kind == "error"
        assert payload["error"]
        assert peer.receive() == ("", None)
    assert bridge.peer().apply()["summary"]["created"] == []
    assert bridge.call("agents.list") == {"agents": []}


def test_the_end_is_announced_and_the_agents_go_on(bridge: Bridge) -> None:
    steer = bridge.subscribed()
    bridge.peer().apply(agent())
    steer.until(lambda state: state["objects"] and state["objects"][0]["state"] == "running")
    bridge.end(signal.SIGTERM)
    assert bridge.process.returncode == 0
    while (found := steer.receive())[0] == "steer_state":
        pass
    assert found == ("shutdown_notice", {"reason": "fleet gcluster is stopped; the agents go on"})
    assert bridge.call("agents.list")["agents"][0]["state"] == "running"


def test_a_port_in_use_is_one_sentence(bridge: Bridge) -> None:
    done = bridge.fleet("gcluster", "--port", str(bridge.port))
    assert done.returncode == 4
    assert done.stderr == (
        f"fleet: port {bridge.port} of 127.0.0.1: {os.strerror(98)}; gcluster may run already; --port takes another\n"
    )


def test_it_goes_on_when_fleetd_is_restarted(bridge: Bridge) -> None:
    steer = bridge.subscribed()
    bridge.peer().apply(agent())
    steer.until(lambda state: state["objects"])
    os.kill(bridge.call("daemon.status")["pid"], signal.SIGKILL)
    end = time.monotonic() + 20
    while "error" in bridge.peer().apply(agent(body="Another.")):
        assert time.monotonic() < end
    steer.until(lambda state: state["methods"]["builder"]["build"] == "Another.")


def test_a_client_that_reads_nothing_holds_up_nobody(bridge: Bridge) -> None:
    lazy = bridge.subscribed()
    steer = bridge.subscribed()
    bridge.peer().apply(agent(body="x" * 50_000))
    before = time.monotonic()
    steer.until(lambda state: len(state["runs"].get("builder", {}).get("iterations", [])) >= 5, 60)
    assert time.monotonic() - before < 30
    assert lazy.receive()[0] == "steer_state"


@pytest.mark.slow
def test_a_client_that_never_reads_is_cut_off(bridge: Bridge) -> None:
    lazy = socket.socket()
    lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    lazy.connect(("127.0.0.1", bridge.port))
    lazy.sendall(b'{"type":"steer_subscribe"}\n')
    assert bridge.peer().apply(agent(body="x" * 600_000), agent("other", "y" * 300_000))["summary"]["created"]
    end = time.monotonic() + 60
    with lazy, open("/proc/net/tcp", encoding="ascii") as table:
        ours = f"0100007F:{lazy.getsockname()[1]:04X}"
        while [ours, "01"] in [line.split()[2:4] for line in table]:  # 01: established
            assert time.monotonic() < end
            time.sleep(0.5)
            table.seek(0)


def test_it_listens_on_loopback_only(bridge: Bridge) -> None:
    with open("/proc/net/tcp", encoding="ascii") as table:
        listening = [line.split()[1] for line in table if line.split()[3] == "0A"]
    assert f"0100007F:{bridge.port:04X}" in listening
    assert f"00000000:{bridge.port:04X}" not in listening


def test_the_owner_of_a_connection_is_known() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        client = socket.create_connection(listener.getsockname())
        server, _address = listener.accept()
        with server:
            assert peers.allowed(server)
            client.close()  # the kernel shows it as root's now
            assert not peers.allowed(server)


# Any input


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_an_error(line: bytes) -> None:
    with contextlib.suppress(InvalidInput):
        message(line)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=10,
)
AGENTS = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["builder", "", "a b", "x" * 300]) | JSON,
        "definition": st.sampled_from([FORM.format(name="builder"), "(", '(defagent "builder" "x")']) | JSON,
        "methods": st.dictionaries(st.sampled_from(["build", "", "[x]"]), st.text(max_size=5) | JSON) | JSON,
        "pipeline": JSON,
    },
)


@given(st.lists(AGENTS | JSON, max_size=3) | JSON)
def test_any_apply_request_is_definitions_or_an_error(agents: Any) -> None:
    with contextlib.suppress(FleetError):
        found = messages.definitions(Message("apply_request", {"agents": agents}), {}, {"runner": "claude"})
        assert [item.name for item in found] == [item["name"] for item in agents]


@settings(max_examples=30)
@given(st.dictionaries(st.text(max_size=5), JSON, max_size=3), st.sampled_from(messages.REQUESTS))
def test_any_payload_has_a_text_or_an_error(payload: dict[str, Any], kind: str) -> None:
    found = message(json.dumps({"type": kind, "payload": payload}).encode())
    for key in payload:
        with contextlib.suppress(InvalidInput):
            assert isinstance(found.text(key), str)


@pytest.fixture(scope="module")
def shared() -> Iterator[Bridge]:
    """A bridge for tests that change nothing."""
    with tempfile.TemporaryDirectory(prefix="fleet-gc-") as folder:
        found = Bridge(Path(folder), "--no-start")
        yield found
        found.down()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(min_size=1, max_size=100).filter(lambda line: line.strip())
    | st.builds(
        lambda kind, payload: json.dumps({"type": kind, "payload": payload}).encode(),
        st.sampled_from(["apply_request", "steer_inject", "steer_edit_prompt", "x"]),
        st.fixed_dictionaries({}, optional={"agents": st.lists(AGENTS, min_size=1, max_size=2), "agent_name": JSON})
        | JSON,
    )
)
def test_any_line_gets_one_error_and_the_next_client_is_served(shared: Bridge, line: bytes) -> None:
    peer = shared.peer()
    peer.socket.sendall(line.partition(b"\n")[0].partition(b"\r")[0] + b"\n")
    peer.socket.shutdown(socket.SHUT_WR)
    with contextlib.suppress(ConnectionError):
        while (found := peer.receive())[0]:
            assert found[0] in ("error", "apply_response")
            assert "unexpected" not in json.dumps(found[1])
            assert "could not work on" not in json.dumps(found[1])
    peer.close()
    assert shared.process.poll() is None


def test_a_state_too_large_for_a_client_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    from autovibe_fleet.gcluster.snapshot import Snapshot

    turn = {"iteration": 1, "messages": [{"id": "msg-1", "type": "text", "content": "x" * 1000}] * 10}
    live = {"iteration": 9, "messages": turn["messages"] * 50}
    snapshot = Snapshot()
    snapshot._runs = {
        "a": {"name": "a", "iterations": [{**turn, "iteration": n} for n in range(20)], "live_iter": live}
    }
    monkeypatch.setattr(messages, "LONGEST_STATE", 100_000)
    line = snapshot.line()
    assert len(line) <= 100_000
    run = json.loads(line)["payload"]["runs"]["a"]
    assert run["live_iter"]["messages"]
    assert len(snapshot._runs["a"]["iterations"]) == 20
