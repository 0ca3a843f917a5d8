# SPDX-License-Identifier: GPL-3.0-or-later
"""Questions to a resolver as no honest program asks them, and those of DHCP, from the namespace of the thread."""

from __future__ import annotations

import os
import socket
import struct
import time
from dataclasses import dataclass

from tests.system.network import dns_messages

_OPT = 41
_COOKIE = bytes.fromhex("63825363")  # of DHCP
_DISCOVER, _OFFER = 1, 2


@dataclass(frozen=True)
class Reply:
    """What came back. authentic: the flag AD. truncated: the flag TC."""

    code: str
    records: tuple[tuple[str, str, str], ...]
    authentic: bool
    truncated: bool

    def values(self, kind: str) -> list[str]:
        return [data for _name, found, data in self.records if found == kind]


def question(name: str, kind: str = "A", dnssec: bool = False, padding: int = 0) -> bytes:
    """dnssec: with the flag DO. padding: bytes of an EDNS option that nobody knows."""
    message = dns_messages.query(int.from_bytes(os.urandom(2), "big"), name, kind)
    if not dnssec and not padding:
        return message
    option = struct.pack(">HH", 65001, padding) + b"x" * padding if padding else b""
    record = b"\0" + struct.pack(">HHIH", _OPT, 4096, 0x8000 if dnssec else 0, len(option)) + option
    return message[:10] + struct.pack(">H", 1) + message[12:] + record


def ask(
    server: str, port: int, name: str, kind: str = "A", tcp: bool = False, timeout: float = 3, **more: int
) -> Reply:
    """Ask, wait for the answer. Raises TimeoutError when there is none."""
    message = question(name, kind, **more)  # type: ignore[arg-type]
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM) as end:
        end.settimeout(timeout)
        end.connect((server, port))
        end.sendall(struct.pack(">H", len(message)) + message if tcp else message)
        answer = _framed(end) if tcp else end.recv(65535)
    flags = struct.unpack(">H", answer[2:4])[0]
    parsed = dns_messages.parse(answer)
    records = tuple((found, what, data) for found, what, _ttl, data in parsed["answers"])
    return Reply(parsed["rcode"], records, bool(flags & 0x20), bool(flags & 0x200))


def _framed(end: socket.socket) -> bytes:
    with end.makefile("rb") as stream:
        return stream.read(struct.unpack(">H", stream.read(2))[0])


def flood(server: str, port: int, names: list[str]) -> None:
    """Ask for all names and wait for none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
        end.connect((server, port))
        for name in names:
            end.send(question(name))


def discover(mac: str, seconds: float) -> str:
    """Ask for an address by DHCP (RFC 2131) under this MAC address; return the one that is offered, or nothing."""
    number, hardware = os.urandom(4), bytes.fromhex(mac.replace(":", ""))
    head = struct.pack(">BBBB4sHH16s", 1, 1, 6, 0, number, 0, 0x8000, b"") + hardware.ljust(16, b"\0") + bytes(192)
    message = head + _COOKIE + bytes([53, 1, _DISCOVER, 55, 2, 3, 6, 255])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
        end.bind(("0.0.0.0", 68))
        limit = time.monotonic() + seconds
        while (left := limit - time.monotonic()) > 0:
            end.sendto(message, ("255.255.255.255", 67))
            end.settimeout(min(left, 0.5))
            try:
                answer = end.recv(2048)
            except TimeoutError:
                continue
            if answer[4:8] == number:
                return socket.inet_ntoa(answer[16:20])
    return ""


def solicit(seconds: float) -> bytes:
    """Ask for a router (RFC 4861) on eth0; return its advertisement, or nothing."""
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as end:
        end.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
        limit = time.monotonic() + seconds
        while (left := limit - time.monotonic()) > 0:
            end.sendto(struct.pack(">BBHI", 133, 0, 0, 0), ("ff02::2", 0))
            end.settimeout(min(left, 0.5))
            try:
                while (answer := end.recv(2048))[0] != 134:
                    pass
            except TimeoutError:
                continue
            return answer
    return b""
