# SPDX-License-Identifier: GPL-3.0-or-later
"""Packets that the kernel's rules log, and changes of rules, from netlink sockets.

Sources: netlink(7), linux/netfilter/nfnetlink_log.h, linux/netfilter/nf_tables.h.

Only root in the network namespace of the rules can read them, and only one reader a group.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fleet_core.egress_denials import rules_changed
    from fleet_core.errors import Conflict, FleetError, Unavailable
else:
    try:
        from ..fleet_core.egress_denials import rules_changed
        from ..fleet_core.errors import Conflict, FleetError, Unavailable
    except ImportError:  # installed as a top-level package
        from fleet_core.egress_denials import rules_changed
        from fleet_core.errors import Conflict, FleetError, Unavailable

_NETLINK, _NETFILTER = 16, 12  # AF_NETLINK and NETLINK_NETFILTER, which socket has on Linux only
_CONFIG = 4 << 8 | 1  # NFNL_SUBSYS_ULOG, NFULNL_MSG_CONFIG
_REQUEST, _ACK = 1, 4
_COMMAND, _MODE, _TIMEOUT, _THRESHOLD = 1, 2, 4, 5
_BIND = 1
_COPY_PACKET = 2
_COPIED = 160  # bytes of each packet: the longest headers that are looked at
_ROOM = 1 << 21  # bytes that the kernel may queue for us
_HEADER = struct.Struct("=IHHII")
_GENERIC = struct.Struct("!BBH")
_ERROR = 2
_CHANGES = 7  # NFNLGRP_NFTABLES
_FORCE_BUFFER = 33  # SO_RCVBUFFORCE


class Reader:
    """A socket that gets the packets of one group. Raises Unavailable, or Conflict when another reader has it."""

    def __init__(self, group: int) -> None:
        self.group = group
        self.lost = 0
        try:
            self._socket = socket.socket(_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETFILTER)
        except (OSError, AttributeError) as error:
            raise Unavailable(f"log of denied packets: expected a Linux kernel with nfnetlink_log: {error}") from None
        try:
            self._socket.bind((0, 0))
            self._grow()
            self._ask(_COMMAND, bytes([_BIND]))
            self._ask(_MODE, struct.pack("!IBB", _COPIED, _COPY_PACKET, 0))
            self._ask(_TIMEOUT, struct.pack("!I", 20))  # hundredths of a second
            self._ask(_THRESHOLD, struct.pack("!I", 64))  # packets in one message
            self._socket.setblocking(False)
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> bytes | None:
        """Return what the kernel said, or None when there is nothing more. Lost messages are counted in lost."""
        try:
            return self._socket.recv(1 << 17)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                self.lost += 1
                return b""
            raise Unavailable(f"log of denied packets: {error.strerror}") from error

    def close(self) -> None:
        self._socket.close()

    def _grow(self) -> None:
        for option in (_FORCE_BUFFER, socket.SO_RCVBUF):
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, option, _ROOM)
                return

    def _ask(self, attribute: int, value: bytes) -> None:
        """Set one thing of our group, and wait for the kernel's answer."""
        padded = struct.pack("=HH", 4 + len(value), attribute) + value + b"\0" * (-len(value) % 4)
        body = _GENERIC.pack(0, 0, self.group) + padded
        head = _HEADER.pack(_HEADER.size + len(body), _CONFIG, _REQUEST | _ACK, attribute, 0)
        self._socket.settimeout(5.0)
        self._socket.send(head + body)
        while True:
            answer = self._socket.recv(1 << 17)
            _length, kind, _flags, sequence, _port = _HEADER.unpack_from(answer)
            if kind == _ERROR and sequence == attribute:
                (number,) = struct.unpack_from("=i", answer, _HEADER.size)
                if number:
                    raise _refusal(self.group, -number)
                return


class Events:
    """A socket that tells when somebody changes rules of nftables in this network namespace."""

    def __init__(self) -> None:
        try:
            self._socket = socket.socket(_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETFILTER)
        except (OSError, AttributeError) as error:
            raise Unavailable(f"changes of rules: expected a Linux kernel with nf_tables: {error}") from None
        try:
            self._socket.bind((0, 1 << _CHANGES - 1))
        except OSError as error:
            self._socket.close()
            raise Unavailable(f"changes of rules: {error.strerror}") from error
        self._socket.setblocking(False)

    def fileno(self) -> int:
        return self._socket.fileno()

    def changed(self) -> bool:
        """Take in what was told, and tell whether it was about rules. In doubt it was."""
        found = False
        while True:
            try:
                found = rules_changed(self._socket.recv(1 << 17)) or found
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise Unavailable(f"changes of rules: {error.strerror}") from error
                found = True

    def close(self) -> None:
        self._socket.close()


def _refusal(group: int, number: int) -> FleetError:
    if number == errno.EBUSY:
        return Conflict(f"log of denied packets: group {group} is read by another process; expected to be the only one")
    if number == errno.EPERM:
        return Unavailable("log of denied packets: only root can read it; run as root")
    return Unavailable(f"log of denied packets: group {group}: {os.strerror(number)}")


def own_addresses() -> set[str]:
    """Return the IPv6 addresses of this host in this network namespace, those of a link as well."""
    found = set()
    with contextlib.suppress(OSError), open("/proc/thread-self/net/if_inet6", encoding="ascii") as file:
        for line in file:
            found.add(str(ipaddress.IPv6Address(int(line.split()[0], 16))))
    return found


def interfaces() -> dict[int, str]:
    """Return the interfaces of this network namespace: number to name."""
    return dict(socket.if_nameindex())
