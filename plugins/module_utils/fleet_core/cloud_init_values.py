# SPDX-License-Identifier: GPL-3.0-or-later
"""The values that templates of cloud-init are filled with: names in an inventory, NAME=value lines in a .env file."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .distributions import Distribution, distribution
from .errors import InvalidInput
from .names import as_bool, as_int, as_text, check_keys, describe, nearest
from .processes import is_secret
from .quantities import parse_size
from .ssh_keys import public_key

# Variables of a .env file, and the values that they are.
VARIABLES = {
    "VM_NAME": "name",
    "VM_DISTRIBUTION": "distribution",
    "VM_USER": "user",
    "VM_CPUS": "cpus",
    "VM_MEMORY": "memory",
    "VM_DISK": "disk",
    "VM_TIMEZONE": "timezone",
    "VM_PACKAGES": "packages",
    "VM_RUNNERS": "runners",
    "VM_MAC": "mac_address",
    "VM_ADDRESS": "addresses",
    "VM_GATEWAY": "gateway",
    "VM_NAMESERVERS": "nameservers",
    "SSH_PUBLIC_KEY": "ssh_public_keys",
    "GIT_NAME": "git_name",
    "GIT_EMAIL": "git_email",
    "FLEET_PACKAGE": "fleet_package",
    "FLEET_WHEEL": "fleet_wheel",
    "PIP_INDEX": "pip_index",
    "NPM_REGISTRY": "npm_registry",
    "PYTHON_MIRROR": "python_mirror",
}
KEYS = (*VARIABLES.values(), "interfaces")
INTERFACE_KEYS = ("name", "mac_address", "dhcp4", "dhcp6", "addresses", "gateway", "nameservers", "search", "mtu")
RUNNERS = ("claude", "codex", "opencode", "qwen", "gemini")

_HOSTNAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+")
_TIMEZONE = re.compile(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+){0,2}")
_EMAIL = re.compile(r"[^@\s<>]+@[^@\s<>]+")
_MAC = re.compile(r"([0-9a-f]{2}:){5}[0-9a-f]{2}")
_LINK = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,14}")
_REQUIREMENT = re.compile(r"[A-Za-z0-9][^\s;|&<>$`'\"\\]*(==[A-Za-z0-9.+!-]+)?")
_WHEEL = re.compile(r"[^\s'\"]+-[^\s'\"/]+\.whl")
_URL = re.compile(r"https?://[A-Za-z0-9.:\[\]-]+(/[A-Za-z0-9._~/%+-]*)?")
_SMALLEST_MEMORY = 256 * 1024**2
_SMALLEST_DISK = 2 * 1024**3


@dataclass(frozen=True)
class Interface:
    """One network interface, known by its hardware address and renamed to name. No address means DHCP."""

    name: str
    mac_address: str
    dhcp4: bool
    dhcp6: bool
    addresses: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()
    nameservers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    mtu: int = 0


@dataclass(frozen=True)
class MachineValues:
    """What a machine's templates know. memory and disk in bytes.

    fleet_package: what pip installs fleetd from. fleet_wheel: a wheel on the control node, which user data then holds.
    pip_index, npm_registry, python_mirror: URLs of packages, and of uv's builds of Python, instead of the public ones.
    """

    name: str
    distribution: Distribution
    user: str
    ssh_public_keys: tuple[str, ...]
    git_name: str = ""
    git_email: str = ""
    cpus: int = 2
    memory: int = 4 * 1024**3
    disk: int = 20 * 1024**3
    timezone: str = "Etc/UTC"
    packages: tuple[str, ...] = ()
    runners: tuple[str, ...] = ("claude",)
    fleet_package: str = ""
    fleet_wheel: str = ""
    pip_index: str = ""
    npm_registry: str = ""
    python_mirror: str = ""
    interfaces: tuple[Interface, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists and mappings, for templates; with git_config, the text of a .gitconfig."""
        data = asdict(self)
        data["distribution"] = self.distribution.to_dict()
        for key in ("ssh_public_keys", "packages", "runners"):
            data[key] = list(data[key])
        data.pop("interfaces")
        return {**data, "git_config": git_config(self.git_name, self.git_email)}


def values_from_env(variables: Mapping[str, str], where: str = ".env") -> dict[str, Any]:
    """Return the values that the variables of a .env file give; empty ones count as not given."""
    found: dict[str, Any] = {}
    for name, value in variables.items():
        if name not in VARIABLES:
            if is_secret(name):
                raise InvalidInput(
                    f"{where}: {name}: secrets stay out of user data; give it to the agent that needs it"
                )
            raise InvalidInput(f'{where}: unknown variable "{name}"{_hint(name)}')
        if value.strip():
            found[VARIABLES[name]] = value
    return found


