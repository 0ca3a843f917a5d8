# SPDX-License-Identifier: GPL-3.0-or-later
"""The client of fleetd: JSON-RPC 2.0, one line a message, over its Unix socket."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fleet_core.errors import TimedOut, Unavailable, from_code
else:
    try:
        from ..fleet_core.errors import TimedOut, Unavailable, from_code
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import TimedOut, Unavailable, from_code

from . import paths

_LONGEST_PATH = 100


class Client:
    """A connection to fleetd, opened by the first call and used for all. One thread at a time.

    state_dir: as paths.state_dir takes it. timeout: seconds to wait for an answer; a call's own timeout comes on top.
    """

    def __init__(self, state_dir: str | os.PathLike[str] | None = None, timeout: float = 30.0) -> None:
        self.folder = paths.state_dir(state_dir)
        self.timeout = timeout
        self._socket: socket.socket | None = None
        self._buffer = b""
        self._count = 0

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            self._buffer = b""

    def call(self, method: str, /, **params: Any) -> Any:
        """Return the result of a method. Raises the FleetError that fleetd answered, Unavailable or TimedOut."""
        extra = params.get("timeout")
        wait = self.timeout + (float(extra) if isinstance(extra, (int, float)) else 0.0)
        number = self._send(method, params, wait)
        try:
            while True:
                answer = self._receive(wait)
                if answer.get("id") == number:
                    break
        except BaseException:
            self.close()
            raise
        if "error" in answer:
            error = answer["error"]
            raise from_code((error.get("data") or {}).get("code", ""), error.get("message", "fleetd gave an error"))
        return answer.get("result")

    def stream(self, method: str, /, **params: Any) -> Iterator[dict[str, Any]]:
        """Subscribe now, and return the parameters of every notification from then on until the connection ends."""
        self.call(method, **params)
        return self._notifications()

    def _notifications(self) -> Iterator[dict[str, Any]]:
        while True:
            message = self._receive(None)
            if "method" in message:
                yield message.get("params") or {}

    def answers(self) -> bool:
        """Tell whether a fleetd answers on the socket."""
        try:
            self.call("daemon.status")
        except (Unavailable, TimedOut):
            return False
        return True

    def _send(self, method: str, params: dict[str, Any], wait: float) -> int:
        self._count += 1
        message = {"jsonrpc": "2.0", "id": self._count, "method": method, "params": params}
        line = json.dumps(message).encode() + b"\n"
        fresh = self._socket is None
        connection = self._connect(wait)
        try:
            connection.sendall(line)
        except OSError as error:
            self.close()
            if fresh:
                raise Unavailable(
                    f"fleetd on {paths.socket(self.folder)}: closed the connection: {error.strerror}"
                ) from error
            self._connect(wait).sendall(line)
        return self._count

    def _connect(self, wait: float) -> socket.socket:
        if self._socket is None:
            self._socket = connect(paths.socket(self.folder), wait)
        self._socket.settimeout(wait)
        return self._socket

    def _receive(self, wait: float | None) -> dict[str, Any]:
        connection = self._socket
        if connection is None:
            raise Unavailable(f"fleetd on {paths.socket(self.folder)}: not connected")
        connection.settimeout(wait)
        try:
            while b"\n" not in self._buffer:
                chunk = connection.recv(1 << 16)
                if not chunk:
                    raise Unavailable(f"fleetd on {paths.socket(self.folder)}: ended while it was asked")
                self._buffer += chunk
        except socket.timeout:
            raise TimedOut(f"fleetd on {paths.socket(self.folder)}: no answer within {wait:g} s") from None
        except OSError as error:
            raise Unavailable(f"fleetd on {paths.socket(self.folder)}: {error.strerror}") from error
        line, _newline, self._buffer = self._buffer.partition(b"\n")
        message = json.loads(line)
        return message if isinstance(message, dict) else {}


def connect(path: Path, wait: float) -> socket.socket:
    """Return a connected Unix socket. A path longer than the system's limit is reached through its folder."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(wait)
    try:
        with ShortPath(path) as name:
            connection.connect(name)
    except FileNotFoundError:
        connection.close()
        raise Unavailable(f"fleetd is not running: {path} does not exist; start it with `fleet daemon start`") from None
    except ConnectionRefusedError:
        connection.close()
        raise Unavailable(
            f"fleetd is not running: nothing listens on {path}; start it with `fleet daemon start`"
        ) from None
    except OSError as error:
        connection.close()
        raise Unavailable(f"fleetd on {path}: cannot be reached: {error.strerror or error}") from error
    return connection


class ShortPath:
    """A name for a socket's path that fits sockaddr_un (unix(7): 108 bytes): by way of /proc/self/fd if it is long."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._folder = -1

    def __enter__(self) -> str:
        if len(os.fsencode(self._path)) <= _LONGEST_PATH or not os.path.isdir("/proc/self/fd"):
            return os.fspath(self._path)
        self._folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        return f"/proc/self/fd/{self._folder}/{self._path.name}"

    def __exit__(self, *_error: object) -> None:
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1
