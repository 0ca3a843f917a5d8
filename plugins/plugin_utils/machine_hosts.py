# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From machines to hosts of an inventory: their names, groups and variables.

What a provider says is other people's text. A name that could stand for another host is refused, and nothing but
addresses, ports and account names gets into what ssh is told.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.errors import Conflict, InvalidInput
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.images import family_of
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.known_hosts import ssh_options
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.machines import MACHINE_NAME, STATES
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.names import NAME, describe

# A DNS name. Machines of other people's making may have dots in theirs.
HOST_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9])?")
GROUPS = ("provider", "image", "project", "tag", "state", "node")
VARIABLE = "fleet_machine"
HERE = "localhost"  # what the node is called that is no other

_TEXTS = ("provider", "image", "user_data", "project", "login", "incomplete")
_NUMBERS = ("cpu", "memory", "disk", "checkpoints")
# What Ansible, or a resolver, takes for this computer, or for all hosts.
_RESERVED = re.compile(r"localhost|.*\.localhost|localhost\..*|all|ungrouped|ip6-.*", re.IGNORECASE)


@dataclass(frozen=True)
class Place:
    """Where a machine is. node: of its provider; jump: the words of the command that ssh passes through, if any."""

    provider: str
    node: str
    proxy: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reach:
    """What the controller has for machines: the file with their host keys, whose names, and the key to log in with."""

    known_hosts: str = ""
    known: frozenset[str] = frozenset()
    private_key: str = ""


@dataclass(frozen=True)
class Found:
    """A machine, as a mapping with the fields of Machine, and where it is."""

    machine: Mapping[str, Any]
    place: Place

    @property
    def name(self) -> str:
        return str(self.machine["name"])

    @property
    def node(self) -> str:
        """The node that the provider names, as a cluster does; else that of the provider."""
        return str(self.machine["detail"].get("node") or self.place.node)


def machine_from(data: object) -> dict[str, Any]:
    """Return a machine as Machine.to_dict writes it, from a provider's answer or a cache: known fields, right types.

    Raises InvalidInput for what is no machine.
    """
    if not isinstance(data, Mapping) or not isinstance(data.get("name"), str) or not data["name"]:
        raise InvalidInput(f"expected a machine with a name, found {describe(data)}")
    where = f"machine {data['name']!r}"
    found: dict[str, Any] = {"name": str(data["name"])}
    for key in _TEXTS:
        found[key] = _typed(where, data, key, str, "")
    for key in _NUMBERS:
        found[key] = _typed(where, data, key, int, 0)
    state = data.get("state")
    found["state"] = state if state in STATES else "unknown"
    found["port"] = _typed(where, data, "port", int, 22)
    found["detail"] = dict(_typed(where, data, "detail", Mapping, {}))
    found["networks"] = [dict(item) for item in _typed(where, data, "networks", list, []) if isinstance(item, Mapping)]
    for key in ("addresses", "tags"):
        found[key] = _typed(where, data, key, list, [])
        if not all(isinstance(item, str) for item in found[key]):
            raise InvalidInput(f"{where}: {key}: expected texts, found {describe(found[key])}")
    return found


def check_host_name(name: object) -> str:
    """Return a name that can be a host's. Raises InvalidInput for one that could stand for something else."""
    if not isinstance(name, str) or not HOST_NAME.fullmatch(name) or len(name) > 253:
        raise InvalidInput(f"machine {name!r}: expected a host name of letters, digits, '.', '_' and '-'")
    if _RESERVED.fullmatch(name) or _is_address(name):
        raise InvalidInput(f"machine {name!r}: expected a name of its own, found one that stands for something else")
    return name


def wanted(
    found: Found, projects: Sequence[str], tags: Sequence[str], states: Sequence[str], skip_incomplete: bool
) -> bool:
    """Tell whether a machine passes the filters. Without states, all but those that were deleted do."""
    machine = found.machine
    return (
        (not projects or machine["project"] in projects)
        and set(tags) <= set(machine["tags"])
        and (machine["state"] in states if states else machine["state"] != "deleted")
        and not (skip_incomplete and machine["incomplete"])
    )


