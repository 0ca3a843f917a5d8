# SPDX-License-Identifier: GPL-3.0-or-later
"""An unchanged run over 200 machines of a Proxmox cluster: one autovibe.fleet.machine task, or a loop of proxmox_kvm.

Both run against the same fake cluster, which counts requests. Ours compares processors, memory, disk, image, project,
tags and state. community.proxmox.proxmox_kvm can either look at the state alone, or set the configuration again each
time (update: true), without comparing; it is measured both ways.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import measure
import plays

sys.path.insert(0, str(measure.ROOT))

from tests.fakes.proxmox_host import SECRET, TOKEN, Host

from fleet_machines.proxmox_config_tags import Marks

MACHINES = 200
GOAL = 20
AGAIN = 3


class Side(NamedTuple):
    """One way. seconds: of its task, as Ansible measures it; scaled where not all machines were looped over."""

    title: str
    requests: float
    seconds: float
    often: Counter[str]


def cluster(folder: Path) -> Host:
    """Return a running fake cluster with machines that are as the tasks want them."""
    host = Host(folder)
    marks = Marks(ours=True, image="debian-12", project="shop", tags=("web",), size=(2, 2048, 8192))
    for number in range(MACHINES):
        host.machine(1000 + number, f"m-{number}", status="running", tags=marks.text(), ostype="l26")
    host.requests()
    return host


def ours(host: Host) -> dict[str, Any]:
    wanted = {"image": "debian-12", "cpu": 2, "memory": "2G", "disk": "8G", "project": "shop", "tags": ["web"]}
    options = {
        "state": "started",
        "provider": "proxmox",
        "provider_settings": host.settings,
        "state_dir": str(host.state_dir),
        "machines": [{"name": f"m-{number}", **wanted} for number in range(MACHINES)],
    }
    return {"name": "Ensure", "autovibe.fleet.machine": options}


def theirs(host: Host, looped: int, **wanted: Any) -> dict[str, Any]:
    user, _mark, token = TOKEN.partition("!")
    options = {
        "api_host": host.pve.host,
        "api_port": host.pve.port,
        "api_user": user,
        "api_token_id": token,
        "api_token_secret": SECRET,
        "ca_path": host.ca,
        "validate_certs": True,
        "node": "pve1",
        "name": "{{ item }}",
        **wanted,
    }
    return {
        "name": "Ensure",
        "community.proxmox.proxmox_kvm": options,
        "loop": [f"m-{number}" for number in range(looped)],
    }


def run(title: str, host: Host, folder: Path, task: dict[str, Any], share: float = 1.0) -> Side:
    """Run a task once. share: how many of the machines it is for."""
    playbook = plays.write(folder / "play.yml", [task])
    host.requests()
    play = plays.run(["-i", "localhost,", str(playbook)], {"ANSIBLE_HOME": str(folder / "ansible")})
    seen = host.requests()
    often = Counter(f"{one.method} {_template(one.path)}" for one in seen)
    return Side(title, len(seen) / share, sum(one.seconds for one in play.tasks) / share, often)


def _template(path: str) -> str:
    return "/".join("*" if part.isdigit() else part for part in path.split("/"))


def main() -> None:
    """Print requests and times of each way, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    quick = bool(os.environ.get("FLEET_BENCHMARK_QUICK") or os.environ.get("CI"))
    parser.add_argument(
        "--looped", type=int, default=20 if quick else 50, metavar="N", help="measure N of the 200 loops and scale"
    )
    looped = min(MACHINES, max(1, parser.parse_args().looped))
    print(f"proxmox: {MACHINES} machines, of which {looped} are looped and scaled; {measure.load()}")
    share = looped / MACHINES
    with tempfile.TemporaryDirectory(prefix="fleet-") as scratch:
        folder = Path(scratch)
        host = cluster(folder)
        try:
            turns = [run("machine", host, folder, ours(host)) for _turn in range(AGAIN)]
            sides = [min(turns, key=lambda side: side.seconds)]
            sides.append(run("proxmox_kvm, state", host, folder, theirs(host, looped, state="started"), share))
            wanted = {"state": "present", "update": True, "cores": 2, "memory": 2048, "tags": ["web"]}
            sides.append(run("proxmox_kvm, update", host, folder, theirs(host, looped, **wanted), share))
        finally:
            host.stop()
    rows = [[side.title, f"{side.requests:.0f}", f"{side.seconds:.2f}"] for side in sides]
    print(measure.table(["unchanged run", "requests", "seconds"], rows))
    for side in sides:
        print(f"proxmox: {side.title}: {', '.join(f'{count} {what}' for what, count in side.often.most_common(4))}")
    mine, *others = sides
    for side in others:
        requests, seconds = side.requests / mine.requests, side.seconds / mine.seconds
        print(
            f"proxmox: ratio {side.title}/machine: requests {requests:.0f} (goal: at least {GOAL}), time {seconds:.0f}"
        )


if __name__ == "__main__":
    main()
