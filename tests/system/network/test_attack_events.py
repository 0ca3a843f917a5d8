# SPDX-License-Identifier: GPL-3.0-or-later
"""What happens to the fence while it stands: reloads, ends of rules, dead processes, other people's rules, reboots.

The first line of each test's documentation is its row in docs/egress-attacks.md.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

import pytest
from tests.requirements import require_tool
from tests.system.network import attacks, internet
from tests.system.network.field import GATEWAY4, PROXY_PORT, Field, document, run_all
from tests.system.network.lab import Lab, wait_for
from tests.system.network.product import Product, field_of, running

from fleet_node import egress_backends

PLACE = internet.HOSTS["other-project"][0]  # TCP 22 of it is what some tests open and close
GRANTED, FORBIDDEN = internet.HOSTS["allowed-2"][0], internet.HOSTS["forbidden"][0]
# Some of each kind: enough to see that the fence stands.
CLOSED = (
    *("tcp-to-an-address", "udp-to-an-address-of-ipv6", "icmp-tunnel", "quic-to-an-address", "fragments", "gre-tunnel"),
    *("another-resolver", "dns-over-tls", "address-of-another-machine", "rogue-router"),
    *("machine-of-the-same-bridge", "machine-of-another-bridge", "service-of-the-gateway", "metadata-service"),
    *("neighbour-of-the-gateway", "connection-from-outside", "vlan-tag"),
)
ROWS = [row for row in attacks.table() if row.name in CLOSED]


@pytest.fixture(scope="module")
def product(lab: Lab) -> Iterator[Product]:
    for tool in ("nft", "iptables", "ipset", "dnsmasq", "squid", "conntrack"):
        require_tool(tool, "to enforce a network policy")
    with running(lab) as product:
        yield product


@pytest.fixture(scope="module", params=attacks.BACKENDS)
def field(request: pytest.FixtureRequest, product: Product) -> Field:
    return field_of(product, request.param, "allowlist")


def put(product: Product, field: Field, *allow: Any) -> None:
    """Put the policy in force again, with more for project shop."""
    product.apply(document(product.lab, "allowlist", *allow, backend=field.backend))


def load(product: Product, field: Field) -> None:
    """Load the rules that are in force once more, whether they changed or not."""
    with product.lab.gateway.inside():
        egress_backends.backend(field.backend).load(product.engine.store.applied, product.fence)


def open_now(field: Field) -> list[str]:
    """Return the attacks that get through."""
    assert len(ROWS) == len(CLOSED)
    return [name for name, outcome in run_all(field, ROWS).items() if outcome is not False]


def works(field: Field) -> bool:
    """Whether an allowed name is answered and reached."""
    answers = field.ask("allowed.example")["answers"]
    return bool(answers) and field.opens("tls", address=answers[0], sni="allowed.example")


def test_a_connection_outlives_changes_of_the_policy(product: Product, field: Field) -> None:
    """The policy changes five times: connections that it goes on to allow lose no packet."""
    put(product, field, f"{PLACE}:22")
    assert field.web.probe("open", name="stays", address=PLACE, port=22)["outcome"] == "open"
    field.web.probe("flood", name="counted", address=GRANTED, port=5000)
    for turn in range(5):
        put(product, field, f"{PLACE}:22", f"11.9.0.{turn}:1000-2000/udp")
        assert field.web.probe("say", name="stays")["outcome"] == "open"
    counted = field.web.probe("flooded", name="counted")
    assert counted["lost"] == 0, counted
    field.web.probe("close", name="stays")


def test_nothing_slips_out_while_rules_are_loaded(product: Product, field: Field) -> None:
    """Rules are loaded twenty times in a row: of a stream to a closed address, no packet gets out in between."""
    put(product, field)
    field.web.probe("flood", name="closed", address=FORBIDDEN, port=5000, rate=2000)
    field.web.probe("flood", name="open", address=GRANTED, port=5000)
    for _turn in range(20):
        load(product, field)
    closed, opened = field.web.probe("flooded", name="closed"), field.web.probe("flooded", name="open")
    assert closed["answered"] == 0, closed
    assert opened["lost"] == 0, opened


def test_a_connection_ends_with_its_rule(product: Product, field: Field) -> None:
    """A rule is taken back: the connection that it allowed is cut, also one that runs."""
    put(product, field, f"{PLACE}:22")
    assert field.web.probe("open", name="cut", address=PLACE, port=22)["outcome"] == "open"
    put(product, field)
    assert field.web.probe("say", name="cut")["outcome"] != "open"
    assert not field.opens("tcp", address=PLACE, port=22)
    field.web.probe("close", name="cut")


def test_a_connection_ends_with_its_time(product: Product, field: Field) -> None:
    """A rule for a time ends: the kernel cuts the connection that runs, though no process of ours acts."""
    until = datetime.fromtimestamp(int(time.time()) + 4, timezone.utc).isoformat()
    put(product, field, {"network": f"{PLACE}/32", "ports": [22], "until": until})
    watch = product.processes()["egress-watch"]["pid"]
    os.kill(watch, signal.SIGSTOP)
    try:
        assert field.web.probe("open", name="timed", address=PLACE, port=22)["outcome"] == "open"
        assert field.web.probe("say", name="timed")["outcome"] == "open"
        wait_for(lambda: field.web.probe("say", name="timed")["outcome"] != "open", "the connection ends", 15, 0.2)
        assert not field.opens("tcp", address=PLACE, port=22)
    finally:
        os.kill(watch, signal.SIGCONT)
    field.web.probe("close", name="timed")
    put(product, field)


def test_fleetd_is_killed(product: Product, field: Field) -> None:
    """Somebody kills fleetd with SIGKILL: all stays closed, what is allowed still works."""
    product.fleet.end(signal.SIGKILL)
    try:
        assert works(field)
        assert open_now(field) == []
    finally:
        product.up()


@pytest.mark.parametrize("process", ["egress-dns-project-shop", "egress-watch", "egress-proxy"])
def test_a_process_is_killed(product: Product, field: Field, process: str) -> None:
    """Somebody kills a resolver, the proxy or the watch: all stays closed, fleetd starts it again."""
    assert works(field)
    learned = field.ask("allowed.example")["answers"][0]
    before = product.processes()[process]["pid"]
    os.kill(before, signal.SIGKILL)
    assert field.opens("tls", address=learned, sni="allowed.example"), "what was learned stays open"
    assert open_now(field) == []
    wait_for(lambda: product.processes()[process]["pid"] not in (None, 0, before), f"{process} runs again", 20)
    wait_for(lambda: works(field), "names are answered again", 20, 0.1)
    if process == "egress-proxy":
        product.settle()
        wait_for(lambda: "server" in field.proxy("allowed.example:443", sni="allowed.example"), "the proxy works", 20)


OTHERS = """
table ip other_early {
    chain forward { type filter hook forward priority -300; policy accept; accept
    }
    chain input { type filter hook input priority -300; policy accept; accept
    }
}
table inet other_late {
    chain forward { type filter hook forward priority 300; policy accept; accept
    }
    chain input { type filter hook input priority 300; policy accept; accept
    }
}
"""
# What Docker sets up, as `iptables-save` shows it, and a published port that leads to a machine of another bridge.
DOCKER = """\
*nat
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A DOCKER ! -i docker0 -p tcp --dport 9000 -j DNAT --to-destination 192.168.101.10:8080
COMMIT
*filter
:FORWARD {policy}
:DOCKER - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -j ACCEPT
-A DOCKER -d 192.168.101.10/32 ! -i docker0 -p tcp --dport 8080 -j ACCEPT
-A DOCKER-USER -j RETURN
COMMIT
"""


@pytest.fixture
def others(product: Product) -> Iterator[None]:
    """Rules of others, removed afterwards."""
    gateway = product.lab.gateway
    gateway.run("nft", "-f", "-", stdin=OTHERS)
    gateway.run("iptables-restore", "--noflush", stdin=DOCKER.format(policy="ACCEPT"))
    yield
    undo = [line for line in DOCKER.format(policy="ACCEPT").splitlines() if not line.startswith(":")]
    script = "\n".join(line.replace("-A ", "-D ", 1) for line in undo)
    script = script.replace("*nat\n", "*nat\n").replace("COMMIT", "COMMIT")
    gateway.run("iptables-restore", "--noflush", stdin=script + "\n")
    for words in (("nat", "DOCKER"), ("filter", "DOCKER"), ("filter", "DOCKER-USER")):
        gateway.run("iptables", "-t", words[0], "-X", words[1])
    gateway.run("nft", "delete", "table", "ip", "other_early")
    gateway.run("nft", "delete", "table", "inet", "other_late")


@pytest.mark.usefixtures("others")
def test_others_accept_everything(product: Product, field: Field) -> None:
    """Others have rules before and after ours that accept everything, as Docker's do for its own: all stays closed."""
    assert open_now(field) == []
    assert works(field)
    load(product, field)
    assert open_now(field) == []


