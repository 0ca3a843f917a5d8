# SPDX-License-Identifier: GPL-3.0-or-later
"""The little of D-Bus that tells of changed units, against a bus of three lines."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet_node import systemd_bus

UNIT = "/org/freedesktop/systemd1/unit/fleet_2dshop_3aweb_2eservice"


def message(path: str, order: str = "<", kind: int = 4, body: bytes = b"\0" * 5) -> bytes:
    """A signal as dbus-daemon sends it: fields in another order than ours, with a sender and a signature."""

    def text(value: str) -> bytes:
        return struct.pack(f"{order}I", len(value)) + value.encode() + b"\0"

    fields = b""
    for code, sort, value in (
        (6, b"s", text(":1.7")),
        (5, b"u", struct.pack(f"{order}I", 3)),
        (8, b"g", b"\x08sa{sv}as\0"[:8] + b"s\0"),
        (1, b"o", text(path)),
        (3, b"s", text("PropertiesChanged")),
    ):
        fields = fields.ljust((len(fields) + 7) // 8 * 8, b"\0") + bytes([code, 1]) + sort + b"\0" + value
    head = struct.pack(f"{order}cBBBIII", b"l" if order == "<" else b"B", kind, 1, 1, len(body), 9, len(fields))
    return (head + fields).ljust((16 + len(fields) + 7) // 8 * 8, b"\0") + body


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """A listening socket in the place of the bus."""
    path = f"{os.path.relpath(tmp_path)}/bus" if len(str(tmp_path)) > 90 else str(tmp_path / "bus")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        yield path, server


def connect(
    path: str, server: socket.socket, answer: bytes = b"OK 0123\r\n"
) -> tuple[systemd_bus.Signals, socket.socket]:
    accepted: list[socket.socket] = []

    def serve() -> None:
        client, _address = server.accept()
        accepted.append(client)
        data = b""
        while b"\r\n" not in data:
            data += client.recv(1)
        assert data == b"\0AUTH EXTERNAL " + str(os.geteuid()).encode().hex().encode() + b"\r\n"
        client.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        return systemd_bus.Signals(path, timeout=5), accepted[0]
    finally:
        thread.join(5)


def test_changed_units_are_named(bus: tuple[str, socket.socket]) -> None:
    signals, client = connect(*bus)
    asked = client.recv(65536)
    assert asked.startswith(b"BEGIN\r\n")
    for word in (b"Hello", b"AddMatch", b"PropertiesChanged", b"Subscribe"):
        assert word in asked
    first, second = message(UNIT), message(UNIT.replace("web", "db"), order=">")
    client.sendall(message("/org/freedesktop/DBus") + first + second[:20])
    assert signals.read() == {"fleet-shop:web.service"}
    assert signals.read() == set()
    client.sendall(second[20:])
    assert signals.read() == {"fleet-shop:db.service"}
    client.sendall(message(UNIT, kind=2))
    assert signals.read() == set()
    client.close()
    with pytest.raises(ConnectionError):
        signals.read()
    signals.close()


def test_a_refusal_is_an_error(bus: tuple[str, socket.socket]) -> None:
    with pytest.raises(ConnectionError, match="REJECTED EXTERNAL"):
        connect(*bus, answer=b"REJECTED EXTERNAL\r\n")


def test_no_bus_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        systemd_bus.Signals(os.path.relpath(tmp_path / "none"))


@pytest.mark.parametrize(
    ("scope", "environ", "expected"),
    [
        ("system", {}, "/run/dbus/system_bus_socket"),
        ("system", {"DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/x/y,guid=1;tcp:host=h"}, "/x/y"),
        ("user", {"XDG_RUNTIME_DIR": "/none"}, "/none/bus"),
        ("user", {"XDG_RUNTIME_DIR": "/none", "DBUS_SESSION_BUS_ADDRESS": "unix:abstract=/tmp/dbus-1"}, "@/tmp/dbus-1"),
        ("user", {"XDG_RUNTIME_DIR": "/none", "DBUS_SESSION_BUS_ADDRESS": "unix:path=/a%20b"}, "/a b"),
    ],
)
def test_where_the_bus_is(scope: str, environ: dict[str, str], expected: str) -> None:
    assert systemd_bus.bus_address(scope, environ) == expected
