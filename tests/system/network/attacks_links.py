# SPDX-License-Identifier: GPL-3.0-or-later
"""Lies on the wire of the bridge: who one is, who others are, who the gateway is."""

from __future__ import annotations

import secrets

from tests.system.network import internet, packets
from tests.system.network.attacks import attack
from tests.system.network.field import GATEWAY4, GATEWAY6, Field
from tests.system.network.lab import command

FORBIDDEN4, FORBIDDEN6 = internet.HOSTS["forbidden"]
BOUND = "each port of the bridge may use its own link address and its own addresses alone"
GUARD = "what only the gateway may say (DHCP, router advertisements) is dropped from machines' ports"
ETHERTYPES = "frames other than IPv4, IPv6 and ARP are dropped, tagged ones too"
APART = "frames from machine to machine are dropped, unless both name each other as peers"
# An address that is open to nobody but, in mode open, to everybody: what gets there has lied about its sender only.
ANYWHERE4, ANYWHERE6 = internet.HOSTS["allowed-2"]


def _datagram(field: Field, source: str, target: str, marker: str, link: str = "", **where: str) -> str:
    body = packets.udp(source, target, 5000, 5000, marker.encode())
    packet = (packets.ipv6 if ":" in source else packets.ipv4)(source, target, packets.UDP, body)
    kind = packets.IPV6 if ":" in source else packets.IPV4
    return packets.frame(where.get("to") or field.link(), link or field.web.guest.mac, kind, packet)


@attack(BOUND, alone=True)
def address_of_another_machine(field: Field) -> bool:
    """Sends with the IPv4 address of another machine."""
    marker = field.marker()
    field.send(_datagram(field, field.peer.guest.address4, ANYWHERE4, marker))
    return field.left(marker)


@attack(BOUND, alone=True)
def address_of_another_machine_in_ipv6(field: Field) -> bool:
    """Sends with the IPv6 address of another machine."""
    marker = field.marker()
    field.send(_datagram(field, field.peer.guest.address6, ANYWHERE6, marker))
    return field.left(marker)


@attack(BOUND, alone=True)
def address_of_nobody(field: Field) -> bool:
    """Sends with free addresses of the bridge's network, and with ones from elsewhere."""
    marker = field.marker()
    for source, target in (
        ("192.168.100.99", ANYWHERE4),
        ("11.77.0.1", ANYWHERE4),
        ("0.0.0.0", ANYWHERE4),
        (GATEWAY4, ANYWHERE4),
        ("fd00:100::99", ANYWHERE6),
        (GATEWAY6, ANYWHERE6),
        (field.link_local(field.web), ANYWHERE6),
    ):
        field.send(_datagram(field, source, target, marker))
    return field.left(marker)


@attack(BOUND, alone=True)
def another_machine_altogether(field: Field) -> bool:
    """Sends with the link address and the address of another machine."""
    marker = field.marker()
    field.send(_datagram(field, field.peer.guest.address4, ANYWHERE4, marker, field.peer.guest.mac))
    field.send(_datagram(field, field.peer.guest.address6, ANYWHERE6, marker, field.peer.guest.mac))
    return field.left(marker)


@attack(BOUND, alone=True)
def another_link_address(field: Field) -> bool:
    """Sends with its own address and a link address that is not its own."""
    marker = field.marker()
    field.send(_datagram(field, field.web.guest.address4, ANYWHERE4, marker, "52:54:00:99:99:99"))
    field.send(_datagram(field, field.web.guest.address6, ANYWHERE6, marker, "52:54:00:99:99:99"))
    return field.left(marker)


@attack("a spoofed frame is dropped before the bridge learns from it where a machine is", alone=True)
def link_address_of_another_machine(field: Field) -> bool:
    """Uses another machine's link address, so that the bridge sends that machine's traffic here."""
    stolen = field.db.guest.mac
    frame = packets.frame(packets.BROADCAST, stolen, packets.EXPERIMENT, bytes(46))
    spoofed = packets.ipv4("192.168.100.12", "192.168.100.255", packets.UDP, bytes(8))
    field.send(frame, packets.frame(packets.BROADCAST, stolen, packets.IPV4, spoofed))
    table = command("bridge", "-n", field.lab.gateway.name, "fdb", "show", "dev", field.web.guest.port).stdout
    field.db.probe("ping", address=GATEWAY4, timeout=0.3)  # and it is back where it was
    return stolen in table


@attack(BOUND, alone=True)
def address_of_another_machine_in_arp(field: Field) -> bool:
    """Tells the gateway by ARP that another machine's address is its own (ARP spoofing)."""
    guest, victim = field.web.guest, field.peer.guest
    field.peer.probe("ping", address=GATEWAY4, timeout=0.3)
    answer = packets.arp(2, guest.mac, victim.address4, field.link(), GATEWAY4)
    field.send(*[packets.frame(field.link(), guest.mac, packets.ARP, answer)] * 3)
    return _believes(field, victim.address4, guest.mac)


