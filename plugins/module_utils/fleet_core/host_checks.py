# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host needs to run machines: rows of what was found, what is expected, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .errors import InvalidInput
from .names import nearest
from .quantities import format_size

OK = "ok"
MISSING = "missing"
ADVICE = "advice"

EVERY = ""  # instead of a provider's name: whatever machines come from
LINUX, MACOS = "Linux", "Darwin"


@dataclass(frozen=True)
class Tool:
    """A program, a file, or a package of Python that machines need.

    programs: any of these will do. minimum: the oldest version that works. systems and families: where it is needed,
    empty for everywhere. unprivileged: only where the user is not root. builds: only where images are built from
    Debian's packages. required: False for what only makes more possible. purpose: completes "it is needed ...".
    """

    name: str
    provider: str
    minimum: tuple[int, ...]
    purpose: str
    programs: tuple[str, ...] = ()
    file: str = ""
    package: str = ""
    systems: tuple[str, ...] = ()
    families: tuple[str, ...] = ()
    unprivileged: bool = False
    builds: bool = False
    required: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        return self.programs or (self.package or self.file,)

    def concerns(self, found: Found, providers: Sequence[str]) -> bool:
        return (
            (self.provider == EVERY or self.provider in providers)
            and (not self.systems or found.system in self.systems)
            and (not self.families or found.family in self.families)
            and not (self.unprivileged and found.user == "root")
        )


ISO = ("xorriso", "genisoimage", "mkisofs", "hdiutil")

TOOLS = (
    Tool("ssh", EVERY, (7, 6), "to log in to machines", programs=("ssh",)),
    Tool("git", EVERY, (2, 20), "to fetch projects", programs=("git",)),
    Tool("qemu", "qemu", (6, 0), "to run machines", programs=("qemu-system-x86_64",)),
    Tool("qemu_img", "qemu", (6, 0), "to make disks", programs=("qemu-img",)),
    Tool("iso", "qemu", (), "to make seeds of cloud-init", programs=ISO),
    Tool("mmdebstrap", "qemu", (1, 3), "to build images from Debian packages", programs=("mmdebstrap",),
         systems=(LINUX,), families=("debian",), builds=True),
    Tool("mke2fs", "qemu", (1, 45), "to build images from Debian packages", programs=("mke2fs",),
         systems=(LINUX,), families=("debian",), builds=True),
    Tool(
        "keyring",
        "qemu",
        (),
        "to trust Debian's packages",
        file="/usr/share/keyrings/debian-archive-keyring.gpg",
        systems=(LINUX,),
        families=("debian",), builds=True,
    ),
    Tool(
        "uidmap",
        "qemu",
        (),
        "to build images without root",
        programs=("newuidmap",),
        systems=(LINUX,),
        families=("debian",), builds=True,
        unprivileged=True,
    ),
    Tool("multipass", "multipass", (1, 15), "to run machines, and 1.15 to clone them", programs=("multipass",)),
    Tool("proxmoxer", "proxmox", (2, 0), "to talk to Proxmox", package="proxmoxer"),
    Tool("requests", "proxmox", (2, 20), "to talk to Proxmox", package="requests"),
    Tool("iso", "proxmox", (), "to make seeds of cloud-init", programs=ISO),
)  # fmt: skip
PROVIDERS = ("multipass", "proxmox", "qemu")


@dataclass(frozen=True)
class Kvm:
    """Hardware virtualization. flags: vmx or svm of the processor. device: whether /dev/kvm is there; usable: whether
    this user may open it; group: whose it is. nested: whether machines may run machines, None when not known.

    works: what the provider's own probe says, None when it was not asked.
    """

    flags: tuple[str, ...] = ()
    device: bool = False
    usable: bool = False
    group: str = ""
    nested: bool | None = None
    works: bool | None = None

    @property
    def joinable(self) -> bool:
        """Whether all that the user lacks is to be in the group that may use the device."""
        return bool(self.flags) and self.device and not self.usable and self.group == "kvm"


@dataclass(frozen=True)
class Found:
    """What a host has. programs (files among them) and packages: their versions by name, empty when they tell none.

    family: the family of the distribution in small letters. guest: whether the host is itself a virtual machine or a
    container, in one word, else empty. memory, available and disk: bytes; folder: where disk was looked at.
    answers: what each provider said when it was asked, by its name: None for fine, else why not.
    """

    system: str
    family: str = ""
    user: str = "root"
    guest: str = ""
    programs: Mapping[str, str] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)
    kvm: Kvm = Kvm()
    memory: int = 0
    available: int = 0
    disk: int = 0
    folder: str = ""
    answers: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """One row. state: ok, missing (required), or advice (it works without). advice: what to do, empty when ok."""

    name: str
    provider: str
    state: str
    found: str
    advice: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "provider": self.provider,
            "state": self.state,
            "found": self.found,
            "advice": self.advice,
        }


def check_providers(providers: Iterable[str]) -> tuple[str, ...]:
    """Return the providers, each once. Raises InvalidInput for an unknown one."""
    chosen = tuple(dict.fromkeys(providers))
    for name in chosen:
        if name not in PROVIDERS:
            hint = nearest(name, PROVIDERS) or f"; known: {', '.join(PROVIDERS)}"
            raise InvalidInput(f'provider "{name}": unknown{hint}')
    return chosen


