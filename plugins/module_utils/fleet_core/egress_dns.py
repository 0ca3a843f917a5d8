# SPDX-License-Identifier: GPL-3.0-or-later
"""Configurations of dnsmasq: a resolver for each scope of a fence, a DHCP server for each bridge.

A resolver asks its upstreams for the names of its scope's grants and for nothing else: every other query is REFUSED by
dnsmasq itself, so that no byte of it leaves the host. What the names lead to goes into the sets of the grants before
the guest gets the answer.

Sources: dnsmasq(8) of 2.91 and its CHANGELOG; fgets() of option.c, which takes lines of up to 1024 bytes.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass

from .egress_names import covered, parents
from .egress_networks import without
from .egress_presets import DOH_NAMES
from .errors import InvalidInput, Unavailable
from .fences import Bridge, Fence, Grant, Scope, name_set

TABLE = "inet#fleet_egress"  # of nftables, as nftset= spells it
LONGEST_LIFE = 300  # seconds that guests and the cache keep an answer: sets forget what is no longer asked for
CACHE_ENTRIES = 1000
FORWARDED_AT_ONCE = 150  # queries that wait for an answer of the upstreams, for each group of servers
LEASE = "1h"
# Records that carry data or addresses past the sets: TXT and NULL carry anything, hints of HTTPS and SVCB are
# addresses that no set has learned, ANY brings all of them.
FILTERED = "TXT,NULL,HTTPS,SVCB,ANY"
_LINE = 1000
_MODERN = (2, 87)  # bogus-nxdomain takes networks of both families
_VERSION = re.compile(r"^Dnsmasq version (?P<major>\d+)\.(?P<minor>\d+)", re.MULTILINE)
_OPTIONS = re.compile(r"^Compile time options: (?P<options>.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Build:
    """A dnsmasq: its version and what it was compiled with, such as "nftset"; without it, "no-nftset"."""

    version: tuple[int, int]
    options: frozenset[str] = frozenset({"ipset", "nftset"})


DEBIAN_12 = Build((2, 90))
OLDEST = {"nftables": (2, 87), "iptables": (2, 80)}
_OPTION = {"nftables": "nftset", "iptables": "ipset"}


def build(text: str) -> Build:
    """Read what `dnsmasq --version` prints. Raises Unavailable for the words of another program."""
    version, options = _VERSION.search(text), _OPTIONS.search(text)
    if not version or not options:
        first = text.strip().partition("\n")[0]
        raise Unavailable(f'dnsmasq: expected "Dnsmasq version 2.NN" and its compile time options, found "{first}"')
    return Build((int(version["major"]), int(version["minor"])), frozenset(options["options"].split()))


def require(found: Build, backend_name: str) -> None:
    """Raise Unavailable where this dnsmasq cannot feed the sets of this backend."""
    oldest, option = OLDEST[backend_name], _OPTION[backend_name]
    number = ".".join(map(str, found.version))
    if found.version < oldest:
        wanted = ".".join(map(str, oldest))
        other = "; the backend iptables works with 2.80" if backend_name == "nftables" else ""
        raise Unavailable(f"dnsmasq: the backend {backend_name} needs version {wanted} or newer, found {number}{other}")
    if option not in found.options:
        raise Unavailable(f"dnsmasq {number}: the backend {backend_name} needs it compiled with {option}")


def resolver(fence: Fence, scope: Scope, backend_name: str, log_file: str, found: Build = DEBIAN_12) -> str:
    """Return the configuration of a scope's resolver.

    backend_name: "nftables" or "iptables", whose sets it feeds. log_file: where each query is written, for denials.
    found: the dnsmasq that will read it. Raises InvalidInput for a scope that has no resolver.
    """
    if not scope.resolver_port:
        raise InvalidInput(f'scope "{scope.name}": expected the port of a resolver, found none (mode {scope.mode})')
    lines = [
        f"# Names of the scope {scope.name} (mode {scope.mode}). Written by fleet: changes are lost.",
        *_process(log_file),
        *(f"interface={bridge}" for bridge in _bridges(fence, scope)),
        "except-interface=lo",
        f"port={scope.resolver_port}",
        *_limits(),
        *_answers(found),
        *_hub(fence, scope),
        *_names(fence, scope, backend_name),
        *_rebinding(fence, scope, found),
    ]
    return "\n".join(lines) + "\n"


def _process(log_file: str) -> list[str]:
    """Run under a supervisor, read no file of the host, listen on bridges that may come and go."""
    return [
        "keep-in-foreground",
        "pid-file=",
        "bind-dynamic",
        "no-resolv",
        "no-poll",
        "no-hosts",
        f"log-facility={log_file}",
        "log-queries=extra",
        "log-async=50",
    ]


def _limits() -> list[str]:
    return [
        f"cache-size={CACHE_ENTRIES}",
        f"max-ttl={LONGEST_LIFE}",
        f"max-cache-ttl={LONGEST_LIFE}",
        f"dns-forward-max={FORWARDED_AT_ONCE}",
        "edns-packet-max=1232",
    ]


def _answers(found: Build) -> list[str]:
    """What is answered without an upstream, and what is taken out of answers."""
    lines = ["domain-needed", "bogus-priv"]
    if found.version >= _MODERN:
        lines.append("no-ident")
    if found.version >= (2, 90):
        lines += ["strip-mac", "strip-subnet", f"filter-rr={FILTERED}"]
    return lines


def _bridges(fence: Fence, scope: Scope) -> list[str]:
    used = {guest.bridge for guest in fence.guests_of(scope.name)}
    return [bridge.name for bridge in fence.bridges if bridge.name in used] or [bridge.name for bridge in fence.bridges]


def _hub(fence: Fence, scope: Scope) -> list[str]:
    if not scope.hub or not fence.hub.name:
        return []
    return [f"local=/{fence.hub.name}/", *(f"host-record={fence.hub.name},{one}" for one in fence.hub.addresses)]


def _names(fence: Fence, scope: Scope, backend_name: str) -> list[str]:
    """Upstreams and sets of each name that is allowed; for the mode open, upstreams of all others but those of DoH."""
    if scope.mode in ("strict", "locked"):
        return []
    denied = frozenset(scope.denied_names)
    grants: dict[str, list[Grant]] = {}
    for grant in scope.grants:
        for name in grant.names:
            if not covered(name, denied):
                grants.setdefault(name, []).append(grant)
    allowed, names = frozenset(grants), sorted(grants)
    if scope.mode == "open":
        closed = denied | {name for name in DOH_NAMES if not covered(name, allowed)}
        asked = [name for name in names if covered(name, closed)]
        lines = [f"server={upstream}" for upstream in fence.upstreams]
        lines += [f"server=/{name}/{upstream}" for name in asked for upstream in fence.upstreams]
        lines += [f"local=/{name}/" for name in sorted(closed)]
    else:
        lines = [f"server=/{name}/{upstream}" for name in names for upstream in fence.upstreams]
        # "#" means the servers for all names, and there are none: REFUSED.
        lines += [f"server=/{name}/#" for name in sorted(denied) if covered(name, allowed)]
    return [*lines, *(_sets(scope, name, grants, backend_name) for name in names)]


def _sets(scope: Scope, name: str, grants: Mapping[str, list[Grant]], backend_name: str) -> str:
    """Return the line that feeds the sets of every grant that covers a name: dnsmasq uses the longest name's only.

    grants: by their names.
    """
    covering: dict[str, tuple[Grant, str]] = {}  # by key: a grant, and its widest name that covers this one
    for above in reversed(parents(name)):
        for grant in grants.get(above, ()):
            covering.setdefault(grant.key, (grant, above))
    found = list(covering.values())
    written = [_written(backend_name, grant.set_name(family), family) for grant, ___ in found for family in (4, 6)]
    option = f"{_OPTION[backend_name]}=/{name}/"
    if len(option) + len(",".join(written)) > _LINE:
        raise InvalidInput(f'name "{name}" of scope "{scope.name}": found in too many grants ({len(found)})')
    # What tells how to forget one name is left out first where a line is full, of grants that end by themselves.
    for grant, above in sorted(found, key=lambda pair: bool(pair[0].until)):
        ours = [_written(backend_name, name_set(grant, above, family), family) for family in (4, 6)]
        if len(option) + len(",".join(written + ours)) <= _LINE:
            written += ours
    return option + ",".join(written)


def _written(backend_name: str, name: str, family: int) -> str:
    return f"{family}#{TABLE}#{name}" if backend_name == "nftables" else name


def _rebinding(fence: Fence, scope: Scope, found: Build) -> list[str]:
    """Answers with a special address become "no such name", unless a grant opens that network."""
    if found.version < _MODERN:
        return ["stop-dns-rebind"]  # a fixed list of networks, shorter than ours; the rules of packets have all of them
    granted4 = [one for grant in scope.grants for one in grant.networks4]
    granted6 = [one for grant in scope.grants for one in grant.networks6]
    closed = [*without(fence.special4, granted4), *without(fence.special6, granted6)]
    return [f"bogus-nxdomain={network}" for network in closed]


def dhcp(fence: Fence, bridge: Bridge, lease_file: str) -> str:
    """Return the configuration of a bridge's DHCP server: known guests get their own addresses, others nothing.

    IPv6 guests learn the router from its advertisements and their address by DHCPv6; no prefix is offered to make
    addresses of their own from. lease_file: this server's own, written by dnsmasq.
    """
    lines = [
        f"# Addresses on the bridge {bridge.name}. Written by fleet: changes are lost.",
        *("keep-in-foreground", "pid-file=", "bind-dynamic", "port=0", "no-ping", "log-facility=-"),
        *("quiet-dhcp", "quiet-dhcp6", "quiet-ra"),
        f"interface={bridge.name}",
        "except-interface=lo",
        f"dhcp-leasefile={lease_file}",
        "dhcp-authoritative",
        "dhcp-lease-max=10000",
        "dhcp-ignore=tag:!known",
        "dhcp-ignore-names",
        *_ranges(bridge),
        *(_host(guest.mac, guest.address4, guest.address6) for guest in fence.guests if guest.bridge == bridge.name),
    ]
    return "\n".join(lines) + "\n"


def _ranges(bridge: Bridge) -> list[str]:
    lines = []
    if bridge.address4:
        four = ipaddress.IPv4Interface(bridge.address4)
        lines += [
            f"dhcp-range={four.network.network_address},static,{four.netmask},{LEASE}",
            f"dhcp-option=option:router,{four.ip}",
            f"dhcp-option=option:dns-server,{four.ip}",
        ]
    if bridge.address6:
        six = ipaddress.IPv6Interface(bridge.address6)
        lines += [
            "enable-ra",
            f"dhcp-range={six.network.network_address},static,{six.network.prefixlen},{LEASE}",
            f"dhcp-option=option6:dns-server,[{six.ip}]",
        ]
    return lines


def _host(mac: str, address4: str, address6: str) -> str:
    parts = [mac, *([address4] if address4 else []), *([f"[{address6}]"] if address6 else []), LEASE]
    return "dhcp-host=" + ",".join(parts)
