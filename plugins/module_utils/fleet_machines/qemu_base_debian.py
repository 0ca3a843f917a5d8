# SPDX-License-Identifier: GPL-3.0-or-later
"""Bases built from Debian's packages with mmdebstrap, where there is no image server: a disk that boots by itself.

The packages come from where this host's own apt fetches them. As root, or in a user namespace of mmdebstrap's; neither
loop devices nor mounts are needed: GRUB is put before the first partition by hand, as its own installer does, and
mke2fs fills the file system.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import pwd
import re
import shlex
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import qemu_base_tools as tools
from .provider import Job

if TYPE_CHECKING:
    from fleet_core.errors import InvalidInput, Unavailable
else:
    try:
        from ..fleet_core.errors import InvalidInput, Unavailable
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import InvalidInput, Unavailable

SUITES = {"debian:12": "bookworm", "debian:13": "trixie"}
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
DISK_SIZE = 2 * 1024**3  # it grows to the size of the machine's disk when it first boots
LABEL = "fleet-root"

PACKAGES = (
    *(
        "systemd-sysv",
        "systemd-resolved",
        "udev",
        "dbus",
        "dbus-user-session",
        "libpam-systemd",
        "linux-image-cloud-amd64",
    ),
    *("initramfs-tools", "busybox", "lz4", "grub-pc-bin", "cloud-init", "cloud-guest-utils", "fdisk", "e2fsprogs"),
    *("qemu-guest-agent", "openssh-server", "python3", "python3-apt", "sudo", "acl", "git", "curl", "ca-certificates"),
    *("iproute2", "netbase", "nftables", "procps", "less", "tzdata"),
)

# Before the kernel is installed, so that the initrd is made once: what a disk can be attached to, and no more.
_BEFORE_PACKAGES = """#!/bin/sh
set -eu
mkdir -p "$1/etc/initramfs-tools/conf.d"
printf '%s\\n' MODULES=list COMPRESS=lz4 RESUME=none >"$1/etc/initramfs-tools/conf.d/fleet"
printf '%s\\n' virtio_pci virtio_blk virtio_scsi sd_mod ata_piix ahci nvme ext4 crc32c_generic \\
    >"$1/etc/initramfs-tools/modules"
"""

# Emulated processors boot this in about a minute; each module and unit left out is a part of a second.
CLOUD_CONFIG = """# Of the base image. /etc/cloud/cloud.cfg.d/99-*.cfg and user data override it.
datasource_list: [NoCloud, None]
disable_root: true
preserve_hostname: false
manage_etc_hosts: true
locale: C.UTF-8
ssh_genkeytypes: [ed25519]
ssh_quiet_keygen: true
apt: {preserve_sources_list: true}
system_info:
  distro: debian
  network: {renderers: [networkd]}
  default_user: {name: debian, lock_passwd: true, sudo: ["ALL=(ALL) NOPASSWD:ALL"], shell: /bin/bash}
cloud_init_modules: [bootcmd, write_files, growpart, resizefs, disk_setup, mounts, set_hostname, update_hostname,
  update_etc_hosts, ca_certs, users_groups, ssh]
cloud_config_modules: [set_passwords, ntp, timezone, locale, apt_configure, runcmd]
cloud_final_modules: [package_update_upgrade_install, write_files_deferred, scripts_vendor, scripts_per_once,
  scripts_per_boot, scripts_per_instance, scripts_user, phone_home, final_message, power_state_change]
"""

_GRUB = f"""set timeout=0
serial --unit=0 --speed=115200
terminal_output serial
linux /vmlinuz root=LABEL={LABEL} ro console=ttyS0,115200 net.ifnames=0 quiet
initrd /initrd.img
boot
"""

_MASKED = (
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "man-db.timer", "e2scrub_all.timer"),
    *("e2scrub_reap.service", "sys-kernel-debug.mount", "sys-kernel-tracing.mount", "modprobe@drm.service"),
)

# Only what GRUBs of all releases read, whatever the host's mke2fs would choose.
_FEATURES = (
    "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,"
    "dir_nlink,extra_isize,metadata_csum"
)

# The last step inside: settings, and GRUB's core image. $2: the disk, a file that is open already.
_AFTER_PACKAGES = f"""#!/bin/sh
set -eu
root=$1 disk=$2
mkdir -p "$root/boot/grub" "$root/etc/cloud/cloud.cfg.d" "$root/etc/ssh/sshd_config.d" \\
    "$root/etc/systemd/resolved.conf.d"
