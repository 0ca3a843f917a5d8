# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine on a gateway with real rules, resolvers and connections: changes, kills, repairs, removal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.requirements import require_tool
from tests.system.network import internet
from tests.system.network.lab import Lab, wait_for
from tests.system.network.mitmproxy import mitmdump
from tests.system.network.product import Product, running

from fleet_core.egress_live import live_change
from fleet_core.errors import ProcessFailed, Unavailable
from fleet_node import egress_denial_log, egress_engine, egress_nftables, egress_proxies
from fleet_node.egress_backends import backend
from fleet_node.egress_report import report
from fleet_node.egress_store import DENIALS, METRICS

ALLOWED, ALLOWED_2 = internet.HOSTS["allowed"][0], internet.HOSTS["allowed-2"][0]
CDN, FORBIDDEN = internet.HOSTS["cdn"][0], internet.HOSTS["forbidden"][0]


@pytest.fixture(scope="module")
def product(lab: Lab) -> Iterator[Product]:
    for tool in ("nft", "dnsmasq", "conntrack"):
        require_tool(tool, "to put a network policy in force")
    with running(lab) as product:
        yield product


def wanted(lab: Lab, *allow: Any, **values: Any) -> dict[str, Any]:
    """A document in which machines may reach what is given, on all ports of TCP."""
    return lab.document({"default": {"allow": list(allow)}}, **values)


def opens(lab: Lab, name: str, port: int = 22, machine: str = "web-1") -> bool:
    """Ask for a name and connect to what it leads to."""
    probe = lab.machines[machine].probe
    answers = probe("dns", server="192.168.100.1", name=name, kind="A").get("answers") or []
    return bool(answers) and probe("tcp", address=answers[0], port=port)["outcome"] == "open"


def hold(lab: Lab, name: str, address: str, machine: str = "web-1") -> None:
    """Open a connection that stays."""
    assert lab.machines[machine].probe("open", name=name, address=address, port=22)["outcome"] == "open"


def answers(lab: Lab, name: str, machine: str = "web-1") -> bool:
    """Tell whether a connection that stays still goes on."""
    return bool(lab.machines[machine].probe("say", name=name, timeout=1.5)["outcome"] == "open")


def test_applying_again_changes_nothing_and_check_mode_writes_nothing(lab: Lab, product: Product) -> None:
    document = wanted(lab, "allowed.example:any")
    with lab.gateway.inside():
        planned = product.engine.plan(document)
    assert planned.change.changed
    assert not (product.folder / "egress" / "applied").exists()
    first = product.apply(document)
    assert "load the rules with nftables" in first.change.actions
    assert any("11." not in one["after"] and one["after"] for one in first.diff)
    assert product.apply(document).change.actions == ()
    with lab.gateway.inside():
        again = product.engine.plan(document)
    assert (again.change.actions, again.diff) == ((), ())
    assert opens(lab, "allowed.example")
    assert not opens(lab, "cdn-allowed.example")


def test_a_live_change_opens_at_once_survives_an_apply_and_cuts_nothing(lab: Lab, product: Product) -> None:
    document = wanted(lab, "allowed.example:any")
    product.apply(document)
    assert opens(lab, "allowed.example")
    hold(lab, "staying", ALLOWED)
    pids = {ident: view["pid"] for ident, view in product.processes().items()}
    with lab.gateway.inside():
        product.engine.change(add=[live_change("machine-web-1", "allow", "cdn-allowed.example:any")])
        # What its old scope has learned, its own scope begins with.
        assert lab.machines["web-1"].probe("tcp", address=ALLOWED, port=22)["outcome"] == "open"
    assert opens(lab, "cdn-allowed.example")
    assert not opens(lab, "cdn-allowed.example", machine="web-2")
    assert answers(lab, "staying")
    now = {ident: view["pid"] for ident, view in product.processes().items()}
    assert {ident: now[ident] for ident in pids if ident != "egress-dns-default"} == {
        ident: pid for ident, pid in pids.items() if ident != "egress-dns-default"
    }
    product.apply({**document, "log_rate": 20})
    assert opens(lab, "cdn-allowed.example")
    with lab.gateway.inside():
        assert [one.entry for one in product.engine.live()] == ["cdn-allowed.example:any"]
        cleared = product.engine.apply(document, clear_live=True)
    assert "end the live change allow cdn-allowed.example:any of machine-web-1" in cleared.change.actions
    assert not opens(lab, "cdn-allowed.example")
    assert answers(lab, "staying")


