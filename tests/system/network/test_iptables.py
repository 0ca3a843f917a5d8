# SPDX-License-Identifier: GPL-3.0-or-later
"""The backend iptables with real packets, in both flavors of iptables: what it lets through is what a fence means."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.requirements import require_tool
from tests.system.network.iptables import (
    GRANTS,
    HOSTS,
    LEARNED,
    NAMED,
    TCP,
    UDP,
    Gateway,
    fence_of,
    in_both_flavors,
    iptables_on,
    outcome,
    scope,
)
from tests.system.network.lab import Lab, end, wait_for
from tests.system.network.neighbours import assert_nobody_takes

from fleet_core.egress_denials import logged
from fleet_core.egress_dns import resolver
from fleet_core.fences import Grant, Hub
from fleet_core.flows import ALLOWED, Flow, verdict
from fleet_node.egress_nflog import Reader


@pytest.fixture(scope="module")
def gateway(request: pytest.FixtureRequest, lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """With iptables of nf_tables, or in both flavors where a test says so."""
    flavor = getattr(request, "param", "nft")
    with iptables_on(lab, flavor, tmp_path_factory.mktemp(flavor)) as found:
        yield found


def tries(lab: Lab) -> list[Flow]:
    """Connections of web-1 to everything in the lab, by every protocol."""
    own = ("192.168.100.10", "fd00:100::10")
    gateways = [("192.168.100.1", "fd00:100::1"), ("192.168.101.1", "fd00:101::1"), ("11.0.0.2", "2fff::2")]
    others = [(one.guest.address4, one.guest.address6) for name, one in lab.machines.items() if name != "web-1"]
    found = []
    for both in (*HOSTS.values(), *gateways, *others):
        for source, destination in zip(own, both, strict=True):
            found += [Flow(source, destination, "tcp", port) for port in TCP]
            found += [Flow(source, destination, "udp", port) for port in UDP]
            found.append(Flow(source, destination, "icmp"))
    found += [Flow(source, both, "tcp", 8006) for source, both in zip(own, gateways[0], strict=True)]
    return found


def begin(lab: Lab, flow: Flow, timeout: float = 0.7) -> Future[Any]:
    web = lab.machines["web-1"]
    if flow.protocol == "icmp":
        return web.begin("ping", address=flow.destination, timeout=timeout)
    return web.begin(flow.protocol, address=flow.destination, port=flow.port, timeout=timeout)


@in_both_flavors
@pytest.mark.parametrize("mode", ["locked", "strict", "allowlist", "open"])
def test_packets_go_where_the_fence_means_them_to(gateway: Gateway, mode: str) -> None:
    lab = gateway.lab
    fence = fence_of(lab, scope(mode))
    gateway.load(fence)
    if mode != "locked":
        gateway.learn(LEARNED)
    gateway.forget_flows()
    now = int(time.time())
    waiting = [(flow, begin(lab, flow)) for flow in tries(lab)]
    wrong = []
    for flow, future in waiting:
        meant, found = verdict(fence, LEARNED, flow, now), future.result(30)["outcome"]
        served = flow.destination not in ("11.0.0.2", "2fff::2")
        if (meant == ALLOWED and served) != (found == "open"):
            wrong.append((flow, meant, found))
    assert not wrong


def test_what_is_denied_is_told_at_once(gateway: Gateway) -> None:
    gateway.load(fence_of(gateway.lab, scope("allowlist")))
    assert outcome(gateway.lab, "tcp", HOSTS["forbidden"][0], port=22) == "refused"
    assert outcome(gateway.lab, "tcp", HOSTS["forbidden"][1], port=22) == "refused"
    answered = ("refused", "unreachable")  # the kernel sends one such answer a second
    wait_for(lambda: outcome(gateway.lab, "udp", HOSTS["forbidden"][0], port=5000) in answered, "an answer to UDP", 5)
    assert outcome(gateway.lab, "tcp", HOSTS["metadata"][0], port=80) == "timeout"


def test_guests_get_out_under_the_address_of_the_gateway(gateway: Gateway) -> None:
    fence = fence_of(gateway.lab, scope("open", denied4=(), denied6=()))
    gateway.load(fence)
    web = gateway.lab.machines["web-1"]
    assert web.probe("tcp", address=HOSTS["cdn"][0], port=22)["client"] == "11.0.0.2"
    assert web.probe("tcp", address=HOSTS["cdn"][1], port=22)["client"] == "2fff::2"
    plain = tuple(replace(bridge, nat=False) for bridge in fence.bridges)
    gateway.load(fence.evolve(bridges=plain))
    assert web.probe("tcp", address=HOSTS["cdn"][0], port=22)["client"] == "192.168.100.10"


def test_only_this_host_may_begin_to_talk_to_a_guest(gateway: Gateway) -> None:
    gateway.load(fence_of(gateway.lab, scope("open")))
    for address in ("192.168.100.10", "fd00:100::10"):
        assert gateway.lab.internet.probe("tcp", address=address, port=8080, timeout=0.4)["outcome"] == "timeout"
        assert gateway.lab.gateway.probe("tcp", address=address, port=8080)["outcome"] == "open"


def test_resolver_and_proxy_are_not_for_the_world_outside(gateway: Gateway) -> None:
    gateway.load(fence_of(gateway.lab, scope("open", resolver_port=22)))
    tries = [("192.168.100.1", 22), ("fd00:100::1", 22), ("192.168.100.1", 8006)]
    for address, port in tries:
        assert gateway.lab.internet.probe("tcp", address=address, port=port, timeout=0.4)["outcome"] == "timeout"
    assert outcome(gateway.lab, "tcp", "192.168.100.1", port=22) == "open"


@in_both_flavors
def test_under_stolen_addresses_nothing_comes_over_another_port(gateway: Gateway) -> None:
    """A port that no policy knows, with a machine's MAC and addresses; and the mark that tells it is no one's after."""
    lab = gateway.lab
    gateway.load(fence_of(lab, scope("open")))
    stranger = lab.stranger()
    gates = {"192.168.100.10/24": "192.168.100.1", "fd00:100::10/64": "fd00:100::1"}
    stranger.ip("link set eth0 address 52:54:00:00:01:10")
    for address, gate in gates.items():
        stranger.ip(
            f"addr replace {address} dev eth0{' nodad' if ':' in address else ''}", f"route replace default via {gate}"
        )
    marked = ("-t", "mangle", "-A", "POSTROUTING", "-o", "uplink", "-m", "mark", "!", "--mark", "0")
    lab.gateway.run(gateway.backend.tool(4), *marked)
    try:
        for host in (HOSTS["cdn"][0], HOSTS["cdn"][1], "192.168.100.1"):
            port = 8006 if host == "192.168.100.1" else 22
            assert stranger.probe("tcp", address=host, port=port, timeout=0.5)["outcome"] != "open"
        stranger.ip("addr flush dev eth0", "link set eth0 address 52:54:00:00:01:77")
        # The bridge has to learn again where the machine is.
        wait_for(lambda: outcome(lab, "tcp", HOSTS["cdn"][0], port=22) == "open", "the machine itself gets through")
        saved = lab.gateway.run(gateway.backend.tool(4, "save"), "-c", "-t", "mangle").stdout
        assert next(line for line in saved.splitlines() if "-A POSTROUTING -o uplink" in line).startswith("[0:0]")
    finally:
        lab.gateway.run(gateway.backend.tool(4), *("-D" if word == "-A" else word for word in marked))


@pytest.mark.parametrize("port", ["tap-web-1", ""], ids=["known port", "unknown port"])
def test_who_is_nobody_does_not_take_the_address_of_a_machine(gateway: Gateway, port: str) -> None:
    """A card that no policy knows, on a port that none knows: with or without the module nft_meta_bridge."""
    lab = gateway.lab
    fence = fence_of(lab, scope("open"))
    guests = (replace(fence.guests[0], port=port), *fence.guests[1:])
    gateway.load(fence.evolve(guests=guests))
    assert_nobody_takes(lab, lab.machines["web-1"])


@pytest.mark.parametrize("br_netfilter", [0, 1])
def test_peers_of_a_bridge_talk_and_others_do_not(gateway: Gateway, br_netfilter: int) -> None:
    lab = gateway.lab
    fence = fence_of(lab, scope("allowlist"))
    peers = {"web-1": ("web-2",), "web-2": ("web-1",), "db-1": ("web-1",)}
    guests = tuple(replace(guest, peers=peers.get(guest.name, ())) for guest in fence.guests)
    gateway.load(fence.evolve(guests=guests))
    if Path("/proc/sys/net/bridge").is_dir():
        switches = ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables")
        lab.gateway.run("sysctl", "-qw", *(f"net.bridge.{name}={br_netfilter}" for name in switches))
    try:
        found = {
            address: outcome(lab, "tcp", address, port=8080)
            for name in ("web-2", "db-1")
            for address in (lab.machines[name].guest.address4, lab.machines[name].guest.address6)
        }
        lab.machines["web-1"].namespace.ip("neigh flush all")
        assert outcome(lab, "ping", "fd00:100::11") == "open"
    finally:
        if Path("/proc/sys/net/bridge").is_dir():
            lab.gateway.run("sysctl", "-qw", *(f"net.bridge.{name}=0" for name in switches))
    reached = {address for address, how in found.items() if how == "open"}
    assert reached == {"192.168.100.11", "fd00:100::11"}


def test_names_open_what_they_lead_to(gateway: Gateway, tmp_path: Path) -> None:
    lab = gateway.lab
    shop = scope("allowlist", resolver_port=10053)
    fence = fence_of(lab, shop)
    gateway.load(fence)
    gateway.lab.gateway.run("ipset", "flush", NAMED.set_name(4))
    gateway.lab.gateway.run("ipset", "flush", NAMED.set_name(6))
    os.chmod(tmp_path, 0o755)
    configuration = tmp_path / "dnsmasq.conf"
    configuration.write_text(resolver(fence, shop, "iptables", str(tmp_path / "log")), encoding="utf-8")
    with process(lab, require_tool("dnsmasq", "to answer names"), "-k", "-u", "root", "-C", str(configuration)):
        web = lab.machines["web-1"]
        wait_for(lambda: ask(lab, "192.168.100.1", "allowed.example")["outcome"] == "open", "the resolver answers")
        lab.gateway.run("ipset", "flush", NAMED.set_name(4))
        for family, kind in ((0, "A"), (1, "AAAA")):
            lab.gateway.run("ipset", "flush", NAMED.set_name(4 + 2 * family))
            assert outcome(lab, "tcp", HOSTS["allowed-2"][family], port=22) == "refused"
            lab.internet.records({"moved.allowed.example": {kind: [HOSTS["allowed-2"][family]]}})
            elsewhere = HOSTS["evil-resolver"][family]  # led to our own resolver
            assert web.probe("dns", server=elsewhere, name="moved.allowed.example", kind=kind)["outcome"] == "open"
            assert outcome(lab, "tcp", HOSTS["allowed-2"][family], port=22) == "open"
            assert web.probe("dns", server=elsewhere, name="forbidden.example", kind=kind)["outcome"] == "refused"
    with lab.gateway.inside():
        learned = gateway.backend.learned(fence)
        assert learned[NAMED.set_name(4)] == (HOSTS["allowed-2"][0],)
        gateway.backend.age(fence)
        aged = gateway.backend.learned(fence)
        assert aged[NAMED.set_name(4)] == ()
        assert aged[NAMED.old_set_name(4)] == (HOSTS["allowed-2"][0],)
    assert outcome(lab, "tcp", HOSTS["allowed-2"][0], port=22) == "open"
    with lab.gateway.inside():
        gateway.backend.forget(
            {NAMED.old_set_name(4): [HOSTS["allowed-2"][0], "11.9.9.9"], "fleet_nothing_4": ["11.9.9.9"]}
        )
    assert outcome(lab, "tcp", HOSTS["allowed-2"][0], port=22) == "refused"


def ask(lab: Lab, server: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = lab.machines["web-1"].probe("dns", server=server, name=name, timeout=0.5)
    return found


@contextmanager
def process(lab: Lab, *argv: str) -> Iterator[subprocess.Popen[str]]:
    started = lab.gateway.start(*argv)
    try:
        yield started
    finally:
        end(started)


@in_both_flavors
def test_reloads_lose_nothing_and_let_nothing_through(gateway: Gateway) -> None:
    """While rules are loaded again and again: an open flow loses nothing, and no packet gets where it must not."""
    lab = gateway.lab
    grants = (*GRANTS, Grant("aaaaaaa6", networks4=("11.1.0.10/32",), protocol="udp", ports=((5001, 5001),)))
    first = fence_of(lab, scope("allowlist", grants=grants))
    other = fence_of(lab, scope("allowlist", grants=(*grants, Grant("aaaaaaa7", networks4=("11.77.0.0/16",)))))
    gateway.load(first)
    gateway.learn(LEARNED)
    web = lab.machines["web-1"]
    assert web.probe("open", name="kept", address=HOSTS["allowed"][0], port=22)["outcome"] == "open"
    web.probe("flood", name="open", address=HOSTS["allowed"][0], port=5001, rate=300)
    web.probe("flood", name="closed", address=HOSTS["forbidden"][0], port=5001, rate=300)
    for turn in range(10):
        gateway.write(other if turn % 2 == 0 else first)
        with lab.gateway.inside():
            gateway.backend.load(gateway.folder, other if turn % 2 == 0 else first)
    through, stopped = web.probe("flooded", name="open"), web.probe("flooded", name="closed")
    assert min(through["sent"], stopped["sent"]) > 100
    assert (through["lost"], stopped["answered"]) == (0, 0)
    assert web.probe("say", name="kept")["outcome"] == "open"
    with lab.gateway.inside():
        assert gateway.backend.learned(first)[NAMED.set_name(4)] == LEARNED[NAMED.set_name(4)]
    assert "fleet_aaaaaaaa7_4" not in lab.gateway.run("ipset", "list", "-n").stdout


def test_a_stricter_mode_ends_what_is_forwarded(gateway: Gateway) -> None:
    lab = gateway.lab
    gateway.load(fence_of(lab, scope("open")))
    web = lab.machines["web-1"]
    assert web.probe("open", name="ending", address=HOSTS["cdn"][0], port=22)["outcome"] == "open"
    gateway.load(fence_of(lab, scope("strict")))
    assert web.probe("say", name="ending", timeout=0.7)["outcome"] != "open"


@in_both_flavors
def test_connections_that_somebody_outside_began_end_with_the_fence(gateway: Gateway) -> None:
    """Also where they are older than the fence, and the connection tracking calls them established."""
    lab = gateway.lab
    with lab.gateway.inside():
        gateway.backend.remove()
    web = lab.machines["web-1"]
    seen = ("FORWARD", "-m", "conntrack", "--ctstate", "NEW")
    lab.gateway.run(gateway.backend.tool(4), "-A", *seen)
    try:
        assert lab.internet.probe("open", name="in", address=web.guest.address4, port=8080)["outcome"] == "open"
        gateway.load(fence_of(lab, scope("open")))
        assert lab.internet.probe("say", name="in", timeout=0.7)["outcome"] != "open"
    finally:
        lab.gateway.run(gateway.backend.tool(4), "-D", *seen)


def test_a_hub_that_is_a_machine_answers_those_of_other_bridges(gateway: Gateway) -> None:
    lab = gateway.lab
    far, web = lab.machines["far-1"], lab.machines["web-1"]
    hub = Hub("hub.example", (far.guest.address4, far.guest.address6), (8080,))
    for mode in ("strict", "allowlist"):
        fence = fence_of(lab, scope("strict"), scope(mode, "project-far", grants=(), hub=False))
        gateway.load(fence.evolve(hub=hub))
        assert outcome(lab, "tcp", far.guest.address4, port=8080) == "open"
        assert outcome(lab, "tcp", far.guest.address6, port=8080) == "open"
        assert outcome(lab, "udp", far.guest.address4, port=5000) != "open"
        assert far.probe("tcp", address=web.guest.address4, port=8080, timeout=0.7)["outcome"] != "open"


@in_both_flavors
def test_what_began_under_a_grant_ends_with_it(gateway: Gateway) -> None:
    lab = gateway.lab
    until = int(time.time()) + 3
    timed = Grant("aaaaaaa8", networks4=("11.2.0.20/32",), ports=((22, 22),), until=until, mark=8)
    gateway.load(fence_of(lab, scope("allowlist", grants=(timed,))))
    web = lab.machines["web-1"]
    assert web.probe("open", name="timed", address=HOSTS["cdn"][0], port=22)["outcome"] == "open"
    assert web.probe("say", name="timed")["outcome"] == "open"
    wait_for(lambda: time.time() >= until + 0.1, "the grant ends", 10)  # rules read the time of the last tick
    assert web.probe("say", name="timed", timeout=1)["outcome"] == "refused"
    assert outcome(lab, "tcp", HOSTS["cdn"][0], port=22) == "refused"


@in_both_flavors
def test_the_kernel_says_why_and_of_whom(gateway: Gateway) -> None:
    lab = gateway.lab
    fence = fence_of(lab, scope("allowlist"), scope("strict", "project-data"))
    gateway.load(fence)
    words = ("forward", "denied", "expired", "input", "peer", "metadata", "dns")
    with lab.gateway.inside():
        reader = Reader(fence.log_group)
    try:
        for address, port in ((HOSTS["forbidden"][0], 22), (HOSTS["other-project"][0], 25), (HOSTS["doh"][1], 22)):
            outcome(lab, "tcp", address, port=port)
        outcome(lab, "tcp", "192.168.100.1", port=22)
        outcome(lab, "tcp", "192.168.101.10", port=8080)
        outcome(lab, "tcp", HOSTS["metadata"][0], port=80, timeout=0.2)
        outcome(lab, "udp", HOSTS["resolver"][0], port=53, timeout=0.2)
        lab.internet.probe("tcp", address="192.168.100.12", port=8080, timeout=0.2)
        wanted = {*(f"fleet {word} project-shop " for word in words), "fleet inbound project-data "}
        seen: set[str] = set()

        def all_seen() -> bool:
            seen.update(one.prefix for data in iter(reader.read, None) for one in logged(data))
            return wanted <= seen

        wait_for(all_seen, "the kernel says all that was denied", 5)
    finally:
        reader.close()


def test_packets_are_counted_by_scope_and_verdict(gateway: Gateway) -> None:
    lab = gateway.lab
    fence = fence_of(lab, scope("allowlist"))
    gateway.load(fence)
    gateway.learn(LEARNED)

    def counted() -> dict[str, tuple[int, int]]:
        with lab.gateway.inside():
            return gateway.backend.counters(fence)["project-shop"]

    before = counted()
    outcome(lab, "tcp", HOSTS["allowed"][0], port=22)
    outcome(lab, "tcp", HOSTS["allowed"][1], port=22)
    between = counted()
    assert between["allowed"] > before["allowed"]
    assert between["denied"] == before["denied"]
    outcome(lab, "tcp", HOSTS["forbidden"][0], port=22)
    gateway.load(fence)
    assert counted()["denied"][0] == before["denied"][0] + 1
    assert counted()["allowed"] == between["allowed"]
