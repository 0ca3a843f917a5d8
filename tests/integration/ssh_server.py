# SPDX-License-Identifier: GPL-3.0-or-later
"""A real sshd of the test's own: on a loopback port, for the current user, with keys and a home of its own."""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.requirements import require_tool

from fleet_node import procfs

SEPARATION = Path("/run/sshd")  # which sshd wants when root starts it


@dataclass(frozen=True)
class SshServer:
    """A running sshd. name: what ssh calls it with config. home: of who logs in. pid: of the listening sshd."""

    name: str
    config: Path
    home: Path
    port: int
    pid: int

    def cut_connections(self) -> int:
        """Kill every connection of now, as a lost network does, and return how many there were."""
        found = [row.pid for row in procfs.TABLE.rows() if row.ppid == self.pid and not row.zombie]
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(found)


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def _key(path: Path) -> Path:
    program = require_tool("ssh-keygen", "to make keys for the test's own sshd")
    subprocess.run([program, "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


@contextlib.contextmanager
def ssh_server(folder: Path, python: str = "python3") -> Iterator[SshServer]:
    """Run an sshd. python: what python3 is for who logs in."""
    program = require_tool("sshd", "to run task lists on another machine")
    require_tool("ssh", "to reach the test's own sshd")
    host, user = _key(folder / "host"), _key(folder / "user")
    (folder / "authorized").write_text(user.with_suffix(".pub").read_text())
    home = folder / "home"
    (home / "bin").mkdir(parents=True)
    if python != "python3":
        (home / "bin" / "python3").symlink_to(python)
    settings = {
        "HOME": home,
        "PATH": f"{home}/bin:/usr/local/bin:/usr/bin:/bin",
        "FLEET_STATE_DIR": home / "state",
        "XDG_CACHE_HOME": home / "cache",
    }
    lines = [
        "ListenAddress 127.0.0.1",
        f"HostKey {host}",
        f"AuthorizedKeysFile {folder / 'authorized'}",
        "PidFile none",
        "StrictModes no",
        "UsePAM no",
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        "PermitRootLogin prohibit-password",
        "MaxStartups 100",
        "LogLevel VERBOSE",
        "SetEnv " + " ".join(f'"{name}={value}"' for name, value in settings.items()),
    ]
    (folder / "sshd_config").write_text("\n".join(lines) + "\n")
    separation = os.geteuid() == 0 and not SEPARATION.exists()
    if separation:
        SEPARATION.mkdir(mode=0o755)
    with open(folder / "sshd.log", "wb") as log:
        port = free_port()
        child = subprocess.Popen([program, "-D", "-e", "-f", str(folder / "sshd_config"), "-p", str(port)], stderr=log)
    try:
        _wait(child, port, folder / "sshd.log")
        yield SshServer("dev-machine", _client(folder, port, user, host), home, port, child.pid)
    finally:
        found = SshServer("", folder, home, port, child.pid)
        child.terminate()
        child.wait(10)
        found.cut_connections()
        if separation:
            with contextlib.suppress(OSError):
                SEPARATION.rmdir()


def _client(folder: Path, port: int, user: Path, host: Path) -> Path:
    (folder / "known").write_text(f"[127.0.0.1]:{port} {host.with_suffix('.pub').read_text()}")
    config = folder / "ssh_config"
    config.write_text(
        f"""Host dev-machine
    HostName 127.0.0.1
    Port {port}
    User {pwd.getpwuid(os.geteuid()).pw_name}
    IdentityFile {user}
    IdentitiesOnly yes
    IdentityAgent none
    UserKnownHostsFile {folder / "known"}
    StrictHostKeyChecking yes
"""
    )
    return config


def _wait(child: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 10
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        assert child.poll() is None, log.read_text()
        assert time.monotonic() < deadline, "sshd does not listen"
        time.sleep(0.05)
