# SPDX-License-Identifier: GPL-3.0-or-later
"""Connections of a machine that stay open while the fence changes, and what is lost of them."""

from __future__ import annotations

import socket
import struct
import threading
import time
from typing import Any

import probes


class Flows:
    """Open connections by name."""

    def __init__(self) -> None:
        self._streams: dict[str, socket.socket] = {}
        self._floods: dict[str, Flood] = {}

    def open(self, name: str, address: str, port: int, timeout: float = probes.TIMEOUT) -> probes.Result:
        """Connect to an echo server and stay."""
        result = probes.Result()
        try:
            stream = probes.connect(address, port, "", timeout)
            probes.line(stream)
        except (OSError, EOFError) as error:
            return probes.failure(error)
        self._streams[name] = stream
        result["outcome"] = "open"
        return result

    def say(self, name: str, text: str = "still here", timeout: float = probes.TIMEOUT) -> probes.Result:
        """Send a line over an open connection and wait for its echo."""
        stream = self._streams[name]
        stream.settimeout(timeout)
        try:
            stream.sendall(text.encode() + b"\n")
            return {"outcome": "open", "data": probes.line(stream).decode().rstrip("\n")}
        except (OSError, EOFError) as error:
            return probes.failure(error)

    def close(self, name: str) -> probes.Result:
        self._streams.pop(name).close()
        return {"outcome": "closed"}

    def flood(self, name: str, address: str, port: int, rate: int = 500) -> probes.Result:
        """Send numbered datagrams, this many a second, until `flooded`."""
        self._floods[name] = Flood(address, port, rate)
        return {"outcome": "open"}

    def flooded(self, name: str) -> probes.Result:
        """Stop, wait for the last answers, and count: sent, answered, lost, longest gap in seconds."""
        return self._floods.pop(name).stop()


class Flood:
    """Numbered datagrams to an echo server: UDP sends nothing again, so what is lost is seen."""

    def __init__(self, address: str, port: int, rate: int) -> None:
        self._socket = socket.socket(probes.family(address), socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        self._socket.connect((address, port))
        self._socket.settimeout(0.2)
        self._sent, self._errors, self._answered = 0, 0, set[int]()
        self._gap, self._last = 0.0, 0.0
        self._end = threading.Event()
        self._threads = [
            threading.Thread(target=self._send, args=(1 / rate,), daemon=True),
            threading.Thread(target=self._receive, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def _send(self, pause: float) -> None:
        while not self._end.is_set():
            try:
                self._socket.send(b"#" + struct.pack(">I", self._sent))
            except OSError:
                self._errors += 1
            self._sent += 1
            time.sleep(pause)

    def _receive(self) -> None:
        quiet = 0
        while quiet < 5:  # a second of nothing after the last was sent
            try:
                data = self._socket.recv(64)
            except TimeoutError:
                quiet = quiet + 1 if self._end.is_set() else 0
                continue
            except OSError:
                self._errors += 1
                continue
            now = time.monotonic()
            self._gap = max(self._gap, now - self._last) if self._last else 0.0
            self._last = now
            self._answered.add(struct.unpack(">I", data[1:5])[0])
            if self._end.is_set() and len(self._answered) == self._sent:
                return

    def stop(self) -> dict[str, Any]:
        self._end.set()
        for thread in self._threads:
            thread.join()
        answered = len(self._answered)
        lost = self._sent - answered
        return {"sent": self._sent, "answered": answered, "lost": lost, "errors": self._errors, "gap": self._gap}
