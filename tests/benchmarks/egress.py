# SPDX-License-Identifier: GPL-3.0-or-later
"""A network policy of 1,000 rules: put in force and changed, reloaded under traffic, and what it costs the traffic.

- rules: one autovibe.fleet.egress_policy task with 1,000 rules, then the same with one rule changed, against looped
  ansible.builtin.iptables tasks of the same rules, of which some are measured and scaled (in their favour: each task
  looks through the rules that are there, and they only become more). The times are those of the task.
- reloads: 1,000 times the same rules are loaded anew while datagrams and a connection pass; lost packets are counted.
- traffic: iperf3 and new connections from a machine through the gateway, with the policy of 1,000 rules and without, by
  turns. Without it the gateway translates addresses (masquerade), as one that has private networks must; the bare
  routing of packets is shown beside it.

All of it runs in network namespaces that lead nowhere. Wants root.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import measure
import plays

sys.path.insert(0, str(measure.ROOT))

from tests.system.network import internet
from tests.system.network.lab import Lab, end
from tests.system.network.product import Product, running

from fleet_node.egress_backends import BACKENDS, backend

RULES, RELOADS = 1000, 1000
ROUNDS, SECONDS = (2, 2.0) if measure.QUICK else (5, 5.0)
LOOPED = 25 if measure.QUICK else 100
# iptables loads several times slower; a quick run makes fewer reloads and says so.
QUICK_RELOADS = {"nftables": RELOADS, "iptables": 200}
FASTER, SHARE = 100, 0.95  # goals
SERVER = internet.HOSTS["allowed"][0]
PORT = 8080  # of an echo server there; the policy opens it, with 999 rules beside it
FLOOD = 500  # datagrams a second
MASQUERADE = """
table ip plain {
    chain c {
        type nat hook postrouting priority srcnat; policy accept;
        oifname "uplink" masquerade
    }
}
"""
# Opens connections as fast as it can for a while and prints how many a second, and a second of its processor time, in
# which the kernel carries the packets to the other end and back. Bare ones end at once with a reset, so that no port
# stays in use; the others make a TLS handshake, as machines do.
CONNECT = """
import socket, ssl, struct, sys, time
address, port, seconds, kind = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
linger = struct.pack("ii", 1, 0)
context = ssl._create_unverified_context()
made, begin, used = 0, time.perf_counter(), time.process_time()
while time.perf_counter() < begin + seconds:
    for turn in range(10):
        end = socket.socket()
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        end.connect((address, port))
        if kind == "tls":
            end = context.wrap_socket(end)
        end.close()
    made += 10
print(made / (time.perf_counter() - begin), made / (time.process_time() - used))
"""
LISTEN = """
import socket, ssl, sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
if len(sys.argv) > 2:
    context.load_cert_chain(sys.argv[2])
server = socket.create_server(("", int(sys.argv[1])), backlog=4096)
while True:
    end = server.accept()[0]
    try:
        end = context.wrap_socket(end, server_side=True) if len(sys.argv) > 2 else end
        end.close()
    except OSError:
        end.close()
