# SPDX-License-Identifier: GPL-3.0-or-later
"""From inside a real machine on a real bridge: what its policy names is reached, and nothing else is.

One boot. The gateway, the bridge and an internet are the lab of tests/system/network, in network namespaces; the policy
is put in force by the product itself, and the machine is one of its provider.
"""

from __future__ import annotations

import base64
import io
import json
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.requirements import require_root, require_tool
from tests.system.network import internet, packets
from tests.system.network import product as products
from tests.system.network.lab import Lab, wait_for
from tests.system.network.product import Product
from tests.system.vm import BOOT, Machines

from fleet_core.images import Image
from fleet_core.machine_cards import policy_machines, with_macs
from fleet_core.machines import MachineSpec, Network
from fleet_machines import providers
from fleet_machines.provider import Job

pytestmark = pytest.mark.timeout(4 * BOOT)

NAME, BRIDGE = "agent-1", "fleet0"
ADDRESS, ADDRESS6 = "192.168.100.50", "fd00:100::50"
GATEWAY, GATEWAY6 = "192.168.100.1", "fd00:100::1"
HERE = Path(__file__).parent / "network"
DECLARED = [{"name": NAME, "project": "shop", "networks": [{"name": BRIDGE}]}]
POLICIES = {
    "default": {"mode": "locked"},
    "projects": {
        "shop": {
            "mode": "allowlist",
            "allow": ["allowed.example:22,443", f"{internet.HOSTS['allowed-2'][0]}:5000/udp"],
        }
    },
}
# Runs what is asked for, all of it at once.
DRIVER = """
import json, sys
sys.path.insert(0, "/opt/probes")
import probes
from concurrent.futures import ThreadPoolExecutor
tries = json.load(open("/opt/probes/tries.json"))
with ThreadPoolExecutor(32) as pool:
    print(json.dumps(list(pool.map(lambda one: probes.PROBES[one[0]](**one[1]), tries))))
"""
# A connection that somebody uses all the time, and notes how often it was answered.
FLOW = """
import socket, time
end = socket.create_connection(("%s", 22), 10)
end.settimeout(5)
count = 0
while True:
    end.sendall(b"x\\n")
    if not end.recv(65536):
        raise SystemExit("closed")
    count += 1
    open("/run/flow", "w").write(str(count))
    time.sleep(0.1)
"""


@dataclass
class Inside:
    """A machine that runs, its surroundings and the policy that holds it."""

    net: Lab
    product: Product
    provider: Any
    mac: str

    def run(self, script: str) -> str:
        ran = self.provider.run(NAME, script, Job.lasting(BOOT))
        assert ran.code == 0, ran
        return str(ran.stdout)

    def tries(self, *tries: tuple[str, dict[str, Any]]) -> list[dict[str, Any]]:
        """Try things inside, all at once, and return what came of each."""
        given = [(what, values if what == "frames" else {"timeout": 4, **values}) for what, values in tries]
        text = base64.b64encode(json.dumps(given).encode()).decode()
        said = self.run(f"echo {text} | base64 -d >/opt/probes/tries.json\npython3 - <<'END'\n{DRIVER}\nEND\n")
        found: list[dict[str, Any]] = json.loads(said)
        return found

    def opens(self, what: str, **values: Any) -> bool:
        return self.tries((what, values))[0]["outcome"] == "open"

    def send(self, *frames: str) -> None:
        """Put frames on its cable, whatever its own kernel thinks of them."""
        script = (
            f"import sys; sys.path.insert(0, '/opt/probes'); import probes; probes.frames('net0', {list(frames)!r})"
        )
        self.run(f'python3 -c "{script}"')

    def fleet(self, *words: str) -> None:
        """Type a command on the gateway."""
        done = self.net.gateway.run(
            str(Path(sys.executable).with_name("fleet")), *words, "--state-dir", str(self.product.folder)
        )
        assert done.returncode == 0, done

    def apply(self) -> None:
        """Put the policy in force for the machines that the provider has, and those that it is to have."""
        found = [machine.to_dict() for machine in self.provider.describe().values()]
        cards = policy_machines(found, [BRIDGE], DECLARED, "here")["machines"]
        for card in cards:
            card.update(address=ADDRESS, address6=ADDRESS6)
        document = self.net.document(POLICIES, log_rate=1000)
        document["machines"] = [*document["machines"], *cards]
        self.product.apply(document)


