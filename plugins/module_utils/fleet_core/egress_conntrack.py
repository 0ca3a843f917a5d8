# SPDX-License-Identifier: GPL-3.0-or-later
"""Connections as conntrack(8) lists them, one a line, and the arguments that delete one."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass

_PAIR = re.compile(r"(\w+)=(\S+)")
_PORTS = ("tcp", "udp", "udplite", "sctp", "dccp")


@dataclass(frozen=True)
class Tracked:
    """A connection as its first packet had it. answering: who answers; not destination where that is redirected.

    port, source_port: 0 where the protocol has none. icmp: type, code and id, as conntrack says them. mark: of ours.
    """

    source: str
    destination: str
    protocol: str
    port: int = 0
    source_port: int = 0
    mark: int = 0
    answering: str = ""
    icmp: tuple[str, str, str] = ("", "", "")

    @property
    def family(self) -> int:
        return 6 if ":" in self.source else 4

    def deletion(self) -> tuple[str, ...]:
        """Return the arguments with which conntrack deletes this connection and no other."""
        words = ["-D", "-f", f"ipv{self.family}", "-p", self.protocol, "-s", self.source, "-d", self.destination]
        if self.protocol in _PORTS:
            words += ["--sport", str(self.source_port), "--dport", str(self.port)]
        elif self.icmp[0]:
            words += ["--icmp-type", self.icmp[0], "--icmp-code", self.icmp[1], "--icmp-id", self.icmp[2]]
        return tuple(words)


def tracked(text: str) -> Iterator[Tracked]:
    """Yield the connections of `conntrack -L`; lines that are none are left out."""
    for line in text.splitlines():
        found = _line(line)
        if found is not None:
            yield found


def _line(line: str) -> Tracked | None:
    protocol = line.partition(" ")[0]
    pairs = _PAIR.findall(line)
    values: dict[str, list[str]] = {}
    for key, value in pairs:
        values.setdefault(key, []).append(value)
    try:
        source, destination = (str(ipaddress.ip_address(values[key][0])) for key in ("src", "dst"))
        answering = str(ipaddress.ip_address(values["src"][1]))
        number = {key: int(values[key][0]) if key in values else 0 for key in ("sport", "dport", "mark")}
    except (KeyError, IndexError, ValueError):
        return None
    kind, code, ident = (values[key][0] if key in values else "" for key in ("type", "code", "id"))
    return Tracked(
        source, destination, protocol, number["dport"], number["sport"], number["mark"], answering, (kind, code, ident)
    )
