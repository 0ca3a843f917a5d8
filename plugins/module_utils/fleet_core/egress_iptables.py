# SPDX-License-Identifier: GPL-3.0-or-later
"""Rules of iptables and ip6tables, as texts for `iptables-restore --noflush`: chains of our own, FLEET-*, and one jump
to them at the head of each chain of the kernel that we need. Traffic that is not of our bridges runs through untouched.

Judged is in the table mangle, which comes before the table filter, where others have their rules: no accept of theirs
opens what is closed here, wherever it stands. Only filter can refuse (REJECT): what is denied gets a mark for it, and
what still bears the mark when it leaves is dropped.

What happens on the bridge itself (addresses of hardware, ARP, ND, machine to machine) is layer 2, and not here.
Sources: iptables(8), iptables-extensions(8). The names of chains have at most 28 characters.
"""

from __future__ import annotations

from . import egress_ipsets as sets
from .egress_frames import HELD
from .egress_iptables_scopes import (
    ANSWERED,
    BEGUN,
    DENY,
    Chain,
    ends,
    gateway,
    hub_rules,
    log_limit,
    port_matches,
    scope_rules,
    words,
)
from .egress_nftables_names import NOBODY, check
from .fences import Bridge, Fence, Scope

FILTER, NAT, MANGLE = "filter", "nat", "mangle"
# The kernel's chain -> ours. The jump stands at its head, once.
JUMPS = {
    MANGLE: {
        "PREROUTING": "FLEET-ARRIVAL",
        "INPUT": "FLEET-INPUT",
        "FORWARD": "FLEET-FORWARD",
        "POSTROUTING": "FLEET-LEAVING",
    },
    FILTER: {"INPUT": "FLEET-SERVED", "FORWARD": "FLEET-JUDGED"},
    NAT: {"PREROUTING": "FLEET-DNS", "POSTROUTING": "FLEET-NAT"},
}
PREFIX = "FLEET-"
OUT, IN, HOST, SPOOF, ALLOW = "FLEET-OUT", "FLEET-IN", "FLEET-HOST", "FLEET-SPOOF", "FLEET-ALLOW"
DENIED = "0x40000000"  # a bit of the mark, between judging and leaving
PROHIBITED = {4: "icmp-admin-prohibited", 6: "icmp6-adm-prohibited"}
FINGERPRINT = "fleet fingerprint "


def restore(fence: Fence, family: int) -> str:
    """Return what iptables-restore (family 4) or ip6tables-restore (6) reads: all tables, each one transaction.

    Raises InvalidInput for names that the tools would read as something else than they are meant for.
    """
    check(fence)
    rules = {MANGLE: _mangle(fence, family), FILTER: _filter(fence, family), NAT: _nat(fence, family)}
    mark = sets.digits("\n".join(rule for table in rules.values() for rule in table))
    return "".join(_table(table, lines, mark) for table, lines in rules.items())


def fingerprint(text: str) -> str:
    """Return the words by which the rules of a text are known again in the kernel; empty for none."""
    _before, words_, after = text.partition(FINGERPRINT)
    return words_ + after.partition('"')[0]


def chain_sizes(text: str) -> dict[str, dict[str, int]]:
    """Return table -> chain of ours -> number of its rules, of a text for iptables-restore or by iptables-save."""
    found: dict[str, dict[str, int]] = {}
    table = ""
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:].strip()
        elif line.startswith((f":{PREFIX}", f"-A {PREFIX}")):
            chain = line[3 if line[0] == "-" else 1 :].partition(" ")[0]
            sizes = found.setdefault(table, {})
            sizes[chain] = sizes.get(chain, 0) + line.startswith("-")
    return found


def _table(table: str, rules: list[str], mark: str) -> str:
    jumps = JUMPS[table]
    marked = [f'-A {next(iter(jumps.values()))} -m comment --comment "{FINGERPRINT}{mark}"', *rules]
    chains = dict.fromkeys([*jumps.values(), *(words(rule)[1] for rule in marked)])
    lines = [
        f"*{table}",
        *(f":{chain} - [0:0]" for chain in chains),
        *marked,
        *(f"-I {builtin} 1 -j {chain}" for builtin, chain in jumps.items()),
        "COMMIT",
    ]
    return "".join(f"{line}\n" for line in lines)


def scopes_of(fence: Fence, family: int) -> list[Scope]:
    """Return the scopes that have guests in a family: only those have rules."""
    return [scope for scope in fence.scopes if sets.addresses(fence.guests_of(scope.name), family)]


def _filter(fence: Fence, family: int) -> list[str]:
    """Refuse what was denied; let pass what was not, whatever others say of it further down."""
    refused = "FLEET-REFUSED"
    return [
        f"-A FLEET-JUDGED -m mark --mark {DENIED}/{DENIED} -g {refused}",
        *(f"-A FLEET-JUDGED {way} {bridge.name} -j ACCEPT" for bridge in fence.bridges for way in ("-i", "-o")),
        *(f"-A FLEET-SERVED -i {bridge.name} -j ACCEPT" for bridge in fence.bridges),
        f"-A {refused} -p tcp -j REJECT --reject-with tcp-reset",
        f"-A {refused} -m limit --limit 100/sec --limit-burst 100 -j REJECT --reject-with {PROHIBITED[family]}",
        f"-A {refused} -j DROP",
    ]


