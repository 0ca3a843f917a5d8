# SPDX-License-Identifier: GPL-3.0-or-later
"""The role host_setup on real systemd hosts, with real apt and a small repository of stand-ins for what it installs."""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.requirements import require_tool
from tests.system.lab import Host, Lab
from tests.system.lab.playbooks import play

pytestmark = pytest.mark.timeout(300)

PLAYBOOK = "autovibe.fleet.host_setup"
MIRROR = "/srv/mirror"
# Packages by name: files of them, programs that print their version.
PACKAGES = {
    "git": {"/usr/bin/git": "git version 2.39.5"},
    "qemu-system-x86": {"/usr/bin/qemu-system-x86_64": "QEMU emulator version 7.2.22"},
    "qemu-utils": {"/usr/bin/qemu-img": "qemu-img version 7.2.22"},
    "xorriso": {"/usr/bin/xorriso": "xorriso version 1.5.4"},
    "mmdebstrap": {"/usr/bin/mmdebstrap": "mmdebstrap 1.3.5"},
    "e2fsprogs": {"/sbin/mke2fs": "mke2fs 1.47.0"},
    "uidmap": {"/usr/bin/newuidmap": "usage: newuidmap"},
    "python3-proxmoxer": {"/usr/lib/python3/dist-packages/proxmoxer-2.0.1.dist-info/METADATA": "Version: 2.0.1"},
    "python3-requests": {"/usr/lib/python3/dist-packages/requests-2.28.1.dist-info/METADATA": "Version: 2.28.1"},
}
CONTROL = (
    "Package: {name}\nVersion: 99\nArchitecture: all\nMaintainer: Nobody <nobody@example.com>\nDescription: {name}\n"
)


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that apt can install from."""
    require_tool("dpkg-deb", "to build packages for the hosts of the lab")
    folder = tmp_path_factory.mktemp("mirror")
    index = []
    for name, files in PACKAGES.items():
        root = folder / "build" / name
        control = root / "DEBIAN" / "control"
        control.parent.mkdir(parents=True)
        control.write_text(CONTROL.format(name=name))
        for path, text in files.items():
            file = root / path.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            program = "bin/" in path
            head = "Metadata-Version: 2.1\nName: " + file.parent.name.partition("-")[0]
            file.write_text(f"#!/bin/sh\necho '{text}'\n" if program else f"{head}\n{text}\n")
            file.chmod(0o755 if program else 0o644)
        package = folder / f"{name}.deb"
        subprocess.run(["dpkg-deb", "--build", "--root-owner-group", root, package], check=True, capture_output=True)
        content = package.read_bytes()
        place = f"Filename: ./{name}.deb\nSize: {len(content)}\nSHA256: {hashlib.sha256(content).hexdigest()}\n"
        index.append(CONTROL.format(name=name) + place)
    (folder / "Packages").write_text("\n".join(index))
    return folder


@pytest.fixture(scope="module", params=["debian12", "debian13"])
def bare(request: pytest.FixtureRequest, lab: Lab, mirror: Path) -> Iterator[Host]:
    host = lab.host(f"setup-{request.param}", request.param)
    host.push(str(mirror), MIRROR)
    host.sh("rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/* /var/lib/apt/lists/*")
    host.write("/etc/apt/sources.list.d/mirror.list", f"deb [trusted=yes] file:{MIRROR} ./\n")
    host.run("apt-get", "update")
    yield host
    host.stop()


SETTINGS = {"proxmox": {"host": "pve.test", "user": "root@pam", "token_id": "fleet", "token_secret": "none-yet"}}


def setup(host: Host, *options: str, check: bool = True, providers: str = "qemu", **variables: Any) -> str:
    options = ("--extra-vars", "fleet_hypervisors=fleet", *options)
    variables = {"host_setup_min_disk": "100M", **variables}
    return play(host, PLAYBOOK, *options, check=check, host_setup_providers=providers.split(","), **variables)


def changed(output: str) -> int:
    return int(re.findall(r"changed=(\d+)", output)[-1])


def row(output: str, name: str) -> str:
    return next(line.strip() for line in output.splitlines() if line.strip().startswith(f"{name} "))


def installed(host: Host) -> set[str]:
    return set(
        host.sh("dpkg-query --show --showformat '${Package} ${Version}\n' | awk '$2 == 99 { print $1 }'").split()
    )


def test_verify_names_what_is_missing_and_changes_nothing(bare: Host) -> None:
    output = setup(bare, "--tags", "host_setup_verify", check=False)
    assert row(output, "qemu qemu_img").split()[2:4] == ["missing", "-"]
    assert "missing for machines: git, qemu, qemu_img, iso, mmdebstrap" in output
    assert changed(output) == 0
    assert installed(bare) == set()


def test_a_user_without_root_is_told_what_needs_it(bare: Host) -> None:
    bare.add_user("ada")
    output = " ".join(setup(bare, check=False, ansible_user="ada").split())  # Ansible breaks lines anywhere
    assert re.search(r'qemu-utils.* needs root, which user "ada" does not become without a password', output), output
    assert "uidmap" in output
    assert re.search(r"sudo apt-get install .*xorriso", output)
    assert installed(bare) == set()


def test_check_mode_installs_nothing(bare: Host) -> None:
    output = setup(bare, "--check", "--diff")
    assert changed(output) == 1
    assert installed(bare) == set()


def test_setup_installs_what_is_missing_and_then_nothing_more(bare: Host) -> None:
    bare.write("/etc/sudoers.d/ada", "ada ALL=(ALL) NOPASSWD: ALL\n", mode="0440")
    first = setup(bare, providers="qemu,proxmox", ansible_user="ada", host_setup_provider_settings=SETTINGS)
    assert changed(first) == 1
    assert {"ok"} == {
        row(first, name).split()[2] for name in ("qemu qemu", "qemu iso", "qemu uidmap", "proxmox proxmoxer")
    }
    assert set(PACKAGES) - installed(bare) <= {"e2fsprogs"}
    bare.run("rm", "/etc/sudoers.d/ada")
    # no root is needed for nothing
    again = setup(bare, providers="qemu,proxmox", ansible_user="ada", host_setup_provider_settings=SETTINGS)
    assert changed(again) == 0


def test_an_old_version_is_not_enough(bare: Host) -> None:
    bare.write("/usr/local/bin/qemu-img", "#!/bin/sh\necho qemu-img version 5.2.0\n", mode="0755")
    output = setup(bare, "--tags", "host_setup_verify", check=False)
    assert "6.0 or newer is needed" in row(output, "qemu qemu_img")
    assert "missing for machines: qemu_img;" in output
    bare.run("rm", "/usr/local/bin/qemu-img")


def test_too_little_disk_is_refused(bare: Host) -> None:
    output = setup(bare, "--tags", "host_setup_verify", check=False, host_setup_min_disk="900T")
    assert "900T or more is needed in /var/lib" in row(output, "disk")
    assert "missing for machines: disk;" in output