def test_what_is_no_longer_allowed_is_cut_and_what_is_goes_on(lab: Lab, product: Product) -> None:
    product.apply(wanted(lab, "allowed.example:any", "cdn-allowed.example:any"))
    assert opens(lab, "allowed.example")
    assert opens(lab, "cdn-allowed.example")
    hold(lab, "kept", ALLOWED)
    hold(lab, "cut", CDN)
    product.apply(wanted(lab, "allowed.example:any"))
    assert answers(lab, "kept")
    assert not answers(lab, "cut")
    assert lab.machines["web-1"].probe("tcp", address=CDN, port=22)["outcome"] != "open"
    assert lab.machines["web-1"].probe("tcp", address=ALLOWED, port=22)["outcome"] == "open"


def test_a_live_denial_closes_what_is_below_an_allowed_name(lab: Lab, product: Product) -> None:
    product.apply(wanted(lab, "allowed.example:any", "cdn-allowed.example:any"))
    assert opens(lab, "allowed.example")
    assert opens(lab, "cdn-allowed.example")
    hold(lab, "other", CDN)
    hold(lab, "denied", ALLOWED)
    with lab.gateway.inside():
        product.engine.change(add=[live_change("machine-web-1", "deny", "allowed.example")])
    assert not answers(lab, "denied")
    assert answers(lab, "other")
    assert not opens(lab, "allowed.example")
    assert opens(lab, "allowed.example", machine="web-2")
    with lab.gateway.inside():
        product.engine.change(add=[live_change("machine-web-1", "mode", "locked")])
        assert not answers(lab, "other")
        product.engine.change(drop=product.engine.live())
    assert opens(lab, "allowed.example")


def test_a_denial_below_an_allowed_name_leaves_the_rest_of_it(lab: Lab, product: Product) -> None:
    product.apply(wanted(lab, "allowed.example:any"))
    lab.internet.records({"bad.allowed.example": {"A": [ALLOWED_2]}})
    try:
        assert opens(lab, "allowed.example")
        assert opens(lab, "bad.allowed.example")
        hold(lab, "good", ALLOWED)
        hold(lab, "bad", ALLOWED_2)
        with lab.gateway.inside():
            product.engine.change(add=[live_change("default", "deny", "bad.allowed.example")])
        assert not answers(lab, "bad")
        assert answers(lab, "good")
        # Without asking again.
        assert lab.machines["web-1"].probe("tcp", address=ALLOWED, port=22)["outcome"] == "open"
        assert lab.machines["web-1"].probe("tcp", address=ALLOWED_2, port=22)["outcome"] != "open"
        assert not opens(lab, "bad.allowed.example")
    finally:
        lab.internet.records({"bad.allowed.example": None})
        with lab.gateway.inside():
            product.engine.change(drop=product.engine.live())


def test_what_is_open_for_a_time_ends_by_itself_with_its_connections(lab: Lab, product: Product) -> None:
    product.apply(wanted(lab, "allowed.example:any"))
    product.fleet.call("processes.stop", ids=["egress-watch"])  # nothing of ours may be needed
    try:
        now = int(time.time())
        with lab.gateway.inside():
            product.engine.change(add=[live_change("default", "allow", "cdn-allowed.example:any", now + 4, now)])
        assert opens(lab, "cdn-allowed.example")
        hold(lab, "short", CDN)
        assert answers(lab, "short")
        wait_for(lambda: not answers(lab, "short"), "the connection ends", 10)
        assert time.time() >= now + 4
        assert lab.machines["web-1"].probe("tcp", address=CDN, port=22)["outcome"] != "open"
    finally:
        product.fleet.call("processes.start", ids=["egress-watch"])
    # The watch takes it out of the rules and the resolver.
    wait_for(lambda: json.loads((product.folder / "egress" / "live.json").read_text())["live"] == [], "the end", 20)
    assert not opens(lab, "cdn-allowed.example")