@pytest.mark.usefixtures("others")
def test_a_port_that_others_publish(product: Product, field: Field) -> None:
    """Docker publishes a port on the gateway that leads to another machine: no machine reaches it."""
    gateway = product.lab.gateway
    rule = ("-p", "tcp", "--dport", "9000", "-j", "DNAT", "--to-destination", "192.168.101.10:8080")
    gateway.run("iptables", "-t", "nat", "-I", "PREROUTING", *rule)
    try:
        assert field.lab.internet.probe("tcp", address="11.0.0.2", port=9000)["outcome"] != "open"
        assert not field.opens("tcp", address=GATEWAY4, port=9000)
        assert not field.opens("tcp", address="11.0.0.2", port=9000)
    finally:
        gateway.run("iptables", "-t", "nat", "-D", "PREROUTING", *rule)


def test_somebody_flushes_the_rules(product: Product, field: Field) -> None:
    """Root of the host flushes all rules: open until the watch puts them back, which takes seconds (it is root)."""
    field.learn("allowed.example")
    gateway = product.lab.gateway
    gateway.run("nft", "flush", "ruleset")
    with gateway.inside():
        assert not egress_backends.backend(field.backend).loaded(product.fence)

    def back() -> bool:
        with gateway.inside():
            return egress_backends.backend(field.backend).loaded(product.fence)

    wait_for(back, "the watch has loaded the rules again", 30, 0.2)
    assert open_now(field) == []
    wait_for(lambda: works(field), "names are answered and learned again", 10, 0.1)


