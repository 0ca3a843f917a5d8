# SPDX-License-Identifier: GPL-3.0-or-later
"""Where attacks happen: a lab whose gateway has a fence, and what attackers need to know of it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from tests.system.network import internet
from tests.system.network.lab import Lab, Machine
from tests.system.network.namespaces import Agent, Namespace

GATEWAY4, GATEWAY6 = "192.168.100.1", "fd00:100::1"
FAR_GATEWAY4, FAR_GATEWAY6 = "192.168.101.1", "fd00:101::1"
UPLINK4, UPLINK6 = "11.0.0.2", "2fff::2"
PROXY_PORT = 3128
PATIENCE = 0.6  # seconds that a packet is waited for before it counts as stopped


def document(lab: Lab, mode: str, *allow: Any, **values: Any) -> dict[str, Any]:
    """The policy that all attacks meet: the machines of project shop may reach some names, project data others.

    allow: more for project shop.
    """
    shop = [
        "allowed.example",
        "cdn-allowed.example",
        "moving.example",
        "unasked.example",
        f"{internet.HOSTS['allowed-2'][0]}:5000/udp",
    ]
    policies = {
        "default": {"mode": mode, "hub": True},
        "projects": {
            "shop": {"allow": [*shop, *allow], "deny": ["denied.allowed.example"]},
            "data": {"allow": ["project.example"]},
        },
    }
    fixed: dict[str, Any] = {
        "hub": {"name": "hub.fleet", "addresses": list(internet.HOSTS["hub"]), "ports": [8000]},
        "proxy": {"kind": "squid", "port": PROXY_PORT},
    }
    return lab.document(policies, **{**fixed, **values})


class Field:
    """A lab under a fence. mode: of every scope, "none" without a fence; ports: of each scope's resolver."""

    def __init__(self, lab: Lab, backend: str, mode: str, ports: Mapping[str, int]) -> None:
        self.lab, self.backend, self.mode, self.ports = lab, backend, mode, dict(ports)
        self.web, self.peer = lab.machines["web-1"], lab.machines["web-2"]
        self.db, self.far = lab.machines["db-1"], lab.machines["far-1"]
        self._links = {link["ifname"]: link["address"] for link in lab.gateway.json("link")}

    def marker(self) -> str:
        """A text that nothing else contains, fit for a label of a name."""
        return f"m{secrets.token_hex(8)}"

    def link(self, interface: str = "fleet0") -> str:
        """The link address of an interface of the gateway."""
        return str(self._links[interface])

    def link_local(self, machine: Machine) -> str:
        """The fe80 address of a machine."""
        return _link_local(machine.namespace.json("-6", "addr", "show", "dev", "eth0"))

    def gateway_link_local(self) -> str:
        return _link_local(self.lab.gateway.json("-6", "addr", "show", "dev", "fleet0"))

    def send(self, *frames: str, machine: Machine | None = None) -> None:
        """Put frames on a machine's interface."""
        (machine or self.web).probe("frames", interface="eth0", frames=list(frames))

    def left(self, marker: str) -> bool:
        """Return whether a packet with this text came out of the gateway."""
        return self._seen(lambda: bool(self.lab.internet.saw(marker)))

    def reached(self, marker: str, machine: Machine | None = None) -> bool:
        """Return whether a frame with this text reached a machine."""
        return self._seen(lambda: bool((machine or self.peer).saw(marker)))

    def asked(self, marker: str) -> bool:
        """Return whether a question for a name with this text reached a name server of the internet."""
        return self._seen(lambda: bool(self.lab.internet.asked(marker)))

    def _seen(self, look: Any) -> bool:
        limit = time.monotonic() + PATIENCE
        while time.monotonic() < limit:
            if look():
                return True
            time.sleep(0.05)
        return False

    def opens(self, what: str, machine: Machine | None = None, **values: Any) -> bool:
        """Try one thing and return whether an answer came."""
        return bool((machine or self.web).probe(what, **values)["outcome"] == "open")

    def opens_any(self, what: str, *tries: Mapping[str, Any], machine: Machine | Namespace | None = None) -> bool:
        """Try one thing in several ways at once and return whether an answer came to any."""
        agent = _agent(machine or self.web)
        waiting = [agent.begin(what, **values) for values in tries]
        return any(future.result(timeout=60)["outcome"] == "open" for future in waiting)

    def ask(self, name: str, kind: str = "A", machine: Machine | None = None, **values: Any) -> dict[str, Any]:
        """Ask the gateway's resolver."""
        result = (machine or self.web).probe("dns", server=GATEWAY4, name=name, kind=kind, **values)
        return {"answers": [], **result}

    def learn(self, *names: str, machine: Machine | None = None) -> None:
        """Ask for names in both families, so that the gateway learns their addresses where it answers."""
        tries = [{"server": GATEWAY4, "name": name, "kind": kind} for name in names for kind in ("A", "AAAA")]
        self.opens_any("dns", *tries, machine=machine)

    def proxy(self, target: str, machine: Machine | None = None, **values: Any) -> dict[str, Any]:
        """Ask the proxy on the bridge."""
        result: dict[str, Any] = (machine or self.web).probe(
            "proxy", **{"address": GATEWAY4, "port": PROXY_PORT, "target": target, **values}
        )
        return result


def _agent(where: Machine | Namespace) -> Agent:
    return (where.namespace if isinstance(where, Machine) else where).agent


def _link_local(shown: Any) -> str:
    addresses = shown[0]["addr_info"]
    return next(entry["local"] for entry in addresses if entry["scope"] == "link")


class Row(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def run(self) -> Callable[[Field], bool]: ...


def run_all(field: Field, rows: Iterable[Row]) -> dict[str, Any]:
    """Try many attacks side by side: name -> whether it got through, or what went wrong while trying."""

    def attempt(row: Row) -> Any:
        try:
            return row.run(field)
        except Exception as error:  # belongs to this row alone
            return error

    chosen = list(rows)
    alone = [row for row in chosen if getattr(row, "alone", False)]
    with ThreadPoolExecutor(max_workers=24) as pool:
        waiting = {row.name: pool.submit(attempt, row) for row in chosen if row not in alone}
        outcomes = {name: future.result() for name, future in waiting.items()}
        if field.mode != "none":  # they are stopped, so they upset nobody
            waiting = {row.name: pool.submit(attempt, row) for row in alone}
            return {**outcomes, **{name: future.result() for name, future in waiting.items()}}
    return {**outcomes, **{row.name: attempt(row) for row in alone}}
