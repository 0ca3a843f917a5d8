# SPDX-License-Identifier: GPL-3.0-or-later
"""What runs inside each namespace of the lab: a request a line comes in, an answer a line goes out.

``python agent.py`` reads ``{"id": 1, "do": "tcp", "with": {"address": "11.1.0.10", "port": 22}}`` from its standard
input and ends with it. ``python agent.py tcp address=11.1.0.10 port=22`` tries one thing and says what came back.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import flows
import probes
import servers
import sniffer


class Agent:
    """The state of one namespace's agent, and what it can be asked for."""

    def __init__(self) -> None:
        self._servers: servers.Servers | None = None
        self._sniffers: dict[str, sniffer.Sniffer] = {}
        self._flows = flows.Flows()
        own = (self.serve, self.zone, self.queries, self.connections, self.sniff, self.seen, self.forget)
        streams = (self._flows.open, self._flows.say, self._flows.close, self._flows.flood, self._flows.flooded)
        self.methods: Mapping[str, Callable[..., Any]] = {
            **probes.PROBES,
            **{method.__name__: method for method in (*own, *streams)},
        }

    def serve(self, **settings: Any) -> None:
        """Start the servers of this namespace."""
        self._servers = servers.Servers(settings)
        self._servers.start()

    def zone(self, address: str, names: Mapping[str, Any], ttl: int | None = None) -> None:
        """Change what the DNS server on an address ("" for all others) answers; None takes a name away."""
        assert self._servers is not None
        zone = dict(self._servers.zones.get(address, {}))
        zone.update(names)
        self._servers.zones[address] = {name: entry for name, entry in zone.items() if entry is not None}
        self._servers.ttl = self._servers.ttl if ttl is None else ttl

    def queries(self) -> list[dict[str, Any]]:
        return list(self._servers.queries) if self._servers else []

    def connections(self) -> list[dict[str, Any]]:
        return list(self._servers.connections) if self._servers else []

    def sniff(self, interface: str) -> None:
        self._sniffers[interface] = sniffer.Sniffer(interface)

    def seen(self, marker: str = "", digits: str = "", interface: str = "") -> list[str]:
        """Return the frames that came in with this text, or these hexadecimal digits, in them."""
        needle = marker.encode() or bytes.fromhex(digits)
        chosen = [self._sniffers[interface]] if interface else list(self._sniffers.values())
        return [frame for one in chosen for frame in one.seen(needle)]

    def forget(self) -> None:
        """Forget queries, connections and frames."""
        for one in self._sniffers.values():
            one.forget()
        if self._servers:
            self._servers.queries.clear()
            self._servers.connections.clear()


def main() -> None:
    """Answer requests until there are no more; or try one thing."""
    agent = Agent()
    if len(sys.argv) > 1:
        words = dict(word.split("=", 1) for word in sys.argv[2:])
        values = {name: int(value) if value.isdigit() else value for name, value in words.items()}
        print(json.dumps(agent.methods[sys.argv[1]](**values), indent=2))
        return
    writing = threading.Lock()

    def answer(request: Mapping[str, Any]) -> None:
        try:
            reply = {"id": request["id"], "result": agent.methods[request["do"]](**request["with"])}
        except Exception as error:
            reply = {"id": request["id"], "error": f"{type(error).__name__}: {error}"}
        with writing:
            sys.stdout.write(json.dumps(reply) + "\n")
            sys.stdout.flush()

    pool = ThreadPoolExecutor(max_workers=64)
    for text in sys.stdin:
        pool.submit(answer, json.loads(text))
    os._exit(0)  # what still waits for an answer waits for nobody


if __name__ == "__main__":
    main()