def _mangle(fence: Fence, family: int) -> list[str]:
    scopes = scopes_of(fence, family)
    rules = [
        *_arrival(fence),
        *(f"-A FLEET-FORWARD -i {bridge.name} -g FLEET-FROM-{bridge.name}" for bridge in fence.bridges),
        *(f"-A FLEET-FORWARD -o {bridge.name} -g {IN}" for bridge in fence.bridges),
        *(f"-A FLEET-INPUT -i {bridge.name} -g FLEET-HOST-{bridge.name}" for bridge in fence.bridges),
        *_services_of_bridges(fence, family),
    ]
    for bridge in fence.bridges:
        rules += _from_bridge(fence, bridge, family)
        rules += _from_bridge_to_host(bridge, family)
    rules += [
        *_before_new(fence, scopes, OUT, family),
        *_dispatch(scopes, OUT, family, "src", Chain.NEW),
        f"-A {OUT} -g {SPOOF}",
        *_before_new(fence, scopes, IN, family),
        *_dispatch(scopes, IN, family, "dst", Chain.INBOUND),
        f"-A {IN} -j DROP",
        *_before_new(fence, scopes, HOST, family),
        *_dispatch(scopes, HOST, family, "src", Chain.SERVICE),
        f"-A {HOST} -g {SPOOF}",
        *(rule for scope in scopes for rule in scope_rules(fence, scope, family)),
        f"-A {ALLOW} -m set --match-set {sets.allowed_set(family)} src -j ACCEPT",
        f"-A {ALLOW} -j DROP",
    ]
    return [
        *rules,
        *_spoof(fence, family),
        f"-A {DENY} -j MARK --set-xmark {DENIED}/{DENIED}",
        f"-A {DENY} -j ACCEPT",
        f"-A FLEET-LEAVING -m mark --mark {DENIED}/{DENIED} -j DROP",
    ]


def _spoof(fence: Fence, family: int) -> list[str]:
    """Count, log and drop what no known guest can have sent."""
    rules = [f"-A {SPOOF} -m set --match-set {sets.nobody_set(family)} src"]
    if fence.log_rate:
        prefix = f'--nflog-prefix "fleet spoof {NOBODY} "'
        rules.append(f"-A {SPOOF} {log_limit(fence)} -j NFLOG --nflog-group {fence.log_group} {prefix}")
    return [*rules, f"-A {SPOOF} -j DROP"]


def _arrival(fence: Fence) -> list[str]:
    """Stop what no guest has sent, over its port or, where that is not known, from its MAC: the bridge has marked what
    one has. Take off the mark."""
    rules = []
    for bridge in fence.bridges:
        held = f"-A FLEET-ARRIVAL -i {bridge.name} -m mark"
        rules.append(f"{held} ! --mark {HELD}/{HELD} -g {SPOOF}")
        rules.append(f"{held} --mark {HELD}/{HELD} -j MARK --set-xmark 0x0/{HELD}")
    return rules


def _from_bridge(fence: Fence, bridge: Bridge, family: int) -> list[str]:
    """What comes from a bridge and is forwarded. Frames that stay on the bridge come here too where br_netfilter is
    on: layer 2 has judged them, and addresses of one link never come from elsewhere."""
    chain = f"FLEET-FROM-{bridge.name}"
    stays = f"-A {chain} -o {bridge.name}"
    rules = _detours(chain, family)
    if family == 6:
        rules += [f"{stays} -s fe80::/10 -j ACCEPT", f"{stays} -d ff02::/16 -j ACCEPT"]
    rules.append(f"-A {chain} -m set ! --match-set {sets.bridge_set(bridge.name, family)} src -g {SPOOF}")
    rules += (
        f"{stays} -m set --match-set {circle.speakers_set(family)} src"
        f" -m set --match-set {circle.listeners_set(family)} dst -j ACCEPT"
        for circle in sets.circles(fence, family)
    )
    return [*rules, f"-A {chain} -g {OUT}"]


def _from_bridge_to_host(bridge: Bridge, family: int) -> list[str]:
    chain = f"FLEET-HOST-{bridge.name}"
    own = gateway(bridge, family)
    rules = _detours(chain, family)
    if own and family == 6:
        rules += [f"-A {chain} -p icmpv6 --icmpv6-type {kind} -m hl --hl-eq 255 -j ACCEPT" for kind in (133, 135, 136)]
    rules += [f"-A {chain} {match} -j ACCEPT" for match in _dhcp(bridge, own, family, known=False)]
    if family == 6:
        rules += [f"-A {chain} -s {local} -j DROP" for local in ("::/128", "fe80::/10")]
    rules.append(f"-A {chain} -m set ! --match-set {sets.bridge_set(bridge.name, family)} src -g {SPOOF}")
    rules += [f"-A {chain} {match} -j ACCEPT" for match in _dhcp(bridge, own, family, known=True)]
    return [*rules, f"-A {chain} -g {HOST}"]


