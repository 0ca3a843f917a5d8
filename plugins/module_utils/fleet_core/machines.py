# SPDX-License-Identifier: GPL-3.0-or-later
"""Machines: what is wanted (MachineSpec) and what a provider has (Machine)."""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from .errors import InvalidInput
from .names import NAME, as_int, as_text, check_keys, check_name, describe
from .quantities import format_size, parse_size

# A host name (RFC 1123) that begins with a letter: every provider takes it, and so does DNS.
MACHINE_NAME = re.compile(r"[A-Za-z](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}")

# What a machine can be. The rest of what providers say is one of these in other words.
STATES = ("running", "starting", "stopping", "stopped", "suspended", "deleted", "unknown")

MOST_CPUS = 1024
SMALLEST_MEMORY = 16 * 1024**2
SMALLEST_DISK = 16 * 1024**2


@dataclass(frozen=True)
class Network:
    """One network interface. name: the network or bridge as the provider calls it; mac: lower case, empty: any.

    address: "dhcp", an address with its prefix length, or empty for the provider's default; gateway: of that network.
    """

    name: str
    mac: str = ""
    address: str = ""
    gateway: str = ""

    def to_dict(self) -> dict[str, str]:
        return {part.name: value for part in fields(self) if (value := getattr(self, part.name))}


@dataclass(frozen=True)
class MachineSpec:
    """What is wanted of a machine. None and "" mean: not given, so a new one gets the provider's default, and
    what an existing one has is right.

    memory, disk: bytes. user_data: for cloud-init, applied when the machine first boots. login: the account that
    Ansible and people log in with.
    """

    name: str
    provider: str
    image: str = ""
    cpu: int | None = None
    memory: int | None = None
    disk: int | None = None
    networks: tuple[Network, ...] | None = None
    user_data: str | None = field(default=None, repr=False)
    tags: tuple[str, ...] | None = None
    project: str | None = None
    login: str | None = None

    @property
    def user_data_hash(self) -> str:
        return "" if self.user_data is None else text_hash(self.user_data)

    def to_dict(self) -> dict[str, Any]:
        """Return what is given, the user data as their hash: they may hold secrets."""
        return _plain(self, user_data=self.user_data_hash)


@dataclass(frozen=True)
class Machine:
    """A machine as its provider has it. 0 and "" mean: not known.

    user_data: the hash of what it first booted with. incomplete: what is missing of one that could not be made
    wholly. checkpoints: how many it has. detail: what only this provider knows, JSON-ready.

    addresses: as the provider's host reaches them, the one for SSH first; port: that of SSH there.
    """

    name: str
    provider: str
    state: str = "unknown"
    addresses: tuple[str, ...] = ()
    image: str = ""
    cpu: int = 0
    memory: int = 0
    disk: int = 0
    networks: tuple[Network, ...] = ()
    user_data: str = ""
    tags: tuple[str, ...] = ()
    project: str = ""
    login: str = ""
    port: int = 22
    checkpoints: int = 0
    incomplete: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)

    def evolve(self, **values: Any) -> Machine:
        return replace(self, **values)

    def to_dict(self) -> dict[str, Any]:
        return {
            **{part.name: getattr(self, part.name) for part in fields(self)},
            "addresses": list(self.addresses),
            "networks": [network.to_dict() for network in self.networks],
            "tags": list(self.tags),
            "detail": dict(self.detail),
        }


KEYS = tuple(part.name for part in fields(MachineSpec))


def text_hash(text: str) -> str:
    """Return a short hash to tell two texts apart."""
    return "sha256:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def ip_addresses(values: object) -> tuple[str, ...]:
    """Return what of a list are IP addresses without a zone, none twice.

    Guests tell theirs themselves, and ssh, shells and templates get to see them: nothing else may pass for one.
    """
    found: list[str] = []
    for value in values if isinstance(values, (list, tuple)) else ():
        # A zone ("fe80::1%eth0") may be any text, and means nothing outside of the guest.
        if isinstance(value, str) and "%" not in value:
            with contextlib.suppress(ValueError):
                found.append(str(ipaddress.ip_address(value)))
    return tuple(dict.fromkeys(found))


def check_machine_name(name: object) -> str:
    """Return the name if it is a host name, else raise InvalidInput."""
    if not isinstance(name, str) or not MACHINE_NAME.fullmatch(name):
        shown = repr(name) if isinstance(name, str) else describe(name)
        raise InvalidInput(
            f"machine name {shown}: expected a host name: a letter, then at most 62 letters, digits and '-', "
            "the last no '-'"
        )
    return name


