# SPDX-License-Identifier: GPL-3.0-or-later
"""What else on a gateway gets in the way of a fence: rules of others, ports that lead out, switches of the kernel.

Nobody else's accept can open what the fence closes. But their drop closes what it opens, whoever comes first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from . import egress_foreign_rules as foreign
from .egress_foreign_rules import DROP, OURS, Base, Packet
from .fences import Bridge, Fence

ELSEWHERE = "fleet-elsewhere"  # stands for any interface that is no bridge of ours
# The tables of frames of each backend, and those that the kernel only takes with nft_meta_bridge.
FRAMES = (
    ("bridge fleet_egress", "bridge fleet_egress_bridges"),
    ("bridge fleet_frames", "bridge fleet_frames_strangers"),
)
_FAMILIES = {"ip": (4,), "ip6": (6,), "inet": (4, 6)}
# What is wrong if it is 1, and why.
SWITCHES = {
    "bridge-nf-call-iptables": "IPv4 frames between the ports of a bridge go through the rules of others for routing",
    "bridge-nf-call-ip6tables": "IPv6 frames between the ports of a bridge go through the rules of others for routing",
    "bridge-nf-call-arptables": "ARP between the ports of a bridge goes through the rules of arptables",
}


@dataclass(frozen=True)
class Owner:
    """Whose rules they are, and how to make them let pass what the fence judges. {0} is a bridge."""

    name: str
    forward: str
    input: str


DOCKER = Owner(
    "Docker",
    "iptables -I DOCKER-USER -i {0} -j ACCEPT; iptables -I DOCKER-USER -o {0} -j ACCEPT",
    "iptables -I INPUT -i {0} -j ACCEPT",
)
FIREWALLD = Owner(
    "firewalld", *["firewall-cmd --permanent --zone=trusted --add-interface={0}; firewall-cmd --reload"] * 2
)
PROXMOX = Owner(
    "the Proxmox firewall",
    "accept traffic in and out on {0} in the firewall of the node",
    "accept direction in on interface {0} in the firewall of the node",
)
UFW = Owner("ufw", "ufw route allow in on {0}; ufw route allow out on {0}", "ufw allow in on {0}")
SOMEBODY = Owner(
    "somebody's rules", "accept there what comes in or goes out by {0}", "accept there what comes in by {0}"
)


def conflicts(
    fence: Fence,
    ruleset: str = "",
    saved: Iterable[tuple[str, str]] = (),
    uplinks: Mapping[str, Sequence[str]] | None = None,
    switches: Mapping[str, str] | None = None,
) -> list[str]:
    """Return a sentence for each thing that gets in the way.

    ruleset: what `nft -j list ruleset` says. saved: "ip" or "ip6" and what iptables-save or ip6tables-save of
    iptables-legacy says. uplinks: of each bridge its ports that are no machine's. switches: of /proc/sys/net/bridge.
    Raises InvalidInput for a ruleset that is none.
    """
    bases = [*foreign.of_nft(ruleset), *(base for family, text in saved for base in foreign.of_save(text, family))]
    found = [sentence for base in bases for sentence in _of_chain(fence, base)]
    found += [
        f"flowtable of the table {table}: expected none, found rules that let connections go round all others: "
        "what a policy closes later stays open until they end; take its flow statements out"
        for table in foreign.offloads(ruleset)
    ]
    found += list(_of_strangers(fence, foreign.tables(ruleset)))
    found += list(_of_ports(fence, uplinks or {}))
    if PROXMOX not in map(_owner, bases):  # its firewall works by these switches, and machines stay apart all the same
        found += list(_of_switches(switches or {}))
    return list(dict.fromkeys(found))


def _of_chain(fence: Fence, base: Base) -> Iterator[str]:
    if base.table.startswith(OURS) or base.family not in _FAMILIES:
        return
    bridges = [bridge for bridge in fence.bridges if _speaks(bridge, base)]
    owner = _owner(base)
    if base.hook == "forward" and _forwards(fence):
        closed = [bridge.name for bridge in bridges if not _lets_out(base, bridge.name)]
        what, remedy = "what machines of {} are allowed to reach", owner.forward
    elif base.hook == "input":
        services = list(_services(fence))
        closed = [bridge.name for bridge in bridges if not _lets_in(base, bridge, services)]
        what, remedy = "what machines of {} ask this host for (names, addresses, the proxy)", owner.input
    else:
        return
    if closed:
        shown = what.format(", ".join(closed))
        remedies = "; ".join(remedy.format(name) for name in closed)
        yield (
            f"{owner.name} (table {base.family} {base.table}, chain {base.name}): "
            f"expected to let pass {shown}, found that it drops it; {remedies}"
        )


def _speaks(bridge: Bridge, base: Base) -> bool:
    return any(bridge.address4 if family == 4 else bridge.address6 for family in _FAMILIES[base.family])


def _forwards(fence: Fence) -> bool:
    return any(scope.mode in ("allowlist", "open") or (scope.hub and scope.mode == "strict") for scope in fence.scopes)


def _lets_out(base: Base, bridge: str) -> bool:
    out, back = Packet(bridge, ELSEWHERE), Packet(ELSEWHERE, bridge, "established")
    return DROP not in (base.verdict(out), base.verdict(back))


def _services(fence: Fence) -> Iterator[tuple[str, int]]:
    """Yield protocol and port of what machines may ask this host for."""
    for scope in fence.scopes:
        if scope.resolver_port:
            yield "udp", scope.resolver_port
    if fence.proxy.kind and any(scope.mode != "locked" for scope in fence.scopes):
        yield "tcp", fence.proxy.port


def _lets_in(base: Base, bridge: Bridge, services: Sequence[tuple[str, int]]) -> bool:
    dhcp = [("udp", 67 if base.family != "ip6" else 547)] if bridge.dhcp else []
    packets = (Packet(bridge.name, "", "new", protocol, port, "local") for protocol, port in (*services, *dhcp))
    return all(base.verdict(packet) != DROP for packet in packets)


def _owner(base: Base) -> Owner:
    names = set(base.chains)
    if base.table == "firewalld":
        return FIREWALLD
    if base.table.startswith("proxmox-firewall") or any(name.startswith("PVEFW-") for name in names):
        return PROXMOX
    if base.hook == "forward" and "DOCKER-USER" in names:
        return DOCKER
    return UFW if any(name.startswith(("ufw-", "ufw6-")) for name in names) else SOMEBODY


def _of_strangers(fence: Fence, tables: set[str]) -> Iterator[str]:
    """Only by bridges' names can the kernel close ports that no machine has; else those of machines must be known."""
    loose = [guest.name for guest in fence.guests if not guest.port]
    if loose and any(frames in tables and strangers not in tables for frames, strangers in FRAMES):
        yield (
            f"machines {', '.join(loose)}: expected their ports in the policy, or a kernel with nft_meta_bridge, found "
            "neither: who is no machine of the policy can send frames to them; name their ports, or load the module"
        )


def _of_ports(fence: Fence, uplinks: Mapping[str, Sequence[str]]) -> Iterator[str]:
    ports = {guest.port for guest in fence.guests}
    for bridge in fence.bridges:
        found = [port for port in uplinks.get(bridge.name, ()) if port not in ports]
        if found:
            yield (
                f"bridge {bridge.name}: expected the ports of machines alone, found {', '.join(found)}: "
                "what comes from there is dropped, for no machine of the policy sends it; take it out of the bridge"
            )


def _of_switches(switches: Mapping[str, str]) -> Iterator[str]:
    for name, why in SWITCHES.items():
        if switches.get(name, "0").strip() not in ("", "0"):
            yield f"net.bridge.{name}: expected 0, found {switches[name].strip()}: {why}"
