# SPDX-License-Identifier: GPL-3.0-or-later
"""Seed images of cloud-init's data source NoCloud: a small ISO 9660 image with the volume label "cidata".

https://cloudinit.readthedocs.io/en/latest/reference/datasources/nocloud.html,
https://cloudinit.readthedocs.io/en/latest/reference/network-config-format-v2.html
"""

from __future__ import annotations

import ipaddress
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fleet_core.errors import ProcessFailed, TimedOut, Unavailable
    from fleet_core.machines import Network
else:
    try:
        from ..fleet_core.errors import ProcessFailed, TimedOut, Unavailable
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import ProcessFailed, TimedOut, Unavailable

# What makes the image, in the order of preference. Each takes the words behind it, then the image and the folder.
TOOLS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("xorriso", ("-as", "mkisofs", "-quiet", "-volid", "cidata", "-joliet", "-rational-rock", "-output")),
    ("genisoimage", ("-quiet", "-volid", "cidata", "-joliet", "-rational-rock", "-output")),
    ("mkisofs", ("-quiet", "-volid", "cidata", "-joliet", "-rational-rock", "-output")),
    ("hdiutil", ("makehybrid", "-quiet", "-iso", "-joliet", "-default-volume-name", "cidata", "-o")),
)
PACKAGES = "xorriso (Debian, Ubuntu, Fedora, openSUSE: package xorriso; Arch: libisoburn; Alpine: xorriso)"
EMPTY_USER_DATA = "#cloud-config\n{}\n"
_SECONDS = 60.0

Which = Callable[[str], "str | None"]


def tool(which: Which = shutil.which) -> tuple[str, ...]:
    """Return the command that makes an image, without its last two words. Raises Unavailable when none is there."""
    for name, words in TOOLS:
        path = which(name)
        if path:
            return (path, *words)
    names = ", ".join(name for name, _words in TOOLS)
    raise Unavailable(
        f"cloud-init's seed image cannot be made: expected one of {names} in PATH, found none; install {PACKAGES}"
    )


def build(
    path: str | os.PathLike[str],
    user_data: str | None,
    meta_data: str,
    network_config: str = "",
    vendor_data: str = "",
    which: Which = shutil.which,
) -> None:
    """Write a seed image with mode 0600; after a crash there is the old one or the new one.

    user_data: as cloud-init takes it; None: none, for which there must be a file all the same. network_config and
    vendor_data: empty to leave them out. Raises Unavailable, ProcessFailed or TimedOut, which never show what is in it.
    """
    path = Path(path)
    files = {
        "user-data": user_data if user_data else EMPTY_USER_DATA,
        "meta-data": meta_data,
        "network-config": network_config,
        "vendor-data": vendor_data,
    }
    command = tool(which)
    # User data hold secrets: the folder is 0700, and the image is never anything but 0600.
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        source = Path(folder) / "seed"
        source.mkdir(mode=0o700)
        for name, text in files.items():
            if text:
                _write(source / name, text)
        image = Path(folder) / "image.iso"
        _run((*command, str(image), str(source)), path)
        image.chmod(0o600)
        os.replace(image, path)


def meta_data(instance_id: str, hostname: str, public_keys: Sequence[str] = ()) -> str:
    """Return meta data. Another instance_id makes cloud-init take the machine for a new one: new host keys, user data
    applied again. public_keys: for the image's default account."""
    data: dict[str, Any] = {"instance-id": instance_id, "local-hostname": hostname}
    if public_keys:
        data["public-keys"] = list(public_keys)
    return json.dumps(data, indent=1) + "\n"  # JSON is YAML


def network_config(networks: Iterable[Network], names: Iterable[str] = ()) -> str:
    """Return a network config of version 2 for interfaces whose mac is known; "" of one address means DHCP.

    Each is found by its hardware address and called as names say, by default net0, net1, ...: what the kernel and its
    drivers call it depends on the machine's slots.
    """
    given = list(names)
    ethernets: dict[str, Any] = {}
    for number, network in enumerate(networks):
        name = given[number] if number < len(given) else f"net{number}"
        ethernets[name] = {"match": {"macaddress": network.mac}, "set-name": name, **_addresses(network)}
    return json.dumps({"version": 2, "ethernets": ethernets}, indent=1) + "\n" if ethernets else ""


def _addresses(network: Network) -> Mapping[str, Any]:
    if network.address in ("", "dhcp"):
        # By the hardware address, so that a clone with its source's machine-id gets a lease of its own.
        return {"dhcp4": True, "dhcp-identifier": "mac"}
    found: dict[str, Any] = {"dhcp4": False, "addresses": [network.address]}
    if network.gateway:
        six = ipaddress.ip_address(network.gateway).version == 6
        found["routes"] = [{"to": "::/0" if six else "0.0.0.0/0", "via": network.gateway}]
    return found


def _write(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
        file.write(text)


def _run(command: Sequence[str], path: Path) -> None:
    where = f"seed image {path}"
    try:
        done = subprocess.run(  # pylint: disable=ansible-bad-function # no module in fleet_machines
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            timeout=_SECONDS,
            check=False,
            umask=0o077,
        )
    except subprocess.TimeoutExpired:
        raise TimedOut(f"{where}: {command[0]} did not end within {_SECONDS:g} s") from None
    except OSError as error:
        raise Unavailable(f"{where}: {command[0]} cannot be run: {error.strerror}") from error
    if done.returncode:
        said = (done.stdout or "").strip().rpartition("\n")[2][:300]
        raise ProcessFailed(f"{where}: {Path(command[0]).name} ended with {done.returncode}: {said}")
