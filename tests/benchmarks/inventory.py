# SPDX-License-Identifier: GPL-3.0-or-later
"""The inventory of 1,000 machines of a Proxmox cluster of three nodes: autovibe.fleet.machines, and community.proxmox.

Both are run by ansible-inventory --list against the same fake cluster, which counts requests. community.proxmox is run
as it comes, which tells names and states, and with want_facts, which it needs to tell tags and sizes as ours does.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure
import yaml

sys.path.insert(0, str(measure.ROOT))

from tests.fakes.proxmox_host import Host

from fleet_machines.proxmox_config_tags import Marks

MACHINES = 1000
NODES = ("pve1", "pve2", "pve3")
AGAIN = 1 if os.environ.get("FLEET_BENCHMARK_QUICK") else 3
GOAL = 20  # times fewer requests


@dataclass(frozen=True)
class Side:
    """One inventory. seconds: the best turn, of which the start of ansible-inventory is a part."""

    title: str
    requests: int
    seconds: float
    hosts: int
    tagged: int


def cluster(folder: Path, machines: int) -> Host:
    """Return a running fake cluster with machines on its nodes, as a fleet of projects has them."""
    host = Host(folder)
    for node in NODES[1:]:
        host.pve.add_node(node)
    for number in range(machines):
        address = f"10.1.{number // 250}.{number % 250 + 1}"
        tags = ("web", "blue", f"team-{number % 10}")
        marks = Marks(ours=True, image="debian-12", project=f"p-{number % 20}", tags=tags, addresses=(address,))
        status = "running" if number % 4 else "stopped"
        host.machine(1000 + number, f"m-{number}", NODES[number % len(NODES)], status, tags=marks.text())
    host.requests()
    return host


def ours(host: Host) -> dict[str, Any]:
    return {"plugin": "autovibe.fleet.machines", "providers": [{"name": "proxmox", "settings": host.settings}]}


def theirs(host: Host, facts: bool) -> dict[str, Any]:
    user, _mark, name = host.settings["token_id"].partition("!")
    return {
        "plugin": "community.proxmox.proxmox",
        "url": host.settings["host"],
        "user": user,
        "token_id": name,
        "token_secret": host.settings["token_secret"],
        "want_facts": facts,
        # Groups by tag, as ours makes them.
        "keyed_groups": [{"key": "proxmox_tags_parsed | default([])", "prefix": "tag"}],
    }


def turn(host: Host, path: Path) -> tuple[float, dict[str, Any]]:
    """Run ansible-inventory once and return its seconds and what it listed."""
    environ = {"ANSIBLE_HOME": str(path.parent / "ansible"), "REQUESTS_CA_BUNDLE": str(host.ca)}
    began = time.monotonic()
    done = subprocess.run(
        [measure.own("ansible-inventory"), "-i", str(path), "--list"],
        capture_output=True,
        check=False,
        env={**os.environ, **environ, "ANSIBLE_CONFIG": str(measure.ROOT / "ansible.cfg")},
        timeout=1800,
    )
    seconds = time.monotonic() - began
    if done.returncode:
        raise RuntimeError(f"{path.name}: {done.stderr.decode()[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return seconds, found


def side(title: str, host: Host, folder: Path, name: str, data: dict[str, Any], turns: int) -> Side:
    """Measure one inventory."""
    path = folder / name
    path.write_text(yaml.safe_dump(data))
    path.chmod(0o600)
    best, requests, found = float("inf"), 0, {}
    for _turn in range(turns):
        host.requests()
        seconds, found = turn(host, path)
        requests = len(host.requests())
        best = min(best, seconds)
    hosts = [name for name in found["_meta"]["hostvars"] if name.startswith("m-")]
    return Side(title, requests, best, len(hosts), len(found.get("tag_blue", {}).get("hosts", ())))


def main() -> None:
    """Print requests and seconds, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machines", type=int, default=MACHINES, metavar="N", help=f"how many (default: {MACHINES})")
    machines = parser.parse_args().machines
    print(f"inventory: {machines} machines on {len(NODES)} nodes; {measure.load()}")
    with tempfile.TemporaryDirectory(prefix="fleet-") as scratch:
        folder = Path(scratch)
        host = cluster(folder, machines)
        try:
            sides = [
                side("autovibe.fleet.machines", host, folder, "machines.yml", ours(host), AGAIN),
                side("community.proxmox", host, folder, "a.proxmox.yml", theirs(host, False), AGAIN),
                side("community.proxmox, want_facts", host, folder, "b.proxmox.yml", theirs(host, True), 1),
            ]
        finally:
            host.stop()
    mine = sides[0]
    rows = [
        (
            one.title,
            str(one.hosts),
            str(one.tagged),
            str(one.requests),
            f"{one.requests / mine.requests:.0f}x",
            f"{one.seconds:.2f} s",
            f"{one.seconds / mine.seconds:.1f}x",
        )
        for one in sides
    ]
    print(measure.table(("inventory", "hosts", "with a tag", "requests", "ratio", "time", "ratio"), rows))
    wrong = [one.title for one in sides if one.hosts != machines]
    if wrong or mine.tagged != machines:
        raise RuntimeError(f"expected {machines} hosts, all with a tag of ours: {', '.join(wrong) or mine.title}")
    reached = "reached" if sides[2].requests >= GOAL * mine.requests else "missed"
    print(f"goal of {GOAL} times fewer requests, for as much as ours tells: {reached}")


if __name__ == "__main__":
    main()
