# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab itself: hosts are real, reach each other, cannot hurt the machine, and leave nothing behind."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.system.lab import Host, Lab


def test_a_host_runs_systemd_units_and_user_units(host: Host) -> None:
    assert host.sh("systemctl is-system-running") == "running"
    assert host.sh("systemd-run --quiet --wait --pipe echo hello") == "hello"
    host.add_user("dev")
    assert host.login("dev", "systemctl", "--user", "is-system-running").stdout.strip() == "running"


def test_a_host_is_the_debian_it_says(host: Host) -> None:
    assert host.sh(". /etc/os-release; echo debian$VERSION_ID") == host.image


def test_services_under_test_are_installed_and_off(host: Host) -> None:
    for unit in ("postgresql", "redis-server", "nginx"):
        assert host.run("systemctl", "is-active", unit, check=False).stdout.strip() == "inactive"


def test_a_host_cannot_set_the_clock(host: Host) -> None:
    capabilities = int(host.sh("grep CapBnd /proc/1/status").split()[1], 16)
    assert not capabilities & 1 << 25, "CAP_SYS_TIME"
    assert host.run("date", "--set", "2001-01-01", check=False).returncode != 0
    assert time.time() > 1_700_000_000


def test_files_survive_a_reboot(host: Host) -> None:
    host.write("/root/kept", "text\n", mode="0600")
    boot = host.sh("systemctl show --value --property=UserspaceTimestampMonotonic")
    host.restart()
    assert host.sh("cat /root/kept; stat -c %a /root/kept") == "text\n600"
    assert host.sh("systemctl show --value --property=UserspaceTimestampMonotonic") != boot


def test_ssh_reaches_a_host(lab: Lab, host: Host) -> None:
    options = host.ssh_options()
    extra = shlex.split(options["ansible_ssh_common_args"])
    key = options["ansible_ssh_private_key_file"]
    command = ["ssh", "-i", key, *extra, f"root@{options['ansible_host']}", "hostname"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == (host.name, 0), done.stderr


def test_hosts_reach_each_other_by_name_and_nothing_else(lab: Lab, host: Host, new_host: Callable[[str], Host]) -> None:
    other = new_host("debian12")
    host.run("ping", "-c1", "-W5", other.name)
    assert host.sh("ip route show default") == ""
    ask = f"import socket; print(socket.create_connection(({host.address!r}, 22)).recv(100).decode())"
    assert subprocess.check_output(lab.wrap(sys.executable, "-c", ask), text=True).startswith("SSH-2.0-")


def test_a_killed_test_run_leaves_no_host_behind() -> None:
    script = "from tests.system.lab import Lab; lab = Lab.start(); lab.host('one')"
    script += "; print(lab.pid, lab.folder, flush=True); input()"
    root = Path(__file__).parents[2]
    owner = subprocess.Popen(
        [sys.executable, "-c", script], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    pid, folder = owner.stdout.readline().split()
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    end = time.monotonic() + 10
    while Path("/proc", pid).exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    Lab(Path(folder), 0).stop()
    assert not list(Path("/sys/fs/cgroup").glob(f"**/autovibe-fleet-lab-{Path(folder).name}"))
