# SPDX-License-Identifier: GPL-3.0-or-later
"""A gateway with two bridges, machines on their ports, and an internet behind it: all in network namespaces."""

from __future__ import annotations

import ipaddress
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.system.network import internet
from tests.system.network.namespaces import Namespace, NamespaceError, Namespaces, command

from fleet_core.fences import Bridge, Fence, Guest, Scope

BRIDGES = (
    Bridge("fleet0", "192.168.100.1/24", "fd00:100::1/64"),
    Bridge("fleet1", "192.168.101.1/24", "fd00:101::1/64"),
)
GUESTS = (
    Guest("web-1", "fleet0", "52:54:00:00:01:10", "192.168.100.10", "fd00:100::10", "tap-web-1", "shop"),
    Guest("web-2", "fleet0", "52:54:00:00:01:11", "192.168.100.11", "fd00:100::11", "tap-web-2", "shop"),
    Guest("db-1", "fleet0", "52:54:00:00:01:12", "192.168.100.12", "fd00:100::12", "tap-db-1", "data"),
    Guest("far-1", "fleet1", "52:54:00:00:02:10", "192.168.101.10", "fd00:101::10", "tap-far-1", "far"),
)
UPLINK4, UPLINK6 = ("11.0.0.2/24", "11.0.0.1"), ("2fff::2/64", "2fff::1")  # the gateway's, and its way out
UPSTREAMS = (internet.HOSTS["resolver"][0],)

# What listens on the gateway and is no machine's business; what listens on every machine.
GATEWAY_TCP, GATEWAY_UDP, GATEWAY_HTTP = (22, 8006, 5900), (161, 5000), (80,)
GUEST_TCP, GUEST_UDP = (8080,), (5000,)


@dataclass(frozen=True)
class Machine:
    """A machine: what the fence knows of it, and its namespace, whose interface is eth0."""

    guest: Guest
    namespace: Namespace

    def probe(self, what: str, **values: Any) -> Any:
        """Try one thing (probes.py): machine.probe("tcp", address="11.1.0.10", port=22)["outcome"]."""
        return self.namespace.probe(what, **values)

    def begin(self, what: str, **values: Any) -> Future[Any]:
        return self.namespace.agent.begin(what, **values)

    def saw(self, marker: str) -> list[str]:
        """Frames with this text in them that came in on eth0."""
        found: list[str] = self.namespace.agent.ask("seen", marker=marker)
        return found


class Internet:
    """What stands behind the gateway's uplink."""

    def __init__(self, namespace: Namespace) -> None:
        self.namespace = namespace

    def records(self, names: Mapping[str, Any], ttl: int | None = None, server: str = "") -> None:
        """Change what names lead to, from now on: {"allowed.example": {"A": ["11.1.0.11"]}}; None takes one away."""
        self.namespace.agent.ask("zone", address=server, names=names, ttl=ttl)

    def queries(self) -> list[dict[str, Any]]:
        """Every question that any DNS server got: server, client, transport, name, type."""
        found: list[dict[str, Any]] = self.namespace.agent.ask("queries")
        return found

    def asked(self, text: str) -> list[dict[str, Any]]:
        """The questions for names that contain a text."""
        return [query for query in self.queries() if text.lower() in query["name"].lower()]

    def connections(self) -> list[dict[str, Any]]:
        """Every connection: server, address, port, client, kind, and what was said (host, sni, path)."""
        found: list[dict[str, Any]] = self.namespace.agent.ask("connections")
        return found

    def saw(self, marker: str = "", digits: str = "") -> list[str]:
        """Frames with this text (or these hexadecimal digits) in them that came over the uplink."""
        found: list[str] = self.namespace.agent.ask("seen", marker=marker, digits=digits)
        return found

    def forget(self) -> None:
        self.namespace.agent.ask("forget")

    def probe(self, what: str, **values: Any) -> Any:
        return self.namespace.probe(what, **values)


