# SPDX-License-Identifier: GPL-3.0-or-later
"""Whom the gateway takes for the owner of an address, and what somebody tries who is not."""

from __future__ import annotations

from tests.system.network import packets
from tests.system.network.lab import Lab, Machine

STRANGER, LOCAL = "52:54:00:00:01:77", "fe80::5054:ff:fe00:177"


def owner(lab: Lab, address: str, bridge: str = "fleet0") -> str:
    """The link address that the gateway sends to, empty for none."""
    found = lab.gateway.json("neigh", "show", address, "dev", bridge)
    return str(found[0].get("lladdr", "")) if found else ""


def assert_nobody_takes(lab: Lab, machine: Machine) -> None:
    """Tell the gateway by ARP and by neighbour discovery, from a card that is nobody's, that a machine is there."""
    guest, stranger = machine.guest, lab.stranger()
    link = str(lab.gateway.json("link", "show", "fleet0")[0]["address"])
    own4, own6 = "192.168.100.1", "fd00:100::1"
    lies = {
        guest.address4: [
            (packets.ARP, packets.arp(2, STRANGER, guest.address4, link, own4)),
            (packets.ARP, packets.arp(1, STRANGER, guest.address4, "00:00:00:00:00:00", own4)),
        ],
        guest.address6: [
            (packets.IPV6, packets.neighbour(source, own6, guest.address6, STRANGER))
            for source in (guest.address6, LOCAL)
        ],
    }
    for address, bodies in lies.items():
        for kind, body in bodies:
            for own in (own4, own6):
                machine.probe("ping", address=own, timeout=1)
            assert owner(lab, address) == guest.mac
            # Nothing of what is known is new enough to be kept against a better word.
            lab.gateway.run("ip", "neigh", "change", address, "lladdr", guest.mac, "dev", "fleet0", "nud", "stale")
            frames = [packets.frame(link, STRANGER, kind, body)] * 2
            stranger.probe("frames", interface="eth0", frames=frames)
            assert owner(lab, address) == guest.mac, (address, body.hex())
