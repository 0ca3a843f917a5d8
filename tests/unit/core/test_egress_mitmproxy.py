# SPDX-License-Identifier: GPL-3.0-or-later
"""What mitmproxy is told, and what its addon decides."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.golden import check_golden
from tests.unit.core.egress_examples import FENCE

from fleet_core import egress_mitmproxy
from fleet_core.egress_decisions import Policy, ScopePolicy, as_host, loggable, mismatch, without_port

NOW = 1_900_000_000.0
ENDED = 2_000_000_001.0
POLICY = Policy(json.loads(egress_mitmproxy.policy(FENCE)))
# A scope whose policy names what is closed otherwise.
OPENED: dict[str, Any] = {
    "denied_names": [],
    "special": [],
    "closed_names": ["dns.google"],
    "closed_networks": ["8.8.8.8/32"],
    "networks": [],
    "names": [{"domain": "dns.google", "ports": [[443, 443]], "until": 0}],
}
WEB, OPEN, STRICT, LOCKED = "192.168.100.10", "192.168.100.11", "fd00:100::12", "192.168.100.13"


def test_the_policy_is_known() -> None:
    check_golden("egress/mitmproxy.json", egress_mitmproxy.policy(FENCE))


def test_the_options_are_known() -> None:
    check_golden("egress/mitmproxy-config.json", egress_mitmproxy.options(FENCE, "/var/lib/x", "/etc/ssl/ca.pem"))


def test_the_command_becomes_another_user() -> None:
    argv = egress_mitmproxy.command("/opt/mitmdump", "/var/lib/x", "proxy")
    assert argv[:5] == ["setpriv", "--reuid=proxy", "--regid=proxy", "--clear-groups", "--no-new-privs"]
    assert egress_mitmproxy.command("/opt/mitmdump", "/var/lib/x")[0] == "/opt/mitmdump"


@pytest.mark.parametrize(
    ("source", "host", "port", "reason"),
    [
        (WEB, "example.org", 443, ""),
        (WEB, "a.b.example.org", 80, ""),
        (WEB, "notexample.org", 443, "the policy does not name it"),
        (WEB, "example.org.evil.com", 443, "the policy does not name it"),
        (WEB, "example.org", 8443, "the policy has this name, but not on port 8443 now"),
        (WEB, "bad.example.org", 443, "the policy denies this name"),
        (WEB, "x.bad.example.org", 443, "the policy denies this name"),
        (WEB, "api.example.org", 8050, ""),
        (WEB, "later.net", 65535, ""),
        (WEB, "time.net", 123, "the policy does not name it"),  # UDP
        (WEB, "10.9.0.7", 2222, ""),
        (WEB, "10.9.0.7", 443, "no network of the policy has it on port 443"),
        (WEB, "10.9.9.7", 2222, "no network of the policy has it on port 2222"),  # denied
        (WEB, "::ffff:10.9.0.7", 2222, ""),
        (WEB, "192.168.100.1", 2222, "no network of the policy has it on port 2222"),
        (WEB, "2130706433", 443, "the policy does not name it"),
        (WEB, "", 443, "the policy does not name it"),
        (OPEN, "anything.net", 12345, ""),
        (OPEN, "anything.net", 853, "the policy does not name it"),
        (OPEN, "dns.google", 443, "names are asked elsewhere there"),
        (OPEN, "8.8.4.4", 443, "no network of the policy has it on port 443"),
        (OPEN, "8.1.1.1", 443, ""),
        (OPEN, "10.0.0.1", 443, "no network of the policy has it on port 443"),
        (OPEN, "bad.example.org", 443, "the policy denies this name"),
        (STRICT, "example.org", 443, ""),
        (STRICT, "api.net", 443, "the policy does not name it"),
        (LOCKED, "example.org", 443, "the mode is locked"),
        ("192.168.100.99", "example.org", 443, "this is no machine of the policy"),
    ],
)
def test_who_may_reach_what(source: str, host: str, port: int, reason: str) -> None:
    assert POLICY.refusal(source, host, port, NOW) == reason


def test_what_is_granted_for_a_time_ends_with_it() -> None:
    assert not POLICY.refusal(WEB, "later.net", 443, NOW)
    assert POLICY.refusal(WEB, "later.net", 443, ENDED) == "the policy has this name, but not on port 443 now"


@pytest.mark.parametrize(
    ("address", "port", "leads"),
    [("8.8.8.8", 443, True), ("10.0.0.1", 443, False), ("10.9.0.7", 2222, True), ("10.9.0.7", 443, False),
     ("127.0.0.1", 2222, False), ("192.168.100.11", 2222, False),
     ("169.254.169.254", 80, False), ("fe80::1", 443, False)],
)  # fmt: skip
def test_where_names_may_lead(address: str, port: int, leads: bool) -> None:
    import ipaddress

    scope = POLICY.scope(WEB)
    assert scope
    assert scope.leads(ipaddress.ip_address(address), "example.org", port, NOW) is leads


@pytest.mark.parametrize("host", ["doh.evil.example", "134744072", "0x8.8.8.8"])
def test_in_mode_open_only_a_granted_name_leads_to_other_resolvers(host: str) -> None:
    """However an address is written: programs that resolve names take all of these for 8.8.8.8."""
    import ipaddress

    scope = POLICY.scope(OPEN)
    assert scope
    assert not scope.refusal(host, 443, NOW)
    assert not scope.leads(ipaddress.ip_address("8.8.8.8"), host, 443, NOW)
    assert scope.leads(ipaddress.ip_address("198.41.0.4"), host, 443, NOW)
    assert ScopePolicy({**OPENED, "mode": "open"}).leads(ipaddress.ip_address("8.8.8.8"), "dns.google", 443, NOW)


def test_without_a_policy_nobody_gets_out() -> None:
    assert Policy().refusal(WEB, "example.org", 443, NOW) == "this is no machine of the policy"


@pytest.mark.parametrize(
    ("target", "sni", "said", "words"),
    [
        ("example.org", "example.org", ["example.org"], ""),
        ("example.org", "EXAMPLE.org.", ["example.org:443"], ""),
        ("example.org", None, ["example.org"], ""),
        ("10.0.0.1", None, ["10.0.0.1:8443"], ""),
        ("fd00::1", None, ["[fd00:0::1]:443"], ""),
        (
            "example.org",
            "evil.net",
            ["example.org"],
            "the TLS greeting says evil.net, the connection is to example.org",
        ),
        ("example.org", "example.org", ["evil.net"], "the request is for evil.net, the connection is to example.org"),
        (
            "example.org",
            None,
            ["example.org", "evil.net"],
            "the request is for evil.net, the connection is to example.org",
        ),
        ("example.org", None, ["x@evil.net"], "the request is for x@evil.net, the connection is to example.org"),
        ("example.org", None, [""], "the request is for , the connection is to example.org"),
        (
            "example.org",
            None,
            ["sub.example.org"],
            "the request is for sub.example.org, the connection is to example.org",
        ),
    ],
)
def test_names_must_agree(target: str, sni: str | None, said: list[str], words: str) -> None:
    assert mismatch(target, sni, said) == words


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("a.b:443", "a.b"),
        ("a.b", "a.b"),
        ("[::1]:443", "::1"),
        ("[::1]", "::1"),
        ("1.2.3.4:5", "1.2.3.4"),
        ("A.B.", "a.b"),
    ],
)
def test_a_host_is_what_stands_before_the_port(text: str, host: str) -> None:
    assert without_port(text) == host


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/simple/requests/", "/simple/requests/"),
        ("/a?token=secret", "/a"),
        ("/a#b", "/a"),
        ("/bot123456789:AAF0000000000000000000000000000000/send", "/*/send"),
        ("/packages/ab/" + "0f" * 30 + "/x-1.0-py3.whl", "/packages/ab/*/x-1.0-py3.whl"),
        ("*", "*"),
        ("/" + "x/" * 500, "/" + "x/" * 99 + "x"),
    ],
)
def test_a_path_is_written_without_what_could_be_a_key(path: str, shown: str) -> None:
    assert loggable(path) == shown


@given(st.text(max_size=80), st.text(max_size=80))
def test_no_words_of_a_guest_are_an_error(host: str, said: str) -> None:
    found: Any = POLICY.refusal(WEB, as_host(host), 443, NOW)
    assert isinstance(found, str)
    assert isinstance(mismatch(as_host(host), said, [said]), str)
    assert "?" not in loggable("/" + said + "?" + host)
