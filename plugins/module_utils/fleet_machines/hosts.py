# SPDX-License-Identifier: GPL-3.0-or-later
"""Looks at this host with the eyes of those who want machines on it. It only reads."""

from __future__ import annotations

import contextlib
import getpass
import grp
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import providers as adapters
from .multipass_cli import PLACES

if TYPE_CHECKING:
    from fleet_core.errors import FleetError, InvalidInput
    from fleet_core.host_checks import LINUX, MACOS, TOOLS, Found, Kvm, version_of
    from fleet_node import paths
else:
    try:
        from ..fleet_core.errors import FleetError, InvalidInput
        from ..fleet_core.host_checks import LINUX, MACOS, TOOLS, Found, Kvm, version_of
        from ..fleet_node import paths
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import FleetError, InvalidInput
        from fleet_core.host_checks import LINUX, MACOS, TOOLS, Found, Kvm, version_of
        from fleet_node import paths

# Where programs are that the PATH of a login without a terminal may not lead to.
_PLACES = ("/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin", "/opt/homebrew/bin", "/opt/homebrew/sbin")
_MULTIPASS = tuple(str(Path(place).parent) for place in PLACES)
_SEARCH = os.pathsep.join([os.environ.get("PATH", os.defpath), *_PLACES, *_MULTIPASS])
_VERSION = {"ssh": ("-V",), "mke2fs": ("-V",), "multipass": ("version",)}
_PATIENCE = 20.0  # seconds for a program to tell its version

_FAMILIES = {
    "debian": "debian",
    "ubuntu": "debian",
    "fedora": "redhat",
    "rhel": "redhat",
    "centos": "redhat",
    "arch": "archlinux",
    "suse": "suse",
    "opensuse": "suse",
}


def look(chosen: Sequence[str], state_dir: str | None, settings: Mapping[str, Any], *, ask: bool = True) -> Found:
    """Return what this host has. chosen: the providers that matter; settings: theirs, by name.

    ask: whether to ask the providers themselves. Raises InvalidInput when they do not take their settings.
    """
    system = platform.system()
    memory, available = _memory(system)
    folder = _existing(Path(settings.get("qemu", {}).get("folder") or paths.state_dir(state_dir)))
    wanted = [tool for tool in TOOLS if tool.provider in ("", *chosen)]
    named = {
        "qemu-system-x86_64": settings.get("qemu", {}).get("executable"),
        "multipass": settings.get("multipass", {}).get("executable"),
    }
    return Found(
        system=system,
        family=_family(system),
        user=_user(),
        guest=_guest(),
        programs={
            name: version
            for tool in wanted
            for name in tool.programs
            if (version := _version(name, named.get(name) or name)) is not None
        }
        | {tool.file: "" for tool in wanted if tool.file and os.path.exists(tool.file)},
        packages={tool.package: found for tool in wanted if tool.package and (found := _package(tool.package))},
        kvm=_kvm(named["qemu-system-x86_64"] or "qemu-system-x86_64")
        if "qemu" in chosen and system == LINUX
        else Kvm(),
        memory=memory,
        available=available,
        disk=shutil.disk_usage(folder).free,
        folder=str(folder),
        answers={
            name: _answer(name, state_dir, settings.get(name, {}))
            for name in chosen
            if ask and name in adapters.names()
        },
    )


def _version(name: str, program: str) -> str | None:
    """Return the version that a program tells, an empty text if it tells none, None if there is no such program."""
    path = shutil.which(program, path=_SEARCH)
    if path is None:
        return None
    try:
        done = subprocess.run(  # pylint: disable=ansible-bad-function # no module in fleet_machines
            [path, *_VERSION.get(name, ("--version",))],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_PATIENCE,
            check=False,
            cwd="/",
            env={**os.environ, "LC_ALL": "C", "TERM": "dumb"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return version_of(f"{done.stdout}\n{done.stderr}")


def _package(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user without a name
        return str(os.geteuid())


def _family(system: str) -> str:
    """Return what the distribution is like, in the words of Ansible's os_family."""
    if system == MACOS:
        return "darwin"
    lines = _text("/etc/os-release").splitlines()
    values = dict(line.partition("=")[::2] for line in lines)
    words = f"{values.get('ID', '')} {values.get('ID_LIKE', '')}".replace('"', "").replace("'", "").split()
    return next((_FAMILIES[part] for word in words for part in word.split("-") if part in _FAMILIES), "")


def _guest() -> str:
    """Tell whether this host runs in another one: "virtual machine", "container", or nothing."""
    if _text("/run/systemd/container") or any(os.path.exists(mark) for mark in ("/.dockerenv", "/run/.containerenv")):
        return "container"
    return "virtual machine" if re.search(r"^flags\b.*\bhypervisor\b", _text("/proc/cpuinfo"), re.MULTILINE) else ""


def _kvm(executable: str) -> Kvm:
    """Ask the system, and where it says yes, the provider's own probe: that the device opens proves nothing."""
    flags = set(re.findall(r"\b(vmx|svm)\b", _text("/proc/cpuinfo")))
    if platform.machine() not in ("x86_64", "i686"):
        flags = {platform.machine()}  # no flag tells it there: the device does
    nested = next(
        (value for name in ("intel", "amd") if (value := _text(f"/sys/module/kvm_{name}/parameters/nested"))), ""
    )
    device = os.path.exists("/dev/kvm")
    usable = device and os.access("/dev/kvm", os.R_OK | os.W_OK)
    works = None
    program = shutil.which(executable, path=_SEARCH)
    if usable and flags and program:
        from .qemu_accel import probe  # not for the other providers
        from .qemu_command import KVM

        works = probe(program, KVM)
    return Kvm(
        flags=tuple(sorted(flags)),
        device=device,
        usable=usable,
        group=_group("/dev/kvm") if device else "",
        nested=nested in ("Y", "1") if nested else None,
        works=works,
    )


def _group(path: str) -> str:
    with contextlib.suppress(OSError, KeyError):
        return grp.getgrgid(os.stat(path).st_gid).gr_name
    return ""


def _memory(system: str) -> tuple[int, int]:
    """Return the memory of this host, and how much of it is free or can be freed, in bytes."""
    if system == LINUX:
        found = {
            name: int(size) * 1024 for name, size in re.findall(r"^(\w+):\s+(\d+) kB", _text("/proc/meminfo"), re.M)
        }
        return found.get("MemTotal", 0), found.get("MemAvailable", found.get("MemFree", 0))
    page = os.sysconf("SC_PAGE_SIZE")
    total = os.sysconf("SC_PHYS_PAGES") * page
    return total, total  # macOS compresses and frees: what it calls free says little


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest above it that exists."""
    return next(path for path in (folder, *folder.parents, Path("/")) if path.is_dir())


def _answer(name: str, state_dir: str | None, settings: Mapping[str, Any]) -> str | None:
    """Ask a provider for its machines. Returns None when it answers, else its words."""
    try:
        adapters.provider(name, state_dir, settings).describe()
    except InvalidInput:
        raise
    except FleetError as error:
        return error.message
    return None


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