def test_the_other_backend_takes_over(product: Product, field: Field) -> None:
    """The backend changes: of a stream to a closed address no packet gets out; an allowed one goes on (a packet that is
    between the bridge and the routing at that moment may be lost)."""
    other = next(name for name in attacks.BACKENDS if name != field.backend)
    field.web.probe("flood", name="closed", address=FORBIDDEN, port=5000, rate=2000)
    field.web.probe("flood", name="open", address=GRANTED, port=5000)
    for backend in (other, field.backend):
        product.apply(document(product.lab, "allowlist", backend=backend))
        assert open_now(field) == []
    closed, opened = field.web.probe("flooded", name="closed"), field.web.probe("flooded", name="open")
    assert closed["answered"] == 0, closed
    assert opened["lost"] <= 2, opened


OLDER = """
add chain inet fleet_egress old-b
add chain inet fleet_egress old-a
add rule inet fleet_egress old-a jump old-b
add map inet fleet_egress old-map { type ipv4_addr : verdict; elements = { 10.0.0.1 : goto old-a } ; }
add rule inet fleet_egress old-b ip saddr vmap @old-map
"""


def test_an_older_version_left_other_chains(product: Product, field: Field) -> None:
    """Another version of the product has left chains that lead to one another: the next load replaces them."""
    if field.backend == "nftables":
        product.lab.gateway.run("nft", "-f", "-", stdin=OLDER)
    load(product, field)
    with product.lab.gateway.inside():
        assert egress_backends.backend(field.backend).loaded(product.fence)
    assert "old-" not in product.lab.gateway.run("nft", "list", "ruleset").stdout


