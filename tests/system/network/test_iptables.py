# SPDX-License-Identifier: GPL-3.0-or-later
"""The backend iptables with real packets, in both flavors of iptables: what it lets through is what a fence means."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.requirements import require_tool, unavailable
from tests.system.network import internet
from tests.system.network.lab import Lab

from fleet_core.fences import Fence, Grant, Hub, Proxy, Scope
from fleet_core.flows import ALLOWED, Flow, verdict
from fleet_node.egress_iptables import Iptables

HOSTS = internet.HOSTS
TCP, UDP = (22, 25, 8080), (443, 5000)
NAMED = Grant("aaaaaaa1", ("allowed.example",), ports=((22, 22), (5000, 5001)))
PLACES = Grant("aaaaaaa2", networks4=("10.9.9.9/32", "11.5.0.0/16"), networks6=("fd00:9::9/128",), ports=((25, 25),))
QUIC = Grant(
    "aaaaaaa3", networks4=("11.2.0.20/32",), networks6=("2fff:2::20/128",), protocol="udp", ports=((443, 443),)
)
ECHO = Grant("aaaaaaa4", networks4=("11.3.0.30/32",), networks6=("2fff:3::30/128",), protocol="icmp")
ENDED = Grant("aaaaaaa5", networks4=("11.4.0.40/32",), networks6=("2fff:4::40/128",), until=1_000_000_000, mark=5)
LEARNED = {NAMED.set_name(4): (HOSTS["allowed"][0],), NAMED.set_name(6): (HOSTS["allowed"][1],)}
GRANTS = (NAMED, PLACES, QUIC, ECHO, ENDED)


def scope(mode: str, name: str = "project-shop", **values: Any) -> Scope:
    """A scope as policies lead to it: who is locked in has no grants."""
    if mode == "locked":
        return Scope(name, mode)
    values = {"grants": GRANTS, "denied4": ("11.5.0.0/16",), "denied6": ("2fff:5::/32",), "hub": True, **values}
    return Scope(name, mode, **values)


def fence_of(lab: Lab, *scopes: Scope, **values: Any) -> Fence:
    return lab.fence(
        *scopes,
        Scope("default", "locked"),
        hub=Hub("hub.example", HOSTS["hub"], (8080,)),
        proxy=Proxy("squid", 8006),
        **values,
    )


@dataclass
class Gateway:
    """The gateway of a lab with the backend in it."""

    lab: Lab
    backend: Iptables
    folder: Path

    def write(self, fence: Fence) -> None:
        for name, text in self.backend.files(fence).items():
            (self.folder / name).write_text(text, encoding="utf-8")

    def load(self, fence: Fence) -> None:
        self.write(fence)
        with self.lab.gateway.inside():
            self.backend.load(self.folder, fence)
            assert self.backend.loaded(fence)

    def learn(self, learned: Mapping[str, tuple[str, ...]]) -> None:
        lines = [f"add {name} {address} -exist\n" for name, many in learned.items() for address in many]
        self.lab.gateway.run("ipset", "restore", stdin="".join(lines))

    def forget_flows(self) -> None:
        self.lab.gateway.run("conntrack", "-F")


@pytest.fixture(scope="module", params=["nft", "legacy"])
def gateway(request: pytest.FixtureRequest, lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    for tool in ("ipset", "conntrack", "nft", f"iptables-{request.param}"):
        require_tool(tool, "to test the backend iptables")
    if lab.gateway.run(f"iptables-{request.param}", "-S", check=False).returncode:
        unavailable(f"a kernel with the tables of iptables-{request.param} is needed")
    found = Gateway(lab, Iptables(request.param), tmp_path_factory.mktemp(request.param))
    yield found
    with lab.gateway.inside():
        found.backend.remove()
    lab.gateway.run("ipset", "destroy", check=False)


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
