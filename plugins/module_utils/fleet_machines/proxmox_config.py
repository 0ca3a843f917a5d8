# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration of a guest as Proxmox VE writes it: read, and what differs from what is wanted. No requests.

https://pve.proxmox.com/pve-docs/qm.conf.5.html
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    from fleet_core.errors import InvalidInput
    from fleet_core.machines import MachineSpec, Network
    from fleet_core.quantities import format_size
else:
    try:
        from ..fleet_core.errors import InvalidInput
        from ..fleet_core.machines import Network
        from ..fleet_core.quantities import format_size
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import InvalidInput
        from fleet_core.machines import Network
        from fleet_core.quantities import format_size

MIB = 1024**2
DRIVE = re.compile(r"(?:ide[0-3]|sata[0-5]|scsi(?:[12]?\d|30)|virtio(?:1[0-5]|\d))")
NET = re.compile(r"net(\d+)")
_MODELS = (
    *("e1000", "e1000-82540em", "e1000-82544gc", "e1000-82545em", "e1000e", "i82551", "i82557b", "i82559er"),
    *("ne2k_isa", "ne2k_pci", "pcnet", "rtl8139", "virtio", "vmxnet3"),
)
_SIZES = {"": 1, "K": 1024, "M": MIB, "G": 1024**3, "T": 1024**4}
_SLOTS = ("ide2", "ide0", "ide1", "ide3", "sata5", "scsi30")

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Drive:
    """A drive: slot, such as scsi0; volume, such as local-lvm:vm-120-disk-0; options, such as size."""

    slot: str
    volume: str
    options: Mapping[str, str]

    @property
    def cdrom(self) -> bool:
        return self.options.get("media") == "cdrom" or self.volume == "cdrom"

    @property
    def cloudinit(self) -> bool:
        name = self.volume.rpartition(":")[2]
        return self.cdrom and (name == "cloudinit" or re.search(r"vm-\d+-cloudinit", name) is not None)

    @property
    def storage(self) -> str:
        return self.volume.partition(":")[0] if ":" in self.volume else ""

    @property
    def size(self) -> int:
        """Bytes; 0 when the configuration does not say."""
        return size_of(self.options.get("size", ""))


def parts_of(value: object) -> tuple[str, dict[str, str]]:
    """Return the first part of a property string when it has no key, and the others."""
    first, options = "", {}
    for number, part in enumerate(str(value or "").split(",")):
        key, equals, text = part.partition("=")
        if equals:
            options[key.strip()] = text
        elif number == 0:
            first = key
    return first, options


def size_of(text: str) -> int:
    """Return bytes of a size as Proxmox writes it, such as 20G or 528K; 0 for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)", text)
    return int(float(found[1]) * _SIZES[found[2]]) if found else 0


def drives_of(config: Config) -> tuple[Drive, ...]:
    """Return the drives in the order of their slots."""
    found = []
    for slot in sorted((key for key in config if DRIVE.fullmatch(key)), key=_natural):
        volume, options = parts_of(config[slot])
        found.append(Drive(slot, volume or options.pop("file", ""), options))
    return tuple(found)


def disk_of(config: Config) -> Drive | None:
    """Return the disk that the guest boots from."""
    disks = [drive for drive in drives_of(config) if not drive.cdrom and drive.volume not in ("", "none")]
    _first, boot = parts_of(config.get("boot", ""))
    order = [slot for slot in boot.get("order", "").split(";") if slot] or [str(config.get("bootdisk", ""))]
    for slot in order:
        for drive in disks:
            if drive.slot == slot:
                return drive
    return disks[0] if disks else None


def cloudinit_of(config: Config) -> Drive | None:
    """Return Proxmox's own cloud-init drive."""
    return next((drive for drive in drives_of(config) if drive.cloudinit), None)


def seed_slot(config: Config) -> str:
    """Return the slot for a drive with user data: that of the one there is, or of an empty CD-ROM, or a free one."""
    drives = drives_of(config)
    for drive in drives:
        if drive.cloudinit or is_seed(drive):
            return drive.slot
    for drive in drives:
        if drive.cdrom and drive.volume in ("none", "cdrom"):
            return drive.slot
    used = {drive.slot for drive in drives}
    return next((slot for slot in _SLOTS if slot not in used), "ide2")


def seed_file(name: str, vmid: int) -> str:
    """Return the name of the file with a machine's user data."""
    return f"fleet-{name.lower()}-{vmid}.iso"


def is_seed(drive: Drive) -> bool:
    return drive.cdrom and re.search(r":iso/fleet-.+-\d+\.iso$", drive.volume) is not None


def cpus_of(config: Config) -> int:
    return int(config.get("vcpus") or int(config.get("cores") or 1) * int(config.get("sockets") or 1))


def memory_of(config: Config) -> int:
    """Bytes. Since version 8.1 it is a property string."""
    first, options = parts_of(config.get("memory", "512"))
    return int(first or options.get("current") or 512) * MIB


def networks_of(config: Config) -> tuple[Network, ...]:
    found = []
    for number in net_numbers(config):
        _first, options = parts_of(config[f"net{number}"])
        mac = next((options[model] for model in _MODELS if model in options), options.get("macaddr", ""))
        address, gateway = _address(config.get(f"ipconfig{number}"))
        found.append(Network(options.get("bridge", ""), mac.lower(), address, gateway))
    return tuple(found)