@pytest.fixture(scope="module")
def inside(vms: Machines, golden: Image) -> Iterator[Inside]:
    require_root("to make network namespaces")
    for tool in ("ip", "nft", "dnsmasq", "conntrack"):
        require_tool(tool, "to put a network policy in force")
    with Lab.start() as net, products.running(net) as product:
        provider: Any = providers.provider("qemu", str(product.folder))
        (planned,) = with_macs(DECLARED, [BRIDGE], [], "here")
        mac = planned["networks"][0]["mac"]
        found = Inside(net, product, provider, mac)
        found.apply()  # before there is a machine
        disk = vms.provider.golden.disk_of(golden.name).path
        networks = (Network(BRIDGE, mac, "dhcp"),)
        spec = MachineSpec(NAME, "qemu", str(disk), cpu=2, project="shop", networks=networks, user_data=vms.user_data())
        try:
            provider.create(spec, Job.lasting(2 * BOOT))
            found.apply()  # its interface is known now
            _prepare(found)
            yield found
        finally:
            provider.delete(NAME, Job.lasting(60))


def _prepare(machine: Inside) -> None:
    """Bring the probes of the lab into the machine, and an address of the other family."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name in ("probes.py", "dns_messages.py"):
            archive.add(HERE / name, name)
    text = base64.b64encode(file.getvalue()).decode()
    machine.run(f"mkdir -p /opt/probes\nbase64 -d <<'END' | tar -xz -C /opt/probes\n{text}\nEND\n")
    machine.run(
        f"ip -6 address replace {ADDRESS6}/64 dev net0 nodad\nip -6 route replace default via {GATEWAY6} dev net0\n"
    )


def address(host: str, family: int = 4) -> str:
    return internet.HOSTS[host][0 if family == 4 else 1]


def test_a_machine_is_part_of_the_policy_before_it_is_made_and_bound_to_its_interface_after(inside: Inside) -> None:
    assert inside.run("ip -4 -o address show dev net0").split()[3] == f"{ADDRESS}/24"
    assert inside.run("cat /sys/class/net/net0/address").strip() == inside.mac
    (guest,) = [one for one in inside.product.fence.guests if one.name == NAME]
    ports = [link["ifname"] for link in inside.net.gateway.json("link", "show", "master", BRIDGE)]
    assert guest.port in ports
    assert (guest.address4, guest.scope) == (ADDRESS, "project-shop")


def test_what_the_policy_names_is_reached(inside: Inside) -> None:
    # By the machine's own resolver, which knows this one from DHCP.
    why = "resolvectl status net0; resolvectl query allowed.example 2>&1; ip route; ip -6 route"
    for family in (4, 6):
        said = inside.run(f"getent ahostsv{family} allowed.example || {{ {why}; }}")
        assert address("allowed", family) in said, said
    given: list[tuple[str, dict[str, Any]]] = [
        ("tls", {"address": address("allowed"), "sni": "allowed.example"}),
        ("tls", {"address": address("allowed", 6), "sni": "allowed.example"}),
        ("tcp", {"address": address("allowed"), "port": 22}),
        ("udp", {"address": address("allowed-2"), "port": 5000}),
        ("ping", {"address": GATEWAY}),
    ]
    found = inside.tries(*given)
    assert [one["outcome"] for one in found] == ["open"] * len(given), found


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "a name that is not allowed": ("dns", {"server": GATEWAY, "name": "forbidden.example"}),
    "its address": ("tls", {"address": address("forbidden"), "sni": "allowed.example"}),
    "its address in IPv6": ("tls", {"address": address("forbidden", 6), "sni": "allowed.example"}),
    "another port of an allowed host": ("http", {"address": address("allowed"), "port": 80}),
    "another resolver": ("dns", {"server": address("evil-resolver"), "name": "forbidden.example"}),
    "another resolver in TCP": (
        "dns",
        {"server": address("evil-resolver"), "name": "forbidden.example", "transport": "tcp"},
    ),
    "DNS over TLS": ("dns", {"server": address("doh"), "name": "forbidden.example", "transport": "dot"}),
    "DNS over HTTPS": ("tls", {"address": address("known-doh"), "sni": "one.one.one.one"}),
    "QUIC": ("udp", {"address": address("allowed"), "port": 443}),
    "the metadata service": ("http", {"address": address("metadata"), "port": 80}),
    "the metadata service in IPv6": ("http", {"address": address("metadata", 6), "port": 80}),
    "a private network": ("tcp", {"address": address("neighbour"), "port": 22}),
    "a service of the gateway": ("tcp", {"address": GATEWAY, "port": 22}),
    "the web page of the gateway": ("tcp", {"address": GATEWAY, "port": 8006}),
    "the gateway behind its other address": ("tcp", {"address": "11.0.0.2", "port": 22}),
    "another machine": ("tcp", {"address": "192.168.100.10", "port": 8080}),
    "another machine in IPv6": ("tcp", {"address": "fd00:100::10", "port": 8080}),
    "a machine of another bridge": ("tcp", {"address": "192.168.101.10", "port": 8080}),
    "ping of the internet": ("ping", {"address": address("allowed")}),
}


def test_everything_else_is_not_reached(inside: Inside) -> None:
    inside.net.internet.forget()
    found = dict(zip(REFUSED, inside.tries(*REFUSED.values()), strict=True))
    assert {what: one for what, one in found.items() if one["outcome"] == "open"} == {}
    assert inside.net.internet.asked("forbidden") == []


def test_a_live_change_opens_a_name_and_nothing_restarts(inside: Inside) -> None:
    script = base64.b64encode((FLOW % address("allowed")).encode()).decode()
    inside.run(f"getent ahostsv4 allowed.example\necho {script} | base64 -d >/opt/flow.py")
    inside.run("rm -f /run/flow; setsid python3 /opt/flow.py >/run/flow.log 2>&1 </dev/null & sleep 1")
    before = (inside.run("cat /proc/sys/kernel/random/boot_id"), inside.provider.describe()[NAME].detail["pid"])

    def answered() -> int:
        return int(inside.run("cat /run/flow 2>/dev/null || echo 0"))

    wait_for(answered, "the connection is used", 20, pause=0.5)
    assert not inside.opens("dns", server=GATEWAY, name="forbidden.example")
    inside.fleet("egress", "allow", "forbidden.example", "--machine", NAME, "--for", "30m")
    wait_for(
        lambda: inside.opens("dns", server=GATEWAY, name="forbidden.example"), "the name is answered", 20, pause=0.5
    )
    assert inside.opens("tls", address=address("forbidden"), sni="forbidden.example")
    inside.fleet("egress", "forget", "--machine", NAME)
    assert not inside.opens("tls", address=address("forbidden"), sni="forbidden.example")
    count = answered()
    wait_for(lambda: answered() > count, "the connection lives on", 20, pause=0.5)
    after = (inside.run("cat /proc/sys/kernel/random/boot_id"), inside.provider.describe()[NAME].detail["pid"])
    assert after == before
    inside.fleet("egress", "mode", "locked", "--machine", NAME)
    wait_for(lambda: inside.run("pgrep -f /opt/flow.py || true") == "", "the connection is cut", 30, pause=0.5)
    assert not inside.opens("tcp", address=address("allowed"), port=22)
    inside.fleet("egress", "forget", "--machine", NAME)
    wait_for(lambda: inside.opens("tcp", address=address("allowed"), port=22), "it is open again", 20, pause=0.5)


def test_forged_addresses_are_not_heard(inside: Inside) -> None:
    bridge = next(link["address"] for link in inside.net.gateway.json("link") if link["ifname"] == BRIDGE)

    def datagram(mark: str, source_mac: str, source: str) -> str:
        body = packets.udp(source, address("allowed-2"), 40000, 5000, mark.encode())
        return packets.frame(bridge, source_mac, 0x0800, packets.ipv4(source, address("allowed-2"), 17, body))

    other_mac, other = "52:54:00:00:01:10", "192.168.100.10"  # of web-1, which the policy knows
    inside.send(
        datagram("marker-of-its-own", inside.mac, ADDRESS),
        datagram("marker-with-anothers-ip", inside.mac, other),
        datagram("marker-with-anothers-mac", other_mac, ADDRESS),
        datagram("marker-with-both", other_mac, other),
        datagram("marker-with-no-mac", "52:54:00:aa:bb:cc", ADDRESS),
        packets.frame(
            "ff:ff:ff:ff:ff:ff", inside.mac, 0x0806, packets.arp(2, inside.mac, GATEWAY, "ff:ff:ff:ff:ff:ff", GATEWAY)
        ),
    )
    wait_for(lambda: inside.net.internet.saw("marker-of-its-own"), "what is its own gets through", 10)
    seen = [mark for mark in ("ip", "mac") if inside.net.internet.saw(f"marker-with-anothers-{mark}")]
    assert seen == []
    assert inside.net.internet.saw("marker-with-both") == []
    assert inside.net.internet.saw("marker-with-no-mac") == []
    neighbours = inside.net.machines["web-1"].namespace.run("ip", "neigh", "show", GATEWAY).stdout
    assert inside.mac not in neighbours  # nobody took it for the gateway


def test_denials_are_told_with_the_name_of_the_machine(inside: Inside) -> None:
    def reasons() -> set[str]:
        path = inside.product.folder / "egress" / "denials.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return {one["reason"] for one in lines if one["machine"] == NAME}

    expected = {"dns", "forward", "input", "metadata", "peer"}
    for _turn in range(10):
        inside.tries(*REFUSED.values())
        if expected <= reasons():
            return
    raise AssertionError(f"denials of {NAME}: expected {expected}, found {reasons()}")
