# SPDX-License-Identifier: GPL-3.0-or-later
"""Tables of nftables as values, and the script that makes the kernel hold them: one transaction, however often it runs.

Rules and the elements of fixed sets are replaced. Counters, limits, and the elements of learned sets stay as they are.
Source: nft(8) of nftables 1.0.6.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

FINGERPRINT = "fingerprint"  # the name of the chain that bears it


@dataclass(frozen=True)
class NamedSet:
    """A set or map. kind: "set" or "map"; type: with its first word, such as "type ipv4_addr".

    elements: None for a set whose elements are learned while it is in the kernel.
    """

    name: str
    type: str
    elements: tuple[str, ...] | None = None
    flags: str = ""
    kind: str = "set"

    def declaration(self) -> str:
        return f"{self.type};{f' {self.flags};' if self.flags else ''}"


@dataclass(frozen=True)
class Chain:
    """Rules that are read one after the other. hook: of a chain that the kernel itself jumps to."""

    name: str
    rules: tuple[str, ...] = ()
    hook: str = ""


@dataclass(frozen=True)
class Table:
    """A table. limits: name -> rate, as "10/second burst 10 packets"."""

    family: str
    name: str
    chains: tuple[Chain, ...] = ()
    sets: tuple[NamedSet, ...] = ()
    counters: tuple[str, ...] = ()
    limits: tuple[tuple[str, str], ...] = ()

    @property
    def where(self) -> str:
        return f"{self.family} {self.name}"

    def sizes(self) -> dict[str, int]:
        """Return the number of rules of each chain."""
        return {chain.name: len(chain.rules) for chain in self.chains}

    def names(self) -> dict[str, set[str]]:
        """Return the names of what the table holds: kind of `nft -j list` -> names."""
        return {
            "chain": {chain.name for chain in self.chains},
            "set": {one.name for one in self.sets if one.kind == "set"},
            "map": {one.name for one in self.sets if one.kind == "map"},
            "counter": set(self.counters),
            "limit": {name for name, _rate in self.limits},
        }


def script(tables: Sequence[Table]) -> str:
    """Return the input of `nft -f` for some tables, with a fingerprint of itself in each."""
    mark = hashlib.sha256("".join(_text(table) for table in tables).encode()).hexdigest()[:32]
    return "\n".join(_text(signed(table, mark)) for table in tables)


def signed(table: Table, mark: str) -> Table:
    """Return the table with a chain that nothing jumps to and that bears a fingerprint."""
    chain = Chain(FINGERPRINT, (f'return comment "{mark}"',))
    return Table(table.family, table.name, (*table.chains, chain), table.sets, table.counters, table.limits)


def fingerprint(text: str) -> str:
    """Return the fingerprint in a script, or in what `nft list chain` says of it; empty for none."""
    _before, found, after = text.partition('return comment "')
    return after.partition('"')[0] if found else ""


def braces(elements: Iterable[str]) -> str:
    """Return an unnamed set; one element needs no braces."""
    found = list(elements)
    return found[0] if len(found) == 1 else "{ " + ", ".join(found) + " }"


def any_of(elements: Iterable[str]) -> str:
    """Return an unnamed set, of one element too: what a rule compares with "!=" or several families share."""
    return "{ " + ", ".join(elements) + " }"


def _text(table: Table) -> str:
    lines = [f"add table {table.where}", f"flush table {table.where}"]
    lines += (f"add counter {table.where} {name}" for name in table.counters)
    lines += (f"add limit {table.where} {name} {{ rate {rate}; }}" for name, rate in table.limits)
    lines += (f"add chain {table.where} {chain.name}" for chain in table.chains if not chain.hook)
    for one in table.sets:
        lines.append(f"add {one.kind} {table.where} {one.name} {{ {one.declaration()} }}")
        if one.elements is not None:
            lines.append(f"flush {one.kind} {table.where} {one.name}")
        if one.elements:
            lines.append(f"add element {table.where} {one.name} {{")
            lines += (f"\t{element}," for element in one.elements)
            lines.append("}")
    lines.append(f"table {table.where} {{")
    for chain in table.chains:
        lines.append(f"\tchain {chain.name} {{")
        if chain.hook:
            lines.append(f"\t\t{chain.hook}")
        lines += (f"\t\t{rule}" for rule in chain.rules)
        lines.append("\t}")
    lines.append("}")
    return "".join(f"{line}\n" for line in lines)