def test_an_entry_for_a_time_does_not_begin_anew_with_each_apply(lab: Lab, product: Product) -> None:
    document = wanted(lab, "allowed.example:any", {"domain": "cdn-allowed.example", "ports": "any", "for": "1h"})
    product.apply(document)
    began = (product.folder / "egress" / "declared.json").read_text()
    time.sleep(1.1)
    assert product.apply(document).change.actions == ()
    assert (product.folder / "egress" / "declared.json").read_text() == began


def test_rules_that_others_flush_come_back(lab: Lab, product: Product) -> None:
    document = wanted(lab, "allowed.example:any")
    product.apply(document)
    product.fleet.call("processes.stop", ids=["egress-watch"])  # it would be faster
    lab.gateway.run("nft", "flush", "ruleset")
    again = product.apply(document)
    assert again.change.actions[0] == "load the rules again, which others have changed"
    assert opens(lab, "allowed.example")  # the resolver has not kept to itself what the set must learn
    lab.gateway.run("nft", "delete", "chain", "inet", "fleet_egress", _last_chain(lab), check=False)
    lab.gateway.run("nft", "flush", "ruleset")
    rules = backend("nftables")
    with lab.gateway.inside():
        fence = product.fence
        wait_for(lambda: rules.loaded(fence), "the watch loads them", 15)
    said = wait_for(lambda: _said(product, "not those that were applied"), "the watch says so", 30)
    assert "load the rules again" in said


def _last_chain(lab: Lab) -> str:
    listed = lab.gateway.run("nft", "-t", "list", "table", "inet", "fleet_egress").stdout
    return [line.split()[1] for line in listed.splitlines() if line.strip().startswith("chain ")][-1]


def _said(product: Product, words: str) -> str:
    path = product.folder / "logs" / "egress-watch.log"
    return next((line for line in path.read_text().splitlines() if words in line), "") if path.exists() else ""


def test_a_check_that_fails_changes_nothing(lab: Lab, product: Product, monkeypatch: pytest.MonkeyPatch) -> None:
    document = wanted(lab, "allowed.example:any")
    product.apply(document)
    before = _everything(product)

    def fail(*_given: Any) -> None:
        raise ProcessFailed("`nft --check`: expected success, found: no")

    monkeypatch.setattr(egress_nftables.Nftables, "check", fail)
    with lab.gateway.inside(), pytest.raises(ProcessFailed):
        product.engine.apply(wanted(lab, "cdn-allowed.example:any"))
    assert _everything(product) == before
    monkeypatch.undo()
    monkeypatch.setattr(egress_nftables.Nftables, "load", fail)
    with lab.gateway.inside(), pytest.raises(ProcessFailed):
        product.engine.apply(wanted(lab, "cdn-allowed.example:any"))
    monkeypatch.undo()
    assert _everything(product) == before
    with lab.gateway.inside():
        assert backend("nftables").loaded(product.fence)
    assert product.apply(document).change.actions == ()


def _everything(product: Product) -> dict[str, str]:
    folder = product.folder / "egress"
    files = [*folder.glob("*.json"), *(folder / "applied").iterdir(), *folder.glob("applied-*")]
    return {path.name: path.read_text() if path.is_file() else "" for path in files}


def test_two_applies_at_once_follow_each_other(lab: Lab, product: Product) -> None:
    documents = [wanted(lab, "allowed.example:any"), wanted(lab, "cdn-allowed.example:any")]

    def apply(number: int) -> None:
        with lab.gateway.inside():
            egress_engine.Engine(product.folder).apply(documents[number % 2])

    with ThreadPoolExecutor(max_workers=4) as pool:
        list(pool.map(apply, range(6)))
    with lab.gateway.inside():
        assert backend("nftables").loaded(product.fence)
    assert len(list((product.folder / "egress").glob("applied-*"))) == 1
    assert not (product.folder / "egress" / "unfinished.json").exists()


