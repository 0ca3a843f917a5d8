# SPDX-License-Identifier: GPL-3.0-or-later
"""What arrived on an interface: the last word on whether an attack got through."""

from __future__ import annotations

import socket
import threading
from collections import deque

ETH_P_ALL = 3
PACKET_OUTGOING = 4


class Sniffer:
    """Keeps the last frames that came in on an interface of this namespace."""

    def __init__(self, interface: str, keep: int = 50_000) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        self._socket.bind((interface, ETH_P_ALL))
        self._frames: deque[bytes] = deque(maxlen=keep)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while True:
            try:
                frame, address = self._socket.recvfrom(2048)
            except OSError:  # the interface went away: the lab ends
                return
            if address[2] != PACKET_OUTGOING:
                self._frames.append(frame)

    def seen(self, needle: bytes) -> list[str]:
        """Return the frames, in hexadecimal digits, that contain these bytes."""
        return [frame.hex() for frame in tuple(self._frames) if needle in frame]

    def count(self) -> int:
        return len(self._frames)

    def forget(self) -> None:
        self._frames.clear()
