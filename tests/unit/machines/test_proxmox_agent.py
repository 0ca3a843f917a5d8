# SPDX-License-Identifier: GPL-3.0-or-later
"""What the guest agents of machines on Proxmox VE say is a guest's word."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from fleet_machines.provider import Job
from fleet_machines.proxmox_config_tags import marks_of
from fleet_machines.proxmox_machines_agent import Agent

EVIL = "2001:db8::1%$(touch x)"


def addresses(told: object) -> Any:
    session = SimpleNamespace(request=lambda *_words, **_how: told)
    guest = SimpleNamespace(path="/nodes/a/qemu/1", machine_name="web")
    return Agent(session).addresses(guest, (), Job.lasting(5.0))  # type: ignore[arg-type]


def test_only_addresses_pass_for_addresses() -> None:
    items = [{"ip-address": EVIL}, {"ip-address": "-oProxyCommand=x"}, "nonsense", {"ip-address": "10.1.2.3"}]
    assert addresses({"result": [{"name": "eth0", "ip-addresses": items}]}) == ("10.1.2.3",)


def test_nonsense_is_no_address() -> None:
    assert addresses({"result": ["x", 5, {"name": "eth0", "ip-addresses": 7}]}) == ()


def test_tags_hold_addresses_only() -> None:
    assert marks_of("fleet;ip-10.1.2.3;ip--o.x;ip-{{1}}").addresses == ("10.1.2.3",)