@pytest.mark.parametrize("how", ["rule", "time"])
def test_a_tunnel_of_the_proxy_ends_with_its_rule(product: Product, how: str) -> None:
    """A rule is taken back, or its time ends, in mode strict: tunnels that run through the proxy are cut too."""
    place: dict[str, Any] = {"domain": "elsewhere.example", "ports": [443]}
    moment = int(time.time()) + 6
    if how == "time":
        place["until"] = datetime.fromtimestamp(moment, timezone.utc).isoformat()
    product.apply(document(product.lab, "strict", place, backend="nftables"))
    field = Field(product.lab, "nftables", "strict", product.ports)
    tunnel = {"address": GATEWAY4, "port": PROXY_PORT, "target": "elsewhere.example:443", "sni": "elsewhere.example"}
    assert "server" in field.web.probe("proxy", **tunnel), "it works while the rule stands"
    left = max(0.0, moment - time.time()) + 7 if how == "time" else 4.0
    waiting = field.web.begin("proxy", **tunnel, pause=left)
    time.sleep(0.5)
    if how == "rule":
        product.apply(document(product.lab, "strict", backend="nftables"))
    result = waiting.result(timeout=60)
    assert "server" not in result, "the tunnel has outlived its rule"
    assert "server" not in field.web.probe("proxy", **tunnel)


@pytest.mark.parametrize("backend", attacks.BACKENDS)
def test_a_reboot(backend: str) -> None:
    """The host boots: rules stand before the bridges do, and before fleetd; then names are answered again."""
    with Lab.start() as lab, running(lab) as product:
        field = field_of(product, backend, "allowlist")
        assert works(field)
        product.fleet.down()
        lab.take_bridges()
        lab.gateway.run("nft", "flush", "ruleset")
        if backend == "iptables":
            lab.gateway.run("ipset", "destroy")
        lab.gateway.run("sh", str(product.folder / "egress" / "boot.sh"))
        lab.give_bridges()
        assert field._seen(lambda: field.opens("udp", address=GRANTED, port=5000)), "rules need no process"
        assert open_now(field) == []
        product.up()
        product.refresh()
        product.settle()
        assert wait_for(lambda: works(field), "names are answered again", 20, 0.1)
        assert open_now(field) == []


@pytest.mark.parametrize("backend", attacks.BACKENDS)
def test_removal_leaves_nothing(product: Product, backend: str) -> None:
    """The policy is removed: of rules, sets and processes nothing is left, and those of others stay."""
    gateway = product.lab.gateway
    product.remove()
    gateway.run("nft", "-f", "-", stdin=OTHERS)
    before = state(product)
    product.apply(document(product.lab, "allowlist", backend=backend))
    assert state(product) != before
    product.remove()
    assert state(product) == before
    gateway.run("nft", "flush", "ruleset")


def state(product: Product) -> list[Any]:
    """What is in the kernel and runs, without numbers of packets."""
    gateway = product.lab.gateway
    tables = gateway.run("nft", "list", "ruleset").stdout
    # Empty tables of the kernel's own, which iptables makes when it is first used, belong to nobody.
    rules = [line for line in tables.splitlines() if "fleet" in line.lower() or "other_" in line]
    return [rules, gateway.run("ipset", "list", "-n").stdout, sorted(product.processes())]
