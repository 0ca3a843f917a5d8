# SPDX-License-Identifier: GPL-3.0-or-later
"""Packets that no ordinary program sends: other protocols, tunnels, fragments, headers, flags."""

from __future__ import annotations

from tests.system.network import internet, packets
from tests.system.network.attacks import INTERNET, attack
from tests.system.network.field import GATEWAY4, GATEWAY6, Field

FORBIDDEN4, FORBIDDEN6 = internet.HOSTS["forbidden"]
ALLOWED4, ALLOWED6 = internet.HOSTS["allowed"]
OTHERS = "a protocol other than TCP, UDP and ICMP is open only where a rule says any"
WHOLE = "fragments are put together again before the rules see them"


def _frame4(field: Field, packet: bytes) -> str:
    return packets.frame(field.link(), field.web.guest.mac, packets.IPV4, packet)


def _frame6(field: Field, packet: bytes) -> str:
    return packets.frame(field.link(), field.web.guest.mac, packets.IPV6, packet)


def _protocol(field: Field, number: int, head: str = "") -> bool:
    """Send an IP protocol to a forbidden address and to the learned one of an allowed name."""
    field.learn("allowed.example")
    marker = field.marker()
    for address in (FORBIDDEN4, ALLOWED4, FORBIDDEN6, ALLOWED6):
        field.web.probe("protocol", address=address, number=number, data=head + marker.encode().hex())
    return field.left(marker)


@attack(OTHERS, INTERNET)
def sctp(field: Field) -> bool:
    """Speaks SCTP."""
    field.learn("allowed.example")
    marker = field.marker()
    for address in (FORBIDDEN4, ALLOWED4, FORBIDDEN6, ALLOWED6):
        packet = packets.sctp(5000, 5000, marker.encode())
        field.web.probe("protocol", address=address, number=packets.SCTP, data=packet.hex())
    return field.left(marker)


@attack(OTHERS, INTERNET)
def esp(field: Field) -> bool:
    """Speaks ESP (IPsec)."""
    return _protocol(field, 50, "0000000100000001")


@attack(OTHERS, INTERNET)
def gre_tunnel(field: Field) -> bool:
    """Tunnels in GRE."""
    return _protocol(field, 47, "00000800")


@attack(OTHERS, INTERNET)
def ip_in_ip(field: Field) -> bool:
    """Tunnels IPv4 in IP."""
    marker = field.marker()
    inner = packets.udp(FORBIDDEN4, ALLOWED4, 1, 2, marker.encode())
    packet = packets.ipv4(FORBIDDEN4, ALLOWED4, packets.UDP, inner).hex()
    for address in (FORBIDDEN4, FORBIDDEN6):
        field.web.probe("protocol", address=address, number=4, data=packet)
    return field.left(marker)


@attack(OTHERS, INTERNET)
def ipv6_in_ip(field: Field) -> bool:
    """Tunnels IPv6 in IPv4 (6in4, protocol 41)."""
    marker = field.marker()
    inner = packets.udp(FORBIDDEN6, ALLOWED6, 1, 2, marker.encode())
    packet = packets.ipv6(FORBIDDEN6, ALLOWED6, packets.UDP, inner).hex()
    field.web.probe("protocol", address=FORBIDDEN4, number=41, data=packet)
    return field.left(marker)


@attack("no grant of the scope has the address", INTERNET)
def vxlan_tunnel(field: Field) -> bool:
    """Tunnels in VXLAN (UDP 4789)."""
    marker = field.marker()
    field.web.probe("udp", address=FORBIDDEN4, port=4789, data=marker, timeout=0.2)
    return field.left(marker)


@attack("addresses that carry IPv4 inside IPv6 are special networks, closed in every mode")
def ipv4_mapped_address(field: Field) -> bool:
    """Writes an IPv4 address as an IPv6 one (::ffff:ADDRESS) on the wire."""
    marker = field.marker()
    source, target = field.web.guest.address6, f"::ffff:{FORBIDDEN4}"
    body = packets.udp(source, target, 5000, 5000, marker.encode())
    field.send(_frame6(field, packets.ipv6(source, target, packets.UDP, body)))
    return field.left(marker)


