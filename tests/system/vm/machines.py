# SPDX-License-Identifier: GPL-3.0-or-later
"""The machines of a test session: one fleetd, one state folder, one provider."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.integration.fleetd import Fleet
from tests.system.lab import images

from fleet_core import golden_images
from fleet_core.errors import FleetError
from fleet_core.images import Image, ImageSpec
from fleet_core.machines import Machine, MachineSpec
from fleet_machines import golden, providers, qemu_images
from fleet_machines import qemu_base_tools as tools
from fleet_machines.provider import Job
from fleet_machines.qemu_base import Bases
from fleet_node.declarations import plan_types
from fleet_node.store import Store

BOOT = 300.0  # seconds for anything that boots a machine
BUILD = 900.0  # seconds to build a base or a golden image on a busy computer
BASE = "debian:12"
GOLDEN = "fleet-test"
LOGIN = "fleet"
APT_LISTS = "/var/lib/apt/lists"
# Where fleetd looks for free ports: not where those of the tests that run beside look.
PORTS = ({"name": "tcpport", "start": 20000, "end": 20999}, {"name": "vncport", "start": 5960, "end": 5979})
_PROGRAMS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "ssh": "openssh-client",
}


def why_not() -> str | None:
    """Why no machine can run here, or None."""
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        return "the machines of tests need Linux on x86_64"
    missing = [package for program, package in _PROGRAMS.items() if not tools.find(program)]
    if missing:
        return f"the machines of tests need the packages {', '.join(missing)}"
    if os.geteuid() != 0:
        return "the machines of tests need root, to build their image from packages"
    return None


def cache_folder() -> Path:
    """Where what takes long to build is kept from one run to the next."""
    return images.cache_folder().parent / "vm"


def report(text: str) -> None:
    """Tell somebody who waits what is being waited for; pytest shows it when a test fails."""
    print(f"vm: {text}", file=sys.stderr, flush=True)


def ensure_base() -> Path:
    """Return the base image, built if it is not there. What apt of this computer knows must not change by that."""
    known = len(os.listdir(APT_LISTS))
    path = Bases(cache_folder()).debian(BASE, Job.lasting(BUILD, report)).path
    if len(os.listdir(APT_LISTS)) < known:
        raise AssertionError(f"building a base removed files of {APT_LISTS}")
    return path


@dataclass(frozen=True)
class Said:
    """What a command in a machine ended with."""

    code: int
    stdout: str
    stderr: str


class Machines:
    """folder: the state folder. provider: qemu, with fleetd running. key: of a key pair that user_data lets in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = folder / "id_ed25519"
        self.fleet = Fleet(folder)
        self.settings = {"cache": str(cache_folder())}
        self.provider: Any = providers.provider("qemu", str(folder), self.settings)

    @classmethod
    @contextlib.contextmanager
    def running(cls) -> Iterator[Machines]:
        """Start fleetd in a new state folder; remove all machines, end fleetd and remove the folder at the end."""
        with tempfile.TemporaryDirectory(prefix="fleet-vm-") as folder:
            machines = cls(Path(folder))
            keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(machines.key)]
            subprocess.run(keygen, check=True, stdin=subprocess.DEVNULL)
            machines.fleet.up()
            with contextlib.closing(
                Store(Path(folder))
            ) as store:  # other tests run beside these, and would find their ports taken
                plan_types(store, PORTS).apply(store)
            try:
                yield machines
            finally:
                for name in machines.provider.records.all():
                    with contextlib.suppress(FleetError):
                        machines.delete(name)
                machines.fleet.end()

    # -- machines -----------------------------------------------------------------------------------------------------

    def create(self, name: str, image: str, **fields: Any) -> Machine:
        """Make a machine and return when it can be used. fields: of MachineSpec."""
        given = {"cpu": 2, "memory": 1024**3, "login": LOGIN, "user_data": self.user_data(), **fields}
        spec = MachineSpec(name, "qemu", image, **given)
        return self.provider.create(spec, self.job())

    @contextlib.contextmanager
    def booted(self, name: str, image: str, **fields: Any) -> Iterator[Machine]:
        """A machine that is deleted at the end."""
        try:
            yield self.create(name, image, **fields)
        finally:
            self.delete(name)

    def delete(self, name: str) -> None:
        self.provider.delete(name, self.job())

    def job(self, seconds: float = BOOT) -> Job:
        return Job.lasting(seconds, report)

    # -- inside -------------------------------------------------------------------------------------------------------

    def user_data(self, extra: str = "") -> str:
        """Return user data with the account "fleet", which the key of these machines lets in. extra: more lines."""
        public = self.key.with_suffix(".pub").read_text().strip()
        return (
            "#cloud-config\n"
            f"users:\n  - name: {LOGIN}\n    shell: /bin/bash\n    lock_passwd: true\n"
            '    sudo: "ALL=(ALL) NOPASSWD:ALL"\n'
            f'    ssh_authorized_keys: ["{public}"]\n{extra}'
        )

    def run(self, name: str, script: str) -> Said:
        """Run a script as root through the guest agent."""
        ran = self.provider.run(name, script, self.job(120))
        return Said(ran.code, ran.stdout, ran.stderr)

    def ssh(self, machine: Machine, command: str, timeout: float = 120) -> Said:
        """Run a command over SSH as the account "fleet"."""
        options = [word for option in self.ssh_options() for word in ("-o", option)]
        words = ["ssh", *options, "-p", str(machine.port), f"{LOGIN}@{machine.addresses[0]}", command]
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=timeout, check=False, stdin=subprocess.DEVNULL
        )
        return Said(done.returncode, done.stdout, done.stderr)

    def ssh_options(self) -> list[str]:
        return [
            *("BatchMode=yes", "ConnectTimeout=20", "IdentitiesOnly=yes", f"IdentityFile={self.key}"),
            *("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"),
        ]

    def inventory(self, machine: Machine) -> dict[str, Any]:
        """Return the variables by which Ansible reaches a machine."""
        return {
            "ansible_host": machine.addresses[0],
            "ansible_port": machine.port,
            "ansible_user": LOGIN,
            "ansible_ssh_private_key_file": str(self.key),
            "ansible_ssh_common_args": " ".join(f"-o {option}" for option in self.ssh_options()),
            "ansible_python_interpreter": "/usr/bin/python3",
        }

    # -- golden images ------------------------------------------------------------------------------------------------

    def golden(self) -> Image:
        """Return the golden image of the tests: the one of an earlier run, if all that decides what is in it is the
        same, or a new one, which the next run finds."""
        spec = golden_spec()
        kept = cache_folder() / f"golden-{_content()}" / spec.image_name
        target = self.folder / "machines" / "qemu" / qemu_images.IMAGES / spec.image_name
        if kept.is_dir() and not target.exists():
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            shutil.copytree(kept, target)
        image = self.provider.build_image(spec, self.job(BUILD))
        if not kept.is_dir():
            for old in cache_folder().glob("golden-*"):
                shutil.rmtree(old)
            new = kept.parent / ".new"
            shutil.copytree(target, new)
            new.rename(kept)
        return image


