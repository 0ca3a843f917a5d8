# SPDX-License-Identifier: GPL-3.0-or-later
"""Frames and packets as attackers build them, in hexadecimal digits for the probe `frames`.

Everything that a program could not say through the kernel of its machine: wrong sources, tags, fragments, headers.
"""

from __future__ import annotations

import ipaddress
import struct

BROADCAST = "ff:ff:ff:ff:ff:ff"
IPV4, IPV6, ARP, VLAN, QINQ, EXPERIMENT, PPPOE = 0x0800, 0x86DD, 0x0806, 0x8100, 0x88A8, 0x88B5, 0x8864
TCP, UDP, ICMP, ICMP6, FRAGMENT, ROUTING, DESTINATION = 6, 17, 1, 58, 44, 43, 60
SCTP = 132
SYN, ACK = 2, 16


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def address(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


def frame(target: str, source: str, kind: int, body: bytes, tags: tuple[tuple[int, int], ...] = ()) -> str:
    """An Ethernet frame. tags: (type, VLAN) from the outside in."""
    tagged = b"".join(struct.pack(">HH", tag, vlan) for tag, vlan in tags)
    return (mac(target) + mac(source) + tagged + struct.pack(">H", kind) + body).hex()


def checksum(data: bytes) -> int:
    """The sum of RFC 1071."""
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _pseudo(source: str, target: str, protocol: int, length: int) -> bytes:
    if ":" in source:
        return address(source) + address(target) + struct.pack(">II", length, protocol)
    return address(source) + address(target) + struct.pack(">BBH", 0, protocol, length)


def _summed(source: str, target: str, protocol: int, segment: bytes, offset: int) -> bytes:
    total = checksum(_pseudo(source, target, protocol, len(segment)) + segment)
    return segment[:offset] + struct.pack(">H", total) + segment[offset + 2 :]


def udp(source: str, target: str, source_port: int, port: int, data: bytes) -> bytes:
    segment = struct.pack(">HHHH", source_port, port, 8 + len(data), 0) + data
    return _summed(source, target, UDP, segment, 6)


def tcp(source: str, target: str, source_port: int, port: int, flags: int = SYN, data: bytes = b"") -> bytes:
    segment = struct.pack(">HHIIBBHHH", source_port, port, 1000, 1000, 5 << 4, flags, 64240, 0, 0) + data
    return _summed(source, target, TCP, segment, 16)


def sctp(source_port: int, port: int, data: bytes) -> bytes:
    """The beginning of an association (RFC 9260): an INIT chunk, with data in a parameter that nobody knows."""
    data += b"\0" * (-len(data) % 4)
    parameter = struct.pack(">HH", 0x8FFF, 4 + len(data)) + data
    chunk = struct.pack(">BBHIIHHI", 1, 0, 20 + len(parameter), 7, 65536, 1, 1, 1) + parameter
    head = struct.pack(">HHI", source_port, port, 0)
    return head + struct.pack("<I", _crc32c(head + bytes(4) + chunk)) + chunk


def _crc32c(data: bytes) -> int:
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _turn in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def icmp(kind: int, code: int, rest: bytes, data: bytes) -> bytes:
    message = struct.pack(">BBH", kind, code, 0) + rest + data
    return message[:2] + struct.pack(">H", checksum(message)) + message[4:]


def icmp6(source: str, target: str, kind: int, code: int, data: bytes) -> bytes:
    return _summed(source, target, ICMP6, struct.pack(">BBH", kind, code, 0) + data, 2)


def ipv4(
    source: str,
    target: str,
    protocol: int,
    body: bytes,
    *,
    options: bytes = b"",
    number: int = 4242,
    offset: int = 0,
    more: bool = False,
) -> bytes:
    """An IPv4 packet. offset: of a fragment, in bytes; more: fragments follow."""
    options += b"\0" * (-len(options) % 4)
    words = 5 + len(options) // 4
    flags = (0x2000 if more else 0) | offset // 8
    head = struct.pack(
        ">BBHHHBBH4s4s",
        *(0x40 | words, 0, words * 4 + len(body), number, flags, 64, protocol, 0, address(source), address(target)),
    )
    head += options
    return head[:10] + struct.pack(">H", checksum(head)) + head[12:] + body


def ipv6(source: str, target: str, following: int, body: bytes, hops: int = 64) -> bytes:
    head = struct.pack(">IHBB", 6 << 28, len(body), following, hops)
    return head + address(source) + address(target) + body


def fragment6(following: int, body: bytes, offset: int = 0, more: bool = False, number: int = 4242) -> bytes:
    """A fragment header (RFC 8200) and what follows it; its own number is 44."""
    return struct.pack(">BBHI", following, 0, offset | more, number) + body


def fragments4(source: str, target: str, protocol: int, body: bytes, size: int, number: int = 4243) -> list[bytes]:
    """A packet in pieces of this many bytes (a multiple of 8)."""
    pieces = [(at, body[at : at + size]) for at in range(0, len(body), size)]
    return [
        ipv4(source, target, protocol, piece, number=number, offset=at, more=at + size < len(body))
        for at, piece in pieces
    ]


def fragments6(source: str, target: str, protocol: int, body: bytes, size: int, number: int = 4243) -> list[bytes]:
    return [
        ipv6(source, target, FRAGMENT, fragment6(protocol, body[at : at + size], at, at + size < len(body), number))
        for at in range(0, len(body), size)
    ]


def arp(operation: int, source_mac: str, source: str, target_mac: str, target: str) -> bytes:
    """ARP: 1 asks, 2 answers."""
    head = struct.pack(">HHBBH", 1, IPV4, 6, 4, operation)
    return head + mac(source_mac) + address(source) + mac(target_mac) + address(target)


def neighbour(source: str, target: str, about: str, link: str) -> bytes:
    """A neighbour advertisement (RFC 4861): solicited, overriding, that an address has this link address."""
    data = struct.pack(">I", 0x60000000) + address(about) + struct.pack(">BB", 2, 1) + mac(link)
    return ipv6(source, target, ICMP6, icmp6(source, target, 136, 0, data), 255)


def router(source: str, link: str, prefix: str, target: str = "ff02::1") -> bytes:
    """A router advertisement of a /64 for one's own sake."""
    data = struct.pack(">BBHII", 64, 0, 1800, 0, 0) + struct.pack(">BB", 1, 1) + mac(link)
    data += struct.pack(">BBBBIII", 3, 4, 64, 0xC0, 3600, 3600, 0) + address(prefix)
    return ipv6(source, target, ICMP6, icmp6(source, target, 134, 0, data), 255)


def dhcp_offer(server: str, client_mac: str, given: str, mark: bytes) -> bytes:
    """An offer (RFC 2131) that makes a client route through its sender."""
    head = struct.pack(">BBBBIHH", 2, 1, 6, 0, 7, 0, 0x8000)
    head += address("0.0.0.0") + address(given) + address(server) + address("0.0.0.0")
    options = bytes([53, 1, 2, 54, 4]) + address(server) + bytes([3, 4]) + address(server) + b"\xff"
    body = head + mac(client_mac).ljust(16, b"\0") + mark.ljust(192, b"\0") + b"\x63\x82\x53\x63" + options
    return ipv4(server, "255.255.255.255", UDP, udp(server, "255.255.255.255", 67, 68, body))
