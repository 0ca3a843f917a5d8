# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is at the other end of a TCP connection on this host (proc(5), /proc/net/tcp)."""

from __future__ import annotations

import os
import socket
import sys


def allowed(connection: socket.socket) -> bool:
    """Tell whether the peer is a process of this user or of root. Only Linux can tell; elsewhere all are."""
    if not sys.platform.startswith("linux"):
        return True
    (here, port), (there, theirs) = connection.getsockname()[:2], connection.getpeername()[:2]
    uid = _owner(f"{_hex(there)}:{theirs:04X}", f"{_hex(here)}:{port:04X}")
    return uid in (0, os.geteuid())


def _hex(address: str) -> str:
    number = socket.inet_aton(address)
    return (number[::-1] if sys.byteorder == "little" else number).hex().upper()


def _owner(local: str, remote: str) -> int | None:
    """Return the user that a socket belongs to, given its two ends as /proc/net/tcp writes them.

    A socket that its process has closed already counts as nobody's: the kernel shows it as root's, without an inode.
    """
    try:
        with open("/proc/net/tcp", encoding="ascii") as table:
            for line in table:
                fields = line.split()
                if len(fields) > 9 and fields[1] == local and fields[2] == remote:
                    return int(fields[7]) if fields[9] != "0" else None
    except OSError:
        return None
    return None