@attack("addresses that carry IPv4 inside IPv6 are special networks, closed in every mode")
def translated_address(field: Field) -> bool:
    """Writes an IPv4 address as one of NAT64 or 6to4, for a translator that may stand behind the gateway."""
    marker = field.marker()
    source = field.web.guest.address6
    for target in ("64:ff9b::b42:a", "2002:b42:a::1"):
        body = packets.udp(source, target, 5000, 5000, marker.encode())
        field.send(_frame6(field, packets.ipv6(source, target, packets.UDP, body)))
    return field.left(marker)


@attack(WHOLE, INTERNET)
def fragments(field: Field) -> bool:
    """Sends a datagram to an address that no rule names in fragments, of which only the first has a port."""
    marker = field.marker()
    source = field.web.guest.address4
    body = packets.udp(source, FORBIDDEN4, 5000, 5000, b"." * 40 + marker.encode())
    field.send(*(_frame4(field, piece) for piece in packets.fragments4(source, FORBIDDEN4, packets.UDP, body, 48)))
    return field.left(marker)


@attack(WHOLE, INTERNET)
def fragments_of_ipv6(field: Field) -> bool:
    """Sends fragments over IPv6 to an address that no rule names."""
    marker = field.marker()
    source = field.web.guest.address6
    body = packets.udp(source, FORBIDDEN6, 5000, 5000, b"." * 40 + marker.encode())
    field.send(*(_frame6(field, piece) for piece in packets.fragments6(source, FORBIDDEN6, packets.UDP, body, 48)))
    return field.left(marker)


@attack(WHOLE)
def later_fragments_alone(field: Field) -> bool:
    """Sends only the later fragments of a packet, which have no ports, to the address of an allowed name."""
    field.learn("allowed.example")
    marker = field.marker()
    source4, source6 = field.web.guest.address4, field.web.guest.address6
    piece = packets.ipv4(source4, ALLOWED4, packets.TCP, marker.encode(), offset=24, number=77)
    piece6 = packets.fragment6(packets.TCP, marker.encode(), 24, False, 77)
    field.send(_frame4(field, piece), _frame6(field, packets.ipv6(source6, ALLOWED6, packets.FRAGMENT, piece6)))
    return field.left(marker)


@attack(WHOLE, INTERNET)
def tiny_first_fragment(field: Field) -> bool:
    """Puts the flags of TCP into the second fragment (RFC 1858)."""
    field.learn("allowed.example")
    marker = field.marker()
    source = field.web.guest.address4
    for number, target in enumerate((FORBIDDEN4, ALLOWED4)):
        body = packets.tcp(source, target, 6000, 22, packets.SYN, marker.encode() + b"." * 40)
        first = packets.ipv4(source, target, packets.TCP, body[:8], number=80 + number, more=True)
        rest = packets.ipv4(source, target, packets.TCP, body[8:], number=80 + number, offset=8)
        field.send(_frame4(field, first), _frame4(field, rest))
    return field.left(marker)


@attack("the kernel drops packets whose fragments overlap (RFC 5722)")
def overlapping_fragments(field: Field) -> bool:
    """Names an open port in the first fragment, and writes a closed one over it with the second."""
    field.learn("allowed.example")
    marker = field.marker()
    source = field.web.guest.address4
    innocent = packets.tcp(source, ALLOWED4, 6001, 443, packets.SYN, b"." * 60)
    wicked = packets.tcp(source, ALLOWED4, 6001, 22, packets.SYN, b"." * 60)
    pieces = ((innocent[:24], 0, True), (wicked[:32], 0, True), (marker.encode(), 32, False))
    for piece, offset, more in pieces:
        packet = packets.ipv4(source, ALLOWED4, packets.TCP, piece, number=90, offset=offset, more=more)
        field.send(_frame4(field, packet))
    return field.left(marker)


