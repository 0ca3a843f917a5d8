# SPDX-License-Identifier: GPL-3.0-or-later
"""From a declaration to all that this host needs for it: the fence, the files of its tools, the processes."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fleet_core import egress, egress_addresses, egress_dns, egress_fence
    from fleet_core.egress import Declaration
    from fleet_core.egress_live import Live, live_from_dict
    from fleet_core.egress_notices import notices
    from fleet_core.errors import Exhausted, FleetError, Unavailable
    from fleet_core.fences import Fence
else:
    try:
        from ..fleet_core import egress, egress_addresses, egress_dns, egress_fence
        from ..fleet_core.egress import Declaration
        from ..fleet_core.egress_live import Live, live_from_dict
        from ..fleet_core.egress_notices import notices
        from ..fleet_core.errors import Exhausted, FleetError, Unavailable
        from ..fleet_core.fences import Fence
    except ImportError:  # installed as a top-level package
        from fleet_core import egress, egress_addresses, egress_dns, egress_fence
        from fleet_core.egress import Declaration
        from fleet_core.egress_live import Live, live_from_dict
        from fleet_core.egress_notices import notices
        from fleet_core.errors import Exhausted, FleetError, Unavailable
        from fleet_core.fences import Fence

from . import egress_backends, egress_commands, egress_proxies, egress_services
from .egress_services import Item
from .egress_store import EgressStore, Record

FIRST_PORT, LAST_PORT = 15300, 16299  # of resolvers: below the ports that this host's own connections begin from
REMEMBERED = 1000  # cards that are gone, whose addresses are the last to be given out again
_RESOLVERS = "/etc/resolv.conf"
_BOOT = "#!/bin/sh\n# Loads the rules of the network policy. Written by fleet: changes are lost.\nset -eu\n"


@dataclass(frozen=True)
class Wanted:
    """What is to be in force. record: as it is written. fence: what it enforces. items: processes.

    notices: what of the declaration does nothing, or less than it seems.
    """

    record: Record
    declaration: Declaration
    live: tuple[Live, ...]
    fence: Fence
    items: tuple[Item, ...]
    notices: tuple[str, ...] = ()


def work_out(
    store: EgressStore,
    before: Record,
    declaration: Declaration,
    live: Sequence[Live],
    now: int,
    upstreams: Sequence[str],
    exact: bool = True,
) -> Wanted:
    """Return what a declaration and live changes mean on this host now.

    before: what is applied; ports and addresses that it has given out stay. exact: False where nothing is to be
    applied, and tools may be missing.
    """
    placed, addresses = placed_machines(declaration, before.addresses)
    fence, ports = _compiled(placed, live, now, before.ports, upstreams)
    backend = egress_backends.backend(declaration.backend)
    files = {**backend.files(fence), **_resolver_files(store, fence, declaration.backend, exact)}
    proxy = egress_proxies.wanted(store, fence, exact)
    files.update(proxy.files)
    record = Record(
        declared=egress.to_dict(declaration),
        live=tuple(change.to_dict() for change in live),
        ports=ports,
        addresses=addresses,
        basis={"now": now, "upstreams": list(upstreams)},
        files=files,
        boot=_BOOT + backend.boot(str(store.applied)).strip() + "\n",
    )
    items = [*_resolver_items(store, fence, files), *proxy.items, _watch(store)]
    return Wanted(record, declaration, tuple(live), fence, tuple(items), notices(declaration, live, now))


@dataclass(frozen=True)
class Recorded:
    """What a generation says, worked out as it was. Without any, there is no declaration.

    Another version of ours may have written what this one does not understand: then there is no fence. damage: why live
    changes are not all known that may close something, empty if they are.
    """

    declaration: Declaration | None = None
    live: tuple[Live, ...] = ()
    fence: Fence | None = None
    damage: str = ""


def recorded(record: Record) -> Recorded:
    """Return what a generation says."""
    if record.declared is None:
        return Recorded()
    live, damage = recorded_live(record)
    try:
        declaration = egress.parse(record.declared)
    except FleetError:
        return Recorded(None, live, None, damage)
    try:
        placed, _addresses = placed_machines(declaration, record.addresses)
        upstreams = tuple(record.basis.get("upstreams") or ())
        fence = egress_fence.compile(placed, live, int(record.basis.get("now") or 0), record.ports, upstreams)
    except FleetError:
        return Recorded(declaration, live, None, damage)
    return Recorded(declaration, live, fence, damage)


def recorded_live(record: Record) -> tuple[tuple[Live, ...], str]:
    """Return the live changes of a generation that are understood, and what is wrong with one that is not.

    One that opens something may be left out: what nobody understands opens nothing.
    """
    found, damage = [], ""
    for number, one in enumerate(record.live):
        try:
            found.append(live_from_dict(one))
        except FleetError as error:
            if one.get("verb") != "allow":
                damage = damage or f"live change {number + 1}: {error.message}"
    return tuple(found), damage


def placed_machines(declaration: Declaration, known: Mapping[str, Any]) -> tuple[Declaration, dict[str, Any]]:
    """Return the declaration with an address for each machine, and the addresses that were given out."""
    placed = egress_addresses.allocate(declaration, known)
    given = egress_addresses.given_out(placed, known)
    gone = sorted(set(given) - {guest.mac for guest in placed.machines})
    for mac in gone[REMEMBERED:]:
        del given[mac]
    return placed, given


def _compiled(
    declaration: Declaration, live: Sequence[Live], now: int, known: Mapping[str, int], upstreams: Sequence[str]
) -> tuple[Fence, dict[str, int]]:
    """Return the fence, and the ports of its resolvers. A scope keeps its port."""
    scopes = sorted(set(egress_fence.scope_names(declaration, live, now).values()))
    ports = {scope: known[scope] for scope in scopes if scope in known}
    free = (port for port in range(FIRST_PORT, LAST_PORT + 1) if port not in set(ports.values()))
    for scope in scopes:
        if scope not in ports:
            try:
                ports[scope] = next(free)
            except StopIteration:
                raise Exhausted(
                    f"resolvers: expected at most {LAST_PORT + 1 - FIRST_PORT} scopes with policies of their own"
                ) from None
    return egress_fence.compile(declaration, live, now, ports, upstreams), ports


def _resolver_files(store: EgressStore, fence: Fence, backend: str, exact: bool) -> dict[str, str]:
    build = egress_dns.DEBIAN_12
    try:
        build = egress_dns.build(egress_commands.run(["dnsmasq", "--version"]))
        egress_dns.require(build, backend)
    except Unavailable:
        if exact:
            raise
    found = {
        f"dns-{scope.name}.conf": egress_dns.resolver(fence, scope, backend, str(dns_log(store, scope.name)), build)
        for scope in fence.scopes
        if scope.resolver_port
    }
    for bridge in fence.bridges:
        if bridge.dhcp:
            leases = str(store.folder / f"dhcp-{bridge.name}.leases")
            found[f"dhcp-{bridge.name}.conf"] = egress_dns.dhcp(fence, bridge, leases)
    return found


def dns_log(store: EgressStore, scope: str) -> Any:
    """Return the file where the resolver of a scope writes what it is asked."""
    return store.folder / f"dns-{scope}.log"


def _resolver_items(store: EgressStore, fence: Fence, files: Mapping[str, str]) -> list[Item]:
    program = _program("dnsmasq")
    found = []
    for scope in fence.scopes:
        name = f"dns-{scope.name}.conf"
        if name in files:
            argv = [program, f"--conf-file={store.applied / name}"]
            ident = egress_services.process_id(egress_services.DNS, scope.name)
            found.append(egress_services.item(ident, f"names of {scope.name}", argv, files[name]))
    for bridge in fence.bridges:
        name = f"dhcp-{bridge.name}.conf"
        if name in files:
            argv = [program, f"--conf-file={store.applied / name}"]
            ident = egress_services.process_id(egress_services.DHCP, bridge.name)
            found.append(egress_services.item(ident, f"addresses on {bridge.name}", argv, files[name]))
    return found


def _program(tool: str) -> str:
    """Return the path of a tool, or its bare name where it is missing, which only check mode gets to see."""
    try:
        return egress_commands.find(tool)
    except FleetError:
        return tool


def _watch(store: EgressStore) -> Item:
    argv = ["-I", "-m", "fleet_node.egress_watch", str(store.state_dir)]
    return egress_services.item(egress_services.WATCH, "watch of the network policy", argv, python=True)


def host_resolvers(path: str = _RESOLVERS) -> tuple[str, ...]:
    """Return the resolvers that this host asks itself."""
    found = []
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines()
    except OSError:
        return ()
    for line in lines:
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver":
            try:
                found.append(str(ipaddress.ip_address(words[1].partition("%")[0])))
            except ValueError:
                continue
    return tuple(dict.fromkeys(found))