cat >"$root/boot/grub/grub.cfg" <<'END'
{_GRUB}END
cat >"$root/etc/cloud/cloud.cfg.d/95-fleet.cfg" <<'END'
{CLOUD_CONFIG}END
printf 'PasswordAuthentication no\\nPermitRootLogin prohibit-password\\n' >"$root/etc/ssh/sshd_config.d/60-fleet.conf"
printf '[Resolve]\\nLLMNR=no\\nMulticastDNS=no\\n' >"$root/etc/systemd/resolved.conf.d/fleet.conf"
echo 'LABEL={LABEL} / ext4 defaults,noatime,errors=remount-ro 0 1' >"$root/etc/fstab"
echo 'LANG=C.UTF-8' >"$root/etc/default/locale"
for unit in {" ".join(_MASKED)}; do ln -sf /dev/null "$root/etc/systemd/system/$unit"; done
chroot "$root" systemctl enable systemd-networkd systemd-resolved >/dev/null 2>&1

chroot "$root" grub-mkimage -O i386-pc -p '(hd0,msdos1)/boot/grub' -o /core.img biosdisk part_msdos ext2 linux normal \\
    search configfile echo test serial terminal
# The boot code ends where the partition table begins; the core image must end where the first partition does.
[ "$(wc -c <"$root/core.img")" -le $((2047 * 512)) ]
dd if="$root/usr/lib/grub/i386-pc/boot.img" of="$disk" bs=440 count=1 conv=notrunc status=none
dd if="$root/core.img" of="$disk" bs=512 seek=1 conv=notrunc status=none
chroot "$root" apt-get purge -qq -y grub-pc-bin grub-common >/dev/null 2>&1
chroot "$root" apt-get clean

