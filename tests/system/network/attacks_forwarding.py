# SPDX-License-Identifier: GPL-3.0-or-later
"""Straight to an address, with no trick."""

from __future__ import annotations

from tests.system.network import internet
from tests.system.network.attacks import INTERNET, attack
from tests.system.network.field import Field

FORBIDDEN4, FORBIDDEN6 = internet.HOSTS["forbidden"]
ALLOWED4, ALLOWED6 = internet.HOSTS["allowed"]
CDN4, CDN6 = internet.HOSTS["cdn"]
UNGRANTED = "no grant of the scope has the address; the machine gets a reset or an ICMP error"


@attack(UNGRANTED, INTERNET)
def tcp_to_an_address(field: Field) -> bool:
    """Connects to an IPv4 address that no rule names."""
    return field.opens("tcp", address=FORBIDDEN4, port=22)


@attack(UNGRANTED, INTERNET)
def tcp_to_an_address_of_ipv6(field: Field) -> bool:
    """Connects to an IPv6 address that no rule names."""
    return field.opens("tcp", address=FORBIDDEN6, port=22)


@attack(UNGRANTED, INTERNET)
def tls_to_an_address_with_an_allowed_name(field: Field) -> bool:
    """Connects to an address that no rule names and says an allowed name in the SNI."""
    return field.opens("tls", address=FORBIDDEN4, sni="allowed.example")


@attack(UNGRANTED, INTERNET)
def udp_to_an_address(field: Field) -> bool:
    """Sends a datagram to an address that no rule names."""
    return field.opens("udp", address=FORBIDDEN4, port=5000)


@attack(UNGRANTED, INTERNET)
def udp_to_an_address_of_ipv6(field: Field) -> bool:
    """Sends a datagram over IPv6 to an address that no rule names."""
    return field.opens("udp", address=FORBIDDEN6, port=5000)


@attack("the grant names ports; a domain without ports is TCP 443", INTERNET)
def another_port_of_an_allowed_name(field: Field) -> bool:
    """Connects to the address of an allowed name, on a port that the rule does not name."""
    field.learn("allowed.example")
    return field.opens_any("tcp", *({"address": address, "port": 22} for address in (ALLOWED4, ALLOWED6)))


@attack("a network's rule opens its protocol and ports alone", INTERNET)
def another_protocol_of_an_allowed_address(field: Field) -> bool:
    """Connects over TCP to an address of which the rule names UDP."""
    return field.opens("tcp", address=internet.HOSTS["allowed-2"][0], port=5000)


@attack("UDP 443 is closed in every mode, unless a rule names protocol udp and the port")
def quic_to_an_allowed_name(field: Field) -> bool:
    """Speaks QUIC (UDP 443) with the address of an allowed name, where no proxy and no resolver can look inside."""
    field.learn("allowed.example")
    return field.opens_any("udp", *({"address": address, "port": 443} for address in (ALLOWED4, ALLOWED6)))


@attack("UDP 443 is closed in every mode, unless a rule names protocol udp and the port")
def quic_to_an_address(field: Field) -> bool:
    """Speaks QUIC (UDP 443) with an address that no rule names."""
    return field.opens("udp", address=FORBIDDEN4, port=443)


@attack("ICMP is a protocol like others: only a rule opens it", INTERNET)
def icmp_tunnel(field: Field) -> bool:
    """Carries data out in the payload of ICMP echo requests."""
    marker = field.marker()
    field.web.probe("ping", address=FORBIDDEN4, data=marker)
    return field.left(marker)


@attack("ICMP is a protocol like others: only a rule opens it", INTERNET)
def icmp_tunnel_of_ipv6(field: Field) -> bool:
    """Carries data out in the payload of ICMPv6 echo requests."""
    marker = field.marker()
    field.web.probe("ping", address=FORBIDDEN6, data=marker)
    return field.left(marker)


@attack("ICMP is a protocol like others: only a rule opens it", INTERNET)
def icmp_to_an_allowed_name(field: Field) -> bool:
    """Carries data in ICMP echo requests to the address of an allowed name, of which TCP 443 is open."""
    field.learn("allowed.example")
    marker = field.marker()
    field.web.probe("ping", address=ALLOWED4, data=marker)
    return field.left(marker)


@attack("an address is open only after the scope's own resolver has answered with it", INTERNET)
def address_of_an_allowed_name_that_nobody_asked_for(field: Field) -> bool:
    """Connects to the known address of an allowed name without asking the resolver first."""
    return field.opens_any(
        "tls", *({"address": address, "sni": "unasked.example"} for address in internet.HOSTS["unasked"])
    )


@attack("each scope has a resolver and sets of its own", INTERNET)
def address_that_another_scope_learned(field: Field) -> bool:
    """Connects to an address that is open for a machine of another project, once that machine has asked for it."""
    field.learn("cdn-allowed.example")
    return field.opens("tls", address=CDN4, sni="cdn-allowed.example", machine=field.db)


SHARED = {
    "allowlist": "the address is all that a packet filter sees, and names share it; the proxy of mode strict compares",
    **INTERNET,
}


@attack("mode strict forwards nothing; its proxy compares the SNI with the name of CONNECT", SHARED)
def another_sni_on_an_allowed_address(field: Field) -> bool:
    """Asks an address of a CDN, open for an allowed name, for a site that is not allowed."""
    field.learn("cdn-allowed.example")
    return field.opens("tls", address=CDN4, sni="cdn-forbidden.example")


@attack("mode strict forwards nothing; see the proxy's rows for the same trick there", SHARED)
def another_host_on_an_allowed_address(field: Field) -> bool:
    """Says the allowed name in the SNI and another in the Host header (domain fronting)."""
    field.learn("cdn-allowed.example")
    result = field.web.probe("tls", address=CDN4, sni="cdn-allowed.example", host="cdn-forbidden.example")
    return bool(result["outcome"] == "open" and result["host"] == "cdn-forbidden.example")


@attack("the hub's rule names its ports", INTERNET)
def another_port_of_the_hub(field: Field) -> bool:
    """Connects to the hub on a port that is not the hub's."""
    return field.opens_any("tcp", *({"address": address, "port": 22} for address in internet.HOSTS["hub"]))


@attack("datagrams that answer nothing are dropped, whatever port they come from")
def datagram_from_outside(field: Field) -> bool:
    """Lets an accomplice send datagrams to the machine's own address, from ports that answers come from."""
    marker = field.marker()
    source4, source6 = FORBIDDEN4, FORBIDDEN6
    for address, source in ((field.web.guest.address4, source4), (field.web.guest.address6, source6)):
        for port in (123, 500):
            field.lab.internet.probe("udp", address=address, port=port, data=marker, source=source, timeout=0.1)
    return field.reached(marker, field.web)


@attack("connections that somebody outside begins are dropped; machines are not servers of the internet")
def connection_from_outside(field: Field) -> bool:
    """Lets an accomplice on the internet connect to the machine's own address."""
    address4, address6 = field.web.guest.address4, field.web.guest.address6
    tries = ({"address": address, "port": 8080} for address in (address4, address6))
    return field.opens_any("tcp", *tries, machine=field.lab.internet.namespace)
