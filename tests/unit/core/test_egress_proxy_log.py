# SPDX-License-Identifier: GPL-3.0-or-later
"""What proxies refused, from lines that squid 5.7 and the addon of mitmproxy wrote."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.unit.core.egress_examples import FENCE

from fleet_core.egress_denials import Roster, refused_by_proxy, sentence
from fleet_core.egress_proxy_log import ProxyRefusal, refusal

SQUID = {
    "time": 1795282956.106, "source": "192.168.100.10", "method": "CONNECT", "host": "evil.net", "port": "443",
    "sni": "evil.net", "tls": "bump", "verdict": "TCP_DENIED", "status": 200, "address": "-",
}  # fmt: skip
ADDON = {
    "time": 1795283648.29, "source": "192.168.100.10", "machine": "web-1", "method": "CONNECT", "host": "evil.net",
    "port": 443, "sni": "", "verdict": "denied", "reason": "the policy does not name it", "status": 403,
}  # fmt: skip


def read(row: dict[str, Any], **values: Any) -> ProxyRefusal | None:
    return refusal(json.dumps({**row, **values}))


@pytest.mark.parametrize("row", [SQUID, ADDON], ids=["squid", "mitmproxy"])
def test_a_denial_is_told(row: dict[str, Any]) -> None:
    assert read(row) == ProxyRefusal("192.168.100.10", "evil.net", 443)


def test_another_name_in_the_greeting_is_what_is_told() -> None:
    found = read(SQUID, host="example.org", sni="Evil.net", tls="terminate", verdict="NONE_NONE")
    assert found == ProxyRefusal("192.168.100.10", "evil.net", 443)


@pytest.mark.parametrize(
    "line",
    [
        json.dumps({**SQUID, "verdict": "TCP_TUNNEL", "tls": "splice"}),
        json.dumps({**SQUID, "verdict": "NONE_NONE", "tls": "peek"}),
        json.dumps({**ADDON, "verdict": "allowed"}),
        "",
        "[]",
        "null",
        '{"verdict"',
        '"denied"',
    ],
)
def test_nothing_else_is(line: str) -> None:
    assert refusal(line) is None


def test_strange_values_give_empty_fields() -> None:
    assert read(SQUID, host="-", port="-", source=7, sni=None) == ProxyRefusal("", "", 0)
    assert read(SQUID, host="x" * 9999) == ProxyRefusal("192.168.100.10", "x" * 253, 443)


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("evil.net", "web-1: evil.net:443 refused by the proxy"),
        ("10.0.0.1", "web-1: 10.0.0.1:443 refused by the proxy"),
        ("[fd00::1]", "web-1: [fd00::1]:443 refused by the proxy"),
    ],
)
def test_it_becomes_a_denial_of_its_machine(host: str, words: str) -> None:
    one = refused_by_proxy(ProxyRefusal("192.168.100.10", host, 443), Roster(FENCE), 1_800_000_000)
    assert (one.reason, one.machine, one.project, one.scope) == ("proxy", "web-1", "shop", "default")
    assert sentence(one.to_dict()).endswith(words)