def _believes(field: Field, address: str, link: str) -> bool:
    shown = field.lab.gateway.json("neigh", "show", "dev", "fleet0")
    believed = any(entry["dst"] == address and entry.get("lladdr") == link for entry in shown)
    if believed:
        command("ip", "-n", field.lab.gateway.name, "neigh", "del", address, "dev", "fleet0", check=False)
    return believed


@attack(BOUND, alone=True)
def address_of_another_machine_in_nd(field: Field) -> bool:
    """Tells the gateway by neighbour discovery that another machine's address is its own (ND spoofing)."""
    guest, victim = field.web.guest, field.peer.guest
    field.peer.probe("ping", address=GATEWAY6, timeout=0.3)
    for source in (victim.address6, guest.address6):
        packet = packets.neighbour(source, GATEWAY6, victim.address6, guest.mac)
        field.send(*[packets.frame(field.link(), guest.mac, packets.IPV6, packet)] * 2)
    return _believes(field, victim.address6, guest.mac)


@attack(APART, alone=True)
def gateway_by_arp(field: Field) -> bool:
    """Tells another machine by ARP that it is the gateway."""
    guest, victim = field.web.guest, field.peer.guest
    marker = field.marker()
    answer = packets.arp(2, guest.mac, GATEWAY4, victim.mac, victim.address4) + marker.encode()
    for target in (victim.mac, packets.BROADCAST):
        field.send(packets.frame(target, guest.mac, packets.ARP, answer))
    return field.reached(marker)


@attack(APART, alone=True)
def gateway_by_nd(field: Field) -> bool:
    """Tells another machine by neighbour discovery that it is the gateway."""
    guest, victim = field.web.guest, field.peer.guest
    link = "52:54:00:66:66:" + field.marker()[1:3]
    packet = packets.neighbour(GATEWAY6, victim.address6, GATEWAY6, link)
    everybody = packets.neighbour(GATEWAY6, "ff02::1", GATEWAY6, link)
    field.send(packets.frame(victim.mac, guest.mac, packets.IPV6, packet))
    field.send(packets.frame("33:33:00:00:00:01", guest.mac, packets.IPV6, everybody))
    return bool(field.peer.namespace.agent.ask("seen", digits=link.replace(":", "")))


@attack(GUARD)
def rogue_router(field: Field) -> bool:
    """Announces itself to the other machines as an IPv6 router."""
    number = int(field.marker()[1:5], 16)
    prefix = f"2fff:bad:{number:x}::"
    packet = packets.router(field.link_local(field.web), field.web.guest.mac, prefix)
    field.send(packets.frame("33:33:00:00:00:01", field.web.guest.mac, packets.IPV6, packet))
    digits = packets.address(prefix)[:6].hex()
    return field._seen(lambda: bool(field.peer.namespace.agent.ask("seen", digits=digits)))


@attack(GUARD)
def rogue_dhcp_server(field: Field) -> bool:
    """Offers the other machines addresses, with itself as their router, by DHCP."""
    marker = field.marker()
    guest = field.web.guest
    offer = packets.dhcp_offer(guest.address4, field.peer.guest.mac, "192.168.100.200", marker.encode())
    for target in (packets.BROADCAST, field.peer.guest.mac):
        field.send(packets.frame(target, guest.mac, packets.IPV4, offer))
    return field.reached(marker)


@attack("a request for an address is taken from the port of the machine that it names", alone=True)
def address_of_another_machine_by_dhcp(field: Field) -> bool:
    """Asks by DHCP for the address of another machine, with that machine's link address inside the request."""
    victim = field.peer.guest
    number = secrets.token_bytes(4)
    body = bytes([1, 1, 6, 0]) + number + bytes(20) + packets.mac(victim.mac).ljust(16, b"\0") + bytes(192)
    body += b"\x63\x82\x53\x63" + bytes([53, 1, 1, 255])
    discover = packets.udp("0.0.0.0", "255.255.255.255", 68, 67, body)
    packet = packets.ipv4("0.0.0.0", "255.255.255.255", packets.UDP, discover)
    for link in (field.web.guest.mac, victim.mac):
        field.send(packets.frame(packets.BROADCAST, link, packets.IPV4, packet))
    asked = (bytes([1, 1, 6, 0]) + number).hex()
    offered = (bytes([2, 1, 6, 0]) + number).hex()
    machines = (field.web, field.peer)
    return field._seen(lambda: any(m.namespace.agent.ask("seen", digits=d) for m in machines for d in (asked, offered)))


