# SPDX-License-Identifier: GPL-3.0-or-later
"""Labs: groups of systemd hosts in podman containers, inside namespaces of their own.

A lab has private mount, cgroup, pid, ipc and network namespaces, held by one process (keeper.py). Killing that
process ends all hosts, their network and their mounts at once, so nothing of a lab can outlive it. Hosts reach each
other and nothing else; `Lab.wrap` runs a program of this machine in their network.
Hosts never get `--privileged` nor CAP_SYS_TIME: a clock set in one would be this machine's.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .images import HERE, LabError, cache_folder, ensure_image, store_folder

CAPABILITIES = "SYS_ADMIN,NET_ADMIN,NET_RAW,SYS_PTRACE,SYS_NICE,AUDIT_WRITE,MKNOD,SYS_CHROOT,DAC_READ_SEARCH,IPC_LOCK"
CONTAINERS_CONF = """\
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=30000:30000"]
pids_limit = 0

[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
tmp_dir = "/run/libpod"

[network]
network_backend = "netavark"
network_config_dir = "{folder}/networks"
"""
STORAGE_CONF = """\
[storage]
driver = "overlay"
graphroot = "{folder}/storage"
runroot = "/run/containers/storage"

[storage.options]
additionalimagestores = ["{store}"]
"""
NETWORK = "lab"


def labs_folder() -> Path:
    """Where labs keep their files while they run."""
    return cache_folder() / "labs"


def why_not() -> str | None:
    """Why no lab can run here (for `pytest.skip`), or None."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "the lab needs Linux and root"
    missing = [tool for tool in ("podman", "runc", "mmdebstrap", "unshare", "nsenter") if not shutil.which(tool)]
    if missing:
        return f"the lab needs {', '.join(missing)}: run tests/system/lab/install"
    return None


@dataclass(frozen=True)
class Host:
    """A running systemd host of a lab."""

    lab: Lab
    name: str
    image: str

    @property
    def address(self) -> str:
        record = self.lab.folder / f"{self.name}.address"  # the same for as long as the host lives, reboots included
        if not record.exists():
            found = self.lab.podman("inspect", "--format", "{{json .NetworkSettings.Networks}}", self.name).stdout
            record.write_text(json.loads(found)[NETWORK]["IPAddress"])
        return record.read_text()

    def run(
        self,
        *command: str,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        stdin: str | None = None,
        check: bool = True,
        timeout: float = 120,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program on the host; standard output and error come back as text.

        `user` gets no session: for `systemctl --user` use `login`.
        """
        options = ["--interactive"] if stdin is not None else []
        options += ["--user", user] if user else []
        options += ["--workdir", cwd] if cwd else []
        options += [word for key, value in (env or {}).items() for word in ("--env", f"{key}={value}")]
        arguments = ["exec", *options, self.name, *command]
        return self.lab.podman(*arguments, stdin=stdin, check=check, timeout=timeout)

    def sh(self, script: str, **options: Any) -> str:
        """Run a shell script (`sh -euc`) and return its standard output without the last newline."""
        return self.run("sh", "-euc", script, **options).stdout.removesuffix("\n")

    def login(self, user: str, *command: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a program as `user` with the environment of a session (HOME, XDG_RUNTIME_DIR), as after linger."""
        uid = self.run("id", "--user", user).stdout.strip()
        home = self.sh(f"getent passwd {shlex.quote(user)} | cut -d: -f6")
        env = {
            "HOME": home,
            "USER": user,
            "XDG_RUNTIME_DIR": f"/run/user/{uid}",
            "DBUS_SESSION_BUS_ADDRESS": f"unix:path=/run/user/{uid}/bus",
            **options.pop("env", {}),
        }
        return self.run(*command, user=user, env=env, cwd=options.pop("cwd", home), **options)

    def add_user(self, user: str, linger: bool = True) -> None:
        """Create a user whom ssh lets in; with `linger` its systemd user manager runs when this returns."""
        self.run("useradd", "--create-home", "--shell", "/bin/bash", user)
        self.sh(f"install -d -m 0700 -o {user} -g {user} ~{user}/.ssh")
        self.sh(f"install -m 0600 -o {user} -g {user} ~/.ssh/authorized_keys ~{user}/.ssh/")
        if linger:
            self.run("loginctl", "enable-linger", user)
            uid = self.run("id", "--user", user).stdout.strip()
            self.wait(f"systemctl is-active --quiet user@{uid}.service && test -S /run/user/{uid}/bus")

    def wait(self, condition: str, timeout: float = 30, interval: float = 0.2) -> None:
        """Wait until the shell command `condition` succeeds on the host."""
        script = f"end=$(($(date +%s) + {int(timeout)})); until {condition}; do "
        script += f'[ "$(date +%s)" -lt "$end" ] || exit 124; sleep {interval}; done'
        done = self.run("sh", "-c", script, check=False, timeout=timeout + 30)
        if done.returncode != 0:
            raise LabError(f"host {self.name}: still not after {timeout:g} s: {condition}\n{done.stderr}")

    def push(self, source: Path | str, target: str) -> None:
        """Copy a file or a folder of this machine to the host (as `podman cp` does)."""
        self.lab.podman("cp", str(source), f"{self.name}:{target}")

    def pull(self, source: str, target: Path | str) -> None:
        self.lab.podman("cp", f"{self.name}:{source}", str(target))

    def write(self, path: str, text: str, mode: str = "0644") -> None:
        quoted = shlex.quote(path)
        self.run("sh", "-euc", f"cat > {quoted} && chmod {mode} {quoted}", stdin=text)

    def ssh_options(self) -> dict[str, str]:
        """What Ansible needs to reach the host by SSH as root (inventory variables)."""
        proxy = shlex.join(self.lab.wrap(sys.executable, str(HERE / "connect.py"), "%h", "%p"))
        options = [
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "LogLevel=ERROR",
            f"ProxyCommand={proxy}",
        ]
        return {
            "ansible_host": self.address,
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(self.lab.folder / "id_ed25519"),
            "ansible_ssh_common_args": shlex.join([word for option in options for word in ("-o", option)]),
            # Labs have the same addresses: ssh must not reach a host of another one over a connection that is kept.
            "ansible_control_path": f"%(directory)s/lab-{self.lab.folder.name}-%%C",
            "ansible_python_interpreter": "/usr/bin/python3",
        }

    def stop(self) -> None:
        """Remove the host and its data."""
        self.lab.podman("rm", "--force", "--time", "5", "--volumes", self.name)
        for record in ("host", "address"):
            (self.lab.folder / f"{self.name}.{record}").unlink(missing_ok=True)

    def restart(self, timeout: float = 30) -> None:
        """Reboot: systemd stops all services, the host boots again with its files."""
        self.lab.podman("restart", "--time", "20", self.name, timeout=60 + timeout)
        self.boot(timeout)

    def boot(self, timeout: float = 30) -> None:
        """Wait until systemd is up and sshd listens."""
        end = time.monotonic() + timeout
        while True:
            state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
            if state in ("running", "degraded"):
                break
            if time.monotonic() > end:
                raise LabError(f'host {self.name} did not boot in {timeout:g} s: systemd says "{state}"')
            time.sleep(0.2)
        if state == "degraded":
            failed = self.run("systemctl", "list-units", "--failed", "--plain", "--no-legend").stdout
            raise LabError(f"host {self.name} booted with failed units: {failed}")
        self.wait("systemctl is-active --quiet ssh", timeout)


class Lab:
    """A group of hosts; a context manager that leaves nothing behind."""

    def __init__(self, folder: Path, pid: int) -> None:
        self.folder = folder
        self.pid = pid  # of the keeper, in this machine's pid namespace
        self._keeper: subprocess.Popen[str] | None = None

    @classmethod
    def start(cls, name: str | None = None, tied: bool = True) -> Lab:
        """Start an empty lab.

        A `tied` one ends with this process even if that is killed. A lab that is not tied is found again by
        `Lab.find(name)` and runs until `stop`.
        """
        reason = why_not()
        if reason:
            raise LabError(reason)
        sweep()
        labs_folder().mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=labs_folder())) if name is None else labs_folder() / name
        if name is not None:
            try:
                folder.mkdir(mode=0o700)
            except FileExistsError:
                if _keeper_pid(folder) is None:
                    _remove(folder)
                    return cls.start(name, tied)
                raise LabError(f'lab "{name}" is already running') from None
        for file, text in (("containers.conf", CONTAINERS_CONF), ("storage.conf", STORAGE_CONF)):
            (folder / file).write_text(text.format(folder=folder, store=store_folder()))
        lab = cls(folder, 0)
        try:
            lab._start_keeper(tied)
            lab._run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", str(folder / "id_ed25519"))
            lab.podman("network", "create", "--internal", NETWORK)
        except BaseException:
            lab.stop()
            raise
        return lab

    @classmethod
    def find(cls, name: str) -> Lab:
        """The running lab of that name."""
        folder = labs_folder() / name
        pid = _keeper_pid(folder)
        if pid is None:
            raise LabError(f'no lab "{name}" is running')
        return cls(folder, pid)

    @classmethod
    def find_or_start(cls, name: str) -> Lab:
        """The running lab of that name, started if need be."""
        running = _keeper_pid(labs_folder() / name) is not None
        return cls.find(name) if running else cls.start(name, tied=False)

    def find_or_start_host(self, name: str, image: str) -> Host:
        """The host of that name, started if need be; call `Host.boot` on it."""
        known = (self.folder / f"{name}.host").exists()
        return self.get(name) if known else self.host(name, image, boot=False)

    def _start_keeper(self, tied: bool) -> None:
        cgroup = _cgroup(self.folder)
        cgroup.mkdir()
        # Into the lab's cgroup first, then unshare: the new cgroup namespace has it as its root.
        namespaces = [
            "--mount",
            "--cgroup",
            "--pid",
            "--ipc",
            "--net",
            "--fork",
            "--kill-child",
            "--propagation",
            "private",
        ]
        keeper = [sys.executable, str(HERE / "keeper.py"), *(["--tied"] if tied else [])]
        script = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
        with (self.folder / "keeper.log").open("w") as log:
            self._keeper = subprocess.Popen(
                ["sh", "-c", script, str(cgroup), "unshare", *namespaces, "--", *keeper],
                stdin=subprocess.PIPE if tied else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        assert self._keeper.stdout is not None
        line = self._keeper.stdout.readline().strip()
        if not line:
            raise LabError(f"the lab's namespaces failed: {(self.folder / 'keeper.log').read_text().strip()}")
        self.pid = int(line)
        (self.folder / "pid").write_text(f"{self.pid} {_start_time(self.pid)}\n")

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End all hosts and remove all traces."""
        pid = _keeper_pid(self.folder)
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
        if self._keeper is not None:
            self._keeper.kill()
            self._keeper.wait()
        _remove(self.folder)

    def enter(self, *namespaces: str) -> list[str]:
        """The words to put before a command so that it runs in the lab's namespaces (net, mount, ...)."""
        return ["nsenter", "--target", str(self.pid), *(f"--{namespace}" for namespace in namespaces), "--"]

    def wrap(self, *command: str) -> list[str]:
        """`command` of this machine, in the hosts' network."""
        return [*self.enter("net"), *command]

    def podman(
        self, *arguments: str, stdin: str | None = None, check: bool = True, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        return self._run(*self.podman_command(), *arguments, stdin=stdin, check=check, timeout=timeout)

    def podman_command(self) -> list[str]:
        files = {"CONTAINERS_CONF": "containers.conf", "CONTAINERS_STORAGE_CONF": "storage.conf"}
        env = [f"{key}={self.folder / file}" for key, file in files.items()]
        return [*self.enter("mount", "cgroup", "pid", "ipc", "net"), "env", *env, "podman", "--log-level=error"]

    def host(self, name: str, image: str = "debian12", options: Sequence[str] = (), boot: bool = True) -> Host:
        """Start a host and wait until it has booted (1 to 4 seconds).

        `options` go to `podman run` as they are. With `boot=False` call `Host.boot` later: hosts boot side by side.
        """
        reference = ensure_image(image).reference
        self.podman(
            *["run", "--detach", "--name", name, "--hostname", name, "--network", NETWORK, "--pull=never"],
            *["--systemd=always", f"--cap-add={CAPABILITIES}"],
            *["--security-opt=seccomp=unconfined", "--security-opt=unmask=ALL"],
            *options,
            reference,
        )
        host = Host(self, name, image)
        (self.folder / f"{name}.host").write_text(image)
        host.write("/root/.ssh/authorized_keys", (self.folder / "id_ed25519.pub").read_text(), mode="0600")
        if boot:
            host.boot()
        return host

    def get(self, name: str) -> Host:
        """A host that was started before."""
        record = self.folder / f"{name}.host"
        if not record.exists():
            raise LabError(f'lab {self.folder.name} has no host "{name}"')
        return Host(self, name, record.read_text())

    def _run(
        self, *command: str, stdin: str | None = None, check: bool = True, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        source = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
        done = subprocess.run(command, **source, capture_output=True, text=True, timeout=timeout, check=False)
        if check and done.returncode != 0:
            shown = command[command.index("podman") :] if "podman" in command else command
            raise LabError(f"{shlex.join(shown)}: exit code {done.returncode}\n{done.stdout}{done.stderr}".rstrip())
        return done


def sweep() -> None:
    """Remove what labs left whose keeper was killed from outside (a few empty cgroups and files)."""
    if labs_folder().is_dir():
        for folder in labs_folder().iterdir():
            if folder.is_dir() and _keeper_pid(folder) is None and time.time() - folder.stat().st_mtime > 60:
                _remove(folder)


def _cgroup(folder: Path) -> Path:
    """The lab's cgroup2: in the hybrid layout under `unified`."""
    unified = Path("/sys/fs/cgroup/unified")
    root = unified if unified.is_dir() else Path("/sys/fs/cgroup")
    return root / f"autovibe-fleet-lab-{folder.name}"


def _start_time(pid: int) -> str | None:
    """A process's start time in clock ticks since boot: with the pid it names one process for good."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (FileNotFoundError, ProcessLookupError):
        return None


def _keeper_pid(folder: Path) -> int | None:
    """The pid of a lab's keeper, if it runs."""
    try:
        pid, started = (folder / "pid").read_text().split()
    except (FileNotFoundError, ValueError):
        return None
    return int(pid) if _start_time(int(pid)) == started else None


def _remove(folder: Path) -> None:
    cgroup = _cgroup(folder)
    end = time.monotonic() + 10
    while cgroup.is_dir():
        try:
            for child in sorted(cgroup.rglob("*/"), key=lambda path: len(path.parts), reverse=True):
                if child.is_dir():
                    child.rmdir()
            cgroup.rmdir()
        except OSError:  # the kernel is still ending the lab's processes
            if time.monotonic() > end:
                raise LabError(f"{cgroup} still holds processes") from None
            time.sleep(0.05)
    shutil.rmtree(folder)
