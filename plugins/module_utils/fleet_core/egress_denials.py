# SPDX-License-Identifier: GPL-3.0-or-later
"""Denials: from the packets that the kernel logs, and from names that were refused, to what people read.

Formats: netlink(7); nfnetlink_log (linux/netfilter/nfnetlink_log.h); Ethernet II, ARP (RFC 826), IPv4 (RFC 791),
IPv6 (RFC 8200), ICMP (RFC 792, RFC 4443). A packet may hold anything: what is cut off or strange gives empty fields.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from .egress_proxy_log import ProxyRefusal
from .fences import Fence, Guest
from .moments import iso

REASONS = ("spoof", "peer", "metadata", "denied", "expired", "forward", "dns", "input", "inbound")
PROXY = "proxy"  # a reason that the kernel does not know
PREFIX = "fleet"
ETHER_IPV4, ETHER_ARP, ETHER_IPV6 = 0x0800, 0x0806, 0x86DD
PROTOCOLS = {1: "icmp", 2: "igmp", 6: "tcp", 17: "udp", 47: "gre", 50: "esp", 51: "ah", 58: "icmpv6", 132: "sctp"}
_HEADER, _GENERIC, _ATTRIBUTE = 16, 4, 4  # bytes of nlmsghdr, nfgenmsg, nlattr
_LOG_PACKET = 0x0400  # NFNL_SUBSYS_ULOG << 8 | NFULNL_MSG_PACKET
_NFTABLES = 10  # NFNL_SUBSYS_NFTABLES
_NO_CHANGE = (12, 15)  # NFT_MSG_NEWSETELEM, which resolvers cause all the time, and NFT_MSG_NEWGEN
_PACKET_HEADER, _TIMESTAMP, _INDEV, _PHYSINDEV, _HWADDR, _PAYLOAD, _MESSAGE_PREFIX = 1, 3, 4, 6, 8, 9, 10
_LINK_HEADER = 16  # NFULA_HWHEADER: the Ethernet header, where the kernel has it
_WITH_PORTS = ("tcp", "udp", "sctp")
_EXTENSIONS = (0, 43, 60, 135, 139, 140)  # IPv6: hop-by-hop, routing, destination options, mobility, HIP, shim6
_MOST_EXTENSIONS = 16
_NAME_LENGTH = 253


@dataclass(frozen=True)
class Logged:
    """A packet as the kernel logged it. ethertype: of what payload holds; indev, physindev: interface numbers, or 0.

    mac: of the sender, empty where there is none. seconds: since the epoch, 0.0 where the kernel did not say.
    """

    prefix: str = ""
    ethertype: int = 0
    indev: int = 0
    physindev: int = 0
    mac: str = ""
    seconds: float = 0.0
    payload: bytes = b""


@dataclass(frozen=True)
class Headers:
    """Who speaks to whom. protocol: a word, or a number as text; port: of the destination, 0 for none.

    For ICMP, port is the type.
    """

    source: str = ""
    destination: str = ""
    protocol: str = ""
    port: int = 0


@dataclass(frozen=True)
class Denial:
    """What was refused, count times within about a second. time: seconds since the epoch. name: of a DNS question."""

    time: float
    reason: str
    machine: str = ""
    project: str = ""
    scope: str = ""
    source: str = ""
    destination: str = ""
    protocol: str = ""
    port: int = 0
    name: str = ""
    count: int = 1

    def to_dict(self) -> dict[str, Any]:
        """Return it as a line of denials.jsonl has it."""
        return {
            "time": iso(self.time),
            "machine": self.machine,
            "project": self.project,
            "scope": self.scope,
            "reason": self.reason,
            "source": self.source,
            "destination": self.destination,
            "protocol": self.protocol,
            "port": self.port,
            "name": self.name,
            "count": self.count,
        }


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def sentence(record: Mapping[str, Any]) -> str:
    """Return a line of denials.jsonl as people read it."""
    who = record.get("machine") or record.get("source") or "unknown"
    count = f" ({record['count']} times)" if int(record.get("count") or 1) > 1 else ""
    if record.get("reason") == PROXY:
        host = record.get("name") or _host(str(record.get("destination") or "nothing"))
        return f"{record.get('time')} {who}: {host}:{record.get('port') or 0} refused by the proxy{count}"
    if record.get("name"):
        return f"{record.get('time')} {who}: name {record['name']} refused{count}"
    where = str(record.get("destination") or "")
    port, protocol = record.get("port") or 0, str(record.get("protocol") or "")
    if port and protocol in _WITH_PORTS:
        where = f"[{where}]:{port}" if ":" in where else f"{where}:{port}"
    return f"{record.get('time')} {who}: {protocol} to {where} denied, {_WHY.get(str(record.get('reason')), '')}{count}"


_WHY = {
    "spoof": "under an address that is not its own",
    "peer": "another machine",
    "metadata": "the metadata service",
    "denied": "closed by the policy",
    "expired": "it was open for a time that is over",
    "forward": "not allowed by the policy",
    "dns": "DNS elsewhere",
    "input": "a service of this host",
    "inbound": "a connection from elsewhere",
}


# What the kernel says


def logged(data: bytes) -> Iterator[Logged]:
    """Yield the packets of what was read from the socket in one go; other messages are left out."""
    for kind, body in messages(data):
        if kind == _LOG_PACKET:
            yield packet(body)


def messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the type and the body of each netlink message. One that is cut off ends it."""
    at = 0
    while at + _HEADER <= len(data):
        length = _native(data[at : at + 4])
        if length < _HEADER or at + length > len(data):
            return
        yield _native(data[at + 4 : at + 6]), data[at + _HEADER : at + length]
        at += _aligned(length)