@attack("no grant of the scope has the address, whatever stands before the datagram", INTERNET)
def extension_headers(field: Field) -> bool:
    """Hides a datagram behind extension headers of IPv6."""
    marker = field.marker()
    source = field.web.guest.address6
    body = packets.udp(source, FORBIDDEN6, 5000, 5000, marker.encode())
    padding = bytes([1, 4, 0, 0, 0, 0])  # PadN
    options = bytes([packets.DESTINATION, 0]) + padding + bytes([packets.UDP, 0]) + padding
    field.send(_frame6(field, packets.ipv6(source, FORBIDDEN6, packets.DESTINATION, options + body)))
    return field.left(marker)


@attack("the gateway forwards no packet with a source route; without the fence the kernel decides", bare=False)
def source_route(field: Field) -> bool:
    """Sends a packet to the gateway itself with a source route (IPv4 LSRR, IPv6 type 0) to an address behind it."""
    marker = field.marker()
    source4, source6 = field.web.guest.address4, field.web.guest.address6
    route = bytes([131, 7, 4]) + packets.address(FORBIDDEN4)
    body = packets.udp(source4, GATEWAY4, 5000, 5000, marker.encode())
    packet4 = packets.ipv4(source4, GATEWAY4, packets.UDP, body, options=route)
    body = packets.udp(source6, FORBIDDEN6, 5000, 5000, marker.encode())
    header = bytes([packets.UDP, 2, 0, 1, 0, 0, 0, 0]) + packets.address(FORBIDDEN6)
    packet6 = packets.ipv6(source6, GATEWAY6, packets.ROUTING, header + body)
    field.send(_frame4(field, packet4), _frame6(field, packet6))
    return field.left(marker)


@attack("the packet is new to the connection tracking, so the grants decide", INTERNET)
def acknowledgement_of_nothing(field: Field) -> bool:
    """Sends data with ACK and no handshake, as if the connection had been there before the gateway."""
    marker = field.marker()
    source4, source6 = field.web.guest.address4, field.web.guest.address6
    segment4 = packets.tcp(source4, FORBIDDEN4, 6002, 22, packets.ACK, marker.encode())
    segment6 = packets.tcp(source6, FORBIDDEN6, 6002, 22, packets.ACK, marker.encode())
    field.send(
        _frame4(field, packets.ipv4(source4, FORBIDDEN4, packets.TCP, segment4)),
        _frame6(field, packets.ipv6(source6, FORBIDDEN6, packets.TCP, segment6)),
    )
    return field.left(marker)


@attack("the packet belongs to no connection, so it is not related to one and is dropped in every mode")
def forged_icmp_error(field: Field) -> bool:
    """Carries data in an ICMP error about a connection that does not exist, as errors are let through."""
    marker = field.marker()
    source = field.web.guest.address4
    inner = packets.ipv4(FORBIDDEN4, source, packets.UDP, packets.udp(FORBIDDEN4, source, 53, 6003, marker.encode()))
    error = packets.icmp(3, 3, bytes(4), inner)
    field.send(_frame4(field, packets.ipv4(source, FORBIDDEN4, packets.ICMP, error)))
    return field.left(marker)


@attack("only IPv4, IPv6 and ARP of the machine itself are taken from its port", bare=False)
def multicast_outward(field: Field) -> bool:
    """Sends to multicast groups and to the broadcast address, hoping that something forwards it."""
    marker = field.marker()
    source = field.web.guest.address4
    for target, link in (("224.0.1.60", "01:00:5e:00:01:3c"), ("255.255.255.255", packets.BROADCAST)):
        body = packets.udp(source, target, 5000, 5000, marker.encode())
        packet = packets.ipv4(source, target, packets.UDP, body)
        field.send(packets.frame(link, field.web.guest.mac, packets.IPV4, packet))
    return field.left(marker)
