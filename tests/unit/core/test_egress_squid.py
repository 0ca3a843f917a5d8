# SPDX-License-Identifier: GPL-3.0-or-later
"""What squid is told."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from tests.golden import check_golden
from tests.unit.core.egress_examples import API, FENCE, SCOPES, WEB

from fleet_core.egress_squid import EXACT_NAMES, Build, Settings, build, certificate_command, configuration
from fleet_core.errors import Unavailable
from fleet_core.fences import Fence, Scope

LOOKING = Settings("proxy", "/var/lib/x/proxy.pem")


def lines(*scopes: Scope, settings: Settings = LOOKING, fence: Fence = FENCE) -> list[str]:
    return configuration(fence.evolve(scopes=scopes or SCOPES), "/var/log/x", settings).splitlines()


def access(found: list[str]) -> list[str]:
    return [line for line in found if line.startswith("http_access")]


def test_the_configuration_is_known() -> None:
    check_golden("egress/squid.conf", configuration(FENCE, "/var/log/x", LOOKING))


def test_without_a_certificate_squid_does_not_look_at_tls() -> None:
    text = "\n".join(lines(settings=Settings()))
    assert "ssl" not in text.replace("%#ssl::>sni", "").replace("%ssl::bump_mode", "")
    assert "http_port 192.168.100.1:3128\n" in text


def test_everything_that_is_not_allowed_is_denied() -> None:
    assert access(lines())[-1] == "http_access deny all"
    assert access(lines())[0] == "http_access deny manager"
    assert lines()[-1] == "ssl_bump terminate all"


def test_each_permission_is_for_the_guests_of_one_scope() -> None:
    for line in access(lines()):
        if line.startswith("http_access allow"):
            assert re.match(r"http_access allow s_[0-9a-f]{8} ", line), line


def test_a_locked_scope_has_no_permission() -> None:
    assert access(lines(SCOPES[3])) == access(lines(replace(SCOPES[3], name="project-nobody")))


def test_names_are_compared_before_they_are_resolved() -> None:
    """What needs a resolver stands last: squid stops at the first that does not match."""
    resolving = {line.split()[1] for line in lines() if re.match(r"acl \S+ dst (?!-n)", line)}
    for line in access(lines()):
        words = [word.lstrip("!") for word in line.split()[2:]]
        at = [number for number, word in enumerate(words) if word in resolving]
        assert at == list(range(len(words) - len(at), len(words))), line
        if at:
            assert line.startswith("http_access allow"), line


def test_no_acl_looks_up_addresses_backwards() -> None:
    assert not [line for line in lines() if re.search(r"dstdom\S* (?!-n)|srcdomain|%>A", line)]


def test_no_acl_has_a_name_and_one_below_it() -> None:
    """squid takes that for an error."""
    found = [line for line in lines() if " dstdomain -n " in line]
    values: dict[str, set[str]] = {}
    for line in found:
        values.setdefault(line.split()[1], set()).update(line.split()[4:])
    for names in values.values():
        assert not [(a, b) for a in names for b in names if a != b and a.endswith(b)]


def test_udp_opens_nothing() -> None:
    assert "time.net" not in "\n".join(lines())


def test_a_name_leads_to_a_granted_network_on_its_ports_only() -> None:
    allowed = [line for line in access(lines(replace(SCOPES[0], grants=(WEB, API)))) if " l_0000bbbb" in line]
    assert len(allowed) == 1
    assert " p_0000bbbb l_0000bbbb !s_37a8eec1_closed" in allowed[0]


def test_the_greeting_belongs_to_the_name_of_connect() -> None:
    found = lines()
    spliced = [line for line in found if line.startswith("ssl_bump splice s_")]
    pairs = [re.fullmatch(r"ssl_bump splice s_\w+ c_(\w+) t_(\w+)", line) for line in spliced[:2]]
    assert all(pair and pair[1] == pair[2] for pair in pairs)


def test_a_denied_name_is_cut_before_others_are_passed_on() -> None:
    found = [line for line in lines() if line.startswith("ssl_bump")]
    cut = found.index("ssl_bump terminate s_37a8eec1 s_37a8eec1_hidden")
    assert cut < min(at for at, line in enumerate(found) if line.startswith("ssl_bump splice s_37a8eec1"))


def test_many_names_are_looked_for_together() -> None:
    """squid stands still for a minute while it reads 20,000 acls."""
    names = tuple(f"n{number}.example.org" for number in range(EXACT_NAMES + 1))
    found = lines(replace(SCOPES[0], grants=(replace(WEB, names=names),)))
    assert len(found) < 500
    assert "ssl_bump splice s_37a8eec1 s_37a8eec1_seen" in found
    seen = {name for line in found if line.startswith("acl s_37a8eec1_seen") for name in line.split()[4:]}
    assert seen == {f".{name}" for name in names}


def test_upstreams_on_another_port_are_not_given_to_squid() -> None:
    assert "dns_nameservers 10.0.1.1" in lines()
    assert not [line for line in lines(fence=FENCE.evolve(upstreams=("10.0.1.2#5353",))) if "dns_nameservers" in line]


def test_a_line_of_the_log_is_json_whatever_a_guest_says() -> None:
    line = next(line for line in lines() if line.startswith("logformat"))
    codes = {"%ts": "1", "%03tu": "2", "%>Hs": "200", "%>st": "1", "%<st": "1", "%tr": "1"}
    text = line.partition(" fleet ")[2]
    for code, value in codes.items():
        text = text.replace(code, value)
    assert "host" in json.loads(text)
    # What guests choose is URL-quoted (#), or chosen from a list by squid.
    chosen = {"%>a", "%>rP", "%Ss", "%<a", "%ssl::bump_mode"}
    assert all(
        code.startswith("%#") or code in chosen for code in json.loads(text).values() if str(code).startswith("%")
    )


def test_the_build_is_read() -> None:
    assert build("Squid Cache: Version 5.7\nconfigure options:  '--with-openssl'\n") == Build((5, 7), True)
    assert build("Squid Cache: Version 6.13\nconfigure options:  '--with-gnutls'\n") == Build((6, 13), False)
    with pytest.raises(Unavailable, match=r'squid: expected "Squid Cache: Version N\.N", found "nope"'):
        build("nope\n")


def test_the_certificate_is_written_where_it_is_wanted() -> None:
    assert certificate_command("/x/proxy.pem").count("/x/proxy.pem") == 2
