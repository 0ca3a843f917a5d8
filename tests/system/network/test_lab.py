# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab itself: without a fence everything is open, so that what is closed later is closed by the fence."""

from __future__ import annotations

from typing import Any

import pytest
from tests.system.network import internet
from tests.system.network.lab import Lab
from tests.system.network.namespaces import NamespaceError, command

ALLOWED4, ALLOWED6 = internet.HOSTS["allowed"]
RESOLVER4, RESOLVER6 = internet.HOSTS["resolver"]

OPEN: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("tcp", {"address": ALLOWED4, "port": 22}, {"server": "allowed", "client": "192.168.100.10"}),
    ("tcp", {"address": ALLOWED6, "port": 22}, {"server": "allowed", "client": "fd00:100::10"}),
    ("http", {"address": ALLOWED4, "host": "allowed.example"}, {"status": 200, "host": "allowed.example"}),
    ("tls", {"address": ALLOWED4, "sni": "a.example", "host": "b.example"}, {"sni": "a.example", "host": "b.example"}),
    ("tls", {"address": ALLOWED6, "sni": "a.example"}, {"server": "allowed", "sni": "a.example"}),
    ("udp", {"address": ALLOWED4, "port": 443, "data": "hello"}, {"data": "hello", "server": "allowed"}),
    ("udp", {"address": ALLOWED6, "port": 443, "data": "hello"}, {"data": "hello", "server": "allowed"}),
    ("dns", {"server": RESOLVER4, "name": "allowed.example"}, {"rcode": "NOERROR", "answers": [ALLOWED4]}),
    ("dns", {"server": RESOLVER6, "name": "allowed.example", "kind": "AAAA"}, {"answers": [ALLOWED6]}),
    ("dns", {"server": RESOLVER4, "name": "nowhere.example"}, {"rcode": "NXDOMAIN", "answers": []}),
    ("dns", {"server": RESOLVER4, "name": "allowed.example", "transport": "tcp"}, {"answers": [ALLOWED4]}),
    ("dns", {"server": RESOLVER4, "name": "allowed.example", "transport": "dot"}, {"answers": [ALLOWED4]}),
    ("dns", {"server": RESOLVER4, "name": "allowed.example", "transport": "doh"}, {"answers": [ALLOWED4]}),
    ("dns", {"server": internet.HOSTS["evil-resolver"][0], "name": "a.example", "kind": "TXT"}, {"answers": ["evil"]}),
    ("ping", {"address": ALLOWED4, "data": "hello"}, {"data": "hello"}),
    ("ping", {"address": ALLOWED6, "data": "hello"}, {"data": "hello"}),
    ("http", {"address": "169.254.169.254"}, {"server": "metadata"}),
    ("tcp", {"address": "192.168.100.1", "port": 8006}, {"address": "192.168.100.1"}),
    ("tcp", {"address": "192.168.100.11", "port": 8080}, {"address": "192.168.100.11"}),
    ("tcp", {"address": "192.168.101.10", "port": 8080}, {"address": "192.168.101.10"}),
    ("tcp", {"address": "fd00:100::11", "port": 8080}, {"address": "fd00:100::11"}),
]


@pytest.mark.parametrize(("what", "values", "expected"), OPEN, ids=lambda value: str(value)[:60])
def test_without_a_fence_everything_is_open(lab: Lab, what: str, values: Any, expected: dict[str, Any]) -> None:
    result = lab.machines["web-1"].probe(what, **values)
    assert result["outcome"] == "open", result
    assert {key: result.get(key) for key in expected} == expected


def test_a_probe_tells_refused_from_silence(lab: Lab) -> None:
    web = lab.machines["web-1"]
    assert web.probe("tcp", address=ALLOWED4, port=9)["outcome"] == "refused"
    lab.gateway.ip("route add blackhole 11.99.0.0/16", "route add unreachable 11.98.0.0/16")
    assert web.probe("udp", address="11.99.0.1", port=9, timeout=0.2)["outcome"] == "timeout"
    assert web.probe("tcp", address="11.98.0.1", port=9)["outcome"] == "unreachable"


def test_the_internet_tells_who_asked_what(lab: Lab) -> None:
    lab.internet.forget()
    web = lab.machines["web-1"]
    web.probe("dns", server=RESOLVER4, name="Secret.forbidden.example")
    assert lab.internet.asked("secret") == [
        {"server": "resolver", "client": "192.168.100.10", "transport": "udp"}
        | {"name": "Secret.forbidden.example", "type": "A"}
    ]
    web.probe("udp", address=ALLOWED4, port=500, data="marked-datagram")
    assert lab.internet.saw("marked-datagram")
    assert not lab.internet.saw("never-sent")


def test_records_change_while_the_lab_runs(lab: Lab) -> None:
    web = lab.machines["web-1"]
    lab.internet.records({"moving.example": {"A": ["11.1.0.10"]}})
    assert web.probe("dns", server=RESOLVER4, name="moving.example")["answers"] == ["11.1.0.10"]
    lab.internet.records({"moving.example": {"A": ["11.1.0.11"]}})
    assert web.probe("dns", server=RESOLVER4, name="moving.example")["answers"] == ["11.1.0.11"]
    lab.internet.records({"moving.example": None})
    assert web.probe("dns", server=RESOLVER4, name="moving.example")["rcode"] == "NXDOMAIN"


def test_a_connection_stays_open_between_probes(lab: Lab) -> None:
    web = lab.machines["web-1"]
    assert web.probe("open", name="one", address=ALLOWED4, port=22)["outcome"] == "open"
    assert web.probe("say", name="one", text="hello") == {"outcome": "open", "data": "hello"}
    web.probe("close", name="one")
    web.probe("flood", name="two", address=ALLOWED4, port=5001)
    assert web.probe("flooded", name="two")["lost"] == 0


def test_no_namespace_leads_out_of_the_lab(lab: Lab) -> None:
    lab.namespaces.prove_closed()
    elsewhere = f"{lab.gateway.name}-elsewhere"
    command("ip", "netns", "add", elsewhere)
    try:
        lab.gateway.ip(f"link add out type veth peer name in netns {elsewhere}")
        with pytest.raises(NamespaceError, match=f"interface out .veth. leads to {elsewhere}"):
            lab.namespaces.prove_closed()
    finally:
        command("ip", "netns", "del", elsewhere)
