# SPDX-License-Identifier: GPL-3.0-or-later
"""From what a machine is made of to QEMU's command line. Pure: nothing is read or run here.

All paths are relative to the machine's folder "run", where QEMU is started: so they fit a socket's address, and QEMU
needs no right to walk to them. https://www.qemu.org/docs/master/system/invocation.html
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

USER, ISOLATED, BRIDGE = "user", "isolated", "bridge"
KVM, TCG = "kvm", "tcg"
HOST = "127.0.0.1"
FIRST_VNC = 5900

# In the folder "run" of a machine, which belongs to the user that QEMU runs as.
DISK, MONITOR, AGENT = "disk.qcow2", "qmp.sock", "agent.sock"
# In the machine's own folder, which QEMU can only read.
RUN, CONFIG, SEED, BASE, VNC_SECRET = "run", "machine.json", "seed.iso", "base", "vnc.secret"

_MIB = 1024**2
# No new privileges, no new programs, no obsolete calls, no scheduling of its own.
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


@dataclass(frozen=True)
class Card:
    """A network card. kind: user, isolated (user, but nothing goes out) or bridge. tap: its interface on the host."""

    kind: str
    mac: str
    bridge: str = ""
    tap: str = ""


@dataclass(frozen=True)
class Hardware:
    """What a machine is made of. memory: bytes. type: QEMU's machine type with its version, so that saved states still
    fit after an upgrade. base: the format of the disk's backing file, empty without one. seed: whether there is one.

    uid, gid: who QEMU runs as, -1 for whoever starts it.
    """

    name: str
    executable: str
    type: str
    cpu: int
    memory: int
    uuid: str
    cards: tuple[Card, ...] = ()
    accel: str = TCG
    base: str = ""
    seed: bool = True
    uid: int = -1
    gid: int = -1

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"


def hardware(data: Mapping[str, Any]) -> Hardware:
    """Return the hardware that to_json wrote; what an older version did not write has its default."""
    known = {part.name for part in fields(Hardware)}
    values = {name: value for name, value in data.items() if name in known}
    values["cards"] = tuple(Card(**card) for card in data.get("cards") or ())
    return Hardware(**values)


def tap_name(machine: str, number: int, salt: str = "") -> str:
    """Return the name of a tap interface: the same each time, and short enough (IFNAMSIZ: 15 characters).

    salt: tells the machines of two fleets on one host apart.
    """
    digest = hashlib.sha256(f"{salt}\0{machine}\0{number}".encode()).hexdigest()
    return f"fleet{digest[:10]}"


def command(
    made: Hardware, ssh_port: int, vnc_port: int, accel: str, taps: Mapping[str, int] | None = None
) -> list[str]:
    """Return QEMU's argument vector. taps: the open descriptor of each tap, by its name. accel: kvm or tcg."""
    return [
        made.executable,
        *("-name", made.name, "-uuid", made.uuid),
        *("-no-user-config", "-nodefaults", "-sandbox", SANDBOX),
        *("-machine", f"{made.type},usb=off,vmport=off,dump-guest-core=off,mem-merge=off"),
        *("-accel", "kvm" if accel == KVM else "tcg,thread=multi", "-cpu", "host" if accel == KVM else "max"),
        *("-smp", f"{made.cpu},sockets=1,cores={made.cpu},threads=1", "-m", f"{-(-made.memory // _MIB)}M"),
        *("-rtc", "base=utc", "-global", "ICH9-LPC.disable_s3=1", "-global", "ICH9-LPC.disable_s4=1"),
        *_disks(made),
        *_consoles(vnc_port),
        *("-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng"),
        *_network(made, ssh_port, taps or {}),
    ]


def ssh_card(cards: tuple[Card, ...]) -> int:
    """Return the number of the card to which the forwarded port for SSH leads, or -1 when none has user networking."""
    return next((number for number, card in enumerate(cards) if card.kind in (USER, ISOLATED)), -1)


def _disks(made: Hardware) -> list[str]:
    """The disk, its backing file, and the seed, each named node by node: what stands in a disk's own header about
    other files counts for nothing."""
    words: list[str] = []
    disk: dict[str, Any] = {
        "driver": "qcow2",
        "node-name": "disk",
        "discard": "unmap",
        "file": {"driver": "file", "filename": DISK, "discard": "unmap"},
        "backing": None,
    }
    if made.base:
        base: dict[str, Any] = {
            "driver": made.base,
            "node-name": "base",
            "read-only": True,
            "file": {"driver": "file", "filename": f"../{BASE}", "read-only": True},
        }
        words += ["-blockdev", json.dumps({**base, **({"backing": None} if made.base == "qcow2" else {})})]
        disk["backing"] = "base"
    words += ["-blockdev", json.dumps(disk), "-device", "virtio-blk-pci,id=root,drive=disk,bootindex=0"]
    if made.seed:
        seed = {
            "driver": "raw",
            "node-name": "seed",
            "read-only": True,
            "file": {"driver": "file", "filename": f"../{SEED}", "read-only": True},
        }
        words += ["-blockdev", json.dumps(seed), "-device", "virtio-blk-pci,drive=seed"]
    return words


def _consoles(vnc_port: int) -> list[str]:
    """The serial console goes to standard output, so into the process's log, which is bounded. The screen has a
    password: any user of this host, and any guest with user networking, reaches the host's loopback."""
    return [
        *("-chardev", "stdio,id=serial,signal=off", "-serial", "chardev:serial"),
        *("-display", "none", "-device", "VGA,vgamem_mb=8"),
        *("-object", f"secret,id=vnc,file=../{VNC_SECRET}"),
        *("-vnc", f"{HOST}:{vnc_port - FIRST_VNC},password-secret=vnc"),
        *("-chardev", f"socket,id=qmp,path={MONITOR},server=on,wait=off", "-mon", "chardev=qmp,mode=control"),
        *("-device", "virtio-serial-pci", "-chardev", f"socket,id=agent,path={AGENT},server=on,wait=off"),
        *("-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"),
    ]


def _network(made: Hardware, ssh_port: int, taps: Mapping[str, int]) -> list[str]:
    words: list[str] = []
    first = ssh_card(made.cards)
    for number, card in enumerate(made.cards):
        ident = f"net{number}"
        if card.kind == BRIDGE:
            back = f"tap,id={ident},fd={taps[card.tap]}"
        else:
            back = f"user,id={ident},ipv6=off,restrict={'on' if card.kind == ISOLATED else 'off'}"
            if number == first:
                back += f",hostfwd=tcp:{HOST}:{ssh_port}-:22"
        words += ["-netdev", back, "-device", f"virtio-net-pci,netdev={ident},mac={card.mac},romfile="]
    return words
