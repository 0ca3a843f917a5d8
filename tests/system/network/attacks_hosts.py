# SPDX-License-Identifier: GPL-3.0-or-later
"""The gateway's own services, other machines, and the services that give instances credentials."""

from __future__ import annotations

from tests.system.network import internet, packets
from tests.system.network.attacks import attack
from tests.system.network.field import (
    FAR_GATEWAY4,
    FAR_GATEWAY6,
    GATEWAY4,
    GATEWAY6,
    PROXY_PORT,
    UPLINK4,
    UPLINK6,
    Field,
)

INPUT = "the gateway takes from machines what DHCP, its resolver, its proxy, the hub and ICMP echo need, nothing else"
APART = "machines of one bridge are kept apart in the bridge, those of several bridges in the forwarding"
METADATA = "169.254.0.0/16, fd00:ec2::/32 and link-local addresses are closed in every mode"
NEIGHBOUR4, NEIGHBOUR6 = internet.HOSTS["neighbour"]


@attack(INPUT)
def service_of_the_gateway(field: Field) -> bool:
    """Connects to a service of the gateway (its web interface, SSH, VNC) on the bridge's address."""
    return field.opens_any("tcp", *({"address": GATEWAY4, "port": port} for port in (22, 8006, 5900)))


@attack(INPUT)
def service_of_the_gateway_over_ipv6(field: Field) -> bool:
    """Connects to a service of the gateway on the bridge's IPv6 address."""
    return field.opens("tcp", address=GATEWAY6, port=8006)


@attack(INPUT)
def service_of_the_gateway_over_link_local(field: Field) -> bool:
    """Connects to a service of the gateway on its link-local address."""
    return field.opens("tcp", address=f"{field.gateway_link_local()}%eth0", port=8006)


@attack(INPUT)
def service_on_other_addresses_of_the_gateway(field: Field) -> bool:
    """Connects to a service of the gateway on its other bridge's and its uplink's addresses."""
    return field.opens_any(
        "tcp", *({"address": address, "port": 8006} for address in (FAR_GATEWAY4, FAR_GATEWAY6, UPLINK4, UPLINK6))
    )


@attack(INPUT)
def datagram_service_of_the_gateway(field: Field) -> bool:
    """Sends datagrams to a service of the gateway (SNMP)."""
    return field.opens_any("udp", *({"address": address, "port": 161} for address in (GATEWAY4, GATEWAY6)))


@attack(APART)
def machine_of_the_same_bridge(field: Field) -> bool:
    """Connects to another machine of its bridge, over both families."""
    guest = field.peer.guest
    return field.opens_any("tcp", *({"address": address, "port": 8080} for address in (guest.address4, guest.address6)))


@attack(APART)
def machine_of_the_same_bridge_over_link_local(field: Field) -> bool:
    """Connects to another machine of its bridge on its link-local address."""
    return field.opens("tcp", address=f"{field.link_local(field.peer)}%eth0", port=8080)


@attack(APART)
def machine_of_the_same_bridge_by_the_gateway(field: Field) -> bool:
    """Sends a packet for another machine of its bridge to the gateway's link address, to have it routed back."""
    marker = field.marker()
    guest, victim = field.web.guest, field.peer.guest
    for source, target in ((guest.address4, victim.address4), (guest.address6, victim.address6)):
        body = packets.udp(source, target, 5000, 5000, marker.encode())
        v6 = ":" in source
        packet = (packets.ipv6 if v6 else packets.ipv4)(source, target, packets.UDP, body)
        field.send(packets.frame(field.link(), guest.mac, packets.IPV6 if v6 else packets.IPV4, packet))
    return field.reached(marker)


@attack(APART)
def machine_of_another_bridge(field: Field) -> bool:
    """Connects to a machine of another bridge, over both families."""
    guest = field.far.guest
    return field.opens_any("tcp", *({"address": address, "port": 8080} for address in (guest.address4, guest.address6)))


@attack(METADATA)
def metadata_service(field: Field) -> bool:
    """Fetches the credentials of the instance that the gateway may be, over IPv4."""
    return field.opens("http", address="169.254.169.254")


@attack(METADATA)
def metadata_service_over_ipv6(field: Field) -> bool:
    """Fetches the credentials of the instance over IPv6."""
    return field.opens("http", address="fd00:ec2::254")


@attack(METADATA)
def metadata_service_on_the_gateway(field: Field) -> bool:
    """Fetches credentials from a metadata service that runs on the gateway itself."""
    return field.opens("http", address=field.lab.local_metadata)


@attack("private and other special networks are closed in every mode, unless a rule names a network in them")
def neighbour_of_the_gateway(field: Field) -> bool:
    """Connects to a private address behind the gateway's uplink: its neighbours, a router's page."""
    return field.opens_any("tcp", *({"address": address, "port": 22} for address in (NEIGHBOUR4, NEIGHBOUR6)))


@attack("what machines may ask the gateway is bound to their bridge and their address", bare=False)
def proxy_from_outside(field: Field) -> bool:
    """Lets somebody on the internet use the proxy, by all addresses of the gateway."""
    waiting = [
        field.lab.internet.namespace.agent.begin(
            "proxy", address=address, port=PROXY_PORT, target="allowed.example:443", sni="allowed.example"
        )
        for address in (UPLINK4, UPLINK6, GATEWAY4, FAR_GATEWAY4, GATEWAY6)
    ]
    return any("server" in future.result(timeout=60) for future in waiting)