class Lab:
    """All of it. folder: scratch space. local_metadata: where the gateway itself serves credentials."""

    local_metadata = "169.254.170.2"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.namespaces = Namespaces()
        self.gateway = self.namespaces.add("gateway")
        self.internet = Internet(self.namespaces.add("internet"))
        self._stranger: Namespace | None = None
        self.machines = {guest.name: Machine(guest, self.namespaces.add(guest.name)) for guest in GUESTS}

    @classmethod
    @contextmanager
    def start(cls, sniff: bool = True) -> Iterator[Lab]:
        """A lab with no fence. sniff: remember what arrives; costs processor time."""
        folder = Path(tempfile.mkdtemp(prefix="fleetlab-"))
        lab = cls(folder)
        try:
            lab._connect()
            lab.namespaces.prove_closed()
            lab._serve(sniff)
            lab._meet()
            yield lab
        finally:
            lab.namespaces.remove()
            shutil.rmtree(folder, ignore_errors=True)

    # -- what tests give to the product -------------------------------------------------------------------------------

    def fence(self, *scopes: Scope, **values: Any) -> Fence:
        """The lab as a fence. scopes: none is one "default" that is locked; guests get the first that is theirs."""
        chosen = scopes or (Scope("default", "locked"),)
        names = {scope.name for scope in chosen}

        def scope(guest: Guest) -> str:
            wanted = (f"machine-{guest.name}", f"project-{guest.project}")
            return next((name for name in wanted if name in names), "default")

        guests = tuple(Guest(**{**vars(guest), "scope": scope(guest)}) for guest in GUESTS)
        return Fence(BRIDGES, guests, tuple(chosen), upstreams=UPSTREAMS).evolve(**values)

    def document(self, policies: Mapping[str, Any], **values: Any) -> dict[str, Any]:
        """The lab as the options of module egress_policy."""
        networks = [{"name": b.name, "address": b.address4, "address6": b.address6, "nat": b.nat} for b in BRIDGES]
        keys = {"name": "name", "network": "bridge", "mac": "mac", "address": "address4", "address6": "address6"}
        keys.update(port="port", project="project")
        machines = [{key: getattr(guest, field) for key, field in keys.items()} for guest in GUESTS]
        return {
            "networks": networks,
            "machines": machines,
            "policies": dict(policies),
            "resolvers": list(UPSTREAMS),
            **values,
        }

    def stranger(self) -> Namespace:
        """A machine on a port of fleet0 that no policy knows, with no address."""
        if self._stranger is None:
            self._stranger = self.namespaces.add("stranger")
            self.namespaces.connect(self.gateway, "tap-stranger", self._stranger, "eth0")
            self.gateway.ip("link set tap-stranger master fleet0", "link set tap-stranger up")
            self._stranger.ip("link set eth0 address 52:54:00:00:01:77", "link set eth0 up")
        return self._stranger

    # -- making -------------------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        outside, gateway = self.internet.namespace, self.gateway
        quiet = {"net__ipv6__conf__all__accept_dad": 0, "net__ipv6__conf__default__accept_dad": 0}
        for namespace in self.namespaces:
            namespace.sysctl(**quiet)
            namespace.ip("link set lo up")
        gateway.sysctl(net__ipv4__ip_forward=1, net__ipv6__conf__all__forwarding=1, **_bridge_switches())
        self.namespaces.connect(gateway, "uplink", outside, "eth0")
        gateway.ip(
            f"addr add {UPLINK4[0]} dev uplink",
            f"addr add {UPLINK6[0]} dev uplink nodad",
            "link set uplink up",
            f"addr add {self.local_metadata} dev lo",
        )
        outside.ip(
            f"addr add {UPLINK4[1]}/24 dev eth0",
            f"addr add {UPLINK6[1]}/64 dev eth0 nodad",
            "link set eth0 up",
            *(f"addr add {address} dev lo {'nodad' if ':' in address else ''}" for address in internet.NAMES),
        )
        gateway.ip(f"route add default via {UPLINK4[1]}", f"route add default via {UPLINK6[1]}")
        for bridge in BRIDGES:
            self._bridge(bridge)
            # What leaves without being translated must find back, and what attacks from outside must find in.
            outside.ip(
                f"route add {_network(bridge.address4)} via {UPLINK4[0].partition('/')[0]}",
                f"route add {_network(bridge.address6)} via {UPLINK6[0].partition('/')[0]}",
            )
        for machine in self.machines.values():
            self._plug(machine)

    def take_bridges(self) -> None:
        """Delete the bridges, as they are before a host has set up its network."""
        self.gateway.ip(*(f"link del {bridge.name}" for bridge in BRIDGES))

    def give_bridges(self) -> None:
        """Make the bridges again and put the machines' ports on them."""
        for bridge in BRIDGES:
            self._bridge(bridge)
        self.gateway.ip(*(f"link set {guest.port} master {guest.bridge}" for guest in GUESTS))

    def _bridge(self, bridge: Bridge) -> None:
        self.gateway.ip(
            f"link add name {bridge.name} address 52:54:00:00:00:0{BRIDGES.index(bridge)} type bridge "
            "stp_state 0 forward_delay 0",
            f"addr add {bridge.address4} dev {bridge.name}",
            f"addr add {bridge.address6} dev {bridge.name} nodad",
            f"link set {bridge.name} up",
        )

    def _plug(self, machine: Machine) -> None:
        guest, namespace = machine.guest, machine.namespace
        bridge = next(bridge for bridge in BRIDGES if bridge.name == guest.bridge)
        self.namespaces.connect(self.gateway, guest.port, namespace, "eth0")
        self.gateway.ip(f"link set {guest.port} master {guest.bridge}", f"link set {guest.port} up")
        namespace.sysctl(net__ipv6__conf__eth0__accept_ra=0)
        namespace.ip(
            f"link set eth0 address {guest.mac}",
            f"addr add {guest.address4}/{bridge.address4.partition('/')[2]} dev eth0",
            f"addr add {guest.address6}/{bridge.address6.partition('/')[2]} dev eth0 nodad",
            "link set eth0 up",
            f"route add default via {bridge.address4.partition('/')[0]}",
            f"route add default via {bridge.address6.partition('/')[0]}",
        )

    def _serve(self, sniff: bool) -> None:
        certificate = self.folder / "server.pem"
        _certificate(certificate)
        own = [address.partition("/")[0] for b in BRIDGES for address in (b.address4, b.address6)]
        waiting = [
            self.internet.namespace.agent.begin("serve", **internet.settings(str(certificate))),
            self.gateway.agent.begin("serve", echo=GATEWAY_TCP, http=GATEWAY_HTTP, udp=GATEWAY_UDP, addresses=own),
        ]
        for machine in self.machines.values():
            both = [machine.guest.address4, machine.guest.address6]
            waiting.append(machine.begin("serve", echo=GUEST_TCP, udp=GUEST_UDP, addresses=both))
        if sniff:
            waiting += [n.agent.begin("sniff", interface="eth0") for n in self.namespaces if n is not self.gateway]
        for future in waiting:
            future.result(timeout=60)

    def _meet(self) -> None:
        """Let neighbours know each other, so that nobody's first packet waits, or is dropped, for an address."""
        waiting = [
            machine.begin("ping", address=address, timeout=5)
            for machine in self.machines.values()
            for address in (UPLINK4[1], UPLINK6[1])
        ]
        if not all(future.result(timeout=30)["outcome"] == "open" for future in waiting):
            raise NamespaceError("the lab's machines do not reach its internet")


def _bridge_switches() -> dict[str, int]:
    """Bridged frames are the bridge table's; where br_netfilter is loaded a new namespace starts with 1."""
    names = ("iptables", "ip6tables", "arptables")
    there = Path("/proc/sys/net/bridge").is_dir()
    return {f"net__bridge__bridge-nf-call-{name}": 0 for name in names} if there else {}


def _network(address: str) -> str:
    return str(ipaddress.ip_interface(address).network)


def _certificate(path: Path) -> None:
    command(
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days"),
        *("2", "-subj", "/CN=lab", "-addext", "subjectAltName=DNS:*.example,DNS:example", "-keyout", str(path)),
        *("-out", str(path) + ".crt"),
    )
    with path.open("a", encoding="ascii") as file:
        file.write(Path(f"{path}.crt").read_text(encoding="ascii"))


def wait_for(true: Callable[[], Any], what: str, seconds: float = 10, pause: float = 0.02) -> Any:
    """Poll until something is true and return it. Raises TimeoutError."""
    limit = time.monotonic() + seconds
    while not (value := true()):
        if time.monotonic() > limit:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(pause)
    return value


def end(process: subprocess.Popen[Any]) -> None:
    """End a process that a test started in a namespace."""
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