KILLED = """
import json, os, random, signal, sys, time
from fleet_node import egress_engine
from fleet_node.egress_backends import backend
folder, first, second, kills, step = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3]), *sys.argv[4:6]
name = first.get("backend", "nftables")
found = []
draw = random.Random(7)

class Idle:
    def __init__(self, engine): self.real = engine.services
    def __getattr__(self, name): return lambda *given, **named: type("C", (), {"actions": (), "changed": False})()

for number in range(int(kills)):
    document = (second, first)[number % 2]
    child = os.fork()
    if child == 0:
        engine = egress_engine.Engine(folder)
        if not step:
            engine.services = Idle(engine)
        def die(name):
            if name == step:
                os.kill(os.getpid(), signal.SIGKILL)
        engine.step = die
        try:
            engine.apply(document)
        finally:
            os._exit(0)
    if not step:
        time.sleep(draw.random() * 0.25)
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    rules, engine = backend(name), egress_engine.Engine(folder)
    fences = [egress_engine.egress_fence.compile(egress_engine.egress_wanted.placed_machines(
        egress_engine.egress.parse(one), {})[0], (), 0, engine.store.read().ports, ()) for one in (first, second)]
    end = time.monotonic() + 5
    while True:  # a tool that the killed one had started may still be at work
        state = [rules.loaded(fence) for fence in fences]
        if any(state) or time.monotonic() > end:
            break
    if not step:
        engine.services = Idle(engine)
    engine.refresh()
    found.append({"loaded": any(state), "repaired": rules.loaded(engine.fence()),
                  "clean": not engine.store.unfinished() and len(list(engine.store.folder.glob("applied-*"))) == 1})
print(json.dumps(found))
"""
STEPS = ("prepared", "checked", "noted", "committed", "loaded", "retired", "served", "forgotten", "cut", "finished")


