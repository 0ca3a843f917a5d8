# SPDX-License-Identifier: GPL-3.0-or-later
"""What Proxmox VE cannot hold about a machine, written as its tags: they are all that the list of all machines shows.

So one request tells of any number of machines what they were made from, whom they belong to and how they are reached.
Proxmox keeps tags in lower case and takes letters, digits, "_", "-", "+" and "." only; the rest is written "+HH".

    fleet  project-shop  image-python-0a1b2c3d4e  login-dev  data-0123456789abcdef  size-2-4096-20480
    net0-vmbr1+mbc2411000001+i10.0.0.5+2f24+g10.0.0.1  ip-10.0.0.5  web

Those without a beginning of ours are the machine's own tags. One that looks like ours is written "tag-...".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .proxmox_marks import tags_of

if TYPE_CHECKING:
    from fleet_core.machines import Network, ip_addresses
else:
    try:
        from ..fleet_core.machines import Network, ip_addresses
    except ImportError:  # installed as a top-level package
        from fleet_core.machines import Network, ip_addresses

OURS = "fleet"
UNFINISHED = "fleet-unfinished"
FENCE = "fleet-fence-"
# A clone bears this behind its name until it has its tags: they cannot be given to a clone at once.
SUFFIX = ".incomplete"

_PLAIN = re.compile(r"[a-z0-9_.-]")
_OWN = re.compile(r"fleet(-.*)?|(project|image|login|data|size|net\d+|ip|tag)-.*")
_NET = re.compile(r"net(\d+)-([^+]*(?:\+[0-9a-f]{2}[^+]*)*)((?:\+[mig].*)?)")
_PART = re.compile(r"\+([mig])((?:[^+]|\+[0-9a-f]{2})*)")


@dataclass(frozen=True)
class Marks:
    """What the tags of a machine say. size: processors, and memory and disk in MiB, as they were set last.

    fence: the digest of what its firewall was given.
    """

    ours: bool = False
    unfinished: bool = False
    image: str = ""
    project: str = ""
    login: str = ""
    user_data: str = ""
    tags: tuple[str, ...] = ()
    networks: tuple[Network, ...] = ()
    addresses: tuple[str, ...] = ()
    size: tuple[int, int, int] | None = None
    fence: str = ""

    def evolve(self, **values: Any) -> Marks:
        return replace(self, **values)

    def text(self) -> str:
        """Return the tags as Proxmox takes and returns them."""
        found = {OURS} if self.ours else set()
        if self.unfinished:
            found.add(UNFINISHED)
        for prefix, value in (("project", self.project), ("image", self.image), ("login", self.login)):
            if value:
                found.add(f"{prefix}-{encoded(value)}")
        if self.user_data:
            found.add(f"data-{self.user_data.rpartition(':')[2]}")
        if self.fence:
            found.add(FENCE + self.fence)
        if self.size is not None:
            found.add("size-{}-{}-{}".format(*self.size))
        found.update(_net_tag(number, network) for number, network in enumerate(self.networks))
        found.update(f"ip-{address.lower().replace(':', '-')}" for address in self.addresses)
        found.update(_own_tag(tag) for tag in self.tags)
        return ";".join(sorted(found))


def marks_of(text: object) -> Marks:
    """Return what the tags of a guest say. Those that are not well formed are left out."""
    own: list[str] = []
    values: dict[str, Any] = {}
    networks: dict[int, Network] = {}
    addresses: list[str] = []
    for raw in tags_of(text):
        tag = raw.lower()
        prefix, dash, rest = tag.partition("-")
        if tag in (OURS, UNFINISHED):
            values["ours" if tag == OURS else "unfinished"] = True
        elif tag.startswith(FENCE):
            values["fence"] = tag[len(FENCE) :]
        elif tag.startswith("fleet-"):
            continue  # a golden image's, which a clone brings along
        elif dash and prefix in ("project", "image", "login"):
            values[prefix] = decoded(rest)
        elif dash and prefix == "data":
            values["user_data"] = f"sha256:{rest}"
        elif dash and prefix == "size":
            numbers = re.fullmatch(r"(\d+)-(\d+)-(\d+)", rest)
            if numbers:
                values["size"] = (int(numbers[1]), int(numbers[2]), int(numbers[3]))
        elif dash and prefix == "ip":
            addresses.append(rest if "." in rest else rest.replace("-", ":"))
        elif dash and prefix == "tag":
            own.append(decoded(rest))
        elif (net := _NET.fullmatch(tag)) is not None:
            networks[int(net[1])] = _network(net[2], net[3])
        else:
            own.append(decoded(tag))
    return Marks(
        tags=tuple(sorted(own)),
        networks=tuple(networks[number] for number in sorted(networks)),
        addresses=tuple(sorted(ip_addresses(addresses), key=lambda address: (":" in address, address))),
        **values,
    )


def encoded(text: str) -> str:
    """Return text so that it can stand in a tag."""
    return "".join(
        char if _PLAIN.match(char) else "".join(f"+{byte:02x}" for byte in char.encode("utf-8")) for char in text
    )


def decoded(text: str) -> str:
    found = re.sub(r"\+([0-9a-f]{2})", lambda match: chr(int(match[1], 16)), text)
    return found.encode("latin-1", "replace").decode("utf-8", "replace")


def differs(before: object, after: Marks) -> bool:
    """Tell whether a guest has other tags than these."""
    return {tag.lower() for tag in tags_of(before)} != set(after.text().split(";"))


def _own_tag(tag: str) -> str:
    written = encoded(tag)
    plain = re.match(r"[a-z0-9_]", written) is not None and not _OWN.fullmatch(written)
    return written if plain else f"tag-{written}"


def _net_tag(number: int, network: Network) -> str:
    parts = [f"net{number}-{encoded(network.name)}"]
    if network.mac:
        parts.append(f"m{network.mac.replace(':', '')}")
    if network.address:
        parts.append(f"i{encoded(network.address)}")
    if network.gateway:
        parts.append(f"g{encoded(network.gateway)}")
    return "+".join(parts)


def _network(name: str, rest: str) -> Network:
    parts: Mapping[str, str] = {match[1]: decoded(match[2]) for match in _PART.finditer(rest)}
    mac = parts.get("m", "")
    return Network(
        decoded(name),
        ":".join(mac[at : at + 2] for at in range(0, len(mac), 2)),
        parts.get("i", ""),
        parts.get("g", ""),
    )


def own_tags(tags: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(tags)))