@attack("frames from unknown link addresses are dropped before the bridge learns them", alone=True)
def full_table_of_the_bridge(field: Field) -> bool:
    """Sends from many link addresses, so that the bridge forgets where machines are and floods their frames."""
    links = [f"52:54:77:{number:02x}:00:01" for number in range(40)]
    packet = packets.ipv4(field.web.guest.address4, GATEWAY4, packets.UDP, bytes(8))
    field.send(*(packets.frame(field.link(), link, packets.IPV4, packet) for link in links))
    table = command("bridge", "-n", field.lab.gateway.name, "fdb", "show", "dev", field.web.guest.port).stdout
    return "52:54:77" in table


@attack(GUARD)
def rogue_dhcpv6_server(field: Field) -> bool:
    """Advertises itself to the other machines by DHCPv6."""
    marker = field.marker()
    source, target = field.link_local(field.web), field.link_local(field.peer)
    body = packets.udp(source, target, 547, 546, b"\x02abc" + marker.encode())
    packet = packets.ipv6(source, target, packets.UDP, body)
    field.send(packets.frame(field.peer.guest.mac, field.web.guest.mac, packets.IPV6, packet))
    return field.reached(marker)


@attack(ETHERTYPES)
def vlan_tag(field: Field) -> bool:
    """Tags frames with a VLAN, so that rules about IP do not see what is inside."""
    marker = field.marker()
    guest, victim = field.web.guest, field.peer.guest
    body = packets.udp(guest.address4, victim.address4, 5000, 5000, marker.encode())
    packet = packets.ipv4(guest.address4, victim.address4, packets.UDP, body)
    for tags in (((packets.VLAN, 10),), ((packets.QINQ, 10), (packets.VLAN, 20)), ((packets.VLAN, 1),)):
        field.send(packets.frame(victim.mac, guest.mac, packets.IPV4, packet, tags))
    return field.reached(marker)


@attack(BOUND, alone=True)
def priority_tag(field: Field) -> bool:
    """Spoofs its address in frames with the tag of VLAN 0, which the kernel takes off by itself."""
    marker = field.marker()
    for source, target in ((field.peer.guest.address4, ANYWHERE4), (field.peer.guest.address6, ANYWHERE6)):
        body = packets.udp(source, target, 5000, 5000, marker.encode())
        packet = (packets.ipv6 if ":" in source else packets.ipv4)(source, target, packets.UDP, body)
        kind = packets.IPV6 if ":" in source else packets.IPV4
        field.send(packets.frame(field.link(), field.web.guest.mac, kind, packet, ((packets.VLAN, 0),)))
    return field.left(marker)


@attack(ETHERTYPES)
def other_ethertype(field: Field) -> bool:
    """Talks to another machine in frames that are not IP: experimental types, PPPoE, bridge protocol, LLC."""
    marker = field.marker().encode()
    guest, victim = field.web.guest, field.peer.guest
    body = marker.ljust(46, b"\0")
    for kind in (packets.EXPERIMENT, packets.PPPOE, 0x86DE, len(body)):
        field.send(packets.frame(victim.mac, guest.mac, kind, body))
    field.send(packets.frame("01:80:c2:00:00:00", guest.mac, len(body), body))
    return field.reached(marker.decode())


@attack(APART)
def broadcast_to_machines(field: Field) -> bool:
    """Sends broadcasts and multicasts that all machines of the bridge hear."""
    marker = field.marker()
    guest = field.web.guest
    field.send(
        _datagram(field, guest.address4, "192.168.100.255", marker, to=packets.BROADCAST),
        _datagram(field, guest.address4, "224.0.0.251", marker, to="01:00:5e:00:00:fb"),
        _datagram(field, guest.address6, "ff02::1", marker, to="33:33:00:00:00:01"),
        _datagram(field, field.link_local(field.web), "ff02::fb", marker, to="33:33:00:00:00:fb"),
    )
    return field.reached(marker)


@attack("a port with no machine in the policy may send nothing", alone=True)
def unknown_machine(field: Field) -> bool:
    """Hangs a machine that no policy knows on the bridge, with addresses of its own choice."""
    marker = field.marker()
    outside = field.lab.stranger()
    packet = packets.udp("192.168.100.77", ANYWHERE4, 5000, 5000, marker.encode())
    body = packets.ipv4("192.168.100.77", ANYWHERE4, packets.UDP, packet)
    frame = packets.frame(field.link(), "52:54:00:00:01:77", packets.IPV4, body)
    mine = packets.frame(
        field.link(),
        field.web.guest.mac,
        packets.IPV4,
        packets.ipv4(
            field.web.guest.address4,
            ANYWHERE4,
            packets.UDP,
            packets.udp(field.web.guest.address4, ANYWHERE4, 5000, 5000, marker.encode()),
        ),
    )
    outside.probe("frames", interface="eth0", frames=[frame, mine])
    return field.left(marker)
