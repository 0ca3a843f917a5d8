# SPDX-License-Identifier: GPL-3.0-or-later
"""Connections to the proxy that a policy no longer permits, on kernels that can end them and on those that cannot."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fleet_node import egress_commands, egress_flows
from fleet_node.egress_services import PROXY, Services


class Sockets:
    """What ss shows and ends. able: whether the kernel can end them. come: what begins while they are ended."""

    def __init__(self) -> None:
        self.open = {"192.168.100.1:3128 192.168.100.10:5000"}
        self.able, self.come = True, ""

    def run(self, argv: Sequence[str], *_rest: Any) -> str:
        assert argv[:4] == ["ss", "-Hnt", "state", "established"]
        return "".join(f"0      0      {one}\n" for one in sorted(self.open) if argv[5].strip("[]") in one)

    def attempt(self, argv: Sequence[str], *_rest: Any) -> Any:
        assert argv[:2] == ["ss", "-KHnt"]
        self.open = (set() if self.able else self.open) | {self.come} - {""}
        return SimpleNamespace(returncode=0, stdout="", stderr="")


@pytest.fixture
def sockets(monkeypatch: pytest.MonkeyPatch) -> Sockets:
    found = Sockets()
    monkeypatch.setattr(egress_commands, "run", found.run)
    monkeypatch.setattr(egress_commands, "attempt", found.attempt)
    return found


def test_what_runs_through_the_proxy_ends(sockets: Sockets) -> None:
    sockets.come = "192.168.100.1:3128 192.168.100.10:5001"  # judged by the new policy
    assert egress_flows.cut_proxied(["192.168.100.10", "fd00:100::10"], 3128)


def test_a_kernel_that_ends_no_connections_is_noticed(sockets: Sockets) -> None:
    sockets.able = False
    assert not egress_flows.cut_proxied(["192.168.100.10"], 3128)
    assert egress_flows.cut_proxied(["192.168.100.11"], 3128)


def test_only_the_proxy_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: told.append((pid, number)))
    services = Services(tmp_path)
    monkeypatch.setattr(services, "views", lambda: {PROXY: {"pid": 7}, "egress-dns-default": {"pid": 8}})
    assert services.end([PROXY])
    assert services.hang_up(["egress-dns-default"])
    assert told == [(7, signal.SIGTERM), (8, signal.SIGHUP)]
