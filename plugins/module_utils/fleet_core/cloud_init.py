# SPDX-License-Identifier: GPL-3.0-or-later
"""The three documents that cloud-init reads: user data, meta data, network configuration.

https://cloudinit.readthedocs.io/en/latest/explanation/format.html, .../reference/datasources/nocloud.html
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from .cloud_init_values import Interface, MachineValues
from .errors import InvalidInput
from .json_schema import Path, Problem, name_of, problems
from .names import check_keys, describe

HEADER = "#cloud-config"
FILES = ("user-data", "meta-data", "network-config")
# First line of a part of user data, and its type. The order counts: the longer beginning first.
PART_TYPES = {
    "#cloud-config-archive": "text/cloud-config-archive",
    "#cloud-config": "text/cloud-config",
    "#cloud-boothook": "text/cloud-boothook",
    "#part-handler": "text/part-handler",
    "#include-once": "text/x-include-once-url",
    "#include": "text/x-include-url",
    "## template: jinja": "text/jinja2",
    "#!": "text/x-shellscript",
}
# How cloud-init shall join parts: lists grow, mappings merge.
MERGE = "list(append)+dict(recurse_list)+str()"
# Keys that hold passwords or private keys, wherever they stand.
SECRET_KEYS = ("passwd", "plain_text_passwd", "hashed_passwd", "password", "chpasswd")
META_KEYS = ("instance-id", "local-hostname", "hostname", "public-keys", "dsmode", "network-interfaces")


def merge(documents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return one document: lists are appended, equal items once; mappings merge; else the last value counts."""
    result: dict[str, Any] = {}
    for document in documents:
        result = _merged(result, document)
    return result


def _merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(one)
    for key, value in other.items():
        before = result.get(key)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            result[key] = _merged(before, value)
        elif isinstance(before, list) and isinstance(value, list):
            result[key] = [*before, *(item for item in value if item not in before)]
        else:
            result[key] = value
    return result


def user_data_problems(schema: Mapping[str, Any], data: Any) -> list[Problem]:
    """Return what is wrong with cloud-config: by the schema, and by our own rules."""
    if not isinstance(data, Mapping):
        return [Problem((), f"expected a mapping, found {describe(data)}")]
    return [*problems(schema, data), *rule_problems(data)]


def rule_problems(data: Mapping[str, Any], whole: bool = True) -> list[Problem]:
    """Return what the schema allows and we do not: secrets, passwords; in the whole, that nobody can log in."""
    found = list(_secrets(data, ()))
    if data.get("ssh_pwauth") in (True, "yes", "true", "on"):
        found.append(Problem(("ssh_pwauth",), "expected false: who logs in has a key"))
    if whole and not _has_key(data):
        found.append(Problem((), "no user has ssh_authorized_keys: nobody could log in"))
    return found


def _secrets(data: Any, path: Path) -> Iterator[Problem]:
    if isinstance(data, Mapping):
        for key, value in data.items():
            here = (*path, str(key))
            if key in SECRET_KEYS and value not in (None, ""):
                yield Problem(here, "a password does not belong in user data")
            else:
                yield from _secrets(value, here)
    elif isinstance(data, (list, tuple)):
        for number, value in enumerate(data):
            yield from _secrets(value, (*path, number))
    elif isinstance(data, str) and "PRIVATE KEY-----" in data:
        yield Problem(path, "a private key does not belong in user data")


def _has_key(data: Mapping[str, Any]) -> bool:
    users = data.get("users") or []
    named = [user for user in users if isinstance(user, Mapping)] if isinstance(users, (list, tuple)) else []
    sources = ("ssh_authorized_keys", "ssh-authorized-keys", "ssh_import_id")
    return any(item.get(key) for item in (data, *named) for key in sources)


def network_problems(schemas: Mapping[int, Mapping[str, Any]], data: Any) -> list[Problem]:
    """Return what is wrong with a network configuration. schemas: those of the versions 1 and 2."""
    if not isinstance(data, Mapping):
        return [Problem((), f"expected a mapping, found {describe(data)}")]
    inner = data.get("network", data)
    version = inner.get("version") if isinstance(inner, Mapping) else None
    if not isinstance(version, int) or isinstance(version, bool) or version not in schemas:
        return [Problem(("version",), f"expected version {' or '.join(map(str, schemas))}, found {describe(version)}")]
    return problems(schemas[version], data)


