# SPDX-License-Identifier: GPL-3.0-or-later
"""Policies made by chance, in force with each backend: real packets go where the meaning of a policy says, no other."""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.requirements import require_tool
from tests.system.network import internet
from tests.system.network.lab import Lab

from fleet_core.egress import parse
from fleet_core.egress_fence import compile as compile_fence
from fleet_core.egress_live import Live, live_change
from fleet_core.fences import Fence
from fleet_core.flows import ALLOWED, Flow, verdict
from fleet_node.egress_backends import Backend, backend

# Open, strict and an allowlist with many grants; FLEET_POLICIES=100 tries as many others.
SEEDS = (12, 13, 11, *range(100, 100 + int(os.environ.get("FLEET_POLICIES", "0"))))
OWN = ("192.168.100.10", "fd00:100::10")
TCP, UDP = (22, 25, 80, 443, 853, 5000, 8006, 8080), (443, 5000)
MODES = ("open", "open", "allowlist", "allowlist", "allowlist", "strict", "locked")
NAMES = ("allowed.example", "forbidden.example", "project.example", "cdn.example")


@dataclass
class Gateway:
    """The gateway of a lab with a backend in it."""

    lab: Lab
    backend: Backend
    folder: Path

    def load(self, fence: Fence) -> None:
        for name, text in self.backend.files(fence).items():
            (self.folder / name).write_text(text, encoding="utf-8")
        with self.lab.gateway.inside():
            self.backend.load(self.folder, fence)
            assert self.backend.loaded(fence)


@pytest.fixture(scope="module", params=["nftables", "iptables"])
def gateway(request: pytest.FixtureRequest, lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    for tool in ("nft", "conntrack", "iptables", "ipset"):
        require_tool(tool, "to put policies in force")
    found = Gateway(lab, backend(request.param), tmp_path_factory.mktemp(request.param))
    yield found
    with lab.gateway.inside():
        found.backend.remove()


def entry(chance: random.Random, now: int) -> dict[str, Any]:
    """Something of the lab that a policy may open, for ever, for an hour or until a while ago."""
    host = chance.choice(list(internet.HOSTS.values()))
    target = chance.choice(
        [
            {"domain": chance.choice(NAMES)},
            {"host": host[0]},
            {"host": host[1]},
            {"network": ".".join([*host[0].split(".")[:2], "0.0/16"])},
            {"network": chance.choice(["0.0.0.0/0", "::/0", "11.0.0.0/8", "2fff::/16", "10.0.0.0/7", "fc00::/7"])},
        ]
    )
    protocol = chance.choice(["tcp", "tcp", "tcp", "udp", "icmp", "any"])
    found: dict[str, Any] = {**target, "protocol": protocol}
    if protocol in ("tcp", "udp"):
        found["ports"] = chance.choice(["any", 22, 443, 5000, "20-30, 5000", "1-500, 800-8100", [80, 8080]])
    if chance.random() < 0.3:
        found["until"] = now + chance.choice([3600, -60])
    return found


def denial(chance: random.Random) -> str:
    host = chance.choice(list(internet.HOSTS.values()))
    return str(chance.choice([chance.choice(NAMES), host[0], host[1], "11.0.0.0/14", "2fff:4::/30"]))


def policy(chance: random.Random, now: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "allow": [entry(chance, now) for _number in range(chance.randint(0, 5))],
        "deny": [denial(chance) for _number in range(chance.choice([0, 0, 1, 2]))],
        "peers": chance.choice(["none", "project", ["web-1", "web-2", "db-1"]]),
        "hub": chance.random() < 0.7,
        "inherit": chance.random() < 0.8,
    }
    return found if chance.random() < 0.3 else {**found, "mode": chance.choice(MODES)}


def made(lab: Lab, seed: int, now: int) -> tuple[Fence, dict[str, tuple[str, ...]]]:
    """A fence made by chance, and what its names have led to."""
    chance = random.Random(seed)
    machines = {"web-1": policy(chance, now)} if chance.random() < 0.3 else {}
    policies = {"default": policy(chance, now), "projects": {"shop": policy(chance, now)}, "machines": machines}
    live: list[Live] = []
    if chance.random() < 0.5:
        live.append(live_change("project-shop", "allow", f"{chance.choice(NAMES)}:22,443", now + 60, now))
        live.append(live_change("default", "deny", denial(chance), 0, now))
    document = lab.document(
        policies,
        hub={"name": "hub.fleet", "addresses": list(internet.HOSTS["hub"]), "ports": [8080]},
        proxy={"kind": chance.choice(["none", "squid"]), "port": 8006},
        backend="nftables",
    )
    fence = compile_fence(parse(document), live, now)
    learned = {}
    for scope, family in itertools.product(fence.scopes, (4, 6)):
        for grant in scope.grants if scope.mode in ("allowlist", "open") else ():
            hosts = chance.sample(list(internet.HOSTS.values()), 4)
            if grant.names:
                learned[grant.set_name(family)] = tuple(host[family == 6] for host in hosts)
    return fence, learned


def tries(lab: Lab) -> list[Flow]:
    """Connections of web-1 to everything in the lab, by every protocol."""
    gateways = [("192.168.100.1", "fd00:100::1"), ("192.168.101.1", "fd00:101::1")]
    others = [(one.guest.address4, one.guest.address6) for name, one in lab.machines.items() if name != "web-1"]
    found = []
    for both in (*internet.HOSTS.values(), *gateways, *others):
        for source, destination in zip(OWN, both, strict=True):
            found += [Flow(source, destination, "tcp", port) for port in TCP]
            found += [Flow(source, destination, "udp", port) for port in UDP]
            found.append(Flow(source, destination, "icmp"))
    return found


def begin(lab: Lab, flow: Flow) -> Future[Any]:
    web = lab.machines["web-1"]
    if flow.protocol == "icmp":
        return web.begin("ping", address=flow.destination, timeout=0.7)
    return web.begin(flow.protocol, address=flow.destination, port=flow.port, timeout=0.7)


@pytest.fixture(scope="module")
def served(lab: Lab) -> set[Flow]:
    """What answers where nothing is closed: all else says nothing about a fence."""
    waiting = [(flow, begin(lab, flow)) for flow in tries(lab)]
    return {flow for flow, future in waiting if future.result(60)["outcome"] == "open"}


@pytest.mark.parametrize("seed", SEEDS)
def test_packets_go_where_a_policy_says(served: set[Flow], gateway: Gateway, seed: int) -> None:
    lab, now = gateway.lab, int(time.time())
    fence, learned = made(lab, seed, now)
    gateway.load(fence)
    with lab.gateway.inside():
        gateway.backend.learn(learned)
    lab.gateway.run("conntrack", "-F")
    waiting = [(flow, begin(lab, flow)) for flow in served]
    wrong = []
    for flow, future in waiting:
        meant, found = verdict(fence, learned, flow, now), future.result(60)["outcome"]
        if (meant == ALLOWED) != (found == "open"):
            wrong.append((flow, meant, found))
    assert not wrong, fence.scopes