ln -sf ../run/systemd/resolve/stub-resolv.conf "$root/etc/resolv.conf"
: >"$root/etc/machine-id"
rm -rf "$root/core.img" "$root/etc/hostname" "$root/etc/apt/apt.conf.d/99mmdebstrap" "$root/var/lib/dbus/machine-id"
rm -rf "$root"/etc/ssh/ssh_host_* "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*.bin "$root"/var/log/apt \\
    "$root"/var/log/*.log "$root"/var/log/journal/* "$root"/var/lib/systemd/random-seed "$root"/var/tmp/* \\
    "$root"/etc/*- "$root"/var/cache/debconf/*-old "$root"/var/lib/dpkg/*-old
# mmdebstrap keeps apt's configuration in /tmp: without it, its own cleaning would empty the lists of this host's apt.
find "$root/tmp" -mindepth 1 ! -name 'mmdebstrap.*' -delete
"""

# Outside of mmdebstrap: while that runs, folders of this host are mounted below the root.
_MAKE_FILE_SYSTEM = (
    *("mke2fs", "-q", "-F", "-t", "ext4", "-L", LABEL, "-O", _FEATURES, "-m", "1"),
    *("-E", "offset=1048576,lazy_itable_init=1,lazy_journal_init=1,nodiscard"),
)
_BLOCKS = f"{DISK_SIZE // 1024 - 1024}k"

# In a user namespace, where a folder cannot be handed over: $1 an archive of the root, $2 the disk, then the command.
_FROM_ARCHIVE = """set -eu
root=$(mktemp -d) archive=$1
trap 'rm -rf "$root"' EXIT
shift
tar --extract --numeric-owner --xattrs --xattrs-include='*' --file "$archive" --directory "$root"
disk=$1
shift
"$@" -d "$root" "$disk" BLOCKS
""".replace("BLOCKS", _BLOCKS)

# apt's settings of how packages are fetched. They may hold passwords: they go by a file, and not into the image.
_APT_SETTINGS = ("Acquire::Check-", "Acquire::http::", "Acquire::https::", "Acquire::Retries")


@dataclass(frozen=True)
class DebianBase:
    """What a base is built from. sources: the lines of sources.list; options: settings of apt."""

    reference: str
    suite: str
    architecture: str
    sources: tuple[str, ...]
    options: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name of the cached file: release, architecture, and the hash of all inputs."""
        scripts = (_BEFORE_PACKAGES, _AFTER_PACKAGES, _MAKE_FILE_SYSTEM, DISK_SIZE)
        inputs = [self.suite, self.architecture, PACKAGES, self.sources, self.options, scripts]
        digits = hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:12]
        return f"{self.reference.replace(':', '-')}-{self.architecture}-{digits}"


def debian_base(reference: str, job: Job, mirror: str = "") -> DebianBase:
    """Return what a base such as "debian:12" is built from on this host. mirror: instead of where its apt goes."""
    what = f"base {reference}"
    if reference not in SUITES:
        raise InvalidInput(f"{what}: expected one of {', '.join(sorted(SUITES))}")
    machine = platform.machine()
    if machine not in ("x86_64", "amd64"):
        raise Unavailable(
            f"{what}: built on amd64 hosts only, found {machine}; expected a base file or address instead"
        )
    suite = SUITES[reference]
    return DebianBase(reference, suite, "amd64", _sources(suite, mirror, what, job), _options(what, job))


def build(base: DebianBase, work: Path, job: Job, held: Sequence[int] = ()) -> Path:
    """Build a base in an empty folder and return its qcow2 file there. held: see tools.run."""
    what = f"base {base.reference}"
    mmdebstrap = tools.need("mmdebstrap", "mmdebstrap", what)
    tools.need("mke2fs", "e2fsprogs", what)
    converter = tools.need("qemu-img", "qemu-utils", what)
    mode = _mode(what)
    if not os.path.exists(KEYRING):
        raise Unavailable(f"{what}: {KEYRING} is not there; expected package debian-archive-keyring")
    disk, target = work / "disk.raw", work / "disk.qcow2"
    handles = [_blank(disk), _written(work / "options", "".join(f"{option};\n" for option in base.options))]
    try:
        job.report(f"build {base.reference} from Debian's packages")
        # In a user namespace nobody could enter this folder, so /tmp it is; root keeps to itself.
        environment = {"TMPDIR": str(work)} if mode == "root" else {}
        root = work / ("rootfs" if mode == "root" else "rootfs.tar")
        command = _command(base, mmdebstrap, mode, root, *handles)
        tools.run(command, job, what, environment=environment, held=(*handles, *held), folder="/")
        job.report("make its file system")
        _fill(root, disk, mmdebstrap, mode, job, what, handles[0], held)
    finally:
        for handle in handles:
            os.close(handle)
    tools.run([converter, "convert", "-f", "raw", "-O", "qcow2", str(disk), str(target)], job, what, held=held)
    return target


def _fill(
    root: Path, disk: Path, mmdebstrap: str, mode: str, job: Job, what: str, handle: int, held: Sequence[int]
) -> None:
    """Make the file system of the disk, with all that is in the root, a folder or an archive."""
    if mode == "root":
        tools.run([*_MAKE_FILE_SYSTEM, "-d", str(root), str(disk), _BLOCKS], job, what, held=held)
        return
    archive = tools.out_of_the_way(os.open(root, os.O_RDONLY | os.O_CLOEXEC))
    try:
        os.fchmod(archive, 0o644)
        script = ["sh", "-c", _FROM_ARCHIVE, "sh", f"/dev/fd/{archive}", f"/dev/fd/{handle}", *_MAKE_FILE_SYSTEM]
        tools.run([mmdebstrap, "--unshare-helper", *script], job, what, held=(archive, handle, *held), folder="/")
    finally:
        os.close(archive)


def _command(base: DebianBase, mmdebstrap: str, mode: str, root: Path, disk: int, options: int) -> list[str]:
    """Return the program's arguments. Files are handed over open: what runs in a user namespace cannot find them."""
    before = f'sh -c {shlex.quote(_BEFORE_PACKAGES)} sh "$1"'
    after = f'sh -c {shlex.quote(_AFTER_PACKAGES)} sh "$1" /dev/fd/{disk}'
    return [
        *(mmdebstrap, f"--mode={mode}", "--variant=minbase", f"--architectures={base.architecture}"),
        f"--include={','.join(PACKAGES)}",
        *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("man", "locale", "info", "doc")),
        "--dpkgopt=path-include=/usr/share/doc/*/copyright",
        f"--aptopt=/dev/fd/{options}",
        *(f"--essential-hook={before}", f"--customize-hook={after}"),
        *(f"--format={'directory' if mode == 'root' else 'tar'}", base.suite, str(root), *base.sources),
    ]


