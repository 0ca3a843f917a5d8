# SPDX-License-Identifier: GPL-3.0-or-later
"""Connections of guests that run on: which of them the fence no longer permits, and how they end."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fleet_core.egress_conntrack import Tracked, tracked
    from fleet_core.fences import Fence
    from fleet_core.flows import Flow, permitted
else:
    try:
        from ..fleet_core.egress_conntrack import Tracked, tracked
        from ..fleet_core.fences import Fence
        from ..fleet_core.flows import Flow, permitted
    except ImportError:  # installed as a top-level package
        from fleet_core.egress_conntrack import Tracked, tracked
        from fleet_core.fences import Fence
        from fleet_core.flows import Flow, permitted

from . import egress_commands

DNS_PORT = 53
Learned = Mapping[str, Collection[str]]


def of_guests(addresses: Collection[str]) -> list[Tracked]:
    """Return the connections that were begun under these addresses."""
    wanted = {str(ipaddress.ip_address(one)) for one in addresses}
    found = []
    for family in (4, 6):
        if any((":" in one) == (family == 6) for one in wanted):
            text = egress_commands.run(["conntrack", "-L", "-f", f"ipv{family}"])
            found += [one for one in tracked(text) if one.source in wanted]
    return found


def cut(
    fence: Fence,
    learned: Callable[[Fence], Learned],
    addresses: Collection[str],
    moved: Collection[str],
    now: int,
) -> int:
    """End the connections of guests that the fence does not permit, and return how many they were.

    learned: tells what names led to. addresses: of guests that may reach less than before. moved: of guests whose names
    another resolver answers now, or none: their questions go there from now on, and not where a remembered connection
    leads.
    """
    every = {*addresses, *moved}
    if not every:
        return 0
    narrowed = {str(ipaddress.ip_address(one)) for one in addresses}
    found = of_guests(every)
    known = learned(fence) if found else {}
    count = 0
    for one in found:
        asks = one.port == DNS_PORT and one.protocol in ("udp", "tcp")
        if (asks or one.source in narrowed) and (asks or not _permitted(fence, known, one, now)):
            count += _delete(one)
    return count


def _permitted(fence: Fence, learned: Learned, one: Tracked, now: int) -> bool:
    flow = Flow(one.source, one.destination, one.protocol, one.port, one.mark)
    return permitted(fence, learned, flow, now)


def _delete(one: Tracked) -> int:
    done = egress_commands.attempt(["conntrack", *one.deletion()])
    return 1 if done.returncode == 0 else 0  # it may have ended meanwhile


def cut_proxied(addresses: Iterable[str], port: int) -> bool:
    """End connections of guests to the proxy, and return whether they have ended.

    To forget them in conntrack would not end them: the proxy stays open, and goes on with those that it has. A kernel
    without CONFIG_INET_DIAG_DESTROY does nothing, and says nothing of it.
    """
    done = True
    for address in sorted(set(addresses)):
        where = ["dst", f"[{address}]" if ":" in address else address, "sport", "=", f":{port}"]
        before = _established(where)
        if before:
            egress_commands.attempt(["ss", "-KHnt", *where])
            done = done and not before & _established(where)
    return done


def _established(where: Iterable[str]) -> set[str]:
    """Return both ends of each connection that is open."""
    text = egress_commands.run(["ss", "-Hnt", "state", "established", *where])
    return {" ".join(line.split()[-2:]) for line in text.splitlines()}
