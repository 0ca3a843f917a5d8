# SPDX-License-Identifier: GPL-3.0-or-later
"""A gateway of the lab with the backend iptables, and the policy that its tests share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.requirements import require_tool, unavailable
from tests.system.network import internet
from tests.system.network.lab import Lab

from fleet_core.fences import Fence, Grant, Hub, Proxy, Scope
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
        with self.lab.gateway.inside():
            self.backend.learn(learned)

    def forget_flows(self) -> None:
        self.lab.gateway.run("conntrack", "-F")


in_both_flavors = pytest.mark.parametrize("gateway", ["nft", "legacy"], indirect=True, scope="module")


@contextmanager
def iptables_on(lab: Lab, flavor: str, folder: Path) -> Iterator[Gateway]:
    """The gateway with a flavor of iptables; nothing of it is left afterwards."""
    for tool in ("ipset", "conntrack", "nft", f"iptables-{flavor}"):
        require_tool(tool, "to test the backend iptables")
    if lab.gateway.run(f"iptables-{flavor}", "-S", check=False).returncode:
        unavailable(f"a kernel with the tables of iptables-{flavor} is needed")
    found = Gateway(lab, Iptables(flavor), folder)
    yield found
    with lab.gateway.inside():
        found.backend.remove()
    lab.gateway.run("ipset", "destroy", check=False)


def outcome(lab: Lab, what: str, address: str, timeout: float = 0.7, **values: Any) -> str:
    """What becomes of one try of web-1."""
    return str(lab.machines["web-1"].probe(what, address=address, timeout=timeout, **values)["outcome"])