def _hint(name: str) -> str:
    return nearest(name.upper(), VARIABLES) or f"; known ones: {', '.join(VARIABLES)}"


def machine_values(data: Mapping[str, Any]) -> MachineValues:
    """Return checked values. Raises InvalidInput that names the machine and the value."""
    name = str(data.get("name") or "")
    where = f'machine "{name}"'
    check_keys(where, data, KEYS)
    given = {key: value for key, value in data.items() if value is not None and value != ""}
    if not _HOSTNAME.fullmatch(name):
        raise InvalidInput(f"{where}: name: expected 1 to 63 small letters, digits and '-', found {describe(name)}")
    release = distribution(where, given.get("distribution", "ubuntu-24.04"))
    user = as_text(f"{where}: user", given.get("user", "dev"))
    if not _USER.fullmatch(user) or user == "root":
        raise InvalidInput(
            f"{where}: user: expected a user name of small letters other than root, found {describe(user)}"
        )
    return MachineValues(
        name=name,
        distribution=release,
        user=user,
        ssh_public_keys=_keys(where, given.get("ssh_public_keys", ())),
        git_name=_line(f"{where}: git_name", given.get("git_name", "")),
        git_email=_fits(f"{where}: git_email", given.get("git_email", ""), _EMAIL, "an address such as me@example.com"),
        cpus=as_int(f"{where}: cpus", given.get("cpus", 2), 1, 512),
        memory=_size(f"{where}: memory", given.get("memory", "4G"), _SMALLEST_MEMORY, "256M"),
        disk=_size(f"{where}: disk", given.get("disk", "20G"), _SMALLEST_DISK, "2G"),
        timezone=_fits(
            f"{where}: timezone", given.get("timezone", "Etc/UTC"), _TIMEZONE, "a name such as Europe/Berlin"
        ),
        packages=_words(f"{where}: packages", given.get("packages", ()), _PACKAGE, "a Debian package"),
        runners=_runners(f"{where}: runners", given.get("runners", ("claude",))),
        fleet_package=_fits(
            f"{where}: fleet_package",
            given.get("fleet_package", ""),
            _REQUIREMENT,
            "NAME==VERSION or the URL of a wheel",
        ),
        fleet_wheel=_wheel(where, given),
        pip_index=_url(f"{where}: pip_index", given.get("pip_index", "")),
        npm_registry=_url(f"{where}: npm_registry", given.get("npm_registry", "")),
        python_mirror=_url(f"{where}: python_mirror", given.get("python_mirror", "")),
        interfaces=_interfaces(where, given),
    )


def _keys(where: str, value: object) -> tuple[str, ...]:
    lines = value.splitlines() if isinstance(value, str) and "PRIVATE KEY" not in value else value
    lines = [lines] if isinstance(lines, str) else lines
    if not isinstance(lines, Sequence):
        raise InvalidInput(f"{where}: ssh_public_keys: expected a list of keys, found {describe(value)}")
    keys = [
        public_key(f"{where}: ssh_public_keys", line) for line in lines if not isinstance(line, str) or line.strip()
    ]
    if not keys:
        raise InvalidInput(
            f"{where}: ssh_public_keys: expected a public SSH key, found none; nobody could log in"
            " (SSH_PUBLIC_KEY in a .env file)"
        )
    return tuple(dict.fromkeys(keys))


def _line(where: str, value: object) -> str:
    text = as_text(where, value).strip()
    if not text.isprintable():
        raise InvalidInput(f"{where}: expected printable text on one line, found {describe(text)}")
    return text


def _fits(where: str, value: object, pattern: re.Pattern[str], expected: str) -> str:
    text = _line(where, value)
    if text and not pattern.fullmatch(text):
        raise InvalidInput(f"{where}: expected {expected}, found {describe(text)}")
    return text


def _size(where: str, value: object, least: int, shown: str) -> int:
    size = parse_size(where, value)
    if size < least:
        raise InvalidInput(f"{where}: expected {shown} or more, found {value} (numbers without a unit are bytes)")
    return size


def _words(where: str, value: object, pattern: re.Pattern[str], expected: str) -> tuple[str, ...]:
    words = value.replace(",", " ").split() if isinstance(value, str) else value
    if not isinstance(words, Sequence):
        raise InvalidInput(f"{where}: expected a list, found {describe(value)}")
    return tuple(dict.fromkeys(_fits(where, word, pattern, expected) for word in words))


def _url(where: str, value: object) -> str:
    text = _line(where, value)
    if "@" in text:  # never shown: what stands before it may be a password
        raise InvalidInput(f"{where}: expected a URL without a user and a password; secrets stay out of user data")
    return _fits(where, text, _URL, "a URL such as https://mirror.example/simple")


