# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether this host's processor can run machines (KVM), found out by running one for a moment.

That /dev/kvm is there, and opens, proves nothing: in many clouds it does, and guests hang.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from .qemu_command import KVM, TCG
from .qemu_launch import KVM_DEVICE, device_groups, usable

if TYPE_CHECKING:
    from fleet_core.errors import InvalidInput, Unavailable
    from fleet_node import paths
else:
    try:
        from ..fleet_core.errors import InvalidInput, Unavailable
        from ..fleet_node import paths
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import InvalidInput, Unavailable
        from fleet_node import paths

AUTO = "auto"
CHOICES = (AUTO, KVM, TCG)
SECONDS = 10.0  # that a probe may take; a good one takes a tenth of one
CACHE = ".accel.json"
_ENDED_WELL = 33  # isa-debug-exit ends QEMU with twice the value plus 1; the boot sector writes 16

# Goes to protected mode, counts to a million, asks for CPUID, and writes 16 to port 0xf4. At 0x7c00; the last line of
# numbers is the descriptor table and its address.
_CODE = bytes.fromhex(
    "fa 31c0 8ed8"  # cli; xor ax, ax; mov ds, ax
    "0f0116407c"  # lgdt [0x7c40]
    "0f20c0 0c01 0f22c0"  # mov eax, cr0; or al, 1; mov cr0, eax
    "ea177c0800"  # jmp 8:0x7c17
    "b900001000 e2fe"  # mov ecx, 0x100000; loop to itself
    "31c0 0fa2"  # xor eax, eax; cpuid
    "b010 e6f4"  # mov al, 16; out 0xf4, al
    "f4 ebfd"  # hlt, again and again
    "00000000000000 0000000000000000 ffff0000009acf00 0f00307c0000"
)
BOOT_SECTOR = _CODE + bytes(510 - len(_CODE)) + b"\x55\xaa"


def choose(wanted: str, executable: str, folder: Path, device: str = KVM_DEVICE, own_user: bool = False) -> str:
    """Return kvm or tcg for a setting. folder: where the answer of a probe is kept, until the host boots again.

    own_user: whether machines run as users of their own, who must be able to open the device too.

    Raises InvalidInput for another setting, Unavailable when KVM is demanded and does not work.
    """
    if wanted not in CHOICES:
        raise InvalidInput(f"accel: expected {', '.join(CHOICES)}, found {wanted!r}")
    if wanted == TCG:
        return TCG
    why = _why_not(executable, folder, device, own_user)
    if why and wanted == KVM:
        raise Unavailable(f"accel: kvm was asked for, but {why}; expected a host with KVM, or accel: auto")
    return TCG if why else KVM


def _why_not(executable: str, folder: Path, device: str, own_user: bool) -> str:
    """Return why KVM cannot be used, empty when it can."""
    if not usable(device):
        return f"{device} cannot be opened by this user"
    if own_user and not device_groups(device) and os.stat(device).st_mode & 0o006 != 0o006:
        return f"{device} can be opened by root only; expected it to belong to a group such as kvm"
    if not virtualizes():
        return "the processor has neither vmx nor svm, and no module of KVM for it is loaded"
    key = _key(executable)
    known = _cached(folder / CACHE, key)
    if known is None:
        known = probe(executable, KVM)
        _keep(folder / CACHE, key, known)
    return "" if known else f"a machine that was started to try it did not run within {SECONDS:g} s"


def virtualizes(cpuinfo: str = "/proc/cpuinfo", modules: str = "/sys/module") -> bool:
    """Tell whether the processor says that it can virtualize, or a module that uses it for that is loaded."""
    if any(os.path.isdir(os.path.join(modules, name)) for name in ("kvm_intel", "kvm_amd")):
        return True
    try:
        with open(cpuinfo, encoding="ascii", errors="replace") as lines:
            flags = next((line for line in lines if line.startswith("flags")), "")
    except OSError:
        return False
    return not {"vmx", "svm"}.isdisjoint(flags.split())


def probe(executable: str, accel: str, seconds: float = SECONDS) -> bool:
    """Tell whether a machine of 16 MiB reaches the end of its boot sector in time."""
    with tempfile.TemporaryDirectory(prefix="fleet-probe-") as folder:
        path = Path(folder) / "boot"
        path.write_bytes(BOOT_SECTOR)
        os.truncate(path, 4 * 1024**2)  # a BIOS wants at least one cylinder
        words = [executable, "-no-user-config", "-nodefaults", "-display", "none", "-machine", "q35", "-m", "16"]
        words += ["-accel", accel, "-cpu", "host" if accel == KVM else "max"]
        words += ["-device", "isa-debug-exit,iobase=0xf4,iosize=1", "-device", "virtio-blk-pci,drive=boot"]
        words += ["-blockdev", f"driver=raw,node-name=boot,read-only=on,file.driver=file,file.filename={path}"]
        try:
            done = subprocess.run(  # pylint: disable=ansible-bad-function # no module in fleet_machines
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return False
        except OSError as error:
            raise Unavailable(f"{executable}: cannot be run: {error.strerror}") from error
    return done.returncode == _ENDED_WELL


def _key(executable: str) -> str:
    boot = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    try:
        status = os.stat(executable)
    except OSError as error:
        raise Unavailable(f"{executable}: cannot be run: {error.strerror}") from error
    return f"{boot} {executable} {status.st_mtime_ns} {status.st_size}"


def _cached(path: Path, key: str) -> bool | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return bool(found["works"]) if found["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep(path: Path, key: str, works: bool, replace: Callable[[str, str], None] = os.replace) -> None:
    paths.make_private(path.parent)
    temporary = f"{path}.{os.getpid()}"
    with contextlib.suppress(OSError):
        Path(temporary).write_text(json.dumps({"key": key, "works": works}), encoding="utf-8")
        replace(temporary, str(path))