def machine_spec(data: object, provider: str = "") -> MachineSpec:
    """Return the machine that a mapping with the fields of MachineSpec describes.

    provider: of one that names none. Sizes are taken as quantities.parse_size takes them.
    Raises InvalidInput, which names the machine, the key and what was expected.
    """
    if not isinstance(data, Mapping):
        raise InvalidInput(f"machine: expected a mapping, found {describe(data)}")
    name = check_machine_name(data.get("name"))
    where = f'machine "{name}"'
    data = {key: value for key, value in check_keys(where, data, KEYS).items() if value is not None}
    cpu, memory, disk = data.get("cpu"), data.get("memory"), data.get("disk")
    return MachineSpec(
        name=name,
        provider=check_name("provider", data.get("provider") or provider),
        image=as_text(f"{where}: image", data.get("image", "")).strip(),
        cpu=None if cpu is None else as_int(f"{where}: cpu", cpu, 1, MOST_CPUS),
        memory=None if memory is None else _size(f"{where}: memory", memory, SMALLEST_MEMORY),
        disk=None if disk is None else _size(f"{where}: disk", disk, SMALLEST_DISK),
        networks=_networks(where, data["networks"]) if "networks" in data else None,
        user_data=as_text(f"{where}: user_data", data["user_data"]) if "user_data" in data else None,
        tags=_tags(where, data["tags"]) if "tags" in data else None,
        project=_project(where, data["project"]) if "project" in data else None,
        login=check_name(f"{where}: login", data["login"]) if "login" in data else None,
    )


def machine_specs(items: Iterable[object], provider: str = "") -> tuple[MachineSpec, ...]:
    """Return the machines of a list. Two names of one provider must differ in more than upper and lower case."""
    specs = tuple(machine_spec(item, provider) for item in items)
    seen: dict[tuple[str, str], str] = {}
    for spec in specs:
        key = (spec.provider, spec.name.lower())
        if key in seen:
            other = "stands twice" if seen[key] == spec.name else f'is the same host name as "{seen[key]}"'
            raise InvalidInput(f'machine "{spec.name}": {other} in the list of machines')
        seen[key] = spec.name
    return specs


def network_from_dict(where: str, data: object) -> Network:
    """Return a network from its name alone, or from a mapping with the fields of Network."""
    if isinstance(data, str):
        data = {"name": data}
    data = {key: value for key, value in check_keys(where, data, _NETWORK_KEYS).items() if value is not None}
    texts = {key: as_text(f"{where}.{key}", value).strip() for key, value in data.items()}
    if not texts.get("name"):
        raise InvalidInput(f"{where}: expected the name of a network")
    if not NAME.fullmatch(texts["name"]):
        raise InvalidInput(f"{where}.name: expected letters, digits, '.', '_' and '-', found {describe(texts['name'])}")
    mac = texts.get("mac", "").lower().replace("-", ":")
    if mac and not MAC.fullmatch(mac):
        raise InvalidInput(f'{where}.mac: expected a hardware address such as "52:54:00:12:34:56", found {mac!r}')
    address, gateway = texts.get("address", ""), texts.get("gateway", "")
    if address not in ("", "dhcp"):
        try:
            address = str(ipaddress.ip_interface(address)) if "/" in address else ""
        except ValueError:
            address = ""
        if not address:
            raise InvalidInput(
                f'{where}.address: expected "dhcp" or an address with its prefix length, such as "192.168.100.5/24", '
                f"found {describe(data['address'])}"
            )
    if gateway:
        try:
            gateway = str(ipaddress.ip_address(gateway))
        except ValueError:
            raise InvalidInput(f"{where}.gateway: expected an IP address, found {describe(gateway)}") from None
    return Network(texts["name"], mac, address, gateway)


_NETWORK_KEYS = tuple(part.name for part in fields(Network))


def shown(name: str, value: Any) -> str:
    """Return the value of a machine's field as people read it."""
    if name in ("memory", "disk"):
        return format_size(value) if value else "unknown"
    if name == "networks":
        return ", ".join(" ".join(network.to_dict().values()) for network in value) or "none"
    if name == "tags":
        return ", ".join(value) or "none"
    return str(value) if value else "none"


def _plain(spec: MachineSpec, **instead: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for part in fields(spec):
        value = instead.get(part.name, getattr(spec, part.name))
        if value is None or value == "":
            continue
        if part.name == "networks":
            value = [network.to_dict() for network in value]
        found[part.name] = list(value) if isinstance(value, tuple) else value
    return found


def _size(where: str, value: object, least: int) -> int:
    size = parse_size(where, value)
    if size < least:
        raise InvalidInput(f'{where}: expected at least {format_size(least)}, such as "2G", found {describe(value)}')
    return size


def _networks(where: str, value: object) -> tuple[Network, ...]:
    items = [value] if isinstance(value, (str, Mapping)) else value
    if not isinstance(items, (list, tuple)):
        raise InvalidInput(f"{where}: networks: expected a list, found {describe(value)}")
    found = tuple(network_from_dict(f"{where}: networks[{number}]", item) for number, item in enumerate(items))
    macs = [network.mac for network in found if network.mac]
    for mac in macs:
        if macs.count(mac) > 1:
            raise InvalidInput(f"{where}: networks: {mac} stands twice")
    return found


def _tags(where: str, value: object) -> tuple[str, ...]:
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)):
        raise InvalidInput(f"{where}: tags: expected a list, found {describe(value)}")
    tags = {as_text(f"{where}: tags", item).strip() for item in items} - {""}
    for tag in tags:
        check_name(f"{where}: tag", tag)
    return tuple(sorted(tags))


def _project(where: str, value: object) -> str:
    return check_name(f"{where}: project", value) if value != "" else ""