"""
LISTENER, TLS, IPERF = 9001, 9002, 5201  # ports
PORTS = (443, 80, 22, 5432, 6379)


def rules(number: int = RULES) -> list[tuple[str, int]]:
    """Addresses with ports, five of them as policies have them; the first and the last are of this benchmark."""
    found = [(SERVER, PORT), (SERVER, LISTENER), (SERVER, TLS), (SERVER, IPERF)]
    found += [(f"11.{100 + n // 250}.0.{n % 250 + 1}", PORTS[n % len(PORTS)]) for n in range(number - len(found) - 1)]
    return [*found, (SERVER, 5000)]


def document(lab: Lab, name: str, changed: int = 0) -> dict[str, Any]:
    """The policy. changed: another number is one rule changed."""
    allow = [f"{address}:{port}{'/udp' if port == 5000 else ''}" for address, port in rules()]
    allow[-2] = f"11.250.0.{changed + 1}:443"
    return lab.document({"default": {"mode": "allowlist", "allow": allow}}, backend=name, proxy={"kind": "none"})


# -- rules ------------------------------------------------------------------------------------------------------------


def ours(lab: Lab, product: Product, name: str, folder: Path, changed: int) -> float:
    """Seconds of the task that puts the policy in force."""
    task = {"name": "Policy", "autovibe.fleet.egress_policy": document(lab, name, changed)}
    task["autovibe.fleet.egress_policy"]["state_dir"] = str(product.folder)
    return played(lab, plays.write(folder / "ours.yml", [task]))


def theirs(lab: Lab, folder: Path, looped: int) -> float:
    """Seconds of the loop over some rules."""
    arguments = {"chain": "FORWARD", "protocol": "tcp", "jump": "ACCEPT", "in_interface": "fleet0"}
    arguments.update(destination="{{ item.0 }}", destination_port="{{ item.1 }}")
    task = {"name": "Loop", "ansible.builtin.iptables": arguments, "loop": [list(rule) for rule in rules()[:looped]]}
    return played(lab, plays.write(folder / "theirs.yml", [task]))


def played(lab: Lab, playbook: Path) -> float:
    with lab.gateway.inside():
        play = plays.run(["-i", "localhost,", str(playbook)], {"ANSIBLE_HOME": str(playbook.parent / "ansible")})
    return sum(task.seconds for task in play.tasks)


def compare_rules(lab: Lab, product: Product, folder: Path) -> None:
    """Print how long 1,000 rules take, new and with one of them changed."""
    loop = theirs(lab, folder, LOOPED)
    again = theirs(lab, folder, LOOPED)
    lab.gateway.run("iptables", "-F", "FORWARD")
    first_loop, again_loop = loop * RULES / LOOPED, again * RULES / LOOPED
    print(f"egress: {RULES} rules by looped iptables {first_loop:.0f} s, again {again_loop:.0f} s ({LOOPED} measured)")
    for name in BACKENDS:
        first = ours(lab, product, name, folder, 0)
        changed = statistics.median(ours(lab, product, name, folder, turn) for turn in (1, 2, 3))
        same = ours(lab, product, name, folder, 3)
        took = f"{first:.2f} s, with one changed {changed:.2f} s, with none {same:.2f} s"
        print(f"egress: {RULES} rules by egress_policy, {name}: {took}")
        print(f"egress: ratio iptables loop/{name}, applied {first_loop / first:.0f} (goal: at least {FASTER})")
        print(f"egress: ratio iptables loop/{name}, reloaded {again_loop / changed:.0f} (goal: at least {FASTER})")


# -- reloads ----------------------------------------------------------------------------------------------------------


def reload_under_traffic(lab: Lab, product: Product) -> None:
    """Print how many packets of established flows are lost while the rules are loaded again and again."""
    web = lab.machines["web-1"]
    for name in BACKENDS:
        product.apply(document(lab, name))
        times, turns = [], QUICK_RELOADS[name] if measure.QUICK else RELOADS
        assert web.probe("open", name="stream", address=SERVER, port=PORT)["outcome"] == "open"
        web.probe("flood", name="flood", address=SERVER, port=5000, rate=FLOOD)
        silent = 0
        with lab.gateway.inside():
            fence, rules_ = product.fence, backend(name)
            for turn in range(turns):
                begin = time.perf_counter()
                rules_.load(product.engine.store.applied, fence)
                times.append(time.perf_counter() - begin)
                if turn % 20 == 0:
                    silent += web.probe("say", name="stream")["outcome"] != "open"
        counted = web.probe("flooded", name="flood")
        web.probe("close", name="stream")
        flow = f"{counted['sent']} datagrams, {counted['lost']} lost, longest gap {counted['gap'] * 1000:.0f} ms"
        took = f"{statistics.median(times) * 1000:.0f} ms each"
        print(f"egress: {turns} reloads of {RULES} rules, {name}, {took}: {flow}, connection silent {silent} times")
        print(f"egress: lost packets over {turns} reloads, {name}: {counted['lost']} (goal: 0)")


# -- traffic ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def servers(lab: Lab) -> Iterator[None]:
    """What the traffic goes to: iperf3, and a program that only accepts."""
    outside = lab.internet.namespace
    processes = [
        outside.start("iperf3", "--server", "--bind", SERVER, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL),
        outside.start(sys.executable, "-c", LISTEN, str(LISTENER)),
        outside.start(sys.executable, "-c", LISTEN, str(TLS), str(lab.folder / "server.pem")),
    ]
    try:
        wanted = {str(IPERF), str(LISTENER), str(TLS)}
        measure.wait_for(
            lambda: wanted <= {line.split()[3].rpartition(":")[2] for line in listening(lab)}, 20, "the servers"
        )
        yield
    finally:
        for process in processes:
            end(process)


def listening(lab: Lab) -> list[str]:
    return lab.internet.namespace.run("ss", "-H", "-ltn").stdout.splitlines()


def throughput(lab: Lab) -> tuple[float, float]:
    """Gigabits a second of one TCP connection, and a second of both ends' processor time."""
    web = lab.machines["web-1"].namespace
    shown = web.run("iperf3", "--client", SERVER, "--time", f"{SECONDS:.0f}", "--json", timeout=SECONDS + 30).stdout
    found = json.loads(shown)["end"]
    gigabits = float(found["sum_received"]["bits_per_second"]) / 1e9
    used = found["cpu_utilization_percent"]
    return gigabits, gigabits / (float(used["host_total"]) + float(used["remote_total"])) * 100