def net_numbers(config: Config) -> list[int]:
    return sorted(int(match[1]) for key in config if (match := NET.fullmatch(key)))


def filtered(config: Config, number: int) -> bool:
    """Tell whether Proxmox's firewall stands before a card."""
    return parts_of(config.get(f"net{number}"))[1].get("firewall") == "1"


def agent_of(config: Config) -> bool:
    first, options = parts_of(config.get("agent", "0"))
    return (first or options.get("enabled", "0")) == "1"


def static_addresses(networks: Sequence[Network]) -> tuple[str, ...]:
    """Return the addresses that networks are given, without their prefix lengths."""
    return tuple(network.address.partition("/")[0] for network in networks if "/" in network.address)


def mebibytes(what: str, field: str, size: int) -> int:
    if size % MIB:
        raise InvalidInput(f"{what}: {field}: Proxmox VE counts in MiB, found {format_size(size)}")
    return size // MIB


# -- what is wanted ----------------------------------------------------------------------------------------------------


def sizes(what: str, spec: MachineSpec, config: Config) -> dict[str, Any]:
    """Return the keys for processors and memory."""
    keys: dict[str, Any] = {}
    if spec.cpu is not None and spec.cpu != cpus_of(config):
        keys.update(cores=spec.cpu, vcpus=None)
        if int(config.get("sockets") or 1) != 1:
            keys["sockets"] = 1
    if spec.memory is not None and spec.memory != memory_of(config):
        wanted = mebibytes(what, "memory", spec.memory)
        keys["memory"] = wanted
        if int(config.get("balloon") or 0) > wanted:  # Proxmox refuses more at least than at most
            keys["balloon"] = wanted
    return keys


def nets(wanted: Sequence[Network], config: Config, new_mac: Any) -> dict[str, Any]:
    """Return the keys for these networks. What the guest has otherwise of an interface (its model, VLAN tag,
    firewall) stays. new_mac: a function that makes a hardware address."""
    keys: dict[str, Any] = {}
    for number, network in enumerate(wanted):
        before = str(config.get(f"net{number}", ""))
        _first, options = parts_of(before)
        model = next((name for name in _MODELS if name in options), "virtio")
        mac = network.mac or options.pop(model, "") or options.pop("macaddr", "") or new_mac()
        rest = {key: value for key, value in options.items() if key not in (*_MODELS, "macaddr", "bridge", "model")}
        rest["bridge"] = network.name
        keys[f"net{number}"] = ",".join(
            [f"{model}={mac.upper()}", *(f"{key}={rest[key]}" for key in sorted(rest))],
        )
        address = ipconfig(network, str(config.get(f"ipconfig{number}", "")))
        if address:
            keys[f"ipconfig{number}"] = address
    for number in net_numbers(config):
        if number >= len(wanted):
            keys[f"net{number}"] = None
            if f"ipconfig{number}" in config:
                keys[f"ipconfig{number}"] = None
    return keys


def ipconfig(network: Network, before: str) -> str:
    """Return the value of ipconfigN. An interface without an address of its own keeps what it had, or asks for one."""
    if not network.address:
        return before or "ip=dhcp"
    if network.address == "dhcp":
        return "ip=dhcp"
    six = ipaddress.ip_interface(network.address).version == 6
    gateway = f",{'gw6' if six else 'gw'}={network.gateway}" if network.gateway else ""
    return f"{'ip6' if six else 'ip'}={network.address}{gateway}"


def changed(config: Config, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return what to set, and under "delete" what to remove, so that a configuration is as wanted. None: removed."""
    keys = {key: value for key, value in wanted.items() if value is not None and not _same(config.get(key), value)}
    gone = sorted(key for key, value in wanted.items() if value is None and key in config)
    return {**keys, "delete": ",".join(gone)} if gone else keys


def ssh_keys(keys: Sequence[str]) -> str:
    """Return SSH keys as Proxmox wants them: URL-encoded, beside the encoding of the request itself."""
    return quote("\n".join(keys), safe="")


def _same(before: Any, after: Any) -> bool:
    if before is None:
        return False
    if isinstance(after, bool):
        after = int(after)
    if "," in str(after) or "=" in str(after):
        return parts_of(_lower_mac(before)) == parts_of(_lower_mac(after))
    return str(before).strip() == str(after).strip()


def _lower_mac(value: Any) -> str:
    return re.sub(r"(?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}", lambda match: match[0].lower(), str(value))


def _address(value: object) -> tuple[str, str]:
    _first, options = parts_of(value)
    for address, gateway in (("ip", "gw"), ("ip6", "gw6")):
        given = options.get(address, "")
        if given and given not in ("auto", "manual"):
            return given, options.get(gateway, "")
    return "", ""


def _natural(slot: str) -> tuple[int, int]:
    # As Proxmox looks for the disk to boot from.
    found = re.fullmatch(r"([a-z]+)(\d+)", slot)
    name, number = (found[1], int(found[2])) if found else (slot, 0)
    return (("ide", "sata", "scsi", "virtio").index(name) if found else 9, number)
