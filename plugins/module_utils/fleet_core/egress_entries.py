# SPDX-License-Identifier: GPL-3.0-or-later
"""Entries of a policy: what may be reached, by which protocol and ports, until when.

As text: TARGET[:PORTS][/PROTOCOL]. TARGET is a domain, an address or a network, an IPv6 one in brackets when ports
follow; PORTS are numbers and ranges with commas between them, or "any"; PROTOCOL is tcp, udp, icmp or any.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Union

from .egress_names import domain
from .errors import InvalidInput
from .fences import Ports
from .moments import iso, needed
from .names import as_bool, as_int, as_text, check_keys, describe, nearest
from .quantities import format_duration, parse_duration

PROTOCOLS = ("tcp", "udp", "icmp", "any")
KEYS = ("domain", "host", "network", "preset", "ports", "protocol", "for", "since", "until", "comment", "force")
_TARGETS = ("domain", "host", "network", "preset")
DEFAULT_PORTS: Ports = ((443, 443),)
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
_TEXT = re.compile(r"(?P<rest>.*?)(?:/(?P<protocol>[A-Za-z]+))?")
_LAST_SECOND = 253402300799  # the year 9999

Net = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]


@dataclass(frozen=True)
class Entry:
    """kind: "domain", "network" or "preset". value: a name of the DNS, a network with its prefix length, or a preset.

    ports: ranges that neither touch nor overlap, empty for all. until: seconds since the epoch, 0 for ever. span: for
    how many seconds from since on, which is 0 until the entry has first been applied; 0 for no such limit.
    force: whether a name that looks wrong is meant.
    """

    kind: str
    value: str
    protocol: str = "tcp"
    ports: Ports = ()
    until: int = 0
    span: int = 0
    since: int = 0
    comment: str = ""
    force: bool = False

    def evolve(self, **values: Any) -> Entry:
        return replace(self, **values)

    def end(self, now: int) -> int:
        """Return when the entry ends, 0 for never. An entry that has not been applied begins now."""
        return (self.since or now) + self.span if self.span else self.until

    def lasts(self, now: int) -> bool:
        """Tell whether the entry has not ended yet."""
        return not self.end(now) or now < self.end(now)

    @property
    def target(self) -> str:
        """What is reached, as people write it: an address without the prefix length of its own."""
        if self.kind != "network":
            return self.value
        address, _slash, length = self.value.partition("/")
        return address if length == ("128" if ":" in address else "32") else self.value

    @property
    def text(self) -> str:
        """The entry as text, without its end."""
        if self.kind == "preset":
            return self.value
        ports = format_ports(self.ports)
        if self.protocol in ("icmp", "any") or (self.kind == "domain" and self._usual):
            ports = ""
        target = f"[{self.target}]" if ":" in self.value and ports else self.target
        return target + (f":{ports}" if ports else "") + ("" if self.protocol == "tcp" else f"/{self.protocol}")

    @property
    def _usual(self) -> bool:
        return self.protocol == "tcp" and self.ports == DEFAULT_PORTS

    def to_dict(self) -> dict[str, Any]:
        """Return the mapping that `entry` takes."""
        found: dict[str, Any] = {self.kind: self.target}
        if self.kind != "preset":
            found["protocol"] = self.protocol
            if self.protocol in ("tcp", "udp"):
                found["ports"] = format_ports(self.ports)
        if self.span:
            found["for"] = self.span
        if self.since:
            found["since"] = iso(self.since)
        if self.until:
            found["until"] = iso(self.until)
        if self.comment:
            found["comment"] = self.comment
        return {**found, "force": True} if self.force else found

    def shown(self) -> str:
        """Return the entry as people read it, with its end."""
        if self.until:
            return f"{self.text} until {iso(self.until)}"
        if self.span and self.since:
            return f"{self.text} until {iso(self.since + self.span)}"
        return f"{self.text} for {format_duration(self.span)}" if self.span else self.text


def entry(where: str, value: object) -> Entry:
    """Return an entry that opens something. Raises InvalidInput, which names what was expected."""
    if isinstance(value, str):
        target, given, protocol = _split(where, value)
        data = {_kind(target): target, "protocol": protocol}
        return _opening(where, data if given is None else {**data, "ports": given})
    return _opening(where, _mapping(where, value))


def denial(where: str, value: object) -> Entry:
    """Return an entry that closes something: a whole domain or network, whatever the protocol. Raises InvalidInput."""
    data = {_kind(value): value} if isinstance(value, str) else dict(_mapping(where, value))
    for key in ("ports", "protocol"):
        if data.pop(key, None) not in (None, "any"):
            raise InvalidInput(f"{where}: {key}: a denial closes all ports and protocols of what it names")
    if "preset" in data:
        raise InvalidInput(f"{where}: expected a domain, a host or a network: presets open, they do not close")
    kind, target = _target(where, data)
    return _timed(where, Entry(kind, target, "any"), data)


def preset_entry(where: str, value: object, known: Iterable[str]) -> Entry:
    """Return an entry of a preset, from its name or {preset: NAME, for: 30m}. Raises InvalidInput."""
    data = {"preset": value} if isinstance(value, str) else _mapping(where, value)
    found = _opening(where, data)
    if found.kind != "preset":
        raise InvalidInput(f"{where}: expected the name of a preset, found the {found.kind} {found.value}")
    known = tuple(known)
    if found.value not in known:
        hint = nearest(found.value, known) or f"; presets: {', '.join(sorted(known))}"
        raise InvalidInput(f'{where}: unknown preset "{found.value}"{hint}')
    return found


def network(where: str, value: object) -> Net:
    """Return an address or network. Raises InvalidInput, also for host bits and zones."""
    text = value.strip() if isinstance(value, str) else ""
    try:
        found = ipaddress.ip_network(text) if text and "%" not in text else None
    except ValueError:
        found = None
        try:
            wider = ipaddress.ip_network(text, strict=False)
        except ValueError:
            pass
        else:
            raise InvalidInput(f'{where}: "{text}" has host bits set, expected "{wider}"') from None
    if found is None or text.startswith(("/", ".")):
        raise InvalidInput(
            f"{where}: expected an address or a network such as 192.0.2.0/24 or 2001:db8::/32, found {describe(value)}"
        )
    return found


def cidr(net: Net) -> str:
    """Return a network as text, the same on every Python: newer ones write ::ffff:0:0/96 with dots."""
    if net.version == 4 or "." not in str(net):
        return str(net)
    high, low = divmod(int(net.network_address) & 0xFFFFFFFF, 0x10000)
    return f"::ffff:{high:x}:{low:x}/{net.prefixlen}"


def ports(where: str, value: object) -> Ports:
    """Return ranges of ports from 443, "443,8000-8100", a list of such, or "any", which is none."""
    items = list(value) if isinstance(value, (list, tuple)) else [value]
    found: list[tuple[int, int]] = []
    for item in items:
        for part in item.split(",") if isinstance(item, str) else [item]:
            if part == "any" and len(items) == 1 and item == "any":
                return ()
            low, dash, high = part.strip().partition("-") if isinstance(part, str) else (part, "", "")
            first = _port(where, low)
            last = _port(where, high) if dash else first
            if last < first:
                raise InvalidInput(f"{where}: expected a range that goes upwards, found {describe(part)}")
            found.append((first, last))
    if not found:
        raise InvalidInput(f'{where}: expected ports such as 443, "8000-8100" or "any", found {describe(value)}')
    return merged(found)


def merged(ranges: Iterable[tuple[int, int]]) -> Ports:
    """Return ranges in order that neither touch nor overlap; all ports are no ranges."""
    found: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if found and low <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(found[-1][1], high))
        else:
            found.append((low, high))
    return () if found == [(1, 65535)] else tuple(found)


def format_ports(ranges: Ports) -> str:
    """Return ranges as text: 80,8000-8100, or any."""
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges) or "any"


def _opening(where: str, data: Mapping[str, Any]) -> Entry:
    kind, target = _target(where, data)
    protocol = as_text(f"{where}: protocol", data.get("protocol", "tcp")).strip().lower()
    if protocol not in PROTOCOLS:
        raise InvalidInput(f'{where}: unknown protocol "{protocol}"{nearest(protocol, PROTOCOLS) or _protocols()}')
    given = data.get("ports")
    if kind == "preset":
        if given is not None or "protocol" in data:
            raise InvalidInput(f"{where}: a preset has its own ports and protocols")
        return _timed(where, Entry("preset", target, "any"), data)
    if protocol in ("icmp", "any"):
        if given not in (None, "any"):
            raise InvalidInput(f"{where}: protocol {protocol} goes without ports, found {describe(given)}")
        return _timed(where, Entry(kind, target, protocol), data)
    if given is None:
        if kind != "domain" or protocol != "tcp":
            shown = Entry(kind, target).target
            raise InvalidInput(
                f'{where}: expected ports with {shown}, such as {_example(shown, protocol)}; ":any" are all'
            )
        return _timed(where, Entry(kind, target, protocol, DEFAULT_PORTS), data)
    return _timed(where, Entry(kind, target, protocol, ports(f"{where}: ports", given)), data)


def _timed(where: str, found: Entry, data: Mapping[str, Any]) -> Entry:
    span = until = since = 0
    if "for" in data:
        if "until" in data:
            raise InvalidInput(f"{where}: expected either for or until, found both")
        span = int(parse_duration(f"{where}: for", data["for"]))
        if not 1 <= span <= _LAST_SECOND // 2:
            raise InvalidInput(f"{where}: for: expected at least one second, found {describe(data['for'])}")
    elif "since" in data:
        raise InvalidInput(f"{where}: since: expected for beside it")
    if "until" in data:
        until = _moment(f"{where}: until", data["until"])
    if "since" in data:
        since = _moment(f"{where}: since", data["since"])
    comment = " ".join(as_text(f"{where}: comment", data.get("comment", "")).split())
    force = as_bool(f"{where}: force", data.get("force", False))
    return found.evolve(span=span, until=until, since=since, comment=comment, force=force)


def _moment(where: str, value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return as_int(where, value, 1, _LAST_SECOND)
    if hasattr(value, "isoformat"):  # YAML makes moments of what looks like one
        value = value.isoformat()
    seconds = int(needed(where, as_text(where, value)).timestamp())
    return as_int(where, seconds, 1, _LAST_SECOND)


def _mapping(where: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidInput(f"{where}: expected text such as example.org:443 or a mapping, found {describe(value)}")
    return {key: item for key, item in check_keys(where, value, KEYS).items() if item is not None}


def _target(where: str, data: Mapping[str, Any]) -> tuple[str, str]:
    given = [key for key in _TARGETS if key in data]
    if len(given) != 1:
        found = " and ".join(given) or "none"
        raise InvalidInput(f"{where}: expected one of {', '.join(_TARGETS)}, found {found}")
    key, value = given[0], data[given[0]]
    if key == "preset":
        return "preset", as_text(f"{where}: preset", value).strip()
    if key == "domain":
        return "domain", domain(where, value)
    if key == "host" and isinstance(value, str) and _kind(value) == "domain":
        raise InvalidInput(f"{where}: host: expected an address, found {describe(value)}: a name is a domain")
    net = network(where, value)
    if isinstance(net, ipaddress.IPv6Network) and net.subnet_of(_MAPPED):
        inside = ipaddress.IPv4Network((int(net.network_address) & 0xFFFFFFFF, net.prefixlen - 96))
        plain = str(inside.network_address) if inside.prefixlen == 32 else str(inside)
        raise InvalidInput(f'{where}: {describe(value)} is IPv4 written as IPv6, expected "{plain}"')
    if key == "host" and net.num_addresses != 1:
        raise InvalidInput(f"{where}: host: expected an address, found the network {net}")
    return "network", str(net)


def _kind(target: str) -> str:
    """Return "network" for what can only be one: anything with a colon or slash, and numbers with dots."""
    text = target.strip()
    return "network" if ":" in text or "/" in text or re.fullmatch(r"[0-9.]+", text) else "domain"


def _split(where: str, text: str) -> tuple[str, str | None, str]:
    text = text.strip()
    if "://" in text:
        raise InvalidInput(f"{where}: expected a name or an address without a scheme or a path, found {describe(text)}")
    found = _TEXT.fullmatch(text)
    rest, protocol = (found["rest"], found["protocol"] or "tcp") if found else (text, "tcp")
    if rest.startswith("["):
        target, bracket, after = rest[1:].partition("]")
        if not bracket or (after and not after.startswith(":")):
            raise InvalidInput(f"{where}: expected an address such as [2001:db8::1]:443, found {describe(text)}")
        return target, after[1:] if after else None, protocol
    if rest.count(":") > 1 or ":" not in rest:
        return rest, None, protocol
    target, _colon, given = rest.partition(":")
    return target, given, protocol


def _port(where: str, value: object) -> int:
    if isinstance(value, str) and not (value.strip().isdigit() and value.isascii()):
        raise InvalidInput(f'{where}: expected ports such as 443, "8000-8100" or "any", found {describe(value)}')
    return as_int(where, value, 1, 65535)


def _example(target: str, protocol: str) -> str:
    return (f"[{target}]:443" if ":" in target else f"{target}:443") + ("" if protocol == "tcp" else f"/{protocol}")


def _protocols() -> str:
    return f"; protocols: {', '.join(PROTOCOLS)}"