def version_of(text: str) -> str:
    """Return the first thing in a text that looks like a version, or nothing."""
    found = re.search(r"\d+(?:[.]\d+)+", text)
    return found[0] if found else ""


def older(version: str, minimum: Sequence[int]) -> bool:
    """Tell whether a version is too old. One that is not known is not."""
    return bool(version) and tuple(int(part) for part in re.findall(r"\d+", version)) < tuple(minimum)


def checks(
    found: Found, providers: Sequence[str], *, memory: int = 0, disk: int = 0, builds: bool = True
) -> tuple[Check, ...]:
    """Return a row for each thing that machines of these providers need. memory, disk: bytes that there must be.

    builds: whether images are to be built from Debian's packages.
    """
    tools: dict[str, Tool] = {}
    for tool in TOOLS:
        if tool.concerns(found, providers) and (builds or not tool.builds):
            tools.setdefault(tool.name, tool)  # two providers may need the same
    rows = [check_tool(tool, found) for tool in tools.values()]
    if "qemu" in providers:
        rows += check_virtualization(found)
    if set(providers) - {"proxmox"}:
        rows += check_room(found, memory, disk)
    for provider in providers:
        if provider in found.answers:
            rows.append(check_answer(provider, found.answers[provider]))
    return tuple(rows)


def check_tool(tool: Tool, found: Found) -> Check:
    """Return the row of a program, or of a package of Python."""
    have = found.packages if tool.package else found.programs
    name = next((name for name in tool.names if name in have), None)
    wanted = ".".join(map(str, tool.minimum))
    lacking = MISSING if tool.required else ADVICE
    if name is None:
        at_least = f" {wanted} or newer" if wanted else ""
        return Check(
            tool.name, tool.provider, lacking, "-", f"install {' or '.join(tool.names)}{at_least} {tool.purpose}"
        )
    shown = "there" if tool.file else f"{name} {have[name]}".strip()
    if older(have[name], tool.minimum):
        return Check(tool.name, tool.provider, lacking, shown, f"{wanted} or newer is needed {tool.purpose}")
    return Check(tool.name, tool.provider, OK, shown)


SLOW = "machines are emulated, ten times slower"


def check_virtualization(found: Found) -> Iterator[Check]:
    """Yield the rows about KVM. Nothing of it is required: without, machines are emulated."""
    if found.system != LINUX:
        return
    kvm = found.kvm
    problem = next((text(found) for lacks, text in _KVM_PROBLEMS if lacks(kvm)), "")
    said = f"{' '.join(kvm.flags)}, /dev/kvm" if kvm.device and kvm.flags else "no KVM"
    yield Check("kvm", "qemu", ADVICE if problem else OK, said, problem)
    if not problem and kvm.nested is not None:
        advice = "" if kvm.nested else "to run machines in machines, load kvm_intel or kvm_amd with nested=1"
        yield Check("nested", "qemu", OK if kvm.nested else ADVICE, "on" if kvm.nested else "off", advice)


def _no_flags(found: Found) -> str:
    if found.guest:
        return f"{SLOW}; this host is itself a {found.guest}: allow nested virtualization where it runs"
    return f"{SLOW}; switch virtualization (VT-x, AMD-V) on in the firmware"


def _no_access(found: Found) -> str:
    group = found.kvm.group or "kvm"
    return f"{SLOW}; let {found.user} open /dev/kvm: usermod --append --groups {group} {found.user}, then log in anew"


_KVM_PROBLEMS: tuple[tuple[Callable[[Kvm], bool], Callable[[Found], str]], ...] = (
    (lambda kvm: kvm.works is True, lambda found: ""),
    (lambda kvm: not kvm.flags, _no_flags),
    (lambda kvm: not kvm.device, lambda found: f"{SLOW}; load the module kvm_intel or kvm_amd"),
    (lambda kvm: not kvm.usable, _no_access),
    (lambda kvm: kvm.works is False, lambda found: f"{SLOW}; /dev/kvm is there, but a machine does not run with it"),
)


def check_room(found: Found, memory: int, disk: int) -> Iterator[Check]:
    """Yield the rows of memory and disk."""
    total, free = _rounded(found.memory), _rounded(found.available)
    if found.memory < memory:
        yield Check("memory", EVERY, MISSING, total, f"{format_size(memory)} or more is needed")
    else:
        scarce = found.available < memory
        advice = f"free {format_size(memory)}, or use smaller machines" if scarce else ""
        yield Check("memory", EVERY, ADVICE if scarce else OK, f"{free} of {total} free", advice)
    advice = f"{format_size(disk)} or more is needed in {found.folder}" if found.disk < disk else ""
    yield Check("disk", EVERY, MISSING if advice else OK, f"{_rounded(found.disk)} free in {found.folder}", advice)


def _rounded(size: int) -> str:
    return f"{size / 1024**3:.1f}G"


def check_answer(provider: str, problem: str | None) -> Check:
    """Return the row of what a provider said. It may come up later in the same run: that is no failure."""
    return Check("answers", provider, ADVICE if problem else OK, "no" if problem else "yes", problem or "")


def table(rows: Sequence[Check]) -> list[str]:
    """Return the rows as lines: a table for people."""
    cells = [("CHECK", "STATE", "FOUND", "WHAT TO DO")]
    cells += [(f"{row.provider} {row.name}".strip(), row.state, row.found, row.advice or "-") for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(3)]
    return ["  ".join([*(cell.ljust(width) for cell, width in zip(line, widths)), line[3]]) for line in cells]
