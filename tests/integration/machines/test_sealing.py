# SPDX-License-Identifier: GPL-3.0-or-later
"""Sealing, in a copy of this system that takes no change back: an overlay in a mount namespace."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from fleet_core.golden_images import SEAL_CHECKS, sealing

PREPARE = r"""set -e
mount -t tmpfs none "$1"
cd "$1"
mkdir upper work root
mount -t overlay none -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" root
cd root
for folder in root home srv tmp var/lib var/log var/tmp var/cache opt; do mount -t tmpfs none "$folder"; done
: >inside-the-overlay
"""
SECRETS = r"""
printf 'root:x:0:0::/root:/bin/sh\ndaemon:x:1:1::/usr/sbin:/bin/false\ndev:x:1500:1500::/home/dev:/bin/sh\n' >etc/passwd
printf '%s:1::::::\n' 'root:*' 'daemon:!' 'dev:$6$salt$hash' 'empty:' 'locked:!$6$salt$hash' >etc/shadow
cp etc/shadow etc/shadow-
rm -f etc/machine-id && echo 0123456789abcdef0123456789abcdef >etc/machine-id
mkdir -p etc/ssh etc/ssl/private var/lib/cloud/instances/i-1 var/lib/cloud/seed/nocloud var/lib/systemd var/lib/dhcp
mkdir -p home/dev/.ssh home/dev/.aws home/dev/.claude home/dev/project/tests var/lib/apt/lists opt/autovibe/setup
echo key >etc/ssh/ssh_host_ed25519_key && echo key >etc/ssh/ssh_host_ed25519_key.pub
echo 'password: hunter2' | tee var/lib/cloud/instances/i-1/user-data.txt var/lib/cloud/seed/nocloud/user-data \
  var/log/cloud-init-output.log var/log/syslog >/dev/null
echo seed | tee var/lib/systemd/random-seed var/lib/dhcp/dhclient.leases var/lib/apt/lists/list >/dev/null
echo 'ssh-ed25519 AAAA me' | tee home/dev/.ssh/authorized_keys home/dev/.ssh/known_hosts >/dev/null
echo '-----BEGIN OPENSSH PRIVATE KEY-----' | tee home/dev/.ssh/id_ed25519 home/dev/project/tests/key.pem >/dev/null
echo 'secret' | tee home/dev/.bash_history home/dev/.aws/credentials home/dev/.claude/.credentials.json tmp/x >/dev/null
printf 'registry=http://mirror\n//mirror/:_authToken=secret\n' >home/dev/.npmrc
echo work >home/dev/project/file
"""
ENTER = 'exec chroot . sh -c "[ -e /inside-the-overlay ] || exit 99; sh -s"\n'


def sealed(folder: Path, secrets: str, script: str) -> subprocess.CompletedProcess[str]:
    """Run a script in the copy of this system and end with the code of its last line."""
    options = ["--mount"] if os.geteuid() == 0 else ["--mount", "--map-root-user"]
    return subprocess.run(
        ["unshare", *options, "sh", "-c", PREPARE + secrets + ENTER, "sh", str(folder)],
        input=script, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tried = sealed(tmp_path, "", "exit 7")
    if tried.returncode != 7:
        pytest.skip(f"no overlay in a namespace here: {tried.stderr.strip()}")
    return tmp_path


def test_nothing_secret_is_left_and_work_is(folder: Path) -> None:
    look = r"""
    cat /home/dev/project/file /home/dev/.npmrc
    find /var/log /tmp /var/tmp /var/lib/apt/lists /var/lib/dhcp -type f -size +0
    grep -rl -e hunter2 -e '^secret$' /etc /home /root /var 2>/dev/null
    cut -d: -f1,2 /etc/shadow
    """
    ran = sealed(folder, SECRETS, f"(\n{sealing()})\necho code $?\n{look}")
    assert ran.stdout.splitlines() == [
        "code 0",
        *("work", "registry=http://mirror"),
        *("root:*", "daemon:!", "dev:*", "empty:*", "locked:*"),
    ]


# How to undo one part of sealing, by the check that must then find it.
UNDONE = {
    "empty machine-id": "echo 01234567 >/etc/machine-id",
    "no SSH host keys": "echo key >/etc/ssh/ssh_host_rsa_key",
    "no authorized keys": "mkdir -p /home/dev/.ssh; echo key >/home/dev/.ssh/authorized_keys",
    "no private keys": "echo '-----BEGIN RSA PRIVATE KEY-----' >/etc/tls.pem",
    "no password hashes": "echo 'ada:$y$j9T$hash:1::::::' >>/etc/shadow",
    "no shell histories": "echo ls >/root/.bash_history",
    "no credentials": "mkdir -p /home/dev/.aws; echo key >/home/dev/.aws/credentials",
    "no user data": "mkdir -p /var/lib/cloud/instances/i-1; echo x >/var/lib/cloud/instances/i-1/user-data.txt",
    "no random seed": "mkdir -p /var/lib/systemd; echo seed >/var/lib/systemd/random-seed",
}


def test_each_check_finds_what_was_left(folder: Path) -> None:
    assert set(UNDONE) == set(SEAL_CHECKS)
    script = [f"(\n{sealing()})\n"]
    for name, undo in UNDONE.items():
        checks = "\n".join(f"(\n{check}) >/dev/null || printf '%s, ' '{known}'" for known, check in SEAL_CHECKS.items())
        script.append(f"cp -a /etc/shadow /shadow\n{undo}\nprintf '%s: ' '{name}'\n{checks}\necho\n")
        script.append(
            "mv /shadow /etc/shadow; : >/etc/machine-id; rm -rf /etc/ssh/ssh_host* /home/dev/.ssh /etc/tls.pem "
            "/root/.bash_history /home/dev/.aws /var/lib/cloud /var/lib/systemd/random-seed\n"
        )
    ran = sealed(folder, SECRETS, "".join(script))
    assert ran.stdout.splitlines() == [f"{name}: {name}, " for name in UNDONE]


def test_a_failed_check_ends_the_script_and_is_told_in_one_bounded_line(folder: Path) -> None:
    hostile = "for n in $(seq 200); do echo x >\"/home/dev/$n$(printf '\\n')\"; done\n"
    spoil = "echo '-----BEGIN PRIVATE KEY-----' >/srv/a.pem\n"
    ran = sealed(folder, SECRETS, hostile + spoil + sealing())
    assert ran.returncode == 1
    assert ran.stdout.splitlines() == ["no private keys: found /srv/a.pem"]