def _mode(what: str) -> str:
    """Return how mmdebstrap can work here: as root, or in a user namespace."""
    if os.geteuid() == 0:
        return "root"
    missing = []
    if not tools.find("newuidmap"):
        missing.append("package uidmap")
    user = pwd.getpwuid(os.geteuid()).pw_name
    try:
        ranges = Path("/etc/subuid").read_text(encoding="utf-8")
    except OSError:
        ranges = ""
    if not re.search(rf"^({re.escape(user)}|{os.geteuid()}):", ranges, re.MULTILINE):
        missing.append(f"a line for {user} in /etc/subuid and /etc/subgid")
    if missing:
        raise Unavailable(f"{what}: built by root, or by a user with user namespaces; expected {' and '.join(missing)}")
    return "unshare"


def _blank(path: Path) -> int:
    """Make an empty disk with one bootable partition, and return it open. Its folder keeps others away from it."""
    first = 2048
    sectors = DISK_SIZE // 512 - first
    entry = struct.pack("<B3sB3sII", 0x80, b"\xfe\xff\xff", 0x83, b"\xfe\xff\xff", first, sectors)
    handle = tools.out_of_the_way(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    os.fchmod(handle, 0o666)
    os.ftruncate(handle, DISK_SIZE)
    os.pwrite(handle, entry, 446)
    os.pwrite(handle, b"\x55\xaa", 510)
    return handle


def _written(path: Path, text: str) -> int:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o644)
    return tools.out_of_the_way(os.open(path, os.O_RDONLY | os.O_CLOEXEC))


def _sources(suite: str, mirror: str, what: str, job: Job) -> tuple[str, ...]:
    """Return the lines of sources.list, at the mirrors that this host's apt uses for a Debian release."""
    found: list[str] = []
    if mirror:
        root = mirror.rstrip("/")
        found = [f"{root} {suite}", f"{root} {suite}-updates", f"{root}-security {suite}-security"]
    else:
        found = sorted(_own_mirrors(suite, what, job))
    if not found:
        raise Unavailable(
            f"{what}: apt of this host has no source of Debian's packages; expected one, or an address in the "
            "setting mirror"
        )
    for line in found:
        if "@" in line or not re.match(r"(https?|file|copy|mirror\+\w+)://?\S+ \S+$", line):
            raise InvalidInput(f"{what}: mirror: expected an address without a password, such as of an apt source")
    return tuple(dict.fromkeys(f"deb [signed-by={KEYRING}] {line} main" for line in found))


def _own_mirrors(suite: str, what: str, job: Job) -> set[str]:
    """Return where this host's apt gets Debian's packages, for another release."""
    own = _own_suite()
    if not own:
        return set()
    found = set()
    for line in _apt(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT) $(ORIGIN)"], what, job
    ):
        uri, release, component, *origin = line.split(maxsplit=3)
        if origin == ["Debian"] and component == "main" and release.partition("-")[0] == own:
            found.add(f"{uri} {release.replace(own, suite)}")
    if not found:  # no lists of packages are there; then nothing tells whose a source is but its path
        for line in _apt(["apt-get", "update", "--print-uris"], what, job):
            parts = re.match(rf"'(\S+/debian(?:-security)?/)dists/({own}(?:-\w+)?)/InRelease'", line)
            if parts:
                found.add(f"{parts[1]} {parts[2].replace(own, suite)}")
    return found


def _own_suite() -> str:
    try:
        text = Path("/etc/os-release").read_text(encoding="utf-8")
    except OSError:
        return ""
    found = re.search(r'^VERSION_CODENAME="?(\w+)', text, re.MULTILINE)
    return found[1] if found else ""


def _options(what: str, job: Job) -> tuple[str, ...]:
    lines = _apt(["apt-config", "dump", "--no-empty"], what, job)
    return tuple(line.rstrip(";") for line in lines if line.startswith(_APT_SETTINGS))


def _apt(command: list[str], what: str, job: Job) -> list[str]:
    program = tools.need(command[0], "apt", what)
    return tools.run([program, *command[1:]], job, what).splitlines()