# What must not be in a sealed image: it comes in by the user data, and by a file that is removed again.
SECRET = "a-secret-that-no-image-holds-3f9c"


def golden_spec(name: str = GOLDEN, **fields: Any) -> ImageSpec:
    """Return the golden image of the tests."""
    given: dict[str, Any] = {
        "cpu": 2,
        "memory": 1024**3,
        "disk": 4 * 1024**3,
        "login": LOGIN,
        "user_data": (
            "#cloud-config\n"
            "write_files:\n  - path: /root/.netrc\n    permissions: '0600'\n"
            f"    content: machine hub password {SECRET}\n"
            "runcmd:\n  - [touch, /etc/fleet-cloud-init]\n"
        ),
        "commands": (
            "printf 'built\\n' >/etc/fleet-command",
            f"printf '%s\\n' {SECRET} >/root/.bash_history; sync",
        ),
        "checks": {"python": "python3 -c 'import sys; sys.exit(sys.version_info < (3, 9))'", "git": "git --version"},
        **fields,
    }
    return ImageSpec(name, "qemu", BASE, **given)


def _content() -> str:
    """The hash of what decides how an image comes to be, beside its inputs."""
    base = ensure_base().name
    sources = [Path(str(module.__file__)).read_text() for module in (golden_images, golden, qemu_images)]
    return hashlib.sha256("\0".join((base, *sources)).encode()).hexdigest()[:12]