def _dhcp(bridge: Bridge, own: str, family: int, known: bool) -> list[str]:
    """Return the matches of what clients send for an address. known: those that have one already."""
    if not own or not bridge.dhcp:
        return []
    if family == 6:
        ports = "-p udp --sport 546 --dport 547"
        return [] if known else [f"-s fe80::/10 -d {where} {ports}" for where in ("ff02::1:2", own)]
    ports = "-p udp --sport 68 --dport 67"
    if known:
        return [f"-d {where} {ports}" for where in (own, "255.255.255.255")]
    return [f"-s 0.0.0.0 -d 255.255.255.255 {ports}"]


def _detours(chain: str, family: int) -> list[str]:
    """Packets that say themselves which way they want to go: their last destination is another than the one judged."""
    return [f"-A {chain} -m rt -g {SPOOF}"] if family == 6 else []


def _services_of_bridges(fence: Fence, family: int) -> list[str]:
    """Resolvers and the proxy are for guests and this host itself, not for others who have a route to a bridge."""
    ports = {scope.resolver_port for scope in fence.scopes if scope.resolver_port}
    ports |= {fence.proxy.port} if fence.proxy.kind else set()
    return [
        f"-A FLEET-INPUT ! -i lo -d {own} -p {protocol}{match} -j DROP"
        for bridge in fence.bridges
        if (own := gateway(bridge, family))
        for protocol in ("tcp", "udp")
        for match in port_matches(tuple((port, port) for port in sorted(ports)))
        if ports
    ]


def _before_new(fence: Fence, scopes: list[Scope], chain: str, family: int) -> list[str]:
    """What is decided before the policy of a scope: ended, invalid, the hub, closed meanwhile, established. What is
    related is errors only: no helper of conntrack opens anything."""
    way, other = ("dst", "src") if chain == IN else ("src", "dst")
    rules = [
        f"-A {chain} -m connmark --mark 0x{grant.mark:x} -m time --datestart {ends(grant.until)}"
        + (" -j DROP" if chain == IN else f" -g {Chain.EXPIRED.of(scope)}")
        for scope in scopes
        for grant in scope.grants
        if grant.mark and chain != HOST
    ]
    rules += [f"-A {chain} -m conntrack --ctstate INVALID -j DROP", *hub_rules(fence, chain, family, way)]
    known = f"-m set --match-set {sets.allowed_set(family)} {way} -j ACCEPT"
    error = f"-A {chain} -p {'icmp' if family == 4 else 'icmpv6'} -m conntrack --ctstate RELATED"
    if chain == HOST:
        # Only answers to what this host began: all else is judged packet by packet, so that changes work at once.
        return [*rules, f"-A {chain} {ANSWERED} {known}", f"{error} {known}"]
    rules += (
        f"-A {chain} -m set --match-set {sets.scope_set(scope.name, family)} {way}"
        f" -m set --match-set {sets.closed_set(scope.name, family)} {other}"
        + (" -j DROP" if chain == IN else f" -g {Chain.FORWARD.of(scope)}")
        for scope in scopes
        if sets.closed_networks(scope, family)
    )
    passing = f"-m set --match-set {sets.passing_set(family)} {way} {known}"
    return [*rules, f"-A {chain} {ANSWERED if chain == IN else BEGUN} {passing}", f"{error} {passing}"]


def _dispatch(scopes: list[Scope], chain: str, family: int, way: str, into: Chain) -> list[str]:
    return [
        f"-A {chain} -m set --match-set {sets.scope_set(scope.name, family)} {way} -g {into.of(scope)}"
        for scope in scopes
    ]


def _nat(fence: Fence, family: int) -> list[str]:
    """Questions for any name server go to the scope's own; what leaves does so under this host's address."""
    rules: list[str] = []
    for bridge in fence.bridges:
        own = gateway(bridge, family)
        here = {guest.scope for guest in sets.guests_on(fence, bridge.name)}
        for scope in scopes_of(fence, family):
            if own and scope.resolver_port and scope.name in here and scope.mode != "locked":
                target = f"{own}:{scope.resolver_port}" if family == 4 else f"[{own}]:{scope.resolver_port}"
                rules += (
                    f"-A FLEET-DNS -i {bridge.name} -p {protocol} --dport 53"
                    f" -m set --match-set {sets.scope_set(scope.name, family)} src -j DNAT --to-destination {target}"
                    for protocol in ("udp", "tcp")
                )
    rules += (f"-A FLEET-NAT -o {bridge.name} -j RETURN" for bridge in fence.bridges)
    rules += (
        f"-A FLEET-NAT ! -o lo -m set --match-set {sets.bridge_set(bridge.name, family)} src -j MASQUERADE"
        for bridge in fence.bridges
        if bridge.nat
    )
    return rules