def unique(names: Sequence[str], found: Sequence[Found], duplicates: str) -> list[str]:
    """Return the names, all different.

    duplicates: "error" raises Conflict when two machines have the same; "suffix" adds to each of them its provider,
    and its node when that does not tell them apart. Which is which never depends on an order.
    """
    result = list(names)
    for add in ("provider", "node"):
        for group in _same(result):
            if duplicates != "suffix":
                where = " and ".join(f"{found[index].place.provider} ({found[index].node})" for index in group)
                raise Conflict(
                    f'machine "{result[group[0]]}": {where} have one of this name; set duplicates: suffix, or a '
                    "hostname that tells them apart"
                )
            for index in group:
                suffix = found[index].place.provider if add == "provider" else found[index].node
                suffix = "here" if suffix == HERE else suffix  # a name below localhost is this computer's
                result[index] = check_host_name(f"{result[index]}.{re.sub(r'[^A-Za-z0-9-]', '-', suffix).strip('-')}")
    for group in _same(result):
        raise Conflict(f'machine "{result[group[0]]}": there are {len(group)} of this name on one node')
    return result


def groups_of(found: Found, by: Iterable[str], prefix: str = "") -> Iterator[str]:
    """Give the groups of a machine. Each begins with what it is about, so that no tag becomes a group of yours."""
    machine = found.machine
    values: dict[str, Sequence[str]] = {
        "provider": [found.place.provider],
        "image": [family_of(machine["image"])],
        "project": [machine["project"]],
        "tag": machine["tags"],
        "state": [machine["state"]],
        "node": [found.node],
    }
    for kind in by:
        for value in values[kind]:
            if value:
                yield safe(f"{prefix}{kind}_{value}")


def safe(name: str) -> str:
    """Return a name that a group can have: what is no letter, digit or "_" becomes "_"."""
    return re.sub(r"[^A-Za-z0-9_]", "_", name)


def variables_of(found: Found, reach: Reach) -> dict[str, Any]:
    """Return the variables of a machine's host."""
    machine = found.machine
    values: dict[str, Any] = {VARIABLE: {**machine, "node": found.node}}
    address = next(filter(_is_address, machine["addresses"]), "")
    if address:
        values["ansible_host"] = address
        # Ansible tells connections apart by address, port and user alone. Behind two nodes, those can be the same.
        place = "\0".join((found.place.provider, found.place.node, found.name))
        digest = hashlib.sha256(place.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        values["ansible_control_path"] = f"%(directory)s/{digest}"
    if 1 <= machine["port"] <= 65535 and machine["port"] != 22:
        values["ansible_port"] = machine["port"]
    if NAME.fullmatch(machine["login"]):
        values["ansible_user"] = machine["login"]
    options: tuple[str, ...] = ()
    if found.name in reach.known and MACHINE_NAME.fullmatch(found.name):
        options = ssh_options(found.name, reach.known_hosts, found.place.proxy)
        if reach.private_key:
            values["ansible_ssh_private_key_file"] = reach.private_key
    elif found.place.proxy:
        options = ("-o", f"ProxyCommand={' '.join(found.place.proxy)}")
    if options:
        values["ansible_ssh_common_args"] = shlex.join(options)
    return values


def _same(names: Sequence[str]) -> list[list[int]]:
    """Return the indices of names that are the same host name: case makes no difference there."""
    seen: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        seen.setdefault(name.lower(), []).append(index)
    return [group for group in seen.values() if len(group) > 1]


def _is_address(text: str) -> bool:
    if "%" in text:  # a zone may be any text, and a shell sees addresses when there is a ProxyCommand
        return False
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _typed(where: str, data: Mapping[str, Any], key: str, kind: Any, default: Any) -> Any:
    value = data.get(key)
    if value is None:
        return default
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InvalidInput(f"{where}: {key}: expected {kind.__name__.lower()}, found {describe(value)}")
    return value