def rules_changed(data: bytes) -> bool:
    """Tell whether messages of the group NFNLGRP_NFTABLES are about more than new elements of sets, or cut off."""
    seen = 0
    for kind, body in messages(data):
        seen += _aligned(_HEADER + len(body))
        if kind >> 8 == _NFTABLES and kind & 0xFF not in _NO_CHANGE:
            return True
    return seen < len(data)


def packet(body: bytes) -> Logged:
    """Return what a message of type NFULNL_MSG_PACKET says."""
    found = dict(_attributes(body[_GENERIC:]))
    header, stamp, address = found.get(_PACKET_HEADER, b""), found.get(_TIMESTAMP, b""), found.get(_HWADDR, b"")
    mac = address[4 : 4 + _big(address[:2])] if len(address) >= 4 else b""
    link = found.get(_LINK_HEADER, b"")
    if len(mac) != 6 and len(link) >= 12:  # chains of the bridge family give the whole header instead
        mac = link[6:12]
    return Logged(
        prefix=found.get(_MESSAGE_PREFIX, b"").rstrip(b"\0").decode("ascii", "replace"),
        ethertype=_big(header[:2]),
        indev=_big(found.get(_INDEV, b"")),
        physindev=_big(found.get(_PHYSINDEV, b"")),
        mac=":".join(f"{byte:02x}" for byte in mac) if len(mac) == 6 else "",
        seconds=_big(stamp[:8]) + _big(stamp[8:16]) / 1e6 if len(stamp) == 16 else 0.0,
        payload=found.get(_PAYLOAD, b""),
    )


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _ATTRIBUTE <= len(data):
        length = _native(data[at : at + 2])
        if length < _ATTRIBUTE or at + length > len(data):
            return
        yield _native(data[at + 2 : at + 4]) & 0x3FFF, data[at + _ATTRIBUTE : at + length]
        at += _aligned(length)


def _aligned(length: int) -> int:
    return (length + 3) & ~3


def _native(data: bytes) -> int:
    """Return a number in the byte order of the machine, which is little on all that we run on but s390x."""
    return int.from_bytes(data, "little")


def _big(data: bytes) -> int:
    return int.from_bytes(data, "big")


# What the packet says


def headers(ethertype: int, payload: bytes) -> Headers:
    """Return who speaks to whom in a packet, as far as it is there. ethertype: what the payload is."""
    if ethertype == ETHER_ARP:
        return _arp(payload)
    if ethertype == ETHER_IPV6 or (not ethertype and payload[:1] and payload[0] >> 4 == 6):
        return _ipv6(payload)
    if ethertype == ETHER_IPV4 or (not ethertype and payload[:1] and payload[0] >> 4 == 4):
        return _ipv4(payload)
    return Headers(protocol=f"0x{ethertype:04x}" if ethertype else "")


def _arp(data: bytes) -> Headers:
    if len(data) < 28 or data[4:6] != b"\x06\x04":
        return Headers(protocol="arp")
    return Headers(_address(data[14:18]), _address(data[24:28]), "arp")


def _ipv4(data: bytes) -> Headers:
    if len(data) < 20:
        return Headers(protocol="ip")
    length = (data[0] & 0x0F) * 4
    offset = _big(data[6:8]) & 0x1FFF
    protocol, port = _transport(data[9], b"" if offset else data[max(length, 20) :])
    return Headers(_address(data[12:16]), _address(data[16:20]), protocol, port)


