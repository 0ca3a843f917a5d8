# SPDX-License-Identifier: GPL-3.0-or-later
"""The backend nftables with real packets: what it lets through is what a fence means, and reloads disturb nothing."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from tests.requirements import require_tool
from tests.system.network import internet, packets
from tests.system.network.lab import GUESTS, Lab, Machine, end, wait_for
from tests.system.network.neighbours import assert_nobody_takes

from fleet_core import egress_nftables
from fleet_core.egress_nftables_names import NOBODY
from fleet_core.fences import Fence, Grant, Hub, Proxy, Scope, name_set
from fleet_core.flows import ALLOWED, Flow, verdict
from fleet_node.egress_conflicts import conflicts
from fleet_node.egress_nftables import Nftables

HOSTS = internet.HOSTS
GATEWAY4, GATEWAY6 = "192.168.100.1", "fd00:100::1"
TCP, UDP = (22, 25, 8080), (443, 5000)
NAMED = Grant("aaaaaaa1", ("allowed.example",), ports=((22, 22), (5000, 5001)))
PLACES = Grant("aaaaaaa2", networks4=("10.9.9.9/32", "11.5.0.0/16"), networks6=("fd00:9::9/128",), ports=((25, 25),))
QUIC = Grant(
    "aaaaaaa3", networks4=("11.2.0.20/32",), networks6=("2fff:2::20/128",), protocol="udp", ports=((443, 443),)
)
ECHO = Grant("aaaaaaa4", networks4=("11.3.0.30/32",), networks6=("2fff:3::30/128",), protocol="icmp")
ENDED = Grant("aaaaaaa5", networks4=("11.4.0.40/32",), networks6=("2fff:4::40/128",), until=1_000_000_000, mark=5)
ALL = Grant("aaaaaaa6", networks4=("11.67.0.0/16", "169.254.169.254/32"), protocol="any")
LEARNED = {NAMED.set_name(4): (HOSTS["allowed"][0],), NAMED.set_name(6): (HOSTS["allowed"][1],)}
GRANTS = (NAMED, PLACES, QUIC, ECHO, ENDED, ALL)
PATIENCE = 0.5  # seconds that an answer is waited for where none may come


def scope(mode: str, name: str = "project-shop", **values: Any) -> Scope:
    """A scope as policies lead to it: who is locked in has no grants."""
    if mode == "locked":
        return Scope(name, mode)
    fixed = {"grants": GRANTS, "denied4": ("11.5.0.0/16",), "denied6": ("2fff:5::/32",), "hub": True}
    return Scope(name, mode, **{**fixed, **values})


def fence_of(lab: Lab, *scopes: Scope, **values: Any) -> Fence:
    known = {"hub": Hub("hub.example", HOSTS["hub"], (8080,)), "proxy": Proxy("squid", 8006)}
    return lab.fence(*scopes, Scope("default", "locked"), **{**known, **values})


@dataclass
class Gateway:
    """The gateway of a lab with the backend in it."""

    lab: Lab
    backend: Nftables
    folder: Path

    def load(self, fence: Fence) -> None:
        for name, text in self.backend.files(fence).items():
            (self.folder / name).write_text(text, encoding="utf-8")
        with self.lab.gateway.inside():
            self.backend.load(self.folder, fence)
            assert self.backend.loaded(fence)

    def ask(self, what: str, *values: Any) -> Any:
        """Ask the backend something inside the gateway."""
        with self.lab.gateway.inside():
            return getattr(self.backend, what)(*values)

    def nft(self, *words: str) -> str:
        return self.lab.gateway.run("nft", *words).stdout

    def forget_flows(self) -> None:
        self.lab.gateway.run("conntrack", "-F")

    def denied(self, fence: Fence, scope_name: str = NOBODY) -> int:
        """How many packets were dropped."""
        found: int = self.ask("counters", fence)[scope_name]["denied"][0]
        return found


@pytest.fixture(scope="module")
def gateway(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    for tool in ("nft", "conntrack"):
        require_tool(tool, "to test the backend nftables")
    found = Gateway(lab, Nftables(), tmp_path_factory.mktemp("nftables"))
    yield found
    found.ask("remove")


def opens(machine: Machine, what: str, **values: Any) -> bool:
    return bool(machine.probe(what, **{"timeout": PATIENCE, **values})["outcome"] == "open")


def mark() -> str:
    return f"m{time.monotonic_ns():x}m"


# What a fence means


def tries(lab: Lab) -> list[Flow]:
    """Connections of web-1 to everything in the lab, by every protocol."""
    own = ("192.168.100.10", "fd00:100::10")
    gateways = [(GATEWAY4, GATEWAY6), ("192.168.101.1", "fd00:101::1"), ("11.0.0.2", "2fff::2")]
    others = [(one.guest.address4, one.guest.address6) for name, one in lab.machines.items() if name != "web-1"]
    found = []
    for both in (*HOSTS.values(), *gateways, *others):
        for source, destination in zip(own, both, strict=True):
            found += [Flow(source, destination, "tcp", port) for port in TCP]
            found += [Flow(source, destination, "udp", port) for port in UDP]
            found.append(Flow(source, destination, "icmp"))
    found += [Flow(source, both, "tcp", 8006) for source, both in zip(own, gateways[0], strict=True)]
    return found


def begin(lab: Lab, flow: Flow) -> Future[Any]:
    web = lab.machines["web-1"]
    if flow.protocol == "icmp":
        return web.begin("ping", address=flow.destination, timeout=0.7)
    return web.begin(flow.protocol, address=flow.destination, port=flow.port, timeout=0.7)


@pytest.mark.parametrize("mode", ["locked", "strict", "allowlist", "open"])
def test_packets_go_where_the_fence_means_them_to(gateway: Gateway, mode: str) -> None:
    lab = gateway.lab
    fence = fence_of(lab, scope(mode))
    gateway.load(fence)
    gateway.ask("learn", LEARNED)
    gateway.forget_flows()
    waiting = [(flow, begin(lab, flow)) for flow in tries(lab)]
    wrong = []
    for flow, future in waiting:
        meant, found = verdict(fence, LEARNED, flow, int(time.time())), future.result(30)["outcome"]
        own = flow.destination in ("11.0.0.2", "2fff::2")  # the fence cannot know all addresses of the gateway
        if (meant == ALLOWED and not own) != (found == "open"):
            wrong.append((flow, meant, found))
    assert not wrong


def test_what_is_denied_fails_at_once(gateway: Gateway) -> None:
    gateway.load(fence_of(gateway.lab, scope("allowlist")))
    web = gateway.lab.machines["web-1"]
    assert web.probe("tcp", address=HOSTS["forbidden"][0], port=22)["outcome"] == "refused"
    assert web.probe("tcp", address=HOSTS["forbidden"][1], port=22)["outcome"] == "refused"

    def prohibited() -> bool:  # the kernel sends few errors a second to one address
        return bool(web.probe("udp", address=HOSTS["forbidden"][0], port=5000)["outcome"] == "unreachable")

    assert wait_for(prohibited, "an ICMP error")
    assert web.probe("tcp", address="169.254.169.253", port=80, timeout=PATIENCE)["outcome"] == "timeout"


def test_names_lead_to_no_special_network(gateway: Gateway) -> None:
    """Whoever owns an allowed name decides where it leads: not to neighbours, not to metadata, not to machines."""
    gateway.load(fence_of(gateway.lab, scope("allowlist", grants=(NAMED,))))
    web, far = gateway.lab.machines["web-1"], gateway.lab.machines["far-1"].guest
    places = [*zip(HOSTS["neighbour"], HOSTS["metadata"], strict=True), (far.address4, far.address6)]
    gateway.ask("learn", {NAMED.set_name(6 if ":" in one else 4): (one,) for pair in places for one in pair})
    assert not [one for pair in places for one in pair if opens(web, "tcp", address=one, port=22)]


def test_peers_talk_and_nobody_else(gateway: Gateway) -> None:
    lab = gateway.lab
    fence = fence_of(lab, scope("strict"))
    peers = {"web-1": ("web-2",), "web-2": ("web-1",), "db-1": ("web-1",)}  # db-1 wishes, web-1 does not
    fence = fence.evolve(guests=tuple(replace(guest, peers=peers.get(guest.name, ())) for guest in fence.guests))
    gateway.load(fence)
    web, others = lab.machines["web-1"], [lab.machines[name].guest for name in ("web-2", "db-1", "far-1")]
    for one in (web, *(lab.machines[name] for name in ("web-2", "db-1"))):
        one.namespace.ip("neigh flush dev eth0")
    reached = {o.name for o in others for a in (o.address4, o.address6) if opens(web, "tcp", address=a, port=8080)}
    assert reached == {"web-2"}
    assert opens(lab.machines["web-2"], "udp", address=web.guest.address6, port=5000)
    assert not opens(lab.machines["db-1"], "tcp", address=web.guest.address4, port=8080)


def test_peers_talk_and_nobody_else_where_br_netfilter_is_on(gateway: Gateway) -> None:
    """As Docker and the Proxmox firewall leave it: frames between machines go through the rules for routing too."""
    switches = Path("/proc/sys/net/bridge")
    if not switches.is_dir():
        pytest.skip("br_netfilter is needed, and this kernel does not have it loaded")
    names = [f"net__bridge__bridge-nf-call-{name}" for name in ("iptables", "ip6tables", "arptables")]
    gateway.lab.gateway.sysctl(**dict.fromkeys(names, 1))
    try:
        test_peers_talk_and_nobody_else(gateway)
        test_packets_go_where_the_fence_means_them_to(gateway, "allowlist")
        with gateway.lab.gateway.inside():
            found = conflicts(fence_of(gateway.lab, scope("open")))
        assert [sentence.partition(":")[0] for sentence in found] == [name.replace("__", ".") for name in names]
    finally:
        gateway.lab.gateway.sysctl(**dict.fromkeys(names, 0))


# Names of scopes' resolvers, DNS


def test_questions_go_to_the_scopes_own_resolver(gateway: Gateway) -> None:
    """Whatever server a machine asks, by UDP or TCP, in both families; the resolver of another scope is closed."""
    lab = gateway.lab
    shop, data = scope("allowlist", resolver_port=5300), scope("open", "project-data", grants=(), resolver_port=5353)
    gateway.load(fence_of(lab, shop, data))
    servers = [lab.gateway.start("python3", "-c", RESOLVER, own, str(port)) for own, port in RESOLVERS]
    try:
        web = lab.machines["web-1"]
        wait_for(lambda: opens(web, "udp", address=GATEWAY4, port=53), "the resolver answers")
        for server in (GATEWAY4, GATEWAY6, HOSTS["evil-resolver"][0], HOSTS["evil-resolver"][1], "192.168.101.1"):
            for kind in ("udp", "tcp"):
                assert web.probe(kind, address=server, port=53, timeout=2).get("server") == "5300", (server, kind)
        db = lab.machines["db-1"]
        assert db.probe("udp", address=HOSTS["evil-resolver"][0], port=53)["server"] == "5353"
        assert opens(web, "udp", address=GATEWAY4, port=5300)
        assert not opens(web, "udp", address=GATEWAY4, port=5353)
        assert not opens(web, "tcp", address=GATEWAY6, port=5353)
        assert not opens(lab.machines["far-1"], "udp", address="192.168.101.1", port=53)  # locked
        # Nor does anybody on the other side of the gateway get an answer.
        assert lab.internet.probe("udp", address=GATEWAY4, port=5300, timeout=PATIENCE)["outcome"] != "open"
    finally:
        for server in servers:
            server.kill()
            server.wait()


RESOLVERS = [(own, port) for own in (GATEWAY4, GATEWAY6) for port in (5300, 5353)]
# Answers each question with its own port, over UDP and TCP.
RESOLVER = """
import json, socket, sys, threading
own, port = sys.argv[1], int(sys.argv[2])
family = socket.AF_INET6 if ":" in own else socket.AF_INET
answer = json.dumps({"server": str(port)}).encode() + b"\\n"
def serve():
    with socket.create_server((own, port), family=family) as listener:
        while True:
            listener.accept()[0].sendall(answer)