def connections(lab: Lab, port: int, kind: str) -> tuple[float, float]:
    """New connections a second, and a second of the client's processor time."""
    web = lab.machines["web-1"].namespace
    words = (sys.executable, "-c", CONNECT, SERVER, str(port), str(SECONDS), kind)
    wall, processor = web.run(*words, timeout=SECONDS + 60).stdout.split()
    return float(wall), float(processor)


@contextlib.contextmanager
def side(lab: Lab, product: Product, name: str) -> Iterator[None]:
    """The gateway as one side has it: "routing", "masquerade", or a backend with the policy."""
    if name in BACKENDS:
        product.apply(document(lab, name))
    elif name == "masquerade":
        lab.gateway.run("nft", "-f", "-", stdin=MASQUERADE)
    try:
        yield
    finally:
        if name in BACKENDS:
            product.remove()
        lab.gateway.run("nft", "flush", "ruleset")


def compare_traffic(lab: Lab, product: Product) -> None:
    """Print throughput and connections a second of each side, and the ratios to the side without the policy."""
    sides = ("routing", "masquerade", *BACKENDS)
    kinds: dict[str, Callable[[Lab], tuple[float, float]]] = {
        "throughput": throughput,
        "new TLS connections": lambda lab: connections(lab, TLS, "tls"),
        "new bare connections": lambda lab: connections(lab, LISTENER, "bare"),
    }
    found: dict[str, dict[str, list[tuple[float, float]]]] = {name: {kind: [] for kind in kinds} for name in sides}
    product.remove()
    with servers(lab):
        for turn in range(ROUNDS):
            for name in sides if turn % 2 == 0 else reversed(sides):
                with side(lab, product, name):
                    for kind, measured in kinds.items():
                        found[name][kind].append(measured(lab))
    best = {
        name: {kind: tuple(max(column) for column in zip(*pairs, strict=True)) for kind, pairs in one.items()}
        for name, one in found.items()
    }
    head = ["through the gateway", "Gbit/s", "TLS connections/s", "bare connections/s"]
    rows = [
        [
            name,
            *(
                f"{wall:.{digits}f} ({processor:.{digits}f})"
                for digits, (wall, processor) in zip((2, 0, 0), one.values(), strict=True)
            ),
        ]
        for name, one in best.items()
    ]
    print("egress: in brackets: for each second of processor time")
    print(measure.table(head, rows))
    for name in BACKENDS:
        for kind in kinds:
            wall, processor = (best[name][kind][which] / best["masquerade"][kind][which] for which in (0, 1))
            goal = f"(goal: at least {SHARE}); by processor time {processor:.2f}"
            print(f"egress: ratio {kind} {name}/without {wall:.2f} {goal}")


def main() -> None:
    """Measure all three, or those that are named."""
    parts = {"rules": "rules", "reloads": "reloads", "traffic": "traffic"}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*parts, []], help="rules, reloads, traffic (default: all)")
    chosen = parser.parse_args().parts or list(parts)
    if os.geteuid() != 0:
        sys.exit("egress: left out: root is needed to make network namespaces")
    missing = [tool for tool in ("nft", "iptables", "ipset", "dnsmasq", "conntrack", "iperf3") if not find(tool)]
    if missing:
        sys.exit(f"egress: left out: {', '.join(missing)} not installed")
    print(f"egress: {measure.load()}")
    with (
        tempfile.TemporaryDirectory(prefix="fleet-") as scratch,
        Lab.start(sniff=False) as lab,
        running(lab) as product,
    ):
        if "rules" in chosen:
            compare_rules(lab, product, Path(scratch))
        if "reloads" in chosen:
            reload_under_traffic(lab, product)
        if "traffic" in chosen:
            compare_traffic(lab, product)


def find(tool: str) -> bool:
    return any(os.access(f"{folder}/{tool}", os.X_OK) for folder in [*os.get_exec_path(), "/usr/sbin", "/sbin"])


if __name__ == "__main__":
    main()