def _ipv6(data: bytes) -> Headers:
    if len(data) < 40:
        return Headers(protocol="ipv6")
    following, at = data[6], 40
    for _step in range(_MOST_EXTENSIONS):
        if following == 44:  # a fragment: only the first one has what follows
            offset = _big(data[at + 2 : at + 4]) >> 3
            following, at = (data[at] if at < len(data) else 59), at + 8
            if offset:
                at = len(data)
        elif following in _EXTENSIONS and at + 1 < len(data):
            following, at = data[at], at + (data[at + 1] + 1) * 8
        else:
            break
    protocol, port = _transport(following, data[at:])
    return Headers(_address(data[8:24]), _address(data[24:40]), protocol, port)


def _transport(number: int, data: bytes) -> tuple[str, int]:
    word = PROTOCOLS.get(number, str(number))
    if word in _WITH_PORTS and len(data) >= 4:
        return word, _big(data[2:4])
    if word in ("icmp", "icmpv6") and data:
        return word, data[0]
    return word, 0


def _address(data: bytes) -> str:
    return str(ipaddress.ip_address(data))


# Whose it is


def parts_of(prefix: str) -> tuple[str, str]:
    """Return reason and scope of the prefix of a log line, "fleet REASON SCOPE "; empty texts for another's."""
    words = prefix.split()
    if len(words) < 2 or words[0] != PREFIX or words[1] not in REASONS:
        return "", ""
    return words[1], words[2] if len(words) > 2 else ""


class Roster:
    """Tells which machine a packet is of: by its interface, its hardware address, its address, in this order."""

    def __init__(self, fence: Fence) -> None:
        self._ports = {guest.port: guest for guest in fence.guests if guest.port}
        self._macs = {guest.mac: guest for guest in fence.guests}
        self._addresses: dict[str, Guest] = {}
        for guest in fence.guests:
            for address in (guest.address4, guest.address6):
                if address:
                    self._addresses[str(ipaddress.ip_address(address))] = guest

    def whose(self, ports: Iterable[str], mac: str, source: str, destination: str = "") -> Guest | None:
        """Return the machine, or None. A connection from elsewhere belongs to the machine that it is for."""
        for port in ports:
            if port in self._ports:
                return self._ports[port]
        return self._macs.get(mac) or self._addresses.get(source) or self._addresses.get(destination)


def denial(
    found: Logged, names: Mapping[int, str], roster: Roster, now: float, own: Collection[str] = ()
) -> Denial | None:
    """Return the denial that a logged packet is, or None for one that is not of ours.

    names: interface number to its name. now: its time where the kernel did not say it. own: addresses of this host,
    which hears what it says to many itself.
    """
    reason, scope = parts_of(found.prefix)
    if not reason:
        return None
    said = headers(found.ethertype, found.payload)
    ports = [names[index] for index in (found.physindev, found.indev) if index in names]
    guest = roster.whose(ports, found.mac, said.source, said.destination)
    if guest is None and said.source in own and not found.physindev:
        return None
    return Denial(
        found.seconds or now, reason, guest.name if guest else "", guest.project if guest else "",
        guest.scope if guest else scope, said.source, said.destination, said.protocol, said.port,
    )  # fmt: skip


def refused(name: str, source: str, roster: Roster, now: float, scope: str = "") -> Denial:
    """Return the denial that a refused DNS question is."""
    guest = roster.whose((), "", source)
    return Denial(
        now, "dns", guest.name if guest else "", guest.project if guest else "", guest.scope if guest else scope,
        source, protocol="dns", name=name[:_NAME_LENGTH].lower(),
    )  # fmt: skip


def refused_by_proxy(found: ProxyRefusal, roster: Roster, now: float) -> Denial:
    """Return the denial that a refusal of the proxy is."""
    guest = roster.whose((), "", found.source)
    try:
        name, destination = "", str(ipaddress.ip_address(found.host.strip("[]")))
    except ValueError:
        name, destination = found.host, ""
    return Denial(
        now, PROXY, guest.name if guest else "", guest.project if guest else "", guest.scope if guest else "",
        found.source, destination, "tcp", found.port, name,
    )  # fmt: skip


class Gathering:
    """Denials of about a second, alike ones together, so that a loop in a machine does not fill the log.

    most: different ones that are kept apart; further ones are only counted.
    """

    def __init__(self, most: int = 1000) -> None:
        self._most = most
        self._found: dict[Denial, int] = {}
        self._times: dict[Denial, float] = {}
        self.left_out = 0

    def add(self, one: Denial) -> None:
        """Take one in."""
        key = replace(one, time=0.0, count=1)
        if key not in self._found and len(self._found) >= self._most:
            self.left_out += one.count
            return
        self._times.setdefault(key, one.time)
        self._found[key] = self._found.get(key, 0) + one.count

    def take(self) -> list[Denial]:
        """Return what was gathered, oldest first, and begin anew."""
        gathered = [replace(key, time=self._times[key], count=count) for key, count in self._found.items()]
        self._found, self._times = {}, {}
        return sorted(gathered, key=lambda one: one.time)