def _wheel(where: str, given: Mapping[str, Any]) -> str:
    path = _fits(
        f"{where}: fleet_wheel", given.get("fleet_wheel", ""), _WHEEL, "the path of a wheel, which ends in .whl"
    )
    if path and given.get("fleet_package"):
        raise InvalidInput(f"{where}: expected fleet_package or fleet_wheel, found both")
    return path


def _runners(where: str, value: object) -> tuple[str, ...]:
    names = _words(where, value, re.compile(".+"), "a runner")
    for name in names:
        if name not in RUNNERS:
            hint = nearest(name, RUNNERS) or f"; expected one of {', '.join(RUNNERS)}"
            raise InvalidInput(f'{where}: unknown runner "{name}"{hint}')
    return names


def _interfaces(where: str, data: Mapping[str, Any]) -> tuple[Interface, ...]:
    single = {key: data[key] for key in ("mac_address", "addresses", "gateway", "nameservers") if key in data}
    listed = data.get("interfaces", [])
    if not isinstance(listed, Sequence) or isinstance(listed, str):
        raise InvalidInput(f"{where}: interfaces: expected a list, found {describe(listed)}")
    if single and listed:
        raise InvalidInput(f"{where}: expected interfaces or {', '.join(single)}, found both")
    found = [
        _interface(f"{where}: interfaces[{number}]" if listed else where, item, number)
        for number, item in enumerate(listed or ([single] if single else []))
    ]
    for key in ("name", "mac_address"):
        values = [getattr(item, key) for item in found]
        twice = [value for value in values if values.count(value) > 1]
        if twice:
            raise InvalidInput(f"{where}: interfaces: {key} {twice[0]} is there twice")
    return tuple(found)


def _interface(where: str, data: object, number: int) -> Interface:
    given = {key: value for key, value in check_keys(where, data, INTERFACE_KEYS).items() if value not in (None, "")}
    if isinstance(given.get("mac_address"), int):  # base 60, says YAML 1.1
        raise InvalidInput(f"{where}: mac_address: expected text, found a number; YAML wants quotes around it")
    address = as_text(f"{where}: mac_address", given.get("mac_address", "")).lower().replace("-", ":")
    if not _MAC.fullmatch(address) or int(address[:2], 16) & 1:
        raise InvalidInput(
            f"{where}: mac_address: expected the hardware address of one device such as 52:54:00:12:34:56, "
            f"found {describe(address)}"
        )
    addresses = tuple(
        _address(where, word, True)
        for word in _words(f"{where}: addresses", given.get("addresses", ()), re.compile(".+"), "an address")
    )
    gateways = tuple(
        _address(where, word, False)
        for word in _words(f"{where}: gateway", given.get("gateway", ()), re.compile(".+"), "an address")
    )
    if gateways and not addresses:
        raise InvalidInput(f"{where}: gateway: expected addresses beside it; with DHCP it is not given")
    return Interface(
        name=_fits(f"{where}: name", given.get("name", f"net{number}"), _LINK, "a name of at most 15 characters"),
        mac_address=address,
        dhcp4=as_bool(f"{where}: dhcp4", given.get("dhcp4", not addresses)),
        dhcp6=as_bool(f"{where}: dhcp6", given.get("dhcp6", False)),
        addresses=addresses,
        gateways=gateways,
        nameservers=tuple(
            _address(where, word, False)
            for word in _words(f"{where}: nameservers", given.get("nameservers", ()), re.compile(".+"), "an address")
        ),
        search=_words(f"{where}: search", given.get("search", ()), re.compile(r"[A-Za-z0-9.-]+"), "a domain"),
        mtu=as_int(f"{where}: mtu", given.get("mtu", 0), 0, 65535),
    )


def _address(where: str, word: str, with_prefix: bool) -> str:
    expected = "an address with its prefix such as 10.0.0.5/24" if with_prefix else "an IP address"
    try:
        if with_prefix and "/" in word:
            return ipaddress.ip_interface(word).with_prefixlen
        if not with_prefix:
            return str(ipaddress.ip_address(word))
    except ValueError:
        pass
    raise InvalidInput(f"{where}: expected {expected}, found {describe(word)}")


def git_config(name: str, email: str) -> str:
    """Return the text of a .gitconfig with a user's identity; empty if there is none."""

    def quoted(value: str) -> str:
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'

    rows = [f"\t{key} = {quoted(value)}\n" for key, value in (("name", name), ("email", email)) if value]
    return "".join(["[user]\n", *rows]) if rows else ""
