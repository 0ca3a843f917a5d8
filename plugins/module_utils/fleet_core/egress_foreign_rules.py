# SPDX-License-Identifier: GPL-3.0-or-later
"""Rules that others have loaded, as far as they decide about whole interfaces, states and ports.

Read from `nft -j list ruleset` (libnftables-json(5)), which shows those of iptables-nft too, and from iptables-save for
those of iptables-legacy. What a rule asks besides is not understood; such a rule counts as one that does not match.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import InvalidInput

OURS = ("fleet_", "FLEET-")  # tables and chains
ACCEPT, DROP, RETURN = "accept", "drop", "return"
_DEPTH = 16  # of jumps, as the kernel allows them
_HOOKS = {"INPUT": "input", "FORWARD": "forward"}
_META = {"iif": "iifname", "iifname": "iifname", "oif": "oifname", "oifname": "oifname", "l4proto": "protocol"}
_WORDS = {"ACCEPT": ACCEPT, "DROP": DROP, "REJECT": DROP, "RETURN": RETURN}


@dataclass(frozen=True)
class Packet:
    """What is asked about a packet. protocol, port: of the destination, empty and 0 for any; state: of conntrack.

    destination: "local" for this host itself, "unicast" for others.
    """

    iifname: str
    oifname: str = ""
    state: str = "new"
    protocol: str = ""
    port: int = 0
    destination: str = "unicast"


@dataclass(frozen=True)
class Match:
    """A condition. key: a field of Packet, or empty for what is not understood. values: words, or ranges of ports."""

    key: str
    values: tuple[str | tuple[int, int], ...] = ()
    negated: bool = False

    def holds(self, packet: Packet) -> bool:
        if not self.key:
            return False
        found = getattr(packet, self.key)
        if not found and self.key in ("protocol", "port"):
            return False
        return any(_same(found, value) for value in self.values) is not self.negated


# What whoever accepts, or goes no further, by these modules of iptables nearly always asks for.
_MEANT = {"conntrack": Match("state", ("established",)), "addrtype": Match("destination", ("local",))}


@dataclass(frozen=True)
class Rule:
    """Conditions and what follows. verdict: accept, drop, return, jump, goto, or empty for none."""

    matches: tuple[Match, ...]
    verdict: str = ""
    target: str = ""


@dataclass
class Base:
    """A chain that the kernel enters, with all chains of its table. policy: accept or drop."""

    family: str
    table: str
    name: str
    hook: str
    policy: str
    chains: Mapping[str, list[Rule]] = field(default_factory=dict)

    def verdict(self, packet: Packet) -> str:
        """Return accept or drop."""
        return self._walk(self.name, packet, 0) or self.policy

    def _walk(self, name: str, packet: Packet, depth: int) -> str:
        for rule in self.chains.get(name, ()) if depth < _DEPTH else ():
            if not rule.verdict or not all(match.holds(packet) for match in rule.matches):
                continue
            if rule.target.startswith(OURS):
                return ACCEPT  # what comes so far in the backend iptables is judged by our own chain
            if rule.verdict in ("jump", "goto"):
                found = self._walk(rule.target, packet, depth + 1)
                if found or rule.verdict == "goto":
                    return found
            else:
                return "" if rule.verdict == RETURN else rule.verdict
        return ""


def of_nft(text: str) -> list[Base]:
    """Return the filtering base chains of `nft -j list ruleset`. Raises InvalidInput for what is no such list."""
    try:
        rows = [(kind, one) for row in json.loads(text or '{"nftables": []}')["nftables"] for kind, one in row.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInput(f"rules of nftables: expected what `nft -j list ruleset` shows, found {error}") from None
    tables: dict[tuple[str, str], dict[str, list[Rule]]] = {}
    bases = []
    for kind, one in rows:
        if kind == "chain":
            chains = tables.setdefault((one["family"], one["table"]), {})
            chains.setdefault(one["name"], [])
            if one.get("type") == "filter":
                policy = one.get("policy", ACCEPT)
                bases.append(Base(one["family"], one["table"], one["name"], one["hook"], policy, chains))
        elif kind == "rule":
            chains = tables.setdefault((one["family"], one["table"]), {})
            chains.setdefault(one["chain"], []).extend(_rules(one.get("expr", [])))
    return bases


def tables(text: str) -> set[str]:
    """Return the tables of `nft -j list ruleset` as "FAMILY NAME"."""
    found = (row["table"] for row in json.loads(text or '{"nftables": []}')["nftables"] if "table" in row)
    return {f"{one['family']} {one['name']}" for one in found}


def offloads(text: str) -> list[str]:
    """Return the tables of `nft -j list ruleset` whose rules let connections go round all rules (flowtables)."""
    found = []
    for row in json.loads(text or '{"nftables": []}')["nftables"]:
        rule = row.get("rule")
        if rule and any("flow" in expression for expression in rule.get("expr", [])):
            found.append(f"{rule['family']} {rule['table']}")
    return list(dict.fromkeys(found))


def of_save(text: str, family: str) -> list[Base]:
    """Return the filtering chains of the kernel in what iptables-save (family "ip") or ip6tables-save ("ip6") says."""
    chains: dict[str, list[Rule]] = {}
    bases = []
    table = ""
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:].strip()
        elif table == "filter" and line.startswith(":"):
            name, policy = line[1:].split()[:2]
            chains[name] = []
            if name in _HOOKS:
                bases.append(Base(family, "filter", name, _HOOKS[name], _WORDS.get(policy, ACCEPT), chains))
        elif table == "filter" and line.startswith("-A "):
            words = shlex.split(line)
            chains.setdefault(words[1], []).append(_saved_rule(words[2:]))
    return bases


def _same(found: Any, value: Any) -> bool:
    if isinstance(value, tuple):
        return bool(value[0] <= found <= value[1])
    if isinstance(value, str) and value.endswith("*"):
        return str(found).startswith(value[:-1])
    return bool(found == value)


def _rules(expressions: list[dict[str, Any]]) -> Iterator[Rule]:
    """Yield what one rule says; one with a verdict map says several things."""
    matches: list[Match] = []
    drops = any(kind in one for one in expressions for kind in (DROP, "reject"))
    for one in expressions:
        kind, value = _only(one)
        if kind == "match":
            matches.append(_match(value))
        elif kind == "xt" and (value or {}).get("type", "match") == "match":
            # What iptables has in modules of its own is not shown: for most of them one can say what is meant.
            meant = None if drops else _MEANT.get((value or {}).get("name", ""))
            matches.append(meant or Match(""))
        elif kind == "vmap":
            yield from _mapped(matches, value)
        elif kind in (ACCEPT, DROP, RETURN):
            yield Rule(tuple(matches), kind)
        elif kind == "reject":
            yield Rule(tuple(matches), DROP)
        elif kind in ("jump", "goto"):
            yield Rule(tuple(matches), kind, value["target"])
        elif kind == "limit":
            matches.append(Match(""))


def _match(value: Mapping[str, Any]) -> Match:
    key = _key(value["left"])
    values = tuple(_values(value["right"]))
    return Match(key if values else "", values, value["op"] == "!=")


def _key(left: Any) -> str:
    if not isinstance(left, dict):
        return ""
    meta, payload, conntrack = left.get("meta"), left.get("payload"), left.get("ct")
    if meta:
        return _META.get(meta["key"], "")
    if "fib" in left:
        return "destination" if left["fib"] == {"result": "type", "flags": "daddr"} else ""
    if payload and payload.get("field") == "dport":
        return "port"  # the protocol stands in a match of its own, or goes without saying
    return "state" if conntrack and conntrack["key"] == "state" else ""


def _values(right: Any) -> Iterator[str | tuple[int, int]]:
    if isinstance(right, dict) and "set" in right:
        for one in right["set"]:
            yield from _values(one)
    elif isinstance(right, list):
        for one in right:
            yield from _values(one)
    elif isinstance(right, dict) and "range" in right:
        low, high = right["range"]
        if isinstance(low, int):
            yield low, high
    elif isinstance(right, int):
        yield right, right
    elif isinstance(right, str) and not right.startswith("@"):
        yield right


def _only(statement: Mapping[str, Any]) -> tuple[str, Any]:
    """Return the one key of a statement, which is its kind, and its value."""
    nothing: tuple[str, Any] = ("", {})
    return next(iter(statement.items()), nothing)


def _mapped(matches: list[Match], value: Mapping[str, Any]) -> Iterator[Rule]:
    key = _key(value["key"])
    data = value["data"].get("set", ()) if isinstance(value["data"], dict) else ()
    for found, verdict in data:
        kind, target = _only(verdict)
        values = tuple(_values(found))
        match = Match(key if values else "", values)
        yield Rule((*matches, match), kind, target["target"] if isinstance(target, dict) else "")


def _saved_rule(words: list[str]) -> Rule:
    """Return a rule of iptables-save."""
    matches, verdict, target, negated, at = [], "", "", False, 0
    while at < len(words):
        word, value = words[at], words[at + 1] if at + 1 < len(words) else ""
        if word == "!":
            negated, at = True, at + 1
            continue
        if word in ("-j", "-g"):
            verdict = _WORDS.get(value) or ("jump" if word == "-j" else "goto")
            target = "" if value in _WORDS else value
            break
        if word == "--ctstate":
            matches.append(Match("state", tuple(value.lower().split(",")), negated))
        elif word in ("-i", "-o", "-p"):
            key = {"-i": "iifname", "-o": "oifname", "-p": "protocol"}[word]
            matches.append(Match(key, (value.replace("+", "*"),), negated))
        elif word == "--dport":
            low, _colon, high = value.partition(":")
            matches.append(Match("port", ((int(low), int(high or low)),), negated))
        elif word == "--dst-type":
            matches.append(Match("destination", (value.lower(),), negated))
        elif word == "-m":
            if value not in ("addrtype", "conntrack", "tcp", "udp", "comment"):
                matches.append(Match(""))
        elif word.startswith("-") and word != "--comment":
            matches.append(Match(""))
        negated, at = False, at + 2
    return Rule(tuple(matches), verdict, target)
