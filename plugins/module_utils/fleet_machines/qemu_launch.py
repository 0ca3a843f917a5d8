# SPDX-License-Identifier: GPL-3.0-or-later
"""Becomes QEMU: ``python -m fleet_machines.qemu_launch FOLDER SSH_PORT VNC_PORT``, as the template ``qemu`` says.

It does what must be done at each start, also by fleetd after a boot of the host, and what QEMU must not be able to do:
opens the tap interfaces (they vanish with the process), gives up root, and keeps of fleetd's environment only what
holds no secret. Then it is QEMU.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import stat
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from .qemu_command import AGENT, BRIDGE, CONFIG, KVM, MONITOR, RUN, TCG, Hardware, command, hardware

if TYPE_CHECKING:
    from fleet_core.errors import FleetError, InvalidInput, NotFound, ProcessFailed, StateDamaged
else:
    try:
        from ..fleet_core.errors import FleetError, InvalidInput, NotFound, ProcessFailed, StateDamaged
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import FleetError, InvalidInput, NotFound, ProcessFailed, StateDamaged

_KEPT = ("PATH", "LANG", "TZ", "TMPDIR", "FLEET_PROCESS", "FLEET_LAUNCH")
# linux/if_tun.h, linux/sockios.h, linux/if.h
_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_UP = 0x0002, 0x1000, 0x4000, 0x1
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _SIOCBRADDIF = 0x8913, 0x8914, 0x89A2
KVM_DEVICE = "/dev/kvm"


def main(arguments: list[str]) -> int:
    """Become QEMU, or return an exit code after one sentence on standard error."""
    try:
        if len(arguments) != 3:
            raise InvalidInput("expected a machine's folder, its port for SSH and its port for VNC")
        become(Path(arguments[0]), int(arguments[1] or 0), int(arguments[2]))
    except FleetError as error:
        sys.stderr.write(error.message + "\n")
    except OSError as error:
        sys.stderr.write(f"{arguments[0]}: cannot be started: {error}" + "\n")
    return 1


def become(folder: Path, ssh_port: int, vnc_port: int) -> None:
    """Replace this process by the QEMU of a machine."""
    made = read(folder)
    os.umask(0o077)
    descriptor = os.open(folder / RUN, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    os.fchdir(descriptor)
    for name in (MONITOR, AGENT):  # of a QEMU that was killed
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
    taps = {card.tap: open_tap(card.tap, card.bridge, made.name) for card in made.cards if card.kind == BRIDGE}
    drop(made)
    accel = made.accel
    if accel == KVM and not usable(KVM_DEVICE):
        sys.stderr.write(f'machine "{made.name}": {KVM_DEVICE} cannot be opened by its user; emulated instead' + "\n")
        accel = TCG
    words = command(made, ssh_port, vnc_port, accel, taps)
    try:
        os.execve(made.executable, words, environment(os.environ))
    except OSError as error:
        raise ProcessFailed(f'machine "{made.name}": {made.executable} cannot be executed: {error.strerror}') from error


def read(folder: Path) -> Hardware:
    """Return the hardware of the machine in a folder; a file that others could have written is refused."""
    path = folder / CONFIG
    try:
        with open(path, encoding="utf-8") as file:
            status = os.fstat(file.fileno())
            if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022 or not stat.S_ISREG(status.st_mode):
                raise StateDamaged(f"{path}: expected a file that only its owner can write, found another")
            return hardware(json.load(file))
    except FileNotFoundError:
        raise NotFound(f"{path}: it is not there; expected a machine of the provider qemu in that folder") from None
    except (ValueError, TypeError) as error:
        raise StateDamaged(f"{path}: cannot be read: {error}") from error


def drop(made: Hardware) -> None:
    """Become the machine's own user for good, with the group of /dev/kvm as the only further one."""
    if made.uid < 0 or os.geteuid() != 0:
        return
    os.setgroups(device_groups(KVM_DEVICE))
    os.setresgid(made.gid, made.gid, made.gid)
    os.setresuid(made.uid, made.uid, made.uid)


def device_groups(device: str) -> list[int]:
    """Return the group that a machine's own user needs to open a device, if that is a group and not root's."""
    with contextlib.suppress(OSError):
        found = os.stat(device)
        if found.st_gid and found.st_mode & 0o060 == 0o060:
            return [found.st_gid]
    return []


def usable(device: str) -> bool:
    """Tell whether a device can be opened for reading and writing."""
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """Return what QEMU gets of fleetd's environment: what fleetd knows its processes by, and nothing secret."""
    return {name: value for name, value in given.items() if name in _KEPT or name.startswith("LC_")}


def open_tap(name: str, bridge: str, machine: str) -> int:
    """Make a tap interface, connect it to a bridge, and return its descriptor, which a program that is executed keeps.

    The kernel removes it when the last descriptor is closed.
    """
    where = f'machine "{machine}": network "{bridge}"'
    if os.geteuid() != 0:
        raise InvalidInput(
            f"{where}: only root can connect machines to a bridge; run fleetd as root, or use the network "
            '"user" or "isolated"'
        )
    if not os.path.isdir(f"/sys/class/net/{bridge}/bridge"):
        raise NotFound(f"{where}: there is no such bridge on this host")
    try:
        descriptor = os.open("/dev/net/tun", os.O_RDWR)
    except OSError as error:
        raise ProcessFailed(f"{where}: /dev/net/tun cannot be opened: {error.strerror}") from error
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
    try:
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        # The host itself must not listen on a guest's cable.
        with contextlib.suppress(OSError):
            Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1", encoding="ascii")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            index = socket.if_nametoindex(name)
            fcntl.ioctl(control, _SIOCBRADDIF, struct.pack("16si20x", bridge.encode(), index))
            found = fcntl.ioctl(control, _SIOCGIFFLAGS, struct.pack("16sH22x", name.encode(), 0))
            up = struct.unpack("16sH22x", found)[1] | _IFF_UP
            fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH22x", name.encode(), up))
    except OSError as error:
        os.close(descriptor)
        raise ProcessFailed(f"{where}: its interface {name} cannot be made: {error.strerror}") from error
    os.set_blocking(descriptor, False)
    os.set_inheritable(descriptor, True)
    return descriptor


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
