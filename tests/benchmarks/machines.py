# SPDX-License-Identifier: GPL-3.0-or-later
"""From nothing to the first command over SSH in a new machine: the provider qemu, and the bare qemu-system-x86_64.

Both lay a disk over the same image, make the same seed and boot with the same processors, memory and acceleration; both
are asked over SSH twice a second. They run by turns. Two boots a round, so minutes where machines are emulated.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.system.vm.machines import LOGIN, Machines, ensure_base, why_not

from fleet_machines import nocloud, qemu_accel
from fleet_machines.qemu_networks import new_mac

MEMORY, CPUS = 1024, 2
LIMIT = 300.0


def logs_in(machines: Machines, port: int) -> bool:
    """Tell whether a command runs over SSH."""
    options = [word for option in machines.ssh_options() for word in ("-o", option)]
    words = ["ssh", *options, "-o", "ConnectTimeout=2", "-p", str(port), f"{LOGIN}@127.0.0.1", "true"]
    done = subprocess.run(words, capture_output=True, check=False, stdin=subprocess.DEVNULL, timeout=30)
    return done.returncode == 0


def until_login(machines: Machines, port: Callable[[], int], began: float) -> float:
    while time.monotonic() - began < LIMIT:
        number = port()
        if number and logs_in(machines, number):
            return time.monotonic() - began
        time.sleep(0.5)
    raise TimeoutError(f"no login within {LIMIT:g} s")


def provided(machines: Machines, base: Path, name: str) -> float:
    """Seconds with the provider."""
    began = time.monotonic()
    thread = threading.Thread(target=lambda: machines.create(name, str(base), disk=4 * 1024**3), daemon=True)
    thread.start()

    def port() -> int:
        found = machines.provider.describe([name]).get(name)
        return found.port if found and found.addresses else 0

    try:
        return until_login(machines, port, began)
    finally:
        thread.join(LIMIT)
        machines.delete(name)


def bare(machines: Machines, base: Path, name: str, accel: str) -> float:
    """Seconds with the commands that one would type."""
    with tempfile.TemporaryDirectory(prefix="fleet-bare-") as folder, free_port() as port:
        began = time.monotonic()
        disk, seed, mac = Path(folder, "disk.qcow2"), Path(folder, "seed.iso"), new_mac()
        over = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(base), "-F", "qcow2", str(disk), "4G"]
        subprocess.run(over, check=True)
        nocloud.build(seed, machines.user_data(), nocloud.meta_data(name, name))
        words = ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-m", str(MEMORY), "-smp", str(CPUS)]
        words += ["-machine", "q35", "-accel", "kvm" if accel == "kvm" else "tcg,thread=multi"]
        words += ["-cpu", "host" if accel == "kvm" else "max", "-serial", f"file:{folder}/serial"]
        words += ["-drive", f"file={disk},if=virtio", "-drive", f"file={seed},if=virtio,format=raw,readonly=on"]
        words += ["-netdev", f"user,id=n,hostfwd=tcp:127.0.0.1:{port}-:22", "-device", "virtio-rng-pci"]
        words += ["-device", f"virtio-net-pci,netdev=n,mac={mac}"]
        child = subprocess.Popen(words, stdin=subprocess.DEVNULL)
        try:
            return until_login(machines, lambda: port, began)
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()


@contextmanager
def free_port() -> Iterator[int]:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        number = int(found.getsockname()[1])
    yield number


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    quick = os.environ.get("FLEET_BENCHMARK_QUICK") or os.environ.get("CI")
    parser.add_argument("--rounds", type=int, default=1 if quick else 2)
    options = parser.parse_args()
    reason = why_not()
    if reason:
        print(f"machines: left out: {reason}")
        return 0
    base = ensure_base()
    times: dict[str, list[float]] = {"provider": [], "bare": []}
    with Machines.running() as machines:
        accel = qemu_accel.choose("auto", machines.provider.program(), machines.provider.folder, own_user=True)
        for number in range(options.rounds):
            times["bare"].append(bare(machines, base, f"bare-{number}", accel))
            times["provider"].append(provided(machines, base, f"made-{number}"))
    best = {side: min(found) for side, found in times.items()}
    for side, found in times.items():
        print(
            f"{side:10} {best[side]:7.1f} s to the first command over SSH  ({', '.join(f'{one:.1f}' for one in found)})"
        )
    print(f"machines: ratio provider/bare ({accel}): {best['provider'] / best['bare']:.2f} (goal: at most 1.1)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
