# SPDX-License-Identifier: GPL-3.0-or-later
"""Which ports of a bridge lead out of a host, from what the kernel shows of them."""

from __future__ import annotations

from pathlib import Path

from fleet_core.fences import Bridge, Fence
from fleet_node.egress_conflicts import uplinks


def test_cards_bonds_and_vlans_lead_out_and_taps_do_not(tmp_path: Path) -> None:
    net = tmp_path / "class/net"
    for port in ("eth0", "bond0", "eth1.5", "tap1", "veth1", "gone"):
        (net / "vmbr1/brif" / port).mkdir(parents=True)
        (net / port).mkdir()
        (net / port / "uevent").write_text(f"INTERFACE={port}\n", encoding="ascii")
    (net / "eth0/device").mkdir()
    (net / "bond0/bonding").mkdir()
    (net / "eth1.5/uevent").write_text("DEVTYPE=vlan\nINTERFACE=eth1.5\n", encoding="ascii")
    (net / "gone/uevent").unlink()
    fence = Fence((Bridge("vmbr1", "10.8.0.1/24"), Bridge("vmbr2", "10.9.0.1/24")))
    assert uplinks(fence, tmp_path) == {"vmbr1": ("bond0", "eth0", "eth1.5"), "vmbr2": ()}
