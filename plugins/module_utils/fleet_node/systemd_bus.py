# SPDX-License-Identifier: GPL-3.0-or-later
"""Listens to systemd on D-Bus: which units have changed. As little of the protocol as that takes.

The wire format: https://dbus.freedesktop.org/doc/dbus-specification.html. The signals: org.freedesktop.systemd1(5).
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
from collections.abc import Iterator, Mapping

_MANAGER = "org.freedesktop.systemd1"
_UNITS = "/org/freedesktop/systemd1/unit/"
_MATCH = (
    f"type='signal',sender='{_MANAGER}',interface='org.freedesktop.DBus.Properties',member='PropertiesChanged',"
    "path_namespace='/org/freedesktop/systemd1/unit',arg0='org.freedesktop.systemd1.Unit'"
)
_PATH, _INTERFACE, _MEMBER, _DESTINATION, _SIGNATURE = 1, 2, 3, 6, 8
_CALL, _SIGNAL = 1, 4
_MAX_MESSAGE = 128 * 1024 * 1024


def bus_address(scope: str, environ: Mapping[str, str]) -> str:
    """Return the socket of the bus that systemd is on, as a path, or with a leading @ in the abstract namespace."""
    if scope == "system":
        given, usual = environ.get("DBUS_SYSTEM_BUS_ADDRESS", ""), "/run/dbus/system_bus_socket"
    else:
        given, usual = environ.get("DBUS_SESSION_BUS_ADDRESS", ""), f"{runtime_dir(environ)}/bus"
        if os.path.exists(usual):  # systemd's own user bus; a desktop may name another one
            return usual
    for address in given.split(";"):
        found = re.match(r"unix:(?:.*,)?(path|abstract)=([^,]+)", address)
        if found:
            name = re.sub(r"%([0-9a-fA-F]{2})", lambda code: chr(int(code.group(1), 16)), found.group(2))
            return name if found.group(1) == "path" else f"@{name}"
    return usual


def runtime_dir(environ: Mapping[str, str]) -> str:
    """Return the folder of a user's sockets and runtime units."""
    return environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"


class Signals:
    """A connection to the bus that tells of changed units. Raises OSError when it cannot be made or breaks."""

    def __init__(self, address: str, timeout: float = 10.0) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._buffer = b""
        self._serial = 0
        try:
            self._socket.settimeout(timeout)
            self._socket.connect("\0" + address[1:] if address.startswith("@") else address)
            self._authenticate()
            self._call("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "Hello")
            self._call("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "AddMatch", _MATCH)
            self.subscribe()
        except BaseException:
            self._socket.close()
            raise
        self._socket.setblocking(False)

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def subscribe(self) -> None:
        """Ask systemd to send signals. Asking twice is harmless; a restarted systemd wants to be asked again."""
        self._call(_MANAGER, "/org/freedesktop/systemd1", f"{_MANAGER}.Manager", "Subscribe")

    def read(self) -> set[str]:
        """Return the names of units that changed, from all that has arrived. Raises ConnectionError at the end."""
        while True:
            try:
                data = self._socket.recv(65536)
            except BlockingIOError:
                break
            if not data:
                raise ConnectionError("the bus closed the connection")
            self._buffer += data
        return {unit_of_path(path) for path in self._paths() if path.startswith(_UNITS)}

    def _authenticate(self) -> None:
        """SASL EXTERNAL: the kernel vouches for the user."""
        identity = str(os.geteuid()).encode().hex().encode()
        self._socket.sendall(b"\0AUTH EXTERNAL " + identity + b"\r\n")
        answer = b""
        while not answer.endswith(b"\r\n"):
            data = self._socket.recv(1)
            if not data or len(answer) > 512:
                raise ConnectionError("the bus refused the connection")
            answer += data
        if not answer.startswith(b"OK "):
            raise ConnectionError(f"the bus refused the connection: {answer.decode(errors='replace').strip()}")
        self._socket.sendall(b"BEGIN\r\n")

    def _call(self, destination: str, path: str, interface: str, member: str, *strings: str) -> None:
        self._serial += 1
        message = method_call(self._serial, destination, path, interface, member, strings)
        with contextlib.suppress(BlockingIOError):
            self._socket.sendall(message)

    def _paths(self) -> Iterator[str]:
        """Take whole messages from the buffer and yield the object path of each signal."""
        position = 0
        while len(self._buffer) - position >= 16:
            order = "<" if self._buffer[position : position + 1] == b"l" else ">"
            kind = self._buffer[position + 1]
            body, _serial, fields = struct.unpack_from(f"{order}III", self._buffer, position + 4)
            length = 16 + _aligned(fields, 8) + body
            if length > _MAX_MESSAGE:
                raise ConnectionError("the bus sent a message that is too large")
            if len(self._buffer) - position < length:
                break
            if kind == _SIGNAL:
                yield _object_path(self._buffer[position + 16 : position + 16 + fields], order)
            position += length
        self._buffer = self._buffer[position:]


def _aligned(number: int, size: int) -> int:
    return (number + size - 1) // size * size


def _object_path(fields: bytes, order: str) -> str:
    """Return the object path of a message's header fields (an array of byte and variant)."""
    position = 0
    while position + 4 <= len(fields):
        position = _aligned(position, 8)
        code, size = fields[position], fields[position + 1]
        kind = fields[position + 2 : position + 2 + size]
        position += 3 + size
        if kind in (b"s", b"o"):
            position = _aligned(position, 4)
            (length,) = struct.unpack_from(f"{order}I", fields, position)
            if code == _PATH:
                return fields[position + 4 : position + 4 + length].decode()
            position += 4 + length + 1
        elif kind == b"g":
            position += 2 + fields[position]
        elif kind == b"u":
            position = _aligned(position, 4) + 4
        else:
            break
    return ""


def method_call(
    serial: int, destination: str, path: str, interface: str, member: str, strings: tuple[str, ...] = ()
) -> bytes:
    """Return a method call with string arguments that wants an answer."""
    fields = b""
    strings_of = ((_DESTINATION, destination), (_INTERFACE, interface), (_MEMBER, member))
    for code, kind, value in ((_PATH, b"o", path), *((code, b"s", value) for code, value in strings_of)):
        fields = fields.ljust(_aligned(len(fields), 8), b"\0") + bytes([code, 1]) + kind + b"\0" + _string(value)
    if strings:
        signature = b"s" * len(strings)
        fields = fields.ljust(_aligned(len(fields), 8), b"\0")
        fields += bytes([_SIGNATURE, 1]) + b"g\0" + bytes([len(signature)]) + signature + b"\0"
    body = b""
    for value in strings:
        body = body.ljust(_aligned(len(body), 4), b"\0") + _string(value)
    head = struct.pack("<cBBBIII", b"l", _CALL, 0, 1, len(body), serial, len(fields))
    return (head + fields).ljust(_aligned(16 + len(fields), 8), b"\0") + body


def _string(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<I", len(data)) + data + b"\0"


def unit_of_path(path: str) -> str:
    """Return the unit name of an object path: _XX stands for a byte that cannot be part of one."""
    escaped = path[len(_UNITS) :].encode()
    return re.sub(rb"_([0-9a-f]{2})", lambda code: bytes([int(code.group(1), 16)]), escaped).decode(errors="replace")