threading.Thread(target=serve, daemon=True).start()
with socket.socket(family, socket.SOCK_DGRAM) as end:
    end.bind((own, port))
    while True:
        end.sendto(answer, end.recvfrom(9000)[1])
"""


# Time


def test_a_grant_that_ends_closes_new_and_open_connections(gateway: Gateway) -> None:
    web, until = gateway.lab.machines["web-1"], int(time.time()) + 3
    address = HOSTS["allowed"][0]
    short = Grant("bbbbbbb1", networks4=(f"{address}/32",), ports=((22, 22),), until=until, mark=0x7BBBBBB1)
    gateway.load(fence_of(gateway.lab, scope("allowlist", grants=(short,))))
    assert web.probe("open", name="short", address=address, port=22)["outcome"] == "open"
    assert web.probe("say", name="short")["outcome"] == "open"
    assert opens(web, "tcp", address=address, port=22)
    wait_for(lambda: time.time() >= until, "the end of the grant", 5)
    assert not opens(web, "tcp", address=address, port=22)
    assert web.probe("say", name="short", timeout=PATIENCE)["outcome"] != "open"


def test_a_mode_that_forwards_nothing_closes_open_connections(gateway: Gateway) -> None:
    lab = gateway.lab
    web = lab.machines["web-1"]
    for mode in ("strict", "locked"):
        gateway.load(fence_of(lab, scope("open")))
        assert web.probe("open", name=mode, address=HOSTS["allowed"][0], port=22)["outcome"] == "open"
        gateway.load(fence_of(lab, scope(mode)))
        assert web.probe("say", name=mode, timeout=PATIENCE)["outcome"] != "open"


def test_connections_that_somebody_outside_began_end_with_the_fence(gateway: Gateway) -> None:
    """Also where they are older than the fence, and the connection tracking calls them established."""
    lab = gateway.lab
    gateway.ask("remove")
    lab.gateway.run(
        "nft", "-f", "-", stdin="table inet seen {\nchain f { type filter hook forward priority 0; ct state new\n}\n}\n"
    )
    web = lab.machines["web-1"]
    try:
        assert lab.internet.probe("open", name="in", address=web.guest.address4, port=8080)["outcome"] == "open"
        gateway.load(fence_of(lab, scope("open")))
        assert lab.internet.probe("say", name="in", timeout=PATIENCE)["outcome"] != "open"
    finally:
        gateway.nft("delete", "table", "inet", "seen")


def test_a_hub_that_is_a_machine_answers_those_of_other_bridges(gateway: Gateway) -> None:
    lab = gateway.lab
    far, web = lab.machines["far-1"], lab.machines["web-1"]
    hub = Hub("hub.example", (far.guest.address4, far.guest.address6), (8080,))
    gateway.load(fence_of(lab, scope("strict"), scope("strict", "project-far", grants=(), hub=False), hub=hub))
    assert opens(web, "tcp", address=far.guest.address4, port=8080)
    assert opens(web, "tcp", address=far.guest.address6, port=8080)
    assert not opens(web, "udp", address=far.guest.address4, port=5000)
    assert not opens(far, "tcp", address=web.guest.address4, port=8080)


# Reloads


def test_a_reload_keeps_connections_counters_and_what_was_learned(gateway: Gateway) -> None:
    lab = gateway.lab
    fence = fence_of(lab, scope("allowlist"))
    gateway.load(fence)
    gateway.ask("learn", LEARNED)
    web = lab.machines["web-1"]
    address = HOSTS["allowed"][0]
    assert web.probe("open", name="kept", address=address, port=22)["outcome"] == "open"
    before = gateway.ask("counters", fence)["project-shop"]["allowed"]
    assert before[0] > 0
    assert before[1] > before[0]
    other = fence_of(lab, scope("allowlist", grants=(PLACES, replace(NAMED, names=("allowed.example", "b.example")))))
    for number in range(20):
        gateway.load((fence, other)[number % 2])
    assert web.probe("say", name="kept")["outcome"] == "open"
    assert opens(web, "tcp", address=address, port=22)
    after = gateway.ask("counters", other)["project-shop"]["allowed"]
    assert after[0] > before[0]


def test_no_packet_of_a_flow_is_lost_while_rules_are_loaded(gateway: Gateway) -> None:
    lab = gateway.lab
    flow = Grant("ccccccc1", networks4=(f"{HOSTS['allowed'][0]}/32",), protocol="udp", ports=((5000, 5000),))
    fences = [fence_of(lab, scope("allowlist", grants=(flow, *more))) for more in ((), (PLACES, NAMED))]
    gateway.load(fences[0])
    web = lab.machines["web-1"]
    web.probe("flood", name="f", address=HOSTS["allowed"][0], port=5000, rate=1000)
    for number in range(25):
        gateway.load(fences[number % 2])
    counted = web.probe("flooded", name="f")
    assert counted["sent"] > 100
    assert counted["lost"] == counted["errors"] == 0


def test_sets_and_chains_that_nothing_needs_go(gateway: Gateway) -> None:
    lab = gateway.lab
    full = fence_of(lab, scope("allowlist"), scope("open", "machine-db-1", grants=()))
    gateway.load(full)
    gateway.ask("learn", LEARNED)
    small = fence_of(lab, scope("strict"))
    gateway.load(small)
    shown = gateway.nft("list", "table", "inet", "fleet_egress")
    for gone in ("fleet_n", "fleet_o", "fleet_d", "fleet_a", "machine-db-1"):
        assert gone not in shown
    assert gateway.ask("learned", full) == {}
    gateway.load(full)
    assert set(gateway.ask("learned", full).values()) == {()}


def test_boot_comes_before_bridges_and_machines(gateway: Gateway) -> None:
    """The lines of boot() are all that runs, in a namespace that has no interface but lo; and run again."""
    namespace = gateway.lab.namespaces.add("boot")
    fence = fence_of(gateway.lab, scope("allowlist"))
    gateway.load(fence)
    script = gateway.backend.boot(str(gateway.folder))
    with namespace.inside():
        gateway.backend.check(gateway.folder)
        assert not gateway.backend.loaded(fence)
    for _turn in range(2):
        namespace.run("sh", "-ec", script)
    with namespace.inside():
        assert gateway.backend.loaded(fence)


def test_a_rule_of_somebody_else_is_seen_and_repaired(gateway: Gateway) -> None:
    fence = fence_of(gateway.lab, scope("allowlist"))
    damages = (
        ("add", "rule", "inet", "fleet_egress", "out-project-shop", "accept"),
        ("insert", "rule", "bridge", "fleet_egress", "between", "accept"),
        ("flush", "chain", "inet", "fleet_egress", "forward"),
        ("add", "element", "bridge", "fleet_egress", "port_bound4", '{ "x" . 52:54:00:00:00:09 . 10.0.0.1 }'),
        ("delete", "table", "bridge", "fleet_egress"),
        ("flush", "ruleset"),
    )
    for words in damages:
        gateway.load(fence)
        gateway.nft(*words)
        assert not gateway.ask("loaded", fence), words
    gateway.load(fence)
    assert not gateway.ask("loaded", fence_of(gateway.lab, scope("open")))


def test_removal_leaves_the_rules_of_others(gateway: Gateway) -> None:
    gateway.load(fence_of(gateway.lab, scope("allowlist")))
    gateway.nft("add", "table", "inet", "others")
    for _turn in range(2):
        gateway.ask("remove")
    assert gateway.nft("list", "ruleset") == "table inet others {\n}\n"
    gateway.nft("delete", "table", "inet", "others")


# What was learned


def test_learned_addresses_age_and_are_forgotten(gateway: Gateway) -> None:
    fence = fence_of(gateway.lab, scope("allowlist"))
    one = name_set(NAMED, "allowed.example", 4)
    gateway.load(fence_of(gateway.lab, scope("strict")))
    gateway.load(fence)
    gateway.ask(
        "learn", {**LEARNED, one: ("11.1.0.10",), NAMED.old_set_name(4): ("11.1.0.12",), "fleet_nx_4": ("1.1.1.1",)}
    )
    gateway.ask("age", fence)
    learned = gateway.ask("learned", fence)
    assert learned[NAMED.set_name(4)] == learned[one] == ()
    assert set(learned[NAMED.old_set_name(4)]) == {"11.1.0.10", "11.1.0.12"}
    assert learned[NAMED.old_set_name(6)] == LEARNED[NAMED.set_name(6)]
    web = gateway.lab.machines["web-1"]
    assert opens(web, "tcp", address="11.1.0.10", port=22)
    gateway.ask("forget", {NAMED.old_set_name(4): ("11.1.0.10", "9.9.9.9"), "fleet_nx_4": ("1.1.1.1",)})
    assert not opens(web, "tcp", address="11.1.0.10", port=22)


def test_a_new_hour_begins_with_each_ageing(gateway: Gateway) -> None:
    fence = fence_of(gateway.lab, scope("allowlist"))
    gateway.load(fence)
    old = NAMED.old_set_name(4)
    gateway.nft("flush", "set", "inet", "fleet_egress", old)
    gateway.nft("add", "element", "inet", "fleet_egress", old, "{ 11.1.0.10 timeout 1h expires 5s }")
    gateway.ask("learn", {NAMED.set_name(4): ("11.1.0.10",)})
    gateway.ask("age", fence)
    assert "expires 59m" in gateway.nft("list", "set", "inet", "fleet_egress", old)


def test_answers_that_come_during_loads_are_not_lost(gateway: Gateway) -> None:
    """dnsmasq adds addresses while rules are loaded and sets age: each address is in n or o afterwards."""
    lab = gateway.lab
    fences = [fence_of(lab, scope("allowlist", grants=grants)) for grants in (GRANTS, (NAMED, PLACES))]
    gateway.load(fence_of(lab, scope("strict")))
    gateway.load(fences[0])
    done = threading.Event()
    added: list[str] = []

    def answer() -> None:
        while not done.is_set():
            address = f"11.1.{len(added) // 250}.{len(added) % 250}"
            element = f"{{ {address} }}"
            lab.gateway.run("nft", "add", "element", "inet", "fleet_egress", NAMED.set_name(4), element)
            added.append(address)

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        for number in range(8):
            gateway.load(fences[number % 2])
            gateway.ask("age", fences[number % 2])
    finally:
        done.set()
        thread.join()
    learned = gateway.ask("learned", fences[0])
    kept = {*learned[NAMED.set_name(4)], *learned[NAMED.old_set_name(4)]}
    assert len(added) > 5
    assert kept == set(added)


def test_denials_are_logged_with_their_reason_and_not_too_many(gateway: Gateway) -> None:
    shown = egress_nftables.ruleset(fence_of(gateway.lab, scope("allowlist"), log_rate=3))
    assert 'log prefix "fleet forward project-shop " group 4711' in shown
    assert "rate 3/second" in shown
    gateway.load(fence_of(gateway.lab, scope("allowlist"), log_rate=0))
    assert "log prefix" not in gateway.nft("list", "ruleset")


def test_counters_say_what_was_let_through_and_what_was_not(gateway: Gateway) -> None:
    gateway.ask("remove")
    fence = fence_of(gateway.lab, scope("allowlist"))
    gateway.load(fence)
    web = gateway.lab.machines["web-1"]
    assert opens(web, "ping", address=HOSTS["hub"][0])
    counted = gateway.ask("counters", fence)["project-shop"]
    assert counted["allowed"][0] == 2
    assert counted["denied"] == (0, 0)
    assert not opens(web, "ping", address=HOSTS["forbidden"][0])
    assert gateway.ask("counters", fence)["project-shop"]["denied"][0] == 1


# Cost


TRACER = """
table {0} tracer {{
    chain c {{
        type filter hook prerouting priority -400
        ip saddr 192.168.100.10 tcp dport 22 meta nftrace set 1
    }}
}}
"""


def steps(gateway: Gateway, fence: Fence) -> list[str]:
    """The rules that the first packet of an allowed connection meets, as the kernel itself traces them."""
    lab = gateway.lab
    gateway.load(fence)
    gateway.ask("learn", LEARNED)
    lab.gateway.run("nft", "-f", "-", stdin=TRACER.format("inet") + TRACER.format("bridge"))
    monitor = lab.gateway.start("nft", "monitor", "trace", stdout=subprocess.PIPE)
    try:
        assert monitor.stdout is not None
        lines: list[str] = []
        reader = threading.Thread(target=lambda: lines.extend(monitor.stdout or ()))
        reader.start()
        web = lab.machines["web-1"]
        wait_for(lambda: opens(web, "tcp", address=HOSTS["allowed"][0], port=22) and len(lines) > 20, "a trace")
        seen = len(lines)  # the first one may have begun before the monitor did
        wait_for(lambda: opens(web, "tcp", address=HOSTS["allowed"][0], port=22) and len(lines) > 3 * seen, "more")
    finally:
        end(monitor)
        reader.join()
        for family in ("inet", "bridge"):
            gateway.nft("delete", "table", family, "tracer")
    begun = {line.split()[2] for line in lines if "flags == syn" in line}
    traces = [[line for line in lines if f"trace id {one} " in line and " rule " in line] for one in begun]
    return max(traces, key=len)


def test_a_packet_meets_as_many_rules_among_many_machines_and_names_as_among_few(gateway: Gateway) -> None:
    few = fence_of(gateway.lab, scope("allowlist"))
    strangers = tuple(
        replace(
            GUESTS[0],
            name=f"m{n}",
            mac=f"52:54:00:77:{n // 256:02x}:{n % 256:02x}",
            address4=f"192.168.100.{n + 20}",
            address6=f"fd00:100::1:{n:x}",
        )
        for n in range(180)
    )
    named = replace(NAMED, names=("allowed.example", *(f"n{number}.example" for number in range(300))))
    many = fence_of(
        gateway.lab,
        scope("allowlist", grants=(named, *GRANTS[1:])),
        *(scope("open", f"machine-other-{number}", grants=(), denied4=()) for number in range(20)),
    )
    many = many.evolve(
        guests=(*many.guests, *(replace(one, port=f"t{one.name}", scope="project-shop") for one in strangers))
    )
    counts = [len(steps(gateway, fence)) for fence in (few, many, few)]
    assert counts[0] == counts[1] == counts[2]
    assert 5 < counts[0] < 40


# Frames


@pytest.fixture
def wire(gateway: Gateway) -> Wire:
    """A fence in which web-1 may reach everything, so that only what its frames say can stop them."""
    fence = fence_of(gateway.lab, scope("open"))
    gateway.load(fence)
    return Wire(gateway, fence)


@dataclass
class Wire:
    """Frames from web-1, as an attacker in it builds them."""

    gateway: Gateway
    fence: Fence

    @property
    def lab(self) -> Lab:
        return self.gateway.lab

    @property
    def link(self) -> str:
        """The link address of the bridge."""
        return str(self.lab.gateway.json("link", "show", "fleet0")[0]["address"])

    def send(self, kind: int, body: bytes, to: str = "", **values: Any) -> None:
        frame = packets.frame(to or self.link, values.pop("link", GUESTS[0].mac), kind, body, **values)
        self.lab.machines["web-1"].probe("frames", interface="eth0", frames=[frame])

    def drops(self, kind: int, body: bytes, to: str = "", **values: Any) -> bool:
        """Tell whether exactly such a frame is counted as dropped."""
        before = self.gateway.denied(self.fence)
        self.send(kind, body, to, **values)
        limit = time.monotonic() + PATIENCE / 2
        while time.monotonic() < limit:
            if self.gateway.denied(self.fence) > before:
                return True
        return False

    def packet(self, source: str, target: str = "", **values: Any) -> bytes:
        """A datagram to the internet."""
        target = target or HOSTS["allowed"][1 if ":" in source else 0]
        body = packets.udp(source, target, 5000, 5000, mark().encode())
        return (packets.ipv6 if ":" in source else packets.ipv4)(source, target, packets.UDP, body, **values)


OWN4, OWN6 = GUESTS[0].address4, GUESTS[0].address6
DB = GUESTS[2]


def link_local(mac: str) -> str:
    octets = mac.split(":")
    return f"fe80::{int(octets[0], 16) ^ 2:02x}{octets[1]}:{octets[2]}ff:fe{octets[3]}:{octets[4]}{octets[5]}"


def test_honest_frames_pass(wire: Wire) -> None:
    assert not wire.drops(packets.IPV4, wire.packet(OWN4))
    assert not wire.drops(packets.IPV6, wire.packet(OWN6))
    assert not wire.drops(
        packets.ARP, packets.arp(1, GUESTS[0].mac, OWN4, "00:00:00:00:00:00", GATEWAY4), packets.BROADCAST
    )
    assert not wire.drops(
        packets.ARP, packets.arp(1, GUESTS[0].mac, "0.0.0.0", "00:00:00:00:00:00", OWN4), packets.BROADCAST
    )
    own = link_local(GUESTS[0].mac)
    assert not wire.drops(packets.IPV6, packets.neighbour(own, GATEWAY6, own, GUESTS[0].mac))
    assert not wire.drops(packets.IPV6, packets.neighbour(OWN6, GATEWAY6, OWN6, GUESTS[0].mac))
    assert not wire.drops(packets.IPV6, packets.ipv6("::", "ff02::1:ff00:1", packets.ICMP6, probe6(OWN6), 255))
    random = "fe80::1234:5678:9abc:def0"
    assert not wire.drops(packets.IPV6, packets.neighbour(random, GATEWAY6, random, GUESTS[0].mac))


def probe6(address: str) -> bytes:
    """The question whether an address is free (RFC 4862)."""
    return packets.icmp6("::", "ff02::1:ff00:1", 135, 0, bytes(4) + packets.address(address))


SPOOFED: Mapping[str, tuple[int, Any]] = {
    "another IPv4 address": (packets.IPV4, lambda w: w.packet(DB.address4)),
    "another IPv6 address": (packets.IPV6, lambda w: w.packet(DB.address6)),
    "IPv4 options": (packets.IPV4, lambda w: w.packet(OWN4, options=b"\x83\x07\x04\x0b\x42\x00\x0a\x00")),
    "another's ARP answer": (packets.ARP, lambda _w: packets.arp(2, GUESTS[0].mac, DB.address4, DB.mac, GATEWAY4)),
    "a gratuitous ARP for the gateway": (
        packets.ARP,
        lambda _w: packets.arp(1, GUESTS[0].mac, GATEWAY4, "00:00:00:00:00:00", GATEWAY4),
    ),
    "its address at another's MAC": (packets.ARP, lambda _w: packets.arp(2, DB.mac, OWN4, DB.mac, GATEWAY4)),
    "a probe for another's address": (
        packets.ARP,
        lambda _w: packets.arp(1, GUESTS[0].mac, "0.0.0.0", "00:00:00:00:00:00", DB.address4),
    ),
    "ARP of another hardware": (
        packets.ARP,
        lambda _w: b"\0\6" + packets.arp(1, GUESTS[0].mac, OWN4, "00:00:00:00:00:00", GATEWAY4)[2:],
    ),
    "advertising another's address": (
        packets.IPV6,
        lambda _w: packets.neighbour(OWN6, GATEWAY6, DB.address6, GUESTS[0].mac),
    ),
    "advertising another's link-local address": (
        packets.IPV6,
        lambda _w: packets.neighbour(OWN6, GATEWAY6, link_local(DB.mac), GUESTS[0].mac),
    ),
    "another's link-local address": (
        packets.IPV6,
        lambda _w: packets.neighbour(link_local(DB.mac), GATEWAY6, OWN6, GUESTS[0].mac),
    ),
    "a probe for an address that the gateway is about to use": (
        packets.IPV6,
        lambda _w: packets.ipv6("::", "ff02::1:ff00:1", packets.ICMP6, probe6(GATEWAY6), 255),
    ),
    "a router advertisement": (
        packets.IPV6,
        lambda _w: packets.router(link_local(GUESTS[0].mac), GUESTS[0].mac, "2fff:bad::"),
    ),
    "an unknown ethertype": (packets.EXPERIMENT, lambda _w: bytes(46)),
    "IPv6 in the ethertype of IPv4": (packets.IPV4, lambda w: w.packet(OWN6)),
    "a frame of the bridges' own protocols": (0x88CC, lambda _w: bytes(46)),
    "ARP for another address of the gateway": (
        packets.ARP,
        lambda _w: packets.arp(1, GUESTS[0].mac, OWN4, "00:00:00:00:00:00", "11.0.0.2"),
    ),
}


@pytest.mark.parametrize("lie", SPOOFED)
def test_lies_about_oneself_are_dropped(wire: Wire, lie: str) -> None:
    kind, body = SPOOFED[lie]
    assert wire.drops(kind, body(wire))


def test_frames_with_another_mac_are_dropped(wire: Wire) -> None:
    for link in (DB.mac, "52:54:00:99:99:99"):
        assert wire.drops(packets.IPV4, wire.packet(OWN4), link=link)
        assert wire.drops(packets.IPV6, wire.packet(OWN6), link=link)


def test_tagged_frames_are_dropped(wire: Wire) -> None:
    for tags in (
        ((packets.VLAN, 0),),
        ((packets.VLAN, 5),),
        ((packets.QINQ, 5), (packets.VLAN, 6)),
        ((packets.QINQ, 0),),
    ):
        assert wire.drops(packets.IPV4, wire.packet(OWN4), tags=tags), tags
        assert wire.drops(packets.IPV6, wire.packet(OWN6), tags=tags), tags


def test_routing_headers_are_dropped(wire: Wire) -> None:
    body = packets.udp(OWN6, HOSTS["allowed"][1], 5000, 5000, b"x")
    header = bytes([packets.UDP, 2, 4, 0, 0, 0, 0, 0]) + packets.address(HOSTS["allowed"][1])
    packet = packets.ipv6(OWN6, HOSTS["allowed"][1], packets.ROUTING, header + body)
    assert wire.drops(packets.IPV6, packet)


def test_dhcp_is_asked_for_ones_own_card_only(wire: Wire) -> None:
    def discover(client: str) -> bytes:
        head = (
            bytes([1, 1, 6, 0])
            + bytes(24)
            + packets.mac(client)
            + bytes(10 + 192)
            + b"\x63\x82\x53\x63\x35\x01\x01\xff"
        )
        body = packets.udp("0.0.0.0", "255.255.255.255", 68, 67, head)
        return packets.ipv4("0.0.0.0", "255.255.255.255", packets.UDP, body)

    assert not wire.drops(packets.IPV4, discover(GUESTS[0].mac), packets.BROADCAST)
    assert wire.drops(packets.IPV4, discover(DB.mac), packets.BROADCAST)


def test_a_bridge_that_was_lied_to_gives_nobody_the_packets_of_another(wire: Wire) -> None:
    """The bridge learns from frames that never reach a rule (LLDP). What is for db-1 still does not come to web-1."""
    lab = wire.lab
    lldp = packets.frame("01:80:c2:00:00:0e", DB.mac, 0x88CC, bytes(46))
    lab.machines["web-1"].probe("frames", interface="eth0", frames=[lldp])
    marker = mark()
    lab.gateway.run("ip", "neigh", "replace", DB.address4, "lladdr", DB.mac, "dev", "fleet0")
    table = lab.gateway.run("bridge", "fdb", "show", "dev", GUESTS[0].port).stdout
    assert DB.mac in table, "the bridge believes it; if it no longer does, this test proves nothing"
    lab.gateway.probe("udp", address=DB.address4, port=5001, data=marker, timeout=0.2)
    assert not lab.machines["web-1"].saw(marker)
    lab.machines["db-1"].probe("ping", address=GATEWAY4, timeout=0.3)


def test_a_neighbour_entry_that_was_lied_to_gives_nobody_the_packets_of_another(wire: Wire) -> None:
    lab = wire.lab
    marker = mark()
    for address in (DB.address4, DB.address6):
        lab.gateway.run("ip", "neigh", "replace", address, "lladdr", GUESTS[0].mac, "dev", "fleet0")
        lab.gateway.probe("udp", address=address, port=5001, data=marker, timeout=0.2)
        lab.gateway.run("ip", "neigh", "del", address, "dev", "fleet0")
    assert not lab.machines["web-1"].saw(marker)


def test_a_machine_whose_port_is_unknown_is_held_to_the_addresses_of_its_mac(gateway: Gateway) -> None:
    fence = fence_of(gateway.lab, scope("open"))
    loose = tuple(replace(one, port="") if one.name == "web-1" else one for one in fence.guests)
    fence = fence.evolve(guests=loose)
    gateway.load(fence)
    wire = Wire(gateway, fence)
    web = gateway.lab.machines["web-1"]
    assert opens(web, "tcp", address=HOSTS["allowed"][0], port=22)
    assert opens(web, "tcp", address=HOSTS["allowed"][1], port=22)
    for lie in (
        "another IPv4 address",
        "another's ARP answer",
        "advertising another's address",
        "a router advertisement",
    ):
        kind, body = SPOOFED[lie]
        assert wire.drops(kind, body(wire)), lie
    # Its own MAC is not held to a port, those of machines whose ports are known are.
    assert wire.drops(packets.IPV4, wire.packet(DB.address4), link=DB.mac)
    assert not opens(web, "tcp", address=DB.address4, port=8080)


@pytest.mark.parametrize("port", ["tap-web-1", ""], ids=["known port", "unknown port"])
def test_who_is_nobody_does_not_take_the_address_of_a_machine(gateway: Gateway, port: str) -> None:
    """A card that no policy knows, on a port that none knows: with or without the module nft_meta_bridge."""
    lab = gateway.lab
    fence = fence_of(lab, scope("open"))
    guests = (replace(fence.guests[0], port=port), *fence.guests[1:])
    gateway.load(fence.evolve(guests=guests))
    assert_nobody_takes(lab, lab.machines["web-1"])


def test_ipv6_is_closed_where_a_machine_has_no_address_of_it(gateway: Gateway) -> None:
    fence = fence_of(gateway.lab, scope("open"))
    without = tuple(replace(one, address6="") if one.name == "web-1" else one for one in fence.guests)
    fence = fence.evolve(guests=without)
    gateway.load(fence)
    wire = Wire(gateway, fence)
    own = link_local(GUESTS[0].mac)
    assert wire.drops(packets.IPV6, wire.packet(OWN6))
    assert wire.drops(packets.IPV6, packets.neighbour(own, GATEWAY6, own, GUESTS[0].mac))


# What others have loaded


def test_rules_of_others_that_drop_are_reported_and_those_that_do_not_are_not(gateway: Gateway) -> None:
    """As Docker sets up its host: a policy of drop. Our accept does not help there; what is reported does."""
    require_tool("iptables-nft", "to load rules as Docker does")
    lab, fence = gateway.lab, fence_of(gateway.lab, scope("open"))
    gateway.load(fence)
    web = lab.machines["web-1"]

    def found() -> list[str]:
        with lab.gateway.inside():
            return conflicts(fence)

    assert found() == []
    rules = "*filter\n:FORWARD DROP [0:0]\n:DOCKER-USER - [0:0]\n-A FORWARD -j DOCKER-USER\nCOMMIT\n"
    lab.gateway.run("iptables-nft-restore", stdin=rules)
    try:
        (sentence,) = found()
        assert sentence.startswith("Docker (table ip filter, chain FORWARD): expected to let pass")
        assert not opens(web, "tcp", address=HOSTS["allowed"][0], port=22)
        for command in sentence.rpartition("found that it drops it; ")[2].split("; "):
            lab.gateway.run(*command.replace("iptables", "iptables-nft", 1).split())
        assert found() == []
        assert opens(web, "tcp", address=HOSTS["allowed"][0], port=22)
        # What opens Docker's door opens none of ours.
        assert not opens(web, "tcp", address="192.168.101.10", port=8080)
        assert lab.internet.probe("tcp", address=web.guest.address4, port=8080, timeout=PATIENCE)["outcome"] != "open"
    finally:
        gateway.nft("delete", "table", "ip", "filter")