def _killed(lab: Lab, product: Product, kills: int, step: str, name: str = "nftables") -> list[dict[str, bool]]:
    """Kill applies and return what was found after each of them."""
    first = wanted(lab, "allowed.example:any", backend=name)
    second = wanted(lab, "cdn-allowed.example:any", f"{ALLOWED_2}:22", backend=name)
    words = [json.dumps(one) for one in (first, second)]
    product.apply(first)
    done = subprocess.run(
        [*lab.gateway.words, sys.executable, "-c", KILLED, str(product.folder), *words, str(kills), step],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: list[dict[str, bool]] = json.loads(done.stdout)
    return found


class Trying:
    """A machine that tries the whole time to reach what no policy allows."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self.tried, self.opened, self._over = lab, 0, 0, threading.Event()
        self._thread = threading.Thread(target=self._try, daemon=True)

    def __enter__(self) -> Trying:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        self._thread.join(10)

    def _try(self) -> None:
        while not self._over.is_set():
            found = self.lab.machines["web-2"].probe("tcp", address=FORBIDDEN, port=22, timeout=0.3)
            self.tried += 1
            self.opened += found["outcome"] == "open"


@pytest.mark.parametrize("step", STEPS)
def test_an_apply_that_is_killed_after_a_step_is_finished_by_the_next(lab: Lab, product: Product, step: str) -> None:
    product.fleet.call("processes.stop", ids=["egress-watch"]) if "egress-watch" in product.processes() else None
    with Trying(lab) as trying:
        found = _killed(lab, product, 2, step)
    assert found == [{"loaded": True, "repaired": True, "clean": True}] * 2
    assert trying.opened == 0
    assert trying.tried


@pytest.mark.parametrize(("name", "kills"), [("nftables", 50), ("iptables", 12)])
def test_kills_at_any_moment_never_open_anything(lab: Lab, product: Product, name: str, kills: int) -> None:
    if name == "iptables":
        for tool in ("iptables-restore", "ipset"):
            require_tool(tool, "for the backend iptables")
    with Trying(lab) as trying:
        found = _killed(lab, product, kills, "", name)
    assert len(found) == kills
    assert all(one["repaired"] and one["clean"] for one in found)
    assert all(one["loaded"] for one in found) or name == "iptables"  # several transactions
    assert trying.opened == 0
    assert trying.tried > 5


def test_the_command_line_changes_what_is_in_force(lab: Lab, product: Product) -> None:
    product.apply(wanted(lab, "allowed.example:any"))
    fleet = [
        *lab.gateway.words,
        str(Path(sys.executable).with_name("fleet")),
        "--state-dir",
        str(product.folder),
        "egress",
    ]

    def run(*words: str) -> str:
        done = subprocess.run([*fleet, *words], capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("allow", "cdn-allowed.example:any", "--machine", "web-1", "--for", "10m").startswith(
        "Open for machine web-1"
    )
    assert opens(lab, "cdn-allowed.example")
    assert not opens(lab, "cdn-allowed.example", machine="web-2")
    assert "allow cdn-allowed.example:any for machine-web-1 until" in run("show", "--machine", "web-1")
    assert run("forget", "--machine", "web-1").startswith("Taken back: Open for machine web-1")
    assert not opens(lab, "cdn-allowed.example")
    assert json.loads(run("--json"))["loaded"] is True


def test_denials_are_told_with_the_name_of_the_machine(lab: Lab, product: Product) -> None:
    product.apply(wanted(lab, "allowed.example:any"))
    product.fleet.call("processes.start", ids=["egress-watch"])
    path = product.folder / "egress" / DENIALS
    wait_for(lambda: _said(product, "reading what group"), "the watch reads", 10)
    web = lab.machines["web-1"]

    def told(**values: Any) -> dict[str, Any]:
        def look() -> dict[str, Any]:
            for record in reversed(egress_denial_log.last(path, 200)):
                if all(record.get(key) == value for key, value in values.items()):
                    return record
            return {}

        found: dict[str, Any] = wait_for(look, f"a denial with {values}", 10)
        return found

    web.probe("tcp", address=FORBIDDEN, port=22, timeout=0.5)
    found = told(destination=FORBIDDEN, port=22, machine="web-1")
    assert (found["machine"], found["project"], found["scope"]) == ("web-1", "shop", "default")
    assert (found["reason"], found["protocol"], found["source"]) == ("forward", "tcp", "192.168.100.10")
    web.probe("dns", server="192.168.100.1", name="secret.forbidden.example", kind="A")
    assert told(name="secret.forbidden.example")["machine"] == "web-1"
    web.probe("tcp", address=internet.HOSTS["forbidden"][1], port=443, timeout=0.5)
    assert told(destination=internet.HOSTS["forbidden"][1], port=443)["machine"] == "web-1"
    counted = 'fleet_egress_denials_total{machine="web-1",reason="forward"}'
    text = wait_for(lambda: _metrics(product, counted), "metrics", 25)
    assert "fleet_egress_rules_loaded 1" in text


def _metrics(product: Product, words: str) -> str:
    path = product.folder / "egress" / METRICS
    text = path.read_text() if path.exists() else ""
    return text if words in text else ""


def test_the_report_tells_what_is_in_force(lab: Lab, product: Product) -> None:
    product.apply(wanted(lab, "allowed.example:any"))
    assert opens(lab, "allowed.example")
    with lab.gateway.inside():
        found = report(product.engine)
    assert (found["applied"], found["loaded"], found["problems"]) == (True, True, [])
    learned = {(one["scope"], one["name"]): one["addresses"] for one in found["learned"]}
    assert learned["default", "allowed.example"] == [ALLOWED]
    (scope,) = found["scopes"]
    assert scope["allow"] == ["allowed.example:any"]
    assert {one["id"]: one["status"] for one in found["services"]}["egress-dns-default"] == "running"
    assert any(one["scope"] == "default" and one["allowed"]["packets"] for one in found["counters"])


def test_a_backend_can_be_replaced_by_the_other_and_back(lab: Lab, product: Product) -> None:
    for tool in ("iptables-restore", "ipset"):
        require_tool(tool, "for the backend iptables")
    product.apply(wanted(lab, "allowed.example:any"))
    changed = product.apply(wanted(lab, "allowed.example:any", backend="iptables"))
    assert changed.change.actions[0] == "load the rules with iptables, remove those of nftables"
    assert opens(lab, "allowed.example")
    assert "inet fleet_egress" not in lab.gateway.run("nft", "list", "tables").stdout
    product.apply(wanted(lab, "allowed.example:any"))
    assert opens(lab, "allowed.example")
    assert "FLEET" not in lab.gateway.run("iptables-save").stdout


def test_rules_hold_and_are_changed_without_fleetd(lab: Lab, product: Product) -> None:
    product.apply(wanted(lab, "allowed.example:any", "cdn-allowed.example:any"))
    assert opens(lab, "cdn-allowed.example")
    product.fleet.down()
    try:
        with lab.gateway.inside(), pytest.raises(Unavailable, match=r"the rules are in force.*autovibe\.fleet\.node"):
            product.engine.apply(wanted(lab, "allowed.example:any"))
        assert lab.machines["web-1"].probe("tcp", address=CDN, port=22)["outcome"] != "open"
    finally:
        product.up()
    assert product.apply(wanted(lab, "allowed.example:any")).change.changed
    assert not (product.folder / "egress" / "unfinished.json").exists()
    assert opens(lab, "allowed.example")


TUNNEL = """
import socket, sys
end = socket.create_connection(("192.168.100.1", 3128), 5)
end.sendall(f"CONNECT {sys.argv[1]}:22 HTTP/1.1\\r\\nHost: {sys.argv[1]}:22\\r\\n\\r\\n".encode())
file = end.makefile("rwb", buffering=0)
head = []
while not head or head[-1].strip():
    head.append(file.readline())
greeted = False
for word in sys.stdin:
    try:
        end.settimeout(2)
        end.sendall(word.encode())  # mitmproxy waits for the first bytes
        greeted = greeted or file.readline().startswith(b"{")  # squid has errors of its own to tell
        print("alive" if greeted and file.readline() else "ended", flush=True)
    except OSError:
        print("ended", flush=True)
"""


class Tunnel:
    """A connection through the proxy that stays."""

    def __init__(self, lab: Lab, name: str) -> None:
        words = (sys.executable, "-c", TUNNEL, name)
        self._process = lab.machines["web-1"].namespace.start(*words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def answers(self) -> bool:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("hello\n")
        self._process.stdin.flush()
        return self._process.stdout.readline() == "alive\n"

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.mark.parametrize(
    ("kind", "first", "second"),
    [("squid", "allowed.example", "cdn-allowed.example"), ("mitmproxy", ALLOWED, CDN)],
)
def test_the_proxy_follows_changes_and_keeps_what_it_may(
    lab: Lab, product: Product, kind: str, first: str, second: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "mitmproxy":
        # In a folder that only root may enter. It asks the host's own resolver, which a namespace lacks.
        monkeypatch.setenv("PATH", f"{Path(mitmdump()).parent}:{os.environ['PATH']}")
        monkeypatch.setattr(egress_proxies, "USER", "root")
    else:
        require_tool("squid", "to be the explicit proxy")
    document = wanted(lab, f"{first}:any", proxy={"kind": kind, "port": 3128})
    document["policies"]["default"]["mode"] = "strict"
    product.apply(document)
    pid = product.processes()["egress-proxy"]["pid"]

    def through(name: str) -> bool:
        tunnel = Tunnel(lab, name)
        try:
            return tunnel.answers()
        finally:
            tunnel.end()

    assert through(first)
    assert not through(second)
    tunnels = [Tunnel(lab, first)]
    try:
        assert tunnels[0].answers()
        with lab.gateway.inside():
            product.engine.change(add=[live_change("default", "allow", f"{second}:any")])
        assert through(second)
        assert tunnels[0].answers()
        assert product.processes()["egress-proxy"]["pid"] == pid  # nothing was restarted
        tunnels.append(Tunnel(lab, second))
        assert tunnels[1].answers()
        with lab.gateway.inside():
            product.engine.change(drop=product.engine.live())
        wait_for(lambda: not tunnels[1].answers(), "the connection ends", 3)
        assert not through(second)
        assert through(first)
        assert product.processes()["egress-proxy"]["pid"] == pid
    finally:
        for tunnel in tunnels:
            tunnel.end()


def test_removing_leaves_nothing(lab: Lab, product: Product) -> None:
    product.apply(wanted(lab, "allowed.example:any"))
    removed = product.remove()
    assert removed.change.changed
    assert "fleet" not in lab.gateway.run("nft", "list", "ruleset").stdout
    assert not (product.folder / "egress").exists()
    assert [ident for ident in product.processes() if ident.startswith("egress")] == []
    assert product.remove().change.actions == ()
    assert lab.machines["web-1"].probe("tcp", address=FORBIDDEN, port=22)["outcome"] == "open"
