# SPDX-License-Identifier: GPL-3.0-or-later
"""DNS messages as the lab's servers and probes need them (RFC 1035): no library, which would repair them."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Mapping, Sequence
from typing import Any

TYPES = {"A": 1, "NS": 2, "CNAME": 5, "SOA": 6, "NULL": 10, "PTR": 12, "MX": 15, "TXT": 16, "AAAA": 28, "SVCB": 64}
TYPES |= {"HTTPS": 65, "ANY": 255}
TYPE_NAMES = {number: name for name, number in TYPES.items()}
RCODES = {0: "NOERROR", 1: "FORMERR", 2: "SERVFAIL", 3: "NXDOMAIN", 4: "NOTIMP", 5: "REFUSED"}
RCODE_NUMBERS = {name: number for number, name in RCODES.items()}

Record = tuple[str, str, int, str]  # name, type, seconds to live, data as text


def encode_name(name: str) -> bytes:
    labels = [label.encode() for label in name.rstrip(".").split(".") if label]
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def query(number: int, name: str, kind: str) -> bytes:
    """A question that wants recursion."""
    return struct.pack(">HHHHHH", number, 0x0100, 1, 0, 0, 0) + encode_name(name) + struct.pack(">HH", TYPES[kind], 1)


def question(message: bytes) -> tuple[int, str, str, bytes]:
    """Return number, name, type and the bytes of the question of a query."""
    number = struct.unpack(">H", message[:2])[0]
    name, end = _name(message, 12)
    kind = struct.unpack(">H", message[end : end + 2])[0]
    return number, name, TYPE_NAMES.get(kind, str(kind)), message[12 : end + 4]


def answer(message: bytes, rcode: str, records: Sequence[Record]) -> bytes:
    """Answer a query with records."""
    number, _asked, _kind, raw = question(message)
    head = struct.pack(">HHHHHH", number, 0x8580 | RCODE_NUMBERS[rcode], 1, len(records), 0, 0)
    return head + raw + b"".join(map(_encode_record, records))


def parse(message: bytes) -> dict[str, Any]:
    """Return rcode and answers (name, type, ttl, data) of an answer."""
    flags, questions, answers = struct.unpack(">HHH", message[2:8])
    position = 12
    for _turn in range(questions):
        position = _name(message, position)[1] + 4
    found = []
    for _turn in range(answers):
        name, position = _name(message, position)
        kind, _family, ttl, length = struct.unpack(">HHIH", message[position : position + 10])
        position += 10
        found.append([name, TYPE_NAMES.get(kind, str(kind)), ttl, _data(message, position, length, kind)])
        position += length
    return {"rcode": RCODES.get(flags & 15, str(flags & 15)), "answers": found}


def resolve(
    zone: Mapping[str, Mapping[str, Sequence[str]]], name: str, kind: str, ttl: int
) -> tuple[str, list[Record]]:
    """Answer from a zone: name or "*.name" to type to data. Returns rcode and records, aliases followed."""
    found: list[Record] = []
    for _turn in range(8):
        entry = _entry(zone, name.lower())
        if entry is None:
            return ("NOERROR" if found else "NXDOMAIN"), found
        if "CNAME" in entry and kind != "CNAME":
            target = entry["CNAME"][0]
            found.append((name, "CNAME", ttl, target))
            name = target
            continue
        found += [(name, kind, ttl, data) for data in entry.get(kind, ())]
        break
    return "NOERROR", found


def _entry(zone: Mapping[str, Mapping[str, Sequence[str]]], name: str) -> Mapping[str, Sequence[str]] | None:
    if name in zone:
        return zone[name]
    while "." in name:
        name = name.partition(".")[2]
        if f"*.{name}" in zone:
            return zone[f"*.{name}"]
    return None


def _encode_record(record: Record) -> bytes:
    name, kind, ttl, data = record
    if kind in ("A", "AAAA"):
        raw = ipaddress.ip_address(data).packed
    elif kind in ("CNAME", "NS", "PTR"):
        raw = encode_name(data)
    elif kind == "TXT":
        raw = bytes([len(data.encode())]) + data.encode()
    else:
        raw = bytes.fromhex(data)
    return encode_name(name) + struct.pack(">HHIH", TYPES[kind], 1, ttl, len(raw)) + raw


def _data(message: bytes, position: int, length: int, kind: int) -> str:
    raw = message[position : position + length]
    if kind in (TYPES["A"], TYPES["AAAA"]):
        return str(ipaddress.ip_address(raw))
    if kind in (TYPES["CNAME"], TYPES["NS"], TYPES["PTR"]):
        return _name(message, position)[0]
    if kind == TYPES["TXT"]:
        return raw[1:].decode(errors="replace")
    return raw.hex()


def _name(message: bytes, position: int) -> tuple[str, int]:
    labels: list[str] = []
    end = -1
    for _turn in range(128):
        length = message[position]
        if length >= 0xC0:
            end = position + 2 if end < 0 else end
            position = struct.unpack(">H", message[position : position + 2])[0] & 0x3FFF
            continue
        if length == 0:
            return ".".join(labels), (position + 1 if end < 0 else end)
        labels.append(message[position + 1 : position + 1 + length].decode(errors="replace"))
        position += 1 + length
    raise ValueError("a name without an end")