def meta_data_problems(data: Any) -> list[Problem]:
    """Return what is wrong with the meta data of NoCloud, for which cloud-init has no schema."""
    try:
        check_keys("", data, META_KEYS)
    except InvalidInput as error:
        return [Problem((), str(error).lstrip(": "))]
    found = []
    for key in ("instance-id", "local-hostname"):
        value = data.get(key)
        if not isinstance(value, str) or not value.strip():
            found.append(Problem((key,), f"expected text, found {describe(value)}"))
    return found


def sentence(where: str, problem: Problem, line: Callable[[Path], int] | None = None) -> str:
    """Return a problem as a sentence. line: gives the line of a path; 0 where it is not known."""
    number = line(problem.path) if line else 0
    name = name_of(problem.path[:-1] if problem.text.startswith("unknown key") else problem.path)
    return ": ".join(part for part in (f"{where} line {number}" if number else where, name, problem.text) if part)


def network_config(interfaces: Sequence[Interface]) -> dict[str, Any]:
    """Return version 2 of the network configuration: each interface matched by its hardware address, and renamed."""
    ethernets: dict[str, Any] = {}
    for item in interfaces:
        entry: dict[str, Any] = {"match": {"macaddress": item.mac_address}, "set-name": item.name}
        entry["dhcp4"] = item.dhcp4
        if item.dhcp6:
            entry["dhcp6"] = True
        if item.addresses:
            entry["addresses"] = list(item.addresses)
        if item.gateways:
            # "default" as a destination is unknown to some renderers of cloud-init.
            entry["routes"] = [{"to": "::/0" if ":" in via else "0.0.0.0/0", "via": via} for via in item.gateways]
        servers = {"addresses": list(item.nameservers), "search": list(item.search)}
        if item.nameservers or item.search:
            entry["nameservers"] = {key: value for key, value in servers.items() if value}
        if item.mtu:
            entry["mtu"] = item.mtu
        ethernets[item.name] = entry
    return {"version": 2, "ethernets": ethernets}


def instance_id(name: str, *documents: str) -> str:
    """Return an id that changes with the documents, so that cloud-init runs again for a machine made anew."""
    digest = hashlib.sha256("\0".join(documents).encode()).hexdigest()
    return f"{name}-{digest[:12]}"


def meta_data(values: MachineValues, *documents: str) -> dict[str, Any]:
    """Return the meta data of a machine with these documents."""
    return {"instance-id": instance_id(values.name, *documents), "local-hostname": values.name}


def part_type(where: str, text: str) -> str:
    """Return the MIME type of a part of user data by how it begins."""
    for beginning, kind in PART_TYPES.items():
        if text.startswith(beginning):
            return kind
    found = text.split("\n", 1)[0][:40]
    raise InvalidInput(f"{where}: expected a first line such as {HEADER} or #!/bin/sh, found {found!r}")


def mime(parts: Sequence[tuple[str, str]]) -> str:
    """Return user data of several parts, each (file name, text): cloud-config, scripts, and what else cloud-init knows.

    The same parts always give the same text. Raises InvalidInput for a part of no known type, and for no part.
    """
    if not parts:
        raise InvalidInput("user data: expected one part or more, found none")
    whole = hashlib.sha256("\0".join(text for part in parts for text in part).encode()).hexdigest()
    boundary = f"==={whole[:32]}==="
    lines = [f'Content-Type: multipart/mixed; boundary="{boundary}"', "MIME-Version: 1.0", ""]
    for name, text in parts:
        kind = part_type(f'part "{name}"', text)
        if not name.isascii() or not name.isprintable() or set(name) & set('"\\'):
            raise InvalidInput(f"part {name!r}: expected a file name of plain letters")
        plain = text.isascii() and "\r" not in text and all(len(line) < 900 for line in text.split("\n"))
        body = text.rstrip("\n") if plain else _wrapped(base64.b64encode(text.encode()).decode())
        lines += [
            f"--{boundary}",
            f'Content-Type: {kind}; charset="utf-8"',
            "MIME-Version: 1.0",
            f"Content-Transfer-Encoding: {'7bit' if plain else 'base64'}",
            f'Content-Disposition: attachment; filename="{name}"',
        ]
        if kind == "text/cloud-config":
            lines.append(f"Merge-Type: {MERGE}")
        lines += ["", body, ""]
    return "\n".join([*lines, f"--{boundary}--", ""])


def _wrapped(text: str) -> str:
    return "\n".join(text[start : start + 76] for start in range(0, len(text), 76))
