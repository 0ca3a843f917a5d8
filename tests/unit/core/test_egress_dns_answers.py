# SPDX-License-Identifier: GPL-3.0-or-later
"""Lines recorded from dnsmasq 2.90, and which names led where."""

from __future__ import annotations

from fleet_core.egress_dns_answers import answered

RECORDED = """\
Nov 21 18:33:50 dnsmasq[18112]: using nameserver 11.0.53.53#53 for domain allowed.example
Nov 21 18:33:51 dnsmasq[18112]: 1 192.168.100.10/39772 query[A] Allowed.example from 192.168.100.10
Nov 21 18:33:51 dnsmasq[18112]: 1 192.168.100.10/39772 forwarded allowed.example to 11.0.53.53
Nov 21 18:33:51 dnsmasq[18112]: 1 192.168.100.10/39772 nftset add 4 inet fleet_egress fleet_nde7_4 11.1.0.10 a.example
Nov 21 18:33:51 dnsmasq[18112]: 1 192.168.100.10/39772 reply allowed.example is 11.1.0.10
Nov 21 18:33:51 dnsmasq[18112]: 2 192.168.100.10/54485 query[AAAA] www.allowed.example from 192.168.100.10
Nov 21 18:33:51 dnsmasq[18112]: 3 192.168.100.10/42248 query[A] alias.allowed.example from 192.168.100.10
Nov 21 18:33:51 dnsmasq[18112]: 2 192.168.100.10/54485 reply www.allowed.example is 2fff:1::10
Nov 21 18:33:51 dnsmasq[18112]: 3 192.168.100.10/42248 reply alias.allowed.example is <CNAME>
Nov 21 18:33:51 dnsmasq[18112]: 3 192.168.100.10/42248 reply elsewhere.example is 11.67.0.10
Nov 21 18:33:51 dnsmasq[18112]: 4 192.168.100.10/38525 query[A] other.allowed.example from 192.168.100.10
Nov 21 18:33:51 dnsmasq[18112]: 4 192.168.100.10/38525 cached other.allowed.example is 11.1.0.10
Nov 21 18:33:51 dnsmasq[18112]: 5 192.168.100.10/48366 query[A] x.example from 192.168.100.10
Nov 21 18:33:51 dnsmasq[18112]: 5 192.168.100.10/48366 config error is REFUSED (EDE: not ready)
Nov 21 18:33:51 dnsmasq[18112]: 6 192.168.100.10/48367 query[A] y.example from 192.168.100.10
Nov 21 18:33:51 dnsmasq[18112]: 6 192.168.100.10/48367 reply y.example is NXDOMAIN
"""


def test_an_address_is_of_the_names_that_were_asked_for_also_through_aliases() -> None:
    assert answered(RECORDED.splitlines()) == {
        "11.1.0.10": {"allowed.example", "other.allowed.example"},
        "2fff:1::10": {"www.allowed.example"},
        "11.67.0.10": {"alias.allowed.example"},
    }


def test_lines_of_others_and_half_lines_are_left_out() -> None:
    assert (
        answered(["", "dnsmasq[1]: x", "dnsmasq[1]: 9 192.0.2.1/5 reply a.example is 192.0.2.9", RECORDED[-40:]]) == {}
    )
