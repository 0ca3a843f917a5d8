# SPDX-License-Identifier: GPL-3.0-or-later
"""Standard input and output joined to a TCP port: ssh's ProxyCommand, run inside a lab's network namespace."""

from __future__ import annotations

import os
import socket
import sys
import threading


def main() -> None:
    connection = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=10)
    connection.settimeout(None)

    def send() -> None:
        while data := os.read(0, 65536):
            connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)

    threading.Thread(target=send, daemon=True).start()
    while data := connection.recv(65536):
        os.write(1, data)


if __name__ == "__main__":
    main()
