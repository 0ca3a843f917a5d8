# SPDX-License-Identifier: GPL-3.0-or-later
"""Looking at a gateway for what gets in the way of its fence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fleet_core import egress_conflicts
    from fleet_core.errors import FleetError
    from fleet_core.fences import Fence
else:
    try:
        from ..fleet_core import egress_conflicts
        from ..fleet_core.errors import FleetError
        from ..fleet_core.fences import Fence
    except ImportError:  # installed as a top-level package
        from fleet_core import egress_conflicts
        from fleet_core.errors import FleetError
        from fleet_core.fences import Fence

from .egress_commands import attempt

# Listing tables of iptables-legacy makes them where the kernel has none; these files tell which it has.
LEGACY = {
    "ip": ("/proc/thread-self/net/ip_tables_names", "iptables-legacy-save"),
    "ip6": ("/proc/thread-self/net/ip6_tables_names", "ip6tables-legacy-save"),
}


def conflicts(fence: Fence, sys: Path = Path("/sys"), proc: Path = Path("/proc")) -> list[str]:
    """Return a sentence for each thing that gets in the way. Raises FleetError where rules cannot be listed."""
    return egress_conflicts.conflicts(
        fence, _ruleset(), tuple(_saved()), uplinks(fence, sys), _switches(proc / "sys/net/bridge")
    )


def uplinks(fence: Fence, sys: Path = Path("/sys")) -> dict[str, tuple[str, ...]]:
    """Return of each bridge the ports that lead out of this host: cards, bonds, VLANs."""
    found = {}
    for bridge in fence.bridges:
        ports = sorted(entry.name for entry in (sys / "class/net" / bridge.name / "brif").glob("*"))
        found[bridge.name] = tuple(port for port in ports if _leads_out(sys / "class/net" / port))
    return found


def _leads_out(port: Path) -> bool:
    """Tell whether a port is a card or stands on others. Taps and pairs of veth have neither device nor kind."""
    if (port / "device").exists() or (port / "bonding").is_dir():
        return True
    try:
        return "DEVTYPE=vlan" in (port / "uevent").read_text(encoding="ascii", errors="replace")
    except OSError:  # it has gone
        return False


def _ruleset() -> str:
    done = attempt(("nft", "--json", "list", "ruleset"))
    if done.returncode:
        raise FleetError(f"`nft --json list ruleset`: expected rules, found: {' '.join(done.stderr.split())[:2000]}")
    return done.stdout


def _saved() -> Iterator[tuple[str, str]]:
    for family, (names, tool) in LEGACY.items():
        try:
            used = "filter" in Path(names).read_text(encoding="ascii").split()
        except OSError:
            used = False
        if used:
            done = attempt((tool, "-t", "filter"))
            if done.returncode == 0:
                yield family, done.stdout


def _switches(folder: Path) -> dict[str, str]:
    found = {}
    for name in egress_conflicts.SWITCHES:
        try:
            found[name] = (folder / name).read_text(encoding="ascii")
        except OSError:  # br_netfilter is not there
            continue
    return found
