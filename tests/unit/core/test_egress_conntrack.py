# SPDX-License-Identifier: GPL-3.0-or-later
"""Lines of `conntrack -L`, recorded from conntrack 1.4.7, and the arguments that delete one."""

from __future__ import annotations

from fleet_core.egress_conntrack import Tracked, tracked

RECORDED = """\
tcp      6 431999 ESTABLISHED src=192.168.100.10 dst=11.1.0.10 sport=40012 dport=22 src=11.1.0.10 dst=11.0.0.2 sport=22 dport=40012 [ASSURED] mark=7 use=1
udp      17 28 src=192.168.100.10 dst=192.168.100.1 sport=5353 dport=53 [UNREPLIED] src=192.168.100.1 dst=192.168.100.10 sport=15300 dport=5353 mark=0 use=1
icmp     1 29 src=192.168.100.10 dst=11.1.0.10 type=8 code=0 id=77 src=11.1.0.10 dst=11.0.0.2 type=0 code=0 id=77 mark=0 use=1
icmpv6   58 29 src=fd00:100::10 dst=2fff:1::10 type=128 code=0 id=9 src=2fff:1::10 dst=2fff::2 type=129 code=0 id=9 mark=0 use=1
gre      47 29 src=192.168.100.10 dst=11.1.0.10 srckey=0x0 dstkey=0x0 src=11.1.0.10 dst=192.168.100.10 srckey=0x0 dstkey=0x0 mark=0 use=1
conntrack v1.4.7 (conntrack-tools): 5 flow entries have been shown.
"""  # noqa: E501


def test_each_line_is_the_connection_as_it_began() -> None:
    tcp, udp, icmp, icmp6, gre = tracked(RECORDED)
    assert tcp == Tracked("192.168.100.10", "11.1.0.10", "tcp", 22, 40012, 7, "11.1.0.10")
    assert (udp.port, udp.answering, udp.family) == (53, "192.168.100.1", 4)
    assert (icmp.protocol, icmp.port, icmp.icmp) == ("icmp", 0, ("8", "0", "77"))
    assert (icmp6.family, icmp6.icmp) == (6, ("128", "0", "9"))
    assert (gre.protocol, gre.port) == ("gre", 0)


def test_a_deletion_names_one_connection() -> None:
    tcp, _udp, icmp, icmp6, _gre = tracked(RECORDED)
    assert " ".join(tcp.deletion()) == "-D -f ipv4 -p tcp -s 192.168.100.10 -d 11.1.0.10 --sport 40012 --dport 22"
    assert " ".join(icmp.deletion()).endswith("--icmp-type 8 --icmp-code 0 --icmp-id 77")
    assert "ipv6" in icmp6.deletion()


def test_lines_that_are_no_connections_are_left_out() -> None:
    assert list(tracked("nothing\ntcp 6 src=x dst=y\ntcp 6 src=192.0.2.1 dst=192.0.2.2 sport=a dport=b\n")) == []
