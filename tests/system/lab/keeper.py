# SPDX-License-Identifier: GPL-3.0-or-later
"""The first process of a lab's namespaces: mounts what podman expects, says so, and waits.

Started by `lab.Lab` under unshare(1) with mount, cgroup, pid, ipc and network namespaces of its own. When it
ends, the kernel ends every process of the lab. With `--tied` it ends as soon as its standard input closes, that
is, with the process that started it, however that ends.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path


def main() -> None:
    outer_pid = os.readlink("/proc/self")  # /proc still shows the machine's pid namespace
    for command in (
        "mount -t proc proc /proc",
        "mount -t sysfs sysfs /sys",
        "mount -t cgroup2 cgroup2 /sys/fs/cgroup",  # one pure cgroup2 tree, rooted at the lab's own cgroup
        "mount -t tmpfs -o mode=0755 tmpfs /run",
        "mount -t tmpfs -o mode=1777 tmpfs /dev/shm",
        "ip link set lo up",
    ):
        subprocess.run(command.split(), check=True, stdin=subprocess.DEVNULL)
    Path("/run/lock").mkdir()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # orphans of the namespace are ours: let the kernel reap them
    print(outer_pid, flush=True)
    if "--tied" in sys.argv:
        sys.stdin.read()
    else:
        while True:
            signal.pause()


if __name__ == "__main__":
    main()
